"""Faults of places: a full disk, a file system that turns read-only, a clock that jumps, two jobs on a folder.

Each scene returns what went wrong, or an empty text.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from _fault_ray import ray_cluster
from _faults import Child, Job, calm, results, start


def full_disk(job: Job, place: Path) -> str:
    """Run on a disk of 64 KiB, then make room and run again."""
    wanted = calm(job, place)
    disk = place / "disk"
    disk.mkdir()
    command = job.commands(disk / "run")[0]
    if _mount(disk, "size=64k"):
        try:
            said = _refused(start(command, place), "cannot write")
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            return said or _completes(job, disk / "run", place, wanted)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # no root: no file may be larger than 600 bytes
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        child = start(command, place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return _refused(child, "cannot write") or _completes(job, disk / "run", place, wanted)


def read_only(job: Job, place: Path) -> str:
    """Let the folder of the results turn read-only while the job runs, and start one there."""
    wanted = calm(job, place)
    run = place / "run"
    child = start(job.commands(run)[0], place)
    while not list(run.glob("maps/*/*.npz")) and child.poll() is None:
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGSTOP)
    mounted = _mount(run / "maps", "ro")
    if not mounted:
        (run / "maps" / "cat").chmod(0o500)
    os.kill(child.pid, signal.SIGCONT)
    said = _refused(child, "cannot write") or _refused(start(job.commands(run)[0], place), "cannot write")
    if mounted:
        subprocess.run(["umount", "-l", str(run / "maps")], check=True)
    else:
        (run / "maps" / "cat").chmod(0o700)
    return said or _completes(job, run, place, wanted)


def clock_jumps(job: Job, place: Path) -> str:
    """Kill and restart a job whose clock jumps, and shuffle the times of its files in between."""
    wanted, rng = calm(job, place), random.Random(0)
    for _ in range(5):
        child = start(job.commands(place / "run")[0], place, jump=rng.uniform(-1e9, 1e6))
        time.sleep(rng.uniform(0.1, 0.3))
        child.kill("driver", rng)
        child.wait()
        for path in place.glob("run/**/*"):
            os.utime(path, (when := rng.uniform(0, 4e9), when))
    return _completes(job, place / "run", place, wanted)


def two_jobs(job: Job, place: Path) -> str:
    """Start a second job on a folder in use, kill the first, and start a third at once."""
    wanted, run = calm(job, place), place / "run"
    (command,) = job.commands(run)
    first = start(command, place)
    while not (run / "dataset.yaml").is_file() and first.poll() is None:
        time.sleep(0.001)
    os.kill(first.pid, signal.SIGSTOP)
    said = _refused(start(command, place), "another process") or _refused(
        start([*command, "--overwrite"], place), "another process"
    )
    first.kill("driver", random.Random(0))
    first.wait()
    return said or _completes(job, run, place, wanted)


SCENES: dict[str, Callable[[Job, Path], str]] = {
    "full disk": full_disk,
    "read-only": read_only,
    "clock jumps": clock_jumps,
    "two jobs": two_jobs,
    "ray cluster": ray_cluster,
}


def _refused(child: Child, words: str) -> str:
    status, text = child.wait(), child.log.read_text()
    child.sweep()
    fine = status == 2 and words in text and "Traceback" not in text
    return "" if fine else f"expected '{words}', got status {status}: {text[-400:]}"


def _completes(job: Job, run: Path, place: Path, wanted: dict[str, bytes]) -> str:
    child = start(job.commands(run)[0], place)
    if child.wait() != 0:
        return f"the restart ended with {child.status}: {child.log.read_text()[-400:]}"
    return "" if results(job.verb, run) == wanted else "other files than without the fault"


def _mount(folder: Path, options: str) -> bool:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=False, capture_output=True
    )
    return os.geteuid() == 0 and done.returncode == 0
