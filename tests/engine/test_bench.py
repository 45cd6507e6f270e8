from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from wsol import data
from wsol.cli.main import main
from wsol.engine.bench_cams import bench_cams
from wsol.engine.bench_measure import Row, as_json
from wsol.engine.bench_options import BenchCamsConfig, BenchRefineConfig, listed
from wsol.engine.bench_refine import bench_refine
from wsol.errors import ConfigError, StoreError
from wsol.eval import evaluate_localization, evaluate_segmentation


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes") / "data"
    data.load("synthetic", root=root, train=6, val=5, seed=1)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two untrained models for the five classes, as runs of wsol train leave them."""
    from wsol.models.classifier import load_classifier, save_classifier

    root = tmp_path_factory.mktemp("models")
    for name in ("test_resnet", "test_vit"):
        classifier = load_classifier(name, num_classes=5, img_size=64)
        save_classifier(classifier, root / name, classes=tuple("abcde"), multi_label=True)
    return root


def options(scenes, out, **changes):
    given = {"data": "synthetic", "root": scenes, "split": "val", "out": out, "device": "cpu"}
    return BenchCamsConfig(**{**given, "workers": 0, "quiet": True, "img_size": 64, **changes})


@pytest.fixture(scope="module")
def compared(scenes, trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "cams"
    runs = tuple(str(trained / name) for name in ("test_resnet", "test_vit"))
    return out, bench_cams(options(scenes, out, checkpoint=runs, methods=("cam,layercam", "rollout")))


def test_every_model_and_method_is_a_row_and_one_that_does_not_fit_says_why(compared):
    _, rows = compared
    named = [(row.names["model"], row.names["method"]) for row in rows]
    assert named == [
        (model, method) for model in ("test_resnet", "test_vit") for method in ("cam", "layercam", "rollout")
    ]
    refused = {name for name, row in zip(named, rows, strict=True) if row.error}
    assert refused == {("test_resnet", "rollout"), ("test_vit", "cam")}
    for row in rows:
        if row.error:
            assert not row.metrics
            assert row.ms is None
            assert "\n" not in row.error
        else:
            assert row.n == 5
            assert row.failed == 0
            assert row.ms > 0
            assert set(row.metrics) == {"MaxBoxAccV2", "mIoU"}
            assert row.threshold_source == "best on val"
            assert row.peak_mb is None or row.peak_mb > 10


def test_the_numbers_are_those_of_the_evaluation_alone(compared):
    out, rows = compared
    run = out / "test_resnet-layercam"
    row = rows[1]
    assert row.metrics["MaxBoxAccV2"] == evaluate_localization(maps=run, workers=0).metrics["MaxBoxAccV2"]
    alone = evaluate_segmentation(pred=run, workers=0)
    assert row.metrics["mIoU"] == alone.metrics["mIoU"]
    assert row.thresholds["mIoU"] == alone.threshold["mIoU"]
    written = json.loads((out / "bench.json").read_text())
    assert written["rows"][1]["metrics"]["mIoU"] == pytest.approx(row.metrics["mIoU"])
    assert written["split"] == "val"
    assert written["versions"]["torch"]


def test_refiners_on_the_same_maps(compared, scenes, tmp_path):
    maps = compared[0] / "test_vit-layercam"
    found = bench_refine(
        BenchRefineConfig(
            maps=maps, methods=("threshold,pamr", "threshold+pamr"), out=tmp_path / "b", workers=0, quiet=True
        )
    )
    assert [row.names["method"] for row in found] == ["threshold", "pamr", "threshold+pamr"]
    assert found[1].metrics == found[2].metrics
    best = evaluate_segmentation(pred=maps, workers=0)
    assert found[0].thresholds["mIoU"] == best.threshold["mIoU"]
    assert found[0].threshold_source == "best on val, unrefined"
    # A pixel is foreground above the background score, here as there: without refinement the masks are the same.
    assert found[0].metrics["mIoU"] == pytest.approx(best.metrics["mIoU"], abs=0.1)
    for row in found:
        assert 0 <= row.metrics["boundary F"] <= 100
        assert row.ms > 0
        assert row.n == 5
    fixed = bench_refine(
        BenchRefineConfig(maps=maps, methods=("threshold",), alpha=2.0, out=tmp_path / "c", workers=0, quiet=True)
    )
    assert fixed[0].threshold_source == "(1 - max)^2"
    assert not np.isnan(fixed[0].metrics["mIoU"])


def test_the_command_prints_a_table_or_json(compared, scenes, trained, tmp_path, capsys):
    words = ["bench", "cams", "--data", "synthetic", "--root", str(scenes), "--split", "val", "--limit", "2"]
    words += ["--checkpoint", str(trained / "test_resnet"), "--device", "cpu", "--quiet", "--workers", "0"]
    words += ["--img-size", "64", "--out", str(tmp_path / "a")]
    assert main([*words, "--methods", "gradcam"]) == 0
    shown = capsys.readouterr().out
    assert "gradcam" in shown
    assert "best on val" in shown
    assert main([*words, "--methods", "gradcam", "rollout", "--overwrite", "--json"]) == 1
    out = capsys.readouterr().out
    assert [row["method"] for row in json.loads(out)["rows"]] == ["gradcam", "rollout"]
    words = ["bench", "refine", "--maps", str(compared[0] / "test_vit-layercam"), "--methods", "threshold"]
    assert main([*words, "--workers", "0", "--quiet", "--out", str(tmp_path / "r"), "--background", "0.4"]) == 0
    assert "boundary F" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "no model"),
        ({"models": ("a,b",), "checkpoint": ("x",)}, "2 models, 1 checkpoints"),
        ({"models": ("test_resnet",), "methods": ("gradcamm",)}, "did you mean 'gradcam"),
        ({"models": ("test_resnet",), "methods": (" ",)}, "no method"),
    ],
)
def test_a_mistake_is_one_line(scenes, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        bench_cams(options(scenes, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_an_earlier_comparison_is_not_lost(compared, scenes, trained, tmp_path):
    with pytest.raises(StoreError, match="--overwrite"):
        bench_cams(options(scenes, compared[0], checkpoint=(str(trained / "test_resnet"),)))
    with pytest.raises(ConfigError, match="did you mean 'pamr'"):
        bench_refine(BenchRefineConfig(maps=compared[0] / "test_vit-layercam", methods=("pamrr",), out=tmp_path / "x"))


def test_models_of_the_same_name_keep_a_run_each(scenes, trained, tmp_path):
    other = tmp_path / "other/test_resnet"
    shutil.copytree(trained / "test_resnet", other)
    runs = (str(trained / "test_resnet"), str(other))
    rows = bench_cams(options(scenes, tmp_path / "cams", checkpoint=runs, methods=("cam",), limit=2))
    assert [row.names["model"] for row in rows] == ["test_resnet 1", "test_resnet 2"]
    assert len(list((tmp_path / "cams").glob("*/run.json"))) == 2


def test_numbers_that_json_lacks_are_null():
    row = Row(names={"method": "cam"}, metrics={"mIoU": float("nan"), "PxAP": 50.0}, ms=1.5)
    read = json.loads(json.dumps(as_json([row], n=1), allow_nan=False))
    assert read["rows"][0]["metrics"] == {"mIoU": None, "PxAP": 50.0}
    assert read["rows"][0]["ms"] == 1.5


def test_lists_take_commas_and_spaces():
    assert listed(("a,b", " c ", "", "d,")) == ("a", "b", "c", "d")
