"""What a comparison measures of one row: time, peak memory, and the outcome in numbers or in words."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Cost:
    """What a block cost.

    Attributes:
        seconds: Wall time.
        peak_mb: Largest resident size of the process while the block ran, or the largest amount that torch held on
            the GPU; None where the system cannot tell.
    """

    seconds: float = 0.0
    peak_mb: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a comparison.

    Attributes:
        names: What was compared, by column: model, method.
        metrics: Metric name to value, in percent.
        thresholds: Metric name to the score threshold it was reached at.
        threshold_source: Where the thresholds came from.
        split: Split of the data set.
        n: Images that were mapped or refined.
        failed: Images that failed.
        ms: Milliseconds an image, from reading the file to writing the result, in one process; None on failure.
        peak_mb: See `Cost`.
        error: Why there are no numbers; empty where there are.
    """

    names: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    threshold_source: str = ""
    split: str = ""
    n: int = 0
    failed: int = 0
    ms: float | None = None
    peak_mb: float | None = None
    error: str = ""


@contextmanager
def cost(device: torch.device) -> Iterator[Cost]:
    """Measure a block; the result is complete when the block has ended."""
    spent, start = Cost(), time.perf_counter()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    can_tell = on_gpu or _reset_high_water()
    yield spent
    if on_gpu:
        torch.cuda.synchronize(device)
    spent.seconds = time.perf_counter() - start
    if can_tell:
        spent.peak_mb = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else _high_water_mb()


def as_json(rows: list[Row], **facts: Any) -> dict[str, Any]:
    """Return the rows, and what holds for all of them, as plain values that JSON has."""
    plain = [{**row.names, **{name: getattr(row, name) for name in _PLAIN}} for row in rows]
    return {**facts, "rows": finite(plain)}


def finite(value: Any) -> Any:
    """Return plain values with None for every number that is not finite: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_PLAIN = ("metrics", "thresholds", "threshold_source", "split", "n", "failed", "ms", "peak_mb", "error")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _reset_high_water() -> bool:
    try:
        _RESET.write_text("5")
    except OSError:  # not Linux, or not allowed
        return False
    return True


def _high_water_mb() -> float | None:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return None
