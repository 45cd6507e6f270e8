"""How well a segmentation network does on a split, epoch after epoch of its training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from wsol import data
from wsol.engine.loaders import Failures, read_images
from wsol.engine.segment_infer import View, predict_labels
from wsol.engine.train_options import LoopOptions
from wsol.errors import DataError, WsolError
from wsol.models.segmenter import Segmenter, SegmenterFacts
from wsol.ops.confusion import confusion_matrix, mean_iou
from wsol.schema import Sample


class Validation:
    """Measures a network on every image of a split.

    Args:
        dataset: Images and true masks.
        segmenter: Its facts and stride are those of the networks to measure.
        config: Options of the training.
        device: Where the networks are.
        failures: Gets the images that cannot be read.
    """

    def __init__(
        self,
        dataset: data.Dataset,
        segmenter: Segmenter,
        config: LoopOptions,
        *,
        device: torch.device,
        failures: Failures,
    ) -> None:
        self.dataset, self.config, self.device, self.failures = dataset, config, device, failures
        self._facts: SegmenterFacts = segmenter.facts
        self._stride = segmenter.stride

    def __call__(self, module: nn.Module) -> dict[str, float]:
        """Return {"val_miou": mean IoU in percent} of a network in evaluation mode."""
        segmenter = Segmenter(module, self._facts, self._stride)
        classes = len(self.dataset.spec.classes) + 1
        matrix = np.zeros((classes, classes), dtype=np.int64)
        for sample, image in itertools.islice(self._stream, len(self.dataset)):
            try:
                if isinstance(image, str):
                    raise DataError(image)
                labels = predict_labels(segmenter, image, View(amp=self.config.amp), device=self.device)
                matrix += confusion_matrix(self.dataset.read_truth(sample), labels, classes)
            except WsolError as error:
                self.failures.note([(sample.id, str(error))])
        return {"val_miou": 100.0 * mean_iou(matrix)}

    @cached_property
    def _stream(self) -> Iterator[tuple[Sample, NDArray[np.uint8] | str]]:
        """One stream for all epochs, so that its reading processes start once."""
        samples = self.dataset.samples * self.config.epochs
        return read_images(samples, workers=self.config.workers, device=self.device)
