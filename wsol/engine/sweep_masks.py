"""`wsol refine --sweep`: which background score and which options give the best masks on one split."""

from __future__ import annotations

import csv
import io
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from wsol import refine
from wsol.config import neutral
from wsol.data import Dataset
from wsol.data.images import read_image
from wsol.engine.make_masks import dataset_of_run
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.pool import run_in_pool
from wsol.engine.progress import track
from wsol.engine.refine_options import RefineConfig
from wsol.errors import ConfigError, DataError, ModelError, WsolError
from wsol.ops.confusion import confusion_matrix, mean_iou
from wsol.schema import Sample
from wsol.store.atomic import write_text
from wsol.store.maps import read_maps
from wsol.store.runs import open_run, read_info

_log = logging.getLogger("wsol")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(RefineConfig):
    """Choose the background score and the options of a refiner on a split with true masks."""

    backgrounds: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35)
    """Constant background scores to try."""
    alphas: tuple[float, ...] = ()
    """Powers of the background score (1 - max)^alpha to try as well."""
    vary: tuple[str, ...] = ()
    """Options to try, as NAME=VALUE,VALUE; of several refiners METHOD.NAME=VALUE,VALUE."""
    shard: str = neutral(default="0/1")
    """A sweep is not split: one process adds up all images."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        if self.shard != "0/1":
            raise ConfigError("a sweep is not split over jobs", where="--shard", hint="give it more --workers")
        if not self.backgrounds and not self.alphas:
            raise ConfigError("nothing to try", where="--backgrounds, --alphas")


@dataclass(frozen=True)
class Setting:
    """One way to refine.

    Attributes:
        background: Constant background score, or None.
        alpha: Power of the background score, or None.
        options: Options of the method.
    """

    background: float | None
    alpha: float | None
    options: Mapping[str, Any] = field(default_factory=dict)


def settings(config: SweepConfig) -> list[Setting]:
    """Return every combination that a sweep tries; the options of the configuration hold where nothing varies.

    Raises:
        ConfigError: When an option is not written as NAME=VALUE,VALUE, or a combination is wrong.
    """
    names, values = [], []
    for text in config.vary:
        name, equals, rest = text.partition("=")
        if not equals or not name or not rest:
            raise ConfigError(f"expected NAME=VALUE,VALUE, got '{text}'", where="--vary")
        names.append(name.replace("-", "_").split("."))
        values.append([yaml.safe_load(value) for value in rest.split(",")])
    grounds: list[tuple[float | None, float | None]] = [(value, None) for value in config.backgrounds]
    grounds += [(None, value) for value in config.alphas]
    found = []
    for chosen in itertools.product(*values):
        options = _merge(config.options, zip(names, chosen, strict=True))
        refine.chain(config.method, options)
        found += [Setting(background, alpha, options) for background, alpha in grounds]
    return found


def sweep_masks(config: SweepConfig) -> Outcome:
    """Measure every setting on the split that the maps were made of, and write the best as a recipe.

    Args:
        config: See `SweepConfig`.

    Returns:
        Counts, and the images that failed. The run folder holds `sweep.csv` (a row a setting, best first) and
        `recipe.yaml` for `wsol refine -c`. The score is mIoU over the data set with pixels of label 255 ignored.

    Raises:
        WsolError: On a mistake in the options, without true masks, or when the run folder cannot be written.
    """
    config.validate()
    tried = settings(config)
    dataset = dataset_of_run(config.maps, limit=config.limit)
    if dataset.spec.annotations not in ("mask", "both"):
        raise ConfigError(f"data set '{dataset.spec.name}' has no true masks to choose by", where="--sweep")
    for setting in tried:
        refine.chain(config.method, setting.options).load()  # what it lacks is said before there is a run
    classes, outcome = len(dataset.spec.classes) + 1, Outcome()
    totals = np.zeros((len(tried), classes, classes), dtype=np.int64)
    with (
        open_run(
            config.out,
            verb="refine sweep",
            config=config,
            dataset=dataset.spec,
            inputs={str(config.maps): read_info(config.maps).config_hash},
            overwrite=config.overwrite,
        ) as run,
        log_to(config.out / "log.txt"),
    ):
        work = partial(_measure, config=config, tried=tried, dataset=dataset, classes=classes)
        with track(len(dataset), f"sweep ({config.method}, {len(tried)} settings)", quiet=config.quiet) as tracker:
            for image_id, counts, reason in run_in_pool(work, dataset.samples, workers=config.workers):
                if counts is None:
                    outcome.failures[image_id] = reason
                else:
                    totals += counts
                    outcome.done += 1
                tracker.advance()
        say_failures(outcome)
        if not outcome.done:
            raise DataError("no image could be measured", where=config.maps, hint="the reasons are in log.txt")
        scores = [100 * mean_iou(matrix) for matrix in totals]
        best = int(np.nanargmax(scores))
        where = f"'{dataset.spec.split}', n = {outcome.done}"
        _write_table(config, tried, scores)
        _write_recipe(
            config, tried[best], f"mIoU {scores[best]:.2f} on {where}, the best of {len(tried)} settings there"
        )
        run.facts.update(outcome.facts(), best=scores[best], split=dataset.spec.split, settings=len(tried))
        _log.info("best on %s: mIoU %.2f with %s", where, scores[best], config.out / "recipe.yaml")
    return outcome


def _measure(
    sample: Sample, *, config: SweepConfig, tried: list[Setting], dataset: Dataset, classes: int
) -> tuple[str, NDArray[np.int64] | None, str]:
    try:
        maps, image = read_maps(config.maps, sample.id), read_image(sample.image, upright=sample.upright)
        truth, full = dataset.read_truth(sample), maps.at_image_size()
        counts = np.empty((len(tried), classes, classes), dtype=np.int64)
        for count, setting in zip(counts, tried, strict=True):
            steps = refine.chain(config.method, setting.options)
            scores = refine.with_background(full, background=setting.background, alpha=setting.alpha)
            labels, _ = steps.label(steps(image, scores), maps.class_ids, min_confidence=config.min_confidence)
            count[:] = confusion_matrix(truth, labels, classes)
        return sample.id, counts, ""
    except (ConfigError, ModelError):  # wrong for every image
        raise
    except WsolError as error:
        return sample.id, None, str(error)


def _merge(options: Mapping[str, Any], changes: Iterator[tuple[list[str], Any]]) -> dict[str, Any]:
    merged = {name: dict(value) if isinstance(value, Mapping) else value for name, value in options.items()}
    for path, value in changes:
        place = merged
        for name in path[:-1]:
            place = place.setdefault(name, {})
        place[path[-1]] = value
    return merged


def _write_table(config: SweepConfig, tried: list[Setting], scores: list[float]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["miou", "background", "alpha", "options"])
    for at in np.argsort([-score for score in scores], kind="stable"):
        row = tried[at]
        writer.writerow([f"{scores[at]:.3f}", row.background, row.alpha, yaml.safe_dump(dict(row.options)).strip()])
    write_text(config.out / "sweep.csv", table.getvalue())


def _write_recipe(config: SweepConfig, best: Setting, note: str) -> None:
    recipe = {
        "method": config.method,
        "background": best.background,
        "alpha": best.alpha,
        "options": dict(best.options),
        "min_confidence": config.min_confidence,
    }
    text = f"# wsol refine --maps MAPS -c recipe.yaml --out RUN\n# {note}\n" + yaml.safe_dump(recipe, sort_keys=False)
    write_text(config.out / "recipe.yaml", text)
