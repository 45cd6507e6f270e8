"""Histograms of PxAP against np.histogram, and the average precision against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsol.errors import EvalError
from wsol.eval.pixels import PixelCounts, bin_edges, combine_masks

_INTERVALS = st.sampled_from([0.001, 0.01, 0.1, 0.3, 1 / 3, 0.07, 1.0])


@given(
    _INTERVALS,
    arrays(np.float64, (6, 9), elements=st.floats(0, 1)),
    arrays(np.uint8, (6, 9), elements=st.sampled_from([0, 1, 255])),
    st.integers(0, 2**32 - 1),
)
def test_counts_are_those_of_numpy(interval, scores, truth, seed):
    edges = bin_edges(interval)
    rng = np.random.default_rng(seed)
    scores = np.where(rng.random(scores.shape) < 0.5, rng.choice(edges[:-2], scores.shape), scores)
    counts = PixelCounts(interval)
    counts.add(scores, truth)
    for value in (0, 1):
        np.testing.assert_array_equal(counts.counts[value], np.histogram(scores[truth == value], edges)[0])


def test_average_precision_of_a_small_case():
    counts = PixelCounts(0.25)
    counts.add(np.array([[1.0, 0.8, 0.6, 0.3, 0.1]]), np.array([[1, 0, 1, 255, 1]], np.uint8))
    # By descending threshold: 1 of 1, then 0 of 1, 1 of 1, none, 1 of 1.
    assert counts.pxap() == pytest.approx(100 * (1 / 3 * 1 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 4))
    value, threshold = counts.piou()
    assert value == pytest.approx(100 * 3 / 4)
    assert threshold == 0.0


def test_merging_is_adding():
    rng = np.random.default_rng(0)
    whole, first, second = PixelCounts(0.01), PixelCounts(0.01), PixelCounts(0.01)
    for number in range(4):
        scores, truth = rng.random((5, 7)), rng.integers(0, 2, (5, 7), dtype=np.uint8)
        whole.add(scores, truth)
        (first if number % 2 else second).add(scores, truth)
    first.merge(second.counts)
    assert first.pxap() == whole.pxap()


def test_foreground_wins_over_ignored_and_ignored_over_background():
    instance, ignored = np.array([[1, 0, 0]], np.uint8), np.array([[1, 1, 0]], np.uint8)
    np.testing.assert_array_equal(combine_masks([instance], ignored, size=(1, 3)), [[1, 255, 0]])


def test_nothing_to_find_and_wrong_shapes_are_refused():
    counts = PixelCounts(0.01)
    counts.add(np.zeros((2, 3)), np.zeros((2, 3), np.uint8))
    with pytest.raises(EvalError, match="no foreground"):
        counts.pxap()
    with pytest.raises(EvalError, match="score map is"):
        counts.add(np.zeros((2, 3)), np.zeros((3, 2), np.uint8))
