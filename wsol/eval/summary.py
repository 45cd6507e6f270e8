"""From counts to the result: metrics, chosen thresholds, curves, classes, the worst images, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wsol.data.catalog import Dataset
from wsol.errors import EvalError
from wsol.eval.curves import Choice, best_at
from wsol.eval.options import LocConfig
from wsol.eval.pixels import PixelCounts
from wsol.eval.protocols import ALL, BENCHMARK, LARGEST, Metric, choose
from wsol.eval.tally import Tally, UnitFile, group
from wsol.schema import EvalResult

_NAN = float("nan")


def summarise(
    total: Tally, *, units: UnitFile, dataset: Dataset, metrics: Sequence[Metric], choice: Choice, config: LocConfig
) -> tuple[EvalResult, list[dict[str, Any]]]:
    """Turn counts into a result.

    Args:
        total: Counts of the whole split.
        units: Curves image by image.
        dataset: Names the classes and the split.
        metrics: Columns, means included.
        choice: How thresholds are chosen.
        config: Interval, protocols and how many of the worst images to list.

    Returns:
        The result, and the worst images: id, label, class, iou, threshold, view.

    Raises:
        EvalError: When no image could be evaluated.
    """
    if not total.n and not total.masks:
        reason = next(iter(total.failures.values()), "no image has ground truth")
        raise EvalError(f"none of {len(dataset)} images could be evaluated", where=config.maps, hint=reason)
    grid = np.arange(0, 1, config.curve_interval)
    values: dict[str, float] = {}
    thresholds: dict[str, float] = {}
    curves: dict[str, dict[str, list[float]]] = {}
    for metric in metrics if total.n else ():
        if metric.mean_of:
            values[metric.name] = float(np.mean([values[name] for name in metric.mean_of]))
            continue
        at = choice.of(metric.name, own=metric.threshold)
        curve = 100 * total.num_correct(metric, grid) / total.n
        if at is None:
            thresholds[metric.name] = float(grid[best_at(curve)])
            values[metric.name] = float(curve.max())
        else:
            thresholds[metric.name] = float(at)
            values[metric.name] = float(100 * total.num_correct(metric, np.array([at]))[0] / total.n)
        if metric.view.contours != "pixels":
            curves[metric.name] = {"x": grid.tolist(), "y": curve.tolist()}
        if not _known(metric, total):
            values[metric.name] = _NAN
    if total.ranked and total.ranked == total.n and any(metric.top for metric in metrics):
        values.update({f"Top-{k} accuracy": 100 * right / total.n for k, right in total.top.items()})
    if total.pixels is not None and total.masks:
        _add_pixels(values, thresholds, curves, total, config)
    per_image, per_class, worst = _by_image(units, dataset, _columns(metrics, values), values, thresholds, config.worst)
    result = EvalResult(
        task="localization",
        metrics=values,
        n=total.n or total.masks,
        split=dataset.spec.split,
        threshold=thresholds,
        threshold_source=_source(choice, metrics),
        per_class=per_class,
        curves=curves,
        per_image=per_image,
        warnings=tuple(_warnings(total, dataset, metrics, config)),
    )
    return result, worst


def _known(metric: Metric, total: Tally) -> bool:
    """Tell whether every image could be judged: Top-k needs logits, and a map wherever the class was predicted."""
    if metric.top:
        return total.ranked == total.n and not sum(total.absent[: metric.top])
    return not sum(total.absent)


def _add_pixels(
    values: dict[str, float],
    thresholds: dict[str, float],
    curves: dict[str, dict[str, list[float]]],
    total: Tally,
    config: LocConfig,
) -> None:
    pixels = PixelCounts(config.curve_interval)
    pixels.merge(total.pixels)  # type: ignore[arg-type]
    precision, recall = pixels.precision_recall()
    if sum(total.absent):
        values["PxAP"] = values["pIoU"] = _NAN
        return
    values["PxAP"] = pixels.pxap()
    values["pIoU"], thresholds["pIoU"] = pixels.piou()
    known = ~np.isnan(precision)
    curves["PxAP precision by recall"] = {"x": recall[known].tolist(), "y": precision[known].tolist()}


def _columns(metrics: Sequence[Metric], values: Mapping[str, float]) -> list[Metric]:
    """Return the metrics at IoU 50 that are told image by image and class by class, at most one of a kind."""
    columns = []
    for view, top in ((LARGEST, 0), (ALL, 0), (LARGEST, 1)):
        alike = [one for one in metrics if (one.view, one.top, one.iou, one.mean_of) == (view, top, 50, ())]
        alike.sort(key=lambda one: one.threshold is not None)
        columns += [one for one in alike if one.name in values][:1]
    return columns


def _by_image(
    units: UnitFile,
    dataset: Dataset,
    columns: Sequence[Metric],
    values: Mapping[str, float],
    thresholds: Mapping[str, float],
    worst: int,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Apply the threshold of each column image by image: the IoUs, the classes, and the worst images."""
    names = {LARGEST: "iou", ALL: "iou_all"}
    per_image: dict[str, dict[str, float]] = {}
    hits: dict[str, list[tuple[int, bool]]] = {}
    rows: list[dict[str, Any]] = []
    for image_id, label, rank, ious in units.ious([(column.view, thresholds[column.name]) for column in columns]):
        row: dict[str, float] = {}
        for column, iou in zip(columns, ious, strict=True):
            row.setdefault(names[column.view], iou)
            right = iou >= 0.5 and (not column.top or (rank is not None and rank < column.top))
            hits.setdefault(column.name, []).append((label, right))
        if any(np.isnan(ious)):
            continue  # no map
        if rank is not None:
            row["rank"] = float(rank)
        several = len(dataset.by_id(image_id).labels) > 1
        per_image[f"{image_id} ({_class_name(dataset, label)})" if several else image_id] = row
        if columns:
            rows.append(
                {"id": image_id, "label": label, "class": _class_name(dataset, label), "iou": ious[0],
                 "threshold": thresholds[columns[0].name], "view": columns[0].view}
            )  # fmt: skip
    per_class: dict[str, dict[str, float]] = {}
    for name, pairs in hits.items():
        for label, (correct, count) in sorted(group(pairs).items()) if not np.isnan(values[name]) else ():
            own = per_class.setdefault(_class_name(dataset, label), {})
            own[name], own["n"] = 100 * correct / count, float(count)
    rows.sort(key=lambda row: (row["iou"], row["id"]))
    return per_image, per_class, rows[:worst]


