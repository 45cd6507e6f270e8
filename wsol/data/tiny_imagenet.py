"""Tiny ImageNet: 200 classes of ImageNet at 64 x 64 pixels, a box for each training and validation image.

Le and Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS231n, 2015.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wsol.data import DATASETS
from wsol.data.catalog import Dataset, Layout, Part, choose_split, make_dataset, read_lines
from wsol.data.imagenet import class_names
from wsol.errors import DataError
from wsol.ops.boxes import from_inclusive
from wsol.schema import DatasetSpec, Sample

_ZIP = "tiny-imagenet-200.zip (240 MB) from http://cs231n.stanford.edu/tiny-imagenet-200.zip"

LAYOUT = Layout(
    "tiny_imagenet",
    folders=("tiny-imagenet-200",),
    markers=("wnids.txt",),
    parts=(
        Part("wnids.txt", "the 200 WordNet ids", _ZIP),
        Part("train/n*/images/*.JPEG", "training photos", _ZIP),
        Part("train/n*/n*_boxes.txt", "training boxes", _ZIP),
        Part("val/images/*.JPEG", "validation photos", _ZIP),
        Part("val/val_annotations.txt", "validation classes and boxes", _ZIP),
    ),
)


@DATASETS.register("tiny_imagenet")
def load(*, root: Path | None, split: str | None) -> Dataset:
    """List a split of Tiny ImageNet; class ids follow the ascending WordNet ids.

    Args:
        root: tiny-imagenet-200 or its parent.
        split: "train" or "val".

    Raises:
        DataError: When a list is missing or malformed.
    """
    folder = LAYOUT.find(root)
    split = choose_split(split, ("train", "val"), where=folder)
    wnids = sorted(read_lines(folder / "wnids.txt"))
    samples = list(_train(folder, wnids) if split == "train" else _val(folder, wnids))
    spec = DatasetSpec(
        name="tiny_imagenet",
        classes=class_names(wnids),
        root=folder,
        split=split,
        splits=("train", "val"),
        annotations="box",
        multi_label=False,
    )
    return make_dataset(spec, samples)


def _train(folder: Path, wnids: list[str]) -> Iterable[Sample]:
    for label, wnid in enumerate(wnids):
        path = folder / "train" / wnid / f"{wnid}_boxes.txt"
        for name, *corners in (line.split() for line in read_lines(path)):
            image = folder / "train" / wnid / "images" / name
            yield _sample(f"train/{wnid}/{Path(name).stem}", image, label, corners, path)


def _val(folder: Path, wnids: list[str]) -> Iterable[Sample]:
    index = {wnid: label for label, wnid in enumerate(wnids)}
    path = folder / "val" / "val_annotations.txt"
    for name, *rest in (line.split() for line in read_lines(path)):
        wnid, corners = next(iter(rest), ""), rest[1:]
        if wnid not in index:
            raise DataError(f"'{wnid}' is not in wnids.txt", where=path)
        yield _sample(f"val/{Path(name).stem}", folder / "val" / "images" / name, index[wnid], corners, path)


def _sample(image_id: str, image: Path, label: int, corners: list[str], path: Path) -> Sample:
    try:
        box = np.array([[float(value) for value in corners]], dtype=np.float32).reshape(1, 4)
    except ValueError as error:
        raise DataError(f"expected four box ends for {image.name}, got {corners}", where=path) from error
    # The ends run from 0 to 63: the last pixel belongs to the box.
    return Sample(
        id=image_id, image=image, labels=(label,), size=(64, 64), boxes=from_inclusive(box), box_labels=(label,)
    )
