"""What data sets in archives share: which archives are a split, what a record says of an image, and its class ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsol.data.catalog import Dataset, Layout, annotation_kind, choose_split, make_dataset, read_lines
from wsol.errors import DataError, did_you_mean
from wsol.schema import DatasetSpec, Sample
from wsol.store.archives import exists
from wsol.store.places import list_files

Label = int | str
FACTS = ("labels", "label", "cls", "boxes", "box_labels")
"""What a record may say of an image, see `record`."""

_MOST_CLASSES = 2**15  # maps hold class ids in 16 bits


@dataclass(frozen=True, slots=True)
class Record:
    """One image of an archive, its labels as they were written.

    Attributes:
        id: Unique in the split.
        image: See `store.archives`.
        labels: Class ids or names.
        boxes: x0, y0, x1, y1 in pixels, the end outside.
        box_labels: One a box, or none.
        mask: Index mask, or None.
    """

    id: str
    image: Path
    labels: tuple[Label, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    box_labels: tuple[Label, ...] = ()
    mask: Path | None = None


def find_archives(layout: Layout, root: Path | None, split: str | None) -> tuple[Path, str, dict[str, list[Path]]]:
    """Return the folder, the chosen split, and the archives of every split in order of their names.

    A split is a sub-folder, or what stands before the first "-" of a name: `val/7.tar` and `val-00007.tar` are "val".

    Raises:
        DataError: When there is no archive or no such split.
    """
    folder, suffix = layout.find(root), f".{layout.name}"
    splits: dict[str, list[Path]] = {}
    try:
        names = [name for name in list_files(folder) if name.endswith(suffix)]
    except OSError as error:
        raise DataError(f"cannot list the archives: {error}", where=folder) from error
    for name in names:
        place, _, stem = name.removesuffix(suffix).rpartition("/")
        splits.setdefault(place or stem.partition("-")[0], []).append(folder / name)
    if not splits:
        raise DataError(f"no *{suffix} here", where=folder)
    return folder, choose_split(split, sorted(splits), where=folder), splits


def record(image_id: str, image: Path, facts: Mapping[str, Any], *, mask: Path | None = None) -> Record:
    """Build a record from the values of a JSON file or of a row: `label` or `labels` (or cls), `boxes`, `box_labels`.

    Raises:
        DataError: When a value has the wrong form.
    """
    given = next((facts[key] for key in ("labels", "label", "cls") if facts.get(key) is not None), ())
    labels = tuple(given) if isinstance(given, list | tuple) else (given,)
    boxes, named = facts.get("boxes") or (), tuple(facts.get("box_labels") or ())
    try:
        corners = tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in boxes)
    except (TypeError, ValueError) as error:
        raise DataError(f"not boxes: {error}", where=image_id, hint="a box is x0, y0, x1, y1") from error
    if not all(type(label) in (int, str) for label in (*labels, *named)):
        raise DataError(f"labels are numbers or names, got {labels[:3]}", where=image_id)
    return Record(image_id, image, labels, corners, named or (labels * len(corners) if len(labels) == 1 else ()), mask)


def build(
    layout: Layout,
    folder: Path,
    split: str,
    splits: Sequence[str],
    records: Sequence[Record],
    *,
    names: Sequence[str] = (),
    multi_label: bool = True,
) -> Dataset:
    """Turn records into a data set; classes come from classes.txt, else from `names`, else from the labels.

    Raises:
        DataError: When a label is no class, or a record is malformed.
    """
    classes = _classes(folder, records, names)
    index = {name: at for at, name in enumerate(classes)}

    def class_id(label: Label, where: str) -> int:
        at = index.get(label, -1) if isinstance(label, str) else label
        if not 0 <= at < len(classes):
            hint = did_you_mean(str(label), classes)
            raise DataError(f"label {label!r} is none of {len(classes)} classes", where=where, hint=hint)
        return at

    samples = []
    for item in records:
        boxes = np.array(item.boxes, dtype=np.float32) if item.boxes else None
        box_labels = tuple(class_id(label, item.id) for label in item.box_labels)
        labels = {class_id(label, item.id) for label in item.labels} | set(box_labels)
        samples.append(
            Sample(
                id=item.id,
                image=item.image,
                labels=tuple(sorted(labels)),
                boxes=boxes,
                box_labels=box_labels if len(box_labels) == len(item.boxes) > 0 else None,
                mask=item.mask,
                upright=True,
            )
        )
    spec = DatasetSpec(
        name=layout.name,
        classes=classes,
        root=folder,
        split=split,
        splits=tuple(sorted(splits)),
        annotations=annotation_kind(samples),
        multi_label=multi_label,
    )
    return make_dataset(spec, samples)


def _classes(folder: Path, records: Sequence[Record], names: Sequence[str]) -> tuple[str, ...]:
    if exists(folder / "classes.txt"):
        return tuple(read_lines(folder / "classes.txt"))
    if names:
        return tuple(names)
    found = set(_labels(records))
    words = sorted(label for label in found if isinstance(label, str))
    if words and len(words) < len(found):
        raise DataError("some labels are numbers and some are names", where=folder, hint="write classes.txt")
    highest = max((int(label) for label in found if not isinstance(label, str)), default=-1)
    if highest >= _MOST_CLASSES:
        raise DataError(f"class id {highest} is not in 0..{_MOST_CLASSES - 1}", where=folder, hint="write classes.txt")
    return tuple(words) or tuple(str(at) for at in range(highest + 1))


def _labels(records: Sequence[Record]) -> Iterator[Label]:
    for item in records:
        yield from item.labels
        yield from item.box_labels
