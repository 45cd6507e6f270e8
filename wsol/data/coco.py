"""COCO 2014 and 2017: instance annotations in JSON; masks are rendered once and cached.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, https://cocodataset.org.

Rule of the masks (`MASK_RULE`): objects are painted from the largest annotated area to the smallest (ties in file
order), so that small objects stay on top; crowd regions become 255 where no object is.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from wsol.data import DATASETS
from wsol.data.catalog import Dataset, Layout, Part, choose_split, make_dataset
from wsol.errors import DataError, StoreError
from wsol.ops.boxes import from_xywh
from wsol.ops.rle import decode
from wsol.schema import IGNORE, MOST_PIXELS, DatasetSpec, Sample
from wsol.store.atomic import atomic_write
from wsol.store.masks import encode_mask, read_labels

MASK_RULE = "area-descending-1"
_PREFIX = "instances_"
_WRONG = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
_JSON = "annotations_trainval2014.zip (or 2017) from https://cocodataset.org/#download"
_PHOTOS = "train2014.zip (13 GB) and val2014.zip (6 GB), or 2017, from https://cocodataset.org/#download"

LAYOUT = Layout(
    "coco",
    folders=("coco", "COCO", "coco2014", "coco2017"),
    markers=(f"annotations/{_PREFIX}*.json",),
    parts=(
        Part("annotations/instances_train*.json", "objects of the training split", _JSON),
        Part("annotations/instances_val*.json", "objects of the validation split", _JSON),
        Part("train20*/*.jpg", "training photos", _PHOTOS),
        Part("val20*/*.jpg", "validation photos", _PHOTOS),
    ),
)


@dataclass(frozen=True)
class Instances:
    """One instances JSON, indexed by image.

    Attributes:
        digest: First 12 hex digits of the file's SHA-256.
        names: Category id to name, ascending by id.
        images: Stem of the file name to the image record, in file order.
        objects: Image id to its annotations in file order.
    """

    digest: str
    names: dict[int, str]
    images: dict[str, dict[str, Any]]
    objects: dict[int, list[dict[str, Any]]]


def read_instances(path: Path) -> Instances:
    """Read an instances JSON; the last two stay in memory, for they take seconds to parse.

    Raises:
        DataError: When it is missing or is not such a file.
    """
    try:
        state = path.stat()
        return _read_instances(path, state.st_mtime_ns, state.st_size)
    except OSError as error:
        raise DataError(f"cannot read the annotations: {error.strerror}", where=path) from error
    except _WRONG as error:
        raise DataError(f"not an instances JSON of COCO: {error!r}", where=path) from error


@lru_cache(maxsize=2)
def _read_instances(path: Path, _modified: int, _size: int) -> Instances:
    data = path.read_bytes()
    raw = json.loads(data)
    objects: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in raw["annotations"]:
        objects[item["image_id"]].append(item)
    names = {int(item["id"]): str(item["name"]) for item in sorted(raw["categories"], key=lambda item: int(item["id"]))}
    images: dict[str, dict[str, Any]] = {}
    for item in raw["images"]:
        stem = Path(item["file_name"]).stem
        if images.setdefault(stem, item) is not item:
            hint = "images go by their file names without folder and suffix"
            raise DataError(f"two images are named '{stem}'", where=path, hint=hint)
    return Instances(hashlib.sha256(data).hexdigest()[:12], names, images, dict(objects))


def render_mask(
    objects: Sequence[dict[str, Any]], size: tuple[int, int], categories: Sequence[int]
) -> NDArray[np.uint8]:
    """Paint the annotations of an image as labels, by `MASK_RULE`.

    Args:
        objects: Annotations with polygons or RLE.
        size: (H, W) of the image.
        categories: Category ids; the position is the class id.

    Returns:
        uint8 (H, W): 0 background, class id + 1, 255 for crowds.
    """
    labels = np.zeros(size, dtype=np.uint8)
    order = {category: position for position, category in enumerate(categories)}
    for item in objects:
        if item.get("iscrowd"):
            labels[_decode(item["segmentation"], size)] = IGNORE
    for item in sorted((item for item in objects if not item.get("iscrowd")), key=lambda item: -float(item["area"])):
        labels[_decode(item["segmentation"], size)] = order[item["category_id"]] + 1
    return labels


def _decode(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    if not segmentation:
        raise ValueError("an object has no segmentation, only a box")
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return np.zeros(size, dtype=bool)
        # pycocotools draws wherever a corner leads, with memory for each step on the way.
        if not all(abs(float(value)) <= 10 * max(size) for polygon in polygons for value in polygon):
            raise ValueError("a polygon far outside of its image")
        return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size))), dtype=bool)
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"a mask of {segmentation['size']} in an image of {size}")
    return decode(segmentation)


@dataclass(frozen=True)
class CocoTruth:
    """Reads masks from the cache, and renders what is not there yet.

    Attributes:
        annotations: The instances JSON; parsed only when a mask has to be rendered.
        cache: Folder of the rendered masks of this JSON.
    """

    annotations: Path
    cache: Path

    def __call__(self, sample: Sample) -> NDArray[np.uint8]:
        """Return the mask of a sample as uint8 (H, W) labels."""
        cached = self.cache / f"{sample.id}.png"
        try:
            return read_labels(cached)
        except StoreError:
            pass  # not there yet, or torn: render it
        known = read_instances(self.annotations)
        record = known.images[sample.id]
        objects, size = known.objects.get(record["id"], []), (int(record["height"]), int(record["width"]))
        try:
            labels = render_mask(objects, size, tuple(known.names))
        except _WRONG as error:
            raise DataError(f"image '{sample.id}': {error!r}", where=self.annotations) from error
        try:
            with atomic_write(cached) as stream:
                stream.write(encode_mask(labels))
        except StoreError:
            pass  # a read-only or full disk costs time on the next read, nothing else
        return labels


@DATASETS.register("coco")
def load(*, root: Path | None, split: str | None, cache: Path = Path("runs/.cache"), empty: bool = False) -> Dataset:
    """List a split of COCO; labels come from the annotations that are no crowds.

    Args:
        root: Folder with annotations/ and the photo folders, or its parent.
        split: "train2014", "val2017", ...; "train" and "val" where they are unambiguous.
        cache: Folder for rendered masks.
        empty: Also list the images without any annotation, which the lists of the WSSS papers leave out (2014: 82,081
            of 82,783 training and 40,137 of 40,504 validation images stay).

    Raises:
        DataError: When the JSON is missing or malformed.
    """
    folder = LAYOUT.find(root)
    files = sorted((folder / "annotations").glob(f"{_PREFIX}*.json"))
    splits = tuple(path.stem.removeprefix(_PREFIX) for path in files)
    years = [name for name in splits if split in ("train", "val") and name.startswith(str(split))]
    first = splits[0] if split is None else split  # "train2014" sorts before "val2014"
    split = choose_split(years[0] if len(years) == 1 else first, splits, where=folder / "annotations")
    path = folder / "annotations" / f"{_PREFIX}{split}.json"
    known = read_instances(path)
    photos = next((place for place in (folder / split, folder / "images" / split) if place.is_dir()), folder / split)
    order = {category: position for position, category in enumerate(known.names)}
    try:
        samples = [
            _sample(stem, record, photos, known.objects.get(record["id"], []), order)
            for stem, record in known.images.items()
            if empty or record["id"] in known.objects
        ]
    except _WRONG as error:
        raise DataError(f"not an instances JSON of COCO: {error!r}", where=path) from error
    spec = DatasetSpec(
        name="coco",
        classes=tuple(known.names.values()),
        root=folder,
        split=split,
        splits=splits,
        annotations="both",
    )
    place = cache.absolute() / f"coco-{known.digest}" / MASK_RULE
    return make_dataset(spec, samples, truth=CocoTruth(path.absolute(), place))


def _sample(
    stem: str, record: dict[str, Any], photos: Path, objects: list[dict[str, Any]], order: dict[int, int]
) -> Sample:
    size = (int(record["height"]), int(record["width"]))
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"image {stem} of {size} pixels")
    single = [item for item in objects if not item.get("iscrowd")]
    box_labels = tuple(order[item["category_id"]] for item in single)
    return Sample(
        id=stem,
        image=photos / Path(record["file_name"]).name,
        labels=tuple(sorted(set(box_labels))),
        size=size,
        boxes=from_xywh(np.array([item["bbox"] for item in single], dtype=np.float32).reshape(-1, 4)),
        box_labels=box_labels,
    )
