"""`wsol cam`: make score maps of a split (resumable, sharded)."""

from __future__ import annotations

from collections.abc import Sequence

from wsol.cams import CAMS
from wsol.cli.parse import parse
from wsol.data import option_type
from wsol.engine.make_maps import make_maps
from wsol.engine.options import CamConfig


def run(argv: Sequence[str]) -> int:
    """Parse the flags and write the maps; return the exit status."""
    config = parse(
        CamConfig,
        argv,
        prog="wsol cam",
        choices=[("method", "options", CAMS.get), ("data", "data_options", option_type)],
    )
    return make_maps(config).status
