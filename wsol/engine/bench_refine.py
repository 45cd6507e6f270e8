"""`wsol bench refine`: every refiner on the same score maps, measured against the true masks."""

from __future__ import annotations

import json
import logging

import numpy as np
import torch

from wsol import data, refine
from wsol.engine.bench_measure import Row, as_json, cost
from wsol.engine.bench_options import BenchRefineConfig, fresh, listed
from wsol.engine.make_masks import dataset_of_run, make_masks
from wsol.engine.refine_options import RefineConfig
from wsol.errors import ConfigError, WsolError
from wsol.eval import evaluate_segmentation
from wsol.eval.boundary import evaluate_boundary
from wsol.store.atomic import write_text
from wsol.store.runs import read_info, versions

_log = logging.getLogger("wsol")


def bench_refine(config: BenchRefineConfig) -> list[Row]:
    """Refine the maps of a run by every refiner, measure the masks, and write `bench.json`.

    Args:
        config: See `BenchRefineConfig`. The masks of a row are kept as the run `OUT/METHOD`.

    Returns:
        One row a refiner, in order. A refiner that cannot work with these maps is a row that says why.

    Raises:
        WsolError: On a mistake in the options, or when the maps or their data set cannot be read.
    """
    methods = listed(config.methods)
    if not methods:
        raise ConfigError("no refiner", where="--methods", hint="for example --methods threshold,densecrf")
    for name in (name for method in methods for name in method.split("+")):
        refine.REFINERS.get(name)  # a misspelt name ends here, not after an hour
    dataset = dataset_of_run(config.maps, limit=config.limit)
    fresh(config.out, overwrite=config.overwrite)
    has_truth = dataset.spec.annotations in ("mask", "both")
    background, source = config.background, "fixed"
    if background is None and config.alpha is None:
        if not has_truth:
            raise ConfigError("no background score", hint="give --background or --alpha: there are no true masks")
        seed = evaluate_segmentation(pred=config.maps, use="maps", limit=config.limit, workers=config.workers)
        background, source = seed.threshold["mIoU"], f"{seed.threshold_source}, unrefined"
    rows = []
    for method in methods:
        _log.info("%s", method)
        rows.append(_row(config, dataset, method=method, background=background, source=source, has_truth=has_truth))
    facts = {"maps": str(config.maps), "split": dataset.spec.split, "background": background, "alpha": config.alpha}
    write_text(config.out / "bench.json", json.dumps(as_json(rows, **facts, versions=versions()), indent=1) + "\n")
    return rows


def _row(
    config: BenchRefineConfig,
    dataset: data.Dataset,
    *,
    method: str,
    background: float | None,
    source: str,
    has_truth: bool,
) -> Row:
    names, run, chain = {"method": method}, config.out / method, method.replace("+", ",")
    job = RefineConfig(
        maps=config.maps,
        method=chain,
        background=background,
        alpha=config.alpha,
        limit=config.limit,
        workers=0,
        overwrite=True,
        quiet=config.quiet,
        out=run,
    )
    metrics = {}
    try:
        _warm_up(chain)
        with cost(torch.device("cpu")) as spent:
            outcome = make_masks(job)
        if has_truth:
            masks = evaluate_segmentation(pred=run, limit=config.limit, workers=config.workers)
            borders = evaluate_boundary(run / "masks", dataset, tolerance=config.tolerance, workers=config.workers)
            metrics = {"mIoU": masks.metrics["mIoU"], "boundary F": borders.metrics["boundary F"]}
    except WsolError as error:
        return Row(names=names, split=dataset.spec.split, error=str(error))
    return Row(
        names=names,
        metrics=metrics,
        thresholds={} if background is None or config.alpha is not None else {"mIoU": background},
        threshold_source=source if config.alpha is None else f"(1 - max)^{config.alpha:g}",
        split=dataset.spec.split,
        n=outcome.done,
        failed=len(outcome.failures),
        ms=1000 * read_info(run).seconds / outcome.done if outcome.done else None,
        peak_mb=spent.peak_mb,
    )


def _warm_up(chain: str) -> None:
    """Refine a few pixels, so that compiling is not counted."""
    rng = np.random.default_rng(0)
    image, scores = rng.integers(0, 256, (33, 47, 3), dtype=np.uint8), rng.random((2, 33, 47), dtype=np.float32)
    refine.chain(chain)(image, scores)
