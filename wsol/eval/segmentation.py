"""Segmentation: IoU over a data set, of masks as they are or of score maps under a swept background score.

The protocol of PASCAL VOC (Everingham et al., IJCV 2010): one confusion matrix over all pixels of all images, pixels
labelled 255 not counted, the mean over the classes that have true pixels. The background score is chosen on one split
and applied on another, as PSA, IRN and those after them do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsol.config import from_dict
from wsol.data.catalog import Dataset, TruthReader, read_index_truth
from wsol.errors import EvalError, StoreError, WsolError
from wsol.eval.boundary import evaluate_boundary
from wsol.eval.curves import best_at, choose_by
from wsol.eval.options import SegConfig
from wsol.eval.row_file import RowFile
from wsol.eval.sources import load_truth, mask_file
from wsol.eval.sweep import SweepCounts, background_scores, constant_cut, matrix_scores, power_cut, scores_of
from wsol.eval.workers import map_chunks
from wsol.ops.confusion import confusion_matrix, mean_iou
from wsol.schema import EvalResult, Sample
from wsol.store.maps import read_maps
from wsol.store.masks import read_labels

Counts = NDArray[np.int64]
C = TypeVar("C")
_CONSTANT, _POWER = "mIoU", "mIoU (power)"


@dataclass(frozen=True)
class Segmentation:
    """An evaluation with what a table of numbers cannot hold.

    Attributes:
        result: The numbers.
        failures: Image id to the reason why it was not evaluated.
        worst: Rows of the images with the lowest IoU: id, class, iou.
    """

    result: EvalResult
    failures: Mapping[str, str] = field(default_factory=dict)
    worst: tuple[Mapping[str, Any], ...] = ()


@dataclass
class Part(Generic[C]):
    """What some images contributed.

    Attributes:
        counts: A sweep or a confusion matrix.
        ids: Images that were counted.
        ious: Their own mean IoU, float32, one a cut; of the whole data set in a `RowFile` instead.
        failures: Image id to the reason why it was not counted.
    """

    counts: C
    ids: list[str] = field(default_factory=list)
    ious: list[NDArray[np.float32]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def evaluate_segmentation(**options: Any) -> EvalResult:
    """Evaluate masks or score maps against ground-truth masks.

    Args:
        **options: Fields of `wsol.eval.options.SegConfig`; `pred` is required.

    Returns:
        The metrics; `warnings` says when images are missing.

    Raises:
        WsolError: On a mistake in the options, or when nothing can be evaluated.
    """
    return segment(from_dict(SegConfig, options)).result


def segment(config: SegConfig, *, dataset: Dataset | None = None) -> Segmentation:
    """Evaluate masks or score maps; see `evaluate_segmentation`.

    Args:
        config: See `SegConfig`.
        dataset: Ground truth, instead of the one that the configuration names.

    Returns:
        The result, the images that failed, and the worst ones.

    Raises:
        WsolError: On a mistake in the options, or when nothing can be evaluated.
    """
    config.validate()
    use = _kind(config)
    dataset = dataset or load_truth(
        config.pred,
        name=config.data,
        root=config.root,
        split=config.split,
        limit=config.limit,
        options=config.data_options,
    )
    if dataset.truth is read_index_truth:
        samples = tuple(sample for sample in dataset.samples if sample.mask is not None)
    else:
        samples = dataset.samples
    if not samples:
        raise EvalError(f"split '{dataset.spec.split}' has no masks", where=dataset.spec.root)
    classes = len(dataset.spec.classes) + 1
    if config.boundary is not None and use == "maps":
        raise EvalError("score maps have no borders", where=config.pred, hint="--boundary is for masks: wsol refine")
    if use == "masks":
        return _masks(config, dataset, samples, classes)
    return _maps(config, dataset, samples, classes)


def _kind(config: SegConfig) -> str:
    if not config.pred.is_dir():
        raise StoreError("no such folder", where=config.pred, hint="give a run folder or a folder of masks")
    if config.use != "auto":
        return config.use
    return "maps" if (config.pred / "maps").is_dir() and not (config.pred / "masks").is_dir() else "masks"


def _masks(config: SegConfig, dataset: Dataset, samples: Sequence[Sample], classes: int) -> Segmentation:
    if config.threshold is not None or config.threshold_from is not None:
        raise EvalError("masks have no threshold", where=config.pred, hint="thresholds are for score maps")
    folder = config.pred / "masks" if (config.pred / "masks").is_dir() else config.pred
    work = partial(count_masks, folder=folder, truth=dataset.truth, classes=classes)
    total = Part(np.zeros((classes, classes), np.int64))
    matrix, ious = total.counts, RowFile(1)
    for part in map_chunks(work, samples, workers=config.workers):
        matrix += part.counts
        _append(total, ious, part)
    metrics = _averages("", matrix_scores(matrix), np.diag(matrix).sum(), matrix.sum())
    if config.boundary is not None and total.ids:
        with_masks = replace(dataset, samples=tuple(samples))
        borders = evaluate_boundary(folder, with_masks, tolerance=config.boundary, workers=config.workers)
        metrics |= borders.metrics
    per_image = _per_image(total, ious, 0)
    return _result(config, dataset, samples, total, metrics, matrix_scores(matrix), {}, {}, "none", per_image)


def _maps(config: SegConfig, dataset: Dataset, samples: Sequence[Sample], classes: int) -> Segmentation:
    choice = choose_by(dataset.spec.split, fixed=config.threshold, other=config.threshold_from)
    grids = {_CONSTANT: background_scores(config.sweep)}
    if config.alphas:
        grids[_POWER] = list(config.alphas)
    rules = {_CONSTANT: constant_cut, _POWER: power_cut}
    given = {name: None if name == _POWER and config.threshold is not None else choice.of(name) for name in grids}
    wanted = {
        name: [*values, *(value for value in [given[name]] if value is not None)] for name, values in grids.items()
    }
    cuts = {(name, value): rules[name](value) for name, values in wanted.items() for value in values}
    ladder = np.unique(np.array(list(cuts.values()), dtype=np.float32))
    place = {key: int(np.searchsorted(ladder, cut)) for key, cut in cuts.items()}
    total = Part(SweepCounts.empty(ladder, classes))
    sweep, ious = total.counts, RowFile(len(ladder))
    work = partial(count_maps, run=config.pred, truth=dataset.truth, classes=classes, cuts=ladder)
    for part in map_chunks(work, samples, workers=config.workers):
        sweep.merge(part.counts)
        _append(total, ious, part)
    curve = 100 * sweep.mean_ious()
    metrics: dict[str, float] = {}
    thresholds: dict[str, float] = {}
    curves: dict[str, dict[str, list[float]]] = {}
    for name, values in grids.items():
        points = np.array([curve[place[name, value]] for value in values])
        curves[name] = {"x": [float(value) for value in values], "y": points.tolist()}
        fixed = given[name]
        thresholds[name] = float(values[best_at(points)]) if fixed is None else float(fixed)
        hits, predicted = sweep.outcome(place[name, thresholds[name]])
        scores = scores_of(hits, predicted=predicted, true=sweep.true)
        metrics.update(_averages(name.removeprefix("mIoU"), scores, hits.sum(), sweep.true.sum()))
    at = place[_CONSTANT, thresholds[_CONSTANT]]
    hits, predicted = sweep.outcome(at)
    scores = scores_of(hits, predicted=predicted, true=sweep.true)
    per_image = _per_image(total, ious, at)
    return _result(config, dataset, samples, total, metrics, scores, thresholds, curves, choice.source, per_image)


def count_masks(samples: Sequence[Sample], *, folder: Path, truth: TruthReader, classes: int) -> Part[Counts]:
    """Count the confusions of some images."""
    part = Part(np.zeros((classes, classes), np.int64))
    for sample in samples:
        try:
            labels = read_labels(mask_file(folder, sample.id))
            try:
                own = confusion_matrix(truth(sample), labels, classes)
            except EvalError as error:
                raise EvalError(error.what, where=sample.id) from error
            part.counts += own
            part.ids.append(sample.id)
            part.ious.append(np.array([mean_iou(own)], dtype=np.float32))
        except WsolError as error:
            part.failures[sample.id] = str(error)
    return part


def count_maps(
    samples: Sequence[Sample], *, run: Path, truth: TruthReader, classes: int, cuts: NDArray[np.float32]
) -> Part[SweepCounts]:
    """Count the pixels of some images under every cut."""
    part = Part(SweepCounts.empty(cuts, classes))
    for sample in samples:
        try:
            own = part.counts.add(read_maps(run, sample.id), truth(sample))
            part.ids.append(sample.id)
            part.ious.append(own.mean_ious().astype(np.float32))
        except WsolError as error:
            part.failures[sample.id] = str(error)
    return part


def _append(total: Part[Any], ious: RowFile, part: Part[Any]) -> None:
    total.ids += part.ids
    ious.append(part.ious)
    total.failures.update(part.failures)


def _per_image(total: Part[Any], ious: RowFile, at: int) -> dict[str, dict[str, float]]:
    return {image_id: {"iou": iou} for image_id, iou in zip(total.ids, ious.column(at).tolist(), strict=True)}


def _averages(suffix: str, scores: Mapping[str, NDArray[np.float64]], hits: int, pixels: int) -> dict[str, float]:
    """Mean over classes of IoU (background included), and of precision and recall (foreground only), in percent."""
    return {
        f"mIoU{suffix}": _mean(scores["IoU"]),
        f"foreground mIoU{suffix}": _mean(scores["IoU"][1:]),
        f"precision{suffix}": _mean(scores["precision"][1:]),
        f"recall{suffix}": _mean(scores["recall"][1:]),
        f"pixel accuracy{suffix}": float(100 * hits / pixels) if pixels else float("nan"),
    }


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(100 * known.mean()) if known.size else float("nan")


def _result(
    config: SegConfig,
    dataset: Dataset,
    samples: Sequence[Sample],
    total: Part[Any],
    metrics: dict[str, float],
    scores: Mapping[str, NDArray[np.float64]],
    thresholds: dict[str, float],
    curves: dict[str, dict[str, list[float]]],
    source: str,
    per_image: dict[str, dict[str, float]],
) -> Segmentation:
    if not total.ids:
        reason = next(iter(total.failures.values()), None)
        raise EvalError(f"none of {len(samples)} images could be evaluated", where=config.pred, hint=reason)
    warnings = []
    if total.failures:
        warnings.append(f"incomplete: {len(total.failures)} of {len(samples)} images could not be evaluated")
    if len(samples) < len(dataset):
        warnings.append(f"{len(dataset) - len(samples)} images of the split have no mask")
    if config.limit is not None:
        warnings.append(f"only the first {len(dataset)} images (--limit)")
    names = ("background", *dataset.spec.classes)
    per_class = {
        name: {key: float(100 * values[at]) for key, values in scores.items()}
        for at, name in enumerate(names)
        if not np.isnan(scores["IoU"][at])
    }
    result = EvalResult(
        task="segmentation",
        metrics=metrics,
        n=len(total.ids),
        split=dataset.spec.split,
        threshold=thresholds,
        threshold_source=source,
        per_class=per_class,
        curves=curves,
        per_image=per_image,
        warnings=tuple(warnings),
    )
    order = sorted(per_image, key=lambda image_id: (per_image[image_id]["iou"], image_id))[: config.worst]
    labels = {sample.id: sample.labels for sample in samples}
    worst = [
        {"id": image_id, "class": ", ".join(dataset.spec.classes[label] for label in labels[image_id]),
         "iou": per_image[image_id]["iou"]}
        for image_id in order
    ]  # fmt: skip
    return Segmentation(result, total.failures, tuple(worst))
