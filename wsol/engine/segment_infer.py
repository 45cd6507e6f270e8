"""What a segmentation network says about one image of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsol.data.transforms import input_size, resize_image
from wsol.engine.loaders import normalize
from wsol.models.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class View:
    """How a network looks at an image.

    Attributes:
        img_size: Long side of the network's input in pixels; that of the training where None.
        scales: Factors of img_size whose probabilities are averaged.
        flip: Average with the mirrored image.
        window: Side of square windows that slide over the input; their logits are averaged. None takes it whole.
        stride: Pixels between two windows; the window's side where None.
        amp: Mixed precision (bfloat16).
    """

    img_size: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: int | None = None
    stride: int | None = None
    amp: bool = False


def predict(segmenter: Segmenter, image: NDArray[np.uint8], view: View, *, device: torch.device) -> Tensor:
    """Return the class probabilities of each pixel.

    Args:
        segmenter: In evaluation mode.
        image: RGB uint8 (H, W, 3).
        view: Sizes, mirror image and windows; the probabilities of all of them are averaged.
        device: Device of the network.

    Returns:
        float32 (C, H, W) on the device, summing to one over C; channel 0 is background.
    """
    sides = [max(1, round((view.img_size or segmenter.facts.img_size) * scale)) for scale in view.scales]
    total = sum(_probabilities(segmenter, image, side, view, device=device) for side in sides)
    return torch.as_tensor(total) / (len(sides) * (1 + view.flip))


def predict_labels(
    segmenter: Segmenter, image: NDArray[np.uint8], view: View | None = None, *, device: torch.device
) -> NDArray[np.uint8]:
    """Return the most probable class of each pixel; the arguments are those of `predict`.

    Returns:
        uint8 (H, W): 0 background, class id + 1.
    """
    probabilities = predict(segmenter, image, view or View(), device=device)
    labels: NDArray[np.uint8] = probabilities.argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels


def slide(network: Callable[[Tensor], Tensor], images: Tensor, *, window: int, stride: int) -> Tensor:
    """Run a network on windows, and average the logits where they overlap.

    Args:
        network: (B, 3, window, window) to logits (B, C, window, window).
        images: (B, 3, h, w), both sides at least as long as the window.
        window: Side of the windows.
        stride: Pixels between two of them; the last one ends at the border.

    Returns:
        (B, C, h, w).
    """
    height, width = images.shape[2:]
    total: Tensor | None = None
    count = images.new_zeros(height, width)
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            part = (..., slice(top, top + window), slice(left, left + window))
            logits = network(images[part])
            if total is None:
                total = logits.new_zeros(len(images), logits.shape[1], height, width)
            total[part] += logits
            count[part] += 1
    return torch.as_tensor(total) / count


def _starts(length: int, window: int, stride: int) -> list[int]:
    return [*range(0, length - window, stride), length - window]


def _size(image: NDArray[np.uint8], side: int, window: int | None) -> tuple[int, int]:
    """Return the (h, w) of the network's input; the short side is at least as long as a window."""
    height, width = input_size((image.shape[0], image.shape[1]), img_size=side, resize="keep")
    if window is None or min(height, width) >= window:
        return height, width
    # In integers: 345 * (224 / 5) is a little less than 15456.
    height, width = (length * window // min(image.shape[:2]) for length in image.shape[:2])
    return height, width


@torch.no_grad()
def _probabilities(
    segmenter: Segmenter, image: NDArray[np.uint8], side: int, view: View, *, device: torch.device
) -> Tensor:
    """Return the probabilities (C, H, W) at one input size, summed over the mirror images."""
    resized = resize_image(image, _size(image, side, view.window))
    x = normalize(resized[None], mean=segmenter.facts.mean, std=segmenter.facts.std, device=device)
    views = torch.cat([x, x.flip(-1)]) if view.flip else x

    def network(part: Tensor) -> Tensor:
        # Zero is the mean colour, the padding that the network saw in training.
        height, width = part.shape[2:]
        padded = F.pad(part, (0, -width % segmenter.stride, 0, -height % segmenter.stride))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=view.amp):
            logits: Tensor = segmenter.module(padded)
        return logits[:, :, :height, :width].float()

    if view.window is None:
        logits = network(views)
    else:
        logits = slide(network, views, window=view.window, stride=view.stride or view.window)
    logits = torch.cat([logits[:1], logits[1:].flip(-1)])
    full = F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
    return full.softmax(dim=1).sum(dim=0)
