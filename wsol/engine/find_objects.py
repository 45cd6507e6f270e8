"""One photo from a few words to maps, a mask, boxes and files, with the time of every step: the work of the page."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wsol import cams, refine
from wsol.cams import CAMS
from wsol.data.images import image_size
from wsol.engine.bench_options import listed
from wsol.engine.demo_classes import ClassNames
from wsol.engine.demo_image import load_photo_model, map_photo, read_photo
from wsol.engine.serve_options import ServeConfig
from wsol.errors import ConfigError, DataError, ModelError
from wsol.ops.resize import resize_mask
from wsol.refine import REFINERS, Refiner
from wsol.report.overlays import draw_boxes, heatmap, mask_overlay
from wsol.schema import PseudoMask
from wsol.store.formats.base import Picture, Region, find_regions
from wsol.store.formats.coco import Coco
from wsol.store.masks import mask_path, write_mask

_SMALLEST = 0.01
_LIKELIEST = 5
_Image = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in a photo. Pictures are RGB uint8 (H, W, 3), no side above 1280 pixels.

    Attributes:
        maps: Overlay and title a class.
        mask: The mask over the photo.
        boxes: The boxes over the photo.
        likeliest: Class name to probability, most likely first; empty for a model without a head.
        milliseconds: Step to the time it took.
        regions: The objects, in pixels of the photo: parts of a mask that cover at least 1 % of it.
        mask_file: PNG with palette, of the photo's size: 0 background, 1 + position of the class among those asked for.
        coco_file: COCO JSON of the regions; category ids are class ids + 1.
    """

    maps: list[tuple[_Image, str]]
    mask: _Image
    boxes: _Image
    likeliest: dict[str, float]
    milliseconds: dict[str, float]
    regions: tuple[Region, ...]
    mask_file: Path
    coco_file: Path


class Finder:
    """A model with all methods and refiners that can work with it.

    Attributes:
        names: The model's classes.
        methods: Map methods by name.
        refiners: Refiners that need no trained network of their own.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config, wanted = config, listed(config.classes)
        self._classifier = load_photo_model(config, wanted)
        self.model = self._classifier.name
        self.names = ClassNames.of(self._classifier)
        self._labels = self.names.names or ("object",)  # without a head there are no classes to name
        self.methods = tuple(name for name in CAMS.names() if self._can(name))
        self.refiners = tuple(name for name in REFINERS.names() if _alone(REFINERS.get(name)))

    def _can(self, name: str) -> bool:
        try:
            cams.create(name, self._classifier)
        except (ConfigError, ModelError):
            return False
        return True

    def find(
        self, path: Path, *, classes: Sequence[str], method: str, refiner: str, background: float, out: Path
    ) -> Found:
        """Find the classes in a photo, and write the mask and the COCO JSON.

        Args:
            path: Image file.
            classes: Words, see `ClassNames.find`; none means the likeliest class.
            method: One of `methods`.
            refiner: One of `refiners`.
            background: Score of the background in [0, 1].
            out: Folder for the files.

        Raises:
            WsolError: When the photo is too large or cannot be read, or a word means no class.
        """
        asked = [self.names.find(word) for word in dict.fromkeys(classes)]
        clock = _Clock()
        size = image_size(path, upright=True)
        if size[0] * size[1] > self.config.max_megapixels * 1e6:
            what = f"the photo has {size[0] * size[1] / 1e6:.1f} megapixels, {self.config.max_megapixels:g} are allowed"
            raise DataError(what, hint="make it smaller, or start with a larger --max-megapixels")
        photo, inputs = read_photo(path, self.config, self._classifier)
        clock.lap("read the photo")
        count = len(asked) or 1  # `choose` names several likely classes where none is asked for
        maps, ids, logits = map_photo(
            cams.create(method, self._classifier),
            inputs,
            lambda scores: [tuple(dict.fromkeys(self.names.choose(scores[0], asked)))[:count]],
            size=photo.shape[:2],
        )
        clock.lap(f"score maps ({method})")
        chain = refine.chain(refiner)
        scores = chain(photo, refine.with_background(maps, background=background))
        labels, _ = chain.label(scores, range(len(ids)))
        clock.lap(f"mask ({refiner})")
        whole = resize_mask(labels, size)
        regions = find_regions(whole, objects="component", min_area=max(1, round(_SMALLEST * whole.size)))
        kept = np.zeros_like(whole)
        for region in regions:
            kept[region.whole(size)] = region.class_id + 1
        regions = tuple(replace(region, class_id=ids[region.class_id]) for region in regions)
        stem = re.sub(r"[^\w-]+", "_", path.stem)[:60] or "photo"
        write_mask(out, PseudoMask(id=stem, labels=kept))
        coco = out / f"{stem}.coco.json"
        Coco().write_file(coco, [Picture(path.name, path, size, regions)], self._labels)
        clock.lap("files")
        titles = [self.names.title(at, logits, "") for at in ids]
        return Found(
            maps=[(heatmap(photo, plane), title) for plane, title in zip(maps, titles, strict=True)],
            mask=mask_overlay(photo, resize_mask(kept, photo.shape[:2])),
            boxes=self._draw(photo, regions, photo.shape[0] / size[0]),
            likeliest=self._likeliest(logits),
            milliseconds=clock.laps,
            regions=regions,
            mask_file=mask_path(out, stem),
            coco_file=coco,
        )

    def _likeliest(self, logits: Tensor) -> dict[str, float]:
        shares = logits.sigmoid() if self.names.multi_label else logits.softmax(0)
        best = shares.topk(min(_LIKELIEST, len(logits)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {self._labels[at]: share for at, share in pairs}

    def _draw(self, photo: _Image, regions: Sequence[Region], scale: float) -> _Image:
        boxes = scale * np.array([region.box for region in regions], np.float32).reshape(-1, 4)
        return draw_boxes(photo, boxes, names=[self._labels[region.class_id] for region in regions])


class _Clock:
    """Milliseconds of one step after the other."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = 1000 * (now - self._last), now


def _alone(kind: Any) -> bool:
    """Whether a refiner gives scores, and needs no network that was trained for it."""
    return issubclass(kind, Refiner) and all(item.name != "checkpoint" for item in fields(kind))
