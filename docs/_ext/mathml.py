"""Formulas as MathML, written into the pages when the site is built: no script and no network on the reader's side.

Browsers follow MathML Core, which knows neither letter styles nor named spaces; the letters are replaced by their
Unicode characters, and a command that the converter does not know fails the build.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.errors import SphinxError

_STYLED = re.compile(r'<(mi|mn) mathvariant="(script|double-struck)">([A-Za-z0-9])</\1>')
_LEFT_OVER = re.compile(r'\\\w+|width="negative\w+"')


def mathml(latex: str, *, display: bool) -> str:
    """Return a formula as a MathML element.

    Args:
        latex: The formula, without dollar signs.
        display: In a line of its own instead of in the text.

    Raises:
        ValueError: When a part of the formula has no MathML.
    """
    written = convert(latex, display="block" if display else "inline")
    written = written.replace("<mi>&#x0007E;</mi>", "<mo>&#x0223C;</mo>")  # \sim has space around it
    written = _STYLED.sub(lambda match: f"<{match[1]}>{_styled(match[2], match[3])}</{match[1]}>", written)
    if unknown := _LEFT_OVER.search(written):
        raise ValueError(f"no MathML for {unknown[0]} in: {latex}")
    return written


def _styled(style: str, letter: str) -> str:
    name = unicodedata.name(letter).replace("LATIN ", "").replace(" LETTER", "")
    try:
        return unicodedata.lookup(f"MATHEMATICAL {style} {name}")
    except KeyError:  # an older character, as the script L
        return unicodedata.lookup(f"{style} {name}")


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_html(node.astext(), display=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    # One element a statement, for a page breaks lines between elements only.
    statements = re.split(r"\\q?quad", node.astext())
    parts = (f"<span>{_html(statement, display=True)}</span>" for statement in statements)
    writer.body.append(f'<div class="math">{"".join(parts)}</div>\n')
    raise nodes.SkipNode


def _html(latex: str, *, display: bool) -> str:
    try:
        return mathml(latex.strip(), display=display)
    except ValueError as error:
        raise SphinxError(str(error)) from error
