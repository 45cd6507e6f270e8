"""DenseCRF: a fully connected CRF with a spatial and a bilateral Gaussian kernel, solved by mean field.

Krähenbühl, Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011,
https://arxiv.org/abs/1210.5644. Computes the marginals of the energy with unaries -log(score), Potts compatibility
and symmetrically normalised kernels, filtered on permutohedral lattices: the result of `pydensecrf`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.ops.permutohedral import Lattice, build_lattice
from wsol.refine import REFINERS
from wsol.refine._meanfield import mean_field
from wsol.refine.base import check_inputs

Preset = Literal["clipes", "irn", "irn_label", "afa", "toco", "toco_cam", "getam", "weaktr"]
# BGR means of the Caffe models.
_CAFFE_MEAN = np.array([104.008, 116.669, 122.675], np.float32)
# Scores are clipped from below before the logarithm.
_MIN_SCORE = 1e-5


class Setting(NamedTuple):
    """Widths, weights and updates of one published setting; see the fields of `DenseCRF`."""

    sxy_gaussian: float
    compat_gaussian: float
    sxy_bilateral: float
    srgb: float
    compat_bilateral: float
    iterations: int = 10


PRESETS: dict[Preset, Setting] = {
    "clipes": Setting(1, 3, 67, 3, 4),
    "irn": Setting(3, 3, 80, 13, 10),
    "irn_label": Setting(3, 3, 50, 5, 10),
    "afa": Setting(3, 3, 64, 5, 4),
    "toco": Setting(1, 1, 121, 5, 4),
    "toco_cam": Setting(3, 3, 36, 3, 4),
    "getam": Setting(3, 3, 83, 5, 4, 20),
    "weaktr": Setting(4, 3, 83, 5, 3),
}


@REFINERS.register("densecrf")
@dataclass(frozen=True)
class DenseCRF:
    """Fully connected CRF in one thread without the GIL: run one process or thread an image.

    Attributes:
        preset: Settings of the papers: "clipes" (also DeepLab, MoRe, ExCEL), "irn" (also PSA, PuzzleCAM),
            "irn_label" (the second CRF of IRN), "afa" (also WeCLIP), "toco" (also SeCo, DuPL), "toco_cam",
            "getam", "weaktr" (also MCTformer). Any value below replaces that of the preset.
        sxy_gaussian: Standard deviation of the spatial kernel, in pixels.
        compat_gaussian: Weight of the spatial kernel.
        sxy_bilateral: Standard deviation of the bilateral kernel in space, in pixels.
        srgb: Standard deviation of the bilateral kernel in colour, in grey levels.
        compat_bilateral: Weight of the bilateral kernel.
        iterations: Mean-field updates.
        image: "rgb", or "caffe_wrap" for what the CLIP-ES and DeepLab scripts hand over: BGR minus the mean, with
            negative values wrapped around by a cast to uint8. It is there to repeat their numbers.
    """

    preset: Preset = "clipes"
    sxy_gaussian: float | None = None
    compat_gaussian: float | None = None
    sxy_bilateral: float | None = None
    srgb: float | None = None
    compat_bilateral: float | None = None
    iterations: int | None = None
    image: Literal["rgb", "caffe_wrap"] = "rgb"

    def __post_init__(self) -> None:
        for name, value in self.setting._asdict().items():
            least = 0 if name.startswith("compat") or name == "iterations" else np.finfo(np.float32).tiny
            if not least <= value < np.inf:
                raise ConfigError(f"must be {'positive' if least else 'at least 0'}, got {value}", where=name)

    @property
    def setting(self) -> Setting:
        """The preset with the given values in place."""
        preset = PRESETS[self.preset]
        given = {name: getattr(self, name) for name in preset._fields if getattr(self, name) is not None}
        return preset._replace(**given)

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the marginals, which sum to one over C; see `wsol.refine.base.Refiner`."""
        check_inputs(image, scores)
        if len(scores) == 1:
            return np.ones_like(scores, dtype=np.float32)
        setting, (height, width) = self.setting, image.shape[:2]
        logs = np.log(np.clip(scores, np.float32(_MIN_SCORE), np.float32(1)), dtype=np.float32)
        logits = np.ascontiguousarray((logs[1:] - logs[0]).reshape(len(logs) - 1, -1).T)
        pixels = image if self.image == "rgb" else caffe_wrap(image)
        kernels = [
            _spatial(height, width, setting.sxy_gaussian),
            _bilateral(pixels, setting.sxy_bilateral, setting.srgb),
        ]
        compat = (setting.compat_gaussian, setting.compat_bilateral)
        return mean_field(logits, kernels, compat, iterations=setting.iterations).reshape(scores.shape)


def caffe_wrap(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return BGR minus the Caffe mean, truncated and taken modulo 256, for an RGB uint8 (H, W, 3) image.

    This is what the cast from float to uint8 does on x86; the language leaves it open.
    """
    shifted = image[:, :, ::-1].astype(np.float32) - _CAFFE_MEAN
    return np.asarray(np.trunc(shifted).astype(np.int64) & 255, dtype=np.uint8)


@lru_cache(maxsize=4)
def _spatial(height: int, width: int, sxy: float) -> Lattice:
    """The kernel of positions only, the same for all images of a size; about 10 MB for 500 x 375 at sxy 1."""
    return _normalised(build_lattice(_features(height, width, 2, sxy).reshape(-1, 2)))


def _bilateral(image: NDArray[np.uint8], sxy: float, srgb: float) -> Lattice:
    features = _features(image.shape[0], image.shape[1], 5, sxy)
    features[:, :, 2:] = image
    features[:, :, 2:] /= np.float32(srgb)
    return _normalised(build_lattice(features.reshape(-1, 5)))


def _features(height: int, width: int, dims: int, sxy: float) -> NDArray[np.float32]:
    features = np.empty((height, width, dims), np.float32)
    features[:, :, 0] = np.arange(width, dtype=np.float32) / np.float32(sxy)
    features[:, :, 1] = np.arange(height, dtype=np.float32)[:, None] / np.float32(sxy)
    return features


def _normalised(lattice: Lattice) -> Lattice:
    """Divide the filter by the square roots of its row sums, on both sides."""
    sums = lattice.filter(np.ones((len(lattice.corners), 1), np.float32))
    return replace(lattice, weights=lattice.weights / np.sqrt(sums + np.float32(1e-20)))
