"""Every block of the documentation has a reader: commands parse, Python compiles, files that are shown load.

A block or a command that no rule covers is a failure. test_pages_run.py runs the commands.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import tomllib

import pytest
import yaml
from doc_pages import FOUND, OTHER_LINES, PAGES, ROOT, SHELL, chain, commands, is_other, split_line
from doc_rules import NOT_RUN, SMALL, SUBSTITUTES, as_run, is_left_out, small_key

import wsol
from wsol.cli.main import main

# Kinds of blocks that are not commands, and are read below or by the site.
READERS = {"python", "yaml", "toml", "json", "jsonl", "csv", "mermaid", "{toctree}", "text", "bibtex"}
RECIPES = [
    (path, line[2:])
    for path in sorted((ROOT / "configs/recipes").glob("*.yaml"))
    for line in path.read_text(encoding="utf-8").splitlines()
    if line.startswith("# wsol ")
]
# Flags whose value decides which other flags there are.
CHOICES = {"--data", "--method", "--mix", "--format", "--read", "--write"}
PARSED = [(path, line) for path, line in [*SHELL, *RECIPES] if not is_other(line)]


def test_every_block_has_a_reader():
    assert not [(path.name, kind, text[:60]) for path, kind, text in FOUND if kind not in READERS | {"shell"}]
    assert len(SHELL) > 60


def test_every_run_that_is_read_is_made_before_or_on_a_linked_page():
    for page in PAGES:
        assert sum(kind == "shell" for kind, _ in chain(page)) >= len(commands(page))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```bash\nwsolx cam\n```\n", "neither a wsol command"),
        ("```bash\nwsol cam --data voc --checkpoint runs/nowhere\n```\n", "makes runs/nowhere"),
        ("\n    wsol cam --data voc --out runs/a\n    frob runs/a\n", "neither a wsol command"),
    ],
)
def test_a_command_that_no_rule_covers_is_found(tmp_path, text, message):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match=message):
        chain(page)


def test_no_rule_is_left_over():
    given = [line for _, line in SHELL if not is_other(line)]
    run = [line for line in given if not is_left_out(line)]
    for pattern in OTHER_LINES:
        assert any(re.fullmatch(pattern, line) for _, line in SHELL), pattern
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in given), pattern
    for pattern in SUBSTITUTES:
        assert any(re.search(pattern, line) for line in run), pattern
    assert set(SMALL) == {small_key(line) for line in run} - {None}


def test_nothing_asks_for_another_machine():
    """What is left of a reader's words neither downloads nor names a GPU or an address."""
    for _, line in SHELL:
        if not is_other(line) and not is_left_out(line):
            assert not re.search(r"--pretrained|imagenet|cuda|10\.0\.0|--device auto", as_run(line)), line


@pytest.mark.parametrize(("path", "line"), PARSED, ids=[f"{path.stem}-{at}" for at, (path, _) in enumerate(PARSED)])
def test_command_parses(path, line, monkeypatch, capsys):
    """With --print-config nothing runs, but an unknown verb, flag, method or a wrong type is refused."""
    monkeypatch.chdir(ROOT)
    if is_left_out(line):
        return
    _, words = split_line(line)
    while "-c" in words and words[words.index("-c") + 1].startswith("runs/"):  # written by the command before
        at = words.index("-c")
        del words[at : at + 2]
    with pytest.raises(SystemExit) as ended:
        status = main([*words, "--print-config"])
        pytest.fail(f"{line}: exit status {status}: {capsys.readouterr().err}")
    assert ended.value.code == 0


@pytest.mark.parametrize(
    ("line", "hint"), [("cam --data voc --flap --out x", "--flip"), ("cam --data voc --method cams --out x", "cam")]
)
def test_a_wrong_flag_would_be_found(line, hint, capsys):
    assert main([*line.split(), "--print-config"]) == 2
    assert hint in capsys.readouterr().err


def inline():
    """Return the commands in the running text and in tables; they name some flags, and need not be whole."""
    found = {}
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for code in re.findall(r"`(wsol [^`]+)`", text):
            found.setdefault(" ".join(code.split()), page.stem)
    return found


@pytest.mark.parametrize("line", inline())
def test_inline_command_names_verbs_and_flags_that_are(line, capsys):
    """Its flags are in the help of its verb, with the method that it names."""
    words = line.split()[1:]
    if is_left_out(line) or words[0] == "VERB":
        return
    verbs = [word for word in itertools.takewhile(lambda word: word[0] != "-", words) if not word.isupper()]
    chosen = [pair for pair in itertools.pairwise(words) if pair[0] in CHOICES and not pair[1].isupper()]
    sweep = ["--sweep"] if "--sweep" in words else []
    with contextlib.suppress(SystemExit):  # after the help; a mistake is the status 2
        assert main([*verbs, *sweep, *itertools.chain(*chosen), "--help"]) == 0
    shown = capsys.readouterr().out
    assert {word for word in words if word.startswith("--")} <= {*re.findall(r"--[\w.-]+", shown), *sweep}, line


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {match for _, line in SHELL for match in re.findall(r"^make ([a-z]+)", line)}
    assert named
    assert named <= targets


def test_files_that_are_shown_can_be_read():
    for path, kind, text in FOUND:
        if kind == "yaml":
            assert isinstance(yaml.safe_load(text), dict), (path.name, text)
        elif kind == "toml":
            assert tomllib.loads(text), path.name
        elif kind == "json":
            json.loads(text)
        elif kind == "jsonl":
            assert all(isinstance(json.loads(row), dict) for row in text.splitlines()), path.name
        elif kind == "csv":
            assert len({row.count(",") for row in text.strip().splitlines()}) == 1, (path.name, text)


def test_python_compiles_and_names_what_is_public():
    for path, kind, text in FOUND:
        if kind == "python":
            compile(text, str(path), "exec")
            for name in re.findall(r"\bwsol\.(\w+)\(", text):
                assert callable(getattr(wsol, name, None)), (path.name, name)
