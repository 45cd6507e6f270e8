"""What every data set shares: the list of samples, where its folder lies, and which parts it should hold."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from wsol.errors import DataError, StoreError, did_you_mean
from wsol.schema import Annotations, DatasetSpec, Sample
from wsol.store.archives import read_bytes
from wsol.store.masks import read_labels
from wsol.store.places import list_files, url_of

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm"})
TruthReader = Callable[[Sample], NDArray[np.uint8]]


def read_index_truth(sample: Sample) -> NDArray[np.uint8]:
    """Read the ground truth of a sample whose mask file holds the labels themselves.

    Returns:
        uint8 (H, W): 0 background, class id + 1, 255 ignored.

    Raises:
        DataError: When the sample has no mask, or its file is missing or torn.
    """
    if sample.mask is None:
        raise DataError("no ground-truth mask", where=sample.id, hint="evaluate boxes, or choose a split with masks")
    try:
        return read_labels(sample.mask)
    except StoreError as error:
        raise DataError(error.what, where=error.where, hint=error.hint) from error


@dataclass(frozen=True)
class Dataset:
    """The samples of one split and how to read their ground truth; can be sent to another process.

    Attributes:
        spec: Name, classes, split and root.
        samples: In the order of the split's list.
        truth: Reads the mask of a sample: a module-level function or a frozen object with `__call__`.
        missing: How many images the data set lists that are not on disk (they are left out of `samples`).
    """

    spec: DatasetSpec
    samples: tuple[Sample, ...]
    truth: TruthReader = read_index_truth
    missing: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @cached_property
    def _by_id(self) -> dict[str, Sample]:
        return {sample.id: sample for sample in self.samples}

    def by_id(self, image_id: str) -> Sample:
        """Return one sample.

        Raises:
            DataError: When the split has no such image.
        """
        if image_id not in self._by_id:
            raise DataError(f"no image '{image_id}' in split '{self.spec.split}'", where=self.spec.name)
        return self._by_id[image_id]

    def read_truth(self, sample: Sample) -> NDArray[np.uint8]:
        """Read the ground-truth mask of a sample.

        Returns:
            uint8 (H, W): 0 background, class id + 1, 255 ignored.

        Raises:
            DataError: When there is none or it cannot be read.
        """
        return self.truth(sample)

    def limit(self, count: int) -> Dataset:
        """Return the data set with its first `count` samples only; its id hash is that of the shorter list."""
        if count < 1:
            raise DataError(f"cannot keep {count} images", where="limit", hint="give at least 1")
        kept = self.samples[:count]
        return replace(self, spec=replace(self.spec, id_hash=hash_ids(kept)), samples=kept)


def hash_ids(samples: Sequence[Sample]) -> str:
    """Return 16 hex digits of the SHA-256 over the ids, in order, one a line."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.id}\n".encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Part:
    """One file or folder that a data set should hold.

    Attributes:
        path: Relative to the root; a glob pattern, or several separated by "|".
        what: What it is, in words.
        how: Where it comes from or how to build it.
        needed: Whether the data set is of no use without it.
    """

    path: str
    what: str
    how: str
    needed: bool = True

    def found(self, root: Path) -> bool:
        """Return whether anything matches below a root."""
        return url_of(root) is not None or any(
            next(root.glob(pattern), None) is not None for pattern in self.path.split("|")
        )


@dataclass(frozen=True)
class Layout:
    """Where a data set usually lies and what tells that a folder is it.

    Attributes:
        name: Registry name.
        folders: Usual places below a parent folder such as $WSOL_DATA.
        markers: Glob patterns; a folder that holds one of them is the root.
        parts: What it should hold, for `wsol data check`.
    """

    name: str
    folders: tuple[str, ...]
    markers: tuple[str, ...]
    parts: tuple[Part, ...] = ()

    def start(self, root: Path | None) -> Path:
        """Return the given root, or $WSOL_DATA.

        Raises:
            DataError: When neither is given.
        """
        if root is not None:
            return root
        variable = os.environ.get("WSOL_DATA")
        if not variable:
            place = f"the folder that holds {self.folders[0]}" if self.folders else "the folder of your data sets"
            raise DataError(
                f"no folder given for data set '{self.name}'", hint=f"give --root, or set WSOL_DATA to {place}"
            )
        return Path(variable).expanduser()

    def find(self, root: Path | None) -> Path:
        """Return the folder of the data set, given that folder or one of its parents.

        Raises:
            DataError: When it is not there.
        """
        start = self.start(root)
        if url_of(start) is not None:
            return start  # object stores have no folders to look for
        for candidate in (start, *(start / folder for folder in self.folders)):
            if any(next(candidate.glob(marker), None) is not None for marker in self.markers):
                return candidate
        what = "no such folder" if not start.is_dir() else f"no {self.name} data set here"
        looks = " or ".join(self.markers)
        if self.name == "folder":
            hint = "give --root the folder of your photos, for example with photos/cat/1.jpg"
        else:
            hint = f"--root is the folder with {looks}; 'wsol data check --data {self.name}' says how to get it"
        raise DataError(what, where=start, hint=hint)


def choose_split(split: str | None, splits: Sequence[str], *, where: object) -> str:
    """Return the split to use: the given one, or "train" where there is one, or the first.

    Raises:
        DataError: When there is no such split.
    """
    if split is None and splits:
        return "train" if "train" in splits else splits[0]
    if split is None or split not in splits:
        raise DataError(f"no split '{split}'", where=where, hint=did_you_mean(str(split), splits))
    return split


def make_dataset(
    spec: DatasetSpec, samples: Sequence[Sample], *, truth: TruthReader = read_index_truth, missing: int = 0
) -> Dataset:
    """Put a data set together: refuse an empty or ambiguous list, and hash the ids.

    Raises:
        DataError: When there is no sample, or two share an id.
    """
    if not samples:
        absent = f"; none of the {missing} listed images is on disk" if missing else ""
        raise DataError(f"no images in split '{spec.split}'{absent}", where=spec.root)
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise DataError(f"image id '{sample.id}' is listed twice in split '{spec.split}'", where=spec.root)
        seen.add(sample.id)
    return Dataset(replace(spec, id_hash=hash_ids(samples)), tuple(samples), truth=truth, missing=missing)


def annotation_kind(samples: Sequence[Sample], *, masks: bool | None = None) -> Annotations:
    """Return which ground truth a list of samples carries: "box", "mask", "both" or "none"."""
    box = any(sample.boxes is not None for sample in samples)
    mask = any(sample.mask is not None for sample in samples) if masks is None else masks
    return "both" if box and mask else "box" if box else "mask" if mask else "none"


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank, stripped.

    Raises:
        DataError: When it cannot be read.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text file, or its name holds a zero"
        raise DataError(f"cannot read the list: {reason}", where=path) from error
    # Not splitlines: it also ends a line at characters that a name may hold.
    return [line.strip() for line in io.StringIO(text, newline=None) if line.strip()]


def list_images(folder: Path) -> list[Path]:
    """Return the image files below a folder, sorted by relative path; hidden files and folders are left out."""
    return [folder / name for name in list_files(folder) if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES]  # noqa: PTH122


def without_suffix(image_id: str) -> str:
    """Return an id or a path without the suffix of an image; ids may hold other dots."""
    known = PurePosixPath(image_id)
    return known.with_suffix("").as_posix() if known.suffix.lower() in IMAGE_SUFFIXES else image_id
