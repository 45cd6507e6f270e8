"""What the fault suite runs and how it compares: tiny jobs, children that can be killed, and the state of a folder.

A child is forked from a process that has imported everything, so that a kill costs no import of torch. It runs the
verb as the command line does, in a session of its own, and notes every photo that it opens.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from wsol.errors import WsolError
from wsol.store.manifest import read_rows
from wsol.store.maps import map_path, read_maps
from wsol.store.masks import mask_path, read_labels

PHOTOS, BATCH = 24, 2
_RESULTS = {
    "cam": ("maps/**/*.npz",),
    "refine": ("masks/**/*.png",),
    "train": ("model.safetensors", "model.json", "card.md", "curves.svg"),
}


@dataclass(frozen=True)
class Job:
    """One verb with its options.

    Attributes:
        name: Row of the table.
        argv: Words after `wsol`, without --out.
        shards: Processes that share the folder.
        flight: Photos that may be opened once more after each kill.
        fresh: Start a new Python for each child instead of forking.
        modes: What is killed: the "driver", its whole "group", or a "worker".
    """

    name: str
    argv: tuple[str, ...]
    flight: int
    shards: int = 1
    fresh: bool = False
    modes: tuple[str, ...] = ("driver", "group")

    @property
    def verb(self) -> str:
        """The word after wsol."""
        return self.argv[0]

    def commands(self, out: Path) -> list[list[str]]:
        """Return one command for each process."""
        base = [*self.argv, "--device", "cpu"] if self.verb != "refine" else [*self.argv]
        base += ["--quiet", "--out", str(out)]
        return [[*base, "--shard", f"{at}/{self.shards}"] if self.shards > 1 else base for at in range(self.shards)]


@dataclass
class Child:
    """A running command.

    Attributes:
        pid: Its process, which leads a session.
        log: What it wrote to its standard streams.
        opened: The photos that it opened, one a line.
        status: Exit status, negative for a signal, None while it runs.
    """

    pid: int
    log: Path
    opened: Path
    status: int | None = field(default=None)

    def poll(self) -> int | None:
        """Return the status, or None while the child runs."""
        if self.status is None:
            pid, raw = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(raw)
        return self.status

    def wait(self, seconds: float = 60.0) -> int | None:
        """Wait for the end; None where it does not come in time."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        return self.status

    def kill(self, mode: str, rng: random.Random) -> None:
        """Send SIGKILL to the child, to its whole group, or to one of its workers where it has any."""
        workers = _workers(self.pid) if mode == "worker" else []
        with contextlib.suppress(ProcessLookupError):
            if workers:
                os.kill(rng.choice(workers), signal.SIGKILL)
            elif mode == "group":
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)

    def sweep(self) -> None:
        """Kill what is left of the group, orphans among it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def start(command: Sequence[str], place: Path, *, fresh: bool = False, jump: float = 0.0) -> Child:
    """Start `wsol` with these words.

    Args:
        command: Words.
        place: Folder for the logs of the child.
        fresh: Start a new Python.
        jump: Seconds by which the child's wall clock is wrong.
    """
    name = f"{time.monotonic_ns()}"
    log, opened = place / f"{name}.log", place / f"{name}.opened"
    log.touch()
    opened.touch()
    if fresh:
        with log.open("wb") as stream:
            words = [sys.executable, "-m", "wsol", *command]
            process = subprocess.Popen(words, stdout=stream, stderr=stream, start_new_session=True)
        process.returncode = 0  # waited for here, not by subprocess
        return Child(process.pid, log, opened)
    pid = os.fork()
    if pid:
        return Child(pid, log, opened)
    os.setsid()
    stream = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    note = os.open(opened, os.O_WRONLY | os.O_APPEND)

    def notice(event: str, details: tuple[object, ...]) -> None:
        if event == "open" and "/photos/" in (path := str(details[0])):
            os.write(note, f"{path}\n".encode())

    sys.addaudithook(notice)
    if jump:
        clock = time.time
        time.time = lambda: clock() + jump
    status = 3
    try:
        from wsol.cli.main import main

        status = main(list(command))
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def make_inputs(place: Path) -> list[Job]:
    """Write photos, a model and score maps, and return the jobs on them."""
    from wsol.models.classifier import load_classifier, save_classifier

    rng = np.random.default_rng(0)
    for at in range(PHOTOS):
        folder = place / "photos" / ("cat", "dog")[at % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (37, 53, 3), np.uint8)).save(folder / f"{at:02d}.png")
    save_classifier(
        load_classifier("test_resnet", num_classes=2, img_size=64),
        place / "model",
        classes=("cat", "dog"),
        multi_label=False,
    )
    data = ("--data", "folder", "--root", str(place / "photos"))
    cam = ("cam", *data, "--checkpoint", str(place / "model"), "--img-size", "64", "--batch-size", str(BATCH))
    maps = Job("maps", (*cam, "--workers", "0"), flight=0)
    (command,) = maps.commands(place / "scores")
    if start(command, place).wait() != 0:
        raise WsolError("the maps to refine could not be made", where=place)
    refine = ("refine", "--maps", str(place / "scores"), "--method", "densecrf")
    train = (
        "train",
        *data,
        "--model",
        "test_resnet",
        "--epochs",
        "4",
        "--img-size",
        "64",
        "--batch-size",
        "4",
        "--resume",
    )
    # A batch is computed while the one before is written; each reading process is two batches ahead.
    ahead = (2 + 2 * 2 + 1) * BATCH
    return [
        Job("cam", (*cam, "--workers", "0"), flight=2 * BATCH),
        Job("cam, 2 workers", (*cam, "--workers", "2"), flight=ahead, modes=("driver", "group", "worker")),
        Job("cam, 2 shards", (*cam, "--workers", "0"), flight=2 * BATCH, shards=2),
        Job("refine", (*refine, "--workers", "0"), flight=1),
        Job("refine, 2 shards", (*refine, "--workers", "0"), flight=1, shards=2),
        Job("train", (*train, "--workers", "0"), flight=PHOTOS),
        Job("train, 2 workers", (*train, "--workers", "2"), flight=PHOTOS + 4 * 7, modes=("driver", "group", "worker")),
        Job(
            "cam, new process", (*cam, "--workers", "2"), flight=ahead, fresh=True, modes=("driver", "group", "worker")
        ),
        Job(
            "refine, 2 processes",
            (*refine, "--workers", "2"),
            flight=0,
            fresh=True,
            modes=("driver", "group", "worker"),
        ),
    ]


def results(verb: str, run: Path) -> dict[str, bytes]:
    """Return the files of a run that must be the same, by name."""
    paths = (path for pattern in _RESULTS[verb] for path in run.glob(pattern) if not path.name.startswith(".tmp-"))
    found = {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}
    if verb == "train":
        rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        found["history.jsonl"] = json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows]).encode()
        found["card.md"] = b""  # it names times and folders
    return found


def torn(verb: str, run: Path) -> int:
    """Return how many result files do not read whole."""
    bad = 0
    for name in results(verb, run) if verb != "train" else ():
        image_id = name.partition("/")[2].rpartition(".")[0]
        try:
            read_maps(run, image_id) if verb == "cam" else read_labels(run / name)
        except WsolError:
            bad += 1
    return bad


def stray(run: Path) -> int:
    """Return how many temporary files lie in a run folder."""
    return sum(1 for _ in run.rglob(".tmp-*"))


def calm(job: Job, place: Path) -> dict[str, bytes]:
    """Run a job that nobody disturbs and return its files."""
    place.mkdir(parents=True)
    start(job.commands(place / "calm")[0], place).wait()
    return results(job.verb, place / "calm")


def finished_files(verb: str, run: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and time of every file that a manifest calls done."""
    place = {"cam": map_path, "refine": mask_path}.get(verb)
    if place is None or not run.is_dir():
        return {}
    paths = (place(run, image_id) for image_id, row in read_rows(run).items() if row.get("ok"))
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths if path.is_file()}


def _workers(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"resource_tracker" not in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found
