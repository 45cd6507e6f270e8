"""Score-CAM and Ablation-CAM against loops: one channel, one image, one class and one whole forward pass at a time."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from wsol import cams
from wsol.errors import ConfigError
from wsol.models.classifier import Classifier

MODELS = {
    "test_resnet": ({}, (65, 97)),
    "test_convnext": ({}, (65, 97)),
    "test_vit": ({"depth": 2, "dynamic_img_size": True}, (48, 80)),
    "test_vit2": ({"depth": 2, "dynamic_img_size": True}, (48, 80)),
    "small_swin": ({}, (64, 96)),
}
SWIN = {"depths": (1, 1, 1, 2), "embed_dim": 16, "num_heads": (1, 1, 2, 4), "strict_img_size": False, "img_size": 64}


def random_model(name: str) -> Classifier:
    options = {**MODELS[name][0], "num_classes": 5}
    if name == "small_swin":
        name, options = "swin_tiny_patch4_window7_224", {**SWIN, "num_classes": 5}
    module = timm.create_model(name, **options).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.add_(2 * drawn / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1 * drawn)
    return Classifier(module, input_size=(64, 64))


def activation_of(known: Classifier, image: torch.Tensor, layer: str) -> torch.Tensor:
    seen = {}
    handle = known.module.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.update(out=out.clone()))
    with torch.no_grad():
        known.module(image)
    handle.remove()
    return seen["out"]


def weighted(weights: list[float], channels: torch.Tensor) -> torch.Tensor:
    return sum(weight * channel for weight, channel in zip(weights, channels, strict=True))


def check(ours: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max()
    torch.testing.assert_close(ours / scale, expected / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_scorecam_masks_the_image_with_one_channel_at_a_time(name):
    known, size = random_model(name), MODELS[name][1]
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    raw = cams.create("scorecam", known, batch_size=50)(image, [[3, 1]])
    channels = known.to_grid(activation_of(known, image, known.layer), *size)[0]
    scores = []
    for channel in channels:
        mask = (channel - channel.min()) / ((channel.max() - channel.min()).item() or 1.0)
        mask = F.interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False)
        with torch.no_grad():
            scores.append(known.module(image * mask)[0])
    even = channels.mean(0)
    for k, label in enumerate((3, 1)):
        weights = torch.stack(scores)[:, label].softmax(0).tolist()
        check(raw.values[0][k], weighted(weights, channels))
        assert (raw.values[0][k] - even).abs().max() > 0.01 * even.abs().max(), "the weights are not all the same"


@pytest.mark.parametrize(("name", "layer"), [*((name, None) for name in MODELS), ("test_resnet", "layer2")])
def test_ablationcam_takes_away_one_channel_at_a_time(name, layer):
    known, size = random_model(name), MODELS[name][1]
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    layer = layer or known.layer
    raw = cams.create("ablationcam", known, layer=layer, batch_size=50)(image, [[3, 1]])
    activation = activation_of(known, image, layer)
    shape = raw.values[0].shape[1:]
    if activation.ndim == 3:
        channels = activation[0, known.prefix_tokens :].T.unflatten(1, shape)
    else:
        channels = activation[0] if activation.shape[2:] == shape else activation[0].permute(2, 0, 1)
    scores = []
    for channel in range(len(channels)):

        def take_away(module, args, out, channel=channel):
            out = out.clone()
            if out.ndim == 3:
                out[:, known.prefix_tokens :, channel] = 0
            elif out.shape[2:] == shape:
                out[:, channel] = 0
            else:
                out[..., channel] = 0
            return out

        handle = known.module.get_submodule(layer).register_forward_hook(take_away)
        with torch.no_grad():
            scores.append(known.module(image)[0])
        handle.remove()
    for k, label in enumerate((3, 1)):
        drops = (raw.logits[0, label] - torch.stack(scores)[:, label]).tolist()
        check(raw.values[0][k], weighted(drops, channels))


def test_ablationcam_before_a_pooled_linear_head_weighs_by_what_each_channel_adds():
    known = random_model("test_resnet")
    image = torch.randn(1, 3, 65, 97, generator=torch.Generator().manual_seed(2))
    raw = cams.create("ablationcam", known)(image, [[2]])
    channels = activation_of(known, image, "layer4")[0]
    added = known.head_weight()[0][2].detach() * channels.mean((1, 2))
    check(raw.values[0][0], weighted(added.tolist(), channels))


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_the_batch_size_changes_nothing_and_is_checked(method):
    known = random_model("test_resnet")
    images = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(2))
    one = cams.create(method, known, batch_size=7)(images, [[2], [0, 4]])
    two = cams.create(method, known, batch_size=1000)(images, [[2], [0, 4]])
    for ours, theirs in zip(one.values, two.values, strict=True):
        check(ours, theirs)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        cams.create(method, known, batch_size=0)
