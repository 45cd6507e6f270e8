"""The text files of the WSOL benchmark: image_ids, class_labels, image_sizes and localization.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
https://github.com/clovaai/wsolevaluation.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol.data.catalog import read_lines
from wsol.errors import DataError
from wsol.ops.boxes import from_inclusive
from wsol.schema import Sample, check_id

IDS = "image_ids.txt"
_MOST_CLASSES = 2**15  # maps hold class ids in 16 bits


def find_splits(folder: Path) -> dict[str, Path]:
    """Return the splits of a metadata folder: one sub-folder each, or a flat folder named after its ids' first part."""
    if (folder / IDS).is_file():
        lines = read_lines(folder / IDS)
        name = lines[0].partition("/")[0] if lines and "/" in lines[0] else "test"
        return {name: folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{IDS}"))}


def read_samples(folder: Path, *, images: Path, masks: Path) -> list[Sample]:
    """Read the samples of one split.

    Args:
        folder: Folder of the four text files; sizes and localization may be missing or empty.
        images: Folder that the ids are relative to.
        masks: Folder that the mask files are relative to.

    Returns:
        One sample an id, in the order of image_ids.txt. The boxes of the files end with the last pixel inside;
        here they are half-open.

    Raises:
        DataError: When a file is missing or a line is malformed.
    """
    labels, boxes, files = defaultdict(set), defaultdict(list), defaultdict(list)
    ignored: dict[str, Path] = {}
    label_file, size_file = folder / "class_labels.txt", folder / "image_sizes.txt"
    truth_file = folder / "localization.txt"
    for image_id, rest in _rows(label_file, 1):
        labels[image_id].add(_label(rest[0], label_file))
    sizes = {
        image_id: (_int(rest[1], size_file), _int(rest[0], size_file))
        for image_id, rest in _rows(size_file, 2, optional=True)
    }
    for image_id, rest in _rows(truth_file, 2, 4, optional=True):
        if len(rest) == 4:
            boxes[image_id].append([_int(value, truth_file) for value in rest])
            continue
        files[image_id].append(masks / check_id(rest[0]))
        if rest[1] and image_id in ignored:
            raise DataError(f"'{image_id}' has two files of pixels to ignore", where=truth_file)
        if rest[1]:
            ignored[image_id] = masks / check_id(rest[1])
    return [
        Sample(
            id=image_id,
            image=images / image_id,
            labels=tuple(sorted(labels[image_id])),
            size=sizes.get(image_id),
            boxes=_boxes(boxes[image_id]),
            box_labels=tuple(sorted(labels[image_id]))[:1] * len(boxes[image_id]) if boxes[image_id] else None,
            mask=files[image_id][0] if files[image_id] else None,
            extra_masks=tuple(files[image_id][1:]),
            mask_ignore=ignored.get(image_id),
        )
        for image_id in read_lines(folder / IDS)
    ]


def _boxes(corners: list[list[int]]) -> NDArray[np.float32] | None:
    return from_inclusive(np.array(corners, dtype=np.float32)) if corners else None


def _rows(path: Path, *widths: int, optional: bool = False) -> list[tuple[str, list[str]]]:
    if optional and not path.is_file():
        return []
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        image_id, *rest = line.split(",")
        if len(rest) not in widths:
            expected = " or ".join(str(width) for width in widths)
            raise DataError(f"line {number}: expected {expected} values after the id, got {len(rest)}", where=path)
        rows.append((image_id, rest))
    return rows


def _label(text: str, path: Path) -> int:
    label = _int(text, path)
    if not 0 <= label < _MOST_CLASSES:
        raise DataError(f"class id {label} is not in 0..{_MOST_CLASSES - 1}", where=path)
    return label


def _int(text: str, path: Path) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise DataError(f"expected a whole number, got '{text}'", where=path) from error
