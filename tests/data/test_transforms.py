"""Network input equals torchvision's; augmentation keeps image and mask together."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsol.data.transforms import augment, augment_pair, crop_window, distort_colours, input_size, to_input
from wsol.errors import ConfigError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("source", "target"), [((37, 53), (64, 64)), ((201, 133), (64, 48)), ((1, 1), (7, 9)), ((5, 9), (5, 9))]
)
def test_to_input_equals_torchvision(source: tuple[int, int], target: tuple[int, int], interpolation: str) -> None:
    from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

    image = _photo(*source)
    steps = Compose([Resize(target, InterpolationMode(interpolation)), ToTensor(), Normalize(MEAN, STD)])
    expected = steps(Image.fromarray(image)).numpy()
    found = to_input(image, target, mean=MEAN, std=STD, interpolation=interpolation)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


def test_to_input_leaves_the_image_alone() -> None:
    image = _photo(8, 11)
    before = image.copy()
    to_input(image, (8, 11), mean=MEAN, std=STD)
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        ((375, 500), {"img_size": 224}, (224, 224)),
        ((375, 500), {"img_size": 384, "resize": "keep", "stride": 16}, (288, 384)),
        ((500, 333), {"img_size": 512, "resize": "keep", "stride": 32}, (512, 352)),
        ((1, 1000), {"img_size": 64, "resize": "keep", "stride": 16}, (16, 64)),
        ((1, 1), {"img_size": 50, "resize": "keep", "stride": 1}, (50, 50)),
        ((100, 50), {"img_size": 8, "resize": "keep", "stride": 16}, (16, 16)),
        ((375, 500), {"resize": "native", "stride": 16}, (384, 512)),
        ((150, 200), {"resize": "native", "stride": 16}, (160, 208)),
        ((512, 384), {"resize": "native", "stride": 16}, (512, 384)),
        ((1, 17), {"resize": "native", "stride": 16}, (16, 32)),
        ((375, 500), {"resize": "native", "stride": 16, "img_size": 400}, (304, 400)),
        ((500, 375), {"resize": "native", "stride": 16, "img_size": 600}, (512, 384)),
        ((3, 5000), {"resize": "native", "stride": 14, "img_size": 28}, (14, 28)),
    ],
)
def test_input_size(size: tuple[int, int], options: dict, expected: tuple[int, int]) -> None:
    assert input_size(size, **options) == expected


@given(st.integers(1, 900), st.integers(1, 900), st.integers(1, 600), st.integers(1, 40))
def test_keep_rounds_to_the_nearest_stride(height: int, width: int, img_size: int, stride: int) -> None:
    scale = img_size / max(height, width)
    for side, found in zip(
        (height, width), input_size((height, width), img_size=img_size, resize="keep", stride=stride), strict=True
    ):
        assert found >= stride
        assert found % stride == 0
        assert found == stride or abs(found - side * scale) <= stride / 2 + 1e-6


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 40), st.none() | st.integers(1, 3000))
def test_native_is_the_next_multiple_above(height: int, width: int, stride: int, limit: int | None) -> None:
    found = input_size((height, width), img_size=limit, resize="native", stride=stride)
    scale = min(1, Fraction(limit or 10**6, max(height, width)))
    for side, wanted in zip(found, (height * scale, width * scale), strict=True):
        assert side % stride == 0
        assert 0 <= side - wanted < stride


def test_input_size_refuses_nonsense() -> None:
    for options in (
        {},
        {"img_size": None, "resize": "keep"},
        {"img_size": 0, "resize": "native"},
        {"img_size": 0},
        {"img_size": 9, "stride": 0},
        {"img_size": 9, "resize": "crop"},
    ):
        with pytest.raises(ConfigError):
            input_size((5, 5), **options)
    with pytest.raises(ConfigError, match="interpolation"):
        to_input(_photo(5, 7), (3, 3), mean=MEAN, std=STD, interpolation="lanczos")


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_crop_window_stays_inside(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    top, left, h, w = crop_window((height, width), rng, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    assert top >= 0
    assert left >= 0
    assert h >= 1
    assert w >= 1
    assert top + h <= height
    assert left + w <= width


def test_crop_window_has_the_statistics_of_torchvision() -> None:
    import torch
    from torchvision.transforms import RandomResizedCrop

    scale, ratio, size = (0.2, 0.9), (3 / 4, 4 / 3), (201, 301)
    rng = np.random.default_rng(0)
    ours = np.array([crop_window(size, rng, scale=scale, ratio=ratio) for _ in range(4000)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = torch.zeros(1, *size)
        theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(4000)])
    for statistic in (np.mean, np.std):
        np.testing.assert_allclose(statistic(ours, axis=0), statistic(theirs, axis=0), rtol=0.06)


def test_augment_is_a_function_of_the_generator() -> None:
    image = _photo(61, 83)
    first = augment(image, (32, 40), np.random.default_rng(5), jitter=0.3)
    np.testing.assert_array_equal(first, augment(image, (32, 40), np.random.default_rng(5), jitter=0.3))
    assert first.shape == (32, 40, 3)
    assert not np.array_equal(first, augment(image, (32, 40), np.random.default_rng(6), jitter=0.3))


def test_augment_without_randomness_is_the_image() -> None:
    image = _photo(31, 31)
    view = augment(image, (31, 31), np.random.default_rng(0), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    np.testing.assert_array_equal(view, image)
    mirrored = augment(image, (31, 31), np.random.default_rng(0), scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])


@settings(max_examples=40, deadline=None)
@given(st.integers(9, 90), st.integers(9, 90), st.integers(0, 2**32 - 1))
def test_pair_stays_together(height: int, width: int, seed: int) -> None:
    # The image shows its own mask, so after any view the two must still agree away from edges.
    rng = np.random.default_rng(seed)
    mask = np.repeat(np.repeat(rng.integers(0, 2, (3, 3), dtype=np.uint8), 40, 0), 40, 1)[:height, :width]
    image = np.repeat((mask * 255)[..., None], 3, axis=2)
    view, truth = augment_pair(image, mask, (47, 33), rng)
    assert view.shape == (47, 33, 3)
    assert truth.shape == (47, 33)
    inside = truth != 255
    assert inside.any()
    np.testing.assert_array_equal(view[~inside], np.broadcast_to([124, 116, 104], view[~inside].shape))
    agree = (view[..., 0] > 127) == (truth == 1)
    assert agree[inside].mean() > 0.85


def test_pair_at_scale_one_is_the_image_with_padding() -> None:
    image, mask = _photo(20, 31), np.random.default_rng(1).integers(0, 21, (20, 31), dtype=np.uint8)
    view, truth = augment_pair(image, mask, (31, 31), np.random.default_rng(0), scale=(1.0, 1.0), flip=0.0)
    rows = np.flatnonzero((truth != 255).any(axis=1))
    assert len(rows) == 20
    np.testing.assert_array_equal(truth[rows], mask)
    np.testing.assert_array_equal(view[rows], image)


def test_pair_draws_crops_until_one_will_do() -> None:
    mask = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) // 16 % 251  # every pixel knows about where it is
    image, mask = _photo(64, 64), mask.astype(np.uint8)
    seen: list[np.ndarray] = []

    def third(labels: np.ndarray) -> bool:
        seen.append(labels.copy())
        return len(seen) == 3

    options = {"scale": (2.0, 2.0), "flip": 0.0}
    _, truth = augment_pair(image, mask, (64, 64), np.random.default_rng(5), will_do=third, **options)
    assert len(seen) == 3
    np.testing.assert_array_equal(truth, seen[-1])
    seen.clear()
    _, truth = augment_pair(
        image, mask, (64, 64), np.random.default_rng(5), will_do=lambda labels: bool(seen.append(labels)), **options
    )
    assert len(seen) == 10
    np.testing.assert_array_equal(truth, seen[-1])


class _Scripted:
    """A generator that answers as written."""

    def __init__(self, *answers: float) -> None:
        self.answers = list(answers)

    def integers(self, *_: int) -> int:
        return int(self.answers.pop(0))

    def uniform(self, *_: float) -> float:
        return self.answers.pop(0)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((0, 0, 0, 0, 0), lambda rgb: rgb),
        ((1, 20.5, 0, 0, 0, 0), lambda rgb: np.clip(rgb + 20.5, 0, 255)),
        ((0, 1, 1, 1.4, 0, 0), lambda rgb: np.clip(rgb * 1.4, 0, 255)),
        ((0, 0, 0, 0, 1, 0.6), lambda rgb: rgb * 0.6),
    ],
    ids=["nothing", "brightness", "contrast", "contrast last"],
)
def test_distortion_of_light(answers: tuple[float, ...], expected: Callable[[np.ndarray], np.ndarray]) -> None:
    image, script = _photo(7, 13), _Scripted(*answers)
    found = distort_colours(image, script)  # type: ignore[arg-type]
    assert not script.answers
    np.testing.assert_array_equal(found, np.floor(expected(image.astype(np.float32)) + 1e-4).astype(np.uint8))


@pytest.mark.parametrize(("saturation", "hue"), [(0.5, 0), (1.3, 0), (1.0, 17), (1.0, -18), (0.7, 9)])
def test_distortion_of_colour(saturation: float, hue: int) -> None:
    image = _photo(9, 11)
    found = distort_colours(image, _Scripted(0, 0, 1, 1, saturation, hue, 0))  # type: ignore[arg-type]
    for before, after in zip(image.reshape(-1, 3) / 255, found.reshape(-1, 3) / 255, strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        wanted = colorsys.hsv_to_rgb((h + hue / 180) % 1, min(1, s * saturation), v)
        assert np.abs(after - wanted).max() < 0.035  # OpenCV keeps the hue in steps of 2 degrees


def test_distortion_changes_each_in_half_of_the_draws() -> None:
    image, rng = np.full((1, 1, 3), (90, 120, 160), np.uint8), np.random.default_rng(0)
    untouched = sum(np.array_equal(distort_colours(image, rng), image) for _ in range(2000)) / 2000
    assert untouched == pytest.approx(1 / 16, abs=0.03)
