from __future__ import annotations

import numpy as np
import pytest
import torch

from wsol.errors import ConfigError, DataError
from wsol.refine.pamr import PAMR, pamr


def naive_pamr(image: np.ndarray, scores: np.ndarray, iterations: int, dilations: tuple[int, ...]) -> np.ndarray:
    """The formula, one pixel at a time in float64."""
    image, scores = image.astype(np.float64), scores.astype(np.float64)
    height, width = image.shape[:2]
    steps = [(dy * d, dx * d) for d in dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    places, weights = {}, {}
    for y in range(height):
        for x in range(width):
            near = [(min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)) for dy, dx in steps]
            colours = np.array([image[place] for place in near])
            taps = np.concatenate([colours, np.repeat(image[y, x][None], len(dilations), 0)])
            affinity = -(np.abs(colours - image[y, x]) / (1e-8 + 0.1 * taps.std(0, ddof=1))).mean(1)
            share = np.exp(affinity - affinity.max())
            places[y, x], weights[y, x] = near, share / share.sum()
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
    image[3:7, 4:9] = 77  # a flat patch: deviation zero
    scores = rng.random((3, 9, 13), dtype=np.float32)
    got = PAMR(iterations=iterations, dilations=dilations)(image, scores)
    np.testing.assert_allclose(got, naive_pamr(image, scores, iterations, dilations), atol=2e-6)


def test_flat_image_averages_the_neighbours() -> None:
    scores = torch.zeros(1, 1, 7, 9)
    scores[0, 0, 3, 4] = 8
    got = pamr(torch.full((1, 3, 7, 9), 9.0), scores, iterations=1, dilations=(2,))
    expected = torch.zeros(7, 9)
    expected[1:6:2, 2:7:2] = 1
    expected[3, 4] = 0
    torch.testing.assert_close(got[0, 0], expected)


def test_average_of_channels_is_kept() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (15, 11, 3), dtype=np.uint8)
    scores = rng.random((4, 15, 11), dtype=np.float32)
    scores /= scores.sum(0)
    np.testing.assert_allclose(PAMR()(image, scores).sum(0), 1, atol=1e-5)


def test_images_of_a_batch_do_not_mix_and_scale_is_free() -> None:
    torch.manual_seed(0)
    images, masks = torch.rand(2, 3, 12, 19), torch.rand(2, 5, 12, 19)
    together = pamr(images, masks)
    for index in range(2):
        alone = pamr(255 * images[[index]], masks[[index]])
        torch.testing.assert_close(together[[index]], alone, atol=1e-5, rtol=0)


def test_no_gradient_flows_and_inputs_stay() -> None:
    images, masks = torch.rand(1, 3, 8, 6), torch.rand(1, 2, 8, 6, requires_grad=True)
    before = images.clone(), masks.detach().clone()
    assert not pamr(images, masks).requires_grad
    assert pamr(images, masks, iterations=0).data_ptr() != masks.data_ptr()
    assert torch.equal(images, before[0])
    assert torch.equal(masks, before[1])
    assert pamr(images.half(), masks.half()).dtype == torch.float32


def test_bad_options_and_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="dilations"):
        PAMR(dilations=())
    with pytest.raises(ConfigError, match="iterations"):
        PAMR(iterations=-1)
    with pytest.raises(DataError, match="expected images"):
        pamr(torch.rand(1, 3, 8, 6), torch.rand(1, 2, 8, 7))
    with pytest.raises(DataError, match="expected images"):
        pamr(torch.rand(1, 3, 8, 6), torch.rand(2, 2, 8, 6))
