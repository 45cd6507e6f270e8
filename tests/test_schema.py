from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsol.errors import ConfigError, DataError, StoreError, WsolError
from wsol.schema import Boxes, DatasetSpec, EvalResult, PseudoMask, Sample, ScoreMaps, check_id


def maps(values, **kwargs):
    return ScoreMaps(id="a/b", values=values, class_ids=np.arange(len(values)), image_size=(7, 11), **kwargs)


def test_maps_are_resized_to_the_image_and_keep_their_corners():
    values = np.zeros((2, 3, 5), np.float16)
    values[0, 0, 0], values[1, 2, 4] = 1, 0.5
    full = maps(values).at_image_size()
    assert full.shape == (2, 7, 11)
    assert full.dtype == np.float32
    assert full[0, 0, 0] == 1
    assert full[1, -1, -1] == 0.5
    assert full[0, -1, -1] == 0


def test_maps_without_classes_are_allowed():
    assert maps(np.zeros((0, 3, 5), np.float32)).at_image_size().shape == (0, 7, 11)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 5), np.float32), r"\(K, h, w\)"),
        (np.zeros((1, 3, 5), np.float64), "float16 or float32"),
        (np.full((1, 3, 5), np.nan, np.float32), "finite"),
        (np.full((1, 3, 5), 1.5, np.float32), r"\[0, 1\]"),
        (np.full((1, 3, 5), -0.1, np.float32), r"\[0, 1\]"),
    ],
)
def test_wrong_maps_are_refused_with_expected_and_got(values, message):
    with pytest.raises(DataError, match=f"a/b.*expected.*{message}.*got"):
        maps(values)


def test_number_of_ids_must_fit():
    with pytest.raises(DataError, match="expected 2 class ids"):
        ScoreMaps(id="a", values=np.zeros((2, 3, 3), np.float32), class_ids=np.array([1]), image_size=(3, 3))


def test_masks_and_boxes_are_checked():
    with pytest.raises(DataError, match="uint8"):
        PseudoMask(id="a", labels=np.zeros((3, 5), np.int64))
    with pytest.raises(DataError, match="confidence"):
        PseudoMask(id="a", labels=np.zeros((3, 5), np.uint8), confidence=np.zeros((5, 3)))
    with pytest.raises(DataError, match="boxes of shape"):
        Sample(id="a", image="x", boxes=np.zeros((2, 3)))
    for box in ([5, 0, 4, 1], [0, 5, 1, 4], [np.nan, 0, 1, 1], [0, 0, np.inf, 1]):
        with pytest.raises(DataError, match=r"Sample a: expected boxes of numbers with x0 <= x1"):
            Sample(id="a", image="x", boxes=[[0, 0, 1, 1], box])
    with pytest.raises(DataError, match="ids and scores"):
        Boxes(xyxy=np.zeros((2, 4)), class_ids=np.zeros(1), scores=np.zeros(2))
    with pytest.raises(DataError, match="prompts"):
        DatasetSpec(name="x", classes=("a", "b"), root="r", split="s", prompts=("a",))


@pytest.mark.parametrize("bad", ["", "..", "../a", "a/../b", "/etc/passwd", "a//b", "a/", "a\\b", "a\nb", "./a"])
def test_ids_cannot_leave_their_folder(bad):
    with pytest.raises(DataError, match="file name"):
        check_id(bad)


@pytest.mark.parametrize("good", ["2007_000032", "val/ILSVRC2012_val_00000001.JPEG", "a..b", "..a", "naïve photo (1)"])
def test_ordinary_ids_pass(good):
    assert check_id(good) == good


FLOATS = st.floats(allow_infinity=False)


@given(
    st.dictionaries(st.text(), FLOATS),
    st.dictionaries(st.text(), st.dictionaries(st.text(), FLOATS)),
    st.dictionaries(st.text(), st.fixed_dictionaries({"x": st.lists(FLOATS), "y": st.lists(FLOATS)})),
    st.lists(st.text()).map(tuple),
)
def test_result_round_trips_through_json(metrics, per_class, curves, warnings):
    result = EvalResult("localization", metrics, 3, "val", per_class=per_class, curves=curves, warnings=warnings)
    assert repr(EvalResult.from_json(result.to_json())) == repr(result)


def test_result_prints_split_n_and_threshold_source():
    text = str(EvalResult("segmentation", {"mIoU": 35.61}, 204, "val", {"mIoU": 0.2}, "chosen on train"))
    for word in ("val", "204", "chosen on train", "35.61", "0.200"):
        assert word in text


def test_not_a_result():
    with pytest.raises(StoreError):
        EvalResult.from_json("{}")


@pytest.mark.parametrize("kind", [WsolError, ConfigError, DataError])
def test_errors_cross_process_borders(kind):
    error = pickle.loads(pickle.dumps(kind("what", where="here", hint="do this")))
    assert type(error) is kind
    assert str(error) == "here: what (do this)"
