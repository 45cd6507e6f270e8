"""Print every dependency of pyproject.toml at the oldest version that it allows, for `make minimum`."""

from __future__ import annotations

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
requirements = {*project["dependencies"]}.union(*project["optional-dependencies"].values())
print(" ".join(sorted(requirement.replace(">=", "==") for requirement in requirements)))
