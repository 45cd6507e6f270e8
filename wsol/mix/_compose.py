"""Strategies made of strategies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from wsol.mix import from_text
from wsol.mix.base import Context, Draws, Mixed, MixStrategy, Need, Output, Strategy

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsol.models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class Around(Strategy):
    """A strategy around another one, which mixes the images."""

    inner: str = "cutmix"
    """The strategy that mixes the images: its name, or with options as in 'cutmix: {alpha: 0.5}'."""

    def __post_init__(self) -> None:
        self.strategy  # noqa: B018 (a mistake in its name or options ends here)

    @cached_property
    def strategy(self) -> MixStrategy:
        """The inner strategy."""
        return from_text(self.inner)

    def wants(self) -> frozenset[Need]:
        """Return what both need."""
        return self.needs | self.strategy.wants()

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw what the inner strategy draws."""
        return self.strategy.draw(x, generator)

    def check(self, classifier: Classifier) -> None:
        """Refuse what the inner strategy refuses."""
        self.strategy.check(classifier)

    def own(self, classifier: Classifier) -> nn.Module | None:
        """Return the state of the inner strategy."""
        return self.strategy.own(classifier)

    def after_step(self, context: Context) -> None:
        """Update the state of the inner strategy."""
        self.strategy.after_step(context)


class Over(Around, MixStrategy):
    """A strategy that changes what another one does afterwards: the labels or the loss.

    Subclasses override `relabel` or `loss`.
    """

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Mix as the inner strategy does; see `MixStrategy.mix`."""
        return self.strategy.mix(x, y, draws, context)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Chosen(Mixed):
    """A mixed batch that knows who mixed it.

    Attributes:
        index: Which of the parts.
        result: Its own record.
    """

    index: int
    result: Mixed


class OneOf(MixStrategy):
    """A strategy that hands each batch to one of several parts; subclasses say which."""

    @property
    def parts(self) -> Sequence[MixStrategy]:
        """The strategies to choose from."""
        raise NotImplementedError

    def choose(self, draws: Draws, context: Context | None) -> int:
        """Return the position of the part that takes the batch."""
        raise NotImplementedError

    def wants(self) -> frozenset[Need]:
        """Return what any of them needs."""
        return frozenset[Need]().union(*(part.wants() for part in self.parts))

    def check(self, classifier: Classifier) -> None:
        """Refuse what any of them refuses."""
        for part in self.parts:
            part.check(classifier)

    def own(self, classifier: Classifier) -> nn.Module | None:
        """Return the states of all that have one, by position."""
        from torch import nn

        states = {str(at): state for at, part in enumerate(self.parts) if (state := part.own(classifier)) is not None}
        return nn.ModuleDict(states) if states else None

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Let the chosen part mix; see `MixStrategy.mix`."""
        at = self.choose(draws, context)
        result = self.parts[at].mix(x, y, draws["parts"][at], None if context is None else _inside(context, at))
        known = {item.name: getattr(result, item.name) for item in fields(Mixed)}
        return Chosen(**known, index=at, result=result)

    def forward(self, mixed: Mixed, context: Context) -> Output:
        """Let the chosen part run the network."""
        at, result = _opened(mixed)
        return self.parts[at].forward(result, _inside(context, at))

    def relabel(self, mixed: Mixed, output: Output) -> Tensor:
        """Let the chosen part label."""
        at, result = _opened(mixed)
        return self.parts[at].relabel(result, output)

    def loss(self, mixed: Mixed, output: Output, context: Context) -> Tensor:
        """Let the chosen part compute its loss."""
        at, result = _opened(mixed)
        return self.parts[at].loss(result, output, _inside(context, at))

    def after_step(self, context: Context) -> None:
        """Let every part update its state."""
        for at, part in enumerate(self.parts):
            part.after_step(_inside(context, at))


def _opened(mixed: Mixed) -> tuple[int, Mixed]:
    chosen = cast(Chosen, mixed)
    return chosen.index, chosen.result


def _inside(context: Context, at: int) -> Context:
    """Return the context of one part, with its own state."""
    states: Any = context.own
    name = str(at)
    return replace(context, own=states[name] if states is not None and name in states else None)
