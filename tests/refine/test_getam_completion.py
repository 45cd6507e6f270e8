from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from wsol.errors import ConfigError
from wsol.refine import with_background
from wsol.refine.getam_completion import GETAMCompletion, complete_labels


def naive(scores: np.ndarray, ids: list[int], salient: np.ndarray, quantile: float, side: int) -> np.ndarray:
    """The rule, one pixel at a time."""
    height, width = salient.shape
    labels = np.zeros((height, width), int)
    for y in range(height):
        for x in range(width):
            best = int(np.argmax(scores[:, y, x]))
            labels[y, x] = 0 if not salient[y, x] else 255 if best == 0 else ids[best - 1] + 1
    for channel in sorted(range(len(ids)), key=lambda at: ids[at]):
        plane = scores[channel + 1]
        ordered = sorted(plane[plane > 0].tolist())
        for y in range(height):
            for x in range(width):
                if ordered and labels[y, x] == 0 and plane[y, x] > ordered[int(quantile * len(ordered))]:
                    labels[y, x] = ids[channel] + 1
    # OpenCV puts the anchor of an even square behind its middle, for both steps.
    before, after = side // 2, side - side // 2

    def windows(values: np.ndarray, rule: Callable[[np.ndarray], bool]) -> np.ndarray:
        found = np.zeros((height, width), bool)
        for y in range(height):
            for x in range(width):
                found[y, x] = rule(values[max(0, y - before) : y + after, max(0, x - before) : x + after])
        return found

    kept = windows(windows(labels != 0, np.all), np.any)
    return np.where(kept, labels, 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("quantile", "side"), [(0.9, 1), (0.5, 2), (0.0, 3), (0.99, 1)])
def test_equals_the_rule_pixel_by_pixel(seed: int, quantile: float, side: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.random((2, 13, 19), dtype=np.float32) * (rng.random((2, 13, 19)) < 0.7)
    scores, salient = with_background(maps.astype(np.float32), background=0.6), rng.random((13, 19)) < 0.7
    labels, _ = complete_labels(scores, np.array([14, 3]), salient, quantile=quantile, opening=side)
    np.testing.assert_array_equal(labels, naive(scores, [14, 3], salient, quantile, side))


def test_a_class_below_the_background_gets_its_best_pixels() -> None:
    scores = np.zeros((3, 40, 50), np.float32)
    scores[0] = 0.5
    scores[1, :, :20] = 0.9
    scores[2, 20:, 30:] = 0.2
    scores[2, 24:36, 34:48] = 0.4
    labels, confidence = GETAMCompletion(quantile=0.5, opening=9).label(scores, np.array([2, 6]))
    assert set(np.unique(labels)) == {0, 3, 7}
    assert (labels[24:36, 34:48] == 7).all()
    assert confidence.dtype == np.float16
    np.testing.assert_allclose(confidence[labels == 7], 0.4, atol=1e-3)
    np.testing.assert_allclose(confidence[labels == 0], 0.5, atol=1e-3)


def test_saliency_decides_between_background_and_ignored() -> None:
    scores = np.zeros((2, 30, 41), np.float32)
    scores[0], scores[1, :, :12] = 0.5, 0.8
    saliency = np.zeros((30, 41))
    saliency[:, :25] = 0.3
    labels, _ = GETAMCompletion().label(scores, np.array([0]), saliency=saliency)
    np.testing.assert_array_equal(labels[0], [1] * 12 + [255] * 13 + [0] * 16)


def test_no_classes_and_no_positive_scores() -> None:
    for scores in (np.ones((1, 9, 7), np.float32), np.eye(1, 3).reshape(3, 1, 1).repeat(9, 1).repeat(7, 2)):
        ids = np.arange(len(scores) - 1)
        assert not GETAMCompletion().label(scores.astype(np.float32), ids)[0].any()


@pytest.mark.parametrize("options", [{"quantile": 1.0}, {"quantile": -0.1}, {"opening": 0}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        GETAMCompletion(**options)
