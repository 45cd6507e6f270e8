"""`wsol cam`: score maps of a split, batch by batch, resumable and sharded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

from wsol import cams, data
from wsol.data.images import image_size
from wsol.data.prompts import load_prompts
from wsol.engine.device import resolve_device
from wsol.engine.map_batches import InputFacts, compute, read_batches
from wsol.engine.map_writer import MapWriter
from wsol.engine.options import CamConfig
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.progress import track
from wsol.engine.sharding import resolve_shard
from wsol.engine.training_run import checkpoint_hash
from wsol.errors import ConfigError, ModelError, WsolError
from wsol.models.classifier import Classifier, load_classifier
from wsol.schema import DatasetSpec, Sample
from wsol.store.manifest import Manifest, finished
from wsol.store.maps import read_maps
from wsol.store.runs import file_hash, open_run

_log = logging.getLogger("wsol")


def make_maps(config: CamConfig) -> Outcome:
    """Write the score maps of every image of a split that has none yet.

    Args:
        config: See `CamConfig`.

    Returns:
        Counts, and the images that failed with their reasons; those are also rows of the manifest.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    shard = resolve_shard(config.shard)
    on_ray = config.engine == "ray"
    # With Ray the actors compute; here the model only says which inputs it takes.
    device = torch.device("cpu") if on_ray else resolve_device(config.device)
    dataset = data.load(config.data, root=config.root, split=config.split, limit=config.limit, **config.data_options)
    classifier = load_model(config, dataset.spec, device)
    _check_classes(config, len(dataset.spec.classes), classifier)
    method = cams.create(config.method, classifier, **config.options)
    facts = InputFacts.of(classifier, config)
    plan = plan_batches(dataset.samples, facts.shape, config.batch_size)
    with (
        open_run(
            config.out,
            verb="cam",
            config=config,
            dataset=dataset.spec,
            device=config.device if on_ray else str(device),
            inputs=_inputs(config),
            overwrite=config.overwrite,
            shard=shard,
        ) as run,
        Manifest(config.out, shard) as manifest,
        log_to(config.out / "log.txt"),
    ):
        _log.info("%s", classifier.describe())
        if config.checkpoint is None and not config.pretrained and (config.model or "").partition(":")[0] != "clip":
            _log.warning("random weights: the maps mean nothing (give --checkpoint or --pretrained)")
        done = finished(config.out, lambda image_id: read_maps(config.out, image_id))
        if config.store == "shards":
            manifest.pack([sample.id for batch in plan[shard[0] :: shard[1]] for sample in batch], done)
        pending = [batch for batch in plan[shard[0] :: shard[1]] if any(sample.id not in done for sample in batch)]
        outcome = Outcome(skipped=sum(len(batch) for batch in plan[shard[0] :: shard[1]]) - _count(pending))
        writer = MapWriter(config, manifest, outcome, done)
        if on_ray:
            from wsol.engine.ray_maps import maps_on_ray

            results = maps_on_ray(pending, config, dataset.spec, facts)
        else:
            loaded = read_batches(pending, config, facts, device)
            results = (compute(batch, config, method, device) for batch in loaded)
        with track(_count(pending), f"maps ({config.method})", quiet=config.quiet) as tracker, writer, closing(results):
            for computed, failed in results:
                writer.put(computed, failed)
                tracker.advance(len(computed) + len(failed))
        run.facts.update(outcome.facts(), layer=classifier.layer, stride=classifier.stride)
        say_failures(outcome)
    return outcome


def plan_batches(
    samples: Sequence[Sample],
    shape: Callable[[tuple[int, int], float], tuple[int, int]],
    batch_size: int,
) -> list[list[Sample]]:
    """Group the images of a split into batches of one input shape.

    The plan looks at the whole split, never at what is done: an image always shares its batch with the same
    neighbours, so interrupted, sharded and plain runs give the same bits.

    Args:
        samples: All images, in order.
        shape: (image size, scale) to network input (h, w).
        batch_size: At most this many images a batch.

    Returns:
        Batches, ordered by their first image.
    """
    squashed = shape((1, 4096), 1.0) == shape((4096, 1), 1.0)
    open_batches: dict[tuple[int, int], list[Sample]] = {}
    batches: list[list[Sample]] = []
    for sample in samples:
        key = shape((1, 1), 1.0)
        if not squashed:
            try:
                key = shape(sample.size or image_size(sample.image, upright=sample.upright), 1.0)
            except WsolError:
                key = (0, 0)  # unreadable: it fails with its reason when it is read
        batch = open_batches.get(key)
        if batch is None or len(batch) >= batch_size:
            batch = open_batches[key] = []
            batches.append(batch)
        batch.append(sample)
    return batches


def load_model(config: CamConfig, spec: DatasetSpec, device: torch.device) -> Classifier:
    """Load the classifier of `wsol cam`: a trained one, or CLIP with the texts of the data set's classes.

    Raises:
        ConfigError: When an option does not go with the model, or the texts lack a class.
        ModelError: When the model cannot be loaded.
    """
    if (config.model or "").partition(":")[0] != "clip":
        if config.prompts is not None:
            raise ConfigError("only a text-driven model takes --prompts", hint="give --model clip:NAME")
        return load_classifier(
            config.model,
            checkpoint=config.checkpoint,
            pretrained=config.pretrained,
            img_size=config.img_size,
            output_stride=config.output_stride,
            device=device,
        )
    if config.output_stride is not None:
        raise ConfigError("--output-stride dilates CNNs; CLIP's image tower is a transformer")
    from wsol.models.clip import halve_encoder
    from wsol.models.clip_load import load_clip  # open_clip takes seconds

    classifier = load_clip(
        str(config.model),
        load_prompts(config.prompts, spec),
        checkpoint=config.checkpoint,
        pretrained=config.pretrained,
        img_size=config.img_size,
        device=device,
    )
    if config.amp:
        halve_encoder(classifier.module, getattr(torch, config.amp_dtype))
    return classifier


def _inputs(config: CamConfig) -> dict[str, str]:
    path = Path(config.prompts).expanduser() if config.prompts else None
    texts = {str(config.prompts): file_hash(path)} if path and path.is_file() else {}
    return texts | checkpoint_hash(config.checkpoint)


def _count(batches: Sequence[Sequence[Sample]]) -> int:
    return sum(len(batch) for batch in batches)


def _check_classes(config: CamConfig, num_classes: int, classifier: Classifier) -> None:
    if num_classes and classifier.num_classes and classifier.num_classes != num_classes:
        raise ModelError(
            f"the model has {classifier.num_classes} classes but the data set '{config.data}' has {num_classes}",
            where=config.checkpoint or config.model,
            hint="train a head with wsol train, or take a data set with the model's classes",
        )
