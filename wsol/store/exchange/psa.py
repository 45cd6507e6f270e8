"""PSA: `out_cam/*.npy`, `out_la_crf/*.npy`, `out_ha_crf/*.npy` and `out_rw/*.png` of AffinityNet.

Ahn and Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision", CVPR 2018,
https://github.com/jiwoon-ahn/psa. A file of maps is {class id: (H, W)}, the sum over scales divided by its maximum. A
file of a CRF is {0: background, class id + 1: (H, W)} and sums to 1, so the background need not be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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


@PROJECTS.register("psa")
@dataclass(frozen=True)
class Psa:
    """One file an image, named after it."""

    files: Literal["cam", "crf", "rw"] = "cam"
    """Which of its folders: cam holds score maps, crf scores of a CRF (out_la_crf, out_ha_crf), rw masks."""

    @property
    def kind(self) -> Kind:
        """What the files hold."""
        return "masks" if self.files == "rw" else "maps"

    def file(self, folder: Path, sample: Sample) -> Path:
        """Return where the file of an image lies."""
        return file_by_stem(folder, sample, self.kind)

    def read(self, path: Path, sample: Sample) -> Found:
        """Read the file of an image; see `Project.read`."""
        if self.kind == "masks":
            return read_mask(path, sample)
        items = read_items(path)
        try:
            if self.files == "crf" and 0 not in items:
                raise ValueError("it has no background")
            first = 1 if self.files == "crf" else 0
            planes = {int(key) - first: plane for key, plane in items.items() if int(key) >= first}
            values = np.stack([*planes.values()]) if planes else np.empty((0, *sized(sample)), np.float32)
            check_size(values, sample, path)
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"no {self.files} file of PSA: {error}", where=path) from error
        return make_maps(sample, [*planes], values)

    def write(self, path: Path, found: Any, sample: Sample) -> None:
        """Write the file of an image; see `Project.write`."""
        if self.kind == "masks":
            write_grey(path, found)
            return
        full = found.at_image_size()
        ids = found.class_ids.tolist()
        if self.files == "cam":
            write_npy(path, dict(zip(ids, full, strict=True)))
            return
        background = np.clip(1 - full.sum(axis=0), 0, 1).astype(np.float32)
        write_npy(path, {0: background} | {label + 1: plane for label, plane in zip(ids, full, strict=True)})
