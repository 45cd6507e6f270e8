"""The image tower of CLIP as a timm vision transformer, so that every map method works on it unchanged.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
https://arxiv.org/abs/2103.00020. The head compares the image with one text a class, so the logits are those of
zero-shot classification and the class ids are positions in the list of texts.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any, Literal, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from wsol.errors import ModelError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_KEPT_GRIDS = 16


class ZeroShotHead(nn.Module):
    """Pooled tokens to class logits: scale * cosine(projected image, text of the class) + bias; always float32.

    Args:
        proj: (B, D) to (B, E).
        embed_dim: E.
        logit_scale: Factor of the cosines, already exponentiated.
        logit_bias: Added to the logits (SigLIP).

    Attributes:
        proj: As given; for a `ClipViT` an `nn.Linear` without bias.
        logit_scale: As given.
        logit_bias: As given.
        text_features: float32 (C, E), unit rows: the classes.
        background_features: float32 (K, E), unit rows: texts of what is no class, for methods that contrast with it.
    """

    text_features: Tensor
    background_features: Tensor

    def __init__(self, proj: nn.Module, *, embed_dim: int, logit_scale: float = 1.0, logit_bias: float = 0.0) -> None:
        super().__init__()
        self.proj, self.logit_scale, self.logit_bias = proj, logit_scale, logit_bias
        for name in ("text_features", "background_features"):
            self.register_buffer(name, torch.zeros(0, embed_dim), persistent=False)

    def embed(self, pooled: Tensor) -> Tensor:
        """Return unit image features (B, E), float32, of pooled tokens (B, D)."""
        with torch.autocast(pooled.device.type, enabled=False):
            weight = next(self.proj.parameters(), pooled)
            return F.normalize(self.proj(pooled.to(weight.dtype)).float(), dim=-1)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return logits (B, C), float32, of pooled tokens (B, D)."""
        with torch.autocast(pooled.device.type, enabled=False):
            return self.logit_scale * self.embed(pooled) @ self.text_features.float().T + self.logit_bias


