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
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        hint = f"this torch sees {torch.cuda.device_count() or 'no'} GPU; use another device, for example cpu"
        raise ModelError(f"device '{name}' is not available", hint=hint)
    return device
