"""Options of `wsol demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsol.config import neutral


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Real photos and a measured run, offline: the whole flow in a few minutes."""

    out: Path = neutral(default=Path("runs/demo"))
    """Folder for the runs and the report."""
    seed: int = 0
    """Seed of every generator."""
    train_images: int = 220
    """Generated training images."""
    val_images: int = 80
    """Generated images to measure on."""
    classifier_epochs: int = 4
    """Passes of each classifier over the training images."""
    segmenter_epochs: int = 3
    """Passes of each segmenter over the training images."""
    device: str = neutral(default="auto")
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    workers: int = neutral(default=2)
    """Processes that read images."""
    overwrite: bool = neutral(default=False)
    """Start again in a folder that holds an earlier demo."""
    quiet: bool = neutral(default=False)
    """No progress."""
