from __future__ import annotations

import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol.errors import ConfigError, DataError, ModelError
from wsol.refine import create
from wsol.refine.densecrf import (
    PRESETS,
    DenseCRF,
    Preset,
    _bilateral,
    _spatial,
    caffe_wrap,
    unary_from_labels,
    unary_from_softmax,
)


def scene(seed: int, channels: int, size: tuple[int, int] = (13, 17)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3)).repeat(4, 0).repeat(4, 1)
    image = np.clip(np.resize(coarse, (*size, 3)) + rng.integers(-9, 9, (*size, 3)), 0, 255).astype(np.uint8)
    return image, rng.random((channels, *size), dtype=np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def dense_mean_field(image: np.ndarray, unary: np.ndarray, preset: str) -> np.ndarray:
    """Mean field by the book, with one N x N matrix in float64."""
    setting, (height, width) = PRESETS[preset], image.shape[:2]
    identity = np.eye(height * width, dtype=np.float32)
    weighted = (
        (_spatial(height, width, setting.sxy_gaussian), setting.compat_gaussian),
        (_bilateral(image, setting.sxy_bilateral, setting.srgb), setting.compat_bilateral),
    )
    matrix = sum(compat * lattice.filter(identity).T.astype(np.float64) for lattice, compat in weighted)
    energies = unary.reshape(len(unary), -1).astype(np.float64)
    marginals = softmax(-energies)
    for _ in range(setting.iterations):
        marginals = softmax(marginals @ matrix - energies)
    return marginals.reshape(unary.shape)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])  # the second is the CPU by way of torch
@pytest.mark.parametrize(("preset", "channels"), [("clipes", 2), ("irn", 3), ("getam", 5), ("afa", 10)])
def test_equals_mean_field_with_dense_matrices(preset: str, channels: int, device: str) -> None:
    image, scores = scene(1, channels)
    expected = dense_mean_field(image, -np.log(np.clip(scores.astype(np.float64), 1e-5, 1)), preset)
    got = create("densecrf", preset=preset, device=device)(image, scores)
    np.testing.assert_allclose(got, expected, atol=3e-4)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_the_black_pixel_that_fills_the_last_pack_of_four(device: str) -> None:
    """Nine pixels: pydensecrf's lattice holds the points of three black ones at the origin, too, and labels change."""
    image = np.array(
        [
            [[11, 22, 22], [29, 25, 0], [17, 5, 7]],
            [[16, 25, 18], [3, 11, 2], [8, 0, 16]],
            [[21, 23, 21], [22, 21, 12], [13, 2, 0]],
        ],
        np.uint8,
    )
    scores = np.array(
        [
            [[0.61, 0.21, 0.25], [0.15, 0.98, 0.29], [0.39, 0.94, 0.21]],
            [[0.16, 0.85, 0.71], [0.14, 0.94, 0.37], [0.68, 0.0, 0.69]],
        ],
        np.float32,
    )
    expected = [[0.999974, 0.000008, 0.000010], [0.999969, 0.000034, 0.000022], [0.999913, 1, 0.000009]]
    got = create("densecrf", preset="irn_label", device=device)(image, scores)
    np.testing.assert_allclose(got[0], expected, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
@pytest.mark.parametrize("size", [(24, 31), (21, 31), (22, 31), (25, 31)], ids=["0", "3", "2", "1"])  # N modulo 4
def test_dark_images_of_any_number_of_pixels_equal_pydensecrf(size: tuple[int, int], device: str) -> None:
    module = pytest.importorskip("pydensecrf.densecrf")
    image, scores = scene(5, 3, size)
    image //= 8
    for preset in ("toco", "clipes", "irn_label"):
        setting = PRESETS[preset]
        model = module.DenseCRF2D(size[1], size[0], 3)
        model.setUnaryEnergy(unary_from_softmax(scores).reshape(3, -1))
        model.addPairwiseGaussian(sxy=setting.sxy_gaussian, compat=setting.compat_gaussian)
        bilateral = {"sxy": setting.sxy_bilateral, "srgb": setting.srgb, "compat": setting.compat_bilateral}
        model.addPairwiseBilateral(rgbim=image, **bilateral)
        expected = np.array(model.inference(setting.iterations)).reshape(scores.shape)
        got = create("densecrf", preset=preset, device=device)(image, scores)
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("channels", [2, 3, 5, 10])
def test_marginals_sum_to_one(channels: int) -> None:
    image, scores = scene(2, channels)
    np.testing.assert_allclose(DenseCRF()(image, scores).sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("channels", [2, 3, 10])
def test_equal_scores_stay_equal(channels: int) -> None:
    image, _ = scene(3, channels)
    got = DenseCRF()(image, np.full((channels, 13, 17), 0.3, np.float32))
    np.testing.assert_allclose(got, 1 / channels, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), channels=st.sampled_from([2, 3, 5]), data=st.data())
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


@pytest.mark.parametrize(
    "options",
    [
        {"srgb": 0.0},
        {"compat_gaussian": -1.0},
        {"iterations": -1},
        {"preset": "clip"},
        {"gt_prob": 1.0},
    ],
)
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


def test_presets_are_those_of_the_papers() -> None:
    assert get_args(Preset) == tuple(PRESETS)
    published = {
        (3, 3, 80, 13, 10, 10): "psa irn puzzlecam",
        (3, 3, 50, 5, 10, 10): "irn_label",
        (1, 3, 67, 3, 4, 10): "deeplab clipes more excel",
        (3, 3, 64, 5, 4, 10): "afa weclip",
        (1, 1, 121, 5, 4, 10): "toco seco dupl",
        (3, 3, 36, 3, 4, 10): "toco_cam",
        (3, 3, 83, 5, 4, 20): "getam",
        (4, 3, 83, 5, 3, 10): "weaktr mctformer",
    }
    assert {name: tuple(setting) for name, setting in PRESETS.items()} == {
        name: setting for setting, names in published.items() for name in names.split()
    }


def test_unary_of_scores_is_minus_their_logarithm() -> None:
    scores = np.array([0, 1e-6, 0.25, 1, 1.5, -1], np.float16).reshape(3, 1, 2)
    expected = [-np.log(1e-5)] * 2 + [np.log(4), 0, 0, -np.log(1e-5)]
    got = unary_from_softmax(scores)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got.reshape(-1), expected, rtol=1e-6)
    np.testing.assert_allclose(unary_from_softmax(scores, clip=0.5)[0], np.log(2), rtol=1e-6)


