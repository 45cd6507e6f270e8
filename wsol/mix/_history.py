"""The state of RecursiveMix: a head for a box of the image, and the batch of the step before."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from wsol.mix._boxes import Box
from wsol.mix.base import Context
from wsol.models.classifier import Classifier
from wsol.models.layout import run_features

Past = tuple[Tensor, Tensor, Tensor]


class History(nn.Module):
    """A linear head on the last features, and what the last step saw and said.

    The last batch is no part of the state: an epoch starts without, so nothing is lost between epochs.

    Args:
        classifier: The model in training.

    Attributes:
        head: The head.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        shape = run_features(classifier.module, size=classifier.input_size)
        channels = classifier.to_grid(torch.empty(shape, device="meta"), *classifier.input_size).shape[1]
        self.head = nn.Linear(channels, classifier.num_classes, device=classifier.device)
        self._past: Past | None = None
        self._epoch = -1

    def remember(self, images: Tensor, targets: Tensor, probabilities: Tensor, *, epoch: int) -> None:
        """Keep a mixed batch: images (B, C, H, W), targets and probabilities (B, K)."""
        self._past, self._epoch = (images.detach(), targets.detach(), probabilities.detach()), epoch

    def recall(self, epoch: int) -> Past | None:
        """Return the batch before of the same epoch, or None."""
        return self._past if epoch == self._epoch else None


def forward_with_box(context: Context, images: Tensor, box: Box | None) -> tuple[Tensor, Tensor | None]:
    """Run the network, and the head of the history on the features of a box.

    Args:
        context: The model; its own state is a `History`.
        images: (B, C, H, W).
        box: top, left, bottom, right in pixels, the same for all images; None for no box.

    Returns:
        float32 (B, K) each: the logits of the network, and those of the box or None.
    """
    classifier, own = context.classifier, context.own
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=context.amp):
        features = classifier.module.forward_features(images)
        logits = classifier.module.forward_head(features).float()
    if box is None or not isinstance(own, History):
        return logits, None
    height, width = images.shape[-2:]
    grid = classifier.to_grid(features, height, width).float()
    rows, columns = grid.shape[2] / height, grid.shape[3] / width
    top, left, bottom, right = box
    corners = grid.new_tensor([[left * columns, top * rows, right * columns, bottom * rows]])
    pooled = roi_align(grid, [corners] * len(grid), output_size=1, aligned=True).flatten(1)
    return logits, own.head(pooled)
