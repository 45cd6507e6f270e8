"""The one-pass sweep against one confusion matrix for each background score, and masks against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsol.cli.eval import run
from wsol.config import dump_yaml
from wsol.data.catalog import Dataset
from wsol.errors import ConfigError, EvalError, StoreError
from wsol.eval import evaluate_segmentation, segmentation
from wsol.eval.options import SegConfig
from wsol.eval.sweep import SweepCounts, background_scores, constant_cut, power_cut, scores_of
from wsol.ops.confusion import confusion_matrix, iou_per_class, mean_iou
from wsol.schema import DatasetSpec, PseudoMask, Sample, ScoreMaps
from wsol.store.maps import map_path, write_maps
from wsol.store.masks import mask_path, read_labels, write_mask

CLASSES = ("bird", "boat", "cat")


def _image(rng, number):
    height, width = (int(side) for side in rng.integers(20, 60, 2))
    truth = rng.choice(np.array([0, 0, 1, 2, 3, 255], np.uint8), (height // 5 + 1, width // 5 + 1))
    truth = np.kron(truth, np.ones((5, 5), np.uint8))[:height, :width]
    ids = np.sort(rng.choice(3, int(rng.integers(0, 4)), replace=False))
    values = np.round(rng.random((len(ids), 4, 6)), 2).astype(np.float16)
    return truth, ScoreMaps(f"set/{number:02d}", values, ids, (height, width))


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Maps, masks of another rule, and a data set whose truth lies beside them."""
    rng, samples = np.random.default_rng(3), []
    for number in range(24):
        truth, maps = _image(rng, number)
        path = tmp_path / "truth" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(truth).save(path)
        labels = tuple(sorted(set(truth.ravel().tolist()) - {0, 255}))
        samples.append(Sample(maps.id, tmp_path / "none.jpg", tuple(c - 1 for c in labels), truth.shape, mask=path))
        write_maps(tmp_path / "run", maps)
        guess = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 4, truth.shape)).astype(np.uint8)
        write_mask(tmp_path / "run2", PseudoMask(maps.id, guess))
    dataset = Dataset(DatasetSpec("toy", CLASSES, tmp_path, "val", annotations="mask"), tuple(samples))

    def load(name, *, root=None, split=None, limit=None, **options):
        assert name == "toy"
        chosen = Dataset(DatasetSpec("toy", CLASSES, tmp_path, split or "val"), dataset.samples)
        return chosen if limit is None else chosen.limit(limit)

    monkeypatch.setattr("wsol.data.load", load)
    monkeypatch.setattr("wsol.cli.eval._CHOICES", [], raising=False)  # the options of "toy" are not to be found
    return tmp_path, dataset


def _brute(root, dataset, background):
    """Paint every image with one background score and count."""
    total = np.zeros((4, 4), np.int64)
    for sample in dataset.samples:
        with np.load(map_path(root / "run", sample.id)) as stored:
            maps = ScoreMaps(sample.id, stored["values"], stored["class_ids"], sample.size)
        full = maps.at_image_size()
        scores = np.empty((len(full) + 1, *sample.size), np.float32)
        scores[1:] = full
        scores[0] = background(full)
        labels = np.append(0, maps.class_ids.astype(int) + 1)[scores.argmax(axis=0)].astype(np.uint8)
        total += confusion_matrix(read_labels(sample.mask), labels, 4)
    return total


