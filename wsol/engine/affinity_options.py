"""Options of `wsol refine train-affinity`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsol.engine.options import expect, expect_zoom
from wsol.engine.train_options import LoopOptions
from wsol.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class PSALabels:
    """Certain labels of PSA: what a CRF makes of the maps at a low and at a high power of the background score.

    Attributes:
        low_alpha: (1 - max)^alpha with a low alpha is a strong background: what stays foreground is certain.
        high_alpha: With a high alpha it is a weak one: what stays background is certain.
        radius: Pairs of grid positions (stride 8) nearer than this are learned.
    """

    low_alpha: float = 4.0
    high_alpha: float = 32.0
    radius: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.low_alpha < self.high_alpha:
            got = f"{self.low_alpha} and {self.high_alpha}"
            raise ConfigError(f"low_alpha must be positive and below high_alpha, got {got}", where="options")
        _check_radius(self.radius)


@dataclass(frozen=True, kw_only=True)
class IRNLabels:
    """Certain labels of IRNet: what a CRF makes of the maps at a high and at a low background score.

    Attributes:
        foreground: What stays foreground at this background score is certain.
        background: What stays background at this background score is certain.
        radius: Pairs of grid positions (stride 4) nearer than this are learned.
    """

    foreground: float = 0.30
    background: float = 0.05
    radius: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.background < self.foreground <= 1:
            got = f"{self.background} and {self.foreground}"
            raise ConfigError(f"expected 0 <= background < foreground <= 1, got {got}", where="options")
        _check_radius(self.radius)


LABELS: Mapping[str, type[PSALabels] | type[IRNLabels]] = {"psa": PSALabels, "irn": IRNLabels}


def labels_of(method: str) -> type[PSALabels] | type[IRNLabels]:
    """Return the class of the options of a method.

    Raises:
        ConfigError: When there is no such method.
    """
    if method not in LABELS:
        raise ConfigError(f"no training for '{method}'", where="--method", hint=did_you_mean(method, LABELS))
    return LABELS[method]


@dataclass(frozen=True, kw_only=True)
class AffinityConfig(LoopOptions):
    """Affinities of pixels from score maps: the network of wsol refine --method psa or irn.

    The defaults are those of IRNet. PSA was trained with --epochs 8 --batch-size 8 --img-size 448 --weight-decay 5e-4
    --momentum 5e-4. Both codes hand their weight decay to SGD as momentum, which amounts to none; the defaults repeat
    that, and --momentum is free.
    """

    maps: Path
    """Run folder of wsol cam."""
    method: Literal["psa", "irn"] = "irn"
    """Which network: AffinityNet (psa) or IRNet (irn)."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the labels."""
    model: str | None = None
    """timm model name of the backbone; not needed when --checkpoint is a run of wsol train."""
    checkpoint: str | None = None
    """Classifier to take the backbone's weights from: a file, a run folder of wsol train, or pip:PACKAGE."""
    pretrained: bool = False
    """Load timm's weights of the backbone from the hub."""
    output_stride: int | None = None
    """8 or 16: dilate a CNN (8 in PSA, 16 in IRNet)."""
    freeze_backbone: bool | None = None
    """Train the heads only; by default so for irn and not for psa. Batch norms never change."""
    limit: int | None = None
    """Only the first N images."""
    img_size: int = 512
    """Side of the training view in pixels; at zoom 1 the image just fits into it."""
    zoom: tuple[float, float] = (0.5, 1.5)
    """Range of the random zoom."""
    hflip: float = 0.5
    """Probability of a mirror image."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation."""
    epochs: int = 3
    """Passes over the training images."""
    batch_size: int = 32
    """Images a step; a last smaller batch of an epoch is left out."""
    opt: str = "momentum"
    """Optimizer, by timm's name; momentum is plain SGD with --momentum."""
    lr: float = 0.1
    """Learning rate; ten times that for the heads of psa and the displacements of irn."""
    weight_decay: float = 1e-4
    """Weight decay."""
    momentum: float = 1e-4
    """Momentum, where the optimizer has one."""
    sched: Literal["cosine", "poly", "tanh", "step", "none"] = "poly"
    """Learning-rate schedule, by timm's name; step changes between epochs, the others after each batch."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        expect(self.img_size >= 1, "img_size", "at least 1", self.img_size)
        expect_zoom(self.zoom)
        if self.model is None and self.checkpoint is None:
            raise ConfigError("no model", hint="give --model NAME, or --checkpoint with a run of wsol train")


def _check_radius(radius: int) -> None:
    if radius < 2:
        raise ConfigError(f"must be at least 2, got {radius}", where="radius")
