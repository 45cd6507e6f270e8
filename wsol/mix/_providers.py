"""What strategies ask the model about the clean images: input gradients, features, logits and class maps.

Nothing of the model changes: its mode, parameters' `.grad`, BatchNorm statistics and torch's random state are as
before. `batch_stats` runs BatchNorm on the statistics of the batch, as papers do that leave the model in training
mode; dropout and stochastic depth stay off even then, so that a pass repeats exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wsol.errors import ConfigError, ModelError
from wsol.mix.base import Context, check_labels
from wsol.models.classifier import Classifier
from wsol.models.taps import evaluating, tap

Criterion = Callable[[Tensor, Tensor], Tensor]


def require(context: Context | None, *, name: str) -> Context:
    """Return the context of a strategy that cannot mix without one.

    Raises:
        ConfigError: When there is none.
    """
    if context is None:
        raise ConfigError("needs the model: give mix() a context", where=f"mix '{name}'")
    return context


@contextmanager
def quiet(module: nn.Module, *, batch_stats: bool = False) -> Iterator[None]:
    """Let a model answer without a trace while the block runs.

    Args:
        module: Any model; every sub-module gets its own mode back.
        batch_stats: BatchNorm layers in training mode use the statistics of the batch and leave the running ones alone.
    """
    norms = [
        layer
        for layer in module.modules()
        if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
    ]
    with ExitStack() as undo:
        undo.enter_context(evaluating(module))
        for layer in norms if batch_stats else ():
            undo.callback(setattr, layer, "track_running_stats", True)
            layer.training, layer.track_running_stats = True, False
        yield


def input_gradient(
    context: Context, x: Tensor, y: Tensor, *, objective: Criterion | None = None, batch_stats: bool = False
) -> Tensor:
    """Return the gradient of the training loss at the clean images.

    Args:
        context: Model and criterion.
        x: (B, C, H, W), normalized.
        y: Float (B, K), dense targets of any kind the criterion takes.
        objective: Another scalar of (logits, targets) to derive, in place of the criterion.
        batch_stats: See the module.

    Returns:
        float32 (B, C, H, W), without graph.
    """
    return _derive(context, x, y, objective or context.criterion, batch_stats=batch_stats)[0]


def saliency(context: Context, x: Tensor, y: Tensor, *, batch_stats: bool = False) -> Tensor:
    """Return sqrt(mean over channels of the squared input gradient), float32 (B, H, W); see `input_gradient`."""
    return _magnitude(input_gradient(context, x, y, batch_stats=batch_stats))


def saliency_and_loss(context: Context, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Look at the clean images and keep the graph, so that they can be trained on as well; with `batch_stats`.

    Returns:
        Their saliency, float32 (B, H, W), without graph; their loss, a scalar whose gradients the parameters can get.
    """
    gradient, loss = _derive(context, x, y, context.criterion, batch_stats=True, keep=True)
    return _magnitude(gradient), loss


def clean_output(context: Context, x: Tensor, *, batch_stats: bool = False) -> tuple[Tensor, Tensor]:
    """Run the clean images once.

    Args:
        context: The model.
        x: (B, C, H, W), normalized.
        batch_stats: See the module.

    Returns:
        Last features on their grid, float32 (B, D, h, w), and logits, float32 (B, K); both without graph.
    """
    classifier = context.classifier
    module = classifier.module
    with torch.no_grad(), quiet(module, batch_stats=batch_stats), _autocast(context, x):
        features = module.forward_features(x)
        logits = module.forward_head(features)
    return classifier.to_grid(features, *x.shape[-2:]).float(), logits.float()


def check_class_maps(classifier: Classifier) -> None:
    """Refuse a model without class activation maps.

    Raises:
        ModelError: When it neither pools its last features into one linear layer, nor has a target layer.
    """
    if not classifier.pools_linearly and classifier.layer is None:
        hint = "take a CNN such as resnet50, or a plain vision transformer"
        raise ModelError("has no layer for class activation maps", where=classifier.name, hint=hint)


def class_maps(context: Context, x: Tensor, classes: Tensor, *, batch_stats: bool = False) -> Tensor:
    """Return class activation maps: relu(features) weighed by the last linear layer, plus its bias.

    Of models that do not pool their last features into one linear layer: activations of the target layer, weighed by
    the mean gradient of the class score there, as Grad-CAM does; on models that do, both agree up to scale and offset.

    Args:
        context: A model that `check_class_maps` lets pass.
        x: (B, C, H, W), normalized.
        classes: int64 (B, K'), classes of each image.
        batch_stats: See the module.

    Returns:
        float32 (B, K', h, w), not normalized, without graph.
    """
    if not context.classifier.pools_linearly:
        return _gradient_maps(context, x, classes, batch_stats=batch_stats)
    features, _ = clean_output(context, x, batch_stats=batch_stats)
    weight, bias = context.classifier.head_weight()
    return weigh_features(features, weight.detach().float(), None if bias is None else bias.detach().float(), classes)


def _gradient_maps(context: Context, x: Tensor, classes: Tensor, *, batch_stats: bool) -> Tensor:
    classifier, maps, most = context.classifier, [], classes.shape[1]
    name = str(classifier.layer)
    with (
        quiet(classifier.module, batch_stats=batch_stats),
        tap(classifier.module, activations=[name], gradients=True) as seen,
    ):
        with _autocast(context, x):
            logits = classifier.module(x.detach())
        activation = seen.activations[name]
        grid = classifier.to_grid(activation.detach(), *x.shape[-2:]).float()
        for k in range(most):
            score = logits.gather(1, classes[:, k : k + 1]).sum()
            (gradient,) = torch.autograd.grad(score, activation, retain_graph=k + 1 < most)
            weight = classifier.to_grid(gradient, *x.shape[-2:]).float().mean((2, 3), keepdim=True)
            maps.append((weight * grid).sum(1))
    return torch.stack(maps, 1).detach()


def weigh_features(features: Tensor, weight: Tensor, bias: Tensor | None, classes: Tensor) -> Tensor:
    """Return sum_d relu(features_d) weight_cd + bias_c.

    Args:
        features: (B, D, h, w).
        weight: (C, D).
        bias: (C,) or None.
        classes: int64 (B, K').

    Returns:
        (B, K', h, w).
    """
    maps = torch.einsum("bkd,bdhw->bkhw", weight[classes], features.relu())
    return maps if bias is None else maps + bias[classes][:, :, None, None]


def _derive(
    context: Context, x: Tensor, y: Tensor, objective: Criterion, *, batch_stats: bool, keep: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the gradient of an objective at the images, and the objective, whose graph stays where `keep` asks."""
    check_labels(y)
    module = context.classifier.module
    with torch.enable_grad(), quiet(module, batch_stats=batch_stats):
        images = x.detach().clone().requires_grad_()
        with _autocast(context, x):
            logits = module(images)
        value = objective(logits.float(), y)
        (gradient,) = torch.autograd.grad(value, images, retain_graph=keep)
    return gradient.float(), value


def _magnitude(gradient: Tensor) -> Tensor:
    return gradient.square().mean(1).sqrt()


def _autocast(context: Context, x: Tensor) -> torch.autocast:
    # Without the cache: weights cast here without gradients must not reach a caller's own autocast block.
    return torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=context.amp, cache_enabled=False)
