"""Sphinx configuration: `make docs` builds the site into docs/_build."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "wsol"
author = "The wsol authors"
copyright = "The wsol authors, Apache-2.0"  # noqa: A001 (the name that Sphinx reads)
version = release = installed("wsol")

extensions = ["myst_parser", "mathml", "notebooks", "reference_pages"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_ext/site.css"]
html_css_files = ["site.css"]
html_title = f"wsol {release}"
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = False
smartquotes = False  # formulas and flags stay as they are written
