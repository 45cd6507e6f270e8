"""Pictures of the documentation, made by the package itself from photos and weights that packages ship.

`python docs/_ext/pictures.py` writes the picture of the README; the Sphinx extension calls `draw` for the method pages.
Pictures that need weights which no package ships are made by `trained_pictures.py`, and committed.
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
from wsol.engine.demo_photos import BACKGROUND, MODEL, REFINER, WEIGHTS, label_photo, packaged_photos
from wsol.errors import ConfigError, ModelError
from wsol.mix.base import Context, MixStrategy
from wsol.models.classifier import Classifier, load_classifier
from wsol.ops.normalize import relu_max
from wsol.report.overlays import contact_sheet, draw_boxes, heatmap, mask_overlay
from wsol.schema import ScoreMaps
from wsol.store.atomic import atomic_write

Image = NDArray[np.uint8]
OVERVIEW = Path(__file__).parents[1] / "images" / "overview.jpg"
# Minutes of one core, or nothing to see without training; formulas.yaml says which and why.
_LEFT_OUT = ("scorecam", "comixup", "automix", "manifold_mixup", "smmix", "fyi")
# Where strategies for transformers paste does not depend on the weights.
_TRANSFORMER = "vit_tiny_patch16_224"
_GAP = 2


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
    images = [small(read_image(path)) for path in packaged_photos()]
    batch = torch.stack([to_network(image, classifier) for image in images])
    _draw_cams(folder / "wsol.cams", classifier, images[:3], batch[:3])
    _draw_refiners(folder / "wsol.refine", classifier, images[:2])
    names = [name for name in mix.MIXES.names() if name not in _LEFT_OUT]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = load_classifier(_TRANSFORMER)
    left = [name for name in names if not draw_mix(folder / f"wsol.mix/{name}.jpg", name, classifier, batch)]
    for name in left:
        draw_mix(folder / f"wsol.mix/{name}.jpg", name, transformer, batch)


def _draw_cams(folder: Path, classifier: Classifier, images: list[Image], batch: torch.Tensor) -> None:
    for name in (name for name in cams.CAMS.names() if name not in _LEFT_OUT):
        try:
            rows = [_map(name, classifier, *pair) for pair in zip(images, batch, strict=True)]
        except (ConfigError, ModelError):
            continue
        overlays = [heatmap(image, row) for image, row in zip(images, rows, strict=True)]
        write(folder / f"{name}.jpg", contact_sheet(overlays, columns=3, width=760, gap=_GAP))


def _draw_refiners(folder: Path, classifier: Classifier, images: list[Image]) -> None:
    for name in refine.REFINERS.names():
        try:
            sheet = refined(refine.chain(name), classifier, images, background=BACKGROUND)
        except ConfigError:  # a network that is not there
            continue
        write(folder / f"{name}.jpg", contact_sheet(sheet, columns=4, width=760, gap=_GAP))


def refined(steps: refine.Chain, classifier: Classifier, images: list[Image], *, background: float) -> list[Image]:
    """Return the map of each image and its mask after refinement, one after the other.

    Args:
        steps: The refiners.
        classifier: Of the maps, whose class is the likeliest.
        images: RGB uint8 (H, W, 3).
        background: Score of the background.
    """
    pictures = []
    for image in images:
        plane = _map("layercam", classifier, image, to_network(image, classifier))
        scores = refine.with_background(plane[None], background=background)
        pictures += [heatmap(image, plane), mask_overlay(image, steps.label(steps(image, scores), [0])[0])]
    return pictures


def draw_mix(
    path: Path, name: str, classifier: Classifier, batch: torch.Tensor, *, width: int = 760, quality: int = 85
) -> bool:
    """Write a mixed batch; return whether there was one.

    Args:
        path: Where to.
        name: Strategy.
        classifier: What looks at the images.
        batch: Float (B, 3, h, w), normalized.
        width: Of the picture.
        quality: Of the JPEG.
    """
    strategy = mix.create(name)
    if not isinstance(strategy, MixStrategy):
        return False
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            strategy.check(classifier)
            own = strategy.own(classifier)
            context = Context(classifier, torch.nn.functional.cross_entropy, own=own, epoch=9, epochs=10)
            images = _mixed(strategy, batch, context)
    except (ConfigError, ModelError):
        return False
    if images is None:
        return False
    mean, std = (torch.tensor(values)[:, None, None] for values in (classifier.mean, classifier.std))
    pixels = ((images * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    write(path, contact_sheet(list(pixels), columns=len(pixels), width=width, gap=_GAP), quality=quality)
    return True


def _mixed(strategy: MixStrategy, batch: torch.Tensor, context: Context) -> torch.Tensor | None:
    """Return the first mixed batch whose images all changed, none of them beyond recognition.

    Else the one of most changed images, or None when none ever changed. The steps follow each other as in a training,
    since a strategy may paste what the step before had.
    """
    labels = torch.eye(len(batch), context.classifier.num_classes)
    best, most = None, 0
    for seed in range(8):
        batch, labels = batch.roll(1, 0), labels.roll(1, 0)
        mixed = strategy.mix(batch, labels, strategy.draw(batch, np.random.default_rng(seed)), context)
        count = int(((mixed.images.detach() - batch).abs().flatten(1).mean(1) > 0.02).sum())
        if count > most:
            best, most = mixed.images.detach(), count
        if count == len(batch) and float(mixed.own_weight.min()) >= 0.3:
            return mixed.images.detach()
        strategy.loss(mixed, strategy.forward(mixed, context), context)
    return best


def _map(name: str, classifier: Classifier, image: Image, inputs: torch.Tensor) -> NDArray[np.float32]:
    raw = cams.create(name, classifier)(inputs[None], lambda scores: select_classes(scores, "top1", ()))
    return at_image_size(relu_max(raw.values[0].float().numpy()), image)


def at_image_size(values: NDArray[np.float32], image: Image) -> NDArray[np.float32]:
    """Return a map (1, h, w) in [0, 1] at the size of an image, (H, W)."""
    one = ScoreMaps(id="map", values=values, class_ids=np.zeros(1, np.int16), image_size=image.shape[:2])
    return one.at_image_size()[0].clip(0, 1)


def to_network(image: Image, classifier: Classifier) -> torch.Tensor:
    """Return an image as float32 (3, h, w), as the classifier wants it."""
    return torch.from_numpy(to_input(image, classifier.input_size, mean=classifier.mean, std=classifier.std))


def small(image: Image) -> Image:
    """Return an image 360 pixels wide."""
    height, width = image.shape[:2]
    return cv2.resize(image, (360, round(360 * height / width)), interpolation=cv2.INTER_AREA)


def write(path: Path, image: Image, *, quality: int = 85) -> None:
    """Write a JPEG."""
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    with atomic_write(path) as stream:  # two builds may draw at a time
        stream.write(encoded.tobytes())


if __name__ == "__main__":
    write(OVERVIEW, overview())
