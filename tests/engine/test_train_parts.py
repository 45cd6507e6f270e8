"""The pieces of the training pipeline: batches, seeds and scores."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol.engine import loaders
from wsol.engine.checkpoint import read_checkpoint
from wsol.engine.fit import fit
from wsol.engine.loaders import Batches, normalize
from wsol.engine.optim import Schedule
from wsol.engine.scores import average_precision, mean_average_precision, topk_accuracy
from wsol.engine.seeding import generator
from wsol.engine.train_options import LoopOptions
from wsol.errors import DataError
from wsol.schema import Sample

CPU = torch.device("cpu")


@dataclass(frozen=True)
class NumberViews:
    """The target is the sample's number, the pixels are random."""

    def __call__(self, sample, rng):
        if sample.id == "bad":
            raise DataError("torn", where="bad")
        return rng.integers(0, 256, (3, 5, 3)).astype(np.uint8), np.float32(sample.id)


def samples(count):
    return [Sample(id=str(at), image=Path(f"{at}.png")) for at in range(count)]


def stream(batches, epochs, workers=0):
    return list(batches.stream(epochs, workers=workers, device=CPU))


def test_epochs_visit_every_image_once_in_another_order():
    batches = Batches(samples(12), NumberViews(), batch_size=4, seed=5, shuffle=True)
    rows = [batch.targets for batch in stream(batches, range(2))]
    first, second = np.concatenate(rows[:3]), np.concatenate(rows[3:])
    assert sorted(first) == sorted(second) == list(range(12))
    assert first.tolist() != second.tolist()


def test_workers_and_restarts_change_nothing():
    batches = Batches(samples(11), NumberViews(), batch_size=3, seed=5, shuffle=True)
    whole = stream(batches, range(3))
    again = stream(batches, range(1)) + stream(batches, range(1, 3), workers=2)
    assert len(whole) == 9
    for one, two in zip(whole, again, strict=True):
        assert np.array_equal(one.images, two.images)
        assert np.array_equal(one.targets, two.targets)


def test_reading_processes_get_no_copy_of_the_list_of_images(monkeypatch):
    sent = []
    monkeypatch.setattr(loaders, "DataLoader", lambda reader, **_options: sent.append(len(pickle.dumps(reader))) or [])
    for count in (20, 2000):
        stream(Batches(samples(count), NumberViews(), batch_size=3, shuffle=True), range(1), workers=2)
    assert sent[0] == sent[1] < 500


def test_views_of_an_image_differ_between_epochs_and_images():
    batches = Batches(samples(2), NumberViews(), batch_size=2)
    first, second = stream(batches, range(2))
    assert not np.array_equal(first.images, second.images)
    assert not np.array_equal(first.images[0], first.images[1])


@pytest.mark.parametrize(("count", "shuffle", "sizes"), [(7, True, [3, 3]), (7, False, [3, 3, 1]), (2, True, [2])])
def test_the_last_batch(count, shuffle, sizes):
    batches = Batches(samples(count), NumberViews(), batch_size=3, shuffle=shuffle)
    assert [len(batch.images) for batch in stream(batches, range(1))] == sizes


def test_bad_images_are_reported_and_left_out():
    bad = Sample(id="bad", image=Path("x"))
    batches = Batches([*samples(2), bad], NumberViews(), batch_size=2)
    first, second = stream(batches, range(1))
    assert first.failed == ()
    assert second.failed == (("bad", "bad: torn"),)
    assert len(second.images) == len(second.targets) == 0


