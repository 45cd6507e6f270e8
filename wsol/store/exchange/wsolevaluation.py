"""The WSOL benchmark: `scoremaps/ID.npy`, and the text files of its metadata.

Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR 2020,
https://github.com/clovaai/wsolevaluation. A score map is float64 224 x 224 of the true class: enlarged by cubic
interpolation, then brought to [0, 1] by its minimum and maximum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from wsol.errors import StoreError
from wsol.ops.boxes import to_inclusive
from wsol.ops.normalize import minmax
from wsol.schema import Sample, ScoreMaps
from wsol.store.atomic import write_text
from wsol.store.exchange import PROJECTS
from wsol.store.exchange._npy_read import read_npy
from wsol.store.exchange._npy_write import write_npy
from wsol.store.exchange.base import Kind, make_maps, sized, stem

_SIDE = 224


@PROJECTS.register("wsolevaluation")
@dataclass(frozen=True)
class WsolEvaluation:
    """One score map an image, under the id of the image with its suffix; or the metadata of a split."""

    files: Literal["scoremaps", "metadata"] = "scoremaps"
    """Score maps, or image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt (written only)."""

    @property
    def kind(self) -> Kind:
        """What the files hold."""
        return "maps" if self.files == "scoremaps" else "metadata"

    def file(self, folder: Path, sample: Sample) -> Path:
        """Return where the file of an image lies; where only that without the suffix of the photo is there, that."""
        whole, bare = folder / f"{sample.id}.npy", folder / f"{stem(sample)}.npy"
        return bare if bare.is_file() and not whole.is_file() else whole

    def read(self, path: Path, sample: Sample) -> ScoreMaps:
        """Read the file of an image; see `Project.read`."""
        values = read_npy(path)
        if not isinstance(values, np.ndarray) or values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
            raise StoreError("expected one score map (H, W)", where=path)
        return make_maps(sample, [_label(sample)], values[None])

    def write(self, path: Path, found: Any, sample: Sample) -> None:
        """Write the file of an image; see `Project.write`."""
        label = _label(sample)
        if label not in found.class_ids.tolist():
            raise StoreError(f"no map of the true class {label}", where=sample.id, hint="wsol cam --classes labels")
        plane = found.values[found.class_ids.tolist().index(label)].astype(np.float64)
        write_npy(path, minmax(cv2.resize(plane, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)))


def _label(sample: Sample) -> int:
    if len(sample.labels) != 1:
        what = f"the benchmark knows one class an image, this one has {len(sample.labels)}"
        raise StoreError(what, where=sample.id)
    return sample.labels[0]


def write_metadata(folder: Path, samples: Iterable[Sample], *, root: Path) -> None:
    """Write the text files of one split, each whole or not at all.

    Images go by their ids, as score maps do. Boxes end with the last pixel inside, as the benchmark has them. Masks are
    named where each has its file of pixels to ignore.

    Args:
        folder: For example metadata/CUB/test.
        samples: With known sizes.
        root: Folder that masks are relative to.

    Raises:
        StoreError: When an image has not exactly one class, a mask elsewhere, a box that the benchmark refuses, or a
            name that its lists cannot hold.
    """
    lines: dict[str, list[str]] = {name: [] for name in ("image_ids", "class_labels", "image_sizes", "localization")}
    for sample in samples:
        name, (height, width) = sample.id, sized(sample)
        if "," in name or name != name.strip():
            raise StoreError("the lists of the benchmark cannot hold this name", where=name, hint="rename the image")
        lines["image_ids"].append(name)
        lines["class_labels"].append(f"{name},{_label(sample)}")
        lines["image_sizes"].append(f"{name},{width},{height}")
        if sample.boxes is not None:
            corners = to_inclusive(sample.boxes)
            if (corners != np.rint(corners)).any():
                raise StoreError("the benchmark knows whole pixels only, a box has fractions", where=name)
            if (corners < 0).any() or (corners[:, :2] > corners[:, 2:]).any():
                raise StoreError("the benchmark refuses boxes that begin outside or are empty", where=name)
            for box in corners.astype(int).tolist():
                lines["localization"].append(",".join(map(str, (name, *box))))
        elif sample.mask is not None and sample.mask_ignore is not None:
            ignore = _relative(sample.mask_ignore, root)
            for at, mask in enumerate((sample.mask, *sample.extra_masks)):
                lines["localization"].append(f"{name},{_relative(mask, root)},{'' if at else ignore}")
    for name, rows in lines.items():
        write_text(folder / f"{name}.txt", "".join(f"{row}\n" for row in rows))


def _relative(path: Path, root: Path) -> str:
    try:
        return path.relative_to(root).as_posix()
    except ValueError as error:
        raise StoreError(
            "the file lies outside of the data set's folder", where=path, hint=f"expected {root}"
        ) from error
