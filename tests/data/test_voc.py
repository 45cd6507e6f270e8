"""VOC: labels and boxes from XML, the augmented list, and files that are not what they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol.data import load
from wsol.data.annotation import read_annotation
from wsol.errors import DataError
from wsol.store.masks import encode_mask

OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
    "<ymax>{}</ymax></bndbox></object>"
)


def _xml(*objects: tuple) -> str:
    size = "<size><width>51</width><height>33</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(OBJECT.format(*item) for item in objects)}</annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for name, objects in {
        "a": [("dog", 0, 1, 2, 51, 33), ("cat", 1, "10.5", 3, 20, 30), ("dog", 0, 5, 5, 9, 9)],
        "b": [],
    }.items():
        Image.new("RGB", (51, 33)).save(folder / "JPEGImages" / f"{name}.jpg")
        (folder / "Annotations" / f"{name}.xml").write_text(_xml(*objects))
        truth = np.full((33, 51), 15, np.uint8)
        (folder / "SegmentationClass" / f"{name}.png").write_bytes(encode_mask(truth))
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n\nb\n")
    return folder


def test_labels_and_boxes_come_from_xml(root: Path) -> None:
    dataset = load("voc", root=root, split="train")
    first, second = dataset
    assert first.labels == (7, 11)  # cat and dog, the difficult one included; the mask says person
    assert first.box_labels == (11, 7, 11)
    np.testing.assert_array_equal(first.boxes, np.array([[0, 1, 51, 33], [9.5, 2, 20, 30], [4, 4, 9, 9]], np.float32))
    assert first.size == (33, 51)
    assert second.labels == ()
    assert second.boxes.shape == (0, 4)
    assert (dataset.read_truth(first) == 15).all()
    assert dataset.spec.annotations == "both"


@pytest.mark.parametrize("up", [0, 1, 2])
def test_root_may_be_a_parent(root: Path, up: int) -> None:
    given = [root, *root.parents][up]
    assert load("voc", root=given).spec.root == root


def test_train_aug(root: Path) -> None:
    with pytest.raises(DataError, match="SBD"):
        load("voc", root=root, split="train_aug")
    (root / "ImageSets" / "Segmentation" / "train_aug.txt").write_text("b\na\n")
    (root / "SegmentationClassAug").mkdir()
    dataset = load("voc", root=root, split="train_aug")
    assert [sample.id for sample in dataset] == ["b", "a"]
    assert dataset.samples[0].mask == root / "SegmentationClassAug" / "b.png"
    assert load("voc", root=root, split="train").samples[0].mask == root / "SegmentationClass" / "a.png"


def test_the_test_split_has_photos_only(root: Path) -> None:
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("c\nb\n")
    hidden, known = load("voc", root=root, split="test")
    assert (hidden.id, hidden.image, hidden.labels) == ("c", root / "JPEGImages" / "c.jpg", ())
    assert hidden.boxes is hidden.mask is hidden.size is None
    assert known.size == (33, 51)
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("c\n")
    assert load("voc", root=root, split="test").spec.annotations == "none"


def test_missing_pieces(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        load("voc", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match="no voc data set here"):
        load("voc", root=root / "JPEGImages")
    (root / "Annotations" / "b.xml").unlink()
    with pytest.raises(DataError, match="cannot read the annotation"):
        load("voc", root=root)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\na\n")
    with pytest.raises(DataError, match="listed twice"):
        load("voc", root=root)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n")
    with pytest.raises(DataError, match="no images"):
        load("voc", root=root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_xml(("dgo", 0, 1, 1, 5, 5)), "did you mean 'dog'"),
        (_xml(("dog", 0, 9, 1, 5, 5)), "inside out"),
        (_xml(("dog", 0, "", 1, 5, 5)), "not an annotation"),
        ("<annotation><object>", "not an annotation"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
    ],
)
def test_bad_xml(root: Path, text: str, message: str) -> None:
    (root / "Annotations" / "a.xml").write_text(text)
    with pytest.raises(DataError, match=message):
        load("voc", root=root)


def test_entities_in_utf16_are_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_bytes('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>'.encode("utf-16"))
    with pytest.raises(DataError, match="document type"):
        read_annotation(path)
