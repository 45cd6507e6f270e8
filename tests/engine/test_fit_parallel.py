"""Two processes end an epoch with one state: that of the checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.slow

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SCRIPT = """
import sys
from pathlib import Path
import torch
from torch import nn
from wsol.engine import fit as fit_module
from wsol.engine.optim import make_optimizer
from wsol.engine.parallel import joined
from wsol.engine.train_options import LoopOptions

CPU, averages, make = torch.device("cpu"), [], fit_module.ModelEmaV3
fit_module.ModelEmaV3 = lambda *args, **options: averages.append(make(*args, **options)) or averages[-1]

class StopError(Exception):
    pass

class Memory(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

def train(name, world, end=3):
    options = LoopOptions(out=Path(sys.argv[1], name), epochs=3, opt="sgd", lr=0.1, ema=0.5, device="cpu", quiet=True)
    options.out.mkdir(exist_ok=True)
    world.barrier()
    torch.manual_seed(0)
    module, own = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), Memory()
    state = {}

    def batches(start):
        for epoch in range(start, 3):
            if epoch == end:
                raise StopError
            for step in range(world.rank, 4, 2):
                yield torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * epoch + step))

    def loss_of(x, epoch, step):
        own.seen += x.mean()  # each process sees something else
        return (module(x) * (1 + own.seen)).square().mean()

    def after_step(epoch):
        state["before"] = averages[-1].module[1].running_mean.clone()

    fit_module.fit(
        module, options, device=CPU, steps=4, batches=batches, loss_of=loss_of,
        optimizer=make_optimizer(module, options, own=own), own=own, after_step=after_step, world=world,
    )
    torch.save(state | module.state_dict() | own.state_dict(), options.out / f"{world.rank}.pt")

with joined(CPU) as world:
    train("whole", world)
    try:
        train("parts", world, end=1)
    except StopError:
        world.barrier()
    train("parts", world)
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory):
    """State of each process after an uninterrupted training, and after one that was interrupted."""
    place = tmp_path_factory.mktemp("place")
    (place / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [*TORCHRUN, str(place / "script.py"), str(place)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [[torch.load(place / name / f"{rank}.pt") for rank in range(2)] for name in ("whole", "parts")]


def same(one, two, *, but=()):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one.keys() - set(but))


def test_running_statistics_of_the_moving_average_are_those_of_all_processes(states):
    first, second = states[0]
    assert not torch.equal(first["before"], second["before"])
    torch.testing.assert_close(first["1.running_mean"], (first["before"] + second["before"]) / 2)


def test_an_interrupted_training_with_a_state_of_its_own_continues_bit_for_bit(states):
    whole, parts = states
    assert same(*whole, but=["before"])
    assert all(same(one, two) for one, two in zip(whole, parts, strict=True))
