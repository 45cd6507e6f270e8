"""The page of `wsol demo --serve`, without a browser: what is found, what is written, what is refused."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from wsol import cams
from wsol.cli.main import main
from wsol.data.images import read_image
from wsol.data.transforms import to_input
from wsol.engine.find_objects import Finder
from wsol.engine.serve import build_page, serve
from wsol.engine.serve_options import ServeConfig
from wsol.errors import ConfigError, DataError, WsolError
from wsol.models.classifier import load_classifier, save_classifier
from wsol.ops.normalize import relu_max
from wsol.schema import ScoreMaps

CLASSES = ("tabby cat", "Siamese cat", "dog", "car")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = load_classifier("test_resnet", num_classes=4, img_size=64)
    save_classifier(classifier, folder, classes=CLASSES)
    return ServeConfig(checkpoint=str(folder), device="cpu", max_megapixels=1.0)


@pytest.fixture(scope="module")
def finder(config):
    return Finder(config)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Wider than what is worked on, so that masks and boxes must be brought back to the photo."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (5, 9, 3), np.uint8))
    path = tmp_path_factory.mktemp("photo") / "a photo.png"
    coarse.resize((1501, 333), Image.Resampling.BICUBIC).save(path)
    return path


def find(finder, photo, out, **changes):
    given = {"classes": ("dog", "car"), "method": "cam", "refiner": "threshold", "background": 0.5}
    return finder.find(photo, out=out, **{**given, **changes})


def scores(config, photo, class_id):
    """Class activation map at the size of the photo, from the public pieces."""
    known, image = load_classifier(checkpoint=config.checkpoint), read_image(photo)
    inputs = to_input(image, (64, 64), mean=known.mean, std=known.std, interpolation=known.interpolation)
    raw = cams.create("cam", known)(torch.from_numpy(inputs)[None], [[class_id]])
    maps = ScoreMaps(id="x", values=relu_max(raw.values[0].numpy()), class_ids=np.array([0]), image_size=(333, 1501))
    return maps.at_image_size()[0]


def test_mask_and_objects_are_those_of_the_map_on_the_pixels_of_the_photo(config, finder, photo, tmp_path):
    found = find(finder, photo, tmp_path, classes=("dog",))
    mask = np.asarray(Image.open(found.mask_file))
    assert mask.shape == (333, 1501)
    differs = (mask > 0) != (scores(config, photo, 2) > 0.5)
    assert differs.mean() < 0.01  # small parts are left out, and borders move by the pixel of the smaller picture
    coco = COCO(found.coco_file)
    union = np.zeros(mask.shape, bool)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert coco.cats[annotation["category_id"]]["name"] == "dog"
        part = coco.annToMask(annotation).astype(bool)
        rows, columns = np.nonzero(part)
        x, y, w, h = annotation["bbox"]
        assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert annotation["area"] == part.sum() >= 0.01 * mask.size
        union |= part
    np.testing.assert_array_equal(union, mask > 0)
    assert len(found.regions) == len(coco.anns) > 0
    assert next(iter(coco.imgs.values())) == {"id": 1, "file_name": "a photo.png", "height": 333, "width": 1501}


def test_pictures_times_and_classes(finder, photo, tmp_path):
    found = find(finder, photo, tmp_path)
    assert [title.partition(" (")[0] for _, title in found.maps] == ["dog", "car"]
    assert {picture.shape for picture in (found.mask, found.boxes, *(one for one, _ in found.maps))} == {(284, 1280, 3)}
    assert list(found.milliseconds) == ["read the photo", "score maps (cam)", "mask (threshold)", "files"]
    assert all(value > 0 for value in found.milliseconds.values())
    assert sum(found.likeliest.values()) == pytest.approx(1, abs=1e-5)
    assert len(found.likeliest) == 4
    assert set(np.unique(np.asarray(Image.open(found.mask_file)))) <= {0, 1, 2}


def test_no_word_means_the_likeliest_and_a_class_is_mapped_once(finder, photo, tmp_path):
    found = find(finder, photo, tmp_path, classes=())
    assert [title.partition(" (")[0] for _, title in found.maps] == [next(iter(found.likeliest))]
    twice = find(finder, photo, tmp_path, classes=("dog", "2", "dog", "car"))
    assert [title.partition(" (")[0] for _, title in twice.maps] == ["dog", "car"]


def test_what_cannot_work_alone_or_with_the_model_is_not_offered(finder, tmp_path):
    small = tmp_path / "small.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8)).save(small)
    assert {"cam", "gradcam", "layercam"} <= set(finder.methods)
    assert not {"getam", "attention", "clip_es"} & set(finder.methods)
    assert set(finder.refiners) == {"densecrf", "guided", "pamr", "par", "randomwalk", "threshold"}
    for refiner in finder.refiners:
        assert find(finder, small, tmp_path, refiner=refiner).mask_file.is_file()


def test_limits_and_words(finder, photo, tmp_path):
    Image.new("L", (1001, 1000)).save(tmp_path / "large.png")
    with pytest.raises(DataError, match=r"1.0 megapixels, 1 are allowed \(make it smaller"):
        find(finder, tmp_path / "large.png", tmp_path)
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(DataError, match="not an image file"):
        find(finder, tmp_path / "text.jpg", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'dog'"):
        find(finder, photo, tmp_path, classes=("dgo",))


@pytest.fixture
def page(finder, config, tmp_path):
    pytest.importorskip("gradio")
    return build_page(finder, config, tmp_path)


@pytest.fixture
def uploaded(photo, tmp_path):
    return {"path": str(shutil.copy(photo, tmp_path))}


def test_the_page_says_what_was_found(page, uploaded):
    (job,) = (one for one in page.fns.values() if one.name == "find")
    message, maps, mask, boxes, likeliest, times, png, coco = job.fn(uploaded, ["dog"], "cam", "threshold", 0.5)
    assert message["visible"] is False
    assert len(maps["value"]) == 1
    assert mask.shape == boxes.shape == (284, 1280, 3)
    assert set(likeliest) == set(CLASSES)
    assert "| score maps (cam) |" in times
    assert "**together**" in times
    assert png["interactive"]
    assert coco["value"].endswith("a_photo.coco.json")
    assert json.loads(Path(coco["value"]).read_text())["annotations"]


def test_a_mistake_is_one_line_in_place_of_the_pictures(page, uploaded):
    (job,) = (one for one in page.fns.values() if one.name == "find")
    message, *pictures, times, png, coco = job.fn(uploaded, ["<b>dgo</b>"], "cam", "threshold", 0.5)
    assert "knows no class &#x27;&lt;b&gt;dgo" in message["value"]
    assert "\n" not in message["value"]
    assert "--classes" not in message["value"]
    assert pictures == [None] * 4
    assert times == ""
    assert not png["interactive"]
    assert not coco["interactive"]
    assert "no photo yet" in job.fn(None, [], "cam", "threshold", 0.5)[0]["value"]


def test_one_job_at_a_time_and_nothing_reported(page):
    (job,) = (one for one in page.fns.values() if one.name == "find")
    assert job.concurrency_limit == 1
    assert page.analytics_enabled is False


def test_a_port_that_is_taken_is_one_line(config):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = ServeConfig(checkpoint=config.checkpoint, device="cpu", port=port)
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: cannot listen here"), serve(given):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 0}, "--port must lie in"),
        ({"max_megabytes": 0.0}, "--max-megabytes must be a positive number"),
        ({"max_megabytes": float("inf")}, "--max-megabytes must be a positive number, got inf"),
        ({"max_megapixels": float("nan")}, "--max-megapixels must be a positive number"),
        ({"model": "clip:ViT-B-16", "checkpoint": None}, "give --classes"),
    ],
)
def test_wrong_options(config, changes, message):
    given = {"checkpoint": config.checkpoint, "device": "cpu", **changes}
    with pytest.raises(WsolError, match=message), serve(ServeConfig(**given)):
        pass


def test_without_gradio(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"pip install 'wsol\[serve\]'"), serve(config):
        pass


def test_flags(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--serve", "--print-config"])
    assert "host: 127.0.0.1" in capsys.readouterr().out
    assert main(["demo", "--serve", "--prot", "1"]) == 2
    assert "--port" in capsys.readouterr().err


def test_only_uploads_are_read(page, photo):
    (job,) = (one for one in page.fns.values() if one.name == "find")
    message, *_ = job.fn({"path": str(photo)}, ["dog"], "cam", "threshold", 0.5)
    assert "not a photo that was uploaded here" in message["value"]
