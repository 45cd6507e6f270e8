from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from wsol import data, refine
from wsol.config import config_hash
from wsol.engine.make_masks import make_masks
from wsol.engine.options import CamConfig
from wsol.engine.refine_options import RefineConfig
from wsol.errors import ConfigError, StoreError
from wsol.schema import ScoreMaps
from wsol.store.manifest import Manifest, read_rows
from wsol.store.maps import map_path, read_maps, write_maps
from wsol.store.masks import read_mask
from wsol.store.runs import open_run


@pytest.fixture
def maps_run(tmp_path):
    """A run as `wsol cam` leaves it, made by hand: left half class 0, right third class 1."""
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for at in range(3):
            noise = np.random.default_rng(at).integers(0, 255, (30 + at, 41, 3), np.uint8)
            Image.fromarray(noise).save(root / name / f"{at}.png")
    run = tmp_path / "maps"
    config = CamConfig(data="folder", root=root, model="resnet18", out=run)
    dataset = data.load("folder", root=root)
    values = np.zeros((2, 6, 8), np.float16)
    values[0, :, :4], values[1, :, 6:] = 0.9, 0.6
    with open_run(run, verb="cam", config=config, dataset=dataset.spec), Manifest(run) as manifest:
        for sample in dataset:
            at = int(sample.id[-5])
            write_maps(run, ScoreMaps(id=sample.id, values=values, class_ids=[0, 1], image_size=(30 + at, 41)))
            manifest.done(sample.id)
    assert config_hash(config)
    return run


def config(maps_run, out, **changes):
    return RefineConfig(**{"maps": maps_run, "out": out, "workers": 0, "quiet": True, **changes})


def test_threshold_masks_are_the_argmax_over_background_and_maps(maps_run, tmp_path):
    assert make_masks(config(maps_run, tmp_path / "out", background=0.3, confidence=True)).done == 6
    for name, height in (("cat/0.png", 30), ("dog/2.png", 32)):
        mask = read_mask(tmp_path / "out", name)
        assert mask.labels.shape == (height, 41)
        assert set(np.unique(mask.labels)) == {0, 1, 2}
        assert mask.labels[5, 2] == 1
        assert mask.labels[5, 25] == 0
        assert mask.labels[5, 40] == 2
        assert mask.confidence[5, 2] == pytest.approx(0.9, abs=0.01)


def test_background_rules_and_ignored_pixels(maps_run, tmp_path):
    make_masks(config(maps_run, tmp_path / "high", background=0.7))
    assert set(np.unique(read_mask(tmp_path / "high", "cat/0.png").labels)) == {0, 1}
    make_masks(config(maps_run, tmp_path / "alpha", alpha=1.0))
    assert read_mask(tmp_path / "alpha", "cat/0.png").labels[5, 40] == 2
    make_masks(config(maps_run, tmp_path / "sure", background=0.3, min_confidence=0.8))
    assert set(np.unique(read_mask(tmp_path / "sure", "cat/0.png").labels)) == {1, 255}


def test_background_of_each_image_and_two_thresholds(maps_run, tmp_path):
    make_masks(config(maps_run, tmp_path / "otsu", background="otsu"))
    assert read_mask(tmp_path / "otsu", "cat/0.png").labels[5, [2, 25, 40]].tolist() == [1, 0, 2]
    make_masks(config(maps_run, tmp_path / "two", background=0.7, background_low=0.3))
    assert read_mask(tmp_path / "two", "cat/0.png").labels[5, [2, 25, 40]].tolist() == [1, 0, 255]


def test_a_chain_equals_its_refiners_one_by_one(maps_run, tmp_path):
    options = {"pamr": {"iterations": 2}, "densecrf": {"preset": "irn"}}
    make_masks(config(maps_run, tmp_path / "out", method="pamr,densecrf", options=options, background=0.3))
    maps, sample = read_maps(maps_run, "cat/1.png"), np.asarray(Image.open(maps_run.parent / "photos/cat/1.png"))
    scores = refine.with_background(maps.at_image_size(), background=0.3)
    scores = refine.create("pamr", iterations=2)(sample, scores)
    labels, _ = refine.to_labels(refine.create("densecrf", preset="irn")(sample, scores), [0, 1])
    assert (read_mask(tmp_path / "out", "cat/1.png").labels == labels).all()


