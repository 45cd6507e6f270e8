"""What a classifier in training is worth on the validation split: accuracy, and how well its maps localize."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from wsol import cams, data
from wsol.cams.base import BoundMethod
from wsol.engine.loaders import Batch, Failures, normalize
from wsol.engine.scores import mean_average_precision, topk_accuracy
from wsol.engine.train_options import TrainConfig
from wsol.engine.train_work import plain_batches
from wsol.errors import ConfigError, DataError
from wsol.eval.curves import best_at
from wsol.eval.localization import localize
from wsol.eval.options import LocConfig, SegConfig
from wsol.eval.sources import Scores
from wsol.eval.sweep import SweepCounts, background_scores, constant_cut
from wsol.models.classifier import Classifier
from wsol.ops.normalize import normalize as to_unit_range
from wsol.schema import ScoreMaps
from wsol.store.atomic import atomic_write

ACCURACY = ("val_map", "val_top1")
LOCALIZATION = ("val_miou", "val_maxboxaccv2", "val_pxap")
History = list[dict[str, float]]


@dataclass(frozen=True)
class Measurement:
    """Measures the network on one split, again after each epoch.

    Attributes:
        config: Options of the training.
        dataset: The split.
        classifier: What is known of the network.
        device: Where it is.
        failures: Images that could not be used.
    """

    config: TrainConfig
    dataset: data.Dataset
    classifier: Classifier
    device: torch.device
    failures: Failures = field(default_factory=Failures)

    def __call__(self, module: nn.Module, history: History) -> dict[str, float]:
        """Return the metrics of a network in evaluation mode, and keep its weights where they are the best so far.

        Args:
            module: The network, with the layers of the classifier.
            history: Rows of the epochs, up to the one that has just ended.

        Raises:
            DataError: When no image can be used.
        """
        epoch, every = len(history), self.config.eval_loc
        localizes = every > 0 and (epoch % every == 0 or epoch == self.config.epochs)
        row = self.measure(module, localizes=localizes)
        if every:
            for name, metrics in (("best_acc", ACCURACY), ("best_loc", LOCALIZATION)):
                if _improves(row, history[:-1], metrics):
                    _save_weights(module, self.config.out / f"{name}.safetensors")
        return row

    def measure(self, module: nn.Module, *, localizes: bool = False) -> dict[str, float]:
        """Return the metrics of a network in evaluation mode."""
        classifier = copy.copy(self.classifier)
        classifier.module = module
        method = map_method(self.config.loc_method, classifier) if localizes else None
        scores, targets = [], []
        maps = _Maps(self.dataset) if localizes else None
        for batch in itertools.islice(self._stream, self._steps):
            self.failures.note(batch.failed)
            if not len(batch.images):
                continue
            x = normalize(batch.images, mean=self.classifier.mean, std=self.classifier.std, device=self.device)
            scores.append(self._logits(module, x).cpu().numpy())
            targets.append(batch.targets)
            if method is not None and maps is not None:
                maps.add(batch, self._maps(method, x, batch), scores[-1])
        if not scores:
            raise DataError("no image of the validation split can be used", where=self.dataset.spec.split)
        row = accuracy(np.concatenate(scores), np.concatenate(targets), multi_label=self.dataset.spec.multi_label)
        return row if maps is None else row | maps.metrics(self.config)

    def _maps(self, method: BoundMethod, x: Tensor, batch: Batch) -> list[NDArray[np.float16]]:
        labels = [sample.labels for sample in batch.samples]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.amp):
            raw = method(x, labels)
        how = method.method.normalization
        return [to_unit_range(values.float().cpu().numpy(), how).astype(np.float16) for values in raw.values]

    def _logits(self, module: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.amp):
            logits: Tensor = module(x)
        return logits.float()

    @cached_property
    def _stream(self) -> Iterator[Batch]:
        """One stream for all epochs, so that its reading processes start once."""
        batches, epochs = plain_batches(self.dataset, self.classifier, self.config), range(self.config.epochs)
        return batches.stream(epochs, workers=self.config.workers, device=self.device)

    @property
    def _steps(self) -> int:
        return plain_batches(self.dataset, self.classifier, self.config).steps


def accuracy(scores: NDArray[np.float32], targets: NDArray[np.float32], *, multi_label: bool) -> dict[str, float]:
    """Return mAP for several labels an image, top-1 and (with more than five classes) top-5 accuracy for one.

    Args:
        scores: (N, C) logits.
        targets: (N, C) zeros and ones.
        multi_label: Which of both.
    """
    if multi_label:
        return {"val_map": mean_average_precision(scores, targets)}
    labels = targets.argmax(axis=1)
    top5 = {"val_top5": topk_accuracy(scores, labels, k=5)} if scores.shape[1] > 5 else {}
    return {"val_top1": topk_accuracy(scores, labels), **top5}


def map_method(name: str, classifier: Classifier) -> BoundMethod:
    """Return a map method by name; "auto" takes cam where the network pools its features, else gradcam.

    Raises:
        ConfigError: On an unknown method.
        ModelError: When the method cannot work with the network.
    """
    if name == "auto":
        name = "cam" if classifier.pools_linearly else "gradcam"
    return cams.create(name, classifier)


def check_localizable(dataset: data.Dataset) -> None:
    """Refuse a split without boxes and masks.

    Raises:
        ConfigError: Naming the option.
    """
    if dataset.spec.annotations == "none":
        raise ConfigError(f"split '{dataset.spec.split}' has neither boxes nor masks", where="--eval-loc")


class _Maps:
    """Maps of a split and what they are worth: mIoU of seeds where images hold several classes, else boxes and PxAP.

    Seeds are counted at once and not kept; maps for boxes are kept, on the network's own grid.
    """

    def __init__(self, dataset: data.Dataset) -> None:
        self.dataset = dataset
        self.seeds = dataset.spec.multi_label and dataset.spec.annotations in ("mask", "both")
        self.backgrounds = background_scores(SegConfig.sweep)
        cuts = np.array([constant_cut(value) for value in self.backgrounds], dtype=np.float32)
        self.counts = SweepCounts.empty(np.unique(cuts), len(dataset.spec.classes) + 1)
        self.kept: dict[str, Scores] = {}

    def add(self, batch: Batch, values: list[NDArray[np.float16]], logits: NDArray[np.float32]) -> None:
        for sample, maps, scores in zip(batch.samples, values, logits, strict=True):
            if not self.seeds:
                self.kept[sample.id] = Scores(dict(zip(sample.labels, maps, strict=True)), logits=scores)
            elif sample.mask is not None:
                truth = self.dataset.read_truth(sample)
                ids, size = np.asarray(sample.labels, dtype=np.int16), (truth.shape[0], truth.shape[1])
                self.counts.add(ScoreMaps(id=sample.id, values=maps, class_ids=ids, image_size=size), truth)

    def read(self, image_id: str) -> Scores:
        """Return the scores of an image; see `eval.sources.MapSource`."""
        if image_id not in self.kept:
            raise DataError("the image could not be read", where=image_id)
        return self.kept[image_id]

    def metrics(self, config: TrainConfig) -> dict[str, float]:
        if self.seeds:
            curve = 100 * self.counts.mean_ious()
            return {"val_miou": float(curve[best_at(curve)])}
        options = LocConfig(maps=config.out, worst=0, workers=0)
        found = localize(options, source=self, dataset=self.dataset).result.metrics
        names = {"val_maxboxaccv2": "MaxBoxAccV2", "val_pxap": "PxAP"}
        return {key: found[name] for key, name in names.items() if math.isfinite(found.get(name, math.nan))}


def primary(row: Mapping[str, float], metrics: tuple[str, ...]) -> str | None:
    """Return the first of some metrics that a row has."""
    return next((name for name in metrics if name in row), None)


def _improves(row: Mapping[str, float], before: History, metrics: tuple[str, ...]) -> bool:
    name = primary(row, metrics)
    if name is None or not math.isfinite(row[name]):
        return False
    return all(not old.get(name, -math.inf) >= row[name] for old in before)


def _save_weights(module: nn.Module, path: Path) -> None:
    tensors = {name: item.detach().cpu().contiguous() for name, item in module.state_dict().items()}
    with atomic_write(path, durable=True) as stream:
        stream.write(save(tensors))
