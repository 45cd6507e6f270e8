"""The stores of `--store shards` through the verbs, on this machine and at a URL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wsol import data
from wsol.cli.main import main
from wsol.config import load_yaml
from wsol.engine.make_maps import make_maps
from wsol.engine.make_masks import make_masks
from wsol.engine.mask_source import with_masks
from wsol.engine.options import CamConfig
from wsol.engine.refine_options import RefineConfig
from wsol.eval.localization import localize
from wsol.eval.options import LocConfig, SegConfig
from wsol.eval.segmentation import segment
from wsol.store import shards
from wsol.store.manifest import read_rows
from wsol.store.maps import read_maps
from wsol.store.masks import encode_mask, read_mask

COUNT = 22


@pytest.fixture(autouse=True, scope="module")
def _small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "STRETCH", 8)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for at in range(COUNT):
        size = (61 + at % 3, 83)
        path = root / ("cat", "dog")[at % 2] / f"{at:02d}.png"
        for place in (path, root / "masks" / path.relative_to(root)):
            place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(path)
        mask = np.zeros(size, np.uint8)
        mask[10:40, 20:60] = at % 2 + 1
        (root / "masks" / path.relative_to(root)).write_bytes(encode_mask(mask))
    return root


def cam(photos, checkpoint, out, **changes):
    return CamConfig(
        data="folder", root=photos, checkpoint=str(checkpoint), img_size=64, out=out, batch_size=4,
        **{"workers": 0, "quiet": True, "device": "cpu", "store": "shards", **changes},
    )  # fmt: skip


def tars(run):
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in run.rglob("*.tar")}


@pytest.fixture(scope="module")
def runs(photos, checkpoint, tmp_path_factory):
    """The same maps and masks, loose and in shards."""
    tmp_path = tmp_path_factory.mktemp("runs")
    for store in ("grid", "shards"):
        make_maps(cam(photos, checkpoint, tmp_path / f"cam-{store}", store=store))
        make_masks(
            RefineConfig(
                maps=tmp_path / f"cam-{store}", out=tmp_path / f"masks-{store}", workers=0, quiet=True, confidence=True,
                scores=True, store="files" if store == "grid" else "shards",
            )
        )  # fmt: skip
    return tmp_path


def test_every_verb_says_the_same_of_shards_and_of_files(runs):
    for name in ("cam", "masks"):
        assert not list((runs / f"{name}-shards").rglob("*.npz"))
        assert len(list((runs / f"{name}-shards" / "maps").glob("*.tar"))) == 3
    loose, packed = (read_rows(runs / f"cam-{store}") for store in ("grid", "shards"))
    assert loose == packed
    for image_id in loose:
        for name in ("cam", "masks"):
            a, b = (read_maps(runs / f"{name}-{store}", image_id) for store in ("grid", "shards"))
            assert (a.values == b.values).all()
        a, b = (read_mask(runs / f"masks-{store}", image_id) for store in ("grid", "shards"))
        assert (a.labels == b.labels).all()
        assert (a.confidence == b.confidence).all()
    for evaluate in (
        lambda store: localize(LocConfig(maps=runs / f"cam-{store}", workers=0)).result,
        lambda store: segment(SegConfig(pred=runs / f"cam-{store}", workers=0)).result,
        lambda store: segment(SegConfig(pred=runs / f"masks-{store}", workers=2)).result,
    ):
        assert evaluate("grid").to_json() == evaluate("shards").to_json()
        assert evaluate("shards").n == COUNT


def test_masks_in_shards_teach_and_are_exported(runs, photos):
    dataset = data.load("folder", root=photos)
    found = [with_masks(dataset, str(runs / f"masks-{store}"), min_confidence=0.3)[0] for store in ("grid", "shards")]
    assert [len(part) for part in found] == [COUNT, COUNT]
    for sample in dataset:
        assert (found[0].read_truth(sample) == found[1].read_truth(sample)).all()
    for store in ("grid", "shards"):
        words = f"export --masks {runs / f'masks-{store}'} --format coco --out {runs / f'coco-{store}'}".split()
        assert main(["data", *words]) == 0
    exported = [
        sorted(path.read_bytes() for path in (runs / f"coco-{store}").rglob("*.json")) for store in ("grid", "shards")
    ]
    assert exported[0] == exported[1]


def test_workers_shards_and_limits_change_no_member(runs, photos, checkpoint):
    config = cam(photos, checkpoint, runs / "two", workers=2)
    make_maps(config)
    assert tars(runs / "two") == tars(runs / "cam-shards")
    make_masks(
        RefineConfig(
            maps=runs / "two", out=runs / "pool", workers=2, quiet=True, confidence=True, scores=True, store="shards"
        )
    )
    assert tars(runs / "pool") == tars(runs / "masks-shards")
    for at in range(2):
        make_maps(cam(photos, checkpoint, runs / "halves", shard=f"{at}/2"))
    for image_id in read_rows(runs / "halves"):
        a, b = (read_maps(runs / name, image_id) for name in ("halves", "cam-grid"))
        assert (a.values == b.values).all()
    make_maps(cam(photos, checkpoint, runs / "limit", limit=5))
    assert make_maps(cam(photos, checkpoint, runs / "limit")).done == COUNT - 5


_COMMAND = """
import sys
from wsol.cli.main import main
from wsol.store import shards
shards.STRETCH = 8
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_kill_9_of_the_command_and_continue(runs, photos, checkpoint):
    """The process is killed as soon as rows appear; what is continued holds the same bytes."""
    words = (
        f"cam --data folder --root {photos} --checkpoint {checkpoint} --img-size 64 --batch-size 4 --workers 0"
        f" --device cpu --store shards --out {runs / 'killed'}"
    ).split()
    child = subprocess.Popen([sys.executable, "-c", _COMMAND, *words], stderr=subprocess.DEVNULL)
    manifest = runs / "killed" / "manifest-000-of-001.jsonl"
    while child.poll() is None and (not manifest.exists() or manifest.read_bytes().count(b"\n") < 11):
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    outcome = make_maps(cam(photos, checkpoint, runs / "killed"))
    assert outcome.done + outcome.skipped == COUNT
    assert outcome.skipped >= 8
    assert tars(runs / "killed") == tars(runs / "cam-shards")


