"""Label Studio tasks with pre-annotations (https://labelstud.io/guide/predictions): brush masks, polygons or boxes.

A brush mask is the RGBA picture of the region, packed bit by bit (https://labelstud.io/tags/brushlabels): the number of
values, the size of a value, four sizes of a run, then the runs. Polygons and boxes are in per cent of the image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import quote
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from wsol.ops.runs import run_lengths
from wsol.store.atomic import atomic_write, write_text
from wsol.store.formats import FORMATS
from wsol.store.formats.base import Picture, Region

_TAGS = {"mask": "BrushLabels", "polygon": "PolygonLabels", "box": "RectangleLabels"}
_RUN_BITS = (3, 4, 8, 16)
_LONGEST = 1 << _RUN_BITS[-1]


@FORMATS.register("labelstudio")
@dataclass(frozen=True)
class LabelStudio:
    """`tasks.json` to import, and `label_config.xml` for the labelling interface of the project."""

    images: ClassVar[str] = "images"

    shape: Literal["mask", "polygon", "box"] = "mask"
    """mask: a brush, which keeps holes; polygon: one for each component; box."""
    simplify: float = 0.0
    """Pixels that a polygon may stray from the mask; 0 keeps every corner."""
    prefix: str = "/data/local-files/?d="
    """What stands before the name of an image in its address; the default is that of local storage."""

    def write(self, out: Path, pictures: Iterable[Picture], classes: Sequence[str]) -> None:
        """Write both files; see `Format.write`."""
        view = ET.Element("View")
        ET.SubElement(view, "Image", name="image", value="$image")
        tag = ET.SubElement(view, _TAGS[self.shape], name="label", toName="image")
        for name in classes:
            ET.SubElement(tag, "Label", value=name)
        ET.indent(view)
        write_text(out / "label_config.xml", ET.tostring(view, encoding="unicode") + "\n")
        with atomic_write(out / "tasks.json") as stream:
            before = "["
            for picture in pictures:
                stream.write(f"{before}\n{json.dumps(self._task(picture, classes), separators=(',', ':'))}".encode())
                before = ","
            stream.write(b"\n]\n" if before == "," else b"[]\n")

    def _task(self, picture: Picture, classes: Sequence[str]) -> dict[str, Any]:
        height, width = picture.size
        kind = _TAGS[self.shape].lower()
        result: list[dict[str, Any]] = []
        for region in picture.regions:
            for value in self._values(region, picture.size):
                shared = {"id": f"r{len(result) + 1}", "type": kind, "from_name": "label", "to_name": "image"}
                frame = {"original_width": width, "original_height": height, "image_rotation": 0}
                result.append({**shared, **frame, "value": {**value, kind: [classes[region.class_id]]}})
        predictions = [{"model_version": "wsol", "result": result}]
        return {"data": {"image": self.prefix + quote(picture.name)}, "predictions": predictions}

    def _values(self, region: Region, size: tuple[int, int]) -> list[dict[str, Any]]:
        if self.shape == "mask":
            return [{"format": "rle", "rle": list(brush_rle(region.whole(size)))}]
        percent = 100 / np.array([size[1], size[0]])
        if self.shape == "polygon":
            return [{"points": (points * percent).tolist(), "closed": True} for points in region.edges(self.simplify)]
        (x, y), (right, bottom) = (np.reshape(region.box, (2, 2)) * percent).tolist()
        return [{"x": x, "y": y, "width": right - x, "height": bottom - y, "rotation": 0}]


def brush_rle(mask: NDArray[np.bool_]) -> bytes:
    """Pack a mask as Label Studio's brush does.

    Args:
        mask: bool (H, W); foreground becomes 255 in all four channels, background 0.

    Returns:
        The bytes; their list is the `rle` of a brush region.
    """
    bits = [f"{4 * mask.size:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _RUN_BITS)]
    for at, length in enumerate((4 * run_lengths(mask)).tolist()):
        value = f"{255 * (at % 2):08b}"
        whole, rest = divmod(length, _LONGEST)
        for run in [_LONGEST] * whole + [rest] * (rest > 0):
            which = next(index for index, size in enumerate(_RUN_BITS) if run <= 1 << size)
            bits.append(f"1{which:02b}{run - 1:0{_RUN_BITS[which]}b}{value}")
    text = "".join(bits)
    return int(text.ljust(-(-len(text) // 8) * 8, "0"), 2).to_bytes(-(-len(text) // 8), "big")
