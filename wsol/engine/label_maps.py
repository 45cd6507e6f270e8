"""A teacher's score maps as labels: read from a run of `wsol cam`, cut and mirrored like the training view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wsol.errors import ConfigError, StoreError
from wsol.schema import DatasetSpec, ScoreMaps
from wsol.store.maps import read_maps
from wsol.store.runs import read_dataset

CELL = 16
"""Pixels of the training view to a cell of a label map: the patch of most vision transformers."""
Cut = tuple[NDArray[np.int16], NDArray[np.float16]]


@dataclass(frozen=True)
class LabelMaps:
    """The maps of a run; can be sent to a reading process.

    Attributes:
        run: Run folder of wsol cam.
        img_size: Side of the training views in pixels.
    """

    run: Path
    img_size: int

    def read(self, image_id: str) -> ScoreMaps:
        """Read the maps of an image.

        Raises:
            StoreError: When there are none.
        """
        return read_maps(self.run, image_id)

    def cut(self, maps: ScoreMaps, window: tuple[int, int, int, int], size: tuple[int, int], *, mirror: bool) -> Cut:
        """Return class ids (K,), and maps float16 (K, h, w) of a window of the image.

        Args:
            maps: Of the whole image.
            window: top, left, height, width in pixels of the image.
            size: (H, W) of the image.
            mirror: Whether the view is mirrored.
        """
        top, left, height, width = window
        rows, columns = maps.values.shape[1:]
        y, x = rows / size[0], columns / size[1]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        side = max(1, round(self.img_size / CELL))
        planes = [
            Image.fromarray(plane.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR, box=box)
            for plane in maps.values
        ]
        values = np.array([np.asarray(plane) for plane in planes], dtype=np.float16).reshape(-1, side, side)
        return maps.class_ids, np.ascontiguousarray(values[:, :, ::-1]) if mirror else values


def dense(cuts: Sequence[Cut], num_classes: int, device: torch.device) -> Tensor:
    """Return the maps of a batch, float32 (B, num_classes, h, w); classes without a map are zero."""
    stack = np.zeros((len(cuts), num_classes, *cuts[0][1].shape[1:]), dtype=np.float32)
    for row, (class_ids, values) in zip(stack, cuts, strict=True):
        row[class_ids] = values
    return torch.from_numpy(stack).to(device)


def open_label_maps(run: Path | None, spec: DatasetSpec, *, img_size: int, wanted: bool) -> LabelMaps | None:
    """Return the maps of `--label-maps` where a strategy wants them.

    Raises:
        ConfigError: When they are wanted but not given, or given but not wanted.
        StoreError: When the folder is no run of wsol cam, or of other classes.
    """
    if run is None:
        if wanted:
            hint = "make them with wsol cam on the training split"
            raise ConfigError("this strategy weighs labels by a teacher's maps: give --label-maps RUN", hint=hint)
        return None
    if not wanted:
        raise ConfigError("this strategy looks at no label maps", where="--label-maps", hint="leave it out")
    if not (run / "maps").is_dir() or not (run / "dataset.yaml").is_file():
        raise StoreError("no score maps here", where=run, hint="give a run folder of wsol cam")
    classes = tuple(read_dataset(run).get("classes") or ())
    if classes != spec.classes:
        raise StoreError(f"the maps are of {len(classes)} other classes than '{spec.name}'", where=run)
    return LabelMaps(run, img_size)
