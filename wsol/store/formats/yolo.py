"""YOLO labels (https://docs.ultralytics.com/datasets/segment/): one text file an image, polygons or boxes.

A line holds one polygon, so an object of several components becomes several lines, and holes are filled. Polygons run
through the centres of the border pixels: readers that cut or round coordinates to whole pixels and draw with
`cv2.fillPoly` give the mask back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import yaml

from wsol.store.atomic import write_text
from wsol.store.formats import FORMATS
from wsol.store.formats.base import Picture, Region, by_stem

# A hair below one half: readers that cut (Ultralytics) and readers that round (supervision) find the same pixel.
_CENTRE = 0.49


@FORMATS.register("yolo")
@dataclass(frozen=True)
class Yolo:
    """`labels/NAME.txt` for each image, and `data.yaml`."""

    images: ClassVar[str] = "images"

    shape: Literal["polygon", "box"] = "polygon"
    """polygon: for segmentation; box: for detection."""
    simplify: float = 0.0
    """Pixels that a polygon may stray from the mask; 0 keeps every corner."""

    def write(self, out: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
        """Write all files, `data.yaml` last; see `Format.write`."""
        for stem, picture in by_stem(pictures):
            lines = [line for region in picture.regions for line in self._lines(region, picture.size)]
            write_text(out / "labels" / f"{stem}.txt", "".join(lines))
        # Without `path`, the folder of this file is meant. Both keys are required; there is one split.
        facts = {"train": self.images, "val": self.images, "names": dict(enumerate(classes))}
        write_text(out / "data.yaml", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))

    def _lines(self, region: Region, size: tuple[int, int]) -> list[str]:
        scale = np.array([size[1], size[0]])
        if self.shape == "polygon":
            rows = [((polygon + _CENTRE) / scale).ravel() for polygon in region.borders(self.simplify)]
        else:
            low, high = np.reshape(region.box, (2, 2)) / scale
            rows = [np.concatenate([(low + high) / 2, high - low])]
        return [" ".join([str(region.class_id), *(f"{value:.6f}" for value in row)]) + "\n" for row in rows]
