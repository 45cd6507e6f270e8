"""Notebooks as pages of the site: their texts and their code; nothing is run."""

from __future__ import annotations

import json
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx


class NotebookParser(MystParser):
    """Reads a notebook as Markdown."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Turn the cells into one Markdown text, and parse that."""
        super().parse("\n\n".join(map(markdown, json.loads(inputstring)["cells"])), document)


def markdown(cell: dict[str, Any]) -> str:
    """Return a cell as Markdown."""
    source = "".join(cell["source"])
    return source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"


def setup(app: Sphinx) -> dict[str, bool]:
    """Let Sphinx read .ipynb files."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True}
