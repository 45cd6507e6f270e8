"""What every mix strategy shares: one batch in, one mixed batch with its weights and partners out.

All randomness is in `draw`; `mix` repeats exactly for the same draws. Nothing here imports torch, so that listing
strategies and their options costs nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Draws = Mapping[str, Any]
Partner = Literal["flip", "perm"]


@dataclass(frozen=True, slots=True, eq=False)
class Mixed:
    """A mixed batch and all that later steps may ask about it. Weights are always the share of the own image.

    Attributes:
        images: (B, C, H, W); never the caller's memory changed in place.
        targets: Float (B, K), the labels mixed by `own_weight`.
        y_own: Float (B, K), labels of each image itself.
        y_partner: Float (B, K), labels of its partner.
        partner: int64 (B,), position of the partner of each image.
        own_weight: Float (B,) in [0, 1].
        own_mask: Float (B, 1, H, W) in [0, 1], share of the own image at each pixel; None where no such map exists.
    """

    images: Tensor
    targets: Tensor
    y_own: Tensor
    y_partner: Tensor
    partner: NDArray[np.int64]
    own_weight: Tensor
    own_mask: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What the network said about the mixed images.

    Attributes:
        logits: (B, K).
        attention: Float (B, N), attention of the class token to the N patches; None where nobody asked for it.
    """

    logits: Tensor
    attention: Tensor | None = None


class MixStrategy(ABC):
    """One way to mix; subclasses are frozen dataclasses whose fields are the options."""

    @abstractmethod
    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw every random number that mixing this batch takes.

        Args:
            x: (B, C, H, W); only its shape counts.
            generator: The only source of randomness.

        Returns:
            Names to numbers and arrays; tests put in those of a reference.
        """

    @abstractmethod
    def mix(self, x: Tensor, y: Tensor, draws: Draws) -> Mixed:
        """Mix a batch without further randomness.

        Args:
            x: (B, C, H, W); not changed.
            y: Float (B, K): one-hot, smoothed or multi-label; not changed.
            draws: From `draw`.
        """

    def relabel(self, mixed: Mixed, output: Output) -> Tensor:
        """Return the targets (B, K) once the network has seen the mixed images; by default the mixed labels."""
        return mixed.targets

    def loss(self, mixed: Mixed, output: Output, criterion: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return the loss of a mixed batch.

        Args:
            mixed: From `mix`.
            output: Of the network on `mixed.images`.
            criterion: (logits, dense targets) to a scalar.
        """
        return criterion(output.logits, self.relabel(mixed, output))


def draw_partner(count: int, generator: np.random.Generator, *, partner: Partner) -> NDArray[np.int64]:
    """Return the position of the partner of each image.

    Args:
        count: Batch size; odd ones are fine, an image may meet itself.
        generator: Source of randomness.
        partner: "flip" takes the batch in reverse (timm), "perm" a random permutation (the papers).
    """
    return np.arange(count)[::-1].copy() if partner == "flip" else generator.permutation(count)


def check_options(name: str, *, alpha: float, prob: float) -> None:
    """Refuse values that a Beta distribution or a probability cannot take.

    Raises:
        ConfigError: Naming the option.
    """
    if not alpha > 0:
        raise ConfigError(f"alpha must be positive, got {alpha}", where=name, hint="mix 'none' switches mixing off")
    if not 0 <= prob <= 1:
        raise ConfigError(f"prob must lie in [0, 1], got {prob}", where=name)
