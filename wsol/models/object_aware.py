"""OAMixer: attention between patches is weighed by how alike their labels are.

Kang, Mo, Shin, "OAMixer: Object-aware Mixing Layer for Vision Transformers", CVPRW 2022,
https://arxiv.org/abs/2212.06595. With the distance D of the labels of two patches and one number kappa >= 0 a block,
trained from 0 on: M = exp(-kappa D) or 1 - kappa D; A <- A M with rows divided by their sums; the rows and columns of
class, distillation and register tokens have M = 1. In MLP-Mixers the linear part L = W2 W1 of the token MLP becomes L
M. kappa = 0 gives the model inside.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsol.errors import ModelError
from wsol.models._wrapped import Wrapped, rewritten

Distance = Literal["l1", "cosine"]
Kernel = Literal["exp", "minus"]


class ObjectAware(Wrapped):
    """A vision transformer or MLP-Mixer of timm that knows the labels of its patches.

    Without labels it is the model inside. Give them in `labelled`, for training and for inference.

    Args:
        base: The model; it is not copied and not changed.
        distance: Between label vectors: "l1" or 1 - cosine.
        kernel: M as a function of the distance: "exp" exp(-kappa D) or "minus" 1 - kappa D (kappa at most 1).

    Attributes:
        kappa: float32 (blocks,), clamped at 0 (and at 1 for "minus") where it is used.

    Raises:
        ModelError: When the model has no blocks of either kind.
    """

    def __init__(self, base: nn.Module, *, distance: Distance = "l1", kernel: Kernel = "exp") -> None:
        super().__init__(base)
        blocks: Any = getattr(base, "blocks", ())
        self._mixer = bool(blocks) and all(_is_token_mlp(block) for block in blocks)
        if not blocks or not (self._mixer or all(hasattr(getattr(block, "attn", 0), "attn_drop") for block in blocks)):
            hint = "take a plain vision transformer or an MLP-Mixer, for example deit_small_patch16_224"
            raise ModelError("has no attention between all patches", where=type(base).__name__, hint=hint)
        self.distance, self.kernel = distance, kernel
        self.kappa = nn.Parameter(torch.zeros(len(blocks)))
        self._labels: Tensor | None = None

    @contextmanager
    def labelled(self, labels: Tensor | None) -> Iterator[None]:
        """Set the labels of the patches of the images that run through the model while the block runs.

        Args:
            labels: Float (B, N, K), a vector for each patch, for example class probabilities; None for none.
        """
        before, self._labels = self._labels, labels
        try:
            yield
        finally:
            self._labels = before

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the final tokens of images (B, 3, H, W), as the model inside does.

        Raises:
            ModelError: When there are labels, but not one vector a patch and image.
        """
        if self._labels is None:
            tokens: Tensor = self.base.forward_features(x)
            return tokens
        apart = patch_distance(self._labels.float(), distance=self.distance)
        if len(apart) != len(x):
            raise ModelError(f"expected patch labels of {len(x)} images, got {len(apart)}")
        with self._blocks_changed(apart):
            tokens = self.base.forward_features(x)
        return tokens

    @torch.no_grad()
    def clamp_kappa(self) -> None:
        """Bring kappa back into its range, after each step of an optimizer: beyond it there is no gradient."""
        self.kappa.clamp_(0, 1 if self.kernel == "minus" else None)

    def similarity(self, block: int, apart: Tensor) -> Tensor:
        """Return M (B, N, N) of a block, from distances (B, N, N)."""
        kappa = self.kappa[block]
        # not clamp: as of torch 2.15 its gradient is 0 at the limit, where kappa begins
        kappa = torch.where(kappa < 0, 0.0, kappa)
        return torch.exp(-kappa * apart) if self.kernel == "exp" else 1 - torch.where(kappa > 1, 1.0, kappa) * apart

    @contextmanager
    def _blocks_changed(self, apart: Tensor) -> Iterator[None]:
        blocks: Any = self.base.blocks
        with ExitStack() as undo:
            if self._mixer:
                for at, block in enumerate(blocks):
                    hook = block.mlp_tokens.register_forward_hook(self._mixed_by_labels(at, apart))
                    undo.callback(hook.remove)
            else:
                undo.enter_context(
                    rewritten([block.attn for block in blocks], lambda at, weights: self._reweigh(at, weights, apart))
                )
            yield

    def _reweigh(self, at: int, weights: Tensor, apart: Tensor) -> Tensor:
        prefix = weights.shape[-1] - apart.shape[-1]
        if prefix != self.base.num_prefix_tokens:
            patches = weights.shape[-1] - self.base.num_prefix_tokens
            raise ModelError(f"expected labels of {patches} patches, got {apart.shape[-1]}")
        alike = nn.functional.pad(self.similarity(at, apart), (prefix, 0, prefix, 0), value=1.0)[:, None]
        product: Tensor = weights * alike.to(weights)
        return product / product.sum(-1, keepdim=True)

    def _mixed_by_labels(self, at: int, apart: Tensor) -> Any:
        def hook(layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            linear = layer.fc2.weight @ layer.fc1.weight
            change = linear * (self.similarity(at, apart) - 1)
            changed: Tensor = output + args[0] @ change.transpose(1, 2).to(args[0])
            return changed

        return hook


def patch_distance(labels: Tensor, *, distance: Distance) -> Tensor:
    """Return distances (B, N, N) between the label vectors (B, N, K) of the patches of an image."""
    if distance == "l1":
        return torch.cdist(labels, labels, p=1)
    unit = nn.functional.normalize(labels, dim=-1)
    return 1 - unit @ unit.transpose(1, 2)


def _is_token_mlp(block: Any) -> bool:
    layer = getattr(block, "mlp_tokens", None)
    return all(isinstance(getattr(layer, part, None), nn.Linear) for part in ("fc1", "fc2"))
