"""OpenImages30k of the WSOL benchmark: 100 classes, instance masks and masks of pixels to ignore.

Choe et al., "Evaluation for Weakly Supervised Object Localization", TPAMI 2022; Benenson et al., "Large-scale
interactive object segmentation with human annotators", CVPR 2019; https://github.com/clovaai/wsolevaluation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol.data import DATASETS, benchmark
from wsol.data.catalog import Dataset, Layout, Part, annotation_kind, choose_split, make_dataset, read_lines
from wsol.data.images import read_image
from wsol.errors import DataError
from wsol.ops.resize import resize_mask
from wsol.schema import IGNORE, DatasetSpec, Sample

_REPOSITORY = "https://github.com/clovaai/wsolevaluation"

LAYOUT = Layout(
    "openimages",
    folders=("OpenImages", "openimages"),
    markers=("metadata/*/image_ids.txt", "metadata/image_ids.txt", "train/*/*.jpg", "test/*/*.jpg"),
    parts=(
        Part("metadata/*/image_ids.txt", "lists, labels and mask names",
             f"metadata/OpenImages of {_REPOSITORY}, put into the root as metadata/"),
        Part("train/*/*.jpg", "training photos", f"dataset/prepare_openimages.sh of {_REPOSITORY}", needed=False),
        Part("val/*/*.jpg", "validation photos", f"dataset/prepare_openimages.sh of {_REPOSITORY}", needed=False),
        Part("test/*/*.jpg", "test photos", f"dataset/prepare_openimages.sh of {_REPOSITORY}", needed=False),
        Part("test/*/*.png", "test masks", f"dataset/prepare_openimages.sh of {_REPOSITORY}", needed=False),
    ),
)  # fmt: skip


def read_instances(sample: Sample) -> NDArray[np.uint8]:
    """Join the instance masks of an image and its ignore mask.

    Args:
        sample: Its masks may be smaller than the photo; the result has the size of the first mask.

    Returns:
        uint8 (H, W): class id + 1 on any instance, else 255 where ignored, else 0.

    Raises:
        DataError: When the image has no mask or a file cannot be read.
    """
    if sample.mask is None:
        raise DataError("no ground-truth mask", where=sample.id, hint="choose split 'val' or 'test'")
    if not sample.labels:
        raise DataError("a mask but no class", where=sample.id, hint="class_labels.txt lacks the image")
    first = read_image(sample.mask).any(axis=-1)
    size = (first.shape[0], first.shape[1])
    truth = np.zeros(size, dtype=np.uint8)
    if sample.mask_ignore is not None:
        truth[_read(sample.mask_ignore, size)] = IGNORE
    for mask in (first, *(_read(path, size) for path in sample.extra_masks)):
        truth[mask] = sample.labels[0] + 1
    return truth


def _read(path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = read_image(path).max(axis=-1)
    if mask.shape != size:
        mask = resize_mask(mask, size)
    return np.asarray(mask > 0)


@DATASETS.register("openimages")
def load(*, root: Path | None, split: str | None, metadata: Path | None = None, masks: Path | None = None) -> Dataset:
    """List a split of OpenImages30k.

    Args:
        root: Folder with train/, val/ and test/, or its parent.
        split: "train" (labels only), "val" or "test".
        metadata: Text files of the benchmark; by default root/metadata.
        masks: Folder that the mask names are relative to; by default the root.

    Raises:
        DataError: When a list is missing or malformed.
    """
    folder = LAYOUT.find(root)
    lists = benchmark.find_splits(metadata or folder / "metadata")
    split = choose_split(split, tuple(lists), where=metadata or folder / "metadata")
    samples = benchmark.read_samples(lists[split], images=folder, masks=masks or folder)
    spec = DatasetSpec(
        name="openimages",
        classes=_class_names(folder, samples),
        root=folder,
        split=split,
        splits=tuple(lists),
        annotations=annotation_kind(samples),
        multi_label=False,
    )
    return make_dataset(spec, samples, truth=read_instances)


def _class_names(folder: Path, samples: list[Sample]) -> tuple[str, ...]:
    """Name a class after its folder ("01226z"), in words where OpenImages' class-descriptions CSV is in the root."""
    words: dict[str, str] = {}
    for path in sorted(folder.glob("*class-descriptions*.csv")):
        words.update(line.split(",", 1) for line in read_lines(path) if "," in line)  # type: ignore[misc]
    names = {label: Path(sample.id).parent.name for sample in samples for label in sample.labels}
    keys = [names.get(label, f"class {label}") for label in range(max(names, default=-1) + 1)]
    return tuple(words.get(f"/m/{key}", key).strip('"') for key in keys)
