"""`wsol segment train`: a segmentation network on pseudo-masks or true masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from wsol import data
from wsol.engine.device import resolve_device
from wsol.engine.fit import History, Trained, fit, read_history
from wsol.engine.loaders import Batch, Batches, Failures, load_splits, normalize
from wsol.engine.losses_segment import dense_energy, hard_pixel_loss, masked_cross_entropy
from wsol.engine.mask_source import with_masks
from wsol.engine.optim import check_optimizer, make_optimizer, scale_rate
from wsol.engine.outcome import log_to
from wsol.engine.parallel import World, joined, own_device
from wsol.engine.seeding import generator, own_randomness, seed_torch
from wsol.engine.segment_data import SegmenterViews
from wsol.engine.segment_measure import Validation
from wsol.engine.segment_options import SegmentTrainConfig
from wsol.engine.segment_predict import segment_predict
from wsol.engine.tile_mix import WithTeacher
from wsol.engine.training_run import open_training
from wsol.models.segmenter import Segmenter, create_segmenter, save_segmenter

__all__ = ["segment_predict", "segment_train"]
_log = logging.getLogger("wsol")


def segment_train(config: SegmentTrainConfig) -> Trained:
    """Train a segmentation network, or continue a training that was interrupted.

    Under torchrun all processes train one network together; the first writes the files.

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
    device = resolve_device(own_device(config.device))
    with joined(device) as world, own_randomness(device):
        return _train(config, device, world)


def _train(config: SegmentTrainConfig, device: torch.device, world: World) -> Trained:
    dataset, val = load_splits(config)
    dataset, missing = with_masks(dataset, config.masks, min_confidence=config.min_confidence)
    seed_torch(device, config.seed, "weights")
    segmenter = create_segmenter(
        config.arch,
        config.encoder,
        classes=dataset.spec.classes,
        img_size=config.img_size,
        encoder_weights=config.encoder_weights,
        checkpoint=config.checkpoint,
        decoder=config.decoder,
        drop_path=config.drop_path,
        device=device,
    )
    run, ended = open_training(
        config,
        verb="segment train",
        dataset=dataset.spec,
        device=str(device),
        checkpoint=config.checkpoint,
        world=world,
    )
    if ended:
        return Trained(config.out, read_history(config.out))
    work = _Work(config, dataset, val, segmenter, device, world)
    if run is None:
        return Trained(config.out, _fit(work), world.merge(work.failures))
    with run, log_to(config.out / "log.txt"):
        if segmenter.facts.decoder == "mask" and len(dataset.spec.classes) == 1:
            # Its norm over two outputs leaves nothing but their order, and hardly a gradient.
            _log.info("with one class, --decoder linear learns better than the mask transformer")
        if missing:
            _log.info("%d of %d images have no mask and are left out", missing, missing + len(dataset))
        history = _fit(work)
        failures = world.merge(work.failures)
        save_segmenter(segmenter, config.out)
        run.facts.update(images=len(dataset), without_mask=missing, failed=len(failures), last=history[-1])
    return Trained(config.out, history, failures)


def _fit(work: _Work) -> History:
    network = work.network
    return fit(
        network,
        work.config,
        device=work.device,
        steps=work.batches.steps,
        batches=work.stream,
        loss_of=work.loss,
        evaluate=None if work.val is None else work.evaluate,
        optimizer=work.optimizer(),
        after_step=(lambda _: network.follow()) if isinstance(network, WithTeacher) else None,
        world=work.world,
    )


@dataclass(frozen=True)
class _Work:
    """What `fit` asks of a segmentation network: batches, their loss, and the scores of the validation split."""

    config: SegmentTrainConfig
    dataset: data.Dataset
    val: data.Dataset | None
    segmenter: Segmenter
    device: torch.device
    world: World
    failures: Failures = field(default_factory=Failures)

    @cached_property
    def network(self) -> nn.Module:
        """What is trained: the network, with its teacher where there is one."""
        module = self.segmenter.module
        return WithTeacher(module, ramp=self.config.mum_ramp) if self.config.mum_weight else module

    def optimizer(self) -> torch.optim.Optimizer:
        optimizer = make_optimizer(self.network, self.config)
        if self.config.encoder_lr_scale != 1:
            scale_rate(optimizer, self.segmenter.module.get_submodule("encoder"), self.config.encoder_lr_scale)
        return optimizer

    @cached_property
    def batches(self) -> Batches:
        config = self.config
        views = SegmenterViews(
            self.dataset.truth,
            len(self.dataset.spec.classes),
            config.img_size,
            config.zoom,
            config.hflip,
            config.color_jitter,
            photometric=config.photometric,
            cat_max_ratio=config.cat_max_ratio,
            whole=bool(config.crf_weight or config.mum_weight),
        )
        return Batches(self.dataset.samples, views, batch_size=config.batch_size, seed=config.seed, shuffle=True)

    def stream(self, start: int) -> Iterator[Batch]:
        epochs, share = range(start, self.config.epochs), (self.world.rank, self.world.size)
        return self.batches.stream(epochs, workers=self.config.workers, device=self.device, share=share)

    def loss(self, batch: Batch, epoch: int, step: int) -> Tensor | None:
        config, network = self.config, self.network
        self.failures.note(batch.failed)
        if len(batch.images) < min(2, config.batch_size):  # batch norm cannot learn from a lone image
            return None
        facts = self.segmenter.facts
        x = normalize(batch.images, mean=facts.mean, std=facts.std, device=self.device)
        labels, inside = torch.from_numpy(batch.targets).to(self.device).unbind(1)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=config.amp):
            logits = network(x)
            if isinstance(network, WithTeacher):
                numbers = torch.Generator().manual_seed(int(generator(config.seed, "mix", epoch, step).integers(2**63)))
                agreement = config.mum_weight * network.consistency(x, numbers)
        loss = self._on_labels(logits.float(), labels)
        if config.crf_weight:
            energy = dense_energy(
                logits.float().softmax(dim=1),
                batch.images,
                inside.bool(),
                sigma_rgb=config.crf_sigma_rgb,
                sigma_xy=config.crf_sigma_xy,
                scale=config.crf_scale,
            )
            loss = loss + config.crf_weight * energy
        return loss + agreement if isinstance(network, WithTeacher) else loss

    def _on_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        config = self.config
        if config.loss == "ohem":
            return hard_pixel_loss(logits, labels, threshold=config.ohem_threshold, keep=config.ohem_keep)
        return masked_cross_entropy(logits, labels)

    def evaluate(self, module: nn.Module) -> dict[str, float]:
        return self._validation(module.student if isinstance(module, WithTeacher) else module)

    @cached_property
    def _validation(self) -> Validation:
        measured = self.val or self.dataset
        return Validation(measured, self.segmenter, self.config, device=self.device, failures=self.failures)
