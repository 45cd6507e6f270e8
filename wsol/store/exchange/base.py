"""What every project's files are read from and written to: score maps, masks and objects of one image."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsol.errors import StoreError
from wsol.schema import PseudoMask, Sample, ScoreMaps
from wsol.store.atomic import atomic_write
from wsol.store.exchange._npy_read import read_npy
from wsol.store.instances import Instance
from wsol.store.masks import read_labels

Kind = Literal["maps", "masks", "instances", "metadata"]
Found = ScoreMaps | PseudoMask | tuple[Instance, ...]


class Project(Protocol):
    """Reads and writes one kind of file of a project; a frozen dataclass whose fields are the options.

    Of a sample, the methods use its id, its size, which must be known, and its labels.
    """

    @property
    def kind(self) -> Kind:
        """What the files hold."""
        ...

    def file(self, folder: Path, sample: Sample) -> Path:
        """Return where the file of an image lies."""
        ...

    def read(self, path: Path, sample: Sample) -> Found:
        """Read the file of an image.

        Raises:
            WsolError: When it is missing, torn, or of another image or project.
        """
        ...

    def write(self, path: Path, found: Any, sample: Sample) -> None:
        """Write the file of an image, whole or not at all; `found` is of the type that `read` returns.

        Raises:
            WsolError: When it cannot be written, or the project has no way to say this.
        """
        ...


def stem(sample: Sample) -> str:
    """Return the id without the suffix of the image, as the VOC projects name their files."""
    name = PurePosixPath(sample.id)
    return name.with_suffix("").as_posix() if name.suffix == sample.image.suffix else sample.id


def file_by_stem(folder: Path, sample: Sample, kind: Kind) -> Path:
    """Return where the VOC projects keep the file of an image: masks are PNG, all else is npy."""
    return folder / f"{stem(sample)}{'.png' if kind == 'masks' else '.npy'}"


def sized(sample: Sample) -> tuple[int, int]:
    """Return (H, W) of the image.

    Raises:
        StoreError: When it is not known.
    """
    if sample.size is None:
        raise StoreError("the size of the image is not known", where=sample.id)
    return sample.size


def read_items(path: Path) -> Mapping[Any, Any]:
    """Read a `.npy` file of a dictionary; see `_npy_read.read_npy`.

    Raises:
        StoreError: When it holds something else.
    """
    items = read_npy(path)
    if not isinstance(items, Mapping):
        raise StoreError(f"expected a dictionary of arrays, got {type(items).__name__}", where=path)
    return items


def make_maps(sample: Sample, class_ids: Any, values: Any) -> ScoreMaps:
    """Make score maps of arrays that were read.

    Args:
        sample: Its image.
        class_ids: Whole numbers (K,), without background.
        values: Float (K, h, w) in [0, 1].

    Raises:
        WsolError: When the arrays do not fit together.
    """
    values = np.asarray(values)
    known = values if values.dtype == np.float16 else values.astype(np.float32)
    return ScoreMaps(sample.id, known, np.asarray(class_ids, dtype=np.int16).reshape(-1), sized(sample))


def check_size(values: NDArray[Any], sample: Sample, path: Path) -> None:
    """Refuse arrays (..., H, W) that are not of the size of the image.

    Raises:
        StoreError: Naming both sizes.
    """
    if values.shape[-2:] != sized(sample):
        what = f"the file is of an image {values.shape[-2:]}, the image is {sample.size}"
        raise StoreError(what, where=path, hint="is this the right data set?")


def read_mask(path: Path, sample: Sample) -> PseudoMask:
    """Read a PNG of labels: 0 background, class id + 1, 255 ignored.

    Raises:
        StoreError: When it is missing, torn, or of another size.
    """
    labels = read_labels(path)
    check_size(labels, sample, path)
    return PseudoMask(sample.id, labels)


def write_grey(path: Path, mask: PseudoMask) -> None:
    """Write labels as a grey PNG: the readers of these projects would turn a palette into colours."""
    buffer = io.BytesIO()
    Image.fromarray(mask.labels).save(buffer, format="PNG")
    with atomic_write(path) as stream:
        stream.write(buffer.getbuffer())
