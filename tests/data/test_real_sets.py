"""Real photos in their authors' layouts: counts, and geometry against the pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsol.data import load
from wsol.data.check import check
from wsol.data.images import image_size, read_image

pytestmark = pytest.mark.realdata


@pytest.mark.parametrize(
    ("name", "counts", "classes", "annotations"),
    [
        ("voc", {"train": 195, "val": 204, "trainval": 399}, 20, "both"),
        ("coco", {"train2014": 40, "val2014": 20}, 80, "both"),
        ("ilsvrc", {"val": 313}, 1000, "box"),
        ("ilsvrc", {"train": 1000}, 1000, "none"),
        ("cub", {"train": 98, "test": 102}, 200, "box"),
        ("tiny_imagenet", {"train": 4000, "val": 2000}, 200, "box"),
        ("glas", {"testA": 1, "test": 1}, 1, "mask"),
    ],
)
def test_counts(real_data: Path, name: str, counts: dict[str, int], classes: int, annotations: str) -> None:
    for split, count in counts.items():
        dataset = load(name, root=real_data, split=split)
        assert len(dataset) == count
        assert len(dataset.spec.classes) == classes
        assert dataset.spec.annotations == annotations
        assert dataset.missing == 0
        assert all(sample.labels for sample in dataset)
        assert all(sample.image.is_file() for sample in dataset)


@pytest.mark.parametrize("name", ["voc", "coco", "ilsvrc", "cub", "tiny_imagenet"])
def test_boxes_lie_in_the_image(real_data: Path, name: str) -> None:
    dataset = load(name, root=real_data, split={"ilsvrc": "val"}.get(name), limit=400)
    touching = 0
    for sample in dataset:
        height, width = image_size(sample.image)
        assert sample.size in (None, (height, width))
        assert len(sample.boxes) == len(sample.box_labels)
        if not len(sample.boxes):
            continue
        assert sample.boxes.min() >= 0
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert (sample.boxes[:, 2:] <= (width, height)).all()
        touching += int((sample.boxes[:, 2:] == (width, height)).sum())
    assert touching  # a box that is cut by the border ends exactly there: the ends are half-open


def test_voc_boxes_enclose_the_masks(real_data: Path) -> None:
    dataset = load("voc", root=real_data, split="train")
    gaps = []
    for sample in dataset:
        truth = dataset.read_truth(sample)
        assert truth.shape == sample.size
        for label in sample.labels:
            rows, columns = np.nonzero(truth == label + 1)
            if sample.box_labels.count(label) != 1 or not len(rows):
                continue
            tight = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            gaps.append(tight - sample.boxes[sample.box_labels.index(label)])
    assert len(gaps) > 100
    # A void border of a few pixels lies between object and box, the same on each side.
    left, top, right, bottom = np.median(gaps, axis=0)
    assert 0 <= left <= 3
    assert 0 <= top <= 3
    assert -3 <= right <= 0
    assert -3 <= bottom <= 0


def test_voc_labels_equal_the_classes_of_the_masks(real_data: Path) -> None:
    dataset = load("voc", root=real_data, split="trainval")
    drawn = [tuple(int(v) - 1 for v in np.unique(dataset.read_truth(s)) if v not in (0, 255)) for s in dataset]
    assert [sample.labels for sample in dataset] == drawn  # two independent annotations of the same photos


def test_ilsvrc_classes_are_imagenet_indices(real_data: Path) -> None:
    val, train = (load("ilsvrc", root=real_data, split=split) for split in ("val", "train"))
    expected = {0, 217, 482, 491, 497, 566, 569, 571, 574, 701}
    assert {sample.labels[0] for sample in val} == expected
    assert {sample.labels[0] for sample in train} == expected
    assert val.spec.classes[701] == "parachute"


def test_glas_truth(real_data: Path) -> None:
    dataset = load("glas", root=real_data, split="testA")
    (sample,) = dataset
    truth = dataset.read_truth(sample)
    assert truth.shape == read_image(sample.image).shape[:2] == (522, 775)
    np.testing.assert_array_equal(np.unique(truth), [0, 1])


@pytest.mark.parametrize("name", ["voc", "coco", "ilsvrc", "cub", "glas"])
def test_check_finds_nothing_missing(real_data: Path, name: str) -> None:
    assert not [finding for finding in check(name, real_data) if finding.level == "missing"]
