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
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^(?:    .+\n)+", re.MULTILINE)
_SHELL = ("", "bash", "sh", "console")


def _reference_pages():
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs/_ext/reference_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGE = _reference_pages()


def _commands() -> list[tuple[str, str]]:
    """Every `wsol ...` line of the pages and of the heads of the recipes."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        blocks = [body for language, body in _FENCE.findall(text) if language in _SHELL]
        blocks += [re.sub("^    ", "", block, flags=re.M) for block in _INDENTED.findall(_FENCE.sub("", text))]
        for block in blocks:
            lines = block.replace("\\\n", " ").splitlines()
            found += [(path.name, line) for line in lines if re.search(r"(^|\s)wsol [a-z]", line)]
    for path in sorted((ROOT / "configs/recipes").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [(path.name, line[2:]) for line in lines if line.startswith("# wsol ")]
    return found


# The method of the worked example exists in its own test only, which parses its command.
COMMANDS = [(page, line) for page, line in _commands() if "absgrad" not in line]


def test_commands_are_found():
    assert len(COMMANDS) > 60
    assert {"README.md", "start.md", "own-data.md", "several-machines.md"} <= {page for page, _ in COMMANDS}


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}-{at}" for at, (page, _) in enumerate(COMMANDS)])
def test_command_parses(page, line, monkeypatch, capsys):
    """With --print-config nothing runs, but an unknown verb, flag, method or a wrong type is refused."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    words = words[words.index("wsol") + 1 :]
    while "-c" in words and words[words.index("-c") + 1].startswith("runs/"):  # written by the command before
        at = words.index("-c")
        del words[at : at + 2]
    if words[:2] == ["info", "cite"]:
        assert main(words) in (0, 1)
        return
    with pytest.raises(SystemExit) as ended:
        status = main([*words, "--print-config"])
        pytest.fail(f"{line}: exit status {status}: {capsys.readouterr().err}")
    assert ended.value.code == 0


def test_a_wrong_flag_would_be_found(capsys):
    assert main(["cam", "--data", "voc", "--flap", "--out", "x", "--print-config"]) == 2
    assert "--flip" in capsys.readouterr().err


def _messages() -> list[re.Pattern[str]]:
    """What the errors of the package can say, values as wildcards."""
    found = []
    for file in glob.glob(str(ROOT / "wsol/**/*.py"), recursive=True):
        for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [re.escape(part.value) if isinstance(part, ast.Constant) else ".*" for part in node.values]
                if sum(len(part) for part in parts if part != ".*") > 7:
                    found.append(re.compile("".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 7:
                found.append(re.compile(re.escape(node.value)))
    return found


def _keys() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    return [" ".join(key.split()) for key in re.findall(r"^\*\*(.+?)\*\*(?! \(from)", text, re.MULTILINE | re.DOTALL)]


def test_troubleshooting_names_real_messages():
    known = _messages()
    keys = _keys()
    assert len(keys) > 40
    lost = [
        key for key in [*keys, "no such frob"] if not any(item.fullmatch(key.replace("...", "x")) for item in known)
    ]
    assert lost == ["no such frob"]


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
        line = next(line for _, line in _commands() if "absgrad" in line)
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
_NO_PAPER = {"threshold", "randomwalk", "none", "until", "folder", "synthetic", "eigengradcam"}


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
