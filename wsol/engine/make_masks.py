"""`wsol refine`: score maps to pseudo-masks, image by image over processes, resumable and sharded."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from wsol import data, refine
from wsol.config import load_yaml
from wsol.data.images import read_image
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.progress import track
from wsol.engine.refine_options import RefineConfig
from wsol.engine.sharding import resolve_shard
from wsol.errors import StoreError, WsolError
from wsol.ops.rle import encode
from wsol.schema import IGNORE, DatasetSpec, PseudoMask, Sample
from wsol.store.atomic import write_text
from wsol.store.manifest import Manifest, finished, read_rows
from wsol.store.maps import read_maps, write_maps
from wsol.store.masks import mask_path, read_labels, write_mask
from wsol.store.runs import open_run, read_info

_log = logging.getLogger("wsol")
_Done = tuple[str, dict[str, Any], str | None]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def make_masks(config: RefineConfig) -> Outcome:
    """Write the pseudo-mask of every image whose score maps are in a run.

    A mask holds class id + 1. Where a data set has more classes than a byte can name (ImageNet), it holds 1 + the
    position of the class among those of the image, and the row of the manifest lists them as `classes`.

    Args:
        config: See `RefineConfig`.

    Returns:
        Counts, and the images that failed with their reasons; those are also rows of the manifest.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    refine.create(config.method, **config.options)  # a wrong method or option ends here, not in a worker
    shard = resolve_shard(config.shard)
    dataset = dataset_of_run(config.maps, limit=config.limit)
    inputs = {str(config.maps): read_info(config.maps).config_hash}
    with (
        open_run(
            config.out,
            verb="refine",
            config=config,
            dataset=dataset.spec,
            inputs=inputs,
            overwrite=config.overwrite,
            shard=shard,
        ) as run,
        Manifest(config.out, shard) as manifest,
        log_to(config.out / "log.txt"),
    ):
        ours = dataset.samples[shard[0] :: shard[1]]
        done = finished(config.out, lambda image_id: read_labels(mask_path(config.out, image_id)))
        pending = [sample for sample in ours if sample.id not in done]
        outcome = Outcome(skipped=len(ours) - len(pending))
        with track(len(pending), f"masks ({config.method})", quiet=config.quiet) as tracker:
            for image_id, facts, reason in _work(pending, config, num_classes=len(dataset.spec.classes)):
                if reason is None:
                    manifest.done(image_id, **facts)
                    outcome.done += 1
                else:
                    manifest.failed(image_id, reason)
                    outcome.failures[image_id] = reason
                    if config.fail_fast:
                        raise StoreError(reason, hint="without --fail-fast the other images go on")
                tracker.advance()
        run.facts.update(outcome.facts())
        say_failures(outcome)
    if config.coco:
        write_coco(config.out, dataset.samples, dataset.spec)
    return outcome


def dataset_of_run(run: Path, *, limit: int | None = None) -> data.Dataset:
    """Load the data set that a run of `wsol cam` was made from.

    Args:
        run: The run folder.
        limit: Only the first N images.

    Raises:
        StoreError: When the folder holds no run of `wsol cam`.
        DataError: When the data set has moved or changed.
    """
    info = read_info(run)
    if info.verb != "cam":
        raise StoreError(f"a run of wsol {info.verb}, not of wsol cam", where=run, hint="give the folder with maps/")
    config, spec = info.config, load_yaml(run / "dataset.yaml")
    return data.load(
        str(config["data"]), root=Path(spec["root"]), split=spec["split"], limit=limit, **config["data_options"]
    )


def write_coco(run: Path, samples: Sequence[Sample], spec: DatasetSpec) -> Path:
    """Write the masks of a run as COCO JSON: one RLE annotation an image and class.

    Args:
        run: Run folder with masks.
        samples: Images of the split; those without a mask are left out.
        spec: Names the categories; category ids are class ids + 1.

    Returns:
        Path of `pseudo.coco.json`.
    """
    written = read_rows(run)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, start=1):
        if not mask_path(run, sample.id).is_file():
            continue
        labels = read_labels(mask_path(run, sample.id))
        height, width = labels.shape
        images.append({"id": number, "file_name": sample.image.name, "height": height, "width": width})
        named = written.get(sample.id, {}).get("classes")
        for label in np.unique(labels[(labels > 0) & (labels < 255)]).tolist():
            region = labels == label
            rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": label if named is None else named[label - 1] + 1,
                "segmentation": encode(region),
                "area": int(region.sum()),
                "bbox": [int(side) for side in box],
                "iscrowd": 0,
            }
            annotations.append(annotation)
    categories = [{"id": at, "name": name} for at, name in enumerate(spec.classes, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_text(run / "pseudo.coco.json", json.dumps(document) + "\n")
    return run / "pseudo.coco.json"


def _work(pending: Sequence[Sample], config: RefineConfig, *, num_classes: int) -> Iterator[_Done]:
    """Yield (id, facts, error) as images finish; at most a few images a worker are in flight."""
    if config.workers == 0 or len(pending) <= 1:
        yield from (_refine_one(sample, config, num_classes) for sample in pending)
        return
    workers = min(config.workers, len(pending))
    # One thread a process: several images at once beat several threads an image. The libraries read these
    # variables when they start, so the children must inherit them.
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            work = partial(_refine_one, config=config, num_classes=num_classes)
            yield from _bounded(pool, pending, work, depth=4 * workers)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _bounded(
    pool: ProcessPoolExecutor, pending: Sequence[Sample], work: Callable[[Sample], _Done], *, depth: int
) -> Iterator[_Done]:
    queue = iter(pending)
    flight: set[Future[_Done]] = set()
    while True:
        flight |= {pool.submit(work, sample) for sample in islice(queue, depth - len(flight))}
        if not flight:
            return
        ready, flight = wait(flight, return_when=FIRST_COMPLETED)
        yield from (future.result() for future in ready)


def _refine_one(sample: Sample, config: RefineConfig, num_classes: int) -> _Done:
    try:
        maps = read_maps(config.maps, sample.id)
        image = read_image(sample.image, upright=sample.upright)
        background = config.background if config.alpha is None else None
        scores = refine.with_background(maps.at_image_size(), background=background, alpha=config.alpha)
        refined = refine.create(config.method, **config.options)(image, scores)
        fits = num_classes < IGNORE
        named = maps.class_ids.tolist() if fits else range(len(maps.class_ids))
        labels, confidence = refine.to_labels(refined, named, min_confidence=config.min_confidence)
        if config.scores:
            values = np.clip(refined[1:], 0, 1).astype(np.float16)
            write_maps(config.out, replace(maps, values=values))
        mask = PseudoMask(id=sample.id, labels=labels, confidence=confidence if config.confidence else None)
        facts: dict[str, Any] = {"bytes": write_mask(config.out, mask)}
        return sample.id, facts if fits else {**facts, "classes": maps.class_ids.tolist()}, None
    except WsolError as error:
        if isinstance(error, StoreError) and "cannot write" in error.what:
            raise
        return sample.id, {}, str(error)
