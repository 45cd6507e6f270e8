"""Devices that are not there are refused in one line, wherever one can be named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsol import refine
from wsol.engine.device import resolve_device
from wsol.errors import ModelError
from wsol.models.affinity import create_affinity, load_affinity
from wsol.models.classifier import load_classifier
from wsol.models.clip_load import load_towers
from wsol.models.device import find_device
from wsol.models.segmenter import create_segmenter, load_segmenter

IMAGE, SCORES = np.zeros((7, 9, 3), np.uint8), np.zeros((2, 7, 9), np.float32)
ABSENT = f"cuda:{torch.cuda.device_count()}"


def test_devices_that_are_there():
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")


@pytest.mark.parametrize("device", ["gpu", ABSENT])
@pytest.mark.parametrize(
    "call",
    [
        find_device,
        resolve_device,
        lambda device: load_classifier("test_vit", device=device),
        lambda device: load_towers("clip:ViT-B-16", pretrained=True, device=device),
        lambda device: create_affinity("psa", "test_resnet", img_size=32, device=device),
        lambda device: create_segmenter("unet", classes=("cat",), img_size=32, device=device),
        *(
            lambda device, name=name: refine.create(name, device=device)(IMAGE, SCORES)
            for name in ("pamr", "par", "densecrf")
        ),
    ],
)
def test_devices_that_are_not(call, device):
    with pytest.raises(ModelError, match=f"device '{device}'"):
        call(device)


def test_the_device_is_looked_at_before_the_files(tmp_path):
    for load in (load_segmenter, lambda folder, device: load_affinity(folder, method="psa", device=device)):
        with pytest.raises(ModelError, match="unknown device"):
            load(tmp_path, device="gpu")
