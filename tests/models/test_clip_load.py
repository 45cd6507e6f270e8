"""CLIP models come from every kind of file, and a wrong one is one line."""

from __future__ import annotations

import json
import warnings

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import wsol.models.clip_load as clip_load
from wsol.data.prompts import Prompts
from wsol.errors import ModelError
from wsol.models.clip_load import load_clip, load_towers, read_clip_weights

CONFIG = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
PROMPTS = Prompts(classes=("cat", "dog", "tv"), texts=("cat", "dog", "tv screen"), background=("sky", "sea"))


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    siglip = {**CONFIG, "quick_gelu": False, "custom_text": True, "init_logit_bias": -10.0}
    resnet = {**CONFIG, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}}
    named = {"Tiny-16-quickgelu": CONFIG, "Tiny-16": {**CONFIG, "quick_gelu": False}, "Tiny-Custom": siglip}
    for name, config in {**named, "Tiny-RN": resnet}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def state(seed=0, name="Tiny-16-quickgelu"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = clip_load._build(name, open_clip.get_model_config(name))
    return {key: item.clone() for key, item in model.state_dict().items()}


def original(weights):
    """As OpenAI published: half precision where it matters, and three facts beside."""
    facts = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}
    halved = {key: item.half() if item.ndim > 1 else item for key, item in weights.items()}
    return {**halved, **{key: torch.tensor(value) for key, value in facts.items()}}


def archive(weights, path):
    """A TorchScript archive with these names."""
    root = nn.Module()
    for key, item in weights.items():
        *folders, leaf = key.split(".")
        place = root
        for folder in folders:
            if not hasattr(place, folder):
                place.add_module(folder, nn.Module())
            place = getattr(place, folder)
        place.register_buffer(leaf, item)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(root), str(path))


def logits(path, name, tmp_path, **options):
    classifier = load_clip(name, PROMPTS, checkpoint=path, cache=tmp_path / "cache", **options)
    x = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return classifier.module(x)


@pytest.mark.parametrize("kind", ["state", "safetensors", "training", "openai", "archive", "compiled"])
def test_every_kind_of_file_gives_the_same_logits(kind, tmp_path):
    weights = {key: item.half().float() if item.ndim > 1 else item for key, item in state().items()}
    path = tmp_path / ("model.safetensors" if kind == "safetensors" else "model.pt")
    if kind == "safetensors":
        save_file(weights, path)
    elif kind == "archive":
        archive(original(weights), path)
    elif kind == "training":
        wrapped = {f"module.{key}": item for key, item in weights.items()}
        torch.save({"epoch": 3, "state_dict": wrapped, "name": "run"}, path)
    elif kind == "compiled":
        torch.save({f"_orig_mod.{key}": item for key, item in weights.items()}, path)
    else:
        torch.save(original(weights) if kind == "openai" else weights, path)
    torch.save(weights, tmp_path / "plain.pt")
    expected = logits(tmp_path / "plain.pt", "clip:Tiny-16-quickgelu", tmp_path)
    for name in ("clip", "clip:Tiny-16-quickgelu"):
        assert torch.allclose(logits(path, name, tmp_path), expected, atol=1e-4)
    assert expected.std() > 1e-3


def test_the_classifier_knows_its_classes_and_texts(tmp_path):
    torch.save(state(), tmp_path / "model.pt")
    before = torch.random.get_rng_state()
    options = {"checkpoint": tmp_path / "model.pt", "cache": tmp_path / "cache", "img_size": 96}
    found = load_clip("clip:Tiny-16-quickgelu", PROMPTS, **options)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (found.name, found.classes, found.num_classes) == ("clip:Tiny-16-quickgelu", PROMPTS.classes, 3)
    assert found.input_size == (96, 96)
    assert not found.module.training
    towers = load_towers("clip", checkpoint=tmp_path / "model.pt")
    features = towers.text.class_features(PROMPTS.texts, templates=PROMPTS.templates)
    assert torch.allclose(found.module.text_features, features, atol=1e-6)
    assert found.module.background_features.shape == (2, 24)
    assert found.module.logit_scale == pytest.approx(float(state()["logit_scale"].exp()))


