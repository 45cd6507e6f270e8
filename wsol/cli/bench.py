"""`wsol bench`: compare map methods (cams), refiners (refine), mix strategies (mix); find the slowest stage (io)."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wsol.cli.parse import parse
from wsol.data import option_type
from wsol.engine.bench_options import BenchCamsConfig, BenchRefineConfig
from wsol.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from wsol.engine.bench_measure import Row

_USAGE = """usage: wsol bench cams|refine|mix|io [OPTIONS]   (wsol bench cams --help lists the options)

  cams    map methods x models on one data set: quality, ms an image, peak memory
  refine  refiners on the same maps: mIoU, boundary F-score, ms an image, peak memory
  mix     mix strategies under one budget, several seeds: accuracy, localization, ms a step, peak memory
  io      stages of cam and refine: ms an image of reading, model, refinement, writing; which one bounds the job
"""


def run(argv: Sequence[str]) -> int:
    """Parse the flags, compare, and show a table; exit status 1 when a row has no numbers or an image failed."""
    action, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if action in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0
    if action == "mix":
        from wsol.cli import bench_mix

        return bench_mix.run(rest)
    if action == "io":
        from wsol.cli import bench_io

        return bench_io.run(rest)
    config: Any
    if action == "cams":
        config = parse(BenchCamsConfig, rest, prog="wsol bench cams", choices=[("data", "data_options", option_type)])
        from wsol.engine.bench_cams import bench_cams  # torch takes seconds: not for --help

        rows = bench_cams(config)
    elif action == "refine":
        config = parse(BenchRefineConfig, rest, prog="wsol bench refine")
        from wsol.engine.bench_refine import bench_refine  # as above

        rows = bench_refine(config)
    else:
        raise ConfigError(f"unknown action '{action}'", hint=did_you_mean(action, ("cams", "refine", "mix", "io")))
    if config.json:
        sys.stdout.write((config.out / "bench.json").read_text(encoding="utf-8"))
    else:
        _show(rows)
        sys.stdout.write(f"written to {config.out / 'bench.json'}\n")
    return 1 if any(row.error or row.failed for row in rows) else 0


def _show(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    sources = dict.fromkeys(row.threshold_source for row in rows if row.metrics)
    table = Table(
        title=f"split '{rows[0].split}', n = {max(row.n for row in rows)}",
        caption=f"threshold: {'; '.join(sources)}" if sources else None,
    )
    for name in rows[0].names:
        table.add_column(name)
    for name in (*metrics, "background", "ms/image", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        numbers = [_number(row.metrics.get(name), 1) for name in metrics]
        numbers += [_number(row.thresholds.get("mIoU"), 2), _number(row.ms, 1), _number(row.peak_mb, 0)]
        table.add_row(*row.names.values(), *numbers)
    Console().print(table)
    for row in rows:
        reason = row.error or (f"{row.failed} images failed, see its manifest" if row.failed else "")
        if reason:
            sys.stderr.write(f"{', '.join(row.names.values())}: {reason}\n")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
