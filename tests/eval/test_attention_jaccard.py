"""The Jaccard index of attention heads against sets of pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsol.errors import EvalError
from wsol.eval.attention_jaccard import attention_jaccard


@given(seed=st.integers(0, 10_000), height=st.integers(1, 7), width=st.integers(1, 9), heads=st.integers(1, 4))
@pytest.mark.parametrize("void", ["exclude", "as_reference"])
def test_it_is_the_best_ratio_of_sets_a_class(void, seed, height, width, heads):
    generator = np.random.default_rng(seed)
    truth = generator.choice(np.array([0, 1, 7, 255], dtype=np.uint8), size=(height, width))
    masks = generator.random((heads, height, width)) < 0.4
    pixels = {(i, j) for i, j in np.ndindex(height, width) if void == "as_reference" or truth[i, j] != 255}
    values = []
    for label in (1, 7):
        inside = {place for place in pixels if truth[place] == label}
        if inside:
            chosen = [{place for place in pixels if mask[place]} for mask in masks]
            values.append(max(len(inside & one) / len(inside | one) for one in chosen))
    ours = attention_jaccard(masks, truth, void=void)
    assert ours == pytest.approx(np.mean(values)) if values else math.isnan(ours)


def test_sizes_must_agree():
    with pytest.raises(EvalError, match=r"expected masks .*got \(2, 3, 3\).*repeat each patch"):
        attention_jaccard(np.ones((2, 3, 3), dtype=bool), np.ones((3, 5), dtype=np.uint8))
