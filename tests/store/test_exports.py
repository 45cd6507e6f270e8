"""Every format against independent readers: pycocotools, OpenCV, Pillow, decoders from the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from wsol.data.annotation import read_annotation
from wsol.errors import StoreError
from wsol.ops.outlines import border_polygons, edge_polygons, filled_area
from wsol.ops.runs import run_lengths
from wsol.store.formats import FORMATS
from wsol.store.formats.base import Picture, find_regions
from wsol.store.formats.labelstudio import brush_rle
from wsol.store.masks import read_labels

CLASSES = ("cat", "dog & <bird>", "überrest")
masks = arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 11)))


def fill_holes(mask):
    """Background that is 4-connected to the surroundings stays; Pillow finds it."""
    canvas = Image.fromarray(np.pad(mask, 1).astype(np.uint8)).copy()
    ImageDraw.floodfill(canvas, (0, 0), 2)
    return (np.asarray(canvas) != 2)[1:-1, 1:-1]


def blobs(seed, size=(61, 83), labels=3):
    """A label mask of smooth blobs, with holes, specks and ignored pixels."""
    rng = np.random.default_rng(seed)
    scores = np.stack([cv2.GaussianBlur(rng.normal(size=size), (0, 0), 3) for _ in range(labels + 1)])
    found = scores.argmax(axis=0).astype(np.uint8)
    found[rng.random(size) < 0.01] = 255
    return found


def picture(labels, name="a/b c.jpg", file=Path("/photos/a/b c.jpg"), **options):
    return Picture(name, file, labels.shape, find_regions(labels, **options))


# --- outlines -----------------------------------------------------------------------------------------------------


@given(masks)
def test_edge_polygons_enclose_the_pixels_in_pycocotools_and_by_area(mask):
    polygons = edge_polygons(mask)
    filled = fill_holes(mask)
    assert sum(cv2.contourArea(polygon) for polygon in polygons) == filled.sum() == filled_area(mask)
    drawn = np.zeros(mask.shape, bool)
    for polygon in polygons:
        assert len(polygon) >= 4
        # Every corner turns: no repeated and no collinear points.
        steps = np.roll(polygon, -1, axis=0) - polygon
        assert ((steps != 0).sum(axis=1) == 1).all()
        assert (np.abs(steps.astype(int) * np.roll(steps, 1, axis=0)).sum(axis=1) == 0).all()
        drawn |= decode_polygon(polygon, mask.shape)
    np.testing.assert_array_equal(drawn, filled)


def decode_polygon(polygon, size):
    (rle,) = coco_mask.frPyObjects([np.asarray(polygon, float).ravel().tolist()], *size)
    return coco_mask.decode(rle).astype(bool)


@given(masks)
def test_border_polygons_give_the_mask_back_when_drawn_with_their_outline(mask):
    drawn = np.zeros(mask.shape, np.uint8)
    pillow = Image.new("L", mask.shape[::-1])
    for polygon in border_polygons(mask):
        assert len(polygon) >= 3
        cv2.fillPoly(drawn, [polygon], (1,))
        ImageDraw.Draw(pillow).polygon([tuple(point) for point in polygon.tolist()], outline=1, fill=1)
    np.testing.assert_array_equal(drawn, fill_holes(mask))
    np.testing.assert_array_equal(np.asarray(pillow), fill_holes(mask))


def test_simplified_outlines_have_fewer_corners_and_stay_near():
    mask = np.zeros((80, 101), np.uint8)
    cv2.circle(mask, (50, 40), 30, 1, -1)
    for trace, draw in ((edge_polygons, decode_polygon), (border_polygons, decode_polygon)):
        (exact,), (fewer,) = trace(mask > 0), trace(mask > 0, simplify=1.0)
        assert 3 <= len(fewer) < len(exact) / 3
        overlap = draw(fewer, mask.shape) & (mask > 0)
        assert overlap.sum() > 0.93 * mask.sum()
    assert len(edge_polygons(np.ones((1, 1), bool), simplify=50.0)[0]) >= 3


@given(masks)
def test_run_lengths_and_the_brush_of_label_studio_decode_to_the_mask(mask):
    runs = run_lengths(mask)
    assert (runs[1:] > 0).all()
    np.testing.assert_array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(mask.shape), mask)
    np.testing.assert_array_equal(decode_brush(brush_rle(mask), mask.shape), mask)


def test_brush_runs_of_every_length():
    lengths = [1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 32768, 40000]
    mask = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(bool)[None]
    np.testing.assert_array_equal(decode_brush(brush_rle(mask), mask.shape), mask)


def decode_brush(data, size):
    """The decoder of Label Studio's front end (thi.ng/rle-pack), bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in data)
    at = 0

    def read(count):
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    values, word = np.full(read(32), 7), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    i = 0
    while i < len(values):
        same = read(1)
        j = i + 1 + read(sizes[read(2)])
        if same:
            values[i:j] = read(word)
        else:
            values[i:j] = [read(word) for _ in range(i, j)]
        i = j
    assert len(bits) - at < 8
    rgba = values.reshape(*size, 4)
    assert set(np.unique(rgba)) <= {0, 255}
    assert (rgba == rgba[..., :1]).all()
    return rgba[..., 3] > 0


