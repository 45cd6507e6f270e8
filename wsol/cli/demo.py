"""`wsol demo`: run the whole flow on what ships with the packages, offline."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.engine.demo_options import DemoConfig


def run(argv: Sequence[str]) -> int:
    """Parse the flags, run the demonstration, and say where its report lies; return the exit status."""
    config = parse(DemoConfig, argv, prog="wsol demo")
    from wsol.engine.demo import demo  # torch takes seconds: not for --help

    path = demo(config)
    sys.stdout.write(f"report: {path.resolve()}\n")
    return 0
