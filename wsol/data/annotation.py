"""Object annotations in the XML of PASCAL VOC, which ILSVRC shares."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from wsol.errors import DataError


@dataclass(frozen=True)
class Annotation:
    """The objects of one image, coordinates as written in the file.

    Attributes:
        size: (H, W) in pixels, or None where the file does not say.
        names: Class name of each object.
        corners: xmin, ymin, xmax, ymax of each object.
        difficult: Whether an object is marked as difficult.
    """

    size: tuple[int, int] | None
    names: tuple[str, ...]
    corners: tuple[tuple[float, float, float, float], ...]
    difficult: tuple[bool, ...]


def read_annotation(path: Path) -> Annotation:
    """Read one XML file.

    Raises:
        DataError: When it is missing, is not such an annotation, or declares a document type or entities.
    """
    try:
        root = _parse(path.read_bytes())
        objects = root.findall("object")
        names = tuple((item.findtext("name") or "").strip() for item in objects)
        corners = tuple(_corners(item) for item in objects)
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except OSError as error:
        raise DataError(f"cannot read the annotation: {error.strerror}", where=path) from error
    except (expat.ExpatError, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"not an annotation in VOC's XML: {error}", where=path) from error
    difficult = tuple((item.findtext("difficult") or "0").strip() == "1" for item in objects)
    return Annotation((height, width) if height and width else None, names, corners, difficult)


def _corners(item: ET.Element) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{end}") or "") for end in ("xmin", "ymin", "xmax", "ymax"))
    if not (x0 <= x1 and y0 <= y1):  # also where one is no number
        raise ValueError(f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} is inside out")
    return x0, y0, x1, y1


def _parse(data: bytes) -> ET.Element:
    # Entities can blow up memory or read other files; annotations need none.
    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type")

    builder, parser = ET.TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)
    return builder.close()
