"""`wsol cam --engine ray`: one model an actor, whose threads read the next batches while the model works."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from threading import Lock

from wsol import cams
from wsol.engine.device import resolve_device
from wsol.engine.make_maps import load_model
from wsol.engine.map_batches import InputFacts, Made, compute, read_batch
from wsol.engine.options import CamConfig
from wsol.engine.ray_pool import run_on_ray
from wsol.schema import DatasetSpec, Sample


def maps_on_ray(
    batches: Sequence[Sequence[Sample]], config: CamConfig, spec: DatasetSpec, facts: InputFacts
) -> Generator[Made, None, None]:
    """Yield the raw maps of the batches in order; the caller writes them meanwhile.

    Args:
        batches: As they were planned.
        config: Options of the job; `workers` threads of each actor read ahead.
        spec: Of the data set.
        facts: Of the model.
    """
    make = partial(BatchMapper, config, spec, facts)
    return run_on_ray(make, batches, lost=_lost, gpu=config.device != "cpu", threads=config.workers + 1)


class BatchMapper:
    """Reads a batch and makes its raw maps; threads may call it together."""

    def __init__(self, config: CamConfig, spec: DatasetSpec, facts: InputFacts) -> None:
        self.config, self.facts, self.device = config, facts, resolve_device(config.device)
        self.method = cams.create(config.method, load_model(config, spec, self.device), **config.options)
        self._model = Lock()

    def __call__(self, batch: Sequence[Sample]) -> Made:
        """Return the maps of a batch, and why images have none."""
        loaded = read_batch(batch, self.config, self.facts)
        with self._model:
            return compute(loaded, self.config, self.method, self.device)


def _lost(batch: Sequence[Sample], reason: str) -> Made:
    return [], {sample.id: reason for sample in batch}
