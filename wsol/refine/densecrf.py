"""DenseCRF: a fully connected CRF with a spatial and a bilateral Gaussian kernel, solved by mean field.

Krähenbühl, Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011,
https://arxiv.org/abs/1210.5644. Computes the marginals of the energy with unaries -log(score), Potts compatibility
and symmetrically normalised kernels, filtered on permutohedral lattices: the result of `pydensecrf`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError, DataError
from wsol.ops.permutohedral import Lattice, build_lattice
from wsol.refine import REFINERS
from wsol.refine._crf_presets import PACK, PRESETS, Preset, Setting
from wsol.refine._crf_unary import check_probability, unary_from_labels, unary_from_softmax
from wsol.refine._meanfield import mean_field
from wsol.refine.base import check_inputs

if TYPE_CHECKING:
    from torch import Tensor

# BGR means of the Caffe models.
_CAFFE_MEAN = np.array([104.008, 116.669, 122.675], np.float32)
# The spatial lattice of an image of up to this many pixels is kept for the next one: 52 MB at most each.
_KEPT_PIXELS = 1 << 20


@REFINERS.register("densecrf")
@dataclass(frozen=True)
class DenseCRF:
    """Fully connected CRF in one thread without the GIL: run one process or thread an image.

    Beside the arguments it holds at most 8 C (N + S) + 600 N bytes, for N pixels, C labels and S lattice points: 0.1 N
    to 2 N of them in photos, never more than 9 N (noise). 81 labels at 500 x 375 take 0.4 GB in a photo.

    Attributes:
        preset: Settings of the papers: "clipes" (also "deeplab", "more", "excel"), "irn" (also "psa", "puzzlecam"),
            "irn_label" (the CRF of IRN on labels, with a gt_prob of 0.7), "afa" (also "weclip"), "toco" (also
            "seco", "dupl"), "toco_cam", "getam", "weaktr" (also "mctformer"). Any value below replaces that of the
            preset.
        sxy_gaussian: Standard deviation of the spatial kernel, in pixels.
        compat_gaussian: Weight of the spatial kernel.
        sxy_bilateral: Standard deviation of the bilateral kernel in space, in pixels.
        srgb: Standard deviation of the bilateral kernel in colour, in grey levels.
        compat_bilateral: Weight of the bilateral kernel.
        iterations: Mean-field updates.
        gt_prob: None takes the scores as probabilities; a value takes their argmax as labels that are right with
            this probability.
        image: "rgb", or "caffe_wrap" for what the CLIP-ES and DeepLab scripts hand over: BGR minus the mean, with
            negative values wrapped around by a cast to uint8. It is there to repeat their numbers.
        device: "cpu" for the compiled kernels, or the torch device of a GPU, such as "cuda".
    """

    preset: Preset = "clipes"
    sxy_gaussian: float | None = None
    compat_gaussian: float | None = None
    sxy_bilateral: float | None = None
    srgb: float | None = None
    compat_bilateral: float | None = None
    iterations: int | None = None
    gt_prob: float | None = None
    image: Literal["rgb", "caffe_wrap"] = "rgb"
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, value in self.setting._asdict().items():
            least = 0 if name.startswith("compat") or name == "iterations" else np.finfo(np.float32).tiny
            if not least <= value < np.inf:
                raise ConfigError(f"must be {'positive' if least else 'at least 0'}, got {value}", where=name)
        if self.gt_prob is not None:
            check_probability(self.gt_prob)

    @property
    def setting(self) -> Setting:
        """The preset with the given values in place."""
        preset = PRESETS[self.preset]
        given = {name: getattr(self, name) for name in preset._fields if getattr(self, name) is not None}
        return preset._replace(**given)

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the marginals, which sum to one over C; see `wsol.refine.base.Refiner`."""
        check_inputs(image, scores)
        if self.gt_prob is None:
            return self.infer(image, unary_from_softmax(scores))
        labels = scores.argmax(axis=0)
        return self.infer(image, unary_from_labels(labels, len(scores), gt_prob=self.gt_prob, unsure=None))

    def infer(self, image: NDArray[np.uint8], unary: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the marginals of given unary energies.

        Args:
            image: uint8 (H, W, 3) RGB.
            unary: float32 (C, H, W), for example of `unary_from_labels`; a constant over C changes nothing.

        Returns:
            float32 (C, H, W), summing to one over C.

        Raises:
            DataError: When the shapes do not fit together, or an energy is not finite.
        """
        check_inputs(image, unary)
        if len(unary) == 1:
            return np.ones_like(unary, dtype=np.float32)
        if self.device != "cpu":
            import torch

            from wsol.models.device import find_device

            device = find_device(self.device)
            tensors = [torch.tensor(np.ascontiguousarray(x), device=device) for x in (image, unary)]
            return np.asarray(self.infer_tensor(*tensors).cpu().numpy())
        setting, (height, width) = self.setting, image.shape[:2]
        pixels = image if self.image == "rgb" else caffe_wrap(image)
        kernels = [
            _spatial(height, width, setting.sxy_gaussian),
            _bilateral(pixels, setting.sxy_bilateral, setting.srgb),
        ]
        compat = (setting.compat_gaussian, setting.compat_bilateral)
        energies = np.asarray(unary, np.float32).reshape(len(unary), -1)
        return mean_field(energies, kernels, compat, iterations=setting.iterations).reshape(unary.shape)

    def infer_tensor(self, image: Tensor, unary: Tensor) -> Tensor:
        """Return the marginals of tensors, computed by torch on their device; no gradient flows.

        Args:
            image: uint8 (H, W, 3) RGB.
            unary: float32 (C, H, W) energies on the same device, finite.

        Returns:
            float32 (C, H, W), within 1e-4 of `infer`.

        Raises:
            DataError: When the shapes do not fit together.
        """
        import torch

        from wsol.refine._lattice_torch import dense_crf

        if unary.ndim != 3 or tuple(image.shape) != (*unary.shape[1:], 3):
            raise DataError(f"expected image (H, W, 3) and energies (C, H, W), got {image.shape} and {unary.shape}")
        if len(unary) == 1:
            return torch.ones_like(unary, dtype=torch.float32)
        if self.image == "caffe_wrap":
            image = torch.from_numpy(caffe_wrap(image.cpu().numpy())).to(image.device)
        return dense_crf(image, unary, self.setting)


def caffe_wrap(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return BGR minus the Caffe mean, truncated and taken modulo 256, for an RGB uint8 (H, W, 3) image.

    This is what the cast from float to uint8 does on x86; the language leaves it open.
    """
    shifted = image[:, :, ::-1].astype(np.float32) - _CAFFE_MEAN
    return np.asarray(np.trunc(shifted).astype(np.int64) & 255, dtype=np.uint8)


def _spatial(height: int, width: int, sxy: float) -> Lattice:
    """The kernel of positions only, the same for all images of a size."""
    build = _kept_spatial if height * width <= _KEPT_PIXELS else _kept_spatial.__wrapped__
    return build(height, width, sxy)


@lru_cache(maxsize=4)
def _kept_spatial(height: int, width: int, sxy: float) -> Lattice:
    return _normalised(build_lattice(_features(height, width, 2, sxy)), height * width)


def _bilateral(image: NDArray[np.uint8], sxy: float, srgb: float) -> Lattice:
    height, width, _ = image.shape
    features = _features(height, width, 5, sxy)
    features[: height * width, 2:] = image.reshape(-1, 3)
    features[:, 2:] /= np.float32(srgb)
    return _normalised(build_lattice(features), height * width)


def _features(height: int, width: int, dims: int, sxy: float) -> NDArray[np.float32]:
    """Return the positions, x first, in the first two of `dims` columns, and rows of zeros up to a full pack."""
    count = height * width
    features = np.zeros((count + -count % PACK, dims), np.float32)
    grid = features[:count].reshape(height, width, dims)
    grid[:, :, 0] = np.arange(width, dtype=np.float32) / np.float32(sxy)
    grid[:, :, 1] = np.arange(height, dtype=np.float32)[:, None] / np.float32(sxy)
    return features


def _normalised(lattice: Lattice, count: int) -> Lattice:
    """Keep the first points, and divide their filter by the square roots of its row sums, on both sides."""
    lattice = replace(lattice, corners=lattice.corners[:count], weights=lattice.weights[:count])
    sums = lattice.filter(np.ones((count, 1), np.float32))
    return replace(lattice, weights=lattice.weights / np.sqrt(sums + np.float32(1e-20)))
