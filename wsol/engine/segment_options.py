"""Options of `wsol segment`: what the flags, the recipes and the Python functions share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from wsol.config import neutral
from wsol.engine.options import JobOptions, expect, expect_scales, expect_zoom
from wsol.engine.train_options import DataOptions, LoopOptions
from wsol.errors import ConfigError

_GROUP = 4  # images that MUM mixes with one another


@dataclass(frozen=True, kw_only=True)
class SegmentTrainConfig(LoopOptions, DataOptions):
    """A segmentation network from pseudo-masks, scribbles, points, or the ground truth."""

    masks: str
    """Run folder of wsol refine, folder of ID.png files (255: no label), or gt for the data set's own masks."""
    arch: str = "unet"
    """segmenter, deeplabv2, or a name in segmentation_models_pytorch: unet, fpn, deeplabv3plus, segformer, ..."""
    encoder: str | None = None
    """Encoder of segmentation_models_pytorch, or tu-NAME for any timm model; a timm transformer for segmenter.
    Default: the classifier of --checkpoint, else resnet34 or vit_small_patch16_224."""
    decoder: Literal["mask", "linear"] = "mask"
    """Decoder of segmenter: mask transformer, or one linear layer, which is better where there is one class only."""
    drop_path: float = 0.1
    """Stochastic depth of the encoder of segmenter."""
    encoder_weights: str | None = None
    """Weights of the encoder from the hub, for example imagenet."""
    checkpoint: str | None = None
    """Start the encoder from a classifier (a run folder of wsol train, or a file of timm weights), or the whole
    network from a run folder of wsol segment train."""
    encoder_lr_scale: float = 1.0
    """Factor on the learning rate of the encoder: 0.1 where its weights are to keep what they know (DeepLab)."""
    img_size: int = 512
    """Side of the training view in pixels; at zoom 1 the image just fits into it."""
    zoom: tuple[float, float] = (0.5, 2.0)
    """Range of the random zoom."""
    hflip: float = 0.5
    """Probability of a mirror image."""
    color_jitter: float = 0.0
    """Strength of random brightness, contrast and saturation."""
    photometric: bool = False
    """Distort brightness, contrast, saturation and hue, each in half of the views (Segmenter)."""
    cat_max_ratio: float = 1.0
    """Share of a crop's labelled pixels that one class may have at most, where ten draws suffice (Segmenter: 0.75)."""
    min_confidence: float = 0.0
    """Pixels whose confidence in the run of wsol refine is lower become 255 (CLIP-ES: 0.95)."""
    loss: Literal["ce", "ohem"] = "ce"
    """ce: cross-entropy over the labelled pixels; ohem: over the hard ones among them."""
    ohem_threshold: float = 0.7
    """Largest probability of the label of a hard pixel."""
    ohem_keep: float = 0.0625
    """Least share of the labelled pixels that count as hard."""
    crf_weight: float = 0.0
    """Weight of the dense-energy (CRF) loss, a sum over pixels: 1e-7 in GETAM; 0 leaves it out."""
    crf_sigma_rgb: float = 15.0
    """Its standard deviation in grey levels."""
    crf_sigma_xy: float = 100.0
    """Its standard deviation in pixels."""
    crf_scale: float = 0.5
    """Factor of the view's size at which it is computed."""
    mum_weight: float = 0.0
    """Weight of the agreement with a slow teacher under mixed tiles (MUM: 4); 0 leaves it out."""
    mum_ramp: int = 2000
    """Steps over which the teacher slows down."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        expect(self.img_size >= 1, "img_size", "at least 1", self.img_size)
        expect_zoom(self.zoom)
        for name in ("drop_path", "min_confidence", "ohem_keep", "hflip"):
            expect(0 <= getattr(self, name) <= 1, name, "in [0, 1]", getattr(self, name))
        for name in ("crf_weight", "mum_weight", "mum_ramp"):
            expect(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in (
            "cat_max_ratio",
            "encoder_lr_scale",
            "ohem_threshold",
            "crf_sigma_rgb",
            "crf_sigma_xy",
            "crf_scale",
        ):
            expect(getattr(self, name) > 0, name, "positive", getattr(self, name))
        if self.mum_weight and (self.batch_size % _GROUP or self.img_size % _GROUP):
            raise ConfigError("--mum-weight needs a --batch-size and an --img-size that are multiples of 4")
        if self.mum_weight and self.arch.lower() == "dpt":  # its decoder reads class tokens, which have no tiles
            raise ConfigError("--mum-weight mixes tiles of feature maps; dpt also decodes tokens: give another --arch")


@dataclass(frozen=True, kw_only=True)
class SelfTrainConfig(SegmentTrainConfig):
    """Stages of self-training: each learns either from the given masks or from its own, never from a mixture."""

    strategy: Literal["gist", "rist"] = "rist"
    """How a stage chooses its masks. gist: tries both and keeps the better on --val-split; rist: at random."""
    stages: int = 6
    """Trainings, the first included; each starts from the weights of the one before."""
    pseudo_split: str | None = None
    """Split that is labelled anew by each stage; default: that of the given masks."""
    pseudo_confidence: float = 0.0
    """Predicted pixels of a lower probability become 255."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        expect(self.stages >= 1, "stages", "at least 1", self.stages)
        expect(0 <= self.pseudo_confidence < 1, "pseudo_confidence", "in [0, 1)", self.pseudo_confidence)
        if self.strategy == "gist" and self.val_split is None:
            raise ConfigError("--strategy gist needs --val-split to choose by", hint="or take rist")


