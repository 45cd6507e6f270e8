"""Boxes from the component tree against thresholding and tracing with OpenCV, at every integer threshold."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsol.errors import EvalError
from wsol.ops.components import contour_boxes, fill_holes, largest_contour_boxes
from wsol.ops.truncate import truncate


def _traced(levels, threshold):
    """The rule: contours of the binary image in OpenCV's order, their boxes, and the one with the largest area."""
    binary = cv2.threshold(levels, threshold, 255, cv2.THRESH_BINARY)[1]
    contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    boxes = [(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, contours)]
    best = max(range(len(contours)), key=lambda at: cv2.contourArea(contours[at]), default=None)
    return sorted(boxes), (0, 0, 0, 0) if best is None else boxes[best]


def _check(levels):
    every, largest = contour_boxes(levels), largest_contour_boxes(levels)
    counts = every.count()
    assert (every.spans[:, 0] <= every.spans[:, 1]).all()
    expected = None
    present = set(levels.ravel().tolist())
    for threshold in range(256):
        if expected is None or threshold in present:  # else the binary image is the one of before
            expected = _traced(levels, threshold)
        assert sorted(map(tuple, every.at(threshold).tolist())) == expected[0], threshold
        assert tuple(largest[threshold].tolist()) == expected[1], threshold
        assert counts[threshold] == len(expected[0])


def _family(kind, height, width, seed):
    rng = np.random.default_rng(seed)
    size = (height, width)
    if kind == "noise":
        return rng.integers(0, 256, size, dtype=np.uint8)
    if kind == "plateaus":
        return rng.choice(rng.integers(0, 256, rng.integers(1, 6), dtype=np.uint8), size)
    if kind == "binary":
        return ((rng.random(size) < rng.random()) * 255).astype(np.uint8)
    if kind == "checkerboard":
        return (np.add.outer(np.arange(height), np.arange(width)) % 2 * rng.integers(0, 256, size)).astype(np.uint8)
    if kind == "rings":
        y, x = np.mgrid[:height, :width] - rng.random(2)[:, None, None] * np.reshape(size, (2, 1, 1))
        radius = np.maximum(abs(y), abs(x)) if rng.random() < 0.5 else np.hypot(y, x)
        return (np.cos(radius * rng.uniform(0.5, 3)) * 127 + 128).astype(np.uint8)
    if kind == "lines":
        levels = np.zeros(size, dtype=np.uint8)
        for _ in range(rng.integers(1, 12)):
            ends = rng.integers(0, [[width], [height]], (2, 2)).T.tolist()
            cv2.line(levels, ends[0], ends[1], int(rng.integers(1, 256)), 1)
        return levels
    grid = rng.random((int(rng.integers(1, 8)), int(rng.integers(1, 8))))
    smooth = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC).reshape(size)
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) / (high - low or 1) * rng.integers(1, 256)).astype(np.uint8)


_FAMILIES = ("noise", "plateaus", "binary", "checkerboard", "rings", "lines", "smooth")
_SIDES = st.integers(1, 30)
_ANY_MAP = st.one_of(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 2, 254, 255])),
    st.builds(_family, st.sampled_from(_FAMILIES), _SIDES, _SIDES, st.integers(0, 2**32 - 1)),
)


@settings(max_examples=2000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(_ANY_MAP)
def test_two_thousand_maps(levels):
    _check(levels)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 2), (5, 3)])
@pytest.mark.parametrize("value", [0, 1, 7, 254, 255])
def test_constant(size, value):
    _check(np.full(size, value, dtype=np.uint8))


def test_holes_inside_components_inside_holes():
    levels = np.zeros((23, 31), dtype=np.uint8)
    for depth in range(10):
        levels[depth : 23 - depth, depth : 31 - depth] = 255 if depth % 2 else 40 + depth
    _check(levels)
    _check(255 - levels)


