from __future__ import annotations

import numpy as np
import pytest

from wsol.errors import ConfigError
from wsol.refine.randomwalk import RandomWalk


def naive_walk(image: np.ndarray, scores: np.ndarray, radius: int, srgb: float, steps: int) -> np.ndarray:
    """Dense transition matrix over all pixels, float64."""
    height, width = image.shape[:2]
    places = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    colours = image.reshape(-1, 3).astype(np.float64)
    near = ((places[:, None] - places) ** 2).sum(-1) < radius**2
    affinity = near * np.exp(-((colours[:, None] - colours) ** 2).sum(-1) / (2 * srgb**2))
    transition = affinity / affinity.sum(axis=1, keepdims=True)
    walked = np.linalg.matrix_power(transition, steps) @ scores.reshape(len(scores), -1).T
    return walked.T.reshape(scores.shape)


@pytest.mark.parametrize(("radius", "srgb", "steps"), [(2, 40.0, 1), (3, 90.0, 7), (5, 25.0, 64)])
def test_equals_the_dense_walk_at_stride_one(radius: int, srgb: float, steps: int) -> None:
    rng = np.random.default_rng(0)
    image, scores = rng.integers(0, 256, (9, 13, 3), dtype=np.uint8), rng.random((3, 9, 13), dtype=np.float32)
    got = RandomWalk(stride=1, radius=radius, srgb=srgb, steps=steps)(image, scores)
    np.testing.assert_allclose(got, naive_walk(image, scores, radius, srgb, steps), atol=1e-5)


def test_scores_fill_a_region_and_stop_at_its_border() -> None:
    image = np.zeros((60, 83, 3), np.uint8)
    image[16:44, 20:64] = (220, 40, 90)
    scores = np.zeros((2, 60, 83), np.float32)
    scores[1, 20:30, 24:34] = 1  # a part of the object
    scores[0] = 0.2
    labels = RandomWalk(steps=256)(image, scores).argmax(0)
    assert not labels[:12].any()
    assert labels[20:40, 24:60].mean() == 0  # 100 of 1232 pixels: below the background score
    scores[0] = 0.05
    assert RandomWalk(steps=2000)(image, scores).argmax(0)[20:40, 24:60].all()


def test_sum_over_channels_is_kept() -> None:
    rng = np.random.default_rng(1)
    image, scores = rng.integers(0, 256, (30, 41, 3), dtype=np.uint8), rng.random((4, 30, 41), dtype=np.float32)
    scores /= scores.sum(0)
    np.testing.assert_allclose(RandomWalk()(image, scores).sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("options", [{"stride": 0}, {"radius": 1}, {"srgb": 0.0}, {"steps": -1}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        RandomWalk(**options)
