"""What a report shows of each run: its folder, its provenance, its results, its failures. Runs without torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wsol.config import load_yaml
from wsol.data.catalog import Dataset
from wsol.errors import DataError, StoreError, WsolError
from wsol.eval.curves import read_result
from wsol.eval.sources import load_truth, run_facts
from wsol.schema import EvalResult, RunInfo
from wsol.store.manifest import read_rows
from wsol.store.places import is_folder
from wsol.store.runs import read_info


@dataclass(frozen=True)
class Evaluated:
    """One result of `wsol eval` and the options that it was measured with."""

    result: EvalResult
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One run of the report.

    Attributes:
        label: Short and unique among the runs.
        folder: The run, or the folder of predictions that was evaluated.
        info: What `run.json` says; None for predictions of other tools.
        evaluated: Its results.
        history: Rows of a training.
        failures: Image id to the reason why it has no file.
    """

    label: str
    folder: Path
    info: RunInfo | None = None
    evaluated: tuple[Evaluated, ...] = ()
    history: Sequence[Mapping[str, float]] = ()
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Mapping[str, Any]:
        """Options of the run."""
        return self.info.config if self.info else {}

    @property
    def made_from(self) -> Mapping[str, Any]:
        """Options of the run whose maps this one refined; empty where there is none."""
        try:
            return read_info(Path(self.config["maps"])).config if self.config.get("maps") else {}
        except WsolError:
            return {}

    @property
    def maps(self) -> Path | None:
        """Folder of the score maps: those of the run, or those that its masks were made from."""
        made_from = self.config.get("maps")
        for folder in (self.folder, Path(made_from) if made_from else None):
            if folder is not None and (folder / "maps").is_dir():
                return folder
        measured = any(one.result.task == "localization" for one in self.evaluated)
        return self.folder if measured else None

    @property
    def masks(self) -> Path | None:
        """Folder of the masks."""
        if (self.folder / "masks").is_dir():
            return self.folder / "masks"
        measured = any(one.result.task == "segmentation" for one in self.evaluated)
        return self.folder if measured and self.maps is None else None

    def dataset(self) -> Dataset:
        """Load the images that the predictions belong to.

        Raises:
            WsolError: When nothing says which they are, or they are not where they were.
        """
        options = self.evaluated[0].options if self.evaluated else {}
        root = options.get("root") or run_facts(self.folder).get("root")
        if root and not is_folder(Path(root)):
            raise DataError("the folder of the images is not there", where=root, hint="put it back, or evaluate again")
        return load_truth(
            self.folder,
            name=options.get("data"),
            root=Path(root) if root else None,
            split=options.get("split"),
            limit=options.get("limit"),
            options=options.get("data_options"),
        )

    def scores(self, dataset: Dataset) -> dict[str, float]:
        """Return the IoU by image id, the mean over its classes where they were measured one by one."""
        for one in self.evaluated:
            rows = one.result.per_image
            found = {}
            for sample in dataset.samples:
                names = [dataset.spec.classes[label] for label in sample.labels]
                keys = [sample.id, *(f"{sample.id} ({name})" for name in names)]
                values = [row.get("iou", row.get("iou_all", math.nan)) for key in keys if (row := rows.get(key))]
                values = [value for value in values if math.isfinite(value)]
                if values:
                    found[sample.id] = sum(values) / len(values)
            if found:
                return found
        return {}


def read_entries(paths: Sequence[Path]) -> list[Entry]:
    """Read run folders; results of `wsol eval` join the run that they measured.

    Args:
        paths: Folders of `wsol cam`, `refine`, `train`, `segment` or `eval`.

    Raises:
        StoreError: When a folder holds neither a run nor a result.
    """
    entries: dict[Path, Entry] = {}
    for path in paths:
        is_run, is_result = (path / "run.json").is_file(), (path / "metrics.json").is_file()
        if not is_run and not is_result:
            what = "no run in this folder" if path.is_dir() else "no such folder"
            raise StoreError(what, where=path, hint="give folders of wsol cam, refine, train, segment or eval")
        if is_run:
            _find(entries, path)
        if is_result:
            options = load_yaml(path / "eval.yaml") if (path / "eval.yaml").is_file() else {}
            source = Path(options.get("maps") or options.get("pred") or path)
            entry = _find(entries, source)
            one = Evaluated(read_result(path), options)
            entries[source.resolve()] = replace(entry, evaluated=(*entry.evaluated, one))
    return _labelled(list(entries.values()))


def _find(entries: dict[Path, Entry], folder: Path) -> Entry:
    key = folder.resolve()
    if key not in entries:
        info = read_info(folder) if (folder / "run.json").is_file() else None
        rows = read_rows(folder)
        failures = {name: str(row.get("error", "")) for name, row in rows.items() if not row.get("ok")}
        entries[key] = Entry("", folder, info, history=_history(folder), failures=failures)
    return entries[key]


def _history(folder: Path) -> list[dict[str, float]]:
    path = folder / "history.jsonl"
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{name: value for name, value in row.items() if value is not None} for row in rows]
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(f"cannot read the history: {error}", where=path) from error


def _labelled(entries: list[Entry]) -> list[Entry]:
    """Name each run by its method, and by its folder too where two runs have the same method."""
    methods = [_method(entry) for entry in entries]
    names = [entry.folder.resolve().name for entry in entries]
    shared = Counter(methods)
    labels = [
        method if shared[method] == 1 else f"{method} ({name})" for method, name in zip(methods, names, strict=True)
    ]
    repeated = Counter(labels)
    labels = [
        label if repeated[label] == 1 else f"{label} {index + 1}" for index, label in enumerate(labels)
    ]  # folders of the same name, in different places
    return [replace(entry, label=label) for entry, label in zip(entries, labels, strict=True)]


def _method(entry: Entry) -> str:
    config, name = entry.config, entry.folder.resolve().name
    verb = entry.info.verb if entry.info else ""
    if config.get("method") and config.get("maps"):
        return " + ".join(str(word) for word in (entry.made_from.get("method"), config["method"]) if word)
    if config.get("method"):
        return str(config["method"])
    if verb.startswith("train") and config.get("model"):
        return f"{config['model']}, mix {config.get('mix', 'none')}"
    return name
