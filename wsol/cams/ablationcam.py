"""Ablation-CAM: each channel weighed by how much the class score drops without it.

Desai, Ramaswamy, "Ablation-CAM: Visual Explanations for Deep Convolutional Network via Gradient-free Localization",
WACV 2020, https://doi.org/10.1109/WACV45572.2020.9093360. w_d = y_c - y_c(without F_d), M_c = sum_d w_d F_d. The
paper in the end divides by y_c, as does pytorch-grad-cam: a constant that normalization removes, but where a score is
negative the division would turn the map upside down, so it is left out. Channels become 0, as in the paper, and in
pytorch-grad-cam where the least activation is 0 (elsewhere it takes the least value - 1e7). torchcam does not have it.
The paper's final ReLU is left to the normalization of the maps.

No gradient, and only what follows the layer runs once a channel: the head alone for the last features, else the
model with a single image that the layer turns into a batch. Always in full precision: the drops are small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._layers import LayerMethod, check_scores, fuse, read
from wsol.cams.base import ClassChoice, RawMaps, choose
from wsol.errors import ConfigError
from wsol.models.classifier import Classifier
from wsol.models.taps import replaced, tap


@CAMS.register("ablationcam")
@dataclass(frozen=True, kw_only=True)
class AblationCAM(LayerMethod):
    """Each channel weighed by how much the class score drops without it."""

    batch_size: int = 32
    """Channels taken away in one forward pass."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without class scores or target layer."""
        check_scores(classifier)
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}", where="ablationcam")
        super().check(classifier)

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        names = self.layers(classifier)
        with torch.inference_mode(), tap(classifier.module, activations=names) as tapped:
            scores = classifier.module(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = scores.float().clone()
            ids = choose(class_ids, logits)
            layers = dict(zip(names, read(tapped, names, classifier, images), strict=True))
            values = tuple(
                fuse(
                    [
                        self._map(classifier, images[at : at + 1], name, item[at : at + 1], row)
                        for name, item in layers.items()
                    ]
                )
                for at, row in enumerate(ids)
            )
        return RawMaps(values, ids, logits)

    def _map(
        self, classifier: Classifier, image: Tensor, layer: str, activation: Tensor, class_ids: tuple[int, ...]
    ) -> Tensor:
        size = image.shape[-2:]
        channels = classifier.to_grid(activation, *size)[0].float()
        if not class_ids:
            return channels.new_zeros(0, *channels.shape[1:])
        drops = []
        with torch.inference_mode(), _continued(classifier, image, layer) as scores_of:
            for chunk in torch.split(torch.arange(len(channels), device=image.device), self.batch_size):
                # The last of each pass keeps all its channels: rounding is the same for all, and cancels.
                changed = activation.to(image.dtype).repeat(len(chunk) + 1, *[1] * (activation.ndim - 1))
                # The grid is a view: what becomes 0 there becomes 0 in the activation, prefix tokens stay.
                classifier.to_grid(changed, *size)[torch.arange(len(chunk), device=image.device), chunk] = 0
                scores = scores_of(changed)[:, class_ids].float()
                drops.append(scores[-1:] - scores[:-1])
        return torch.einsum("dk,dhw->khw", torch.cat(drops), channels)


@contextmanager
def _continued(classifier: Classifier, image: Tensor, layer: str) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function from what a layer gives (N, ...) to scores (N, C)."""
    module: Any = classifier.module
    if classifier.kind == "cnn" and layer == classifier.layer:
        yield module.forward_head
        return
    given: list[Tensor] = []

    def scores_of(changed: Tensor) -> Tensor:
        given[:] = [changed]
        scores: Tensor = module(image)
        return scores

    with replaced(module, layer, lambda: given[0]):
        yield scores_of
