"""Pictures of the method pages that need weights which no package ships; they are committed in docs/images.

`python docs/_ext/trained_pictures.py OUT` writes them again. OUT is the folder of `tools/results.sh DATA OUT`, of which
the runs `voc-vits` (part `table`: a linear probe for the classes of VOC on a DINOv2 ViT-S/14 that was fine-tuned for
saliency), `psa` and `irn` (part `affinity`) are read. The photos are those that scikit-image ships.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from pictures import Image, at_image_size, draw_mix, refined, small, to_network, write

from wsol import cams, refine
from wsol.data.images import read_image
from wsol.data.voc import CLASSES
from wsol.engine.demo_photos import MODEL, WEIGHTS, packaged_photos
from wsol.models.classifier import Classifier, load_classifier
from wsol.report.overlays import contact_sheet, heatmap

IMAGES = Path(__file__).parents[1] / "images"
_SHOWN = {"chelsea.png": "cat", "motorcycle_left.png": "motorbike", "astronaut.png": "person"}
_CAMS = ("attention", "chefer", "getam", "gradcam", "head_masks", "layercam", "legrad", "rollout", "tscam")
_BACKGROUND = 0.48
_WIDTH, _QUALITY = 560, 66
# A few patches of this network stand out by an order of magnitude and would leave the rest blue.
_HIGHEST = 0.98


def main(runs: Path) -> None:
    """Write all pictures."""
    transformer = load_classifier(None, checkpoint=str(runs / "voc-vits"))
    folder = packaged_photos()[0].parent
    images = {name: small(read_image(folder / name))[:240] for name in _SHOWN}  # 3:2, as most of them are
    for method in _CAMS:
        overlays = [_overlay(method, transformer, image, _SHOWN[name]) for name, image in images.items()]
        _write("wsol.cams", method, overlays, columns=3)
    classifier = load_classifier(MODEL, checkpoint=WEIGHTS)
    photos = [small(read_image(path)) for path in packaged_photos()]
    networks = {
        "caa": {"checkpoint": str(runs / "voc-vits"), "img_size": 336},
        "irn": {"checkpoint": str(runs / "irn"), "img_size": 288},
        "psa": {"checkpoint": str(runs / "psa"), "img_size": 288, "steps": 32},
    }
    for method, options in networks.items():
        pictures = refined(refine.chain(method, options), classifier, photos[:2], background=_BACKGROUND)
        _write("wsol.refine", method, pictures, columns=4)
    batch = torch.stack([to_network(image, transformer) for image in photos])
    draw_mix(IMAGES / "wsol.mix/smmix.jpg", "smmix", transformer, batch, width=_WIDTH, quality=_QUALITY)


def _overlay(method: str, classifier: Classifier, image: Image, name: str) -> Image:
    raw = cams.create(method, classifier)(to_network(image, classifier)[None], [[CLASSES.index(name)]])
    values = np.maximum(raw.values[0].float().numpy(), 0)
    low, high = values.min(), np.quantile(values, _HIGHEST)
    return heatmap(image, at_image_size(((values - low) / (high - low)).clip(0, 1), image))


def _write(room: str, method: str, pictures: list[Image], *, columns: int) -> None:
    write(
        IMAGES / room / f"{method}.jpg", contact_sheet(pictures, columns=columns, width=_WIDTH, gap=2), quality=_QUALITY
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
