"""A linear head on frozen features: logistic regression to convergence, after one pass over the images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol.errors import DataError, ModelError
from wsol.models.classifier import Classifier

_STEPS = 500
# Channels that hardly vary are divided by this share of the mean deviation, so that noise is not blown up.
_FLOOR = 1e-2


def pooled_features(classifier: Classifier, images: Tensor) -> Tensor:
    """Return what the head's linear layer reads, float32 (B, D), for normalized images (B, 3, h, w)."""
    module: Any = classifier.module
    with torch.inference_mode():
        features: Tensor = module.forward_head(module.forward_features(images), pre_logits=True)
    return features.float()


def fit_head(
    classifier: Classifier, features: Iterable[tuple[Tensor, Tensor]], *, loss: str, weight_decay: float
) -> float:
    """Fit the head in place.

    The features are standardised, as the batch norm in front of a linear probe does (He et al., "Masked Autoencoders
    Are Scalable Vision Learners", CVPR 2022, appendix A.1); mean and deviation are then folded into the head, which
    stays one linear layer. All features are held in memory: 8 D bytes an image, 16 D where they are joined.

    Args:
        classifier: Its head is an `nn.Linear`.
        features: Pairs of features (B, D) and targets (B, C) with values in [0, 1].
        loss: "bce", one sigmoid a class summed over the classes, or "ce", one softmax.
        weight_decay: Half of it multiplies the squared norm of the weights for standardised features.

    Returns:
        The loss at the end, without the penalty.

    Raises:
        ModelError: When the head is no linear layer.
        DataError: When there are no features.
    """
    head = classifier.head
    if not isinstance(head, nn.Linear):
        raise ModelError(f"a linear probe needs a linear head, not {type(head).__name__}", where=classifier.name)
    pairs = list(features)
    if not pairs:
        raise DataError("no image can be used")
    x, y = (torch.cat(parts).double() for parts in zip(*pairs, strict=True))
    del pairs
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = deviation.clamp(min=float(_FLOOR * deviation.mean()) or 1.0)
    x.sub_(mean).div_(deviation)
    weight = x.new_zeros(y.shape[1], x.shape[1], requires_grad=True)
    bias = x.new_zeros(y.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def error() -> Tensor:
        scores = F.linear(x, weight, bias)
        if loss == "ce":
            return F.cross_entropy(scores, y)
        return F.binary_cross_entropy_with_logits(scores, y, reduction="none").sum(1).mean()

    def closure() -> float:
        solver.zero_grad()
        total = error() + 0.5 * weight_decay * weight.square().sum()
        cast(Any, total).backward()
        return float(total.detach())

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        folded = weight / deviation
        head.weight.copy_(folded)
        if head.bias is not None:
            head.bias.copy_(bias - folded @ mean)
        return float(error())
