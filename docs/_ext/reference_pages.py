"""Sphinx extension: fills pages with what the registries and the command line know.

A line `<!-- wsol: KIND ... -->` in a page is replaced by Markdown when the page is read:

- `methods wsol.cams`: every entry of a registry: docstring, formula, needs and cost (docs/methods/formulas.yaml),
  pictures (`pictures.py`, at build time; `trained_pictures.py`, committed), rows of docs/results.md, options, BibTeX;
- `protocols`: the localization protocols of `wsol eval loc`;
- `commands`: every command of `wsol/cli` with its options.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
import itertools
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

import wsol.cli
from wsol.cli.cite import docstring, papers, registry

_DOCS = Path(__file__).parents[1]
# Folder of pictures to what they show, by room.
_CAPTIONS = {
    "_build/pictures": {
        "wsol.cams": "`tf_efficientnet_lite0` with ImageNet weights: the map of the likeliest class.",
        "wsol.refine": "The map (layercam, `tf_efficientnet_lite0`) and the refined mask; background score 0.35.",
        "wsol.mix": "A batch of four photos, mixed.",
    },
    "images": {
        "wsol.cams": "DINOv2 ViT-S/14, fine-tuned for saliency, with a linear probe for the classes of VOC:"
        " cat, motorbike, person. Red begins at the highest 2 % of the patches.",
        "wsol.refine": "The map (layercam, `tf_efficientnet_lite0`) and the refined mask, with the network"
        " of the [results](../results.md#refiners); background score 0.48.",
        "wsol.mix": "A batch of four photos, mixed by the attention of a DINOv2 ViT-S/14, fine-tuned for saliency.",
    },
}
_MARK = re.compile(r"^<!-- wsol: (.+) -->$", re.MULTILINE)
_NOT_GIVEN = (dataclasses.MISSING, inspect.Parameter.empty)


def fill(text: str) -> str:
    """Return a page with its marks replaced."""
    return _MARK.sub(lambda match: _write(*match[1].split()), text)


def commands() -> Iterator[tuple[str, type[Any], str]]:
    """Yield (command, class of its options, summary), found by the calls of `parse(..., prog=...)` in wsol/cli."""
    for path in sorted(Path(wsol.cli.__path__[0]).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = importlib.import_module(f"wsol.cli.{path.stem}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "parse":
                prog = next((item.value for item in node.keywords if item.arg == "prog"), None)
                if isinstance(prog, ast.Constant) and isinstance(node.args[0], ast.Name):
                    kind = _class(node.args[0].id, tree, module)
                    yield str(prog.value), kind, (inspect.getdoc(kind) or "").partition("\n\n")[0]


def field_texts(kind: type[Any]) -> dict[str, str]:
    """Return what the source says about the fields of a class: strings below them, or a list under "Attributes:"."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("wsol"):
            texts |= _listed(inspect.getdoc(base) or "", "Attributes") | _below(base)
    return texts


def options(kind: Any) -> list[tuple[str, str, str, str]]:
    """Return (name, type, default, text) of every option of a dataclass, or of a data set's loading function."""
    hints = typing.get_type_hints(kind)
    if inspect.isfunction(kind):
        texts = _listed(inspect.getdoc(kind) or "", "Args")
        own = [item for item in inspect.signature(kind).parameters.values() if item.name not in ("root", "split")]
        return [(item.name, _type(hints[item.name]), _default(item.default), texts[item.name]) for item in own]
    texts, rows = field_texts(kind), []
    for item in dataclasses.fields(kind):
        if item.init:
            made = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
            rows.append((item.name, _type(hints[item.name]), _default(made), texts[item.name]))
    return rows


def markdown(text: str) -> str:
    """Return a docstring as Markdown that shows what the docstring shows: links live, no accidental syntax."""
    lines = []
    for line in text.split("\n"):
        if not line.startswith("    "):
            # A formula may break a line before its operator, which would begin a heading or a list.
            line = re.sub(r"^(\s*)([=+#>(])", r"\1\\\2", line)
            parts = re.split(r"(`[^`]*`|https?://[^\s;)\"]*[^\s;):,.\"])", line)
            line = "".join(_plain(part) for part in parts)
        lines.append(line)
    return "\n".join(lines)


def _plain(part: str) -> str:
    if part.startswith("`"):
        return part
    return f"<{part}>" if part.startswith("http") else re.sub(r"([*|<])", r"\\\1", part)


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    from pygments.lexers.special import TextLexer

    app.add_lexer("mermaid", TextLexer)
    app.connect("builder-inited", _draw)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}


def _draw(app: Any) -> None:
    """Make the pictures, unless what they are made of is not installed: the pages do without."""
    from wsol.errors import WsolError

    try:
        from pictures import draw  # beside this file; torch takes seconds

        draw(_DOCS / "_build/pictures")
    except WsolError as error:
        from sphinx.util.logging import getLogger

        getLogger(__name__).info(f"no pictures: {error}")


def _read(app: Any, name: str, source: list[str]) -> None:
    source[0] = fill(source[0])


def _write(kind: str, *words: str) -> str:
    writers = {"methods": _methods, "protocols": _protocols, "commands": _commands}
    return writers[kind](*words)


def _methods(package: str) -> str:
    known, parts = registry(package), []
    for name in known.names():
        entry = known.get(name)
        module = importlib.import_module(entry.__module__)
        head, _, body = (inspect.getdoc(module) or "").partition("\n\n")
        parts += [f"({package}.{name})=\n## {name}", f"**{markdown(head)}**", *_shown(package, name), markdown(body)]
        parts.append(_facts(package, name, entry))
        parts.append(_table(entry, "" if inspect.isfunction(entry) or dataclasses.is_dataclass(entry) else "none"))
        parts.append(_bibtex(package, name))
        parts.append(f"Source: `{module.__name__.replace('.', '/')}.py`")
    return "\n\n".join(part for part in parts if part)


