"""Losses of a classifier for dense targets: labels that a strategy has mixed or smoothed are fine for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsol.engine.train_options import TrainConfig
from wsol.errors import ConfigError
from wsol.schema import Sample

Criterion = Callable[[Tensor, Tensor], Tensor]
_TINY = 1e-8


def loss_name(config: TrainConfig, *, multi_label: bool) -> str:
    """Return the name of the loss: that of `--loss`, or the one that suits the data set.

    Raises:
        ConfigError: When images hold several classes and the loss takes one.
    """
    if config.loss == "ce" and multi_label:
        raise ConfigError("cross-entropy needs one label an image", where="--loss", hint="use --loss bce or auto")
    if config.loss == "auto":
        return "bce" if multi_label else "ce"
    return config.loss


def make_criterion(name: str, config: TrainConfig, *, weights: Tensor | None = None) -> Criterion:
    """Return (logits (B, K), targets (B, K) in [0, 1]) to a scalar loss.

    Args:
        name: "ce", summed over the classes, or "bce" or "asl", averaged over them; all are averaged over the images.
        config: Holds the options of "asl".
        weights: Float (K,), factors on the classes.
    """
    if name == "ce":
        return partial(F.cross_entropy, weight=weights)
    if name == "bce":
        return partial(F.binary_cross_entropy_with_logits, weight=weights)
    return partial(asymmetric_loss, gamma=config.asl_gamma, margin=config.asl_margin, weights=weights)


def asymmetric_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: tuple[float, float] = (0.0, 4.0),
    margin: float = 0.05,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the asymmetric loss (Ridnik et al., ICCV 2021, https://arxiv.org/abs/2009.14119).

    With p = sigmoid(logit) and q = max(p - margin, 0): -y (1 - p)^gamma+ log p - (1 - y) q^gamma- log(1 - q), the mean
    over images and classes (the paper's code adds them up).

    Args:
        logits: (B, K).
        targets: (B, K) in [0, 1]; what lies between is a weighted sum of both terms.
        gamma: (gamma+, gamma-).
        margin: Probability below which an absent class costs nothing.
        weights: Float (K,), factors on the classes.
    """
    p = torch.sigmoid(logits)
    q = (p - margin).clamp(min=0)
    there = F.logsigmoid(logits) * (1 - p).clamp(min=_TINY) ** gamma[0]  # a root has no gradient at 0
    away = torch.log1p(-q.clamp(max=1 - 1e-6)) * q.clamp(min=_TINY) ** gamma[1]
    loss = -(targets * there + (1 - targets) * away)
    return (loss if weights is None else loss * weights).mean()


def class_weights(samples: Sequence[Sample], num_classes: int, *, beta: float) -> NDArray[np.float32]:
    """Return the weights of the class-balanced loss (Cui et al., CVPR 2019, https://arxiv.org/abs/1901.05555).

    Args:
        samples: Training images.
        num_classes: K.
        beta: In [0, 1): a class of n images weighs (1 - beta) / (1 - beta^n); a class of none as much as one of one.

    Returns:
        float32 (K,) with mean 1.
    """
    counts: NDArray[np.float64] = np.zeros(num_classes)
    for sample in samples:
        counts[list(set(sample.labels))] += 1
    weights: NDArray[np.float64] = (1.0 - beta) / (1.0 - beta ** np.maximum(counts, 1))
    weights /= weights.mean()
    return weights.astype(np.float32)


def smooth(targets: Tensor, amount: float, *, multi_label: bool) -> Tensor:
    """Return targets (B, K) moved by a share `amount` in [0, 1), as timm does for every loss.

    One label an image moves towards 1 / K, several towards 0.5.
    """
    return targets * (1.0 - amount) + amount * (0.5 if multi_label else 1.0 / targets.shape[1])
