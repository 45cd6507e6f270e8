"""RecursiveMix: paste the previous, already mixed batch, made small, and ask that it is still recognized.

Yang et al., "RecursiveMix: Mixed Training with History", NeurIPS 2022, https://arxiv.org/abs/2203.06844. The batch of
the step before, resized (nearest pixel), goes into a box whose area is drawn uniformly; its mixed labels count by area.
A second head reads the features of the box (RoIAlign to one cell) and shall predict what the network said about the
whole batch before. The history starts anew with each epoch, as in the authors' code; theirs gives RoIAlign the box with
rows and columns exchanged, here they are in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import blend
from wsol.mix._boxes import Box, area, check_share, clip_box
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Output

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsol.models.classifier import Classifier


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pasted(Mixed):
    """A batch with the one before in it.

    Attributes:
        box: Where that one lies.
        before: (B, K), what the network said about it, as probabilities; None when there is no history or no box.
    """

    box: Box
    before: Tensor | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Regional(Output):
    """What the network said, also about the box.

    Attributes:
        region: float32 (B, K), logits of the second head for the box, or None.
    """

    region: Tensor | None


@MIXES.register("recursivemix")
@dataclass(frozen=True)
class RecursiveMix(MixStrategy):
    """The previous batch in a box; `Mixed.partner` counts in that batch."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Yang et al., NeurIPS 2022"
    cost: ClassVar[str] = "a second head on the box"

    alpha: float = 0.5
    """The area of the box before clipping is uniform between 0 and this share of the image."""
    omega: float = 0.5
    """Weight of the second head's loss, times the share of the box: 0.1 on CIFAR-10."""

    def __post_init__(self) -> None:
        check_share("recursivemix", "alpha", self.alpha)
        if not self.omega >= 0:
            raise ConfigError(f"omega must be 0 or more, got {self.omega}", where="recursivemix")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `area` (float, share of the image) and `centre` (row, column) of the box."""
        share = float(generator.uniform(0.0, self.alpha))
        return {"area": share, "centre": (int(generator.integers(x.shape[2])), int(generator.integers(x.shape[3])))}

    def own(self, classifier: Classifier) -> nn.Module:
        """Return the second head, and room for the history, which is not part of a checkpoint."""
        from wsol.mix._history import History

        return History(classifier)

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Paste the batch before; without context or history nothing is mixed. See `MixStrategy.mix`."""
        from torch.nn.functional import interpolate

        size, ratio = (x.shape[2], x.shape[3]), math.sqrt(draws["area"])
        box = clip_box(size, (int(size[0] * ratio), int(size[1] * ratio)), draws["centre"])
        past = None if context is None else cast(Any, context.own).recall(context.epoch)
        if past is None or not area(box):
            whole = blend(x, y, y.new_ones((1, 1, *size)), np.arange(len(x)))
            return _extend(whole, box=(0, 0, 0, 0), before=None)
        images, targets, before = past
        partner = np.arange(len(x)) % len(images)
        top, left, bottom, right = box
        other, mask = x.clone(), y.new_ones((1, 1, *size))
        other[:, :, top:bottom, left:right] = interpolate(images[partner], (bottom - top, right - left), mode="nearest")
        mask[:, :, top:bottom, left:right] = 0.0
        weight, y_partner = mask.mean(), targets[partner]
        mixed = Mixed(
            images=other,
            targets=y * weight + y_partner * (1.0 - weight),
            y_own=y,
            y_partner=y_partner,
            partner=partner,
            own_weight=weight.expand(len(x)),
            own_mask=mask.expand(len(x), 1, *size),
        )
        return _extend(mixed, box=box, before=before[partner])

    def forward(self, mixed: Mixed, context: Context) -> Output:
        """Run the network on the whole image, and the second head on the box."""
        from wsol.mix._history import forward_with_box

        pasted = cast(Pasted, mixed)
        box = None if pasted.before is None else pasted.box
        logits, region = forward_with_box(context, mixed.images, box)
        return Regional(logits=logits, region=region)

    def loss(self, mixed: Mixed, output: Output, context: Context) -> Tensor:
        """Return the loss of the batch plus that of the second head, and keep the batch for the next step."""
        before, region = cast(Pasted, mixed).before, cast(Regional, output).region
        loss = context.criterion(output.logits, mixed.targets)
        if before is not None and region is not None:
            loss = loss + context.criterion(region, before) * self.omega * (1.0 - mixed.own_weight[0])
        said = output.logits.detach()
        probabilities = said.sigmoid() if context.multi_label else said.softmax(dim=1)
        cast(Any, context.own).remember(mixed.images, mixed.targets, probabilities, epoch=context.epoch)
        return loss


def _extend(mixed: Mixed, *, box: Box, before: Tensor | None) -> Pasted:
    known = {item.name: getattr(mixed, item.name) for item in fields(Mixed)}
    return Pasted(**known, box=box, before=before)
