"""`wsol refine instances`: score maps to objects with masks, and a COCO file of them all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wsol.config import from_dict
from wsol.data.images import read_image
from wsol.engine.instance_options import InstanceConfig
from wsol.engine.make_masks import dataset_of_run
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.progress import track
from wsol.engine.sharding import resolve_shard
from wsol.engine.training_run import checkpoint_hash
from wsol.errors import StoreError, WriteError, WsolError
from wsol.refine.irn import IRN
from wsol.schema import DatasetSpec, Sample
from wsol.store.atomic import write_text
from wsol.store.instances import Instance, instances_path, read_annotations, write_instances
from wsol.store.manifest import Manifest, finished
from wsol.store.maps import read_maps
from wsol.store.runs import open_run, read_info


def make_instances(config: InstanceConfig) -> Outcome:
    """Find the objects of every image whose score maps are in a run; one JSON file an image, then one of all.

    Args:
        config: See `InstanceConfig`.

    Returns:
        Counts, and the images that failed with their reasons; those are also rows of the manifest.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    refiner = from_dict(IRN, config.options, where=f"refiner '{config.method}'")
    shard, dataset = resolve_shard(config.shard), dataset_of_run(config.maps, limit=config.limit)
    refiner.load()  # a wrong network is said before there is a run, and not by every image
    inputs = {str(config.maps): read_info(config.maps).config_hash, **checkpoint_hash(refiner.checkpoint)}
    run = open_run(
        config.out,
        verb="refine instances",
        config=config,
        dataset=dataset.spec,
        device=refiner.device,
        inputs=inputs,
        overwrite=config.overwrite,
        shard=shard,
    )

    def work(sample: Sample) -> str | None:
        try:
            _find(sample, config, refiner)
        except WriteError:
            raise
        except WsolError as error:
            return str(error)
        return None

    with run, Manifest(config.out, shard) as manifest, log_to(config.out / "log.txt"):
        ours = dataset.samples[shard[0] :: shard[1]]
        done = finished(config.out, lambda image_id: read_annotations(config.out, image_id))
        pending = [sample for sample in ours if sample.id not in done]
        outcome = Outcome(skipped=len(ours) - len(pending))
        pool = ThreadPoolExecutor(max(1, config.workers))
        try:
            with track(len(pending), "instances", quiet=config.quiet) as tracker:
                for sample, reason in zip(pending, pool.map(work, pending), strict=True):
                    if reason is None:
                        manifest.done(sample.id)
                        outcome.done += 1
                    else:
                        manifest.failed(sample.id, reason)
                        outcome.failures[sample.id] = reason
                        if config.fail_fast:
                            raise StoreError(reason, hint="without --fail-fast the other images go on")
                    tracker.advance()
        finally:
            pool.shutdown(cancel_futures=True)
        run.facts.update(outcome.facts())
        say_failures(outcome)
    write_coco_instances(config.out, dataset.samples, dataset.spec)
    return outcome


def write_coco_instances(run: Path, samples: Sequence[Sample], spec: DatasetSpec) -> Path:
    """Collect the objects of a run as COCO JSON with scores.

    Args:
        run: Run folder of `make_instances`.
        samples: Images of the split; those without a file are left out.
        spec: Names the categories; category ids are class ids + 1. File names are relative to its root.

    Returns:
        Path of `instances.coco.json`.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, start=1):
        if not instances_path(run, sample.id).is_file():
            continue
        (height, width), found = read_annotations(run, sample.id)
        images.append({"id": number, "file_name": _name(sample, spec.root), "height": height, "width": width})
        for each in found:
            annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, **each})
    categories = [{"id": at, "name": name} for at, name in enumerate(spec.classes, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_text(run / "instances.coco.json", json.dumps(document) + "\n")
    return run / "instances.coco.json"


def _find(sample: Sample, config: InstanceConfig, refiner: IRN) -> None:
    maps = read_maps(config.maps, sample.id)
    image = read_image(sample.image, upright=sample.upright)
    found = refiner.instances(image, maps.at_image_size(), background=config.background)
    items = (Instance(int(maps.class_ids[each.channel]), each.score, each.mask) for each in found)
    write_instances(config.out, sample.id, image.shape[:2], items)


def _name(sample: Sample, root: Path) -> str:
    """Return the image file relative to the data set's folder, so that COCO readers find it from there."""
    file = sample.image
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()
