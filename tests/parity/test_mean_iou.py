"""The mean IoU of masks against the evaluation code of CLIP-ES."""

from __future__ import annotations

import numpy as np
import pytest

from wsol.ops.confusion import confusion_matrix, iou_per_class, mean_iou

pytestmark = pytest.mark.parity


def test_iou_and_accuracy(golden):
    with np.load(golden / "wsss" / "eval_case.npz") as kit:
        pairs = [(kit[name], kit[name.replace("gt", "pred")]) for name in kit.files if name.startswith("gt_")]
        expected, mean, accuracy = kit["iou"], float(kit["miou"]), float(kit["acc"])
    matrix = sum(confusion_matrix(truth, predicted, len(expected)) for truth, predicted in pairs)
    present = matrix.sum(axis=1) > 0
    assert 0 < present.sum() < len(expected)
    np.testing.assert_allclose(iou_per_class(matrix)[present], expected[present], rtol=1e-12)
    assert np.isnan(iou_per_class(matrix)[~present]).all()
    assert mean_iou(matrix) == pytest.approx(mean, rel=1e-12)
    assert np.trace(matrix) / matrix.sum() == pytest.approx(accuracy, rel=1e-12)
