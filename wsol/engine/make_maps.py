"""`wsol cam`: score maps of a split, batch by batch, resumable and sharded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from wsol import cams, data
from wsol.cams.tta import multi_scale, select_classes
from wsol.data.images import image_size, read_image
from wsol.data.prompts import load_prompts
from wsol.data.transforms import Interpolation, input_size, to_input
from wsol.engine.device import resolve_device
from wsol.engine.map_writer import Computed, MapWriter
from wsol.engine.options import CamConfig
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.progress import track
from wsol.engine.sharding import resolve_shard
from wsol.errors import ConfigError, ModelError, WsolError
from wsol.models.classifier import Classifier, load_classifier
from wsol.schema import DatasetSpec, Sample
from wsol.store.manifest import Manifest, finished
from wsol.store.maps import read_maps
from wsol.store.runs import file_hash, open_run

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

    img_size: int | None
    resize: str
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation

    def shape(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        if self.resize == "native":
            # Other scales start from the size at 1, so that images of one shape there have one shape everywhere.
            height, width = input_size(size, img_size=self.img_size, resize="native", stride=self.stride)
            return (self._scaled(height, scale), self._scaled(width, scale)) if scale != 1 else (height, width)
        side = int(self.img_size or 0)
        side = side if scale == 1 else self._scaled(side, scale)
        return input_size(size, img_size=side, resize=self.resize, stride=self.stride)  # type: ignore[arg-type]

    def _scaled(self, side: int, scale: float) -> int:
        return max(1, round(side * scale / self.stride)) * self.stride


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
    classifier = load_model(config, dataset.spec, device)
    _check_classes(config, len(dataset.spec.classes), classifier)
    method = cams.create(config.method, classifier, **config.options)
    facts = _InputFacts(
        img_size=config.img_size or (None if config.resize == "native" else classifier.input_size[0]),
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
            inputs=_inputs(config),
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
        writer = MapWriter(config, manifest, outcome, done)
        with track(_count(pending), f"maps ({config.method})", quiet=config.quiet) as tracker, writer:
            for loaded in _load(_Batches(pending, config, facts), config.workers, device):
                computed, failed = _compute(loaded, config, method, device)
                writer.put(computed, {**dict(loaded.failed), **failed})
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
    squashed = shape((1, 4096), 1.0) == shape((4096, 1), 1.0)
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


def _compute(
    loaded: _Loaded, config: CamConfig, method: Any, device: torch.device
) -> tuple[list[Computed], dict[str, str]]:
    """Return the raw maps of a batch, and why images have none."""
    if not loaded.samples:
        return [], {}
    labels = [sample.labels for sample in loaded.samples]
    tensors = {scale: torch.from_numpy(array).to(device, non_blocking=True) for scale, array in loaded.inputs.items()}
    try:
        with torch.autocast(device.type, dtype=getattr(torch, config.amp_dtype), enabled=config.amp):
            raw = multi_scale(
                method,
                lambda scale: tensors[scale],
                lambda logits: select_classes(logits, config.classes, labels),
                scales=config.scales,
                flip=config.flip,
            )
    except torch.OutOfMemoryError:
        height, width = loaded.inputs[config.scales[0]].shape[-2:]
        reason = f"not enough memory for {len(labels)} x {height} x {width} pixels (smaller --img-size, --batch-size)"
        return [], {sample.id: reason for sample in loaded.samples}
    logits = raw.logits.float().cpu().numpy()
    values = [maps.float().cpu().numpy() for maps in raw.values]
    images = zip(loaded.samples, loaded.sizes, values, raw.class_ids, logits, strict=True)
    return [Computed(*image) for image in images], {}


def _load(batches: _Batches, workers: int, device: torch.device) -> Iterator[_Loaded]:
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=min(workers, len(batches)),
        pin_memory=device.type == "cuda",
        multiprocessing_context="spawn" if workers and device.type == "cuda" else None,
    )
    return iter(loader)


def _inputs(config: CamConfig) -> dict[str, str]:
    path = Path(config.prompts).expanduser() if config.prompts else None
    return {str(config.prompts): file_hash(path)} if path and path.is_file() else {}


def _count(batches: Sequence[Sequence[Sample]]) -> int:
    return sum(len(batch) for batch in batches)


def _check_classes(config: CamConfig, num_classes: int, classifier: Classifier) -> None:
    if num_classes and classifier.num_classes and classifier.num_classes != num_classes:
        raise ModelError(
            f"the model has {classifier.num_classes} classes but the data set '{config.data}' has {num_classes}",
            where=config.checkpoint or config.model,
            hint="train a head with wsol train, or take a data set with the model's classes",
        )
