"""wsol data: check what of a data set is on disk, list it, export masks for other tools, or convert projects' files."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from wsol.errors import ConfigError, did_you_mean

_COLOURS = {"ok": "\033[32m", "missing": "\033[31m", "hint": "\033[33m"}


@dataclass(frozen=True)
class DataCheckConfig:
    """Say what of a data set is there, what is missing, and how to get it.

    Attributes:
        data: Data set.
        root: Its folder or a parent of it; by default under $WSOL_DATA.
        split: Check one split only.
        deep: Also decode every image and read every mask.
        json: Write JSON instead of lines.
    """

    data: str
    root: Path | None = None
    split: str | None = None
    deep: bool = False
    json: bool = False


@dataclass(frozen=True)
class DataIndexConfig:
    """List a split as CSV (id, file, labels), which the data set `folder` reads back.

    Attributes:
        data: Data set.
        root: Its folder or a parent of it; by default under $WSOL_DATA.
        split: Split to list.
        limit: List only the first images.
    """

    data: str
    root: Path | None = None
    split: str | None = None
    limit: int | None = None


def check_data(config: DataCheckConfig) -> int:
    """Write the findings to stdout.

    Returns:
        1 when something needed is missing, else 0.
    """
    from wsol.data.check import check

    findings = check(config.data, config.root, split=config.split, deep=config.deep)
    if config.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=1) + "\n")
    else:
        for finding in findings:
            level = f"{finding.level:<8}"
            if sys.stdout.isatty():
                level = f"{_COLOURS[finding.level]}{level}\033[0m"
            sys.stdout.write(f"{level}{finding.path}{': ' if finding.path else ''}{finding.text}\n")
    return int(any(finding.level == "missing" for finding in findings))


def index_data(config: DataIndexConfig) -> int:
    """Write one CSV row an image to stdout; several labels are separated by ";".

    Raises:
        DataError: When the name of a class holds a separator.
    """
    from wsol.data import load
    from wsol.errors import DataError
    from wsol.store.places import url_of

    dataset = load(config.data, root=config.root, split=config.split, limit=config.limit)
    for name in dataset.spec.classes:
        if {";", "|"} & {*name}:
            raise DataError(f"class '{name}' holds a separator of labels", where=dataset.spec.root, hint="rename it")
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("id", "file", "labels"))
    for sample in dataset:
        file = sample.image if url_of(sample.image) else sample.image.absolute()  # the reader may have another root
        writer.writerow((sample.id, file, ";".join(dataset.spec.classes[label] for label in sample.labels)))
    return 0


def export_data(argv: list[str]) -> int:
    """Write masks in the format of another tool.

    Returns:
        1 when the mask of an image could not be used, else 0.
    """
    from wsol.cli.parse import parse
    from wsol.data import option_type
    from wsol.engine.export_options import ExportConfig
    from wsol.store.formats import FORMATS

    choices = [("data", "data_options", option_type), ("format", "options", FORMATS.get)]
    config = parse(ExportConfig, argv, prog="wsol data export", choices=choices)
    from wsol.engine.export_masks import export_masks  # not for --help

    return export_masks(config).status


def convert_data(argv: list[str]) -> int:
    """Read or write the files of another project.

    Returns:
        1 when the file of an image could not be used, else 0.
    """
    from wsol.cli.parse import parse
    from wsol.data import option_type
    from wsol.engine.convert_options import ConvertConfig
    from wsol.store.exchange import PROJECTS

    projects = [(direction, "options", PROJECTS.get) for direction in ("read", "write")]
    choices = [("data", "data_options", option_type), *projects]
    config = parse(ConvertConfig, argv, prog="wsol data convert", choices=choices)
    from wsol.engine.convert import convert  # not for --help

    return convert(config).status


def run(argv: list[str]) -> int:
    """Run `wsol data check`, `index`, `export` or `convert`.

    Raises:
        ConfigError: When the first word is none of them.
    """
    from wsol.cli.parse import parse

    word, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    actions: dict[str, Callable[[], int]] = {
        "check": lambda: check_data(parse(DataCheckConfig, rest, prog="wsol data check")),
        "index": lambda: index_data(parse(DataIndexConfig, rest, prog="wsol data index")),
        "export": lambda: export_data(rest),
        "convert": lambda: convert_data(rest),
    }
    if word in ("-h", "--help"):
        sys.stdout.write("usage: wsol data check|index|export|convert [options]\n\n")
        sys.stdout.write("  check    say what of a data set is there, what is missing, and how to get it\n")
        sys.stdout.write("  index    list ids, files and labels of a split as CSV\n")
        sys.stdout.write("  export   write masks for CVAT, labelme, Label Studio, FiftyOne, COCO, YOLO or VOC\n")
        sys.stdout.write("  convert  read and write the files of irn, PSA, CLIP-ES and the WSOL benchmark\n")
        return 0
    if word not in actions:
        raise ConfigError(f"unknown action '{word}' of wsol data", hint=did_you_mean(word, actions))
    return actions[word]()
