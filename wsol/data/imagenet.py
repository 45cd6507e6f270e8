"""The class list of ImageNet-1k: WordNet ids in order and their names, read from the files that timm ships."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path


@lru_cache(maxsize=1)
def synsets() -> tuple[str, ...]:
    """Return the 1000 WordNet ids of ImageNet-1k in class order (ascending), or () where timm is not installed."""
    path = _timm_file("imagenet_synsets.txt")
    return tuple(path.read_text(encoding="utf-8").split()) if path else ()


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    path = _timm_file("imagenet_synset_to_lemma.txt")
    rows = (line.partition("\t") for line in path.read_text(encoding="utf-8").splitlines()) if path else ()
    return {wnid: lemmas for wnid, _, lemmas in rows}


def class_name(wnid: str) -> str:
    """Return a WordNet id in words ("n01440764" is "tench"), or the id itself where they are not known."""
    return _names().get(wnid, wnid).partition(",")[0].strip()


def class_names(wnids: Sequence[str]) -> tuple[str, ...]:
    """Return WordNet ids in words; where two would share a name ("crane"), the ids are added."""
    names = [class_name(wnid) for wnid in wnids]
    count = Counter(names)
    return tuple(f"{name} ({wnid})" if count[name] > 1 else name for name, wnid in zip(names, wnids, strict=True))


def imagenet_index(wnid: str) -> int | None:
    """Return the class index of a WordNet id in ImageNet-1k, or None when it is not one of its classes."""
    return _positions().get(wnid)


@lru_cache(maxsize=1)
def _positions() -> dict[str, int]:
    return {wnid: index for index, wnid in enumerate(synsets())}


def _timm_file(name: str) -> Path | None:
    # The path is looked up without importing timm, which would import torch.
    spec = find_spec("timm")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "_info" / name
    return path if path.is_file() else None
