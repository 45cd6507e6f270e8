"""Where an interrupted training goes on from: one file, replaced whole after each epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wsol.errors import StoreError
from wsol.models.checkpoints import refuse_bomb
from wsol.store.atomic import atomic_write

_NAME = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write the state of a training, whole or not at all, surviving a power cut.

    Args:
        folder: Run folder.
        state: Tensors, numbers, strings, and dicts and lists of them.
    """
    with atomic_write(folder / _NAME, durable=True) as stream:
        torch.save(state, stream)


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the state of a training on the CPU, or None where there is none.

    Raises:
        StoreError: When the file is not a checkpoint.
    """
    path = folder / _NAME
    if not path.is_file():
        return None
    try:
        refuse_bomb(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its readers meet
        reason = str(error).partition("\n")[0]
        hint = "delete it, or --overwrite to start again"
        raise StoreError(f"not a checkpoint of wsol: {reason}", where=path, hint=hint) from error
    return state
