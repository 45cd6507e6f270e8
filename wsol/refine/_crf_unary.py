"""Unary energies of a CRF, under the names of `pydensecrf.utils`: from probabilities, and from labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError, DataError
from wsol.schema import IGNORE


def unary_from_softmax(scores: NDArray[np.floating], *, clip: float = 1e-5) -> NDArray[np.float32]:
    """Return -log(scores), the energies of probabilities; maps get a channel 0 from `with_background` first.

    Args:
        scores: Float (C, H, W) in [0, 1]; the sum over C is free, as it only adds a constant.
        clip: Lower bound of the scores, positive.

    Returns:
        float32 (C, H, W), from 0 to -log(clip).
    """
    energies = np.clip(np.asarray(scores, np.float32), np.float32(clip), np.float32(1))
    return np.negative(np.log(energies, out=energies), out=energies)


def unary_from_labels(
    labels: NDArray[np.integer], channels: int, *, gt_prob: float = 0.7, unsure: int | None = IGNORE
) -> NDArray[np.float32]:
    """Return the energies of labels that are right with a given probability.

    A pixel has probability `gt_prob` in the channel of its label and (1 - gt_prob) / (C - 1) in the others.

    Args:
        labels: Integer (H, W): channels in [0, C), not class ids.
        channels: C, at least 1.
        gt_prob: Probability in (0, 1): 0.7 in IRN.
        unsure: Label whose pixels get 1 / C everywhere; None if there is none (IRN).

    Returns:
        float32 (C, H, W).

    Raises:
        ConfigError: When the probability is out of range.
        DataError: When a label is neither a channel nor `unsure`.
    """
    check_probability(gt_prob)
    open_ = np.zeros(labels.shape, bool) if unsure is None else labels == unsure
    known = labels[~open_]
    if known.size and not (known.min() >= 0 and known.max() < channels):
        raise DataError(f"expected labels in [0, {channels}), got {known.min()} to {known.max()}")
    if channels == 1:
        return np.zeros((1, *labels.shape), np.float32)
    scores = np.full((channels, *labels.shape), (1 - gt_prob) / (channels - 1), np.float32)
    np.put_along_axis(scores, np.where(open_, 0, labels)[None].astype(np.intp), np.float32(gt_prob), axis=0)
    scores[:, open_] = 1 / channels
    return np.negative(np.log(scores, out=scores), out=scores)


def check_probability(value: float) -> None:
    """Refuse a value of `gt_prob` outside of (0, 1).

    Raises:
        ConfigError: Naming the option.
    """
    if not 0 < value < 1:
        raise ConfigError(f"must be in (0, 1), got {value}", where="gt_prob")
