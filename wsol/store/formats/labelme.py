"""labelme JSON (https://github.com/wkentaro/labelme): one file an image, polygons or rectangles.

Polygons run through the border pixels, because labelme's own export draws them with their outline; they fill holes.
The polygons of one object share a group id.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from wsol.store.atomic import write_text
from wsol.store.formats import FORMATS
from wsol.store.formats.base import Picture, Region, by_stem

_VERSION = "5.5.0"


@FORMATS.register("labelme")
@dataclass(frozen=True)
class Labelme:
    """`NAME.json` for each image; the pixels stay in the image file."""

    images: ClassVar[str] = ""

    shape: Literal["polygon", "box"] = "polygon"
    """What to draw around an object."""
    simplify: float = 0.0
    """Pixels that a polygon may stray from the mask; 0 keeps every corner."""

    def write(self, out: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
        """Write one file an image; see `Format.write`."""
        for stem, picture in by_stem(pictures):
            path = out / f"{stem}.json"
            shapes: list[dict[str, Any]] = []
            for group, region in enumerate(picture.regions, start=1):
                shapes += [self._shape(points, classes[region.class_id], group) for points in self._points(region)]
            document: dict[str, Any] = {
                "version": _VERSION,
                "flags": {},
                "shapes": shapes,
                "imagePath": Path(os.path.relpath(picture.file.absolute(), path.parent.absolute())).as_posix(),
                "imageData": None,
                "imageHeight": picture.size[0],
                "imageWidth": picture.size[1],
            }
            write_text(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    def _points(self, region: Region) -> list[list[list[int]]]:
        if self.shape == "polygon":
            return [polygon.tolist() for polygon in region.borders(self.simplify)]
        x0, y0, x1, y1 = region.box
        return [[[x0, y0], [x1, y1]]]

    def _shape(self, points: list[list[int]], label: str, group: int) -> dict[str, Any]:
        kind = "polygon" if self.shape == "polygon" else "rectangle"
        return {
            "label": label,
            "points": points,
            "group_id": group,
            "description": "",
            "shape_type": kind,
            "flags": {},
            "mask": None,
        }
