"""The one place that hooks a model: activations, gradients and attention, everything undone on exit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wsol.errors import ModelError, did_you_mean


@dataclass(slots=True, eq=False)
class Tapped:
    """What one forward pass left behind; the next pass replaces it.

    Attributes:
        activations: Sub-module name to its output.
        attention: Name of an attention module to its weights (B, heads, N, N), after softmax and before dropout.
    """

    activations: dict[str, Tensor] = field(default_factory=dict)
    attention: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def tap(
    module: nn.Module,
    *,
    activations: Iterable[str] = (),
    attention: Iterable[str] = (),
    gradients: bool = False,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tapped]:
    """Record what passes through a model while the block runs.

    Args:
        module: Any module; it works as before and is the same afterwards, also when the block fails.
        activations: Dotted names of the sub-modules whose outputs to keep.
        attention: Dotted names of timm attention modules. Exactly these compute without the fused kernel, which
            never forms the weights.
        gradients: Keep tensors that `torch.autograd.grad` can be taken for. Nothing is recorded below the first
            tapped tensor, which becomes a leaf: no graph and no memory for the layers that no gradient has to
            pass, whether or not parameters require gradients. Gradients are on from there to the end of the block.
        reduce: Applied to each attention tensor before it is kept, for example a mean over heads to save memory;
            not with `gradients`.

    Yields:
        The kept tensors, filled by the forward pass; detached unless `gradients`.

    Raises:
        ModelError: When a name is unknown, or does not give one tensor.
        ValueError: When `reduce` and `gradients` are combined.
    """
    if gradients and reduce is not None:
        raise ValueError("no gradient can be taken for a reduced copy of the attention")
    kept = Tapped()

    def keep(tensor: Tensor) -> Tensor:
        if not gradients:
            return tensor.detach()
        torch.set_grad_enabled(True)
        return tensor if tensor.requires_grad else tensor.detach().requires_grad_()

    def keep_output(name: str) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise ModelError(f"layer '{name}' gives a {type(output).__name__}, not a tensor", hint="tap another")
            kept.activations[name] = keep(output)
            # The next layer may work in place: it gets a copy, so that what was kept stays as it was.
            return kept.activations[name].clone() if gradients else output.clone()

        return hook

    def keep_attention(name: str) -> Callable[..., tuple[Tensor]]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            weights = keep(args[0])
            kept.attention[name] = weights if reduce is None else reduce(weights)
            return (weights if gradients else args[0],)

        return hook

    with ExitStack() as undo:
        if gradients:
            undo.enter_context(torch.inference_mode(False))
            undo.enter_context(torch.no_grad())
            # Autocast of torch before 2.11 would give a caller who trains the weights cast without gradients.
            undo.callback(torch.clear_autocast_cache)
        for name in activations:
            undo.callback(find(module, name).register_forward_hook(keep_output(name)).remove)
        for name in attention:
            layer: Any = find(module, name)
            if not isinstance(getattr(layer, "attn_drop", None), nn.Module):
                raise ModelError(f"layer '{name}' is no attention", hint="name a module that has 'attn_drop'")
            if hasattr(layer, "fused_attn"):
                undo.callback(setattr, layer, "fused_attn", layer.fused_attn)
                layer.fused_attn = False
            undo.callback(layer.attn_drop.register_forward_pre_hook(keep_attention(name)).remove)
        yield kept


@contextmanager
def replaced(module: nn.Module, name: str, output: Callable[[], Tensor]) -> Iterator[None]:
    """Let a sub-module give another output while the block runs.

    Args:
        module: Any module.
        name: Dotted name of the sub-module; it still runs on its input.
        output: Gives what the rest of the module sees instead.

    Raises:
        ModelError: When there is no such sub-module.
    """
    handle = find(module, name).register_forward_hook(lambda *_: output())
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch a module to evaluation while the block runs; every sub-module gets its own mode back."""
    training = [layer for layer in module.modules() if layer.training]
    try:
        for layer in training:
            layer.training = False
        yield
    finally:
        for layer in training:
            layer.training = True


def find(module: nn.Module, name: str) -> nn.Module:
    """Return a sub-module by its dotted name.

    Raises:
        ModelError: When there is none; the hint names the nearest.
    """
    try:
        return module.get_submodule(name)
    except AttributeError:
        names = [known for known, _ in module.named_modules() if known]
        raise ModelError(f"no layer '{name}' in {type(module).__name__}", hint=did_you_mean(name, names)) from None


def producer(module: nn.Module, call: Callable[[], Tensor]) -> tuple[Tensor, str | None]:
    """Run a part of a model and find the sub-module whose output it returns.

    Args:
        module: The model.
        call: Runs the part.

    Returns:
        The tensor, and the name of the last and outermost sub-module that gave that very tensor; None when the
        part ends with an operation that is no module.
    """
    outputs: list[tuple[str, weakref.ref[Tensor]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.append((name, weakref.ref(output)))

        return hook

    with ExitStack() as undo:
        for name, layer in module.named_modules():
            if name and not isinstance(layer, nn.Identity):
                undo.callback(layer.register_forward_hook(note(name)).remove)
        result = call()
    return result, next((name for name, output in reversed(outputs) if output() is result), None)