def test_sweep_equals_one_pass_a_threshold(world):
    root, dataset = world
    result = evaluate_segmentation(pred=root / "run", data="toy", alphas=(0.5, 1.0, 2.0, 16.0), workers=0)
    curve = result.curves["mIoU"]
    np.testing.assert_allclose(curve["x"], np.arange(61) / 100, atol=1e-12)
    for background, value in zip(curve["x"], curve["y"], strict=True):
        matrix = _brute(root, dataset, lambda _, score=background: score)
        assert value == pytest.approx(100 * mean_iou(matrix), abs=1e-12)
    curve = result.curves["mIoU (power)"]
    for alpha, value in zip(curve["x"], curve["y"], strict=True):
        matrix = _brute(
            root, dataset, lambda full, power=alpha: np.clip(1 - full.max(axis=0), 0, 1) ** power if len(full) else 1.0
        )
        assert value == pytest.approx(100 * mean_iou(matrix), abs=1e-12)
    best = _brute(root, dataset, lambda _: result.threshold["mIoU"])
    assert result.metrics["mIoU"] == pytest.approx(max(result.curves["mIoU"]["y"]), abs=1e-12)
    assert result.metrics["pixel accuracy"] == pytest.approx(100 * np.trace(best) / best.sum())
    for at, name in enumerate(("background", *CLASSES)):
        assert result.per_class[name]["IoU"] == pytest.approx(100 * iou_per_class(best)[at])
        assert result.per_class[name]["precision"] == pytest.approx(100 * best[at, at] / best[:, at].sum())
        assert result.per_class[name]["recall"] == pytest.approx(100 * best[at, at] / best[at].sum())
    precision = np.mean([result.per_class[name]["precision"] for name in CLASSES])
    assert result.metrics["precision"] == pytest.approx(precision)
    assert len({round(value, 6) for value in result.curves["mIoU"]["y"]}) > 20
    assert (result.n, result.split, result.threshold_source) == (24, "val", "best on val")


def test_threshold_of_another_split_or_fixed_off_the_grid(world):
    root, dataset = world
    chosen = evaluate_segmentation(pred=root / "run", data="toy", split="train", limit=7, workers=0)
    (root / "metrics.json").write_text(chosen.to_json())
    result = evaluate_segmentation(pred=root / "run", data="toy", threshold_from=root / "metrics.json", workers=0)
    assert result.threshold_source == "chosen on train"
    matrix = _brute(root, dataset, lambda _: chosen.threshold["mIoU"])
    assert result.metrics["mIoU"] == pytest.approx(100 * mean_iou(matrix))
    result = evaluate_segmentation(pred=root / "run", data="toy", threshold=0.777, workers=0)
    matrix = _brute(root, dataset, lambda _: 0.777)
    assert result.metrics["mIoU"] == pytest.approx(100 * mean_iou(matrix))
    assert result.threshold_source == "fixed"


