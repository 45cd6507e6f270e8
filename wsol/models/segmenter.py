"""Segmentation networks under one name each, with everything that using one takes.

`segmenter` is Segmenter on any plain timm transformer; every other architecture is one of
segmentation_models_pytorch, or DeepLabV2, on any of its encoders.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wsol.errors import ModelError, did_you_mean
from wsol.models.checkpoints import read_card, read_kind, write_model
from wsol.models.classifier import load_classifier
from wsol.models.device import find_device
from wsol.models.features import IMAGENET
from wsol.models.smp_segmenter import architectures, build_smp, smp_stride, statistics, take_encoder
from wsol.models.vit_segmenter import Decoder, ViTSegmenter

VIT = "segmenter"
_CNN_ENCODER, _VIT_ENCODER = "resnet34", "vit_small_patch16_224"


@dataclass(frozen=True)
class SegmenterFacts:
    """What `model.json` says of a segmentation network.

    Attributes:
        arch: Architecture.
        encoder: Encoder.
        classes: Class names without background; the network has one output more, background first.
        img_size: Long side in pixels at which the training saw an image at zoom 1.
        mean: Channel means of the input.
        std: Channel standard deviations of the input.
        decoder: Decoder of Segmenter; None for other architectures.
    """

    arch: str
    encoder: str
    classes: tuple[str, ...]
    img_size: int
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    decoder: Decoder | None = None


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A segmentation network on its device.

    Attributes:
        module: (B, 3, h, w) to logits (B, 1 + classes, h, w), background first; h and w are multiples of `stride`.
        facts: Names, classes and normalization.
        stride: What the sides of the input must be multiples of.
    """

    module: nn.Module
    facts: SegmenterFacts
    stride: int


def create_segmenter(
    arch: str,
    encoder: str | None = None,
    *,
    classes: Sequence[str],
    img_size: int,
    encoder_weights: str | None = None,
    checkpoint: str | None = None,
    decoder: Decoder = "mask",
    drop_path: float = 0.0,
    device: torch.device | str = "cpu",
) -> Segmenter:
    """Make a network that is to be trained; its new weights come from torch's generator.

    Args:
        arch: "segmenter", "deeplabv2", "unet", "fpn", "deeplabv3plus", "segformer", ...
        encoder: Encoder name; "tu-NAME" for the timm model NAME. By default the classifier of the checkpoint, else
            resnet34, or vit_small_patch16_224 for Segmenter.
        classes: Class names without background.
        img_size: Side of the training view in pixels.
        encoder_weights: Weights of the encoder from the hub, for example "imagenet".
        checkpoint: Where to take weights from: a run folder of wsol train or a file of timm weights for the encoder,
            or a run folder of wsol segment train for the whole network.
        decoder: "mask" or "linear", for Segmenter.
        drop_path: Stochastic depth of Segmenter's encoder in training.
        device: Where to put the network.

    Raises:
        ModelError: On an unknown name, weights that cannot be fetched, or a checkpoint of another network.
    """
    arch, device = _known(arch), find_device(device)
    run = None if checkpoint is None else Path(checkpoint).expanduser()
    kind = None if run is None else read_kind(run)
    given = load_segmenter(run) if run is not None and kind == "segmenter" else None
    if encoder is None and given is not None:
        encoder = given.facts.encoder
    elif encoder is None and run is not None and kind is not None:
        encoder = ("" if arch == VIT else "tu-") + read_card(run)[0].name
    elif encoder is None:
        encoder = _VIT_ENCODER if arch == VIT else _CNN_ENCODER
    source = None if given is not None else checkpoint
    if arch == VIT:
        encoder = encoder.removeprefix("tu-")
        new = 0 if source is None else None  # no head, or as the checkpoint has it: it is removed anyway
        classifier = load_classifier(
            encoder, checkpoint=source, pretrained=encoder_weights is not None, num_classes=new
        )
        module: nn.Module = ViTSegmenter(classifier, len(classes) + 1, decoder=decoder, drop_path=drop_path)
        mean, std = classifier.mean, classifier.std
    else:
        module = build_smp(arch, encoder, len(classes) + 1, encoder_weights)
        mean, std = statistics(encoder) if source is None else take_encoder(module, encoder, source)
    facts = SegmenterFacts(arch, encoder, tuple(classes), img_size, mean, std, decoder if arch == VIT else None)
    if given is not None:
        own = (facts.arch, facts.encoder, facts.decoder, facts.classes)
        theirs = (given.facts.arch, given.facts.encoder, given.facts.decoder, given.facts.classes)
        if own != theirs:
            what = f"the run holds a {given.facts.arch} on {given.facts.encoder} for {len(given.facts.classes)} classes"
            raise ModelError(what, where=checkpoint, hint="give the same --arch, --encoder, --decoder and --data")
        module.load_state_dict(given.module.state_dict())
    return _wrap(module, facts, device)


def encode(module: Any, images: Tensor) -> list[Tensor]:
    """Return the feature maps (B, D, h, w) of a segmentation network's encoder, from finest to coarsest."""
    return list(module.encode(images) if isinstance(module, ViTSegmenter) else module.encoder(images))


def decode(module: Any, features: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the logits (B, C, h, w) that a segmentation network makes of what `encode` gave for images (h, w)."""
    if isinstance(module, ViTSegmenter):
        return module.decode(features, size)
    logits: Tensor = module.segmentation_head(module.decoder(features))
    return logits


def save_segmenter(segmenter: Segmenter, folder: Path) -> None:
    """Write model.json and model.safetensors into a run folder, the weights last."""
    write_model(folder, {"kind": "segmenter", **asdict(segmenter.facts)}, segmenter.module)


def load_segmenter(folder: Path, *, device: torch.device | str = "cpu") -> Segmenter:
    """Load the network of a run folder of wsol segment train.

    Raises:
        ModelError: When the folder holds none.
    """
    device = find_device(device)
    try:
        raw: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if raw.pop("kind", None) != "segmenter":
            raise ModelError("not a segmentation network", where=folder, hint="give a run folder of wsol segment train")
        raw.update({name: tuple(raw[name]) for name in ("classes", "mean", "std")})
        facts = SegmenterFacts(**raw)
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
            module = _rebuild(facts)
        module.load_state_dict(load_file(folder / "model.safetensors"))
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "give a run folder of wsol segment train whose training has ended"
        raise ModelError("no segmentation network here", where=folder, hint=hint) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"cannot read the network: {reason}", where=folder) from error
    segmenter = _wrap(module, facts, device)
    segmenter.module.eval()
    return segmenter


def _rebuild(facts: SegmenterFacts) -> nn.Module:
    channels = len(facts.classes) + 1
    if facts.arch != VIT:
        return build_smp(facts.arch, facts.encoder, channels, None)
    classifier = load_classifier(facts.encoder, num_classes=0)
    return ViTSegmenter(classifier, channels, decoder=facts.decoder or "mask")


def _known(arch: str) -> str:
    names = [*architectures(), VIT]
    if arch.lower() not in names:
        raise ModelError(f"unknown architecture '{arch}'", where="--arch", hint=did_you_mean(arch.lower(), names))
    return arch.lower()


def _wrap(module: Any, facts: SegmenterFacts, device: torch.device | str) -> Segmenter:
    stride = module.patch if facts.arch == VIT else smp_stride(module, facts.arch)
    return Segmenter(module.to(device), facts, stride=stride)
