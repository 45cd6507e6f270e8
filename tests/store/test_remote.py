from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol import data
from wsol.config import neutral
from wsol.data.images import image_size, read_image
from wsol.errors import DataError, StoreError
from wsol.schema import ScoreMaps
from wsol.store.manifest import Manifest, finished, read_rows
from wsol.store.maps import read_maps, write_maps
from wsol.store.places import url_of
from wsol.store.remote import Mirror, local_runs
from wsol.store.runs import open_run, read_info

fsspec = pytest.importorskip("fsspec")


@dataclass(frozen=True)
class Job:
    out: Path = neutral()
    maps: Path | None = None
    root: Path | None = None
    checkpoint: str | None = None
    store: str = "grid"


@pytest.fixture(scope="module")
def s3():
    """A local server that speaks S3."""
    server_kind = pytest.importorskip("moto.server").ThreadedMotoServer
    server = server_kind(port=0)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield "s3://bucket"
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def base(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = f"{os.getpid()}-{time.monotonic_ns()}"
    return f"memory://{name}" if request.param == "memory" else f"{request.getfixturevalue('s3')}/{name}"


def photo(at):
    return np.random.default_rng(at).integers(0, 255, (13 + at, 17, 3), np.uint8)


def put(url, content):
    with fsspec.open(url, "wb") as stream:
        stream.write(content)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def objects(url):
    files, place = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return {path[len(place) + 1 :]: files.cat_file(path) for path in files.find(place)}


def write(run, ids):
    with open_run(run.out, verb="cam", config=run), Manifest(run.out) as manifest:
        done = finished(run.out, lambda image_id: read_maps(run.out, image_id))
        if run.store == "shards":
            manifest.pack(ids, done)
        for image_id in ids:
            if image_id not in done:
                write_maps(run.out, ScoreMaps(image_id, np.ones((1, 2, 3), np.float16), np.array([0]), (8, 8)))
                manifest.done(image_id)
    return done


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("s3://bucket/run", "s3://bucket/run"),
        ("memory://x", "memory://x"),
        ("gs://b/a c/é", "gs://b/a c/é"),
        ("/data/run", None),
        ("runs/a", None),
        ("C:/data", None),
        ("clip:ViT-B/32", None),
        ("pip:package", None),
    ],
)
def test_a_path_keeps_the_url_it_was_made_from(text, url):
    assert url_of(text) == url
    assert url_of(Path(text)) == url


@pytest.mark.parametrize("store", ["grid", "shards"])
def test_a_run_goes_to_a_url_and_comes_back_on_another_machine(base, store, tmp_path, monkeypatch):
    config = Job(out=Path(f"{base}/run"), store=store)
    ids = [f"a/{at}.jpg" for at in range(9)]
    with local_runs(config):
        write(config, ids)
    there = objects(f"{base}/run")
    assert {"config.yaml", "run.json", "manifest-000-of-001.jsonl"} <= set(there)
    assert sum(name.startswith("maps/") for name in there) == (1 if store == "shards" else 9)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with local_runs(Job(out=Path("local"), maps=config.out)):
        assert read_maps(config.out, ids[3]).class_ids.tolist() == [0]
        assert read_info(config.out).verb == "cam"
    with local_runs(config):
        assert write(config, [*ids, "new"]) == set(ids)
    assert set(read_rows(config.out)) == {*ids, "new"}
    assert b'"new"' in objects(f"{base}/run")["manifest-000-of-001.jsonl"]


def test_the_local_copy_takes_what_changed_there_and_keeps_what_was_not_sent(base):
    config = Job(out=Path(f"{base}/run"))
    with local_runs(config):
        write(config, ["a"])
    put(f"{base}/run/metrics.json", b"new")
    (config.out / "history.jsonl").write_bytes(b"not sent yet")
    put(f"{base}/run/history.jsonl", b"old")
    put(f"{base}/run/run.json", b"changed there")
    Mirror(config.out).fetch()
    assert (config.out / "metrics.json").read_bytes() == b"new"
    assert (config.out / "history.jsonl").read_bytes() == b"not sent yet"
    assert (config.out / "run.json").read_bytes() == b"changed there"


def test_files_that_a_run_no_longer_has_are_removed_there(base):
    config = Job(out=Path(f"{base}/run"))
    with local_runs(config):
        write(config, ["a", "b"])
    with local_runs(config):
        (config.out / "maps" / "a.npz").unlink()
    assert "maps/a.npz" not in objects(f"{base}/run")
    assert "maps/b.npz" in objects(f"{base}/run")


