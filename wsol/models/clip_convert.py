"""The image tower of an open_clip model as a timm vision transformer with the same outputs."""

from __future__ import annotations

from typing import Any

from open_clip.timm_model import TimmModel
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from open_clip.transformer import VisionTransformer as OpenClipViT
from timm.layers.format import Format
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from wsol.errors import ModelError
from wsol.models.clip import ClipViT, ZeroShotHead, describe

_BLOCK = {
    "ln_1": "norm1",
    "attn.in_proj_": "attn.qkv.",
    "attn.out_proj": "attn.proj",
    "ls_1": "ls1",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ls_2": "ls2",
}
_POOLS = {"tok": "token", "avg": "avg"}


def image_tower(model: Any, *, where: str) -> nn.Module:
    """Make the image tower of a CLIP model a timm model whose head is a `ZeroShotHead` without classes.

    Args:
        model: From open_clip: `visual`, `logit_scale` and perhaps `logit_bias`.
        where: Name of the model, for messages.

    Returns:
        A `ClipViT` with a copy of the weights; or, where open_clip itself took a plain vision transformer of timm,
        that very module.

    Raises:
        ModelError: When the tower is no plain vision transformer.
    """
    bias = getattr(model, "logit_bias", None)
    scale, shift = float(model.logit_scale.detach().exp()), 0.0 if bias is None else float(bias.detach())
    if isinstance(model.visual, OpenClipViT):
        return _convert(model.visual, where=where, logit_scale=scale, logit_bias=shift)
    if isinstance(model.visual, TimmModel) and isinstance(model.visual.trunk, VisionTransformer):
        return _adopt(model.visual, logit_scale=scale, logit_bias=shift)
    kind = type(getattr(model.visual, "trunk", model.visual)).__name__
    raise ModelError(f"the image tower is a {kind}, no plain vision transformer", where=where, hint="take a ViT")


def _convert(visual: Any, *, where: str, logit_scale: float, logit_bias: float) -> ClipViT:
    blocks = visual.transformer.resblocks
    block = blocks[0]
    known = type(block) is ResidualAttentionBlock and type(block.mlp.gelu) in (QuickGELU, nn.GELU)
    if not known or visual.attn_pool is not None or visual.pool_type not in _POOLS:
        hint = "models with attention pooling or other blocks do not convert; take a plain ViT"
        raise ModelError("the image tower is no plain vision transformer", where=where, hint=hint)
    height, width = visual.grid_size
    patch = visual.conv1.kernel_size[0]
    after = bool(visual.final_ln_after_pool) and visual.pool_type == "avg"
    module = ClipViT(
        img_size=(height * patch, width * patch),
        patch_size=patch,
        width=visual.conv1.out_channels,
        depth=len(blocks),
        num_heads=block.attn.num_heads,
        embed_dim=visual.proj.shape[1],
        # Half a channel more, since timm cuts width * ratio to an integer.
        mlp_ratio=(block.mlp.c_fc.out_features + 0.5) / visual.conv1.out_channels,
        quick_gelu=type(block.mlp.gelu) is QuickGELU,
        pre_norm=isinstance(visual.ln_pre, nn.LayerNorm),
        layer_scale=not isinstance(block.ls_1, nn.Identity),
        norm_eps=visual.ln_post.eps,
        pool=_POOLS[visual.pool_type],  # type: ignore[arg-type]
        norm_after_pool=after,
        logit_scale=logit_scale,
        logit_bias=logit_bias,
    )
    weights = {_rename(key, after): item for key, item in visual.state_dict().items()}
    for key in ("cls_token", "pos_embed"):
        weights[key] = weights[key].reshape(getattr(module, key).shape)
    weights["head.proj.weight"] = weights["head.proj.weight"].T
    if module.patch_embed.proj.bias is not None:
        weights["patch_embed.proj.bias"] = weights["patch_embed.proj.weight"].new_zeros(module.embed_dim)
    module.load_state_dict(weights)
    return module.to(visual.conv1.weight.device)


def _rename(key: str, norm_after_pool: bool) -> str:
    name = {
        "class_embedding": "cls_token",
        "positional_embedding": "pos_embed",
        "proj": "head.proj.weight",
        "conv1.weight": "patch_embed.proj.weight",
    }.get(key, key)
    name = name.replace("ln_pre.", "norm_pre.").replace("ln_post.", "fc_norm." if norm_after_pool else "norm.")
    if name.startswith("transformer.resblocks."):
        name = name.replace("transformer.resblocks.", "blocks.", 1)
        for theirs, ours in _BLOCK.items():
            name = name.replace(f".{theirs}", f".{ours}", 1)
    return name


def _adopt(visual: Any, *, logit_scale: float, logit_bias: float) -> nn.Module:
    trunk = visual.trunk
    height, width = trunk.patch_embed.img_size
    if type(trunk.patch_embed) is PatchEmbed and not trunk.dynamic_img_size:
        # What the constructor does for dynamic_img_size, which open_clip does not ask for.
        trunk.dynamic_img_size, trunk.patch_embed.strict_img_size = True, False
        trunk.patch_embed.flatten, trunk.patch_embed.output_fmt = False, Format.NHWC
    proj = nn.Sequential(trunk.head, visual.head)
    embed_dim = _out_features(proj) or trunk.num_features
    trunk.head = ZeroShotHead(proj, embed_dim=embed_dim, logit_scale=logit_scale, logit_bias=logit_bias)
    trunk.num_classes = 0
    describe(trunk, name="clip", img_size=(height, width))
    return trunk  # type: ignore[no-any-return]


def _out_features(proj: nn.Module) -> int:
    sizes = [layer.out_features for layer in proj.modules() if isinstance(layer, nn.Linear)]
    return sizes[-1] if sizes else 0
