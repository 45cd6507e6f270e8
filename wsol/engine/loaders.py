"""Training images in batches: order and augmentation depend on seed, epoch and image alone.

Reading processes hand over uint8 pixels; `normalize` turns them into network input on the device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from wsol import data
from wsol.data import Dataset
from wsol.data.images import read_image
from wsol.engine.seeding import generator
from wsol.engine.train_options import DataOptions
from wsol.errors import DataError, WsolError
from wsol.schema import Sample

T = TypeVar("T")
_log = logging.getLogger("wsol")


def load_splits(config: DataOptions) -> tuple[Dataset, Dataset | None]:
    """Load the split to train on, and the one to measure where there is one.

    Raises:
        DataError: When they are not there, or differ in their classes.
    """

    def load(split: str | None) -> Dataset:
        return data.load(config.data, root=config.root, split=split, limit=config.limit, **config.data_options)

    train, val = load(config.split), None if config.val_split is None else load(config.val_split)
    if val is not None and val.spec.classes != train.spec.classes:
        raise DataError(f"split '{val.spec.split}' has other classes than '{train.spec.split}'", where=config.data)
    return train, val


@dataclass(frozen=True)
class Batch:
    """One batch as it comes from a reading process.

    Attributes:
        images: uint8 (B, h, w, 3) RGB.
        targets: (B, ...) of the views.
        failed: (id, reason) of the images that could not be read and are missing from the batch.
        samples: The images that are in the batch.
        extra: What the views gave beside the target, one an image.
    """

    images: NDArray[np.uint8]
    targets: NDArray[Any]
    failed: tuple[tuple[str, str], ...] = ()
    samples: tuple[Sample, ...] = ()
    extra: tuple[Any, ...] = ()


class Failures(dict[str, str]):
    """Id to reason of the images that could not be used; each is said once."""

    def note(self, failed: Iterable[tuple[str, str]]) -> None:
        """Remember some failures and log those that are new."""
        for image_id, reason in failed:
            if image_id not in self:
                _log.info("left out: %s  %s", image_id, reason)
            self[image_id] = reason


class Views(Protocol):
    """Turns a sample into what the network learns from; can be sent to another process."""

    def __call__(
        self, sample: Sample, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[Any], *tuple[Any, ...]]:
        """Return uint8 (h, w, 3) pixels, the target and more; every sample gives pixels and target of one shape."""
        ...


class Batches:
    """The batches of every epoch; a bad image is left out instead of ending the epoch.

    Args:
        samples: All images.
        views: Reads one of them.
        batch_size: Images a batch.
        seed: Seed of the run.
        shuffle: Another order each epoch, without a last smaller batch (where there is a full one).
    """

    def __init__(
        self, samples: Sequence[Sample], views: Views, *, batch_size: int, seed: int = 0, shuffle: bool = False
    ) -> None:
        self.samples, self.shuffle, self.seed = samples, shuffle, seed
        self.batch_size = batch_size
        self.reader = _Reader(views, seed)
        full, rest = divmod(len(samples), batch_size)
        self.steps = max(1, full) if shuffle else full + (rest > 0)

    def stream(
        self, epochs: range, *, workers: int, device: torch.device, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """Return the batches of some epochs one after the other; the reading processes stay between epochs.

        Args:
            epochs: Which epochs.
            workers: Reading processes; 0 reads in this one.
            device: Where the batches will go: processes that a CUDA program starts must not be forked.
            share: (rank, count): every count-th batch of an epoch, and as many for each rank.
        """
        rank, count = share
        steps = range(rank, self.steps - self.steps % count, count)
        # Sent a batch at a time: a spawned process would get a copy of all samples.
        return _load(self.reader, self._plan(epochs, steps), min(workers, len(steps) * len(epochs)), device)

    def _plan(self, epochs: range, steps: range) -> Iterator[_Key]:
        count = len(self.samples)
        for epoch in epochs:
            order = generator(self.seed, "order", epoch).permutation(count) if self.shuffle else np.arange(count)
            for at in steps:
                chosen = order[at * self.batch_size : (at + 1) * self.batch_size].tolist()
                yield epoch, [(index, self.samples[index]) for index in chosen]


_Key = tuple[int, list[tuple[int, Sample]]]
"""Epoch, and the images of a batch with their positions among all, on which their random numbers depend."""


@dataclass(frozen=True)
class _Reader(TorchDataset[Batch]):
    views: Views
    seed: int

    def __getitem__(self, key: _Key) -> Batch:
        epoch, chosen = key
        images, targets, failed, samples, extra = [], [], [], [], []
        for index, sample in chosen:
            try:
                image, target, *more = self.views(sample, generator(self.seed, "augment", epoch, index))
                images.append(image)
                targets.append(target)
                samples.append(sample)
                extra += more
            except WsolError as error:
                failed.append((sample.id, str(error)))
        empty = np.empty((0, 1, 1, 3), dtype=np.uint8)
        pixels, labels = (np.stack(parts) if parts else empty for parts in (images, targets))
        return Batch(pixels, labels, tuple(failed), tuple(samples), tuple(extra))


class _Images(TorchDataset["NDArray[np.uint8] | str"]):
    def __getitem__(self, sample: Sample) -> NDArray[np.uint8] | str:
        try:
            return read_image(sample.image, upright=sample.upright)
        except WsolError as error:
            return str(error)


def read_images(
    samples: Sequence[Sample], *, workers: int, device: torch.device
) -> Iterator[tuple[Sample, NDArray[np.uint8] | str]]:
    """Yield each sample with its image, or with the reason why it cannot be read, in order.

    Args:
        samples: Which images.
        workers: Reading processes; 0 reads in this one.
        device: Where the images will go.
    """
    # Samples are sent one at a time: a spawned process would get a copy of them all.
    loaded = _load(_Images(), samples, min(workers, len(samples)), device)
    yield from zip(samples, loaded, strict=True)


def _load(dataset: TorchDataset[T], keys: Iterable[Any], workers: int, device: torch.device) -> Iterator[T]:
    loader: DataLoader[T] = DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        collate_fn=_as_it_is,  # not torch's own, which would turn arrays into tensors in shared memory
        multiprocessing_context="spawn" if workers and device.type == "cuda" else None,
    )
    return iter(loader)


def _as_it_is(item: T) -> T:
    return item


def normalize(
    images: NDArray[np.uint8], *, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Tensor:
    """Turn pixels into network input: (pixel / 255 - mean) / std.

    Args:
        images: uint8 (B, h, w, 3) RGB.
        mean: Three channel means for values in [0, 1].
        std: Three channel standard deviations.
        device: Device of the result; the pixels travel there as bytes.

    Returns:
        float32 (B, 3, h, w).
    """
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().contiguous()
    shift = torch.tensor(mean, device=device)[:, None, None]
    scale = torch.tensor(std, device=device)[:, None, None]
    return pixels.div_(255).sub_(shift).div_(scale)
