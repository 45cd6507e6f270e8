"""COCO instances JSON (https://cocodataset.org/#format-data): RLE, polygons or boxes.

Category ids are class ids + 1. Polygons run along the edges of the pixels, so pycocotools gives the mask back; they
fill holes. `area` is always that of the mask.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from wsol.ops.rle import encode
from wsol.store.atomic import write_text
from wsol.store.formats import FORMATS
from wsol.store.formats.base import Picture, Region


@FORMATS.register("coco")
@dataclass(frozen=True)
class Coco:
    """One `annotations.json` of all images."""

    images: ClassVar[str] = "images"

    shape: Literal["mask", "polygon", "box"] = "mask"
    """mask: RLE, which keeps holes; polygon: all components of an object; box: no segmentation."""
    simplify: float = 0.0
    """Pixels that a polygon may stray from the mask; 0 keeps every corner."""

    def write(self, out: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
        """Write `annotations.json`; see `Format.write`."""
        self.write_file(out / "annotations.json", pictures, classes)

    def write_file(self, path: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
        """Write the document under another name; the arguments are those of `write`.

        Raises:
            StoreError: When the file cannot be written.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, picture in enumerate(pictures, start=1):
            height, width = picture.size
            images.append({"id": number, "file_name": picture.name, "height": height, "width": width})
            for region in picture.regions:
                x0, y0, x1, y1 = region.box
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": region.class_id + 1,
                    "segmentation": self._segmentation(region, picture.size),
                    "area": region.area,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
                annotations.append(annotation)
        categories = [{"id": at, "name": name} for at, name in enumerate(classes, start=1)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        write_text(path, json.dumps(document) + "\n")

    def _segmentation(self, region: Region, size: tuple[int, int]) -> dict[str, Any] | list[list[int]]:
        if self.shape == "mask":
            return encode(region.whole(size))
        return [polygon.ravel().tolist() for polygon in region.edges(self.simplify)] if self.shape == "polygon" else []
