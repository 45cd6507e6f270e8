"""`wsol info cite`: BibTeX of the papers that the docstrings of the methods name."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wsol.cli.parse import parse
from wsol.errors import ConfigError, did_you_mean
from wsol.registry import Registry

ROOMS = ("wsol.cams", "wsol.refine", "wsol.mix", "wsol.data")
# Surnames or "Surname et al.", the title in quotes, the venue, the year, and perhaps the link.
_NAME = r"[A-Z][\w\-’']*(?: [A-Z][\w\-’']*)*"
_PAPER = re.compile(
    rf'(?P<people>{_NAME}(?:(?:,| and) {_NAME})*)(?P<others> et al\.)?,? "(?P<title>[^"]+)"(?: \([^)]*\))?'
    r"(?:, (?P<venue>(?!(?:19|20)\d\d|http)[^\";]*?))?(?:,? (?P<year>(?:19|20)\d\d))?(?: \([^)]*\))?"
    r"(?:, (?P<link>https?://[^\s;)]*[^\s;):,.])|(?=[.;]))"
)
_ARXIV = re.compile(r"arxiv\.org/abs/(\d{4}\.\d{4,5})")
_LINK = re.compile(r"https?://[^\s;)]*[^\s;):,.]")
_JOURNALS = ("TPAMI", "IJCV", "IEEE TIP", "Applied Sciences", "Pattern Recognition", "Medical Image Analysis")


@dataclass(frozen=True, kw_only=True)
class CiteConfig:
    """BibTeX of the papers behind methods, for a reference manager to complete: authors by surname."""

    names: tuple[str, ...] = ()
    """Names of map methods, refiners, mix strategies or data sets, separated by spaces."""


@dataclass(frozen=True, slots=True)
class Paper:
    """One reference as a docstring has it.

    Attributes:
        authors: Surnames; "others" stands for the rest.
        title: Title.
        venue: Conference or journal; empty where the docstring names none.
        year: Year, or empty.
        link: Address.
    """

    authors: tuple[str, ...]
    title: str
    venue: str
    year: str
    link: str

    @property
    def key(self) -> str:
        """First author, year and first long word of the title: zhou2016learning."""
        words: list[str] = re.findall(r"[a-z0-9]+", self.title.lower())
        word = next((word for word in words if len(word) > 3), words[0])
        author = unicodedata.normalize("NFKD", self.authors[0].lower())
        return re.sub(r"[^a-z]", "", author) + self._year + word

    @property
    def _year(self) -> str:
        arxiv = _ARXIV.search(self.link)
        return self.year or (f"20{arxiv[1][:2]}" if arxiv else "")

    def bibtex(self) -> str:
        """Return one entry; braces keep the capitals of the title."""
        arxiv = _ARXIV.search(self.link)
        doi = self.link.partition("doi.org/")[2]
        where = "journal" if self.venue in _JOURNALS else "booktitle"
        fields = {
            "author": " and ".join(self.authors),
            "title": f"{{{self.title}}}",
            where: "" if self.venue == "arXiv" else self.venue,
            "year": self._year,
            "eprint": arxiv[1] if arxiv else "",
            "archivePrefix": "arXiv" if arxiv else "",
            "doi": doi,
            "url": self.link,
        }
        lines = [f"  {name} = {{{text}}}," for name, text in fields.items() if text]
        kind = "misc" if self.venue in ("", "arXiv") else "article" if where == "journal" else "inproceedings"
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])


def papers(text: str) -> tuple[Paper, ...]:
    """Return the papers that a docstring names with a title in quotes and a link, in order."""
    found = []
    for paragraph in text.split("\n\n")[1:]:
        for match in _PAPER.finditer(" ".join(paragraph.split()).removeprefix("After ")):
            people = [*re.split(r", | and ", match["people"]), *(["others"] if match["others"] else [])]
            given = {name: match[name] or "" for name in ("title", "venue", "year", "link")}
            found.append(Paper(authors=tuple(people), **given))
    return tuple(found)


def docstring(name: str) -> str:
    """Return the docstring of the file of a method, a refiner, a strategy or a data set.

    Raises:
        ConfigError: When there is none of that name.
    """
    rooms = {entry: room for room in ROOMS for entry in registry(room).names()}
    if name not in rooms:
        raise ConfigError(f"nothing here is called '{name}'", where="wsol info cite", hint=did_you_mean(name, rooms))
    spec = find_spec(f"{rooms[name]}.{name}")
    if spec is None or spec.origin is None:  # a plugin's module may lie anywhere
        return inspect.getdoc(registry(rooms[name]).get(name)) or ""
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def registry(room: str) -> Registry[Any]:
    """Return the registry of a package, for example "wsol.cams"."""
    module = __import__(room, fromlist=["*"])
    return next(value for value in vars(module).values() if isinstance(value, Registry))


def run(argv: Sequence[str]) -> int:
    """Print the entries, each once; exit status 1 when a name has no paper.

    Raises:
        ConfigError: When no name is given, or one is unknown.
    """
    names = [word for word in argv if not word.startswith("-")]
    flags = [word for word in argv if word.startswith("-")]
    parse(CiteConfig, [*(["--names", *names] if names else []), *flags], prog="wsol info cite")
    if not names:
        raise ConfigError("no name", where="wsol info cite", hint="for example wsol info cite getam cutmix")
    entries: dict[str, str] = {}
    missing = []
    for name in names:
        text = docstring(name)
        found = papers(text)
        entries |= {paper.key: paper.bibtex() for paper in found}
        if not found:
            links = " and ".join(_LINK.findall(text))
            missing.append(f"{name}: no paper of its own{f'; see {links}' if links else ''}")
    sys.stdout.write("\n\n".join(entries.values()) + ("\n" if entries else ""))
    for line in missing:
        sys.stderr.write(f"{line}\n")
    return 1 if missing else 0
