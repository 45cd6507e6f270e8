"""`wsol eval`: measure boxes (loc) and masks (seg) against ground truth."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsol.cli.parse import parse
from wsol.config import dump_yaml
from wsol.data import option_type
from wsol.errors import ConfigError, did_you_mean
from wsol.eval.curves import write_curves
from wsol.eval.options import LocConfig, SegConfig
from wsol.schema import EvalResult
from wsol.store.atomic import write_text

_SHOWN = 20
_CHOICES = [("data", "data_options", option_type)]


def run(argv: Sequence[str]) -> int:
    """Evaluate, write metrics and curves, print tables; exit status 1 when an image could not be evaluated."""
    task, rest = (argv[0], argv[1:]) if argv else ("", [])
    if task in ("", "-h", "--help"):
        sys.stdout.write(
            "usage: wsol eval loc|seg [OPTIONS]\n\n  loc  boxes and PxAP of score maps\n  seg  mIoU of masks\n"
        )
        return 0
    if task == "loc":
        return _loc(rest)
    if task == "seg":
        return _seg(rest)
    raise ConfigError(f"unknown task '{task}'", hint=did_you_mean(task, ("loc", "seg")))


def _loc(argv: Sequence[str]) -> int:
    from wsol.eval.localization import localize

    config = parse(LocConfig, argv, prog="wsol eval loc", choices=_CHOICES)
    found = localize(config)
    out = config.out or Path("runs/eval") / f"{config.maps.resolve().name}-loc"
    _write(out, found.result, config)
    _write_rows(out / "worst.csv", found.worst)
    _show(found.result, found.failures, found.worst, out, as_json=config.json)
    return 1 if found.failures else 0


def _seg(argv: Sequence[str]) -> int:
    from wsol.eval.segmentation import segment

    config = parse(SegConfig, argv, prog="wsol eval seg", choices=_CHOICES)
    found = segment(config)
    out = config.out or Path("runs/eval") / f"{config.pred.resolve().name}-seg"
    _write(out, found.result, config)
    _show(found.result, found.failures, found.worst, out, as_json=config.json)
    return 1 if found.failures else 0


def _write(out: Path, result: EvalResult, config: Any) -> None:
    write_text(out / "metrics.json", result.to_json() + "\n")
    write_text(out / "eval.yaml", dump_yaml(config))
    if result.curves:
        write_curves(out / "curves.csv", result.curves)
    shown = {name: curve for name, curve in result.curves.items() if name in result.threshold}
    if shown:
        from wsol.report.plots import threshold_curve  # matplotlib takes half a second

        write_text(out / "curves.svg", threshold_curve(shown, result.threshold, title=str(result).partition("\n")[0]))


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _show(
    result: EvalResult,
    failures: Mapping[str, str],
    worst: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    as_json: bool,
) -> None:
    if as_json:
        sys.stdout.write(result.to_json() + "\n")
    else:
        lines = [str(result), *_classes(result), *_worst(worst), f"written to {out}"]
        sys.stdout.write("\n".join(lines) + "\n")
    if failures:
        rows = [f"  {image_id}  {reason}" for image_id, reason in list(failures.items())[:_SHOWN]]
        more = [f"  ... and {len(failures) - _SHOWN} more"] if len(failures) > _SHOWN else []
        sys.stderr.write("\n".join([f"{len(failures)} images could not be evaluated", *rows, *more]) + "\n")


def _classes(result: EvalResult) -> list[str]:
    if not result.per_class:
        return []
    columns = list(dict.fromkeys(name for row in result.per_class.values() for name in row))
    width = max(len(name) for name in result.per_class)
    lines = [f"\n{'class':<{width}}  " + "  ".join(f"{name:>8}" for name in columns)]
    shown = list(result.per_class.items())
    for name, row in shown[:_SHOWN]:
        cells = [
            f"{row.get(column, float('nan')):>{max(8, len(column))}.{0 if column == 'n' else 2}f}" for column in columns
        ]
        lines.append(f"{name:<{width}}  " + "  ".join(cells))
    if len(shown) > _SHOWN:
        lines.append(f"... and {len(shown) - _SHOWN} more in metrics.json")
    return lines


def _worst(worst: Sequence[Mapping[str, Any]]) -> list[str]:
    if not worst:
        return []
    lines = ["\nworst images"]
    for row in worst:
        boxes = f"  predicted {_box(row['predicted'])}  truth {_box(row['truth'])}" if "predicted" in row else ""
        lines.append(f"  {row['iou']:.3f}  {row['id']}  ({row['class']}){boxes}")
    return lines


def _box(boxes: Sequence[Sequence[float]]) -> str:
    first = "[" + ", ".join(f"{value:g}" for value in boxes[0]) + "]"
    return first if len(boxes) == 1 else f"{first} and {len(boxes) - 1} more"
