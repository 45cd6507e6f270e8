"""The door to all data sets: names, options, splits, limits, processes."""

from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsol.data import DATASETS, load, option_type
from wsol.data.catalog import read_lines
from wsol.data.synthetic import write_synthetic
from wsol.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    write_synthetic(folder, train=6, val=3, seed=1, sides=(40, 60))
    return folder


def test_names_are_the_files() -> None:
    expected = (
        "coco", "cub", "folder", "glas", "ilsvrc", "openimages", "parquet", "synthetic", "tar", "tiny_imagenet", "voc",
    )  # fmt: skip
    assert DATASETS.names() == expected
    for name in expected:
        assert DATASETS.summary(name)
        assert DATASETS.get(name).__module__ == f"wsol.data.{name}"


def test_unknown_names(root: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'coco'"):
        load("cocoo")
    with pytest.raises(DataError, match="did you mean 'train'"):
        load("synthetic", root=root, split="trian")
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        load("synthetic", root=root, sed=1)
    with pytest.raises(ConfigError, match="must be"):
        load("synthetic", root=root, seed="one")


def test_option_types_come_from_the_signature() -> None:
    import dataclasses

    fields = {item.name: item.default for item in dataclasses.fields(option_type("coco"))}
    assert fields == {"cache": Path("runs/.cache"), "empty": False}
    assert dataclasses.fields(option_type("voc")) == ()


def test_root_from_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSOL_DATA", str(root.parent))
    assert load("synthetic").spec.root == root
    monkeypatch.delenv("WSOL_DATA")
    with pytest.raises(DataError, match="WSOL_DATA"):
        load("voc")


def test_dataset(root: Path) -> None:
    dataset = load("synthetic", root=str(root))
    assert dataset.spec.split == "train"
    assert len(dataset) == len(list(dataset)) == 6
    ids = [sample.id for sample in dataset]
    assert dataset.spec.id_hash == hashlib.sha256("".join(f"{i}\n" for i in ids).encode()).hexdigest()[:16]
    assert dataset.by_id(ids[3]) is dataset.samples[3]
    with pytest.raises(DataError, match="no image 'x'"):
        dataset.by_id("x")
    short = load("synthetic", root=root, limit=2)
    assert [sample.id for sample in short] == ids[:2]
    assert short.spec.id_hash != dataset.spec.id_hash
    with pytest.raises(DataError, match="at least 1"):
        load("synthetic", root=root, limit=0)


def test_dataset_crosses_processes(root: Path) -> None:
    dataset = load("synthetic", root=root, split="val")
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.spec == dataset.spec
    for mine, other in zip(dataset, copy, strict=True):
        np.testing.assert_array_equal(dataset.read_truth(mine), copy.read_truth(other))
        np.testing.assert_array_equal(mine.boxes, other.boxes)


def test_missing_mask_is_a_data_error(root: Path) -> None:
    import dataclasses

    dataset = load("synthetic", root=root)
    for mask in (None, root / "absent.png"):
        with pytest.raises(DataError):
            dataset.read_truth(dataclasses.replace(dataset.samples[0], mask=mask))


def test_no_torch(root: Path) -> None:
    code = (
        "import sys; from wsol.data import DATASETS, load; import wsol.data.check, wsol.data.transforms\n"
        "[DATASETS.get(name) for name in DATASETS.names()]\n"
        f"d = load('synthetic', root={str(root)!r}); d.read_truth(d.samples[0])\n"
        "from wsol.data.imagenet import class_name; assert class_name('n01440764') == 'tench'\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_line_ends_at_a_line_end_only(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("\ufeffa\u2028b\r\n\r\n c\x0bd \re\nü".encode())
    assert read_lines(tmp_path / "list.txt") == ["a\u2028b", "c\x0bd", "e", "ü"]