@functools.cache
def notes() -> dict[str, dict[str, str]]:
    """Return formula, needs and cost of the methods, by name."""
    found: dict[str, dict[str, str]] = yaml.safe_load((_DOCS / "methods/formulas.yaml").read_text(encoding="utf-8"))
    return found


def measured(name: str, text: str) -> list[str]:
    """Return the rows of the tables of a page whose first cell names a method, speed left out.

    Args:
        name: Registry name.
        text: The page, docs/results.md.
    """
    found, header, place = [], [], ""
    for line in text.partition("## Speed")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if line.startswith("## "):
            place = line.removeprefix("## ")
        if not cells:
            header = []
        elif not header:
            header = cells
        elif re.match(rf"(.*, ?|none \()?`?{re.escape(name)}`?(,| \(`|\)|$)", cells[0]):
            values = [f"{title} {value}" for title, value in zip(header[1:], cells[1:], strict=True) if value]
            about = header[0] if len(header[0].split()) > 1 else place
            found.append(f"{about}: {', '.join(values)}")
    return found


def _shown(package: str, name: str) -> Iterator[str]:
    for folder, captions in _CAPTIONS.items():
        if (_DOCS / folder / package / f"{name}.jpg").is_file():
            yield f"![{name}](/{folder}/{package}/{name}.jpg)"
            yield f"*{captions[package]}*"
    if formula := notes().get(name, {}).get("formula"):
        yield f"$$\n{formula}\n$$"


def _facts(package: str, name: str, entry: Any) -> str:
    """Needs, cost and measured numbers, as a list."""
    about, made = notes().get(name, {}), entry() if hasattr(entry, "keeps_label_mass") else None
    lines = {"Needs": about.get("needs"), "Cost of an image": about.get("cost")}
    if made is not None:
        lines = {"Needs": ", ".join(sorted(made.wants() | made.needs)) or "nothing"}
        lines["Extra cost beside one forward and one backward pass"] = made.cost or "none"
        lines["Labels of an image"] = "sum to 1" if made.keeps_label_mass else "need not sum to 1"
    rows = measured(name, (_DOCS / "results.md").read_text(encoding="utf-8")) if name in notes() else []
    lines["Measured ([results](../results.md))"] = "; ".join(rows)
    lines["No figures"], lines["No picture"] = about.get("no_number"), about.get("no_picture")
    return "\n".join(f"- {title}: {text}" for title, text in lines.items() if text)


def _bibtex(package: str, name: str) -> str:
    found = papers(docstring(name)) if package != "wsol.store.formats" else ()
    entries = "\n\n".join(paper.bibtex() for paper in found)
    return f"<details><summary>BibTeX</summary>\n\n```bibtex\n{entries}\n```\n\n</details>" if entries else ""


def _protocols() -> str:
    from wsol.eval.protocols import PROTOCOLS

    parts = []
    for name, protocol in PROTOCOLS.items():
        columns = ", ".join(f"`{metric.name}`" for metric in protocol.metrics) or "`PxAP`"
        note = f"\n\n{markdown(protocol.note)}." if protocol.note else ""
        parts.append(f"## {name}\n\n{markdown(protocol.about)}.{note}\n\nColumns: {columns}.")
    return "\n\n".join(parts)


def _commands() -> str:
    parts = []
    for command, kind, summary in sorted(commands(), key=lambda item: item[0]):
        parts += [f"## {command}", markdown(summary), _table(kind, flags=True)]
    return "\n\n".join(parts)


def _table(kind: Any, instead: str = "", *, flags: bool = False) -> str:
    rows = [] if instead else options(kind)
    if not rows:
        return "No options."
    lines = [f"| {'flag' if flags else 'option'} | type | default | |", "|---|---|---|---|"]
    for name, hint, default, text in rows:
        shown = "--" + name.replace("_", "-") if flags else name
        if flags and hint.startswith("`Mapping"):
            shown, hint, default = f"{shown}.NAME", "", ""
        cells = (f"`{shown}`", hint, default, markdown(" ".join(text.split())))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _type(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
    text = re.sub(r"\b(typing|collections\.abc|pathlib)\.", "", text)
    if text.startswith("Literal["):
        text = " or ".join(str(item) for item in typing.get_args(hint))
    return f"`{text.replace('|', 'or')}`"


def _default(value: Any) -> str:
    if value in _NOT_GIVEN:
        return "required"
    if dataclasses.is_dataclass(value):
        return "its own"
    if isinstance(value, float):
        value = float(f"{value:.4g}")
    return "none" if value in (None, "", (), {}) else f"`{value}`"


def _below(kind: type[Any]) -> dict[str, str]:
    try:
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind)))
    except (OSError, TypeError):  # made by make_dataclass
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    return {
        field.target.id: str(text.value.value)
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def _listed(text: str, title: str) -> dict[str, str]:
    """Return the entries of a section of a Google-style docstring."""
    section = re.search(rf"^{title}:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    entries = re.split(r"^    (?=\w+: )", section[1] if section else "", flags=re.MULTILINE)
    return {name: " ".join(rest.split()) for name, _, rest in (entry.partition(": ") for entry in entries) if rest}


def _class(name: str, tree: ast.Module, module: ModuleType) -> type[Any]:
    """Find a class that a file names, at its top or imported inside a function."""
    if hasattr(module, name):
        return getattr(module, name)  # type: ignore[no-any-return]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and name in [alias.name for alias in node.names]:
            return getattr(importlib.import_module(node.module), name)  # type: ignore[no-any-return]
    raise LookupError(f"no class {name} in {module.__name__}")