def test_the_command_line_works_on_runs_at_a_url(photos, checkpoint, tmp_path, monkeypatch):
    fsspec = pytest.importorskip("fsspec")
    base = f"memory://{os.getpid()}-{time.monotonic_ns()}"
    for at, words in enumerate(
        (
            ["cam", "--data", "folder", "--root", str(photos), "--checkpoint", str(checkpoint), "--img-size", "64",
             "--workers", "0", "--device", "cpu", "--store", "shards", "--out", f"{base}/cam"],
            ["refine", "--maps", f"{base}/cam", "--out", f"{base}/masks", "--workers", "0", "--store", "shards"],
            ["eval", "seg", "--pred", f"{base}/masks", "--out", f"{base}/seg", "--workers", "0"],
        )
    ):  # fmt: skip
        (tmp_path / str(at)).mkdir()
        monkeypatch.chdir(tmp_path / str(at))
        assert main([*words]) == 0
    (tmp_path / "last").mkdir()
    monkeypatch.chdir(tmp_path / "last")
    files, place = fsspec.core.url_to_fs(base)
    names = [name[len(place) + 1 :] for name in files.find(place)]
    assert {"cam/manifest-000-of-001.jsonl", "masks/config.yaml", "seg/metrics.json"} <= set(names)
    assert any(name.startswith("masks/masks/") and name.endswith(".tar") for name in names)
    files.get(f"{place}/masks/config.yaml", "config.yaml")
    assert load_yaml(tmp_path / "last" / "config.yaml")["maps"] == f"memory:/{base[9:]}/cam"


def test_photos_in_a_tar_give_the_maps_of_the_folder(photos, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for path in sorted(photos.glob("[cd]*/*.png")):
            archive.add(path, arcname=path.relative_to(photos).as_posix())
    make_maps(cam(photos, checkpoint, tmp_path / "folder"))
    config = cam(photos, checkpoint, tmp_path / "tar", workers=2)
    make_maps(replace(config, data="tar", root=tmp_path))
    assert tars(tmp_path / "tar") == tars(tmp_path / "folder")
