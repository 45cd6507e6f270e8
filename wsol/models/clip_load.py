"""CLIP models by open_clip's name, from a checkpoint, or from OpenAI's original file, as zero-shot classifiers."""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP, convert_to_custom_text_state_dict
from open_clip.pretrained import download_pretrained
from torch import nn

from wsol.data.prompts import Prompts
from wsol.errors import ModelError, did_you_mean
from wsol.models._hub import hub
from wsol.models.checkpoints import Weights, load_weights, read_weights, refuse_bomb, resolve
from wsol.models.classifier import Classifier
from wsol.models.clip import OPENAI_MEAN, OPENAI_STD, describe, set_texts
from wsol.models.clip_convert import image_tower
from wsol.models.clip_text import TextTower, default_cache
from wsol.models.device import find_device

_OPENAI_FACTS = ("input_resolution", "context_length", "vocab_size")  # buffers that only OpenAI's own files hold


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Both towers of a CLIP model.

    Attributes:
        image: A timm vision transformer whose head is a `ZeroShotHead`, still without classes.
        text: Encodes the texts of the classes.
    """

    image: nn.Module
    text: TextTower


def load_clip(
    name: str,
    prompts: Prompts,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    img_size: int | None = None,
    device: str | torch.device = "cpu",
    cache: Path | None = None,
) -> Classifier:
    """Load a CLIP model as a zero-shot classifier, in evaluation mode.

    Args:
        name: See `load_towers`.
        prompts: Texts of the classes and of the background.
        checkpoint: See `load_towers`.
        pretrained: See `load_towers`.
        img_size: Default side of the input in pixels; any multiple of the patch size works.
        device: Where to put it.
        cache: Folder of kept text features; `default_cache()` by default.

    Raises:
        ModelError: When the model, its weights or the network connection is not there, or does not fit.
    """
    towers = load_towers(name, checkpoint=checkpoint, pretrained=pretrained, device=device)
    folder = default_cache() if cache is None else cache
    classes, background = (
        towers.text.class_features(texts, templates=prompts.templates, cache=folder)
        for texts in (prompts.texts, prompts.background)
    )
    set_texts(towers.image, classes, background)
    return Classifier(
        towers.image,
        name=name,
        input_size=(img_size, img_size) if img_size else None,
        classes=prompts.classes,
    )


def load_towers(
    name: str, *, checkpoint: str | Path | None = None, pretrained: bool = False, device: str | torch.device = "cpu"
) -> Clip:
    """Load both towers of a CLIP model, in evaluation mode.

    Args:
        name: "clip:NAME" or "clip:NAME:TAG" with open_clip's names of architectures and weights; or "clip" for an
            OpenAI checkpoint, whose shapes tell the architecture.
        checkpoint: State dict (safetensors, torch) in open_clip's or OpenAI's naming, or OpenAI's original archive.
            No Python code in it is run.
        pretrained: Download the weights of TAG; the tag may be left out where OpenAI's or only one is there.
        device: Where to put them.

    Raises:
        ModelError: When the model, its weights or the network connection is not there, does not fit, or the image
            tower is no plain vision transformer.
    """
    device = find_device(device)
    kind, _, rest = name.partition(":")
    if kind != "clip":
        raise ModelError("no CLIP model", where=name, hint="give clip:NAME with open_clip's name, or clip")
    architecture, _, tag = rest.partition(":")
    if checkpoint is not None and (pretrained or tag):
        raise ModelError("weights from two sources", where=name, hint="give a checkpoint, or a tag and pretrained")
    # New weights, soon replaced, are drawn from torch's generator, which is given back as it was.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if checkpoint is None:
            if not architecture:
                raise ModelError("no weights", where=name, hint="give --checkpoint FILE, or a name: clip:ViT-B-16")
            if not pretrained and not tag:
                raise ModelError("no weights", where=name, hint="give --checkpoint FILE or --pretrained")
            module, facts = _download(architecture, tag)
        else:
            path = resolve(checkpoint)
            module, facts = _from_file(architecture, path), _unanimous_facts(architecture)
        module.eval().to(device)
        image = image_tower(module, where=name)
    described: Any = image.pretrained_cfg
    describe(image, name=name, img_size=described["input_size"][1:], **facts)
    if architecture:
        tokenize = _call(lambda: open_clip.get_tokenizer(architecture), "no tokenizer", architecture)
    else:
        tokenize = open_clip.SimpleTokenizer(context_length=module.context_length)
    return Clip(image.eval(), TextTower(module, tokenize))


def read_clip_weights(path: Path) -> Weights:
    """Read a checkpoint, or the archive of TorchScript in which OpenAI published its models, as float32.

    No Python code in it is run, and no TorchScript either: an archive with code for loading is refused.

    Raises:
        ModelError: When the file cannot be read or holds no tensors.
    """
    if not _is_archive(path):
        return read_weights(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch wants other formats for new files; this one is as it is
            found = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"cannot read the archive: {reason}", where=path, hint="download it again") from error
    return {key: item.float() if item.is_floating_point() else item for key, item in found.items()}


def _is_archive(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    refuse_bomb(path)
    try:
        with zipfile.ZipFile(path) as file:
            code = [file.read(item) for item in file.namelist() if "/code/" in item]
    except (zipfile.BadZipFile, zlib.error, OSError, ValueError, RuntimeError, EOFError) as error:
        raise ModelError(f"cannot read the archive: {error}", where=path, hint="download it again") from error
    if any(b"__setstate__" in text for text in code):  # the only TorchScript that torch.jit.load runs by itself
        raise ModelError("the archive would run code of its own", where=path, hint="give a state dict")
    return bool(code)


def _from_file(architecture: str, path: Path) -> nn.Module:
    weights = read_clip_weights(path)
    original = all(key in weights for key in _OPENAI_FACTS)
    weights = {key: item for key, item in weights.items() if key not in _OPENAI_FACTS}
    if architecture:
        config = _config(architecture)
        if original and not config.get("quick_gelu"):
            hint = f"give --model clip:{architecture}-quickgelu, or clip"
            raise ModelError("OpenAI trained with QuickGELU, this architecture has GELU", where=path, hint=hint)
        module = _build(architecture, config)
    else:
        module = _infer(weights, path)
    _fill(module, weights, path)
    return module


def _download(architecture: str, tag: str) -> tuple[nn.Module, dict[str, Any]]:
    config = _config(architecture)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not tag and ("openai" in tags or len(tags) == 1):
        tag = "openai" if "openai" in tags else tags[0]
    facts = open_clip.get_pretrained_cfg(architecture, tag) if tag else {}
    if not facts:
        what = f"no weights '{tag}'" if tag else "several weights"
        hint = f"clip:{architecture}:TAG with one of {', '.join(tags)}" if tags else "give --checkpoint FILE"
        raise ModelError(what, where=architecture, hint=hint)
    path = _call(lambda: download_pretrained(facts), "could not download the weights", f"{architecture}:{tag}")
    # The same architecture was trained with either activation: the weights know.
    module = _build(architecture, {**config, "quick_gelu": bool(facts.get("quick_gelu", config.get("quick_gelu")))})
    _fill(module, read_clip_weights(Path(path)), path)
    return module, {key: facts[key] for key in ("mean", "std", "interpolation") if facts.get(key)}


def _unanimous_facts(architecture: str) -> dict[str, Any]:
    """Return what all published weights of an architecture agree on: SigLIP, for one, has other means."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    known = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    facts: dict[str, Any] = {}
    for key, default in (("mean", OPENAI_MEAN), ("std", OPENAI_STD), ("interpolation", "bicubic")):
        values = {item.get(key) or default for item in known}
        facts[key] = values.pop() if len(values) == 1 else default
    return facts


