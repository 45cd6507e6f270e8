"""The CAM family on a ResNet and a ViT, ours beside pytorch-grad-cam and torchcam."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import product
from typing import Any

import cv2
import numpy as np
import timm
import torch
from _bench import Call, Case
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol import cams
from wsol.models.classifier import Classifier
from wsol.ops.normalize import minmax

GRAD_CAM = {
    "gradcam": "GradCAM",
    "gradcampp": "GradCAMPlusPlus",
    "layercam": "LayerCAM",
    "xgradcam": "XGradCAM",
    "hirescam": "HiResCAM",
    "eigencam": "EigenCAM",
    "ablationcam": "AblationCAM",
}
# Not Grad-CAM++, where torchcam 0.5 computes something else. Score-CAM only here: pytorch-grad-cam aligns corners.
TORCHCAM = {"gradcam": "GradCAM", "layercam": "LayerCAM", "xgradcam": "XGradCAM", "scorecam": "ScoreCAM"}
# These run the network once a channel: a small network and small images.
PER_CHANNEL = ("scorecam", "ablationcam")
# What makes our formula the peer's: pytorch-grad-cam adds a constant to the denominator.
OPTIONS = {"gradcampp": {"eps": 1e-6}}
MODELS = {"resnet50": 224, "deit_small_patch16_224": 224}
SMALL_MODELS = {"resnet18": 96, "deit_tiny_patch16_224": 224}
LAYERS = {"resnet": "layer4", "deit": "blocks.11.norm1"}
TARGETS = {1: 1.0, 4: 2.0}
# Methods whose costs stand for the others' in batches of 16.
IN_BATCHES = ("gradcam", "layercam", "eigencam")


def random_model(name: str, *, head: float = 20.0) -> nn.Module:
    """Return a timm model whose weights are all random; `head` is the standard deviation of the last layer's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim < 2:
                    parameter.add_(0.1 * torch.rand_like(parameter))
            classifier: Any = model.get_classifier()
            classifier.weight.copy_(head * torch.randn_like(classifier.weight))
    return model


