"""The card and the curves of a training: what it was trained on, how, and what it is worth, in the run folder."""

from __future__ import annotations

import math
from collections.abc import Sequence

from wsol.config import dump_yaml
from wsol.data import Dataset
from wsol.engine.fit import History
from wsol.engine.train_options import TrainConfig
from wsol.models.classifier import Classifier
from wsol.report.plots import history as plot_history
from wsol.store.atomic import write_text

_NAMES = {
    "val_map": "mAP (%)",
    "val_top1": "Top-1 accuracy (%)",
    "val_top5": "Top-5 accuracy (%)",
    "val_miou": "seed mIoU (%)",
    "val_maxboxaccv2": "MaxBoxAccV2 (%)",
    "val_pxap": "PxAP (%)",
}


def write_model_card(
    config: TrainConfig, history: History, classifier: Classifier, *, dataset: Dataset, val: Dataset | None, loss: str
) -> None:
    """Write `card.md` and `curves.svg` into the run folder.

    Args:
        config: Options of the training.
        history: One row an epoch.
        classifier: The trained network.
        dataset: What it was trained on.
        val: What it was measured on.
        loss: Name of the loss.
    """
    write_text(config.out / "curves.svg", _curves(history))
    height, width = classifier.input_size
    spec = dataset.spec
    facts = {
        "network": f"{classifier.name}, input {height}x{width}",
        "start": config.checkpoint or ("timm's pretrained weights" if config.pretrained else "random weights"),
        "data": f"{spec.name}, split {spec.split}, n = {len(dataset)}",
        "classes": f"{len(spec.classes)}{', several an image' if spec.multi_label else ', one an image'}",
        "mix": " ".join([config.mix, *(f"{name}={value}" for name, value in config.mix_options.items())]),
        "loss": loss,
        "epochs": str(len(history)),
        "seed": str(config.seed),
    }
    lines = [f"# {classifier.name} on {spec.name}", "", *_table(("", ""), [[k, v] for k, v in facts.items()])]
    if val is not None:
        split = val.spec.split
        lines += ["", f"Measured on split {split}, n = {len(val)}"]
        lines[-1] += ", after the last epoch" + (" and at its best epoch." if len(history) > 1 else ".")
        lines += ["The best epoch was chosen on the same split.", ""] if len(history) > 1 else [""]
        lines += _table(("metric", "last", "best", "epoch"), _metric_rows(history))
    lines += ["", "![loss and metrics](curves.svg)", "", *_table(*_epochs(history))]
    lines += ["", "## Options", "", "```yaml", *dump_yaml(config).splitlines(), "```", ""]
    write_text(config.out / "card.md", "\n".join(lines))


def _curves(history: History) -> str:
    rows = [{name: value for name, value in row.items() if math.isfinite(value)} for row in history]
    shown = [name for name in _NAMES if any(name in row for row in rows)]
    return plot_history(rows, metrics=shown) + "\n"


def _metric_rows(history: History) -> list[list[str]]:
    rows = []
    for name, title in _NAMES.items():
        known = {int(row["epoch"]): row[name] for row in history if math.isfinite(row.get(name, math.nan))}
        if known:
            best = max(known, key=lambda epoch: (known[epoch], -epoch))
            rows.append([title, f"{known[max(known)]:.2f}", f"{known[best]:.2f}", str(best)])
    return rows


def _epochs(history: History) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for row in history for name in row))
    return names, [[f"{row[name]:.5g}" if name in row else "" for name in names] for row in history]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
