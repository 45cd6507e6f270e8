"""`wsol data convert`: between run folders and the files of irn, PSA, CLIP-ES and the WSOL benchmark."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsol import data
from wsol.config import from_dict
from wsol.data.images import image_size
from wsol.engine.convert_options import ConvertConfig
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.progress import track
from wsol.errors import ConfigError, StoreError, WriteError, WsolError
from wsol.eval.sources import load_truth
from wsol.schema import PseudoMask, Sample, ScoreMaps
from wsol.store.exchange import PROJECTS
from wsol.store.exchange.base import Found, Project
from wsol.store.exchange.wsolevaluation import write_metadata
from wsol.store.instances import instances_path, read_instances, write_instances
from wsol.store.manifest import Manifest, read_rows
from wsol.store.maps import map_path, read_maps, write_maps
from wsol.store.masks import mask_path, read_mask, write_mask
from wsol.store.runs import open_run
from wsol.store.shards import has_file

_log = logging.getLogger("wsol")


@dataclass
class Converted(Outcome):
    """Counts of one conversion.

    Attributes:
        without_file: Images of the split that have no file in the source; left out.
    """

    without_file: int = 0


def convert(config: ConvertConfig) -> Converted:
    """Read the files of another project into a run folder, or write them from one.

    Args:
        config: See `ConvertConfig`.

    Returns:
        Counts, and the images that failed with their reasons.

    Raises:
        WsolError: On a mistake in the options, or when the output cannot be written.
    """
    config.validate()
    kind = PROJECTS.get(config.project)
    project: Any = from_dict(kind, config.options, where=f"project '{config.project}'")
    if project.kind == "metadata":
        return _write_metadata(config)
    if config.source is None:
        raise ConfigError("nothing to convert", hint="give --source FOLDER")
    if not config.source.is_dir():
        raise StoreError("no such folder", where=config.source, hint="give the folder that holds the files")
    counts = _read(config, project, config.source) if config.read else _write(config, project, config.source)
    say_failures(counts)
    if counts.without_file:
        _log.info("%d images of the split have no file and were left out", counts.without_file)
    return counts


def _read(config: ConvertConfig, project: Project, source: Path) -> Converted:
    dataset = data.load(str(config.data), **_where(config), **config.data_options)
    found = [sample for sample in dataset if project.file(source, sample).is_file()]
    if not found:
        first = project.file(source, dataset.samples[0])
        raise StoreError("no image has a file here", where=source, hint=f"looked for {first.relative_to(source)}")
    counts = Converted(without_file=len(dataset) - len(found))
    run = open_run(config.out, verb="data convert", config=config, dataset=dataset.spec, overwrite=config.overwrite)
    with run, Manifest(config.out) as manifest, log_to(config.out / "log.txt"):

        def work(sample: Sample) -> None:
            item = project.read(project.file(source, sample), _sized(sample))
            manifest.done(sample.id, **_store(config.out, sample, item))

        _each(found, work, counts, config, failed=manifest.failed)
        run.facts.update(counts.facts())
    return counts


def _store(run: Path, sample: Sample, item: Found) -> dict[str, Any]:
    if isinstance(item, ScoreMaps):
        return {"bytes": write_maps(run, item)}
    if isinstance(item, PseudoMask):
        return {"bytes": write_mask(run, item)}
    size = item[0].mask.shape if item else _sized(sample).size
    write_instances(run, sample.id, size or (), item)
    return {}


def _write(config: ConvertConfig, project: Project, run: Path) -> Converted:
    _refuse_full(config.out)
    place, load = _SOURCES[project.kind]
    dataset = load_truth(run, name=config.data, options=config.data_options, **_where(config))
    found = [sample for sample in dataset if has_file(place(run, sample.id))]
    if not found:
        first = place(run, dataset.samples[0].id)
        hint = f"looked for {first.relative_to(run)}; --options.files says what to write"
        raise StoreError(f"no image has {project.kind} here", where=run, hint=hint)
    counts = Converted(without_file=len(dataset) - len(found))
    rows, taken = read_rows(run), set[Path]()

    def work(sample: Sample) -> None:
        path = project.file(config.out, sample)
        if path in taken:
            raise StoreError("two images have this name and differ only in their suffix", where=path)
        taken.add(path)
        if project.kind == "masks" and "classes" in rows.get(sample.id, {}):
            raise StoreError("a byte cannot name the classes of this data set", where=sample.id)
        item = load(run, sample.id)
        size = item.image_size if isinstance(item, ScoreMaps) else None
        project.write(path, item, _sized(sample) if size is None else replace(sample, size=size))

    _each(found, work, counts, config)
    return counts


def _load_instances(run: Path, image_id: str) -> Found:
    return read_instances(run, image_id)[1]


_SOURCES: dict[str, tuple[Callable[[Path, str], Path], Callable[[Path, str], Found]]] = {
    "maps": (map_path, read_maps),
    "masks": (mask_path, read_mask),
    "instances": (instances_path, _load_instances),
}


def _each(
    samples: list[Sample],
    work: Callable[[Sample], None],
    counts: Converted,
    config: ConvertConfig,
    failed: Callable[[str, str], None] = lambda *_: None,
) -> None:
    with track(len(samples), f"convert ({config.project})", quiet=config.quiet) as tracker:
        for sample in samples:
            try:
                work(sample)
            except WriteError:
                raise
            except WsolError as error:
                failed(sample.id, str(error))
                counts.failures[sample.id] = str(error)
            else:
                counts.done += 1
            tracker.advance()


def _write_metadata(config: ConvertConfig) -> Converted:
    if config.write is None or config.data is None:
        hint = "to evaluate with metadata that is there: wsol eval loc --metadata FOLDER"
        raise ConfigError("metadata is written from a data set: give --write wsolevaluation and --data", hint=hint)
    _refuse_full(config.out)
    dataset = data.load(config.data, **_where(config), **config.data_options)
    write_metadata(config.out, map(_sized, dataset), root=dataset.spec.root)
    return Converted(done=len(dataset))


def _where(config: ConvertConfig) -> dict[str, Any]:
    return {"root": config.root, "split": config.split, "limit": config.limit}


def _sized(sample: Sample) -> Sample:
    known = sample.size is not None
    return sample if known else replace(sample, size=image_size(sample.image, upright=sample.upright))


def _refuse_full(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise StoreError("the folder is not empty", where=out, hint="give another --out, or empty it first")
