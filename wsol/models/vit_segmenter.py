"""Segmenter: a vision transformer with a linear or a mask-transformer decoder.

Strudel, Garcia, Laptev, Schmid, "Segmenter: Transformer for Semantic Segmentation", ICCV 2021,
https://arxiv.org/abs/2105.05633. The mask transformer lets one token a class attend to the patches: the logit of a
patch is the cosine between its token and the token of the class, normalised over the classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from wsol.errors import ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import tap

Decoder = Literal["mask", "linear"]
_HEAD_WIDTH = 64
_LAYERS = 2
_DROPOUT = 0.1


class LinearDecoder(nn.Module):
    """One linear layer on the patch tokens.

    Args:
        width: Channels of the encoder.
        channels: Classes, background included.
    """

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, channels)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, N, C) of patch tokens (B, N, D)."""
        logits: Tensor = self.head(tokens)
        return logits


class MaskTransformer(nn.Module):
    """A token a class, and transformer blocks over patches and classes.

    Args:
        width: Channels of the encoder.
        channels: Classes, background included.
        inner: Channels of the decoder; those of the encoder by default.
        heads: Attention heads; one for every 64 channels by default.
        layers: Number of blocks.
    """

    def __init__(
        self, width: int, channels: int, *, inner: int | None = None, heads: int | None = None, layers: int = _LAYERS
    ) -> None:
        super().__init__()
        inner = inner or width
        norm: Any = partial(nn.LayerNorm, eps=1e-5)
        options: dict[str, Any] = {"qkv_bias": True, "proj_drop": _DROPOUT, "attn_drop": _DROPOUT, "norm_layer": norm}
        heads = heads or max(1, inner // _HEAD_WIDTH)
        self.proj_dec = nn.Linear(width, inner)
        self.blocks = nn.ModuleList(Block(inner, heads, **options) for _ in range(layers))
        self.cls_emb = nn.Parameter(torch.empty(1, channels, inner))
        self.decoder_norm, self.mask_norm = norm(inner), norm(channels)
        self.apply(_initialise)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)
        self.proj_patch = nn.Parameter(inner**-0.5 * torch.randn(inner, inner))
        self.proj_classes = nn.Parameter(inner**-0.5 * torch.randn(inner, inner))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (B, N, C) of patch tokens (B, N, D)."""
        count = tokens.shape[1]
        x = torch.cat([self.proj_dec(tokens), self.cls_emb.expand(tokens.shape[0], -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_norm(x)
        patches, classes = x[:, :count] @ self.proj_patch, x[:, count:] @ self.proj_classes
        cosine = _unit(patches) @ _unit(classes).transpose(1, 2)
        logits: Tensor = self.mask_norm(cosine)
        return logits


class ViTSegmenter(nn.Module):
    """Any timm vision transformer with a decoder; takes images of any size.

    Args:
        classifier: The encoder, as `load_classifier` gives it; its head is removed.
        channels: Classes, background included.
        decoder: "mask" or "linear".
        drop_path: Stochastic depth of the encoder's last block in training; it grows linearly from 0.

    Raises:
        ModelError: When the encoder has no patch tokens, or takes images of one size only.
    """

    def __init__(
        self, classifier: Classifier, channels: int, *, decoder: Decoder = "mask", drop_path: float = 0.0
    ) -> None:
        super().__init__()
        if classifier.kind != "tokens":
            hint = "take a plain vision transformer, or another --arch with --encoder tu-NAME"
            raise ModelError(f"Segmenter needs patch tokens, and '{classifier.name}' has none", hint=hint)
        if not getattr(classifier.module, "dynamic_img_size", False):
            raise ModelError(
                f"'{classifier.name}' takes images of one size only", hint="take a plain vision transformer"
            )
        self.encoder: Any = classifier.module
        self.encoder.reset_classifier(0)
        self.patch, self.prefix = classifier.stride, int(getattr(self.encoder, "num_prefix_tokens", 0))
        make = MaskTransformer if decoder == "mask" else LinearDecoder
        self.decoder = make(int(self.encoder.num_features), channels)
        _set_drop_path(self.encoder, drop_path)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C, h, w) of images (B, 3, h, w)."""
        return self.decode(self.encode(images), (images.shape[2], images.shape[3]))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the patch tokens of the padded images as one grid (B, D, rows, columns)."""
        padded = F.pad(images, (0, -images.shape[3] % self.patch, 0, -images.shape[2] % self.patch))
        rows, columns = padded.shape[2] // self.patch, padded.shape[3] // self.patch
        tokens = self.tokens(padded)[:, self.prefix :]
        return [tokens.transpose(1, 2).reshape(tokens.shape[0], -1, rows, columns)]

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits (B, C, h, w) of what `encode` gave for images of a size (h, w)."""
        (grid,) = features
        logits = self.decoder(grid.flatten(2).transpose(1, 2))
        maps = logits.transpose(1, 2).reshape(grid.shape[0], -1, *grid.shape[2:])
        full = F.interpolate(maps, scale_factor=self.patch, mode="bilinear", align_corners=False)
        return full[:, :, : size[0], : size[1]]

    def tokens(self, images: Tensor) -> Tensor:
        """Return all final tokens (B, prefix + patches, D) of images whose sides are multiples of the patch.

        The position embedding is resized bilinearly, as the paper's code does (timm's own resize is bicubic and
        antialiased); architectures that place their positions otherwise do it their own way.
        """
        encoder: Any = self.encoder
        tokens: Tensor
        if isinstance(encoder, VisionTransformer) and encoder.pos_embed is not None:
            placed = encoder.pos_drop(_place(encoder, encoder.patch_embed(images)))
            tokens = encoder.norm(encoder.blocks(encoder.norm_pre(encoder.patch_drop(placed))))
        else:
            tokens = encoder.forward_features(images)
        return tokens

    def class_attention(self, images: Tensor, *, block: int = -1) -> Tensor:
        """Return how much the token of each class attends to each patch: a localisation map that costs nothing.

        Args:
            images: (B, 3, h, w).
            block: Block of the decoder.

        Returns:
            (B, C, rows, columns), mean over heads; channel 0 is background.

        Raises:
            ModelError: When the decoder is linear.
        """
        if not isinstance(self.decoder, MaskTransformer):
            raise ModelError("a linear decoder has no class attention", hint="train with --decoder mask")
        at = range(len(self.decoder.blocks))[block]
        (grid,) = self.encode(images)
        with tap(self.decoder, attention=[f"blocks.{at}.attn"], reduce=lambda weights: weights.mean(1)) as tapped:
            self.decoder(grid.flatten(2).transpose(1, 2))
        patches = grid.shape[2] * grid.shape[3]
        rows = tapped.attention[f"blocks.{at}.attn"][:, patches:, :patches]
        return rows.reshape(grid.shape[0], -1, *grid.shape[2:])

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are no weights."""
        own: set[str] = getattr(self.encoder, "no_weight_decay", set)()
        return {*(f"encoder.{name}" for name in own), "decoder.cls_emb"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the layers in order, for learning rates that decay with depth (timm's form)."""
        del coarse
        blocks = [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm\b", (99999,))]  # the norm with the last block
        return {"stem": r"^encoder\.(?!blocks|norm\b)", "blocks": blocks, "decoder": r"^decoder"}


def _place(encoder: Any, grid: Tensor) -> Tensor:
    """Add positions and prefix tokens to patch embeddings (B, rows, columns, D)."""
    x = grid.flatten(1, 2)
    extra = [getattr(encoder, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    prefix = [token.expand(x.shape[0], -1, -1) for token in extra if token is not None]
    held = 0 if encoder.no_embed_class else int(encoder.num_prefix_tokens)
    positions = encoder.pos_embed[:, held:]
    if tuple(grid.shape[1:3]) != tuple(encoder.patch_embed.grid_size):
        old = positions.transpose(1, 2).reshape(1, -1, *encoder.patch_embed.grid_size)
        new = F.interpolate(old, size=grid.shape[1:3], mode="bilinear", align_corners=False)
        positions = new.flatten(2).transpose(1, 2)
    if encoder.no_embed_class:
        return torch.cat([*prefix, x + positions], dim=1)
    return torch.cat([*prefix, x], dim=1) + torch.cat([encoder.pos_embed[:, :held], positions], dim=1)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1, eps=0)


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _set_drop_path(encoder: Any, rate: float) -> None:
    blocks = list(getattr(encoder, "blocks", ()))
    for at, block in enumerate(blocks):
        for name in ("drop_path1", "drop_path2"):
            if rate and hasattr(block, name):
                setattr(block, name, DropPath(rate * at / max(1, len(blocks) - 1)))