# --- regions ------------------------------------------------------------------------------------------------------


def test_regions_by_class_component_and_largest():
    labels = np.zeros((9, 12), np.uint8)
    labels[1:3, 1:4], labels[6:8, 8:12], labels[3, 4] = 1, 1, 1  # the pixel touches the first block at a corner
    labels[4, 0], labels[0, 5:8], labels[8, 0:3] = 3, 255, 3
    by_class = find_regions(labels)
    assert [(item.class_id, item.box, item.area) for item in by_class] == [(0, (1, 1, 12, 8), 15), (2, (0, 4, 3, 9), 4)]
    parts = find_regions(labels, objects="component")
    expected = [(0, (1, 1, 5, 4), 7), (0, (8, 6, 12, 8), 8), (2, (0, 4, 1, 5), 1), (2, (0, 8, 3, 9), 3)]
    assert [(item.class_id, item.box, item.area) for item in parts] == expected
    largest = find_regions(labels, objects="largest")
    assert [item.box for item in largest] == [(8, 6, 12, 8), (0, 8, 3, 9)]
    assert [item.box for item in find_regions(labels, objects="component", min_area=7)] == [
        expected[0][1],
        expected[1][1],
    ]
    assert [item.class_id for item in find_regions(labels, named=[299, 5, 3])] == [299, 3]
    whole = find_regions(labels)[0].whole((9, 12))
    np.testing.assert_array_equal(whole, labels == 1)
    assert find_regions(np.full((3, 4), 255, np.uint8)) == ()


@given(masks)
def test_components_are_ordered_by_their_first_pixel(mask):
    found = [region.whole(mask.shape) for region in find_regions(mask.astype(np.uint8), objects="component")]
    firsts = [int(whole.argmax()) for whole in found]
    assert firsts == sorted(firsts)
    if found:
        (largest,) = find_regions(mask.astype(np.uint8), objects="largest")
        np.testing.assert_array_equal(largest.whole(mask.shape), max(found, key=np.sum))  # the first of equal ones


@given(arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.sampled_from([0, 1, 2, 255])))
def test_the_regions_of_a_mask_are_its_pixels(labels):
    for objects in ("class", "component"):
        drawn = np.zeros_like(labels)
        for region in find_regions(labels, objects=objects):
            whole = region.whole(labels.shape)
            assert region.mask.any(axis=0)[[0, -1]].all()
            assert region.mask.any(axis=1)[[0, -1]].all()
            assert (drawn[whole] == 0).all()
            drawn[whole] = region.class_id + 1
        np.testing.assert_array_equal(drawn, np.where(labels == 255, 0, labels))


# --- formats: every reader below gives [(image name, class name, mask or box)] --------------------------------------


def read_coco(out):
    coco = COCO(str(out / "annotations.json"))
    for item in coco.loadAnns(coco.getAnnIds()):
        name = coco.loadImgs(item["image_id"])[0]["file_name"]
        x, y, width, height = item["bbox"]
        shape = coco.annToMask(item).astype(bool) if item["segmentation"] else (x, y, x + width, y + height)
        yield name, coco.loadCats(item["category_id"])[0]["name"], shape


