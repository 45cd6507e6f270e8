"""Learning rates by part of a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from wsol.engine.optim import Schedule, make_optimizer, scale_rate
from wsol.engine.segment_options import SegmentTrainConfig


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.decoder(self.encoder(x))


@pytest.mark.parametrize("sched", ["none", "poly"])
def test_a_part_moves_by_its_factor(sched):
    torch.manual_seed(0)
    options = {"opt": "momentum", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.5, "sched": sched, "warmup_epochs": 0}
    config = SegmentTrainConfig(data="synthetic", masks="gt", out=Path("run"), epochs=4, **options)
    module = Parts()
    optimizer = make_optimizer(module, config)
    scale_rate(optimizer, module.encoder, 0.1)
    schedule = Schedule(optimizer, config, 5)
    listed = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(listed) == len({id(each) for each in listed}) == 4
    for done in (0, 7):
        schedule.set(done)
        rate = 0.5 if sched == "none" else 0.5 * (1 - done / 20) ** 0.9
        before = [each.detach().clone() for each in module.parameters()]
        optimizer.zero_grad()
        module(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        for (name, now), old in zip(module.named_parameters(), before, strict=True):
            own = rate * (0.1 if name.startswith("encoder") else 1.0)
            torch.testing.assert_close(now.detach(), old - own * now.grad)


def test_weights_decay_as_before():
    module = Parts()
    config = SegmentTrainConfig(data="synthetic", masks="gt", out=Path("run"), weight_decay=0.3)
    optimizer = make_optimizer(module, config)
    scale_rate(optimizer, module.encoder, 0.1)
    decays = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    assert [decays[id(each)] for each in module.parameters()] == [0.3, 0.0, 0.3, 0.0]
