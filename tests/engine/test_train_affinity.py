"""Training affinities: certain labels, losses by hand, learning, resuming, and the way from the maps to masks."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from wsol import data
from wsol.cli import instances as instances_verb
from wsol.cli import train_affinity as verb
from wsol.data.synthetic import write_synthetic
from wsol.engine import fit as fit_module
from wsol.engine.affinity_labels import certain_labels
from wsol.engine.affinity_loss import irn_loss, pair_labels, psa_loss
from wsol.engine.affinity_options import AffinityConfig, IRNLabels, PSALabels
from wsol.engine.make_masks import make_masks
from wsol.engine.options import CamConfig
from wsol.engine.refine_options import RefineConfig
from wsol.engine.train_affinity import train_affinity
from wsol.errors import ConfigError, DataError, ModelError, StoreError
from wsol.models.affinity import load_affinity
from wsol.models.pixel_pairs import displacement_difference
from wsol.ops.random_walk import neighbour_offsets
from wsol.schema import ScoreMaps
from wsol.store.manifest import Manifest
from wsol.store.maps import map_path, write_maps
from wsol.store.masks import mask_path, read_labels
from wsol.store.runs import open_run


@pytest.fixture(scope="module")
def maps_run(tmp_path_factory):
    """A run as wsol cam leaves it: coarse maps made from the true masks of a small synthetic set."""
    root = tmp_path_factory.mktemp("affinity")
    write_synthetic(root / "set", train=6, val=1, sides=(50, 80), classes=2)
    dataset = data.load("synthetic", root=root / "set")
    config = CamConfig(data="synthetic", root=root / "set", model="test_resnet", out=root / "maps")
    with open_run(config.out, verb="cam", config=config, dataset=dataset.spec), Manifest(config.out) as manifest:
        for sample in dataset:
            truth = dataset.read_truth(sample)
            planes = [cv2.resize((truth == label + 1).astype(np.float32), (11, 9)) for label in sample.labels]
            values = np.stack(planes).astype(np.float16)
            maps = ScoreMaps(id=sample.id, values=values, class_ids=sample.labels, image_size=truth.shape)
            write_maps(config.out, maps)
            manifest.done(sample.id)
    return config.out


def config(maps, out, **changes):
    options = {
        "maps": maps,
        "out": out,
        "model": "test_resnet",
        "img_size": 64,
        "zoom": (0.8, 1.2),
        "epochs": 2,
        "batch_size": 3,
        "options": {"radius": 4},
        "workers": 0,
        "device": "cpu",
        "quiet": True,
    }
    return AffinityConfig(**(options | changes))


@pytest.mark.parametrize("method", ["psa", "irn"])
def test_the_loss_falls(maps_run, tmp_path, method):
    changes = {"freeze_backbone": False, "opt": "adamw", "lr": 3e-4, "epochs": 16, "batch_size": 6, "sched": "none"}
    result = train_affinity(config(maps_run, tmp_path / "run", method=method, **changes))
    losses = [row["loss"] for row in result.history]
    assert result.status == 0
    assert np.mean(losses[-3:]) < (0.75 if method == "psa" else 0.96) * np.mean(losses[:2])


def test_rates_follow_the_polynomial_and_the_heads_learn_faster(maps_run, tmp_path):
    result = train_affinity(config(maps_run, tmp_path / "run", epochs=3))
    last_steps = np.array([1, 3, 5])  # two steps an epoch, six in all
    expected = 10 * 0.1 * (1 - last_steps / 6) ** 0.9
    np.testing.assert_allclose([row["lr"] for row in result.history], expected, rtol=1e-6)


class StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["psa", "irn"])
def test_an_interrupted_training_continues_bit_for_bit(maps_run, tmp_path, monkeypatch, method):
    train_affinity(config(maps_run, tmp_path / "whole", method=method))
    write = fit_module.write_checkpoint

    def stop_after_one(folder, state):
        write(folder, state)
        raise StopError

    monkeypatch.setattr(fit_module, "write_checkpoint", stop_after_one)
    with pytest.raises(StopError):
        train_affinity(config(maps_run, tmp_path / "broken", method=method))
    monkeypatch.undo()
    train_affinity(config(maps_run, tmp_path / "broken", method=method))
    one, two = (load_affinity(tmp_path / name, method=method).module.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_from_maps_to_masks_and_instances(maps_run, tmp_path, capsys):
    words = ["--maps", str(maps_run), "--out", str(tmp_path / "irn"), "--model", "test_resnet", "--img-size", "64"]
    words += ["--epochs", "1", "--batch-size", "3", "--options.radius", "4", "--workers", "0", "--device", "cpu"]
    assert verb.run([*words, "--quiet"]) == 0
    info = json.loads((tmp_path / "irn" / "run.json").read_text())
    assert info["verb"] == "refine train-affinity"
    assert info["config"]["options"] == {"radius": 4}
    with pytest.raises(StoreError, match="has ended"):
        verb.run([*words, "--quiet"])
    assert verb.run([*words, "--quiet", "--resume"]) == 0

    options = {"checkpoint": str(tmp_path / "irn"), "steps": 4}
    refine = {"maps": maps_run, "out": tmp_path / "masks", "method": "irn", "workers": 0, "quiet": True}
    assert make_masks(RefineConfig(**refine, options=options)).done == 6

    words = ["--maps", str(maps_run), "--out", str(tmp_path / "objects"), "--workers", "0", "--quiet"]
    words += ["--options.checkpoint", str(tmp_path / "irn"), "--options.steps", "4"]
    assert instances_verb.run(words) == 0
    coco = COCO(str(tmp_path / "objects" / "instances.coco.json"))
    assert len(coco.getImgIds()) == 6
    assert coco.getAnnIds()
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"] >= 0.01 * mask.size
        x, y, width, height = annotation["bbox"]
        assert mask[y : y + height, x : x + width].sum() == annotation["area"]
        assert 0 < annotation["score"] <= 1
    first = (tmp_path / "objects" / "instances.coco.json").read_bytes()
    next((tmp_path / "objects" / "instances").rglob("*.json")).write_text("torn")
    assert instances_verb.run(words) == 0
    assert (tmp_path / "objects" / "instances.coco.json").read_bytes() == first
    capsys.readouterr()


def test_images_without_maps_are_left_out(maps_run, tmp_path):
    copy = tmp_path / "maps"
    for path in maps_run.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(maps_run)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(maps_run)).write_bytes(path.read_bytes())
    map_path(copy, "train_00001").write_bytes(b"torn")
    result = train_affinity(config(copy, tmp_path / "run", epochs=1))
    assert set(result.failures) == {"train_00001"}
    assert result.status == 1
    for path in (copy / "maps").rglob("*.npz"):
        path.unlink()
    with pytest.raises(DataError, match="no image has score maps"):
        train_affinity(config(copy, tmp_path / "none", epochs=1))


def test_labels_hold_class_ids(maps_run, tmp_path):
    train_affinity(config(maps_run, tmp_path / "run", epochs=1))
    dataset, certain = data.load("synthetic", root=maps_run.parent / "set"), []
    for sample in dataset:
        labels, truth = read_labels(mask_path(tmp_path / "run", sample.id)), dataset.read_truth(sample)
        assert set(np.unique(labels)) <= {0, 255, *(label + 1 for label in sample.labels)}
        certain.append((labels == truth)[(labels != 255) & (truth != 255)].mean())
    assert np.mean(certain) > 0.85


def flat_image(size=(33, 47)):
    image = np.full((*size, 3), 40, np.uint8)
    image[:, 24:] = 210
    return image


@pytest.mark.parametrize("rule", [PSALabels(), IRNLabels()])
def test_what_two_readings_agree_on_is_certain(rule):
    maps = np.zeros((2, 33, 47), np.float32)
    maps[1, :, 24:] = 0.95
    labels = certain_labels(flat_image(), maps, rule)
    assert (labels[:, :20] == 0).all()
    assert (labels[:, 28:] == 2).all()
    middling = 0.15 if isinstance(rule, IRNLabels) else 0.2  # background for the one reading, foreground for the other
    maps[1, :, 24:] = middling
    labels = certain_labels(flat_image(), maps, rule)
    assert (labels[:, 28:] == 255).all()
    assert (certain_labels(flat_image(), maps[:0], rule) == 0).all()


def naive_pairs(labels, offsets):
    batch, height, width = labels.shape
    kinds = np.zeros((3, batch, len(offsets), height, width))
    for b in range(batch):
        for at, (dy, dx) in enumerate(offsets.tolist()):
            for y in range(height):
                for x in range(width):
                    if not (0 <= y + dy < height and 0 <= x + dx < width):
                        continue
                    one, two = labels[b, y, x], labels[b, y + dy, x + dx]
                    if 255 not in (one, two):
                        kinds[(0 if one == 0 else 1) if one == two else 2, b, at, y, x] = 1
    return kinds


def test_losses_by_hand():
    rng, offsets = np.random.default_rng(0), neighbour_offsets(3)
    labels = rng.choice([0, 1, 2, 255], (2, 5, 7)).astype(np.uint8)
    affinity, field = rng.random((2, len(offsets), 5, 7)), rng.normal(0, 2, (2, 2, 5, 7))
    kinds = naive_pairs(labels, offsets)
    pairs = pair_labels(torch.from_numpy(labels), offsets)
    for mine, naive in zip(pairs, kinds, strict=True):
        np.testing.assert_array_equal(mine.numpy(), naive)
    total = {name: [0.0] * 3 for name in ("same", "other", "shift", "still")}
    for kind, b, at, y, x in np.argwhere(kinds).tolist():
        dy, dx = offsets[at].tolist()
        move = field[b, :, y, x] - field[b, :, y + dy, x + dx]
        total["same"][kind] -= np.log(affinity[b, at, y, x] + 1e-5)
        total["other"][kind] -= np.log(1 + 1e-5 - affinity[b, at, y, x])
        total["shift"][kind] += np.abs(move - [dy, dx]).sum() / 2
        total["still"][kind] += np.abs(move).sum() / 2
    count = kinds.sum((1, 2, 3, 4))
    assert count.min() > 0
    expected = total["same"][0] / count[0] / 4 + total["same"][1] / count[1] / 4 + total["other"][2] / count[2] / 2
    tensors = torch.from_numpy(affinity), displacement_difference(torch.from_numpy(field), offsets)
    assert psa_loss(tensors[0], pairs).item() == pytest.approx(expected, rel=1e-4)
    expected += total["shift"][1] / count[1] / 2 + total["still"][0] / count[0] / 2
    assert irn_loss(*tensors, offsets, pairs).item() == pytest.approx(expected, rel=1e-4)


def test_labels_without_pairs_give_no_loss():
    affinity = torch.full((1, 4, 5, 7), 0.5, requires_grad=True)
    pairs = pair_labels(torch.full((1, 5, 7), 255, dtype=torch.uint8), neighbour_offsets(2)[[0, 1, 1, 1]])
    loss = psa_loss(affinity, pairs)
    loss.backward()
    assert loss.item() == 0
    assert not affinity.grad.any()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": None}, ConfigError, "no model"),
        ({"model": "test_resne"}, ModelError, "did you mean"),
        ({"img_size": 70}, ConfigError, "multiple of 32"),
        ({"options": {"radius": 1}}, ConfigError, "radius"),
        ({"options": {"low_alpha": 4.0}}, ConfigError, "unknown option 'low_alpha'"),
        ({"options": {"foreground": 0.01}}, ConfigError, "background < foreground"),
        ({"method": "psa", "options": {"low_alpha": 40.0}}, ConfigError, "below high_alpha"),
        ({"zoom": (1.0, 0.5)}, ConfigError, "--zoom"),
        ({"opt": "momentm"}, ConfigError, "did you mean"),
    ],
)
def test_mistakes(maps_run, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        train_affinity(config(maps_run, tmp_path / "run", **changes))


def test_mistakes_of_the_verb(maps_run, tmp_path):
    with pytest.raises(ConfigError, match="no training for 'irm'"):
        verb.run(["--maps", str(maps_run), "--out", str(tmp_path / "run"), "--method", "irm"])
    with pytest.raises(ConfigError, match="no network"):
        instances_verb.run(["--maps", str(maps_run), "--out", str(tmp_path / "run")])
