"""Work on many items in processes of one thread each, with few items in flight."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def run_in_pool(work: Callable[[T], R], items: Sequence[T], *, workers: int) -> Generator[R, None, None]:
    """Yield what `work` returns for each item as it is done, in any order.

    One thread a process: several images at once beat several threads an image.

    Args:
        work: A function that can be sent to another process.
        items: What to work on.
        workers: Processes; 0 works in this one.
    """
    if workers == 0 or len(items) <= 1:
        yield from (work(item) for item in items)
        return
    workers = min(workers, len(items))
    # The libraries read these variables when they start, so the children must inherit them.
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            queue = iter(items)
            flight: set[Future[R]] = set()
            while flight := flight | {pool.submit(work, item) for item in islice(queue, 4 * workers - len(flight))}:
                ready, flight = wait(flight, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
