"""Localization: one pass over score maps and ground truth, all protocols at once.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020, and "Evaluation for Weakly
Supervised Object Localization", TPAMI 2022, https://github.com/clovaai/wsolevaluation; the papers' variants are in
`wsol.eval.protocols`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.config import from_dict
from wsol.data.catalog import Dataset, TruthReader
from wsol.data.images import image_size, read_image
from wsol.errors import EvalError, WsolError
from wsol.eval.boxes import ImageMaps, level_curve, pixel_ious, predicted_boxes
from wsol.eval.curves import Choice, choose_by
from wsol.eval.options import LocConfig
from wsol.eval.pixels import PixelCounts, combine_masks
from wsol.eval.protocols import LARGEST, Metric, View, choose
from wsol.eval.sources import MapSource, Scores, load_truth, open_maps, read_metadata
from wsol.eval.summary import summarise
from wsol.eval.tally import Tally, Unit, UnitFile
from wsol.eval.workers import map_chunks
from wsol.schema import IGNORE, EvalResult, Sample


@dataclass(frozen=True)
class Plan:
    """What a process must know to evaluate an image.

    Attributes:
        source: Where the scores are.
        truth: Reads an index mask.
        instances: Whether masks are one file an instance, as in OpenImages.
        metrics: Box metrics, without means of others.
        fixed: Metric name to threshold, for views that look at the float map.
        pixels: Whether masks are counted.
        size: Side of the square that is evaluated.
        interval: Distance of PxAP's thresholds.
    """

    source: MapSource
    truth: TruthReader
    instances: bool
    metrics: tuple[Metric, ...]
    fixed: Mapping[str, float]
    pixels: bool
    size: int
    interval: float

    @property
    def views(self) -> tuple[View, ...]:
        """The views that have a curve over all levels."""
        return tuple(dict.fromkeys(metric.view for metric in self.metrics if metric.view.contours != "pixels"))

    @property
    def points(self) -> tuple[tuple[View, float], ...]:
        """The views that look at the float map, each with the thresholds that are asked of it."""
        asked = ((metric.view, self.fixed[metric.name]) for metric in self.metrics if metric.name in self.fixed)
        return tuple(dict.fromkeys(asked))


@dataclass(frozen=True)
class Localization:
    """An evaluation with what a table of numbers cannot hold.

    Attributes:
        result: The numbers.
        failures: Image id to the reason why it was not evaluated.
        worst: Rows of the images with the lowest IoU: id, class, iou, predicted box, true boxes.
    """

    result: EvalResult
    failures: Mapping[str, str] = field(default_factory=dict)
    worst: tuple[Mapping[str, Any], ...] = ()


def evaluate_localization(**options: Any) -> EvalResult:
    """Evaluate score maps against boxes and masks.

    Args:
        **options: Fields of `wsol.eval.options.LocConfig`; `maps` is required.

    Returns:
        The metrics; `warnings` says when images are missing.

    Raises:
        WsolError: On a mistake in the options, or when nothing can be evaluated.
    """
    return localize(from_dict(LocConfig, options)).result


def localize(config: LocConfig, *, source: MapSource | None = None, dataset: Dataset | None = None) -> Localization:
    """Evaluate score maps; see `evaluate_localization`.

    Args:
        config: See `LocConfig`.
        source: Where the scores are, instead of `config.maps`: a folder, or an object that holds them in memory.
        dataset: Ground truth, instead of the one that the configuration names.

    Returns:
        The result, the images that failed, and the worst ones.

    Raises:
        WsolError: On a mistake in the options, or when nothing can be evaluated.
    """
    config.validate()
    source = source or open_maps(config.maps)
    dataset = dataset or _dataset(config)
    choice = choose_by(dataset.spec.split, fixed=config.threshold, other=config.threshold_from)
    plan = _plan(config, source, dataset, choice)
    total, units = Tally(), UnitFile(plan.views)
    for tally in map_chunks(partial(evaluate_chunk, plan=plan), dataset.samples, workers=config.workers):
        units.append(tally.units)
        total.merge(tally)
    result, worst = summarise(
        total, units=units, dataset=dataset, metrics=_metrics(config), choice=choice, config=config
    )
    return Localization(result, total.failures, tuple(_with_boxes(row, plan, dataset) for row in worst))


def evaluate_chunk(samples: Sequence[Sample], *, plan: Plan) -> Tally:
    """Evaluate some images; an image that cannot be read becomes a failure."""
    tally, pixels = Tally(), PixelCounts(plan.interval)
    for sample in samples:
        try:
            scores = plan.source.read(sample.id)
            for label, boxes in units_of(sample):
                _add(tally, pixels, plan, sample, scores, label, boxes)
        except WsolError as error:
            tally.failures[sample.id] = str(error)
    if plan.pixels:
        tally.pixels = pixels.counts
    return tally


def units_of(sample: Sample) -> list[tuple[int, NDArray[np.float32] | None]]:
    """Return every class of an image with its boxes; for most data sets that is one.

    Raises:
        EvalError: When the image has no label.
    """
    if not sample.labels:
        raise EvalError("the image has no label", where=sample.id)
    if sample.boxes is None or sample.box_labels is None or len(sample.labels) == 1:
        return [(label, sample.boxes) for label in sample.labels]
    owners = np.array(sample.box_labels)
    return [(label, sample.boxes[owners == label] if label in owners else None) for label in sample.labels]


def _add(
    tally: Tally,
    pixels: PixelCounts,
    plan: Plan,
    sample: Sample,
    scores: Scores,
    label: int,
    boxes: NDArray[np.float32] | None,
) -> None:
    rank = _rank(scores.logits, label)
    masked = plan.pixels and sample.mask is not None
    boxes = boxes if plan.metrics else None
    if boxes is None and not masked:
        tally.bare += 1
        return
    if scores.ready is None and label not in scores.by_class and rank is not None:
        # Maps of predicted classes only: a wrong prediction is wrong for Top-k without a map.
        tally.absent[min(rank, 5)] += 1
        if boxes is not None:
            tally.n += 1
            tally.add_rank(rank)
            nothing = np.full((len(plan.views), 256), np.nan, dtype=np.float32)
            tally.units.append(Unit(sample.id, label, rank, (0,) * len(plan.views), nothing))
        return
    maps = ImageMaps(scores, label, size=plan.size, where=sample.id)
    if boxes is not None:
        frame = sample.size or scores.image_size or image_size(sample.image, upright=sample.upright)
        curves = {
            view: level_curve(maps.levels(view), maps.truth(boxes, frame, view), view=view) for view in plan.views
        }
        fixed = {
            (view, threshold): pixel_ious(
                maps.scoremap(view), maps.truth(boxes, frame, view), thresholds=[threshold], view=view
            )
            for view, threshold in plan.points
        }
        tally.n += 1
        tally.add_rank(rank)
        for metric in plan.metrics:
            if metric.view in curves:
                tally.add_curve(metric, curves[metric.view], rank)
            else:
                tally.add_fixed(metric, fixed[metric.view, plan.fixed[metric.name]], rank)
        stack = np.array([curve.iou for curve in curves.values()], dtype=np.float32)
        tally.units.append(Unit(sample.id, label, rank, tuple(curve.maximum for curve in curves.values()), stack))
    if masked:
        scoremap = maps.scoremap(LARGEST)
        pixels.add(scoremap, read_pixels(sample, label, plan, (scoremap.shape[0], scoremap.shape[1])))
        tally.masks += 1


def read_pixels(sample: Sample, label: int, plan: Plan, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Read the mask of one class at the evaluation size.

    Returns:
        uint8 (H, W): 1 foreground, 0 background, 255 ignored.

    Raises:
        DataError: When a mask file is missing or torn.
    """
    if plan.instances:
        files = [path for path in (sample.mask, *sample.extra_masks) if path is not None]
        ignored = read_image(sample.mask_ignore).max(axis=-1) if sample.mask_ignore else None
        return combine_masks([read_image(path).max(axis=-1) for path in files], ignored, size=size)
    truth = plan.truth(sample)
    return combine_masks([truth == label + 1], truth == IGNORE, size=size)


