"""CUB-200-2011: 200 bird species, one box an image, and segmentations as a separate download.

Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011, https://www.vision.caltech.edu/datasets/cub_200_2011/.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol.data import DATASETS, benchmark
from wsol.data.catalog import (
    Dataset,
    Layout,
    Part,
    annotation_kind,
    choose_split,
    list_images,
    make_dataset,
    read_lines,
)
from wsol.data.images import read_image
from wsol.errors import DataError
from wsol.ops.boxes import from_xywh
from wsol.schema import DatasetSpec, Sample

_TGZ = "CUB_200_2011.tgz (1.1 GB) from https://data.caltech.edu/records/65de6-vp158"
_MASKS = "segmentations.tgz (39 MB) from https://data.caltech.edu/records/w9d68-gec53, unpacked beside or into the root"

LAYOUT = Layout(
    "cub",
    folders=("CUB_200_2011", "CUB_200_2011/CUB_200_2011"),
    markers=("image_class_labels.txt",),
    parts=(
        Part("images/*/*.jpg", "photos", _TGZ),
        Part("images.txt", "list of images", _TGZ),
        Part("classes.txt", "list of classes", _TGZ),
        Part("image_class_labels.txt", "class of each image", _TGZ),
        Part("train_test_split.txt", "official split (5994 train, 5794 test)", _TGZ),
        Part("bounding_boxes.txt", "box of each image", _TGZ),
        Part("segmentations/*/*.png", "masks, needed for PxAP and mIoU only", _MASKS, needed=False),
        Part("metadata/val/image_ids.txt", "CUBV2, the benchmark's validation images",
             "metadata/CUB of https://github.com/clovaai/wsolevaluation and its CUBV2 photos", needed=False),
    ),
)  # fmt: skip


def read_votes(sample: Sample) -> NDArray[np.uint8]:
    """Read a segmentation: its grey levels are the share of annotators who marked a pixel; half of them decide.

    Returns:
        uint8 (H, W): class id + 1 on the bird, 0 elsewhere.

    Raises:
        DataError: When the image has no segmentation.
    """
    if sample.mask is None:
        raise DataError("no ground-truth mask", where=sample.id, hint=_MASKS)
    return np.where(read_image(sample.mask)[..., 0] >= 128, sample.labels[0] + 1, 0).astype(np.uint8)


@DATASETS.register("cub")
def load(*, root: Path | None, split: str | None, metadata: Path | None = None) -> Dataset:
    """List a split of CUB; images that are not on disk are left out and counted.

    The boxes are `bounding_boxes.txt` as x, y, width, height. The WSOL benchmark reads the same numbers with an
    inclusive end, one pixel more; give its text files as `metadata` to have exactly its boxes, and CUBV2 as "val".

    Args:
        root: CUB_200_2011 or its parent.
        split: "train" or "test"; with `metadata` one of its splits.
        metadata: metadata/CUB of the WSOL benchmark.

    Raises:
        DataError: When a list is missing or malformed.
    """
    folder = LAYOUT.find(root)
    classes = tuple(_class_name(name) for (name,) in _table(folder / "classes.txt", 1).values())
    lists = benchmark.find_splits(metadata) if metadata else {}
    if metadata and not lists:
        raise DataError(f"no {benchmark.IDS} here", where=metadata, hint="give metadata/CUB of the WSOL benchmark")
    splits = tuple(lists) if metadata else ("train", "test")
    split = choose_split(split, splits, where=folder)
    samples = (
        benchmark.read_samples(lists[split], images=folder / "images", masks=folder)
        if lists
        else _read(folder, split, len(classes))
    )
    present = {path.relative_to(folder / "images").as_posix() for path in list_images(folder / "images")}
    masks = _find_masks(folder)
    found = [
        replace(sample, mask=masks.get(sample.id.rpartition(".")[0])) for sample in samples if sample.id in present
    ]
    spec = DatasetSpec(
        name="cub",
        classes=classes,
        root=folder,
        split=split,
        splits=splits,
        annotations=annotation_kind(found),
        prompts=tuple(f"{name}, a bird" for name in classes),
        multi_label=False,
    )
    return make_dataset(spec, found, truth=read_votes, missing=len(samples) - len(found))


def _class_name(folder_name: str) -> str:
    return folder_name.partition(".")[2].replace("_", " ")


def _read(folder: Path, split: str, classes: int) -> list[Sample]:
    names = _table(folder / "images.txt", 1)
    labels = _table(folder / "image_class_labels.txt", 1)
    training = _table(folder / "train_test_split.txt", 1)
    boxes = _table(folder / "bounding_boxes.txt", 4)
    samples = []
    try:
        for key, (name,) in names.items():
            if (training[key][0] == "1") != (split == "train"):
                continue
            label = int(labels[key][0]) - 1
            if not 0 <= label < classes:
                raise ValueError(f"class {label + 1} of {classes}")
            samples.append(
                Sample(
                    id=name,
                    image=folder / "images" / name,
                    labels=(label,),
                    boxes=from_xywh(np.array([[float(value) for value in boxes[key]]], dtype=np.float32)),
                    box_labels=(label,),
                )
            )
    except (KeyError, ValueError) as error:
        raise DataError(f"the lists of CUB do not fit together: {error!r}", where=folder) from error
    return samples


def _find_masks(folder: Path) -> dict[str, Path]:
    """Return the segmentation of each image by the image's path without suffix."""
    for place in (folder / "segmentations", folder.parent / "segmentations"):
        if place.is_dir():
            paths = place.glob("*/*.png")
            return {path.relative_to(place).with_suffix("").as_posix(): path for path in paths}
    return {}


def _table(path: Path, width: int) -> dict[str, list[str]]:
    rows = [line.split() for line in read_lines(path)]
    for row in rows:
        if len(row) != width + 1:
            raise DataError(f"expected an id and {width} values, got '{' '.join(row)}'", where=path)
    return {key: values for key, *values in rows}
