"""Labels that go through a transformer beside its tokens (TL-Align)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wsol.errors import ModelError
from wsol.mix._forward import forward
from wsol.mix.base import Context, Mixed
from wsol.models.classifier import Classifier
from wsol.models.taps import tap

Size = tuple[int, int]


def carry(labels: Tensor, attention: Tensor) -> Tensor:
    """Take labels through one block: (A L + L) / 2.

    Args:
        labels: (B, T, K).
        attention: (B, T, T), rows with sum 1.
    """
    return (attention @ labels + labels) / 2


def carry_windows(labels: Tensor, attention: Tensor, *, window: Size, shift: Size) -> Tensor:
    """Take labels through one block with attention in (shifted) windows.

    Args:
        labels: (B, h, w, K).
        attention: (B windows, window area, window area), images first, then windows by rows; rows with sum 1.
        window: (rows, columns) of a window.
        shift: By how much the grid is rolled up and left before it is cut into windows.

    Returns:
        (B, h, w, K). What a token attends to beyond the border has no label, and leaves the others their proportions.
    """
    count, rows, columns, classes = labels.shape
    rolled = torch.roll(labels, (-shift[0], -shift[1]), (1, 2))
    # a last channel counts how much of the attention stays inside
    full = F.pad(rolled, (0, 1), value=1.0)
    full = F.pad(full, (0, 0, 0, -columns % window[1], 0, -rows % window[0]))
    down, across = full.shape[1] // window[0], full.shape[2] // window[1]
    cut = full.reshape(count, down, window[0], across, window[1], classes + 1).transpose(2, 3)
    moved = attention @ cut.reshape(-1, window[0] * window[1], classes + 1)
    back = moved.reshape(count, down, across, window[0], window[1], classes + 1).transpose(2, 3)
    inside = back.reshape(count, *full.shape[1:])[:, :rows, :columns]
    seen = inside[..., :-1] / inside[..., -1:].clamp_min(1e-12)
    return (torch.roll(seen, shift, (1, 2)) + labels) / 2


def merge(labels: Tensor) -> Tensor:
    """Return the mean of each 2 x 2 tokens of (B, h, w, K); at odd borders of those that are there."""
    return F.avg_pool2d(labels.movedim(3, 1), 2, ceil_mode=True, count_include_pad=False).movedim(1, 3)


def carried(context: Context, mixed: Mixed) -> tuple[Tensor, Tensor]:
    """Run the mixed images and carry the share of the own image through every attention.

    Args:
        context: The model, in the mode it is in.
        mixed: With `own_mask`.

    Returns:
        Logits, float32 (B, K), and the share in the label after the last block, (B,); the latter without graph.

    Raises:
        ModelError: When the model has no such path.
    """
    if mixed.own_mask is None:
        raise ValueError("own_mask is None")
    classifier = context.classifier
    check_path(classifier)
    grid = first_grid(classifier, (mixed.images.shape[2], mixed.images.shape[3]))
    cells = F.adaptive_avg_pool2d(mixed.own_mask.float(), grid)  # exact for whole tokens
    path: _SwinPath | _PlainPath
    path = _SwinPath(classifier, cells) if is_swin(classifier) else _PlainPath(classifier, cells, mixed.own_weight)
    with tap(classifier.module, attention=path.names, reduce=path.follow):
        logits = forward(classifier, mixed.images, amp=context.amp).logits
    return logits, path.result()


def first_grid(classifier: Classifier, size: Size) -> Size:
    """Return the (rows, columns) of the first tokens for an image of (H, W) pixels."""
    if not is_swin(classifier):
        return classifier.grid(*size)
    rows, columns = classifier.module.patch_embed.dynamic_feat_size(size)
    return int(rows), int(columns)


def is_swin(classifier: Classifier) -> bool:
    """Whether a model is a Swin transformer of timm: stages of blocks with windows and shifts."""
    stages = getattr(classifier.module, "layers", ())
    blocks = [block for stage in stages for block in getattr(stage, "blocks", ())]
    parts = ("window_size", "shift_size", "attn")
    return bool(blocks) and all(hasattr(block, part) for block in blocks for part in parts)


def check_path(classifier: Classifier) -> None:
    """Refuse a model whose attention labels cannot follow.

    Raises:
        ModelError: Naming models they can.
    """
    if not classifier.attention and not is_swin(classifier):
        hint = "take a plain vision transformer or a Swin transformer"
        raise ModelError("has no attention that labels could follow", where=classifier.name, hint=hint)


class _PlainPath:
    """Shares of all tokens; the prefix tokens start with the share of the area."""

    def __init__(self, classifier: Classifier, cells: Tensor, weight: Tensor) -> None:
        self.names = classifier.attention
        self._output = classifier.output_tokens
        prefix = weight.float()[:, None].expand(-1, classifier.prefix_tokens)
        self._share = torch.cat([prefix, cells.flatten(1)], 1)[..., None]

    def follow(self, weights: Tensor) -> Tensor:
        with torch.autocast(weights.device.type, enabled=False):
            self._share = carry(self._share, weights.float().mean(1))
        return self._share

    def result(self) -> Tensor:
        return self._share[:, self._output, 0].mean(1)


class _SwinPath:
    """Shares on the grid of a stage; merged where the next stage begins."""

    def __init__(self, classifier: Classifier, cells: Tensor) -> None:
        self._share = cells.movedim(1, 3)
        names, steps = [], []
        for at, stage in enumerate(classifier.module.layers):
            for number, block in enumerate(stage.blocks):
                names.append(f"layers.{at}.blocks.{number}.attn")
                merges = number == 0 and not isinstance(stage.downsample, torch.nn.Identity)
                steps.append((merges, tuple(block.window_size), tuple(block.shift_size)))
        self.names, self._steps = tuple(names), iter(steps)

    def follow(self, weights: Tensor) -> Tensor:
        merges, window, shift = next(self._steps)
        share = merge(self._share) if merges else self._share
        with torch.autocast(weights.device.type, enabled=False):
            self._share = carry_windows(share, weights.float().mean(1), window=window, shift=shift)
        return self._share

    def result(self) -> Tensor:
        return self._share.flatten(1).mean(1)
