"""Trainings with losses beyond the cross-entropy, on transformers too, interrupted and continued; self-training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from wsol.config import load_yaml
from wsol.engine import fit as fit_module
from wsol.engine.segment import segment_train
from wsol.engine.segment_options import SegmentTrainConfig, SelfTrainConfig
from wsol.engine.self_train import self_train
from wsol.errors import ConfigError
from wsol.models.segmenter import load_segmenter
from wsol.schema import PseudoMask
from wsol.store.masks import read_labels, write_mask

COLOURS = {"blue": (20, 40, 220), "red": (220, 30, 20)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Coloured boxes on noise: 8 with scribbles for masks to train on, 4 with whole masks to validate."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(COLOURS, start=1):
            for at in range(count):
                height, width = 41 + 2 * at, 67 - 6 * at
                image = rng.integers(90, 140, (height, width, 3)).astype(np.uint8)
                mask = np.zeros((height, width), dtype=np.uint8)
                box = np.s_[5 + at : 33, 9 : 25 + at]
                image[box], mask[box] = COLOURS[name], label
                if split == "train":
                    scribbles = np.full_like(mask, 255)
                    scribbles[8:30, 14:18], scribbles[3:38, 30:34] = label, 0
                    write_mask(root / "scribbles", PseudoMask(id=f"{name}/{at}.png", labels=scribbles))
                for path, array in ((root / split / name, image), (root / split / "masks" / name, mask)):
                    path.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(path / f"{at}.png")
    return root


def options(photos, out, **changes):
    base = {
        "data": "folder",
        "root": photos,
        "masks": str(photos / "scribbles"),
        "out": out,
        "val_split": "val",
        "arch": "fpn",
        "encoder": "tu-test_resnet",
        "epochs": 2,
        "batch_size": 4,
        "lr": 1e-2,
        "img_size": 64,
        "zoom": (0.9, 1.1),
        "workers": 0,
        "device": "cpu",
        "quiet": True,
    }
    return base | changes


class StopError(Exception):
    pass


KINDS = {
    "ohem": {"loss": "ohem", "ohem_keep": 0.25},
    "crf": {"crf_weight": 1e-6, "crf_sigma_xy": 30.0},
    "mum": {"mum_weight": 1.0, "mum_ramp": 4},
    "all, on a transformer": {
        "arch": "segmenter",
        "encoder": "test_vit",
        "lr": 1e-3,
        "loss": "ohem",
        "crf_weight": 1e-7,
        "mum_weight": 1.0,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_gives_the_same_curve(photos, tmp_path, monkeypatch, kind):
    whole = segment_train(SegmentTrainConfig(**options(photos, tmp_path / "whole", **KINDS[kind])))
    write = fit_module.write_checkpoint

    def stop_after_one(folder, state):
        write(folder, state)
        raise StopError

    monkeypatch.setattr(fit_module, "write_checkpoint", stop_after_one)
    broken = SegmentTrainConfig(**options(photos, tmp_path / "broken", **KINDS[kind]))
    with pytest.raises(StopError):
        segment_train(broken)
    monkeypatch.undo()
    again = segment_train(broken)
    for one, two in zip(whole.history, again.history, strict=True):
        assert {name: value for name, value in one.items() if name != "seconds"} == {
            name: value for name, value in two.items() if name != "seconds"
        }
    first, second = (load_segmenter(tmp_path / name).module.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.status == 0


def test_scribbles_are_enough_for_coloured_boxes(photos, tmp_path):
    trained = segment_train(SegmentTrainConfig(**options(photos, tmp_path / "run", arch="linknet", epochs=16)))
    print(trained.history)
    assert trained.history[-1]["val_miou"] > 60.0


def test_the_losses_differ(photos, tmp_path):
    def loss(name, **changes):
        return segment_train(SegmentTrainConfig(**options(photos, tmp_path / name, epochs=1, **changes))).history[0][
            "loss"
        ]

    plain = loss("plain")
    assert loss("hard", loss="ohem", ohem_threshold=0.01, ohem_keep=0.01) > plain
    assert loss("crf", crf_weight=1e-5) < plain  # the energy is negative


@pytest.mark.parametrize("strategy", ["gist", "rist"])
def test_self_training(photos, tmp_path, strategy):
    config = SelfTrainConfig(
        **options(photos, tmp_path / "run", epochs=1), strategy=strategy, stages=3, pseudo_confidence=0.4
    )
    trained = self_train(config)
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert [row["stage"] for row in stages] == [0, 1, 2]
    assert stages[0]["masks"] == "given"
    assert {row["masks"] for row in stages} <= {"given", "own"}
    seeds = [load_yaml(tmp_path / "run" / row["folder"] / "config.yaml")["seed"] for row in stages]
    assert seeds == [0, 1, 2]  # each stage draws other views
    last = load_segmenter(tmp_path / "run" / stages[-1]["folder"]).module.state_dict()
    kept = load_segmenter(trained.path).module.state_dict()
    assert all(torch.equal(last[name], kept[name]) for name in last)
    predicted = read_labels(tmp_path / "run" / "masks-1" / "masks" / "blue" / "0.png.png")
    assert predicted.shape == (41, 67)
    if strategy == "gist":
        for stage in (1, 2):
            scores = {}
            for name in ("given", "own"):
                folder = tmp_path / "run" / f"stage-{stage}-{name}"
                scores[name] = json.loads((folder / "history.jsonl").read_text().splitlines()[-1])["val_miou"]
            assert scores[stages[stage]["masks"]] == max(scores.values())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("checkpoint.pt")}
    again = self_train(config)  # finds everything done
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.history == trained.history


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (SelfTrainConfig, {"strategy": "gist", "val_split": None}, "needs --val-split"),
        (SelfTrainConfig, {"stages": 0}, "--stages must be at least 1"),
        (SegmentTrainConfig, {"mum_weight": 1.0, "batch_size": 6}, "multiples of 4"),
        (SegmentTrainConfig, {"mum_weight": 1.0, "arch": "dpt"}, "another --arch"),
        (SegmentTrainConfig, {"ohem_keep": 2.0}, "--ohem-keep must be in"),
        (SegmentTrainConfig, {"crf_weight": -1.0}, "--crf-weight must be 0 or more"),
        (SegmentTrainConfig, {"crf_sigma_xy": 0.0}, "--crf-sigma-xy must be positive"),
    ],
)
def test_mistakes(photos, tmp_path, kind, changes, message):
    with pytest.raises(ConfigError, match=message):
        kind(**options(photos, tmp_path, **changes)).validate()
