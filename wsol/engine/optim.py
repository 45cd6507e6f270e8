"""Optimizers and learning-rate schedules of timm, by their names."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from wsol.engine.train_options import LoopOptions
from wsol.errors import ConfigError, did_you_mean


def check_optimizer(name: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ConfigError: With the nearest name.
    """
    names = [str(item) for item in list_optimizers()]
    if name.lower().removeprefix("lookahead_") not in names:
        raise ConfigError(f"unknown optimizer '{name}'", where="--opt", hint=did_you_mean(name, names))


def make_optimizer(module: nn.Module, config: LoopOptions) -> torch.optim.Optimizer:
    """Return the optimizer of `--opt` over the parameters that want gradients."""
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        module, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    return optimizer


class Schedule:
    """Sets the learning rate of an optimizer; holds no state but the schedule itself.

    Args:
        optimizer: Its groups start at the learning rate of the configuration.
        config: Names the schedule.
        steps: Steps an epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: LoopOptions, steps: int) -> None:
        self._steps = steps
        default_rate = 0.9 if config.sched == "poly" else 0.1  # for poly, timm reads the power from decay_rate
        self._scheduler: Any = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=min(1e-5, config.lr),
            min_lr=config.min_lr,
            decay_epochs=config.decay_epochs,
            decay_rate=default_rate if config.decay_rate is None else config.decay_rate,
            step_on_epochs=config.sched == "step",
            updates_per_epoch=steps,
        )[0]

    def set(self, done: int) -> None:
        """Set the learning rate for the step after `done` steps of the whole training."""
        if self._scheduler is not None:
            self._scheduler.step_update(done)
            self._scheduler.step(done // self._steps)
