"""CLIP-ES: `cams/*.npy` and `pseudo_masks/*.png`.

Lin et al., "CLIP is Also an Efficient Segmenter", CVPR 2023, https://github.com/linyq2117/CLIP-ES. `attn_highres` are
the maps after the spreading along the attention, float16 at the size of the image; some versions also keep `highres`,
those before it.
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
from wsol.store.exchange.base import Found, Kind, check_size, file_by_stem, make_maps, read_items, read_mask, write_grey


@PROJECTS.register("clip_es")
@dataclass(frozen=True)
class ClipEs:
    """One file an image, named after it."""

    files: Literal["cams", "pseudo_masks"] = "cams"
    """Score maps, or masks after the CRF."""
    values: Literal["attn_highres", "highres"] = "attn_highres"
    """Which maps of a file: after or before the spreading along the attention."""

    @property
    def kind(self) -> Kind:
        """What the files hold."""
        return "maps" if self.files == "cams" else "masks"

    def file(self, folder: Path, sample: Sample) -> Path:
        """Return where the file of an image lies."""
        return file_by_stem(folder, sample, self.kind)

    def read(self, path: Path, sample: Sample) -> Found:
        """Read the file of an image; see `Project.read`."""
        if self.kind == "masks":
            return read_mask(path, sample)
        items = read_items(path)
        try:
            check_size(items[self.values], sample, path)
            return make_maps(sample, items["keys"], items[self.values])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"no file of CLIP-ES with {self.values}: {error!r}", where=path) from error

    def write(self, path: Path, found: Any, sample: Sample) -> None:
        """Write the file of an image; see `Project.write`."""
        if self.kind == "masks":
            write_grey(path, found)
        else:
            values = found.at_image_size().astype(np.float16)
            write_npy(path, {"keys": found.class_ids.astype(np.int64), self.values: values})
