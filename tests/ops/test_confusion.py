from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsol.errors import EvalError
from wsol.ops.confusion import confusion_matrix, iou_per_class, mean_iou

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 9))


@given(st.data(), SHAPES, st.integers(2, 5))
def test_equals_counting_pixel_by_pixel(data, shape, classes):
    labels = st.sampled_from([*range(classes), 255])
    truth = data.draw(hnp.arrays(np.uint8, shape, elements=labels))
    predicted = data.draw(hnp.arrays(np.uint8, shape, elements=labels))
    expected = np.zeros((classes, classes), int)
    for true, guess in zip(truth.ravel(), predicted.ravel()):
        if true != 255:
            expected[true, 0 if guess == 255 else guess] += 1
    matrix = confusion_matrix(truth, predicted, classes)
    assert (matrix == expected).all()
    for index, score in enumerate(iou_per_class(matrix)):
        guess = np.where(predicted == 255, 0, predicted)
        valid = truth != 255
        union = (((truth == index) | (guess == index)) & valid).sum()
        if not (truth == index).any():
            assert np.isnan(score)
        else:
            assert score == pytest.approx(((truth == index) & (guess == index)).sum() / union)


def test_summing_images_is_the_data_set_not_the_mean_of_images():
    small = confusion_matrix(np.array([[1]]), np.array([[1]]), 2)
    large = confusion_matrix(np.ones((10, 10), int), np.zeros((10, 10), int), 2)
    assert mean_iou(small + large) == pytest.approx(1 / 101)


def test_shapes_and_labels_must_fit():
    with pytest.raises(EvalError, match=r"\(2, 3\)"):
        confusion_matrix(np.zeros((3, 2), int), np.zeros((2, 3), int), 2)
    with pytest.raises(EvalError, match="label 7"):
        confusion_matrix(np.zeros((1, 1), int), np.full((1, 1), 7), 2)
    with pytest.raises(EvalError, match="label -1"):
        confusion_matrix(np.zeros((1, 2), int), np.array([[-1, 1]]), 3)


def test_nothing_counted_is_nan():
    assert np.isnan(mean_iou(confusion_matrix(np.full((2, 3), 255), np.zeros((2, 3), int), 4)))
