"""What every format is written from: pictures, and the regions of their masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.errors import StoreError
from wsol.ops.labelling import label_components
from wsol.ops.outlines import border_polygons, edge_polygons
from wsol.schema import IGNORE

Objects = Literal["class", "component", "largest"]


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """One object of an image.

    Attributes:
        class_id: Without background.
        x: Column of the left side of its box.
        y: Row of the top side.
        mask: bool (h, w), cut to the box.
    """

    class_id: int
    x: int
    y: int
    mask: NDArray[np.bool_]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Half-open x0, y0, x1, y1 in pixels."""
        return self.x, self.y, self.x + self.mask.shape[1], self.y + self.mask.shape[0]

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.mask.sum())

    def whole(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Return the mask in an image of (H, W) pixels."""
        full = np.zeros(size, np.bool_)
        full[self.y : self.box[3], self.x : self.box[2]] = self.mask
        return full

    def edges(self, simplify: float = 0.0) -> list[NDArray[np.int32]]:
        """Return polygons along the edges of the pixels, in the image; see `wsol.ops.outlines.edge_polygons`."""
        return [points + np.array([self.x, self.y], np.int32) for points in edge_polygons(self.mask, simplify=simplify)]

    def borders(self, simplify: float = 0.0) -> list[NDArray[np.int32]]:
        """Return polygons through border pixels, in the image; see `wsol.ops.outlines.border_polygons`."""
        return [
            points + np.array([self.x, self.y], np.int32) for points in border_polygons(self.mask, simplify=simplify)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One image with its objects.

    Attributes:
        name: Unique file name with suffix; may hold "/".
        file: Where the image lies.
        size: (H, W) in pixels.
        regions: Its objects, by ascending label.
    """

    name: str
    file: Path
    size: tuple[int, int]
    regions: tuple[Region, ...]


class Format(Protocol):
    """Writes pictures in one format; a frozen dataclass whose fields are the options."""

    images: ClassVar[str]
    """Folder under the output in which the format expects the images."""

    def write(self, out: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
        """Write all files, each whole or not at all.

        Args:
            out: Folder.
            pictures: Read once.
            classes: Class names; the position is the class id.

        Raises:
            StoreError: When a file cannot be written, or two pictures would share one.
        """
        ...


def find_regions(
    labels: NDArray[np.uint8], *, objects: Objects = "class", min_area: int = 1, named: Sequence[int] | None = None
) -> tuple[Region, ...]:
    """Split a mask into objects; 255 counts as background.

    Args:
        labels: uint8 (H, W): 0 background, class id + 1, 255 ignored.
        objects: One a class, one an 8-connected component, or the largest component of each class (the first in
            raster order of equal ones).
        min_area: Objects of fewer pixels are left out.
        named: Class ids that labels 1, 2, ... stand for, where a byte cannot name the classes.

    Returns:
        By ascending label, then in raster order.
    """
    regions = []
    for label in (1 + np.flatnonzero(np.bincount(labels.ravel(), minlength=256)[1:IGNORE])).tolist():
        class_id = label - 1 if named is None else named[label - 1]
        mask = labels == label
        if objects == "class":
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            found = [(x, y, mask[y : y + h, x : x + w])]
        else:
            parts, stats = label_components(mask)
            chosen = range(len(stats)) if objects == "component" else [int(np.argmax(stats[:, 4]))]
            boxes = {1 + at: stats[at, :4].tolist() for at in chosen}
            found = [(x, y, parts[y : y + h, x : x + w] == part) for part, (x, y, w, h) in boxes.items()]
        regions += [Region(class_id, x, y, cut) for x, y, cut in found if cut.sum() >= min_area]
    return tuple(regions)


def by_stem(pictures: Iterable[Picture]) -> Iterator[tuple[str, Picture]]:
    """Yield every picture after its name without suffix, for formats with one file a picture.

    Raises:
        StoreError: When two pictures differ only in their suffix.
    """
    seen: set[str] = set()
    for picture in pictures:
        stem = PurePosixPath(picture.name).with_suffix("").as_posix()
        if stem in seen:
            what = "two images have this name and differ only in their suffix"
            raise StoreError(what, where=stem, hint="rename one, or choose a format with one file for all: coco, cvat")
        seen.add(stem)
        yield stem, picture
