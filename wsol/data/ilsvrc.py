"""ILSVRC 2012 (ImageNet-1k) localization: the official XML boxes, or the text files of the WSOL benchmark.

Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, https://image-net.org.
A class id is the index in ImageNet-1k (the WordNet ids in ascending order), also where only a few classes are on
disk, so that it is the index of a logit of any ImageNet classifier.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from wsol.data import DATASETS, benchmark
from wsol.data.annotation import read_annotation
from wsol.data.catalog import Dataset, Layout, Part, annotation_kind, choose_split, list_images, make_dataset
from wsol.data.imagenet import class_names, synsets
from wsol.errors import DataError
from wsol.ops.boxes import from_inclusive
from wsol.schema import DatasetSpec, Sample

_SITE = (
    "https://image-net.org/challenges/LSVRC/2012 (log in), or the Kaggle copy of the ImageNet localization challenge"
)
_TEXTS = "metadata/ILSVRC of https://github.com/clovaai/wsolevaluation, put into the root as metadata/"
_XML, _DATA = "Annotations/CLS-LOC", "Data/CLS-LOC"

LAYOUT = Layout(
    "ilsvrc",
    folders=("ILSVRC", "ILSVRC2012", "imagenet/ILSVRC", "imagenet"),
    markers=("metadata/image_ids.txt", "metadata/*/image_ids.txt", f"{_DATA}/*", "train/n*"),
    parts=(
        Part(f"val|{_DATA}/val", "validation photos", _SITE),
        Part(f"train/n*|{_DATA}/train/n*", "training photos, a folder for each WordNet id", _SITE, needed=False),
        Part(
            "metadata/localization.txt|metadata/*/localization.txt",
            "boxes in the benchmark's text format",
            _TEXTS,
            needed=False,
        ),
        Part(f"{_XML}/val/*.xml", "boxes in XML", _SITE, needed=False),
    ),
)


@DATASETS.register("ilsvrc")
def load(*, root: Path | None, split: str | None, metadata: Path | None = None) -> Dataset:
    """List a split of ILSVRC.

    Args:
        root: ILSVRC or its parent: train/ and val/ directly inside, or under Data/CLS-LOC.
        split: A split of the metadata; "val" of the XML files; "train" from the folders (labels only).
        metadata: Text files of the WSOL benchmark; by default root/metadata.

    Raises:
        DataError: When nothing of it is there, or a file is malformed.
    """
    folder = LAYOUT.find(root)
    data = folder / _DATA if (folder / _DATA).is_dir() else folder
    lists = benchmark.find_splits(metadata or folder / "metadata")
    folders = sorted(path.name for path in (data / "train").glob("n*") if path.is_dir())
    splits = dict.fromkeys(lists)
    splits.update(dict.fromkeys(["train"] if folders else []))
    splits.update(dict.fromkeys(["val"] if (folder / _XML / "val").is_dir() else []))
    split = choose_split(split, tuple(splits), where=folder)
    wnids = _class_order(folders)
    if split in lists:
        samples = benchmark.read_samples(lists[split], images=data, masks=folder)
    elif split == "train":
        samples = _from_folders(data, wnids)
    else:
        samples = _from_xml(folder, data, wnids)
    high = max((label for sample in samples for label in sample.labels), default=0)
    names = class_names(wnids)
    classes = (*names, *(f"class {index}" for index in range(len(names), high + 1)))
    spec = DatasetSpec(
        name="ilsvrc",
        classes=classes,
        root=folder,
        split=split,
        splits=tuple(splits),
        annotations=annotation_kind(samples),
        multi_label=False,
    )
    return make_dataset(spec, samples)


def _class_order(folders: list[str]) -> tuple[str, ...]:
    known = synsets()
    return known if known and set(folders) <= set(known) else tuple(folders)


def _from_folders(data: Path, wnids: tuple[str, ...]) -> list[Sample]:
    samples = []
    for label, wnid in enumerate(wnids):
        for path in list_images(data / "train" / wnid):
            samples.append(Sample(id=path.relative_to(data).as_posix(), image=path, labels=(label,)))
    return samples


def _from_xml(folder: Path, data: Path, wnids: tuple[str, ...]) -> list[Sample]:
    index = {wnid: position for position, wnid in enumerate(wnids)}
    samples = []
    for path in sorted((folder / _XML / "val").glob("*.xml")):
        found = read_annotation(path)
        try:
            box_labels = tuple(index[name] for name in found.names)
        except KeyError as error:
            raise DataError(f"unknown class {error}", where=path, hint="it is no WordNet id of ImageNet-1k") from error
        image = data / "val" / f"{path.stem}.JPEG"
        samples.append(
            Sample(
                id=image.relative_to(data).as_posix(),
                image=image,
                labels=tuple(sorted(set(box_labels))),
                size=found.size,
                # Unlike VOC's, these count from 0; they are the very numbers of the benchmark's text files.
                boxes=from_inclusive(np.array(found.corners, dtype=np.float32)),
                box_labels=box_labels,
            )
        )
    return samples
