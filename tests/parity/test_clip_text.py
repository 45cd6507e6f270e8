"""Texts, tokens, text tower, preprocessing and encoder equal to those of CLIP-ES's own code on weights by rule."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from wsol.data.prompts import load_prompts
from wsol.data.transforms import input_size, to_input
from wsol.data.voc import CLASSES
from wsol.models.clip import OPENAI_MEAN, OPENAI_STD, set_texts
from wsol.models.clip_load import load_towers
from wsol.models.taps import tap
from wsol.schema import DatasetSpec

pytestmark = pytest.mark.parity
TINY = {"embed": 64, "layers": 12, "width": 128, "text": 64, "text_layers": 2}
B16 = {"embed": 512, "layers": 12, "width": 768, "text": 512, "text_layers": 12}


def shapes(embed, layers, width, text, text_layers):
    out = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (197, width),
        "visual.proj": (width, embed),
        "visual.conv1.weight": (width, 3, 16, 16),
        "text_projection": (text, embed),
        "positional_embedding": (77, text),
        "token_embedding.weight": (49408, text),
        "logit_scale": (),
    }
    norms = [("visual.ln_pre", width), ("visual.ln_post", width), ("ln_final", text)]
    for prefix, size, depth in (("visual.transformer", width, layers), ("transformer", text, text_layers)):
        for at in range(depth):
            block = f"{prefix}.resblocks.{at}."
            norms += [(block + "ln_1", size), (block + "ln_2", size)]
            for name, rows, columns in (
                ("attn.in_proj_", 3 * size, size),
                ("attn.out_proj.", size, size),
                ("mlp.c_fc.", 4 * size, size),
                ("mlp.c_proj.", size, 4 * size),
            ):
                out |= {f"{block}{name}weight": (rows, columns), f"{block}{name}bias": (rows,)}
    for name, size in norms:
        out |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return out


def value(key, shape):
    """The rule of the golden README."""
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key == "logit_scale":
        return np.float32(np.log(100))
    if key.endswith("bias"):
        return np.float32(0.02) * z
    if ".ln_" in f".{key}" and key.endswith("weight"):
        return 1 + np.float32(0.1) * z
    if key in ("visual.class_embedding", "visual.positional_embedding"):
        return z * np.float32(shape[-1] ** -0.5)
    if key in ("visual.proj", "text_projection"):
        return z * np.float32(shape[0] ** -0.5)
    if key in ("positional_embedding", "token_embedding.weight"):
        return np.float32(0.01 if key == "positional_embedding" else 0.02) * z
    z = z * np.float32(np.prod(shape[1:]) ** -0.5)
    if key.endswith("in_proj_weight"):
        z[: 2 * shape[0] // 3] *= np.float32(1.6)
    return z


def spec(golden: Path, name: str) -> DatasetSpec:
    classes = CLASSES
    if name == "coco":
        import yaml

        import wsol.data.prompts as package

        text = (Path(package.__file__).parent / "coco.yaml").read_text(encoding="utf-8")
        classes = tuple(yaml.safe_load(text)["classes"])
    return DatasetSpec(name=name, classes=classes, root=golden, split="train")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save({key: torch.from_numpy(np.array(value(key, shape))) for key, shape in shapes(**TINY).items()}, path)
    return load_towers("clip", checkpoint=path)


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_texts_and_tokens(golden, towers, name):
    known = json.loads((golden / "wsss" / "prompts.json").read_text())
    found = load_prompts(name, spec(golden, name))
    assert list(found.texts) == known[f"{name}_fg"]
    assert list(found.background) == known[f"{name}_bg"]
    assert found.templates == (known["template"],)
    tokens = np.load(golden / "wsss" / "prompt_tokens.npz")
    for part, texts in (("fg", found.texts), ("bg", found.background)):
        sentences = [found.templates[0].replace("{}", text) for text in texts]
        np.testing.assert_array_equal(towers.text.tokenize(sentences).numpy(), tokens[f"{name}_{part}"])


def test_coco_classes_are_those_of_the_annotation_files(golden, real_data):
    from wsol.data import load

    assert load("coco", root=real_data).spec.classes == spec(golden, "coco").classes


def test_text_features(golden, towers):
    known = np.load(golden / "wsss" / "tiny_text_features.npz")
    prompts = load_prompts("voc", spec(golden, "voc"))
    found = towers.text.encode([prompts.templates[0].replace("{}", text) for text in prompts.texts]).numpy()
    np.testing.assert_allclose(found, known["encode_text_voc_fg"], atol=1e-5)
    unit = towers.text.class_features(prompts.texts, templates=prompts.templates).numpy()
    np.testing.assert_allclose(unit, found / np.linalg.norm(found, axis=1, keepdims=True), atol=1e-6)


def test_the_rule_gives_the_weights_of_the_large_model(golden):
    known = json.loads((golden / "wsss" / "B16_weight_checks.json").read_text())
    every = shapes(**B16)
    for key, (total, first, last) in known.items():
        weights = value(key, every[key]).ravel()
        assert weights.sum(dtype=np.float64) == pytest.approx(total, abs=1e-3)
        assert (weights[0], weights[-1]) == pytest.approx((first, last), abs=1e-7)


@pytest.mark.parametrize("case", ["clipes_tiny_voc", "clipes_B16_voc"])
def test_preprocessing_at_native_size(golden, case):
    known = np.load(golden / "wsss" / f"{case}.npz")
    image, expected = known["image_rgb_uint8"], known["preprocessed"]
    size = input_size(image.shape[:2], resize="native", stride=16)
    found = to_input(image, size, mean=OPENAI_MEAN, std=OPENAI_STD, interpolation="bicubic")
    found = found if case == "clipes_tiny_voc" else found[:, ::8, ::8]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_encoder_and_attention(golden, towers):
    known = np.load(golden / "wsss" / "clipes_tiny_voc.npz")
    x, module = torch.from_numpy(known["preprocessed"])[None], towers.image
    names = [f"blocks.{at}.attn" for at in range(4, 12)]
    module.fp16_position = True  # as the reference rounds it
    try:
        set_texts(module, torch.from_numpy(known["text_fg"]), torch.from_numpy(known["text_bg"]))
        with (
            torch.no_grad(),
            tap(module, activations=("blocks.10",), attention=names, reduce=lambda w: w.mean(1)) as kept,
        ):
            module(x)
    finally:
        module.fp16_position = False
    np.testing.assert_allclose(kept.activations["blocks.10"][0].numpy(), known["last_block_input"], atol=5e-5)
    attention = torch.stack([kept.attention[name][0] for name in names]).mean(0)[1:, 1:]
    np.testing.assert_allclose(attention.numpy(), known["attn_mean_last8"], atol=1e-6)
