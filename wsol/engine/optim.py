"""Optimizers and learning-rate schedules of timm, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    get_optimizer_info,
    list_optimizers,
    param_groups_weight_decay,
)
from timm.scheduler.scheduler_factory import create_scheduler_v2
from torch import nn

from wsol.engine.train_options import LoopOptions
from wsol.errors import ConfigError, did_you_mean


def check_optimizer(name: str) -> None:
    """Refuse a name that timm does not know, or whose steps take more than gradients.

    Raises:
        ConfigError: With the nearest name where there is none.
    """
    names = [str(item) for item in list_optimizers()]
    plain = name.lower().removeprefix("lookahead_")
    if plain not in names:
        raise ConfigError(f"unknown optimizer '{name}'", where="--opt", hint=did_you_mean(name, names))
    if get_optimizer_info(plain).second_order:
        raise ConfigError(f"'{name}' takes second derivatives, which no training here computes", where="--opt")


def make_optimizer(
    module: nn.Module, config: LoopOptions, *, layer_decay: float | None = None, own: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer of `--opt` over the parameters that want gradients.

    Args:
        module: The network.
        config: Names the optimizer.
        layer_decay: Factor on the learning rate from each layer to the one below it, by timm's order of layers.
        own: Other networks that are trained along, in groups of their own; a part's attribute `lr_scale` is the factor
            on the learning rate of the parameters in it.

    Raises:
        ConfigError: When the optimizer cannot take the options.
    """
    groups = None  # timm's function for layer decay makes its own
    if layer_decay is None:
        groups = partial(
            param_groups_weight_decay, weight_decay=config.weight_decay, no_weight_decay_list=_no_weights(module)
        )
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            module,
            opt=config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=layer_decay,
            param_group_fn=groups,
        )
    except (ValueError, AssertionError) as error:  # timm asserts that there is a GPU where one is needed
        raise ConfigError(str(error), where=f"--opt {config.opt}") from error
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for scale, parameters in _by_scale(own, skip=known | {id(item) for item in module.parameters()}):
        for decays in (False, True):  # biases and norm layers are spared, as in the network
            group = [parameter for parameter in parameters if (parameter.ndim > 1) == decays]
            decay = config.weight_decay if decays else 0.0
            if group:
                optimizer.add_param_group({"params": group, "lr_scale": scale, "weight_decay": decay})
    return optimizer


def _no_weights(module: nn.Module) -> set[str]:
    """Return the names of position embeddings and the like, of which each part of a network knows its own."""
    return {
        f"{part}.{name}" if part else name
        for part, inner in module.named_modules()
        for name in getattr(inner, "no_weight_decay", set)()
    }


def _by_scale(own: nn.Module | None, *, skip: set[int]) -> Iterator[tuple[float, list[nn.Parameter]]]:
    """Group the parameters of own networks by the `lr_scale` of the innermost part that has one."""
    groups: dict[float, list[nn.Parameter]] = {}

    def visit(part: nn.Module, scale: float) -> None:
        scale = float(getattr(part, "lr_scale", scale))
        for parameter in part.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in skip:
                skip.add(id(parameter))
                groups.setdefault(scale, []).append(parameter)
        for child in part.children():
            visit(child, scale)

    if own is not None:
        visit(own, 1.0)
    yield from groups.items()


def scale_rate(optimizer: torch.optim.Optimizer, part: nn.Module, factor: float) -> None:
    """Give the parameters of a part groups of their own, with a factor on the learning rate.

    Args:
        optimizer: Over the part, among others; changed in place.
        part: The part.
        factor: On the learning rate, times what the groups have already.
    """
    chosen = {id(parameter) for parameter in part.parameters()}
    for group in list(optimizer.param_groups):
        inside = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if inside:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            scale = factor * group.get("lr_scale", 1.0)
            optimizer.add_param_group({**group, "params": inside, "lr_scale": scale})


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
            sched="constant" if config.sched == "none" else config.sched,  # timm's "none" has no warm-up either
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
        self._scheduler.step_update(done)
        self._scheduler.step(done // self._steps)
