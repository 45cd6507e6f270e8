"""Masks and images for segmentation networks: what they learn from, and what they predict."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol import data
from wsol.data.catalog import TruthReader, list_images, make_dataset
from wsol.data.images import read_image
from wsol.data.transforms import augment_pair
from wsol.errors import DataError
from wsol.models.segmenter import Segmenter
from wsol.schema import IGNORE, DatasetSpec, Sample

_STDIN = "-"
_UNKNOWN = IGNORE - 1  # ignored pixels of the image itself, while 255 marks the padding


def check_classes(segmenter: Segmenter, dataset: data.Dataset) -> None:
    """Refuse a network of other classes.

    Raises:
        DataError: When the class names differ.
    """
    if segmenter.facts.classes != dataset.spec.classes:
        raise DataError(
            f"the network knows {len(segmenter.facts.classes)} classes that are not the {len(dataset.spec.classes)}"
            f" of data set '{dataset.spec.name}'",
            hint="predict on the data set it was trained on",
        )


def image_files(words: Iterable[str], *, classes: tuple[str, ...]) -> data.Dataset:
    """List images without a data set.

    Args:
        words: Files, folders (with all below them), or "-" for a list of files on standard input, one a line.
        classes: Class names, for the record.

    Returns:
        Samples whose ids are the paths below the folder that holds them all.

    Raises:
        DataError: When there is no image, or no such folder.
    """
    paths: list[Path] = []
    for word in words:
        if word == _STDIN:
            paths += [Path(line.strip()) for line in sys.stdin if line.strip()]
        elif Path(word).expanduser().is_dir():
            paths += list_images(Path(word).expanduser())
        else:
            paths.append(Path(word).expanduser())
    unique = [Path(path) for path in dict.fromkeys(os.path.abspath(path) for path in paths)]  # noqa: PTH100 (keep links)
    if not unique:
        raise DataError("no images", where="--images", hint="give files, folders, or - for a list on standard input")
    root = Path(os.path.commonpath([path.parent for path in unique]))
    samples = [Sample(id=path.relative_to(root).as_posix(), image=path, upright=True) for path in unique]
    return make_dataset(DatasetSpec(name="folder", classes=classes, root=root, split="all"), samples)


@dataclass(frozen=True)
class SegmenterViews:
    """Reads an image and its mask for a segmentation network; see `loaders.Views`.

    Attributes:
        truth: Reads the mask of a sample: not the data set, which goes into every reading process with all its samples.
        classes: Number of classes.
        img_size: Side of the view in pixels.
        zoom: Range of the random zoom.
        hflip: Probability of a mirror image.
        color_jitter: Strength of random brightness, contrast and saturation.
        photometric: Also distort the colours, see `wsol.data.transforms.distort_colours`.
        cat_max_ratio: Share of the labelled pixels that one class may have at most in a crop, where ten draws suffice.
        whole: Whether pixels without a label are of use: then a mask of 255 only is none to leave out.
    """

    truth: TruthReader
    classes: int
    img_size: int
    zoom: tuple[float, float]
    hflip: float
    color_jitter: float
    photometric: bool = False
    cat_max_ratio: float = 1.0
    whole: bool = False

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return uint8 (img_size, img_size, 3), and uint8 (2, img_size, img_size): labels, and 1 inside the image."""
        image, mask = read_image(sample.image, upright=sample.upright), self.truth(sample)
        if image.shape[:2] != mask.shape:
            raise DataError(f"the mask is {mask.shape} but the image is {image.shape[:2]}", where=sample.id)
        known = mask != IGNORE
        highest = int(mask[known].max(initial=0))
        if highest > self.classes:
            raise DataError(f"the mask holds label {highest} but there are {self.classes} classes", where=sample.id)
        if not (self.whole or known.any()):
            raise DataError("every pixel of the mask is ignored (255)", where=sample.id)
        size = (self.img_size, self.img_size)
        marked = np.where(known, mask, np.uint8(_UNKNOWN)) if self.classes < _UNKNOWN else mask
        view, labels = augment_pair(
            image,
            marked,
            size,
            rng,
            scale=self.zoom,
            flip=self.hflip,
            jitter=self.color_jitter,
            photometric=self.photometric,
            will_do=self._varied if self.cat_max_ratio < 1 else None,
        )
        inside = labels != IGNORE
        if self.classes < _UNKNOWN:
            labels[labels == _UNKNOWN] = IGNORE
        return view, np.stack([labels, inside.astype(np.uint8)])

    def _varied(self, labels: NDArray[np.uint8]) -> bool:
        counts = np.bincount(labels.ravel(), minlength=256)[: self.classes + 1]
        return bool(np.count_nonzero(counts) > 1 and counts.max() < self.cat_max_ratio * counts.sum())
