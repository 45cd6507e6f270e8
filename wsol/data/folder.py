"""Your own photos: a sub-folder a class, a CSV or JSON of labels, or plain photos without any.

Photos stand upright (the EXIF orientation is applied), so boxes and masks must be drawn on upright photos.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsol.data import DATASETS
from wsol.data.catalog import (
    Dataset,
    Layout,
    Part,
    annotation_kind,
    choose_split,
    list_images,
    make_dataset,
    read_lines,
    without_suffix,
)
from wsol.errors import DataError, did_you_mean
from wsol.schema import DatasetSpec, Sample
from wsol.store.archives import exists, read_bytes
from wsol.store.places import is_folder, url_of

_LABEL_FILES = ("labels.csv", "labels.json")
_SPLITS = ("train", "val", "test")
_BOX = ("x0", "y0", "x1", "y1")

LAYOUT = Layout(
    "folder",
    folders=(),
    markers=("*",),
    parts=(
        Part("*.*|*/*.*", "photos, in a sub-folder for each class or listed in a table", "put them there"),
        Part(
            "labels.csv|labels.json",
            "table with the columns file and labels (separated by ';')",
            "write it",
            needed=False,
        ),
        Part(
            "masks/*.png|masks/*/*.png|*/masks/*.png",
            "index masks named like the photos, for evaluation only",
            "draw them",
            needed=False,
        ),
    ),
)


@dataclass
class _Row:
    """What a table of labels says about one photo; its file is relative to the root, or absolute."""

    file: str
    labels: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    box_labels: list[str] = field(default_factory=list)
    split: str = ""


@DATASETS.register("folder")
def load(*, root: Path | None, split: str | None, labels: Path | None = None, masks: Path | None = None) -> Dataset:
    """List a folder of photos; none is opened. An id is the path of the photo relative to the split's folder.

    - Sub-folders train, val and test are splits; without them the one split is "all".
    - A sub-folder names the class of the photos below it; photos outside of any have no label.
    - A table names the labels instead. CSV: columns `file` and `labels` (several separated by ";" or "|"), and, as
      wanted, `id`, `split` and x0, y0, x1, y1 (pixels, the end outside; one row a box, its class is the row's first
      label). JSON: a list of {"file", "labels", "boxes", "box_labels", "id", "split"}, or {"file": ["label"]}.
    - classes.txt in the root gives the order of the classes; by default they are sorted.

    Args:
        root: The folder.
        split: A split, see above.
        labels: The table; by default root/labels.csv or root/labels.json where there is one.
        masks: Folder of index PNGs named like the photos; by default a folder `masks` beside them.

    Raises:
        DataError: When there is no photo, or the table is malformed.
    """
    folder = LAYOUT.find(root)
    table = labels or next((folder / name for name in _LABEL_FILES if exists(folder / name)), None)
    if table is not None:
        return _from_table(folder, split, table, masks)
    splits = tuple(name for name in _SPLITS if is_folder(folder / name)) or ("all",)
    split = choose_split(split, splits, where=folder)
    homes = {name: folder if name == "all" else folder / name for name in splits}
    found = {name: _photos(home, masks) for name, home in homes.items()}
    classes = _class_order(folder, (_class_of(path) for paths in found.values() for path in paths))
    index = {name: position for position, name in enumerate(classes)}
    drawn = _find_masks(masks, homes[split], folder)
    samples = []
    for path in found[split]:
        name = _class_of(path)
        samples.append(
            Sample(
                id=path,
                image=homes[split] / path,
                labels=(index[name],) if name in index else (),
                mask=drawn.get(without_suffix(path)),
                upright=True,
            )
        )
    return _finish(folder, split, splits, classes, samples, multi_label=False)


def _finish(
    folder: Path,
    split: str,
    splits: tuple[str, ...],
    classes: tuple[str, ...],
    samples: list[Sample],
    *,
    multi_label: bool,
) -> Dataset:
    spec = DatasetSpec(
        name="folder",
        classes=classes,
        root=folder,
        split=split,
        splits=splits,
        annotations=annotation_kind(samples),
        multi_label=multi_label,
    )
    return make_dataset(spec, samples)


def _photos(home: Path, masks: Path | None) -> list[str]:
    hidden = ("masks/", *([f"{Path(os.path.relpath(masks, home)).as_posix()}/"] if masks else []))
    paths = (path.relative_to(home).as_posix() for path in list_images(home))
    return [path for path in paths if not path.startswith(hidden)]


def _class_of(path: str) -> str:
    return path.split("/", 1)[0] if "/" in path else ""


def _class_order(folder: Path, names: Iterable[str]) -> tuple[str, ...]:
    known = sorted({name for name in names if name})
    if not exists(folder / "classes.txt"):
        return tuple(known)
    classes = tuple(read_lines(folder / "classes.txt"))
    for name in known:
        if name not in classes:
            hint = did_you_mean(name, classes)
            raise DataError(f"class '{name}' is not in classes.txt", where=folder / "classes.txt", hint=hint)
    return classes


def _find_masks(masks: Path | None, home: Path, folder: Path) -> dict[str, Path]:
    """Return the mask of each photo by its path without suffix."""
    places = [masks] if masks else [home / "masks", folder / "masks"]
    place = next((item for item in places if is_folder(item)), None)
    if place is None:
        if masks:
            raise DataError("no such folder of masks", where=masks)
        return {}
    return {without_suffix(path.relative_to(place).as_posix()): path for path in list_images(place)}


def _from_table(folder: Path, split: str | None, table: Path, masks: Path | None) -> Dataset:
    try:
        rows = _read_json(table) if table.suffix.lower() == ".json" else _read_csv(table)
    except OSError as error:
        raise DataError(f"cannot read the labels: {error.strerror}", where=table) from error
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, csv.Error) as error:
        hint = "a CSV needs the columns file and labels; see the docstring of wsol.data.folder"
        raise DataError(f"not a table of labels: {error}", where=table, hint=hint) from error
    splits = tuple(sorted({row.split for row in rows.values() if row.split})) or ("all",)
    split = choose_split(split, splits, where=table)
    classes = _class_order(folder, (name for row in rows.values() for name in (*row.labels, *row.box_labels)))
    index = {name: position for position, name in enumerate(classes)}
    drawn = _find_masks(masks, folder, folder)
    samples = []
    for image_id, row in rows.items():
        if split != "all" and row.split != split:
            continue
        samples.append(
            Sample(
                id=image_id,
                image=folder / _local(row.file, table),
                labels=tuple(sorted({index[name] for name in (*row.labels, *row.box_labels)})),
                boxes=np.array(row.boxes, dtype=np.float32) if row.boxes else None,
                box_labels=tuple(index[name] for name in row.box_labels)
                if len(row.box_labels) == len(row.boxes) > 0
                else None,
                mask=drawn.get(without_suffix(image_id)) or drawn.get(without_suffix(row.file)),
                upright=True,
            )
        )
    return _finish(folder, split, splits, classes, samples, multi_label=True)


def _local(file: str, table: Path) -> str:
    # What a stranger's table names must not make this program open a connection.
    if url_of(file) is not None:
        raise DataError(f"'{file}' is no path", where=table, hint="name files relative to the root")
    return file


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.replace("|", ";").split(";") if name.strip()]


def _box(ends: Sequence[Any]) -> list[float]:
    if len(ends) != len(_BOX):
        raise ValueError(f"a box is x0, y0, x1, y1, got {', '.join(map(str, ends))}")
    return [float(end) for end in ends]


def _read_csv(path: Path) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    with io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="") as stream:
        for line in csv.DictReader(stream, strict=True):
            file = line.get("file") or line.get("id")
            image_id = line.get("id") or file
            text = line.get("labels") if "labels" in line else line.get("label")
            if not file or not image_id or text is None:
                raise ValueError(f"line {len(rows) + 2} lacks a file or labels")
            split = line.get("split") or ""
            row = rows.setdefault(image_id, _Row(file, split=split))
            if (row.file, row.split) != (file, split):
                raise ValueError(f"'{image_id}' is listed with two files or splits")
            names = _names(text)
            row.labels += names
            ends = [line[end] for end in _BOX if line.get(end)]
            if ends:
                row.boxes.append(_box(ends))
                row.box_labels += names[:1]
    return rows


def _read_json(path: Path) -> dict[str, _Row]:
    raw: Any = json.loads(read_bytes(path))
    if isinstance(raw, dict):
        raw = [{"file": file, "labels": names} for file, names in raw.items()]
    rows: dict[str, _Row] = {}
    for item in raw:
        names = item.get("labels", [])
        boxes = [_box(box) for box in item.get("boxes", [])]
        box_labels = [str(name) for name in item.get("box_labels", [])]
        labels = _names(names) if isinstance(names, str) else [str(name) for name in names]
        if boxes and not box_labels and len(labels) == 1:
            box_labels = labels * len(boxes)
        file = str(item.get("file") or item["id"])
        image_id = str(item.get("id") or file)
        if image_id in rows:
            raise ValueError(f"'{image_id}' is listed twice")
        rows[image_id] = _Row(file, labels, boxes, box_labels, str(item.get("split", "")))
    return rows
