"""`wsol bench mix`: every strategy trained with the same budget and seeds, measured on one split."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

from wsol import mix
from wsol.engine.bench_measure import finite
from wsol.engine.bench_mix_options import BenchMixConfig
from wsol.engine.device import resolve_device
from wsol.engine.loaders import load_splits
from wsol.engine.seeding import own_randomness
from wsol.engine.step_time import first_batch, time_steps
from wsol.engine.train import prepare, train
from wsol.errors import WsolError
from wsol.mix.base import Family
from wsol.store.atomic import write_text
from wsol.store.runs import versions

_log = logging.getLogger("wsol")
_FAMILIES: tuple[Family, ...] = ("other", "delete", "cut", "mixup", "attention")
_NO_METRIC = ("epoch", "loss", "lr", "seconds")


@dataclass(frozen=True)
class MixRow:
    """One strategy.

    Attributes:
        strategy: As it was given.
        family: See `mix.Strategy.family`.
        values: Metric to one value a seed, after the last epoch, in percent.
        mean: Metric to the mean over the seeds.
        spread: Metric to the standard deviation over the seeds (n - 1); NaN for one seed or a value not finite.
        step_ms: Median milliseconds a step of training, without reading images; None where not measured.
        peak_mb: Peak memory of these steps, see `bench_measure.Cost`.
        failed: Images that could not be used.
        error: Why there are no numbers; empty where there are.
    """

    strategy: str
    family: Family
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    mean: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)
    step_ms: float | None = None
    peak_mb: float | None = None
    failed: int = 0
    error: str = ""


def bench_mix(config: BenchMixConfig) -> list[MixRow]:
    """Train every strategy with every seed, and write `bench.json`; what an earlier call has trained is kept.

    Args:
        config: See `BenchMixConfig`. Each training is the run `OUT/STRATEGY-seedN`.

    Returns:
        One row a strategy, by family. A strategy that cannot train the model is a row that says why.

    Raises:
        WsolError: On a mistake in the options, or when the data set cannot be loaded.
    """
    config.validate()
    dataset, val = load_splits(config)
    if val is not None and val.spec.annotations != "none":
        config = replace(config, eval_loc=config.eval_loc or config.epochs)
    rows = []
    for text in sorted(config.strategies, key=_place):
        _log.info("%s", text)
        rows.append(_row(config, text))
    facts: dict[str, Any] = {
        "data": config.data,
        "model": config.model or config.checkpoint,
        "epochs": config.epochs,
        "seeds": config.seeds,
    }
    facts |= {"train": {"split": dataset.spec.split, "n": len(dataset)}}
    facts |= {} if val is None else {"val": {"split": val.spec.split, "n": len(val)}}
    device = str(resolve_device(config.device))
    plain = {**facts, "device": device, "versions": versions(), "rows": [asdict(row) for row in rows]}
    write_text(config.out / "bench.json", json.dumps(finite(plain), indent=1) + "\n")
    return rows


def _row(config: BenchMixConfig, text: str) -> MixRow:
    family = mix.MIXES.get(mix.split_text(text)[0]).family
    values: dict[str, list[float]] = {}
    failed = 0
    try:
        for seed in range(config.seed, config.seed + config.seeds):
            trained = train(config.training(text, seed))
            failed = max(failed, len(trained.failures))
            for name, value in trained.history[-1].items():
                if name not in _NO_METRIC:
                    values.setdefault(name.removeprefix("val_"), []).append(value)
        step_ms, peak_mb = _step_cost(config, text) if config.timed_steps else (None, None)
    except WsolError as error:
        return MixRow(text, family, error=str(error))
    return MixRow(
        text,
        family,
        values=values,
        mean={name: fmean(found) for name, found in values.items()},
        spread={name: _spread(found) for name, found in values.items()},
        step_ms=step_ms,
        peak_mb=peak_mb,
        failed=failed,
    )


def _spread(values: Sequence[float]) -> float:
    """Return the standard deviation (n - 1); NaN for one value, and where one is not finite, which `stdev` cannot."""
    return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def _step_cost(config: BenchMixConfig, text: str) -> tuple[float, float | None]:
    device = resolve_device(config.device)
    with own_randomness(device):
        work, _ = prepare(replace(config.training(text, config.seed), eval_loc=0), device)
        step_ms, used = time_steps(work, first_batch(work), steps=config.timed_steps)
    return step_ms, used.peak_mb


def _place(text: str) -> int:
    return _FAMILIES.index(mix.MIXES.get(mix.split_text(text)[0]).family)
