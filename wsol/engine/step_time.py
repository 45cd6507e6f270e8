"""What a training step costs: from a batch on the device to the updated weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from wsol.engine.bench_measure import Cost, cost
from wsol.engine.loaders import Batch
from wsol.engine.optim import make_optimizer
from wsol.engine.train_work import Work
from wsol.errors import DataError
from wsol.mix import StepStrategy

_WARM_UP = 3


def stepper(work: Work, batch: Batch) -> Callable[[], None]:
    """Return a function that trains the classifier of `work` on a batch, each time with other draws.

    Args:
        work: The classifier and its strategy.
        batch: Images and labels as the loader gives them.

    Returns:
        One step a call; ends when the device has done it.
    """
    module, config = work.classifier.module, work.config
    optimizer = make_optimizer(module, config, layer_decay=config.layer_decay, own=work.own)
    accumulates, counter = isinstance(work.strategy, StepStrategy), iter(range(2**62))
    module.train()
    if work.own is not None:
        work.own.train()

    def step() -> None:
        optimizer.zero_grad()
        loss = work.loss(batch, 0, next(counter))
        if loss is None:
            raise DataError("the batch is too small to train on", hint="raise --batch-size")
        if not accumulates:
            loss.backward()  # type: ignore[no-untyped-call]
        if config.clip_grad is not None:
            nn.utils.clip_grad_norm_(module.parameters(), config.clip_grad)
        optimizer.step()
        work.after_step(0)
        if work.device.type == "cuda":
            torch.cuda.synchronize(work.device)

    return step


def first_batch(work: Work) -> Batch:
    """Return the first training batch, read in this process."""
    return next(replace(work, config=replace(work.config, workers=0)).stream(0))


def time_steps(work: Work, batch: Batch, *, steps: int) -> tuple[float, Cost]:
    """Return the median of the milliseconds a step, and the peak memory of these steps.

    Args:
        work: The classifier and its strategy; the classifier is trained.
        batch: See `stepper`.
        steps: How many to take the time of, after three to warm up.
    """
    step, spent = stepper(work, batch), []
    for _ in range(_WARM_UP):
        step()
    with cost(work.device) as used:
        for _ in range(steps):
            start = time.perf_counter()
            step()
            spent.append(1000 * (time.perf_counter() - start))
    return float(np.median(spent)), used
