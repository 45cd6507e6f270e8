"""Random numbers that depend on what they are for, never on what was drawn before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

_PURPOSES = ("order", "augment", "mix", "network", "weights")
Purpose = Literal["order", "augment", "mix", "network", "weights"]


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return a generator of its own for one purpose, epoch, image, ...

    Args:
        seed: Seed of the run.
        purpose: What the numbers are for.
        *key: Counters, for example epoch and image.

    Returns:
        The same numbers whatever number of workers or restarts came before.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PURPOSES.index(purpose), *key)))


def seed_torch(device: torch.device, seed: int, purpose: Purpose, *key: int) -> None:
    """Set torch's generators of the CPU and of one device; the arguments are those of `generator`."""
    value = int(generator(seed, purpose, *key).integers(2**63))
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Give torch's generators back as they were: weights and dropout draw from them and take no generator."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
