"""supervision's own objects and readers against our masks, boxes and exports."""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import wsol.engine.interop
from wsol import data
from wsol.engine.export_masks import export_masks
from wsol.engine.export_options import ExportConfig
from wsol.engine.interop import to_supervision
from wsol.engine.refine_options import RefineConfig
from wsol.errors import DataError, ModelError, StoreError
from wsol.schema import Boxes, PseudoMask
from wsol.store.instances import Instance, write_instances
from wsol.store.manifest import Manifest
from wsol.store.masks import write_mask
from wsol.store.runs import open_run

sv = pytest.importorskip("supervision")


def labels_of(at):
    """Two discs of class 0, a bar of class 1, some ignored pixels."""
    labels = np.zeros((61 + at, 83), np.uint8)
    cv2.circle(labels, (20, 20), 9, 1, -1)
    cv2.circle(labels, (20, 50), 5, 1, -1)
    labels[10:40, 60:70], labels[0, 10:15] = 2, 255
    return labels


@pytest.fixture
def run(tmp_path):
    """A run as `wsol refine` leaves it."""
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for at in range(2):
            Image.new("RGB", (83, 61 + at)).save(root / name / f"{name}{at}.jpg")
    dataset = data.load("folder", root=root)
    folder = tmp_path / "run"
    config = RefineConfig(maps=root, out=folder)
    with open_run(folder, verb="refine", config=config, dataset=dataset.spec), Manifest(folder) as manifest:
        for sample in dataset.samples[:3]:
            write_mask(folder, PseudoMask(sample.id, labels_of(int(sample.image.stem[-1]))))
            manifest.done(sample.id)
    return folder


def test_a_class_without_a_name_is_a_data_error():
    with pytest.raises(DataError, match="class id 4 has no name among 2"):
        to_supervision(PseudoMask("x", np.full((3, 5), 5, np.uint8)), classes=("cat", "dog"))


def test_a_mask_becomes_detections():
    labels = labels_of(0)
    confidence = np.where(labels == 1, 0.75, 0.5).astype(np.float16)
    found = to_supervision(PseudoMask("x", labels, confidence), classes=("cat", "dog"))
    assert isinstance(found, sv.Detections)
    assert found.class_id.tolist() == [0, 1]
    assert found.data["class_name"].tolist() == ["cat", "dog"]
    np.testing.assert_array_equal(found.mask, [labels == 1, labels == 2])
    np.testing.assert_array_equal(found.xyxy[1], [60, 10, 70, 40])
    np.testing.assert_allclose(found.confidence, [0.75, 0.5])
    # Their own boxes of a mask end with the last pixel inside.
    np.testing.assert_array_equal(sv.mask_to_xyxy(found.mask), found.xyxy - [0, 0, 1, 1])
    np.testing.assert_array_equal(found.area, [(labels == 1).sum(), (labels == 2).sum()])
    parts = to_supervision(PseudoMask("x", labels), objects="component")
    assert parts.class_id.tolist() == [0, 0, 1]
    assert parts.confidence is None
    assert "class_name" not in parts.data
    assert len(to_supervision(PseudoMask("x", np.zeros((5, 7), np.uint8)))) == 0


def test_boxes_become_detections():
    boxes = Boxes(np.array([[1, 2, 30, 40], [0, 0, 5, 6]]), np.array([1, 0]), np.array([0.9, 0.25]))
    found = to_supervision(boxes, classes=("cat", "dog"))
    np.testing.assert_array_equal(found.xyxy, boxes.xyxy)
    np.testing.assert_array_equal(found.confidence, boxes.scores)
    assert found.mask is None
    assert found.data["class_name"].tolist() == ["dog", "cat"]
    assert found[found.confidence > 0.5].class_id.tolist() == [1]


@pytest.mark.parametrize("label", [2, -1])
def test_a_class_without_a_name_is_refused(label):
    boxes = Boxes(np.array([[1, 2, 30, 40]]), np.array([label]), np.array([0.9]))
    with pytest.raises(DataError, match=f"class id {label} has no name among 2"):
        to_supervision(boxes, classes=("cat", "dog"))


def test_a_run_is_an_iterator_of_images(run):
    found = dict(to_supervision(str(run)))
    assert [path.name for path in found] == ["cat0.jpg", "cat1.jpg", "dog0.jpg"]
    for path, detections in found.items():
        np.testing.assert_array_equal(detections.mask[0], labels_of(int(path.stem[-1])) == 1)
        assert detections.data["class_name"].tolist() == ["cat", "dog"]
    masks = [labels_of(0) == 1, labels_of(0) == 2]
    write_instances(run, "cat/cat0.jpg", (61, 83), [Instance(1, 0.5, masks[0]), Instance(1, 0.25, masks[1])])
    ((path, detections),) = to_supervision(run)
    assert detections.class_id.tolist() == [1, 1]
    assert detections.confidence.tolist() == [0.5, 0.25]
    np.testing.assert_array_equal(detections.mask, masks)


