"""`wsol refine`: score maps to pseudo-masks, image by image over processes, resumable and sharded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol import data, refine
from wsol.config import load_yaml
from wsol.data.images import read_image
from wsol.engine.export_masks import write_coco
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.pool import run_in_pool
from wsol.engine.progress import track
from wsol.engine.refine_options import RefineConfig
from wsol.engine.sharding import resolve_shard
from wsol.errors import ConfigError, DataError, ModelError, StoreError, WsolError
from wsol.schema import IGNORE, PseudoMask, Sample
from wsol.store.manifest import Manifest, finished, read_rows
from wsol.store.maps import read_maps, write_maps
from wsol.store.masks import mask_path, read_labels, write_mask
from wsol.store.runs import open_run, read_info

_log = logging.getLogger("wsol")
_Done = tuple[str, dict[str, Any], str | None]


def make_masks(config: RefineConfig) -> Outcome:
    """Write the pseudo-mask of every image whose score maps are in a run.

    A mask holds class id + 1. Where a data set has more classes than a byte can name (ImageNet), it holds 1 + the
    position of the class among those of the image, and the row of the manifest lists them as `classes`. Classes of the
    maps that got no pixel are listed there as `vanished`.

    Args:
        config: See `RefineConfig`.

    Returns:
        Counts, and the images that failed with their reasons; those are also rows of the manifest.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    chain = refine.chain(config.method, config.options)  # a wrong method or option ends here, not in a worker
    if config.saliency is not None and chain.labeler is None:
        raise ConfigError(f"'{config.method}' does not use --saliency", hint="end the chain with getam_completion")
    shard = resolve_shard(config.shard)
    dataset = dataset_of_run(config.maps, limit=config.limit)
    inputs = {str(config.maps): read_info(config.maps).config_hash}
    for step in chain.refiners:
        if getattr(step, "checkpoint", None) is not None:
            from wsol.engine.train import checkpoint_hash  # only refiners with a network need torch

            inputs |= checkpoint_hash(step.checkpoint)  # type: ignore[attr-defined]
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
            work = partial(_refine_one, config=config, num_classes=len(dataset.spec.classes))
            for image_id, facts, reason in run_in_pool(work, pending, workers=config.workers):
                if reason is None:
                    manifest.done(image_id, **facts)
                    outcome.done += 1
                else:
                    manifest.failed(image_id, reason)
                    outcome.failures[image_id] = reason
                    if config.fail_fast:
                        raise StoreError(reason, hint="without --fail-fast the other images go on")
                tracker.advance()
        vanished = _vanished(config.out, ours)
        run.facts.update(outcome.facts(), vanished=sum(vanished))
        say_failures(outcome)
        if vanished:
            _log.info(
                "%d classes got no pixel, in %d images: see 'vanished' in the manifest", sum(vanished), len(vanished)
            )
    if config.coco:
        write_coco(config.out, dataset.samples, dataset.spec)
    return outcome


def dataset_of_run(run: Path, *, limit: int | None = None) -> data.Dataset:
    """Load the data set that a run of `wsol cam` was made from.

    Args:
        run: The run folder.
        limit: Only the first N images; as many as the run was limited to by default.

    Raises:
        StoreError: When the folder holds no run of `wsol cam`.
        DataError: When the data set has moved or changed.
    """
    info = read_info(run)
    if info.verb != "cam":
        raise StoreError(f"a run of wsol {info.verb}, not of wsol cam", where=run, hint="give the folder with maps/")
    config, spec = info.config, load_yaml(run / "dataset.yaml")
    limit = config.get("limit") if limit is None else limit
    return data.load(
        str(config["data"]), root=Path(spec["root"]), split=spec["split"], limit=limit, **config["data_options"]
    )


def _refine_one(sample: Sample, config: RefineConfig, num_classes: int) -> _Done:
    try:
        maps = read_maps(config.maps, sample.id)
        image = read_image(sample.image, upright=sample.upright)
        if maps.image_size != image.shape[:2]:
            height, width = maps.image_size
            what = f"the maps are of an image {height}x{width}, the file holds {image.shape[0]}x{image.shape[1]} pixels"
            raise DataError(what, where=sample.image, hint="make the maps of these images, or check the data set")
        fits = num_classes < IGNORE
        named = maps.class_ids if fits else np.arange(len(maps.class_ids))
        full = maps.at_image_size()
        chain = refine.chain(config.method, config.options)
        saliency = None if config.saliency is None else _read_saliency(config.saliency, sample.id, image.shape[:2])

        def label(scores: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
            return chain.label(scores, named, saliency=saliency, min_confidence=config.min_confidence)

        background = config.background if config.alpha is None else None
        refined = chain(image, refine.with_background(full, background=background, alpha=config.alpha))
        labels, confidence = label(refined)
        if config.background_low is not None:
            loose = chain(image, refine.with_background(full, background=config.background_low))
            labels = refine.merge_labels(labels, label(loose)[0])
        if config.scores:
            values = np.clip(refined[1:], 0, 1).astype(np.float16)
            write_maps(config.out, replace(maps, values=values))
        mask = PseudoMask(id=sample.id, labels=labels, confidence=confidence if config.confidence else None)
        facts: dict[str, Any] = {"bytes": write_mask(config.out, mask)}
        vanished = maps.class_ids[~np.isin(named + 1, labels)].tolist()
        if vanished:
            facts["vanished"] = vanished
        return sample.id, facts if fits else {**facts, "classes": maps.class_ids.tolist()}, None
    except WsolError as error:
        # What is wrong for every image ends the job: a full disk, a refiner without its network.
        if isinstance(error, ConfigError | ModelError) or (
            isinstance(error, StoreError) and "cannot write" in error.what
        ):
            raise
        return sample.id, {}, str(error)


def _read_saliency(folder: Path, image_id: str, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Read a saliency map float32 (H, W) in [0, 1]: ID.png, also in the place of the image's own suffix."""
    path = folder / f"{image_id}.png"
    if not path.is_file() and (folder / image_id).with_suffix(".png").is_file():
        path = (folder / image_id).with_suffix(".png")
    saliency = read_image(path).max(axis=2)
    if saliency.shape != size:
        what = f"expected saliency of {size[0]}x{size[1]} pixels, got {saliency.shape[0]}x{saliency.shape[1]}"
        raise DataError(what, where=path)
    return np.asarray(saliency / np.float32(255), dtype=np.float32)


def _vanished(run: Path, samples: Sequence[Sample]) -> list[int]:
    """Return how many classes vanished in each image that lost one."""
    rows = read_rows(run)
    counts = (len(rows.get(sample.id, {}).get("vanished", ())) for sample in samples)
    return [count for count in counts if count]
