"""The training loop: steps, schedule, moving average, checkpoint; the same for classifiers and segmenters.

Everything random is drawn for its epoch and step alone, so a training that was interrupted and continued gives the
weights of one that was not: bit for bit on a CPU.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from wsol.engine.checkpoint import read_checkpoint, write_checkpoint
from wsol.engine.optim import Schedule, make_optimizer
from wsol.engine.parallel import World, average_buffers, average_gradients, launched, share_state
from wsol.engine.progress import track
from wsol.engine.seeding import seed_torch
from wsol.engine.train_options import LoopOptions
from wsol.errors import ConfigError, DataError, ModelError, StoreError
from wsol.store.atomic import write_text

_log = logging.getLogger("wsol")
_NOTES = 20
B = TypeVar("B")
History = list[dict[str, float]]


@dataclass(frozen=True)
class Trained:
    """What a training left behind.

    Attributes:
        path: Run folder with the weights.
        history: One row an epoch.
        failures: Id to reason of the images that had to be left out.
    """

    path: Path
    history: History
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 1 when an image failed, else 0."""
        return 1 if self.failures else 0


def fit(
    module: nn.Module,
    config: LoopOptions,
    *,
    device: torch.device,
    steps: int,
    batches: Callable[[int], Iterator[B]],
    loss_of: Callable[[B, int, int], Tensor | None],
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    set_mode: Callable[[nn.Module], object] = nn.Module.train,
    optimizer: torch.optim.Optimizer | None = None,
    own: nn.Module | None = None,
    accumulates: bool = False,
    after_step: Callable[[int], None] | None = None,
    observe: Callable[[nn.Module, History], dict[str, float]] | None = None,
    world: World | None = None,
) -> History:
    """Train a network, from its start or from the checkpoint in the run folder.

    Args:
        module: On its device; trained in place, and left in evaluation mode with the weights of the last epoch, or
            with their moving average where one is kept. Parameters that want no gradient stay as they are.
        config: Length, optimizer, schedule and run folder.
        device: Device of the module.
        steps: Batches an epoch, those of all processes together. The optimizer takes a step after
            `config.accumulate` of them in each process, and after what is left at the end of an epoch.
        batches: Epoch to start at -> every batch of this process from there to the last epoch.
        loss_of: (batch, epoch, step) -> scalar loss of `module`, or None to leave the batch out.
        evaluate: Network in evaluation mode -> metrics for the history; None measures nothing.
        set_mode: Puts the network into training mode.
        optimizer: Over the parameters of `module` (and `own`); by default that of the configuration.
        own: Other networks and state that are trained along and kept in the checkpoints; needs `optimizer`.
        accumulates: `loss_of` adds the gradients itself and returns a loss without graph.
        after_step: Called with the epoch after each step of the optimizer.
        observe: (network in evaluation mode, history up to the new row) -> more metrics for that row.
        world: The processes that train together; only the first one measures and writes.

    Returns:
        One row an epoch: epoch, loss, lr (of its last step), the metrics and seconds.

    Raises:
        ConfigError: When torchrun started several processes but the caller knows of one.
        ModelError: When the loss is not finite.
        DataError: When an epoch holds no usable batch.
    """
    if world is None and launched().size > 1:
        raise ConfigError("this training runs in one process", hint="start it without torchrun")
    world = world or World()
    optimizer = optimizer or make_optimizer(module, config)
    mine = _share(steps, world)
    updates = math.ceil(mine / config.accumulate)
    schedule = Schedule(optimizer, config, updates)
    ema = ModelEmaV3(module, decay=config.ema, use_warmup=True) if config.ema else None
    result = module if ema is None else ema.module
    history = _restore(config.out, module, optimizer, ema, own)
    start, trained = len(history), _parameters(module, own)
    if start and world.first:
        _log.info("continued after epoch %d of %d", start, config.epochs)
    stream = batches(start)
    with track((config.epochs - start) * mine, "training", quiet=config.quiet or not world.first) as tracker:
        for epoch in range(start, config.epochs):
            clock = time.monotonic()
            seed_torch(device, config.seed, "network", epoch, *([world.rank] if world.rank else []))
            set_mode(module)
            if own is not None:
                own.train()
            total, count, note = torch.zeros((), device=device), 0, math.nan
            for update in range(updates):
                schedule.set(epoch * updates + update)
                optimizer.zero_grad()
                first, before = update * config.accumulate, count
                for step in range(first, min(first + config.accumulate, mine)):
                    loss = loss_of(next(stream), epoch, step * world.size + world.rank)
                    if loss is not None:
                        if not accumulates:
                            loss.backward()  # type: ignore[no-untyped-call]
                        total += loss.detach()
                        count += 1
                        if step % max(1, mine // _NOTES) == 0:  # reading the loss waits for the GPU
                            note = loss.item()
                    tracker.advance(epoch=epoch + 1, loss=note)
                if average_gradients(trained, count - before, world):
                    _step(optimizer, trained, config.clip_grad)
                    if ema is not None:
                        ema.update(module, step=epoch * updates + update + 1)  # the steps that are done
                    if after_step is not None:
                        after_step(epoch)
            average_buffers(module, world)
            if ema is not None:
                average_buffers(result, world)
            if own is not None:
                share_state(own, world)
            row = {"epoch": epoch + 1, "loss": _mean(total, count, epoch, world), "lr": max(_rates(optimizer))}
            if world.first:
                result.eval()
                row |= evaluate(result) if evaluate is not None else {}
                row |= observe(result, [*history, row]) if observe is not None else {}
            history.append(row | {"seconds": round(time.monotonic() - clock, 3)})
            if world.first:
                write_checkpoint(config.out, _state(module, optimizer, ema, own, history))
                write_history(config.out, history)
                _log.info("%s", "  ".join(f"{name} {value:.4g}" for name, value in history[-1].items()))
    if world.first:
        write_history(config.out, history)
    if ema is not None:
        module.load_state_dict(ema.module.state_dict())
    module.eval()
    return history


def has_ended(folder: Path, *, resume: bool) -> bool:
    """Return whether the training of a run folder has ended.

    Raises:
        StoreError: When it has and the user did not say `--resume`.
    """
    ended = all((folder / name).is_file() for name in ("model.json", "model.safetensors"))
    if ended and not resume:
        hint = "give another --out, --overwrite to train again, or --resume to take it as it is"
        raise StoreError("the training in this folder has ended", where=folder, hint=hint)
    return ended


def read_history(folder: Path) -> History:
    """Read `history.jsonl` of a run folder; a metric that had no value is NaN."""
    try:
        lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read the history: {error}", where=folder) from error
    try:
        rows = [json.loads(line) for line in lines]
        return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
    except (ValueError, AttributeError, RecursionError) as error:
        raise StoreError(f"not a history of wsol: {error}", where=folder / "history.jsonl") from error


def write_history(folder: Path, history: History) -> None:
    """Write `history.jsonl` of a run folder."""
    rows = [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in history]
    write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _parameters(module: nn.Module, own: nn.Module | None) -> list[nn.Parameter]:
    both = [*module.parameters(), *(own.parameters() if own is not None else ())]
    return list({id(parameter): parameter for parameter in both}.values())


def _share(steps: int, world: World) -> int:
    """Return how many batches each process takes; all take the same number."""
    if steps < world.size:
        hint = "start fewer processes, or lower --batch-size"
        raise DataError(f"{steps} batches an epoch are too few for {world.size} processes", hint=hint)
    return steps // world.size


def _step(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], clip_grad: float | None) -> None:
    if clip_grad is not None:
        nn.utils.clip_grad_norm_(parameters, clip_grad)
    optimizer.step()


def _mean(total: Tensor, count: int, epoch: int, world: World) -> float:
    loss, batches = world.total(torch.stack([total, total.new_tensor(count)])).tolist()
    if not batches:
        raise DataError("no batch of this epoch can be trained on", hint="see the images listed above")
    mean = float(loss / batches)
    if not math.isfinite(mean):
        hint = "lower --lr, give --clip-grad, or --warmup-epochs"
        raise ModelError(f"the loss of epoch {epoch + 1} is {mean}", hint=hint)
    return mean


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _state(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ModelEmaV3 | None,
    own: nn.Module | None,
    history: History,
) -> dict[str, Any]:
    return {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": None if ema is None else ema.module.state_dict(),
        "own": None if own is None else own.state_dict(),
        "history": history,
    }


def _restore(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ModelEmaV3 | None,
    own: nn.Module | None,
) -> History:
    state = read_checkpoint(folder)
    if state is None:
        return []
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    if ema is not None:
        ema.module.load_state_dict(state["ema"])
    if own is not None:
        own.load_state_dict(state["own"])
    return list(state["history"])
