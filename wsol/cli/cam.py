"""`wsol cam`: make score maps of a split (resumable, sharded); clip-prompts chooses the texts of a CLIP model."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wsol.cams import CAMS
from wsol.cli.parse import Choice, parse
from wsol.data import option_type
from wsol.engine.clip_prompts_options import ClipPromptsConfig
from wsol.engine.options import CamConfig

_DATA: Choice = ("data", "data_options", option_type)


def method_choices(argv: Sequence[str]) -> list[Choice]:
    """Return the choice of a map method: nothing for a --help that names none, for `cam` has no options of its own.

    The class of a method is torch's, and importing that takes seconds.
    """
    named = any(word.partition("=")[0] in ("--method", "-c", "--config") for word in argv)
    return [("method", "options", CAMS.get)] if named or not _wants_help(argv) else []


def _wants_help(argv: Sequence[str]) -> bool:
    """Return whether `-h` or `--help` is among the words."""
    return not {"-h", "--help"}.isdisjoint(argv)


def run(argv: Sequence[str]) -> int:
    """Parse the flags, and write the maps or choose the texts; return the exit status."""
    if argv and argv[0] == "clip-prompts":
        return _clip_prompts(argv[1:])
    if _wants_help(argv):
        sys.stdout.write("wsol cam clip-prompts chooses the texts of a CLIP model and has a --help of its own.\n\n")
    config = parse(CamConfig, argv, prog="wsol cam", choices=[*method_choices(argv), _DATA])
    from wsol.engine.make_maps import make_maps  # torch takes seconds: not for --help

    outcome = make_maps(config)
    if not config.quiet:
        sys.stderr.write(f"to look at them: wsol report {config.out}\n")
    return outcome.status


def _clip_prompts(argv: Sequence[str]) -> int:
    config = parse(ClipPromptsConfig, argv, prog="wsol cam clip-prompts", choices=[_DATA])
    from wsol.engine.clip_prompts import choose_prompts  # as above

    choice = choose_prompts(config)
    lines = [f"sharpness over {choice.images} images of several classes (lower is better)"]
    lines += [f"  {value:10.4f}  {template}" for template, value in choice.sharpness.items()]
    lines += [f"{config.out}: {choice.prompts.templates[0]!r}", "chosen by the paper's description, not by its code"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
