"""`--engine ray` on a cluster of several nodes that lives on the loopback of this machine."""

from __future__ import annotations

import os
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from wsol.engine.make_masks import make_masks
from wsol.engine.options import CamConfig
from wsol.engine.ray_pool import run_on_ray
from wsol.engine.refine_options import RefineConfig
from wsol.errors import ConfigError, DataError
from wsol.store import shards
from wsol.store.lock import hold
from wsol.store.manifest import read_rows

SIZES = [(61, 83), (83, 61), (50, 50), (97, 33)]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    """A head that computes nothing, and two nodes with a CPU each."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # nodes at 127.0.0.1 whatever the network of this machine
    patch.setenv("OMP_NUM_THREADS", "1")
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = None
    for attempt in range(3):  # Ray waits 30 s for a node, which a busy machine may need for longer
        try:
            made = made or Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
            while len(made.worker_nodes) < 2:
                made.add_node(**NODE)
            break
        except Exception:
            if attempt == 2:
                raise
    patch.setenv("RAY_ADDRESS", made.address)
    yield made
    made.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for at in range(24):
        path = root / ("cat", "dog")[at % 2] / f"{at:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (*SIZES[at % 4], 3), np.uint8)).save(path)
    (root / "cat" / "10.png").write_bytes(b"torn")
    return root


@pytest.fixture(scope="module")
def job(photos, tmp_path_factory):
    from wsol.models.classifier import load_classifier, save_classifier

    folder = tmp_path_factory.mktemp("model")
    save_classifier(
        load_classifier("test_resnet", num_classes=2, img_size=64), folder, classes=("a", "b"), multi_label=False
    )
    return {
        "data": "folder",
        "root": photos,
        "checkpoint": str(folder),
        "img_size": 64,
        "resize": "keep",
        "batch_size": 2,
        "workers": 0,
        "quiet": True,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def plain(job, tmp_path_factory):
    run = tmp_path_factory.mktemp("plain") / "maps"
    make_maps(CamConfig(**job, out=run))
    return run


def make_maps(config):
    from wsol.engine.make_maps import make_maps  # torch takes seconds: not for the quick tests

    return make_maps(config)


def contents(run, kind):
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted((run / kind).rglob("*.*"))}


def any_node(cluster):
    return sorted(cluster.worker_nodes, key=lambda node: node.unique_id)[0]


def when_rows(run, count, act):
    """Act as soon as a run has this many rows, in a thread."""

    def wait():
        while len(read_rows(run)) < count:
            time.sleep(0.001)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def give_up(item, reason):
    return reason


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"wsol\[ray\]"):
        list(run_on_ray(lambda: str, [1], lost=give_up))


def test_nothing_to_do_needs_no_cluster(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(run_on_ray(lambda: str, [], lost=give_up)) == []


def marks(folder):
    """Return a maker of work that leaves a line for every call; bad items raise or end the process."""

    # A function inside a function travels by its code: the actors need not import this file.
    def work(item):
        with open(f"{folder}/{item}", "a") as stream:
            stream.write(f"{os.getpid()}\n")
        if item == "deadly":
            os._exit(1)
        if item == "wrong":
            raise DataError("a mistake of the user", where=item)
        time.sleep(0.02 * (item % 3))
        return item

    return lambda: work


def test_results_in_order_from_both_nodes_and_a_deadly_item_is_given_up(cluster, tmp_path):
    items = [0, 1, 2, "deadly", *range(4, 30)]
    results = list(run_on_ray(marks(tmp_path), items, lost=give_up))
    assert results[:3] + results[4:] == items[:3] + items[4:]
    assert "4 actors died" in results[3]
    calls = [(tmp_path / str(item)).read_text().split() for item in items]
    assert len(calls[3]) == 4
    assert all(len(own) == 1 for at, own in enumerate(calls) if at != 3)
    assert len({own[0] for own in calls}) >= 2


def test_a_mistake_of_the_user_stays_one(cluster, tmp_path):
    with pytest.raises(DataError, match="wrong: a mistake of the user"):
        list(run_on_ray(marks(tmp_path), [1, "wrong", 2], lost=give_up))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_maps_and_masks_are_those_of_one_process(cluster, job, plain, tmp_path, workers):
    run = tmp_path / "maps"
    outcome = make_maps(CamConfig(**job | {"workers": workers}, out=run, engine="ray"))
    assert (outcome.done, list(outcome.failures)) == (23, ["cat/10.png"])
    assert contents(run, "maps") == contents(plain, "maps")
    assert [path.name for path in run.glob("manifest-*")] == ["manifest-000-of-001.jsonl"]
    again = make_maps(CamConfig(**job, out=run))  # the engine may change between two calls
    assert (again.done, again.skipped) == (0, 23)
    for engine in ("local", "ray"):
        options = {"maps": plain, "method": "densecrf", "workers": 0, "quiet": True}
        make_masks(RefineConfig(**options, out=tmp_path / engine, engine=engine))
    assert contents(tmp_path / "ray", "masks") == contents(tmp_path / "local", "masks")
    assert len(contents(tmp_path / "ray", "masks")) == 23


@pytest.fixture
def packed(job, tmp_path, monkeypatch):
    """Maps and masks in several shards each, made by one process."""
    monkeypatch.setattr(shards, "STRETCH", 7)
    make_maps(CamConfig(**job, out=tmp_path / "one-maps", store="shards"))
    make_masks(RefineConfig(**refining(tmp_path / "one-maps"), out=tmp_path / "one-masks"))
    return tmp_path


def refining(maps):
    return {
        "maps": maps, "method": "densecrf", "confidence": True, "scores": True, "store": "shards", "workers": 0,
        "quiet": True,
    }  # fmt: skip


@pytest.mark.slow
def test_shards_are_those_of_one_process(cluster, job, packed):
    for name in ("maps", "masks"):
        if name == "maps":
            outcome = make_maps(
                CamConfig(**job | {"workers": 2}, out=packed / "ray-maps", engine="ray", store="shards")
            )
        else:
            config = RefineConfig(**refining(packed / "ray-maps"), out=packed / "ray-masks", engine="ray")
            outcome = make_masks(config)
        assert (outcome.done, list(outcome.failures)) == (23, ["cat/10.png"])
        for kind in shards.KINDS if name == "masks" else ("maps",):
            found = contents(packed / f"ray-{name}", kind)
            assert list(found) == [f"{kind}/000-of-001-0000{at}-0.tar" for at in range(4)]
            assert found == contents(packed / f"one-{name}", kind)


@pytest.mark.slow
def test_shards_survive_a_node_that_dies_while_masks_are_made(cluster, packed):
    run, node = packed / "ray-masks", any_node(cluster)
    killer = when_rows(run, 4, lambda: cluster.remove_node(node, allow_graceful=False))
    outcome = make_masks(RefineConfig(**refining(packed / "one-maps"), out=run, engine="ray"))
    killer.join()
    cluster.add_node(**NODE)
    assert (outcome.done, list(outcome.failures)) == (23, ["cat/10.png"])
    for kind in shards.KINDS:
        assert contents(run, kind) == contents(packed / "one-masks", kind)
    hold(run).close()  # what the dead actor was writing goes
    assert not list(run.rglob(".tmp-*"))


@pytest.mark.slow
def test_a_node_that_dies_midway_costs_no_image(cluster, job, plain, tmp_path):
    run, node = tmp_path / "maps", any_node(cluster)
    killer = when_rows(run, 4, lambda: cluster.remove_node(node, allow_graceful=False))
    outcome = make_maps(CamConfig(**job, out=run, engine="ray"))
    killer.join()
    cluster.add_node(**NODE)
    assert (outcome.done, list(outcome.failures)) == (23, ["cat/10.png"])
    assert contents(run, "maps") == contents(plain, "maps")
    lines = (run / "manifest-000-of-001.jsonl").read_text().splitlines()
    assert len(lines) == len(read_rows(run)) == 24
