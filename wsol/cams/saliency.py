"""Saliency: how strongly the class score answers to each input pixel.

Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency
Maps", ICLR Workshop 2014, https://arxiv.org/abs/1312.6034. Section 3.1: M_c = max over the colours of |dy_c/dx|. The
maps have the size of the input instead of the model's grid.

With `samples`, SmoothGrad (Smilkov, Thorat, Kim, Viegas, Wattenberg, "SmoothGrad: removing noise by adding noise",
2017, https://arxiv.org/abs/1706.03825): the gradient is the mean over that many copies of the image with Gaussian
noise, drawn from a seed and the same for every image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._gradient import class_gradients
from wsol.cams._layers import check_scores
from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose
from wsol.errors import ConfigError
from wsol.models.classifier import Classifier


@CAMS.register("saliency")
@dataclass(frozen=True, kw_only=True)
class Saliency(MapMethod):
    """How strongly the class score answers to each input pixel."""

    samples: int = 0
    """Noisy copies to average the gradient over (SmoothGrad); 0 takes the image itself."""
    noise: float = 0.15
    """Standard deviation of the noise, as a share of the range of the image's values."""
    seed: int = 0
    """Seed of the noise."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without class scores, and options out of range."""
        check_scores(classifier)
        if self.samples < 0 or self.noise < 0:
            what = f"samples and noise must not be negative, got {self.samples} and {self.noise}"
            raise ConfigError(what, where="saliency")

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        with torch.inference_mode(False), torch.enable_grad():
            plain = images.clone() if images.is_inference() else images.detach()
            pixels = plain.detach().requires_grad_()
            scores = classifier.module(pixels)
            logits = scores.detach().float()
            ids = choose(class_ids, logits)
            if self.samples:
                del scores  # and its graph
                gradients = self._smooth(classifier, plain, ids)
            else:
                gradients = _gradients(scores, ids, pixels)
        planes = gradients.abs().amax(2)
        return RawMaps(tuple(rows[: len(row)] for rows, row in zip(planes, ids, strict=True)), ids, logits)

    def _smooth(self, classifier: Classifier, plain: Tensor, ids: tuple[tuple[int, ...], ...]) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        spread = self.noise * (plain.amax((1, 2, 3), keepdim=True) - plain.amin((1, 2, 3), keepdim=True))
        total = torch.zeros((), device=plain.device)
        for _ in range(self.samples):
            drawn = torch.randn(plain.shape[1:], generator=generator).to(plain)
            pixels = (plain + spread * drawn).requires_grad_()
            total = total + _gradients(classifier.module(pixels), ids, pixels)
        return total / self.samples


def _gradients(scores: Tensor, ids: tuple[tuple[int, ...], ...], pixels: Tensor) -> Tensor:
    """Return (B, most, 3, h, w), zeros after the last class of an image."""
    total = pixels.new_zeros(
        len(ids), max((len(row) for row in ids), default=0), *pixels.shape[1:], dtype=torch.float32
    )
    for k, (gradient,) in enumerate(class_gradients(scores, ids, [pixels])):
        if gradient is not None:
            total[:, k] = gradient.float()
    return total
