"""What the training loop asks of a classifier: its views of the images, its batches, and the loss of a mixed batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol import data
from wsol.data.images import read_image
from wsol.data.transforms import Interpolation, augment, crop_window
from wsol.engine.label_maps import Cut, LabelMaps, dense
from wsol.engine.linear_probe import pooled_features
from wsol.engine.loaders import Batch, Batches, Failures, normalize
from wsol.engine.losses import class_weights, make_criterion, smooth
from wsol.engine.parallel import World
from wsol.engine.progress import track
from wsol.engine.seeding import generator
from wsol.engine.train_options import TrainConfig
from wsol.errors import DataError
from wsol.mix import Context, MixStrategy, StepStrategy
from wsol.models.classifier import Classifier
from wsol.schema import Sample

_RATIO = (3 / 4, 4 / 3)
View = tuple[NDArray[np.uint8], NDArray[np.float32], *tuple[Cut, ...]]


@dataclass(frozen=True)
class ClassifierViews:
    """Reads an image and its labels for a classifier; see `loaders.Views`."""

    num_classes: int
    multi_label: bool
    img_size: int
    interpolation: Interpolation
    crop_scale: tuple[float, float] | None = None
    hflip: float = 0.0
    color_jitter: float = 0.0
    label_maps: LabelMaps | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> View:
        """Return uint8 (img_size, img_size, 3), float32 (C,) with 1 for each label, and the label maps if asked."""
        if not self.multi_label and len(sample.labels) != 1:
            raise DataError(f"expected one label, got {len(sample.labels)}", where=sample.id)
        target = np.zeros(self.num_classes, dtype=np.float32)
        target[list(sample.labels)] = 1.0
        maps = None if self.label_maps is None else self.label_maps.read(sample.id)
        image = read_image(sample.image, upright=sample.upright)
        scale = self.crop_scale or (1.0, 1.0)
        if self.label_maps is None or maps is None:
            return self._view(image, rng, scale, flip=self.hflip), target
        size = (image.shape[0], image.shape[1])
        window = crop_window(size, rng, scale=scale, ratio=_RATIO if self.crop_scale else (size[1] / size[0],) * 2)
        mirror = bool(rng.random() < self.hflip)
        top, left, height, width = window
        part = image[top : top + height, left : left + width]
        cut = self.label_maps.cut(maps, window, size, mirror=mirror)
        return self._view(part, rng, (1.0, 1.0), flip=float(mirror)), target, cut

    def _view(
        self, image: NDArray[np.uint8], rng: np.random.Generator, scale: tuple[float, float], *, flip: float
    ) -> NDArray[np.uint8]:
        aspect = image.shape[1] / image.shape[0]
        return augment(
            image,
            (self.img_size, self.img_size),
            rng,
            scale=scale,
            ratio=(aspect, aspect) if scale == (1.0, 1.0) else _RATIO,  # the whole image keeps its own
            flip=flip,
            jitter=self.color_jitter,
            interpolation=self.interpolation,
        )


@dataclass(frozen=True)
class Work:
    """The batches of a classifier and their loss.

    Attributes:
        config: Options.
        dataset: Training images.
        classifier: The model.
        strategy: How to mix.
        own: State of the strategy, or None.
        loss_name: "ce", "bce" or "asl".
        device: Where the model is.
        label_maps: A teacher's maps for strategies that want them.
        world: Who trains.
        failures: Images that could not be used.
    """

    config: TrainConfig
    dataset: data.Dataset
    classifier: Classifier
    strategy: MixStrategy | StepStrategy
    own: nn.Module | None
    loss_name: str
    device: torch.device
    label_maps: LabelMaps | None = None
    world: World = field(default_factory=World)
    failures: Failures = field(default_factory=Failures)

    @cached_property
    def batches(self) -> Batches:
        """Training batches in random order."""
        config, spec = self.config, self.dataset.spec
        views = ClassifierViews(
            num_classes=len(spec.classes),
            multi_label=spec.multi_label,
            img_size=config.img_size,
            interpolation=self.classifier.interpolation,
            crop_scale=config.crop_scale if config.resize == "crop" else None,
            hflip=config.hflip,
            color_jitter=config.color_jitter,
            label_maps=self.label_maps,
        )
        return Batches(self.dataset.samples, views, batch_size=config.batch_size, seed=config.seed, shuffle=True)

    def stream(self, start: int) -> Iterator[Batch]:
        """Return the batches of this process from an epoch on."""
        epochs, share = range(start, self.config.epochs), (self.world.rank, self.world.size)
        return self.batches.stream(epochs, workers=self.config.workers, device=self.device, share=share)

    def loss(self, batch: Batch, epoch: int, step: int) -> Tensor | None:
        """Return the loss of a batch; a strategy that replaces the step has added its gradients by then."""
        self.failures.note(batch.failed)
        if len(batch.images) < min(2, self.config.batch_size):  # batch norm cannot learn from a lone image
            return None
        x, y = self.input(batch), self.targets(batch)
        context = self.context(epoch)
        if self.label_maps is not None:
            context = replace(context, label_maps=dense(batch.extra, y.shape[1], self.device))
        draws = self.strategy.draw(x, generator(self.config.seed, "mix", epoch, step))
        if isinstance(self.strategy, StepStrategy):
            return self.strategy.step(x, y, draws, context, backward=_backward)
        mixed = self.strategy.mix(x, y, draws, context)
        return self.strategy.loss(mixed, self.strategy.forward(mixed, context), context)

    def after_step(self, epoch: int) -> None:
        """Let the strategy update its state."""
        self.strategy.after_step(self.context(epoch))

    def context(self, epoch: int) -> Context:
        """Return what the strategy may know, without label maps."""
        return Context(
            classifier=self.classifier,
            criterion=self.criterion,
            own=self.own,
            epoch=epoch,
            epochs=self.config.epochs,
            amp=self.config.amp,
            multi_label=self.loss_name != "ce",
        )

    @cached_property
    def criterion(self) -> Any:
        """(logits, dense targets) to a scalar loss."""
        weights = None
        if self.config.class_balance:
            found = class_weights(self.dataset.samples, len(self.dataset.spec.classes), beta=self.config.class_balance)
            weights = torch.from_numpy(found).to(self.device)
        return make_criterion(self.loss_name, self.config, weights=weights)

    def input(self, batch: Batch) -> Tensor:
        """Return the network's input."""
        return normalize(batch.images, mean=self.classifier.mean, std=self.classifier.std, device=self.device)

    def targets(self, batch: Batch) -> Tensor:
        """Return the smoothed targets (B, K)."""
        targets, multi_label = torch.from_numpy(batch.targets).to(self.device), self.dataset.spec.multi_label
        return smooth(targets, self.config.smoothing, multi_label=multi_label)

    def features(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what the head reads of the whole images, and the targets, for a linear probe."""
        batches = plain_batches(self.dataset, self.classifier, self.config)
        with track(batches.steps, "features", quiet=self.config.quiet) as tracker:
            for batch in batches.stream(range(1), workers=self.config.workers, device=self.device):
                self.failures.note(batch.failed)
                if len(batch.images):
                    yield pooled_features(self.classifier, self.input(batch)), self.targets(batch)
                tracker.advance()


def plain_batches(dataset: data.Dataset, classifier: Classifier, config: TrainConfig) -> Batches:
    """Return whole images in order, without augmentation."""
    spec = dataset.spec
    views = ClassifierViews(len(spec.classes), spec.multi_label, config.img_size, classifier.interpolation)
    return Batches(dataset.samples, views, batch_size=config.batch_size)


def _backward(loss: Tensor) -> None:
    cast(Any, loss).backward()