def test_names_that_would_leave_the_folder_are_refused(base):
    put(f"{base}/run/config.yaml", b"")
    mirror = Mirror(Path(f"{base}/run"))
    real = mirror._files.find
    for name in ("../x", "a/../../x", "/etc/x", "a//x", ".lock"):

        class Hostile:
            def __init__(self, files, name):
                self.files, self.name = files, name

            def __getattr__(self, key):
                return getattr(self.files, key)

            def find(self, place, detail):
                return {f"{place}/{self.name}": {"size": 1}, **real(place, detail=True)}

        mirror._files = Hostile(mirror._files, name)
        with pytest.raises(StoreError, match="refusing"):
            mirror.fetch()


def test_photos_are_read_where_they_are(base):
    for at in range(4):
        put(f"{base}/photos/{('cat', 'dog')[at % 2]}/{at}.png", png(photo(at)))
    dataset = data.load("folder", root=f"{base}/photos")
    assert dataset.spec.classes == ("cat", "dog")
    assert [sample.id for sample in dataset] == ["cat/0.png", "cat/2.png", "dog/1.png", "dog/3.png"]
    for sample in dataset:
        assert (read_image(sample.image) == photo(int(sample.image.stem))).all()
        assert image_size(sample.image) == photo(int(sample.image.stem)).shape[:2]
    with pytest.raises(DataError, match="no such image"):
        read_image(Path(f"{base}/photos/none.png"))


def test_archives_are_read_where_they_are(base):
    import tarfile

    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for at in range(3):
            for name, content in ((f"{at}.png", png(photo(at))), (f"{at}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    put(f"{base}/tar/train-0.tar", buffer.getvalue())
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": [png(photo(at)) for at in range(3)], "label": [1] * 3}), buffer)
    put(f"{base}/parquet/train-0.parquet", buffer.getvalue())
    for name in ("tar", "parquet"):
        for _ in range(2):
            dataset = data.load(name, root=f"{base}/{name}")
            assert all((read_image(sample.image) == photo(at)).all() for at, sample in enumerate(dataset))


def test_a_url_that_is_not_there(base):
    with pytest.raises(DataError):
        data.load("tar", root=f"{base}/none")
    Mirror(Path(f"{base}/none")).fetch()
    assert not Path(f"{base}/none").exists()
    with pytest.raises(DataError, match="wsol\\[remote\\]"):
        data.load("tar", root="nosuch://x/y")


def test_a_server_that_fails_is_said_and_the_copy_is_whole(base):
    config = Job(out=Path(f"{base}/run"))

    def fail(*_, **__):
        raise RuntimeError("503")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mirror, "_put", fail)
        with pytest.raises(StoreError, match="503.*run the same command again"), local_runs(config):
            write(config, ["a", "b"])
    assert not objects(f"{base}/run")
    with local_runs(config):
        assert write(config, ["a", "b"]) == {"a", "b"}
    assert len(objects(f"{base}/run")) == 5


_WRITER = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_remote import Job
from wsol.schema import ScoreMaps
from wsol.store import shards
from wsol.store.manifest import Manifest, finished
from wsol.store.maps import read_maps, write_maps
from wsol.store.remote import local_runs
from wsol.store.runs import open_run

shards.STRETCH = 5
config, ids = Job(out=Path(sys.argv[1]), store="shards"), [f"{at:03d}" for at in range(60)]
with local_runs(config, every=0.05), open_run(config.out, verb="cam", config=config), Manifest(config.out) as manifest:
    done = finished(config.out, lambda image_id: read_maps(config.out, image_id))
    manifest.pack(ids, done)
    print(len(done), flush=True)
    for image_id in ids:
        if image_id not in done:
            write_maps(config.out, ScoreMaps(image_id, np.full((1, 3, 3), 0.5, np.float16), np.array([0]), (8, 8)))
            manifest.done(image_id)
            time.sleep(0.02)
"""


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_from_s3_on_another_machine(s3, tmp_path):
    """Each round starts in an empty folder: only what reached the bucket counts."""
    here = str(Path(__file__).parent)

    def start(folder, url):
        folder.mkdir()
        words = [sys.executable, "-c", _WRITER, url, here]
        return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)

    plain = start(tmp_path / "plain", f"{s3}/plain")
    assert plain.wait() == 0
    counts = []
    for at, seconds in enumerate((0.5, 0.6, None)):
        child = start(tmp_path / str(at), f"{s3}/killed")
        counts.append(int(child.stdout.readline()))
        if seconds is not None:
            time.sleep(seconds)
            child.send_signal(signal.SIGKILL)
        child.wait()
    assert counts[0] == 0
    assert 0 < counts[1] <= counts[2]
    found, expected = (objects(f"{s3}/{name}") for name in ("killed", "plain"))
    tars = {name: content for name, content in expected.items() if name.endswith(".tar")}
    assert len(tars) == 12
    assert {name: found.get(name) for name in tars} == tars
    assert not [name for name in found if name.endswith(".npz")]
