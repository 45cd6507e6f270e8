"""Progress of long work: a bar with an ETA on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_log = logging.getLogger("wsol")
_LOG_SHARE, _LOG_SECONDS = 0.05, 30.0


class Tracker:
    """Counts finished items; a context manager, made by `track`."""

    def __init__(self, total: int, label: str, *, bar: bool, quiet: bool) -> None:
        self.total, self.label, self.count = total, label, 0
        self._quiet, self._bar = quiet, None
        self._started = self._said = time.monotonic()
        self._said_count = 0
        if bar and not quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(label, total=total, note="")

    def __enter__(self) -> Tracker:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if kind is None and not self._quiet and self.count:
            seconds = time.monotonic() - self._started
            _log.info(
                "%s: %d done in %.1f s (%.1f ms each)", self.label, self.count, seconds, 1e3 * seconds / self.count
            )

    def advance(self, n: int = 1, **fields: Any) -> None:
        """Count `n` more items.

        Args:
            n: Items finished since the last call.
            **fields: Shown behind the bar, for example loss=0.31.
        """
        self.count += n
        note = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in fields.items()
        )
        if self._bar:
            self._bar.update(self._task, advance=n, note=note)
        elif not self._quiet:
            self._say(note)

    def _say(self, note: str) -> None:
        now = time.monotonic()
        enough = self.count - self._said_count >= _LOG_SHARE * self.total and now - self._said >= 1.0
        if not enough and now - self._said < _LOG_SECONDS:
            return
        eta = (now - self._started) / self.count * (self.total - self.count)
        _log.info("%s: %d of %d, ETA %.0f s  %s", self.label, self.count, self.total, eta, note)
        self._said, self._said_count = now, self.count


def track(total: int, label: str, *, quiet: bool = False) -> Tracker:
    """Return a progress tracker.

    Args:
        total: Number of items.
        label: What is being done, for example "maps".
        quiet: Show nothing.

    Returns:
        A context manager with `.advance(n=1, **fields)`: a bar with an ETA where standard error is a terminal,
        else a line of the log at most each 5 % and at least each 30 s.
    """
    return Tracker(total, label, bar=sys.stderr.isatty(), quiet=quiet)
