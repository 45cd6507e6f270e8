"""Draw one synthetic scene: textured objects with a small telling part over a cluttered, textured background.

Every class has a larger body, whose textures and colours it shares with other classes and with the clutter, and a
small part with a pattern of its own; it is found most often on one kind of background. So a classifier can do well
by looking at the part or at the background alone, which is what makes weak localization hard.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.data.textures import PATTERNS, Colour, Plane, mix, noise

Polygon = NDArray[np.float64]
_SUPERSAMPLE = 3


@dataclass(frozen=True)
class Kind:
    """How the objects of one class look; shapes are polygons in the square [-1, 1] x [-1, 1], y downward.

    Attributes:
        name: Class name.
        body: Polygons of the body.
        part: Polygons of the telling part.
        pattern: Pattern of the part.
        colours: Dark and light colour of the part.
        textures: Patterns of the body.
        home: Kind of background it is usually found on.
    """

    name: str
    body: tuple[Polygon, ...]
    part: tuple[Polygon, ...]
    pattern: str
    colours: tuple[Colour, Colour]
    textures: tuple[str, ...]
    home: int


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 2 * np.pi) -> Polygon:
    t = np.linspace(start, stop, 32)
    return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)


def _poly(*points: tuple[float, float]) -> Polygon:
    return np.array(points, dtype=np.float64)


def _legs() -> tuple[Polygon, ...]:
    return tuple(
        _poly(
            (0.3 * side, y - 0.06),
            (0.95 * side, y + lift - 0.05),
            (0.95 * side, y + lift + 0.05),
            (0.3 * side, y + 0.06),
        )
        for side in (-1, 1)
        for y, lift in ((-0.2, -0.3), (0.2, 0.05), (0.55, 0.35))
    )


KINDS = (
    Kind("fish", (_ellipse(-0.2, 0, 0.78, 0.45), _poly((-0.2, -0.35), (0.15, -0.7), (0.3, -0.25))),
         (_poly((0.45, 0), (0.98, -0.5), (0.85, 0), (0.98, 0.5)),), "stripes",
         ((0.85, 0.35, 0.05), (0.98, 0.92, 0.85)), ("grain", "weave"), 0),
    Kind("beetle", (_ellipse(0, 0.25, 0.55, 0.7), *_legs()),
         (_ellipse(0, -0.6, 0.32, 0.28),), "checker",
         ((0.08, 0.06, 0.05), (0.95, 0.8, 0.1)), ("weave", "blotches"), 1),
    Kind("mushroom", (_poly((-0.2, 0), (0.2, 0), (0.32, 0.95), (-0.32, 0.95)), _ellipse(0, 0.05, 0.95, 0.75, np.pi)),
         (_ellipse(0, -0.12, 0.42, 0.5, np.pi),), "dots",
         ((0.75, 0.08, 0.1), (0.97, 0.95, 0.9)), ("blotches", "streaks"), 2),
    Kind("kite", (_poly((0, -0.95), (0.62, -0.2), (0, 0.8), (-0.62, -0.2)),
                  _poly((0, 0.75), (0.2, 0.85), (0.05, 0.98), (-0.12, 0.9))),
         (_poly((0, -0.5), (0.28, -0.18), (0, 0.14), (-0.28, -0.18)),), "rings",
         ((0.08, 0.15, 0.7), (0.9, 0.93, 0.98)), ("streaks", "leaves"), 3),
    Kind("jar", (_poly((-0.35, -0.5), (0.35, -0.5), (0.75, -0.05), (0.68, 0.75), (0.4, 0.95), (-0.4, 0.95),
                       (-0.68, 0.75), (-0.75, -0.05)),),
         (_poly((-0.42, -0.9), (0.42, -0.9), (0.38, -0.48), (-0.38, -0.48)),), "zigzag",
         ((0.05, 0.45, 0.2), (0.9, 0.35, 0.75)), ("leaves", "grain"), 4),
)  # fmt: skip

# Pattern and two colours of the backgrounds: water, leaves, grass, sky, sand.
_GROUNDS: tuple[tuple[str, Colour, Colour], ...] = (
    ("ripples", (0.12, 0.28, 0.42), (0.45, 0.62, 0.68)),
    ("leaves", (0.14, 0.25, 0.08), (0.5, 0.6, 0.25)),
    ("streaks", (0.2, 0.32, 0.1), (0.55, 0.62, 0.3)),
    ("blotches", (0.5, 0.6, 0.72), (0.85, 0.88, 0.9)),
    ("grain", (0.45, 0.36, 0.25), (0.8, 0.7, 0.55)),
)
# Muted colours that bodies and clutter share.
_SHARED: tuple[Colour, ...] = (
    (0.55, 0.4, 0.3), (0.4, 0.45, 0.5), (0.6, 0.55, 0.35), (0.45, 0.3, 0.4), (0.3, 0.45, 0.35), (0.65, 0.6, 0.55),
    (0.5, 0.25, 0.2), (0.3, 0.3, 0.45),
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """One drawn image with exact ground truth.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        labels: uint8 (H, W): 0 background, class id + 1.
        objects: Class id and visible pixels, bool (H, W), of each object.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    objects: tuple[tuple[int, NDArray[np.bool_]], ...]


