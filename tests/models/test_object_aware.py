"""ObjectAware around timm models: the model inside without labels, and the formula with them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer

from wsol import cams
from wsol.errors import ModelError
from wsol.models._wrapped import WRAPPERS, wrap
from wsol.models.classifier import Classifier
from wsol.models.object_aware import ObjectAware, patch_distance
from wsol.models.taps import tap

SHAPE = {"depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 5, "dynamic_img_size": True}


def vit(name="deit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    return noisy(timm.create_model(name, **(SHAPE | options)).eval())


def noisy(module):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return module


def images(size=(48, 80)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def labels(count=15, classes=4):
    return torch.rand(2, count, classes, generator=torch.Generator().manual_seed(2)).softmax(2)


def strong(model, value=2.0):
    with torch.no_grad():
        model.kappa.fill_(value)
    return model


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_kappa_of_zero_or_no_labels_is_the_model_inside(name):
    base = vit(name)
    model = ObjectAware(base)
    with torch.no_grad():
        expected = base(images())
        assert torch.equal(model(images()), expected)
        with model.labelled(labels()):
            torch.testing.assert_close(model(images()), expected, atol=1e-5, rtol=1e-5)
        with strong(model).labelled(labels()):
            assert (model(images()) - expected).abs().max() > 1e-4
            with model.labelled(None):
                assert torch.equal(model(images()), expected)
        assert torch.equal(model(images()), expected)
        assert torch.equal(base(images()), expected)


@pytest.mark.parametrize("kernel", ["exp", "minus"])
@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_attention_that_taps_read(name, kernel):
    base = vit(name)
    model = strong(ObjectAware(base, kernel=kernel, distance="cosine"), 0.5)
    prefix = base.num_prefix_tokens
    with torch.no_grad(), model.labelled(labels()), tap(model, attention=["base.blocks.0.attn"]) as seen:
        model(images())
    with torch.no_grad(), tap(base, attention=["blocks.0.attn"]) as plain:
        base(images())
    ours, before = seen.attention["base.blocks.0.attn"], plain.attention["blocks.0.attn"]
    given = labels().numpy()
    unit = given / np.linalg.norm(given, axis=2, keepdims=True)
    apart = 1 - unit @ unit.transpose(0, 2, 1)
    alike = np.ones((2, 1, 15 + prefix, 15 + prefix))
    alike[:, 0, prefix:, prefix:] = np.exp(-0.5 * apart) if kernel == "exp" else 1 - 0.5 * apart
    product = before.numpy() * alike
    np.testing.assert_allclose(ours.numpy(), product / product.sum(3, keepdims=True), atol=1e-5)


def test_negative_kappa_counts_as_zero():
    model = strong(ObjectAware(vit()), -3.0)
    with torch.no_grad(), model.labelled(labels()):
        torch.testing.assert_close(model(images()), model.base(images()), atol=1e-5, rtol=1e-5)


def test_distances():
    given = labels()
    for one in range(3):
        for two in range(3):
            expected = (given[:, one] - given[:, two]).abs().sum(1)
            torch.testing.assert_close(patch_distance(given, distance="l1")[:, one, two], expected)
    cosine = 1 - torch.nn.functional.cosine_similarity(given[:, 3], given[:, 5], dim=1)
    torch.testing.assert_close(patch_distance(given, distance="cosine")[:, 3, 5], cosine)


def test_mlp_mixer():
    base = noisy(MlpMixer(img_size=96, patch_size=32, num_blocks=2, embed_dim=16, num_classes=5).eval())
    model = ObjectAware(base)
    x = images((96, 96))
    given = labels(9)
    with torch.no_grad(), model.labelled(given):
        torch.testing.assert_close(model(x), base(x), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(strong(model)(x), base(x), atol=1e-4)


@pytest.mark.parametrize(
    ("given", "what"), [(labels(14), "labels of 15 patches, got 14"), (labels()[:1], "of 2 images")]
)
def test_wrong_labels_are_named(given, what):
    model = ObjectAware(vit())
    with model.labelled(given), pytest.raises(ModelError, match=what):
        model(images())


def test_other_models_are_refused():
    with pytest.raises(ModelError, match="no attention") as caught:
        ObjectAware(timm.create_model("test_resnet"))
    assert "vision transformer" in caught.value.hint


def test_it_passes_for_the_model_inside():
    base = vit()
    model = wrap("object_aware", base)
    assert isinstance(model, ObjectAware)
    assert set(WRAPPERS) == {"object_aware", "dynamic_tokens"}
    inside, outside = Classifier(base, input_size=(64, 64)), Classifier(model, input_size=(64, 64))
    assert outside.grid(48, 80) == inside.grid(48, 80) == (3, 5)
    assert (outside.kind, outside.prefix_tokens, outside.num_classes) == ("tokens", 1, 5)
    assert outside.layer == inside.layer
    for method in ("attention", "gradcam", "rollout", "chefer"):
        ours, theirs = (cams.create(method, known)(images(), [[1], [0, 3]]) for known in (outside, inside))
        for one, two in zip(ours.values, theirs.values, strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
        with strong(model).labelled(labels()):
            changed = cams.create(method, outside)(images(), [[1], [0, 3]])
        assert (changed.values[1] - theirs.values[1]).abs().max() > 1e-6
        strong(model, 0.0)


def test_weights_go_in_and_out():
    base, model = vit(), strong(ObjectAware(vit()))
    weights = model.adapt(base.state_dict())
    assert torch.equal(weights["kappa"], model.kappa)
    model.load_state_dict(weights)
    assert model.adapt(model.state_dict()).keys() == model.state_dict().keys()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.kappa.zero_()
        assert model.kappa.min() == 2
        with model.labelled(labels()):
            assert torch.equal(other(images()), base(images()))
    model.reset_classifier(3)
    assert model(images()).shape == (2, 3)
    assert model.num_classes == 3
    assert "base.pos_embed" in model.no_weight_decay()


def test_layers_have_the_depth_of_the_model_inside():
    from timm.optim import param_groups_layer_decay

    model = ObjectAware(vit())
    scales = {}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        for parameter in group["params"]:
            scales[id(parameter)] = group["lr_scale"]
    blocks = [scales[id(model.base.blocks[at].mlp.fc1.weight)] for at in range(3)]
    assert scales[id(model.base.patch_embed.proj.weight)] < blocks[0] < blocks[1] < blocks[2]
    assert scales[id(model.base.head.weight)] == 1
