"""Segmentation networks of segmentation_models_pytorch, and DeepLabV2 with the same encoders.

`tu-NAME` opens every timm model that gives feature maps, so that the encoder can start from the very classifier that
made the pseudo-masks.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
from torch import nn

from wsol.errors import ModelError, did_you_mean
from wsol.models.checkpoints import copy_backbone
from wsol.models.classifier import load_classifier
from wsol.models.deeplabv2 import DeepLabV2
from wsol.models.features import IMAGENET, Statistics
from wsol.models.features import statistics as timm_statistics

_DEEPLABV2, _DPT = "deeplabv2", "dpt"
_COARSER = {"pan": 128}  # pools three times below the encoder's last map


def architectures() -> list[str]:
    """Return the names that `build_smp` takes."""
    return sorted([*smp.MODEL_ARCHITECTURES_MAPPING, _DEEPLABV2])


def build_smp(arch: str, encoder: str, channels: int, encoder_weights: str | None) -> nn.Module:
    """Build a network.

    Args:
        arch: One of `architectures`.
        encoder: Encoder of segmentation_models_pytorch, or "tu-NAME".
        channels: Classes, background included.
        encoder_weights: Weights of the encoder from the hub; None for new ones.

    Returns:
        A module with `encoder`, `decoder` and `segmentation_head`.

    Raises:
        ModelError: On an unknown encoder, a pair that does not fit, or weights that cannot be fetched.
    """
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
            if arch == _DEEPLABV2:
                backbone = smp.encoders.get_encoder(encoder, weights=encoder_weights, output_stride=8)
                return DeepLabV2(backbone, channels)
            # DPT stands on a timm transformer, which takes images of one size unless told otherwise.
            sizes = {"dynamic_img_size": True} if arch == _DPT else {}
            module: nn.Module = smp.create_model(
                arch, encoder_name=encoder, encoder_weights=encoder_weights, in_channels=3, classes=channels, **sizes
            )
            return module
    except Exception as error:  # smp, timm and the hub raise many kinds
        hint = "choose another pair; see the list of segmentation_models_pytorch"
        if encoder_weights is not None:
            hint = "the hub must be reachable; without it, give --checkpoint, or leave --encoder-weights out"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"cannot make '{arch}' with encoder '{encoder}': {reason}", hint=hint) from error


def smp_stride(module: Any, arch: str) -> int:
    """Return what the sides of the input must be multiples of."""
    needed = int(getattr(module.encoder, "output_stride", 32))
    usual = _COARSER.get(arch, 32)
    return usual if usual % needed == 0 else needed


def statistics(encoder: str) -> Statistics:
    """Return mean and std of a timm encoder's own weights, else those of ImageNet."""
    return timm_statistics(encoder[3:]) if encoder.startswith("tu-") else IMAGENET


def take_encoder(module: Any, encoder: str, checkpoint: str) -> Statistics:
    """Copy the tensors that encoder and classifier share.

    Args:
        module: Network of `build_smp`; changed in place.
        encoder: Its encoder.
        checkpoint: Run folder of wsol train, or a file of timm weights.

    Returns:
        Mean and std of the classifier.

    Raises:
        ModelError: When the classifier is another network.
    """
    run = Path(checkpoint).expanduser().is_dir()
    classifier = load_classifier(None if run else encoder.removeprefix("tu-"), checkpoint=checkpoint)
    copy_backbone(
        classifier.module.state_dict(),
        module.encoder,
        name=f"encoder '{encoder}'",
        where=checkpoint,
        hint="the encoder must be the classifier's network: --encoder tu-NAME with the same timm name",
    )
    return classifier.mean, classifier.std
