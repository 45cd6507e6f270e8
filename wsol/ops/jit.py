"""How the kernels of this package are compiled: numba, without the GIL, cached on disk where there is room for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(function: F) -> F:
    """Compile a function with numba; the machine code is kept beside the sources or in the user's cache.

    A read-only installation of a user without a writable home has neither; the function is then compiled anew in
    each process (set NUMBA_CACHE_DIR to a writable folder to avoid that).
    """
    try:
        compiled = numba.njit(function, nogil=True, error_model="numpy", cache=True)
    except RuntimeError:  # "cannot cache function: no locator available"
        compiled = numba.njit(function, nogil=True, error_model="numpy")
    return cast(F, compiled)
