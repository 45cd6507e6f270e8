"""Where scores and ground truth come from: run folders, folders of .npy maps, data sets, metadata of the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wsol import data
from wsol.config import load_yaml
from wsol.data import benchmark
from wsol.data.catalog import Dataset, annotation_kind, make_dataset, without_suffix
from wsol.errors import DataError, EvalError, StoreError
from wsol.eval.scoremap import ScoreMap, check_scoremap
from wsol.schema import DatasetSpec, ScoreMaps
from wsol.store.maps import read_maps
from wsol.store.runs import read_dataset
from wsol.store.shards import has_file


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The scores of one image as they were stored.

    Attributes:
        by_class: Class id to float (h, w) scores that are still to be resized; empty for a ready map.
        ready: A score map that is evaluated as it is, whatever the class; or None.
        logits: float32 (C,), or None.
        image_size: (H, W), or None where only the ground truth knows.
    """

    by_class: Mapping[int, NDArray[Any]]
    ready: ScoreMap | None = None
    logits: NDArray[np.float32] | None = None
    image_size: tuple[int, int] | None = None


class MapSource(Protocol):
    """Anything that gives the scores of an image by its id; it is sent to worker processes."""

    def read(self, image_id: str) -> Scores:
        """Return the scores of one image, or raise a WsolError."""
        ...


@dataclass(frozen=True, slots=True)
class RunMaps:
    """Maps of a run folder of `wsol cam`."""

    folder: Path

    def read(self, image_id: str) -> Scores:
        """Read one image.

        Raises:
            WsolError: When its file is missing, torn or holds NaN.
        """
        maps: ScoreMaps = read_maps(self.folder, image_id)
        by_class = dict(zip(maps.class_ids.tolist(), maps.values, strict=True))
        return Scores(by_class, logits=maps.logits, image_size=maps.image_size)


@dataclass(frozen=True, slots=True)
class NpyMaps:
    """A folder of score maps that the WSOL benchmark or another tool saved: `ID.npy`, float64 in [0, 1]."""

    folder: Path

    def read(self, image_id: str) -> Scores:
        """Read one image.

        Raises:
            WsolError: When its file is missing, torn, or no score map.
        """
        path = self.path(image_id)
        try:
            scoremap = np.load(path, allow_pickle=False)
        except FileNotFoundError as error:
            raise StoreError("no score map", where=path) from error
        except Exception as error:  # numpy raises whatever the bytes lead it to; of memory, for what they declare
            raise StoreError(f"not a whole .npy file: {error}", where=path) from error
        return Scores({}, ready=check_scoremap(scoremap, where=image_id))

    def path(self, image_id: str) -> Path:
        """Return the file of an image: its id, or its id without the suffix of the photo, plus `.npy`."""
        whole = self.folder / f"{image_id}.npy"
        bare = self.folder / f"{without_suffix(image_id)}.npy"
        return bare if bare.is_file() and not whole.is_file() else whole


def open_maps(folder: Path) -> RunMaps | NpyMaps:
    """Tell a run of `wsol cam` from a folder of .npy maps.

    Raises:
        StoreError: When it is neither.
    """
    if (folder / "maps").is_dir():
        return RunMaps(folder)
    if not folder.is_dir():
        raise StoreError("no such folder", where=folder, hint="give the run folder of wsol cam")
    if next(folder.rglob("*.npy"), None) is not None:
        return NpyMaps(folder)
    raise StoreError("no score maps here", where=folder, hint="give a run folder with maps/, or a folder of .npy files")


def load_truth(
    folder: Path,
    *,
    name: str | None = None,
    root: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Load the data set that predictions are compared with.

    Args:
        folder: Folder of the predictions; where it is a run, it says what is not given.
        name: Data set.
        root: Its folder.
        split: Its split.
        limit: Only the first N images.
        options: Options of the data set.

    Raises:
        EvalError: When nothing says which data set it is.
        DataError: When it cannot be loaded.
    """
    known = run_facts(folder)
    same = name is None or name == known.get("name")
    name = name or known.get("name")
    if name is None:
        raise EvalError("nothing says which data set this is", where=folder, hint="give --data, --root and --split")
    if same:
        root = root or (Path(known["root"]) if "root" in known else None)
        split = split or known.get("split")
    chosen = {**(known.get("options") or {} if same else {}), **(options or {})}
    return data.load(name, root=root, split=split, limit=limit, **chosen)


def run_facts(folder: Path) -> dict[str, Any]:
    """Return what a run folder says of its data set: name, root, split and options; empty where it is no run."""
    if not (folder / "dataset.yaml").is_file():
        return {}
    facts = read_dataset(folder)
    config = load_yaml(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    if "data_options" not in config and config.get("maps"):
        before = Path(config["maps"]) / "config.yaml"  # a run of wsol refine names the run it was made from
        config = load_yaml(before) if before.is_file() else config
    facts["options"] = config.get("data_options") or {}
    return facts


def read_metadata(folder: Path, *, masks: Path | None = None, limit: int | None = None) -> Dataset:
    """Read one split of the WSOL benchmark's metadata as it is; no photo is needed.

    Args:
        folder: Folder of image_ids.txt, class_labels.txt, image_sizes.txt and localization.txt.
        masks: Folder that mask files are relative to.
        limit: Only the first N images.

    Raises:
        DataError: When a file is missing or malformed.
    """
    if not (folder / benchmark.IDS).is_file():
        inner = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{benchmark.IDS}")))
        hint = f"give one of its splits: {inner}" if inner else "give the folder of one split"
        raise DataError(f"no {benchmark.IDS} here", where=folder, hint=hint)
    samples = benchmark.read_samples(folder, images=masks or folder, masks=masks or folder)
    classes = max((label for sample in samples for label in sample.labels), default=-1) + 1
    spec = DatasetSpec(
        name=folder.parent.name or "metadata",
        classes=tuple(f"class {index}" for index in range(classes)),
        root=folder,
        split=folder.name,
        annotations=annotation_kind(samples),
        multi_label=False,
    )
    dataset = make_dataset(spec, samples)
    return dataset if limit is None else dataset.limit(limit)


def mask_file(folder: Path, image_id: str) -> Path:
    """Return where the mask of an image lies in a folder: ID.png, or .png in the place of the image's own suffix."""
    whole, bare = folder / f"{image_id}.png", folder / f"{without_suffix(image_id)}.png"
    return bare if not has_file(whole) and has_file(bare) else whole
