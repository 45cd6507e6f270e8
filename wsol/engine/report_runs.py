"""`wsol report`: one HTML page from one or more run folders, side by side. Runs without torch."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsol.config import neutral
from wsol.data.catalog import Dataset
from wsol.engine.report_entries import Entry, read_entries
from wsol.engine.report_facts import common_facts, differences, headline, metrics_table, tiles, title_of
from wsol.engine.report_pictures import Painter, groups, spread
from wsol.errors import ConfigError, WsolError
from wsol.report.html import write_report
from wsol.report.plots import history, threshold_curve
from wsol.report.sections import Bars, Cards, Command, Figure, Plot, Section, Table, Text
from wsol.schema import EvalResult

_log = logging.getLogger("wsol")
_LARGE, _SMALL = 280, 96
_MOST_PICTURES, _MOST_ERRORS = 90, 200
_TOGETHER = {
    "MaxBoxAccV2": ("MaxBoxAccV2@30", "MaxBoxAccV2@50", "MaxBoxAccV2@70"),
    "IoU 50": ("GT-known", "Top-1 Loc", "Top-5 Loc"),
}
# Curves beside which these say nothing new.
_ALIKE = ("MaxBoxAcc@30", "MaxBoxAcc@50", "MaxBoxAcc@70", "MaxBoxAccV2@30", "MaxBoxAccV2@70", "Top-5 Loc")
_AXES = {"PxAP precision by recall": ("recall", "precision")}


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """One HTML page of runs, side by side: numbers, curves, classes, best and worst images, errors."""

    runs: tuple[Path, ...]
    """Folders of cam, refine, eval, train or segment; a result of eval joins the run that it measured."""
    out: Path = neutral(default=Path("report.html"))
    """File to write."""
    images: int = 1000
    """Most thumbnails, over all runs; 0 for none."""
    shown: int = 6
    """Images among the best, the median and the worst."""

    def validate(self) -> None:
        """Check values that a type cannot.

        Raises:
            ConfigError: Naming the flag.
        """
        if not self.runs:
            raise ConfigError("no run given", hint="wsol report RUN [RUN...] --out FILE")
        if self.images < 0 or self.shown < 1:
            raise ConfigError(f"--images needs at least 0 and --shown at least 1, got {self.images}, {self.shown}")


def report_runs(config: ReportConfig) -> Path:
    """Write the page.

    Args:
        config: See `ReportConfig`.

    Returns:
        The file.

    Raises:
        WsolError: When a folder holds no run, or the file cannot be written.
    """
    config.validate()
    entries = read_entries(config.runs)
    errors = [[entry.label, name, reason] for entry in entries for name, reason in entry.failures.items()]
    pictures: list[Section] = []
    for dataset, members in _by_dataset(entries, pictures):
        painter = Painter(dataset, members)
        pictures += _pictures(painter, members, config)
        errors += [["this page", name, reason] for name, reason in painter.failures.items()]
    sections = [
        *_warnings(entries),
        *metrics_table(entries),
        *_curves(entries),
        *_classes(entries),
        *_training(entries),
    ]
    sections += [*pictures, *differences(entries), *_errors(errors), *_commands(entries)]
    write_report(
        config.out,
        title=title_of(entries),
        lead=headline(entries),
        facts=common_facts(entries),
        tiles=tiles(entries),
        sections=sections,
        width=_LARGE,
    )
    _log.info("%.1f MB, %d runs", config.out.stat().st_size / 1e6, len(entries))
    return config.out


def _by_dataset(entries: Sequence[Entry], notes: list[Section]) -> list[tuple[Dataset, list[Entry]]]:
    """Group the runs that have maps or masks by their images; say which images are not there."""
    found: dict[tuple[str, str, str], tuple[Dataset, list[Entry]]] = {}
    for entry in entries:
        if entry.maps is None and entry.masks is None:
            continue
        try:
            dataset = entry.dataset()
        except WsolError as error:
            notes.append(Text(f"No pictures of {entry.label}", [str(error)], warning=True))
            continue
        key = (dataset.spec.name, str(dataset.spec.root), dataset.spec.split)
        found.setdefault(key, (dataset, []))[1].append(entry)
    return list(found.values())


def _pictures(painter: Painter, entries: Sequence[Entry], config: ReportConfig) -> Iterator[Section]:
    spec, order = painter.dataset.spec, painter.order()
    figures = 2 + 2 * len(entries)
    count = min(config.shown, max(1, _MOST_PICTURES // (3 * figures)))
    ids = [image_id for image_id, _ in order] or [sample.id for sample in painter.dataset.samples]
    where = f"{spec.name} {spec.split}"
    note = f"{_how(entries)} Boxes: orange predicted, dashed blue true. A click enlarges."
    if order:
        parts = groups(order, count)
        title = f"Best, median and worst of {where}"
    else:
        parts = {"": spread(ids, 3 * count)}
        title = f"Some images of {where}"
        note = f"Not measured: add a folder of wsol eval to rank them. {note}"
    yield Cards(title, {name: painter.cards(some, width=_LARGE) for name, some in parts.items()}, note=note)
    most = config.images // len(entries)
    if len(ids) > 3 * count and most:
        some = spread(ids[::-1] if order else ids, most)
        title = f"All {len(ids)} images" if len(some) == len(ids) else f"{len(some)} of {len(ids)} images"
        note = "Worst first; the line below a picture is its IoU." if order else ""
        yield Cards(f"{title} of {where}", {"": painter.cards(some, width=_SMALL, small=True)}, small=True, note=note)


def _how(entries: Sequence[Entry]) -> str:
    """Say at which thresholds the pictures were made."""
    said = []
    for entry in entries:
        for one in entry.evaluated:
            names = [
                name for name in ("MaxBoxAcc@50", "GT-known", "MaxBoxAccV2@50", "mIoU") if name in one.result.threshold
            ]
            if names:
                at = f"{one.result.threshold[names[0]]:.2f} ({one.result.threshold_source})"
                said.append(at if len(entries) == 1 else f"{entry.label} {at}")
    return f"Threshold: {'; '.join(said)}." if said else ""


def _warnings(entries: Sequence[Entry]) -> Iterator[Section]:
    notes = [
        note if len(entries) == 1 else f"{entry.label}: {note}"
        for entry in entries
        for one in entry.evaluated
        for note in one.result.warnings
    ]
    if notes:
        yield Text("Before you quote these numbers", list(dict.fromkeys(notes)), warning=True)


def _curves(entries: Sequence[Entry]) -> Iterator[Section]:
    """One plot a metric with a curve a run; of a single run, metrics that belong together share a plot."""
    results = [(entry.label, one.result) for entry in entries for one in entry.evaluated]
    figures: list[Figure] = []
    if len(results) == 1:
        result = results[0][1]
        names = [name for name in result.curves if math.isfinite(result.metrics.get(name, 0.0))]
        plots = {title: [(name, name, result) for name in some if name in names] for title, some in _TOGETHER.items()}
        known = {name for some in _TOGETHER.values() for name in some} | set(_ALIKE)
        plots |= {name: [(name, name, result)] for name in names if name not in known}
    else:
        shown = dict.fromkeys(name for _, result in results for name in result.curves if name not in _ALIKE)
        plots = {
            name: [(label, name, result) for label, result in results if name in result.curves
                   and math.isfinite(result.metrics.get(name, 0.0))]
            for name in shown
        }  # fmt: skip
    for title, lines in plots.items():
        if lines:
            figures.append(_curve(title, lines))
    if figures:
        yield Plot("Threshold curves", figures, "The dot is the threshold that was used.")


def _curve(title: str, lines: Sequence[tuple[str, str, EvalResult]]) -> Figure:
    """Plot curves, each a legend, the name of the curve, and the result that holds it."""
    curves = {label: result.curves[name] for label, name, result in lines}
    chosen = {label: result.threshold[name] for label, name, result in lines if name in result.threshold}
    x, y = _AXES.get(title, ("score threshold", "%"))
    sources = dict.fromkeys(result.threshold_source for _, name, result in lines if name in result.threshold)
    caption = f"Thresholds: {', '.join(sources)}." if sources else ""
    return Figure(threshold_curve(curves, chosen, title=title, x_label=x, y_label=y), caption, f"{title} by {x}")


def _classes(entries: Sequence[Entry]) -> Iterator[Section]:
    for task, metric in (("localization", "MaxBoxAccV2@50"), ("segmentation", "IoU")):
        tables: dict[str, Mapping[str, Mapping[str, float]]] = {
            entry.label: one.result.per_class
            for entry in entries
            for one in entry.evaluated
            if one.result.task == task and any(metric in row for row in one.result.per_class.values())
        }
        names = dict.fromkeys(name for table in tables.values() for name in table)
        rows = {name: [_finite(table.get(name, {}).get(metric)) for table in tables.values()] for name in names}
        best = sorted(rows, key=lambda name: -sum(value or 0.0 for value in rows[name]))
        if rows:
            title = "Box accuracy by class" if task == "localization" else "IoU by class"
            yield Bars(title, list(tables), {name: rows[name] for name in best}, f"{metric} in %. A click filters.")


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value else value


def _training(entries: Sequence[Entry]) -> Iterator[Section]:
    figures = []
    for entry in entries:
        columns = dict.fromkeys(name for row in entry.history for name in row)
        if "loss" in columns:
            metrics = [name for name in columns if name.startswith("val_") and "loss" not in name]
            svg = history(entry.history, metrics=metrics, title=entry.label)
            figures.append(Figure(svg, "", f"training of {entry.label}"))
    if figures:
        yield Plot("Training", figures)


def _errors(rows: Sequence[Sequence[Any]]) -> Iterator[Section]:
    if rows:
        shown, more = rows[:_MOST_ERRORS], len(rows) - _MOST_ERRORS
        note = f"And {more} more, see the manifests." if more > 0 else ""
        yield Table("Errors", ["run", "image", "reason"], shown, note=note, filtered=True)


def _commands(entries: Sequence[Entry]) -> Iterator[Section]:
    lines = []
    for entry in entries:
        argv = entry.info.argv if entry.info else ()
        if argv and Path(argv[0]).name.startswith("wsol"):
            lines.append(shlex.join(["wsol", *argv[1:]]))
    if lines:
        yield Command("How these runs were made", "\n".join(lines))