@pytest.mark.parametrize(("channels", "gt_prob"), [(2, 0.7), (3, 0.9), (21, 0.5)])
def test_unary_of_labels_by_the_book(channels: int, gt_prob: float) -> None:
    labels = np.random.default_rng(channels).integers(0, channels + 1, (5, 7)).astype(np.uint8)
    labels[labels == channels] = 255
    got = unary_from_labels(labels, channels, gt_prob=gt_prob)
    assert got.dtype == np.float32
    for y, x in np.ndindex(labels.shape):
        for channel in range(channels):
            p = gt_prob if channel == labels[y, x] else (1 - gt_prob) / (channels - 1)
            assert got[channel, y, x] == pytest.approx(-np.log(1 / channels if labels[y, x] == 255 else p), rel=1e-5)
    assert (labels == 255).any()


@pytest.mark.parametrize("channels", [2, 4])
def test_unary_of_labels_equals_pydensecrf(channels: int) -> None:
    utils = pytest.importorskip("pydensecrf.utils")
    labels = np.random.default_rng(channels).integers(0, channels, (9, 4))
    expected = utils.unary_from_labels(labels, channels, 0.7, zero_unsure=False).reshape(channels, 9, 4)
    np.testing.assert_allclose(unary_from_labels(labels, channels, unsure=None), expected, rtol=1e-6)


def test_labels_that_are_no_channels_are_refused() -> None:
    for labels, unsure in (([[0, 3]], 255), ([[-1, 0]], 255), ([[0, 255]], None)):
        with pytest.raises(DataError, match=r"\[0, 3\)"):
            unary_from_labels(np.array(labels), 3, unsure=unsure)
    with pytest.raises(ConfigError, match="gt_prob"):
        unary_from_labels(np.zeros((2, 2), int), 3, gt_prob=0)
    assert (unary_from_labels(np.zeros((2, 3), int), 1) == 0).all()


def test_ground_truth_probability_takes_the_argmax_as_labels() -> None:
    image, scores = scene(9, 5)
    unary = unary_from_labels(scores.argmax(0), 5, gt_prob=0.7)
    got = DenseCRF(preset="irn_label", gt_prob=0.7)(image, scores)
    np.testing.assert_array_equal(got, DenseCRF(preset="irn_label").infer(image, unary))
    np.testing.assert_allclose(got, dense_mean_field(image, unary, "irn_label"), atol=3e-4)


def test_a_constant_over_the_channels_changes_nothing() -> None:
    image, scores = scene(10, 3)
    unary = unary_from_softmax(scores)
    shifted = unary + np.random.default_rng(0).uniform(-9, 9, scores.shape[1:]).astype(np.float32)
    np.testing.assert_allclose(DenseCRF().infer(image, shifted), DenseCRF().infer(image, unary), atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 23), (19, 1), (6, 9)])
