"""The last block of a plain vision transformer with the gradient of pooled scores in closed form.

Where a score depends on the mean of the patch tokens after the last norm, its gradient is the same for every patch
there, so much of the chain rule can be shared. Only the mean over the patches of the gradient at the block's first norm
is needed (the weights of Grad-CAM): neither the gradient of the attention nor of any parameter is ever formed, and the
products with the MLP's second layer are those of one image for all its classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.attention import Attention
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

_CLASSES_AT_ONCE = 4


@dataclass(frozen=True, slots=True, eq=False)
class LastBlock:
    """What a forward pass through the last block and the last norm leaves for the gradients.

    Attributes:
        block: The block.
        norm: The norm after it, or an identity.
        prefix: Tokens before the patches.
        normed: Output (B, L, D) of the block's first norm: the activations of Grad-CAM.
        query: (B, heads, L, d).
        key: As `query`.
        value: As `query`.
        attention: (B, heads, L, L) after softmax.
        mixed: (B, heads, L, d), attention @ value.
        inner: (B, L, D): the input of the second norm, normalized but not scaled.
        inner_rstd: (B, L, 1): one over its standard deviation.
        slope: (B, L, M): derivative of the activation function in the MLP.
        outer: (B, L, D): the input of the last norm, normalized but not scaled.
        outer_rstd: (B, L, 1).
        tokens: (B, L, D) after the last norm.
        pooled: (B, D), the mean of `tokens` over the patches.
    """

    block: Any
    norm: nn.Module
    prefix: int
    normed: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    attention: Tensor
    mixed: Tensor
    inner: Tensor
    inner_rstd: Tensor
    slope: Tensor
    outer: Tensor
    outer_rstd: Tensor
    tokens: Tensor
    pooled: Tensor

    def weights(self, at: int, gradients: Tensor) -> Tensor:
        """Return Grad-CAM's channel weights of an image.

        Args:
            at: Position in the batch.
            gradients: (C, D) of C >= 1 scores with respect to `pooled[at]`.

        Returns:
            (C, D): the mean over the patches of the gradients of the scores with respect to `normed[at]`.
        """
        patches = slice(self.prefix, None)
        normalized, rstd = self.outer[at, patches], self.outer_rstd[at, patches]
        mlp, size = self.block.mlp, normalized.shape[1]
        # Before the last norm the gradient at patch i is rstd_i (even - along_i normalized_i): one vector, one factor
        # a patch. The MLP's second layer sees both only once an image.
        even = gradients * _gain(self.norm) / len(normalized)
        if isinstance(self.norm, nn.LayerNorm):
            even = even - even.mean(1, keepdim=True)
        scale = _gain(self.block.ls2)
        even_hidden = (even * scale) @ mlp.fc2.weight
        hidden = (normalized * scale) @ mlp.fc2.weight
        along = even @ normalized.T / size
        slope = self.slope[at, patches] * rstd
        shares = []
        for part in range(0, len(gradients), _CLASSES_AT_ONCE):
            chosen = slice(part, part + _CLASSES_AT_ONCE)
            factor = along[chosen, :, None]
            after = (even[chosen, None] - factor * normalized) * rstd
            grown = torch.addcmul(even_hidden[chosen, None], factor, hidden, value=-1).mul_(slope)
            inside = self._through_norm(at, grown @ mlp.fc1.weight)
            shares.append(self._through_attention(at, after.add_(inside)))
        return torch.cat(shares) / len(normalized)

    def _through_norm(self, at: int, gradient: Tensor) -> Tensor:
        """Pull a gradient (C, N, D) at the patches back through the second norm."""
        normalized, rstd = self.inner[at, self.prefix :], self.inner_rstd[at, self.prefix :]
        scaled = gradient * _gain(self.block.norm2)
        along = (scaled * normalized).mean(2, keepdim=True)
        pulled = (scaled - scaled.mean(2, keepdim=True)).addcmul_(along, normalized, value=-1)
        return pulled.mul_(rstd)

    def _through_attention(self, at: int, gradient: Tensor) -> Tensor:
        """Pull a gradient (C, N, D) at the patches after the attention's branch back to the sum (C, D) before it."""
        layer, prefix = self.block.attn, self.prefix
        query, key, value = self.query[at, :, prefix:], self.key[at], self.value[at]
        attention, (heads, count, depth) = self.attention[at, :, prefix:], query.shape
        classes = len(gradient)
        mixed = (gradient * _gain(self.block.ls1)) @ layer.proj.weight
        mixed = mixed.view(classes, count, heads, depth).permute(2, 1, 0, 3)  # (heads, N, C, d)
        own = (mixed * self.mixed[at, :, prefix:, None]).sum(3)  # (heads, N, C)
        given = attention[:, :, :prefix]  # what the patches take from the prefix tokens

        # Queries. received_j = sum_i A_ij dO_i: the only product over all pairs of tokens.
        flat = torch.cat([mixed.permute(0, 2, 3, 1).flatten(1, 2), own.mT], 1)  # (heads, C d + C, N)
        received = flat @ attention
        shared = received[:, : classes * depth].view(heads, classes, depth, -1)
        pull = (shared * value.mT[:, None]).sum(2) - received[:, classes * depth :]  # (heads, C, L)
        query_sum = pull @ key
        # Keys. The sum over all tokens is zero, because the rows of A have sum one: minus that of the prefix tokens.
        meant = torch.einsum("hncd,hpd->hncp", mixed, value[:, :prefix]) - own[..., None]
        key_sum = -torch.einsum("hnp,hncp,hnd->hcd", given, meant, query)
        # Values. What the patches give the patches: all but what the prefix tokens give.
        value_sum = torch.einsum("hn,hncd->hcd", 1 - given.sum(2), mixed)

        sums = torch.stack([query_sum * layer.scale, key_sum * layer.scale, value_sum])  # (3, heads, C, d)
        gathered: Tensor = sums.permute(2, 0, 1, 3).reshape(classes, -1) @ layer.qkv.weight
        return gathered


