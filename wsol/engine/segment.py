"""`wsol segment train` and `wsol segment predict`: a segmentation network on pseudo-masks or true masks."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol import data
from wsol.data.images import read_image
from wsol.data.transforms import augment_pair
from wsol.engine.device import resolve_device
from wsol.engine.fit import Trained, fit, has_ended, read_history
from wsol.engine.loaders import Batch, Batches, Failures, load_splits, normalize, read_images
from wsol.engine.optim import check_optimizer
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.progress import track
from wsol.engine.seeding import own_randomness, seed_torch
from wsol.engine.segment_infer import predict_labels
from wsol.engine.segment_options import SegmentPredictConfig, SegmentTrainConfig
from wsol.engine.sharding import resolve_shard
from wsol.engine.train import checkpoint_hash
from wsol.errors import DataError, StoreError, WsolError
from wsol.models.segmenter import Segmenter, create_segmenter, load_segmenter, save_segmenter
from wsol.ops.confusion import confusion_matrix, mean_iou
from wsol.schema import IGNORE, PseudoMask, Sample
from wsol.store.manifest import Manifest, finished
from wsol.store.masks import mask_path, read_labels, write_mask
from wsol.store.runs import open_run

_log = logging.getLogger("wsol")
_TRUTH = "gt"


def segment_train(config: SegmentTrainConfig) -> Trained:
    """Train a segmentation network, or continue a training that was interrupted.

    Args:
        config: See `SegmentTrainConfig`.

    Returns:
        The run folder (model.safetensors, model.json, checkpoint.pt, history.jsonl), the history, and the images that
        were left out.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    check_optimizer(config.opt)
    device = resolve_device(config.device)
    dataset, val = load_splits(config)
    dataset, missing = with_masks(dataset, config.masks)
    with own_randomness(device):
        seed_torch(device, config.seed, "weights")
        segmenter = create_segmenter(
            config.arch,
            config.encoder,
            classes=dataset.spec.classes,
            img_size=config.img_size,
            encoder_weights=config.encoder_weights,
            checkpoint=config.checkpoint,
            device=device,
        )
        run = open_run(
            config.out,
            verb="segment train",
            config=config,
            dataset=dataset.spec,
            device=str(device),
            inputs=checkpoint_hash(config.checkpoint),
            overwrite=config.overwrite,
        )
        if has_ended(config.out, resume=config.resume):
            return Trained(config.out, read_history(config.out))
        with run, log_to(config.out / "log.txt"):
            if missing:
                _log.info("%d of %d images have no mask and are left out", missing, missing + len(dataset))
            work = _Work(config, dataset, val, segmenter, device)
            history = fit(
                segmenter.module,
                config,
                device=device,
                steps=work.batches.steps,
                batches=work.stream,
                loss_of=work.loss,
                evaluate=None if val is None else work.evaluate,
            )
            save_segmenter(segmenter, config.out)
            run.facts.update(images=len(dataset), without_mask=missing, failed=len(work.failures), last=history[-1])
    return Trained(config.out, history, dict(work.failures))


def segment_predict(config: SegmentPredictConfig) -> Outcome:
    """Write the mask of every image of a split that has none yet.

    Args:
        config: See `SegmentPredictConfig`.

    Returns:
        Counts, and the images that failed with their reasons; those are also rows of the manifest.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    shard, device = resolve_shard(config.shard), resolve_device(config.device)
    dataset = data.load(config.data, root=config.root, split=config.split, limit=config.limit, **config.data_options)
    segmenter = load_segmenter(config.checkpoint, device=device)
    check_classes(segmenter, dataset)
    run = open_run(
        config.out,
        verb="segment predict",
        config=config,
        dataset=dataset.spec,
        device=str(device),
        inputs=checkpoint_hash(config.checkpoint),
        overwrite=config.overwrite,
        shard=shard,
    )
    with run, Manifest(config.out, shard) as manifest, log_to(config.out / "log.txt"):
        ours = dataset.samples[shard[0] :: shard[1]]
        done = finished(config.out, lambda image_id: read_labels(mask_path(config.out, image_id)))
        pending = [sample for sample in ours if sample.id not in done]
        outcome = Outcome(skipped=len(ours) - len(pending))
        with track(len(pending), "masks (segment)", quiet=config.quiet) as tracker:
            for sample, image in read_images(pending, workers=config.workers, device=device):
                if isinstance(image, str):
                    manifest.failed(sample.id, image)
                    outcome.failures[sample.id] = image
                    if config.fail_fast:
                        raise StoreError(image, hint="without --fail-fast the other images go on")
                else:
                    labels = predict_labels(
                        segmenter,
                        image,
                        device=device,
                        img_size=config.img_size,
                        scales=config.scales,
                        flip=config.flip,
                        amp=config.amp,
                    )
                    manifest.done(sample.id, bytes=write_mask(config.out, PseudoMask(id=sample.id, labels=labels)))
                    outcome.done += 1
                tracker.advance()
        run.facts.update(outcome.facts())
        say_failures(outcome)
    return outcome


def masked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy averaged over the pixels that are not ignored; 0 where all are.

    Args:
        logits: Float (B, C, h, w).
        labels: Integer (B, h, w); 255 is ignored.
    """
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


