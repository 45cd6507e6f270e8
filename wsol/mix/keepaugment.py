"""KeepAugment: delete or change an image only where it is not salient.

Gong, Wang, Li, Chandra, Liu, "KeepAugment: A Simple Information-Preserving Data Augmentation Approach", CVPR 2021,
https://arxiv.org/abs/2011.11778. From the paper's description, not verified against code: the authors published none.
g = max over channels of |d score / d x|, the score of the image's label (the sum over several labels); the importance
of a box S is the sum of g in S; its threshold is the quantile tau over all boxes of that size in the image.

- `cut`: boxes are drawn until one is less important than the threshold; it is deleted (selective cut).
- `paste`: another strategy changes the image; boxes are drawn until one is more important than the threshold, and the
  image itself is put back there (selective paste). Where that strategy mixes, the labels follow the pixels.

A batch carries a fixed number of draws; the best of them is taken where none passes, as on a uniform image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.mix import MIXES, from_text
from wsol.mix._blend import delete, tensor_like
from wsol.mix._boxes import check_share
from wsol.mix._compose import Over
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.models.classifier import Classifier

TRIES = 16


@MIXES.register("keepaugment")
@dataclass(frozen=True, kw_only=True)
class KeepAugment(Over):
    """Delete what is not salient, or keep what is."""

    family: ClassVar[Family] = "delete"
    paper: ClassVar[str] = "Gong et al., CVPR 2021"
    cost: ClassVar[str] = "1 fwd + 1 bwd"

    mode: Literal["cut", "paste"] = "cut"
    """cut: delete a box that is not salient; paste: put a salient box back after `inner` changed the image."""
    inner: str = "gridmask"
    """For paste, the strategy that changes the image: its name, or with options as in 'cutmix: {alpha: 0.5}'."""
    tau: float = 0.6
    """Quantile of the importance over all boxes."""
    size: float = 0.5
    """Sides of the box, as a share of the image's."""

    def __post_init__(self) -> None:
        check_share("keepaugment", "tau", self.tau)
        if not 0 < self.size <= 1:
            raise ConfigError(f"size must lie in (0, 1], got {self.size}", where="keepaugment")
        super().__post_init__()

    @cached_property
    def strategy(self) -> MixStrategy:
        """What changes the image, for paste; for cut it is not used."""
        return from_text(self.inner if self.mode == "paste" else "none")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `corners` (float (B, TRIES, 2) in [0, 1), top left corners to try) and `inner` (its draws)."""
        return {"corners": generator.random((len(x), TRIES, 2)), "inner": self.strategy.draw(x, generator)}

    def check(self, classifier: Classifier) -> None:
        """Refuse inner strategies with labels or a loss of their own, and what those refuse."""
        from wsol.mix._tokens import require_plain

        require_plain(self.strategy, name="keepaugment")
        super().check(classifier)

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Look at the clean images, then cut or paste; see `MixStrategy.mix`."""
        from wsol.mix._providers import input_gradient, require

        context = require(context, name="keepaugment")
        gradient = input_gradient(context, x, y, objective=lambda logits, labels: (logits * labels).sum())
        inside = find_boxes(
            gradient.abs().amax(1), draws["corners"], size=self.size, tau=self.tau, salient=self.mode == "paste"
        )
        if self.mode == "cut":
            return delete(x, y, inside)
        changed = self.strategy.mix(x, y, draws["inner"], context)
        if changed.own_mask is None:
            hint = "take gridmask, cutout, cutmix"
            raise ConfigError("the inner strategy does not say whose each pixel is", where="keepaugment", hint=hint)
        kept = tensor_like(inside, x)[:, None]
        mask = changed.own_mask * (1.0 - kept.to(y)) + kept.to(y)
        # A deletion has holes, and yet the whole label.
        weight = changed.own_weight.where(changed.own_weight == 1.0, mask.mean((1, 2, 3)))
        return replace(
            changed,
            images=changed.images * (1.0 - kept) + x * kept,
            targets=y * weight[:, None] + changed.y_partner * (1.0 - weight[:, None]),
            own_weight=weight,
            own_mask=mask,
        )


def find_boxes(
    importance: Tensor, corners: NDArray[np.float64], *, size: float, tau: float, salient: bool
) -> NDArray[np.bool_]:
    """Choose a box for each image.

    Args:
        importance: (B, H, W), not negative.
        corners: (B, TRIES, 2) in [0, 1), places to try, as shares of all places.
        size: Sides as a share of the image's.
        tau: Quantile of the importance over all boxes of that size (the lower value between two).
        salient: Whether boxes above the quantile are wanted, or below.

    Returns:
        bool (B, H, W), the pixels of the boxes.
    """
    import torch

    count, height, width = importance.shape
    h, w = max(int(height * size), 1), max(int(width * size), 1)
    sums = box_sums(importance, (h, w)).flatten(1)
    places = sums.shape[1]
    threshold = sums.kthvalue(min(int(tau * places) + 1, places), dim=1).values[:, None]
    top = (corners[..., 0] * (height - h + 1)).astype(np.int64)
    left = (corners[..., 1] * (width - w + 1)).astype(np.int64)
    tried = sums.gather(1, torch.from_numpy(top * (width - w + 1) + left).to(sums.device))
    passes = tried > threshold if salient else tried < threshold
    best = tried.argmax(1) if salient else tried.argmin(1)
    chosen = passes.to(tried).argmax(1).where(passes.any(1), best).cpu().numpy()
    inside = np.zeros((count, height, width), dtype=bool)
    for row, at in enumerate(chosen):
        inside[row, top[row, at] : top[row, at] + h, left[row, at] : left[row, at] + w] = True
    return inside


def box_sums(maps: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return the sums of maps (B, H, W) over all boxes of some sides, float64 (B, H - h + 1, W - w + 1)."""
    from torch.nn import functional

    (h, w), table = sides, functional.pad(maps.double(), (1, 0, 1, 0)).cumsum(1).cumsum(2)
    return table[:, h:, w:] - table[:, :-h, w:] - table[:, h:, :-w] + table[:, :-h, :-w]
