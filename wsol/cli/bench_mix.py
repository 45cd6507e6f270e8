"""`wsol bench mix`: compare mix strategies under one budget and several seeds (resumable)."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wsol.cli.parse import parse
from wsol.data import option_type
from wsol.engine.bench_mix_options import BenchMixConfig

if TYPE_CHECKING:
    from wsol.engine.bench_mix import MixRow

_FAMILIES = {"other": "", "delete": "cut and delete", "cut": "cut and mix", "mixup": "mix up", "attention": "attention"}
_TITLES = {"map": "mAP", "top1": "top-1", "top5": "top-5", "miou": "seed mIoU", "maxboxaccv2": "MaxBoxAccV2"}


def run(argv: Sequence[str]) -> int:
    """Parse the flags, train, and show a table; exit status 1 when a row has no numbers or an image failed."""
    config = parse(BenchMixConfig, argv, prog="wsol bench mix", choices=[("data", "data_options", option_type)])
    from wsol.engine.bench_mix import bench_mix  # torch takes seconds: not for --help

    rows = bench_mix(config)
    if config.json:
        sys.stdout.write((config.out / "bench.json").read_text(encoding="utf-8"))
    else:
        _show(rows, config)
        sys.stdout.write(f"written to {config.out / 'bench.json'}\n")
    return 1 if any(row.error or row.failed for row in rows) else 0


def _show(rows: Sequence[MixRow], config: BenchMixConfig) -> None:
    from rich.console import Console
    from rich.table import Table

    metrics = list(dict.fromkeys(name for row in rows for name in row.mean))
    seeds = f"{config.seeds} seeds: mean +- standard deviation" if config.seeds > 1 else "1 seed"
    table = Table(title=f"split '{config.val_split}', {config.epochs} epochs, {seeds}")
    for name in ("family", "strategy"):
        table.add_column(name)
    for name in (*(_TITLES.get(metric, metric) for metric in metrics), "ms/step", "x none", "peak MB"):
        table.add_column(name, justify="right", no_wrap=True)
    plain = next((row.step_ms for row in rows if row.strategy == "none"), None)
    before = ""
    for row in rows:
        family, before = "" if row.family == before else _FAMILIES[row.family], row.family
        ratio = row.step_ms / plain if row.step_ms and plain else None
        numbers = [_spread(row, metric) for metric in metrics]
        table.add_row(
            family, row.strategy, *numbers, _number(row.step_ms, 1), _number(ratio, 2), _number(row.peak_mb, 0)
        )
    Console().print(table)
    for row in rows:
        if row.error or row.failed:
            sys.stderr.write(f"{row.strategy}: {row.error or f'{row.failed} images failed, see its log'}\n")


def _spread(row: MixRow, metric: str) -> str:
    if metric not in row.mean:
        return "-"
    spread = row.spread[metric]
    return f"{row.mean[metric]:.1f}" + ("" if math.isnan(spread) else f" +-{spread:.1f}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
