"""Data sets as their authors lay them out on disk: one file a data set, samples without pixels, no torch."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsol.config import from_dict
from wsol.data.catalog import Dataset, Layout, Part
from wsol.registry import Registry

__all__ = ["DATASETS", "Dataset", "Layout", "Part", "load", "option_type"]

DATASETS: Registry[Callable[..., Dataset]] = Registry(
    "data set",
    "wsol.data",
    shared=("annotation", "benchmark", "catalog", "check", "images", "imagenet", "scene", "textures", "transforms"),
)


def option_type(name: str) -> type:
    """Return a dataclass whose fields are the options of a data set, beyond root and split.

    Raises:
        ConfigError: When there is no such data set.
    """
    entry = DATASETS.get(name)
    hints = typing.get_type_hints(entry)
    own = [item for item in inspect.signature(entry).parameters.values() if item.name not in ("root", "split")]
    fields = [(item.name, hints[item.name], dataclasses.field(default=item.default)) for item in own]
    return dataclasses.make_dataclass(f"{name.title().replace('_', '')}Options", fields, frozen=True)


def load(
    name: str,
    *,
    root: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    **options: Any,
) -> Dataset:
    """List the samples of one split of a data set; no image is opened.

    Args:
        name: Registry name, for example "voc".
        root: Folder of the data set or one of its parents; by default the usual folder under $WSOL_DATA.
        split: Name of the split; by default "train" where there is one, else the first.
        limit: Keep only the first samples.
        **options: Options of that data set, see `option_type`.

    Raises:
        ConfigError: On an unknown data set or option.
        DataError: When the data set, the split or a listed file is missing or malformed.
    """
    entry = DATASETS.get(name)
    checked: Any = from_dict(option_type(name), options, where=f"data set '{name}'")
    given = {item.name: getattr(checked, item.name) for item in dataclasses.fields(checked)}
    dataset = entry(root=None if root is None else Path(root).expanduser(), split=split, **given)
    return dataset if limit is None else dataset.limit(limit)
