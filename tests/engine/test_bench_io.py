from __future__ import annotations

import io
import json
import tarfile
import time

import cv2
import numpy as np
import pytest

from wsol import data
from wsol.cli.main import main
from wsol.engine import bench_io as bench
from wsol.engine.bench_io_options import BenchIoConfig
from wsol.errors import StoreError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes") / "data"
    data.load("synthetic", root=root, train=1, val=5, seed=1)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from wsol.models.classifier import load_classifier, save_classifier

    folder = tmp_path_factory.mktemp("model")
    save_classifier(
        load_classifier("test_resnet", num_classes=5, img_size=64), folder, classes=tuple("abcde"), multi_label=True
    )
    return folder


def words(scenes, trained, out, *more):
    given = ["--data", "synthetic", "--root", str(scenes), "--split", "val", "--checkpoint", str(trained)]
    return ["bench", "io", *given, "--img-size", "64", "--batch-size", "2", "--device", "cpu", "--out", str(out), *more]


SLOW = {"read": "read_image", "model": "compute", "refine": "refine_pair", "write": "write_result"}


@pytest.mark.parametrize(("stage", "job"), [("read", 0), ("model", 0), ("refine", 1), ("write", 1)])
def test_the_stage_that_was_made_slow_is_named(scenes, trained, tmp_path, monkeypatch, stage, job):
    function = getattr(bench, SLOW[stage])

    def slowly(*args, **kwargs):
        time.sleep(0.25)
        return function(*args, **kwargs)

    monkeypatch.setattr(bench, SLOW[stage], slowly)
    options = {"data": "synthetic", "root": scenes, "split": "val", "checkpoint": str(trained), "img_size": 64}
    options |= {"batch_size": 2, "device": "cpu", "workers": 1, "out": tmp_path / "out", "refiner": "threshold"}
    jobs = bench.bench_io(BenchIoConfig(**options))
    assert jobs[job].bound == stage
    calls = 3 if stage == "model" else 5
    assert 250 * calls / 5 <= jobs[job].stages[stage] < 500 * calls / 5
    assert jobs[job].ms >= jobs[job].stages[stage]


def test_lanes_share_the_stages_among_processes():
    clock = bench._Clock()
    clock.seconds.update({"read": 6.0, "input": 2.0, "model": 3.0, "write": 1.0})
    one = clock.job("cam", 1000, {"read+input+model": 1, "write": 1}, 0)
    four = clock.job("cam", 1000, {"read+input": 4, "model": 1, "write": 1}, 0)
    assert (one.ms, one.bound) == (11.0, "read")
    assert (four.ms, four.bound, four.lanes["read+input"]) == (3.0, "model", 2.0)


def test_table_json_and_what_was_written(scenes, trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(words(scenes, trained, out, "--refiner", "pamr", "--refiner-options.iterations", "2")) == 0
    said = capsys.readouterr().out
    assert "bound by" in said
    assert "to go faster" in said
    found = json.loads((out / "bench.json").read_text())
    cam, refine = found["rows"]
    assert set(cam["stages_ms"]) == {"read", "input", "model", "write"}
    assert set(refine["stages_ms"]) == {"read", "refine", "write"}
    for row, kind in ((cam, "maps"), (refine, "masks")):
        sizes = [path.stat().st_size for path in (out / kind / kind).rglob("*.*")]
        assert len(sizes) == row["n"] == 5
        assert row["stored_bytes"] == pytest.approx(sum(sizes) / 5)
    with pytest.raises(StoreError, match="not empty"):
        bench.bench_io(BenchIoConfig(data="synthetic", root=scenes, checkpoint=str(trained), out=out))


def test_photos_in_a_tar_and_results_in_shards(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for at in range(5):
            image = cv2.imencode(".png", rng.integers(0, 255, (41, 53, 3), np.uint8))[1].tobytes()
            member = tarfile.TarInfo(f"{('cat', 'dog')[at % 2]}/{at}.png")
            member.size = len(image)
            archive.addfile(member, io.BytesIO(image))
    config = BenchIoConfig(
        data="tar", root=tmp_path, checkpoint=str(checkpoint), img_size=64, batch_size=2, workers=1, device="cpu",
        out=tmp_path / "out", refiner="threshold", store="shards",
    )  # fmt: skip
    cam, refine = bench.bench_io(config)
    assert cam.stages["read"] > 0
    assert list(cam.lanes) == ["read+input", "model", "write"]
    assert list(refine.lanes) == ["read+refine+write", "pack"]
    assert refine.stages["pack"] > 0
    for job, kind in ((cam, "maps"), (refine, "masks")):
        (shard,) = (path for path in (config.out / kind / kind).rglob("*") if path.is_file())
        assert shard.name == "000-of-001-00000-0.tar"
        assert job.stored == shard.stat().st_size / 5
