"""The comparison of strategies: one row each, seeds, resumed, and honest about what failed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wsol.cli.main import main
from wsol.config import config_hash
from wsol.engine.bench_mix import _spread, bench_mix
from wsol.engine.bench_mix_options import BenchMixConfig, slug
from wsol.engine.fit import read_history
from wsol.errors import ConfigError, DataError

SET = {"train": 12, "val": 6, "seed": 3}
STRATEGIES = ("cutmix: {alpha: 0.5}", "none", "transmix", "gridmask")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("synthetic")


def config(root, out, **changes):
    options = {
        "data": "synthetic",
        "root": root,
        "data_options": SET,
        "val_split": "val",
        "model": "test_resnet",
        "out": out,
        "epochs": 1,
        "batch_size": 4,
        "img_size": 64,
        "workers": 0,
        "device": "cpu",
        "quiet": True,
        "strategies": STRATEGIES,
        "seeds": 2,
        "timed_steps": 2,
    }
    return BenchMixConfig(**(options | changes))


def test_rows_by_family(root, tmp_path, monkeypatch):
    rows = bench_mix(config(root, tmp_path / "bench"))
    assert [row.strategy for row in rows] == ["none", "gridmask", "cutmix: {alpha: 0.5}", "transmix"]
    for row in rows[:3]:
        found = [read_history(tmp_path / "bench" / f"{slug(row.strategy)}-seed{seed}")[-1] for seed in (0, 1)]
        assert row.values["map"] == [item["val_map"] for item in found]
        assert row.mean["miou"] == pytest.approx(np.mean([item["val_miou"] for item in found]))
        assert row.spread["miou"] == pytest.approx(np.std([item["val_miou"] for item in found], ddof=1))
        assert row.step_ms > 0
        assert row.values["map"][0] != row.values["map"][1]
    assert "no attention between all patches" in rows[3].error
    saved = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert saved["val"] == {"split": "val", "n": 6}
    assert saved["train"] == {"split": "train", "n": 12}
    assert [row["strategy"] for row in saved["rows"]] == [row.strategy for row in rows]
    monkeypatch.setattr("wsol.engine.train.fit", None)  # nothing is trained again
    again = bench_mix(config(root, tmp_path / "bench"))
    assert [row.values for row in again] == [row.values for row in rows]


def test_the_command_line(root, tmp_path, capsys):
    words = ["bench", "mix", "--data", "synthetic", "--root", str(root), "--val-split", "val", "--model", "test_resnet"]
    for name, value in SET.items():
        words += [f"--data-options.{name}", str(value)]
    words += ["--out", str(tmp_path / "bench"), "--epochs", "1", "--batch-size", "4", "--img-size", "64"]
    words += ["--workers", "0", "--device", "cpu", "--quiet", "--seeds", "1", "--timed-steps", "1", "--strategies"]
    assert main([*words, "none", "mixup: {alpha: 0.2}"]) == 0
    shown = capsys.readouterr().out
    assert "mixup: {alpha: 0.2}" in shown
    assert "seed mIoU" in shown
    assert main([*words, "none", "transmix"]) == 1
    assert "transmix: test_resnet: has no attention" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"mix": "cutmix"}, ConfigError, "give --strategies"),
        ({"strategies": ("cutmux",)}, ConfigError, "did you mean 'cutmix'"),
        ({"strategies": ()}, ConfigError, "at least one strategy"),
        ({"seeds": 0}, ConfigError, "one seed"),
        ({"val_split": None}, ConfigError, "--val-split"),
        ({"split": "trian"}, DataError, "trian"),
    ],
)
def test_mistakes_end_before_anything_is_trained(root, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        bench_mix(config(root, tmp_path / "bench", **changes))
    assert not (tmp_path / "bench").exists()


def test_a_metric_that_is_no_number_has_no_spread():
    assert np.isnan(_spread([0.5, float("nan")]))
    assert np.isnan(_spread([0.5]))
    assert _spread([0.5, 1.5, 4.0]) == pytest.approx(np.std([0.5, 1.5, 4.0], ddof=1))


def test_label_maps_go_to_those_that_want_them(root, tmp_path):
    options = config(root, tmp_path, label_maps=tmp_path / "maps")
    assert options.training("tokenmix: {maps: teacher}", 0).label_maps == tmp_path / "maps"
    assert options.training("cutmix", 0).label_maps is None
    assert config_hash(options.training("cutmix", 0)) == config_hash(config(root, tmp_path).training("cutmix", 0))