def _class_name(dataset: Dataset, label: int) -> str:
    classes = dataset.spec.classes
    return classes[label] if label < len(classes) else f"class {label}"


def _source(choice: Choice, metrics: Sequence[Metric]) -> str:
    fixed = sum(metric.threshold is not None for metric in metrics)
    if choice.fixed is not None or not fixed:
        return choice.source
    return "fixed by the paper" if fixed == len(metrics) else f"{choice.source}; fixed where the paper fixes it"


def _warnings(total: Tally, dataset: Dataset, metrics: Sequence[Metric], config: LocConfig) -> list[str]:
    notes = [f"{name}: {protocol.note}" for name, protocol in choose(config.protocol).items() if protocol.note]
    if total.failures:
        notes.append(f"incomplete: {len(total.failures)} of {len(dataset)} images could not be evaluated")
    if total.bare:
        notes.append(f"{total.bare} images (and classes) of the split have no ground truth and are left out")
    if config.protocol != BENCHMARK:  # the default asks for what the ground truth allows
        if metrics and not total.n:
            notes.append("no boxes in this split: no box metrics")
        if any(protocol.pixels for protocol in choose(config.protocol).values()) and not total.masks:
            notes.append("no masks in this split: no PxAP")
    if dataset.missing:
        notes.append(f"incomplete: {dataset.missing} images of the split are not on disk")
    if config.limit is not None:
        notes.append(f"only the first {len(dataset)} images (--limit)")
    if any(metric.top for metric in metrics) and total.n and total.ranked < total.n:
        notes.append("no Top-1 and Top-5: the maps carry no logits")
    if sum(total.absent):
        notes.append(
            f"{sum(total.absent)} of {total.n} images have no map of their true class (wsol cam --classes labels makes"
            " them): only Top-k can be told"
        )
    if any(len(sample.labels) > 1 for sample in dataset.samples):
        notes.append("images with several classes count once for each class")
    return notes
