"""`wsol refine`: score maps to pseudo-masks, image by image over processes, resumable and sharded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from wsol import data, refine
from wsol.engine.export_masks import write_coco
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.pool import run_in_pool
from wsol.engine.progress import track
from wsol.engine.refine_image import refine_one
from wsol.engine.refine_options import RefineConfig
from wsol.engine.sharding import resolve_shard
from wsol.errors import ConfigError, StoreError
from wsol.schema import Sample
from wsol.store.manifest import Manifest, finished, iterate_rows
from wsol.store.masks import mask_path, read_labels
from wsol.store.runs import open_run, read_dataset, read_info

_log = logging.getLogger("wsol")


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
    for checkpoint in chain.load():  # what a refiner lacks is said before there is a run, and not by a worker
        from wsol.engine.training_run import checkpoint_hash  # only refiners with a network need torch

        inputs |= checkpoint_hash(checkpoint)
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
        if config.store == "shards":
            manifest.pack([sample.id for sample in ours], done)
        pending = [sample for sample in ours if sample.id not in done]
        outcome = Outcome(skipped=len(ours) - len(pending))
        work = partial(refine_one, config=config, num_classes=len(dataset.spec.classes))
        if config.engine == "ray":
            from wsol.engine.ray_pool import run_on_ray

            results = run_on_ray(lambda: work, pending, lost=lambda sample, reason: (sample.id, {}, reason))
        else:
            results = run_in_pool(work, pending, workers=config.workers)
        with track(len(pending), f"masks ({config.method})", quiet=config.quiet) as tracker, closing(results):
            for image_id, facts, reason in results:
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
    if info.verb not in ("cam", "data convert"):
        raise StoreError(f"a run of wsol {info.verb}, not of wsol cam", where=run, hint="give the folder with maps/")
    config, spec = info.config, read_dataset(run)
    limit = config.get("limit") if limit is None else limit
    return data.load(
        str(config["data"]), root=Path(spec["root"]), split=spec["split"], limit=limit, **config["data_options"]
    )


def _vanished(run: Path, samples: Sequence[Sample]) -> list[int]:
    """Return how many classes vanished in each image that lost one."""
    counts: dict[str, int] = {}
    for image_id, row in iterate_rows(run):
        if row.get("vanished"):
            counts[image_id] = len(row["vanished"])
        elif row.get("ok"):
            counts.pop(image_id, None)
    return [counts[sample.id] for sample in samples if sample.id in counts]