def _rank(logits: NDArray[np.float32] | None, label: int) -> int | None:
    if logits is None or not 0 <= label < len(logits):
        return None
    # "Not at most" instead of "greater": a label whose logit is NaN is not predicted.
    return int((~(logits <= logits[label])).sum() + (logits[:label] == logits[label]).sum())


def _dataset(config: LocConfig) -> Dataset:
    if config.metadata is not None:
        return read_metadata(config.metadata, masks=config.masks or config.root, limit=config.limit)
    return load_truth(
        config.maps,
        name=config.data,
        root=config.root,
        split=config.split,
        limit=config.limit,
        options=config.data_options,
    )


def _metrics(config: LocConfig) -> tuple[Metric, ...]:
    protocols = choose(config.protocol).values()
    return tuple({metric.name: metric for protocol in protocols for metric in protocol.metrics}.values())


def _plan(config: LocConfig, source: MapSource, dataset: Dataset, choice: Choice) -> Plan:
    own = tuple(metric for metric in _metrics(config) if not metric.mean_of)
    wants_pixels = any(protocol.pixels for protocol in choose(config.protocol).values())
    has_boxes = any(sample.boxes is not None for sample in dataset.samples)
    has_masks = any(sample.mask is not None for sample in dataset.samples)
    if not (own and has_boxes) and not (wants_pixels and has_masks):
        missing = "boxes" if own else "masks"
        hint = "choose another with --split, or add ground truth; wsol data check says what is there"
        raise EvalError(f"split '{dataset.spec.split}' has no {missing}", where=dataset.spec.root, hint=hint)
    metrics = own if has_boxes else ()
    thresholds = {metric.name: choice.of(metric.name, own=metric.threshold) for metric in metrics}
    fixed = {
        metric.name: value
        for metric in metrics
        if metric.view.contours == "pixels" and (value := thresholds[metric.name]) is not None
    }
    return Plan(
        source=source,
        truth=dataset.truth,
        instances=config.metadata is not None or dataset.spec.name == "openimages",
        metrics=metrics,
        fixed=fixed,
        pixels=wants_pixels and has_masks,
        size=config.size,
        interval=config.curve_interval,
    )


def _with_boxes(row: dict[str, Any], plan: Plan, dataset: Dataset) -> dict[str, Any]:
    """Add the predicted and the true boxes, in pixels of the image, to a row of the worst images."""
    sample = dataset.by_id(row["id"])
    scores = plan.source.read(sample.id)
    label = int(row["label"])
    boxes = next(boxes for own, boxes in units_of(sample) if own == label)
    frame = sample.size or scores.image_size or image_size(sample.image, upright=sample.upright)
    maps = ImageMaps(scores, label, size=plan.size, where=sample.id)
    view: View = row.pop("view")
    predicted = predicted_boxes(maps, row["threshold"], view=view)
    height, width = maps.scoremap(view).shape
    scale = np.array([frame[1] / width, frame[0] / height] * 2)
    row["predicted"] = np.round(predicted * scale, 1).tolist()
    row["truth"] = np.asarray(boxes).tolist()
    return row