def draw_scene(rng: np.random.Generator, *, sides: tuple[int, int] = (120, 170), classes: int = len(KINDS)) -> Scene:
    """Draw one scene.

    Args:
        rng: Source of randomness; the same state gives the same scene.
        sides: Range of height and of width in pixels; both are odd, and they differ.
        classes: How many of the kinds may appear.
    """
    shape = _shape(rng, sides)
    present = _choose(rng, classes)
    home = KINDS[present[0]].home if rng.random() < 0.7 else int(rng.integers(len(_GROUNDS)))
    canvas = _background(shape, rng, home)
    for _ in range(int(rng.integers(5, 10))):
        _clutter(canvas, rng)
    owner = np.full(shape, -1, dtype=np.int32)
    for position, label in enumerate(present):
        body, part = _place(owner, rng, KINDS[label], crowd=len(present))
        _paint(canvas, rng, KINDS[label], body, part)
        owner[np.maximum(body, part) >= 0.5] = position
    labels = np.zeros(shape, dtype=np.uint8)
    objects = []
    for position, label in enumerate(present):
        visible = owner == position
        labels[visible] = label + 1
        if visible.any():
            objects.append((label, visible))
    return Scene(_photograph(canvas, rng), labels, tuple(objects))


def _shape(rng: np.random.Generator, sides: tuple[int, int]) -> tuple[int, int]:
    low, high = sides[0] // 2, max(sides[0] // 2 + 1, (sides[1] - 1) // 2)
    height, width = (2 * int(rng.integers(low, high + 1)) + 1 for _ in range(2))
    return height, width if width != height else (width - 2 if width > 2 * low + 1 else width + 2)


def _choose(rng: np.random.Generator, classes: int) -> list[int]:
    first, draw = int(rng.integers(classes)), rng.random()
    if draw < 0.3 and classes > 1:
        return [first, (first + int(rng.integers(1, classes))) % classes]
    return [first, first] if draw < 0.4 else [first]


def _shared_colour(rng: np.random.Generator) -> Colour:
    base = _SHARED[int(rng.integers(len(_SHARED)))]
    r, g, b = (float(np.clip(value + shift, 0, 1)) for value, shift in zip(base, rng.normal(0, 0.06, 3), strict=True))
    return r, g, b


def _cloth(shape: tuple[int, int], rng: np.random.Generator, pattern: str, period: float) -> Plane:
    """A texture in shared colours: what bodies and clutter are made of."""
    colour, depth = np.array(_shared_colour(rng)), rng.uniform(0.25, 0.45)
    dark, light = np.clip(colour - depth / 2, 0, 1), np.clip(colour + depth / 2, 0, 1)
    plane = PATTERNS[pattern](shape, rng, period)
    return mix(plane, (dark[0], dark[1], dark[2]), (light[0], light[1], light[2]))


def _background(shape: tuple[int, int], rng: np.random.Generator, home: int) -> Plane:
    pattern, dark, light = _GROUNDS[home]
    plane = PATTERNS[pattern](shape, rng, rng.uniform(10, 22))
    canvas = mix(plane, dark, light)
    canvas *= 0.7 + 0.6 * noise(shape, rng, 60)[..., None]
    return canvas


