"""Options of `wsol segment single-stage`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsol.engine.options import expect, expect_zoom
from wsol.engine.train_options import DataOptions, LoopOptions
from wsol.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SingleStageConfig(LoopOptions, DataOptions):
    """A segmentation network from image-level labels in one training, whose own attention gives the masks (GETAM)."""

    saliency: Path | None = None
    """Folder of saliency maps ID.png, 0 where there is no object, as GETAM takes them; default: image-level labels
    only."""
    arch: Literal["dpt", "segmenter"] = "dpt"
    """Segmentation network on the transformer; dpt as published."""
    encoder: str | None = None
    """timm transformer; default: the classifier of --checkpoint, else vit_base_patch16_384."""
    decoder: Literal["mask", "linear"] = "mask"
    """Decoder of segmenter."""
    encoder_weights: str | None = None
    """Weights of the encoder from the hub, for example imagenet."""
    checkpoint: str | None = None
    """Start the encoder from a classifier (a run folder of wsol train, or a file of timm weights), or the whole network
    from a run folder of wsol segment."""
    img_size: int = 256
    """Side of the training view in pixels; at zoom 1 the image just fits into it."""
    zoom: tuple[float, float] = (0.9, 8 / 7)
    """Range of the random zoom."""
    hflip: float = 0.5
    """Probability of a mirror image."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation."""
    cls_epochs: int | None = None
    """Epochs in which the classifier learns alone; default: half of --epochs."""
    seg_lr_scale: float = 0.1
    """Factor on the learning rate afterwards."""
    start_layer: int | None = None
    """First block whose attention takes part in the maps; default: half of the depth."""
    alpha: float = 32.0
    """Background score (1 - max)^alpha."""
    quantile: float = 0.9
    """Share of the positive scores of a class below those that take background pixels (COCO: 0.95)."""
    opening: int = 10
    """Side of the square of the morphological opening of the labels, in pixels; 1 opens nothing away."""
    crf_weight: float = 1e-7
    """Weight of the dense-energy (CRF) loss, a sum over pixels; 0 leaves it out."""
    released_saliency_loss: bool = False
    """The saliency loss as GETAM's code has it by mistake: only completed pixels count as salient."""

    @property
    def seg_start(self) -> int:
        """The first epoch, from 0, in which the segmentation network learns."""
        return self.epochs // 2 if self.cls_epochs is None else self.cls_epochs

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        expect_zoom(self.zoom)
        expect(0 <= self.seg_start < self.epochs, "cls_epochs", "fewer than --epochs", self.seg_start)
        expect(0 <= self.hflip <= 1, "hflip", "in [0, 1]", self.hflip)
        expect(0 <= self.quantile < 1, "quantile", "in [0, 1)", self.quantile)
        expect(self.crf_weight >= 0, "crf_weight", "0 or more", self.crf_weight)
        for name in ("img_size", "opening"):
            expect(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("alpha", "seg_lr_scale"):
            expect(getattr(self, name) > 0, name, "positive", getattr(self, name))
        if self.saliency is not None and not self.saliency.is_dir():
            raise ConfigError("no such folder", where=f"--saliency {self.saliency}")
        if self.released_saliency_loss and self.saliency is None:
            raise ConfigError("--released-saliency-loss needs --saliency")
