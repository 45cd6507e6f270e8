"""Every file under configs/ is a valid recipe of the verb that its first line names."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsol.config import coerce, load_yaml
from wsol.engine.options import CamConfig
from wsol.engine.segment_options import SegmentPredictConfig, SegmentTrainConfig
from wsol.engine.single_stage_options import SingleStageConfig

CONFIGS = Path(__file__).parents[1] / "configs"
VERBS = {
    "cam": CamConfig,
    "segment train": SegmentTrainConfig,
    "segment single-stage": SingleStageConfig,
    "segment predict": SegmentPredictConfig,
}


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_it_loads(path):
    command = path.read_text(encoding="utf-8").partition("\n")[0]
    verb, flag, rest = command.removeprefix("# wsol ").partition(" -c ")
    assert path.parent.name == "data" or rest.startswith(f"configs/recipes/{path.name} ")
    values = coerce(VERBS[verb] if flag else CamConfig, load_yaml(path), where=path)
    assert values["data"]
