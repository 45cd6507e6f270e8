"""What the house promises about imports, names and sizes."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import wsol

PACKAGE = Path(wsol.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "cv2", "timm", "numba", "matplotlib")


def loaded_after(code: str) -> set[str]:
    program = f"{code}\nimport sys; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(answer.stdout.split()[-10_000:])


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import wsol", HEAVY),
        ("import wsol.schema, wsol.config, wsol.registry, wsol.errors", HEAVY),
        ("from wsol.cli.main import main; main(['--help'])", (*HEAVY, "numpy", "tyro", "rich")),
        ("import wsol.data, wsol.store.runs, wsol.store.maps, wsol.store.masks", ("torch", "timm")),
        ("from wsol import data\nfor n in data.DATASETS.names(): data.DATASETS.get(n)", ("torch", "timm")),
        ("import wsol.eval, wsol.cli.eval, wsol.eval.localization, wsol.eval.segmentation", ("torch", "timm")),
        ("import wsol.report.html, wsol.report.overlays, wsol.report.plots", ("torch", "timm")),
        ("import wsol.cli.info, wsol.cli.data; wsol.cli.info.collect()", ("torch", "timm")),
        ("import wsol.engine.options, wsol.engine.train_options, wsol.engine.segment_options", ("torch", "timm")),
    ],
)
def test_light_parts_stay_light(code, absent):
    assert not loaded_after(code) & set(absent)


def test_help_needs_no_torch():
    verbs = ["cam", "cam clip-prompts", "bench io", "bench mix", "train", "refine", "segment train", "demo"]
    code = f"""
import sys
from wsol.cli.main import main

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "timm"):
            raise RuntimeError("--help of " + verb + " imports " + name)

sys.meta_path.insert(0, Refuse())
for verb in {verbs}:
    try:
        main([*verb.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code, verb
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    for verb in verbs:
        assert f"usage: wsol {verb} " in answer.stdout


def test_the_method_that_help_leaves_out_has_no_options():
    from wsol.cams import CAMS
    from wsol.engine.options import CamConfig

    assert not dataclasses.fields(CAMS.get(CamConfig.method))


def test_public_names_exist_and_are_listed():
    for name in wsol.__all__:
        assert getattr(wsol, name) is not None, name
    assert set(wsol.__all__) <= set(dir(wsol))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = wsol.nothing


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_is_one_idea_and_documented(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text)), "a file starts by saying what it holds"
    assert "utils" not in path.stem
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, ast.Assert), "no assert for users"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec"), node.func.id
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "dill", "cloudpickle"} & set(names)


def test_torch_files_are_read_with_weights_only():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get(
                    "weights_only"
                ) == "True"


@pytest.mark.parametrize("room", ["cams", "refine", "mix", "data"])
def test_every_method_has_the_name_of_its_file_and_a_summary(room):
    module = importlib.import_module(f"wsol.{room}")
    registry = next(value for value in vars(module).values() if type(value).__name__ == "Registry")
    assert registry.names()
    for name in registry.names():
        entry = registry.get(name)
        assert inspect.getmodule(entry).__name__ == f"wsol.{room}.{name}"
        assert registry.summary(name)
