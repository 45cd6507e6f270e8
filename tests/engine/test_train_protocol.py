"""What the trainer promises to a strategy: own networks, state, label maps, the step; and how gradients add up."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wsol import mix
from wsol.data.transforms import resize_image
from wsol.engine import fit as fit_module
from wsol.engine.label_maps import LabelMaps, dense
from wsol.engine.optim import Schedule, make_optimizer
from wsol.engine.train import train
from wsol.engine.train_options import LoopOptions, TrainConfig
from wsol.engine.train_work import ClassifierViews
from wsol.errors import ConfigError, DataError, ModelError, StoreError
from wsol.mix import StepStrategy
from wsol.mix.cutmix import CutMix
from wsol.models.classifier import load_classifier
from wsol.schema import Sample, ScoreMaps
from wsol.store.atomic import write_text
from wsol.store.maps import write_maps

SET = {"train": 16, "val": 4, "seed": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("synthetic")


def config(root, out, **changes):
    options = {
        "data": "synthetic",
        "root": root,
        "data_options": SET,
        "split": "train",
        "model": "test_resnet",
        "out": out,
        "epochs": 3,
        "batch_size": 4,
        "lr": 3e-3,
        "img_size": 32,
        "workers": 0,
        "device": "cpu",
        "quiet": True,
    }
    return TrainConfig(**(options | changes))


def weights(path):
    return load_classifier(None, checkpoint=str(path)).module.state_dict()


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def rows(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


class Scale(nn.Module):
    """A factor on the logits that is trained, and a moving average that is not."""

    lr_scale = 10.0

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.rand(1))
        self.register_buffer("steps", torch.zeros(()))


@dataclass(frozen=True)
class Scaled(CutMix):
    """CutMix with a network of its own."""

    def own(self, classifier):
        return Scale()

    def loss(self, mixed, output, context):
        assert context.own.training
        return context.criterion(output.logits * context.own.factor, mixed.targets)

    def after_step(self, context):
        context.own.steps += 1

    def check(self, classifier):
        if classifier.name == "test_vit":
            raise ModelError("is a transformer", where=classifier.name, hint="take a CNN")


@dataclass(frozen=True)
class Step(StepStrategy):
    """Two halves of the loss, one after the other."""

    def draw(self, x, generator):
        return {}

    def step(self, x, y, draws, context, *, backward):
        total = context.criterion(context.classifier.module(x), y)
        backward(total * 0.25)
        backward(context.criterion(context.classifier.module(x), y) * 0.75)
        return total.detach()


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(mix.MIXES._entries, "scaled", Scaled)
    monkeypatch.setitem(mix.MIXES._entries, "step", Step)


class StopError(Exception):
    pass


@pytest.mark.parametrize("changes", [{"mix": "scaled"}, {"mix": "scaled", "accumulate": 3, "ema": 0.9}])
def test_own_networks_are_trained_and_continue_bit_for_bit(root, tmp_path, monkeypatch, changes):
    whole = train(config(root, tmp_path / "whole", **changes))
    write = fit_module.write_checkpoint

    def stop_after_two(folder, state):
        write(folder, state)
        if len(state["history"]) == 2:
            raise StopError

    monkeypatch.setattr(fit_module, "write_checkpoint", stop_after_two)
    with pytest.raises(StopError):
        train(config(root, tmp_path / "broken", **changes))
    monkeypatch.setattr(fit_module, "write_checkpoint", write)
    continued = train(config(root, tmp_path / "broken", **changes))
    assert rows(continued.history) == rows(whole.history)
    assert equal(weights(whole.path), weights(continued.path))
    states = [torch.load(run.path / "checkpoint.pt", weights_only=True)["own"] for run in (whole, continued)]
    assert equal(*states)
    assert states[0]["steps"] == 3 * (2 if "accumulate" in changes else 4)
    assert "factor" not in weights(whole.path)


@pytest.mark.parametrize(
    ("name", "options", "model"),
    [
        ("automix", {}, "test_resnet"),
        ("rmix", {"policy": "ppo"}, "test_resnet"),
        ("recursivemix", {}, "test_resnet"),
        ("smmix", {}, "test_vit"),
        ("choice", {"strategies": ["automix", "cutmix"]}, "test_resnet"),
    ],
)
def test_strategies_with_a_state_continue_bit_for_bit(root, tmp_path, monkeypatch, name, options, model):
    changes = {"mix": name, "mix_options": options, "model": model, "epochs": 2}
    changes["img_size"] = 160 if "vit" in model else 64
    whole = train(config(root, tmp_path / "whole", **changes))
    write = fit_module.write_checkpoint

    def stop(folder, state):
        write(folder, state)
        raise StopError

    monkeypatch.setattr(fit_module, "write_checkpoint", stop)
    with pytest.raises(StopError):
        train(config(root, tmp_path / "broken", **changes))
    monkeypatch.setattr(fit_module, "write_checkpoint", write)
    continued = train(config(root, tmp_path / "broken", **changes))
    assert rows(continued.history) == rows(whole.history)
    assert equal(weights(whole.path), weights(continued.path))


def test_own_networks_move_at_their_own_rate():
    own, module = nn.ModuleDict({"a": Scale(), "b": nn.Linear(2, 3)}), nn.Linear(2, 2)
    options = LoopOptions(out=Path(), epochs=2, lr=0.1, opt="sgd", weight_decay=0.5)
    for sched in ("cosine", "none"):
        optimizer = make_optimizer(module, replace(options, sched=sched), own=own)
        schedule = Schedule(optimizer, replace(options, sched=sched), steps=2)
        schedule.set(1)
        base = optimizer.param_groups[0]["lr"]
        found = {
            id(parameter): (group["lr"] / base, group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        assert found[id(own["a"].factor)] == (pytest.approx(10.0), 0.0)
        assert found[id(own["b"].weight)] == (pytest.approx(1.0), 0.5)
        assert found[id(own["b"].bias)] == (pytest.approx(1.0), 0.0)
        assert len(found) == 5


def test_a_strategy_may_refuse_a_model(root, tmp_path):
    with pytest.raises(ModelError, match="test_vit: is a transformer"):
        train(config(root, tmp_path / "run", mix="scaled", model="test_vit", img_size=160))
    with pytest.raises(ModelError, match="no attention between all patches"):
        train(config(root, tmp_path / "run", mix="transmix"))
    assert not (tmp_path / "run").exists()


def test_a_strategy_may_take_the_step(root, tmp_path):
    replaced = train(config(root, tmp_path / "step", mix="step", epochs=2, model="test_resnet", freeze_backbone=True))
    plain = train(config(root, tmp_path / "plain", epochs=2, model="test_resnet", freeze_backbone=True))
    for row, other in zip(replaced.history, plain.history, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
    one, two = weights(replaced.path), weights(plain.path)
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("model", ["test_vit", "test_resnet"])
def test_accumulation_is_a_larger_batch(root, tmp_path, model):
    """Exact up to rounding without batch norm; the frozen ResNet runs on its stored statistics."""
    changes = {"model": model, "opt": "sgd", "img_size": 160 if model == "test_vit" else 32, "epochs": 2, "lr": 0.01}
    changes["freeze_backbone"] = model == "test_resnet"
    large = train(config(root, tmp_path / "large", batch_size=8, **changes))
    small = train(config(root, tmp_path / "small", batch_size=2, accumulate=4, **changes))
    one, two = weights(large.path), weights(small.path)
    start = load_classifier(model, num_classes=5, img_size=changes["img_size"]).module.state_dict()
    assert one.keys() == start.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert rows(large.history)[0]["lr"] == rows(small.history)[0]["lr"]


def test_what_is_left_of_an_epoch_is_a_step(root, tmp_path):
    result = train(config(root, tmp_path / "run", mix="scaled", accumulate=3, epochs=1))
    assert torch.load(result.path / "checkpoint.pt", weights_only=True)["own"]["steps"] == 2  # 3 + 1 batches


def test_layer_decay(root, tmp_path):
    train(config(root, tmp_path / "run", layer_decay=0.5, epochs=1, model="test_vit", img_size=160))
    groups = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["optimizer"]["param_groups"]
    scales = sorted({group["lr_scale"] for group in groups})
    np.testing.assert_allclose(scales, [0.5**at for at in range(len(scales))][::-1])
    assert len(scales) > 4
    assert all(group["lr"] == pytest.approx(max(g["lr"] for g in groups) * group["lr_scale"]) for group in groups)
    with pytest.raises(ConfigError, match="--layer-decay must be"):
        train(config(root, tmp_path / "bad", layer_decay=1.5))


@pytest.mark.parametrize("changes", [{"loss": "asl"}, {"class_balance": 0.99}, {"loss": "asl", "class_balance": 0.9}])
def test_losses_train(root, tmp_path, changes):
    plain = train(config(root, tmp_path / "plain", epochs=2)).history
    other = train(config(root, tmp_path / "other", epochs=2, mix="mixup", **changes)).history
    assert all(np.isfinite(row["loss"]) for row in other)
    assert other[0]["loss"] != plain[0]["loss"]


LAUNCH = """
from pathlib import Path
from wsol.engine.train import train
from wsol.engine.train_options import TrainConfig
train(TrainConfig(**{options!r} | {{"root": Path({root!r}), "out": Path({out!r})}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["none", "cutmix", "choice"])
def test_two_processes_are_one_that_accumulates(root, tmp_path, strategy):
    options = {**vars(config(root, tmp_path, model="test_vit", img_size=160, epochs=2, ema=0.5))}
    options |= {"val_split": "val", "mix": strategy, "clip_grad": 1.0}
    script = tmp_path / "script.py"
    two = tmp_path / "two"
    plain = {name: value for name, value in options.items() if name not in ("root", "out")}
    script.write_text(LAUNCH.format(options=plain, root=str(root), out=str(two)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    one = train(TrainConfig(**(options | {"out": tmp_path / "one", "accumulate": 2})))
    assert rows(one.history) == rows(fit_module.read_history(two))
    assert equal(weights(one.path), weights(two))
    files = [sorted(path.name for path in run.iterdir() if path.name != "log.txt") for run in (tmp_path / "one", two)]
    assert files[0] == files[1]


def test_several_processes_need_as_many_batches(root, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="4 batches an epoch are too few for 5 processes"):
        fit_module._share(4, fit_module.World(0, 5))
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = LoopOptions(out=tmp_path, quiet=True)
    with pytest.raises(ConfigError, match="runs in one process"):
        fit_module.fit(nn.Linear(1, 1), options, device=torch.device("cpu"), steps=1, batches=iter, loss_of=None)


# Label maps ------------------------------------------------------------------------------------------------------


def test_label_maps_follow_the_crop_and_the_mirror(tmp_path):
    """A smooth picture that is its own label map: both must show the same after cutting and mirroring."""
    from PIL import Image

    height, width = 193, 257
    y, x = np.mgrid[:height, :width]
    plane = 0.5 + 0.25 * np.sin(x / 31) + 0.25 * np.cos(y / 23)
    Image.fromarray((255 * np.repeat(plane[..., None], 3, 2)).astype(np.uint8)).save(tmp_path / "a.png")
    grid = resize_image((255 * np.repeat(plane[..., None], 3, 2)).astype(np.uint8), (97, 129))[..., 0] / 255
    write_maps(
        tmp_path / "run",
        ScoreMaps(
            id="a", values=grid[None].astype(np.float16), class_ids=np.array([2], np.int16), image_size=(height, width)
        ),
    )
    views = ClassifierViews(
        num_classes=4,
        multi_label=True,
        img_size=64,
        interpolation="bilinear",
        crop_scale=(0.2, 0.9),
        hflip=0.5,
        label_maps=LabelMaps(tmp_path / "run", 64),
    )
    sample = Sample(id="a", image=tmp_path / "a.png", labels=(2,))
    lefts = set()
    for seed in range(12):
        pixels, target, cut = views(sample, np.random.default_rng(seed))
        expected = pixels[..., 0].reshape(4, 16, 4, 16).mean((1, 3)) / 255
        maps = dense([cut], 4, torch.device("cpu")).numpy()
        assert maps.shape == (1, 4, 4, 4)
        assert not maps[0, [0, 1, 3]].any()
        np.testing.assert_allclose(maps[0, 2], expected, atol=0.06)
        assert target.tolist() == [0, 0, 1, 0]
        lefts.add(bool(expected[:, 0].mean() < expected[:, -1].mean()))
    assert lefts == {True, False}


def test_training_with_label_maps(root, tmp_path):
    from wsol.engine.make_maps import make_maps
    from wsol.engine.options import CamConfig

    start = train(config(root, tmp_path / "teacher", epochs=1))
    job = {"data": "synthetic", "root": root, "data_options": SET, "split": "train", "checkpoint": str(start.path)}
    make_maps(CamConfig(out=tmp_path / "maps", device="cpu", workers=0, quiet=True, **job))
    student = {"mix": "tokenmix", "mix_options": {"maps": "teacher"}, "model": "test_vit", "img_size": 160, "epochs": 1}
    result = train(config(root, tmp_path / "student", label_maps=tmp_path / "maps", **student))
    assert np.isfinite(result.history[0]["loss"])
    next((tmp_path / "maps" / "maps").glob("*.npz")).unlink()
    without = train(config(root, tmp_path / "fewer", label_maps=tmp_path / "maps", **student))
    assert "no score maps" in next(iter(without.failures.values()))


def test_mistakes_with_label_maps(root, tmp_path):
    with pytest.raises(ConfigError, match="looks at no label maps"):
        train(config(root, tmp_path / "run", label_maps=tmp_path))
    student = {"mix": "tokenmix", "mix_options": {"maps": "teacher"}, "model": "test_vit", "img_size": 160}
    with pytest.raises(ConfigError, match="give --label-maps RUN"):
        train(config(root, tmp_path / "run", **student))
    with pytest.raises(StoreError, match="no score maps here"):
        train(config(root, tmp_path / "run", label_maps=tmp_path, **student))
    (tmp_path / "maps").mkdir()
    write_text(tmp_path / "dataset.yaml", "classes: [a, b]\n")
    with pytest.raises(StoreError, match="2 other classes"):
        train(config(root, tmp_path / "run", label_maps=tmp_path, **student))
