"""`wsol segment single-stage`: classifier and segmentation network on one transformer, from image-level labels (GETAM).

Sun et al., "GETAM: Gradient-weighted Element-wise Transformer Attention Map for Weakly-supervised Semantic
segmentation", arXiv 2021, https://arxiv.org/abs/2112.02841. First the classifier learns alone. Then every step goes
through the network twice ("double back-propagation", which is not of second order): a pass whose gradients of the class
scores give the maps (`cams.getam`) and from them the labels, and a pass for the losses of both branches.

As in the published code: the course of a step, the sizes of the views, the formulas and weights of the losses, the
share of the classifier and the factor on the learning rate after it. Otherwise than there: all images share a backward
pass for their k-th class, and only attention gets gradients, which changes no value; padding is ignored instead of
background; the saliency loss takes what is salient or completed (the code's slip is an option); the network is put into
evaluation mode for the maps, where it has no dropout anyway. Saliency may be left out, which the paper does not do.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol import cams, data
from wsol.cams.base import BoundMethod
from wsol.engine.device import resolve_device
from wsol.engine.fit import History, Trained, fit, read_history
from wsol.engine.loaders import Batch, Batches, Failures, load_splits, normalize
from wsol.engine.optim import check_optimizer, make_optimizer
from wsol.engine.outcome import log_to
from wsol.engine.parallel import World, joined, own_device
from wsol.engine.seeding import own_randomness, seed_torch
from wsol.engine.segment_measure import Validation
from wsol.engine.single_stage_labels import SaliencyViews, online_labels, saliency_loss, segmentation_loss
from wsol.engine.single_stage_options import SingleStageConfig
from wsol.engine.training_run import open_training
from wsol.errors import ConfigError, DataError
from wsol.models.segmenter import Segmenter, create_segmenter, save_segmenter
from wsol.models.two_branch import TwoBranch, add_classifier
from wsol.schema import IGNORE

_log = logging.getLogger("wsol")
_ENCODER = "vit_base_patch16_384"


def segment_single_stage(config: SingleStageConfig) -> Trained:
    """Train a segmentation network from image-level labels, or continue a training that was interrupted.

    Under torchrun all processes train one network together; the first writes the files.

    Args:
        config: See `SingleStageConfig`.

    Returns:
        The run folder (model.safetensors and model.json of the segmentation network, checkpoint.pt with the classifier
        too, history.jsonl), the history, and the images that were left out.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    check_optimizer(config.opt)
    device = resolve_device(own_device(config.device))
    with joined(device) as world, own_randomness(device):
        return _train(config, device, world)


def _train(config: SingleStageConfig, device: torch.device, world: World) -> Trained:
    dataset, val = load_splits(config)
    if len(dataset.spec.classes) >= IGNORE:
        raise DataError(f"{len(dataset.spec.classes)} classes are too many for masks of one byte", where=config.data)
    seed_torch(device, config.seed, "weights")
    segmenter = _segmenter(config, dataset.spec.classes, device)
    branches = add_classifier(segmenter)
    run, ended = open_training(
        config,
        verb="segment single-stage",
        dataset=dataset.spec,
        device=str(device),
        checkpoint=config.checkpoint,
        world=world,
    )
    if ended:
        return Trained(config.out, read_history(config.out))
    work = _Work(config, dataset, val, segmenter, branches, device, world)
    if run is None:
        return Trained(config.out, work.fit(), world.merge(work.failures))
    with run, log_to(config.out / "log.txt"):
        history = work.fit()
        failures = world.merge(work.failures)
        save_segmenter(segmenter, config.out)
        run.facts.update(images=len(dataset), failed=len(failures), last=history[-1])
    return Trained(config.out, history, failures)


def _segmenter(config: SingleStageConfig, classes: tuple[str, ...], device: torch.device) -> Segmenter:
    encoder = config.encoder or (None if config.checkpoint else _ENCODER)
    segmenter = create_segmenter(
        config.arch,
        None if encoder is None else f"tu-{encoder.removeprefix('tu-')}",
        classes=classes,
        img_size=config.img_size,
        encoder_weights=config.encoder_weights,
        checkpoint=config.checkpoint,
        decoder=config.decoder,
        device=device,
    )
    if config.img_size % segmenter.stride:
        raise ConfigError(f"--img-size must be a multiple of {segmenter.stride}, got {config.img_size}")
    return segmenter


