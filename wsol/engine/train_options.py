"""Options of `wsol train`, and those that every training shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsol.config import neutral
from wsol.engine.options import expect
from wsol.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What to train on and what to measure."""

    data: str
    """Data set: voc, coco, cub, ilsvrc, openimages, folder, synthetic, ... (wsol info lists all)."""
    root: Path | None = None
    """Folder of the data set; default: $WSOL_DATA and its usual name."""
    split: str | None = None
    """Split to train on; default: the data set's own."""
    val_split: str | None = None
    """Split to measure after each epoch."""
    data_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the data set."""
    limit: int | None = None
    """Only the first N images of each split."""


@dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How long, how fast and where to train."""

    out: Path = neutral()
    """Run folder to write or continue."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 32
    """Images a batch; a last smaller batch of an epoch is left out."""
    accumulate: int = 1
    """Batches a step of the optimizer; with torchrun, that many in each process."""
    opt: str = "adamw"
    """Optimizer, by timm's name."""
    lr: float = 1e-3
    """Learning rate after warm-up."""
    weight_decay: float = 0.01
    """Weight decay; biases and norm layers are spared."""
    momentum: float = 0.9
    """Momentum, where the optimizer has one."""
    sched: Literal["cosine", "poly", "tanh", "step", "none"] = "cosine"
    """Learning-rate schedule, by timm's name; step changes between epochs, the others after each batch."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up, part of --epochs."""
    min_lr: float = 0.0
    """Learning rate at the end."""
    decay_epochs: float = 10.0
    """Epochs between two decays of --sched step."""
    decay_rate: float | None = None
    """Factor of --sched step (default 0.1); power of poly (default 0.9)."""
    clip_grad: float | None = None
    """Largest norm of the gradient."""
    amp: bool = False
    """Mixed precision (bfloat16)."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, for example 0.999; 0 keeps none."""
    seed: int = 0
    """Seed of every generator."""
    device: str = neutral(default="auto")
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""
    workers: int = neutral(default=2)
    """Processes that read images."""
    resume: bool = neutral(default=False)
    """Accept a folder whose training has ended; one that was interrupted is always continued."""
    overwrite: bool = neutral(default=False)
    """Replace what is in the folder."""
    quiet: bool = neutral(default=False)
    """No progress."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        for name in ("epochs", "batch_size", "accumulate"):
            expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        expect(0 < self.lr < math.inf, "lr", "positive", self.lr)
        expect(0 <= self.min_lr <= self.lr, "min_lr", "at least 0 and at most --lr", self.min_lr)
        expect(self.decay_epochs > 0, "decay_epochs", "positive", self.decay_epochs)
        expect(self.decay_rate is None or self.decay_rate > 0, "decay_rate", "positive", self.decay_rate)
        expect(0 <= self.warmup_epochs < self.epochs, "warmup_epochs", "fewer than --epochs", self.warmup_epochs)
        expect(0 <= self.ema < 1, "ema", "in [0, 1)", self.ema)
        expect(self.clip_grad is None or self.clip_grad > 0, "clip_grad", "positive", self.clip_grad)
        for name in ("workers", "seed"):
            expect(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LoopOptions, DataOptions):
    """A classifier from image-level labels, with a mix strategy."""

    model: str | None = None
    """timm model name; not needed when --checkpoint is a run of wsol train."""
    checkpoint: str | None = None
    """Weights to start from: a file, a run folder of wsol train, or pip:PACKAGE. A head for other classes starts
    anew."""
    pretrained: bool = False
    """Start from timm's pretrained weights of the hub."""
    layer_decay: float | None = None
    """Factor on the learning rate from each layer to the one below it, for example 0.75."""
    freeze_backbone: bool = False
    """Train the head only."""
    linear_probe: bool = False
    """Fit the head alone, by logistic regression on the standardised features of the whole images: one pass, no
    epochs; --weight-decay is its penalty."""
    mix: str = "none"
    """Mix strategy (wsol info mix lists them); choice and until combine others."""
    mix_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the mix strategy."""
    label_maps: Path | None = None
    """Run of wsol cam with maps of the training images, for strategies that weigh labels by a teacher's maps."""
    loss: Literal["auto", "ce", "bce", "asl"] = "auto"
    """ce: soft-target cross-entropy; bce: binary cross-entropy a class (multi-label soft margin); asl: asymmetric loss;
    auto: bce where images hold several classes, else ce."""
    class_balance: float = 0.0
    """Weigh classes by (1 - b) / (1 - b^n), the inverse of the effective number of their n images, for example 0.999;
    0: all alike."""
    asl_gamma: tuple[float, float] = (0.0, 4.0)
    """Focusing powers of asl for classes that are there and that are not."""
    asl_margin: float = 0.05
    """Probability below which asl gives up on a class that is not there."""
    smoothing: float = 0.0
    """Label smoothing: towards 1 / classes, or towards 0.5 where images hold several classes."""
    img_size: int = 224
    """Side of the network's input in pixels."""
    resize: Literal["crop", "squash"] = "crop"
    """What to train on: a random resized crop, or the whole image squashed to img_size x img_size."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of a crop's share of the image area."""
    hflip: float = 0.5
    """Probability of a mirror image."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation."""
    eval_loc: int = 0
    """Measure localization on --val-split after every N-th epoch and the last, and keep the best weights of each
    measure; 0: never."""
    loc_method: str = "auto"
    """Map method of --eval-loc; auto: cam where the network pools its features, else gradcam."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        expect(self.img_size >= 1, "img_size", "at least 1", self.img_size)
        expect(0 <= self.smoothing < 1, "smoothing", "in [0, 1)", self.smoothing)
        expect(0 <= self.class_balance < 1, "class_balance", "in [0, 1)", self.class_balance)
        expect(min(self.asl_gamma) >= 0, "asl_gamma", "two numbers of at least 0", self.asl_gamma)
        expect(0 <= self.asl_margin < 1, "asl_margin", "in [0, 1)", self.asl_margin)
        expect(self.layer_decay is None or 0 < self.layer_decay <= 1, "layer_decay", "in (0, 1]", self.layer_decay)
        expect(self.eval_loc >= 0, "eval_loc", "0 or more", self.eval_loc)
        expect(0 <= self.hflip <= 1, "hflip", "in [0, 1]", self.hflip)
        low, high = self.crop_scale
        expect(0 < low <= high <= 1, "crop_scale", "LOW HIGH with 0 < LOW <= HIGH <= 1", self.crop_scale)
        if self.linear_probe and self.mix != "none":
            raise ConfigError(f"--linear-probe sees each image as it is, so it cannot go with --mix {self.mix}")
        if self.linear_probe and (self.loss == "asl" or self.class_balance):
            raise ConfigError("--linear-probe fits plain ce or bce", hint="leave out --loss asl and --class-balance")
        if self.eval_loc and self.val_split is None:
            raise ConfigError("--eval-loc needs images to measure on", hint="give --val-split")
        if self.model is None and self.checkpoint is None:
            raise ConfigError("no model", hint="give --model NAME, or --checkpoint with a run of wsol train")
