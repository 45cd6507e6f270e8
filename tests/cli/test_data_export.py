"""`wsol data export`: from run folders, folders of masks and true masks to the files of other tools."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from wsol import data
from wsol.cli.main import main
from wsol.engine.export_masks import export_masks, write_coco
from wsol.engine.export_options import ExportConfig
from wsol.engine.options import CamConfig
from wsol.engine.refine_options import RefineConfig
from wsol.errors import ConfigError, DataError, StoreError
from wsol.ops.rle import encode
from wsol.schema import PseudoMask
from wsol.store.formats import FORMATS
from wsol.store.manifest import Manifest
from wsol.store.masks import mask_path, write_mask
from wsol.store.runs import open_run


def labels_of(at, size=(30, 41)):
    """Class 0 is a ring, class 1 a bar and a speck, some pixels are ignored."""
    labels = np.zeros((size[0] + at, size[1]), np.uint8)
    cv2.circle(labels, (15, 15), 8, 1, 3)
    labels[3:20, 33:38], labels[28, 2], labels[0, 10:15] = 2, 2, 255
    return labels


@pytest.fixture
def masks_run(tmp_path):
    """A run as `wsol refine` leaves it, made by hand: four images with masks, two without."""
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for at in range(3):
            Image.new("RGB", (41, 30 + at)).save(root / name / f"{at} x.png")
    dataset = data.load("folder", root=root)
    cam = CamConfig(data="folder", root=root, model="resnet18", out=tmp_path / "maps")
    with open_run(tmp_path / "maps", verb="cam", config=cam, dataset=dataset.spec):
        pass
    run = tmp_path / "masks"
    config = RefineConfig(maps=tmp_path / "maps", out=run)
    with open_run(run, verb="refine", config=config, dataset=dataset.spec), Manifest(run) as manifest:
        for sample in dataset:
            at = int(sample.image.name[0])
            if at < 2:
                write_mask(run, PseudoMask(id=sample.id, labels=labels_of(at)))
                manifest.done(sample.id)
    return run


def export(masks, out, *words):
    return main(["data", "export", "--masks", str(masks), "--out", str(out), "--quiet", *words])


def test_a_run_becomes_coco(masks_run, tmp_path, capsys):
    assert export(masks_run, tmp_path / "out") == 0
    coco = COCO(str(tmp_path / "out/annotations.json"))
    assert [item["name"] for item in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    images = coco.loadImgs(coco.getImgIds())
    assert [item["file_name"] for item in images] == ["cat/0 x.png", "cat/1 x.png", "dog/0 x.png", "dog/1 x.png"]
    for image in images:
        labels = labels_of(int(image["file_name"][4]))
        items = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert [item["category_id"] for item in items] == [1, 2]
        for item in items:
            np.testing.assert_array_equal(coco.annToMask(item), labels == item["category_id"])
    said = capsys.readouterr().err
    for line in ("4 written", "8 objects", "2 images have no mask", "20 pixels are 255"):
        assert line in said
    assert "holes" not in said


def test_counts_say_what_was_lost(masks_run, tmp_path):
    config = ExportConfig(masks=str(masks_run), out=tmp_path / "a", format="yolo", objects="component", quiet=True)
    counts = export_masks(config)
    ring = labels_of(0) == 1
    contours, _ = cv2.findContours(ring.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    disc = cv2.drawContours(np.zeros(ring.shape, np.uint8), contours, -1, 1, -1)
    assert counts.filled == 4 * (disc.sum() - ring.sum()) > 0
    assert (counts.objects, counts.pixels) == (12, 4 * (ring.sum() + 86))
    assert (counts.done, counts.without_mask, counts.ignored, counts.too_small) == (4, 2, 20, 0)
    small = ExportConfig(masks=str(masks_run), out=tmp_path / "b", objects="component", min_area=2, quiet=True)
    counts = export_masks(small)
    assert (counts.objects, counts.too_small, counts.filled) == (8, 4, 0)


@pytest.mark.parametrize(("images", "is_link"), [("link", True), ("copy", False)])
def test_images_lie_where_yolo_looks_for_them(masks_run, tmp_path, images, is_link):
    out = tmp_path / "out"
    assert export(masks_run, out, "--format", "yolo", "--images", images) == 0
    found = yaml.safe_load((out / "data.yaml").read_text())
    assert found["names"] == {0: "cat", 1: "dog"}
    placed = sorted((out / found["train"]).rglob("*.png"))
    assert len(placed) == 4
    for path in placed:
        assert path.is_symlink() == is_link
        assert Image.open(path).size[0] == 41
        assert (out / "labels" / path.relative_to(out / "images").with_suffix(".txt")).read_text().startswith("0 0.")


def test_labelme_finds_its_images(masks_run, tmp_path):
    for words, name in (([], "a"), (["--images", "copy"], "b")):
        assert export(masks_run, tmp_path / name, "--format", "labelme", *words) == 0
        (path,) = (tmp_path / name).rglob("dog/1 x.json")
        image = path.parent / json.loads(path.read_text())["imagePath"]
        assert image.resolve() == (tmp_path / ("b/dog/1 x.png" if words else "photos/dog/1 x.png")).resolve()


def test_options_of_a_format_are_flags(masks_run, tmp_path):
    assert (
        export(masks_run, tmp_path / "out", "--format", "cvat", "--options.shape", "box", "--objects", "largest") == 0
    )
    boxes = list(ET.parse(tmp_path / "out/annotations.xml").getroot().iter("box"))
    assert len(boxes) == 8
    assert boxes[1].get("xbr") == "38"
    (tmp_path / "recipe.yaml").write_text(
        "format: labelstudio\noptions: {shape: polygon, prefix: 's3://b/'}\nlimit: 1\n"
    )
    assert export(masks_run, tmp_path / "ls", "-c", str(tmp_path / "recipe.yaml")) == 0
    (task,) = json.loads((tmp_path / "ls/tasks.json").read_text())
    assert task["data"]["image"] == "s3://b/cat/0%20x.png"


def test_a_folder_of_masks_and_true_masks(masks_run, tmp_path):
    root = tmp_path / "photos"
    words = ["--data", "folder", "--root", str(root)]
    assert export(masks_run / "masks", tmp_path / "a", *words) == 0
    assert export(masks_run, tmp_path / "b") == 0
    assert (tmp_path / "a/annotations.json").read_bytes() == (tmp_path / "b/annotations.json").read_bytes()
    for name in ("cat", "dog"):
        (root / "masks" / name).mkdir(parents=True)
        for at in range(3):
            Image.fromarray(labels_of(at)).save(root / "masks" / name / f"{at} x.png")
    assert export("gt", tmp_path / "c", *words) == 0
    assert len(json.loads((tmp_path / "c/annotations.json").read_text())["images"]) == 6


def test_classes_that_a_byte_cannot_name_come_from_the_manifest(tmp_path):
    for at in range(300):
        (tmp_path / f"photos/{at:03d}").mkdir(parents=True)
        Image.new("RGB", (41, 30)).save(tmp_path / f"photos/{at:03d}/a.png")
    dataset = data.load("folder", root=tmp_path / "photos")
    run = tmp_path / "masks"
    config = RefineConfig(maps=tmp_path / "maps", out=run)
    with open_run(run, verb="refine", config=config, dataset=dataset.spec), Manifest(run) as manifest:
        write_mask(run, PseudoMask(id="000/a.png", labels=labels_of(0)))
        manifest.done("000/a.png", classes=[299, 3])
    path = write_coco(run, dataset.samples, dataset.spec)
    assert path.name == "pseudo.coco.json"
    assert [item["category_id"] for item in json.loads(path.read_text())["annotations"]] == [300, 4]
    assert export(run, tmp_path / "out", "--format", "voc") == 0
    names = [item.text for item in ET.parse(tmp_path / "out/Annotations/000/a.xml").getroot().iter("name")]
    assert names == ["299", "003"]


def test_instances_stay_apart(masks_run, tmp_path, capsys):
    run = tmp_path / "objects"
    (run / "instances/cat").mkdir(parents=True)
    for name in ("dataset.yaml", "config.yaml"):
        (run / name).write_bytes((masks_run / name).read_bytes())
    halves = [np.zeros((30, 41), bool), np.zeros((30, 41), bool), np.zeros((30, 41), bool)]
    halves[0][2:9, 3:11], halves[1][5:12, 8:20], halves[2][0, 0] = True, True, True  # two of them overlap
    items = [{"category_id": 2, "score": 0.5, "segmentation": encode(half)} for half in halves]
    (run / "instances/cat/0 x.png.json").write_text(json.dumps({"size": [30, 41], "instances": items}))
    (run / "instances/cat/1 x.png.json").write_text('{"size": [30, 41], "insta')
    assert export(run, tmp_path / "out", "--min-area", "2") == 1
    coco = COCO(str(tmp_path / "out/annotations.json"))
    found = coco.loadAnns(coco.getAnnIds())
    assert [item["category_id"] for item in found] == [2, 2]
    for item, half in zip(found, halves[:2], strict=True):
        np.testing.assert_array_equal(coco.annToMask(item), half)
    said = capsys.readouterr().err
    for line in ("not a whole file of instances", "4 images have no mask", "1 pixels of small objects"):
        assert line in said


def test_a_torn_or_foreign_mask_is_a_failure_of_its_image(masks_run, tmp_path, capsys):
    mask_path(masks_run, "cat/0 x.png").write_bytes(b"\x89PNG torn")
    write_mask(masks_run, PseudoMask(id="dog/1 x.png", labels=np.full((31, 41), 7, np.uint8)))
    assert export(masks_run, tmp_path / "out") == 1
    assert len(json.loads((tmp_path / "out/annotations.json").read_text())["images"]) == 2
    said = capsys.readouterr().err
    assert "cannot read the mask" in said
    assert "label 7 in a mask of 2 classes" in said


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"format": "cocoo"}, ConfigError, "did you mean 'coco'"),
        ({"options": {"shapes": "box"}}, ConfigError, "did you mean 'shape'"),
        ({"options": {"shape": "circle"}}, ConfigError, "option 'shape' cannot be 'circle'"),
        ({"format": "voc", "options": {"shape": "box"}}, ConfigError, "unknown option 'shape'"),
        ({"min_area": 0}, ConfigError, "--min-area"),
        ({"masks": "gt"}, ConfigError, "give --data"),
        ({"masks": "nowhere"}, StoreError, "no such folder"),
        ({"data": "folder", "root": "."}, DataError, "."),
    ],
)
def test_mistakes_are_one_line(masks_run, tmp_path, changes, kind, message):
    given = {"masks": str(masks_run), "out": tmp_path / "out", "quiet": True, **changes}
    with pytest.raises(kind, match=message):
        export_masks(ExportConfig(**given))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_left_alone(masks_run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("x")
    assert export(masks_run, tmp_path / "out") == 2
    assert "the folder is not empty (give another --out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_help_and_formats(capsys):
    assert FORMATS.names() == ("coco", "cvat", "fiftyone", "labelme", "labelstudio", "voc", "yolo")
    assert main(["data"]) == 0
    assert "export" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", "export", "--format", "labelstudio", "--help"])
    assert "--options.prefix" in capsys.readouterr().out


def test_no_torch(masks_run, tmp_path):
    words = ["data", "export", "--masks", str(masks_run), "--out", str(tmp_path / "out"), "--quiet"]
    code = f"import sys; from wsol.cli.main import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
