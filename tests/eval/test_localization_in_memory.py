"""Localization of maps and data sets that were never files."""

from __future__ import annotations

import numpy as np

from wsol.data.catalog import Dataset
from wsol.eval.localization import localize
from wsol.eval.options import LocConfig
from wsol.eval.sources import Scores
from wsol.schema import DatasetSpec, Sample


class _InMemory:
    def __init__(self, scores):
        self.scores = scores

    def read(self, image_id):
        return self.scores[image_id]


def test_a_label_without_a_number_among_the_logits_is_not_predicted(tmp_path):
    box = np.array([[0, 0, 10, 10]], np.float32)
    samples = tuple(Sample(name, tmp_path / "a.jpg", (1,), (10, 10), box, (1,)) for name in "ab")
    dataset = Dataset(DatasetSpec("toy", tuple("uvwxyz"), tmp_path, "val"), samples)
    broken, whole = np.full(6, np.nan, np.float32), np.array([0, 1, 1, 0, 0, 0], np.float32)
    source = _InMemory({name: Scores({1: np.eye(5)}, logits=one) for name, one in (("a", broken), ("b", whole))})
    found = localize(LocConfig(maps=tmp_path, workers=0, protocol=("top1", "top5")), source=source, dataset=dataset)
    assert found.result.metrics["Top-1 accuracy"] == found.result.metrics["Top-5 accuracy"] == 50


def test_images_with_several_classes_count_once_for_each(tmp_path):
    left, right = np.zeros((10, 10)), np.zeros((10, 10))
    left[3:7, 1:4], right[2:6, 6:9] = 1, 1
    boxes = np.array([[10, 30, 40, 70], [60, 20, 90, 60], [0, 0, 5, 5]], np.float32)
    several = Sample("a", tmp_path / "a.jpg", (0, 2), (100, 100), boxes, (0, 2, 2))
    bare = Sample("b", tmp_path / "b.jpg", (1,), (100, 100))
    unlabelled = Sample("c", tmp_path / "c.jpg", (), (100, 100), boxes[:1])
    dataset = Dataset(DatasetSpec("toy", ("x", "y", "z"), tmp_path, "val"), (several, bare, unlabelled))
    logits = np.array([5, 0, 1], np.float32)
    source = _InMemory({"a": Scores({0: left, 2: right}, logits=logits), "b": Scores({1: left}), "c": Scores({})})
    found = localize(LocConfig(maps=tmp_path, workers=0, protocol=("gt-known", "top1")), source=source, dataset=dataset)
    assert found.result.n == 2
    assert found.result.metrics["GT-known"] == 100
    assert found.result.metrics["Top-1 Loc"] == 50
    assert set(found.result.per_image) == {"a (x)", "a (z)"}
    assert list(found.failures) == ["c"]
    notes = " ".join(found.result.warnings)
    assert "several classes" in notes
    assert "1 images (and classes) of the split have no ground truth" in notes
    worst = {row["label"]: row for row in found.worst}
    assert worst[2]["truth"] == [[60, 20, 90, 60], [0, 0, 5, 5]]
    np.testing.assert_allclose(worst[0]["predicted"], [[10, 30, 40, 70]], atol=6)
