"""Devices by name."""

from __future__ import annotations

import torch

from wsol.errors import ModelError


def find_device(name: str | torch.device) -> torch.device:
    """Return a device of this machine.

    Args:
        name: "cpu", "cuda", "cuda:1", ...

    Raises:
        ModelError: When there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"unknown device '{name}'", hint="cpu, cuda or cuda:0") from error
    try:
        torch.zeros(1, device=device).item()  # only use shows whether it is there: cuda:9, a torch built without it
    except Exception as error:  # each kind of device has its own
        reason = str(error).partition("\n")[0]
        raise ModelError(f"device '{name}' is not available: {reason}", hint="cpu is always there") from error
    return device
