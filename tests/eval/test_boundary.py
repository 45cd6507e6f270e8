from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsol import data
from wsol.errors import EvalError
from wsol.eval import evaluate_segmentation
from wsol.eval.boundary import border, boundary_scores, evaluate_boundary, fill_unknown
from wsol.schema import PseudoMask
from wsol.store.masks import write_mask


def brute_border(region):
    height, width = region.shape
    found = []
    for y, x in zip(*np.nonzero(region), strict=True):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        if any(0 <= a < height and 0 <= b < width and not region[a, b] for a, b in around):
            found.append((y, x))
    return found


def brute(truth, predicted, label, reach):
    """Every pair of border pixels."""
    ours, theirs = brute_border(predicted == label), brute_border(truth == label)
    if not ours or not theirs:
        same = float(((predicted == label) == (truth == label)).all())
        return same, same, same

    def near(points, others):
        return np.mean([min(np.hypot(y - b, x - d) for b, d in others) < reach for y, x in points])

    precision, recall = near(ours, theirs), near(theirs, ours)
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0


MASKS = arrays(np.uint8, (9, 14), elements=st.sampled_from([0, 0, 0, 1, 1, 3]))


@given(MASKS, MASKS, st.sampled_from([0.02, 0.08, 0.16]))
def test_scores_equal_all_pairs_of_border_pixels(truth, predicted, tolerance):
    found = boundary_scores(truth, predicted, tolerance=tolerance)
    assert set(found) == set(np.unique(truth)) - {0}
    for label, score in found.items():
        expected = brute(truth, predicted, label, tolerance * np.hypot(9, 14))
        np.testing.assert_allclose(score, expected, atol=1e-6)


@given(MASKS)
def test_a_mask_equals_itself_and_its_border_is_that_of_loops(mask):
    assert all(score == (1.0, 1.0, 1.0) for score in boundary_scores(mask, mask).values())
    assert list(zip(*np.nonzero(border(mask == 1)), strict=True)) == brute_border(mask == 1)


def test_an_unlabelled_band_counts_as_border_in_its_middle():
    truth = np.zeros((41, 67), np.uint8)
    truth[8:33, 10:50] = 255  # a band of 5 pixels around the object
    truth[13:28, 15:45] = 4
    middle = np.where(fill_unknown(truth) == 4, 4, 0).astype(np.uint8)
    rows, columns = np.nonzero(middle)
    assert 8 < rows.min() < 13
    assert 45 <= columns.max() < 50
    tight = boundary_scores(truth, middle, tolerance=0.02)[4]
    assert tight == (1.0, 1.0, 1.0)
    inner, outer = np.zeros_like(truth), np.zeros_like(truth)
    inner[18:23, 20:40], outer[8:33, 10:50] = 4, 4
    assert boundary_scores(truth, inner, tolerance=0.02)[4].f < 0.2
    assert boundary_scores(truth, outer, tolerance=0.02)[4].f < 0.2


def test_the_reach_is_not_rounded():
    truth, predicted = np.zeros((2, 60, 80), np.uint8)
    truth[:, :30], predicted[:, :37] = 1, 1
    assert 0.07 * np.hypot(60, 80) > 7  # by less than float32 can tell
    assert boundary_scores(truth, predicted, tolerance=0.07)[1] == (1.0, 1.0, 1.0)
    assert boundary_scores(truth, predicted, tolerance=0.0699)[1] == (0.0, 0.0, 0.0)


def test_a_class_that_was_lost_scores_0_and_a_wrong_size_is_refused():
    truth = np.zeros((17, 23), np.uint8)
    truth[4:9, 5:14] = 2
    assert boundary_scores(truth, np.zeros_like(truth))[2].f == 0
    assert boundary_scores(np.full_like(truth, 2), np.full_like(truth, 2))[2].f == 1
    assert boundary_scores(np.full_like(truth, 255), truth) == {}
    with pytest.raises(EvalError, match="mask is"):
        boundary_scores(truth, truth[:-1])


def test_a_run_is_the_mean_over_classes_of_means_over_images(tmp_path):
    dataset = data.load("synthetic", root=tmp_path / "data", split="val", train=1, val=5, seed=3)
    rng = np.random.default_rng(0)
    expected: dict[int, list[tuple[float, ...]]] = {}
    for at, sample in enumerate(dataset):
        truth = dataset.read_truth(sample)
        predicted = np.where(truth == 255, 0, np.roll(truth, at, axis=1)).astype(np.uint8)
        predicted[rng.random(predicted.shape) < 0.001] = 0
        if at < 4:
            write_mask(tmp_path / "run", PseudoMask(id=sample.id, labels=predicted))
            for label, score in boundary_scores(truth, predicted).items():
                expected.setdefault(label, []).append(score)
    found = evaluate_boundary(tmp_path / "run/masks", dataset, workers=0)
    assert found.n == 4
    assert "incomplete: 1 of 5" in found.warnings[0]
    means = [np.mean(scores, axis=0) for scores in expected.values()]
    assert found.metrics["boundary F"] == pytest.approx(100 * np.mean(means, axis=0)[2])
    assert 0 < found.metrics["boundary F"] < 100
    whole = evaluate_segmentation(
        pred=tmp_path / "run",
        data="synthetic",
        root=tmp_path / "data",
        split="val",
        boundary=0.0075,
        workers=0,
    )
    assert {name: whole.metrics[name] for name in found.metrics} == found.metrics
    with pytest.raises(EvalError, match="none of 5"):
        evaluate_boundary(tmp_path / "empty", dataset, workers=0)
