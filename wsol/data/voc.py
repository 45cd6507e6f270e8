"""PASCAL VOC 2012 segmentation: the VOCdevkit, with the augmented training list of SBD.

Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2015, http://host.robots.ox.ac.uk/pascal/VOC/;
Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011 (SBD).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsol.data import DATASETS
from wsol.data.annotation import read_annotation
from wsol.data.catalog import Dataset, Layout, Part, annotation_kind, choose_split, make_dataset, read_lines
from wsol.errors import DataError, did_you_mean
from wsol.schema import DatasetSpec, Sample

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
AUG = "train_aug"
_LISTS = "ImageSets/Segmentation"
_TRAINVAL = "VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (2 GB)"
_HOW_AUG = (
    "build it from SBD (benchmark.tgz of the Semantic Boundaries Dataset): turn each dataset/cls/ID.mat into an index"
    " PNG SegmentationClassAug/ID.png (VOC's own masks where both exist), and list the ids of SBD's train and val plus"
    " VOC's train, without those of VOC's val, in ImageSets/Segmentation/train_aug.txt: 10582 lines"
)

LAYOUT = Layout(
    "voc",
    folders=("VOC2012", "VOCdevkit/VOC2012"),
    markers=(_LISTS,),
    parts=(
        Part("JPEGImages/*.jpg", "photos", _TRAINVAL),
        Part("Annotations/*.xml", "objects and boxes: the image labels come from here", _TRAINVAL),
        Part("ImageSets/Segmentation/train.txt", "list of split 'train' (1464 images)", _TRAINVAL),
        Part("ImageSets/Segmentation/val.txt", "list of split 'val' (1449 images)", _TRAINVAL),
        Part("SegmentationClass/*.png", "masks, for evaluation only", _TRAINVAL),
        Part("ImageSets/Segmentation/train_aug.txt", "list of split 'train_aug'", _HOW_AUG, needed=False),
        Part("SegmentationClassAug/*.png", "masks of 'train_aug'", "built together with that list", needed=False),
    ),
)


@DATASETS.register("voc")
def load(*, root: Path | None, split: str | None) -> Dataset:
    """List a split of VOC 2012; image labels come from the XML files, never from the masks.

    Args:
        root: VOCdevkit/VOC2012 or a parent of it.
        split: "train", "val", "trainval", "train_aug", or "test", whose photos have no annotations.

    Raises:
        DataError: When a list or an annotation is missing.
    """
    folder = LAYOUT.find(root)
    if split == AUG and not (folder / _LISTS / f"{AUG}.txt").is_file():
        raise DataError(f"no split '{AUG}'", where=folder / _LISTS, hint=_HOW_AUG)
    return read_devkit("voc", folder, split, classes=CLASSES)


def read_devkit(name: str, folder: Path, split: str | None, *, classes: Sequence[str]) -> Dataset:
    """List a split of any data set that is laid out like VOC.

    Args:
        name: Name for the spec.
        folder: Folder with ImageSets, JPEGImages, Annotations and, perhaps, SegmentationClass.
        split: Stem of a file in ImageSets/Segmentation.
        classes: Class names in order.

    Raises:
        DataError: When a list or an annotation is missing or names an unknown class.
    """
    splits = tuple(sorted(path.stem for path in (folder / _LISTS).glob("*.txt")))
    split = choose_split(split, splits, where=folder / _LISTS)
    ids = [line.split()[0] for line in read_lines(folder / _LISTS / f"{split}.txt")]
    augmented = split == AUG and (folder / "SegmentationClassAug").is_dir()
    masks = folder / ("SegmentationClassAug" if augmented else "SegmentationClass")
    index = {word: position for position, word in enumerate(classes)}
    found = masks if masks.is_dir() else None
    samples = [_sample(folder, image_id, found, index, hidden=split == "test") for image_id in ids]
    spec = DatasetSpec(
        name=name,
        classes=tuple(classes),
        root=folder,
        split=split,
        splits=splits,
        annotations=annotation_kind(samples),
    )
    return make_dataset(spec, samples)


def _sample(folder: Path, image_id: str, masks: Path | None, index: dict[str, int], *, hidden: bool) -> Sample:
    path, image = folder / "Annotations" / f"{image_id}.xml", folder / "JPEGImages" / f"{image_id}.jpg"
    if hidden and not path.is_file():
        return Sample(id=image_id, image=image)  # only the test server knows
    found = read_annotation(path)
    for name in found.names:
        if name not in index:
            raise DataError(f"unknown class '{name}'", where=path, hint=did_you_mean(name, index))
    corners = np.asarray(found.corners, dtype=np.float32).reshape(-1, 4)
    box_labels = tuple(index[name] for name in found.names)
    return Sample(
        id=image_id,
        image=image,
        labels=tuple(sorted(set(box_labels))),
        size=found.size,
        # VOC counts pixels from 1 and its box ends are inclusive: [xmin - 1, xmax) counting from 0.
        boxes=corners - np.array([1, 1, 0, 0], dtype=np.float32),
        box_labels=box_labels,
        mask=masks / f"{image_id}.png" if masks else None,
    )
