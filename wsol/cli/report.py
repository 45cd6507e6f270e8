"""`wsol report`: one HTML page from one or more run folders, side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.engine.report_runs import ReportConfig, report_runs

_HINT = "wsol report RUN [RUN...] [--out FILE]: the folders may stand first, without --runs.\n\n"


def run(argv: Sequence[str]) -> int:
    """Parse the folders and flags, write the page, and say where it lies; return the exit status."""
    words = list(argv)
    folders = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    if folders:
        words = [*words[folders:], "--runs", *words[:folders]]
    if "-h" in words or "--help" in words:
        sys.stdout.write(_HINT)
    path = report_runs(parse(ReportConfig, words, prog="wsol report"))
    sys.stdout.write(f"report: {path.resolve()}\n")
    return 0