class ClipViT(VisionTransformer):
    """The image tower of a CLIP model with its zero-shot head; weights start at random.

    Args:
        img_size: Size (h, w) in pixels of the grid that the position embedding was trained for.
        patch_size: Side of a patch in pixels.
        width: Size of a token.
        depth: Number of blocks.
        num_heads: Attention heads a block.
        embed_dim: Size of the space that images and texts share.
        mlp_ratio: Hidden size of the MLPs / width.
        quick_gelu: x * sigmoid(1.702 x), as OpenAI trained, instead of GELU.
        pre_norm: A norm before the first block.
        layer_scale: Whether the blocks scale their branches.
        norm_eps: Epsilon of the norms.
        pool: "token" reads the class token, "avg" the mean over the patches.
        norm_after_pool: Pool before the last norm; it is then `fc_norm`, and `norm` is the identity.
        logit_scale: See `ZeroShotHead`.
        logit_bias: See `ZeroShotHead`.

    Attributes:
        patch_size: As given.
        fp16_position: Round the position embedding to float16, as CLIP-ES's own code does whatever its precision.
    """

    head: ZeroShotHead  # type: ignore[assignment]
    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(
        self,
        *,
        img_size: tuple[int, int],
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        embed_dim: int,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = True,
        pre_norm: bool = True,
        layer_scale: bool = False,
        norm_eps: float = 1e-5,
        pool: Literal["token", "avg"] = "token",
        norm_after_pool: bool = False,
        logit_scale: float = 1.0,
        logit_bias: float = 0.0,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            num_classes=0,
            global_pool=pool,
            fc_norm=norm_after_pool,
            pre_norm=pre_norm,
            init_values=1.0 if layer_scale else None,
            act_layer="quick_gelu" if quick_gelu else "gelu",
            norm_layer=partial(nn.LayerNorm, eps=norm_eps),
            dynamic_img_size=True,
            weight_init="skip",
        )
        # timm's own start draws every weight once more, and what is loaded replaces it all.
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)
        self.patch_size = patch_size
        self.fp16_position = False
        proj = nn.Linear(width, embed_dim, bias=False)
        self.head = ZeroShotHead(proj, embed_dim=embed_dim, logit_scale=logit_scale, logit_bias=logit_bias)
        describe(self, name=f"clip_vit_w{width}_d{depth}_p{patch_size}", img_size=img_size)
        self._positions: OrderedDict[object, Tensor] = OrderedDict()

    @property
    def proj(self) -> nn.Linear:
        """The projection into the shared space, without bias: weight (E, D)."""
        return cast(nn.Linear, self.head.proj)

    @property
    def logit_scale(self) -> float:
        """The factor of the cosines, already exponentiated."""
        return self.head.logit_scale

    @property
    def text_features(self) -> Tensor:
        """Unit features (C, E) of the classes."""
        return self.head.text_features

    @property
    def background_features(self) -> Tensor:
        """Unit features (K, E) of what is no class."""
        return self.head.background_features

    def position(self, rows: int, columns: int) -> Tensor:
        """Return the position embedding for a grid.

        Args:
            rows: Patches from top to bottom.
            columns: Patches from left to right.

        Returns:
            (1, 1 + rows * columns, D): the class token's row as it is, the others bilinear between those of the
            trained grid (pixel centres aligned). Recent grids are kept, as long as the weights stay.
        """
        if torch.is_grad_enabled() and self.pos_embed.requires_grad:
            return self._interpolated(rows, columns)
        trained = self.pos_embed
        key = (rows, columns, self.fp16_position, trained.device, trained.dtype, trained.data_ptr(), trained._version)
        if key not in self._positions:
            # Not an inference tensor: the same one serves calls that record gradients.
            with torch.inference_mode(False), torch.no_grad():
                self._positions[key] = self._interpolated(rows, columns)
        self._positions.move_to_end(key)
        if len(self._positions) > _KEPT_GRIDS:
            self._positions.popitem(last=False)
        return self._positions[key]

    def _interpolated(self, rows: int, columns: int) -> Tensor:
        position: Tensor = self.pos_embed
        height, width = self.patch_embed.grid_size
        if (rows, columns) != (height, width):
            grid = position[:, 1:].reshape(1, height, width, -1).permute(0, 3, 1, 2).float()
            grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
            position = torch.cat([position[:, :1], grid.flatten(2).mT.to(position)], dim=1)
        return position.half().to(position) if self.fp16_position else position

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Put the class token in front of patches (B, rows, columns, D) and add the position embedding."""
        batch, rows, columns, _ = x.shape
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1).to(x.dtype), x.flatten(1, 2)], dim=1)
        placed: Tensor = self.pos_drop(tokens + self.position(rows, columns))
        return placed


def halve_encoder(module: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Keep the linear weights of all blocks but the last in half precision, in place.

    Under autocast of that type the results are the same bits, but no weight is cast on each call: for ViT-B/16 and one
    image that is up to half of the time on a CPU. Without autocast the module cannot run any more.

    Args:
        module: An image tower.
        dtype: torch.bfloat16 or torch.float16.
    """
    blocks: Any = module.blocks
    for block in blocks[:-1]:
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                layer.to(dtype)


def set_texts(module: nn.Module, classes: Tensor, background: Tensor | None = None) -> None:
    """Give a zero-shot model its classes.

    Args:
        module: A `ClipViT`, or another model whose `head` is a `ZeroShotHead`; changed in place.
        classes: (C, E) text features; normalized here.
        background: (K, E) text features of what is no class; none by default.

    Raises:
        ModelError: When the features do not fit the model.
    """
    head = getattr(module, "head", None)
    if not isinstance(head, ZeroShotHead):
        raise ModelError(f"{type(module).__name__} has no zero-shot head", hint="load it as clip:NAME")
    size = head.text_features.shape[1]
    given = {"text_features": classes, "background_features": classes[:0] if background is None else background}
    for name, features in given.items():
        if features.ndim != 2 or features.shape[1] != size:
            raise ModelError(f"expected text features (n, {size}), got {tuple(features.shape)}")
        device = getattr(head, name).device
        setattr(head, name, F.normalize(features.detach().to(device, torch.float32), dim=-1))
    module.num_classes = len(classes)  # type: ignore[assignment]


def describe(
    module: nn.Module,
    *,
    name: str,
    img_size: tuple[int, int],
    mean: tuple[float, ...] = OPENAI_MEAN,
    std: tuple[float, ...] = OPENAI_STD,
    interpolation: str = "bicubic",
) -> None:
    """Write down what a model's inputs look like, where timm keeps it."""
    facts = {"architecture": name, "input_size": (3, *img_size), "mean": mean, "std": std}
    module.pretrained_cfg = {**facts, "interpolation": interpolation, "num_classes": 0}  # type: ignore[assignment]
