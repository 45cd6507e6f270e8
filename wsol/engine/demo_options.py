"""Options of `wsol demo`, for the whole flow and for own photos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsol.config import neutral


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Real photos and a measured run, offline: the whole flow in a few minutes."""

    out: Path = neutral(default=Path("runs/demo"))
    """Folder for the runs and the report."""
    seed: int = 0
    """Seed of every generator."""
    train_images: int = 180
    """Generated training images."""
    val_images: int = 70
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


@dataclass(frozen=True, kw_only=True)
class PhotoOptions:
    """The model for single photos, and at what size it sees them."""

    model: str | None = None
    """Model name; default: an EfficientNet-Lite0 with ImageNet weights that a package ships."""
    checkpoint: str | None = None
    """Weights: a file, a run folder of wsol train, or pip:PACKAGE."""
    pretrained: bool = False
    """Load timm's pretrained weights from the hub."""
    img_size: int | None = None
    """Side of the network's input in pixels (long side with --resize keep, its limit with native); default: the
    model's own (native: no limit)."""
    resize: Literal["squash", "keep", "native"] = "squash"
    """squash: img_size x img_size; keep: long side img_size, aspect kept up to the network's stride; native: the
    image's own size, rounded up to the stride."""
    device: str = neutral(default="auto")
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""


@dataclass(frozen=True, kw_only=True)
class ImageDemoConfig(PhotoOptions):
    """Score maps over your own photos at once: overlays as PNG and one HTML page."""

    image: tuple[Path, ...]
    """Photos."""
    classes: tuple[str, ...] = ()
    """What to look for, separated by commas: class names of the model, their last words (cat), or class ids; any text
    for a model that reads text (clip:NAME). Default: the five likeliest classes."""
    method: tuple[str, ...] = ("gradcam",)
    """Map methods, separated by spaces or commas; several are laid out side by side."""
    out: Path = neutral(default=Path("runs/demo-image"))
    """Folder for the overlays and index.html."""
