"""The verbs as Python functions: keyword arguments with the names of the flags."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from wsol.config import from_dict


def _verb(name: str, options: str, target: str) -> Callable[..., Any]:
    """Build a keyword-only function from an options class and the function that takes it."""
    module, _, kind_name = options.partition(":")
    kind = getattr(importlib.import_module(module), kind_name)

    def call(**keywords: Any) -> Any:
        home, _, function = target.partition(":")
        return getattr(importlib.import_module(home), function)(from_dict(kind, keywords))

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"{(kind.__doc__ or '').strip()}\n\nTakes the fields of `{module}.{kind_name}` as keywords."
    call.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return call


make_maps = _verb("make_maps", "wsol.engine.options:CamConfig", "wsol.engine.make_maps:make_maps")
make_masks = _verb("make_masks", "wsol.engine.refine_options:RefineConfig", "wsol.engine.make_masks:make_masks")
train = _verb("train", "wsol.engine.train_options:TrainConfig", "wsol.engine.train:train")
segment_train = _verb(
    "segment_train", "wsol.engine.segment_options:SegmentTrainConfig", "wsol.engine.segment:segment_train"
)
segment_predict = _verb(
    "segment_predict", "wsol.engine.segment_options:SegmentPredictConfig", "wsol.engine.segment:segment_predict"
)
demo_image = _verb("demo_image", "wsol.engine.demo_options:ImageDemoConfig", "wsol.engine.demo_image:demo_image")
segment_self_train = _verb(
    "segment_self_train", "wsol.engine.segment_options:SelfTrainConfig", "wsol.engine.self_train:self_train"
)
segment_single_stage = _verb(
    "segment_single_stage",
    "wsol.engine.single_stage_options:SingleStageConfig",
    "wsol.engine.single_stage:segment_single_stage",
)
segment_export = _verb(
    "segment_export", "wsol.engine.segment_options:SegmentExportConfig", "wsol.engine.export_onnx:export_onnx"
)
sweep_masks = _verb("sweep_masks", "wsol.engine.sweep_masks:SweepConfig", "wsol.engine.sweep_masks:sweep_masks")
train_affinity = _verb(
    "train_affinity", "wsol.engine.affinity_options:AffinityConfig", "wsol.engine.train_affinity:train_affinity"
)
make_instances = _verb(
    "make_instances", "wsol.engine.instance_options:InstanceConfig", "wsol.engine.make_instances:make_instances"
)
choose_prompts = _verb(
    "choose_prompts", "wsol.engine.clip_prompts_options:ClipPromptsConfig", "wsol.engine.clip_prompts:choose_prompts"
)
report_runs = _verb("report_runs", "wsol.engine.report_runs:ReportConfig", "wsol.engine.report_runs:report_runs")
