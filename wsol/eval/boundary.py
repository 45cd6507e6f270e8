"""Boundary F-score: how well the borders of masks follow the borders of the truth.

Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013,
http://www.bmva.org/bmvc/2013/Papers/paper0032/. For a class with border pixels P (predicted) and T (true) and a
distance t, precision is the share of P closer than t to T, recall the share of T closer than t to P, and
F = 2 precision recall / (precision + recall); t is 0.75 % of the image diagonal. A class is averaged over the images
that truly hold it, the score is the mean over classes, background left out.

Two things the paper leaves open: a border pixel belongs to the region and has a 4-neighbour of another label (the
edge of the image is no border), and pixels without truth (255) take the label of the nearest pixel that has one, which
puts the true border into the middle of the band that PASCAL VOC leaves unlabelled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.data.catalog import Dataset, TruthReader
from wsol.errors import EvalError, WsolError
from wsol.eval.sources import mask_file
from wsol.eval.workers import map_chunks
from wsol.schema import IGNORE, EvalResult, Sample
from wsol.store.masks import read_labels

Mask = NDArray[np.uint8]
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


class BoundaryScore(NamedTuple):
    """Precision, recall and F of the border of one class in one image, each in [0, 1]."""

    precision: float
    recall: float
    f: float


@dataclass
class BoundaryPart:
    """What some images contributed.

    Attributes:
        scores: Mask label to its scores, one an image that truly holds the class.
        failures: Image id to the reason why it was not counted.
        n: Images that were counted.
    """

    scores: dict[int, list[BoundaryScore]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    n: int = 0


def boundary_scores(truth: Mask, predicted: Mask, *, tolerance: float = 0.0075) -> dict[int, BoundaryScore]:
    """Compare the borders of every class that an image truly holds.

    Args:
        truth: uint8 (H, W): 0 background, class id + 1, 255 unknown.
        predicted: uint8 (H, W); 255 counts as background.
        tolerance: Distance below which borders agree, as a fraction of the image diagonal.

    Returns:
        Mask label (class id + 1) to its scores. A region that fills the image has no border: it scores 1 where the
        other has none either, else 0.

    Raises:
        EvalError: When the sizes differ.
    """
    if truth.shape != predicted.shape:
        raise EvalError(f"the mask is {predicted.shape}, the truth {truth.shape}")
    labels = [int(label) for label in np.unique(truth) if label not in (0, IGNORE)]
    whole, reach = fill_unknown(truth), tolerance * float(np.hypot(*truth.shape))
    return {label: _compare(whole == label, predicted == label, reach) for label in labels}


def fill_unknown(truth: Mask) -> Mask:
    """Return the truth with every 255 replaced by the label of the nearest pixel that has one."""
    unknown = truth == IGNORE
    if not unknown.any() or unknown.all():
        return truth
    _, nearest = cv2.distanceTransformWithLabels(
        unknown.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    label_of = np.zeros(int(nearest.max()) + 1, np.uint8)
    label_of[nearest[~unknown]] = truth[~unknown]
    return np.asarray(np.where(unknown, label_of[nearest], truth), dtype=np.uint8)


def border(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels of a region (H, W) that have a 4-neighbour outside of it."""
    inner = cv2.erode(region.astype(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=1)
    return np.asarray(region & (inner == 0))


def evaluate_boundary(folder: Path, dataset: Dataset, *, tolerance: float = 0.0075, workers: int = 2) -> EvalResult:
    """Evaluate the borders of masks against ground-truth masks.

    Args:
        folder: Masks by image id: masks/ of a run, or anyone's.
        dataset: The split that the masks were made for.
        tolerance: See `boundary_scores`.
        workers: Processes; the result is the same for any number.

    Returns:
        "boundary F", "boundary precision" and "boundary recall" in percent, as means over classes.

    Raises:
        EvalError: When no image could be evaluated.
    """
    total = BoundaryPart()
    work = partial(score_borders, folder=folder, truth=dataset.truth, tolerance=tolerance)
    for part in map_chunks(work, dataset.samples, workers=workers):
        for label, scores in part.scores.items():
            total.scores.setdefault(label, []).extend(scores)
        total.failures.update(part.failures)
        total.n += part.n
    if not total.scores:
        reason = next(iter(total.failures.values()), "no image holds a class")
        raise EvalError(f"none of {len(dataset)} images could be evaluated", where=folder, hint=reason)
    names = ("boundary precision", "boundary recall", "boundary F")
    means = {label: 100 * np.mean(scores, axis=0) for label, scores in sorted(total.scores.items())}
    per_class: Mapping[str, Mapping[str, float]] = {
        dataset.spec.classes[label - 1]: dict(zip(names, row.tolist(), strict=True)) for label, row in means.items()
    }
    overall = np.mean(list(means.values()), axis=0)
    missing = f"incomplete: {len(total.failures)} of {len(dataset)} images could not be evaluated"
    return EvalResult(
        task="segmentation",
        metrics=dict(zip(names, overall.tolist(), strict=True)),
        n=total.n,
        split=dataset.spec.split,
        threshold_source="none",
        per_class=per_class,
        warnings=(missing,) if total.failures else (),
    )


def score_borders(samples: Sequence[Sample], *, folder: Path, truth: TruthReader, tolerance: float) -> BoundaryPart:
    """Score some images; one that cannot be read becomes a failure."""
    part = BoundaryPart()
    for sample in samples:
        try:
            own = boundary_scores(truth(sample), read_labels(mask_file(folder, sample.id)), tolerance=tolerance)
        except WsolError as error:
            part.failures[sample.id] = str(error)
            continue
        part.n += 1
        for label, score in own.items():
            part.scores.setdefault(label, []).append(score)
    return part


def _compare(true: NDArray[np.bool_], predicted: NDArray[np.bool_], reach: float) -> BoundaryScore:
    ours, theirs = border(predicted), border(true)
    if not ours.any() or not theirs.any():
        same = bool((true == predicted).all())
        return BoundaryScore(float(same), float(same), float(same))
    precision, recall = _near(ours, theirs, reach), _near(theirs, ours, reach)
    total = precision + recall
    return BoundaryScore(precision, recall, 2 * precision * recall / total if total else 0.0)


def _near(pixels: NDArray[np.bool_], other: NDArray[np.bool_], reach: float) -> float:
    distance = cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squares of distances are integers; OpenCV's float32 roots would miss a border 7 pixels away at 7.000000000000001.
    squares = np.rint(distance[pixels].astype(np.float64) ** 2)
    return float((np.sqrt(squares) < reach).mean())