def test_older_names_and_shapes_load_into_custom_text_models(tmp_path):
    weights = state(name="Tiny-16")
    torch.save({**weights, "logit_scale": weights["logit_scale"][None]}, tmp_path / "old.pt")
    weights["logit_bias"] = torch.tensor(-10.0)
    torch.save(weights, tmp_path / "biased.pt")
    found = load_clip("clip:Tiny-Custom", PROMPTS, checkpoint=tmp_path / "biased.pt", cache=tmp_path)
    assert found.module.head.logit_bias == -10.0
    assert logits(tmp_path / "old.pt", "clip:Tiny-16", tmp_path).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("clip:Tiny-16-quickgel", {}, "did you mean 'Tiny-16-quickgelu'"),
        ("clip:nothing-like-it-at-all", {}, "unknown CLIP model"),
        ("resnet18", {}, "no CLIP model"),
        ("clip:Tiny-16", {"original": True}, "clip:Tiny-16-quickgelu"),
        ("clip:ViT-B-32-quickgelu", {}, "do not fit"),
        ("clip:Tiny-RN", {}, "do not fit|ResNet"),
        ("clip:coca_ViT-B-32", {}, "CoCa"),
        ("clip", {"drop": "visual.conv1.weight"}, "not OpenAI's weights"),
        ("clip", {"drop": "visual.ln_post.bias"}, "1 missing"),
        ("clip", {"pretrained": True}, "two sources"),
        ("clip:Tiny-16-quickgelu:openai", {}, "two sources"),
        ("clip", {"missing": True}, "no such checkpoint"),
        ("clip", {"garbage": True}, "cannot read"),
        ("clip", {"resnet": True}, "ResNet"),
        ("clip", {"new": {"text_projection": torch.zeros(8)}}, "not OpenAI's weights: tuple index"),
        ("clip", {"new": {"ln_final.weight": torch.zeros(200)}}, "not OpenAI's weights: embed_dim must be divisible"),
        ("clip", {"new": {"ln_final.weight": torch.zeros(8)}}, "not OpenAI's weights: embed_dim and num_heads"),
        ("clip", {"new": {"positional_embedding": torch.zeros(())}}, "not OpenAI's weights: len"),
    ],
)
def test_a_mistake_is_one_line(name, change, message, tmp_path):
    weights = state(name="Tiny-RN") if change.get("resnet") else state()
    weights = original(weights) if change.get("original") else weights
    weights = weights | change.get("new", {})
    weights.pop(change.get("drop"), None)
    path = tmp_path / "model.pt"
    torch.save(weights, path)
    if change.get("garbage"):
        path.write_bytes(b"no model")
    if change.get("missing"):
        path = tmp_path / "nowhere.pt"
    with pytest.raises(ModelError, match=message) as caught:
        load_towers(name, checkpoint=path, pretrained=bool(change.get("pretrained")))
    assert "\n" not in str(caught.value)


def test_without_weights_or_network_the_error_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(clip_load, "download_pretrained", refuse)
    for name, pretrained, message in [
        ("clip:ViT-B-16", False, "--pretrained"),
        ("clip", True, "no weights"),
        ("clip:ViT-B-16", True, "no route.*--checkpoint"),
        ("clip:ViT-B-16:openai", False, "no route"),
        ("clip:ViT-B-16:opanai", True, "no weights 'opanai'.*openai"),
        ("clip:ViT-B-16-SigLIP-i18n-256:x", True, "no weights 'x'"),
        ("clip:Tiny-16", True, "--checkpoint"),
    ]:
        with pytest.raises(ModelError, match=message) as caught:
            load_towers(name, pretrained=pretrained)
        assert "\n" not in str(caught.value)


def test_downloaded_weights_bring_their_activation_and_input_facts(monkeypatch, tmp_path):
    weights = state()
    torch.save(weights, tmp_path / "model.pt")
    facts = {"url": "x", "quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    monkeypatch.setattr(clip_load, "download_pretrained", lambda _: str(tmp_path / "model.pt"))
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: ["only"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: facts)
    found = load_clip("clip:Tiny-16", PROMPTS, pretrained=True, cache=tmp_path)
    assert (found.mean, found.std, found.interpolation) == ((0.5,) * 3, (0.25,) * 3, "bicubic")
    expected = logits(tmp_path / "model.pt", "clip:Tiny-16-quickgelu", tmp_path)
    x = torch.randn(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(found.module(x), expected, atol=1e-4)


def test_a_checkpoint_of_siglip_keeps_siglips_means():
    assert clip_load._unanimous_facts("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert clip_load._unanimous_facts("ViT-B-16")["mean"][0] == pytest.approx(0.48145466)
    assert clip_load._unanimous_facts("")["interpolation"] == "bicubic"


def test_an_archive_that_holds_no_model_is_refused(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("x/code/nothing.py", "")
    with pytest.raises(ModelError, match="archive"):
        read_clip_weights(tmp_path / "x.pt")
