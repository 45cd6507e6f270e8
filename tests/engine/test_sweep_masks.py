"""Choosing the background score and the options of a refiner."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest

from wsol.cli.main import main
from wsol.config import load_yaml
from wsol.data import synthetic
from wsol.engine.make_masks import dataset_of_run, make_masks
from wsol.engine.options import CamConfig
from wsol.engine.refine_options import RefineConfig
from wsol.engine.sweep_masks import SweepConfig, settings, sweep_masks
from wsol.errors import ConfigError, DataError, ModelError
from wsol.ops.confusion import confusion_matrix, mean_iou
from wsol.schema import ScoreMaps
from wsol.store.manifest import Manifest
from wsol.store.maps import write_maps
from wsol.store.masks import mask_path, read_labels
from wsol.store.runs import open_run


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """Maps made of the true masks: 0.6 inside with holes of 0.3, 0.2 outside."""
    out = tmp_path_factory.mktemp("sweep") / "maps"
    root = tmp_path_factory.mktemp("synthetic")
    synthetic.write_synthetic(root, train=6, val=1, sides=(40, 60))
    dataset = synthetic.load(root=root, split="train")
    config = CamConfig(out=out, data="synthetic", root=root, split="train", model="test_resnet")
    rng = np.random.default_rng(0)
    with open_run(out, verb="cam", config=config, dataset=dataset.spec), Manifest(out, (0, 1)) as manifest:
        for sample in dataset:
            truth = dataset.read_truth(sample)
            inside = np.where(rng.random(truth.shape) < 0.3, 0.3, 0.6)
            values = np.stack([np.where(truth == label + 1, inside, 0.2) for label in sample.labels])
            ids = np.array(sample.labels, dtype=np.int16)
            write_maps(out, ScoreMaps(sample.id, values.astype(np.float16), ids, truth.shape, None))
            manifest.done(sample.id)
    return out


def test_the_best_setting_is_found_and_repeats(maps, tmp_path):
    config = SweepConfig(
        maps=maps, out=tmp_path / "sweep", backgrounds=(0.1, 0.25, 0.5), alphas=(1.0,), workers=0, quiet=True
    )
    outcome = sweep_masks(config)
    assert outcome.status == 0
    rows = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 4
    assert float(rows[0]["miou"]) == max(float(row["miou"]) for row in rows)
    recipe = load_yaml(tmp_path / "sweep" / "recipe.yaml")
    assert recipe["background"] == 0.25  # above what is outside, below the holes
    make_masks(RefineConfig(maps=maps, out=tmp_path / "masks", workers=0, quiet=True, **recipe))
    dataset = dataset_of_run(maps)
    total = 0
    for sample in dataset:
        labels = read_labels(mask_path(tmp_path / "masks", sample.id))
        total = total + confusion_matrix(dataset.read_truth(sample), labels, len(dataset.spec.classes) + 1)
    assert 100 * mean_iou(total) == pytest.approx(float(rows[0]["miou"]), abs=1e-3)


def test_options_vary_in_all_combinations(maps, tmp_path):
    config = SweepConfig(
        maps=maps,
        out=tmp_path,
        method="pamr,densecrf",
        backgrounds=(0.2,),
        vary=("pamr.iterations=1,2", "densecrf.srgb=3,5,7.5"),
        options={"densecrf": {"preset": "irn"}},
    )
    tried = settings(config)
    assert len(tried) == 6
    assert tried[-1].options == {"pamr": {"iterations": 2}, "densecrf": {"preset": "irn", "srgb": 7.5}}
    assert len({str(setting) for setting in tried}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vary": ("iterations",)}, "NAME=VALUE"),
        ({"method": "pamr", "vary": ("iteration=1",)}, "did you mean 'iterations'"),
        ({"backgrounds": (), "alphas": ()}, "nothing to try"),
        ({"shard": "0/2"}, "not split"),
    ],
)
def test_mistakes_are_named(maps, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        sweep_masks(SweepConfig(maps=maps, out=tmp_path / "out", **changes))


def test_the_command_writes_a_recipe_that_the_command_takes(maps, tmp_path):
    flags = ["--maps", str(maps), "--workers", "0", "--quiet"]
    sweep = [
        "refine",
        "--sweep",
        *flags,
        "--out",
        str(tmp_path / "s"),
        "--method",
        "pamr",
        "--backgrounds",
        "0.2",
        "0.3",
    ]
    assert main([*sweep, "--vary", "iterations=1,2"]) == 0
    assert main(["refine", *flags, "-c", str(tmp_path / "s" / "recipe.yaml"), "--out", str(tmp_path / "m")]) == 0
    assert len(list((tmp_path / "m" / "masks").rglob("*.png"))) == 6


def test_a_refiner_without_its_network_ends_the_sweep(maps, tmp_path):
    config = SweepConfig(maps=maps, out=tmp_path / "s", method="psa", options={"checkpoint": str(tmp_path)}, workers=0)
    with pytest.raises(ModelError, match="no network of affinities"):
        sweep_masks(config)
    assert not (tmp_path / "s" / "recipe.yaml").exists()


def test_no_image_is_no_recipe(maps, tmp_path):
    broken = shutil.copytree(maps, tmp_path / "maps")
    for path in (broken / "maps").rglob("*.npz"):
        path.write_bytes(b"torn")
    with pytest.raises(DataError, match="no image could be measured"):
        sweep_masks(SweepConfig(maps=broken, out=tmp_path / "s", workers=0, quiet=True))
    assert not (tmp_path / "s" / "recipe.yaml").exists()