def read_labelme(out):
    for path in sorted(out.rglob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert found["imageData"] is None
        assert {"version", "flags", "shapes", "imagePath", "imageHeight", "imageWidth"} <= set(found)
        file = (path.parent / found["imagePath"]).resolve()
        for item in found["shapes"]:
            shape = tuple(np.ravel(item["points"]).tolist())
            if item["shape_type"] == "polygon":
                canvas = Image.new("L", (found["imageWidth"], found["imageHeight"]))
                ImageDraw.Draw(canvas).polygon([tuple(point) for point in item["points"]], outline=1, fill=1)
                shape = np.asarray(canvas) > 0
                canvas = np.zeros(shape.shape, np.uint8)
                cv2.fillPoly(canvas, [np.array(item["points"])], (1,))
                np.testing.assert_array_equal(canvas, shape)
            yield file.relative_to("/photos").as_posix(), item["label"], shape


def read_cvat(out):
    root = ET.parse(out / "annotations.xml").getroot()
    assert root.findtext("version") == "1.1"
    labels = [item.findtext("name") for item in root.find("meta/task/labels")]
    assert [int(image.get("id")) for image in root.iter("image")] == list(range(len(root.findall("image"))))
    for image in root.iter("image"):
        size = int(image.get("height")), int(image.get("width"))
        for item in image:
            assert item.get("label") in labels
            if item.tag == "mask":
                box = [int(item.get(side)) for side in ("left", "top", "width", "height")]
                runs = [int(count) for count in item.get("rle").split(",")]
                cut = np.concatenate([np.full(count, at % 2) for at, count in enumerate(runs)])
                shape = np.zeros(size, bool)
                shape[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = cut.reshape(box[3], box[2])
            elif item.tag == "polygon":
                shape = decode_polygon([pair.split(",") for pair in item.get("points").split(";")], size)
            else:
                shape = tuple(float(item.get(side)) for side in ("xtl", "ytl", "xbr", "ybr"))
            yield image.get("name"), item.get("label"), shape


def read_labelstudio(out):
    view = ET.parse(out / "label_config.xml").getroot()
    labels = [item.get("value") for item in view.iter("Label")]
    for task in json.loads((out / "tasks.json").read_text(encoding="utf-8")):
        name = task["data"]["image"].removeprefix("/data/local-files/?d=").replace("%20", " ")
        (prediction,) = task["predictions"]
        assert len({item["id"] for item in prediction["result"]}) == len(prediction["result"])
        for item in prediction["result"]:
            width, height, value = item["original_width"], item["original_height"], item["value"]
            (label,) = value[item["type"]]
            assert label in labels
            assert view.find(f"*[@name='{item['from_name']}']").tag.lower() == item["type"]
            if item["type"] == "brushlabels":
                shape = decode_brush(value["rle"], (height, width))
            elif item["type"] == "polygonlabels":
                shape = decode_polygon(np.array(value["points"]) * [width / 100, height / 100], (height, width))
            else:
                x, y, w, h = (value[side] / 100 for side in ("x", "y", "width", "height"))
                shape = (x * width, y * height, (x + w) * width, (y + h) * height)
            yield name, label, shape


def read_yolo(out, size=(61, 83)):
    names = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))["names"]
    for path in sorted((out / "labels").rglob("*.txt")):
        for line in path.read_text().splitlines():
            label, *values = line.split()
            points = np.array(values, float).reshape(-1, 2)
            if len(points) > 2:
                shape = np.zeros(size, np.uint8)
                cv2.fillPoly(shape, [(points * size[::-1]).astype(np.int32)], (1,))  # cut to whole pixels
            else:
                (x, y), (w, h) = points * size[::-1]
                shape = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            name = path.relative_to(out / "labels").with_suffix(".jpg").as_posix()
            yield name, names[int(label)], shape


def read_voc(out):
    for path in sorted((out / "Annotations").rglob("*.xml")):
        found = read_annotation(path)
        name = path.relative_to(out / "Annotations").with_suffix(".jpg").as_posix()
        for label, (x0, y0, x1, y1) in zip(found.names, found.corners, strict=True):
            yield name, label, (x0 - 1, y0 - 1, x1, y1)  # as wsol.data.voc reads it


READERS = {
    "coco": read_coco,
    "labelme": read_labelme,
    "cvat": read_cvat,
    "labelstudio": read_labelstudio,
    "yolo": read_yolo,
    "voc": read_voc,
}


def export(tmp_path, name, pictures, **options):
    FORMATS.get(name)(**options).write(tmp_path, iter(pictures), CLASSES)
    return list(READERS[name](tmp_path))


@pytest.mark.parametrize("name", ["coco", "cvat", "labelstudio"])
def test_masks_come_back_exactly(tmp_path, name):
    pictures = {f"{at}/x.jpg": blobs(at) for at in range(3)} | {"empty.jpg": np.full((5, 7), 255, np.uint8)}
    found = export(tmp_path, name, [picture(labels, key) for key, labels in pictures.items()], shape="mask")
    drawn = {key: np.zeros_like(labels) for key, labels in pictures.items()}
    for key, label, mask in found:
        drawn[key][mask] = CLASSES.index(label) + 1
    for key, labels in pictures.items():
        np.testing.assert_array_equal(drawn[key], np.where(labels == 255, 0, labels))
    assert len(found) == sum(len(set(np.unique(labels)) - {0, 255}) for labels in pictures.values())


