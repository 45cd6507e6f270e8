"""`wsol train` by two processes of torchrun, one of which is killed: the restarted ones end with the same weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from wsol.models.classifier import load_classifier

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="no signals")]

DIE = r"""
import os, signal, sys, threading, time
from pathlib import Path
from wsol.cli.main import main

rank, file, *words = sys.argv[1:]

def die():
    while not Path(file).is_file():
        time.sleep(0.001)
    os.write(2, b"dies now\n")
    os.kill(os.getpid(), signal.SIGKILL)

if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (rank, "0"):
    threading.Thread(target=die, daemon=True).start()
sys.exit(main(words))
"""


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Train in a folder; a process dies as soon as a file is there."""
    place = tmp_path_factory.mktemp("place")
    (place / "die.py").write_text(DIE)
    options = (
        "train --data synthetic --data-options.train 16 --data-options.val 4 --val-split val --split train"
        " --model test_resnet --mix cutmix --ema 0.5 --epochs 4 --batch-size 4 --img-size 32 --lr 3e-3 --workers 0"
        f" --device cpu --quiet --overwrite --root {place / 'set'}"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "--max-restarts=1"]

    def train(name, rank, file):
        run = place / name
        command = [*torchrun, str(place / "die.py"), str(rank), str(run / file), *options.split(), "--out", str(run)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return run, "dies now" in done.stderr

    return train


@pytest.fixture(scope="module")
def whole(launch):
    run, killed = launch("whole", 0, "never")
    assert not killed
    return run


def state(run):
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    weights = load_classifier(None, checkpoint=str(run)).module.state_dict()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows], weights


@pytest.mark.parametrize(("rank", "file"), [(0, "history.jsonl"), (1, "history.jsonl"), (1, "run.json")])
def test_a_killed_process_changes_no_weight(launch, whole, rank, file):
    run, killed = launch(f"killed-{rank}-{file}", rank, file)
    assert killed
    assert ("continued after epoch" in (run / "log.txt").read_text()) == (file == "history.jsonl")
    (history, weights), (wanted, bits) = state(run), state(whole)
    assert len(wanted) == 4
    assert history == wanted
    assert weights.keys() == bits.keys()
    assert all(torch.equal(weights[name], bits[name]) for name in bits)
    assert not list(run.rglob(".tmp-*"))
