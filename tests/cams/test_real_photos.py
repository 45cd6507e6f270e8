"""Real weights on real photos: the classes are right, and the maps lie on the objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsol import cams, data
from wsol.cams.tta import select_classes
from wsol.data.images import read_image
from wsol.data.transforms import to_input
from wsol.models.classifier import load_classifier


@pytest.mark.realdata
def test_imagenet_weights_know_imagenet_photos(real_data, lite0_weights):
    known = load_classifier("tf_efficientnet_lite0", checkpoint=lite0_weights)
    samples = data.load("ilsvrc", root=real_data / "ILSVRC", split="val").samples[::16]
    facts = {"mean": known.mean, "std": known.std, "interpolation": known.interpolation}
    batch = np.stack([to_input(read_image(sample.image), known.input_size, **facts) for sample in samples])
    labels = [sample.labels[:1] for sample in samples]
    raw = cams.create("cam", known)(torch.from_numpy(batch), lambda logits: select_classes(logits, "labels", labels))
    top1 = np.mean([int(row.argmax()) == label[0] for row, label in zip(raw.logits, labels, strict=True)])
    assert top1 >= 0.5, "70.9 % over all 313 photos"
    inside, area = [], []
    for sample, maps in zip(samples, raw.values, strict=True):
        row, column = divmod(int(maps[0].argmax()), maps.shape[2])
        x, y = (column + 0.5) * 32, (row + 0.5) * 32
        boxes = sample.boxes
        inside.append(any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in boxes))
        area.append(max((x1 - x0) * (y1 - y0) / 224**2 for x0, y0, x1, y1 in boxes))
    assert np.mean(inside) > np.mean(area) + 0.2, "far above a random position"