def test_saliency_goes_to_the_completion(maps_run, tmp_path):
    for name, height in (("cat/0.png", 30), ("dog/1", 31)):  # one named after the id, one after the id less its suffix
        saliency = np.zeros((height, 41), np.uint8)
        saliency[:, :30] = 200
        path = tmp_path / "saliency" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(saliency).save(path)
    Image.new("L", (40, 30)).save(tmp_path / "saliency" / "cat" / "1.png")
    changes = {"method": "getam_completion", "saliency": tmp_path / "saliency", "background": 0.3}
    outcome = make_masks(config(maps_run, tmp_path / "out", **changes))
    assert outcome.done == 2
    assert "expected saliency of 31x41 pixels, got 30x40" in outcome.failures["cat/1.png"]
    assert "no such image" in outcome.failures["cat/2.png"]
    for name in ("cat/0.png", "dog/1.png"):
        assert read_mask(tmp_path / "out", name).labels[5, [2, 25, 40]].tolist() == [1, 255, 0]


def test_classes_without_a_pixel_are_named_and_counted(maps_run, tmp_path, caplog):
    Image.new("RGB", (41, 29)).save(maps_run.parent / "photos/dog/1.png")
    with caplog.at_level("INFO", logger="wsol"):
        logging.getLogger("wsol").addHandler(caplog.handler)
        outcome = make_masks(config(maps_run, tmp_path / "out", background=0.7))
        logging.getLogger("wsol").removeHandler(caplog.handler)
    rows = read_rows(tmp_path / "out")
    assert rows["cat/0.png"]["vanished"] == [1]
    assert "the maps are of an image 31x41, the file holds 29x41 pixels" in outcome.failures["dog/1.png"]
    assert "5 classes got no pixel, in 5 images" in caplog.text
    assert json.loads((tmp_path / "out" / "run.json").read_text())["facts"]["vanished"] == 5
    make_masks(config(maps_run, tmp_path / "kept", background=0.3))
    assert "vanished" not in read_rows(tmp_path / "kept")["cat/0.png"]


def test_refined_scores_are_maps_again(maps_run, tmp_path):
    make_masks(config(maps_run, tmp_path / "out", scores=True))
    maps, before = read_maps(tmp_path / "out", "cat/1.png"), read_maps(maps_run, "cat/1.png")
    assert maps.class_ids.tolist() == [0, 1]
    assert np.abs(maps.values - before.at_image_size()).max() < 1e-3


def test_processes_and_shards_give_the_same_files(maps_run, tmp_path):
    make_masks(config(maps_run, tmp_path / "one"))
    make_masks(config(maps_run, tmp_path / "two", workers=2))
    for index in range(2):
        make_masks(config(maps_run, tmp_path / "shards", shard=f"{index}/2"))
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one" / "masks").rglob("*.png")}
    assert len(files) == 6
    for name in files:
        whole = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "two" / name).read_bytes() == whole
        assert (tmp_path / "shards" / name).read_bytes() == whole


def test_resume_writes_only_what_is_missing_and_missing_maps_are_rows(maps_run, tmp_path):
    out = tmp_path / "out"
    map_path(maps_run, "cat/1.png").unlink()
    first = make_masks(config(maps_run, out))
    assert (first.done, set(first.failures), first.status) == (5, {"cat/1.png"}, 1)
    assert "run wsol cam" in read_rows(out)["cat/1.png"]["error"]
    (out / "masks/dog/0.png.png").unlink()
    again = make_masks(config(maps_run, out))
    assert (again.done, again.skipped, len(again.failures)) == (1, 4, 1)


