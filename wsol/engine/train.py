"""`wsol train`: a classifier from image-level labels, with a mix strategy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import torch
from torch import nn

from wsol import mix
from wsol.data import Dataset
from wsol.engine.device import resolve_device
from wsol.engine.fit import History, Trained, fit, read_history, write_history
from wsol.engine.label_maps import open_label_maps
from wsol.engine.linear_probe import fit_head
from wsol.engine.loaders import load_splits
from wsol.engine.losses import loss_name
from wsol.engine.measure import Measurement, check_localizable, map_method
from wsol.engine.model_card import write_model_card
from wsol.engine.optim import check_optimizer, make_optimizer
from wsol.engine.outcome import log_to
from wsol.engine.parallel import World, joined, own_device
from wsol.engine.seeding import own_randomness, seed_torch
from wsol.engine.train_options import TrainConfig
from wsol.engine.train_work import Work
from wsol.engine.training_run import open_training
from wsol.errors import ConfigError
from wsol.mix import StepStrategy
from wsol.mix._forward import check_needs
from wsol.models.checkpoints import head_names
from wsol.models.classifier import Classifier, load_classifier, save_classifier

_log = logging.getLogger("wsol")


def train(config: TrainConfig) -> Trained:
    """Train a classifier, or continue a training that was interrupted.

    Under torchrun all processes train one classifier together; the first writes the files.

    Args:
        config: See `TrainConfig`.

    Returns:
        The run folder (model.safetensors, model.json, card.md, curves.svg, checkpoint.pt, history.jsonl, and with
        `eval_loc` best_acc.safetensors and best_loc.safetensors), the history, and the images that were left out.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    check_optimizer(config.opt)
    device = resolve_device(own_device(config.device))
    with joined(device) as world, own_randomness(device):
        return _train(config, device, world)


def prepare(config: TrainConfig, device: torch.device, world: World | None = None) -> tuple[Work, Dataset | None]:
    """Load what a training needs, without writing anything.

    Args:
        config: Checked options.
        device: Where to train.
        world: Who trains.

    Returns:
        The work, and the validation split where there is one.

    Raises:
        WsolError: On a mistake in the options, or when model, data and strategy do not go together.
    """
    dataset, val = load_splits(config)
    spec = dataset.spec
    loss, strategy = loss_name(config, multi_label=spec.multi_label), mix.create(config.mix, **config.mix_options)
    wanted = "label_maps" in strategy.wants()
    maps = open_label_maps(config.label_maps, spec, img_size=config.img_size, wanted=wanted)
    if config.eval_loc and val is not None:
        check_localizable(val)
    seed_torch(device, config.seed, "weights")
    classifier = load_classifier(
        config.model,
        checkpoint=config.checkpoint,
        pretrained=config.pretrained,
        num_classes=len(spec.classes),
        img_size=config.img_size,
        device=device,
    )
    check_needs(classifier, strategy.wants() - {"label_maps"})
    strategy.check(classifier)
    if config.eval_loc:
        map_method(config.loc_method, classifier)
    if config.freeze_backbone:
        _freeze_backbone(classifier)
    own = strategy.own(classifier)
    work = Work(
        config=config,
        dataset=dataset,
        classifier=classifier,
        strategy=strategy,
        own=None if own is None else own.to(device),
        loss_name=loss,
        device=device,
        label_maps=maps,
        world=world or World(),
    )
    return work, val


def _train(config: TrainConfig, device: torch.device, world: World) -> Trained:
    work, val = prepare(config, device, world)
    dataset, classifier = work.dataset, work.classifier
    spec = dataset.spec
    run, ended = open_training(
        config, verb="train", dataset=spec, device=str(device), checkpoint=config.checkpoint, world=world
    )
    if ended:
        return Trained(config.out, read_history(config.out))
    measurement = None if val is None else Measurement(config, val, classifier, device, work.failures)
    if run is None:
        return Trained(config.out, _fit(work, measurement), world.merge(work.failures))
    with run, log_to(config.out / "log.txt"):
        _log.info("%s", classifier.describe())
        history = _probe(work, measurement) if config.linear_probe else _fit(work, measurement)
        failures = world.merge(work.failures)
        # The weights come last: they say that the training has ended, and nothing more would be written after a kill.
        write_model_card(config, history, classifier, dataset=dataset, val=val, loss=work.loss_name)
        save_classifier(classifier, config.out, classes=spec.classes, multi_label=spec.multi_label)
        run.facts.update(images=len(dataset), failed=len(failures), loss=work.loss_name, last=history[-1])
    return Trained(config.out, history, failures)


def _fit(work: Work, measurement: Measurement | None) -> History:
    config, module = work.config, work.classifier.module
    set_mode: Callable[[nn.Module], object] = nn.Module.eval if config.freeze_backbone else nn.Module.train
    return fit(
        module,
        config,
        device=work.device,
        steps=work.batches.steps,
        batches=work.stream,
        loss_of=work.loss,
        set_mode=set_mode,
        optimizer=make_optimizer(module, config, layer_decay=config.layer_decay, own=work.own),
        own=work.own,
        accumulates=isinstance(work.strategy, StepStrategy),
        after_step=work.after_step,
        observe=measurement,
        world=work.world,
    )


def _probe(work: Work, measurement: Measurement | None) -> History:
    """Fit the head alone and return a history of one row."""
    if work.world.size > 1:
        raise ConfigError("--linear-probe runs in one process", hint="start it without torchrun")
    clock = time.monotonic()
    module = work.classifier.module.eval()
    loss = fit_head(work.classifier, work.features(), loss=work.loss_name, weight_decay=work.config.weight_decay)
    row = {"epoch": 1, "loss": loss}
    row |= {} if measurement is None else measurement.measure(module, localizes=work.config.eval_loc > 0)
    history = [row | {"seconds": round(time.monotonic() - clock, 3)}]
    write_history(work.config.out, history)
    return history


def _freeze_backbone(classifier: Classifier) -> None:
    heads = head_names(classifier.module)
    for name, parameter in classifier.module.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] in heads)
