"""Every registered refiner keeps the contract; and the steps before and after a refiner."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol.errors import ConfigError, DataError
from wsol.refine import REFINERS, chain, create, merge_labels, to_labels, with_background

# Those with a network of their own keep the contract in test_caa.py and test_affinity.py.
TRAINED = {"caa", "irn", "psa"}
NAMES = [name for name in REFINERS.names() if name not in TRAINED]
SHAPES = [(1, 13, 17), (2, 1, 1), (3, 1, 9), (2, 11, 1), (4, 19, 8), (21, 7, 5)]


def inputs(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(sum(shape))
    return rng.integers(0, 256, (*shape[1:], 3), dtype=np.uint8), rng.random(shape, dtype=np.float32)


def test_refiners_are_found() -> None:
    built_in = {"threshold", "pamr", "par", "guided", "randomwalk", "densecrf", "getam_completion"}
    assert built_in <= set(REFINERS.names())
    assert "base" not in REFINERS.names()
    with pytest.raises(ConfigError, match="densecrf"):
        create("densecfr")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_contract(name: str, shape: tuple[int, int, int]) -> None:
    refiner = create(name)
    image, scores = inputs(shape)
    given = image.copy(), scores.copy()
    image.setflags(write=False)
    scores.setflags(write=False)
    refined = refiner(image, scores)
    assert refined.shape == shape
    assert refined.dtype == np.float32
    assert np.isfinite(refined).all()
    assert refined.min() >= 0
    assert refined.max() <= 1
    assert not np.shares_memory(refined, scores)
    np.testing.assert_array_equal(image, given[0])
    np.testing.assert_array_equal(scores, given[1])
    np.testing.assert_array_equal(refiner(image, scores), refined)


@pytest.mark.parametrize("name", NAMES)
def test_views_give_what_copies_give(name: str) -> None:
    image, scores = inputs((3, 14, 9))
    turned = create(name)(image[::-1, ::-1], scores[:, ::-1, ::-1])
    copied = create(name)(np.ascontiguousarray(image[::-1, ::-1]), np.ascontiguousarray(scores[:, ::-1, ::-1]))
    np.testing.assert_array_equal(turned, copied)


@pytest.mark.parametrize("name", NAMES)
def test_certain_scores_of_one_class_stay_that_class(name: str) -> None:
    image, scores = inputs((3, 12, 15))
    scores[:] = 0
    scores[2] = 1
    labels, confidence = to_labels(create(name)(image, scores), [4, 7], min_confidence=0.95)
    assert (labels == 8).all()
    assert (confidence > 0.95).all()


@pytest.mark.parametrize("shape", [(3, 12, 15), (3, 40, 1), (3, 1, 40)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_image_of_one_colour(name: str, shape: tuple[int, int, int]) -> None:
    refiner, (_, scores) = create(name), inputs(shape)
    refined = refiner(np.full((*shape[1:], 3), 77, np.uint8), scores)
    assert np.isfinite(refined).all()
    assert refined.min() >= 0
    assert refined.max() <= 1
    scores[:] = np.array([0.2, 0.7, 0.1], np.float32)[:, None, None]
    assert (refiner(np.zeros((*shape[1:], 3), np.uint8), scores).argmax(0) == 1).all()


@pytest.mark.parametrize("rule", [{"background": 0.3}, {"alpha": 1.0}, {"background": "otsu"}])
@pytest.mark.parametrize("name", NAMES)
def test_maps_without_a_positive_value_are_background(name: str, rule: dict[str, float]) -> None:
    refiner, (image, _) = create(name), inputs((3, 12, 15))
    refined = refiner(image, with_background(np.zeros((2, 12, 15), np.float16), **rule))
    assert not to_labels(refined, [3, 5])[0].any()


@pytest.mark.parametrize("name", NAMES)
def test_misfits_are_refused(name: str) -> None:
    image, scores = inputs((2, 6, 7))
    refiner = create(name)
    for bad in (scores[:, :5], scores[:, :, :1], scores[0], scores[:0], scores * np.nan, scores + np.inf):
        with pytest.raises(DataError) as refusal:
            refiner(image, bad)
        assert "\n" not in str(refusal.value)
    for bad_image in (image.astype(np.float32), image[:, :, 0], image[:0]):
        with pytest.raises(DataError):
            refiner(bad_image, scores)
    with pytest.raises(ConfigError, match="unknown option"):
        create(name, no_such_option=1)


def test_background_is_constant_or_a_power() -> None:
    maps = np.random.default_rng(0).random((3, 5, 4)).astype(np.float16)
    constant = with_background(maps, background=0.25)
    assert constant.shape == (4, 5, 4)
    assert constant.dtype == np.float32
    assert (constant[0] == 0.25).all()
    np.testing.assert_array_equal(constant[1:], maps.astype(np.float32))
    power = with_background(maps, alpha=4)
    np.testing.assert_allclose(power[0], (1 - maps.astype(np.float64).max(0)) ** 4, atol=1e-6)


@pytest.mark.parametrize("rule", [{"background": 0.3}, {"alpha": 32}, {"background": "otsu"}])
@pytest.mark.parametrize("name", NAMES)
def test_no_maps_mean_background_everywhere(name: str, rule: dict[str, float]) -> None:
    scores = with_background(np.zeros((0, 4, 6), np.float32), **rule)
    labels, _ = to_labels(create(name)(np.zeros((4, 6, 3), np.uint8), scores), [])
    assert labels.shape == (4, 6)
    assert not labels.any()


def test_otsu_background_is_a_threshold_of_each_image() -> None:
    maps = np.zeros((2, 9, 14), np.float32)
    maps[0, :, :5], maps[1, 2:6, 8:] = 0.8, 0.6
    for scale in (1.0, 0.4):
        scores = with_background(scale * maps, background="otsu")
        assert np.ptp(scores[0]) == 0
        np.testing.assert_array_equal(scores.argmax(0), np.where(maps[0] > 0, 1, np.where(maps[1] > 0, 2, 0)))


def test_two_background_scores_leave_255_between() -> None:
    maps = np.random.default_rng(2).random((2, 9, 14), dtype=np.float32)
    strict, loose = (to_labels(with_background(maps, background=b), [4, 7])[0] for b in (0.8, 0.5))
    best = maps.max(0)
    expected = np.where(best > 0.8, np.array([5, 8])[maps.argmax(0)], np.where(best > 0.5, 255, 0))
    np.testing.assert_array_equal(merge_labels(strict, loose), expected)


def test_chains_run_one_after_the_other() -> None:
    image, scores = inputs((3, 14, 9))
    options = {"densecrf": {"preset": "irn"}, "pamr": {"iterations": 2}}
    both = create("pamr,densecrf", **options)(image, scores)
    expected = create("densecrf", preset="irn")(image, create("pamr", iterations=2)(image, scores))
    np.testing.assert_array_equal(both, expected)
    np.testing.assert_array_equal(
        create("pamr", iterations=2)(image, scores), chain("pamr", {"iterations": 2})(image, scores)
    )
    assert not np.shares_memory(chain("getam_completion")(image, scores), scores)


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ("pamr,densecfr", {}, "did you mean 'densecrf'"),
        ("pamr,,densecrf", {}, "no refiner"),
        ("", {}, "no refiner"),
        ("pamr,densecrf", {"iterations": 3}, "options for 'iterations'.*one mapping a refiner"),
        ("pamr,densecrf", {"pamr": 3}, "expected a mapping"),
        ("pamr,densecrf", {"pamr": {"iteration": 3}}, "did you mean 'iterations'"),
        ("getam_completion,pamr", {}, "gives labels, not scores"),
    ],
)
def test_mistakes_in_a_chain(methods: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chain(methods, options)


def test_labels_of_a_chain() -> None:
    image, scores = inputs((3, 14, 9))
    plain = chain("threshold").label(scores, [4, 7], min_confidence=0.6)
    np.testing.assert_array_equal(plain[0], to_labels(scores, [4, 7], min_confidence=0.6)[0])
    completed = chain("guided,getam_completion", {"getam_completion": {"opening": 1}})
    labels, confidence = completed.label(completed(image, scores), [4, 7], min_confidence=0.6)
    assert (labels == 255).sum() == (confidence < 0.6).sum()
    with pytest.raises(ConfigError, match="no step of the chain uses saliency"):
        chain("pamr").label(scores, [4, 7], saliency=np.ones((14, 9)))
    with pytest.raises(DataError, match="expected 2 class ids"):
        completed.label(scores, [4])
    with pytest.raises(DataError, match="expected saliency"):
        completed.label(scores, [4, 7], saliency=np.ones((9, 14)))


@pytest.mark.parametrize(
    "rule", [{}, {"background": 0.3, "alpha": 1}, {"background": 1.5}, {"background": "otsuu"}, {"alpha": 0}]
)
def test_bad_background_rules_are_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        with_background(np.zeros((1, 4, 6), np.float32), **rule)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("methods", ["threshold", "getam_completion"])
def test_labels_of_scores_that_are_no_numbers_are_refused(methods: str, bad: float) -> None:
    scores = np.full((2, 5, 4), 0.5, np.float32)
    scores[1, 2, 3] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        chain(methods).label(scores, [3])


def test_labels_are_class_id_plus_one_and_255_below_the_confidence() -> None:
    scores = np.array([[[0.6, 0.2, 0.1, 0.5]], [[0.3, 0.7, 0.2, 0.5]], [[0.1, 0.1, 0.94, 0.0]]], np.float32)
    labels, confidence = to_labels(scores, [14, 3], min_confidence=0.6)
    assert labels.dtype == np.uint8
    assert confidence.dtype == np.float16
    np.testing.assert_array_equal(labels, [[0, 15, 4, 255]])
    np.testing.assert_allclose(confidence, scores.max(0), atol=1e-3)
    np.testing.assert_array_equal(to_labels(scores, np.array([14, 3]))[0], [[0, 15, 4, 0]])


@pytest.mark.parametrize("class_ids", [[1], [1, 2, 3], [1, 254], [-1, 2]])
def test_class_ids_that_do_not_fit_are_refused(class_ids: list[int]) -> None:
    with pytest.raises(DataError):
        to_labels(np.zeros((3, 4, 5), np.float32), class_ids)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["threshold", "pamr", "par", "guided", "randomwalk"]),
    order=st.permutations(range(4)),
    seed=st.integers(0, 99),
)
def test_permuting_channels_permutes_scores(name: str, order: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, scores = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8), rng.random((4, 6, 9), dtype=np.float32)
    refiner = create(name)
    np.testing.assert_allclose(refiner(image, scores[order]), refiner(image, scores)[order], atol=1e-6)
