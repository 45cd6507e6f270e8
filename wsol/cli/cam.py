"""`wsol cam`: make score maps of a split (resumable, sharded); clip-prompts chooses the texts of a CLIP model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wsol.cams import CAMS
from wsol.cli.parse import parse
from wsol.data import option_type
from wsol.engine.options import CamConfig

_DATA = ("data", "data_options", option_type)


def run(argv: Sequence[str]) -> int:
    """Parse the flags, and write the maps or choose the texts; return the exit status."""
    if argv and argv[0] == "clip-prompts":
        return _clip_prompts(argv[1:])
    if "-h" in argv or "--help" in argv:
        sys.stdout.write("wsol cam clip-prompts chooses the texts of a CLIP model and has a --help of its own.\n\n")
    config = parse(CamConfig, argv, prog="wsol cam", choices=[("method", "options", CAMS.get), _DATA])
    from wsol.engine.make_maps import make_maps  # torch takes seconds: not for --help

    outcome = make_maps(config)
    if not config.quiet:
        sys.stderr.write(f"to look at them: wsol report {config.out}\n")
    return outcome.status


def _clip_prompts(argv: Sequence[str]) -> int:
    from wsol.engine.clip_prompts import ClipPromptsConfig, choose_prompts

    config = parse(ClipPromptsConfig, argv, prog="wsol cam clip-prompts", choices=[_DATA])
    choice = choose_prompts(config)
    lines = [f"sharpness over {choice.images} images of several classes (lower is better)"]
    lines += [f"  {value:10.4f}  {template}" for template, value in choice.sharpness.items()]
    lines += [f"{config.out}: {choice.prompts.templates[0]!r}", "chosen by the paper's description, not by its code"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
