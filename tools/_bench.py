"""What the benchmarks share: cases that take turns with a peer, peak memory, the machine, and the JSON file.

A case builds two calls, ours and the peer's. Both run once to warm up, and these outputs are compared (`equal`); then
they take turns, and the medians of the wall times are kept. Peaks come from a second run of the same script in a
process whose allocator gives freed blocks back at once (which would slow the timed run down): how far a second call
raises the resident memory (Linux, else null).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsol.store.runs import versions

Call = Callable[[], Any]
_QUICK_ROUNDS = 2
# Threads of one side's libraries (OpenBLAS) wait for work in a busy loop for a while, and would slow the other side.
_PAUSE = 0.1
# glibc: every larger block is a mapping of its own, so freed memory leaves the process.
_RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: What is compared, in a line.
        build: Makes (ours, peer), untimed; what must be closed goes onto the stack. Both return arrays or nested
            sequences of arrays.
        part: Part of the benchmark, for `--part`.
        rounds: Timed calls of each side; `--quick` takes at most 2.
        tolerance: Largest absolute difference between the outputs that counts as equal.
        quick: Whether `--quick` runs it.
        memory: Whether to measure peaks.
        target: Ratio that is aimed at, or None.
    """

    name: str
    build: Callable[[ExitStack], tuple[Call, Call]]
    part: str = ""
    rounds: int = 9
    tolerance: float = 1e-5
    quick: bool = False
    memory: bool = True
    target: float | None = None


def main(doc: str, cases: Sequence[Case], *, threads: int, setup: Callable[[int], None]) -> int:
    """Run a benchmark from its command line.

    Args:
        doc: Docstring of the script.
        cases: All of its cases.
        threads: Default of `--threads`.
        setup: Takes the number of threads before anything runs.

    Returns:
        Exit status: 1 when two outputs differ.
    """
    parts = sorted({case.part for case in cases})
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few cases and rounds: under a minute")
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--threads", type=int, default=threads, help=f"threads of each side (default {threads})")
    parser.add_argument("--only", default="", help="only the cases whose name holds this text")
    parser.add_argument("--peaks", type=Path, help=argparse.SUPPRESS)
    if len(parts) > 1:
        parser.add_argument("--part", choices=parts, help="only this part")
    args = parser.parse_args()
    setup(args.threads)
    chosen = [
        case
        for case in cases
        if (case.quick or not args.quick)
        and args.only in case.name
        and getattr(args, "part", None) in (None, case.part)
    ]
    if args.peaks:
        args.peaks.write_text(json.dumps({case.name: _peaks(case) for case in chosen if case.memory}))
        return 0
    rows = []
    for case in chosen:
        rows.append(_timed(case, rounds=min(case.rounds, _QUICK_ROUNDS) if args.quick else case.rounds))
        _say(rows[-1])
    found = _peaks_elsewhere() if any(case.memory for case in chosen) else {}
    rows = [{**row, **found.get(row["case"], {"ours_peak_mb": None, "peer_peak_mb": None})} for row in rows]
    for row in rows:
        if row["ours_peak_mb"] is not None:
            ours, peer = row["ours_peak_mb"], row["peer_peak_mb"]
            sys.stdout.write(f"{row['case']:<62} ours {ours:8.1f} MB   peer {peer:8.1f} MB\n")
    if args.json:
        result = {"machine": machine(threads=args.threads), "cases": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["equal"] for row in rows) else 1


def machine(*, threads: int) -> dict[str, Any]:
    """Return processor, cores, system, threads and package versions."""
    facts = {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform(), "threads": threads}
    return {**facts, **versions()}


def largest_difference(first: Any, second: Any) -> float:
    """Return the largest absolute difference between two equally nested sequences of arrays; NaN where only one is."""
    if isinstance(first, list | tuple):  # the maximum of NumPy, for that of Python forgets a NaN
        return float(np.max([0.0, *(largest_difference(a, b) for a, b in zip(first, second, strict=True))]))
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape:
        return float("inf")
    alike = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):  # infinity less infinity
        return float(np.where(alike, 0.0, np.abs(a - b)).max()) if a.size else 0.0


def _timed(case: Case, *, rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        ours, peer = case.build(stack)
        difference = largest_difference(ours(), peer())
        times: dict[Call, list[float]] = {peer: [], ours: []}
        for _ in range(rounds):
            for call, spent in times.items():
                time.sleep(_PAUSE)
                start = time.perf_counter()
                call()
                spent.append(1000 * (time.perf_counter() - start))
        ours_ms, peer_ms = statistics.median(times[ours]), statistics.median(times[peer])
    gc.collect()
    return {
        "case": case.name,
        "ours_ms": round(ours_ms, 2),
        "peer_ms": round(peer_ms, 2),
        "ratio": round(peer_ms / ours_ms, 3),
        "target": case.target,
        "rounds": rounds,
        "equal": difference <= case.tolerance,
        "max_difference": difference,
        "tolerance": case.tolerance,
    }


def _say(row: dict[str, Any]) -> None:
    target = "" if row["target"] is None else f" (target {row['target']:g})"
    verdict = "equal" if row["equal"] else f"DIFFERENT by {row['max_difference']:.2g}"
    sys.stdout.write(
        f"{row['case']:<62} ours {row['ours_ms']:9.1f} ms   peer {row['peer_ms']:9.1f} ms   "
        f"ratio {row['ratio']:6.2f}{target}   {verdict}\n"
    )
    sys.stdout.flush()


def _peaks_elsewhere() -> dict[str, dict[str, float | None]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peaks.json"
        command = [sys.executable, *sys.argv, "--peaks", str(path)]
        subprocess.run(command, check=True, env={**os.environ, **_RETURN_AT_ONCE})
        return dict(json.loads(path.read_text(encoding="utf-8")))


def _peaks(case: Case) -> dict[str, float | None]:
    with ExitStack() as stack:
        ours, peer = case.build(stack)
        found = {"ours_peak_mb": _peak_mb(ours), "peer_peak_mb": _peak_mb(peer)}
    gc.collect()
    return found


def _peak_mb(call: Call) -> float | None:
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        call()
        gc.collect()
        before = _field(status, "VmRSS")
        reset.write_text("5")  # the high-water mark starts again from here
        call()
        return round((_field(status, "VmHWM") - before) / 1024, 1)
    except OSError:
        return None


def _field(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))


def _processor() -> str:
    try:
        lines: Iterable[str] = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
