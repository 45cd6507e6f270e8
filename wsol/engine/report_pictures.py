"""The pictures of a report: what each run found in an image beside the photo and the ground truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wsol.data.catalog import Dataset
from wsol.data.images import read_image
from wsol.engine.mask_source import MaskFolder
from wsol.engine.report_entries import Entry, Evaluated
from wsol.errors import WsolError
from wsol.eval.boxes import ImageMaps, predicted_boxes
from wsol.eval.protocols import ALL, BENCHMARK, LARGEST, View, choose
from wsol.eval.sources import MapSource, Scores, open_maps
from wsol.ops.resize import resize_mask
from wsol.report.drawing import Image
from wsol.report.overlays import draw_boxes, heatmap, mask_overlay, shrink
from wsol.report.sections import Card, Figure
from wsol.schema import Sample

_NO_BOXES = np.zeros((0, 4), np.float32)


class Painter:
    """Draws the images of one data set with what some runs found in them.

    Args:
        dataset: Photos and ground truth.
        entries: Runs on this data set.

    Attributes:
        scores: IoU by image id, one mapping a run.
        failures: Image id to the reason why something of it could not be drawn.
    """

    def __init__(self, dataset: Dataset, entries: Sequence[Entry]) -> None:
        self.dataset = dataset
        self.scores = [entry.scores(dataset) for entry in entries]
        self.failures: dict[str, str] = {}
        folders = {entry.folder.resolve() for entry in entries}
        self._finds = [_Finds(entry, shown_elsewhere=folders - {entry.folder.resolve()}) for entry in entries]

    def order(self) -> list[tuple[str, float]]:
        """Return image ids with their IoU, the mean over the runs, best first."""
        means = []
        for sample in self.dataset.samples:
            values = [scores[sample.id] for scores in self.scores if sample.id in scores]
            if values:
                means.append((sample.id, sum(values) / len(values)))
        return sorted(means, key=lambda pair: (-pair[1], pair[0]))

    def cards(self, ids: Sequence[str], *, width: int, small: bool = False) -> list[Card]:
        """Draw some images; one that cannot be read becomes a failure.

        Args:
            ids: Image ids.
            width: Largest width of a picture in pixels.
            small: One picture a run instead of photo, ground truth, maps and masks.
        """
        return [card for image_id in ids if (card := self._card(self.dataset.by_id(image_id), width, small))]

    def _card(self, sample: Sample, width: int, small: bool) -> Card | None:
        try:
            photo = read_image(sample.image, upright=sample.upright)
        except WsolError as error:
            self.failures[sample.id] = str(error)
            return None
        image = shrink(photo, width=width, height=width * 3 // 2)
        factor = image.shape[1] / photo.shape[1], image.shape[0] / photo.shape[0]
        truth = _NO_BOXES if sample.boxes is None else sample.boxes * np.array(factor * 2, dtype=np.float32)
        names = [self.dataset.spec.classes[label] for label in sample.labels]
        about = " · ".join([sample.id, *([", ".join(names)] if names else [])])
        figures = [] if small else list(self._given(sample, image, truth, about))
        badge = ""
        for finds, scores in zip(self._finds, self.scores, strict=True):
            iou = scores.get(sample.id)
            text = "" if iou is None else f"IoU {iou:.2f}"
            if len(self._finds) == 1:
                badge, name, series = text, "", ""
            else:
                series = finds.entry.label
                name = " ".join(word for word in (series, f"{iou:.2f}" if iou is not None else "") if word) + ": "
            said = " · ".join(word for word in (about, series, text) if word)
            if sample.id in finds.entry.failures:
                continue
            try:
                drawn = finds.draw(sample, image, truth)
            except WsolError as error:
                self.failures[sample.id] = str(error)
                continue
            measured = next(reversed(drawn), "")
            for what, picture in drawn.items():
                if what == measured or not small:
                    caption, level = "" if small else f"{name}{what}", iou if what == measured else None
                    figures.append(Figure(picture, caption, f"{said} · {what}", series, level))
        return Card(sample.id, figures, names, badge) if figures else None

    def _given(self, sample: Sample, image: Image, boxes: NDArray[np.float32], about: str) -> Iterator[Figure]:
        picture = draw_boxes(image, _NO_BOXES, truth=boxes)
        what = "photo and true boxes" if len(boxes) else "photo"
        yield Figure(picture, what, f"{about} · {what}")
        if sample.mask is None and self.dataset.spec.annotations not in ("mask", "both"):
            return
        try:
            labels = resize_mask(self.dataset.read_truth(sample), image.shape[:2])
        except WsolError:  # instance masks, or none for this image
            return
        yield Figure(mask_overlay(image, labels), "true mask", f"{about} · true mask")


class _Finds:
    """What one run found, read and drawn image by image; the maps of a run that is shown too are left to that."""

    def __init__(self, entry: Entry, *, shown_elsewhere: Set[Path]) -> None:
        self.entry = entry
        own = entry.maps is not None and entry.maps.resolve() not in shown_elsewhere
        self.maps: MapSource | None = open_maps(entry.maps) if entry.maps and own else None
        self.masks = MaskFolder(entry.masks) if entry.masks else None
        by_task = {one.result.task: one for one in entry.evaluated}
        self.boxes = box_rule(by_task["localization"]) if "localization" in by_task else None
        self.background = by_task["segmentation"].result.threshold.get("mIoU") if "segmentation" in by_task else None

    def draw(self, sample: Sample, image: Image, truth: NDArray[np.float32]) -> dict[str, Image]:
        """Return pictures by what they show; the one that was measured comes last.

        Raises:
            WsolError: When a file of the run is missing or torn.
        """
        drawn: dict[str, Image] = {}
        if self.maps is not None:
            scores = self.maps.read(sample.id)
            picture = _heat(scores, sample, image)
            if self.boxes is None:
                drawn["score map"] = picture
            else:
                boxes = self._boxes(scores, sample, image)
                drawn["map and box"] = draw_boxes(picture, boxes, truth=truth)
            if self.masks is None and self.background is not None:
                drawn["map above threshold"] = mask_overlay(image, _labels(scores, self.background, image))
        if self.masks is not None:
            drawn["mask"] = mask_overlay(image, resize_mask(self.masks(sample), image.shape[:2]))
        if self.entry.evaluated and self.entry.evaluated[0].result.task == "localization" and "map and box" in drawn:
            drawn["map and box"] = drawn.pop("map and box")
        return drawn

    def _boxes(self, scores: Scores, sample: Sample, image: Image) -> NDArray[np.float32]:
        view, threshold, size = self.boxes or (LARGEST, 0.0, 1)
        found = [_NO_BOXES]
        for label in sample.labels if scores.ready is None else sample.labels[:1]:
            if scores.ready is not None or label in scores.by_class:
                maps = ImageMaps(scores, label, size=size, where=sample.id)
                height, width = maps.scoremap(view).shape
                scale = np.array([image.shape[1] / width, image.shape[0] / height] * 2)
                found.append((predicted_boxes(maps, threshold, view=view) * scale).astype(np.float32))
        return np.concatenate(found)


def box_rule(one: Evaluated) -> tuple[View, float, int] | None:
    """Return view, threshold and side of the boxes whose IoU a localization result lists by image; None without."""
    protocols = choose(tuple(one.options.get("protocol") or BENCHMARK)).values()
    metrics = [metric for protocol in protocols for metric in protocol.metrics]
    for view in (LARGEST, ALL):
        for metric in metrics:
            plain = metric.view == view and metric.iou == 50 and not metric.top and not metric.mean_of
            threshold = one.result.threshold.get(metric.name, math.nan)
            if plain and math.isfinite(threshold):
                return view, threshold, int(one.options.get("size") or 224)
    return None


def spread(ids: Sequence[str], count: int) -> list[str]:
    """Return at most `count` ids, evenly spaced, the first and the last among them."""
    if len(ids) <= count:
        return list(ids)
    return [ids[round(at * (len(ids) - 1) / max(1, count - 1))] for at in range(count)]


def groups(order: Sequence[tuple[str, float]], count: int) -> Mapping[str, list[str]]:
    """Return the best, the median and the worst images by heading.

    Args:
        order: Image ids with their IoU, best first.
        count: Most images a group; fewer where groups would overlap.
    """
    count = min(count, len(order) // 3)
    if count == 0:
        return {_heading("All images", order): [image_id for image_id, _ in order]}
    middle = (len(order) - count) // 2
    parts = {"Best": order[:count], "Median": order[middle : middle + count], "Worst": order[: -count - 1 : -1]}
    return {_heading(name, part): [image_id for image_id, _ in part] for name, part in parts.items()}


def _heading(name: str, part: Sequence[tuple[str, float]]) -> str:
    values = [f"{value:.2f}" for _, value in (part[0], part[-1])]
    return f"{name}: IoU {' to '.join(dict.fromkeys(values))}"


def _heat(scores: Scores, sample: Sample, image: Image) -> Image:
    """Blend the highest score over the classes of the image, or over all maps where none is of its classes."""
    own = [scores.by_class[label] for label in sample.labels if label in scores.by_class]
    planes = [scores.ready] if scores.ready is not None else own or list(scores.by_class.values())
    if not planes:
        return image
    best = np.max(np.stack(planes), axis=0).astype(np.float32)
    size = (image.shape[1], image.shape[0])
    return heatmap(image, np.clip(cv2.resize(best, size, interpolation=cv2.INTER_LINEAR), 0, 1))


def _labels(scores: Scores, background: float, image: Image) -> Image:
    """Return the best class of each pixel where it beats the background score."""
    size = (image.shape[1], image.shape[0])
    labels, highest = np.zeros(image.shape[:2], np.uint8), np.full(image.shape[:2], background, np.float32)
    for label, values in scores.by_class.items():
        plane = cv2.resize(values.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
        labels[plane > highest] = min(label + 1, 254)
        highest = np.maximum(highest, plane)
    return labels
