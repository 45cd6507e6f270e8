"""Classifier: what running a model once tells about it, for CNNs and transformers of every kind."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wsol.errors import ModelError
from wsol.models.classifier import Classifier, load_classifier
from wsol.models.layout import has_channels_last


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def registers(depth: int = 2) -> nn.Module:
    return timm.create_model(
        "vit_small_patch14_reg4_dinov2", depth=depth, embed_dim=48, num_heads=3, num_classes=4, dynamic_img_size=True
    )


@pytest.mark.parametrize(
    ("name", "kind", "layer", "stride", "prefix", "linear"),
    [
        ("test_resnet", "cnn", "layer4", 32, 0, True),
        ("resnet18", "cnn", "layer4", 32, 0, True),
        ("test_efficientnet", "cnn", "bn2", 32, 0, True),
        ("mobilenetv3_small_050", "cnn", "blocks", 32, 0, False),
        ("test_convnext", "cnn", "stages", 32, 0, False),
        ("test_nfnet", "cnn", "final_act", 32, 0, True),
        ("densenet121", "cnn", "features", 32, 0, True),
        ("swin_tiny_patch4_window7_224", "cnn", "norm", 32, 0, True),
        ("pvt_v2_b0", "cnn", "stages", 32, 0, True),
        ("test_vit", "tokens", "blocks.5.norm1", 16, 1, False),
        ("test_vit2", "tokens", "blocks.7.norm1", 16, 1, False),
        ("test_vit_relpos", "tokens", "blocks.8.norm1", 16, 0, False),
        ("deit_tiny_distilled_patch16_224", "tokens", "blocks.11.norm1", 16, 2, False),
        ("xcit_nano_12_p16_224", "tokens", "blocks.11.norm1", 16, 1, False),
        ("twins_svt_small", "tokens", "norm", 32, 0, True),
    ],
)
def test_layout_of_families(name, kind, layer, stride, prefix, linear):
    known = load_classifier(name, num_classes=3, img_size=64)
    assert (known.kind, known.layer, known.stride, known.prefix_tokens) == (kind, layer, stride, prefix)
    assert known.pools_linearly is linear
    assert known.grid(64, 64) == (64 // stride, 64 // stride)
    if name != "test_vit_relpos":
        assert known.grid(96, 160) == (96 // stride, 160 // stride)
    assert known.num_classes == 3
    assert f"{name}: 3 classes, layer {layer}, grid" in known.describe()
    assert not known.module.training


def test_registers_and_the_class_token():
    known = Classifier(registers(), input_size=(28, 42))
    assert (known.prefix_tokens, known.class_token, known.grid(28, 42)) == (5, True, (2, 3))
    assert known.attention == ("blocks.0.attn", "blocks.1.attn")
    assert known.class_tokens == 1
    assert not load_classifier("test_vit2", img_size=64).class_token, "its head pools the patches"


def test_the_distillation_token():
    distilled = load_classifier("deit_tiny_distilled_patch16_224", num_classes=3, img_size=64)
    assert (distilled.class_tokens, distilled.prefix_tokens, distilled.distillation_token) == (1, 2, True)
    assert distilled.output_tokens == slice(0, 1)
    assert load_classifier("test_vit2", num_classes=3, img_size=64).output_tokens == slice(1, None)
    assert not Classifier(registers(), input_size=(28, 42)).distillation_token
    assert not load_classifier("test_resnet", num_classes=3).distillation_token


@pytest.mark.parametrize("size", [(97, 161), (96, 160), (33, 200)])
def test_grid_of_a_cnn_is_what_comes_out_at_odd_sizes(size):
    known = load_classifier("test_resnet", num_classes=3)
    with torch.no_grad():
        assert known.grid(*size) == tuple(known.module.forward_features(noise(1, 3, *size)).shape[2:])


def test_tokens_lie_row_by_row():
    known = load_classifier("test_vit", num_classes=3)
    image = torch.zeros(1, 3, 64, 96)
    image[:, :, 32:48, 80:96] = 1.0  # the patch in row 2, column 5
    with torch.no_grad():
        changed = known.module.patch_embed(image) - known.module.patch_embed(torch.zeros(1, 3, 64, 96))
    changed = changed.reshape(1, 4, 6, -1) if changed.ndim == 4 else changed
    grid = known.to_grid(changed.reshape(1, 24, -1), 64, 96)
    assert (grid.abs().sum(1)[0] > 0).nonzero().tolist() == [[2, 5]]
    with_prefix = torch.cat([torch.full((1, 1, grid.shape[1]), 9.0), changed.reshape(1, 24, -1)], 1)
    torch.testing.assert_close(known.to_grid(with_prefix, 64, 96), grid)


def test_tokens_that_do_not_fill_the_grid_are_refused():
    known = load_classifier("test_vit", num_classes=3)
    with pytest.raises(ModelError, match=r"expected 4x6 tokens .* got \(1, 27, 8\)"):
        known.to_grid(torch.zeros(1, 27, 8), 64, 96)
    with pytest.raises(ModelError, match="expected 4x6 tokens"):
        known.to_grid(torch.zeros(1, 8), 64, 96)


def test_swin_grids_are_turned_to_channels_first():
    known = load_classifier("swin_tiny_patch4_window7_224", num_classes=3, img_size=64)
    with torch.no_grad():
        features = known.module.forward_features(noise(1, 3, 64, 96))
    grid = known.to_grid(features, 64, 96)
    assert grid.shape == (1, 768, 2, 3)
    torch.testing.assert_close(grid[0, :, 1, 2], features[0, 1, 2])


@given(st.integers(30, 700), st.integers(30, 700), st.integers(4, 32), st.sampled_from([0, 1]), st.booleans())
def test_the_grid_is_where_the_proportions_of_the_input_are(height, width, stride, rounded, usual):
    rows, columns = (max(1, (side + rounded * (stride - 1)) // stride) for side in (height, width))
    channels = 64 * max(rows, columns)  # more than any side of the grid, whatever the proportions
    for shape, last in (((2, channels, rows, columns), False), ((2, rows, columns, channels), True)):
        assert has_channels_last(shape, size=(height, width), usual=usual) is last
    assert has_channels_last((2, 8, 8, 8), size=(64, 64), usual=usual) is usual


def test_head_weight_and_its_limits():
    known = load_classifier("test_resnet", num_classes=3)
    weight, bias = known.head_weight()
    assert weight is not None
    assert weight.shape == (3, 96)
    torch.testing.assert_close(bias, known.module.fc.bias)
    with pytest.raises(ModelError, match="one linear layer"):
        load_classifier("deit_tiny_distilled_patch16_224", img_size=64).head_weight()
    with pytest.raises(ModelError, match="one linear layer"):
        load_classifier("test_resnet", num_classes=0).head_weight()
    assert isinstance(load_classifier("deit_tiny_distilled_patch16_224", img_size=64).head, nn.ModuleList)


def test_headless_and_dynamic_size():
    known = load_classifier("test_vit", num_classes=0)
    assert known.num_classes == 0
    assert known.pools_linearly is False
    with torch.no_grad():
        assert known.module(noise(1, 3, 48, 80)).shape == (1, 64)


def test_input_facts_come_from_timm():
    known = load_classifier("tf_efficientnet_lite0")
    assert (known.mean, known.std, known.interpolation, known.input_size) == (
        (0.5, 0.5, 0.5),
        (0.5, 0.5, 0.5),
        "bicubic",
        (224, 224),
    )
    assert load_classifier("test_resnet", img_size=96).input_size == (96, 96)


def test_loading_keeps_the_random_state_and_repeats():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one, two = load_classifier("test_resnet", num_classes=3), load_classifier("test_resnet", num_classes=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(one.module.state_dict(), two.module.state_dict())


def test_wrapping_leaves_the_model_alone():
    module = timm.create_model("test_vit", dynamic_img_size=True).train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    known = Classifier(module, input_size=(48, 80))
    assert known.pools_linearly is False
    assert module.training
    assert all(item.training for item in module.modules())
    torch.testing.assert_close(module.state_dict(), state)
    assert known.name == "test_vit"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_classifier("resnet_18"), "unknown model 'resnet_18' .*did you mean 'resnet18'"),
        (lambda: load_classifier(__file__), "it is a path: give it as --checkpoint"),
        (lambda: load_classifier("test_resnet.nope_tag"), "Invalid pretrained tag"),
        (lambda: load_classifier(), "no model name .*--model NAME"),
        (lambda: load_classifier("test_resnet", checkpoint=__file__, pretrained=True), "two sources"),
        (lambda: load_classifier("test_vit", img_size=65), r"cannot run at 65x65 pixels: .*65.* divisible by patch"),
        (lambda: Classifier(nn.Linear(2, 2)), "Linear is no timm model"),
    ],
)
def test_mistakes_are_one_line(call, message):
    with pytest.raises(ModelError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_failed_download_says_what_to_do(monkeypatch):
    def create(name, **options):
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(ModelError, match=r"could not download the weights: no route to host \(.*--checkpoint FILE\)$"):
        load_classifier("resnet18", pretrained=True)