def run_last_block(block: Any, norm: nn.Module, tokens: Tensor, *, prefix: int) -> LastBlock:
    """Run the last block and the norm after it, and keep what the gradients need.

    Args:
        block: A block that `is_plain` accepts.
        norm: A layer norm or an identity.
        tokens: (B, L, D) before the block.
        prefix: Tokens before the patches.
    """
    layer, mlp = block.attn, block.mlp
    batch, length, _ = tokens.shape
    normed = block.norm1(tokens)
    query, key, value = (
        layer.qkv(normed).view(batch, length, 3, layer.num_heads, layer.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    )
    attention = (query * layer.scale @ key.mT).softmax(-1)
    mixed = attention @ value
    between = tokens + block.ls1(layer.proj(mixed.transpose(1, 2).reshape(batch, length, -1)))
    scaled, inner, inner_rstd = _normalize(block.norm2, between)
    active, slope = _activate(mlp.act, mlp.fc1(scaled))
    after, outer, outer_rstd = _normalize(norm, between + block.ls2(mlp.fc2(active)))
    return LastBlock(
        block=block,
        norm=norm,
        prefix=prefix,
        normed=normed,
        query=query,
        key=key,
        value=value,
        attention=attention,
        mixed=mixed,
        inner=inner,
        inner_rstd=inner_rstd,
        slope=slope,
        outer=outer,
        outer_rstd=outer_rstd,
        tokens=after,
        pooled=after[:, prefix:].mean(1),
    )


def is_plain(block: nn.Module, norm: nn.Module) -> bool:
    """Return whether a block and the norm after it are of the form whose gradient is known here."""
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    layer, mlp = block.attn, block.mlp
    extras = (layer.q_norm, layer.k_norm, layer.norm, mlp.norm)
    return (
        all(isinstance(item, nn.Identity) for item in extras)
        and layer.gate is None
        and isinstance(mlp.fc1, nn.Linear)
        and isinstance(block.norm2, nn.LayerNorm)
        and isinstance(norm, nn.LayerNorm | nn.Identity)
    )


def _normalize(norm: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output of a norm, what it scaled, and one over the standard deviation."""
    if isinstance(norm, nn.Identity):
        return tokens, torch.zeros_like(tokens), tokens.new_ones(*tokens.shape[:2], 1)
    normalized, _, rstd = torch.native_layer_norm(tokens, list(norm.normalized_shape), None, None, norm.eps)
    return torch.addcmul(norm.bias, normalized, norm.weight), normalized, rstd


def _activate(function: nn.Module, before: Tensor) -> tuple[Tensor, Tensor]:
    """Return an element-wise function and its derivative."""
    with torch.enable_grad():
        leaf = before.detach().requires_grad_()
        after: Tensor = function(leaf)
        (slope,) = torch.autograd.grad(after, leaf, after.new_ones(1).expand_as(after))
    return after.detach(), slope


def _gain(layer: Any) -> Tensor | float:
    """Return the factors by which a norm or a layer scale multiplies the channels."""
    if isinstance(layer, nn.Identity):
        return 1.0
    gain: Tensor = layer.weight if isinstance(layer, nn.LayerNorm) else layer.gamma
    return gain
