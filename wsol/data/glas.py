"""GlaS: glands in histology images of the colon, with instance masks.

Sirinukunwattana et al., "Gland segmentation in colon histology images: The GlaS challenge contest", Medical Image
Analysis 2017, https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest/.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsol.data import DATASETS
from wsol.data.catalog import Dataset, Layout, Part, choose_split, make_dataset
from wsol.data.images import read_image
from wsol.errors import DataError
from wsol.schema import DatasetSpec, Sample

_ZIP = "warwick_qu_dataset_released_2016_07_08.zip from https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest/"
_ANNOTATION = "_anno.bmp"

LAYOUT = Layout(
    "glas",
    folders=("GlaS", "Warwick_QU_Dataset", "Warwick QU Dataset (Released 2016_07_08)"),
    markers=(f"*{_ANNOTATION}",),
    parts=(
        Part(f"*{_ANNOTATION}", "instance masks beside their images (165)", _ZIP),
        Part("Grade.csv", "benign or malignant, needed for labels=grade only", _ZIP, needed=False),
    ),
)


def read_glands(sample: Sample) -> NDArray[np.uint8]:
    """Read an instance mask as uint8 (H, W): class id + 1 on any gland (1 with labels=gland), 0 elsewhere."""
    if sample.mask is None:
        raise DataError("no ground-truth mask", where=sample.id)
    return np.where(read_image(sample.mask).any(axis=-1), sample.labels[0] + 1, 0).astype(np.uint8)


@DATASETS.register("glas")
def load(*, root: Path | None, split: str | None, labels: Literal["gland", "grade"] = "gland") -> Dataset:
    """List a split of GlaS.

    Args:
        root: Folder of the .bmp files or its parent.
        split: "train", "testA", "testB", or "test" for both of these.
        labels: "gland": one class in every image; "grade": benign or malignant from Grade.csv.

    Raises:
        DataError: When no image is there, or Grade.csv is needed and missing.
    """
    folder = LAYOUT.find(root)
    names = sorted(path.name.removesuffix(_ANNOTATION) for path in folder.glob(f"*{_ANNOTATION}"))
    names.sort(key=_natural)
    splits = tuple(dict.fromkeys(name.partition("_")[0] for name in names))
    splits += ("test",) if any(name.startswith("test") for name in splits) else ()
    split = choose_split(split, splits, where=folder)
    grades = _grades(folder / "Grade.csv") if labels == "grade" else {}
    classes = ("benign", "malignant") if labels == "grade" else ("gland",)
    samples = []
    for name in names:
        if name.partition("_")[0] != split and not (split == "test" and name.startswith("test")):
            continue
        if labels == "grade" and name not in grades:
            raise DataError(f"no grade for {name}", where=folder / "Grade.csv")
        label = classes.index(grades[name]) if labels == "grade" else 0
        samples.append(
            Sample(id=name, image=folder / f"{name}.bmp", labels=(label,), mask=folder / f"{name}{_ANNOTATION}")
        )
    spec = DatasetSpec(
        name="glas",
        classes=classes,
        root=folder,
        split=split,
        splits=splits,
        annotations="mask",
        multi_label=False,
    )
    return make_dataset(spec, samples, truth=read_glands)


def _natural(name: str) -> tuple[str, int]:
    prefix, _, number = name.rpartition("_")
    return prefix, int(number) if number.isdigit() else 0


def _grades(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if len(row) >= 3]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        hint = f"take it from {_ZIP}, or use labels=gland"
        raise DataError(f"cannot read the grades: {error}", where=path, hint=hint) from error
    return {row[0]: row[2].lower() for row in rows if row[2].lower() in ("benign", "malignant")}