@pytest.mark.parametrize("as_folder", [False, True])
def test_masks(world, as_folder):
    root, dataset = world
    total = np.zeros((4, 4), np.int64)
    for sample in dataset.samples:
        guess, truth = read_labels(mask_path(root / "run2", sample.id)), read_labels(sample.mask)
        guess = np.where(guess == 255, 0, guess)
        for true in range(4):
            for label in range(4):
                total[true, label] += ((truth == true) & (guess == label)).sum()
    folder = root / "run2" / "masks" if as_folder else root / "run2"
    result = evaluate_segmentation(pred=folder, data="toy", workers=0)
    ious = [total[c, c] / (total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(4)]
    assert result.metrics["mIoU"] == pytest.approx(100 * np.mean(ious))
    assert result.metrics["foreground mIoU"] == pytest.approx(100 * np.mean(ious[1:]))
    assert result.threshold_source == "none"
    assert 40 < result.metrics["mIoU"] < 90


def test_any_number_of_workers_gives_the_same(world, monkeypatch):
    root, _ = world
    monkeypatch.setattr("wsol.eval.workers._CHUNK", 1)
    for pred in ("run", "run2"):
        alone = evaluate_segmentation(pred=root / pred, data="toy", workers=0)
        together = evaluate_segmentation(pred=root / pred, data="toy", workers=2)
        assert alone.to_json() == together.to_json()


def test_bad_images_are_listed_and_the_exit_status_is_1(world, capsys):
    root, dataset = world
    ids = [sample.id for sample in dataset.samples]
    mask_path(root / "run2", ids[0]).unlink()
    path = mask_path(root / "run2", ids[1])
    path.write_bytes(path.read_bytes()[:40])
    write_mask(root / "run2", PseudoMask(ids[2], np.zeros((3, 5), np.uint8)))
    write_mask(root / "run2", PseudoMask(ids[3], np.full(dataset.samples[3].size, 77, np.uint8)))
    argv = ["seg", "--pred", str(root / "run2"), "--data", "toy", "--out", str(root / "out"), "--workers", "0"]
    assert run(argv) == 1
    captured = capsys.readouterr()
    for image_id in ids[:4]:
        assert image_id in captured.err
    assert "n = 20" in captured.out
    assert "incomplete: 4 of 24" in captured.out
    assert (root / "out" / "metrics.json").is_file()


def test_options_of_the_data_set_are_flags(tmp_path, capsys):
    truth = np.zeros((9, 14), np.uint8)
    truth[2:5, 3:9] = 1
    (tmp_path / "photos" / "bird").mkdir(parents=True)
    Image.new("RGB", (14, 9)).save(tmp_path / "photos" / "bird" / "a.png")
    for folder in ("drawn", "run"):
        write_mask(tmp_path / folder, PseudoMask("bird/a", truth))
    where = ["--data", "folder", "--root", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    option = ["--data-options.masks", str(tmp_path / "drawn" / "masks")]
    assert run(["seg", "--pred", str(tmp_path / "run"), "--workers", "0", *where, *option]) == 0
    assert "n = 1" in capsys.readouterr().out


def test_a_run_knows_its_data_set(world):
    root, dataset = world
    (root / "run" / "dataset.yaml").write_text(dump_yaml(dataset.spec))
    assert evaluate_segmentation(pred=root / "run", workers=0).n == 24


def test_mistakes_are_named(world):
    root, _ = world
    with pytest.raises(StoreError, match="no such folder"):
        evaluate_segmentation(pred=root / "nowhere", data="toy")
    with pytest.raises(EvalError, match="masks have no threshold"):
        evaluate_segmentation(pred=root / "run2", data="toy", threshold=0.2)
    with pytest.raises(ConfigError, match="--sweep"):
        evaluate_segmentation(pred=root / "run", data="toy", sweep=(0.5, 0.1, 0.01))
    with pytest.raises(EvalError, match="nothing says which data set"):
        evaluate_segmentation(pred=root / "run")
    found = segmentation.segment(SegConfig(pred=root / "run", data="toy", workers=0))
    assert not found.failures
    assert len(found.worst) == 10


@given(st.floats(0.01, 40), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_power_cut_is_where_the_class_begins_to_win(alpha, values):
    scores = np.append(np.array(values, np.float32), [power_cut(alpha)]).astype(np.float32)
    np.testing.assert_array_equal(scores >= power_cut(alpha), scores > np.clip(1 - scores, 0, 1) ** alpha)


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        ((0.0, 0.6, 0.07), [0.0, 0.07, 0.14, 0.21, 0.28, 0.35, 0.42, 0.49, 0.56]),
        ((0.1, 1.0, 0.3), [0.1, 0.4, 0.7, 1.0]),
        ((0.0, 0.5, 0.35), [0.0, 0.35]),
        ((0.3, 0.3, 0.1), [0.3]),
    ],
)
def test_a_sweep_ends_at_its_last_score_or_before(sweep, expected):
    assert background_scores(sweep) == expected


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_a_sweep_holds_its_last_score_where_the_steps_lead_there(count, parts):
    assert background_scores((0.0, count / parts, 1 / parts))[-1] == pytest.approx(count / parts, abs=1e-9)


@given(st.floats(0, 1), st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50))
def test_constant_cut_is_where_the_class_begins_to_win(background, values):
    scores = np.append(np.array(values, np.float32), np.float32(background))
    np.testing.assert_array_equal(scores >= constant_cut(background), scores > np.float32(background))


def test_classes_without_pixels_do_not_count():
    sweep = SweepCounts.empty(np.array([0.5], np.float32), 3)
    values = np.array([[[0.9, 0.1]]], np.float16)
    sweep.add(ScoreMaps("a", values, np.array([1]), (1, 2)), np.array([[1, 0]], np.uint8))
    hits, predicted = sweep.outcome(0)
    scores = scores_of(hits, predicted=predicted, true=sweep.true)
    np.testing.assert_array_equal(scores["IoU"], [1.0, 0.0, np.nan])
    assert sweep.mean_ious()[0] == 0.5
