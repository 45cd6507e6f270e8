"""Box masks against contour tracing and against a count by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsol.ops.box_mask import box_masks


def traced(plane: np.ndarray, threshold: float) -> np.ndarray:
    """The published way: all contours of the thresholded 8-bit map, boxes cut before the last row and column."""
    height, width = plane.shape
    levels = (plane * 255).astype(np.uint8)
    _, strong = cv2.threshold(levels, int(threshold * np.max(levels)), 255, cv2.THRESH_BINARY)
    contours = cv2.findContours(strong, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    mask = np.zeros(plane.shape, bool)
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        mask[y : min(y + h, height - 1), x : min(x + w, width - 1)] = True
    return mask


@given(
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    threshold=st.sampled_from([0.0, 0.25, 0.4, 0.7, 1.0]),
    smooth=st.booleans(),
    seed=st.integers(0, 999),
)
def test_reference_boxes_are_those_of_the_contours(height, width, threshold, smooth, seed):
    maps = np.random.default_rng(seed).random((2, height, width), dtype=np.float32)
    if smooth:
        maps = np.stack([cv2.blur(plane, (3, 3)) for plane in maps])
    got = box_masks(maps, threshold=threshold, reference_boxes=True)
    np.testing.assert_array_equal(got, [traced(plane, threshold) for plane in maps])
    clean = box_masks(maps, threshold=threshold)
    assert (got <= clean).all()
    strong = (maps * np.float32(255)).astype(np.uint8)
    assert clean[strong > (threshold * strong.max((1, 2), keepdims=True)).astype(np.uint8)].all()


def test_boxes_hold_whole_regions():
    plane = np.zeros((5, 8), np.float32)
    plane[[1, 2], [0, 1]] = 1.0  # joined by a corner
    plane[3:, 6:] = 0.5
    plane[0, 4] = 0.3  # too weak
    expected = np.zeros((5, 8), bool)
    expected[1:3, 0:2] = True
    expected[3:, 6:] = True
    np.testing.assert_array_equal(box_masks(plane[None])[0], expected)
    expected[4], expected[:, 7] = False, False
    np.testing.assert_array_equal(box_masks(plane[None], reference_boxes=True)[0], expected)


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_positive_gives_no_box(count):
    masks = box_masks(np.zeros((count, 3, 4), np.float32))
    assert masks.shape == (count, 3, 4)
    assert masks.dtype == np.bool_
    assert not masks.any()
