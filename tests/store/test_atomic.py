"""What killed writers leave is removed by the next job, and nobody else's files are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

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
    return sorted(path.name.rpartition("-")[2] for path in run.rglob(".tmp-*"))


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_kill_9_leaves_a_file_that_the_next_job_removes_beside_a_living_writer(tmp_path):
    run = tmp_path / "run"
    dead, alive = writer(run / "maps" / "a" / "dead.npz"), writer(run / "masks" / "alive.png")
    try:
        dead.kill()
        dead.wait()
        assert temporaries(run) == ["alive.png", "dead.npz"]
        hold(run, shard=(1, 2)).close()
        assert temporaries(run) == ["alive.png"]
        alive.communicate(b"go on\n", timeout=30)
    finally:
        for process in (dead, alive):
            process.kill()
            process.wait()
    assert (run / "masks" / "alive.png").read_bytes() == b"half whole"
    assert not (run / "maps" / "a" / "dead.npz").exists()
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
