"""What a long job did: counts, the images that failed, and the log file of its run folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_log = logging.getLogger("wsol")
_SHOWN = 20


@dataclass
class Outcome:
    """Counts of one job.

    Attributes:
        done: Images whose file this job wrote.
        skipped: Images whose file was there already.
        failures: Image id to the reason.
    """

    done: int = 0
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 1 when an image failed, else 0."""
        return 1 if self.failures else 0

    def facts(self) -> dict[str, int]:
        """Return the counts for `run.json`."""
        return {"done": self.done, "skipped": self.skipped, "failed": len(self.failures)}


def say_failures(outcome: Outcome) -> None:
    """Log one line of counts and a table of the images that failed."""
    _log.info("%d written, %d there already, %d failed", outcome.done, outcome.skipped, len(outcome.failures))
    for at, (image_id, reason) in enumerate(outcome.failures.items()):
        if at == _SHOWN:
            _log.info("  ... and %d more: see the manifest", len(outcome.failures) - _SHOWN)
            break
        _log.info("  %s  %s", image_id, reason)


class _LogFile(logging.FileHandler):
    """Loses lines that a full or read-only disk does not take: the writers of results report that in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name is logging's
        return


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Also append the package's log lines to a file while the block runs."""
    handler = _LogFile(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _log.addHandler(handler)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        with suppress(OSError):
            handler.close()
