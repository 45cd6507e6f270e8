"""Objects of an image on disk: one JSON file an image, masks as COCO run lengths."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol.errors import StoreError
from wsol.ops.rle import decode, encode
from wsol.store.atomic import write_text


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """One object.

    Attributes:
        class_id: Without background.
        score: Confidence in [0, 1].
        mask: bool (H, W); not empty.
    """

    class_id: int
    score: float
    mask: NDArray[np.bool_]


def instances_path(run: Path, image_id: str) -> Path:
    """Return where the objects of an image lie in a run folder; "/" in ids become folders."""
    return run / "instances" / f"{image_id}.json"


def write_instances(run: Path, image_id: str, size: Sequence[int], instances: Iterable[Instance]) -> None:
    """Write the objects of one image, whole or not at all.

    Args:
        run: Run folder.
        image_id: Id of the image.
        size: (H, W) in pixels.
        instances: Become annotations of COCO; category ids are class ids + 1.
    """
    rows = []
    for each in instances:
        y, x = np.nonzero(each.mask)
        rows.append(
            {
                "category_id": each.class_id + 1,
                "score": round(each.score, 6),
                "segmentation": encode(each.mask),
                "area": len(y),
                "bbox": [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1],
            }
        )
    document = {"size": [int(side) for side in size], "instances": rows}
    write_text(instances_path(run, image_id), json.dumps(document) + "\n")


def read_annotations(run: Path, image_id: str) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """Return (H, W) and the annotations of one image, masks still encoded.

    Raises:
        StoreError: When the file is missing or torn.
    """
    path = instances_path(run, image_id)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return (int(found["size"][0]), int(found["size"][1])), list(found["instances"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"not a whole file of instances: {error}", where=path) from error


def read_instances(run: Path, image_id: str) -> tuple[tuple[int, int], tuple[Instance, ...]]:
    """Return (H, W) and the objects of one image that are not empty.

    Raises:
        StoreError: When the file is missing or torn.
    """
    size, rows = read_annotations(run, image_id)
    try:
        items = [
            Instance(int(row["category_id"]) - 1, float(row["score"]), decode(row["segmentation"])) for row in rows
        ]
    except (ValueError, LookupError, TypeError) as error:
        what = f"not a whole file of instances: {error}"
        raise StoreError(what, where=instances_path(run, image_id)) from error
    return size, tuple(item for item in items if item.mask.any())
