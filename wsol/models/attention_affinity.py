"""Affinities of patches from the attention of a transformer, and maps spread along them (CAA of CLIP-ES).

Lin et al., "CLIP is Also an Efficient Segmenter: A Text-Driven Approach for Weakly Supervised Semantic Segmentation",
CVPR 2023, https://arxiv.org/abs/2212.09506. The attention of the last blocks becomes nearly doubly stochastic by
Sinkhorn's scaling, then symmetric: T. The paper multiplies maps by T squared; here by T twice, and T is never formed,
so all classes of an image cost a few products of a matrix and a vector.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wsol.errors import ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import evaluating, tap

_ROUNDS = 3


class AttentionMean:
    """The mean over heads and blocks of the attention between patches, block by block: one matrix an image is kept.

    Args:
        prefix_tokens: Tokens before the patches; their rows and columns are cut off.
    """

    def __init__(self, prefix_tokens: int) -> None:
        self.prefix_tokens, self.blocks = prefix_tokens, 0
        self._sum: Tensor | None = None

    def __call__(self, attention: Tensor) -> Tensor:
        """Take the attention (B, heads, L, L) of a block into account, and return nothing worth keeping: (0,)."""
        patches = attention[:, :, self.prefix_tokens :, self.prefix_tokens :]
        mean = patches.mean(1, dtype=torch.float32)
        self._sum = mean if self._sum is None else self._sum + mean
        self.blocks += 1
        return attention.new_empty(0)

    def result(self) -> Tensor:
        """Return the mean (B, N, N), float32.

        Raises:
            ValueError: Before the first block.
        """
        if self._sum is None:
            raise ValueError("no block was seen")
        return self._sum / self.blocks


def check_attention(classifier: Classifier) -> None:
    """Refuse models without attention.

    Raises:
        ModelError: When there is none between patches.
    """
    if not classifier.attention:
        raise _unfit(classifier)


def mean_attention(classifier: Classifier, images: Tensor, *, layers: int = 8) -> Tensor:
    """Run a transformer and return the mean over its last blocks and their heads of the attention between patches.

    Args:
        classifier: A plain vision transformer with any number of prefix tokens; it is run in evaluation mode.
        images: Float (B, 3, h, w), normalized.
        layers: Blocks that take part, from the last one back; all where there are fewer.

    Returns:
        float32 (B, N, N).

    Raises:
        ModelError: When the model has no attention between all patches, or cannot run at this size.
    """
    names = classifier.attention[-layers:]
    height, width = images.shape[-2:]
    rows, columns = classifier.grid(height, width)
    mean = AttentionMean(classifier.prefix_tokens)
    module: Any = classifier.module
    check_attention(classifier)
    try:
        with torch.inference_mode(), evaluating(module), tap(module, attention=names, reduce=mean):
            module.forward_features(images)
    except (AssertionError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        raise ModelError(f"cannot run at {height}x{width} pixels: {reason}", where=classifier.name) from error
    if mean.result().shape[1:] != (rows * columns, rows * columns):
        raise _unfit(classifier)
    return mean.result()


def _unfit(classifier: Classifier) -> ModelError:
    return ModelError(
        "needs attention between all patches, as in a plain vision transformer",
        where=classifier.name,
        hint="give a ViT, DeiT, DINOv2 or CLIP",
    )


def sinkhorn(attention: Tensor, *, rounds: int = _ROUNDS) -> tuple[Tensor, Tensor]:
    """Return the factors that make a matrix nearly doubly stochastic.

    Args:
        attention: Positive float (..., N, N).
        rounds: Times that columns, then rows are divided by their sums.

    Returns:
        Factors (..., N) of the rows and of the columns: diag(rows) @ attention @ diag(columns) has rows with sum 1,
        and columns with sum about 1.
    """
    least = torch.finfo(attention.dtype).tiny
    row = attention.new_ones(attention.shape[:-1])
    column = row
    for _ in range(rounds):
        column = 1 / (row[..., None, :] @ attention)[..., 0, :].clamp_min(least)
        row = 1 / (attention @ column[..., None])[..., 0].clamp_min(least)
    return row, column


def spread(attention: Tensor, values: Tensor, *, steps: int = 2, rounds: int = _ROUNDS) -> Tensor:
    """Spread maps along the affinities of an image.

    Args:
        attention: Positive float (N, N) between patches.
        values: (C, N), one map a class.
        steps: Power of the affinity matrix T = (S + S.T) / 2, with S the attention after `sinkhorn`.
        rounds: See `sinkhorn`.

    Returns:
        (C, N): values @ T ** steps.
    """
    row, column = sinkhorn(attention, rounds=rounds)
    for _ in range(steps):
        forward = (values * column) @ attention.T * row
        values = (forward + (values * row) @ attention * column) / 2
    return values
