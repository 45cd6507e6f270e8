"""What every refiner is, and the two steps around it: adding the background and reading off the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError, DataError
from wsol.schema import IGNORE


class Refiner(Protocol):
    """Turns the scores of an image into better ones.

    A refiner is a frozen dataclass whose fields are its options.
    """

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Refine the scores of one image; the arguments stay as they are.

        Args:
            image: uint8 (H, W, 3) RGB.
            scores: float32 (C, H, W) in [0, 1]; channel 0 is background; the sum over C is free.

        Returns:
            float32 (C, H, W) in [0, 1]: argmax is the label, max the confidence.

        Raises:
            DataError: When the shapes do not fit together.
        """
        ...


def check_inputs(image: NDArray[np.uint8], scores: NDArray[np.float32]) -> None:
    """Refuse arguments that no refiner can use.

    Raises:
        DataError: When the image is not uint8 (H, W, 3), or the scores are not finite (C >= 1, H, W) of that size.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise DataError(f"refiner: expected a uint8 image (H, W, 3), got {image.dtype} {image.shape}")
    if scores.ndim != 3 or not len(scores) or scores.shape[1:] != image.shape[:2]:
        raise DataError(f"refiner: expected scores (C, {image.shape[0]}, {image.shape[1]}), got {scores.shape}")
    if not np.isfinite(scores).all():
        raise DataError("refiner: the scores hold NaN or infinity")


def with_background(
    maps: NDArray[np.floating], *, background: float | None = None, alpha: float | None = None
) -> NDArray[np.float32]:
    """Put a background score in front of the maps of the classes.

    Args:
        maps: Float (K, H, W) in [0, 1]; K may be 0.
        background: Constant score of the background in [0, 1] (IRN, ToCo, AFA).
        alpha: Power of (1 - max over K) ** alpha (PSA 4 to 32, GETAM 32, CLIP-ES 1); 1 where K is 0.

    Returns:
        float32 (K + 1, H, W).

    Raises:
        ConfigError: Unless exactly one of `background` and `alpha` is given, in its range.
    """
    if (background is None) == (alpha is None):
        raise ConfigError("give either a constant background score or the power alpha", where="background, alpha")
    scores = np.empty((len(maps) + 1, *maps.shape[1:]), np.float32)
    scores[1:] = maps
    if background is not None:
        if not 0 <= background <= 1:
            raise ConfigError(f"the background score must be in [0, 1], got {background}", where="background")
        scores[0] = background
    elif alpha is not None:
        if not alpha > 0:
            raise ConfigError(f"alpha must be positive, got {alpha}", where="alpha")
        strongest = scores[1:].max(axis=0) if len(maps) else np.zeros(maps.shape[1:], np.float32)
        scores[0] = np.clip(1 - strongest, 0, 1) ** alpha
    return scores


def to_labels(
    scores: NDArray[np.float32], class_ids: Sequence[int] | NDArray[np.integer], *, min_confidence: float = 0.0
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Read the mask off refined scores.

    Args:
        scores: float32 (K + 1, H, W) in [0, 1]; channel 0 is background.
        class_ids: Class ids (K,) of the other channels.
        min_confidence: Pixels whose best score is below become 255 (0.95 in CLIP-ES).

    Returns:
        uint8 (H, W) labels: 0 background, class id + 1, 255 ignored; on ties the first channel wins.
        float16 (H, W) confidence: the best score, in [0, 1].

    Raises:
        DataError: When there are not K class ids, or one cannot be written into a mask.
    """
    ids = np.asarray(class_ids, dtype=np.int64).reshape(-1)
    if len(ids) + 1 != len(scores):
        raise DataError(f"expected {len(scores) - 1} class ids for {len(scores)} channels, got {len(ids)}")
    if ids.size and not (ids.min() >= 0 and ids.max() + 1 < IGNORE):
        raise DataError(f"class ids must be in [0, {IGNORE - 2}] to fit a mask, got {ids.min()} to {ids.max()}")
    lookup = np.concatenate([[0], ids + 1]).astype(np.uint8)
    labels, confidence = lookup[scores.argmax(axis=0)], scores.max(axis=0)
    labels[confidence < min_confidence] = IGNORE
    return labels, confidence.astype(np.float16)