@pytest.mark.parametrize("objects", ["class", "component"])
@pytest.mark.parametrize("name", ["coco", "cvat", "labelstudio", "labelme", "yolo"])
def test_polygons_come_back_exactly_up_to_holes(tmp_path, name, objects):
    pictures = {f"{at}/x.jpg": blobs(at) for at in range(3)}
    regions = [picture(labels, key, Path("/photos") / key, objects=objects) for key, labels in pictures.items()]
    found = export(tmp_path, name, regions, shape="polygon")
    drawn = {(key, label): np.zeros((61, 83), bool) for key in pictures for label in CLASSES}
    for key, label, mask in found:
        drawn[key, label] |= mask > 0
    for (key, label), mask in drawn.items():
        region = pictures[key] == CLASSES.index(label) + 1
        np.testing.assert_array_equal(mask, fill_holes(region))
    assert any((fill_holes(labels == 1) != (labels == 1)).any() for labels in pictures.values())


@pytest.mark.parametrize("name", list(READERS))
def test_boxes_are_those_of_the_largest_components(tmp_path, name):
    labels = np.zeros((61, 83), np.uint8)
    boxes = {"cat": (0, 0, 10, 20), "dog & <bird>": (70, 1, 83, 61), "überrest": (30, 40, 31, 41)}
    for number, (x0, y0, x1, y1) in enumerate(boxes.values(), start=1):
        labels[y0:y1, x0:x1] = number
    labels[30:35, 0:9], labels[50, 50] = 1, 2
    options = {} if name == "voc" else {"shape": "box"}
    found = export(tmp_path, name, [picture(labels, objects="largest")], **options)
    assert [(key, label) for key, label, _ in found] == [("a/b c.jpg", label) for label in boxes]
    for (_, _, box), expected in zip(found, boxes.values(), strict=True):
        np.testing.assert_allclose(box, expected, atol=1e-3)


def test_polygons_of_one_object_stay_together(tmp_path):
    labels = np.zeros((9, 12), np.uint8)
    labels[1:3, 1:4], labels[6:8, 8:12], labels[4, 4] = 1, 1, 2
    export(tmp_path / "coco", "coco", [picture(labels)], shape="polygon")
    items = json.loads((tmp_path / "coco/annotations.json").read_text())["annotations"]
    assert [len(item["segmentation"]) for item in items] == [2, 1]
    export(tmp_path / "labelme", "labelme", [picture(labels)])
    items = json.loads((tmp_path / "labelme/a/b c.json").read_text())["shapes"]
    assert sorted(item["group_id"] for item in items) == [1, 1, 2]
    export(tmp_path / "cvat", "cvat", [picture(labels)], shape="polygon")
    groups = [item.get("group_id") for item in ET.parse(tmp_path / "cvat/annotations.xml").getroot().iter("polygon")]
    assert groups == ["1", "1", None]


@pytest.mark.parametrize("name", ["labelme", "voc", "yolo"])
def test_two_images_never_share_a_file(tmp_path, name):
    labels = blobs(0)
    with pytest.raises(StoreError, match=r"a: two images have this name .*rename one"):
        export(tmp_path, name, [picture(labels, "a.jpg"), picture(labels, "a.png")])


@pytest.mark.parametrize("name", ["coco", "cvat", "labelstudio"])
def test_an_export_that_breaks_leaves_no_document(tmp_path, name):
    def pictures():
        yield picture(blobs(0))
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        FORMATS.get(name)().write(tmp_path, pictures(), CLASSES)
    assert not [path for path in tmp_path.rglob("*") if path.name != "label_config.xml"]


@pytest.mark.parametrize("name", list(READERS))
def test_no_picture_at_all(tmp_path, name):
    assert export(tmp_path, name, []) == [] if name != "coco" else True


@pytest.mark.realdata
def test_true_masks_of_voc(real_data, tmp_path):
    paths = sorted(real_data.rglob("SegmentationClass/*.png"))[:4]
    if not paths:
        pytest.skip("no VOC masks")
    classes = tuple(f"class {at}" for at in range(20))
    truth = {f"{path.stem}.jpg": read_labels(path) for path in paths}
    regions = {(key, label): truth[key] == label for key in truth for label in set(np.unique(truth[key])) - {0, 255}}
    assert sum(region.sum() for region in regions.values()) > 10_000
    filled = {key: fill_holes(region) for key, region in regions.items()}
    pictures = [picture(labels, key) for key, labels in truth.items()]
    for name, shape in [(name, shape) for name in ("coco", "cvat", "labelstudio") for shape in ("mask", "polygon")]:
        FORMATS.get(name)(shape=shape).write(tmp_path / name / shape, iter(pictures), classes)
        drawn = {key: np.zeros_like(region) for key, region in regions.items()}
        for key, label, mask in READERS[name](tmp_path / name / shape):
            drawn[key, classes.index(label) + 1] |= mask
        for key, mask in drawn.items():
            np.testing.assert_array_equal(mask, (filled if shape == "polygon" else regions)[key])