def _config(architecture: str) -> dict[str, Any]:
    config: dict[str, Any] | None = open_clip.get_model_config(architecture)
    if config is None:
        hint = did_you_mean(architecture, open_clip.list_models())
        hint = hint if hint.startswith("did you mean") else "open_clip.list_models() lists them all"
        raise ModelError(f"unknown CLIP model '{architecture}'", hint=hint)
    return config


def _build(architecture: str, config: dict[str, Any]) -> nn.Module:
    config = dict(config)
    hub_text = "hf_model_name" in config["text_cfg"]
    kind = CustomTextCLIP if config.pop("custom_text", False) or hub_text else CLIP
    if "multimodal_cfg" in config:
        raise ModelError("a CoCa model has no zero-shot image token", where=architecture, hint="take a CLIP model")
    if hub_text:
        config["text_cfg"] = {**config["text_cfg"], "hf_model_pretrained": False}
    module: nn.Module = _call(lambda: kind(**config), "cannot build the model", architecture)
    return module


def _infer(weights: Weights, path: Path) -> nn.Module:
    """Build the architecture that OpenAI's weights have, by OpenAI's rule of one head for 64 channels."""
    hint = "name its architecture: --model clip:NAME"
    if "visual.layer1.0.conv1.weight" in weights:
        raise ModelError("the image tower is a ResNet", where=path, hint="CLIP models with a vision transformer work")
    try:
        width, _, patch, _ = weights["visual.conv1.weight"].shape
        vision = CLIPVisionCfg(
            layers=_depth(weights, "visual.transformer.resblocks."),
            width=width,
            patch_size=patch,
            image_size=patch * math.isqrt(len(weights["visual.positional_embedding"]) - 1),
        )
        text_width = len(weights["ln_final.weight"])
        text = CLIPTextCfg(
            context_length=len(weights["positional_embedding"]),
            vocab_size=len(weights["token_embedding.weight"]),
            width=text_width,
            heads=text_width // 64,
            layers=_depth(weights, "transformer.resblocks."),
        )
        module: nn.Module = CLIP(weights["text_projection"].shape[1], vision, text, quick_gelu=True)
        return module
    except (KeyError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(f"these are not OpenAI's weights: {reason}", where=path, hint=hint) from error


def _depth(weights: Weights, prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in weights if key.startswith(prefix)})


def _fill(module: nn.Module, weights: Weights, path: str | Path) -> None:
    weights = convert_state_dict(module, weights)
    if "positional_embedding" in weights and not hasattr(module, "positional_embedding"):
        weights = convert_to_custom_text_state_dict(weights)
    expected = module.state_dict()
    for key in ("logit_scale", "logit_bias"):
        if key in weights and key in expected:
            weights = {**weights, key: weights[key].reshape(expected[key].shape)}
    # Counters that older text models saved.
    weights = {key: item for key, item in weights.items() if not key.endswith(".position_ids") or key in expected}
    load_weights(module, weights, where=path)


def _call(action: Any, what: str, where: str) -> Any:
    """Run what may ask the hub; its clients raise errors of many families."""
    try:
        with hub():
            return action()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        hint = "without a network, give --checkpoint FILE of a model whose tokenizer open_clip ships"
        raise ModelError(f"{what}: {reason}", where=where, hint=hint) from error
