"""Work on many items in processes of one thread each, with few items in flight."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import TypeVar

from wsol.eval.workers import single_threaded_pool

T = TypeVar("T")
R = TypeVar("R")


def run_in_pool(work: Callable[[T], R], items: Sequence[T], *, workers: int) -> Generator[R, None, None]:
    """Yield what `work` returns for each item as it is done, in any order.

    Args:
        work: A function that can be sent to another process.
        items: What to work on.
        workers: Processes; 0 works in this one.
    """
    if workers == 0 or len(items) <= 1:
        yield from (work(item) for item in items)
        return
    workers = min(workers, len(items))
    with single_threaded_pool(workers) as pool:
        queue = iter(items)
        flight: set[Future[R]] = set()
        while flight := flight | {pool.submit(work, item) for item in islice(queue, 4 * workers - len(flight))}:
            ready, flight = wait(flight, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ready)
