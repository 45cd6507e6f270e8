"""Errors that a user can act on: every message says what went wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LISTED = 24


class WsolError(Exception):
    """A mistake in what the user gave: one line and a hint, never a traceback.

    Args:
        what: What is wrong, in one line.
        where: The file, id, flag or field it was found in.
        hint: What to do about it.
    """

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where is not None else ""
        advice = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.what}{advice}"

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders by pickle, which would drop the keyword arguments.
        return _rebuild, (type(self), self.what, self.where, self.hint)


class ConfigError(WsolError):
    """An option is unknown, has the wrong type, or contradicts another one."""


class DataError(WsolError):
    """A data set, image or annotation is missing or cannot be read."""


class ModelError(WsolError):
    """A model, checkpoint or layer cannot be found or does not fit."""


class StoreError(WsolError):
    """A run folder cannot be read, written or continued."""


class WriteError(StoreError):
    """A file cannot be written where others could not be either: the disk is full, the folder read-only.

    So it ends a job, which an image that merely failed does not.
    """


class EvalError(WsolError):
    """Scores and ground truth do not fit together, or there is nothing to evaluate."""


def _rebuild(kind: type[WsolError], what: str, where: object, hint: str | None) -> WsolError:
    return kind(what, where=where, hint=hint)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Build a hint that names the nearest choice, or else lists them, the first ones where there are many.

    Args:
        word: What the user wrote.
        choices: What would have been right.

    Returns:
        One line, without a full stop.
    """
    names = sorted(choices)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.55)
    if near:
        return f"did you mean '{near[0]}'?"
    listed = names if len(names) <= _LISTED else [*names[: _LISTED - 1], f"... ({len(names)} in all)"]
    return "choose from " + ", ".join(listed) if names else "there is nothing to choose from"
