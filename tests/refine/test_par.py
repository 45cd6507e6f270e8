from __future__ import annotations

import numpy as np
import pytest
import torch

from wsol.errors import ConfigError, DataError
from wsol.refine.par import PAR, par


def naive_par(image: np.ndarray, scores: np.ndarray, iterations: int, dilations: tuple[int, ...]) -> np.ndarray:
    """The formula, one pixel at a time in float64."""
    image, scores = image.astype(np.float64), scores.astype(np.float64)
    height, width = image.shape[:2]
    steps = [(dy * d, dx * d) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]

    def share(exponent: np.ndarray) -> np.ndarray:
        return np.exp(exponent - exponent.max()) / np.exp(exponent - exponent.max()).sum()

    distance = np.array([np.hypot(*step) for step in steps])
    position = share(-((distance / (distance.std(ddof=1) + 1e-8) / 0.3) ** 2))
    places, weights = {}, {}
    for y in range(height):
        for x in range(width):
            near = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in steps]
            colours = np.array([image[place] for place in near])
            spread = colours.std(0, ddof=1) + 1e-8
            affinity = share(-((np.abs(colours - image[y, x]) / spread / 0.3) ** 2).mean(1))
            places[y, x], weights[y, x] = near, affinity + 0.01 * position
    for _ in range(iterations):
        refined = np.empty_like(scores)
        for (y, x), near in places.items():
            refined[:, y, x] = sum(w * scores[:, r, c] for w, (r, c) in zip(weights[y, x], near, strict=True))
        scores = refined
    return scores


@pytest.mark.parametrize(
    ("iterations", "dilations"), [(1, (1,)), (3, (1, 2)), (2, (1, 4, 24))], ids=["one", "two", "wider than the image"]
)
def test_equals_the_naive_loop(iterations: int, dilations: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    image[3:8, 4:10] = 77  # a flat patch: deviation zero
    image[5, 6] = 200  # all neighbours equal, but unlike the pixel: infinitely many deviations away
    scores = rng.random((3, 9, 13), dtype=np.float32)
    expected = naive_par(image, scores, iterations, dilations)
    got = par(
        torch.from_numpy(image).permute(2, 0, 1)[None],
        torch.from_numpy(scores)[None],
        iterations=iterations,
        dilations=dilations,
    )
    np.testing.assert_allclose(got[0], expected, atol=5e-6)
    refined = PAR(iterations=iterations, dilations=dilations)(image, scores)
    np.testing.assert_allclose(refined, expected / 1.01**iterations, atol=5e-6)


def test_sum_over_channels_is_kept() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (15, 11, 3), dtype=np.uint8)
    scores = rng.random((4, 15, 11), dtype=np.float32)
    scores /= scores.sum(0)
    np.testing.assert_allclose(PAR()(image, scores).sum(0), 1, atol=1e-5)


def test_images_of_a_batch_do_not_mix_and_no_gradient_flows() -> None:
    torch.manual_seed(0)
    images, masks = torch.rand(2, 3, 12, 19), torch.rand(2, 5, 12, 19, requires_grad=True)
    together = par(images, masks)
    assert not together.requires_grad
    for index in range(2):
        torch.testing.assert_close(together[[index]], par(images[[index]], masks[[index]]), atol=1e-6, rtol=0)


def test_bad_options_and_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="dilations"):
        PAR(dilations=(0,))
    with pytest.raises(ConfigError, match="iterations"):
        PAR(iterations=-1)
    with pytest.raises(DataError, match="expected images"):
        par(torch.rand(1, 3, 8, 6), torch.rand(1, 2, 8, 7))
