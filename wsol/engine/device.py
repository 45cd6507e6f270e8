"""Which device to compute on."""

from __future__ import annotations

import torch

from wsol.models.device import find_device


def resolve_device(name: str) -> torch.device:
    """Return the device of a `--device` flag.

    Args:
        name: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU where there is one.

    Raises:
        ModelError: When there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return find_device(name)
