"""A folder with all that the pages assume, made once and copied for each page."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

# The modules here that several tests share.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def furnished(tmp_path_factory):
    """What a reader has before the first command."""
    from doc_desk import build

    folder = tmp_path_factory.mktemp("furnished")
    build(folder, Path(__file__).resolve().parents[2])
    return folder


@pytest.fixture
def desk(furnished, tmp_path, monkeypatch):
    """A copy of it as the working folder of a reader without a network."""
    folder = tmp_path / "desk"
    shutil.copytree(furnished, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WSOL_DATA", str(folder / "data"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # features of texts are kept there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder
