"""Training classifiers: it learns, it continues bit for bit, and it survives bad images."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from wsol.engine import fit as fit_module
from wsol.engine.losses import smooth
from wsol.engine.train import train
from wsol.engine.train_options import TrainConfig
from wsol.errors import ConfigError, DataError, ModelError, StoreError
from wsol.models.classifier import load_classifier
from wsol.store.runs import read_info

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (220, 30, 20)}


def draw(names, size, rng):
    """A noisy picture with a patch of each colour."""
    image = rng.integers(90, 140, (*size, 3)).astype(np.uint8)
    for name, column in zip(names, (2, size[1] // 2), strict=False):
        image[3 : size[0] // 2 + 5, column : column + size[1] // 3] = COLOURS[name]
    return Image.fromarray(image)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes, one a photo; 12 to train on and 6 to validate, all of odd sizes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in COLOURS:
            folder = root / split / name
            folder.mkdir(parents=True)
            for at in range(count):
                draw([name], (37 + 2 * at, 53 - 4 * at), rng).save(folder / f"{at}.png")
    return root


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """One or two classes a photo, listed in a table."""
    root, rows = tmp_path_factory.mktemp("several"), []
    rng, names = np.random.default_rng(1), list(COLOURS)
    for at in range(24):
        chosen = [names[at % 3]] + ([names[(at // 3) % 3]] if (at // 3) % 3 != at % 3 else [])
        draw(chosen, (41, 33 + 2 * (at % 5)), rng).save(root / f"{at}.png")
        rows.append({"file": f"{at}.png", "labels": chosen, "split": "val" if at >= 16 else "train"})
    (root / "labels.json").write_text(json.dumps(rows))
    return root


def config(root, out, **changes):
    options = {
        "data": "folder",
        "root": root,
        "model": "test_resnet",
        "out": out,
        "epochs": 3,
        "batch_size": 4,
        "lr": 3e-3,
        "img_size": 32,
        "crop_scale": (0.5, 1.0),
        "workers": 0,
        "device": "cpu",
        "quiet": True,
    }
    return TrainConfig(**(options | changes))


def weights(path):
    return load_classifier(None, checkpoint=str(path)).module.state_dict()


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
def test_it_learns_with_every_strategy(photos, tmp_path, mix):
    result = train(config(photos, tmp_path / "run", mix=mix, val_split="val", epochs=12))
    assert result.status == 0
    losses = [row["loss"] for row in result.history]
    assert sum(losses[-4:]) < sum(losses[:4])  # the loss of one epoch depends on how its images were mixed
    assert result.history[-1]["val_top1"] >= 66.0
    rows = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert rows == result.history
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert {"loss", "lr", "val_top1", "seconds"} <= set(rows[0])
    assert not any(name.startswith(".tmp") for name in (path.name for path in (tmp_path / "run").iterdir()))


def test_a_linear_probe_is_one_pass(photos, tmp_path):
    result = train(config(photos, tmp_path / "run", linear_probe=True, val_split="val"))
    assert [row["epoch"] for row in result.history] == [1]
    assert result.history[0]["val_top1"] >= 66.0
    before, after = load_classifier("test_resnet", num_classes=3).module, weights(tmp_path / "run")
    assert before.fc.weight.shape == after["fc.weight"].shape
    again = train(config(photos, tmp_path / "again", linear_probe=True, val_split="val"))
    assert equal(after, weights(again.path))
    with pytest.raises(ConfigError, match="--linear-probe"):
        train(config(photos, tmp_path / "mixed", linear_probe=True, mix="cutmix"))


def test_several_labels_an_image(several, tmp_path):
    result = train(config(several, tmp_path / "run", val_split="val", epochs=12, resize="squash", mix="cutmix"))
    assert read_info(tmp_path / "run").facts["loss"] == "bce"
    assert result.history[-1]["val_map"] > 80.0
    assert "val_top1" not in result.history[-1]


@pytest.mark.parametrize("model", ["test_efficientnet", "test_vit"])
def test_other_networks(photos, tmp_path, model):
    result = train(config(photos, tmp_path / "run", model=model, epochs=1, amp=True, smoothing=0.1, clip_grad=1.0))
    assert np.isfinite(result.history[0]["loss"])


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"mix": "cutmix", "sched": "cosine", "warmup_epochs": 1},
        {"mix": "mixup", "sched": "step", "decay_epochs": 1.0, "ema": 0.9, "opt": "sgd", "color_jitter": 0.3},
    ],
)
def test_an_interrupted_training_continues_bit_for_bit(photos, tmp_path, monkeypatch, changes):
    whole = train(config(photos, tmp_path / "whole", val_split="val", epochs=4, **changes))
    write = fit_module.write_checkpoint

    def stop_after_two(folder, state):
        write(folder, state)
        if len(state["history"]) == 2:
            raise StopError

    monkeypatch.setattr(fit_module, "write_checkpoint", stop_after_two)
    torch.manual_seed(99)  # nothing may depend on the caller's generator
    with pytest.raises(StopError):
        train(config(photos, tmp_path / "broken", val_split="val", epochs=4, **changes))
    monkeypatch.undo()
    assert not (tmp_path / "broken" / "model.safetensors").exists()
    continued = train(config(photos, tmp_path / "broken", val_split="val", epochs=4, workers=1, **changes))
    strip = [{name: value for name, value in row.items() if name != "seconds"} for row in continued.history]
    assert strip == [{name: value for name, value in row.items() if name != "seconds"} for row in whole.history]
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


def test_a_killed_process_continues(photos, tmp_path):
    options = config(photos, tmp_path / "run", epochs=3)
    code = f"""
