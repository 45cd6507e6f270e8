"""HAT: train on images disturbed against the network, in the same step as on the images as they are.

Bai, Yuan, Xia, Yan, Li, Liu, "Improving Vision Transformers by Revisiting High-frequency Components", ECCV 2022,
https://arxiv.org/abs/2204.00993. From a disturbance of 0, each of three passes adds the gradient of

    first: CE + 0.01 KL,    then: (3 CE + 0.01 KL) / 2

(KL: symmetric, between the prediction and that for the clean image) and moves the disturbance by step times the sign of
its gradient, within a bound. In the last third of the training there is only the first pass. Pixels are disturbed after
normalization, as in the authors' code, which has no frequency filter. The images are those of an inner strategy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._compose import Around
from wsol.mix.base import Context, Draws, Family, StepStrategy

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.models.classifier import Classifier


@MIXES.register("hat")
@dataclass(frozen=True)
class HAT(Around, StepStrategy):
    """Adversarial passes over the mixed images."""

    family: ClassVar[Family] = "other"
    paper: ClassVar[str] = "Bai et al., ECCV 2022"
    cost: ClassVar[str] = "3 fwd + 2 bwd"

    inner: str = "choice"
    """The strategy that mixes the images: its name, or with options as in 'cutmix: {alpha: 0.5}'."""
    passes: int = 3
    """Forward and backward passes a step."""
    bound: float = 2 / 255
    """Largest disturbance, in units of the normalized input."""
    step_size: float = 1 / 255
    """By how much a pass moves the disturbance."""
    weight: float = 3.0
    """Weight of the disturbed images."""
    consistency: float = 0.01
    """Weight of the divergence from the prediction for the clean image."""
    until: float = 2 / 3
    """Share of the training after which images are no longer disturbed."""

    def __post_init__(self) -> None:
        if self.passes < 1:
            raise ConfigError(f"passes must be 1 or more, got {self.passes}", where="hat")
        super().__post_init__()

    def check(self, classifier: Classifier) -> None:
        """Refuse inner strategies with labels or a loss of their own, and what those refuse."""
        from wsol.mix._tokens import require_plain

        require_plain(self.strategy, name="hat")
        super().check(classifier)

    def step(
        self, x: Tensor, y: Tensor, draws: Draws, context: Context, *, backward: Callable[[Tensor], None]
    ) -> Tensor:
        """Add the gradients of all passes; see `StepStrategy.step`. Returns the loss of the first."""
        import torch

        from wsol.mix._divergence import divergence

        mixed = self.strategy.mix(x, y, draws, context)
        passes = self.passes if context.epoch < self.until * context.epochs else 1
        with torch.no_grad():
            clean = _logits(context, mixed.images)
        delta, first = torch.zeros_like(mixed.images), None
        for at in range(passes):
            delta = delta.detach().requires_grad_(at + 1 < passes)
            logits = _logits(context, mixed.images + delta)
            known = {"multi_label": context.multi_label}
            apart = (divergence(logits, clean, **known) + divergence(clean, logits, **known)) / 2
            loss, apart = context.criterion(logits, mixed.targets), self.consistency * apart
            loss = loss + apart if at == 0 else (self.weight * loss + apart) / (passes - 1)
            backward(loss)
            first = loss.detach() if first is None else first
            if delta.grad is not None:
                delta = (delta.detach() + self.step_size * delta.grad.sign()).clamp(-self.bound, self.bound)
        if first is None:
            raise ValueError("no pass")
        return first


def _logits(context: Context, images: Tensor) -> Tensor:
    import torch

    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=context.amp):
        logits: Tensor = context.classifier.module(images)
    return logits.float()
