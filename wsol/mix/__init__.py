"""Training strategies that mix images and labels: one strategy a file."""

from __future__ import annotations

from typing import Any

import yaml

from wsol.config import from_dict
from wsol.errors import ConfigError
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Output, StepStrategy, Strategy
from wsol.registry import Registry

__all__ = [
    "MIXES",
    "Context",
    "Draws",
    "Family",
    "MixStrategy",
    "Mixed",
    "Output",
    "StepStrategy",
    "Strategy",
    "create",
    "from_text",
    "split_text",
]

MIXES: Registry[type[MixStrategy | StepStrategy]] = Registry("mix strategy", "wsol.mix", shared=("base",))


def create(name: str, **options: Any) -> MixStrategy | StepStrategy:
    """Make a strategy by its name.

    Args:
        name: Registry name: "none", "mixup", "cutmix", ...
        **options: Fields of that strategy.

    Raises:
        ConfigError: On an unknown strategy or option, or a value that it cannot take.
    """
    return from_dict(MIXES.get(name), options, where=f"mix strategy '{name}'")


def split_text(text: str) -> tuple[str, dict[str, Any]]:
    """Return name and options of a strategy that is written as a line of YAML.

    Args:
        text: A name ("cutmix"), or a name with options ("cutmix: {alpha: 0.5, partner: flip}").

    Raises:
        ConfigError: When it is neither.
    """
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"not YAML: {' '.join(str(error).split())}", where=text) from error
    hint = "for example cutmix, or 'cutmix: {alpha: 0.5}'"
    pairs = {parsed: None} if isinstance(parsed, str) else parsed
    if not isinstance(pairs, dict) or len(pairs) != 1:
        raise ConfigError(f"expected one strategy, got {text!r}", where="mix strategy", hint=hint)
    ((name, options),) = pairs.items()
    if not isinstance(options, dict | None) or not all(isinstance(key, str) for key in options or ()):
        raise ConfigError(f"expected options, got {options!r}", where=text, hint=hint)
    return str(name), dict(options or {})


def from_text(text: str) -> MixStrategy:
    """Make a strategy that another one is put over; see `split_text`.

    Raises:
        ConfigError: As `split_text` and `create`; also when the strategy replaces the whole step.
    """
    name, options = split_text(text)
    strategy = create(name, **options)
    if not isinstance(strategy, MixStrategy):
        raise ConfigError(f"'{name}' replaces the whole step, nothing can be put over it", where="mix strategy")
    return strategy
