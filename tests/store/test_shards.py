from __future__ import annotations

import contextlib
import io
import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsol.errors import DataError, StoreError
from wsol.schema import PseudoMask, ScoreMaps
from wsol.store import shards
from wsol.store.archives import address, read_bytes, scan_tar
from wsol.store.manifest import Manifest, finished, read_rows
from wsol.store.maps import map_path, read_maps, write_maps
from wsol.store.masks import confidence_path, mask_path, read_labels, read_mask, write_mask
from wsol.store.shards import has_file, read_file

IDS = [f"n0{at % 3}/photo {at:03d} {'é' * (at % 2)}{'long' * 30 * (at % 5 == 0)}.JPEG" for at in range(23)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(shards, "STRETCH", 5)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a test outlives no power cut


def maps_of(image_id):
    rng = np.random.default_rng(sum(image_id.encode()))
    return ScoreMaps(image_id, rng.random((1, 3, 5)).astype(np.float16), np.array([2]), (31, 47))


def job(run, ids, *, shard=(0, 1), order=None, failing=(), stop=None):
    """What a verb does, in any order of completion; ends like a kill after `stop` images."""
    own = ids[shard[0] :: shard[1]]
    computed = []
    manifest = Manifest(run, shard).__enter__()
    done = finished(run, lambda image_id: read_maps(run, image_id))
    manifest.pack(own, done)
    for image_id in order or own:
        if image_id in done:
            continue
        if stop is not None and len(computed) >= stop:
            manifest._stream.close()
            return computed
        computed.append(image_id)
        if image_id in failing:
            manifest.failed(image_id, "broken")
        else:
            write_maps(run, maps_of(image_id))
            manifest.done(image_id)
    manifest.__exit__(None, None, None)
    return computed


def contents(run, suffix=".tar"):
    return {path.name: path.read_bytes() for path in (run / "maps").rglob(f"*{suffix}")}


def test_every_image_reads_from_shards_and_no_loose_file_is_left(tmp_path):
    job(tmp_path, IDS)
    assert sorted(contents(tmp_path)) == [f"000-of-001-0000{at}-0.tar" for at in range(5)]
    assert not contents(tmp_path, ".npz")
    for image_id in IDS:
        assert (read_maps(tmp_path, image_id).values == maps_of(image_id).values).all()
        assert has_file(map_path(tmp_path, image_id))
    assert finished(tmp_path, lambda image_id: read_maps(tmp_path, image_id)) == set(IDS)
    with pytest.raises(StoreError, match="no score maps"):
        read_maps(tmp_path, "n00/other.JPEG")


def test_any_tar_reader_finds_the_files_of_today_in_the_order_of_the_plan(tmp_path):
    job(tmp_path / "shards", IDS)
    names = []
    for path in sorted((tmp_path / "shards" / "maps").glob("*.tar")):
        with tarfile.open(path) as archive:
            names += [name for name in archive.getnames() if not name.startswith("__")]
            archive.extractall(tmp_path / "out" / "maps", filter="data")
    assert names == [f"{image_id}.npz" for image_id in IDS]
    for image_id in IDS:
        write_maps(tmp_path / "loose", maps_of(image_id))
        loose, packed = (map_path(tmp_path / name, image_id).read_bytes() for name in ("loose", "out"))
        assert loose == packed


@settings(max_examples=15)
@given(st.permutations(IDS), st.integers(0, 25), st.lists(st.integers(0, 22), max_size=3))
def test_order_kills_and_failures_leave_the_same_shards(tmp_path_factory, order, stop, bad):
    """Workers finish in any order; a job is killed after any number of images."""
    tmp_path = tmp_path_factory.mktemp("run")
    failing = {IDS[at] for at in bad}
    job(tmp_path / "plain", IDS, failing=failing)
    first = job(tmp_path / "killed", IDS, order=order, stop=stop, failing=failing)
    second = job(tmp_path / "killed", IDS, failing=failing)
    assert contents(tmp_path / "killed") == contents(tmp_path / "plain")
    assert not set(first) & set(second) - failing
    assert not contents(tmp_path / "killed", ".npz")
    shutil.rmtree(tmp_path)


def test_a_kill_between_the_shard_and_the_removal_leaves_the_same_bytes(tmp_path, monkeypatch):
    job(tmp_path / "plain", IDS)
    real = shards.Path.unlink

    def unlink(path, **options):
        if path.suffix == ".npz" and not path.name.startswith(".tmp"):
            raise KeyboardInterrupt
        real(path, **options)

    monkeypatch.setattr(shards.Path, "unlink", unlink)
    with pytest.raises(KeyboardInterrupt):
        job(tmp_path / "killed", IDS)
    monkeypatch.undo()
    monkeypatch.setattr(shards, "STRETCH", 5)
    assert contents(tmp_path / "killed")
    assert contents(tmp_path / "killed", ".npz")
    job(tmp_path / "killed", IDS)
    assert contents(tmp_path / "killed") == contents(tmp_path / "plain")
    assert not contents(tmp_path / "killed", ".npz")


def test_failed_images_that_read_later_get_a_shard_of_their_own(tmp_path):
    job(tmp_path, IDS, failing=set(IDS[3:8]))
    assert job(tmp_path, IDS) == IDS[3:8]
    assert {"000-of-001-00000-1.tar", "000-of-001-00001-1.tar"} <= set(contents(tmp_path))
    assert finished(tmp_path, lambda image_id: read_maps(tmp_path, image_id)) == set(IDS)


def test_two_writers_share_a_folder(tmp_path):
    for at in range(2):
        job(tmp_path, IDS, shard=(at, 2))
    assert {name[:10] for name in contents(tmp_path)} == {"000-of-002", "001-of-002"}
    assert finished(tmp_path, lambda image_id: read_maps(tmp_path, image_id)) == set(IDS)
    assert job(tmp_path, IDS) == []


def test_the_longer_limit_of_a_second_run_adds_shards(tmp_path):
    job(tmp_path, IDS[:7])
    assert job(tmp_path, IDS) == IDS[7:]
    assert finished(tmp_path, lambda image_id: read_maps(tmp_path, image_id)) == set(IDS)


def test_masks_and_their_confidence_are_packed_each_to_its_kind(tmp_path):
    labels = np.random.default_rng(0).integers(0, 9, (21, 33), np.uint8)
    sure = np.linspace(0, 1, labels.size, dtype=np.float16).reshape(labels.shape)
    with Manifest(tmp_path) as manifest:
        manifest.pack(IDS, set())
        for image_id in IDS:
            write_mask(tmp_path, PseudoMask(image_id, labels, confidence=sure))
            manifest.done(image_id)
    assert not list(tmp_path.rglob("*.png"))
    for image_id in IDS:
        mask = read_mask(tmp_path, image_id)
        assert (mask.labels == labels).all()
        assert np.abs(mask.confidence.astype(float) - sure).max() <= 0.5 / 255 + 1e-3
        assert (read_labels(mask_path(tmp_path, image_id)) == labels).all()
        assert has_file(confidence_path(tmp_path, image_id))
    assert not has_file(mask_path(tmp_path, "other"))


@pytest.mark.parametrize("keep", [0, 1, 300, 700, 2000, 4000])
def test_a_torn_shard_counts_as_missing_and_is_made_again(tmp_path, keep, caplog):
    job(tmp_path, IDS)
    path = tmp_path / "maps" / "000-of-001-00001-0.tar"
    path.write_bytes(path.read_bytes()[:keep])
    computed = job(tmp_path, IDS)
    assert set(computed) <= set(IDS[5:10])
    assert computed
    assert finished(tmp_path, lambda image_id: read_maps(tmp_path, image_id)) == set(IDS)


@settings(max_examples=40)
@given(st.data())
def test_no_flipped_byte_of_a_shard_changes_a_map_unnoticed(tmp_path_factory, data):
    run = tmp_path_factory.mktemp("run")
    job(run, IDS[:5])
    path = run / "maps" / "000-of-001-00000-0.tar"
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    os.utime(path, ns=(1, 1))
    for image_id in IDS[:5]:
        try:
            found = read_maps(run, image_id)
        except StoreError:
            continue
        assert (found.values == maps_of(image_id).values).all()
    shutil.rmtree(run)


def test_an_index_that_points_outside_is_refused(tmp_path, caplog):
    job(tmp_path, IDS[:5])
    path = tmp_path / "maps" / "000-of-001-00000-0.tar"
    raw = path.read_bytes()
    for value in (2**63, 2**64 - 1, len(raw)):
        table = np.load(io.BytesIO(raw[512 : 512 + 128 + 5 * 24]))
        table[:, 2] = value
        path.write_bytes(raw[: 512 + 128] + table.tobytes() + raw[512 + 128 + 5 * 24 :])
        with pytest.raises(StoreError, match="no score maps"):
            read_maps(tmp_path, IDS[0])


def test_a_pickle_in_place_of_the_index_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.abort, ()

    data = pickle.dumps(Bomb())
    (tmp_path / "maps").mkdir()
    with tarfile.open(tmp_path / "maps" / "000-of-001-00000-0.tar", "w") as archive:
        info = tarfile.TarInfo("__index__.npy")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    with pytest.raises(StoreError, match="no score maps"):
        read_maps(tmp_path, "x")


def test_an_archive_that_another_tool_packed_is_read(tmp_path):
    for image_id in IDS[:4]:
        write_maps(tmp_path / "loose", maps_of(image_id))
    (tmp_path / "run" / "maps").mkdir(parents=True)
    subprocess.run(
        ["tar", "-cf", tmp_path / "run" / "maps" / "000-of-001-00000-0.tar", "."],
        cwd=tmp_path / "loose" / "maps", check=True,
    )  # fmt: skip
    for image_id in IDS[:4]:
        assert (read_maps(tmp_path / "run", image_id).values == maps_of(image_id).values).all()


def test_a_shard_that_is_a_link_is_not_followed(tmp_path):
    job(tmp_path / "real", IDS[:5])
    (tmp_path / "run" / "maps").mkdir(parents=True)
    (tmp_path / "run" / "maps" / "000-of-001-00000-0.tar").symlink_to(
        tmp_path / "real" / "maps" / "000-of-001-00000-0.tar"
    )
    with pytest.raises(StoreError, match="no score maps"):
        read_maps(tmp_path / "run", IDS[0])


@pytest.mark.parametrize("name", ["../x.npz", "/etc/x.npz", "a/../../x.npz", "link", "device"])
def test_hostile_members_are_refused(tmp_path, name):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        if name in ("link", "device"):
            info.type = tarfile.SYMTYPE if name == "link" else tarfile.CHRTYPE
            info.linkname = "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError):
        list(scan_tar(path))


@given(st.binary(max_size=3000))
def test_no_bytes_break_the_listing_of_an_archive(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "hostile.tar"
    path.write_bytes(data)
    with contextlib.suppress(DataError):
        list(scan_tar(path))


def test_an_address_past_the_end_is_an_error_and_takes_no_memory(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"0123456789")
    assert read_bytes(address(path, 2, "a/b.png", size=3)) == b"234"
    for size in (9, 2**62):
        with pytest.raises(OSError, match="ends before"):
            read_bytes(address(path, 2, "x", size=size))


def test_a_full_disk_while_packing_keeps_every_loose_file(tmp_path, monkeypatch):
    def full(*_, **__):
        raise StoreError("cannot write: No space left on device")

    monkeypatch.setattr(shards, "atomic_write", full)
    with pytest.raises(StoreError, match="No space"):
        job(tmp_path, IDS)
    monkeypatch.undo()
    assert len(contents(tmp_path, ".npz")) == 5
    assert job(tmp_path, IDS) == IDS[5:]


def test_a_replaced_run_shows_its_new_shards_at_once(tmp_path):
    job(tmp_path, IDS)
    first = read_file(map_path(tmp_path, IDS[0]))
    shutil.rmtree(tmp_path / "maps")
    write_maps(tmp_path, ScoreMaps(IDS[0], np.ones((1, 2, 2), np.float16), np.array([1]), (31, 47)))
    assert read_file(map_path(tmp_path, IDS[0])) != first
    assert not has_file(map_path(tmp_path, IDS[1]))


_WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from wsol.schema import ScoreMaps
from wsol.store import shards
from wsol.store.manifest import Manifest, finished
from wsol.store.maps import read_maps, write_maps

shards.STRETCH = 7
run, ids = Path(sys.argv[1]), [f"{at % 4}/{at:04d}" for at in range(120)]
with Manifest(run) as manifest:
    done = finished(run, lambda image_id: read_maps(run, image_id))
    manifest.pack(ids, done)
    print("ready", flush=True)
    for image_id in ids:
        if image_id not in done:
            values = np.full((1, 4, 4), int(image_id[-4:]) / 200, np.float16)
            write_maps(run, ScoreMaps(image_id, values, np.array([0]), (8, 8)))
            manifest.done(image_id, pid=__import__("os").getpid())
            time.sleep(0.001)
"""


@pytest.mark.slow
def test_kill_9_at_any_moment_loses_no_file_and_ends_in_the_same_shards(tmp_path):
    subprocess.run([sys.executable, "-c", _WRITER, str(tmp_path / "plain")], check=True, stdout=subprocess.DEVNULL)
    rng = np.random.default_rng(0)
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path / "run")], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        before = {name for name, row in read_rows(tmp_path / "run").items() if row["ok"]}
        assert finished(tmp_path / "run", lambda image_id: read_maps(tmp_path / "run", image_id)) == before
    subprocess.run([sys.executable, "-c", _WRITER, str(tmp_path / "run")], check=True, stdout=subprocess.DEVNULL)
    assert contents(tmp_path / "run") == contents(tmp_path / "plain")
    lines = [line for path in (tmp_path / "run").glob("manifest-*") for line in path.read_text().splitlines()]
    assert len(lines) - len(set(itertools.chain(read_rows(tmp_path / "run")))) <= 8  # the image in flight at each kill
