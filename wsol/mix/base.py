"""What every mix strategy shares: one batch in, one mixed batch with its weights and partners out.

All randomness is in `draw`; `mix` repeats exactly for the same draws. Nothing here imports torch, so that listing
strategies and their options costs nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from wsol.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsol.models.classifier import Classifier

    Criterion = Callable[[Tensor, Tensor], Tensor]

Need = Literal["attention", "layers", "tokens", "label_maps"]
Family = Literal["delete", "cut", "mixup", "attention", "other"]
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

    Raises:
        DataError: See `check_labels`.
    """

    images: Tensor
    targets: Tensor
    y_own: Tensor
    y_partner: Tensor
    partner: NDArray[np.int64]
    own_weight: Tensor
    own_mask: Tensor | None

    def __post_init__(self) -> None:
        check_labels(self.y_own)


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """What the network said about the mixed images; the optional parts are there when `MixStrategy.needs` names them.

    Attributes:
        logits: float32 (B, K).
        attention: "attention": float32 (B, N), what the class token (for models that pool: the mean patch) of the last
            block pays to the N patches, mean over heads; without gradient.
        layers: "layers": float32 (B, T, T) a block, attention between all T tokens, mean over heads; without gradient.
        tokens: "tokens": (B, N, D) patch tokens as the head reads them, with gradient.
        grid: (rows, columns) of the N patches.
    """

    logits: Tensor
    attention: Tensor | None = None
    layers: tuple[Tensor, ...] = ()
    tokens: Tensor | None = None
    grid: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """The training around a strategy.

    Attributes:
        classifier: The model in training.
        criterion: (logits, dense targets) to a scalar loss.
        own: What `MixStrategy.own` made, or None.
        epoch: Counts from 0.
        epochs: Length of the training.
        label_maps: Float (B, K, h, w), stored score maps of the images, cut and mirrored like them; None unless the
            strategy needs "label_maps".
        amp: Whether forward passes run in mixed precision.
        multi_label: Whether the criterion takes one sigmoid a class instead of one softmax.
    """

    classifier: Classifier
    criterion: Criterion
    own: nn.Module | None = None
    epoch: int = 0
    epochs: int = 1
    label_maps: Tensor | None = None
    amp: bool = False
    multi_label: bool = False


class Strategy(ABC):
    """What both kinds of strategy share: facts for `wsol info mix`, needs, randomness and state.

    State, such as networks of the strategy's own, moving averages or the policy of an agent, lives in the module that
    `own` makes; the strategy itself is a frozen dataclass whose fields are the options.
    """

    family: ClassVar[Family] = "other"
    """delete (cut and delete), cut (cut and mix), mixup, attention (what a transformer attends to), other."""
    paper: ClassVar[str] = ""
    """Authors and venue: "Yun et al., ICCV 2019"."""
    cost: ClassVar[str] = "none"
    """What a step computes beside one forward and one backward pass: "none", "1 fwd", "1 fwd + 1 bwd"."""
    keeps_label_mass: ClassVar[bool] = True
    """Whether the targets of an image with one label sum to 1."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What `forward` has to read beside the logits, and "label_maps" for those of the context."""

    def wants(self) -> frozenset[Need]:
        """Return the needs with these options; by default `needs`."""
        return self.needs

    @abstractmethod
    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw every random number that this batch takes.

        Args:
            x: (B, C, H, W); only its shape counts.
            generator: The only source of randomness.

        Returns:
            Names to numbers and arrays; tests put in those of a reference.
        """

    def check(self, classifier: Classifier) -> None:  # noqa: B027 (most strategies train any model)
        """Refuse a model that the strategy cannot train.

        Raises:
            ModelError: Saying what the strategy needs.
        """

    def own(self, classifier: Classifier) -> nn.Module | None:
        """Return the strategy's own networks and state, or None.

        Parameters that want a gradient are trained along, with the learning rate times the attribute `lr_scale` of the
        module (or of the part of it) that holds them, 1 by default. The whole `state_dict` is in the checkpoints and
        nothing of it in the saved classifier. The module is in training mode when an epoch starts. Initial weights may
        be drawn from torch's generator, which the trainer seeds.
        """
        return None

    def after_step(self, context: Context) -> None:  # noqa: B027 (most strategies have no state)
        """Update the strategy's own state after a step of the optimizer.

        A step may hold several batches (accumulation), and none of this strategy where others are mixed in between.
        """


class MixStrategy(Strategy):
    """One way to mix; a training step calls `draw`, `mix`, `forward`, `loss`, and after the optimizer `after_step`."""

    growth: ClassVar[int] = 1
    """How many mixed images `mix` returns for each image of the batch."""

    @abstractmethod
    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Mix a batch without further randomness.

        Args:
            x: (B, C, H, W); not changed.
            y: Float (B, K): one-hot, smoothed or multi-label; not changed.
            draws: From `draw`.
            context: Strategies that look at saliency, features or maps of the clean images ask the model there.

        Raises:
            DataError: When the labels are no floats (B, K).
        """

    def forward(self, mixed: Mixed, context: Context) -> Output:
        """Run the network on the mixed images and read what `needs` names."""
        from wsol.mix._forward import forward

        return forward(context.classifier, mixed.images, needs=self.wants(), amp=context.amp)

    def relabel(self, mixed: Mixed, output: Output) -> Tensor:
        """Return the targets (B, K) once the network has seen the mixed images; by default the mixed labels."""
        return mixed.targets

    def loss(self, mixed: Mixed, output: Output, context: Context) -> Tensor:
        """Return the loss of a mixed batch, a scalar."""
        return context.criterion(output.logits, self.relabel(mixed, output))


class StepStrategy(Strategy):
    """A strategy that replaces the whole training step."""

    @abstractmethod
    def step(
        self, x: Tensor, y: Tensor, draws: Draws, context: Context, *, backward: Callable[[Tensor], None]
    ) -> Tensor:
        """Compute and accumulate the gradients of one batch.

        Args:
            x: (B, C, H, W); not changed.
            y: Float (B, K); not changed.
            draws: From `draw`.
            context: The model, the criterion and the epoch.
            backward: Adds the gradient of a scalar loss to the parameters; may be called several times.

        Returns:
            The loss to report, a scalar without gradient.
        """


def draw_partner(count: int, generator: np.random.Generator, *, partner: Partner) -> NDArray[np.int64]:
    """Return the position of the partner of each image.

    Args:
        count: Batch size; odd ones are fine, an image may meet itself.
        generator: Source of randomness.
        partner: "flip" takes the batch in reverse (timm), "perm" a random permutation (the papers).
    """
    return np.arange(count)[::-1].copy() if partner == "flip" else generator.permutation(count)


def check_labels(y: Tensor) -> None:
    """Refuse labels that cannot be mixed: integers would cut every weight down to 0 or 1.

    Raises:
        DataError: Unless they are floats (B, K).
    """
    if y.ndim != 2 or not y.is_floating_point():
        hint = "one-hot: torch.nn.functional.one_hot(ids, K).float()"
        raise DataError(f"expected float labels (B, K), got {y.dtype} {tuple(y.shape)}", where="mix", hint=hint)


def check_options(name: str, *, alpha: float, prob: float) -> None:
    """Refuse values that a Beta distribution or a probability cannot take.

    Raises:
        ConfigError: Naming the option.
    """
    if not 0 < alpha < math.inf:
        hint = "mix 'none' switches mixing off"
        raise ConfigError(f"alpha must be positive and finite, got {alpha}", where=name, hint=hint)
    if not 0 <= prob <= 1:
        raise ConfigError(f"prob must lie in [0, 1], got {prob}", where=name)
