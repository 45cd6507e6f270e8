from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol.errors import ConfigError
from wsol.refine import create
from wsol.refine.densecrf import PRESETS, DenseCRF, _bilateral, _spatial, caffe_wrap


def scene(seed: int, channels: int, size: tuple[int, int] = (13, 17)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3)).repeat(4, 0).repeat(4, 1)
    image = np.clip(np.resize(coarse, (*size, 3)) + rng.integers(-9, 9, (*size, 3)), 0, 255).astype(np.uint8)
    return image, rng.random((channels, *size), dtype=np.float32)


@pytest.mark.parametrize(("preset", "channels"), [("clipes", 2), ("irn", 3), ("getam", 7)])
def test_equals_mean_field_with_dense_matrices(preset: str, channels: int) -> None:
    image, scores = scene(1, channels)
    setting = PRESETS[preset]
    identity = np.eye(scores[0].size, dtype=np.float32)
    weighted = (
        (_spatial(13, 17, setting.sxy_gaussian), setting.compat_gaussian),
        (_bilateral(image, setting.sxy_bilateral, setting.srgb), setting.compat_bilateral),
    )
    matrix = sum(compat * lattice.filter(identity).T.astype(np.float64) for lattice, compat in weighted)
    unary = np.log(np.clip(scores.astype(np.float64), 1e-5, 1)).reshape(channels, -1)

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(0))
        return e / e.sum(0)

    marginals = softmax(unary)
    for _ in range(setting.iterations):
        marginals = softmax(unary + marginals @ matrix)
    got = create("densecrf", preset=preset)(image, scores)
    np.testing.assert_allclose(got.reshape(channels, -1), marginals, atol=3e-4)


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 9])
def test_marginals_sum_to_one(channels: int) -> None:
    image, scores = scene(2, channels)
    np.testing.assert_allclose(DenseCRF()(image, scores).sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 3, 6])
def test_equal_scores_stay_equal(channels: int) -> None:
    image, _ = scene(3, channels)
    got = DenseCRF()(image, np.full((channels, 13, 17), 0.3, np.float32))
    np.testing.assert_allclose(got, 1 / channels, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), channels=st.integers(2, 6), data=st.data())
def test_permuting_channels_permutes_marginals(seed: int, channels: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(channels)))
    image, scores = scene(seed, channels)
    crf = DenseCRF(iterations=3)
    np.testing.assert_allclose(crf(image, scores[order]), crf(image, scores)[order], atol=2e-4)


def test_without_pairwise_terms_only_normalises() -> None:
    image, scores = scene(4, 5)
    expected = np.clip(scores, 1e-5, 1) / np.clip(scores, 1e-5, 1).sum(0)
    for crf in (DenseCRF(iterations=0), DenseCRF(compat_gaussian=0, compat_bilateral=0)):
        np.testing.assert_allclose(crf(image, scores), expected, atol=1e-6)


def test_labels_follow_the_edges_of_the_image() -> None:
    image = np.zeros((31, 45, 3), np.uint8)
    image[:, 20:] = 200
    scores = np.full((2, 31, 45), 0.5, np.float32)
    scores[1, :, 24:] = 0.7  # the evidence is 4 pixels off the edge
    scores[0, :, :16] = 0.7
    labels = DenseCRF()(image, scores).argmax(0)
    assert (labels[:, :20] == 0).all()
    assert (labels[:, 20:] == 1).all()


def test_certain_scores_and_huge_weights_stay_finite() -> None:
    image, _ = scene(5, 3)
    scores = np.zeros((3, 13, 17), np.float32)
    scores[2] = 1
    got = DenseCRF(compat_bilateral=1e4)(image, scores)
    assert np.isfinite(got).all()
    assert (got.argmax(0) == 2).all()


def test_given_values_replace_those_of_the_preset() -> None:
    assert DenseCRF().setting == PRESETS["clipes"]
    changed = create("densecrf", preset="getam", srgb=7.5, iterations=2).setting
    assert changed == PRESETS["getam"]._replace(srgb=7.5, iterations=2)


@pytest.mark.parametrize("options", [{"srgb": 0.0}, {"compat_gaussian": -1.0}, {"iterations": -1}, {"preset": "clip"}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        create("densecrf", **options)


def test_caffe_wrap_is_bgr_minus_mean_modulo_256() -> None:
    pixels = np.array([[[0, 0, 0], [255, 255, 255], [123, 117, 105], [10, 200, 30]]], np.uint8)
    expected = [[[152, 140, 134], [150, 138, 132], [0, 0, 0], [256 - 74, 83, 256 - 112]]]
    np.testing.assert_array_equal(caffe_wrap(pixels), expected)
    image, scores = scene(6, 2)
    wrapped = DenseCRF(image="caffe_wrap")(image, scores)
    np.testing.assert_array_equal(wrapped, DenseCRF()(caffe_wrap(image), scores))


def test_two_images_of_a_size_do_not_disturb_each_other() -> None:
    (first, scores), (second, other) = scene(7, 3), scene(8, 3)
    crf = DenseCRF()
    before = crf(first, scores)
    crf(second, other)
    np.testing.assert_array_equal(crf(first, scores), before)
