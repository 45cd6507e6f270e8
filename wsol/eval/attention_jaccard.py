"""How well the best attention head covers each class: the Jaccard index of "Intriguing Properties".

Naseer, Ranasinghe, Khan, Hayat, Khan, Yang, "Intriguing Properties of Vision Transformers", NeurIPS 2021,
https://arxiv.org/abs/2105.10497: for each class in an image the IoU of its mask with the mask of each head, the best
head taken (an oracle: it looks at the ground truth), then the mean over the classes; a data set's index is the mean
over its images.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsol.errors import EvalError

Void = Literal["exclude", "as_reference"]


def attention_jaccard(masks: NDArray[np.generic], truth: NDArray[np.uint8], *, void: Void = "exclude") -> float:
    """Return the Jaccard index of one image.

    Args:
        masks: (heads, H, W), true or not 0 inside.
        truth: uint8 (H, W): 0 background, class id + 1, 255 void.
        void: "exclude" leaves void pixels out; "as_reference" counts them as wrong, which the authors' code does.

    Returns:
        In [0, 1]; NaN for an image without any class.

    Raises:
        EvalError: When the sizes differ.
    """
    if masks.ndim != 3 or masks.shape[1:] != truth.shape:
        hint = "repeat each patch over its pixels first"
        raise EvalError(f"expected masks (heads, {truth.shape}), got {masks.shape}", where="masks", hint=hint)
    counted = truth != 255 if void == "exclude" else np.ones_like(truth, dtype=bool)
    heads, labels = masks[:, counted] != 0, truth[counted]
    best = []
    for value in np.setdiff1d(labels, (0, 255)):
        inside = labels == value
        best.append(max((head & inside).sum() / (head | inside).sum() for head in heads))
    return float(np.mean(best)) if best else float("nan")
