from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from wsol import cams
from wsol.cams.getam import gradient_attention
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier, load_classifier, save_classifier


def vit(name: str = "vit_tiny_patch16_224", **options: object) -> Classifier:
    torch.manual_seed(5)
    shape = {"embed_dim": 32, "num_heads": 2, "depth": 4, "num_classes": 5, "dynamic_img_size": True}
    module = timm.create_model(name, **{**shape, **options}).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5)
    return Classifier(module, input_size=(56, 56) if "reg4" in name else (64, 64))


def naive(known: Classifier, image: torch.Tensor, label: int, start: int) -> np.ndarray:
    """One image, one class, one backward pass through the whole model; the formula as published, in float64."""
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        args[0].retain_grad()
        kept.append(args[0])

    layers = [known.module.get_submodule(name) for name in known.attention]
    handles = [layer.attn_drop.register_forward_pre_hook(keep) for layer in layers]
    fused = [layer.fused_attn for layer in layers]
    for layer in layers:
        layer.fused_attn = False
    known.module(image[None])[0, label].backward()
    for handle, layer, before in zip(handles, layers, fused, strict=True):
        handle.remove()
        layer.fused_attn = before
    known.module.zero_grad()
    total = 0
    for attention in kept[start:]:
        a, g = attention.detach()[0].double().numpy(), attention.grad[0].double().numpy()
        total = total + np.maximum(g * a, 0).mean(0) * np.maximum(g, 0).mean(0)
    prefix = known.prefix_tokens
    row = np.maximum(total, 0)[0] if known.class_token else np.maximum(total, 0)[prefix:].mean(0)
    return row[prefix:].reshape(known.grid(*image.shape[1:]))


MODELS = {
    "class token": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "registers": {"name": "vit_small_patch14_reg4_dinov2"},
    "pooled": {"global_pool": "avg", "class_token": False},
}


@pytest.mark.parametrize("start", [None, 0, 3])
@pytest.mark.parametrize("model", MODELS)
def test_equals_one_backward_pass_for_each_image_and_class(model, start):
    known = vit(**MODELS[model])
    size = (56, 84) if model == "registers" else (48, 80)
    images = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    ids = [[3, 0, 1], [], [4, 2]]
    raw = cams.create("getam", known, start_layer=start)(images, ids)
    for at, row in enumerate(ids):
        assert raw.values[at].shape == (len(row), *known.grid(*size))
        for k, label in enumerate(row):
            expected = naive(known, images[at], label, 2 if start is None else start)
            scale = expected.max() or 1.0  # a class that nothing in the row supports has an empty map
            np.testing.assert_allclose(raw.values[at][k] / scale, expected / scale, atol=2e-4)
    assert raw.values[0].amax((1, 2)).count_nonzero() > 1


def test_classes_have_maps_of_their_own():
    known = vit()
    raw = cams.create("getam", known)(torch.randn(1, 3, 64, 96), [[0, 1]])
    one, two = raw.values[0]
    assert (one / one.max() - two / two.max()).abs().max() > 0.1
    assert raw.values[0].min() >= 0


def test_one_backward_pass_for_the_kth_class_and_none_below_the_first_block(monkeypatch):
    known, calls = vit(), []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **more: calls.append(args[1]) or grad(*args, **more))
    below: list[bool] = []
    handle = known.module.blocks[1].register_forward_hook(lambda m, a, output: below.append(output.requires_grad))
    cams.create("getam", known)(torch.randn(4, 3, 48, 64), [[0], [1, 2], [3, 4, 0], [2]])
    handle.remove()
    assert [len(tensors) for tensors in calls] == [2, 2, 2]
    assert below == [False]
    assert all(parameter.grad is None for parameter in known.module.parameters())


def test_the_map_is_the_sum_of_products_of_means():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(3, 2, 4, 5, 7, generator=generator)
    gradient = torch.randn(3, 2, 4, 5, 7, generator=generator)
    expected = ((gradient * attention).relu().mean(2) * gradient.relu().mean(2)).sum(0)
    torch.testing.assert_close(gradient_attention(zip(attention, gradient, strict=True)), expected)
    with pytest.raises(ValueError, match="no block"):
        gradient_attention([])


def test_a_run_of_a_model_with_several_labels(tmp_path):
    save_classifier(load_classifier("test_vit", num_classes=4, img_size=64), tmp_path, classes="abcd", multi_label=True)
    known = load_classifier(checkpoint=tmp_path)
    assert known.multi_label
    raw = cams.create("getam", known)(torch.randn(2, 3, 64, 96), lambda logits: logits.topk(2).indices.tolist())
    assert [item.shape for item in raw.values] == [(2, 4, 6)] * 2


@pytest.mark.parametrize(
    ("name", "classes", "match"),
    [
        ("test_resnet", 3, "needs attention between all patches"),
        ("test_vit", 0, "no class scores"),
        ("xcit_nano_12_p16_224", 3, "not between the patches|every token attends|needs attention"),
    ],
)
def test_models_that_it_cannot_work_with(name, classes, match):
    known = load_classifier(name, num_classes=classes, img_size=64)
    with pytest.raises(ModelError, match=match):
        cams.create("getam", known)(torch.zeros(1, 3, 64, 64), [[0]])


@pytest.mark.parametrize("start", [-1, 4])
def test_blocks_that_are_not_there(start):
    with pytest.raises(ConfigError, match=r"start_layer must be in \[0, 3\]"):
        cams.create("getam", vit(), start_layer=start)
