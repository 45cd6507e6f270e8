"""Procedural textures for the synthetic data set: grey patterns in [0, 1], mixed between two colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]
Colour = tuple[float, float, float]
_Pattern = Callable[[tuple[int, int], np.random.Generator, float], Plane]


def noise(shape: tuple[int, int], rng: np.random.Generator, cell: float, *, stretch: float = 1.0) -> Plane:
    """Return smooth value noise.

    Args:
        shape: (h, w) in pixels.
        rng: Source of randomness.
        cell: Size of a feature in pixels.
        stretch: How many times wider than high a feature is.

    Returns:
        float32 (h, w) in [0, 1].
    """
    grid = (max(2, round(shape[0] / cell) + 1), max(2, round(shape[1] / (cell * stretch)) + 1))
    coarse = rng.random(grid, dtype=np.float32)
    return _plane(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC))


def mix(plane: Plane, dark: Colour, light: Colour) -> Plane:
    """Return float32 (h, w, 3): `dark` where the plane is 0, `light` where it is 1."""
    low, high = np.asarray(dark, np.float32), np.asarray(light, np.float32)
    return np.asarray(low + plane[..., None] * (high - low), dtype=np.float32)


def _plane(values: Any) -> Plane:
    return np.clip(np.asarray(values, dtype=np.float32), 0, 1)


def _axes(shape: tuple[int, int], angle: float) -> tuple[Plane, Plane]:
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _stripes(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    u, _ = _axes(shape, rng.uniform(0, np.pi))
    return _plane(0.5 + 2.5 * np.sin(u * (2 * np.pi / period)))


def _checker(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    u, v = _axes(shape, rng.uniform(0, np.pi))
    wave = 2 * np.pi / period
    return _plane(0.5 + 4 * np.sin(u * wave) * np.sin(v * wave))


def _dots(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    u, v = _axes(shape, rng.uniform(0, np.pi))
    wave = 2 * np.pi / period
    return _plane(3 * (np.cos(u * wave) + np.cos(v * wave)) - 1.5)


def _rings(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    u, v = _axes(shape, 0.0)
    centre = rng.uniform(0.3, 0.7, 2) * shape
    return _plane(0.5 + 2.5 * np.sin(np.hypot(u - centre[1], v - centre[0]) * (2 * np.pi / period)))


def _zigzag(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    u, v = _axes(shape, rng.uniform(0, np.pi))
    saw = np.abs((v / period) % 2 - 1) * period
    return _plane(0.5 + 2.5 * np.sin((u + saw) * (2 * np.pi / period)))


def _grain(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    return _plane(0.5 * rng.random(shape, dtype=np.float32) + 0.5 * noise(shape, rng, period / 2))


def _blotches(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    return _plane(4 * (noise(shape, rng, period) - 0.4))


def _streaks(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    lines = noise(shape, rng, period / 4, stretch=6)
    return _plane(2 * (lines if rng.random() < 0.5 else noise(shape, rng, period, stretch=1 / 6)) - 0.5)


def _weave(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    u, v = _axes(shape, rng.uniform(0, np.pi))
    wave = 2 * np.pi / (0.6 * period)
    return _plane(0.5 + 0.3 * np.sin(u * wave) + 0.3 * np.sin(v * wave))


def _ripples(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    u, _ = _axes(shape, np.pi / 2 + rng.uniform(-0.2, 0.2))
    bend = noise(shape, rng, 3 * period) * 2.5 * period
    return _plane(0.5 + 0.6 * np.sin((u + bend) * (2 * np.pi / period)))


def _leaves(shape: tuple[int, int], rng: np.random.Generator, period: float) -> Plane:
    coarse, fine = noise(shape, rng, period), noise(shape, rng, period / 3)
    return _plane(0.6 * (coarse > 0.5) + 0.6 * fine - 0.1)


PATTERNS: dict[str, _Pattern] = {
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "rings": _rings,
    "zigzag": _zigzag,
    "grain": _grain,
    "blotches": _blotches,
    "streaks": _streaks,
    "weave": _weave,
    "ripples": _ripples,
    "leaves": _leaves,
}
