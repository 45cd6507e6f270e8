"""DynamicViT: a vision transformer that learns which patches it can do without.

Rao, Zhao, Liu, Lu, Zhou, Hsieh, "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", NeurIPS
2021, https://arxiv.org/abs/2106.02034. Before some blocks a predictor scores the patches that are left. In training a
hard Gumbel-softmax sample decides, and dropped patches stay but nobody attends to them; in evaluation the share rho,
rho^2, rho^3 of all patches with the best scores is kept. Attention with policy p (1 = kept) from scores s:

    e_ij = exp(s_ij - max_j s_ij) (p_j, or 1 where i = j),    A_ij = (e_ij + eps / N) / (sum_j e_ij + eps),  eps = 1e-6
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from wsol.errors import ConfigError, ModelError
from wsol.models._wrapped import Wrapped, rewritten
from wsol.models.layout import token_grid
from wsol.models.taps import evaluating

_EPS = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class DynamicPass:
    """What one forward pass did.

    Attributes:
        tokens: (B, prefix + N, D), final tokens; a patch that was left out keeps its last state, normalized.
        decisions: A float (B, N) a stage, 1 for the patches that are kept; in training with gradient.
        scores: A (B, N) a stage, log-probability of being kept; -inf where the patch was dropped before.
    """

    tokens: Tensor
    decisions: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]

    def survival(self) -> Tensor:
        """Return how long each patch survived, float32 (B, N).

        That is the number of stages that kept it, plus its probability of being kept in the last stage that saw it,
        which settles ties.
        """
        chance = self.scores[0].exp()
        for score, before in zip(self.scores[1:], self.decisions, strict=False):
            chance = torch.where(before > 0, score.exp(), chance)
        return torch.stack(self.decisions).float().sum(0) + chance.clamp_max(1 - _EPS)


class Predictor(nn.Module):
    """Log-probabilities of keeping and dropping a patch, from its own features and the mean over the kept ones.

    Args:
        dim: D of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )

    def forward(self, patches: Tensor, policy: Tensor) -> Tensor:
        """Return float32 (B, N, 2): log-probabilities of keeping and of dropping.

        Args:
            patches: (B, N, D).
            policy: (B, N), 1 for the patches that are left.
        """
        features = self.in_conv(patches)
        half, kept = features.shape[2] // 2, policy[..., None].to(features)
        mean = (features[..., half:] * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(_EPS)
        both = torch.cat([features[..., :half], mean.expand(-1, features.shape[1], -1)], 2)
        scores: Tensor = self.out_conv(both).float().log_softmax(2)
        return scores


class DynamicTokens(Wrapped):
    """A plain vision transformer with a class token that drops patches on its way.

    Args:
        base: timm `VisionTransformer`; it is not copied and not changed.
        keep: rho, share of the patches that each stage keeps of those before.
        stages: Blocks before which patches are dropped; by default after each quarter (3, 6 and 9 of 12).
        gather: In evaluation leave dropped patches out, which is faster; attention then no longer covers the grid, and
            map methods that read it refuse. Without, they stay and nobody attends to them: the same logits.

    Raises:
        ModelError: When the model is of another kind.
        ConfigError: When an option is out of range.
    """

    def __init__(
        self, base: nn.Module, *, keep: float = 0.7, stages: Sequence[int] | None = None, gather: bool = False
    ) -> None:
        super().__init__(base)
        if not isinstance(base, VisionTransformer) or not base.num_prefix_tokens or base.global_pool != "token":
            hint = "for example deit_small_patch16_224"
            raise ModelError(
                "needs a plain vision transformer with a class token", where=type(base).__name__, hint=hint
            )
        depth = len(self.base.blocks)
        if not 0 < keep <= 1:
            raise ConfigError(f"keep must be in (0, 1], got {keep}", where="DynamicTokens")
        quarters = sorted({depth * part // 4 for part in (1, 2, 3)} - {0})
        self.stages = tuple(quarters if stages is None else stages)
        if list(self.stages) != sorted({*self.stages} & {*range(depth)}) or not self.stages:
            raise ConfigError(
                f"stages must be blocks in [0, {depth - 1}] in order, got {stages}", where="DynamicTokens"
            )
        self.ratios = tuple(keep ** (at + 1) for at in range(len(self.stages)))
        self.gather = gather
        self.predictors = nn.ModuleList(Predictor(base.embed_dim) for _ in self.stages)
        self.predictors.to(next(base.parameters()))
        self.train(base.training)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the final tokens (B, prefix + N, D) of images (B, 3, H, W)."""
        return self.run(x).tokens

    def run(self, x: Tensor, *, generator: torch.Generator | None = None) -> DynamicPass:
        """Return the final tokens of images (B, 3, H, W), and what was kept.

        Args:
            x: Normalized images.
            generator: Source of the samples in training, on the device of x; by default torch's own, as for dropout.
        """
        base = self.base
        tokens = base.norm_pre(base.patch_drop(base._pos_embed(base.patch_embed(x))))
        if self.gather and not self.training:
            return self._run_gathered(tokens)
        prefix = base.num_prefix_tokens
        policy = tokens.new_ones(tokens.shape[:2], dtype=torch.float32)
        decisions: list[Tensor] = []
        scores: list[Tensor] = []
        for at, block in enumerate(base.blocks):
            if at in self.stages:
                stage, before = self.stages.index(at), policy[:, prefix:]
                both = self.predictors[stage](tokens[:, prefix:], before)
                chosen = sample(both, generator) if self.training else self._best(both[..., 0], before, stage)
                kept = chosen * before
                decisions.append(kept)
                scores.append(both[..., 0].masked_fill(before == 0, -torch.inf))
                policy = torch.cat([policy[:, :prefix], kept], 1)
            with _masked(block, policy if decisions else None):
                tokens = block(tokens)
        return DynamicPass(base.norm(tokens), tuple(decisions), tuple(scores))

    @torch.no_grad()
    def survival_map(self, x: Tensor) -> Tensor:
        """Return how long each patch of images (B, 3, H, W) survives in evaluation, float32 (B, rows, columns)."""
        with evaluating(self):
            seen = self.run(x)
        rows, columns = token_grid(self.base, size=(x.shape[2], x.shape[3]), stride=self.base.patch_embed.patch_size[0])
        return seen.survival().reshape(len(x), rows, columns)

    def _run_gathered(self, tokens: Tensor) -> DynamicPass:
        base, prefix, final = self.base, self.base.num_prefix_tokens, tokens
        count = tokens.shape[1] - prefix
        left = torch.arange(count, device=tokens.device).expand(len(tokens), -1)
        decisions: list[Tensor] = []
        scores: list[Tensor] = []
        for at, block in enumerate(base.blocks):
            if at in self.stages:
                stage = self.stages.index(at)
                final = _put_back(final, tokens, left, prefix)
                score = self.predictors[stage](tokens[:, prefix:], torch.ones_like(left, dtype=torch.float32))[..., 0]
                scores.append(score.new_full((len(tokens), count), -torch.inf).scatter(1, left, score))
                best = score.argsort(dim=1, descending=True, stable=True)[:, : self.kept_count(count, stage)]
                left = left.gather(1, best)
                decisions.append(torch.zeros_like(scores[-1]).scatter(1, left, 1.0))
                chosen = tokens[:, prefix:].gather(1, best[..., None].expand(-1, -1, tokens.shape[2]))
                tokens = torch.cat([tokens[:, :prefix], chosen], 1)
            tokens = block(tokens)
        return DynamicPass(base.norm(_put_back(final, tokens, left, prefix)), tuple(decisions), tuple(scores))

    def kept_count(self, patches: int, stage: int) -> int:
        """Return how many of all patches a stage keeps in evaluation: int(N rho^k), at least one."""
        return max(1, int(patches * self.ratios[stage]))

    def _best(self, scores: Tensor, before: Tensor, stage: int) -> Tensor:
        open_scores = scores.masked_fill(before == 0, -torch.inf)
        best = open_scores.argsort(dim=1, descending=True, stable=True)[:, : self.kept_count(scores.shape[1], stage)]
        return torch.zeros_like(before).scatter(1, best, 1.0)


def sample(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return a hard Gumbel-softmax sample of the first of two outcomes, 0 or 1 with the gradient of the soft one.

    Args:
        scores: Log-probabilities (..., 2).
        generator: On the device of the scores; None for torch's own.
    """
    noise = -torch.empty_like(scores).exponential_(generator=generator).log()
    soft = (scores + noise).softmax(-1)[..., 0]
    return (soft > 0.5).to(soft) - soft.detach() + soft


def masked_attention(weights: Tensor, policy: Tensor) -> Tensor:
    """Return attention that leaves dropped tokens out.

    Args:
        weights: Softmax weights (B, heads, N, N) of all tokens; exp(s - max s) is each divided by its row's largest.
        policy: (B, N), 1 for tokens that are kept.
    """
    count = weights.shape[-1]
    itself = torch.eye(count, dtype=policy.dtype, device=policy.device)
    allowed = policy[:, None, None] + (1 - policy)[:, None, None] * itself
    raised = weights.float() / weights.float().amax(-1, keepdim=True) * allowed
    return ((raised + _EPS / count) / (raised.sum(-1, keepdim=True) + _EPS)).to(weights)


@contextmanager
def _masked(block: Any, policy: Tensor | None) -> Iterator[None]:
    if policy is None:
        yield
        return
    with rewritten([block.attn], lambda _, weights: masked_attention(weights, policy)):
        yield


def _put_back(final: Tensor, tokens: Tensor, left: Tensor, prefix: int) -> Tensor:
    """Return all tokens with those that are left at their places."""
    at = left[..., None].expand(-1, -1, tokens.shape[2])
    return torch.cat([tokens[:, :prefix], final[:, prefix:].scatter(1, at, tokens[:, prefix:])], 1)
