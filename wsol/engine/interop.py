"""Masks and boxes as objects of the package supervision (https://supervision.roboflow.com), where it is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsol.errors import DataError, ModelError, StoreError
from wsol.eval.sources import load_truth
from wsol.schema import Boxes, PseudoMask
from wsol.store.formats.base import Objects, find_regions
from wsol.store.instances import Instance, instances_path, read_instances
from wsol.store.manifest import read_rows
from wsol.store.masks import mask_path, read_mask
from wsol.store.shards import has_file


def to_supervision(
    found: PseudoMask | Boxes | Path | str, *, objects: Objects = "class", classes: Sequence[str] = ()
) -> Any:
    """Turn a mask, boxes or a run folder into `supervision.Detections`.

    Args:
        found: A mask; boxes; or a run folder of `wsol refine`, `wsol refine instances` or `wsol segment predict`.
        objects: Of masks: one detection a class, one an 8-connected component, or the largest component of each class.
        classes: Class names, for `data["class_name"]`; those of the data set where a run is given.

    Returns:
        `Detections` with float32 `xyxy` in pixels, half-open; int `class_id` without background; bool `mask`
        (N, H, W) or None; and float32 `confidence`: the scores, or the mean confidence of an object's pixels, or None
        where a mask has none. For a run folder an iterator of (path of the image, `Detections`), one image at a time.

    Raises:
        WsolError: When supervision is not installed, a class has no name, or a file of the run is missing or torn.
    """
    if isinstance(found, Path | str):
        return _run(Path(found), objects)
    if isinstance(found, PseudoMask):
        return _mask(found, objects, classes, None)
    return _detections(found.xyxy, found.class_ids, found.scores, None, classes)


def _run(run: Path, objects: Objects) -> Iterator[tuple[Path, Any]]:
    dataset, rows = load_truth(run), read_rows(run)
    classes = dataset.spec.classes
    instances = (run / "instances").is_dir()
    place = instances_path if instances else mask_path
    found = [sample for sample in dataset if has_file(place(run, sample.id))]
    if not found:
        raise StoreError("no image has a mask here", where=run, hint="give a run folder of wsol refine")
    for sample in found:
        if instances:
            yield sample.image, _instances(*read_instances(run, sample.id), classes)
        else:
            named = rows.get(sample.id, {}).get("classes")
            yield sample.image, _mask(read_mask(run, sample.id), objects, classes, named)


def _mask(mask: PseudoMask, objects: Objects, classes: Sequence[str], named: Sequence[int] | None) -> Any:
    regions = find_regions(mask.labels, objects=objects, named=named)
    size = mask.labels.shape
    whole = np.zeros((len(regions), *size), np.bool_)
    for plane, region in zip(whole, regions, strict=True):
        plane[:] = region.whole((size[0], size[1]))
    scores = None
    if mask.confidence is not None:
        certain = mask.confidence.astype(np.float32)
        scores = np.array([certain[plane].mean() for plane in whole], np.float32)
    boxes, class_ids = [region.box for region in regions], [region.class_id for region in regions]
    return _detections(boxes, class_ids, scores, whole, classes)


def _instances(size: tuple[int, int], found: Sequence[Instance], classes: Sequence[str]) -> Any:
    masks = np.stack([item.mask for item in found]) if found else np.zeros((0, *size), np.bool_)
    boxes = [find_regions(mask.astype(np.uint8))[0].box for mask in masks]
    return _detections(boxes, [item.class_id for item in found], [item.score for item in found], masks, classes)


def _detections(boxes: Any, class_ids: Any, scores: Any, masks: Any, classes: Sequence[str]) -> Any:
    try:
        from supervision import Detections
    except ImportError as error:
        raise ModelError("the package supervision is not installed", hint="pip install supervision") from error
    ids = np.asarray(class_ids, dtype=int)
    names: dict[str, Any] = {}
    if classes:
        unknown = ids[(ids < 0) | (ids >= len(classes))]
        if len(unknown):
            raise DataError(f"class id {unknown[0]} has no name among {len(classes)}", where="classes")
        names["class_name"] = np.array([classes[label] for label in ids.tolist()], dtype=str)
    return Detections(
        xyxy=np.asarray(boxes, dtype=np.float32).reshape(-1, 4),
        class_id=ids,
        confidence=None if scores is None else np.asarray(scores, dtype=np.float32),
        mask=masks,
        data=names,
    )
