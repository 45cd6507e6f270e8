"""Kullback-Leibler divergence between two predictions, for one label an image or several."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def divergence(logits: Tensor, target_logits: Tensor, *, multi_label: bool) -> Tensor:
    """Return KL(target || prediction), mean over the batch.

    Args:
        logits: (B, K).
        target_logits: (B, K).
        multi_label: Bernoulli distributions, mean over classes, instead of one distribution over the classes.
    """
    if not multi_label:
        prediction, target = logits.log_softmax(1), target_logits.log_softmax(1)
        return F.kl_div(prediction, target, reduction="batchmean", log_target=True)
    chance = target_logits.sigmoid()
    yes = F.logsigmoid(target_logits) - F.logsigmoid(logits)
    no = F.logsigmoid(-target_logits) - F.logsigmoid(-logits)
    return (chance * yes + (1 - chance) * no).mean()