@dataclass
class _Work:
    """What `fit` asks of the two branches: batches, their loss, and the scores of the validation split."""

    config: SingleStageConfig
    dataset: data.Dataset
    val: data.Dataset | None
    segmenter: Segmenter
    branches: TwoBranch
    device: torch.device
    world: World = field(default_factory=World)
    failures: Failures = field(default_factory=Failures)

    def fit(self) -> History:
        return fit(
            self.branches,
            self.config,
            device=self.device,
            steps=self.batches.steps,
            batches=self.stream,
            loss_of=self.loss,
            evaluate=None if self.val is None else self.evaluate,
            set_mode=self.begin_epoch,
            optimizer=self.optimizer,
            world=self.world,
        )

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.branches, self.config)

    @cached_property
    def batches(self) -> Batches:
        config = self.config
        views = SaliencyViews(config.saliency, config.img_size, config.zoom, config.hflip, config.color_jitter)
        return Batches(self.dataset.samples, views, batch_size=config.batch_size, seed=config.seed, shuffle=True)

    @cached_property
    def maps(self) -> BoundMethod:
        classifier = self.branches.classifier(img_size=self.config.img_size)
        return cams.create("getam", classifier, start_layer=self.config.start_layer)

    def stream(self, start: int) -> Iterator[Batch]:
        epochs, share = range(start, self.config.epochs), (self.world.rank, self.world.size)
        self._coming = iter(epochs)
        return self.batches.stream(epochs, workers=self.config.workers, device=self.device, share=share)

    def begin_epoch(self, module: nn.Module) -> None:
        self._segments = next(self._coming) >= self.config.seg_start
        scale = self.config.seg_lr_scale if self._segments else 1.0
        for group in self.optimizer.param_groups:
            group["lr_scale"] = scale  # schedules apply it
        module.train()

    def loss(self, batch: Batch, epoch: int, step: int) -> Tensor | None:
        del epoch, step
        self.failures.note(batch.failed)
        if len(batch.images) < min(2, self.config.batch_size):  # batch norm cannot learn from a lone image
            return None
        facts, count = self.segmenter.facts, len(self.dataset.spec.classes)
        x = normalize(batch.images, mean=facts.mean, std=facts.std, device=self.device)
        ids = [sorted(set(sample.labels)) for sample in batch.samples]
        present = torch.stack([F.one_hot(torch.tensor(row, dtype=torch.long), count).sum(0) for row in ids])
        present = present.to(x)
        if not self._segments:
            with self._amp():
                scores = self.branches.classify(x)
            return F.multilabel_soft_margin_loss(scores.float(), present)
        labels, salient = self._labels(x, ids, batch)
        inside = torch.from_numpy(batch.targets != IGNORE).to(self.device)
        with self._amp():
            scores, logits = self.branches(x)
        loss = F.multilabel_soft_margin_loss(scores.float(), present)
        loss = loss + segmentation_loss(logits.float(), labels, batch.images, inside, crf_weight=self.config.crf_weight)
        return loss if salient is None else loss + saliency_loss(logits.float(), salient, inside)

    def _labels(self, x: Tensor, ids: list[list[int]], batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return uint8 (B, h, w) labels, and bool (B, h, w) where the saliency loss expects objects."""
        config = self.config
        with self._amp():
            raw = self.maps(x, ids)
        given = None if config.saliency is None else batch.targets == 1
        labels, completed = online_labels(
            raw.values,
            ids,
            batch.images,
            given,
            alpha=config.alpha,
            quantile=config.quantile,
            opening=config.opening,
        )
        labels[batch.targets == IGNORE] = IGNORE
        found = torch.from_numpy(labels).to(self.device)
        if given is None:
            return found, None
        salient = completed if config.released_saliency_loss else given | completed
        return found, torch.from_numpy(salient).to(self.device)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        return self._validation(module.get_submodule("segmenter")) if self._segments else {}

    @cached_property
    def _validation(self) -> Validation:
        return Validation(
            self.val or self.dataset, self.segmenter, self.config, device=self.device, failures=self.failures
        )

    def _amp(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.amp)
