"""Chunks of images over processes, results in order, so that any number of workers gives the same result."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import cv2

T = TypeVar("T")
R = TypeVar("R")
_CHUNK = 32
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@contextmanager
def single_threaded_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes of one thread each: several images at once beat several threads an image.

    Args:
        workers: Number of processes.
    """
    # The libraries read these variables when they start, so the children must inherit them.
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def map_chunks(work: Callable[[Sequence[T]], R], items: Sequence[T], *, workers: int) -> Iterator[R]:
    """Apply a function to chunks of a list.

    Args:
        work: Module-level function or partial of one; takes a chunk.
        items: The list.
        workers: Processes; fewer are started where there is little to do, and none for a few images.

    Yields:
        Results in the order of the list. At most a few chunks a worker are in memory.
    """
    chunks = [items[at : at + _CHUNK] for at in range(0, len(items), _CHUNK)]
    # A process takes about a second to start, as long as some hundred images.
    workers = min(workers, len(chunks) // 8)
    if workers < 2:
        yield from (work(chunk) for chunk in chunks)
        return
    with single_threaded_pool(workers) as pool:
        yield from _in_order(pool, partial(_single_threaded, work), chunks, depth=4 * workers)


def _in_order(
    pool: ProcessPoolExecutor, work: Callable[[Sequence[T]], R], chunks: Sequence[Sequence[T]], *, depth: int
) -> Iterator[R]:
    flight: deque[Future[R]] = deque()
    for chunk in chunks:
        flight.append(pool.submit(work, chunk))
        if len(flight) >= depth:
            yield flight.popleft().result()
    while flight:
        yield flight.popleft().result()


def _single_threaded(work: Callable[[Sequence[T]], R], chunk: Sequence[T]) -> R:
    cv2.setNumThreads(1)
    return work(chunk)
