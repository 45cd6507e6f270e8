"""`wsol refine instances`: objects with masks from score maps and a trained IRNet."""

from __future__ import annotations

from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.engine.instance_options import InstanceConfig
from wsol.refine import REFINERS


def run(argv: Sequence[str]) -> int:
    """Parse the flags and write the instances; return the exit status."""
    config = parse(InstanceConfig, argv, prog="wsol refine instances", choices=[("method", "options", REFINERS.get)])
    from wsol.engine.make_instances import make_instances  # torch takes seconds: not for --help

    return make_instances(config).status
