"""A generated data set in VOC layout: textured objects over clutter, with exact masks and boxes.

Made for demonstrations and tests without any download; see `wsol.data.scene` for what the images show.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsol.data import DATASETS
from wsol.data.catalog import Dataset, Layout, Part
from wsol.data.scene import KINDS, Scene, draw_scene
from wsol.data.voc import read_devkit
from wsol.errors import ConfigError, DataError
from wsol.store.atomic import atomic_write, remove_stale, write_text
from wsol.store.masks import encode_mask

MARK = "synthetic.json"
VERSION = 1
_SPLITS = ("train", "val")
_HOW = "wsol generates it on first use"

LAYOUT = Layout(
    "synthetic",
    folders=("synthetic",),
    markers=(MARK,),
    parts=(Part(MARK, "what was generated, with which seed", _HOW), Part("JPEGImages/*.jpg", "images", _HOW)),
)


def write_synthetic(
    root: Path,
    *,
    train: int = 400,
    val: int = 200,
    seed: int = 0,
    sides: tuple[int, int] = (120, 170),
    classes: int = len(KINDS),
) -> None:
    """Write the data set: JPEGImages, Annotations, SegmentationClass and ImageSets, as VOC has them.

    Every image depends on the seed, its split and its number only. `synthetic.json` says whether the set is
    complete, so that an interrupted run is done again.

    Args:
        root: Folder to write; empty, new, or left by an interrupted run.
        train: Number of training images.
        val: Number of validation images.
        seed: Seed of the generator.
        sides: Range of height and width in pixels, at least 40; each is odd, and they differ in every image.
        classes: Number of classes, 1 to 5.

    Raises:
        ConfigError: On counts out of range.
        DataError: When the folder holds something else.
        WriteError: When it cannot be written to.
    """
    if not 1 <= classes <= len(KINDS) or min(train, val) < 1 or not 40 <= sides[0] < sides[1]:
        raise ConfigError(
            f"cannot generate train={train}, val={val}, classes={classes}, sides={sides}",
            hint=f"give at least one image a split, 1 to {len(KINDS)} classes, and sides from 40 on, the smaller first",
        )
    if root.is_dir() and any(root.iterdir()) and _read_mark(root) is None:
        raise DataError("the folder is not empty and holds no synthetic data set", where=root, hint="give a new folder")
    about: dict[str, Any] = {"version": VERSION, "seed": seed, "train": train, "val": val, "sides": list(sides)}
    about["classes"] = [kind.name for kind in KINDS[:classes]]
    write_text(root / MARK, json.dumps({**about, "complete": False}, indent=1))
    remove_stale(root, (root / MARK).stat().st_mtime)
    for code, (split, count) in enumerate(zip(_SPLITS, (train, val), strict=True)):
        names = [f"{split}_{index:05d}" for index in range(count)]
        for index, name in enumerate(names):
            rng = np.random.default_rng([seed, code, index])
            _write_scene(root, name, draw_scene(rng, sides=sides, classes=classes))
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    write_text(root / MARK, json.dumps({**about, "complete": True}, indent=1))


@DATASETS.register("synthetic")
def load(
    *,
    root: Path | None,
    split: str | None,
    train: int | None = None,
    val: int | None = None,
    seed: int | None = None,
) -> Dataset:
    """List a split of a synthetic data set, generating it where the folder is new or empty.

    Args:
        root: Its folder; by default $WSOL_DATA/synthetic.
        split: "train" or "val".
        train: Number of training images to generate (400), or to expect.
        val: Number of validation images (200).
        seed: Seed of the generator (0).

    Raises:
        DataError: When the folder holds another set than asked for.
    """
    folder = root if root is not None else LAYOUT.start(None) / LAYOUT.folders[0]
    asked = {key: value for key, value in (("train", train), ("val", val), ("seed", seed)) if value is not None}
    about = _read_mark(folder)
    if about is None or not about.get("complete"):
        given = {"train": 400, "val": 200, "seed": 0} | asked
        write_synthetic(folder, train=given["train"], val=given["val"], seed=given["seed"])
        about = _read_mark(folder) or {}
    for key, value in asked.items():
        if about.get(key) != value:
            hint = f"leave out {key}, or give another --root"
            raise DataError(f"the set was generated with {key}={about.get(key)}, not {value}", where=folder, hint=hint)
    return read_devkit("synthetic", folder, split, classes=[str(name) for name in about["classes"]])


def _read_mark(root: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((root / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) and "classes" in about else None


def _write_scene(root: Path, name: str, scene: Scene) -> None:
    # Two processes may generate the same set at once: each file is whole at any moment.
    with atomic_write(root / "JPEGImages" / f"{name}.jpg") as stream:
        Image.fromarray(scene.image).save(stream, format="JPEG", quality=92)
    with atomic_write(root / "SegmentationClass" / f"{name}.png") as stream:
        stream.write(encode_mask(scene.labels))
    write_text(root / "Annotations" / f"{name}.xml", _xml(name, scene))


def _xml(name: str, scene: Scene) -> str:
    height, width = scene.labels.shape
    objects = "".join(_object(KINDS[label].name, visible) for label, visible in scene.objects)
    return (
        f"<annotation><filename>{name}.jpg</filename>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        f"<segmented>1</segmented>{objects}</annotation>\n"
    )


def _object(name: str, visible: NDArray[np.bool_]) -> str:
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    box = {"xmin": columns[0] + 1, "ymin": rows[0] + 1, "xmax": columns[-1] + 1, "ymax": rows[-1] + 1}
    ends = "".join(f"<{key}>{value}</{key}>" for key, value in box.items())
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{ends}</bndbox></object>"
