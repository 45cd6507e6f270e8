"""Around a map method: several input sizes, mirror images, and which classes to map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from wsol.cams.base import BoundMethod, ClassChoice, ClassIds, RawMaps
from wsol.errors import ConfigError, did_you_mean

Selection = Literal["labels", "top1", "top5", "all"]
_SELECTIONS = ("labels", "top1", "top5", "all")


def multi_scale(
    method: BoundMethod,
    inputs: Callable[[float], Tensor],
    class_ids: ClassChoice,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    rectify: bool = False,
) -> RawMaps:
    """Sum the maps of several input sizes and of mirror images.

    Args:
        method: From `wsol.cams.create`.
        inputs: Gives the batch (B, 3, h, w) at a scale, made from the images anew.
        class_ids: As for the method; a function of the logits sees those of the scale nearest to 1, not mirrored.
        scales: Factors of the input size.
        flip: Also map the mirror image of each input and mirror its maps back.
        rectify: Drop the negative evidence of each pass before the sum, as PSA and IRN do, instead of that of the sum.

    Returns:
        Raw maps on the largest grid, bilinear; with the logits that chose the classes. One pass alone stays as it is.
    """
    ordered = sorted(scales, key=lambda scale: abs(scale - 1.0))
    first: RawMaps | None = None
    passes: list[tuple[Tensor, ...]] = []
    for scale in ordered:
        images = inputs(scale)
        straight = method(images, class_ids if first is None else first.class_ids)
        first = first or straight
        passes.append(straight.values)
        if flip:
            passes.append(tuple(maps.flip(-1) for maps in method(images.flip(-1), first.class_ids).values))
    if first is None:
        raise ConfigError("no scale to make maps at", where="scales")
    if len(passes) == 1:
        return first
    if rectify:
        passes = [tuple(maps.relu() for maps in values) for values in passes]
    values = tuple(_sum(list(maps)) for maps in zip(*passes, strict=True))
    return RawMaps(values, first.class_ids, first.logits)


def select_classes(logits: Tensor, mode: Selection, labels: ClassIds) -> ClassIds:
    """Return the class ids to map for each image.

    Args:
        logits: (B, C).
        mode: "labels" takes the image's labels, "top1" and "top5" the highest logits in falling order, "all" every
            class.
        labels: Class ids in each image.

    Raises:
        ConfigError: When the mode is unknown.
    """
    if mode == "labels":
        return [list(row) for row in labels]
    if mode == "all":
        return [list(range(logits.shape[1]))] * len(logits)
    if mode not in _SELECTIONS:
        raise ConfigError(f"unknown choice of classes '{mode}'", hint=did_you_mean(mode, _SELECTIONS))
    count = min(1 if mode == "top1" else 5, logits.shape[1])
    chosen: list[list[int]] = logits.topk(count, dim=1).indices.tolist()
    return chosen


def _sum(maps: list[Tensor]) -> Tensor:
    size = max((item.shape[-2:] for item in maps), key=lambda shape: shape[0] * shape[1])
    total = maps[0].new_zeros(maps[0].shape[0], *size)
    for item in maps:
        if not len(item):
            continue
        same = item.shape[-2:] == size
        total += item if same else F.interpolate(item[None], size=size, mode="bilinear", align_corners=False)[0]
    return total