def test_mistakes(run, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("dataset.yaml", "config.yaml"):
        (tmp_path / "empty" / name).write_bytes((run / name).read_bytes())
    with pytest.raises(StoreError, match="no image has a mask here"):
        next(to_supervision(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModelError, match="pip install"):
        wsol.engine.interop.to_supervision(PseudoMask("x", labels_of(0)))


def exported(run, tmp_path, **options):
    out = tmp_path / "out"
    export_masks(ExportConfig(masks=str(run), out=out, images="copy", objects="component", quiet=True, **options))
    return out


def drawn(dataset):
    """Image name to the mask that supervision read."""
    found = {}
    for path, _, detections in dataset:
        labels = np.zeros(Image.open(path).size[::-1], np.uint8)
        for mask, label in zip(detections.mask, detections.class_id, strict=True):
            labels[mask] = label + 1
        found[path.replace("\\", "/").rpartition("/")[2]] = labels
    return found


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_supervision_reads_our_masks(run, tmp_path, form):
    if form == "coco":
        out = exported(run, tmp_path, format="coco", options={"shape": "mask"})
        found = sv.DetectionDataset.from_coco(str(out / "images"), str(out / "annotations.json"), force_masks=True)
        assert found.classes == ["cat", "dog"]
        masks = drawn(found)
    else:
        # Their reader lists one flat folder.
        out = exported(run, tmp_path, format="yolo")
        for sub in ("images", "labels"):
            for path in list((out / sub).rglob("*.*")):
                path.rename(out / sub / path.name)
        found = sv.DetectionDataset.from_yolo(
            str(out / "images"), str(out / "labels"), str(out / "data.yaml"), force_masks=True
        )
        masks = {key: value for key, value in drawn(found).items() if value.any()}
    assert set(masks) == {"cat0.jpg", "cat1.jpg", "dog0.jpg"}
    for name, mask in masks.items():
        labels = labels_of(int(name[3]))
        np.testing.assert_array_equal(mask, np.where(labels == 255, 0, labels))


def test_supervision_reads_our_boxes(run, tmp_path):
    out = exported(run, tmp_path, format="voc")
    for path in list((out / "JPEGImages").rglob("*.jpg")):
        path.rename(out / "JPEGImages" / path.name)
    for path in list((out / "Annotations").rglob("*.xml")):
        path.rename(out / "Annotations" / path.name)
    found = sv.DetectionDataset.from_pascal_voc(str(out / "JPEGImages"), str(out / "Annotations"))
    boxes = {path.rpartition("/")[2]: (detections.class_id.tolist(), detections.xyxy) for path, _, detections in found}
    class_ids, xyxy = boxes["cat0.jpg"]
    assert [found.classes[label] for label in class_ids] == ["cat", "cat", "dog"]
    expected = to_supervision(PseudoMask("x", labels_of(0)), objects="component").xyxy
    np.testing.assert_array_equal(xyxy, expected)


def test_fiftyone_files(run, tmp_path):
    """As the importers of FiftyOne describe them: shares of the image, and values with names."""
    out = exported(run, tmp_path, format="fiftyone")
    found = json.loads((out / "labels.json").read_text())
    assert found["classes"] == ["cat", "dog"]
    assert set(found["labels"]) == {"cat/cat0", "cat/cat1", "dog/dog0"}
    assert json.loads((out / "mask_targets.json").read_text()) == {"1": "cat", "2": "dog"}
    for key, items in found["labels"].items():
        image = Image.open(out / "data" / f"{key}.jpg")
        mask = np.asarray(Image.open(out / "masks" / f"{key}.png"))
        labels = labels_of(int(key[-1]))
        np.testing.assert_array_equal(mask, np.where(labels == 255, 0, labels))
        x, y, w, h = np.array(items[2]["bounding_box"]) * [*image.size, *image.size]
        assert found["classes"][items[2]["label"]] == "dog"
        np.testing.assert_allclose([x, y, x + w, y + h], [60, 10, 70, 40])
    boxes = tmp_path / "boxes"
    options = {"masks": False}
    export_masks(ExportConfig(masks=str(run), out=boxes, format="fiftyone", options=options, quiet=True))
    assert sorted(path.name for path in boxes.iterdir()) == ["labels.json"]
