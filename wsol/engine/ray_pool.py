"""The same work on a Ray cluster: actors that keep what they loaded, items handed to whoever is free.

The cluster is the one that RAY_ADDRESS names, else one of this machine alone that ends with the job. An actor that
dies with its process or node is started again by Ray, on another node where one is free; what it was working on goes to
the next free actor. Results come in the order of the items, whoever was faster.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from heapq import heappop, heappush
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from wsol.errors import ConfigError, WsolError

_log = logging.getLogger("wsol")
_TRIES = 4
_AHEAD = 4
_PATIENCE = 60.0
T = TypeVar("T")
R = TypeVar("R")


def run_on_ray(
    make: Callable[[], Callable[[T], R]],
    items: Sequence[T],
    *,
    lost: Callable[[T, str], R],
    gpu: bool = False,
    threads: int = 1,
) -> Generator[R, None, None]:
    """Yield the result of each item, in order; close the iterator to end the actors.

    Args:
        make: Called once in every actor; returns the work. Both are sent to other machines, where wsol is installed.
        items: What to work on; sent one at a time.
        lost: (item, reason) -> result of an item whose actors died, 4 of them: it is not handed out again.
        gpu: An actor takes a GPU where the cluster has any; else it takes a CPU.
        threads: Calls at a time in one actor.

    Raises:
        WsolError: What the work raised; or that there is no Ray, or no cluster at RAY_ADDRESS.
    """
    if not items:
        return
    with _cluster() as ray:
        resources = ray.cluster_resources()
        unit = "GPU" if gpu and resources.get("GPU") else "CPU"
        options = {"num_cpus": 1, "num_gpus": int(unit == "GPU"), "max_restarts": -1, "max_concurrency": threads}
        count = max(1, min(int(resources.get(unit, 1)), len(items)))
        actors = [ray.remote(_Actor).options(**options).remote(make, Path.cwd()) for _ in range(count)]
        try:
            yield from _hand_out(ray, actors, items, lost=lost, threads=threads)
        finally:
            for actor in actors:
                ray.kill(actor)


def _hand_out(
    ray: Any, actors: Sequence[Any], items: Sequence[T], *, lost: Callable[[T, str], R], threads: int
) -> Generator[R, None, None]:
    todo, done, tries = list(range(len(items))), {}, Counter[int]()  # a sorted list is a heap: what failed comes first
    window = _AHEAD * threads * len(actors)
    # An actor is free when it says so: one that waits for a node gets no work.
    flight = {_ready(actor): (actor, -1) for actor in actors for _ in range(threads)}
    free: list[Any] = []
    for at in range(len(items)):
        while at not in done:
            while free and todo and todo[0] < at + window:
                actor, number = free.pop(), heappop(todo)
                flight[actor.work.remote(items[number])] = actor, number
            answered, _ = ray.wait(list(flight), timeout=_PATIENCE)
            if not answered and all(number < 0 for _, number in flight.values()):
                _log.info("waiting for the cluster: %d actors have no place yet", len(actors))
            for reference in answered:
                actor, number = flight.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    if number < 0:  # Ray starts it again for ever, unless somebody ended it
                        raise ConfigError(f"an actor was ended from outside: {error}") from error
                    flight[_ready(actor)] = actor, -1
                    tries[number] += 1
                    _log.info("an actor was lost: %s", str(error).partition("\n")[0])
                    if tries[number] < _TRIES:
                        heappush(todo, number)
                    else:
                        done[number] = lost(items[number], f"{_TRIES} actors died of it or beside it")
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, WsolError):
                        raise error.cause from error
                    raise
                else:
                    free.append(actor)
                    if number >= 0:
                        done[number] = result
        yield done.pop(at)


def _ready(actor: Any) -> Any:
    return actor.ready.options(max_task_retries=-1).remote()


class _Actor:
    """Keeps the work that it made; its calls run in threads."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], folder: Path) -> None:
        with suppress(OSError):  # relative paths mean the same here
            os.chdir(folder)
        self._make, self._lock = make, Lock()
        self._made: Callable[[Any], Any] | None = None

    def ready(self) -> None:
        """Load what the work needs."""
        with self._lock:
            self._made = self._made or self._make()

    def work(self, item: Any) -> Any:
        """Work on one item."""
        self.ready()
        return self._made(item)  # type: ignore[misc]


@contextmanager
def _cluster() -> Iterator[Any]:
    """Join the cluster of RAY_ADDRESS, or start one here; leave it in the end, unless the caller had joined."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs Ray", hint="pip install 'wsol[ray]'") from error
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    here: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": 2**28}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"no Ray cluster: {reason}", where=address, hint="check RAY_ADDRESS, or unset it") from error
    try:
        yield ray
    finally:
        ray.shutdown()
