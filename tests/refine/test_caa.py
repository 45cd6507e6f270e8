"""CAA as a refiner: the contract with a network, against the steps done by hand, and every kind of network."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

from wsol.data.transforms import to_input
from wsol.errors import ConfigError, DataError, ModelError
from wsol.models.attention_affinity import mean_attention, spread
from wsol.models.classifier import Classifier, load_classifier, save_classifier
from wsol.ops.box_mask import box_masks
from wsol.refine import create, to_labels

SIZE = (45, 75)
GRID = (3, 5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("caa") / "model.safetensors"
    save_file(sharp(1).state_dict(), path)
    return path


def sharp(seed: int) -> torch.nn.Module:
    """A tiny transformer whose attention is far from even."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = timm.create_model("test_vit", num_classes=3, dynamic_img_size=True)
        with torch.no_grad():
            for block in module.blocks:
                block.attn.qkv.weight.normal_(std=0.25)
    return module


def inputs(channels: int = 3, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(channels)
    image = cv2.resize(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8), size[::-1])
    scores = np.stack([cv2.resize(rng.random((4, 5), dtype=np.float32), size[::-1]) for _ in range(channels)])
    return image, scores


def test_it_is_the_affinity_of_the_network(weights: Path) -> None:
    image, scores = inputs()
    refined = create("caa", model="test_vit", checkpoint=str(weights), layers=2, box_threshold=0.6)(image, scores)

    known = load_classifier("test_vit", checkpoint=weights)
    pixels = to_input(image, (48, 80), mean=known.mean, std=known.std, interpolation=known.interpolation)
    attention = mean_attention(known, torch.from_numpy(pixels)[None], layers=2)[0]
    for before, after in zip(scores[1:], refined[1:], strict=True):
        grid = cv2.resize(before, (80, 48)).reshape(3, 16, 5, 16).mean((1, 3))
        grid = (grid - grid.min()) / np.ptp(grid)
        start = torch.from_numpy(grid * box_masks(grid[None], threshold=0.6)[0]).view(1, -1)
        spreaded = spread(attention, start).view(GRID).numpy()
        spreaded = (spreaded - spreaded.min()) / np.ptp(spreaded)
        expected = before.min() + np.ptp(before) * cv2.resize(spreaded, SIZE[::-1])
        np.testing.assert_allclose(after, expected, atol=1e-5)
        assert np.abs(after - before).max() > 0.05
    np.testing.assert_array_equal(refined[0], scores[0])


@pytest.mark.parametrize("shape", [(1, *SIZE), (2, 1, 1), (3, 1, 9), (2, 40, 1), (4, 19, 33)], ids=str)
def test_contract(weights: Path, shape: tuple[int, int, int]) -> None:
    image, scores = inputs(shape[0], shape[1:])
    image.setflags(write=False)
    scores.setflags(write=False)
    refiner = create("caa", model="test_vit", checkpoint=str(weights))
    refined = refiner(image, scores)
    assert refined.shape == shape
    assert refined.dtype == np.float32
    assert refined.min() >= 0
    assert refined.max() <= 1
    assert not np.shares_memory(refined, scores)
    np.testing.assert_array_equal(refiner(image, scores), refined)
    turned = refiner(image[::-1, ::-1], scores[:, ::-1, ::-1])
    copied = refiner(np.ascontiguousarray(image[::-1, ::-1]), np.ascontiguousarray(scores[:, ::-1, ::-1]))
    np.testing.assert_array_equal(turned, copied)


def test_even_maps_stay_as_they_are(weights: Path) -> None:
    image, scores = inputs(3)
    scores[:] = np.array([0.2, 0.7, 0.0], np.float32)[:, None, None]
    refined = create("caa", model="test_vit", checkpoint=str(weights))(image, scores)
    np.testing.assert_allclose(refined, scores, atol=1e-6)
    assert (to_labels(refined, [4, 7])[0] == 5).all()


def test_background_of_the_refined_maps(weights: Path) -> None:
    image, scores = inputs(3)
    plain = create("caa", model="test_vit", checkpoint=str(weights))(image, scores)
    remade = create("caa", model="test_vit", checkpoint=str(weights), alpha=2)(image, scores)
    np.testing.assert_array_equal(remade[1:], plain[1:])
    np.testing.assert_allclose(remade[0], (1 - plain[1:].max(0)) ** 2, atol=1e-6)
    alone = create("caa", model="test_vit", checkpoint=str(weights), alpha=2)(image, scores[:1])
    assert (alone == 1).all()


def test_a_run_of_wsol_train_and_a_changed_file(tmp_path: Path) -> None:
    image, scores = inputs()
    save_classifier(Classifier(sharp(1), name="test_vit", input_size=(64, 64)), tmp_path)
    refiner = create("caa", checkpoint=str(tmp_path))
    first = refiner(image, scores)
    save_classifier(Classifier(sharp(2), name="test_vit", input_size=(64, 64)), tmp_path)
    assert np.abs(refiner(image, scores) - first).max() > 1e-3


def test_a_large_image_may_be_seen_smaller(weights: Path) -> None:
    image, scores = inputs(2, (70, 130))
    refined = create("caa", model="test_vit", checkpoint=str(weights), img_size=64)(image, scores)
    assert refined.shape == scores.shape
    assert np.abs(refined[1] - scores[1]).max() > 0.05


def test_a_clip_model(tmp_path: Path) -> None:
    vision = CLIPVisionCfg(layers=2, width=64, patch_size=16, image_size=48)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=1)
        model = CLIP(32, vision, text, quick_gelu=True)
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    image, scores = inputs()
    refined = create("caa", model="clip", checkpoint=str(tmp_path / "clip.safetensors"))(image, scores)
    assert np.abs(refined[1:] - scores[1:]).max() > 0.05


def test_mistakes(weights: Path) -> None:
    image, scores = inputs()
    with pytest.raises(ConfigError, match="no checkpoint"):
        create("caa", model="test_vit")(image, scores)
    for option, value in {"layers": 0, "img_size": 0, "box_threshold": 1.1, "alpha": 0.0}.items():
        with pytest.raises(ConfigError, match=option):
            create("caa", **{option: value})
    with pytest.raises(ModelError):
        create("caa", model="test_resnet", checkpoint=str(weights))(image, scores)
    with pytest.raises(DataError):
        create("caa", model="test_vit", checkpoint=str(weights))(image, scores[:, 1:])
