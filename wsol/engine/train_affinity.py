"""`wsol refine train-affinity`: the network of PSA or IRNet from the score maps of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor

from wsol import data
from wsol.config import from_dict
from wsol.data.images import read_image
from wsol.data.transforms import augment_pair
from wsol.engine.affinity_labels import write_labels
from wsol.engine.affinity_loss import irn_loss, pair_labels, psa_loss
from wsol.engine.affinity_options import AffinityConfig, labels_of
from wsol.engine.device import resolve_device
from wsol.engine.fit import Trained, fit, has_ended, read_history
from wsol.engine.loaders import Batch, Batches, Failures, normalize
from wsol.engine.make_masks import dataset_of_run
from wsol.engine.optim import check_optimizer
from wsol.engine.outcome import log_to
from wsol.engine.seeding import own_randomness, seed_torch
from wsol.engine.training_run import checkpoint_hash
from wsol.errors import ConfigError, DataError
from wsol.models.affinity import AffinityModel, create_affinity, save_affinity
from wsol.models.pixel_pairs import Offsets, boundary_affinity, displacement_difference, feature_affinity
from wsol.ops.random_walk import neighbour_offsets
from wsol.schema import Sample
from wsol.store.masks import mask_path, read_labels
from wsol.store.runs import open_run, read_info


def train_affinity(config: AffinityConfig) -> Trained:
    """Train a network of affinities, or continue a training that was interrupted.

    The certain labels are written first, as masks of the run; then the network is trained on them.

    Args:
        config: See `AffinityConfig`.

    Returns:
        The run folder (model.safetensors, model.json, masks/, checkpoint.pt, history.jsonl), the history, and the
        images that were left out.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    check_optimizer(config.opt)
    rule = from_dict(labels_of(config.method), config.options, where=f"labels of {config.method}")
    device = resolve_device(config.device)
    dataset = dataset_of_run(config.maps, limit=config.limit)
    with own_randomness(device):
        seed_torch(device, config.seed, "weights")
        model = create_affinity(
            config.method,
            config.model,
            img_size=config.img_size,
            checkpoint=config.checkpoint,
            pretrained=config.pretrained,
            output_stride=config.output_stride,
            frozen=config.freeze_backbone,
            device=device,
        )
        _check_size(config.img_size, model)
        run = open_run(
            config.out,
            verb="refine train-affinity",
            config=config,
            dataset=dataset.spec,
            device=str(device),
            inputs={str(config.maps): read_info(config.maps).config_hash, **checkpoint_hash(config.checkpoint)},
            overwrite=config.overwrite,
        )
        if has_ended(config.out, resume=config.resume):
            return Trained(config.out, read_history(config.out))
        with run, log_to(config.out / "log.txt"):
            failures = Failures()
            labelled = write_labels(
                config.out,
                dataset.samples,
                maps=config.maps,
                rule=rule,
                workers=config.workers,
                failures=failures,
                quiet=config.quiet,
            )
            if not labelled:
                raise DataError("no image has score maps", where=config.maps, hint="give a finished run of wsol cam")
            work = _Work(config, replace(dataset, samples=labelled), model, neighbour_offsets(rule.radius), failures)
            history = fit(
                model.module,
                config,
                device=device,
                steps=work.batches.steps,
                batches=work.stream,
                loss_of=work.loss,
                optimizer=_optimizer(model, config),
            )
            save_affinity(model, config.out)
            run.facts.update(images=len(labelled), failed=len(failures), last=history[-1])
    return Trained(config.out, history, dict(failures))


@dataclass(frozen=True)
class AffinityViews:
    """Reads an image and its certain labels; see `loaders.Views`."""

    config: AffinityConfig
    stride: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return uint8 (img_size, img_size, 3), and uint8 labels of the centres of the grid's cells."""
        config = self.config
        image = read_image(sample.image, upright=sample.upright)
        labels = read_labels(mask_path(config.out, sample.id))
        if image.shape[:2] != labels.shape:
            raise DataError(f"the maps are of an image {labels.shape}, not {image.shape[:2]}", where=sample.id)
        size = (config.img_size, config.img_size)
        view, labels = augment_pair(
            image, labels, size, rng, scale=config.zoom, flip=config.hflip, jitter=config.color_jitter
        )
        centres = slice(self.stride // 2, None, self.stride)
        return view, labels[centres, centres]


@dataclass(frozen=True)
class _Work:
    """What `fit` asks of a network of affinities: batches and their loss."""

    config: AffinityConfig
    dataset: data.Dataset
    model: AffinityModel
    offsets: Offsets
    failures: Failures = field(default_factory=Failures)

    @cached_property
    def batches(self) -> Batches:
        config, views = self.config, AffinityViews(self.config, self.model.stride)
        return Batches(self.dataset.samples, views, batch_size=config.batch_size, seed=config.seed, shuffle=True)

    def stream(self, start: int) -> Iterator[Batch]:
        epochs = range(start, self.config.epochs)
        return self.batches.stream(epochs, workers=self.config.workers, device=self.model.device)

    def loss(self, batch: Batch, epoch: int, step: int) -> Tensor | None:
        del epoch, step
        self.failures.note(batch.failed)
        if not len(batch.images):
            return None
        device, facts = self.model.device, self.model.facts
        x = normalize(batch.images, mean=facts.mean, std=facts.std, device=device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.config.amp):
            output = self.model.module(x)
        pairs = pair_labels(torch.from_numpy(batch.targets).to(device), self.offsets)
        if facts.method == "psa":
            return psa_loss(feature_affinity(output.float(), self.offsets), pairs)
        boundary, displacements = (part.float() for part in output)
        affinity = boundary_affinity(torch.sigmoid(boundary), self.offsets)
        return irn_loss(affinity, displacement_difference(displacements, self.offsets), self.offsets, pairs)


def _check_size(img_size: int, model: AffinityModel) -> None:
    multiple = max(model.module.backbone.multiple, model.stride)
    if img_size % multiple:
        below = max(multiple, img_size - img_size % multiple)
        hint = f"for example --img-size {below}"
        raise ConfigError(f"--img-size must be a multiple of {multiple} for this backbone, got {img_size}", hint=hint)


def _optimizer(model: AffinityModel, config: AffinityConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": parameters, "lr": factor * config.lr}
        for factor, parameters in model.module.parameter_groups()
        if parameters
    ]
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
    )
    return optimizer
