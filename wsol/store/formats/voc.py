"""PASCAL VOC XML (http://host.robots.ox.ac.uk/pascal/VOC/): the boxes of an image.

VOC counts pixels from 1, and the ends of a box are inside of it. The masks of a run are VOC masks as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar
from xml.etree import ElementTree as ET

from wsol.store.atomic import write_text
from wsol.store.formats import FORMATS
from wsol.store.formats.base import Picture, by_stem


@FORMATS.register("voc")
@dataclass(frozen=True)
class Voc:
    """`Annotations/NAME.xml` for each image."""

    images: ClassVar[str] = "JPEGImages"

    def write(self, out: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
        """Write one file an image; see `Format.write`."""
        for stem, picture in by_stem(pictures):
            root = ET.Element("annotation")
            _add(root, folder=self.images, filename=PurePosixPath(picture.name).name)
            _add(ET.SubElement(root, "size"), width=picture.size[1], height=picture.size[0], depth=3)
            _add(root, segmented=0)
            for region in picture.regions:
                x0, y0, x1, y1 = region.box
                item = ET.SubElement(root, "object")
                _add(item, name=classes[region.class_id], pose="Unspecified", truncated=0, difficult=0)
                _add(ET.SubElement(item, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
            ET.indent(root)
            write_text(out / "Annotations" / f"{stem}.xml", ET.tostring(root, encoding="unicode") + "\n")


def _add(parent: ET.Element, **texts: object) -> None:
    for tag, text in texts.items():
        ET.SubElement(parent, tag).text = str(text)