@dataclass(frozen=True, kw_only=True)
class SegmentPredictConfig(JobOptions):
    """Masks of a trained segmentation network: resumable, sharded, palette PNG an image."""

    data: str | None = None
    """Data set; or give --images."""
    images: tuple[str, ...] = neutral(default=())
    """Image files and folders instead of a data set; - takes a list of files on standard input."""
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
    window: int | None = None
    """Side of square windows that slide over the input, in pixels; default: the whole input at once."""
    stride: int | None = None
    """Pixels between two windows; default: the side of the window."""
    crf: str | None = None
    """Dense CRF on the probabilities, by the name of its setting: clipes (also deeplab), irn, afa, toco, getam, ..."""
    min_confidence: float = 0.0
    """Pixels of a lower probability become 255."""
    confidence: bool = False
    """Also write the probability of each label as an 8-bit PNG."""
    attention: bool = False
    """Also write the class attention of a mask transformer as maps/, for wsol eval loc."""
    store: Literal["files", "shards"] = neutral(default="files")
    """files: one of each kind an image; shards: 4096 images to a tar file, for data sets of many files."""
    coco: bool = neutral(default=False)
    """Also write pseudo.coco.json (RLE)."""
    zip: Literal["comp5", "comp6"] | None = neutral(default=None)
    """Also write results.zip for the VOC test server: comp5 without, comp6 with training data from elsewhere."""
    amp: bool = False
    """Mixed precision (bfloat16)."""
    device: str = neutral(default="auto")
    """cpu, cuda, cuda:1, ...; auto takes a GPU where there is one."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        if (self.data is None) != bool(self.images):
            raise ConfigError("what to predict?", hint="give either --data NAME or --images PATH")
        expect_scales(self.scales)
        if self.stride is not None and self.window is None:
            raise ConfigError("--stride goes with --window")
        for name in ("img_size", "window", "stride"):
            value = getattr(self, name)
            expect(value is None or value >= 1, name, "at least 1", value)
        if self.stride is not None and self.window is not None:
            expect(self.stride <= self.window, "stride", "at most --window", self.stride)
        expect(0 <= self.min_confidence <= 1, "min_confidence", "in [0, 1]", self.min_confidence)
        if self.zip is not None and self.min_confidence:
            raise ConfigError("--zip needs a class for every pixel", hint="the server refuses 255: no --min-confidence")


@dataclass(frozen=True, kw_only=True)
class SegmentExportConfig:
    """A trained segmentation network as an ONNX file."""

    checkpoint: Path
    """Run folder of wsol segment train."""
    out: Path
    """File to write, NAME.onnx."""
    img_size: int | None = None
    """Side of the network's input in pixels; default: that of the training."""
    opset: int = 18
    """Version of the ONNX operators."""
    tolerance: float = 1e-3
    """Largest difference of a logit between torch and onnxruntime."""
    overwrite: bool = False
    """Replace the file."""
