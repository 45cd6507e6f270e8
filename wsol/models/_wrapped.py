"""What wrappers around timm transformers share: they pass for the model inside, and change its attention in a block."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = {
    "object_aware": ("wsol.models.object_aware", "ObjectAware"),
    "dynamic_tokens": ("wsol.models.dynamic_tokens", "DynamicTokens"),
}
"""What may stand before a model name, as in "dynamic_tokens:deit_small_patch16_224"."""
_INNER = "base"


def wrap(kind: str, base: nn.Module) -> nn.Module:
    """Put a wrapper with its default options around a timm model.

    Args:
        kind: One of `WRAPPERS`.
        base: The model; it is not copied.

    Raises:
        ModelError: When the wrapper does not take such a model.
    """
    module, name = WRAPPERS[kind]
    wrapper: Callable[[nn.Module], nn.Module] = getattr(importlib.import_module(module), name)
    return wrapper(base)


class Wrapped(nn.Module):
    """A timm model around another one: what it does not define itself is the inner model's.

    Args:
        base: The model; it is not copied.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base
        self.train(base.training)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == _INNER:
                raise
            return getattr(self.base, name)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of normalized images (B, 3, H, W)."""
        logits: Tensor = self.forward_head(self.forward_features(x))
        return logits

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that are no weights."""
        inner = self.base.no_weight_decay() if hasattr(self.base, "no_weight_decay") else ()
        return {f"{_INNER}.{name}" for name in inner}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns for the depth of parameters."""
        return {part: _below(rules) for part, rules in self.base.group_matcher(coarse).items()}

    def adapt(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights of the inner model as those of the wrapper, new parts as they are; others unchanged.

        Args:
            weights: Parameter name to tensor.
        """
        if any(name.startswith(f"{_INNER}.") for name in weights):
            return dict(weights)
        own = {name: item for name, item in self.state_dict().items() if not name.startswith(f"{_INNER}.")}
        return own | {f"{_INNER}.{name}": item for name, item in weights.items()}


def _below(rules: Any) -> Any:
    """Return patterns of parameter names for the same parameters inside the wrapper."""
    if isinstance(rules, list | tuple):
        return type(rules)(_below(rule) for rule in rules)
    return rf"^{_INNER}\.(?:{rules.removeprefix('^')})" if isinstance(rules, str) else rules


@contextmanager
def rewritten(layers: Sequence[Any], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Change the attention weights of timm attention modules while the block runs; undone on exit.

    Args:
        layers: Attention modules; they compute without the fused kernel, which never forms the weights.
        change: (position of the module, weights (B, heads, N, N) after softmax) -> weights that take their place,
            before dropout. Whoever taps the attention sees these.
    """

    def before(at: int) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            with torch.autocast(args[0].device.type, enabled=False):
                return (change(at, args[0]),)

        return hook

    with ExitStack() as undo:
        for at, layer in enumerate(layers):
            if hasattr(layer, "fused_attn"):
                undo.callback(setattr, layer, "fused_attn", layer.fused_attn)
                layer.fused_attn = False
            undo.callback(layer.attn_drop.register_forward_pre_hook(before(at), prepend=True).remove)
        yield
