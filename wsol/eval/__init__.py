"""How good boxes and masks are: protocols of the literature, exact, without torch."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"evaluate_localization": "wsol.eval.localization", "evaluate_segmentation": "wsol.eval.segmentation"}
__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'wsol.eval' has no attribute '{name}'")
