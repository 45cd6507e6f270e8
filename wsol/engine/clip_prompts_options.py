"""Options of `wsol cam clip-prompts`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ClipPromptsConfig:
    """Choose the sentence for a CLIP model: the least sharp over images of several classes (after the paper's text)."""

    out: Path
    """YAML file to write, for wsol cam --prompts."""
    data: str
    """Data set; its images of two or more classes are looked at."""
    root: Path | None = None
    """Folder of the data set; default: $WSOL_DATA and its usual name."""
    split: str | None = None
    """Split; default: the data set's own. Take one for training: labels are used."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the data set."""
    model: str = "clip"
    """clip:NAME or clip:NAME:TAG with open_clip's names; clip for OpenAI's own files."""
    checkpoint: str | None = None
    """Weights: a state dict, or OpenAI's original archive."""
    pretrained: bool = False
    """Load pretrained weights from the hub."""
    prompts: str | None = None
    """Texts of the classes: voc, coco, or a YAML file; default: those of the data set."""
    templates: Path | None = None
    """Text file with one candidate a line, each with "{}"; default: OpenAI's for ImageNet and those of CLIP-ES."""
    limit: int | None = None
    """Only the first N images of several classes."""
    batch_size: int = 32
    """Images a forward pass."""
    workers: int = 2
    """Threads that read images."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    quiet: bool = False
    """No progress."""
