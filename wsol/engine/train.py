"""`wsol train`: a classifier from image-level labels, with a mix strategy."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wsol import data, mix
from wsol.data.images import read_image
from wsol.data.transforms import Interpolation, augment
from wsol.engine.device import resolve_device
from wsol.engine.fit import History, Trained, fit, has_ended, read_history, write_history
from wsol.engine.linear_probe import fit_head, pooled_features
from wsol.engine.loaders import Batch, Batches, Failures, load_splits, normalize
from wsol.engine.optim import check_optimizer
from wsol.engine.outcome import log_to
from wsol.engine.progress import track
from wsol.engine.scores import mean_average_precision, topk_accuracy
from wsol.engine.seeding import generator, own_randomness, seed_torch
from wsol.engine.train_options import TrainConfig
from wsol.errors import ConfigError, DataError
from wsol.mix import Context, MixStrategy, StepStrategy
from wsol.models.checkpoints import head_names, resolve
from wsol.models.classifier import Classifier, load_classifier, save_classifier
from wsol.schema import Sample
from wsol.store.runs import file_hash, open_run

_log = logging.getLogger("wsol")


def train(config: TrainConfig) -> Trained:
    """Train a classifier, or continue a training that was interrupted.

    Args:
        config: See `TrainConfig`.

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
    spec = dataset.spec
    loss, strategy = _loss_name(config, multi_label=spec.multi_label), mix.create(config.mix, **config.mix_options)
    with own_randomness(device):
        seed_torch(device, config.seed, "weights")
        classifier = load_classifier(
            config.model,
            checkpoint=config.checkpoint,
            pretrained=config.pretrained,
            num_classes=len(spec.classes),
            img_size=config.img_size,
            device=device,
        )
        run = open_run(
            config.out,
            verb="train",
            config=config,
            dataset=spec,
            device=str(device),
            inputs=checkpoint_hash(config.checkpoint),
            overwrite=config.overwrite,
        )
        if has_ended(config.out, resume=config.resume):
            return Trained(config.out, read_history(config.out))
        with run, log_to(config.out / "log.txt"):
            _log.info("%s", classifier.describe())
            if config.freeze_backbone:
                _freeze_backbone(classifier)
            work = _Work(config, dataset, val, classifier, strategy, loss, device)
            if config.linear_probe:
                history = work.probe()
            else:
                history = fit(
                    classifier.module,
                    config,
                    device=device,
                    steps=work.batches.steps,
                    batches=work.stream,
                    loss_of=work.loss,
                    evaluate=None if val is None else work.evaluate,
                    set_mode=nn.Module.eval if config.freeze_backbone else nn.Module.train,
                )
            save_classifier(classifier, config.out, classes=spec.classes, multi_label=spec.multi_label)
            run.facts.update(images=len(dataset), failed=len(work.failures), loss=loss, last=history[-1])
    return Trained(config.out, history, dict(work.failures))


def checkpoint_hash(checkpoint: str | Path | None) -> dict[str, str]:
    """Return the hash of the weights to start from, for `run.json`; empty where there are none."""
    if checkpoint is None:
        return {}
    path = resolve(checkpoint)
    return {str(checkpoint): file_hash(path / "model.safetensors" if path.is_dir() else path)}


