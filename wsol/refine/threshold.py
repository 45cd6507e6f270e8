"""No refinement: the label is the argmax of the scores, so a constant background score acts as a threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsol.refine import REFINERS
from wsol.refine.base import check_inputs


@REFINERS.register("threshold")
@dataclass(frozen=True)
class Threshold:
    """Returns the scores as they are; a pixel is foreground where a class beats the background score."""

    def __call__(self, image: NDArray[np.uint8], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a copy of the scores; see `wsol.refine.base.Refiner`."""
        check_inputs(image, scores)
        return np.array(scores, dtype=np.float32)
