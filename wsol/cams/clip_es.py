"""CLIP-ES: softmax Grad-CAM of CLIP against the texts of the background, spread along the attention (CAA).

Lin et al., "CLIP is Also an Efficient Segmenter: A Text-Driven Approach for Weakly Supervised Semantic Segmentation",
CVPR 2023, https://arxiv.org/abs/2212.09506. The probability of a class is the softmax over the classes of the image and
the texts of the background only, of an image feature that pools the patches. Grad-CAM at the first norm of the last
block; then each map spreads from its boxes along the mean attention of the last blocks.

Instead of the probability p its log-odds log(p / (1 - p)) are derived: the gradient differs by the factor p (1 - p),
which min-max normalization removes, and which lets the paper's half-precision gradients vanish for p near 0 or 1. It
is the class's text minus the mean of its competitors' texts, weighted by the softmax among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._last_block import LastBlock, is_plain, run_last_block
from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose
from wsol.errors import ConfigError, ModelError
from wsol.models.attention_affinity import AttentionMean, spread
from wsol.models.classifier import Classifier
from wsol.models.clip import ClipViT, ZeroShotHead
from wsol.models.taps import tap
from wsol.ops.box_mask import box_masks

_EPSILON = 1e-7


@CAMS.register("clip_es")
@dataclass(frozen=True, kw_only=True)
class ClipES(MapMethod):
    """Softmax Grad-CAM of a CLIP model, spread along the attention.

    The paper's inputs take `--resize native`. A map depends on the other classes of the image: they compete.

    The blocks before the last run once for all classes, in half precision where the caller asks for it; the last block,
    its gradient in closed form, and the affinities are float32.
    """

    normalization: ClassVar[Literal["relu", "minmax"]] = "minmax"  # maps that were spread have no zero
    affinity: bool = True
    """Spread the maps along the attention (CAA); without it they are those of softmax Grad-CAM."""
    layers: int = 8
    """Blocks whose attention makes the affinities, from the last one back; all where there are fewer."""
    box_threshold: float = 0.4
    """Share of a map's maximum above which it spreads; the paper: 0.4 for VOC, 0.7 for COCO."""
    reference_boxes: bool = False
    """Leave out the last row and column of the boxes, as the published code does."""
    fp16_position: bool = False
    """Round the position embedding to float16, as the published code does in any precision."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models that are no CLIP with a plain transformer, and options out of range."""
        module: Any = classifier.module
        if not isinstance(getattr(module, "head", None), ZeroShotHead):
            what = "needs a model that compares images with texts"
            raise ModelError(what, where=classifier.name, hint="give --model clip:NAME")
        plain = isinstance(module, VisionTransformer) and is_plain(module.blocks[-1], module.norm)
        if not plain or module.attn_pool is not None:
            raise ModelError("needs a plain vision transformer", where=classifier.name, hint="give clip:ViT-B-16")
        if self.fp16_position and not isinstance(module, ClipViT):
            raise ConfigError("this model keeps timm's own position embedding", where="fp16_position")
        if self.layers < 1:
            raise ConfigError(f"must be at least 1, got {self.layers}", where="layers")
        if not 0 <= self.box_threshold <= 1:
            raise ConfigError(f"must be in [0, 1], got {self.box_threshold}", where="box_threshold")

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch.

        Raises:
            ModelError: When the last block is not float32.
        """
        module: Any = classifier.module
        if module.blocks[-1].norm1.weight.dtype != torch.float32:
            hint = "for half precision call it under torch.autocast"
            raise ModelError("needs its last block in float32", where=classifier.name, hint=hint)
        attention = AttentionMean(classifier.prefix_tokens)
        with torch.inference_mode(), _position(module, fp16=self.fp16_position):
            tokens = self._before_last_block(classifier, images, attention)
        exact = torch.autocast(images.device.type, enabled=False)
        with torch.inference_mode(False), torch.no_grad(), exact:
            last = run_last_block(module.blocks[-1], module.norm, tokens.float(), prefix=classifier.prefix_tokens)
            logits = module.forward_head(last.tokens).float()
            ids = choose(class_ids, logits)
            rows, columns = classifier.grid(*images.shape[-2:])
            unique = [sorted(set(row)) for row in ids]
            maps = [grad_cam(module, last, at, row).view(-1, rows, columns) for at, row in enumerate(unique)]
            if self.affinity:
                attention(last.attention)
                maps = self._spread(maps, attention.result())
            values = [plane[[known.index(k) for k in row]] for plane, known, row in zip(maps, unique, ids, strict=True)]
        return RawMaps(tuple(values), ids, logits)

    def _before_last_block(self, classifier: Classifier, images: Tensor, attention: AttentionMean) -> Tensor:
        """Return the tokens (B, L, D) that the last block sees; exactly the blocks whose attention counts form it."""
        module: Any = classifier.module
        names = classifier.attention[-self.layers : -1] if self.affinity else ()
        with tap(module, attention=names, reduce=attention):
            tokens: Tensor = module.norm_pre(module.patch_drop(module._pos_embed(module.patch_embed(images))))
            for block in module.blocks[:-1]:
                tokens = block(tokens)
        return tokens

    def _spread(self, maps: list[Tensor], attention: Tensor) -> list[Tensor]:
        """Spread the maps (K_i, h, w) of each image from their boxes."""
        planes = torch.cat(maps)
        boxes = box_masks(planes.cpu().numpy(), threshold=self.box_threshold, reference_boxes=self.reference_boxes)
        inside = torch.split(planes * torch.from_numpy(boxes).to(planes.device), [len(item) for item in maps])
        pairs = zip(attention, inside, strict=True)
        return [spread(matrix, item.flatten(1)).view_as(item) for matrix, item in pairs]


@contextmanager
def _position(module: Any, *, fp16: bool) -> Iterator[None]:
    before = getattr(module, "fp16_position", False)
    try:
        if fp16:
            module.fp16_position = True
        yield
    finally:
        if fp16:
            module.fp16_position = before


def grad_cam(module: Any, last: LastBlock, at: int, class_ids: list[int]) -> Tensor:
    """Return the softmax Grad-CAM of an image.

    Args:
        module: A CLIP image tower.
        last: Its last block, run on a batch.
        at: Position of the image in the batch.
        class_ids: K different classes of the image, which compete.

    Returns:
        (K, N), rectified and scaled to [0, 1] over the N patches.
    """
    activations = last.normed[at, last.prefix :]
    if not class_ids:
        return activations.new_zeros(0, len(activations))
    head: ZeroShotHead = module.head
    texts = torch.cat([head.text_features[class_ids], head.background_features])
    with torch.enable_grad():
        pooled = last.pooled[at].expand(len(class_ids), -1).clone().requires_grad_()
        embedded = head.embed(module.fc_norm(pooled))
        directions = log_odds_direction(head.logit_scale * embedded.detach()[:1] @ texts.T, texts, len(class_ids))
        (gradients,) = torch.autograd.grad((embedded * directions).sum(), pooled)
    cams = (last.weights(at, gradients) @ activations.T).relu()
    for _ in range(2):  # once a layer and once after the mean over layers, in the published code
        cams = cams - cams.amin(1, keepdim=True)
        cams = cams / (_EPSILON + cams.amax(1, keepdim=True))
    return cams


def log_odds_direction(logits: Tensor, texts: Tensor, classes: int) -> Tensor:
    """Return the gradients of the log-odds of the first classes with respect to the image feature, but for the scale.

    Args:
        logits: (1, K + M) of the classes of the image and of the background.
        texts: (K + M, E) their unit features.
        classes: K.

    Returns:
        (K, E): the text of a class minus the mean of the other K + M - 1, weighted by the softmax of their logits.
    """
    own = torch.eye(classes, len(texts), dtype=torch.bool, device=texts.device)
    shares = logits.expand(classes, -1).masked_fill(own, -torch.inf).softmax(1)
    return texts[:classes] - shares.nan_to_num(0.0) @ texts  # a single class without background has no competitor
