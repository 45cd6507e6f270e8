"""`wsol cam`: score maps of a split, batch by batch, resumable and sharded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from wsol import cams, data
from wsol.cams.tta import multi_scale, select_classes
from wsol.data.images import image_size, read_image
from wsol.data.transforms import Interpolation, input_size, to_input
from wsol.engine.device import resolve_device
from wsol.engine.options import CamConfig
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.progress import track
from wsol.engine.sharding import resolve_shard
from wsol.errors import ModelError, StoreError, WsolError
from wsol.models.classifier import Classifier, load_classifier
from wsol.ops.normalize import minmax, relu_max
from wsol.schema import Sample, ScoreMaps
from wsol.store.manifest import Manifest, finished
from wsol.store.maps import read_maps, write_maps
from wsol.store.runs import open_run

_log = logging.getLogger("wsol")


@dataclass(frozen=True)
class _Loaded:
    """One batch as it comes from a reading process."""

    samples: tuple[Sample, ...]
    sizes: tuple[tuple[int, int], ...]
    inputs: dict[float, NDArray[np.float32]]
    failed: tuple[tuple[str, str], ...]


class _Batches(TorchDataset[_Loaded]):
    """Reads whole batches, so that a bad image becomes a row instead of an exception in a worker."""

    def __init__(self, batches: Sequence[Sequence[Sample]], config: CamConfig, facts: _InputFacts) -> None:
        self.batches, self.config, self.facts = batches, config, facts

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, at: int) -> _Loaded:
        samples, images, failed = [], [], []
        for sample in self.batches[at]:
            try:
                images.append(read_image(sample.image, upright=sample.upright))
                samples.append(sample)
            except WsolError as error:
                failed.append((sample.id, str(error)))
        sizes = tuple(image.shape[:2] for image in images)
        inputs = {}
        for scale in self.config.scales if images else ():
            shape = self.facts.shape(sizes[0], scale)
            planes = [
                to_input(image, shape, mean=self.facts.mean, std=self.facts.std, interpolation=self.facts.interpolation)
                for image in images
            ]
            inputs[scale] = np.stack(planes)
        return _Loaded(tuple(samples), sizes, inputs, tuple(failed))


@dataclass(frozen=True)
class _InputFacts:
    """What the reading processes must know of the model."""

    img_size: int
    resize: str
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation

    def shape(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        nearest = max(self.stride, round(self.img_size * scale / self.stride) * self.stride)
        side = self.img_size if scale == 1 else nearest
        return input_size(size, img_size=side, resize=self.resize, stride=self.stride)  # type: ignore[arg-type]


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
    device = resolve_device(config.device)
    dataset = data.load(config.data, root=config.root, split=config.split, limit=config.limit, **config.data_options)
    classifier = load_classifier(
        config.model,
        checkpoint=config.checkpoint,
        pretrained=config.pretrained,
        img_size=config.img_size,
        output_stride=config.output_stride,
        device=device,
    )
    _check_classes(config, len(dataset.spec.classes), classifier)
    method = cams.create(config.method, classifier, **config.options)
    facts = _InputFacts(
        img_size=config.img_size or classifier.input_size[0],
        resize=config.resize,
        stride=classifier.stride,
        mean=tuple(classifier.mean),
        std=tuple(classifier.std),
        interpolation=classifier.interpolation,
    )
    plan = plan_batches(dataset.samples, facts.shape, config.batch_size)
    with (
        open_run(
            config.out,
            verb="cam",
            config=config,
            dataset=dataset.spec,
            device=str(device),
            overwrite=config.overwrite,
            shard=shard,
        ) as run,
        Manifest(config.out, shard) as manifest,
        log_to(config.out / "log.txt"),
    ):
        _log.info("%s", classifier.describe())
        done = finished(config.out, lambda image_id: read_maps(config.out, image_id))
        pending = [batch for batch in plan[shard[0] :: shard[1]] if any(sample.id not in done for sample in batch)]
        outcome = Outcome(skipped=sum(len(batch) for batch in plan[shard[0] :: shard[1]]) - _count(pending))
        with track(_count(pending), f"maps ({config.method})", quiet=config.quiet) as tracker:
            for loaded in _load(_Batches(pending, config, facts), config.workers, device):
                for image_id, reason in loaded.failed:
                    manifest.failed(image_id, reason)
                    outcome.failures[image_id] = reason
                    if config.fail_fast:
                        raise StoreError(reason, hint="without --fail-fast the other images go on")
                for maps in _maps_of_batch(loaded, config, method, classifier, device):
                    if maps.id in done:
                        outcome.skipped += 1
                        continue
                    size = write_maps(config.out, maps)
                    manifest.done(maps.id, classes=maps.class_ids.tolist(), bytes=size)
                    outcome.done += 1
                tracker.advance(len(loaded.samples) + len(loaded.failed))
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
    squashed = shape((3, 5), 1.0) == shape((5, 3), 1.0)
    open_batches: dict[tuple[int, int], list[Sample]] = {}
    batches: list[list[Sample]] = []
    for sample in samples:
        key = shape((1, 1), 1.0)
        if not squashed:
            try:
                key = shape(sample.size or image_size(sample.image), 1.0)
            except WsolError:
                key = (0, 0)  # unreadable: it fails with its reason when it is read
        batch = open_batches.get(key)
        if batch is None or len(batch) >= batch_size:
            batch = open_batches[key] = []
            batches.append(batch)
        batch.append(sample)
    return batches


def _maps_of_batch(
    loaded: _Loaded, config: CamConfig, method: Any, classifier: Classifier, device: torch.device
) -> Iterator[ScoreMaps]:
    if not loaded.samples:
        return
    labels = [sample.labels for sample in loaded.samples]
    tensors = {scale: torch.from_numpy(array).to(device, non_blocking=True) for scale, array in loaded.inputs.items()}
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.amp):
        raw = multi_scale(
            method,
            lambda scale: tensors[scale],
            lambda logits: select_classes(logits, config.classes, labels),
            scales=config.scales,
            flip=config.flip,
        )
    logits = raw.logits.float().cpu().numpy()
    for at, (sample, size) in enumerate(zip(loaded.samples, loaded.sizes, strict=True)):
        values = raw.values[at].float().cpu().numpy()
        values = minmax(values) if config.normalize == "minmax" else relu_max(values)
        maps = ScoreMaps(
            id=sample.id,
            values=values.astype(np.float16),
            class_ids=np.asarray(raw.class_ids[at], dtype=np.int16),
            image_size=size,
            logits=logits[at],
        )
        if config.store == "image":
            maps = ScoreMaps(
                id=maps.id,
                values=np.clip(maps.at_image_size(), 0, 1).astype(np.float16),
                class_ids=maps.class_ids,
                image_size=size,
                logits=maps.logits,
            )
        yield maps


def _load(batches: _Batches, workers: int, device: torch.device) -> Iterator[_Loaded]:
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=min(workers, len(batches)),
        pin_memory=device.type == "cuda",
        multiprocessing_context="spawn" if workers and device.type == "cuda" else None,
    )
    return iter(loader)


def _count(batches: Sequence[Sequence[Sample]]) -> int:
    return sum(len(batch) for batch in batches)


def _check_classes(config: CamConfig, num_classes: int, classifier: Classifier) -> None:
    if num_classes and classifier.num_classes and classifier.num_classes != num_classes:
        raise ModelError(
            f"the model has {classifier.num_classes} classes but the data set '{config.data}' has {num_classes}",
            where=config.checkpoint or config.model,
            hint="train a head with wsol train, or take a data set with the model's classes",
        )
