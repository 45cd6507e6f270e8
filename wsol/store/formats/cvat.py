"""CVAT for images 1.1 (https://docs.cvat.ai/docs/other/xml_format): masks, polygons or boxes in one XML file.

CVAT finds the images of a task by their names and the labels by theirs: make the task with both first, then upload the
annotations. Runs of a mask count along the rows of its box and start with background.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal
from xml.etree import ElementTree as ET

from wsol.ops.runs import run_lengths
from wsol.store.atomic import atomic_write
from wsol.store.formats import FORMATS
from wsol.store.formats.base import Picture, Region

_TYPES = {"mask": "mask", "polygon": "polygon", "box": "rectangle"}


@FORMATS.register("cvat")
@dataclass(frozen=True)
class Cvat:
    """One `annotations.xml` of all images."""

    images: ClassVar[str] = "images"

    shape: Literal["mask", "polygon", "box"] = "mask"
    """mask: keeps holes; polygon: the components of an object share a group; box."""
    simplify: float = 0.0
    """Pixels that a polygon may stray from the mask; 0 keeps every corner."""

    def write(self, out: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
        """Write `annotations.xml`; see `Format.write`."""
        with atomic_write(out / "annotations.xml") as stream:
            stream.write(b'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n')
            stream.write(_text(self._meta(classes)))
            for number, picture in enumerate(pictures):
                height, width = picture.size
                facts = {"id": number, "name": picture.name, "width": width, "height": height}
                image = ET.Element("image", _attributes(facts))
                for group, region in enumerate(picture.regions, start=1):
                    image.extend(self._shapes(region, classes[region.class_id], group))
                stream.write(_text(image))
            stream.write(b"</annotations>\n")

    def _meta(self, classes: Sequence[str]) -> ET.Element:
        meta = ET.Element("meta")
        task = ET.SubElement(meta, "task")
        ET.SubElement(task, "name").text = "wsol"
        ET.SubElement(task, "mode").text = "annotation"
        labels = ET.SubElement(task, "labels")
        for name in classes:
            label = ET.SubElement(labels, "label")
            ET.SubElement(label, "name").text = name
            ET.SubElement(label, "type").text = _TYPES[self.shape]
            ET.SubElement(label, "attributes")
        return meta

    def _shapes(self, region: Region, label: str, group: int) -> Iterator[ET.Element]:
        shared = {"label": label, "source": "auto", "occluded": 0}
        x0, y0, x1, y1 = region.box
        if self.shape == "mask":
            runs = ", ".join(map(str, run_lengths(region.mask).tolist()))
            place = {"rle": runs, "left": x0, "top": y0, "width": x1 - x0, "height": y1 - y0}
            yield ET.Element("mask", _attributes({**shared, **place, "z_order": 0}))
        elif self.shape == "box":
            corners = {"xtl": x0, "ytl": y0, "xbr": x1, "ybr": y1}
            yield ET.Element("box", _attributes({**shared, **corners, "z_order": 0}))
        else:
            polygons = region.edges(self.simplify)
            together = {"group_id": group} if len(polygons) > 1 else {}
            for polygon in polygons:
                points = ";".join(f"{x},{y}" for x, y in polygon.tolist())
                yield ET.Element("polygon", _attributes({**shared, "points": points, "z_order": 0, **together}))


def _attributes(facts: dict[str, object]) -> dict[str, str]:
    return {name: str(value) for name, value in facts.items()}


def _text(element: ET.Element) -> bytes:
    ET.indent(element, level=1)
    return b"  " + ET.tostring(element, encoding="unicode").encode() + b"\n"
