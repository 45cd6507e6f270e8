"""The documentation says what the code does: its commands parse, its messages exist, its example runs."""

from __future__ import annotations

import ast
import glob
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import wsol.cams
from wsol.cli import cite
from wsol.cli.main import main
from wsol.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _reference_pages():
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs/_ext/reference_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = _reference_pages()


def _commands() -> list[str]:
    """The indented `wsol ...` lines of the worked example."""
    text = _FENCE.sub("", (ROOT / "docs/add-a-method.md").read_text(encoding="utf-8"))
    return re.findall(r"^    (wsol .+)$", text, re.MULTILINE)


def _messages() -> list[tuple[re.Pattern[str], int]]:
    """What the code can say outside of docstrings, values as wildcards, with the length of the fixed text."""
    found = []
    for file in glob.glob(str(ROOT / "wsol/**/*.py"), recursive=True):
        nodes = list(ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))))
        parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        told = {id(node.value) for node in nodes if isinstance(node, ast.Expr)} | parts
        for node in nodes:
            if id(node) in told or not isinstance(node, ast.JoinedStr | ast.Constant):
                continue
            texts = [part.value if isinstance(part, ast.Constant) else None for part in getattr(node, "values", [node])]
            if all(text is None or isinstance(text, str) for text in texts):
                pattern = "".join(".*" if text is None else re.escape(text) for text in texts)
                found.append((re.compile(pattern, re.DOTALL), sum(len(text or "") for text in texts)))
    return found


