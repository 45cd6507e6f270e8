"""The benchmark of the mix strategies: steps that train, and one label path as good as the other."""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def bench(monkeypatch):
    """Import the script as Python would run it."""
    monkeypatch.syspath_prepend(str(TOOLS))
    return importlib.import_module("bench_mix")


def test_both_label_paths_agree(bench):
    with ExitStack() as stack:
        ours, peer = bench.label_path("cpu", classes=7)(stack)
        assert importlib.import_module("_bench").largest_difference(ours(), peer()) < 1e-5


def test_a_step_trains(bench, monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 3)
    training = bench.work("cutmix", "test_resnet", "cpu", 64)
    before = [parameter.detach().clone() for parameter in training.classifier.module.parameters()]
    with ExitStack() as stack:
        ours, peer = bench.step("cutmix", "test_resnet", "cpu", side=64)(stack)
        assert ours() == peer() == []
    assert all(torch.equal(a, b) for a, b in zip(before, training.classifier.module.parameters(), strict=True))


def test_the_targets_are_cases(bench):
    found = {case.name.split(",")[0]: case.target for case in bench.cases("cpu")}
    assert found["mixup on resnet18"] == pytest.approx(1 / 1.03)
    assert found["transmix on deit_tiny"] == pytest.approx(1 / 1.05)
