"""Options of `wsol data convert`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsol.config import neutral
from wsol.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Files of irn, PSA, CLIP-ES and the WSOL benchmark: read them into a run folder, or write them from one."""

    out: Path
    """With --read the run folder to write; with --write the folder of their files, which must be new or empty."""
    source: Path | None = None
    """With --read the folder of their files; with --write the run folder."""
    read: str | None = None
    """Read the files of this project: clip_es, irn, psa or wsolevaluation."""
    write: str | None = None
    """Write the files of this project."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the project."""
    data: str | None = None
    """Data set; default with --write: the one the run was made from."""
    root: Path | None = None
    """Folder of the data set."""
    split: str | None = None
    """Split; default with --write: the one the run was made from."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the data set."""
    limit: int | None = None
    """Only the first N images."""
    overwrite: bool = neutral(default=False)
    """With --read: replace what an earlier run wrote in the folder."""
    quiet: bool = neutral(default=False)
    """No progress bar."""

    @property
    def project(self) -> str:
        """Name of the project."""
        return str(self.read or self.write)

    def validate(self) -> None:
        """Check what a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        if (self.read is None) == (self.write is None):
            raise ConfigError("give either --read or --write", hint="for example --read irn --options.files cam")
        if self.read is not None and self.data is None:
            raise ConfigError("--read needs the data set of the images", hint="give --data, --root and --split")
