"""The generated data set: deterministic, exact, restartable, and hard in the intended way."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from wsol.data import load, synthetic
from wsol.data.images import read_image
from wsol.data.scene import KINDS, draw_scene
from wsol.data.synthetic import MARK, write_synthetic
from wsol.errors import ConfigError, DataError, StoreError, WriteError

SMALL = {"train": 4, "val": 2, "sides": (40, 60)}


def _digest(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_same_seed_same_files(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "a", seed=3, **SMALL)
    write_synthetic(tmp_path / "b", seed=3, **SMALL)
    write_synthetic(tmp_path / "c", seed=4, **SMALL)
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b") != _digest(tmp_path / "c")


def test_an_image_does_not_depend_on_the_count(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "a", seed=3, train=2, val=1, sides=(40, 60))
    write_synthetic(tmp_path / "b", seed=3, train=4, val=2, sides=(40, 60))
    few, many = _digest(tmp_path / "a"), _digest(tmp_path / "b")
    assert all(
        many[name] == value for name, value in few.items() if name.startswith(("JPEG", "Annot", "SegmentationC"))
    )


def test_truth_agrees_with_the_annotations(tmp_path: Path) -> None:
    write_synthetic(tmp_path, train=12, val=1)
    dataset = load("synthetic", root=tmp_path)
    assert dataset.spec.classes == tuple(kind.name for kind in KINDS)
    for sample in dataset:
        image, truth = read_image(sample.image), dataset.read_truth(sample)
        assert image.shape[:2] == truth.shape == sample.size
        height, width = sample.size
        assert height % 2 == width % 2 == 1
        assert height != width
        assert 120 <= min(sample.size) <= max(sample.size) <= 173
        assert sample.labels == tuple(sorted({int(value) - 1 for value in np.unique(truth) if value}))
        assert 1 <= len(sample.labels) <= 2
        for label in sample.labels:
            rows, columns = np.nonzero(truth == label + 1)
            own = sample.boxes[np.array(sample.box_labels) == label]
            union = [*own[:, :2].min(axis=0), *own[:, 2:].max(axis=0)]
            assert union == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_statistics() -> None:
    scenes = [draw_scene(np.random.default_rng([7, index])) for index in range(150)]
    counts = np.array([len({label for label, _ in scene.objects}) for scene in scenes])
    assert 0.2 < (counts == 2).mean() < 0.4
    share = np.array([(scene.labels > 0).mean() for scene in scenes])
    assert 0.08 < np.median(share) < 0.3
    seen = np.bincount([label for scene in scenes for label, _ in scene.objects], minlength=len(KINDS))
    assert seen.min() > 15


def test_colour_alone_does_not_find_the_objects() -> None:
    # The best single threshold on distance from the mean colour must stay far from the truth.
    best = []
    for index in range(20):
        scene = draw_scene(np.random.default_rng([8, index]))
        truth = scene.labels > 0
        image = scene.image.astype(float)
        distance = np.linalg.norm(image - image.mean(axis=(0, 1)), axis=2)
        cuts = np.quantile(distance, np.linspace(0.05, 0.95, 19))
        best.append(max((truth & (distance > t)).sum() / (truth | (distance > t)).sum() for t in cuts))
    assert np.mean(best) < 0.45


def test_fewer_classes(tmp_path: Path) -> None:
    write_synthetic(tmp_path, classes=2, **SMALL)
    assert load("synthetic", root=tmp_path).spec.classes == ("fish", "beetle")


def test_generated_on_first_use_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "new"
    assert len(load("synthetic", root=root, train=3, val=2, seed=5)) == 3
    before = _digest(root)
    monkeypatch.setattr(synthetic, "write_synthetic", lambda *_, **__: pytest.fail("generated twice"))
    assert len(load("synthetic", root=root, split="val")) == 2
    assert _digest(root) == before
    with pytest.raises(DataError, match="seed=5, not 6"):
        load("synthetic", root=root, seed=6)


def test_interrupted_generation_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    write_synthetic(whole, train=3, val=2)
    real = synthetic._write_scene

    def stop(root: Path, name: str, scene: object) -> None:
        if name.endswith("2"):
            raise KeyboardInterrupt
        real(root, name, scene)

    monkeypatch.setattr(synthetic, "_write_scene", stop)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(torn, train=3, val=2)
    monkeypatch.undo()
    assert not json.loads((torn / MARK).read_text())["complete"]
    load("synthetic", root=torn, train=3, val=2)
    assert _digest(torn) == _digest(whole)


def test_refusals(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(DataError, match="not empty"):
        write_synthetic(tmp_path)
    with pytest.raises(DataError, match="not empty"):
        load("synthetic", root=tmp_path)
    with pytest.raises(StoreError):
        write_synthetic(tmp_path / "mine.txt" / "x", **SMALL)
    for options in ({"classes": 6}, {"train": 0}, {"sides": (60, 40)}, {"sides": (8, 40)}):
        with pytest.raises(ConfigError):
            write_synthetic(tmp_path / "x", **options)


def test_what_a_killed_writer_left_goes_when_the_set_is_generated_again(tmp_path):
    write_synthetic(tmp_path / "set", train=1, val=1)
    left = tmp_path / "set" / "JPEGImages" / ".tmp-00000000-1-0"
    left.write_bytes(b"half")
    os.utime(left, (1, 1))
    write_synthetic(tmp_path / "set", train=1, val=1)
    assert not list((tmp_path / "set").rglob(".tmp-*"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "synthetic.json").write_text('{"classes": []}')
    (tmp_path / "set" / "JPEGImages").write_text("in the way")
    with pytest.raises(WriteError, match="JPEGImages.*cannot write"):
        write_synthetic(tmp_path / "set", train=1, val=1)
