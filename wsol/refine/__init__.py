"""From score maps to pseudo-masks: one refiner a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, make_dataclass
from typing import Any

from wsol.config import from_dict
from wsol.errors import ConfigError
from wsol.refine.base import Chain, Labeler, Refiner, merge_labels, to_labels, with_background
from wsol.registry import Registry

__all__ = [
    "REFINERS",
    "Chain",
    "Labeler",
    "Refiner",
    "chain",
    "create",
    "merge_labels",
    "option_type",
    "to_labels",
    "with_background",
]

REFINERS: Registry[type[Refiner] | type[Labeler]] = Registry("refiner", "wsol.refine", shared=("base",))


def create(name: str, **options: Any) -> Refiner:
    """Make a refiner.

    Args:
        name: Registry name, for example "densecrf"; or several to run one after the other, separated by commas.
        options: Fields of its dataclass; of several, one mapping a name.

    Returns:
        Callable `(image uint8 (H, W, 3), scores float32 (C, H, W))` -> float32 (C, H, W); channel 0 is background.

    Raises:
        ConfigError: When a name, an option or its value is wrong.
    """
    steps = chain(name, options)
    if steps.labeler is None and len(steps.refiners) == 1:
        return steps.refiners[0]
    return steps


def chain(methods: str, options: Mapping[str, Any] | None = None) -> Chain:
    """Make a chain of refiners.

    Args:
        methods: Registry names separated by commas: "pamr,densecrf". One that reads labels may stand last.
        options: Options of the one method; of several, one mapping a name: {"densecrf": {"preset": "irn"}}.

    Raises:
        ConfigError: When a name, an option or its value is wrong, or a method stands in the wrong place.
    """
    names, given = _names(methods), dict(options or {})
    if len(names) == 1:
        given = {names[0]: given}
    unknown = sorted(set(given) - set(names))
    if unknown:
        hint = f"one mapping a refiner: {{{names[0]}: {{...}}}}"
        raise ConfigError(f"options for '{unknown[0]}', which is not in '{methods}'", where="options", hint=hint)
    steps = []
    for name in names:
        if not isinstance(given.get(name, {}), Mapping):
            raise ConfigError(f"expected a mapping, got {given[name]!r}", where=f"options of '{name}'")
        steps.append(from_dict(REFINERS.get(name), given.get(name, {}), where=f"refiner '{name}'"))
    *before, last = steps
    for name, step in zip(names, before, strict=False):
        if not isinstance(step, Refiner):
            raise ConfigError(f"'{name}' gives labels, not scores", where=f"'{methods}'", hint="put it last")
    refiners = tuple(step for step in steps if isinstance(step, Refiner))
    return Chain(refiners, labeler=last if isinstance(last, Labeler) else None)


def option_type(methods: str) -> type[Any]:
    """Return the dataclass of the options of a refiner, or of several with one field for each.

    Args:
        methods: As for `chain`.

    Raises:
        ConfigError: When a name is unknown.
    """
    names = _names(methods)
    kinds: dict[str, Any] = {name: REFINERS.get(name) for name in names}
    if len(names) == 1:
        return kinds[names[0]]  # type: ignore[no-any-return]
    items = [(name, kind, field(default_factory=kind)) for name, kind in kinds.items() if fields(kind)]
    return make_dataclass("Options", items, frozen=True)


def _names(methods: str) -> list[str]:
    names = [name.strip() for name in methods.split(",")]
    if not all(names):
        raise ConfigError(f"no refiner in '{methods}'", hint="names separated by commas: pamr,densecrf")
    return names
