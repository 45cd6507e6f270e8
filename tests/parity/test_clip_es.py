"""CLIP-ES against what its own code produced, stage by stage: from the pixels to the pseudo-mask."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from wsol import cams, refine
from wsol.cams._last_block import run_last_block
from wsol.cams.clip_es import grad_cam
from wsol.data.transforms import input_size, to_input
from wsol.models.attention_affinity import mean_attention, spread
from wsol.models.classifier import Classifier
from wsol.models.clip import set_texts
from wsol.models.clip_convert import image_tower
from wsol.models.taps import tap
from wsol.ops.box_mask import box_masks
from wsol.ops.normalize import minmax
from wsol.ops.resize import resize_maps

pytestmark = pytest.mark.parity

SHAPES = {"tiny": {"embed_dim": 64, "width": 128}, "B16": {"embed_dim": 512, "width": 768}}
Case = tuple[str, Classifier, Mapping[str, np.ndarray], torch.Tensor]


def drawn(key: str, shape: torch.Size, width: int) -> torch.Tensor:
    """The kit's rule for weights: normal numbers seeded by the name, scaled by the kind of the layer."""
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape)).astype(np.float32)
    if key.endswith("bias"):
        z = 0.02 * z
    elif ".ln_" in key:
        z = 1 + 0.1 * z
    elif key.endswith(("class_embedding", "positional_embedding")):
        z = z * width**-0.5
    elif key.endswith("visual.proj"):
        z = z * shape[0] ** -0.5
    else:
        z = z * math.prod(shape[1:]) ** -0.5
        if key.endswith("in_proj_weight"):
            z[: 2 * len(z) // 3] *= 1.6
    return torch.from_numpy(z.astype(np.float32))


def tower(name: str, texts: np.ndarray, background: np.ndarray) -> Classifier:
    embed_dim, width = SHAPES[name]["embed_dim"], SHAPES[name]["width"]
    vision = CLIPVisionCfg(layers=12, width=width, patch_size=16, image_size=224)
    text = CLIPTextCfg(context_length=7, vocab_size=9, width=64, heads=1, layers=1)
    with torch.random.fork_rng(devices=[]):
        model = CLIP(embed_dim, vision, text, quick_gelu=True)
    shapes = {f"visual.{key}": item.shape for key, item in model.visual.state_dict().items()}
    weights = {key: drawn(key, shape, width) for key, shape in shapes.items()}
    model.visual.load_state_dict({key.removeprefix("visual."): item for key, item in weights.items()})
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
    module: Any = image_tower(model, where=name).eval()
    module.fp16_position = True
    set_texts(module, torch.from_numpy(texts), torch.from_numpy(background))
    return Classifier(module)


def clip(golden: Path, name: str) -> Case:
    with np.load(golden / "wsss" / f"clipes_{name}_voc.npz") as file:
        arrays = dict(file)
    known = tower(name, arrays["text_fg"], arrays["text_bg"])
    image = arrays["image_rgb_uint8"]
    size = input_size(image.shape[:2], resize="native", stride=known.stride)
    facts = {"mean": known.mean, "std": known.std, "interpolation": known.interpolation}
    return name, known, arrays, torch.from_numpy(to_input(image, size, **facts))[None]


@pytest.fixture(scope="module", params=["tiny", pytest.param("B16", marks=pytest.mark.slow)])
def case(golden: Path, request: pytest.FixtureRequest) -> Case:
    return clip(golden, request.param)


def close(got: Any, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=atol)


def scaled(maps: np.ndarray) -> np.ndarray:
    """The published normalization: its 1e-7 is felt where a random model's map is nearly even."""
    maps = maps - maps.min(axis=(1, 2), keepdims=True)
    return maps / (np.float32(1e-7) + maps.max(axis=(1, 2), keepdims=True))


def method(known: Classifier, arrays: Mapping[str, np.ndarray], **options: Any) -> Any:
    threshold = round(float(arrays["box_threshold"]), 4)
    return cams.create("clip_es", known, box_threshold=threshold, reference_boxes=True, **options)


def test_the_drawn_weights_are_those_of_the_kit(golden: Path) -> None:
    checks = json.loads((golden / "wsss" / "B16_weight_checks.json").read_text())
    shapes = {"visual.proj": (768, 512), "visual.ln_post.weight": (768,), "visual.positional_embedding": (197, 768)}
    for key, shape in shapes.items():
        z = drawn(key, torch.Size(shape), 768).flatten()
        np.testing.assert_allclose([z.double().sum(), z[0], z[-1]], checks[key], rtol=1e-5)


def test_encoder(case: Case) -> None:
    name, known, arrays, images = case
    close(images[0] if name == "tiny" else images[0, :, ::8, ::8], arrays["preprocessed"], 1e-6)
    block = f"blocks.{len(known.module.blocks) - 2}"
    with torch.no_grad(), tap(known.module, activations=[block]) as tapped:
        known.module(images)
    expected = arrays["last_block_input"]
    close(tapped.activations[block][0, : len(expected)], expected, 2e-4 * np.abs(expected).max())
    expected = arrays["attn_mean_last8"]
    close(mean_attention(known, images)[0, : len(expected)], expected, 1e-6)


def test_the_last_block_alone(case: Case) -> None:
    name, known, arrays, images = case
    ids, module = arrays["class_ids"].tolist(), known.module
    with torch.no_grad():
        if name == "tiny":
            tokens = torch.from_numpy(arrays["last_block_input"])[None]
        else:  # the kit holds the first tokens only
            with tap(module, activations=["blocks.10"]) as tapped:
                module(images)
            tokens = tapped.activations["blocks.10"]
        last = run_last_block(module.blocks[-1], module.norm, tokens, prefix=1)
        texts = torch.from_numpy(np.concatenate([arrays["text_fg"][ids], arrays["text_bg"]]))
        probabilities = (module.logit_scale * module.head.embed(last.pooled) @ texts.T).softmax(1)
        close(probabilities[0], arrays["probs"], 2e-6)
        low = grad_cam(module, last, 0, ids)
    close(low.view(arrays["cam_low"].shape), arrays["cam_low"], 1e-5)


def test_box_masks_are_exact(golden: Path) -> None:
    with np.load(golden / "wsss" / "boxmask_cases.npz") as file:
        for at, threshold in enumerate(file["thr"].tolist()):
            got = box_masks(file[f"map_{at}"][None], threshold=threshold, reference_boxes=True)
            np.testing.assert_array_equal(got[0], file[f"mask_{at}"] > 0)


def test_affinity_alone(golden: Path) -> None:
    with np.load(golden / "wsss" / "clipes_tiny_voc.npz") as file:
        attention, inside, expected = file["attn_mean_last8"], file["cam_low"] * file["aff_mask"], file["refined_low"]
    got = spread(torch.from_numpy(attention), torch.from_numpy(inside).flatten(1))
    close(got.view(expected.shape), expected, 1e-6)


def test_maps(case: Case) -> None:
    _, known, arrays, images = case
    ids = [arrays["class_ids"].tolist()]
    plain = method(known, arrays, affinity=False)(images, ids).values[0].numpy()
    close(plain, arrays["cam_low"], 1e-5)
    boxes = box_masks(plain, threshold=round(float(arrays["box_threshold"]), 4), reference_boxes=True)
    np.testing.assert_array_equal(boxes, arrays["aff_mask"] > 0)
    refined = method(known, arrays)(images, ids)
    close(refined.values[0], arrays["refined_low"], 1e-6)
    maps = scaled(refined.values[0].numpy())
    close(minmax(refined.values[0].numpy()), maps, 2e-3)  # what `wsol cam --normalize minmax` writes
    full = resize_maps(maps, arrays["attn_highres"].shape[1:])
    close(full, arrays["attn_highres"].astype(np.float32), 6e-4)


def test_pseudo_masks_from_our_own_maps(case: Case) -> None:
    _, known, arrays, images = case
    image, keys = arrays["image_rgb_uint8"], arrays["keys"]
    raw = method(known, arrays)(images, [arrays["class_ids"].tolist()])
    maps = resize_maps(scaled(raw.values[0].numpy()), image.shape[:2]).astype(np.float16)
    scores = np.concatenate([1 - maps.max(axis=0, keepdims=True), maps])  # alpha 1, in the script's half precision
    scores = np.exp(np.log(np.clip(scores, 1e-5, 1)).astype(np.float32))
    refined = refine.create("densecrf", preset="clipes", image="caffe_wrap")(image, scores)
    labels, confidence = refine.to_labels(refined, keys)
    assert (labels == arrays["crf_label_full"]).mean() > 0.9999
    assert (refine.to_labels(refined, keys, min_confidence=0.95)[0] == arrays["crf_label_cgl"]).mean() > 0.999
    assert np.abs(confidence.astype(np.float32) - arrays["crf_max_prob"].astype(np.float32)).mean() < 1e-3
