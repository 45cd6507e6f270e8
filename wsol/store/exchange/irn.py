"""irn: `cam/*.npy`, `ir_label/*.png`, `sem_seg/*.png` and `ins_seg/*.npy` of IRNet.

Ahn et al., "Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations", CVPR 2019,
https://github.com/jiwoon-ahn/irn. A map is the sum over scales, divided by its maximum. `cam` is on every fourth pixel
and is what the random walk starts from; `high_res` has the size of the image and is what thresholds are applied to.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from wsol.errors import StoreError
from wsol.schema import Sample
from wsol.store.exchange import PROJECTS
from wsol.store.exchange._npy_write import write_npy
from wsol.store.exchange.base import (
    Found,
    Kind,
    check_size,
    file_by_stem,
    make_maps,
    read_items,
    read_mask,
    sized,
    write_grey,
)
from wsol.store.instances import Instance

_STRIDE = 4


@PROJECTS.register("irn")
@dataclass(frozen=True)
class Irn:
    """One file an image, named after it."""

    files: Literal["cam", "ir_label", "sem_seg", "ins_seg"] = "cam"
    """Which of its folders: cam holds score maps, ir_label and sem_seg masks, ins_seg objects."""
    values: Literal["high_res", "cam"] = "high_res"
    """Which of the two maps of a cam file to read: at the size of the image, or on every fourth pixel."""

    @property
    def kind(self) -> Kind:
        """What the files hold."""
        return "maps" if self.files == "cam" else "instances" if self.files == "ins_seg" else "masks"

    def file(self, folder: Path, sample: Sample) -> Path:
        """Return where the file of an image lies."""
        return file_by_stem(folder, sample, self.kind)

    def read(self, path: Path, sample: Sample) -> Found:
        """Read the file of an image; see `Project.read`."""
        if self.kind == "masks":
            return read_mask(path, sample)
        items = read_items(path)
        try:
            if self.kind == "maps":
                check_size(items["high_res"], sample, path)
                return make_maps(sample, items["keys"], items[self.values])
            check_size(items["mask"], sample, path)
            rows = zip(items["class"], items["score"], items["mask"], strict=True)
            return tuple(Instance(int(label), float(score), mask > 0) for label, score, mask in rows if mask.any())
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"no {self.files} file of irn: {error!r}", where=path) from error

    def write(self, path: Path, found: Any, sample: Sample) -> None:
        """Write the file of an image; see `Project.write`."""
        if self.kind == "masks":
            write_grey(path, found)
        elif self.kind == "maps":
            height, width = ((side - 1) // _STRIDE + 1 for side in sized(sample))
            coarse = [cv2.resize(plane.astype(np.float32), (width, height)) for plane in found.values]
            small = np.stack(coarse) if coarse else np.empty((0, height, width), np.float32)
            keys = found.class_ids.astype(np.int64)
            write_npy(
                path,
                {"keys": keys, "cam": small, "high_res": found.at_image_size()},
                tensors=("keys", "cam"),  # irn moves `cam` to the GPU without asking what it is
            )
        else:
            masks = [item.mask for item in found]
            items = {
                "score": np.array([item.score for item in found], np.float32),
                "mask": np.stack(masks) if masks else np.empty((0, *sized(sample)), np.bool_),
                "class": np.array([item.class_id for item in found], np.int64),
            }
            write_npy(path, items)
