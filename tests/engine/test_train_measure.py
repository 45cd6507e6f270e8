"""Localization during training: the numbers of `wsol cam` and `wsol eval`, and the best weights of each measure."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from wsol.engine.make_maps import make_maps
from wsol.engine.measure import LOCALIZATION, _improves
from wsol.engine.options import CamConfig
from wsol.engine.train import train
from wsol.engine.train_options import TrainConfig
from wsol.errors import ConfigError, ModelError
from wsol.eval import evaluate_localization, evaluate_segmentation
from wsol.models.classifier import load_classifier

SET = {"train": 24, "val": 10, "seed": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("synthetic")


def config(root, out, **changes):
    options = {
        "data": "synthetic",
        "root": root,
        "data_options": SET,
        "split": "train",
        "val_split": "val",
        "model": "test_resnet",
        "out": out,
        "epochs": 3,
        "batch_size": 8,
        "lr": 3e-3,
        "img_size": 64,
        "workers": 0,
        "device": "cpu",
        "quiet": True,
        "eval_loc": 1,
    }
    return TrainConfig(**(options | changes))


def maps_of(run, root, out, **changes):
    options = {"data": "synthetic", "root": root, "data_options": SET, "split": "val", "device": "cpu", "workers": 0}
    make_maps(CamConfig(checkpoint=str(run), out=out, img_size=64, batch_size=8, quiet=True, **options, **changes))
    return out


def test_it_is_what_cam_and_eval_say(root, tmp_path):
    history = train(config(root, tmp_path / "run", mix="cutmix")).history
    maps = maps_of(tmp_path / "run", root, tmp_path / "maps")
    expected = evaluate_segmentation(pred=maps, use="maps", workers=0).metrics["mIoU"]
    assert history[-1]["val_miou"] == pytest.approx(expected, abs=0.02)
    assert len({row["val_miou"] for row in history}) > 1


def test_maps_are_normalized_as_their_method_wants(root, tmp_path):
    """Maps that were spread have no zero: only min-max leaves a background."""
    small = {"model": "mctformer_v1_small_patch16_224", "epochs": 1}
    history = train(config(root, tmp_path / "run", loc_method="mctformer", **small)).history
    maps = maps_of(tmp_path / "run", root, tmp_path / "maps", method="mctformer")
    expected = evaluate_segmentation(pred=maps, use="maps", workers=0).metrics["mIoU"]
    assert history[0]["val_miou"] == pytest.approx(expected, abs=0.02)


def paint(rng, size, window, colour):
    image = rng.integers(90, 140, (*size, 3)).astype(np.uint8)
    image[window] = colour
    return Image.fromarray(image)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """Tiny ImageNet's layout: one class a photo, with its box."""
    root, rng = tmp_path_factory.mktemp("boxes") / "tiny-imagenet-200", np.random.default_rng(0)
    wnids = {"n01443537": (20, 40, 220), "n01629819": (220, 30, 20)}
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(wnids))
    listed = []
    for wnid, colour in wnids.items():
        (root / "train" / wnid / "images").mkdir(parents=True)
        rows = []
        for at in range(12):
            left, top = (int(value) for value in rng.integers(0, 30, 2))
            image = paint(rng, (64, 64), (slice(top, top + 31), slice(left, left + 24)), colour)
            name, box = f"{wnid}_{at}.JPEG", f"{left}\t{top}\t{left + 23}\t{top + 30}"
            image.save(root / ("val/images" if at >= 8 else f"train/{wnid}/images") / name)
            rows.append(f"{name}\t{box}")
            listed += [f"{name}\t{wnid}\t{box}"] if at >= 8 else []
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("\n".join(rows[:8]))
    (root / "val" / "val_annotations.txt").write_text("\n".join(listed))
    return root


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Photos in a folder a class, of odd sizes, with masks."""
    root, rng = tmp_path_factory.mktemp("masks"), np.random.default_rng(1)
    for at in range(24):
        split, (name, colour) = ("val", "train")[at < 16], [("blue", (20, 40, 220)), ("red", (220, 30, 20))][at % 2]
        size, window = (41 + 2 * (at % 3), 33 + 4 * (at % 5)), (slice(at % 7, 20 + at % 7), slice(at % 5, 17 + at % 5))
        (root / split / name).mkdir(parents=True, exist_ok=True)
        (root / split / "masks" / name).mkdir(parents=True, exist_ok=True)
        paint(rng, size, window, colour).save(root / split / name / f"{at}.png")
        mask = np.zeros(size, np.uint8)
        mask[window] = 1 + at % 2
        Image.fromarray(mask).save(root / split / "masks" / name / f"{at}.png")
    return root


@pytest.mark.parametrize(("kind", "data"), [("boxes", "tiny_imagenet"), ("masks", "folder")])
def test_where_images_hold_one_class(kind, data, tmp_path, request):
    root = request.getfixturevalue(kind)
    history = train(config(root, tmp_path / "run", data=data, data_options={})).history
    job = {"checkpoint": str(tmp_path / "run"), "split": "val", "img_size": 64, "batch_size": 8, "workers": 0}
    make_maps(CamConfig(data=data, root=root, out=tmp_path / "maps", device="cpu", quiet=True, **job))
    expected = evaluate_localization(maps=tmp_path / "maps", workers=0).metrics
    if kind == "boxes":
        assert history[-1]["val_maxboxaccv2"] == pytest.approx(expected["MaxBoxAccV2"], abs=0.01)
    else:
        assert history[-1]["val_pxap"] == pytest.approx(expected["PxAP"], abs=0.1)
    assert "val_top1" in history[-1]
    assert len([name for name in history[-1] if name in LOCALIZATION]) == 1
    assert (tmp_path / "run" / "best_loc.safetensors").is_file()


def test_the_best_weights_of_each_measure(root, tmp_path):
    run = tmp_path / "run"
    history = train(config(root, run, epochs=4, lr=1e-2)).history
    for name, metric in (("best_acc", "val_map"), ("best_loc", "val_miou")):
        best = max(range(4), key=lambda at: (history[at][metric], -at))
        weights = str(run / f"{name}.safetensors")
        again = config(
            root, tmp_path / name, model="test_resnet", checkpoint=weights, epochs=1, lr=1e-12, freeze_backbone=True
        )
        measured = train(again).history[0]
        assert measured[metric] == pytest.approx(history[best][metric], abs=1e-3)
    card = (run / "card.md").read_text()
    assert "split val, n = 10" in card
    assert re.search(r"seed mIoU \(%\) \| [\d.]+ \| [\d.]+ \| \d", card)
    assert (run / "curves.svg").read_text().startswith("<svg")


def test_every_second_epoch_and_the_last(root, tmp_path):
    history = train(config(root, tmp_path / "run", epochs=5, eval_loc=2)).history
    assert [row["epoch"] for row in history if "val_miou" in row] == [2, 4, 5]
    assert all("val_map" in row for row in history)


def test_an_improvement():
    before = [{"val_map": 40.0}, {}, {"val_map": float("nan")}]
    assert _improves({"val_map": 40.1}, before, ("val_map",))
    assert not _improves({"val_map": 40.0}, before, ("val_map",)), "the earliest of equals is kept"
    assert not _improves({"val_map": float("nan")}, [], ("val_map",))
    assert not _improves({}, [], ("val_map",))


def test_other_map_methods(root, tmp_path):
    vit = {"model": "test_vit", "epochs": 1, "img_size": 160, "limit": 8}
    history = train(config(root, tmp_path / "auto", **vit)).history
    assert 0 < history[0]["val_miou"] < 100
    chosen = train(config(root, tmp_path / "chefer", loc_method="chefer", **vit)).history
    assert chosen[0]["val_map"] == history[0]["val_map"]
    assert chosen[0]["val_miou"] != history[0]["val_miou"]


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"val_split": None}, ConfigError, "--eval-loc needs images"),
        ({"loc_method": "gradcan"}, ConfigError, "did you mean 'gradcam"),
        ({"loc_method": "chefer"}, ModelError, "test_resnet"),
        ({"eval_loc": -1}, ConfigError, "--eval-loc must be 0 or more"),
    ],
)
def test_mistakes(root, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        train(config(root, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_measuring_leaves_the_training_alone(root, tmp_path):
    with_maps = train(config(root, tmp_path / "one"))
    without = train(config(root, tmp_path / "two", eval_loc=0))
    one, two = (load_classifier(None, checkpoint=str(run.path)).module.state_dict() for run in (with_maps, without))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [row["loss"] for row in with_maps.history] == [row["loss"] for row in without.history]
