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
        timeout=300,
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


def history(run):
    rows = [json.loads(line) for line in (run / "history.jsonl").open()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def equal_weights(*runs):
    one, two = (load_segmenter(run).module.state_dict() for run in runs)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_two_processes_are_one_that_accumulates(photos, tmp_path):
    linear = {"decoder": "linear"}  # the mask transformer has dropout, whose draws differ
    launch(2, "train", *words(photos, tmp_path / "two", **linear))
    launch(1, "train", *words(photos, tmp_path / "one", **linear, accumulate=2))
    assert history(tmp_path / "two") == history(tmp_path / "one")
    assert "val_miou" in history(tmp_path / "two")[-1]
    assert equal_weights(tmp_path / "one", tmp_path / "two")
    assert load_segmenter(tmp_path / "two").facts == load_segmenter(tmp_path / "one").facts


DIE = """
import os, signal, sys, threading, time
from pathlib import Path
from wsol.cli.main import main

def die():
    while not (Path(sys.argv[2]) / "history.jsonl").is_file():
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (sys.argv[1], "0"):
    threading.Thread(target=die, daemon=True).start()
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_starts_again_after_a_killed_worker(photos, tmp_path, victim):
    script = tmp_path / "die.py"
    script.write_text(DIE)
    runs = [tmp_path / name for name in ("whole", "killed")]
    launch(2, "train", *words(photos, runs[0], epochs=4))
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--max-restarts=1"]
    options = [*words(photos, runs[1], epochs=4), "--overwrite", "--quiet"]  # a restart overwrites nothing
    command = [*start, str(script), str(victim), str(runs[1]), "segment", "train", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "continued after epoch" in (runs[1] / "log.txt").read_text()
    assert history(runs[1]) == history(runs[0])
    assert equal_weights(*runs)


def test_self_training_by_two(photos, tmp_path):
    launch(2, "self-train", *words(photos, tmp_path / "run", strategy="gist", stages=2, epochs=1))
    stages = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert len(stages) == 2
    assert len(list((tmp_path / "run" / "masks-1" / "masks").rglob("*.png"))) == 8
    last, kept = (
        load_segmenter(path).module.state_dict() for path in (tmp_path / "run" / stages[1]["folder"], tmp_path / "run")
    )
    assert all(torch.equal(last[name], kept[name]) for name in last)
