"""`wsol bench io`: what each stage of map making and refinement costs, and which one bounds the job."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from wsol import cams, data
from wsol.data.images import read_image
from wsol.engine.bench_io_options import BenchIoConfig
from wsol.engine.bench_options import fresh
from wsol.engine.device import resolve_device
from wsol.engine.make_maps import load_model, plan_batches
from wsol.engine.map_batches import InputFacts, Loaded, compute, read_batch
from wsol.engine.map_writer import Computed, MapWriter
from wsol.engine.outcome import Outcome
from wsol.engine.refine_image import read_pair, refine_pair, write_result
from wsol.engine.refine_options import RefineConfig
from wsol.errors import DataError
from wsol.store.atomic import write_text
from wsol.store.manifest import Manifest
from wsol.store.runs import versions

_ADVICE = {
    "read": "more --workers up to the cores, smaller files, or a disk that is nearer",
    "input": "more --workers up to the cores",
    "model": "a GPU, --amp, a larger --batch-size, or more devices (--shard i/n, --engine ray)",
    "refine": "more --workers up to the cores, or more machines (--shard i/n, --engine ray)",
    "write": "--store shards or grid, a faster disk, or more processes (--shard i/n)",
    "pack": "--store files, a faster disk, or more processes (--shard i/n)",
}


@dataclass(frozen=True)
class Job:
    """What one verb costs.

    Attributes:
        name: cam or refine.
        images: How many were measured.
        stages: Stage to milliseconds an image, one after the other in one process.
        lanes: Stages that share processes, as "read+input", to milliseconds an image after dividing by their
            number. Lanes work side by side.
        stored: Bytes written an image.
    """

    name: str
    images: int
    stages: Mapping[str, float]
    lanes: Mapping[str, float]
    stored: float

    @property
    def ms(self) -> float:
        """Milliseconds an image of the whole job: those of its slowest lane."""
        return max(self.lanes.values())

    @property
    def bound(self) -> str:
        """The most expensive stage of the slowest lane."""
        lane = max(self.lanes, key=lambda name: self.lanes[name])
        return max(lane.split("+"), key=lambda name: self.stages[name])

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _ADVICE[self.bound]


class _Clock:
    """Sums the time of the blocks of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - start

    def job(self, name: str, images: int, lanes: Mapping[str, int], stored: int) -> Job:
        stages = {stage: 1000 * spent / images for stage, spent in self.seconds.items()}
        shared = {lane: sum(stages[stage] for stage in lane.split("+")) / count for lane, count in lanes.items()}
        return Job(name, images, stages, shared, stored / images)


def bench_io(config: BenchIoConfig) -> list[Job]:
    """Time the stages one after the other in this process, and write `bench.json`.

    The first batch and the first image run once before the clock starts. Files that this machine read a moment ago come
    from its memory: the first call for a data set says what reading costs.

    Args:
        config: See `BenchIoConfig`. `workers` only divides: as many processes would read, or refine.

    Returns:
        The job of `wsol cam`, and that of `wsol refine` where a refiner was named.

    Raises:
        WsolError: On a mistake in the options, or when an image cannot be read.
    """
    config.validate()
    device = resolve_device(config.device)
    dataset = data.load(config.data, root=config.root, split=config.split, limit=config.limit, **config.data_options)
    fresh(config.out, overwrite=config.overwrite)
    jobs = [_cam(config, dataset, device)]
    if config.refiner is not None:
        jobs.append(_refine(config, dataset))
    rows = [
        {"job": job.name, "n": job.images, "stages_ms": job.stages, "lanes_ms": job.lanes, "ms": job.ms}
        | {"bound": job.bound, "advice": job.advice, "stored_bytes": job.stored}
        for job in jobs
    ]
    facts = {"data": config.data, "split": dataset.spec.split, "device": str(device), "workers": config.workers}
    facts |= {"cores": _cores(), "threads": torch.get_num_threads(), "versions": versions()}
    write_text(config.out / "bench.json", json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return jobs


def _cam(config: BenchIoConfig, dataset: data.Dataset, device: torch.device) -> Job:
    classifier = load_model(config, dataset.spec, device)
    method = cams.create(config.method, classifier, **config.options)
    facts = InputFacts.of(classifier, config)
    plan = plan_batches(dataset.samples, facts.shape, config.batch_size)
    compute(read_batch(plan[0], config, facts), config, method, device)
    clock, made = _Clock(), []
    for batch in plan:
        with clock("read"):
            images = [read_image(sample.image, upright=sample.upright) for sample in batch]
        with clock("input"):
            inputs = {scale: facts.inputs(images, scale) for scale in config.scales}
        loaded = Loaded(tuple(batch), tuple(image.shape[:2] for image in images), inputs, ())
        with clock("model"):
            computed, failed = compute(loaded, config, method, device)
        if failed:
            raise DataError(next(iter(failed.values())), where=config.data)
        made.append(computed)
    with clock("write"):
        stored = _write(config, made)
    lanes = {"read+input": _processes(config), "model": 1} if config.workers else {"read+input+model": 1}
    return clock.job("cam", len(dataset), {**lanes, "write": 1}, stored)


def _write(config: BenchIoConfig, made: Sequence[Sequence[Computed]]) -> int:
    run, outcome = replace(config, out=config.out / "maps"), Outcome()
    with Manifest(run.out) as manifest, MapWriter(run, manifest, outcome, set()) as writer:
        if config.store == "shards":
            manifest.pack([image.sample.id for computed in made for image in computed], set())
        for computed in made:
            writer.put(computed, {})
    return _size(run.out / "maps")


def _refine(config: BenchIoConfig, dataset: data.Dataset) -> Job:
    run = RefineConfig(
        maps=config.out / "maps",
        method=str(config.refiner),
        options=config.refiner_options,
        out=config.out / "masks",
    )
    classes, clock, lanes = len(dataset.spec.classes), _Clock(), {"read+refine+write": _processes(config)}
    refine_pair(*read_pair(dataset.samples[0], run), run, classes)
    for sample in dataset.samples:
        with clock("read"):
            maps, image = read_pair(sample, run)
        with clock("refine"):
            mask, refined = refine_pair(maps, image, run, classes)
        with clock("write"):
            write_result(maps, mask, refined, run, classes)
    if config.store == "shards":  # by the one process that the others report to
        ids, lanes = [sample.id for sample in dataset.samples], {**lanes, "pack": 1}
        with clock("pack"), Manifest(run.out) as manifest:
            manifest.pack(ids, set(ids))
    return clock.job("refine", len(dataset), lanes, _size(run.out / "masks"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _processes(config: BenchIoConfig) -> int:
    return max(1, min(config.workers, _cores()))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