@dataclass(frozen=True)
class MaskFolder:
    """Reads the mask of a sample from a folder of ID.png files; an id that ends in .jpg may also become .png."""

    path: Path

    def file(self, sample: Sample) -> Path:
        """Return where the mask of a sample lies."""
        exact = self.path / f"{sample.id}.png"
        return exact if exact.is_file() else exact.with_name(f"{Path(sample.id).stem}.png")

    def __call__(self, sample: Sample) -> NDArray[np.uint8]:
        """Return uint8 (H, W)."""
        return read_labels(self.file(sample))


def with_masks(dataset: data.Dataset, masks: str) -> tuple[data.Dataset, int]:
    """Make a data set whose ground truth is what the network shall learn.

    Args:
        dataset: All images.
        masks: "gt" for the data set's own masks, a run folder of wsol refine, or a folder of ID.png files.

    Returns:
        The images that have a mask, and how many have none.

    Raises:
        DataError: When no image has one.
    """
    if masks == _TRUTH:
        if dataset.spec.annotations not in ("mask", "both"):
            raise DataError(f"data set '{dataset.spec.name}' has no true masks", hint="give --masks RUN or FOLDER")
        return dataset, 0
    folder = Path(masks).expanduser()
    reader = MaskFolder(folder / "masks" if (folder / "masks").is_dir() else folder)
    kept = tuple(sample for sample in dataset.samples if reader.file(sample).is_file())
    if not kept:
        first = reader.file(dataset.samples[0])
        raise DataError("no image has a mask here", where=folder, hint=f"looked for {first.name}; or --masks gt")
    return replace(dataset, samples=kept, truth=reader), len(dataset) - len(kept)


def check_classes(segmenter: Segmenter, dataset: data.Dataset) -> None:
    """Refuse a network of other classes.

    Raises:
        DataError: When the class names differ.
    """
    if segmenter.facts.classes != dataset.spec.classes:
        raise DataError(
            f"the network knows {len(segmenter.facts.classes)} classes that are not the {len(dataset.spec.classes)}"
            f" of data set '{dataset.spec.name}'",
            hint="predict on the data set it was trained on",
        )


@dataclass(frozen=True)
class SegmenterViews:
    """Reads an image and its mask for a segmentation network; see `loaders.Views`."""

    dataset: data.Dataset
    img_size: int
    zoom: tuple[float, float]
    hflip: float
    color_jitter: float

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return uint8 (img_size, img_size, 3) and uint8 (img_size, img_size) labels."""
        image, mask = read_image(sample.image, upright=sample.upright), self.dataset.read_truth(sample)
        if image.shape[:2] != mask.shape:
            raise DataError(f"the mask is {mask.shape} but the image is {image.shape[:2]}", where=sample.id)
        highest, classes = int(mask[mask != IGNORE].max(initial=0)), len(self.dataset.spec.classes)
        if highest > classes:
            raise DataError(f"the mask holds label {highest} but there are {classes} classes", where=sample.id)
        size = (self.img_size, self.img_size)
        return augment_pair(image, mask, size, rng, scale=self.zoom, flip=self.hflip, jitter=self.color_jitter)


@dataclass(frozen=True)
class _Work:
    """What `fit` asks of a segmentation network: batches, their loss, and the scores of the validation split."""

    config: SegmentTrainConfig
    dataset: data.Dataset
    val: data.Dataset | None
    segmenter: Segmenter
    device: torch.device
    failures: Failures = field(default_factory=Failures)

    @property
    def batches(self) -> Batches:
        config = self.config
        views = SegmenterViews(self.dataset, config.img_size, config.zoom, config.hflip, config.color_jitter)
        return Batches(self.dataset.samples, views, batch_size=config.batch_size, seed=config.seed, shuffle=True)

    def stream(self, start: int) -> Iterator[Batch]:
        epochs = range(start, self.config.epochs)
        return self.batches.stream(epochs, workers=self.config.workers, device=self.device)

    def loss(self, batch: Batch, epoch: int, step: int) -> Tensor | None:
        self.failures.note(batch.failed)
        if len(batch.images) < min(2, self.config.batch_size):  # batch norm cannot learn from a lone image
            return None
        facts = self.segmenter.facts
        x = normalize(batch.images, mean=facts.mean, std=facts.std, device=self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.amp):
            logits = self.segmenter.module(x)
        return masked_cross_entropy(logits.float(), torch.from_numpy(batch.targets).to(self.device))

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        val, segmenter = self._measured, replace(self.segmenter, module=module)
        classes = len(val.spec.classes) + 1
        matrix = np.zeros((classes, classes), dtype=np.int64)
        for sample, image in itertools.islice(self._val_stream, len(val)):
            try:
                if isinstance(image, str):
                    raise DataError(image)
                labels = predict_labels(segmenter, image, device=self.device, amp=self.config.amp)
                matrix += confusion_matrix(val.read_truth(sample), labels, classes)
            except WsolError as error:
                self.failures.note([(sample.id, str(error))])
        return {"val_miou": 100.0 * mean_iou(matrix)}

    @property
    def _measured(self) -> data.Dataset:
        return self.val or self.dataset

    @cached_property
    def _val_stream(self) -> Iterator[tuple[Sample, NDArray[np.uint8] | str]]:
        """One stream for all epochs, so that its reading processes start once."""
        samples = self._measured.samples * self.config.epochs
        return read_images(samples, workers=self.config.workers, device=self.device)
