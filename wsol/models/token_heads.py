"""Vision transformers made to localise: a head over the patches (TS-CAM), and a class token a class (MCTformer).

Gao, Wan, Pan, Peng, Tian, Han, Zhou, Ye, "TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object
Localization", ICCV 2021, https://arxiv.org/abs/2103.14862. Xu, Ouyang, Bennamoun, Boussaid, Xu, "Multi-class Token
Transformer for Weakly Supervised Semantic Segmentation", CVPR 2022, https://arxiv.org/abs/2203.02891.

Importing this module enters the functions below into timm. With `pretrained` they start from DeiT-S; class tokens and
convolutions are new, and MCTformer has no final norm, after which the mean of a token would say nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

__all__ = ["ClassTokens", "PatchHead", "mctformer_v1_small_patch16_224", "mctformer_v2_small_patch16_224"]
__all__ += ["tscam_small_patch16_224"]


class PatchHead(VisionTransformer):
    """TS-CAM: a 3x3 convolution scores the patch tokens, and the mean of the scores is the logit.

    Args:
        num_classes: Outputs of the head.
        **options: Those of timm's `VisionTransformer`.
    """

    num_class_tokens = 0  # that the logits are read from

    def __init__(self, *, num_classes: int = 1000, **options: Any) -> None:
        super().__init__(num_classes=0, **options)
        self.feat_size = self.patch_embed.grid_size
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Begin anew with another number of classes; 0 for none."""
        self.num_classes = num_classes
        head: Any = nn.Identity()
        if num_classes:
            head = nn.Conv2d(self.embed_dim, num_classes, 3, padding=1).to(self.patch_embed.proj.weight)
            nn.init.trunc_normal_(head.weight, std=0.02)
        self.head = head

    def patch_scores(self, tokens: Tensor) -> Tensor:
        """Return the class scores (B, C, rows, columns) of the patches, from the final tokens (B, N, D) of a pass."""
        patches = tokens[:, self.num_prefix_tokens :].transpose(1, 2)
        rows, columns = self.feat_size
        if rows * columns != patches.shape[2]:
            rows = columns = math.isqrt(patches.shape[2])
        scores: Tensor = self.head(patches.reshape(*patches.shape[:2], rows, columns))
        return scores

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, C); the mean (B, D) of the patch tokens without classes, or when asked."""
        if pre_logits or not self.num_classes:
            return x[:, self.num_prefix_tokens :].mean(1)
        return self.patch_scores(x).mean((2, 3))

    def adapt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of an ordinary vision transformer as far as they fit; those of such a model as they are.

        Args:
            weights: Parameter name to tensor.
        """
        known = self.state_dict()
        linear = "head.weight" in weights and weights["head.weight"].ndim == 2
        kept = {
            name: item for name, item in weights.items() if name in known and not (linear and name.startswith("head."))
        }
        return checkpoint_filter_fn(kept, self)

    def _pos_embed(self, x: Tensor) -> Tensor:
        self.feat_size = (x.shape[1], x.shape[2]) if self.dynamic_img_size else self.patch_embed.grid_size
        return super()._pos_embed(x)


class ClassTokens(PatchHead):
    """MCTformer: as many class tokens as classes; the mean of a token is the logit of its class.

    Args:
        num_classes: Number of classes, and of class tokens.
        patch_cam: MCTformer-V2: a 3x3 convolution scores the patch tokens too. The paper gives both logits a loss of
            their own; here the logits are their mean.
        **options: Those of timm's `VisionTransformer`.
    """

    def __init__(self, *, num_classes: int = 1000, patch_cam: bool = False, **options: Any) -> None:
        self.patch_cam = patch_cam
        fixed = {"class_token": False, "no_embed_class": True, "global_pool": "", "final_norm": False}
        super().__init__(num_classes=num_classes, **{**options, **fixed})

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Begin anew with another number of classes; 0 for none."""
        super().reset_classifier(num_classes if self.patch_cam else 0)
        self.num_classes = self.num_prefix_tokens = self.num_class_tokens = num_classes
        tokens: Any = nn.Identity()
        if num_classes:
            tokens = nn.Embedding(num_classes, self.embed_dim).to(self.patch_embed.proj.weight)
            nn.init.trunc_normal_(tokens.weight, std=0.02)
        self.class_tokens = tokens

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """Return what belongs to the classes: their tokens, and the convolution."""
        return (self.class_tokens, self.head) if self.patch_cam else self.class_tokens

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are no weights."""
        return {*super().no_weight_decay(), "class_tokens.weight"}

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, C); the mean (B, D) of the patch tokens without classes, or when asked."""
        if pre_logits or not self.num_classes:
            return x[:, self.num_prefix_tokens :].mean(1)
        logits = x[:, : self.num_classes].mean(2)
        return (logits + self.patch_scores(x).mean((2, 3))) / 2 if self.patch_cam else logits

    def adapt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of an ordinary vision transformer as far as they fit; those of such a model as they are.

        Args:
            weights: Parameter name to tensor.
        """
        others = sum(name in weights for name in ("cls_token", "dist_token"))
        patches = {"pos_embed": weights["pos_embed"][:, others:]} if "pos_embed" in weights else {}
        return super().adapt({**weights, **patches})

    def _pos_embed(self, x: Tensor) -> Tensor:
        x = super()._pos_embed(x)
        if not self.num_classes:
            return x
        return torch.cat([self.class_tokens.weight.expand(len(x), -1, -1), x], dim=1)


_DEIT: Any = timm.get_pretrained_cfg("deit_small_patch16_224")
_NAMES = ("tscam_small_patch16_224", "mctformer_v1_small_patch16_224", "mctformer_v2_small_patch16_224")
default_cfgs = generate_default_cfgs(
    {f"{name}.deit": replace(_DEIT, architecture=None, tag=None, classifier=None) for name in _NAMES}
)


def _build(kind: type[PatchHead], name: str, pretrained: bool, options: dict[str, Any]) -> PatchHead:
    small: dict[str, Any] = {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6, **options}
    small.update(pretrained_strict=False, pretrained_filter_fn=_adapt)
    return build_model_with_cfg(kind, name, pretrained, **small)


def _adapt(weights: dict[str, Any], model: PatchHead) -> dict[str, Tensor]:
    return model.adapt(weights.get("model", weights))


@register_model
def tscam_small_patch16_224(pretrained: bool = False, **options: Any) -> PatchHead:
    """TS-CAM on DeiT-S."""
    return _build(PatchHead, "tscam_small_patch16_224", pretrained, options)


@register_model
def mctformer_v1_small_patch16_224(pretrained: bool = False, **options: Any) -> PatchHead:
    """MCTformer-V1 on DeiT-S: class tokens only."""
    return _build(ClassTokens, "mctformer_v1_small_patch16_224", pretrained, options)


@register_model
def mctformer_v2_small_patch16_224(pretrained: bool = False, **options: Any) -> PatchHead:
    """MCTformer-V2 on DeiT-S: class tokens and a head over the patches."""
    return _build(ClassTokens, "mctformer_v2_small_patch16_224", pretrained, {"patch_cam": True, **options})