def images(batch: int, side: int) -> Tensor:
    """Return smooth random inputs (B, 3, side, side)."""
    noise = torch.randn(batch, 3, side // 8, side // 8, generator=torch.Generator().manual_seed(batch))
    return nn.functional.interpolate(noise, size=(side, side), mode="bicubic")


def class_ids(batch: int, classes: int) -> list[list[int]]:
    """Return other classes for every image."""
    return [[(37 * at + 211 * k) % 1000 for k in range(classes)] for at in range(batch)]


def layer_of(name: str) -> str:
    """Return the layer that all sides look at."""
    return next(layer for start, layer in LAYERS.items() if name.startswith(start))


def patches(tokens: Tensor) -> Tensor:
    """Arrange tokens (B, 1 + N, D) of a square grid as (B, D, h, w), as users of the peers write it."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)


def _model_for(method: str, name: str) -> nn.Module:
    """Return a model with large gradients; but with small scores where a softmax over them makes the weights."""
    if method not in PER_CHANNEL:
        return random_model(name)
    model: Any = random_model(name, head=0.05)
    with torch.no_grad():
        model.get_classifier().bias.add_(10)  # pytorch-grad-cam divides by the score, which flips maps of negative ones
    return model


def at_image_size(planes: NDArray[Any], side: int) -> NDArray[np.float32]:
    """Rectify, scale to [0, 1], enlarge and scale again: what pytorch-grad-cam returns, for maps (K, h, w)."""
    scaled = minmax(np.maximum(planes, 0))
    return minmax(np.stack([cv2.resize(plane, (side, side)) for plane in scaled]))


def ours_by(method: str, name: str, batch: int, classes: int, side: int, *, full: bool) -> Call:
    """Return our side: one call for all classes of all images."""
    known = Classifier(_model_for(method, name))
    bound = cams.create(method, known, layer=layer_of(name), **OPTIONS.get(method, {}))
    inputs, ids = images(batch, side), class_ids(batch, classes)

    def call() -> list[NDArray[Any]]:
        planes = [values.numpy() for values in bound(inputs, ids).values]
        return [at_image_size(item, side) if full else minmax(np.maximum(item, 0)) for item in planes]

    return call


def grad_cam(method: str, name: str, batch: int, classes: int, side: int, stack: ExitStack) -> Call:
    """Return pytorch-grad-cam: one call a class."""
    import pytorch_grad_cam
    from _cams_sign import SignedEigenCAM
    from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = _model_for(method, name)
    transformer = name.startswith("deit")
    options: dict[str, Any] = {"reshape_transform": patches if transformer else None}
    if method == "ablationcam":
        options["ablation_layer"] = AblationLayerVit() if transformer else AblationLayer()
    kind = SignedEigenCAM if method == "eigencam" else getattr(pytorch_grad_cam, GRAD_CAM[method])
    extractor = stack.enter_context(kind(model, [model.get_submodule(layer_of(name))], **options))
    if method in PER_CHANNEL:
        extractor.batch_size = 32
    inputs, ids = images(batch, side), class_ids(batch, classes)

    def call() -> list[NDArray[Any]]:
        found = [extractor(inputs, [ClassifierOutputTarget(row[k]) for row in ids]) for k in range(classes)]
        return list(np.stack(found, axis=1))

    return call


def torch_cam(method: str, name: str, batch: int, classes: int, side: int, stack: ExitStack, *, shared: bool) -> Call:
    """Return torchcam: as its documentation has it, or with one forward pass for all classes (`shared`)."""
    import torchcam.methods

    model = _model_for(method, name)
    kind = getattr(torchcam.methods, TORCHCAM[method])
    options: dict[str, Any] = {"reshape_transform": patches} if name.startswith("deit") else {}
    extractor = stack.enter_context(kind(model, layer_of(name), **options))
    inputs, ids = images(batch, side), class_ids(batch, classes)

    def call() -> list[NDArray[Any]]:
        found, scores = [], model(inputs) if shared else None
        for k in range(classes):
            given = model(inputs) if scores is None else scores
            keep = {"retain_graph": True} if shared and k + 1 < classes else {}
            maps = extractor([row[k] for row in ids], given, **keep)
            found.append(maps[0].numpy())
        return list(np.stack(found, axis=1))

    return call


def _build(
    peer: str, method: str, name: str, batch: int, classes: int, side: int
) -> Callable[[ExitStack], tuple[Call, Call]]:
    def build(stack: ExitStack) -> tuple[Call, Call]:
        ours = ours_by(method, name, batch, classes, side, full=peer == "grad-cam")
        if peer == "grad-cam":
            return ours, grad_cam(method, name, batch, classes, side, stack)
        return ours, torch_cam(method, name, batch, classes, side, stack, shared=peer == "torchcam, one forward")

    return build


def _case(peer: str, method: str, name: str, batch: int, classes: int, side: int) -> Case:
    return Case(
        f"{method} {name} B={batch} K={classes} vs {peer}",
        _build(peer, method, name, batch, classes, side),
        part="family",
        rounds=3 if method in PER_CHANNEL or batch > 1 else 9,
        tolerance=1e-4,
        quick=(method, name, batch, classes) == ("gradcam", "resnet50", 1, 4) and peer != "torchcam, one forward",
        target=None if peer == "torchcam, one forward" or method in PER_CHANNEL else TARGETS[classes],
    )


def cases() -> list[Case]:
    """Return every case of this part.

    Not on the transformer: Grad-CAM++, whose denominator passes through 0 where activations are negative, so that
    rounding decides the map; and Ablation-CAM, where pytorch-grad-cam takes channels to -1e7.
    """
    found = []
    for name, batch, classes in product(MODELS, (1, 16), (1, 4)):
        unfit = (*PER_CHANNEL, "gradcampp") if name.startswith("deit") else PER_CHANNEL
        asked = [method for method in GRAD_CAM if method not in unfit and (batch == 1 or method in IN_BATCHES)]
        found += [_case("grad-cam", method, name, batch, classes, MODELS[name]) for method in asked]
        asked = [method for method in TORCHCAM if method not in unfit and (batch == 1 or method in IN_BATCHES)]
        found += [_case("torchcam", method, name, batch, classes, MODELS[name]) for method in asked]
        if classes > 1:
            found.append(_case("torchcam, one forward", "gradcam", name, batch, classes, MODELS[name]))
    for name, side in SMALL_MODELS.items():
        for classes in (1, 4):
            found.append(_case("torchcam", "scorecam", name, 1, classes, side))
            if not name.startswith("deit"):
                found.append(_case("grad-cam", "ablationcam", name, 1, classes, side))
    return found
