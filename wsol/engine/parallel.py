"""Training by several processes, one a device, as torchrun starts them: each takes its share of the batches.

Gradients are summed here instead of by torch's wrapper, which would hide the parts of a model that strategies ask for:
N processes with batches of B images take the same steps as one process that accumulates N batches of B.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from wsol.errors import ConfigError

_WAIT = timedelta(days=1)  # the others wait while the first measures


@dataclass(frozen=True, slots=True)
class World:
    """Who trains.

    Attributes:
        rank: This process, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files, measures and talks."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()

    def total(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def merge(self, reasons: Mapping[str, str]) -> dict[str, str]:
        """Return what all processes noted."""
        if self.size == 1:
            return dict(reasons)
        parts: list[dict[str, str]] = [{} for _ in range(self.size)]
        dist.all_gather_object(parts, dict(reasons))
        return {name: reason for part in parts for name, reason in part.items()}


def launched() -> World:
    """Return what torchrun says in the environment; one process without it.

    Raises:
        ConfigError: When the environment holds no numbers.
    """
    try:
        return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError as error:
        raise ConfigError("RANK and WORLD_SIZE must be numbers", hint="start with torchrun") from error


def own_device(name: str) -> str:
    """Return the device of this process: with several, each takes the GPU of its number on this machine."""
    if launched().size == 1 or name not in ("auto", "cuda"):
        return name
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else name


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Meet the other processes of torchrun while the block runs."""
    world = launched()
    if world.size == 1 or dist.is_initialized():
        yield world
        return
    store, rank, size = next(rendezvous("env://", timeout=_WAIT))
    # torchrun keeps its store when it starts processes again: nobody may read there where the dead ones listened.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)  # type: ignore[attr-defined]
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_WAIT)
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield world
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: Iterable[nn.Parameter], count: int, world: World) -> int:
    """Turn sums of gradients into the mean over all batches of a step.

    Args:
        parameters: Those in training, in the same order everywhere; a gradient that no process has stays None.
        count: Batches that this process has summed.
        world: All processes.

    Returns:
        Batches that all processes have summed; with 0 there is no gradient.
    """
    known = [parameter for parameter in parameters if parameter.requires_grad]
    if world.size > 1 and known:
        has = torch.tensor([float(item.grad is not None) for item in known], device=known[0].device)
        parts = [(torch.zeros_like(item) if item.grad is None else item.grad).flatten().float() for item in known]
        flat = world.total(torch.cat([*parts, has, has.new_tensor([float(count)])]))
        sizes = [item.numel() for item in known]
        *sums, present, total = torch.split(flat, [*sizes, len(known), 1])
        count = round(total.item())
        for item, value, any_has in zip(known, sums, present.tolist(), strict=True):
            item.grad = value.view_as(item).to(item.dtype) if any_has else None
    if count > 1:
        for item in known:
            if item.grad is not None:
                item.grad.div_(count)
    return count


def average_buffers(module: nn.Module, world: World) -> None:
    """Give every process the mean of the running statistics."""
    if world.size == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            world.total(buffer).div_(world.size)


def share_state(module: nn.Module, world: World) -> None:
    """Give every process the state of the first, which is what a checkpoint holds."""
    if world.size == 1:
        return
    for value in module.state_dict().values():
        dist.broadcast(value, src=0)
