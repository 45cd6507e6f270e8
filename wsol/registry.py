"""Registries: names written by hand, modules imported only when asked for.

A method is one file of its package, and the file's name is the method's name, so that listing the methods
costs no import and adding one touches no list. Other packages add theirs under the entry-point group
`wsol.<kind>` (for example `wsol.cams`).
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Generic, TypeVar

from wsol.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to classes or functions of one kind.

    Args:
        kind: What is registered, for messages: "map method".
        package: Package that holds one module a name, for example "wsol.cams".
        shared: Modules of that package that are no entries.
    """

    def __init__(self, kind: str, package: str, *, shared: tuple[str, ...] = ()) -> None:
        self.kind, self.package, self.shared = kind, package, frozenset(shared)
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters a class or function under a name.

        Raises:
            ConfigError: When the name is taken by another object.
        """

        def enter(target: T) -> T:
            known = self._entries.get(name)
            if known is not None and _origin(known) != _origin(target):
                raise ConfigError(f"{self.kind} '{name}' is defined by {_origin(known)} and by {_origin(target)}")
            self._entries[name] = target
            return target

        return enter

    def names(self) -> tuple[str, ...]:
        """Return every name, sorted, without importing any entry."""
        return tuple(sorted({*self._entries, *self._modules(), *self._plugins()}))

    def get(self, name: str) -> T:
        """Return the entry, importing its module on first use.

        Raises:
            ConfigError: When there is no such name; the hint names the nearest.
        """
        if name not in self._entries:
            if name in self._modules():
                importlib.import_module(f"{self.package}.{name}")
            elif name in self._plugins():
                self._entries[name] = self._plugins()[name].load()
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} '{name}'", hint=did_you_mean(name, self.names()))
        return self._entries[name]

    def summary(self, name: str) -> str:
        """Return the first line of the docstring of the module that holds an entry, without importing it."""
        path = self._modules().get(name)
        if path is None:
            return (getattr(self.get(name), "__doc__", None) or "").strip().partition("\n")[0]
        return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]

    def _modules(self) -> dict[str, Path]:
        spec = find_spec(self.package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        files = (path for folder in folders for path in Path(folder).glob("*.py"))
        return {path.stem: path for path in files if path.stem not in self.shared and not path.stem.startswith("_")}

    def _plugins(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.package)}


def _origin(target: object) -> str:
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', repr(target))}"
