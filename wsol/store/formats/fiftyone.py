"""FiftyOne by plain files (https://docs.voxel51.com/user_guide/import_datasets.html), without the package.

`labels.json` with the images in `data/` is its FiftyOneImageDetectionDataset: boxes as shares of the image. `masks/`
holds one grey PNG an image for its ImageSegmentationDirectory, and `mask_targets.json` names the values. Where objects
overlap, the later one covers the earlier in a mask.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from wsol.errors import StoreError
from wsol.schema import IGNORE
from wsol.store.atomic import atomic_write, write_text
from wsol.store.formats import FORMATS
from wsol.store.formats.base import Picture, by_stem


@FORMATS.register("fiftyone")
@dataclass(frozen=True)
class FiftyOne:
    """Boxes in one `labels.json`, and a mask for each image."""

    images: ClassVar[str] = "data"

    masks: bool = True
    """Also write the masks."""

    def write(self, out: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
        """Write all files, `labels.json` last; see `Format.write`."""
        if self.masks and len(classes) >= IGNORE:
            raise StoreError("a byte cannot name the classes of this data set", hint="--options.no-masks")
        labels: dict[str, list[dict[str, Any]]] = {}
        for stem, picture in by_stem(pictures):
            height, width = picture.size
            labels[stem] = [
                {"label": region.class_id, "bounding_box": _shares(region.box, width, height)}
                for region in picture.regions
            ]
            if self.masks:
                _write_mask(out / "masks" / f"{stem}.png", picture)
        if self.masks:
            targets = dict(enumerate(classes, start=1))
            write_text(out / "mask_targets.json", json.dumps(targets, ensure_ascii=False, indent=1) + "\n")
        document = {"classes": list(classes), "labels": labels}
        write_text(out / "labels.json", json.dumps(document, ensure_ascii=False) + "\n")


def _shares(box: tuple[int, int, int, int], width: int, height: int) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]


def _write_mask(path: Path, picture: Picture) -> None:
    labels = np.zeros(picture.size, np.uint8)
    for region in picture.regions:
        labels[region.whole(picture.size)] = region.class_id + 1
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, format="PNG")
    with atomic_write(path) as stream:
        stream.write(buffer.getbuffer())
