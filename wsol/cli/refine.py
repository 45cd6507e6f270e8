"""`wsol refine`: turn score maps into pseudo-masks; --sweep, train-affinity and instances belong to it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.engine.refine_options import RefineConfig
from wsol.refine import option_type

_ACTIONS = {"train-affinity": "wsol.cli.train_affinity", "instances": "wsol.cli.instances"}
_METHOD = ("method", "options", option_type)
_HINT = """\
-c recipe.yaml takes the options that a sweep chose. More in this verb, each with --help of its own:
  wsol refine --sweep         choose the background score and a refiner's options on one split
  wsol refine train-affinity  learn the affinities of --method psa and irn
  wsol refine instances       objects with masks, by an IRNet

"""


def run(argv: Sequence[str]) -> int:
    """Parse the flags and write the masks; return the exit status."""
    if argv and argv[0] in _ACTIONS:
        return int(importlib.import_module(_ACTIONS[argv[0]]).run(argv[1:]))
    if "--sweep" in argv:
        from wsol.engine.sweep_masks import SweepConfig, sweep_masks

        rest = [word for word in argv if word != "--sweep"]
        return sweep_masks(parse(SweepConfig, rest, prog="wsol refine --sweep", choices=[_METHOD])).status
    if "-h" in argv or "--help" in argv:
        sys.stdout.write(_HINT)
    from wsol.engine.make_masks import make_masks

    config = parse(RefineConfig, argv, prog="wsol refine", choices=[_METHOD])
    outcome = make_masks(config)
    if not config.quiet:
        sys.stderr.write(f"to look at them: wsol report {config.out}\n")
    return outcome.status
