"""`wsol refine`: turn score maps into pseudo-masks."""

from __future__ import annotations

from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.engine.make_masks import make_masks
from wsol.engine.refine_options import RefineConfig
from wsol.refine import REFINERS


def run(argv: Sequence[str]) -> int:
    """Parse the flags and write the masks; return the exit status."""
    config = parse(RefineConfig, argv, prog="wsol refine", choices=[("method", "options", REFINERS.get)])
    return make_masks(config).status
