"""How a mask turns into a mixed batch: a sum of two images, or an image with holes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsol.mix.base import Mixed, check_labels

if TYPE_CHECKING:
    from torch import Tensor


def blend(
    x: Tensor,
    y: Tensor,
    mask: Tensor,
    partner: NDArray[np.int64],
    *,
    other: Tensor | None = None,
    weight: Tensor | None = None,
) -> Mixed:
    """Add two images pixel by pixel: mask x + (1 - mask) other.

    Args:
        x: (B, C, H, W).
        y: Float (B, K).
        mask: Share of the own image in [0, 1], (B or 1, 1, H or 1, W or 1).
        partner: int64 (B,).
        other: (B, C, H, W), what lies beneath; the partner by default.
        weight: Share of the own label, (B,) or (1,); the mean of the mask by default.

    Raises:
        DataError: When the labels are no floats (B, K).
    """
    check_labels(y)
    share, y_partner = mask.to(x.dtype), y[partner]
    weight = mask.mean(dim=(1, 2, 3)) if weight is None else weight
    weight = weight.to(y.dtype).expand(len(x))
    return Mixed(
        images=x * share + (x[partner] if other is None else other) * (1.0 - share),
        targets=y * weight[:, None] + y_partner * (1.0 - weight[:, None]),
        y_own=y,
        y_partner=y_partner,
        partner=partner,
        own_weight=weight,
        own_mask=mask.to(y.dtype).expand(len(x), 1, *x.shape[2:]),
    )


def delete(x: Tensor, y: Tensor, hidden: NDArray[np.bool_], *, fill: Tensor | float = 0.0) -> Mixed:
    """Fill holes of the images; the labels stay as they are.

    Args:
        x: (B, C, H, W), normalized, so that 0 is the mean color of the data set.
        y: Float (B, K).
        hidden: (B, H, W), the holes.
        fill: A number, or (B or 1, C, H, W).

    Returns:
        Every image is its own partner with weight 1; `own_mask` is 0 in the holes, so its mean is not the weight.
    """
    import torch

    holes = torch.from_numpy(hidden).to(x.device)[:, None]
    return Mixed(
        images=torch.where(holes, torch.as_tensor(fill, dtype=x.dtype, device=x.device), x),
        targets=y,
        y_own=y,
        y_partner=y,
        partner=np.arange(len(x)),
        own_weight=y.new_ones(len(x)),
        own_mask=(~holes).to(y.dtype),
    )


def tensor_like(values: NDArray[Any] | list[float] | float, like: Tensor) -> Tensor:
    """Return numbers as a tensor of the type and on the device of another one."""
    import torch

    return torch.as_tensor(np.asarray(values), dtype=like.dtype, device=like.device)
