"""Affinities from attention: against the dense formula, and for every kind of plain transformer."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from wsol.errors import ModelError
from wsol.models.attention_affinity import AttentionMean, mean_attention, sinkhorn, spread
from wsol.models.classifier import Classifier, load_classifier
from wsol.models.taps import tap

SMALL = {"depth": 3, "embed_dim": 32, "num_heads": 2, "num_classes": 3, "dynamic_img_size": True}
# Prefix tokens, patch size and input size of each.
MODELS = {
    "test_vit": (1, 16, (48, 80), {}),
    "test_vit2": (1, 16, (80, 48), {}),
    "vit_tiny_patch16_224": (0, 16, (80, 48), {**SMALL, "class_token": False, "global_pool": "avg"}),
    "deit_tiny_distilled_patch16_224": (2, 16, (48, 80), SMALL),
    "vit_small_patch14_reg4_dinov2": (5, 14, (42, 70), SMALL),
}


def positive(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)).softmax(-1)


def dense(attention: torch.Tensor, rounds: int, steps: int) -> torch.Tensor:
    """The published way: the scaled matrix itself, and its powers."""
    for _ in range(rounds):
        attention = attention / attention.sum(0, keepdim=True)
        attention = attention / attention.sum(1, keepdim=True)
    return torch.linalg.matrix_power((attention + attention.T) / 2, steps)


@given(
    size=st.integers(1, 12),
    classes=st.integers(0, 4),
    rounds=st.integers(0, 4),
    steps=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_spread_is_the_dense_product(size, classes, rounds, steps, seed):
    attention = positive(size, size, seed=seed)
    values = torch.rand(classes, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = values @ dense(attention, rounds, steps)  # symmetric
    torch.testing.assert_close(spread(attention, values, rounds=rounds, steps=steps), expected)


def test_sinkhorn_ends_with_even_sums_also_in_batches():
    attention = positive(2, 3, 7, 7)
    rows, columns = sinkhorn(attention, rounds=200)
    scaled = rows[..., None] * attention * columns[..., None, :]
    for dim in (-1, -2):
        torch.testing.assert_close(scaled.sum(dim), torch.ones(2, 3, 7, dtype=torch.float64))
    alone = sinkhorn(attention[1, 2], rounds=200)
    torch.testing.assert_close((rows[1, 2], columns[1, 2]), alone)


def test_a_patch_that_nobody_looks_at_does_no_harm():
    attention = positive(6, 6, dtype=torch.float32)
    attention[:, 2] = 0
    got = spread(attention, torch.rand(2, 6))
    assert got.isfinite().all()


def test_running_mean_is_the_mean_over_heads_and_blocks():
    layers = [positive(2, 3, 7, 7, seed=seed, dtype=torch.bfloat16) for seed in range(4)]
    mean = AttentionMean(2)
    with pytest.raises(ValueError, match="no block"):
        mean.result()
    for layer in layers:
        assert not mean(layer).numel()
    expected = torch.stack(layers).float().mean((0, 2))[:, 2:, 2:]
    assert mean.result().dtype == torch.float32
    torch.testing.assert_close(mean.result(), expected)


@pytest.mark.parametrize("layers", [1, 2, 8])
@pytest.mark.parametrize("name", MODELS)
def test_attention_of_the_last_blocks_between_patches(name, layers):
    prefix, patch, (height, width), shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(name, **(shape or {"num_classes": 3, "dynamic_img_size": True}))
    known = Classifier(module, input_size=(patch * 4, patch * 4))
    module.train()
    images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))
    got = mean_attention(known, images, layers=layers)
    assert module.training
    module.eval()
    names = known.attention[-layers:]
    with torch.no_grad(), tap(module, attention=names) as tapped:
        module(images)
    expected = torch.stack([tapped.attention[item] for item in names]).mean((0, 2))[:, prefix:, prefix:]
    count = (height // patch) * (width // patch)
    assert got.shape == (2, count, count)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
def test_models_without_such_attention_are_refused(name):
    with pytest.raises(ModelError, match="attention between all patches") as refusal:
        mean_attention(load_classifier(name, num_classes=3), torch.zeros(1, 3, 64, 64))
    assert refusal.value.hint


def test_a_size_that_does_not_fit_is_explained():
    known = load_classifier("test_vit_relpos", num_classes=3, img_size=64)
    assert mean_attention(known, torch.zeros(1, 3, 64, 64)).shape == (1, 16, 16)
    with pytest.raises(ModelError, match="cannot run at 48x80 pixels"):
        mean_attention(known, torch.zeros(1, 3, 48, 80))