def test_coco_json_loads_in_pycocotools_with_the_same_masks(maps_run, tmp_path):
    make_masks(config(maps_run, tmp_path / "out", background=0.3, coco=True))
    coco = COCO(str(tmp_path / "out" / "pseudo.coco.json"))
    assert [item["name"] for item in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    names = sorted(path.relative_to(maps_run / "maps").as_posix()[:-4] for path in (maps_run / "maps").rglob("*.npz"))
    for name, image_id in zip(names, coco.getImgIds(), strict=True):
        labels = read_mask(tmp_path / "out", name).labels
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image_id)):
            region = labels == annotation["category_id"]
            assert (coco.annToMask(annotation) == region).all()
            assert annotation["area"] == region.sum()
            x, y, width, height = annotation["bbox"]
            assert region[y : y + height, x : x + width].sum() == region.sum()


def test_more_classes_than_a_byte_can_name(tmp_path):
    for name in [f"{at:03d}" for at in range(300)]:
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (9, 7)).save(tmp_path / "photos" / name / "a.png")
    values = np.zeros((2, 7, 9), np.float16)
    values[0, :, :4], values[1, :, 6:] = 0.9, 0.8
    dataset = data.load("folder", root=tmp_path / "photos")
    cam = CamConfig(data="folder", root=tmp_path / "photos", model="resnet18", out=tmp_path / "maps")
    with open_run(tmp_path / "maps", verb="cam", config=cam, dataset=dataset.spec):
        maps = ScoreMaps(id="000/a.png", values=values, class_ids=[299, 3], image_size=(7, 9))
        write_maps(tmp_path / "maps", maps)
    outcome = make_masks(config(tmp_path / "maps", tmp_path / "out", limit=1, coco=True))
    assert outcome.done == 1
    assert np.unique(read_mask(tmp_path / "out", "000/a.png").labels).tolist() == [0, 1, 2]
    assert read_rows(tmp_path / "out")["000/a.png"]["classes"] == [299, 3]
    found = json.loads((tmp_path / "out" / "pseudo.coco.json").read_text())
    assert [item["category_id"] for item in found["annotations"]] == [300, 4]
    make_masks(config(tmp_path / "maps", tmp_path / "high", limit=1, background=0.85))
    assert read_rows(tmp_path / "high")["000/a.png"]["vanished"] == [3]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"method": "densecrff"}, ConfigError, "did you mean 'densecrf'"),
        ({"options": {"x": 1}}, ConfigError, "unknown option 'x'"),
        ({"background": None}, ConfigError, "--background or --alpha"),
        ({"min_confidence": 2.0}, ConfigError, "--min-confidence"),
        ({"method": "pamr,densecrff"}, ConfigError, "did you mean 'densecrf'"),
        ({"method": "pamr,densecrf", "options": {"iterations": 1}}, ConfigError, "not in 'pamr,densecrf'"),
        ({"saliency": Path()}, ConfigError, "'threshold' does not use --saliency"),
        ({"background_low": 0.3}, ConfigError, r"--background-low must lie in \[0, 0.25\)"),
        ({"background_low": 0.1, "alpha": 4.0}, ConfigError, "not with --alpha"),
    ],
)
def test_mistakes(maps_run, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        make_masks(config(maps_run, tmp_path / "out", **changes))


def test_a_folder_that_is_no_run_of_cam(maps_run, tmp_path):
    with pytest.raises(StoreError, match="no run"):
        make_masks(config(tmp_path, tmp_path / "out"))
    make_masks(config(maps_run, tmp_path / "out"))
    with pytest.raises(StoreError, match="wsol refine, not of wsol cam"):
        make_masks(config(tmp_path / "out", tmp_path / "again"))


def test_the_run_says_what_it_was_made_from(maps_run, tmp_path):
    make_masks(config(maps_run, tmp_path / "out"))
    info = json.loads((tmp_path / "out" / "run.json").read_text())
    assert info["inputs"] == {str(maps_run): json.loads((maps_run / "run.json").read_text())["config_hash"]}
