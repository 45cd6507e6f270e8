"""Read the pages: their blocks, the commands in them, and which command makes a run that another one reads."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
_FENCE = re.compile(r"^```([\w{}-]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^\n(?:    .+\n)+", re.MULTILINE)

# Lines of shell blocks that are no `wsol` command, and why they are not run here.
OTHER_LINES = {
    r"make (demo|test|docs|bench|setup|slow)\b.*": "targets of the Makefile, read in test_commands.py",
    r"(\S*python -m )?pip install .*": "needs an index",
}
# What stands before `wsol` on a line: a launcher or an assignment, which the shell or torch reads.
_BEFORE = re.compile(r"(?:[A-Z_]+=\S+ )*(?:srun [^w]*|torchrun (?:--[\w-]+(?:[= ][^- ]\S*)? +)*-m )?(?=wsol )")


def _raw(path):
    """Yield (position, language, text) of the fenced and of the indented blocks; the latter have no language."""
    text = path.read_text(encoding="utf-8")
    for match in _FENCE.finditer(text):
        yield match.start(), *match.groups()
    # Blanks for fenced blocks, so that positions stay.
    for match in _INDENTED.finditer(_FENCE.sub(lambda fence: re.sub(r"[^\n]", " ", fence[0]), text)):
        if match[0].strip():
            yield match.start(), "", re.sub("^    ", "", match[0].lstrip("\n"), flags=re.M)


def lines(text):
    """Return the logical lines of a shell block."""
    joined = re.sub(r"\\\n *", "", text)
    return [line for line in (row.partition(" #")[0].strip() for row in joined.splitlines()) if line and line[0] != "#"]


def is_other(line):
    """Return whether a line is another program's."""
    return any(re.fullmatch(other, line) for other in OTHER_LINES)


def split_line(line):
    """Return what stands before `wsol`, and the words after it."""
    before = _BEFORE.match(line)
    assert before, f"neither a wsol command nor in OTHER_LINES: {line}"
    return before[0].strip(), shlex.split(line[before.end() :])[1:]


def _kind(language, text):
    """Return what a block is: shell, or its language, or for one without: yaml, csv or text that show a file."""
    first = next(iter(lines(text)), "")
    if language in ("bash", "sh", "console") or (not language and (_BEFORE.match(first) or is_other(first))):
        return "shell"
    if not language and re.match(r"\w+: ", first):
        return "yaml"
    return language or ("csv" if re.match(r"\w+(,\w+)+$", first) else "text")


@cache
def blocks(path):
    """Return (kind, text) of the blocks of a page, in its order."""
    return [(_kind(language, text), text) for _, language, text in sorted(_raw(path))]


FOUND = [(path, kind, text) for path in PAGES for kind, text in blocks(path)]
SHELL = [(path, line) for path, kind, text in FOUND if kind == "shell" for line in lines(text)]


def commands(path):
    """Return the wsol commands of a page, in its order."""
    found = [line for kind, text in blocks(path) if kind == "shell" for line in lines(text)]
    return [line for line in found if not is_other(line)]


def made(line):
    """Return the run folder or file that a command writes, None where it names none."""
    _, words = split_line(line)
    if "--out" in words:
        return words[words.index("--out") + 1]
    if words[0] == "eval":
        flag, suffix = ("--maps", "loc") if words[1] == "loc" else ("--pred", "seg")
        return f"runs/eval/{Path(words[words.index(flag) + 1]).name}-{suffix}"
    return None


def read_runs(line):
    """Return the run folders that a command reads."""
    _, words = split_line(line)
    found = [re.match(r"runs/(eval/)?[\w-]+", word) for word in words]
    return [match[0] for match in found if match and match[0] != made(line)]


def linked(path):
    """Return the pages that a page links to."""
    targets = re.findall(r"\]\(([^)#:]+\.md)", path.read_text(encoding="utf-8"))
    return [page for page in ((path.parent / target).resolve() for target in dict.fromkeys(targets)) if page in PAGES]


def chain(path):
    """Return the commands and Python blocks of a page as (kind, text), in its order.

    Where a command reads a run that none before it makes, the command that does comes from a page that is linked.
    """
    found, there = [], set()

    def add(line, sources):
        for run in read_runs(line):
            if run not in there:
                homes = [home for home in sources if run in map(made, commands(home))]
                assert homes, f"{path.name}: nothing before this, and no page linked from here, makes {run}: {line}"
                add(next(other for other in commands(homes[0]) if made(other) == run), [homes[0], *linked(homes[0])])
        found.append(("shell", line))
        there.add(made(line))

    for kind, text in blocks(path):
        if kind == "python":
            found.append((kind, text))
        elif kind == "shell":
            for line in lines(text):
                if not is_other(line):
                    add(line, linked(path))
    return found
