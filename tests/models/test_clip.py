"""The converted image tower gives what open_clip gives, at every grid, and works with every map method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPVisionCfg, CustomTextCLIP
from torch import nn
from torch.nn import functional as F

from wsol import cams
from wsol.errors import ModelError
from wsol.models.classifier import Classifier
from wsol.models.clip import ClipViT, set_texts
from wsol.models.clip_convert import image_tower

VISION = {"image_size": 64, "layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 1, "layers": 1}
VARIANTS = {
    "openai": ({}, True),
    "gelu": ({}, False),
    "average": ({"pool_type": "avg"}, False),
    "clipa": (
        {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True, "pos_embed_type": "sin_cos_2d"},
        False,
    ),
    "after": ({"final_ln_after_pool": True}, True),
    "scaled": ({"ls_init_value": 0.3}, False),
    "norms": ({"norm_kwargs": {"eps": 1e-3}}, True),
    "wide": ({"mlp_ratio": 4.3637, "patch_size": 8}, False),
}


def openclip(vision=None, quick_gelu=True, kind=CLIP, text=None, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(24, {**VISION, **(vision or {})}, {**TEXT, **(text or {})}, quick_gelu=quick_gelu, **options)
        model.eval()
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return model


def images(count=2, height=64, width=64, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tower():
    module = image_tower(openclip(), where="tiny").eval()
    generator = torch.Generator().manual_seed(1)
    set_texts(module, torch.randn(5, 24, generator=generator), torch.randn(3, 24, generator=generator))
    return module


@pytest.mark.parametrize("name", VARIANTS)
def test_the_tower_gives_the_features_and_logits_of_open_clip(name):
    vision, quick_gelu = VARIANTS[name]
    model = openclip(vision, quick_gelu)
    module = image_tower(model, where=name).eval()
    texts = torch.randn(7, 24, generator=torch.Generator().manual_seed(2))
    set_texts(module, texts)
    x = images()
    with torch.no_grad():
        expected = model.encode_image(x, normalize=True)
        found = module.head.embed(module.forward_head(module.forward_features(x), pre_logits=True))
        logits = model.logit_scale.exp() * expected @ F.normalize(texts, dim=1).T
        assert (found - expected).abs().max() < 1e-5
        assert (module(x) - logits).abs().max() < 1e-4
    assert expected.std() > 0.01


def test_openai_weights_of_another_writer_give_the_same_features(tower):
    # open_clip builds from the shapes alone, with weights rounded to float16 as OpenAI publishes them.
    from open_clip.model import build_model_from_openai_state_dict

    model = openclip({"head_width": 64, "width": 64}, text={"width": 64})
    weights = {key: item.half().float() for key, item in model.state_dict().items() if key != "attn_mask"}
    theirs = build_model_from_openai_state_dict(dict(weights), cast_dtype=None).float().eval()
    module = image_tower(theirs, where="tiny").eval()
    with torch.no_grad():
        expected = theirs.visual(images())
        found = module.head.proj(module.forward_head(module.forward_features(images()), pre_logits=True))
    assert (found - expected).abs().max() < 1e-5


def naive_position(trained, grid, rows, columns):
    """Bilinear with pixel centres aligned, one number at a time."""
    height, width = grid
    cells = trained[1:].reshape(height, width, -1)
    out = [trained[0]]
    for row in range(rows):
        for column in range(columns):
            y = min(max((row + 0.5) * height / rows - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / columns - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            fy, fx = y - top, x - left
            upper = (1 - fx) * cells[top, left] + fx * cells[top, right]
            lower = (1 - fx) * cells[bottom, left] + fx * cells[bottom, right]
            out.append((1 - fy) * upper + fy * lower)
    return np.stack(out)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 7), (9, 2), (1, 1), (5, 4)])
def test_the_position_embedding_is_bilinear_at_any_grid(tower, rows, columns):
    trained = tower.pos_embed[0].detach().double().numpy()
    with torch.no_grad():
        found = tower.position(rows, columns)[0].numpy()
    np.testing.assert_allclose(found, naive_position(trained, (4, 4), rows, columns), atol=2e-6)
    tower.fp16_position = True
    with torch.no_grad():
        rounded = tower.position(rows, columns)[0].numpy()
    np.testing.assert_array_equal(rounded, found.astype(np.float16).astype(np.float32))
    assert not np.array_equal(rounded, found)


def test_positions_are_kept_as_long_as_the_weights_stay(tower):
    with torch.no_grad():
        first = tower.position(3, 5)
        assert tower.position(3, 5) is first
        for columns in range(1, 60):
            tower.position(2, columns)
        assert len(tower._positions) <= 16
        first = tower.position(3, 5)
        tower.pos_embed.mul_(2)
        assert torch.equal(tower.position(3, 5), first * 2)
        tower.load_state_dict({**tower.state_dict(), "pos_embed": tower.pos_embed * 2})
        assert torch.allclose(tower.position(3, 5), first * 4)


def test_a_position_made_in_inference_mode_serves_gradients_and_training_reaches_it(tower):
    x = images(1, 48, 80)
    with torch.inference_mode():
        expected = tower(x)
    tower.requires_grad_(False)
    tower.blocks[2].requires_grad_(True)
    assert torch.allclose(tower(x), expected, atol=1e-5)
    tower(x).sum().backward()
    tower.requires_grad_(True)
    tower(x).sum().backward()
    assert tower.pos_embed.grad.abs().sum() > 0


def test_a_classifier_knows_the_tower(tower):
    known = Classifier(tower, name="clip:tiny")
    assert (known.kind, known.stride, known.prefix_tokens, known.class_token) == ("tokens", 16, 1, True)
    assert (known.layer, known.num_classes, known.input_size) == ("blocks.2.norm1", 5, (64, 64))
    assert known.attention == ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn")
    assert known.grid(48, 80) == (3, 5)
    assert known.mean[0] == pytest.approx(0.48145466)
    assert known.interpolation == "bicubic"
    assert not known.pools_linearly


@pytest.mark.parametrize("method", ["gradcam", "layercam", "attention", "rollout"])
def test_map_methods_work_on_any_grid(tower, method):
    raw = cams.create(method, tower)(images(2, 48, 80), [[0, 3], [4]])
    assert [tuple(maps.shape) for maps in raw.values] == [(2, 3, 5), (1, 3, 5)]
    assert all(maps.isfinite().all() for maps in raw.values)
    with torch.no_grad():
        assert torch.allclose(raw.logits, tower(images(2, 48, 80)), atol=1e-4)


def test_gradcam_is_the_gradient_of_the_zero_shot_logit(tower):
    x = images(1, 32, 64)
    raw = cams.create("gradcam", tower)(x, [[2]])
    tokens = tower.norm_pre(tower._pos_embed(tower.patch_embed(x)))
    for block in tower.blocks[:2]:
        tokens = block(tokens)
    tokens = tokens.detach()
    kept = tower.blocks[2].norm1(tokens).detach().requires_grad_()
    last = tower.blocks[2]
    out = tokens + last.attn(kept)
    out = tower.norm(out + last.mlp(last.norm2(out)))[:, 0]
    cosine = F.normalize(out @ tower.proj.weight.T, dim=1) @ tower.text_features.T
    (gradient,) = torch.autograd.grad((tower.logit_scale * cosine)[0, 2], kept)
    expected = (gradient[0, 1:].mean(0) * kept[0, 1:]).sum(1).relu().reshape(2, 4) * 8
    assert (raw.values[0][0].relu() - expected).abs().max() < 1e-4
    assert expected.max() > 1e-3


def test_the_head_stays_in_full_precision_under_autocast(tower):
    with torch.no_grad():
        exact = tower(images())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = tower(images())
    assert mixed.dtype == torch.float32
    assert 0 < (mixed - exact).abs().max() < 1.0


def test_texts_are_normalized_and_must_fit(tower):
    assert torch.allclose(tower.text_features.norm(dim=1), torch.ones(5))
    assert (tower.num_classes, tuple(tower.background_features.shape)) == (5, (3, 24))
    set_texts(tower, torch.ones(2, 24))
    assert (tower.num_classes, len(tower.background_features)) == (2, 0)
    with pytest.raises(ModelError, match=r"\(n, 24\).*\(2, 23\)"):
        set_texts(tower, torch.ones(2, 23))
    with pytest.raises(ModelError, match="zero-shot"):
        set_texts(nn.Sequential(), torch.ones(2, 24))


@pytest.mark.parametrize(
    "vision",
    [
        {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"},
        {"timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True},
        {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "mlp"},
        {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": ""},
        {"timm_model_name": "test_vit3", "timm_pool": "", "timm_proj": "linear"},
    ],
)
def test_a_transformer_of_timm_inside_open_clip_is_taken_as_it_is(vision):
    vision["image_size"] = 160
    model = openclip(vision, False, CustomTextCLIP, init_logit_bias=-10.0)
    texts = F.normalize(torch.randn(4, 24, generator=torch.Generator().manual_seed(3)), dim=1)
    x = images(2, 160, 160)
    with torch.no_grad():
        expected = model.logit_scale.exp() * model.encode_image(x, normalize=True) @ texts.T + model.logit_bias
        module = image_tower(model, where="tiny").eval()
        set_texts(module, texts)
        assert (module(x) - expected).abs().max() < 1e-4
    raw = cams.create("gradcam", module)(images(1, 96, 160), [[1, 3]])
    assert raw.values[0].shape == (2, 6, 10)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"layers": [1, 1, 1, 1], "width": 32, "head_width": 64}, "ModifiedResNet"),
        ({"attentional_pool": True}, "no plain vision transformer"),
        ({"block_type": "custom", "qk_norm": True}, "no plain vision transformer"),
        ({"timm_model_name": "test_resnet", "timm_pool": "avg", "image_size": 64}, "ResNet"),
    ],
)
def test_other_towers_are_refused_by_name(vision, message):
    if not vision.keys() <= CLIPVisionCfg.__dataclass_fields__.keys():
        pytest.skip("this open_clip has no such tower")
    with pytest.raises(ModelError, match=message) as caught:
        image_tower(openclip(vision, kind=CustomTextCLIP), where="clip:other")
    assert "clip:other" in str(caught.value)


def test_a_new_tower_has_no_classes():
    module = ClipViT(img_size=(32, 48), patch_size=16, width=16, depth=2, num_heads=2, embed_dim=8).eval()
    assert module(images(1, 32, 48)).shape == (1, 0)
    assert Classifier(module).grid(32, 48) == (2, 3)
