"""The whole flow through the real command line, on a small generated data set."""

from __future__ import annotations

import json

import pytest

from wsol.cli.main import main
from wsol.schema import EvalResult
from wsol.store.masks import read_labels


def wsol(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """Run train, cam, refine, eval, segment train and segment predict once; return the folder of their runs."""
    out = tmp_path_factory.mktemp("flow")
    data = ["--data", "synthetic", "--root", out / "data"]
    options = ["--data-options.train", 16, "--data-options.val", 8, "--workers", 0, "--device", "cpu", "--quiet"]
    small = ["--epochs", 1, "--batch-size", 4, "--img-size", 64]
    train = ["--split", "train", *options]
    assert wsol("train", *data, *train, *small, "--model", "test_resnet", "--mix", "cutmix", "--out", out / "cls") == 0
    model = ["--checkpoint", out / "cls", "--resize", "keep"]
    assert wsol("cam", *data, *train, *model, "--flip", "--scales", 1, 1.5, "--out", out / "maps") == 0
    refine = ["--method", "densecrf", "--background", 0.3, "--workers", 0, "--quiet", "--scores", "--coco"]
    assert wsol("refine", "--maps", out / "maps", *refine, "--out", out / "masks") == 0
    segment = ["--masks", out / "masks", "--arch", "fpn", "--encoder", "tu-test_resnet", "--checkpoint", out / "cls"]
    assert wsol("segment", "train", *data, *train, *small, *segment, "--out", out / "seg") == 0
    val = ["--split", "val", *options]
    assert wsol("segment", "predict", *data, *val, "--checkpoint", out / "seg", "--out", out / "pred") == 0
    return out


@pytest.mark.parametrize("name", ["maps", "masks", "pred"])
def test_maps_masks_and_predictions_can_be_measured(flow, name, tmp_path, capsys):
    assert wsol("eval", "seg", "--pred", flow / name, "--workers", 0, "--out", tmp_path) == 0
    result = EvalResult.from_json((tmp_path / "metrics.json").read_text())
    assert result.n == (8 if name == "pred" else 16)
    assert result.split == ("val" if name == "pred" else "train")
    assert 0 < result.metrics["mIoU"] <= 100
    shown = capsys.readouterr().out
    assert f"n = {result.n}" in shown
    assert "threshold: " in shown


@pytest.mark.parametrize("name", ["maps", "masks"])
def test_maps_and_refined_scores_give_boxes(flow, name, tmp_path):
    assert wsol("eval", "loc", "--maps", flow / name, "--workers", 0, "--out", tmp_path) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert {"MaxBoxAccV2", "MaxBoxAcc@50", "GT-known", "Top-1 Loc"} <= set(metrics)
    assert (tmp_path / "curves.csv").read_text().count("\n") > 100


def test_thresholds_of_one_split_are_applied_on_another(flow, tmp_path):
    assert wsol("eval", "seg", "--pred", flow / "maps", "--workers", 0, "--out", tmp_path / "a") == 0
    other = ["--threshold-from", tmp_path / "a" / "metrics.json", "--limit", 5]
    assert wsol("eval", "seg", "--pred", flow / "maps", "--workers", 0, *other, "--out", tmp_path / "b") == 0
    first, second = (EvalResult.from_json((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert second.threshold["mIoU"] == pytest.approx(first.threshold["mIoU"])
    assert "train" in second.threshold_source
    assert second.threshold_source != first.threshold_source


def test_every_run_can_be_repeated_from_its_own_config(flow, tmp_path):
    again = ["-c", flow / "masks" / "config.yaml", "--out", tmp_path / "again", "--workers", 0, "--quiet"]
    assert wsol("refine", *again) == 0
    for path in (flow / "masks" / "masks").glob("*.png"):
        assert (read_labels(path) == read_labels(tmp_path / "again" / "masks" / path.name)).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cmm"], "did you mean 'cam'"),
        (["cam", "--data", "synthetic", "--out", "x", "--methd", "cam"], "did you mean '--method'"),
        (["cam", "--data", "synthetic", "--out", "x", "--method", "gradcma"], "did you mean 'gradcam'"),
        (["cam", "--data", "synthetic", "--out", "x"], "no model"),
        (["refine", "--maps", "no/such/run", "--out", "x"], "no run in this folder"),
        (["eval", "seg", "--pred", "no/such/run"], "no/such/run"),
        (["segment", "trian"], "did you mean 'train'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert wsol(*words) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.startswith("wsol: ")
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="unknown verb"):
        wsol("cmm", "--debug")


@pytest.mark.slow
def test_the_demo_with_few_images(tmp_path, lite0_weights, capsys):
    counts = ["--train-images", 12, "--val-images", 7, "--classifier-epochs", 1, "--segmenter-epochs", 1]
    assert wsol("demo", "--out", tmp_path, *counts, "--quiet", "--workers", 0, "--device", "cpu") == 0
    page = tmp_path / "report" / "index.html"
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    for word in ("Egyptian cat", "Measured at every step", "full masks", "MaxBoxAccV2"):
        assert word in text
