"""What killed writers leave is removed by the next job, and nobody else's files are."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

from wsol.errors import StoreError, WriteError
from wsol.store.atomic import atomic_write
from wsol.store.lock import hold

_WRITER = """
import sys
from pathlib import Path
from wsol.store.atomic import atomic_write

with atomic_write(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("open", flush=True)
    sys.stdin.readline()
    stream.write(b" whole")
"""


def writer(path):
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"open\n"
    return process


def temporaries(run):
    return sorted(path.parent.name for path in run.rglob(".tmp-*"))


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_kill_9_leaves_a_file_that_the_next_job_removes_beside_a_living_writer(tmp_path):
    run = tmp_path / "run"
    dead, alive = writer(run / "maps" / "dead" / "1.npz"), writer(run / "masks" / "alive" / "1.png")
    try:
        dead.kill()
        dead.wait()
        assert temporaries(run) == ["alive", "dead"]
        hold(run, shard=(1, 2)).close()
        assert temporaries(run) == ["alive"]
        alive.communicate(b"go on\n", timeout=30)
    finally:
        for process in (dead, alive):
            process.kill()
            process.wait()
    assert (run / "masks" / "alive" / "1.png").read_bytes() == b"half whole"
    assert not (run / "maps" / "dead" / "1.npz").exists()
    assert temporaries(run) == []


def test_a_writer_elsewhere_keeps_its_file_for_a_day(tmp_path):
    run = tmp_path / "run"
    names = [".tmp-00000000-1-x.npz", ".tmp-1-x.npz"]
    for folder in ("today", "long ago"):
        for name in (*names, "x.npz", ".tmp-notes", ".hidden"):
            path = run / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if folder == "long ago":
                os.utime(path, (path.stat().st_mtime - 90_000,) * 2)
    hold(run).close()
    for folder, stays in (("today", names), ("long ago", [])):
        found = sorted(path.name for path in (run / folder).iterdir())
        assert found == sorted([".hidden", ".tmp-notes", "x.npz", *stays])


def test_links_are_not_followed_and_own_files_stay(tmp_path):
    elsewhere = tmp_path / "elsewhere" / ".tmp-00000000-1-x.npz"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    os.utime(elsewhere, (1, 1))
    run = tmp_path / "run"
    run.mkdir()
    (run / "maps").symlink_to(elsewhere.parent, target_is_directory=True)
    with atomic_write(run / "x") as stream:
        hold(run).close()
        stream.write(b"whole")
    assert (run / "x").read_bytes() == b"whole"
    assert elsewhere.exists()


@pytest.mark.parametrize("name", ["x" * 250 + ".png", "写" * 80 + ".png"])
def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path, name):
    with atomic_write(tmp_path / name) as stream:
        stream.write(b"whole")
    assert (tmp_path / name).read_bytes() == b"whole"


def test_a_longer_name_is_the_fault_of_its_image_and_a_full_disk_is_not(tmp_path):
    with pytest.raises(StoreError, match="shorter name") as caught, atomic_write(tmp_path / ("x" * 256)) as stream:
        stream.write(b"whole")
    assert not isinstance(caught.value, WriteError)
    with pytest.raises(WriteError, match="disk is full"), atomic_write(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_two_threads_that_write_one_file_leave_one_of_the_two(tmp_path):
    with atomic_write(tmp_path / "x") as first:
        first.write(b"first")
        with atomic_write(tmp_path / "x") as second:
            second.write(b"second and longer")
        assert (tmp_path / "x").read_bytes() == b"second and longer"
    assert (tmp_path / "x").read_bytes() == b"first"


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be opened there")
def test_a_durable_write_syncs_the_file_before_it_has_its_name_and_the_folder_after(tmp_path, monkeypatch):
    seen = []

    def fsync(handle):
        seen.append((stat.S_ISDIR(os.fstat(handle).st_mode), (tmp_path / "x").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(tmp_path / "x", durable=True) as stream:
        stream.write(b"whole")
    assert seen == [(False, False), (True, True)]
