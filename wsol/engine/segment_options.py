"""Options of `wsol segment train` and `wsol segment predict`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsol.config import neutral
from wsol.engine.options import JobOptions
from wsol.engine.train_options import DataOptions, LoopOptions
from wsol.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SegmentTrainConfig(LoopOptions, DataOptions):
    """A segmentation network from pseudo-masks, or from the ground truth."""

    masks: str
    """Run folder of wsol refine, folder of ID.png files, or gt for the data set's own masks."""
    arch: str = "unet"
    """Architecture, by its name in segmentation_models_pytorch: unet, fpn, deeplabv3plus, segformer, ..."""
    encoder: str = "resnet34"
    """Encoder of segmentation_models_pytorch; tu-NAME takes any timm model."""
    encoder_weights: str | None = None
    """Weights of the encoder from the hub, for example imagenet."""
    checkpoint: str | None = None
    """Start the encoder from a classifier: a run folder of wsol train, or a file of timm weights."""
    img_size: int = 512
    """Side of the training view in pixels; at zoom 1 the image just fits into it."""
    zoom: tuple[float, float] = (0.5, 2.0)
    """Range of the random zoom."""
    hflip: float = 0.5
    """Probability of a mirror image."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        if self.img_size < 1:
            raise ConfigError(f"--img-size must be at least 1, got {self.img_size}")
        if not 0 < self.zoom[0] <= self.zoom[1]:
            raise ConfigError(f"--zoom must be LOW HIGH with 0 < LOW <= HIGH, got {self.zoom}")


@dataclass(frozen=True, kw_only=True)
class SegmentPredictConfig(JobOptions):
    """Masks of a trained segmentation network: resumable, sharded, palette PNG an image."""

    data: str
    """Data set."""
    checkpoint: Path
    """Run folder of wsol segment train."""
    root: Path | None = None
    """Folder of the data set; default: $WSOL_DATA and its usual name."""
    split: str | None = None
    """Split to predict; default: the data set's own."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the data set."""
    img_size: int | None = None
    """Long side of the network's input in pixels; default: that of the training."""
    scales: tuple[float, ...] = (1.0,)
    """Input sizes, as factors of img_size; the probabilities are averaged."""
    flip: bool = False
    """Average with the mirrored image."""
    amp: bool = False
    """Mixed precision (bfloat16)."""
    device: str = neutral(default="auto")
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"--scales must be positive numbers, got {self.scales}")
        if self.img_size is not None and self.img_size < 1:
            raise ConfigError(f"--img-size must be at least 1, got {self.img_size}")