def _alpha(shape: tuple[int, int], polygons: tuple[Polygon, ...]) -> Plane:
    """Antialiased coverage of polygons given in pixels."""
    big = np.zeros((shape[0] * _SUPERSAMPLE, shape[1] * _SUPERSAMPLE), dtype=np.uint8)
    for polygon in polygons:
        cv2.fillPoly(big, [np.round(polygon * _SUPERSAMPLE).astype(np.int32)], 255)
    small = cv2.resize(big, (shape[1], shape[0]), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def _blend(canvas: Plane, colour: Plane, alpha: Plane) -> None:
    canvas += alpha[..., None] * (colour - canvas)


def _clutter(canvas: Plane, rng: np.random.Generator) -> None:
    """Add one shape of no class: a blob or bar of body texture, or of a part's pattern in other colours."""
    height, width = canvas.shape[:2]
    t = np.linspace(0, 2 * np.pi, int(rng.integers(5, 14)), endpoint=False)
    radius = rng.uniform(0.06, 0.2) * min(height, width) * rng.uniform(0.6, 1.3, len(t))
    points = np.stack([np.cos(t) * radius * rng.uniform(0.5, 2), np.sin(t) * radius], axis=1)
    points = points @ _rotation(rng.uniform(0, np.pi)) + rng.uniform(0, 1, 2) * (width, height)
    left, top = np.clip(np.floor(points.min(axis=0)), 0, (width - 2, height - 2)).astype(int)
    right, bottom = np.clip(np.ceil(points.max(axis=0)) + 1, (left + 2, top + 2), (width, height)).astype(int)
    patch = canvas[top:bottom, left:right]
    shape = (patch.shape[0], patch.shape[1])
    kind = KINDS[int(rng.integers(len(KINDS)))]
    pattern = kind.pattern if rng.random() < 0.3 else kind.textures[int(rng.integers(len(kind.textures)))]
    cloth = _cloth(shape, rng, pattern, rng.uniform(6, 14))
    if rng.random() < 0.25:  # a telling colour without its pattern
        cloth = mix(noise(shape, rng, 12), *kind.colours) * np.float32(0.9)
    if rng.random() < 0.5:
        cloth = cloth * (0.7 + 0.6 * noise(shape, rng, 40)[..., None])
    _blend(patch, cloth, _alpha(shape, (points - (left, top),)))


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _place(owner: NDArray[np.int32], rng: np.random.Generator, kind: Kind, *, crowd: int) -> tuple[Plane, Plane]:
    """Choose pose and position so that earlier objects stay mostly visible: coverage of body and of part."""
    shape = (owner.shape[0], owner.shape[1])
    taken = owner >= 0
    least, pose = np.inf, (np.eye(2), np.zeros(2))
    for _ in range(12):
        size = min(shape) * (rng.uniform(0.24, 0.42) if crowd == 1 else rng.uniform(0.2, 0.31))
        stretch = np.diag([rng.uniform(0.85, 1.15) * (1 if rng.random() < 0.5 else -1), rng.uniform(0.85, 1.15)])
        turn = stretch @ _rotation(rng.normal(0, 0.35)) * size
        centre = rng.uniform(0.85 * size, np.array(shape[::-1]) - 0.85 * size)
        mine = np.zeros(shape, dtype=np.uint8)
        for polygon in (*kind.body, *kind.part):
            cv2.fillPoly(mine, [np.round(polygon @ turn + centre).astype(np.int32)], 1)
        overlap = float((mine.astype(bool) & taken).sum()) / max(1, int(mine.sum()))
        if overlap < least:
            least, pose = overlap, (turn, centre)
        if overlap < 0.1:
            break
    turn, centre = pose
    body = _alpha(shape, tuple(polygon @ turn + centre for polygon in kind.body))
    return body, _alpha(shape, tuple(polygon @ turn + centre for polygon in kind.part))


def _paint(canvas: Plane, rng: np.random.Generator, kind: Kind, body: Plane, part: Plane) -> None:
    shape = (canvas.shape[0], canvas.shape[1])
    skin = _cloth(shape, rng, kind.textures[int(rng.integers(len(kind.textures)))], rng.uniform(8, 14))
    tell = mix(PATTERNS[kind.pattern](shape, rng, rng.uniform(5, 8)), *kind.colours)
    whole = np.maximum(body, part)
    # Light from above and a darker rim give the object a volume that the clutter mostly lacks.
    depth = cv2.GaussianBlur(whole, (0, 0), 0.035 * min(shape) + 1)
    shade = np.clip(0.45 + 0.75 * depth, 0, 1.12)[..., None] * rng.uniform(0.9, 1.1)
    _blend(canvas, skin * shade, body)
    _blend(canvas, tell * np.clip(shade + 0.1, 0, 1.1), part)


def _photograph(canvas: Plane, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Light, blur, contrast and sensor noise."""
    shape = (canvas.shape[0], canvas.shape[1])
    canvas = canvas * (0.75 + 0.5 * noise(shape, rng, max(shape)))[..., None]
    canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 0.8)), dtype=np.float32)
    canvas = (canvas - 0.5) * rng.uniform(0.8, 1.2) + 0.5 + rng.uniform(-0.06, 0.06)
    canvas = canvas + 0.02 * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.asarray(np.clip(np.rint(canvas * 255), 0, 255), dtype=np.uint8)
