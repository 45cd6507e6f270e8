from __future__ import annotations

import sys

import pytest

from wsol.errors import ConfigError
from wsol.registry import Registry


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "toy_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "base.py").write_text("")
    (folder / "good.py").write_text(
        '"""Good: does the thing.\n\nMore."""\nfrom toy_registry import TOYS\n@TOYS.register("good")\nclass Good: ...\n'
    )
    (folder / "silent.py").write_text('"""Registers nothing."""\n')
    (tmp_path / "toy_registry.py").write_text(
        'from wsol.registry import Registry\nTOYS = Registry("toy", "toy_methods", shared=("base",))\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("toy_registry").TOYS
    for name in [name for name in sys.modules if name.startswith("toy_")]:
        del sys.modules[name]


def test_names_and_summaries_need_no_import(package):
    assert package.names() == ("good", "silent")
    assert package.summary("good") == "Good: does the thing."
    assert "toy_methods.good" not in sys.modules


def test_get_imports_the_file_of_that_name(package):
    assert package.get("good").__name__ == "Good"
    assert "toy_methods.silent" not in sys.modules


def test_unknown_names_get_the_nearest(package):
    with pytest.raises(ConfigError, match=r"unknown toy 'god' \(did you mean 'good'\?\)"):
        package.get("god")
    with pytest.raises(ConfigError, match="choose from good, silent"):
        package.get("zzzzzz")


def test_a_file_that_registers_nothing_is_no_entry(package):
    with pytest.raises(ConfigError):
        package.get("silent")


def test_two_objects_of_one_name_clash_and_one_object_does_not():
    registry = Registry("toy", "wsol.ops")

    class First: ...

    class Second: ...

    registry.register("a")(First)
    registry.register("a")(First)
    with pytest.raises(ConfigError, match="First.*Second"):
        registry.register("a")(Second)
