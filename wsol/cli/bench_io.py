"""`wsol bench io`: cost an image of every stage of cam and refine, and the stage that bounds the job."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsol import refine
from wsol.cli.cam import method_choices
from wsol.cli.parse import parse
from wsol.data import option_type
from wsol.engine.bench_io_options import BenchIoConfig

if TYPE_CHECKING:
    from wsol.engine.bench_io import Job

_CHOICES = [
    ("data", "data_options", option_type),
    ("refiner", "refiner_options", refine.option_type),
]


def run(argv: Sequence[str]) -> int:
    """Parse the flags, measure, and show a table; return the exit status."""
    config = parse(BenchIoConfig, argv, prog="wsol bench io", choices=[*method_choices(argv), *_CHOICES])
    from wsol.engine.bench_io import bench_io  # torch takes seconds: not for --help

    jobs = bench_io(config)
    if config.json:
        sys.stdout.write((config.out / "bench.json").read_text(encoding="utf-8"))
    else:
        _show(jobs, workers=config.workers)
    return 0


def _show(jobs: Sequence[Job], *, workers: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"ms an image, n = {jobs[0].images}")
    for name in ("job", "stage"):
        table.add_column(name)
    for name in ("one process", f"--workers {workers}"):
        table.add_column(name, justify="right", no_wrap=True)
    for job in jobs:
        for stage, ms in job.stages.items():
            table.add_row(job.name, stage, f"{ms:.2f}", "")
        for lane, ms in job.lanes.items():
            table.add_row(job.name, f"[bold]{lane}", "", f"[bold]{ms:.2f}")
    Console().print(table)
    for job in jobs:
        rate = 1000 / job.ms
        sys.stdout.write(f"{job.name}: bound by {job.bound}, {rate:.0f} images/s, {job.stored / 1024:.1f} KiB each\n")
        sys.stdout.write(f"  to go faster: {job.advice}\n")
