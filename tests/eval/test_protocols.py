"""Protocols are data: names, thresholds and pictures of what each one asks for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsol.errors import ConfigError, EvalError, StoreError
from wsol.eval.boxes import level_curve, pixel_box
from wsol.eval.curves import Choice, choose_by, read_result
from wsol.eval.protocols import ALL, BENCHMARK, LARGEST, PROTOCOLS, choose
from wsol.eval.scoremap import check_scoremap, quantise, scale_boxes, threshold_levels, to_scoremap


def test_means_name_metrics_of_their_own_protocol():
    for protocol in PROTOCOLS.values():
        names = {metric.name for metric in protocol.metrics}
        assert all(set(metric.mean_of) <= names for metric in protocol.metrics)


def test_different_metrics_never_share_a_name():
    seen = {}
    for metric in (metric for protocol in PROTOCOLS.values() for metric in protocol.metrics):
        assert seen.setdefault(metric.name, metric) == metric


def test_views_of_the_float_map_have_a_threshold():
    metrics = [metric for protocol in PROTOCOLS.values() for metric in protocol.metrics]
    assert all(metric.threshold is not None for metric in metrics if metric.view.contours == "pixels")


def test_all_and_unknown_names():
    assert list(choose(("all",))) == list(PROTOCOLS)
    assert list(choose(BENCHMARK)) == list(BENCHMARK)
    with pytest.raises(ConfigError, match="did you mean 'pxap'"):
        choose(("pxab",))


def test_thresholds_truncate_in_float64():
    thresholds = np.arange(0, 1, 0.01)
    levels = threshold_levels(thresholds, 100)
    assert (levels[29], levels[58]) == (28, 57)
    assert levels.tolist() == [int(threshold * 100) for threshold in thresholds]


def test_empty_map_predicts_the_box_of_its_view():
    truth = np.array([[0.0, 0.0, 0.0, 0.0]])
    for view in (LARGEST, ALL):
        curve = level_curve(np.zeros((5, 7), np.uint8), truth, view=view)
        assert curve.maximum == 0
        assert (curve.iou == 1.0).all()


def test_predicted_boxes_are_one_pixel_too_wide_unless_clipped():
    levels = np.zeros((9, 11), np.uint8)
    levels[2:5, 3:6] = 255
    curve = level_curve(levels, np.array([[3.0, 2.0, 6.0, 5.0]]), view=ALL)
    assert curve.iou[100] == 1.0
    levels[2:5, 3:] = 255
    assert level_curve(levels, np.array([[3.0, 2.0, 10.0, 5.0]]), view=ALL).iou[100] == 1.0


def test_equally_many_pixels_are_won_by_the_component_that_begins_first():
    view = PROTOCOLS["bas-cub"].metrics[0].view
    assert pixel_box(np.array([[0, 0, 0.7], [1, 0, 0]]), 0.5, view=view) == (2, 0, 3, 1)
    assert pixel_box(np.array([[0, 0, 0.5], [0.2, 0, 0]]), 0.5, view=view) == (0, 0, 3, 2)


@pytest.mark.parametrize(
    ("scoremap", "reason"),
    [
        ([[0.1]], "array"),
        (np.zeros((2, 2), np.float32), "float64"),
        (np.zeros(4), "shape"),
        (np.zeros((0, 3)), "shape"),
        (np.full((2, 2), np.nan), "NaN"),
        (np.full((2, 2), 1.5), "0, 1"),
        (np.full((2, 2), -0.5), "0, 1"),
    ],
)
def test_bad_maps_are_refused_by_name(scoremap, reason):
    with pytest.raises(EvalError, match=reason) as caught:
        check_scoremap(scoremap, where="val/7.JPEG")
    assert "val/7.JPEG" in str(caught.value)


@pytest.mark.parametrize("boxes", [[[5, 5, 5, 9]], [[-1, 0, 4, 4]], []])
def test_bad_boxes_are_refused(boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    with pytest.raises(EvalError):
        scale_boxes(boxes, image_size=(10, 20), size=(224, 224), view=LARGEST)


def test_constant_scores_become_zeros():
    assert not to_scoremap(np.full((3, 5), 0.7, np.float16), 20, view=LARGEST).any()
    assert quantise(to_scoremap(np.eye(4), 20, view=LARGEST)).max() == 255


@given(arrays(np.float16, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([-1, 0, 2])))
@example(np.array([[1, 1, 1, 0, 1, 1]], np.float16))
def test_every_view_makes_valid_score_maps(values):
    for view in {metric.view for protocol in PROTOCOLS.values() for metric in protocol.metrics}:
        check_scoremap(to_scoremap(values, 33, view=view), where="any")


def test_choice_of_thresholds(tmp_path):
    assert choose_by("val").of("any") is None
    assert choose_by("val").of("any", own=0.1) == 0.1
    assert choose_by("val", fixed=0.3).of("any", own=0.1) == 0.3
    chosen = Choice("chosen on val", by_metric={"a": 0.4})
    assert chosen.of("a") == 0.4
    with pytest.raises(EvalError, match="chose no threshold for b"):
        chosen.of("b")
    with pytest.raises(EvalError, match="must lie in"):
        choose_by("val", fixed=1.5)
    with pytest.raises(StoreError, match="cannot read"):
        read_result(tmp_path)
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(StoreError, match="not a result"):
        read_result(tmp_path)
