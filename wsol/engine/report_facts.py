"""The numbers and facts of a report: headline tiles, what the runs share, and what differs between them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wsol.engine.report_entries import Entry
from wsol.report.sections import Section, Table, Tile
from wsol.schema import EvalResult

_HEADLINES = {
    "localization": ("MaxBoxAccV2", "GT-known", "MaxBoxAcc@50", "Top-1 Loc", "Top-1 accuracy", "PxAP"),
    "segmentation": ("mIoU", "foreground mIoU", "precision", "recall", "pixel accuracy"),
}
_NO_FACT = frozenset(
    {"out", "workers", "quiet", "overwrite", "resume", "fail_fast", "shard", "device", "engine", "root", "maps"}
    | {"seed", "amp_dtype"}
)
_USUAL: tuple[Any, ...] = (None, False, {}, [], "", (), [1.0])


def title_of(entries: Sequence[Entry]) -> str:
    """Return a title: the method and its images, or how many runs."""
    if len(entries) > 1:
        return f"{len(entries)} runs side by side"
    facts = _facts(entries[0])
    images = " ".join(facts[name] for name in ("data", "split") if name in facts)
    return f"{entries[0].label} on {images}" if images else entries[0].label


def headline(entries: Sequence[Entry]) -> str:
    """Return a sentence on what the page shows."""
    if len(entries) > 1:
        return ", ".join(entry.label for entry in entries)
    results = [one.result for one in entries[0].evaluated]
    return "; ".join(f"{result.task} on {result.split}, {result.n:,} images" for result in results)


def tiles(entries: Sequence[Entry]) -> list[Tile]:
    """Return all headline numbers of one run, or the first one of each of several."""
    if len(entries) == 1:
        return [tile for one in entries[0].evaluated for tile in _tiles_of(one.result)] or _tiles_of_run(entries[0])
    shown = []
    for entry in entries:
        own = [tile for one in entry.evaluated for tile in _tiles_of(one.result)[:1]] or _tiles_of_run(entry)[:1]
        shown += [Tile(entry.label, tile.value, ", ".join([tile.label, *filter(None, [tile.note])])) for tile in own]
    return shown


def _tiles_of(result: EvalResult) -> list[Tile]:
    shown = []
    for name in _HEADLINES.get(result.task, tuple(result.metrics)):
        value = result.metrics.get(name, math.nan)
        if math.isfinite(value):
            at = f", threshold {result.threshold[name]:.2f}" if name in result.threshold else ""
            source = f" ({result.threshold_source})" if at else ""
            shown.append(Tile(name, f"{value:.1f}", f"{result.split}, n = {result.n:,}{at}{source}"))
    return shown


def _tiles_of_run(entry: Entry) -> list[Tile]:
    if entry.history:
        last = entry.history[-1]
        names = [*(name for name in last if name.startswith("val_")), *(["loss"] if "loss" in last else [])]
        epoch = f"epoch {last.get('epoch', len(entry.history)):.0f}"
        return [Tile(name.removeprefix("val_"), f"{last[name]:.4g}", epoch) for name in names]
    facts = entry.info.facts if entry.info else {}
    names = [name for name in ("done", "skipped", "failed", "images") if isinstance(facts.get(name), int)]
    return [Tile(name, f"{facts[name]:,}", "images" if name != "images" else "") for name in names]


def metrics_table(entries: Sequence[Entry]) -> Iterator[Section]:
    """Yield one table a task: rows are runs and columns metrics for several runs, the other way round for one."""
    for task in _HEADLINES:
        results = [(entry.label, one.result) for entry in entries for one in entry.evaluated if one.result.task == task]
        names = list(dict.fromkeys(name for _, result in results for name in result.metrics))
        if len(results) == 1:
            result = results[0][1]
            rows = [[name, result.metrics[name], _threshold(result, name)] for name in names]
            note = f"{_quote(result)}."
            yield Table(task.capitalize(), ["metric", "%", "threshold"], rows, digits=2, note=note)
        elif results:
            rows = [[label, *(result.metrics.get(name) for name in names)] for label, result in results]
            quoted = {label: _quote(result) for label, result in results}
            notes = [f"{label}: {text}" for label, text in quoted.items()]
            notes = notes if len(set(quoted.values())) > 1 else list(quoted.values())[:1]
            best = dict.fromkeys(names, "max")
            yield Table(task.capitalize(), ["run", *names], rows, best, note="; ".join(notes) + ".")  # type: ignore[arg-type]


def _quote(result: EvalResult) -> str:
    source = f"thresholds: {result.threshold_source}" if result.threshold else "masks as they are"
    return f"{result.split}, n = {result.n:,}, {source}"


def _threshold(result: EvalResult, name: str) -> float | None:
    return result.threshold.get(name)


def common_facts(entries: Sequence[Entry]) -> dict[str, str]:
    """Return the facts that are the same for all runs."""
    facts = [_facts(entry) for entry in entries]
    return {name: value for name, value in facts[0].items() if all(other.get(name) == value for other in facts)}


def differences(entries: Sequence[Entry]) -> Iterator[Section]:
    """Yield a table of the facts that differ between the runs."""
    facts = [_facts(entry) for entry in entries]
    names = list(dict.fromkeys(name for own in facts for name in own))
    different = [name for name in names if len({own.get(name) for own in facts}) > 1]
    if different:
        rows = [[name, *(own.get(name, "–") for own in facts)] for name in different]
        yield Table("What differs", ["", *(entry.label for entry in entries)], rows)


def _facts(entry: Entry) -> dict[str, str]:
    info = entry.info
    if info is None:
        return {"folder": str(entry.folder)}
    facts: dict[str, str] = {"run": entry.folder.resolve().name, "step": f"wsol {info.verb}"}
    config = {**entry.made_from, **info.config, **({"method": entry.label} if entry.made_from else {})}
    facts |= {_words(name): _value(value) for name, value in config.items() if _tells(name, value)}
    facts |= {"seed": str(info.seed), "device": info.device}
    facts |= {f"{name} found": str(info.facts[name]) for name in ("layer", "stride") if name in info.facts}
    if info.seconds:
        facts["wall time"] = f"{info.seconds:,.1f} s"
    if info.peak_memory_mb:
        facts["peak memory"] = f"{info.peak_memory_mb:,.0f} MiB"
    facts["started"] = info.started.replace("T", " ").removesuffix("+00:00") + " UTC"
    facts |= {name: info.versions[name] for name in ("wsol", "torch", "timm", "numpy") if name in info.versions}
    facts["configuration"] = info.config_hash
    return facts


def _tells(name: str, value: Any) -> bool:
    return name not in _NO_FACT and not any(value == usual and type(value) is type(usual) for usual in _USUAL)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_value(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value)
    return str(value)
