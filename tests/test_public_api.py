"""The public names, their parameters and methods, as `public_api.txt` has them, so that no change goes unseen.

WSOL_UPDATE_API=1 pytest tests/test_public_api.py writes the file anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
from pathlib import Path
from types import ModuleType

import pytest

import wsol
from wsol.registry import Registry

FILE = Path(__file__).parent / "public_api.txt"
# Every room by its own list of names; these modules are public as a whole.
WHOLE = ("schema", "errors", "registry", "config")


def public(module: ModuleType) -> list[str]:
    """The names of `__all__`, else what the module itself defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    names = [name for name in vars(module) if not name.startswith("_")]
    return sorted(name for name in names if getattr(vars(module)[name], "__module__", None) == module.__name__)


def modules() -> dict[str, ModuleType]:
    rooms = [name for name in wsol.__all__ if inspect.ismodule(getattr(wsol, name))]
    names = sorted({*rooms, *WHOLE})
    return {"wsol": wsol} | {f"wsol.{name}": importlib.import_module(f"wsol.{name}") for name in names}


def objects() -> dict[str, object]:
    return {f"{home}.{name}": getattr(module, name) for home, module in modules().items() for name in public(module)}


def parameters(value: object) -> list[str]:
    if dataclasses.is_dataclass(value) or callable(value):
        try:
            found = inspect.signature(value).parameters.values()
        except (TypeError, ValueError):
            return []
        rows, keyword = [], False
        for item in found:
            if item.kind is item.KEYWORD_ONLY and not keyword:
                rows, keyword = [*rows, "*"], True
            stars = {item.VAR_POSITIONAL: "*", item.VAR_KEYWORD: "**"}.get(item.kind, "")
            keyword = keyword or stars == "*"
            shown = getattr(item.default, "__qualname__", repr(item.default)).replace("PosixPath", "Path")
            rows.append(f"{stars}{item.name}" + ("" if item.default is item.empty else f" = {shown}"))
        return rows
    return []


def inventory() -> str:
    """One name a line, its parameters and public methods below it."""
    lines = []
    for name, value in objects().items():
        lines.append(name)
        lines += [f"    {row}" for row in parameters(value)]
        if inspect.isclass(value):
            methods = [key for key in vars(value) if not key.startswith("_") and key not in _fields(value)]
            lines += [f"    .{key}" for key in sorted(methods)]
    return "\n".join(lines) + "\n"


def _fields(value: type) -> set[str]:
    return {item.name for item in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()


def methods() -> str:
    """The names in every registry."""
    lines = []
    for name, value in objects().items():
        if isinstance(value, Registry):
            lines += [f"{name} {entry}" for entry in value.names()]
    return "\n".join(lines) + "\n"


def test_the_inventory_is_that_of_the_file():
    if os.environ.get("WSOL_UPDATE_API"):
        FILE.write_text(f"{inventory()}\n{methods()}", encoding="utf-8")
    names, entries = FILE.read_text(encoding="utf-8").split("\n\n")
    assert inventory() == f"{names}\n", "run with WSOL_UPDATE_API=1 if the change is meant, and say it in CHANGELOG.md"
    # A new method touches two files, itself and its test; one that is gone is a change for users.
    gone = set(entries.splitlines()) - set(methods().splitlines())
    assert not gone


@pytest.mark.parametrize(
    "name", [name for name, value in objects().items() if inspect.isclass(value) or inspect.isfunction(value)]
)
def test_every_public_name_is_documented(name):
    value = objects()[name]
    text = inspect.getdoc(value) or ""
    assert len(text.partition("\n")[0].split()) >= 3, name
    if inspect.isclass(value):
        assert not text.startswith(f"{value.__name__}("), "a dataclass without a docstring of its own"
        for key, member in vars(value).items():
            if not key.startswith("_") and (inspect.isfunction(member) or isinstance(member, property | classmethod)):
                assert inspect.getdoc(member), f"{name}.{key}"


@pytest.mark.parametrize("name", list(modules()))
def test_every_public_module_says_what_it_holds(name):
    assert len((modules()[name].__doc__ or "").split()) >= 4