@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_one_colour_and_one_pixel_wide_images(size: tuple[int, int], device: str) -> None:
    scores = np.random.default_rng(0).random((3, *size), dtype=np.float32)
    image = np.full((*size, 3), 200, np.uint8)
    unary = unary_from_softmax(scores)
    got = DenseCRF(preset="irn", device=device)(image, scores)
    np.testing.assert_allclose(got, dense_mean_field(image, unary, "irn"), atol=3e-4)


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_one_channel_is_certain(device: str) -> None:
    image, scores = scene(0, 1)
    for options in ({}, {"gt_prob": 0.7}):
        got = DenseCRF(device=device, **options)(image, scores)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, np.ones_like(scores))


def test_energies_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    image, scores = scene(0, 3)
    for value in (np.nan, np.inf):
        scores[1, 2, 3] = value
        for call in (DenseCRF(), DenseCRF().infer, DenseCRF(gt_prob=0.7), DenseCRF(device="cpu:0")):
            with pytest.raises(DataError, match="NaN"):
                call(image, scores)
    with pytest.raises(DataError, match="energies"):
        DenseCRF().infer_tensor(torch.from_numpy(image), torch.zeros(3, 13, 16))
    with pytest.raises(ModelError, match="device"):
        DenseCRF(device="gpu")(image, np.zeros((2, 13, 17), np.float32))


def test_tensors_are_left_alone_and_carry_no_gradient() -> None:
    image, scores = scene(11, 5)
    unary = torch.from_numpy(unary_from_softmax(scores)).requires_grad_()
    before, state = unary.detach().clone(), torch.get_rng_state()
    crf = DenseCRF(preset="weaktr", image="caffe_wrap")
    got = crf.infer_tensor(torch.from_numpy(image), unary)
    assert not got.requires_grad
    assert torch.equal(unary, before)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_allclose(got.numpy(), crf(image, scores), atol=2e-5)


def test_torch_computes_in_float32_under_autocast() -> None:
    image, scores = scene(13, 3)
    crf = DenseCRF(device="cpu:0")
    plain = crf(image, scores)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(crf(image, scores), plain)


def test_arguments_are_left_alone() -> None:
    image, scores = scene(12, 5)
    copies = image.copy(), scores.copy()
    DenseCRF()(image, scores)
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(scores, copies[1])


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_layout_and_precision_of_the_arguments_do_not_matter(device: str) -> None:
    image, scores = scene(13, 3)
    image.flags.writeable = False
    crf = DenseCRF(device=device)
    expected = crf(image, scores)
    channels_last = np.ascontiguousarray(scores.transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_array_equal(crf(np.asfortranarray(image), channels_last.astype(np.float64)), expected)
    np.testing.assert_array_equal(crf(image[:, ::-1][:, ::-1], scores), expected)
    mirrored = crf(np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(scores[:, :, ::-1]))
    np.testing.assert_array_equal(crf(image[:, ::-1], scores[:, :, ::-1]), mirrored)


def test_spatial_lattices_of_huge_images_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _spatial(5, 7, 1.5) is _spatial(5, 7, 1.5)
    monkeypatch.setattr("wsol.refine.densecrf._KEPT_PIXELS", 34)
    assert _spatial(5, 7, 1.5) is not _spatial(5, 7, 1.5)


def test_threads_do_not_disturb_each_other() -> None:
    scenes = [scene(seed, 3, (40 + seed % 2, 50)) for seed in range(8)]
    crf = DenseCRF()
    alone = [crf(*pair) for pair in scenes]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda pair: crf(*pair), scenes), alone, strict=True):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("noise", [0, 255])
def test_memory_of_81_labels_is_bounded(noise: int) -> None:
    rng = np.random.default_rng(0)
    image = np.full((187, 251, 3), 90, np.uint8) + rng.integers(0, noise + 1, (187, 251, 3), dtype=np.uint8)
    scores = rng.random((81, 187, 251), dtype=np.float32)
    crf, pixels = DenseCRF(iterations=2), scores[0].size
    points = _bilateral(image, 67, 3).size + _spatial(187, 251, 1).size
    assert points <= 9 * pixels
    tracemalloc.start()
    got = crf(image, scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(got.sum(0), 1, atol=1e-4)
    assert peak <= 8 * 81 * (pixels + points) + 600 * pixels


def test_the_compiled_way_loads_no_torch() -> None:
    code = """
import sys
import numpy as np
from wsol.refine import create
create("densecrf")(np.zeros((4, 5, 3), np.uint8), np.ones((2, 4, 5), np.float32))
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
