"""`wsol segment`: train a network on masks, predict with one (train, self-train, single-stage, predict, ...)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.data import option_type
from wsol.engine.segment_options import (
    SegmentExportConfig,
    SegmentPredictConfig,
    SegmentTrainConfig,
    SelfTrainConfig,
)
from wsol.engine.single_stage_options import SingleStageConfig
from wsol.errors import ConfigError, did_you_mean

_CHOICES = [("data", "data_options", option_type)]
_ACTIONS = ("train", "self-train", "single-stage", "predict", "eval", "export")
_USAGE = """usage: wsol segment ACTION [OPTIONS]   (wsol segment train --help lists the options)

  train         a segmentation network on pseudo-masks or true masks
  self-train    the same in stages, on given masks or on its own (GIST, RIST)
  single-stage  classifier and segmentation network at once, on image-level labels (GETAM)
  predict       masks of a split, of a folder or of listed files
  eval          mIoU of predicted masks: the same as wsol eval seg
  export        the network as an ONNX file
"""


def run(argv: Sequence[str]) -> int:
    """Parse the flags and do the action; return the exit status."""
    action, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if action in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0
    if action == "train":
        training = parse(SegmentTrainConfig, rest, prog="wsol segment train", choices=_CHOICES)
        from wsol.engine.segment import segment_train  # torch takes seconds: not for --help

        return segment_train(training).status
    if action == "self-train":
        stages = parse(SelfTrainConfig, rest, prog="wsol segment self-train", choices=_CHOICES)
        from wsol.engine.self_train import self_train  # as above

        return self_train(stages).status
    if action == "single-stage":
        both = parse(SingleStageConfig, rest, prog="wsol segment single-stage", choices=_CHOICES)
        from wsol.engine.single_stage import segment_single_stage  # as above

        return segment_single_stage(both).status
    if action == "predict":
        prediction = parse(SegmentPredictConfig, rest, prog="wsol segment predict", choices=_CHOICES)
        from wsol.engine.segment_predict import segment_predict  # as above

        return segment_predict(prediction).status
    if action == "eval":
        from wsol.cli import eval as measure

        return measure.run(["seg", *rest])
    if action == "export":
        export = parse(SegmentExportConfig, rest, prog="wsol segment export")
        from wsol.engine.export_onnx import export_onnx  # as above

        export_onnx(export)
        return 0
    raise ConfigError(f"unknown action '{action}'", hint=did_you_mean(action, _ACTIONS))