def smooth(targets: Tensor, amount: float, *, loss: str) -> Tensor:
    """Return targets (B, K) moved towards 1 / K ("ce") or towards 0.5 ("bce") by a share `amount` in [0, 1)."""
    return targets * (1.0 - amount) + amount * (0.5 if loss == "bce" else 1.0 / targets.shape[1])


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

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return uint8 (img_size, img_size, 3), and float32 (C,) with 1 for each label."""
        if not self.multi_label and len(sample.labels) != 1:
            raise DataError(f"expected one label, got {len(sample.labels)}", where=sample.id)
        target = np.zeros(self.num_classes, dtype=np.float32)
        target[list(sample.labels)] = 1.0
        image = read_image(sample.image, upright=sample.upright)
        aspect = image.shape[1] / image.shape[0]
        window: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (aspect, aspect)}  # the whole image
        view = augment(
            image,
            (self.img_size, self.img_size),
            rng,
            flip=self.hflip,
            jitter=self.color_jitter,
            interpolation=self.interpolation,
            **(window if self.crop_scale is None else {"scale": self.crop_scale}),
        )
        return view, target


@dataclass(frozen=True)
class _Work:
    """What `fit` asks of a classifier: batches, their loss, and the scores of the validation split."""

    config: TrainConfig
    dataset: data.Dataset
    val: data.Dataset | None
    classifier: Classifier
    strategy: MixStrategy | StepStrategy
    loss_name: str
    device: torch.device
    failures: Failures = field(default_factory=Failures)

    @property
    def batches(self) -> Batches:
        config, spec = self.config, self.dataset.spec
        views = ClassifierViews(
            num_classes=len(spec.classes),
            multi_label=spec.multi_label,
            img_size=config.img_size,
            interpolation=self.classifier.interpolation,
            crop_scale=config.crop_scale if config.resize == "crop" else None,
            hflip=config.hflip,
            color_jitter=config.color_jitter,
        )
        return Batches(self.dataset.samples, views, batch_size=config.batch_size, seed=config.seed, shuffle=True)

    def stream(self, start: int) -> Iterator[Batch]:
        epochs = range(start, self.config.epochs)
        return self.batches.stream(epochs, workers=self.config.workers, device=self.device)

    def loss(self, batch: Batch, epoch: int, step: int) -> Tensor | None:
        self.failures.note(batch.failed)
        if len(batch.images) < min(2, self.config.batch_size):  # batch norm cannot learn from a lone image
            return None
        x = self._input(batch)
        y = smooth(torch.from_numpy(batch.targets).to(self.device), self.config.smoothing, loss=self.loss_name)
        context = Context(self.classifier, self._criterion, epoch=epoch, epochs=self.config.epochs, amp=self.config.amp)
        draws = self.strategy.draw(x, generator(self.config.seed, "mix", epoch, step))
        if isinstance(self.strategy, StepStrategy):
            raise ConfigError("strategies that replace the step cannot be trained yet", where=self.config.mix)
        mixed = self.strategy.mix(x, y, draws, context)
        return self.strategy.loss(mixed, self.strategy.forward(mixed, context), context)

    @property
    def _criterion(self) -> Callable[[Tensor, Tensor], Tensor]:
        return F.binary_cross_entropy_with_logits if self.loss_name == "bce" else F.cross_entropy

    def probe(self) -> History:
        """Fit the head alone and return a history of one row."""
        clock = time.monotonic()
        module, weight_decay = self.classifier.module.eval(), self.config.weight_decay
        loss = fit_head(self.classifier, self._features(), loss=self.loss_name, weight_decay=weight_decay)
        row = {"epoch": 1, "loss": loss} | ({} if self.val is None else self.evaluate(module))
        history = [row | {"seconds": round(time.monotonic() - clock, 3)}]
        write_history(self.config.out, history)
        return history

    def _features(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = self._plain_batches(self.dataset)
        with track(batches.steps, "features", quiet=self.config.quiet) as tracker:
            for batch in batches.stream(range(1), workers=self.config.workers, device=self.device):
                self.failures.note(batch.failed)
                if len(batch.images):
                    targets = torch.from_numpy(batch.targets).to(self.device)
                    targets = smooth(targets, self.config.smoothing, loss=self.loss_name)
                    yield pooled_features(self.classifier, self._input(batch)), targets
                tracker.advance()

    @torch.no_grad()
    def evaluate(self, module: nn.Module) -> dict[str, float]:
        spec, batches = self._measured.spec, self._plain_batches(self._measured)
        scores, targets = [], []
        for batch in itertools.islice(self._val_stream, batches.steps):
            self.failures.note(batch.failed)
            if len(batch.images):
                scores.append(self._logits(module, self._input(batch)).cpu().numpy())
                targets.append(batch.targets)
        if not scores:
            raise DataError("no image of the validation split can be used", where=spec.split)
        return _metrics(np.concatenate(scores), np.concatenate(targets), multi_label=spec.multi_label)

    @property
    def _measured(self) -> data.Dataset:
        return self.val or self.dataset

    def _plain_batches(self, dataset: data.Dataset) -> Batches:
        spec, size = dataset.spec, self.config.img_size
        views = ClassifierViews(len(spec.classes), spec.multi_label, size, self.classifier.interpolation)
        return Batches(dataset.samples, views, batch_size=self.config.batch_size)

    @cached_property
    def _val_stream(self) -> Iterator[Batch]:
        """One stream for all epochs, so that its reading processes start once."""
        epochs = range(self.config.epochs)
        return self._plain_batches(self._measured).stream(epochs, workers=self.config.workers, device=self.device)

    def _input(self, batch: Batch) -> Tensor:
        mean, std = self.classifier.mean, self.classifier.std
        return normalize(batch.images, mean=mean, std=std, device=self.device)

    def _logits(self, module: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.amp):
            logits: Tensor = module(x)
        return logits.float()


def _metrics(scores: NDArray[np.float32], targets: NDArray[np.float32], *, multi_label: bool) -> dict[str, float]:
    if multi_label:
        return {"val_map": mean_average_precision(scores, targets)}
    labels = targets.argmax(axis=1)
    top5 = {"val_top5": topk_accuracy(scores, labels, k=5)} if scores.shape[1] > 5 else {}
    return {"val_top1": topk_accuracy(scores, labels), **top5}


def _loss_name(config: TrainConfig, *, multi_label: bool) -> str:
    if config.loss == "ce" and multi_label:
        raise ConfigError("cross-entropy needs one label an image", where="--loss", hint="use --loss bce or auto")
    if config.loss == "auto":
        return "bce" if multi_label else "ce"
    return config.loss


def _freeze_backbone(classifier: Classifier) -> None:
    heads = head_names(classifier.module)
    for name, parameter in classifier.module.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] in heads)
