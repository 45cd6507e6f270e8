"""Frozen dataclasses to and from YAML: strict about names and types, with a stable hash.

Options come from three places, the later one wins: the defaults of the dataclass, recipe files in the order
given, flags of the command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from wsol.errors import ConfigError, did_you_mean

T = TypeVar("T")
_OUTPUT_NEUTRAL = "output_neutral"
_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.IGNORECASE)
"""A number to everybody but YAML 1.1, to which 1e-3 is a text."""
_RECIPE = 2**20  # bytes; PyYAML reads a MiB in some seconds
LARGEST_LIST = 2**24
"""Bytes of a YAML file that names every class: 32,768 of them, each with a text."""


def neutral(**kwargs: Any) -> Any:
    """Declare a dataclass field that cannot change what a run computes (workers, verbosity, where to write).

    Such a field is left out of `config_hash`, so a run may be resumed with another value.
    """
    return dataclasses.field(metadata={_OUTPUT_NEUTRAL: True}, **kwargs)


class _PlainLoader(yaml.SafeLoader):
    """The safe loader without aliases, with which a few lines can stand for more values than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias, *{self.peek_event().anchor}: write the value out")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def load_yaml(path: Path, *, largest: int = _RECIPE) -> dict[str, Any]:
    """Read one recipe file: plain values only, no tags that make objects and no aliases.

    Args:
        path: The file.
        largest: Bytes that it may hold; 1 MiB by default.

    Raises:
        ConfigError: When it is missing, too large, is not YAML, or is not a mapping.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(largest + 1)
        if len(text) > largest:
            raise ConfigError(f"larger than {largest} bytes", where=path)
        data = yaml.load(text.decode("utf-8-sig"), Loader=_PlainLoader)  # noqa: S506  # nosec B506 - a safe loader
    except OSError as error:
        hint = "-c takes a path from the current folder"
        raise ConfigError(f"cannot read the recipe: {error.strerror}", where=path, hint=hint) from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # PyYAML lets errors of what it calls through: a 13th month, a digit too many, brackets without end.
        raise ConfigError(f"not YAML: {' '.join(str(error).split())[:300]}", where=path) from error
    if not isinstance(data, dict):
        raise ConfigError("a recipe is a mapping of option names to values", where=path)
    return {str(key).replace("-", "_"): value for key, value in data.items()}


def from_dict(kind: type[T], data: Mapping[str, Any], *, where: object = None) -> T:
    """Build a dataclass from plain values, checking every name and type.

    Args:
        kind: A dataclass.
        data: Field names to plain values (strings for paths, lists for tuples).
        where: File or flag, for messages.

    Raises:
        ConfigError: On an unknown field, a missing one or a value of the wrong type.
    """
    values = coerce(kind, data, where=where)
    for name, item in _fields(kind).items():
        if name not in values and item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ConfigError(f"option '{name}' is required", where=where, hint=f"give --{name.replace('_', '-')}")
    return kind(**values)


def coerce(kind: type[Any], data: Mapping[str, Any], *, where: object = None) -> dict[str, Any]:
    """Return checked values for some of the fields of a dataclass; the arguments are those of `from_dict`.

    Raises:
        ConfigError: On an unknown field or a value of the wrong type.
    """
    fields, hints = _fields(kind), get_type_hints(kind)
    values = {}
    for name, value in data.items():
        if name not in fields:
            raise ConfigError(f"unknown option '{name}'", where=where, hint=did_you_mean(name, fields))
        values[name] = _coerce(value, hints[name], name, where)
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as plain values that `from_dict` takes back."""
    return {item.name: _simplify(getattr(config, item.name)) for item in dataclasses.fields(config) if item.init}


def dump_yaml(config: Any) -> str:
    """Return a dataclass or mapping as YAML in field order."""
    plain = _simplify(config) if isinstance(config, Mapping) else to_dict(config)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)


def is_neutral(config: Any, name: str) -> bool:
    """Return whether a field was declared by `neutral`."""
    return any(item.name == name and item.metadata.get(_OUTPUT_NEUTRAL) for item in dataclasses.fields(config))


def config_hash(config: Any) -> str:
    """Return 16 hex digits over every field that can change the outputs, stable across machines and runs."""
    kept = [item.name for item in dataclasses.fields(config) if not is_neutral(config, item.name)]
    plain = {name: _simplify(getattr(config, name)) for name in kept}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _fields(kind: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {item.name: item for item in dataclasses.fields(kind) if item.init}


def _simplify(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _simplify(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_simplify(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _coerce(value: Any, hint: Any, name: str, where: object) -> Any:
    """Turn a plain YAML value into what the annotation asks for, or refuse it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        last: ConfigError | None = None
        for option in args:
            if option is not type(None):
                try:
                    return _coerce(value, option, name, where)
                except ConfigError as error:
                    last = error
        raise last or ConfigError(f"option '{name}' has no value", where=where)
    if origin is Literal:
        if value in args:
            return value
        hint_text = did_you_mean(str(value), [str(item) for item in args])
        raise ConfigError(f"option '{name}' cannot be {value!r}", where=where, hint=hint_text)
    if origin is tuple and isinstance(value, list | tuple):
        inner = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(inner) == len(value):
            return tuple(_coerce(item, kind, name, where) for item, kind in zip(value, inner, strict=True))
    elif origin in (dict, Mapping) or hint in (dict, Mapping):
        if isinstance(value, Mapping):
            return dict(value)
    elif dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, where=where)  # type: ignore[arg-type]
    elif hint is Path and isinstance(value, str | Path):
        return Path(value).expanduser()
    elif hint is float and (type(value) in (int, float) or (isinstance(value, str) and _EXPONENT.fullmatch(value))):
        with contextlib.suppress(OverflowError):
            return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"option '{name}' must be {expected}, got {value!r}", where=where)