import os
from pathlib import Path
from wsol.engine import fit
from wsol.engine.train import train
from wsol.engine.train_options import TrainConfig
write = fit.write_checkpoint
def kill(folder, state):
    write(folder, state)
    os.kill(os.getpid(), 9)
fit.write_checkpoint = kill
train(TrainConfig(**{ {**vars(options), "root": str(photos), "out": None}!r} | {{"out": Path({str(options.out)!r})}}))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == -9, answer.stderr
    assert len(train(options).history) == 3
    assert equal(weights(options.out), weights(train(config(photos, tmp_path / "other", epochs=3)).path))


def test_another_seed_gives_another_network(photos, tmp_path):
    one = train(config(photos, tmp_path / "one", epochs=1))
    two = train(config(photos, tmp_path / "two", epochs=1, seed=1))
    assert not equal(weights(one.path), weights(two.path))


def test_the_caller_keeps_its_random_numbers(photos, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train(config(photos, tmp_path / "run", epochs=1))
    assert torch.equal(torch.rand(3), expected)


def test_the_folder_of_an_ended_training(photos, tmp_path):
    options = config(photos, tmp_path / "run", epochs=1)
    first = train(options)
    with pytest.raises(StoreError, match="has ended.*--resume"):
        train(options)
    assert train(config(photos, tmp_path / "run", epochs=1, resume=True)).history == first.history
    with pytest.raises(StoreError, match="other options: epochs was 1"):
        train(config(photos, tmp_path / "run", epochs=2))
    assert len(train(config(photos, tmp_path / "run", epochs=2, overwrite=True)).history) == 2


def test_bad_images_are_left_out_and_named_once(photos, tmp_path, caplog):
    root = tmp_path / "photos"
    for path in photos.rglob("*.png"):
        (root / path.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        (root / path.relative_to(photos)).write_bytes(path.read_bytes())
    (root / "train" / "red" / "torn.png").write_bytes((root / "train" / "red" / "0.png").read_bytes()[:300])
    (root / "train" / "unlabelled.png").write_bytes((root / "train" / "red" / "0.png").read_bytes())
    with caplog.at_level(logging.INFO, logger="wsol"):
        result = train(config(root, tmp_path / "run", epochs=4, batch_size=7))
    assert set(result.failures) == {"red/torn.png", "unlabelled.png"}
    assert result.status == 1
    assert sum("red/torn.png" in record.getMessage() for record in caplog.records) == 1
    assert "expected one label, got 0" in result.failures["unlabelled.png"]
    assert read_info(result.path).facts["failed"] == 2


def test_only_bad_images_end_with_a_reason(tmp_path):
    for name in ("red", "blue"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="no batch of this epoch"):
        train(config(tmp_path / "photos", tmp_path / "run"))


def test_a_diverged_training_stops(photos, tmp_path):
    with pytest.raises(ModelError, match="loss of epoch 1 is"):
        train(config(photos, tmp_path / "run", opt="sgd", lr=1e30))


def test_the_moving_average_is_what_is_saved(photos, tmp_path):
    run = tmp_path / "run"
    train(config(photos, run, epochs=1, ema=0.9))
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert equal(state["ema"], weights(run))
    assert not equal(state["module"], state["ema"])


def test_freezing_keeps_the_backbone(photos, tmp_path):
    start = train(config(photos, tmp_path / "start", epochs=1))
    frozen = config(photos, tmp_path / "head", epochs=2, checkpoint=str(start.path), freeze_backbone=True, ema=0.5)
    before, after = weights(start.path), weights(train(frozen).path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_learning_rates_of_the_schedules(photos, tmp_path):
    def rates(**changes):
        name = "-".join(str(value) for value in changes.values())
        result = train(config(photos, tmp_path / name, epochs=4, lr=1e-2, **changes))
        return [row["lr"] for row in result.history]

    last = np.arange(1, 5) * 3 - 1  # the last of three steps of each epoch
    assert rates(sched="none") == [1e-2] * 4
    np.testing.assert_allclose(rates(sched="cosine"), 1e-2 * (1 + np.cos(np.pi * last / 12)) / 2)
    np.testing.assert_allclose(rates(sched="poly"), 1e-2 * (1 - last / 12) ** 0.9)
    np.testing.assert_allclose(rates(sched="step", decay_epochs=2.0), [1e-2, 1e-2, 1e-3, 1e-3])
    assert rates(sched="cosine", warmup_epochs=2)[0] < 1e-2


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": None}, ConfigError, "no model"),
        ({"opt": "adamv"}, ConfigError, "did you mean 'adam"),
        ({"epochs": 0}, ConfigError, "--epochs must be at least 1"),
        ({"warmup_epochs": 3}, ConfigError, "--warmup-epochs must be fewer"),
        ({"lr": float("inf")}, ConfigError, "--lr must be positive"),
        ({"min_lr": -1e-5}, ConfigError, "--min-lr must be at least 0 and at most --lr"),
        ({"min_lr": 1.0}, ConfigError, "--min-lr must be at least 0 and at most --lr"),
        ({"sched": "step", "decay_epochs": 0.0}, ConfigError, "--decay-epochs must be positive"),
        ({"sched": "poly", "decay_rate": -1.0}, ConfigError, "--decay-rate must be positive"),
        ({"crop_scale": (0.9, 0.1)}, ConfigError, "--crop-scale"),
        ({"mix": "cutmux"}, ConfigError, "did you mean 'cutmix'"),
        ({"mix_options": {"alpha": 1.0}}, ConfigError, "unknown option 'alpha'"),
        ({"val_split": "valid"}, DataError, "no split 'valid'"),
        ({"device": "gpu"}, ModelError, "unknown device 'gpu'"),
    ],
)
def test_mistakes_end_before_the_folder_is_made(photos, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        train(config(photos, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_cross_entropy_refuses_several_labels(several, tmp_path):
    with pytest.raises(ConfigError, match="one label an image"):
        train(config(several, tmp_path / "run", loss="ce"))


def test_a_broken_checkpoint_is_named(photos, tmp_path):
    train(config(photos, tmp_path / "run", epochs=1))
    (tmp_path / "run" / "model.safetensors").unlink()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"torn")
    with pytest.raises(StoreError, match="not a checkpoint"):
        train(config(photos, tmp_path / "run", epochs=1))


def test_smoothing():
    y = torch.tensor([[1.0, 0, 0, 0]])
    torch.testing.assert_close(smooth(y, 0.1, multi_label=False), torch.tensor([[0.925, 0.025, 0.025, 0.025]]))
    torch.testing.assert_close(smooth(y, 0.1, multi_label=True), torch.tensor([[0.95, 0.05, 0.05, 0.05]]))
