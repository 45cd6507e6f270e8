"""Say what of a data set is there, what is missing, and how to get it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsol.data import DATASETS, load
from wsol.data.catalog import Dataset, Layout, Part
from wsol.data.images import read_image
from wsol.errors import DataError, WsolError
from wsol.schema import Sample
from wsol.store.archives import exists

_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One line of a check.

    Attributes:
        level: "ok", "missing" (the data set is of no use without it), or "hint".
        path: File or folder, or "" where a split as a whole is meant.
        text: What was found, or what to do.
    """

    level: Literal["ok", "missing", "hint"]
    path: str
    text: str


def check(
    name: str, root: str | Path | None = None, *, split: str | None = None, deep: bool = False, **options: Any
) -> list[Finding]:
    """Check a data set on disk.

    Args:
        name: Registry name.
        root: Its folder or a parent; by default looked up under $WSOL_DATA.
        split: Check one split only.
        deep: Also decode every image and read every mask.
        **options: Options of the data set.

    Returns:
        Findings: the parts of the layout first, then each split.

    Raises:
        ConfigError: When there is no such data set.
    """
    entry = DATASETS.get(name)
    layout = getattr(sys.modules[entry.__module__], "LAYOUT", None)
    findings: list[Finding] = []
    if isinstance(layout, Layout):
        try:
            start = layout.start(None if root is None else Path(root).expanduser())
        except DataError as error:
            return [Finding("missing", "", str(error))]
        try:
            findings += _parts(layout, layout.find(start))
        except DataError as error:
            findings.append(Finding("missing", str(start), error.what))
            usual = start / (layout.folders or (".",))[0]
            findings += [_absent(part, usual) for part in layout.parts]
            return findings
    try:
        first = load(name, root=root, split=split, **options)
    except DataError as error:
        return [*findings, Finding("missing", "", str(error))]
    for other in (first.spec.split,) if split else first.spec.splits:
        try:
            dataset = first if other == first.spec.split else load(name, root=root, split=other, **options)
            findings += _split(dataset, deep=deep)
        except DataError as error:
            findings.append(Finding("missing", "", f"split '{other}': {error}"))
    return findings


def _parts(layout: Layout, folder: Path) -> list[Finding]:
    findings = []
    for part in layout.parts:
        if not part.found(folder):
            findings.append(_absent(part, folder))
        else:
            findings.append(Finding("ok", str(folder / part.path), part.what))
    return findings


def _absent(part: Part, folder: Path) -> Finding:
    text = f"not there: {part.what}; {part.how}"
    path = str(folder / part.path)
    return Finding("missing", path, text) if part.needed else Finding("hint", path, f"optional, {text}")


def _split(dataset: Dataset, *, deep: bool) -> list[Finding]:
    spec, count = dataset.spec, len(dataset)
    label = f"split '{spec.split}'"
    gone = [sample for sample in dataset if not exists(sample.image)]
    boxes = sum(sample.boxes is not None for sample in dataset)
    masks = sum(sample.mask is not None for sample in dataset)
    per_image = sum(len(sample.labels) for sample in dataset) / count
    present = len({label for sample in dataset for label in sample.labels})
    text = (
        f"{label}: {count + dataset.missing} images listed, {count - len(gone)} found; {present} of"
        f" {len(spec.classes)} classes, {per_image:.2f} labels an image; boxes for {boxes}, mask files for {masks}"
    )
    findings = [Finding("ok", str(spec.root), text)]
    if dataset.missing:
        findings.append(Finding("hint", str(spec.root), f"{label}: {dataset.missing} listed images are left out"))
    bare = sum(not sample.labels for sample in dataset)
    if bare:
        findings.append(Finding("hint", str(spec.root), f"{label}: {bare} images without a label"))
    findings += _list(label, "no image file", [sample.image for sample in gone])
    findings += _list(label, "no mask file", [s.mask for s in dataset if s.mask is not None and not exists(s.mask)])
    if deep:
        findings += _unreadable(dataset, [sample for sample in dataset if exists(sample.image)])
    return findings


def _list(label: str, what: str, paths: list[Path]) -> list[Finding]:
    found = [Finding("missing", str(path), f"{label}: {what}") for path in paths[:_SHOWN]]
    if len(paths) > _SHOWN:
        found.append(Finding("missing", "", f"{label}: {what} for {len(paths) - _SHOWN} more"))
    return found


def _unreadable(dataset: Dataset, samples: list[Sample]) -> list[Finding]:
    findings = []
    for sample in samples:
        try:
            size = read_image(sample.image, upright=sample.upright).shape[:2]
            if sample.size is not None and size != sample.size:
                text = f"the image is {size[0]} x {size[1]}, its annotation says {sample.size[0]} x {sample.size[1]}"
                findings.append(Finding("missing", str(sample.image), text))
            if sample.mask is not None and exists(sample.mask):
                dataset.read_truth(sample)
        except WsolError as error:
            findings.append(Finding("missing", str(error.where or sample.image), error.what))
    return findings
