"""What a segmentation network says about one image of any size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wsol.data.transforms import input_size, resize_image
from wsol.engine.loaders import normalize
from wsol.models.segmenter import Segmenter


def predict_labels(
    segmenter: Segmenter,
    image: NDArray[np.uint8],
    *,
    device: torch.device,
    img_size: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    amp: bool = False,
) -> NDArray[np.uint8]:
    """Return the most probable class of each pixel.

    Args:
        segmenter: In evaluation mode.
        image: RGB uint8 (H, W, 3).
        device: Device of the network.
        img_size: Long side of the network's input in pixels; that of the training where None.
        scales: Factors of img_size whose probabilities are averaged.
        flip: Average with the mirrored image.
        amp: Mixed precision (bfloat16).

    Returns:
        uint8 (H, W): 0 background, class id + 1.
    """
    sides = [max(1, round((img_size or segmenter.facts.img_size) * scale)) for scale in scales]
    total = sum(_probabilities(segmenter, image, side, flip=flip, amp=amp, device=device) for side in sides)
    labels: NDArray[np.uint8] = torch.as_tensor(total).argmax(dim=0).to(torch.uint8).cpu().numpy()
    return labels


@torch.no_grad()
def _probabilities(
    segmenter: Segmenter, image: NDArray[np.uint8], side: int, *, flip: bool, amp: bool, device: torch.device
) -> Tensor:
    """Return the probabilities (C, H, W) at one input size, summed over the mirror images."""
    height, width = input_size((image.shape[0], image.shape[1]), img_size=side, resize="keep")
    view = resize_image(image, (height, width))
    x = normalize(view[None], mean=segmenter.facts.mean, std=segmenter.facts.std, device=device)
    views = torch.cat([x, x.flip(-1)]) if flip else x
    # Zero is the mean colour, the padding that the network saw in training.
    padding = (0, -width % segmenter.stride, 0, -height % segmenter.stride)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
        logits = segmenter.module(F.pad(views, padding))
    logits = logits[:, :, :height, :width].float()
    logits = torch.cat([logits[:1], logits[1:].flip(-1)])
    full = F.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
    return full.softmax(dim=1).sum(dim=0)