def _keys(*, foreign: bool = False) -> list[str]:
    """The bold texts of the page: those of ours, or those "(from PACKAGE)"."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    found = re.findall(r"^\*\*(.+?)\*\*( \(from)?", text, re.MULTILINE | re.DOTALL)
    return [" ".join(key.split()) for key, other in found if bool(other) == foreign]


def test_troubleshooting_names_real_messages():
    """Every fixed word of a key is a fixed word of one message: a wildcard stands for a wildcard only."""
    known = _messages()

    def said(key: str) -> bool:
        text, fixed = key.replace("...", "x"), len(key.replace("...", ""))
        return any(fixed <= size and pattern.fullmatch(text) for pattern, size in known)

    keys = _keys()
    assert len(keys) > 40
    invented = ["no such frob", "no split of ... '...'", "Path of the image file."]
    assert [key for key in [*keys, *invented] if not said(key)] == invented


def test_troubleshooting_quotes_others():
    source = Path(importlib.util.find_spec("numba").origin).with_name("core") / "caching.py"
    (key,) = _keys(foreign=True)
    assert all(part.strip() in source.read_text(encoding="utf-8") for part in key.split("..."))


def test_worked_example(tmp_path, capsys):
    """The two files of add-a-method.md, put where they say, pass."""
    text = (ROOT / "docs/add-a-method.md").read_text(encoding="utf-8")
    method, test = (body for language, body in _FENCE.findall(text) if language == "python")
    (tmp_path / "absgrad.py").write_text(method, encoding="utf-8")
    path = list(wsol.cams.__path__)
    wsol.cams.__path__.append(str(tmp_path))
    try:
        assert "absgrad" in wsol.cams.CAMS.names()
        assert wsol.cams.CAMS.summary("absgrad").startswith("AbsGrad: ")
        space: dict[str, object] = {}
        exec(compile(test, "test_absgrad.py", "exec"), space)
        tests = [value for name, value in space.items() if name.startswith("test_")]
        assert len(tests) == 1
        tests[0]()
        line = next(line for line in _commands() if "absgrad" in line)
        with pytest.raises(SystemExit):
            main([*shlex.split(line)[1:], "--print-config"])
        assert "options: {p: 2.0}" in capsys.readouterr().out
        assert cite.papers(cite.docstring("absgrad"))
    finally:
        wsol.cams.__path__[:] = path
        wsol.cams.CAMS._entries.pop("absgrad", None)


@pytest.mark.parametrize("package", ["wsol.cams", "wsol.refine", "wsol.mix", "wsol.data", "wsol.store.formats"])
def test_method_pages_explain_every_option(package):
    """`options` looks every field up in the docstrings; a field without a text is a KeyError."""
    page = PAGE.fill(f"<!-- wsol: methods {package} -->")
    for name in cite.registry(package).names():
        assert f"\n## {name}\n" in page
    assert "| `" in page


def test_command_reference_has_every_command():
    page = PAGE.fill("<!-- wsol: commands -->")
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "wsol/cli").glob("*.py"))
    for command in set(re.findall(r'prog="(wsol [^"]+)"', sources)):
        assert f"\n## {command}\n" in f"\n{page}\n"
    assert "`--background-low`" in page


def test_markdown_of_docstrings():
    assert PAGE.markdown("see https://example.org/a.") == "see <https://example.org/a>."
    assert PAGE.markdown("y\n= a * b | c") == "y\n\\= a \\* b \\| c"
    assert PAGE.markdown("R <- R, `a * b`") == "R \\<- R, `a * b`"
    assert PAGE.markdown("    x = a * b") == "    x = a * b"


# What no paper describes, or what the docstring cites without a title of its own.
_NO_PAPER = {"parquet", "tar", "threshold", "randomwalk", "none", "until", "folder", "synthetic", "eigengradcam"}


def test_cite_knows_every_method(capsys):
    for room in cite.ROOMS:
        for name in cite.registry(room).names():
            found = cite.papers(cite.docstring(name))
            assert bool(found) != (name in _NO_PAPER), name
            for paper in found:
                assert re.fullmatch(r"[a-z]+(19|20)\d\d[a-z0-9]+", paper.key), paper
                assert not any(word in author for author in paper.authors for word in (" and ", ".", '"')), paper
    assert main(["info", "cite", "getam", "cutmix", "gridmix"]) == 0
    out = capsys.readouterr().out
    assert "@misc{sun2021getam,\n  author = {Sun and others}," in out
    assert "eprint = {2112.02841}" in out
    assert "@inproceedings{yun2019cutmix," in out
    assert "@article{baek2021gridmix," in out
    assert "doi = {10.1016/j.patcog.2020.107594}" in out


def test_cite_says_what_it_does_not_know(capsys):
    assert main(["info", "cite", "randomwalk"]) == 1
    assert "see https://arxiv.org/abs/1803.10464" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="getam"):
        cite.docstring("getan")
    assert main(["info", "cite"]) == 2


def test_method_pages_show_formula_needs_and_numbers():
    notes = PAGE.notes()
    for room in ("wsol.cams", "wsol.refine", "wsol.mix"):
        page, names = PAGE.fill(f"<!-- wsol: methods {room} -->"), cite.registry(room).names()
        assert page.count("\n$$\n") == 2 * len(names)
        for name in names:
            assert set(notes[name]) >= ({"formula"} if room == "wsol.mix" else {"formula", "needs"}), name
    assert not set(notes) - {name for room in cite.ROOMS for name in cite.registry(room).names()}
    table = "## Maps\n| CNN | VOC | CUB |\n|---|---|---|\n| cam, gradcam | 1 | 2 |\n| cam, `--flip` | 3 | |\n"
    assert PAGE.measured("gradcam", table) == ["Maps: VOC 1, CUB 2"]
    assert PAGE.measured("xgradcam", table) == []
    assert PAGE.measured("am", table) == []


def test_numbers_of_the_readme_are_those_of_the_results():
    def rows(text):
        return {tuple(cell.strip(" *") for cell in line.split("|")) for line in text.splitlines() if line[:1] == "|"}

    results = rows((ROOT / "docs/results.md").read_text(encoding="utf-8"))
    numbers = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Numbers")[2].partition("## ")[0]
    shown = {row for row in rows(numbers) if any(re.fullmatch(r"[0-9.]+", cell) for cell in row)}
    assert len(shown) > 10
    assert not shown - results


@pytest.mark.slow
def test_site_builds_without_warnings(tmp_path):
    application = pytest.importorskip("sphinx.application")
    pytest.importorskip("furo")
    docs = ROOT / "docs"
    site = application.Sphinx(docs, docs, tmp_path / "html", tmp_path / "doctrees", "html", warningiserror=True)
    site.build()
    assert site.statuscode == 0
    page = (tmp_path / "html/methods/cams.html").read_text(encoding="utf-8")
    assert "gradcampp" in page
    assert "wsol: methods" not in page
