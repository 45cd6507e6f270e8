"""A short run of the fault suite; `make faults` runs the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsol.errors import StoreError
from wsol.store.lock import hold

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the suite forks")
def test_killed_jobs_end_with_the_same_files(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "faults.py"), "--quick", "--kills", "10"]
    done = subprocess.run([*command, "--json", str(tmp_path / "x.json")], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "x.json").read_text())
    assert sum(row["kills"] for row in report["rows"]) >= 8
    assert not any(report["scenes"].values())


def test_one_writer_a_shard(tmp_path):
    first = hold(tmp_path / "run", shard=(0, 2))
    second = hold(tmp_path / "run", shard=(1, 2))
    for taken in ((0, 2), (1, 2), (0, 1), (2, 3)):
        with pytest.raises(StoreError, match="another process"):
            hold(tmp_path / "run", shard=taken)
    second.close()
    with pytest.raises(StoreError, match="another process"):
        hold(tmp_path / "run", shard=(1, 2), alone=True)
    first.close()
    hold(tmp_path / "run", shard=(0, 1), alone=True).close()


def test_a_forked_reader_does_not_keep_the_lock_of_a_dead_driver(tmp_path):
    text = (
        "import os, pathlib, sys, time\nfrom wsol.store.lock import hold\n"
        f"kept = hold(pathlib.Path({str(tmp_path)!r}))\n"
        "if os.fork() == 0:\n    print('forked', flush=True)\n    time.sleep(20)\n    os._exit(0)\n"
        "time.sleep(20)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert driver.stdout.readline() == b"forked\n"
        with pytest.raises(StoreError, match="another process"):
            hold(tmp_path)
        driver.kill()
        driver.wait()
        hold(tmp_path).close()
    finally:
        os.killpg(driver.pid, 9)
        driver.stdout.close()
