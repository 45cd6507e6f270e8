"""Where a timm model keeps its last spatial features: found by running it once, not by a table of models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wsol.errors import ModelError
from wsol.models.taps import evaluating, producer

Size = tuple[int, int]
Kind = Literal["cnn", "tokens"]


@dataclass(frozen=True, slots=True)
class Layout:
    """What running a model once tells about it.

    Attributes:
        kind: "cnn" for features on a grid (also hierarchical transformers), "tokens" for a token sequence.
        layer: Dotted name of the default target layer of gradient methods; None where none was found.
        features: Shape of the output of `forward_features` for one image of the default size.
        channels_last: Whether the grid of `features` is (B, h, w, D).
        prefix_tokens: Class, distillation and register tokens before the patch tokens.
        class_tokens: Class tokens that the head reads, from the first on: one, or one a class; 0 for a mean over
            patches.
        stride: Pixels between two grid positions.
        attention: Dotted names of the attention modules in order; empty for "cnn".
    """

    kind: Kind
    layer: str | None
    features: tuple[int, ...]
    channels_last: bool
    prefix_tokens: int
    class_tokens: int
    stride: int
    attention: tuple[str, ...]


def find_layout(module: Any, *, size: Size) -> Layout:
    """Run `forward_features` on one black image and describe what comes out.

    Args:
        module: A timm model.
        size: (h, w) of the image.

    Raises:
        ModelError: When the model cannot be run at that size, or its features are no grid and no token sequence.
    """
    features, layer = _run(module, size)
    if features.ndim not in (3, 4):
        raise ModelError(f"features of shape {tuple(features.shape)} have no grid", where=type(module).__name__)
    kind: Kind = "cnn" if features.ndim == 4 else "tokens"
    prefix = int(getattr(module, "num_prefix_tokens", 0)) if kind == "tokens" else 0
    attention = [
        name for name, item in module.named_modules() if isinstance(getattr(item, "attn_drop", None), nn.Module)
    ]
    channels_last = kind == "cnn" and getattr(module, "output_fmt", "NCHW") == "NHWC"
    rows = features.shape[1 if channels_last else 2]
    reads_one = prefix > 0 and getattr(module, "global_pool", "") == "token"
    class_tokens = int(getattr(module, "num_class_tokens", reads_one))
    return Layout(
        kind=kind,
        layer=layer if kind == "cnn" else _target_layer(module, layer, class_token=class_tokens > 0),
        features=tuple(features.shape),
        channels_last=channels_last,
        prefix_tokens=prefix,
        class_tokens=class_tokens,
        stride=_reduction(module) or max(1, round(size[0] / rows)),
        attention=tuple(attention) if kind == "tokens" else (),
    )


def token_grid(module: Any, *, size: Size, stride: int) -> Size:
    """Return the (rows, columns) of the patch tokens for an input of a size (h, w)."""
    embed: Any = getattr(module, "patch_embed", None)
    if hasattr(embed, "dynamic_feat_size"):
        rows, columns = embed.dynamic_feat_size(size)
        return int(rows), int(columns)
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def has_channels_last(shape: Sequence[int], *, size: Size, usual: bool) -> bool:
    """Return whether activations are (B, rows, columns, D) and not (B, D, rows, columns).

    Layers inside a model need not be laid out as its last features are: patch embeddings, norms and MLPs of many models
    are not. The grid is where the sides have the proportions of the input.

    Args:
        shape: Of the activations.
        size: (h, w) of the input.
        usual: The answer where both or neither have them, as square inputs with as many channels as rows.
    """

    def fits(rows: int, columns: int) -> bool:
        return abs(rows * size[1] - columns * size[0]) <= sum(size)  # each side is rounded by up to one position

    first, last = fits(shape[2], shape[3]), fits(shape[1], shape[2])
    return usual if first == last else last


def run_features(module: Any, *, size: Size) -> tuple[int, ...]:
    """Return the shape of the output of `forward_features` for one image of a size (h, w)."""
    return tuple(_run(module, size)[0].shape)


def _run(module: Any, size: Size) -> tuple[Tensor, str | None]:
    where = next(module.parameters())
    channels = int(module.pretrained_cfg.get("input_size", (3,))[0]) if hasattr(module, "pretrained_cfg") else 3
    image = torch.zeros(1, channels, *size, device=where.device, dtype=where.dtype)
    try:
        with evaluating(module), torch.no_grad():
            features, layer = producer(module, lambda: module.forward_features(image))
    except (AttributeError, AssertionError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0]
        hint = "the architecture may need another --img-size, or one that its patches or windows divide"
        what = f"cannot run at {size[0]}x{size[1]} pixels: {reason}"
        raise ModelError(what, where=type(module).__name__, hint=hint) from error
    if not isinstance(features, Tensor):
        raise ModelError(f"features are a {type(features).__name__}, not one tensor", where=type(module).__name__)
    return features, layer


def _target_layer(module: Any, last: str | None, *, class_token: bool) -> str | None:
    """Name the layer of a plain transformer that gradient methods look at.

    That is what the last block's attention sees: the block's first norm, or else the output of the block before.
    The final tokens would not do, since a head that reads the class token has no gradient at the others. Where the
    blocks are not of this form, a head that pools the final tokens can do with those.
    """
    blocks = getattr(module, "blocks", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks):
        first = next((name for name, _ in blocks[-1].named_children()), "")
        if first in ("norm1", "in_norm"):
            return f"blocks.{len(blocks) - 1}.{first}"
        if class_token and len(blocks) > 1:
            return f"blocks.{len(blocks) - 2}"
    return None if class_token else last


def _reduction(module: Any) -> int | None:
    info = getattr(module, "feature_info", None)
    last = (info if isinstance(info, list) else getattr(info, "info", None) or [{}])[-1]
    return int(last["reduction"]) if "reduction" in last else None
