"""What every refiner is, and the steps around it: adding the background, chaining, and reading off the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError, DataError
from wsol.ops.otsu import otsu_threshold
from wsol.schema import IGNORE

Labels = NDArray[np.uint8]
Confidence = NDArray[np.float16]


@runtime_checkable
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


@runtime_checkable
class Learned(Protocol):
    """A refiner with a network."""

    @property
    def checkpoint(self) -> str | Path | None:
        """Where its weights are; None where there are none, or where the hub has them."""
        ...

    def load(self) -> object:
        """Return the network, loaded once a process.

        Raises:
            ConfigError: When no checkpoint is given.
            ModelError: When it holds no network of this refiner.
        """
        ...


@runtime_checkable
class Labeler(Protocol):
    """Reads labels off scores, by another rule than the best score: the last step of a chain.

    A labeler is a frozen dataclass whose fields are its options.
    """

    def label(
        self, scores: NDArray[np.float32], class_ids: NDArray[np.integer], *, saliency: NDArray[np.floating] | None
    ) -> tuple[Labels, Confidence]:
        """Label one image; the arguments stay as they are.

        Args:
            scores: float32 (K + 1, H, W) in [0, 1]; channel 0 is background.
            class_ids: Class ids (K,) of the other channels, each in [0, 253].
            saliency: Float (H, W) in [0, 1], 0 where there is no object; or None.

        Returns:
            The labels and the confidence, as `to_labels` gives them.
        """
        ...


@dataclass(frozen=True)
class Chain:
    """Refiners one after the other, then one way to read the labels off; a refiner itself.

    Attributes:
        refiners: Each sees the image and the scores of the one before.
        labeler: Reads the labels off the last scores; None takes the best score of each pixel.
    """

    refiners: tuple[Refiner, ...]
    labeler: Labeler | None = None

    def load(self) -> tuple[str | Path, ...]:
        """Load the networks of the refiners that have one, and return the checkpoints that they are from.

        Raises:
            ConfigError: When one is not given.
            ModelError: When one cannot be used.
        """
        learned = [step for step in self.refiners if isinstance(step, Learned)]
        for step in learned:
            step.load()
        return tuple(step.checkpoint for step in learned if step.checkpoint is not None)

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores after the last refiner; see `Refiner`."""
        check_inputs(image, scores)
        refined = np.array(scores, dtype=np.float32)
        for refiner in self.refiners:
            refined = refiner(image, refined)
        return refined

    def label(
        self,
        scores: NDArray[np.float32],
        class_ids: Sequence[int] | NDArray[np.integer],
        *,
        saliency: NDArray[np.floating] | None = None,
        min_confidence: float = 0.0,
    ) -> tuple[Labels, Confidence]:
        """Read the labels off refined scores.

        Args:
            scores: float32 (K + 1, H, W), as the chain returned them.
            class_ids: Class ids (K,) of all channels but the first.
            saliency: For labelers that use it: float (H, W) in [0, 1].
            min_confidence: Pixels with a lower confidence become 255.

        Returns:
            The labels and the confidence, as `to_labels` gives them.

        Raises:
            DataError: When the class ids do not fit, or a score is not finite.
            ConfigError: When there is a saliency map but nothing that uses it.
        """
        if self.labeler is None:
            if saliency is not None:
                raise ConfigError("no step of the chain uses saliency", hint="end it with getam_completion")
            return to_labels(scores, class_ids, min_confidence=min_confidence)
        ids = _check_labelled(scores, class_ids)
        labels, confidence = self.labeler.label(scores, ids, saliency=saliency)
        labels[confidence < min_confidence] = IGNORE
        return labels, confidence


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
    maps: NDArray[np.floating],
    *,
    background: float | Literal["otsu"] | None = None,
    alpha: float | None = None,
) -> NDArray[np.float32]:
    """Put a background score in front of the maps of the classes.

    Args:
        maps: Float (K, H, W) in [0, 1]; K may be 0.
        background: Constant score of the background in [0, 1] (IRN, ToCo, AFA); "otsu" chooses it for each image, by
            Otsu's threshold of the maximum over the classes.
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
    strongest = scores[1:].max(axis=0) if len(maps) else np.zeros(maps.shape[1:], np.float32)
    if background == "otsu":
        scores[0] = otsu_threshold(strongest)
    elif background is not None:
        if isinstance(background, str) or not 0 <= background <= 1:
            raise ConfigError(f"the background score must be in [0, 1], got {background}", where="background")
        scores[0] = background
    elif alpha is not None:
        if not alpha > 0:
            raise ConfigError(f"alpha must be positive, got {alpha}", where="alpha")
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
        DataError: When there are not K class ids, one cannot be written into a mask, or a score is not finite.
    """
    ids = _check_labelled(scores, class_ids)
    lookup = np.concatenate([[0], ids + 1]).astype(np.uint8)
    labels, confidence = lookup[scores.argmax(axis=0)], scores.max(axis=0)
    labels[confidence < min_confidence] = IGNORE
    return labels, confidence.astype(np.float16)


def merge_labels(strict: Labels, loose: Labels) -> Labels:
    """Keep what two background scores agree on: the two thresholds of IRN, AFA and ToCo.

    Args:
        strict: uint8 (H, W) labels under the higher background score: what is foreground here is certain.
        loose: uint8 (H, W) labels under the lower one: what is background here is certain.

    Returns:
        uint8 (H, W): the foreground of the first, 0 where both are background, 255 elsewhere.
    """
    labels = strict.copy()
    labels[(strict == 0) & (loose != 0)] = IGNORE
    return labels


def _check_labelled(scores: NDArray[np.float32], class_ids: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
    ids = np.asarray(class_ids, dtype=np.int64).reshape(-1)
    if len(ids) + 1 != len(scores):
        raise DataError(f"expected {len(scores) - 1} class ids for {len(scores)} channels, got {len(ids)}")
    if ids.size and not (ids.min() >= 0 and ids.max() + 1 < IGNORE):
        raise DataError(f"class ids must be in [0, {IGNORE - 2}] to fit a mask, got {ids.min()} to {ids.max()}")
    if not np.isfinite(scores).all():
        raise DataError("labels: the scores hold NaN or infinity")
    return ids