def test_normalize_equals_the_formula():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    expected = ((images / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(normalize(images, mean=mean, std=std, device=CPU).numpy(), expected, atol=1e-5)


def test_generators_of_all_purposes_differ():
    keys = [("order", 0), ("order", 1), ("order",), ("mix", 0, 0), ("mix", 0), ("augment", 0, 0), ("augment", 0)]
    draws = {generator(7, *key).integers(2**62) for key in keys} | {generator(8, "order", 0).integers(2**62)}
    assert len(draws) == len(keys) + 1


def brute_average_precision(scores, positive):
    """At each threshold precision and recall; the area under the best precision at that recall or beyond."""
    points = []
    for threshold in np.unique(scores):
        chosen = scores >= threshold
        points.append(((chosen & positive).sum() / positive.sum(), (chosen & positive).sum() / chosen.sum()))
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - before) * max(precision for other, precision in points if other >= recall)
        before = recall
    return area


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=25))
def test_average_precision_by_brute_force(pairs):
    scores, positive = np.array([pair[0] for pair in pairs], float), np.array([pair[1] for pair in pairs])
    if not positive.any():
        assert np.isnan(average_precision(scores, positive))
        return
    assert average_precision(scores, positive) == pytest.approx(brute_average_precision(scores, positive))
    turned = np.random.default_rng(0).permutation(len(scores))
    assert average_precision(scores[turned], positive[turned]) == pytest.approx(average_precision(scores, positive))


def test_average_precision_of_known_rankings():
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    assert average_precision(scores, np.array([True, True, False, False])) == 1.0
    assert average_precision(scores, np.array([False, True, False, True])) == 0.5
    assert average_precision(scores, np.array([True, False, False, True])) == 0.75


def test_mean_average_precision_skips_absent_classes():
    scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.8, 0.4]])
    assert mean_average_precision(scores, np.array([[1.0, 0, 0], [0, 1.0, 0]])) == 100.0
    assert np.isnan(mean_average_precision(scores, np.zeros((2, 3))))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 9), classes=st.integers(1, 8), k=st.integers(1, 8), seed=st.integers(0, 999))
def test_topk_by_counting(count, classes, k, seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 4, (count, classes)).astype(float), rng.integers(0, classes, count)
    hits = 0
    for row, label in zip(scores, labels, strict=True):
        before = sum(value > row[label] or (value == row[label] and at < label) for at, value in enumerate(row))
        hits += before < k
    assert topk_accuracy(scores, labels, k=k) == pytest.approx(100.0 * hits / count)


def test_a_network_of_nans_knows_nothing():
    scores, labels = np.full((4, 3), np.nan, dtype=np.float32), np.array([0, 0, 0, 2])
    assert topk_accuracy(scores, labels) == 0.0
    targets = np.eye(3)[labels]
    assert mean_average_precision(scores, targets) == pytest.approx(100 * (3 / 4 + 1 / 4) / 2)  # all are one threshold
    assert topk_accuracy(np.array([[np.nan, 2.0, 1.0]]), np.array([2]), k=2) == 100.0


def test_moving_average_by_hand(tmp_path):
    """timm's average with its warm-up: decay min(0.9, 1 - step^(-2/3)) after each step, so 0 after the first."""
    torch.manual_seed(0)
    module = torch.nn.Linear(2, 1)
    options = LoopOptions(out=tmp_path, epochs=2, opt="sgd", lr=0.1, ema=0.9, sched="none", quiet=True)
    seen = []

    def loss_of(batch, epoch, step):
        seen.append(module.weight.detach().clone())
        return module(batch).square().mean()

    def batches(start):
        return iter(torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(1)))

    fit(module, options, device=CPU, steps=3, batches=batches, loss_of=loss_of)
    state = read_checkpoint(tmp_path)
    average = seen[0]
    for step, after in enumerate([*seen[1:], state["module"]["weight"]], start=1):
        decay = min(0.9, 1 - step ** (-2 / 3))
        average = decay * average + (1 - decay) * after
    torch.testing.assert_close(state["ema"]["weight"], average)
    torch.testing.assert_close(module.weight.detach(), average)


def test_a_schedule_is_stateless(tmp_path):
    options = LoopOptions(out=tmp_path, epochs=4, lr=0.1, sched="cosine", warmup_epochs=1)
    straight = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = Schedule(straight, options, steps=5)
    rates = []
    for done in range(20):
        schedule.set(done)
        rates.append(straight.param_groups[0]["lr"])
    late = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    Schedule(late, options, steps=5).set(13)
    assert late.param_groups[0]["lr"] == rates[13]
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert max(rates) <= 0.1
