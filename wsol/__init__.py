"""Boxes and masks from image-level labels: weakly-supervised localization and segmentation.

The verbs of the command line are functions here (`wsol.train`, `wsol.make_maps`, `wsol.make_masks`,
`wsol.evaluate_localization`, `wsol.evaluate_segmentation`, `wsol.segment_train`, `wsol.segment_single_stage`,
`wsol.segment_predict`, `wsol.report_runs`, `wsol.demo_image`, ...), and the pieces work one by one
(`wsol.cams.create("gradcam", model)(images, class_ids)`). Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
_VERBS = (
    "train",
    "choose_prompts",
    "make_maps",
    "make_masks",
    "sweep_masks",
    "train_affinity",
    "make_instances",
    "segment_train",
    "segment_self_train",
    "segment_single_stage",
    "segment_predict",
    "segment_export",
    "report_runs",
    "demo_image",
)
_EVALUATE = ("evaluate_localization", "evaluate_segmentation")
_INTEROP = ("to_supervision",)
_ROOMS = ("cams", "data", "eval", "mix", "models", "refine", "report", "schema")
__all__ = [*_VERBS, *_EVALUATE, *_INTEROP, *_ROOMS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        return getattr(importlib.import_module("wsol.api"), name)
    if name in _EVALUATE:
        return getattr(importlib.import_module("wsol.eval"), name)
    if name in _INTEROP:
        return getattr(importlib.import_module("wsol.engine.interop"), name)
    if name in _ROOMS:
        return importlib.import_module(f"wsol.{name}")
    raise AttributeError(f"module 'wsol' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
