"""What the learned refiners share: their networks in memory, and scores between the image and the grid."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.ops.resize import resize_maps

if TYPE_CHECKING:
    from wsol.models.affinity import AffinityModel, Method


def network(checkpoint: Path | None, *, method: Method, device: str) -> AffinityModel:
    """Return the network of a run folder; it is loaded once a process, and again when its file changes.

    Raises:
        ConfigError: When there is no checkpoint.
        ModelError: When the folder holds no network of this method.
    """
    if checkpoint is None:
        hint = f"give --options.checkpoint RUN of wsol refine train-affinity --method {method}"
        raise ConfigError("no checkpoint", where=f"refiner '{method}'", hint=hint)
    weights = checkpoint / "model.safetensors"
    return _load(checkpoint, method, device, weights.stat().st_mtime_ns if weights.is_file() else 0)


@lru_cache(maxsize=2)
def _load(checkpoint: Path, method: Method, device: str, written: int) -> AffinityModel:
    from wsol.models.affinity import load_affinity  # torch takes seconds: not for --help

    del written
    return load_affinity(checkpoint, method=method, device=device)


def to_grid(scores: NDArray[np.float32], size: tuple[int, int], *, stride: int) -> NDArray[np.float32]:
    """Average scores over the cells of a network's grid.

    Args:
        scores: float32 (C, H, W).
        size: (h, w) in pixels at which the network saw the image.
        stride: Pixels between two grid positions.

    Returns:
        float32 (C, ceil(h / stride), ceil(w / stride)); a last cell that the image ends in repeats its border.
    """
    height, width = size
    full = resize_maps(scores.astype(np.float32, copy=False), size) if scores.shape[1:] != size else scores
    full = np.pad(full, ((0, 0), (0, -height % stride), (0, -width % stride)), mode="edge")
    cells = full.reshape(len(full), full.shape[1] // stride, stride, full.shape[2] // stride, stride)
    return np.asarray(cells.mean(axis=(2, 4)), dtype=np.float32)


def to_image(
    grid: NDArray[np.float32], size: tuple[int, int], *, stride: int, image_size: tuple[int, int]
) -> NDArray[np.float32]:
    """Bring scores on a network's grid (C, rows, columns) back to the image: float32 (C, H, W), bilinear.

    Args:
        grid: float32 (C, ceil(h / stride), ceil(w / stride)).
        size: (h, w) in pixels at which the network saw the image.
        stride: Pixels between two grid positions.
        image_size: (H, W).
    """
    full = resize_maps(grid, (grid.shape[1] * stride, grid.shape[2] * stride))[:, : size[0], : size[1]]
    return np.asarray(full if size == image_size else resize_maps(full, image_size), dtype=np.float32)


def check_walk(beta: float, steps: int, img_size: int | None) -> None:
    """Refuse options of a random walk that are out of range.

    Raises:
        ConfigError: Naming the option.
    """
    if not beta > 0:
        raise ConfigError(f"must be positive, got {beta}", where="beta")
    if steps < 0:
        raise ConfigError(f"must be at least 0, got {steps}", where="steps")
    if img_size is not None and img_size < 1:
        raise ConfigError(f"must be at least 1, got {img_size}", where="img_size")
