"""`wsol segment`: train a segmentation network on pseudo-masks, or predict with one (train, predict)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.data import option_type
from wsol.engine.segment_options import SegmentPredictConfig, SegmentTrainConfig
from wsol.errors import ConfigError, did_you_mean

_CHOICES = [("data", "data_options", option_type)]
_USAGE = """usage: wsol segment train|predict [OPTIONS]   (wsol segment train --help lists the options)

  train    a segmentation network on pseudo-masks or true masks
  predict  masks of a split with a trained network
"""


def run(argv: Sequence[str]) -> int:
    """Parse the flags and train or predict; return the exit status."""
    action = argv[0] if argv else "--help"
    if action in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0
    if action == "train":
        training = parse(SegmentTrainConfig, argv[1:], prog="wsol segment train", choices=_CHOICES)
        from wsol.engine.segment import segment_train  # torch takes seconds: not for --help

        return segment_train(training).status
    if action == "predict":
        prediction = parse(SegmentPredictConfig, argv[1:], prog="wsol segment predict", choices=_CHOICES)
        from wsol.engine.segment import segment_predict  # as above

        return segment_predict(prediction).status
    raise ConfigError(f"unknown action '{action}'", hint=did_you_mean(action, ("train", "predict")))
