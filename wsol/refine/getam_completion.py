"""GETAM's activation-aware label completion: saliency says where the background is, activations fill its gaps.

Sun et al., "GETAM: Gradient-weighted Element-wise Transformer Attention Map for Weakly-supervised Semantic
segmentation", arXiv 2021, https://arxiv.org/abs/2112.02841. Where the background score wins, a pixel is ignored if it
is salient and background if not. A class also takes the pixels labelled background where its score lies above its own
quantile, since saliency misses objects. What is thin of all labels together is then opened away. Stands last in a
chain, as it gives labels; as published: `--alpha 32 --method pamr,getam_completion --saliency FOLDER`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError, DataError
from wsol.refine import REFINERS
from wsol.refine.base import Confidence, Labels
from wsol.schema import IGNORE


@REFINERS.register("getam_completion")
@dataclass(frozen=True)
class GETAMCompletion:
    """Activation-aware label completion.

    Attributes:
        quantile: Share of the positive scores of a class that lie below what it takes (0.95 for COCO).
        opening: Side of the square of the morphological opening, in pixels; 1 opens nothing away. An even side, as
            published, also takes the first row and column of what it keeps.
    """

    quantile: float = 0.9
    opening: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1:
            raise ConfigError(f"must be in [0, 1), got {self.quantile}", where="quantile")
        if self.opening < 1:
            raise ConfigError(f"must be at least 1, got {self.opening}", where="opening")

    def label(
        self,
        scores: NDArray[np.float32],
        class_ids: NDArray[np.integer],
        *,
        saliency: NDArray[np.floating] | None = None,
    ) -> tuple[Labels, Confidence]:
        """Label one image; see `wsol.refine.base.Labeler`.

        Without saliency the pixels where the background wins are background, and only completed: then no pixel is
        ignored, and no class with a positive score above its quantile vanishes but by the opening.
        """
        salient = scores.argmax(axis=0) > 0 if saliency is None else saliency > 0
        labels, _ = complete_labels(scores, class_ids, salient, quantile=self.quantile, opening=self.opening)
        channels = np.zeros(labels.shape, np.intp)
        for channel, class_id in enumerate(class_ids, start=1):
            channels[labels == class_id + 1] = channel
        confidence = np.take_along_axis(scores, channels[None], axis=0)[0]
        ignored = labels == IGNORE
        confidence[ignored] = scores.max(axis=0)[ignored]
        return labels, confidence.astype(np.float16)


def complete_labels(
    scores: NDArray[np.float32],
    class_ids: NDArray[np.integer],
    salient: NDArray[np.bool_],
    *,
    quantile: float = 0.9,
    opening: int = 10,
) -> tuple[Labels, NDArray[np.bool_]]:
    """Label one image from scores and saliency.

    Args:
        scores: float32 (K + 1, H, W); channel 0 is background, (1 - max)^32 in the paper.
        class_ids: Class ids (K,) of the other channels. Of two classes that claim a pixel the lower id gets it; the
            published code means to ignore such pixels, but never does.
        salient: bool (H, W).
        quantile: Share of the positive scores of a class that lie below what it takes.
        opening: Side of the square of the opening, in pixels.

    Returns:
        uint8 (H, W) labels: 0 background, class id + 1, 255 ignored.
        bool (H, W): where a class took pixels from the background, which then count as salient in GETAM's losses.

    Raises:
        DataError: When the saliency has another size than the scores.
    """
    if salient.shape != scores.shape[1:]:
        raise DataError(f"expected saliency {scores.shape[1:]}, got {salient.shape}")
    lookup = np.array([IGNORE, *(np.asarray(class_ids) + 1)], dtype=np.uint8)
    labels: Labels = lookup[scores.argmax(axis=0)]
    labels[~salient] = 0
    completed = np.zeros(labels.shape, np.bool_)
    for channel in np.argsort(class_ids) + 1:
        positive = scores[channel][scores[channel] > 0]
        if positive.size:
            at = int(quantile * positive.size)
            taken = (scores[channel] > np.partition(positive, at)[at]) & (labels == 0)
            labels[taken] = lookup[channel]
            completed |= taken
    square = np.ones((opening, opening), np.uint8)
    kept = cv2.morphologyEx((labels != 0).astype(np.uint8), cv2.MORPH_OPEN, square)
    labels[kept == 0] = 0
    return labels, completed
