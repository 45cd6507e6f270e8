"""The fault suite: kills at random moments, and disks, clocks, neighbours and clusters that misbehave.

Each job is started, killed with SIGKILL after a random time, and started again until it ends by itself. Then its
folder must hold the same files as that of an undisturbed run, bit for bit; no finished file may have been written
again, and no more photos opened twice than were in flight. `--kills N` shares N kills out among the jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from _fault_scenes import SCENES
from _faults import PHOTOS, Job, finished_files, make_inputs, results, start, stray, torn

_SHARE = {"cam, new process": 0.03, "refine, 2 processes": 0.03, "cam, 2 workers": 0.1, "train, 2 workers": 0.1}


@dataclass
class Row:
    """One line of the table: what happened to a job.

    Attributes:
        job: Its name.
        kills: Processes that were killed while they worked.
        episodes: Folders that were completed.
        lost: Result files missing at the end.
        torn: Files that do not read whole.
        differing: Files of other bytes than without kills, or that no such run has.
        stray: Temporary files that are left.
        rewritten: Finished files that were written again.
        again: Most photos opened a second time for one kill, in the mean of an episode.
        over: Episodes that opened more than what was in flight.
        stuck: Restarts that were refused, ended with a traceback, or hung.
    """

    job: str
    kills: int = 0
    episodes: int = 0
    lost: int = 0
    torn: int = 0
    differing: int = 0
    stray: int = 0
    rewritten: int = 0
    again: float = 0.0
    over: int = 0
    stuck: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        wrong = self.lost, self.torn, self.differing, self.stray, self.rewritten, self.over, self.stuck
        return not any(wrong)


def main() -> int:
    """Run the suite, print its table and return 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="only forked children, and two of the other scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="leave folders and logs here")
    given = parser.parse_args()
    import torch

    import wsol.engine.make_maps
    import wsol.engine.make_masks
    import wsol.engine.train  # noqa: F401 - what the children would import

    torch.set_num_threads(1)
    place = given.keep or Path(tempfile.mkdtemp(prefix="wsol-faults-"))
    place.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    jobs = make_inputs(place)
    if given.quick:
        jobs = [job for job in jobs if job.name in ("cam", "cam, 2 shards", "refine", "train")]
    rest = 1 - sum(_SHARE.get(job.name, 0) for job in jobs)
    plain = sum(job.name not in _SHARE for job in jobs)
    rng, rows = random.Random(given.seed), []
    for job in jobs:
        goal = max(1, round(given.kills * (_SHARE.get(job.name) or rest / plain)))
        rows.append(disturb(job, goal, place, rng))
        sys.stderr.write(f"{time.monotonic() - began:6.0f} s  {rows[-1]}\n")
    scenes = {
        name: scene(jobs[0], place / name)
        for name, scene in SCENES.items()
        if not given.quick or name in ("full disk", "two jobs")
    }
    print(_table(rows))
    for name, complaint in scenes.items():
        print(f"{name:<22} {complaint or 'ok'}")
    if given.json:
        report = {
            "rows": [asdict(row) for row in rows],
            "scenes": scenes,
            "seconds": round(time.monotonic() - began, 1),
        }
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    clean = all(row.clean for row in rows) and not any(scenes.values())
    if clean and given.keep is None:
        shutil.rmtree(place)
    else:
        print(f"folders and logs: {place}")
    return 0 if clean else 1


def disturb(job: Job, goal: int, place: Path, rng: random.Random) -> Row:
    """Complete folders under kills until there were `goal` of them."""
    home = place / job.name.replace(", ", "-").replace(" ", "-")
    home.mkdir()
    for calm in (home / "warm", home / "calm"):  # the first one compiles kernels, the second one is timed
        clock = time.monotonic()
        children = [start(command, home, fresh=job.fresh) for command in job.commands(calm)]
        if any(child.wait(300) != 0 for child in children):
            return Row(job.name, stuck=1)
        length = time.monotonic() - clock
    wanted, row = results(job.verb, calm), Row(job.name)
    usual = sum(_opened(child.opened) for child in children)
    while row.kills < goal and not row.stuck:
        run = home / f"{row.episodes:03d}"
        kills, before, started = row.kills, {}, []
        pending = job.commands(run)
        while pending and not row.stuck:
            live = [(command, start(command, home, fresh=job.fresh)) for command in pending]
            started += [child for _, child in live]
            time.sleep(rng.uniform(0, length) if row.kills < goal else 0)
            _, victim = rng.choice(live)
            mode = rng.choice(job.modes)
            if row.kills < goal and victim.poll() is None:
                victim.kill(mode, rng)
                row.kills += 1
            else:
                victim = None
            pending = []
            for command, child in live:
                status = child.wait(120)
                if status == 0:
                    continue
                pending.append(command)
                # A killed worker ends its driver with one line; all else ends well.
                fine = child is victim and (status == -9 or (mode == "worker" and status == 2))
                row.stuck += not fine or "Traceback" in child.log.read_text()
            now = finished_files(job.verb, run)
            row.rewritten += sum(before[path] != now.get(path) for path in before)
            before = now
        row.episodes += 1
        row.stray += stray(run)
        for child in started:  # only now: orphans of a killed driver must not stand in the way of the next one
            child.sweep()
        opened = sum(_opened(child.opened) for child in started)
        found = results(job.verb, run) if not row.stuck else {}
        row.lost += len(wanted.keys() - found.keys())
        row.differing += sum(found[name] != wanted.get(name) for name in found)
        row.torn += torn(job.verb, run)
        if row.kills > kills and not job.fresh:
            again = (opened - usual) / (row.kills - kills)
            row.again, row.over = max(row.again, round(again, 1)), row.over + (again > job.flight)
        if row.clean:
            shutil.rmtree(run)
    return row


def _opened(path: Path) -> int:
    return len(path.read_text().splitlines())


def _table(rows: list[Row]) -> str:
    names = list(asdict(rows[0]))
    total = Row("all")
    for row in rows:
        for name in names[1:]:
            value = max(total.again, row.again) if name == "again" else getattr(total, name) + getattr(row, name)
            setattr(total, name, value)
    lines = [" ".join([f"{names[0]:<22}", *(f"{name:>9}" for name in names[1:])])]
    lines += [
        " ".join([f"{row.job:<22}", *(f"{getattr(row, name):>9}" for name in names[1:])]) for row in [*rows, total]
    ]
    return "\n".join([*lines, f"({PHOTOS} photos a folder)"])


if __name__ == "__main__":
    raise SystemExit(main())
