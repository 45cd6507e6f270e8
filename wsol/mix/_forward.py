"""A forward pass in training that also reads attention and patch tokens."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from wsol.errors import ModelError
from wsol.mix._tokens import check_attention
from wsol.mix.base import Need, Output
from wsol.models.classifier import Classifier
from wsol.models.taps import tap


def forward(classifier: Classifier, images: Tensor, *, needs: Collection[Need] = (), amp: bool = False) -> Output:
    """Run a classifier, in the mode it is in.

    Args:
        classifier: The model in training.
        images: (B, 3, H, W), normalized.
        needs: Parts of `Output` to fill.
        amp: Mixed precision (bfloat16); logits and attention are float32 all the same.

    Raises:
        ModelError: When the model has no such parts.
    """
    check_needs(classifier, needs)
    names = classifier.attention if "layers" in needs else classifier.attention[-1:] if "attention" in needs else ()
    prefix = classifier.prefix_tokens
    with (
        torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=amp),
        tap(classifier.module, attention=names, reduce=lambda weights: weights.float().mean(1)) as seen,
    ):
        features = classifier.module.forward_features(images)
        logits = classifier.module.forward_head(features).float()
    layers = tuple(seen.attention[name] for name in names)
    received = None
    if "attention" in needs:
        rows = layers[-1][:, :1] if classifier.class_token else layers[-1][:, prefix:]
        received = rows.mean(1)[:, prefix:]
    return Output(
        logits=logits,
        attention=received,
        layers=layers if "layers" in needs else (),
        tokens=features[:, prefix:] if "tokens" in needs else None,
        grid=classifier.grid(*images.shape[-2:]) if needs else None,
    )


def check_needs(classifier: Classifier, needs: Collection[Need]) -> None:
    """Refuse a model without the parts of `Output` that a strategy reads.

    Raises:
        ModelError: Naming a kind of model that has them.
    """
    if {"attention", "layers"} & set(needs):
        check_attention(classifier)
    if "tokens" in needs and classifier.kind != "tokens":
        raise ModelError("has no patch tokens", where=classifier.name, hint="take a plain vision transformer")
