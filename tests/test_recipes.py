"""Every file under configs/ is a valid recipe of its verb."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsol.config import coerce, load_yaml
from wsol.engine.options import CamConfig

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_it_loads(path):
    values = coerce(CamConfig, load_yaml(path), where=path)
    assert values["data"]
