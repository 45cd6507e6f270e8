from __future__ import annotations

import numpy as np
import pytest

from wsol.errors import ConfigError
from wsol.refine.guided import GuidedFilter


def naive_guided(image: np.ndarray, plane: np.ndarray, radius: int, eps: float) -> np.ndarray:
    """Ridge regression in every window, then the mean over the windows that hold a pixel; float64."""
    guide, (height, width) = image.astype(np.float64) / 255, plane.shape
    total, count = np.zeros(plane.shape), np.zeros(plane.shape)
    for y in range(height):
        for x in range(width):
            window = np.s_[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
            colours, values = guide[window].reshape(-1, 3), plane[window].reshape(-1).astype(np.float64)
            # The ridge as three more observations; the constant carries none.
            rows = np.concatenate(
                [np.c_[colours, np.ones(len(colours))], np.c_[np.sqrt(len(colours) * eps) * np.eye(3), np.zeros(3)]]
            )
            solution = np.linalg.lstsq(rows, np.r_[values, np.zeros(3)], rcond=None)[0]
            total[window] += guide[window] @ solution[:3] + solution[3]
            count[window] += 1
    return total / count


@pytest.mark.parametrize(("radius", "eps"), [(1, 1e-3), (3, 1e-2), (20, 1e-3)], ids=["3x3", "7x7", "wider"])
def test_equals_least_squares_in_every_window(radius: int, eps: float) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (11, 15, 3), dtype=np.uint8)
    image[2:8, 3:10] = (250, 3, 90)  # a flat patch, far from the mean colour
    scores = 0.3 + 0.4 * rng.random((2, 11, 15), dtype=np.float32)
    expected = np.stack([naive_guided(image, plane, radius, eps) for plane in scores]).clip(0, 1)
    np.testing.assert_allclose(GuidedFilter(radius=radius, eps=eps)(image, scores), expected, atol=2e-5)


def test_edges_of_scores_move_to_edges_of_the_image() -> None:
    image = np.zeros((40, 61, 3), np.uint8)
    image[:, 30:] = (200, 120, 40)
    scores = np.zeros((2, 40, 61), np.float32)
    scores[1, :, 33:] = 1  # 3 pixels beside the edge
    scores[0] = 1 - scores[1]
    refined = GuidedFilter(radius=12)(image, scores)
    np.testing.assert_array_equal(refined.argmax(0), np.broadcast_to(np.arange(61) >= 30, (40, 61)))
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-4)


@pytest.mark.parametrize("options", [{"radius": 0}, {"eps": 0.0}, {"eps": float("nan")}])
def test_bad_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        GuidedFilter(**options)
