"""One batch of `wsol cam`: images from files to network inputs, and inputs to raw maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from wsol.cams.base import BoundMethod
from wsol.cams.tta import multi_scale, select_classes
from wsol.data.images import read_image
from wsol.data.transforms import Interpolation, input_size, to_input
from wsol.engine.map_writer import Computed
from wsol.engine.options import CamConfig
from wsol.errors import WsolError
from wsol.models.classifier import Classifier
from wsol.schema import Sample

Made = tuple[list[Computed], dict[str, str]]
"""The raw maps of a batch, and id to reason of its images that have none."""


@dataclass(frozen=True)
class InputFacts:
    """What the reading processes must know of the model.

    Attributes:
        img_size: Side of the input in pixels; None keeps that of the image.
        resize: See `CamConfig.resize`.
        stride: Input sides are multiples of it.
        mean: Per channel, on [0, 1].
        std: Per channel, on [0, 1].
        interpolation: Of the resize.
    """

    img_size: int | None
    resize: str
    stride: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation

    @classmethod
    def of(cls, classifier: Classifier, config: CamConfig) -> InputFacts:
        """Return what holds for a model under these options."""
        return cls(
            img_size=config.img_size or (None if config.resize == "native" else classifier.input_size[0]),
            resize=config.resize,
            stride=classifier.stride,
            mean=tuple(classifier.mean),
            std=tuple(classifier.std),
            interpolation=classifier.interpolation,
        )

    def shape(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Return the input (h, w) of an image (H, W) at a scale."""
        if self.resize == "native":
            # Other scales start from the size at 1, so that images of one shape there have one shape everywhere.
            height, width = input_size(size, img_size=self.img_size, resize="native", stride=self.stride)
            return (self._scaled(height, scale), self._scaled(width, scale)) if scale != 1 else (height, width)
        side = int(self.img_size or 0)
        side = side if scale == 1 else self._scaled(side, scale)
        return input_size(size, img_size=side, resize=self.resize, stride=self.stride)  # type: ignore[arg-type]

    def inputs(self, images: Sequence[NDArray[np.uint8]], scale: float) -> NDArray[np.float32]:
        """Return float32 (B, 3, h, w) for images uint8 (H, W, 3) that share an input shape."""
        shape = self.shape(images[0].shape[:2], scale)
        planes = [
            to_input(image, shape, mean=self.mean, std=self.std, interpolation=self.interpolation) for image in images
        ]
        return np.stack(planes)

    def _scaled(self, side: int, scale: float) -> int:
        return max(1, round(side * scale / self.stride)) * self.stride


@dataclass(frozen=True)
class Loaded:
    """One batch as it comes from a reading process.

    Attributes:
        samples: The images that can be read.
        sizes: Their (H, W) in pixels.
        inputs: Scale to float32 (B, 3, h, w).
        failed: (id, reason) of those that cannot.
    """

    samples: tuple[Sample, ...]
    sizes: tuple[tuple[int, int], ...]
    inputs: dict[float, NDArray[np.float32]]
    failed: tuple[tuple[str, str], ...]


def read_batch(batch: Sequence[Sample], config: CamConfig, facts: InputFacts) -> Loaded:
    """Read a whole batch, so that a bad image becomes a row instead of an exception in a worker."""
    samples, images, failed = [], [], []
    for sample in batch:
        try:
            images.append(read_image(sample.image, upright=sample.upright))
            samples.append(sample)
        except WsolError as error:
            failed.append((sample.id, str(error)))
    sizes = tuple(image.shape[:2] for image in images)
    inputs = {scale: facts.inputs(images, scale) for scale in config.scales} if images else {}
    return Loaded(tuple(samples), sizes, inputs, tuple(failed))


def read_batches(
    batches: Sequence[Sequence[Sample]], config: CamConfig, facts: InputFacts, device: torch.device
) -> Iterator[Loaded]:
    """Yield the batches in order, read ahead by `config.workers` processes."""
    loader: DataLoader[Loaded] = DataLoader(
        _Reader(config, facts),
        batch_size=None,
        sampler=batches,  # sent one at a time: a spawned process would get a copy of the whole plan
        num_workers=min(config.workers, len(batches)),
        pin_memory=device.type == "cuda",
        multiprocessing_context="spawn" if config.workers and device.type == "cuda" else None,
    )
    return iter(loader)


@dataclass(frozen=True)
class _Reader(TorchDataset[Loaded]):
    config: CamConfig
    facts: InputFacts

    def __getitem__(self, batch: Sequence[Sample]) -> Loaded:
        return read_batch(batch, self.config, self.facts)


def compute(loaded: Loaded, config: CamConfig, method: BoundMethod, device: torch.device) -> Made:
    """Return the raw maps of a batch, and why images have none.

    Args:
        loaded: The batch.
        config: Options of the job.
        method: Map method, bound to its model.
        device: Device of the model.
    """
    failed = dict(loaded.failed)
    if not loaded.samples:
        return [], failed
    labels = [sample.labels for sample in loaded.samples]
    tensors = {scale: torch.from_numpy(array).to(device, non_blocking=True) for scale, array in loaded.inputs.items()}
    how = method.method.normalization if config.normalize == "auto" else config.normalize
    try:
        with torch.autocast(device.type, dtype=getattr(torch, config.amp_dtype), enabled=config.amp):
            raw = multi_scale(
                method,
                lambda scale: tensors[scale],
                lambda logits: select_classes(logits, config.classes, labels),
                scales=config.scales,
                flip=config.flip,
                rectify=how == "relu",
            )
    except torch.OutOfMemoryError:
        height, width = loaded.inputs[config.scales[0]].shape[-2:]
        reason = f"not enough memory for {len(labels)} x {height} x {width} pixels (smaller --img-size, --batch-size)"
        return [], failed | {sample.id: reason for sample in loaded.samples}
    logits = raw.logits.float().cpu().numpy()
    values = [maps.float().cpu().numpy() for maps in raw.values]
    images = zip(loaded.samples, loaded.sizes, values, raw.class_ids, logits, strict=True)
    return [Computed(*image) for image in images], failed
