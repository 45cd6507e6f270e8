"""DynamicViT's training: learn which patches to drop, with the network before it as the teacher.

Rao, Zhao, Liu, Lu, Zhou, Hsieh, "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS
2021, https://arxiv.org/abs/2106.02034; the model is `wsol.models.dynamic_tokens`.

    loss = CE + 2 mean_s mean_b (mean_n d_s - rho_s)^2 + 0.5 KL(prediction, teacher's) + 0.5 (tokens, teacher's)

d_s: the decisions of stage s; tokens: final ones of the patches that every stage kept, mean squared difference, or KL
of their softmax. The teacher is a frozen copy of the network as the training begins: start from trained weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import numpy as np

from wsol.errors import ModelError
from wsol.mix import MIXES
from wsol.mix._compose import Over
from wsol.mix.base import Context, Draws, Family, Mixed, Output

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsol.models.classifier import Classifier
    from wsol.models.dynamic_tokens import DynamicPass, DynamicTokens

TokenLoss = Literal["mse", "kl"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SeededMixed(Mixed):
    """A mixed batch with the seed of the decisions about its patches.

    Attributes:
        seed: Of torch's generator.
    """

    seed: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DynamicOutput(Output):
    """Logits and what was dropped.

    Attributes:
        seen: Tokens and decisions, with graph.
    """

    seen: DynamicPass


@MIXES.register("dynamic_tokens")
@dataclass(frozen=True, kw_only=True)
class DynamicTraining(Over):
    """Train a model that drops patches, over any strategy."""

    family: ClassVar[Family] = "other"
    paper: ClassVar[str] = "Rao et al., NeurIPS 2021"
    cost: ClassVar[str] = "1 fwd"

    inner: str = "choice"
    """The strategy that mixes the images: its name, or with options as in 'cutmix: {alpha: 0.5}'."""
    ratio_weight: float = 2.0
    """Weight of the loss on how many patches are kept."""
    distill_weight: float = 0.5
    """Weight of the divergence from the teacher's prediction."""
    token_weight: float = 0.5
    """Weight of the loss on the kept tokens."""
    distance: TokenLoss = "mse"
    """Between tokens; mse: mean squared difference (DeiT); kl: divergence of their softmax (LV-ViT)."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models that drop no patches, and inner strategies with labels or a loss of their own."""
        from wsol.mix._tokens import require_plain
        from wsol.models.dynamic_tokens import DynamicTokens

        require_plain(self.strategy, name="dynamic_tokens")
        if not isinstance(classifier.module, DynamicTokens):
            hint = "put dynamic_tokens: before the name of a vision transformer with a class token"
            raise ModelError("drops no patches", where=classifier.name, hint=hint)
        super().check(classifier)

    def own(self, classifier: Classifier) -> nn.Module:
        """Return the teacher, a frozen copy of the network, beside the state of the inner strategy."""
        from torch import nn

        from wsol.models._frozen import Frozen

        parts = {"teacher": Frozen(classifier.module.base), "inner": self.strategy.own(classifier)}
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None})

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `inner` (what the inner strategy draws) and `seed` (int, of the decisions)."""
        return {"inner": self.strategy.draw(x, generator), "seed": int(generator.integers(2**31))}

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Mix as the inner strategy does; see `MixStrategy.mix`."""
        mixed = self.strategy.mix(x, y, draws["inner"], None if context is None else _inside(context))
        known = {item.name: getattr(mixed, item.name) for item in fields(Mixed)}
        return SeededMixed(**known, seed=draws["seed"])

    def after_step(self, context: Context) -> None:
        """Update the state of the inner strategy."""
        super().after_step(_inside(context))

    def forward(self, mixed: Mixed, context: Context) -> Output:
        """Run the network on the mixed images and keep what it dropped."""
        import torch

        module: DynamicTokens = context.classifier.module
        with torch.autocast(mixed.images.device.type, dtype=torch.bfloat16, enabled=context.amp):
            generator = torch.Generator(mixed.images.device).manual_seed(cast(SeededMixed, mixed).seed)
            seen = module.run(mixed.images, generator=generator)
            logits = module.forward_head(seen.tokens)
        return DynamicOutput(logits=logits.float(), seen=seen)

    def loss(self, mixed: Mixed, output: Output, context: Context) -> Tensor:
        """Return the four parts of the loss together."""
        import torch

        from wsol.mix._divergence import divergence

        module: DynamicTokens = context.classifier.module
        seen, prefix = cast(DynamicOutput, output).seen, module.num_prefix_tokens
        teacher = cast("nn.ModuleDict", context.own)["teacher"]
        with torch.no_grad(), torch.autocast(mixed.images.device.type, dtype=torch.bfloat16, enabled=context.amp):
            tokens, logits = teacher(mixed.images)
        parts = (
            context.criterion(output.logits, self.relabel(mixed, output)),
            ratio_loss(seen.decisions, module.ratios),
            divergence(output.logits, logits.float(), multi_label=context.multi_label),
            kept_token_loss(seen.tokens[:, prefix:], tokens[:, prefix:], seen.decisions[-1], kind=self.distance),
        )
        weights = (1.0, self.ratio_weight, self.distill_weight, self.token_weight)
        return torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)]).sum()


def _inside(context: Context) -> Context:
    """Return the context of the inner strategy, with its own state."""
    states = cast("nn.ModuleDict", context.own)
    inner = states["inner"] if "inner" in states else None  # noqa: SIM401 (a ModuleDict has no `get`)
    return replace(context, own=inner)


def ratio_loss(decisions: Sequence[Tensor], ratios: Sequence[float]) -> Tensor:
    """Return mean over stages and images of (share of kept patches - rho_s)^2, a scalar.

    Args:
        decisions: A (B, N) a stage, 1 for kept patches.
        ratios: rho_s of each stage.
    """
    import torch

    missed = [(kept.mean(1) - ratio).square().mean() for kept, ratio in zip(decisions, ratios, strict=True)]
    return torch.stack(missed).mean()


def kept_token_loss(tokens: Tensor, teacher: Tensor, kept: Tensor, *, kind: TokenLoss = "mse") -> Tensor:
    """Return how far the kept tokens are from the teacher's, a scalar; 0 where none is kept.

    Args:
        tokens: (B, N, D).
        teacher: (B, N, D).
        kept: (B, N), 1 for kept patches.
        kind: "mse" mean squared difference, "kl" divergence of softmax distributions over D.
    """
    from wsol.mix._divergence import divergence

    chosen = kept > 0.5
    ours, theirs = tokens.float()[chosen], teacher.float()[chosen]
    if not len(ours):
        return tokens.float().sum() * 0
    return (ours - theirs).square().mean() if kind == "mse" else divergence(ours, theirs, multi_label=False)
