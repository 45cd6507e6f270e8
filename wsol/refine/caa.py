"""CAA: maps of any method spread along the attention of a vision transformer, from the boxes around their peaks.

Lin et al., "CLIP is Also an Efficient Segmenter: A Text-Driven Approach for Weakly Supervised Semantic Segmentation",
CVPR 2023, https://arxiv.org/abs/2212.09506: the class-aware attention-based affinity of CLIP-ES. Attention of the last
blocks, made nearly doubly stochastic and symmetric, is applied twice to each class's map within the boxes around its
strong regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsol.data.transforms import input_size, to_input
from wsol.errors import ConfigError
from wsol.ops.box_mask import box_masks
from wsol.ops.normalize import minmax
from wsol.ops.resize import resize_maps
from wsol.refine import REFINERS
from wsol.refine._walk import to_grid
from wsol.refine.base import check_inputs, with_background

if TYPE_CHECKING:
    from wsol.models.classifier import Classifier


@REFINERS.register("caa")
@dataclass(frozen=True)
class CAA:
    """Affinity from the attention of a plain vision transformer: CLIP, DeiT, DINO or one of wsol train.

    Every class keeps the range of its scores; within it the map is the refined one, on the grid of the patches,
    enlarged bilinearly. The background stays as it came, or is made anew from the refined maps with `alpha`.

    Attributes:
        model: timm model name, or clip:NAME with open_clip's name; not needed when `checkpoint` is a run of wsol train.
        checkpoint: Weights: a file, a run folder of wsol train, or pip:PACKAGE.
        pretrained: Load pretrained weights from the hub instead.
        layers: Blocks whose attention counts, from the last one back; all where there are fewer.
        box_threshold: Share of a map's maximum above which it spreads.
        img_size: Limit of the long side in pixels at which the network sees the image; by default there is none.
        alpha: Background score (1 - max)^alpha of the refined maps.
        device: Torch device, for example "cpu" or "cuda".
    """

    model: str | None = None
    checkpoint: str | None = None
    pretrained: bool = False
    layers: int = 8
    box_threshold: float = 0.4
    img_size: int | None = None
    alpha: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("layers", "img_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"must be at least 1, got {value}", where=name)
        if not 0 <= self.box_threshold <= 1:
            raise ConfigError(f"must be in [0, 1], got {self.box_threshold}", where="box_threshold")
        if self.alpha is not None and not self.alpha > 0:
            raise ConfigError(f"must be positive, got {self.alpha}", where="alpha")

    def load(self) -> Classifier:
        """Return the network; see `wsol.refine.base.Learned`."""
        if self.checkpoint is None and not self.pretrained:
            hint = "give --options.checkpoint FILE or RUN, or --options.model NAME --options.pretrained"
            raise ConfigError("no checkpoint", where="refiner 'caa'", hint=hint)
        return _load(self.model, self.checkpoint, self.pretrained, self.device, _written(self.checkpoint))

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the scores with refined classes; see `wsol.refine.base.Refiner`."""
        check_inputs(image, scores)
        refined = np.array(scores, dtype=np.float32)
        if len(refined) > 1:
            for plane, spread in zip(refined[1:], self._spread(image, refined[1:]), strict=True):
                low, high = plane.min(), plane.max()
                plane[:] = low + (high - low) * spread
        return refined if self.alpha is None else with_background(refined[1:], alpha=self.alpha)

    def _spread(self, image: NDArray[np.uint8], maps: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return refined maps (K, H, W), each from 0 to 1; an even map becomes 0."""
        import torch  # with the network, not for --help

        from wsol.models.attention_affinity import mean_attention, spread

        classifier = self.load()
        stride, full = classifier.stride, (image.shape[0], image.shape[1])
        size = input_size(full, img_size=self.img_size, resize="native", stride=stride)
        filter_, mean, std = classifier.interpolation, classifier.mean, classifier.std
        pixels = torch.from_numpy(to_input(image, size, mean=mean, std=std, interpolation=filter_))
        grid = minmax(to_grid(maps, size, stride=stride))
        inside = torch.from_numpy(grid * box_masks(grid, threshold=self.box_threshold)).to(classifier.device)
        with torch.no_grad():
            attention = mean_attention(classifier, pixels[None].to(classifier.device), layers=self.layers)[0]
            refined = spread(attention, inside.flatten(1)).view_as(inside).cpu().numpy()
        return np.asarray(resize_maps(minmax(refined), full), dtype=np.float32)


def _written(checkpoint: str | None) -> int:
    """Return when a file of weights, or that of a run folder, was written; 0 where that cannot be told."""
    path = Path(checkpoint or "")
    path = path / "model.safetensors" if path.is_dir() else path
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=1)
def _load(name: str | None, checkpoint: str | None, pretrained: bool, device: str, written: int) -> Classifier:
    """Load the network, once a process, and again when its file changes."""
    del written
    from wsol.models.attention_affinity import check_attention
    from wsol.models.classifier import Classifier, load_classifier

    if (name or "").partition(":")[0] != "clip":
        classifier = load_classifier(name, checkpoint=checkpoint, pretrained=pretrained, device=device)
    else:
        from wsol.models.clip_load import load_towers  # open_clip takes seconds

        towers = load_towers(str(name), checkpoint=checkpoint, pretrained=pretrained, device=device)
        classifier = Classifier(towers.image, name=name)
    check_attention(classifier)
    return classifier
