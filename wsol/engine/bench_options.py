"""Options of `wsol bench cams` and `wsol bench refine`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsol.config import neutral
from wsol.errors import ConfigError, StoreError


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What both comparisons share."""

    limit: int | None = None
    """Only the first N images."""
    workers: int = neutral(default=2)
    """Processes for the evaluation; what is timed runs in one process."""
    overwrite: bool = neutral(default=False)
    """Replace an earlier comparison in the same folder."""
    json: bool = neutral(default=False)
    """Print JSON instead of a table."""
    quiet: bool = neutral(default=False)
    """No progress."""


@dataclass(frozen=True, kw_only=True)
class BenchCamsConfig(BenchOptions):
    """Map methods x models on one data set: quality, milliseconds an image, peak memory."""

    data: str
    """Data set: voc, coco, cub, ilsvrc, openimages, folder, synthetic, ... (wsol info lists all)."""
    root: Path | None = None
    """Folder of the data set; default: $WSOL_DATA and its usual name."""
    split: str | None = None
    """Split; default: the data set's own."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the data set."""
    models: tuple[str, ...] = ()
    """Model names, separated by spaces or commas; none where every --checkpoint is a run of wsol train."""
    checkpoint: tuple[str, ...] = ()
    """Weights, one a model in the same order: files, runs of wsol train, pip:PACKAGE."""
    pretrained: bool = False
    """Load timm's pretrained weights from the hub."""
    methods: tuple[str, ...] = ("cam", "gradcam", "layercam")
    """Map methods, separated by spaces or commas."""
    img_size: int | None = None
    """Side of the network's input in pixels (long side with --resize keep, its limit with native); default: the
    model's own (native: no limit)."""
    resize: Literal["squash", "keep", "native"] = "squash"
    """squash: img_size x img_size; keep: long side img_size, aspect kept up to the network's stride; native: the
    image's own size, rounded up to the stride."""
    prompts: str | None = None
    """Texts of CLIP models: voc, coco, or a YAML file; default: those of the data set."""
    normalize: Literal["auto", "relu", "minmax"] = "auto"
    """relu: drop negative evidence, divide by the maximum; minmax: shift and scale to [0, 1]; auto: minmax for clip_es
    and mctformer, relu for the other methods."""
    batch_size: int = 16
    """Images a forward pass."""
    amp: bool = False
    """Mixed precision (bfloat16)."""
    device: str = neutral(default="auto")
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    out: Path = neutral(default=Path("runs/bench-cams"))
    """Folder for a run a row and bench.json."""

    def entries(self) -> tuple[tuple[str | None, str | None], ...]:
        """Return (model, checkpoint) a row group.

        Raises:
            ConfigError: When there is none, or the checkpoints do not pair with the models.
        """
        models, weights = listed(self.models), listed(self.checkpoint)
        if not models and not weights:
            raise ConfigError("no model", hint="give --models NAME ..., or --checkpoint with runs of wsol train")
        if models and weights and len(models) != len(weights):
            raise ConfigError(
                f"--checkpoint must name one a model: {len(models)} models, {len(weights)} checkpoints",
                hint="in the same order",
            )
        size = max(len(models), len(weights))
        return tuple(zip(models or (None,) * size, weights or (None,) * size, strict=True))


@dataclass(frozen=True, kw_only=True)
class BenchRefineConfig(BenchOptions):
    """Refiners on the same score maps: mIoU, boundary F-score, milliseconds an image, peak memory."""

    maps: Path
    """Run folder of wsol cam."""
    methods: tuple[str, ...] = ("threshold", "pamr", "densecrf")
    """Refiners, separated by spaces or commas; pamr+densecrf is one after the other."""
    background: float | None = None
    """Constant background score, the same for all; default: the best on this split without refinement."""
    alpha: float | None = None
    """Background score (1 - max)^alpha; takes the place of --background."""
    tolerance: float = 0.0075
    """How far a border may be off for the boundary F-score, as a fraction of the image diagonal."""
    out: Path = neutral(default=Path("runs/bench-refine"))
    """Folder for a run a row and bench.json."""


def listed(values: Iterable[str]) -> tuple[str, ...]:
    """Return words that were separated by commas, by being words of their own, or both."""
    return tuple(word.strip() for value in values for word in value.split(",") if word.strip())


def fresh(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds an earlier comparison: a continued run would have no time to report.

    Raises:
        StoreError: Unless the folder is empty or may be overwritten.
    """
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise StoreError("the folder is not empty", where=folder, hint="give another --out, or --overwrite")
