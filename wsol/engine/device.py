"""Which device to compute on."""

from __future__ import annotations

import torch

from wsol.errors import ModelError


def resolve_device(name: str) -> torch.device:
    """Return the device of a `--device` flag.

    Args:
        name: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU where there is one.

    Raises:
        ModelError: When there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"unknown device '{name}'", hint="cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device '{name}' is not available", hint="this torch sees no GPU; use --device cpu")
    return device
