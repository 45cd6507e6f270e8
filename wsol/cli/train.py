"""`wsol train`: train a classifier with a mix strategy (resumable)."""

from __future__ import annotations

from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.data import option_type
from wsol.engine.train_options import TrainConfig
from wsol.mix import MIXES


def run(argv: Sequence[str]) -> int:
    """Parse the flags and train; return the exit status."""
    config = parse(
        TrainConfig,
        argv,
        prog="wsol train",
        choices=[("mix", "mix_options", MIXES.get), ("data", "data_options", option_type)],
    )
    from wsol.engine.train import train  # torch takes seconds: not for --help

    return train(config).status
