"""`wsol info`: show versions, devices, clashes, methods and data; mix: the mix strategies; cite NAME: BibTeX."""

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

from wsol.cli import cite
from wsol.cli.parse import parse
from wsol.store.runs import code_hash, versions


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """What is installed and what can be chosen."""

    json: bool = False
    """Print JSON."""


_METHODS = (("map methods", "cams"), ("refiners", "refine"), ("mix strategies", "mix"), ("data sets", "data"))
# torch takes seconds to import and may not be needed at all, so a child process asks it.
_ASK_TORCH = (
    "import json, torch; print(json.dumps([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]))"
)


def run(argv: Sequence[str]) -> int:
    """Print the facts; return the exit status: 1 when two packages clash."""
    if argv[:1] == ["mix"]:
        return _show_mix(argv[1:])
    if argv[:1] == ["cite"]:
        return cite.run(argv[1:])
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
        registry = cite.registry(f"wsol.{room}")
        facts[title] = {name: registry.summary(name) for name in registry.names()}
    facts["clashes"] = _clashes()
    return facts


@dataclass(frozen=True, kw_only=True)
class MixInfoConfig:
    """The strategies of wsol train --mix: paper, needs, cost, labels."""

    json: bool = False
    """Print JSON."""


_FAMILIES = {
    "delete": "cut and delete",
    "cut": "cut and mix",
    "mixup": "mix up",
    "attention": "attention",
    "other": "other",
}


def collect_mix() -> list[dict[str, Any]]:
    """Return a row a mix strategy, in the order of the families, without importing torch."""
    from wsol.mix import MIXES, create

    rows = []
    for name in MIXES.names():
        strategy = create(name)
        row: dict[str, Any] = {"name": name, "summary": MIXES.summary(name)}
        row |= {"family": strategy.family, "paper": strategy.paper, "cost": strategy.cost}
        needs = sorted(strategy.wants() | strategy.needs)
        rows.append(row | {"needs": needs, "keeps_label_mass": strategy.keeps_label_mass})
    return sorted(rows, key=lambda row: (list(_FAMILIES).index(row["family"]), row["name"]))


def _show_mix(argv: Sequence[str]) -> int:
    config, rows = parse(MixInfoConfig, argv, prog="wsol info mix"), collect_mix()
    if config.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="extra cost: beside one forward and one backward pass; 1: labels of an image sum to 1")
    for title in ("family", "strategy", "paper", "needs", "extra cost", "labels"):
        table.add_column(title, overflow="fold")
    before = ""
    for row in rows:
        family = _FAMILIES[row["family"]] if row["family"] != before else ""
        before = row["family"]
        mass = "1" if row["keeps_label_mass"] else "other"
        table.add_row(family, row["name"], row["paper"], ", ".join(row["needs"]), row["cost"], mass)
    Console().print(table)
    return 0


def _devices() -> list[str]:
    answer = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, check=False)  # noqa: S603  # nosec B603
    names = json.loads(answer.stdout) if answer.returncode == 0 else []
    return [f"cpu ({os.cpu_count()} cores)", *(f"cuda:{at} {name}" for at, name in enumerate(names))]


def _clashes() -> list[str]:
    found = sorted({str(item.metadata["Name"]).lower() for item in distributions()})
    opencv = [name for name in found if name.startswith("opencv-") and "python" in name]
    if len(opencv) > 1:
        return [f"{' and '.join(opencv)} overwrite each other's cv2: uninstall all, then install opencv-python"]
    return []
