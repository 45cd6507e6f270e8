"""What `wsol data check` and `wsol data index` say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wsol.cli.data import run
from wsol.data import DATASETS, load
from wsol.data.check import check
from wsol.data.synthetic import write_synthetic
from wsol.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    write_synthetic(folder, train=8, val=2, sides=(40, 60))
    return folder


def test_all_is_well(root: Path) -> None:
    findings = check("synthetic", root, deep=True)
    assert {finding.level for finding in findings} == {"ok"}
    texts = [finding.text for finding in findings]
    assert any("split 'train': 8 images listed, 8 found" in text for text in texts)
    assert any("split 'val': 2 images listed, 2 found" in text for text in texts)


def test_missing_and_torn_files_are_named(root: Path) -> None:
    for index in range(7):
        (root / "JPEGImages" / f"train_0000{index}.jpg").unlink()
    (root / "SegmentationClass" / "train_00003.png").unlink()
    torn = root / "JPEGImages" / "train_00007.jpg"
    torn.write_bytes(torn.read_bytes()[:200])
    shallow = check("synthetic", root, split="train")
    missing = [finding for finding in shallow if finding.level == "missing"]
    assert sum("no image file" in finding.text for finding in missing) == 6  # five by name, the rest counted
    assert any("2 more" in finding.text for finding in missing)
    assert any(finding.path.endswith("train_00003.png") for finding in missing)
    deep = {finding.path: finding.text for finding in check("synthetic", root, split="train", deep=True)}
    assert "cannot read the image" in deep[str(torn)]


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_data_set_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    findings = check(name, tmp_path / "nowhere")
    assert findings[0].text == "no such folder"
    assert findings[0].level == "missing"
    assert len(findings) > 1
    assert all("; " in finding.text for finding in findings[1:])


def test_voc_says_how_to_build_train_aug(tmp_path: Path) -> None:
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    findings = check("voc", tmp_path)
    by_part = {Path(finding.path).name: finding for finding in findings}
    assert by_part["train_aug.txt"].level == "hint"
    assert "SBD" in by_part["train_aug.txt"].text
    assert by_part["train.txt"].level == "missing"


def test_without_a_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSOL_DATA", raising=False)
    (finding,) = check("voc")
    assert "WSOL_DATA" in finding.text
    with pytest.raises(ConfigError):
        check("vocc")


def test_command_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "--data", "synthetic", "--root", str(root)]) == 0
    assert "ok      " in capsys.readouterr().out
    assert run(["check", "--data", "synthetic", "--root", str(root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["level"] == "ok"
    assert run(["check", "--data", "voc", "--root", str(root / "x")]) == 1
    assert "no such folder" in capsys.readouterr().out
    assert run(["--help"]) == 0
    assert "check" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="did you mean 'check'"):
        run(["chek"])


def test_index_loads_back_as_a_folder(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["index", "--data", "synthetic", "--root", str(root), "--limit", "5"]) == 0
    table = tmp_path / "labels.csv"
    table.write_text(capsys.readouterr().out)
    expected, found = load("synthetic", root=root, limit=5), load("folder", root=tmp_path, labels=table)
    assert [sample.id for sample in found] == [sample.id for sample in expected]
    names = [[data.spec.classes[label] for label in sample.labels] for data in (expected, found) for sample in data]
    assert [sorted(item) for item in names[:5]] == [sorted(item) for item in names[5:]]
    assert all(sample.image.is_file() for sample in found)


def test_index_of_a_relative_root_can_be_read_from_elsewhere(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root.parent)
    assert run(["index", "--data", "synthetic", "--root", root.name]) == 0
    (root / "labels.csv").write_text(capsys.readouterr().out)
    assert all(sample.image.is_file() for sample in load("folder", root=root))


@pytest.mark.parametrize("name", ["a;b", "a|b"])
def test_index_refuses_class_names_that_would_come_back_as_two(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "1.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="holds a separator of labels"):
        run(["index", "--data", "folder", "--root", str(tmp_path)])
