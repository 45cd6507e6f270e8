"""FMix: paste the bright parts of low-frequency noise from another image.

Harris et al., "FMix: Enhancing Mixed Sample Data Augmentation", arXiv 2020, https://arxiv.org/abs/2002.12047.
A grey image is the inverse Fourier transform of noise whose amplitude falls with the frequency; its top lambda pixels
come from the own image. One mask a batch; the label weight is the drawn lambda itself, which the mask meets up to a
pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError
from wsol.mix import MIXES
from wsol.mix._blend import blend, tensor_like
from wsol.mix._boxes import check_share
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor

FloatArray = NDArray[np.float64]


@MIXES.register("fmix")
@dataclass(frozen=True)
class FMix(MixStrategy):
    """Patches of another image in the shape of clouds."""

    family: ClassVar[Family] = "cut"
    paper: ClassVar[str] = "Harris et al., arXiv 2020"

    alpha: float = 1.0
    """lambda ~ Beta(alpha, alpha)."""
    prob: float = 1.0
    """Probability of mixing a batch."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""
    decay: float = 3.0
    """Power of the frequency by which the amplitude falls: larger for larger patches."""
    max_soft: float = 0.0
    """Share of the pixels on each side of the border over which the mask goes from 1 to 0."""
    compat: bool = True
    """As the authors' code: it builds the spectrum from the first two frequency rows of the noise instead of its real
    and imaginary part. False: the spectrum that the paper describes."""

    def __post_init__(self) -> None:
        check_options("fmix", alpha=self.alpha, prob=self.prob)
        check_share("fmix", "max_soft", self.max_soft)
        if not self.decay >= 0:
            raise ConfigError(f"decay must be 0 or more, got {self.decay}", where="fmix")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` (float), `noise` (float64 (H, columns, 2)), `up` (bool) and `partner` (int64 (B,)).

        `up` rounds the number of own pixels up. The columns are W // 2 + 1, or one more for an odd W as in the
        authors' code.
        """
        height, width = x.shape[2:]
        mixes = generator.random() < self.prob
        lam = float(generator.beta(self.alpha, self.alpha))
        return {
            "lam": lam if mixes else 1.0,
            "noise": generator.standard_normal((height, width // 2 + 1 + width % 2, 2)),
            "up": bool(generator.random() > 0.5),
            "partner": draw_partner(len(x), generator, partner=self.partner),
        }

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Paste the dark parts from each partner; see `MixStrategy.mix`."""
        size, lam = (x.shape[2], x.shape[3]), draws["lam"]
        if lam == 1.0:
            return blend(x, y, y.new_ones((1, 1, *size)), draws["partner"])
        grey = low_frequencies(draws["noise"], size, decay=self.decay, compat=self.compat)
        mask = top_share(grey, lam, up=draws["up"], max_soft=self.max_soft)
        return blend(x, y, tensor_like(mask, y)[None, None], draws["partner"], weight=tensor_like([lam], y))


def low_frequencies(noise: FloatArray, size: tuple[int, int], *, decay: float, compat: bool) -> FloatArray:
    """Return a smooth random image in [0, 1], (H, W).

    Args:
        noise: Normal numbers (H, columns, 2).
        size: (H, W).
        decay: Power of the frequency by which the amplitude falls.
        compat: See `FMix`.
    """
    height, width = size
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, : noise.shape[1]])
    spectrum = noise / np.maximum(frequencies, 1.0 / max(size))[..., None] ** decay
    if compat:
        coefficients = spectrum[0] + 1j * spectrum[min(1, height - 1)]
    else:
        coefficients = (spectrum[..., 0] + 1j * spectrum[..., 1])[:, : width // 2 + 1]
    grey = np.fft.irfftn(coefficients, s=size, axes=(0, 1))
    grey -= grey.min()
    return grey / (grey.max() or 1.0)


def top_share(grey: FloatArray, lam: float, *, up: bool, max_soft: float = 0.0) -> FloatArray:
    """Return the mask of the brightest pixels, values in [0, 1], (H, W).

    Args:
        grey: (H, W).
        lam: Share of the pixels.
        up: Round their number up instead of down.
        max_soft: Share of the pixels, on each side of the border in the order of brightness, that go from 1 to 0 in a
            line; never more than lam or 1 - lam.
    """
    count = math.ceil(lam * grey.size) if up else math.floor(lam * grey.size)
    soft = int(grey.size * min(max_soft, lam, 1.0 - lam))
    order = np.argsort(grey, axis=None)[::-1]
    mask = np.zeros(grey.size)
    mask[order[:count]] = 1.0
    ramp = order[max(count - soft, 0) : count + soft]
    mask[ramp] = np.linspace(1.0, 0.0, len(ramp))
    return mask.reshape(grey.shape)
