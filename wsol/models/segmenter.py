"""Segmentation networks of segmentation_models_pytorch, with everything that using one takes.

Any architecture goes with any encoder; `tu-NAME` opens every timm model that gives feature maps, so that the encoder
can start from the very classifier that made the pseudo-masks.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from wsol.errors import ModelError, did_you_mean
from wsol.models.classifier import load_classifier
from wsol.store.atomic import atomic_write, write_text

_log = logging.getLogger("wsol")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_COARSER = {"pan": 128}  # pools three times below the encoder's last map
_ENOUGH = 0.5  # an encoder that finds fewer of its tensors in a checkpoint is another network


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
    """

    arch: str
    encoder: str
    classes: tuple[str, ...]
    img_size: int
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD


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
    encoder: str,
    *,
    classes: Sequence[str],
    img_size: int,
    encoder_weights: str | None = None,
    checkpoint: str | None = None,
    device: torch.device | str = "cpu",
) -> Segmenter:
    """Make a network that is to be trained; its new weights come from torch's generator.

    Args:
        arch: "unet", "fpn", "deeplabv3plus", "segformer", ...
        encoder: Encoder name; "tu-NAME" for the timm model NAME.
        classes: Class names without background.
        img_size: Side of the training view in pixels.
        encoder_weights: Weights of the encoder from the hub, for example "imagenet".
        checkpoint: Classifier to take the encoder's weights from: a run folder of wsol train, or a file of timm
            weights.
        device: Where to put the network.

    Raises:
        ModelError: On an unknown name, weights that cannot be fetched, or a checkpoint of another network.
    """
    module = _build(arch, encoder, len(classes) + 1, encoder_weights)
    mean, std = _normalization(encoder) if checkpoint is None else _load_encoder(module, encoder, checkpoint)
    facts = SegmenterFacts(arch, encoder, tuple(classes), img_size, mean, std)
    return _wrap(module, facts, device)


def save_segmenter(segmenter: Segmenter, folder: Path) -> None:
    """Write model.json and model.safetensors into a run folder, the weights last."""
    write_text(folder / "model.json", json.dumps({"kind": "segmenter", **asdict(segmenter.facts)}, indent=1) + "\n")
    tensors = {name: value.detach().cpu().contiguous() for name, value in segmenter.module.state_dict().items()}
    with atomic_write(folder / "model.safetensors", durable=True) as stream:
        stream.write(save(tensors))


def load_segmenter(folder: Path, *, device: torch.device | str = "cpu") -> Segmenter:
    """Load the network of a run folder of wsol segment train.

    Raises:
        ModelError: When the folder holds none.
    """
    try:
        raw: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if raw.pop("kind", None) != "segmenter":
            raise ModelError("not a segmentation network", where=folder, hint="give a run folder of wsol segment train")
        raw.update({name: tuple(raw[name]) for name in ("classes", "mean", "std")})
        facts = SegmenterFacts(**raw)
        module = _build(facts.arch, facts.encoder, len(facts.classes) + 1, None)
        module.load_state_dict(load_file(folder / "model.safetensors"))
    except FileNotFoundError as error:
        hint = "give a run folder of wsol segment train whose training has ended"
        raise ModelError("no segmentation network here", where=folder, hint=hint) from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(f"cannot read the network: {_line(error)}", where=folder) from error
    segmenter = _wrap(module, facts, device)
    segmenter.module.eval()
    return segmenter


def _build(arch: str, encoder: str, channels: int, encoder_weights: str | None) -> nn.Module:
    names = sorted(smp.MODEL_ARCHITECTURES_MAPPING)
    if arch.lower() not in names:
        raise ModelError(f"unknown architecture '{arch}'", where="--arch", hint=did_you_mean(arch.lower(), names))
    if encoder.startswith("tu-"):
        known = timm.list_models()
        if encoder[3:].partition(".")[0] not in known:
            raise ModelError(f"timm has no model '{encoder[3:]}'", hint=did_you_mean(encoder[3:], known))
    elif encoder not in smp.encoders.get_encoder_names():
        hint = did_you_mean(encoder, smp.encoders.get_encoder_names()) + "; tu-NAME takes a timm model"
        raise ModelError(f"unknown encoder '{encoder}'", where="--encoder", hint=hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # smp warns of tu- encoders whose weights it calls True, not 'imagenet'
            module: nn.Module = smp.create_model(
                arch, encoder_name=encoder, encoder_weights=encoder_weights, in_channels=3, classes=channels
            )
            return module
    except Exception as error:  # smp, timm and the hub raise many kinds
        hint = "choose another pair; see the list of segmentation_models_pytorch"
        if encoder_weights is not None:
            hint = "the hub must be reachable; without it, give --checkpoint, or leave --encoder-weights out"
        raise ModelError(f"cannot make '{arch}' with encoder '{encoder}': {_line(error)}", hint=hint) from error


def _wrap(module: nn.Module, facts: SegmenterFacts, device: torch.device | str) -> Segmenter:
    needed = int(getattr(module.encoder, "output_stride", 32))
    usual = _COARSER.get(facts.arch.lower(), 32)
    return Segmenter(module.to(device), facts, stride=usual if usual % needed == 0 else needed)


def _normalization(encoder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of a timm encoder's own weights, else those of ImageNet."""
    config = timm.models.get_pretrained_cfg(encoder[3:]) if encoder.startswith("tu-") else None
    return (_IMAGENET_MEAN, _IMAGENET_STD) if config is None else (tuple(config.mean), tuple(config.std))


def _load_encoder(module: Any, encoder: str, checkpoint: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Copy the tensors that encoder and classifier share, and return the classifier's mean and std."""
    run = (Path(checkpoint) / "model.json").is_file()
    classifier = load_classifier(None if run else encoder.removeprefix("tu-"), checkpoint=checkpoint)
    # Feature extractors of timm flatten 'stages.0' to 'stages_0', so names are compared without dots.
    given = {_flat(name): value for name, value in classifier.module.state_dict().items()}
    own: dict[str, Tensor] = module.encoder.state_dict()
    found = {
        name: given[key]
        for name, value in own.items()
        if (key := _flat(name.removeprefix("model."))) in given and given[key].shape == value.shape
    }
    if len(found) < _ENOUGH * len(own):
        raise ModelError(
            f"only {len(found)} of the {len(own)} tensors of encoder '{encoder}' are in the checkpoint",
            where=checkpoint,
            hint="the encoder must be the classifier's network: --encoder tu-NAME with the same timm name",
        )
    module.encoder.load_state_dict({**own, **found})
    _log.info("encoder: %d of %d tensors from %s", len(found), len(own), checkpoint)
    return classifier.mean, classifier.std


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
