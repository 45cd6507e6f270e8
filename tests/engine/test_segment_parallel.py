"""Two processes of torchrun train one network, and label together in self-training."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from wsol.models.segmenter import load_segmenter

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for at in range(count):
            image = rng.integers(90, 140, (41, 57 + 2 * at, 3)).astype(np.uint8)
            mask = np.zeros(image.shape[:2], dtype=np.uint8)
            image[9:31, 9 : 25 + at], mask[9:31, 9 : 25 + at] = (220, 30, 20), 1
            for path, array in ((root / split / "red", image), (root / split / "masks" / "red", mask)):
                path.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path / f"{at}.png")
    return root


def launch(count, *words):
    start = ["-m", "torch.distributed.run", f"--nproc-per-node={count}", "--standalone", "-m"] if count > 1 else ["-m"]
    done = subprocess.run(
        [sys.executable, *start, "wsol", "segment", *words, "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def words(photos, out, **changes):
    options = {
        "data": "folder",
        "root": photos,
        "masks": "gt",
        "out": out,
        "val-split": "val",
        "arch": "segmenter",
        "encoder": "test_vit",
        "drop-path": 0,
        "epochs": 2,
        "batch-size": 4,
        "img-size": 64,
        "workers": 0,
        "device": "cpu",
        "lr": 1e-3,
    }
    return [part for name, value in (options | changes).items() for part in (f"--{name}", str(value))]


def test_two_processes_write_one_run(photos, tmp_path):
    launch(2, "train", *words(photos, tmp_path / "two"))
    launch(1, "train", *words(photos, tmp_path / "one", accumulate=2))
    rows = [[json.loads(line) for line in (tmp_path / name / "history.jsonl").open()] for name in ("one", "two")]
    assert [len(history) for history in rows] == [2, 2]
    assert all("val_miou" in row for row in rows[1])
    for one, two in zip(*rows, strict=True):  # dropout of the decoder differs
        assert one["loss"] == pytest.approx(two["loss"], rel=0.1)
    assert load_segmenter(tmp_path / "two").facts == load_segmenter(tmp_path / "one").facts


def test_self_training_by_two(photos, tmp_path):
    launch(2, "self-train", *words(photos, tmp_path / "run", strategy="gist", stages=2, epochs=1))
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert len(stages) == 2
    assert len(list((tmp_path / "run" / "masks-1" / "masks").rglob("*.png"))) == 8
    last, kept = (
        load_segmenter(path).module.state_dict() for path in (tmp_path / "run" / stages[1]["folder"], tmp_path / "run")
    )
    assert all(torch.equal(last[name], kept[name]) for name in last)
