"""Sharpness is what the paper describes, and the chosen texts go into `wsol cam --prompts`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from open_clip.model import CLIP
from PIL import Image

from wsol.cli.main import main
from wsol.data.prompts import TEMPLATE
from wsol.engine.clip_prompts import choose_prompts, read_templates, sharpness
from wsol.engine.clip_prompts_options import ClipPromptsConfig
from wsol.errors import ConfigError, DataError


@given(st.integers(0, 10**6))
def test_sharpness_is_variance_over_mean_summed_over_images(seed):
    rng = np.random.default_rng(seed)
    count, classes = rng.integers(1, 6), rng.integers(2, 7)
    logits = rng.normal(0, 3, (count, classes))
    labels = [rng.choice(classes, rng.integers(1, classes + 1), replace=False).tolist() for _ in range(count)]
    expected = 0.0
    for row, present in zip(logits, labels, strict=True):
        scores = np.exp(row) / np.exp(row).sum()
        expected += np.var(scores[present]) / np.mean(scores[present])
    assert sharpness(torch.from_numpy(logits), labels) == pytest.approx(expected, rel=1e-9)


def test_scores_far_from_the_best_class_do_not_divide_by_zero():
    assert np.isfinite(sharpness(torch.tensor([[200.0, 0.0, 1.0]]), [[1, 2]]))
    assert sharpness(torch.tensor([[1.0, 2.0, 2.0]]), [[1, 2]]) == 0.0


def test_candidates(tmp_path):
    known = read_templates(None)
    assert known[0] == TEMPLATE
    assert "a photo of a {}." in known
    assert all(item.count("{}") == 1 for item in known)
    assert len(set(known)) == len(known) > 80
    (tmp_path / "t.txt").write_text("a {}\n\n  the {} \na {}\n")
    assert read_templates(tmp_path / "t.txt") == ("a {}", "the {}")
    for text, message in (("", "no template"), ("a {}\nb\n", "'b' must hold")):
        (tmp_path / "t.txt").write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_templates(tmp_path / "t.txt")
    with pytest.raises(ConfigError, match="cannot read"):
        read_templates(tmp_path / "none.txt")


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    vision, text = (
        {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
        {"width": 64, "heads": 1, "layers": 1},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = CLIP(24, vision, text, quick_gelu=True).state_dict()
    torch.save({key: item for key, item in weights.items() if key != "attn_mask"}, tmp_path / "tiny.pt")
    photos = tmp_path / "photos"
    (photos / "x").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["id,labels"]
    for at, labels in enumerate(["cat;dog", "cat", "dog;tv", "cat;dog;tv", "cat;tv", "dog;tv"]):
        pixels = rng.integers(0, 255, (31 + at, 57 - at, 3), np.uint8)
        Image.fromarray(pixels).save(photos / "x" / f"{at}.png")
        lines.append(f"x/{at}.png,{labels}")
    (photos / "x" / "4.png").write_bytes(b"torn")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "templates.txt").write_text("a photo of a {}.\nthe {}\na clean origami {}.\n")
    return {
        "data": "folder",
        "root": photos,
        "data_options": {"labels": str(tmp_path / "labels.csv")},
        "checkpoint": str(tmp_path / "tiny.pt"),
        "templates": tmp_path / "templates.txt",
        "out": tmp_path / "chosen.yaml",
        "batch_size": 2,
        "device": "cpu",
        "quiet": True,
    }


def test_the_least_sharp_template_is_chosen_over_images_of_several_classes(options, tmp_path):
    choice = choose_prompts(ClipPromptsConfig(**options))
    assert choice.images == 4  # one has a single class, one cannot be read
    values = list(choice.sharpness.values())
    assert values == sorted(values)
    assert len(set(values)) == 3
    written = yaml.safe_load((tmp_path / "chosen.yaml").read_text())
    assert written["templates"] == [next(iter(choice.sharpness))]
    assert set(written["classes"]) == {"cat", "dog", "tv"}
    assert "sky" in written["background"]
    again = choose_prompts(ClipPromptsConfig(**{**options, "batch_size": 5, "limit": 4}))
    assert again.images == 3
    with pytest.raises(DataError, match="several classes"):
        choose_prompts(ClipPromptsConfig(**{**options, "data_options": {}}))


def test_the_command_prints_a_table_and_its_file_goes_into_a_run(options, tmp_path, capsys):
    data = ["--data", "folder", "--root", str(options["root"]), "--data-options.labels", str(tmp_path / "labels.csv")]
    model = ["--model", "clip", "--checkpoint", options["checkpoint"], "--device", "cpu", "--quiet"]
    words = ["--templates", str(options["templates"]), "--out", str(options["out"])]
    assert main(["cam", "clip-prompts", *data, *model, *words]) == 0
    table = capsys.readouterr().out
    assert "a photo of a {}." in table
    assert "not by its code" in table
    run = ["--prompts", str(options["out"]), "--method", "gradcam", "--resize", "native", "--workers", "0"]
    assert main(["cam", *data, *model, *run, "--out", str(tmp_path / "run")]) == 1  # the torn image
    assert json.loads((tmp_path / "run" / "run.json").read_text())["facts"]["done"] == 5
    with pytest.raises(SystemExit):
        main(["cam", "clip-prompts", "--help"])
    assert "after the paper" in " ".join(capsys.readouterr().out.split())
