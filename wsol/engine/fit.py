"""The training loop: steps, schedule, moving average, checkpoint; the same for classifiers and segmenters.

Everything random is drawn for its epoch and step alone, so a training that was interrupted and continued gives the
weights of one that was not: bit for bit on a CPU.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from wsol.engine.checkpoint import read_checkpoint, write_checkpoint
from wsol.engine.optim import Schedule, make_optimizer
from wsol.engine.progress import track
from wsol.engine.seeding import seed_torch
from wsol.engine.train_options import LoopOptions
from wsol.errors import DataError, ModelError, StoreError
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
) -> History:
    """Train a network, from its start or from the checkpoint in the run folder.

    Args:
        module: On its device; trained in place, and left in evaluation mode with the weights of the last epoch, or
            with their moving average where one is kept. Parameters that want no gradient stay as they are.
        config: Length, optimizer, schedule and run folder.
        device: Device of the module.
        steps: Batches an epoch.
        batches: Epoch to start at -> every batch from there to the last epoch.
        loss_of: (batch, epoch, step) -> scalar loss of `module`, or None to leave the batch out.
        evaluate: Network in evaluation mode -> metrics for the history; None measures nothing.
        set_mode: Puts the network into training mode.

    Returns:
        One row an epoch: epoch, loss, lr (of its last step), the metrics and seconds.

    Raises:
        ModelError: When the loss is not finite.
        DataError: When an epoch holds no usable batch.
    """
    optimizer = make_optimizer(module, config)
    schedule = Schedule(optimizer, config, steps)
    ema = ModelEmaV3(module, decay=config.ema, use_warmup=True) if config.ema else None
    result = module if ema is None else ema.module
    history = _restore(config.out, module, optimizer, ema)
    start = len(history)
    if start:
        _log.info("continued after epoch %d of %d", start, config.epochs)
    stream = batches(start)
    with track((config.epochs - start) * steps, "training", quiet=config.quiet) as tracker:
        for epoch in range(start, config.epochs):
            clock = time.monotonic()
            seed_torch(device, config.seed, "network", epoch)
            set_mode(module)
            total, count, note = torch.zeros((), device=device), 0, math.nan
            for step in range(steps):
                schedule.set(epoch * steps + step)
                loss = loss_of(next(stream), epoch, step)
                if loss is not None:
                    _step(module, optimizer, loss, config.clip_grad)
                    if ema is not None:
                        ema.update(module, step=epoch * steps + step)
                    total += loss.detach()
                    count += 1
                    if step % max(1, steps // _NOTES) == 0:  # reading the loss waits for the GPU
                        note = loss.item()
                tracker.advance(epoch=epoch + 1, loss=note)
            row = {"epoch": epoch + 1, "loss": _mean(total, count, epoch), "lr": max(_rates(optimizer))}
            if evaluate is not None:
                result.eval()
                row |= evaluate(result)
            history.append(row | {"seconds": round(time.monotonic() - clock, 3)})
            write_checkpoint(config.out, _state(module, optimizer, ema, history))
            write_history(config.out, history)
            _log.info("%s", "  ".join(f"{name} {value:.4g}" for name, value in history[-1].items()))
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
    except OSError as error:
        raise StoreError(f"cannot read the history: {error.strerror}", where=folder) from error
    return [{name: math.nan if value is None else value for name, value in json.loads(line).items()} for line in lines]


def write_history(folder: Path, history: History) -> None:
    """Write `history.jsonl` of a run folder."""
    rows = [{name: value if math.isfinite(value) else None for name, value in row.items()} for row in history]
    write_text(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _step(module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor, clip_grad: float | None) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if clip_grad is not None:
        nn.utils.clip_grad_norm_(module.parameters(), clip_grad)
    optimizer.step()


def _mean(total: Tensor, count: int, epoch: int) -> float:
    if not count:
        raise DataError("no batch of this epoch can be trained on", hint="see the images listed above")
    mean = total.item() / count
    if not math.isfinite(mean):
        hint = "lower --lr, give --clip-grad, or --warmup-epochs"
        raise ModelError(f"the loss of epoch {epoch + 1} is {mean}", hint=hint)
    return mean


def _rates(optimizer: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def _state(
    module: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEmaV3 | None, history: History
) -> dict[str, Any]:
    return {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": None if ema is None else ema.module.state_dict(),
        "history": history,
    }


def _restore(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: ModelEmaV3 | None) -> History:
    state = read_checkpoint(folder)
    if state is None:
        return []
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    if ema is not None:
        ema.module.load_state_dict(state["ema"])
    return list(state["history"])
