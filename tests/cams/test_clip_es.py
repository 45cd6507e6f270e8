"""CLIP-ES: the closed-form gradient against autograd, competition between classes, and what the options do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import nn

from wsol import cams
from wsol.cams._last_block import is_plain, run_last_block
from wsol.cams.clip_es import grad_cam, log_odds_direction
from wsol.errors import ConfigError, ModelError
from wsol.models.attention_affinity import mean_attention, spread
from wsol.models.classifier import Classifier
from wsol.models.clip import ClipViT, halve_encoder, set_texts
from wsol.ops.box_mask import box_masks

CLASSES, BACKGROUND = 6, 3


def randomize(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2 * noise)


def tower(*, background: int = BACKGROUND, logit_scale: float = 20.0, **options: Any) -> ClipViT:
    shape: dict[str, Any] = {"img_size": (48, 48), "patch_size": 16, "width": 32, "depth": 3, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = ClipViT(**{**shape, "embed_dim": 16, "logit_scale": logit_scale, **options}).eval()
    randomize(module, 3)
    texts = torch.randn(CLASSES + background, 16, generator=torch.Generator().manual_seed(5))
    set_texts(module, texts[:CLASSES], texts[CLASSES:])
    return module


def pictures(count: int = 2, size: tuple[int, int] = (48, 80)) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("act", ["gelu", "quick_gelu", "relu"])
@pytest.mark.parametrize("extras", [False, True])
def test_closed_form_equals_autograd(prefix, act, extras):
    layer_scale = {"init_values": 0.7} if extras else {}
    torch.manual_seed(0)
    block = Block(24, 3, mlp_ratio=3, qkv_bias=extras, act_layer=timm.layers.get_act_layer(act), **layer_scale)
    norm = nn.Identity() if extras and not prefix else nn.LayerNorm(24, eps=1e-3)
    block, norm = block.double().eval(), norm.double()
    randomize(block, 1)
    randomize(norm, 2)
    generator = torch.Generator().manual_seed(prefix)
    tokens = torch.randn(2, prefix + 7, 24, generator=generator, dtype=torch.float64)
    gradients = torch.randn(9, 24, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        last = run_last_block(block, norm, tokens, prefix=prefix)
        got = last.weights(1, gradients)

    normed = block.norm1(tokens).detach().requires_grad_()
    between = tokens + block.ls1(block.attn(normed))
    output = norm(between + block.ls2(block.mlp(block.norm2(between))))
    pooled = output[1, prefix:].mean(0)
    expected = [
        torch.autograd.grad(pooled @ row, normed, retain_graph=True)[0][1, prefix:].mean(0) for row in gradients
    ]
    torch.testing.assert_close(last.tokens, output, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last.pooled[1], pooled, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-9, atol=1e-12)
    assert is_plain(block, norm)
    assert all(parameter.grad is None for parameter in block.parameters())


def published(module: ClipViT, image: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """Softmax Grad-CAM by autograd, in double precision, as the paper writes it: the gradient of the probability."""
    block = module.blocks[-1]
    kept: list[torch.Tensor] = []
    handle = block.norm1.register_forward_hook(lambda *given: kept.append(given[2].requires_grad_()) or kept[-1])
    try:
        tokens = module.forward_features(image[None])
    finally:
        handle.remove()
    feature = nn.functional.normalize(module.proj(module.fc_norm(tokens[:, 1:].mean(1))), dim=-1)[0]
    texts = torch.cat([module.text_features[ids], module.background_features]).to(feature)
    probabilities = (module.logit_scale * texts @ feature).softmax(0)
    maps = []
    for at in range(len(ids)):
        (gradient,) = torch.autograd.grad(probabilities[at], kept[0], retain_graph=True)
        values = (kept[0][0, 1:] @ gradient[0, 1:].mean(0)).relu().detach()
        values = values - values.min()
        maps.append(values / values.max().clamp_min(1e-300))
    return torch.stack(maps)


@pytest.mark.parametrize(
    "options", [{}, {"quick_gelu": False, "layer_scale": True}, {"pool": "avg", "norm_after_pool": True}], ids=str
)
def test_maps_are_those_of_the_probability(options):
    module, images, ids = tower(**options), pictures(), [[4, 0, 1], [2]]
    raw = cams.create("clip_es", module, affinity=False)(images, ids)
    exact = tower(**options).double()
    for image, row, values in zip(images.double(), ids, raw.values, strict=True):
        expected = published(exact, image, row)
        assert values.shape == (len(row), 3, 5)
        np.testing.assert_allclose(values.flatten(1), expected, rtol=0, atol=2e-5)


def test_certain_classes_keep_their_maps():
    """Where the probability is 1 in single precision its gradient is 0; that of the log-odds is not."""
    module, image = tower(logit_scale=100.0), pictures(1)
    with torch.no_grad():
        text = module.head.embed(module.forward_features(image)[:, 1:].mean(1))[0]
        set_texts(module, text[None], torch.stack([-text, -text.roll(1)]))
        last = run_last_block(module.blocks[-1], module.norm, before_last(module, image), prefix=1)
        texts = torch.cat([module.text_features, module.background_features])
        assert (100 * module.head.embed(last.pooled) @ texts.T).softmax(1)[0, 0] == 1
        got = grad_cam(module, last, 0, [0])
    exact = tower(logit_scale=100.0).double()
    set_texts(exact, module.text_features.double(), module.background_features.double())
    np.testing.assert_allclose(got, published(exact, image[0].double(), [0]), rtol=0, atol=1e-4)
    assert got.max() > 0.99


def before_last(module: ClipViT, images: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    handle = module.blocks[-1].register_forward_pre_hook(lambda _, given: kept.append(given[0]))
    module.forward_features(images)
    handle.remove()
    return kept[0]


def test_direction_is_the_gradient_of_the_log_odds():
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    feature = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    logits = (texts @ feature)[None]
    got = log_odds_direction(logits.detach(), texts, 3)
    for at, row in enumerate(got):
        probability = logits[0].softmax(0)[at]
        (expected,) = torch.autograd.grad((probability / (1 - probability)).log(), feature, retain_graph=True)
        torch.testing.assert_close(row, expected)
    alone = log_odds_direction(logits[:, :1].detach(), texts[:1], 1)
    torch.testing.assert_close(alone, texts[:1])


def test_classes_compete_and_repeated_ones_count_once():
    bound, images = cams.create("clip_es", tower(logit_scale=1.0)), pictures()
    together, alone = bound(images, [[0, 3], []]), bound(images[:1], [[0]])
    assert not torch.allclose(together.values[0][0], alone.values[0][0], rtol=0, atol=1e-4)
    again = bound(images[:1], [[3, 0, 3]])
    torch.testing.assert_close(again.values[0], together.values[0][[1, 0, 1]], rtol=0, atol=1e-6)


def test_without_background_texts():
    bound = cams.create("clip_es", tower(background=0))
    raw = bound(pictures(), [[1], [0, 2]])
    assert all(item.isfinite().all() and (item.amax((1, 2)) > 0).all() for item in raw.values)


def test_many_classes_come_in_parts():
    known, images = tower(), pictures(1)
    every = list(range(CLASSES))
    raw = cams.create("clip_es", known, affinity=False)(images, [every])
    expected = published(tower().double(), images[0].double(), every)
    np.testing.assert_allclose(raw.values[0].flatten(1), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("layers", [1, 2, 8])
def test_affinity_spreads_the_plain_maps_from_their_boxes(layers):
    known, images, ids = Classifier(tower()), pictures(), [[1, 4], [0]]
    options = {"layers": layers, "box_threshold": 0.6, "reference_boxes": True}
    plain = cams.create("clip_es", known, affinity=False)(images, ids)
    raw = cams.create("clip_es", known, **options)(images, ids)
    attention = mean_attention(known, images, layers=layers)
    for matrix, before, after in zip(attention, plain.values, raw.values, strict=True):
        boxes = box_masks(before.numpy(), threshold=0.6, reference_boxes=True)
        expected = spread(matrix, (before * torch.from_numpy(boxes)).flatten(1))
        torch.testing.assert_close(after.flatten(1), expected, rtol=0, atol=1e-6)
        assert after.min() >= 0
    torch.testing.assert_close(raw.logits, plain.logits)


def test_half_precision_ends_before_the_last_block():
    module, images, seen = tower(), pictures(), []
    bound = cams.create("clip_es", module)
    watched = [module.blocks[0].attn.qkv, module.blocks[-1].norm1]
    handles = [layer.register_forward_hook(lambda *given: seen.append(given[2].dtype)) for layer in watched]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        raw = bound(images, [[0], [1]])
    for handle in handles:
        handle.remove()
    assert seen == [torch.bfloat16, torch.float32]
    assert raw.logits.dtype == torch.float32


@pytest.mark.parametrize("options", [{"layers": 0}, {"box_threshold": 1.5}, {"box_threshold": -0.1}])
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        cams.create("clip_es", tower(), **options)


def test_models_that_cannot_work():
    with pytest.raises(ModelError, match="compares images with texts"):
        cams.create("clip_es", timm.create_model("test_vit"))
    module = tower()
    module.blocks[-1].attn.q_norm = nn.LayerNorm(16)
    with pytest.raises(ModelError, match="plain vision transformer"):
        cams.create("clip_es", module)


def test_the_rounded_position_is_an_option_that_leaves_the_model_alone():
    module, images = tower(), pictures()
    ids = [[0, 2], [1]]
    plain = cams.create("clip_es", Classifier(module))(images, ids)
    rounded = cams.create("clip_es", Classifier(module), fp16_position=True)(images, ids)
    assert module.fp16_position is False
    module.fp16_position = True
    expected = cams.create("clip_es", Classifier(module))(images, ids)
    for got, wanted, other in zip(rounded.values, expected.values, plain.values, strict=True):
        assert torch.equal(got, wanted)
        assert not torch.equal(got, other)


def test_half_weights_of_the_encoder_change_no_bit_under_autocast():
    module, images, ids = tower(), pictures(), [[0, 2], [1]]
    bound = cams.create("clip_es", Classifier(module))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = bound(images, ids)
        halve_encoder(module)
        after = bound(images, ids)
    assert module.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16
    assert module.blocks[-1].mlp.fc1.weight.dtype == torch.float32
    assert all(torch.equal(one, two) for one, two in zip(before.values, after.values, strict=True))