def test_every_component_touches_an_edge():
    levels = np.zeros((17, 12), dtype=np.uint8)
    levels[0, ::3], levels[-1, 1::3], levels[::4, 0], levels[2::4, -1] = 200, 90, 90, 200
    _check(levels)


def test_diagonal_touch_joins_components_but_not_holes():
    levels = np.array([[9, 9, 9, 0], [9, 0, 9, 9], [9, 9, 0, 9], [0, 9, 9, 9]], dtype=np.uint8)
    boxes = contour_boxes(levels).at(5)
    assert sorted(map(tuple, boxes.tolist())) == [(0, 0, 3, 3), (0, 0, 4, 4), (1, 1, 4, 4)]


def test_of_equal_areas_the_last_first_pixel_wins():
    levels = np.zeros((9, 9), dtype=np.uint8)
    levels[1:4, 1:4] = levels[1:4, 5:8] = levels[5:8, 1:4] = 50
    assert largest_contour_boxes(levels)[10].tolist() == [1, 5, 4, 8]


@pytest.mark.parametrize("seed", range(3))
def test_many_basins(seed):
    levels = np.random.default_rng(seed).integers(0, 256, (131, 118), dtype=np.uint8)
    levels[30:90, 40:100] //= 2
    _check(levels)


@pytest.mark.parametrize("seed", range(4))
def test_larger_maps(seed):
    rng = np.random.default_rng(seed)
    rough = cv2.GaussianBlur(rng.random((97, 143)), (0, 0), 1.5)
    _check(np.round((rough - rough.min()) / np.ptp(rough) * 255).astype(np.uint8))


@pytest.mark.parametrize("kind", _FAMILIES)
def test_filled_map_has_the_components_without_their_holes(kind):
    for seed in range(6):
        levels = _family(kind, 19, 26, seed)
        filled = fill_holes(levels)
        for threshold in range(0, 255, 3):
            binary = (levels > threshold).astype(np.uint8)
            contours = cv2.findContours(binary, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
            expected = cv2.drawContours(np.zeros_like(binary), contours, -1, 1, cv2.FILLED)
            np.testing.assert_array_equal(filled > threshold, expected > 0)


def test_views_and_other_layouts_are_taken_as_they_are():
    levels = _family("smooth", 40, 50, 3)[::2, ::-1]
    assert not levels.flags["C_CONTIGUOUS"]
    _check(levels)


def test_threads_do_not_share_state():
    maps = [_family(kind, 60, 44, seed) for kind in _FAMILIES for seed in range(6)]
    alone = [(contour_boxes(levels).xyxy, largest_contour_boxes(levels)) for levels in maps]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda levels: (contour_boxes(levels).xyxy, largest_contour_boxes(levels)), maps))
    for (boxes, largest), (other_boxes, other_largest) in zip(alone, together, strict=True):
        np.testing.assert_array_equal(boxes, other_boxes)
        np.testing.assert_array_equal(largest, other_largest)


@pytest.mark.parametrize(
    "levels",
    [np.zeros((3, 3)), np.zeros((3, 3, 1), np.uint8), np.zeros((0, 3), np.uint8), np.zeros((1, 40000), np.uint8)],
)
def test_what_is_no_map_is_refused(levels):
    for function in (contour_boxes, largest_contour_boxes, fill_holes):
        with pytest.raises(EvalError, match="expected levels"):
            function(levels)


@pytest.mark.parametrize("shape", [(1, 32764), (32764, 1)])
def test_the_longest_side(shape):
    levels = np.zeros(shape, np.uint8)
    levels[-1, -1] = 9
    assert contour_boxes(levels).at(4).tolist() == [[shape[1] - 1, shape[0] - 1, shape[1], shape[0]]]
    with pytest.raises(EvalError, match="from 1 to 32764"):
        contour_boxes(np.zeros((1, 32765), np.uint8))


@given(arrays(np.float64, (5, 7), elements=st.floats(0, 1)))
def test_truncation_is_that_of_numpy(scores):
    np.testing.assert_array_equal(truncate(scores), (scores * 255).astype(np.uint8))
