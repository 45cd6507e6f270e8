"""Options of `wsol data export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsol.errors import ConfigError
from wsol.store.formats.base import Objects


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Masks as files of annotation tools and of other training code."""

    masks: str
    """Run folder of wsol refine, refine instances or segment predict, a folder of ID.png files, or gt for the data
    set's own masks."""
    out: Path
    """Folder to write; must be new or empty."""
    format: str = "coco"
    """coco, cvat, fiftyone, labelme, labelstudio, voc or yolo."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the format."""
    objects: Objects = "class"
    """One object a class, one an 8-connected component, or the largest component of each class; instances stay as
    they are."""
    min_area: int = 1
    """Objects of fewer pixels are left out."""
    images: Literal["none", "link", "copy"] = "none"
    """Also put the images where the format expects them."""
    data: str | None = None
    """Data set; default: the one the run was made from."""
    root: Path | None = None
    """Folder of the data set."""
    split: str | None = None
    """Split; default: the one the run was made from."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the data set."""
    limit: int | None = None
    """Only the first N images."""
    quiet: bool = False
    """No progress bar."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        if self.min_area < 1:
            raise ConfigError(f"--min-area must be at least 1, got {self.min_area}")
        if self.masks == "gt" and self.data is None:
            raise ConfigError("--masks gt needs a data set", hint="give --data, --root and --split")
