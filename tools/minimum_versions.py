"""Print every dependency of pyproject.toml at the oldest version that it allows, for `make minimum`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
runtime = [*project["dependencies"], *extras["demo"]]
pinned = [re.sub(r">=", "==", requirement) for requirement in runtime]
linting = ("ruff", "mypy", "import-linter", "types-")
testing = [requirement for requirement in extras["dev"] if not requirement.startswith(linting)]
print(" ".join((*pinned, *testing)))
