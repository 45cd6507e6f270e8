"""Time a training step of every mix strategy against plain training, taking turns in one run.

    python tools/bench_mix.py [--quick] [--json FILE] [--part resnet18|deit_tiny|label_path]

A step goes from a batch in memory to the updated weights: normalizing, mixing, forward, backward, AdamW; on the GPU
where there is one. Ours is the
step with the strategy, the peer the step without; a ratio of 0.97 is an overhead of 3 %. label_path: TL-Align's labels
carried through twelve blocks, by ours as the share of the own image, by the peer for all of 1000 classes as the paper
writes it. All weights are random.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from _bench import Call, Case, main

from wsol import mix
from wsol.data import Dataset
from wsol.engine.loaders import Batch
from wsol.engine.step_time import stepper
from wsol.engine.train_options import TrainConfig
from wsol.engine.train_work import Work
from wsol.mix._label_path import carry
from wsol.models._wrapped import WRAPPERS
from wsol.models.build import build
from wsol.models.classifier import Classifier
from wsol.schema import DatasetSpec

TARGETS = {("resnet18", "mixup"): 1.03, ("resnet18", "cutmix"): 1.03}
TARGETS |= {("deit_tiny", "transmix"): 1.05, ("deit_tiny", "lumix"): 1.05}
MODELS = {"resnet18": "resnet18", "deit_tiny": "deit_tiny_patch16_224"}
BATCH, SIDE, CLASSES, BLOCKS, TOKENS = 16, 224, 1000, 12, 197


def cases(device: str) -> list[Case]:
    """Return the steps of all strategies on both models, and the label path."""
    found = [
        Case(
            f"{name} on {model}, {BATCH} x {SIDE} x {SIDE}",
            step(name, MODELS[model], device),
            part=model,
            quick=(model, name) in TARGETS,
            rounds=9 if (model, name) in TARGETS else 3,
            memory=False,
            target=1 / TARGETS[model, name] if (model, name) in TARGETS else None,
        )
        for model in MODELS
        for name in mix.MIXES.names()
        if name not in ("none", "until", "choice") and trains(name, model)
    ]
    return [*found, Case("labels through 12 blocks, 1000 classes", label_path(device), part="label_path", quick=True)]


def trains(name: str, model: str) -> bool:
    """Whether a strategy is timed on a model: without files, and on the transformer if it looks at tokens."""
    strategy = mix.create(name)
    on_attention = strategy.family == "attention" or name in WRAPPERS or ("deit_tiny", name) in TARGETS
    return "label_maps" not in strategy.wants() and on_attention == (model == "deit_tiny")


def step(name: str, model: str, device: str, *, side: int = SIDE) -> Any:
    """Return a builder of the steps with a strategy and without."""

    def both(_: ExitStack) -> tuple[Call, Call]:
        rng = np.random.default_rng(0)
        targets = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, BATCH)]
        batch = Batch(rng.integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8), targets)
        return tuple(taken(work(name, model, device, side), batch) for name in (name, "none"))  # type: ignore[return-value]

    return both


def work(name: str, model: str, device: str, side: int) -> Work:
    """Return the training of a model with random weights, without a data set."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        known = f"{name}:{model}" if name in WRAPPERS else model
        module = build(known, num_classes=CLASSES, img_size=side, pretrained=False).to(device)
        classifier = Classifier(module, name=known, input_size=(side, side))
        strategy = mix.create(name)
        strategy.check(classifier)
        own = strategy.own(classifier)
    config = TrainConfig(data="none", out=Path(), model=model, batch_size=BATCH, img_size=side, mix=name)
    own = None if own is None else own.to(device)
    spec = DatasetSpec("none", tuple(map(str, range(CLASSES))), Path(), "none", multi_label=False)
    return Work(config, Dataset(spec, ()), classifier, strategy, own, "ce", torch.device(device))


def taken(training: Work, batch: Batch) -> Call:
    """Return one step a call; there is no output to compare."""
    take = stepper(training, batch)

    def call() -> list[Any]:
        take()
        return []

    return call


def label_path(device: str, *, classes: int = CLASSES) -> Any:
    """Return a builder: shares of the own image, and labels of all classes."""

    def build(_: ExitStack) -> tuple[Call, Call]:
        generator = torch.Generator().manual_seed(0)
        attention = torch.rand(BATCH, TOKENS, TOKENS, generator=generator).softmax(-1).to(device)
        share = torch.rand(BATCH, TOKENS, 1, generator=generator).to(device)
        own, partner = torch.rand(2, BATCH, 1, classes, generator=generator).to(device)

        def ours() -> Any:
            at = share
            for _ in range(BLOCKS):
                at = carry(at, attention)
            return (at * own + (1 - at) * partner)[:, 0].cpu().numpy()

        def peer() -> Any:
            labels = share * own + (1 - share) * partner
            for _ in range(BLOCKS):
                labels = carry(labels, attention)
            return labels[:, 0].cpu().numpy()

        return ours, peer

    return build


def setup(threads: int) -> None:
    """Give every library so many threads."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


if __name__ == "__main__":
    where = "cuda" if torch.cuda.is_available() else "cpu"
    raise SystemExit(main(__doc__ or "", cases(where), threads=os.cpu_count() or 1, setup=setup))
