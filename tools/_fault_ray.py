"""A Ray cluster whose nodes and driver are killed while `wsol cam --engine ray` works on it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _faults import BATCH, PHOTOS, Child, Job, calm, finished_files, results, start, stray

from wsol.store.manifest import read_rows

_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # nodes at 127.0.0.1 whatever the network of this machine
}


def ray_cluster(job: Job, place: Path) -> str:
    """Kill one node, the other one, the driver, and the node that came instead, each after a random image."""
    wanted, rng, run = calm(job, place), random.Random(0), place / "run"
    command = [*job.commands(run)[0], "--engine", "ray"]
    before: dict[Path, tuple[int, int]] = {}
    with _cluster() as cluster:
        child = start(command, place, fresh=True)
        moments = sorted(rng.sample(range(PHOTOS - 2 * BATCH), 4))
        for victim, count in zip(("node", "node", "driver", "node"), moments, strict=True):
            if not _wait(child, run, count):
                return f"no {victim} was killed: {_end(child)}"
            if victim == "driver":
                child.kill("driver", rng)
                child.wait()
                before = finished_files(job.verb, run)
                child = start(command, place, fresh=True)
                continue
            nodes = sorted(cluster.worker_nodes, key=lambda node: str(node.unique_id))
            cluster.remove_node(rng.choice(nodes), allow_graceful=False)
            if len(nodes) == 1:
                cluster.add_node(**_NODE)
        if child.wait(120) != 0:
            return f"the job did not end well: {_end(child)}"
    after = finished_files(job.verb, run)
    if any(after.get(path) != facts for path, facts in before.items()):
        return "finished files were written again"
    if stray(run):
        return "temporary files are left"
    return "" if results(job.verb, run) == wanted else "other files than without the fault"


@contextmanager
def _cluster() -> Iterator[Any]:
    """A head that computes nothing and two nodes with a CPU each, known to every child."""
    known = dict(os.environ)
    os.environ.update(_ENVIRONMENT)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(**_NODE)
        os.environ["RAY_ADDRESS"] = cluster.address
        yield cluster
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(known)


def _wait(child: Child, run: Path, count: int) -> bool:
    """Wait until a run has this many rows; False where the child ended before, or does not get there."""
    end = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < end:
        if len(read_rows(run)) >= count:
            return True
        time.sleep(0.001)
    return False


def _end(child: Child) -> str:
    child.sweep()
    return f"status {child.wait()}, {child.log.read_text()[-400:]}"
