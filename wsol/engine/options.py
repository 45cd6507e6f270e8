"""Options of `wsol cam`: what the flags, the recipes and the Python function share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsol.config import neutral
from wsol.errors import ConfigError


def expect(condition: bool, name: str, expected: str, got: object) -> None:
    """Refuse the value of an option.

    Args:
        condition: Whether the value is right; a comparison with NaN is not.
        name: Field of the options, to name its flag.
        expected: What would be right, after "must be".
        got: The value.

    Raises:
        ConfigError: Naming the flag.
    """
    if not condition:
        raise ConfigError(f"--{name.replace('_', '-')} must be {expected}, got {got}")


def expect_scales(scales: tuple[float, ...]) -> None:
    """Refuse --scales that are no sizes.

    Raises:
        ConfigError: Naming the flag.
    """
    expect(bool(scales) and all(0 < scale < math.inf for scale in scales), "scales", "positive numbers", scales)


def expect_zoom(zoom: tuple[float, float]) -> None:
    """Refuse a --zoom that is no range.

    Raises:
        ConfigError: Naming the flag.
    """
    expect(0 < zoom[0] <= zoom[1] < math.inf, "zoom", "LOW HIGH with 0 < LOW <= HIGH", zoom)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What every job over the images of a split shares; none of it changes an output."""

    out: Path = neutral()
    """Run folder to write or continue."""
    limit: int | None = neutral(default=None)
    """Only the first N images."""
    workers: int = neutral(default=2)
    """Processes beside this one: for reading images, or for the work itself where it is done on the CPU."""
    shard: str = neutral(default="0/1")
    """i/n: this process does every n-th part, starting with the i-th; any launcher's rank also works."""
    overwrite: bool = neutral(default=False)
    """Replace a run with other options."""
    fail_fast: bool = neutral(default=False)
    """Stop at the first image that fails."""
    quiet: bool = neutral(default=False)
    """No progress."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        expect(self.workers >= 0, "workers", "0 or more", self.workers)


@dataclass(frozen=True, kw_only=True)
class CamConfig(JobOptions):
    """Score maps of a split: resumable, sharded, one npz an image."""

    data: str
    """Data set: voc, coco, cub, ilsvrc, openimages, folder, synthetic, ... (wsol info lists all)."""
    root: Path | None = None
    """Folder of the data set; default: $WSOL_DATA and its usual name."""
    split: str | None = None
    """Split to map; default: the data set's own."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the data set."""
    model: str | None = None
    """timm model name, or clip:NAME with open_clip's name; not needed when --checkpoint is a run of wsol train."""
    checkpoint: str | None = None
    """Weights: a file, a run folder of wsol train, or pip:PACKAGE for weights that a package ships."""
    pretrained: bool = False
    """Load pretrained weights from the hub."""
    prompts: str | None = None
    """Texts of a CLIP model: voc, coco, or a YAML file; default: those of the data set, see wsol cam clip-prompts."""
    method: str = "cam"
    """Map method."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method."""
    classes: Literal["labels", "top1", "top5", "all"] = "labels"
    """Which maps to make: the image's labels, the predicted classes, or every class."""
    img_size: int | None = None
    """Side of the network's input in pixels (long side with --resize keep, its limit with native); default: the
    model's own (native: no limit)."""
    resize: Literal["squash", "keep", "native"] = "squash"
    """squash: img_size x img_size; keep: long side img_size, aspect kept up to the network's stride; native: the
    image's own size, rounded up to the stride."""
    output_stride: int | None = None
    """8 or 16: dilate a CNN for maps of twice or four times the side, with the same weights."""
    scales: tuple[float, ...] = (1.0,)
    """Input sizes, as factors of img_size; the maps are summed, where --normalize drops negative evidence
    without it."""
    flip: bool = False
    """Add the maps of the mirrored image."""
    normalize: Literal["auto", "relu", "minmax"] = "auto"
    """relu: drop negative evidence, divide by the maximum; minmax: shift and scale to [0, 1]; auto: minmax for clip_es
    and mctformer, relu for the other methods."""
    store: Literal["grid", "image", "shards"] = "grid"
    """grid: maps on the model's own grid, a file each; image: at the image's size; shards: as grid, 4096 images to a
    tar file, for data sets of many files."""
    batch_size: int = 16
    """Images a forward pass."""
    amp: bool = False
    """Mixed precision."""
    amp_dtype: Literal["bfloat16", "float16"] = "bfloat16"
    """Type of --amp; float16 only for clip_es, whose gradient stays in float32: others would underflow."""
    device: str = neutral(default="auto")
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    engine: Literal["local", "ray"] = neutral(default="local")
    """ray: an actor on each GPU (else each CPU) of the cluster at RAY_ADDRESS, or of this machine; same files."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        expect(self.batch_size >= 1, "batch_size", "at least 1", self.batch_size)
        expect(self.img_size is None or self.img_size >= 1, "img_size", "at least 1", self.img_size)
        expect_scales(self.scales)
        if self.amp_dtype == "float16" and self.method != "clip_es":
            hint = "take bfloat16, or clip_es, whose gradient stays in float32"
            raise ConfigError(f"float16 gradients of '{self.method}' would underflow", where="--amp-dtype", hint=hint)
        if self.model is None and self.checkpoint is None:
            raise ConfigError("no model", hint="give --model NAME, or --checkpoint with a run of wsol train")
