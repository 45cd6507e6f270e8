"""`wsol info`: show versions, devices, clashes, methods and the data found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from wsol.cli.parse import parse
from wsol.registry import Registry
from wsol.store.runs import code_hash, versions


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """What is installed and what can be chosen."""

    json: bool = False
    """Print JSON."""


_METHODS = (("map methods", "cams"), ("refiners", "refine"), ("mix strategies", "mix"), ("data sets", "data"))
# torch takes seconds to import and may not be needed at all, so a child process asks it.
_ASK_TORCH = "import torch; print([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])"


def run(argv: Sequence[str]) -> int:
    """Print the facts; return the exit status: 1 when two packages clash."""
    config = parse(InfoConfig, argv, prog="wsol info")
    facts = collect()
    if config.json:
        sys.stdout.write(json.dumps(facts, indent=1) + "\n")
        return 1 if facts["clashes"] else 0
    lines = ["versions"] + [f"  {name:<28} {version}" for name, version in facts["versions"].items()]
    lines += [f"code      {facts['code']}", f"devices   {', '.join(facts['devices'])}"]
    lines += [f"data      {', '.join(facts['data']) or 'WSOL_DATA is not set'}"]
    for title, _ in _METHODS:
        lines += ["", title] + [f"  {name:<14} {summary}" for name, summary in facts[title].items()]
    lines += ["", *(f"clash: {text}" for text in facts["clashes"])]
    sys.stdout.write("\n".join(lines).rstrip() + "\n")
    return 1 if facts["clashes"] else 0


def collect() -> dict[str, Any]:
    """Return versions, devices, methods with their summaries, data folders and clashes, without importing torch."""
    facts: dict[str, Any] = {"versions": versions(), "code": code_hash(), "devices": _devices()}
    root = Path(os.environ.get("WSOL_DATA") or "/nonexistent")
    facts["data"] = sorted(item.name for item in root.iterdir() if item.is_dir()) if root.is_dir() else []
    for title, room in _METHODS:
        registry = _registry(room)
        facts[title] = {name: registry.summary(name) for name in registry.names()}
    facts["clashes"] = _clashes()
    return facts


def _registry(room: str) -> Registry[Any]:
    module = __import__(f"wsol.{room}", fromlist=["*"])
    return next(value for value in vars(module).values() if isinstance(value, Registry))


def _devices() -> list[str]:
    answer = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False)  # noqa: S603
    names = json.loads(answer.stdout.replace("'", '"')) if answer.returncode == 0 else []
    return [f"cpu ({os.cpu_count()} cores)", *(f"cuda:{at} {name}" for at, name in enumerate(names))]


def _clashes() -> list[str]:
    found = sorted({str(item.metadata["Name"]).lower() for item in distributions()})
    opencv = [name for name in found if name.startswith("opencv-") and "python" in name]
    if len(opencv) > 1:
        return [f"{' and '.join(opencv)} overwrite each other's cv2: uninstall all, then install opencv-python"]
    return []
