"""`wsol data export`: the masks of a run as files of annotation tools and of other training code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol import data
from wsol.config import from_dict
from wsol.engine.export_options import ExportConfig
from wsol.engine.mask_source import TRUTH, MaskFolder, with_masks
from wsol.engine.outcome import Outcome, say_failures
from wsol.engine.progress import Tracker, track
from wsol.errors import DataError, StoreError, WsolError
from wsol.eval.sources import load_truth
from wsol.ops.outlines import filled_area
from wsol.schema import IGNORE, DatasetSpec, Sample
from wsol.store.archives import is_plain, read_bytes
from wsol.store.atomic import atomic_write
from wsol.store.formats import FORMATS
from wsol.store.formats.base import Picture, find_regions
from wsol.store.formats.coco import Coco
from wsol.store.instances import instances_path, read_instances
from wsol.store.manifest import read_rows
from wsol.store.shards import has_file

_log = logging.getLogger("wsol")
_Rows = Mapping[str, Mapping[str, Any]]


@dataclass
class Exported(Outcome):
    """Counts of one export.

    Attributes:
        without_mask: Images that have no mask; left out.
        objects: Objects in all images.
        pixels: Their pixels.
        ignored: Pixels labelled 255, which became background.
        too_small: Pixels of objects below the smallest area, which became background.
        filled: Pixels of holes that polygons cover; 0 for other shapes.
    """

    without_mask: int = 0
    objects: int = 0
    pixels: int = 0
    ignored: int = 0
    too_small: int = 0
    filled: int = 0


def export_masks(config: ExportConfig) -> Exported:
    """Write masks in one of `wsol.store.formats.FORMATS`.

    Pixels labelled 255 are background in every format, because none of them can say "unknown"; they are counted.

    Args:
        config: See `ExportConfig`.

    Returns:
        Counts, and the images whose mask cannot be used with their reasons.

    Raises:
        WsolError: On a mistake in the options, when the folder is not empty or cannot be written.
    """
    config.validate()
    form: Any = from_dict(FORMATS.get(config.format), config.options, where=f"format '{config.format}'")
    if config.out.is_dir() and any(config.out.iterdir()):
        raise StoreError("the folder is not empty", where=config.out, hint="give another --out, or empty it first")
    counts = Exported()
    dataset, read = _source(config, counts)
    polygons = getattr(form, "shape", None) == "polygon"
    with track(len(dataset), f"export ({config.format})", quiet=config.quiet) as tracker:
        found = _pictures(dataset, read, counts, tracker)
        if config.images != "none":
            found = _placed(found, config.out / form.images, link=config.images == "link")
        form.write(config.out, _counted(found, counts, polygons=polygons), dataset.spec.classes)
    say_export(counts)
    return counts


def write_coco(run: Path, samples: Sequence[Sample], spec: DatasetSpec) -> Path:
    """Write the masks of a run as COCO JSON: one RLE annotation an image and class.

    Args:
        run: Run folder with masks.
        samples: Images of the split; those without a mask are left out.
        spec: Names the categories; category ids are class ids + 1.

    Returns:
        Path of `pseudo.coco.json`.

    Raises:
        StoreError: When a mask is torn.
    """
    reader, rows = MaskFolder(run / "masks"), read_rows(run)
    whole = (sample for sample in samples if has_file(reader.file(sample)))
    pictures = (_picture(sample, reader(sample), rows, len(spec.classes)) for sample in whole)
    Coco().write_file(run / "pseudo.coco.json", pictures, spec.classes)
    return run / "pseudo.coco.json"


def say_export(counts: Exported) -> None:
    """Log what was written, and what became background or lost its holes."""
    say_failures(counts)
    _log.info("%d objects of %d pixels", counts.objects, counts.pixels)
    for count, text in (
        (counts.without_mask, "images have no mask and were left out"),
        (counts.ignored, "pixels are 255 (ignored) and became background"),
        (counts.too_small, "pixels of small objects became background (--min-area, --objects)"),
        (counts.filled, "pixels of holes are covered: polygons cannot hold them"),
    ):
        if count:
            _log.info("%d %s", count, text)


def _source(config: ExportConfig, counts: Exported) -> tuple[data.Dataset, Callable[[Sample], Picture]]:
    """Return the images to export, and what reads one of them and counts what is left out."""
    where: dict[str, Any] = {"root": config.root, "split": config.split, "limit": config.limit}
    folder = Path(config.masks).expanduser()
    if config.masks == TRUTH:
        dataset = data.load(str(config.data), **where, **config.data_options)
    elif folder.is_dir():
        dataset = load_truth(folder, name=config.data, options=config.data_options, **where)
    else:
        raise StoreError("no such folder", where=folder, hint="give the run folder of wsol refine")
    if config.masks != TRUTH and (folder / "instances").is_dir():
        kept = tuple(sample for sample in dataset if instances_path(folder, sample.id).is_file())
        counts.without_mask = len(dataset) - len(kept)
        return replace(dataset, samples=kept), partial(_read_instances, folder=folder, config=config, counts=counts)
    dataset, counts.without_mask = with_masks(dataset, config.masks)
    rows = {} if config.masks == TRUTH else read_rows(folder)
    return dataset, partial(_read_labels, dataset=dataset, rows=rows, config=config, counts=counts)


def _pictures(
    dataset: data.Dataset, read: Callable[[Sample], Picture], counts: Exported, tracker: Tracker
) -> Iterator[Picture]:
    for sample in dataset:
        try:
            picture = read(sample)
        except WsolError as error:
            counts.failures[sample.id] = str(error)
        else:
            yield picture
            counts.done += 1
        tracker.advance()


def _read_labels(
    sample: Sample, *, dataset: data.Dataset, rows: _Rows, config: ExportConfig, counts: Exported
) -> Picture:
    labels = dataset.read_truth(sample)
    options = {"objects": config.objects, "min_area": config.min_area}
    picture = _picture(sample, labels, rows, len(dataset.spec.classes), **options)
    ignored = int((labels == IGNORE).sum())
    counts.ignored += ignored
    counts.too_small += int(np.count_nonzero(labels)) - ignored - sum(region.area for region in picture.regions)
    return picture


def _read_instances(sample: Sample, *, folder: Path, config: ExportConfig, counts: Exported) -> Picture:
    size, items = read_instances(folder, sample.id)
    regions = [replace(find_regions(item.mask.astype(np.uint8))[0], class_id=item.class_id) for item in items]
    kept = tuple(region for region in regions if region.area >= config.min_area)
    counts.too_small += sum(region.area for region in regions) - sum(region.area for region in kept)
    return Picture(_name(sample), sample.image, size, kept)


def _picture(sample: Sample, labels: NDArray[np.uint8], rows: _Rows, num_classes: int, **options: Any) -> Picture:
    named = rows.get(sample.id, {}).get("classes")
    highest = int(labels[labels < IGNORE].max(initial=0))
    known = num_classes if named is None else len(named)
    if highest > known:
        hint = "are these masks of this data set?"
        raise DataError(f"label {highest} in a mask of {known} classes", where=sample.id, hint=hint)
    height, width = labels.shape
    return Picture(_name(sample), sample.image, (height, width), find_regions(labels, named=named, **options))


def _name(sample: Sample) -> str:
    """Return a unique file name: the id, with the suffix of the image."""
    same = PurePosixPath(sample.id).suffix.lower() == sample.image.suffix.lower()
    return sample.id if same else f"{sample.id}{sample.image.suffix}"


def _counted(pictures: Iterator[Picture], counts: Exported, *, polygons: bool) -> Iterator[Picture]:
    for picture in pictures:
        pixels = sum(region.area for region in picture.regions)
        counts.objects += len(picture.regions)
        counts.pixels += pixels
        if polygons:
            counts.filled += sum(filled_area(region.mask) for region in picture.regions) - pixels
        yield picture


def _placed(pictures: Iterator[Picture], folder: Path, *, link: bool) -> Iterator[Picture]:
    """Put each image where the format expects it."""
    for picture in pictures:
        place = folder / picture.name
        try:
            if link and not is_plain(picture.file):
                raise OSError("it lies in an archive or at a URL")
            if link:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(picture.file.absolute())
            else:
                with atomic_write(place) as stream:
                    stream.write(read_bytes(picture.file))
        except OSError as error:
            what = f"cannot {'link' if link else 'copy'} the image: {error.strerror or error}"
            raise StoreError(what, where=picture.file, hint="--images copy, or --images none") from error
        yield replace(picture, file=place)
