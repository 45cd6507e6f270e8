"""COCO: contiguous classes, boxes, and masks against pycocotools."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from wsol.data import load
from wsol.data.coco import CocoTruth, read_instances, render_mask
from wsol.errors import DataError
from wsol.ops.rle import encode

H, W = 33, 47


def _square(x: int, y: int, side: int) -> list[list[float]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def _annotation(key: int, category: int, segmentation: object, area: float, crowd: int = 0) -> dict:
    box = [1.5, 2.0, 10.0, 4.0]
    return {"id": key, "image_id": 9, "category_id": category, "segmentation": segmentation, "area": area,
            "bbox": box, "iscrowd": crowd}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    crowd = np.zeros((H, W), bool)
    crowd[:, 20:] = True
    runs = {"size": [H, W], "counts": [0, H * 4, H * (W - 4)]}  # the first four columns
    annotations = [
        _annotation(1, 90, _square(22, 2, 5), 25),
        _annotation(2, 3, _square(5, 1, 25), 625),
        _annotation(3, 3, encode(crowd), 891, crowd=1),
        _annotation(4, 90, runs, 99),
        _annotation(5, 90, [[1, 1, 2, 2]], 1),
    ]
    raw = {
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}],
        "images": [
            {"id": 9, "file_name": "000000000009.jpg", "height": H, "width": W},
            {"id": 4, "file_name": "000000000004.jpg", "height": H, "width": W},
        ],
        "annotations": annotations,
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(raw))
    return tmp_path


def test_samples(root: Path) -> None:
    assert [sample.id for sample in load("coco", root=root, split="val", cache=root / "cache")] == ["000000000009"]
    dataset = load("coco", root=root, split="val", cache=root / "cache", empty=True)
    assert dataset.spec.split == "val2017"
    assert dataset.spec.classes == ("car", "cat", "toothbrush")
    first, second = dataset
    assert first.id == "000000000009"
    assert first.image == root / "val2017" / "000000000009.jpg"
    assert first.labels == (0, 2)
    assert first.box_labels == (2, 0, 2, 2)
    np.testing.assert_array_equal(first.boxes[0], np.array([1.5, 2, 11.5, 6], np.float32))
    assert second.labels == ()
    assert second.boxes.shape == (0, 4)
    assert not dataset.read_truth(second).any()


def test_mask_rule(root: Path) -> None:
    dataset = load("coco", root=root, cache=root / "cache")
    truth = dataset.read_truth(dataset.samples[0])
    assert truth.shape == (H, W)
    assert truth[4, 24] == 3  # the small object lies on the large one
    assert truth[4, 10] == 1
    assert truth[4, 29] == 1  # an object wins over the crowd
    assert truth[4, 40] == 255
    assert truth[30, 1] == 3  # uncompressed run lengths
    assert truth[30, 10] == 0


def test_cache_is_used_repaired_and_optional(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load("coco", root=root, cache=root / "cache")
    sample = dataset.samples[0]
    expected = dataset.read_truth(sample)
    (cached,) = (root / "cache").rglob("*.png")
    cached.write_bytes(cached.read_bytes()[:60])  # torn
    np.testing.assert_array_equal(dataset.read_truth(sample), expected)
    # A hit parses nothing.
    truth = CocoTruth(root / "absent.json", cached.parent)
    np.testing.assert_array_equal(truth(sample), expected)
    # No place to write: the mask is still read.
    blocked = root / "file"
    blocked.write_text("")
    np.testing.assert_array_equal(load("coco", root=root, cache=blocked).read_truth(sample), expected)


def test_json_is_parsed_once_and_again_after_a_change(root: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    first = read_instances(path)
    assert read_instances(path) is first
    path.write_text(path.read_text().replace("toothbrush", "comb"))
    os.utime(path, ns=(1, 1))
    assert list(read_instances(path).names.values()) == ["car", "cat", "comb"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": [{}], "annotations": [], "categories": []}'])
def test_malformed_json(root: Path, text: str) -> None:
    (root / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(DataError, match="not an instances JSON"):
        load("coco", root=root)


def test_unknown_category(root: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace('"category_id": 90', '"category_id": 5'))
    with pytest.raises(DataError, match="not an instances JSON"):
        load("coco", root=root)


@pytest.mark.parametrize("missing", [[], None])
def test_boxes_alone_are_no_mask_of_background(root: Path, missing: object) -> None:
    path = root / "annotations" / "instances_val2017.json"
    raw = json.loads(path.read_text())
    raw["annotations"][1]["segmentation"] = missing
    path.write_text(json.dumps(raw))
    dataset = load("coco", root=root, cache=root / "cache")
    with pytest.raises(DataError, match="no segmentation, only a box"):
        dataset.read_truth(dataset.samples[0])


def test_two_images_of_one_name_are_refused(root: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    raw = json.loads(path.read_text())
    raw["images"][0]["file_name"], raw["images"][1]["file_name"] = "a/1.jpg", "b/1.jpg"
    path.write_text(json.dumps(raw))
    with pytest.raises(DataError, match="two images are named '1'"):
        load("coco", root=root)


@pytest.mark.realdata
@pytest.mark.parametrize("split", ["train2014", "val2014"])
def test_real_masks_equal_pycocotools(
    real_data: Path, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = load("coco", root=real_data, split=split, cache=tmp_path)
    oracle = COCO(str(real_data / "coco" / "annotations" / f"instances_{split}.json"))
    order = {category: position for position, category in enumerate(sorted(oracle.getCatIds()))}
    gaps = []
    known = {Path(item["file_name"]).stem: key for key, item in oracle.imgs.items()}
    for sample in dataset:
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=known[sample.id]))
        single = [item for item in annotations if not item["iscrowd"]]
        expected = np.zeros(sample.size, np.uint8)
        for item in sorted(single, key=lambda item: item["area"], reverse=True):
            expected[oracle.annToMask(item) > 0] = order[item["category_id"]] + 1
        for item in annotations:
            if item["iscrowd"]:
                expected[(oracle.annToMask(item) > 0) & (expected == 0)] = 255
        np.testing.assert_array_equal(dataset.read_truth(sample), expected)
        assert sample.labels == tuple(sorted({order[item["category_id"]] for item in single}))
        for item, box in zip(single, sample.boxes, strict=True):
            drawn = render_mask([item], sample.size, tuple(order)) > 0
            rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
            tight = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            gaps.append(np.abs(box - tight).max())
    assert np.median(gaps) < 0.75
    assert np.quantile(gaps, 0.9) < 1.0  # the annotated boxes enclose the polygons, pixels lie inside of them
    assert np.max(gaps) < 6
