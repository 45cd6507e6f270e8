"""What the strategies for transformers share: masks on the token grid, and what the clean images attend to."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wsol.errors import ConfigError, ModelError
from wsol.mix._compose import OneOf
from wsol.mix._salient import SalientMix
from wsol.mix.base import Context, MixStrategy
from wsol.models.classifier import Classifier
from wsol.models.taps import evaluating, tap

Size = tuple[int, int]


def at_cells(mask: Tensor, grid: Size) -> Tensor:
    """Return the value of a mask at the first pixel of each cell: nearest, cell k reads pixel floor(k H / rows).

    Args:
        mask: (..., H, W).
        grid: (rows, columns).

    Returns:
        (..., rows, columns).
    """
    rows, columns = (
        torch.arange(cells, device=mask.device) * side // cells
        for side, cells in zip(mask.shape[-2:], grid, strict=True)
    )
    return mask[..., rows[:, None], columns]


def to_pixels(cells: Tensor, size: Size) -> Tensor:
    """Return a mask of cells at the size of the image: nearest, pixel p reads cell floor(p rows / H).

    Args:
        cells: (..., rows, columns).
        size: (H, W).

    Returns:
        (..., H, W).
    """
    return at_cells(cells, size)


def cell_grid(classifier: Classifier, size: Size) -> Size:
    """Return the (rows, columns) of the cells to mix: the tokens of a plain transformer, else 16 pixels each."""
    if classifier.kind == "tokens":
        return classifier.grid(*size)
    return -(-size[0] // 16), -(-size[1] // 16)


def present(y: Tensor) -> Tensor:
    """Return which classes an image has, float (B, K) of 0 and 1: labels of at least one half, smoothed or not."""
    return (y >= 0.5).to(y.dtype)


def clean_attention(context: Context, x: Tensor, *, rows: Literal["output", "patches"]) -> tuple[Tensor, Tensor]:
    """Run the clean images in evaluation mode and read the attention of the last block; the model stays as it was.

    Args:
        context: The model; `check_attention` lets it pass.
        x: (B, C, H, W), normalized.
        rows: Who attends: "output" the class token (for models that pool: the mean patch), "patches" the mean patch.

    Returns:
        Logits, float32 (B, K), and what each patch receives, mean over heads, float32 (B, N); both without graph.
    """
    classifier = context.classifier
    name, prefix = classifier.attention[-1], classifier.prefix_tokens
    who = classifier.output_tokens if rows == "output" else slice(prefix, None)
    with (
        torch.no_grad(),
        evaluating(classifier.module),
        torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=context.amp, cache_enabled=False),
        tap(classifier.module, attention=[name], reduce=lambda weights: weights.float().mean(1)) as seen,
    ):
        logits = classifier.module(x)
    return logits.float(), seen.attention[name][:, who, prefix:].mean(1)


def check_attention(classifier: Classifier) -> None:
    """Refuse a model without attention between all patches.

    Raises:
        ModelError: Naming a kind of model that has it.
    """
    if not classifier.attention:
        hint = "take a plain vision transformer, for example deit_small_patch16_224"
        raise ModelError("has no attention between all patches", where=classifier.name, hint=hint)


def require_plain(strategy: MixStrategy, *, name: str) -> None:
    """Refuse to put a strategy over one that brings its own forward pass, labels or loss, which would be lost.

    Also over one whose batch grows: what the outer one draws or knows of each image would not reach all of them.

    Raises:
        ConfigError: Naming what goes.
    """
    if isinstance(strategy, OneOf):
        for part in strategy.parts:
            require_plain(part, name=name)
        return
    kind, methods, hint = type(strategy), ["forward", "relabel", "loss"], "put it over cutmix or mixup"
    if strategy.growth > 1:
        raise ConfigError(f"cannot be put over {kind.__name__}, whose batch grows", where=f"mix '{name}'", hint=hint)
    if isinstance(strategy, SalientMix) and strategy.clean == 0:
        methods.remove("loss")  # it is the plain one
    if any(getattr(kind, method) is not getattr(MixStrategy, method) for method in methods):
        what = f"cannot be put over {kind.__name__}, which has labels or a loss of its own"
        raise ConfigError(what, where=f"mix '{name}'", hint=hint)
