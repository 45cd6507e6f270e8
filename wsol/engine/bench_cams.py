"""`wsol bench cams`: every map method on every model, measured on one data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsol import data
from wsol.cams import CAMS
from wsol.engine.bench_measure import Row, as_json, cost
from wsol.engine.bench_options import BenchCamsConfig, fresh, listed
from wsol.engine.device import resolve_device
from wsol.engine.make_maps import make_maps
from wsol.engine.options import CamConfig
from wsol.errors import ConfigError, WsolError
from wsol.eval import evaluate_localization, evaluate_segmentation
from wsol.schema import EvalResult
from wsol.store.atomic import write_text
from wsol.store.runs import read_info, versions

_log = logging.getLogger("wsol")
_METRICS = ("MaxBoxAccV2", "PxAP", "mIoU")


def bench_cams(config: BenchCamsConfig) -> list[Row]:
    """Make maps by every method with every model, measure them, and write `bench.json`.

    Args:
        config: See `BenchCamsConfig`. The maps of a row are kept as the run `OUT/MODEL-METHOD`.

    Returns:
        One row a model and method, in order. A method that cannot work with a model is a row that says why.

    Raises:
        WsolError: On a mistake in the options, or when the data set cannot be loaded.
    """
    entries, methods = config.entries(), listed(config.methods)
    for method in methods:
        CAMS.get(method)  # a misspelt name ends here, not after an hour
    if not methods:
        raise ConfigError("no method", where="--methods", hint="for example --methods cam,gradcam")
    dataset = data.load(config.data, root=config.root, split=config.split, limit=config.limit, **config.data_options)
    fresh(config.out, overwrite=config.overwrite)
    device = resolve_device(config.device)
    rows = []
    for (model, weights), label in zip(entries, _labels(entries), strict=True):
        for method in methods:
            _log.info("%s, %s", label, method)
            rows.append(_row(config, dataset, device, label=label, model=model, weights=weights, method=method))
    facts = {"data": config.data, "split": dataset.spec.split, "device": str(device), "versions": versions()}
    write_text(config.out / "bench.json", json.dumps(as_json(rows, **facts), indent=1) + "\n")
    return rows


def _labels(entries: Sequence[tuple[str | None, str | None]]) -> list[str]:
    """Return a name for each model, with its place in the list where several have the same."""
    names = [model or Path(str(weights)).name for model, weights in entries]
    return [name if names.count(name) == 1 else f"{name} {at}" for at, name in enumerate(names, start=1)]


def _row(
    config: BenchCamsConfig,
    dataset: data.Dataset,
    device: Any,
    *,
    label: str,
    model: str | None,
    weights: str | None,
    method: str,
) -> Row:
    names = {"model": label, "method": method}
    run = config.out / f"{label}-{method}".replace("/", "_").replace(":", "_")
    job = CamConfig(
        data=config.data,
        root=config.root,
        split=config.split,
        data_options=config.data_options,
        limit=config.limit,
        model=model,
        checkpoint=weights,
        pretrained=config.pretrained,
        prompts=config.prompts if (model or "").partition(":")[0] == "clip" else None,
        normalize=config.normalize,
        method=method,
        img_size=config.img_size,
        resize=config.resize,
        batch_size=config.batch_size,
        amp=config.amp,
        device=config.device,
        workers=0,
        overwrite=True,
        quiet=config.quiet,
        out=run,
    )
    try:
        with cost(device) as spent:
            outcome = make_maps(job)
        results = _measure(run, dataset, workers=config.workers)
    except WsolError as error:
        return Row(names=names, split=dataset.spec.split, error=str(error))
    seconds = read_info(run).seconds  # without loading the model
    found = {name: result for result in results for name in _METRICS if name in result.metrics}
    return Row(
        names=names,
        metrics={name: result.metrics[name] for name, result in found.items()},
        thresholds={name: result.threshold[name] for name, result in found.items() if name in result.threshold},
        threshold_source=", ".join(dict.fromkeys(result.threshold_source for result in results)),
        split=dataset.spec.split,
        n=outcome.done,
        failed=len(outcome.failures),
        ms=1000 * seconds / outcome.done if outcome.done else None,
        peak_mb=spent.peak_mb,
    )


def _measure(run: Path, dataset: data.Dataset, *, workers: int) -> list[EvalResult]:
    """Measure boxes where there are boxes, and masks where there are masks (PxAP where they are of one object)."""
    spec, limit = dataset.spec, len(dataset)
    if spec.name == "openimages":
        return [evaluate_localization(maps=run, limit=limit, workers=workers, protocol=["pxap"])]
    results = []
    if spec.annotations in ("box", "both"):
        results.append(evaluate_localization(maps=run, limit=limit, workers=workers, protocol=["maxboxaccv2"]))
    if spec.annotations in ("mask", "both"):
        results.append(evaluate_segmentation(pred=run, limit=limit, workers=workers))
    return results
