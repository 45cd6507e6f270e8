"""Pictures of the documentation, made by the package itself from photos and weights that packages ship.

`python docs/_ext/pictures.py` writes the picture of the README; the Sphinx extension calls `draw` for the method pages.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from wsol import cams, mix, refine
from wsol.cams.tta import select_classes
from wsol.data.images import read_image
from wsol.data.transforms import to_input
from wsol.engine.demo_photos import MODEL, REFINER, WEIGHTS, label_photo, packaged_photos
from wsol.errors import ConfigError, ModelError
from wsol.mix.base import Context, MixStrategy
from wsol.models.classifier import Classifier, load_classifier
from wsol.ops.normalize import relu_max
from wsol.report.overlays import contact_sheet, draw_boxes, heatmap, mask_overlay
from wsol.schema import ScoreMaps

Image = NDArray[np.uint8]
OVERVIEW = Path(__file__).parents[1] / "images" / "overview.jpg"
_BACKGROUND = 0.35
_MIXED = 4
# 1280 forward passes an image, graph cuts over a whole batch: too long for a page. An untrained mask network and mixed
# features: nothing to see.
_LEFT_OUT = ("scorecam", "comixup", "automix", "manifold_mixup")


def overview() -> Image:
    """Return what one command makes of photos: photo, map, mask, box, from image-level labels alone."""
    classifier = load_classifier(MODEL, checkpoint=WEIGHTS)
    pictures, captions = [], []
    for path in packaged_photos()[:2]:
        found = label_photo(path, classifier, methods=("cam", "layercam"))
        name = found.top5[0][0]
        pictures += [
            found.image,
            heatmap(found.image, found.maps["layercam"]),
            mask_overlay(found.image, found.labels),
            draw_boxes(found.image, found.box, names=[name] * len(found.box)),
        ]
        captions += [f"photo, label: {name}", "score map (layercam)", f"mask (cam, {REFINER})", "box of the mask"]
    return contact_sheet(pictures, columns=4, captions=captions, width=1000)


def draw(folder: Path) -> None:
    """Write ROOM/NAME.jpg for every method that works with the weights that a package ships.

    Args:
        folder: Where to; pictures of methods that need another model are not there afterwards.
    """
    classifier = load_classifier(MODEL, checkpoint=WEIGHTS)
    images = [_small(read_image(path)) for path in packaged_photos()]
    batch = torch.stack([_input(image, classifier) for image in images])
    _draw_cams(folder / "wsol.cams", classifier, images[:3], batch[:3])
    _draw_refiners(folder / "wsol.refine", classifier, images[:2], batch[:2])
    _draw_mixes(folder / "wsol.mix", classifier, batch)


def _draw_cams(folder: Path, classifier: Classifier, images: list[Image], batch: torch.Tensor) -> None:
    for name in (name for name in cams.CAMS.names() if name not in _LEFT_OUT):
        try:
            rows = [_map(name, classifier, *pair) for pair in zip(images, batch, strict=True)]
        except (ConfigError, ModelError):
            continue
        overlays = [heatmap(image, row) for image, row in zip(images, rows, strict=True)]
        write(folder / f"{name}.jpg", contact_sheet(overlays, columns=3, width=760))


def _draw_refiners(folder: Path, classifier: Classifier, images: list[Image], batch: torch.Tensor) -> None:
    maps = [_map("layercam", classifier, *pair) for pair in zip(images, batch, strict=True)]
    scores = [refine.with_background(plane[None], background=_BACKGROUND) for plane in maps]
    for name in refine.REFINERS.names():
        try:
            steps = refine.chain(name)
            labels = [steps.label(steps(*pair), [0])[0] for pair in zip(images, scores, strict=True)]
        except ConfigError:  # a network or saliency maps that are not there
            continue
        pictures = [picture for pair in zip(images, maps, labels, strict=True) for picture in _before_after(*pair)]
        write(folder / f"{name}.jpg", contact_sheet(pictures, columns=4, width=760))


def _before_after(image: Image, plane: NDArray[np.float32], labels: Image) -> list[Image]:
    return [heatmap(image, plane), mask_overlay(image, labels)]


def _draw_mixes(folder: Path, classifier: Classifier, batch: torch.Tensor) -> None:
    labels = torch.eye(len(batch), classifier.num_classes or 1000)
    mean, std = (torch.tensor(values)[:, None, None] for values in (classifier.mean, classifier.std))
    for name in (name for name in mix.MIXES.names() if name not in _LEFT_OUT):
        strategy = mix.create(name)
        if not isinstance(strategy, MixStrategy):
            continue
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                strategy.check(classifier)
                own = strategy.own(classifier)
                context = Context(classifier, torch.nn.functional.cross_entropy, own=own, epoch=9, epochs=10)
                images = _first_mixed(strategy, batch, labels, context)
        except (ConfigError, ModelError):
            continue
        if images is not None:
            pixels = ((images * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            write(folder / f"{name}.jpg", contact_sheet(list(pixels), columns=_MIXED, width=760))


def _first_mixed(
    strategy: MixStrategy, batch: torch.Tensor, labels: torch.Tensor, context: Context
) -> torch.Tensor | None:
    """Return the first mixed batch whose images all changed, none of them beyond recognition; None without one."""
    for seed in range(20):
        mixed = strategy.mix(batch, labels, strategy.draw(batch, np.random.default_rng(seed)), context)
        changed = (mixed.images.detach() - batch).abs().flatten(1).mean(1)
        if float(changed.min()) > 0.02 and float(mixed.own_weight.min()) >= 0.3:
            return mixed.images.detach()
    return None


def _map(name: str, classifier: Classifier, image: Image, inputs: torch.Tensor) -> NDArray[np.float32]:
    raw = cams.create(name, classifier)(inputs[None], lambda scores: select_classes(scores, "top1", ()))
    values = relu_max(raw.values[0].float().numpy())
    one = ScoreMaps(id=name, values=values, class_ids=np.zeros(1, np.int16), image_size=image.shape[:2])
    return one.at_image_size()[0].clip(0, 1)


def _input(image: Image, classifier: Classifier) -> torch.Tensor:
    return torch.from_numpy(to_input(image, (224, 224), mean=classifier.mean, std=classifier.std))


def _small(image: Image) -> Image:
    height, width = image.shape[:2]
    return cv2.resize(image, (360, round(360 * height / width)), interpolation=cv2.INTER_AREA)


def write(path: Path, image: Image) -> None:
    """Write a JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 85])


if __name__ == "__main__":
    write(OVERVIEW, overview())
