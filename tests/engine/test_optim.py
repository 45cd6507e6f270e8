"""Learning rates by part of a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from wsol.engine.optim import Schedule, check_optimizer, make_optimizer, scale_rate
from wsol.engine.segment_options import SegmentTrainConfig
from wsol.engine.tile_mix import WithTeacher
from wsol.engine.train_options import LoopOptions
from wsol.errors import ConfigError
from wsol.models.segmenter import create_segmenter
from wsol.models.two_branch import add_classifier


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


@pytest.mark.parametrize("sched", ["cosine", "poly", "tanh", "step", "none"])
@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_schedules_are_those_of_timms_own_loop(sched, warmup_epochs):
    """timm counts the updates that are done, and steps after each of them and after each epoch."""

    def optimizer():
        parts = [{"params": [nn.Parameter(torch.zeros(1))], **extra} for extra in ({}, {"lr_scale": 0.1})]
        return torch.optim.SGD(parts, lr=0.05)

    config = LoopOptions(
        out=Path("run"), epochs=6, lr=0.05, sched=sched, warmup_epochs=warmup_epochs, min_lr=1e-3, decay_epochs=2
    )
    ours, theirs = optimizer(), optimizer()
    schedule = Schedule(ours, config, 7)
    scheduler, _ = create_scheduler_v2(
        theirs,
        sched="constant" if sched == "none" else sched,
        num_epochs=6,
        warmup_epochs=warmup_epochs,
        warmup_lr=1e-5,
        min_lr=1e-3,
        decay_epochs=2,
        decay_rate=0.9 if sched == "poly" else 0.1,
        step_on_epochs=sched == "step",
        updates_per_epoch=7,
    )
    first = None
    for done in range(6 * 7):
        schedule.set(done)
        rates = [group["lr"] for group in ours.param_groups]
        assert rates == pytest.approx([group["lr"] for group in theirs.param_groups], rel=1e-6)
        first = rates[0] if first is None else first
        scheduler.step_update(done + 1)
        if (done + 1) % 7 == 0:
            scheduler.step((done + 1) // 7)
    assert first == pytest.approx(1e-5 if warmup_epochs else 0.05)


@pytest.mark.parametrize("arch", ["dpt", "segmenter"])
@pytest.mark.parametrize("around", [None, add_classifier, lambda network: WithTeacher(network.module, ramp=1)])
def test_position_embeddings_and_tokens_never_decay(arch, around):
    network = create_segmenter(arch, "tu-test_vit", classes=("red",), img_size=32)
    module = network.module if around is None else around(network)
    optimizer = make_optimizer(module, LoopOptions(out=Path("run"), weight_decay=0.3))
    decays = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    named = {name: each for name, each in module.named_parameters() if each.requires_grad}
    assert decays.keys() == {id(each) for each in named.values()}
    spared = {name for name, each in named.items() if decays[id(each)] == 0}
    assert spared == {
        name for name, each in named.items() if each.ndim == 1 or name.endswith(("pos_embed", "cls_token", "cls_emb"))
    }
    assert any(name.endswith("pos_embed") for name in spared)


@pytest.mark.parametrize("name", ["adahessian", "lookahead_adahessian"])
def test_an_optimizer_of_second_order_is_refused(name):
    with pytest.raises(ConfigError, match="second derivatives"):
        check_optimizer(name)


def test_what_timm_asserts_is_a_mistake_in_the_options(monkeypatch):
    def create(*args, **options):
        raise AssertionError("CUDA required for bitsandbytes optimizers")  # where that package is installed

    monkeypatch.setattr("wsol.engine.optim.create_optimizer_v2", create)
    with pytest.raises(ConfigError, match="CUDA required"):
        make_optimizer(Parts(), LoopOptions(out=Path("run"), opt="bnbadamw"))
