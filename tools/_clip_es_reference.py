"""CLIP-ES as its paper's pipeline computes it, step by step: the peer that wsol's version is timed and compared with.

Lin et al., "CLIP is Also an Efficient Segmenter", CVPR 2023. Every block forms its attention weights; for every class
the last block runs again with autograd, parameter gradients included, and Sinkhorn and the squared affinity matrix
are computed densely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PATCH = 16


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """One residual attention block over (L, B, D), which also returns its attention weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": QuickGELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.ModuleDict(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens, and the weights (B, L, L) averaged over the heads."""
        y = self.ln_1(x)
        attended, weights = self.attn(y, y, y, need_weights=True)
        x = x + attended
        hidden = self.mlp["gelu"](self.mlp["c_fc"](self.ln_2(x)))
        return x + self.mlp["c_proj"](hidden), weights


@dataclass
class Stages:
    """What one image gives on the way; arrays on the grid of the patches.

    Attributes:
        probabilities: (C, C + background) softmax of each class's pass.
        cams: (C, h, w) Grad-CAM, normalised.
        boxes: (C, h, w) box masks, 0 or 1.
        refined: (C, h, w) after the affinity.
        maps: float32 (C, H, W) in [0, 1].
    """

    probabilities: NDArray[np.float32]
    cams: NDArray[np.float32]
    boxes: NDArray[np.uint8]
    refined: NDArray[np.float32]
    maps: NDArray[np.float32]


class ReferenceClipEs:
    """CLIP-ES on the image tower of a CLIP model.

    Args:
        weights: State dict in OpenAI's naming; only `visual.*` and `logit_scale` are read.
        heads: Attention heads.
        foreground: (N, E) unit text features of all classes.
        background: (K, E) unit text features of the background.
        box_threshold: Share of a map's maximum above which its boxes lie.
        layers: How many of the last blocks give the affinity.
        fp16_position: Round the position embedding to float16.
        shift: Subtract the minimum of the refined maps, as published; else they are only divided by their maximum.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        *,
        heads: int,
        foreground: Tensor,
        background: Tensor,
        box_threshold: float = 0.4,
        layers: int = 8,
        fp16_position: bool = False,
        shift: bool = True,
    ) -> None:
        visual = {key.removeprefix("visual."): item for key, item in weights.items() if key.startswith("visual.")}
        self.stem, self.cls = visual["conv1.weight"], visual["class_embedding"]
        self.position, self.proj = visual["positional_embedding"], visual["proj"]
        self.scale = weights["logit_scale"].exp()
        width = self.cls.shape[0]
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        depth = 1 + max(int(key.split(".")[2]) for key in visual if key.startswith("transformer.resblocks."))
        self.blocks = [Block(width, heads) for _ in range(depth)]
        named = [("ln_pre.", self.ln_pre), ("ln_post.", self.ln_post)]
        named += [(f"transformer.resblocks.{at}.", block) for at, block in enumerate(self.blocks)]
        for prefix, module in named:
            module.load_state_dict({k.removeprefix(prefix): v for k, v in visual.items() if k.startswith(prefix)})
            module.eval()
        self.foreground, self.background = foreground, background
        self.box_threshold, self.layers = box_threshold, layers
        self.fp16_position, self.shift = fp16_position, shift

    def __call__(self, image: NDArray[np.uint8], classes: Sequence[int]) -> NDArray[np.float32]:
        """Return the maps float32 (C, H, W) of an RGB image for some classes."""
        return self.stages(image, classes).maps

    def stages(self, image: NDArray[np.uint8], classes: Sequence[int]) -> Stages:
        """Return the maps and what led to them."""
        pixels = preprocess(image)
        rows, columns = pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH
        tokens, attentions = self._encode(pixels, rows, columns)
        texts = torch.cat([self.foreground[list(classes)], self.background])
        found: list[tuple[Any, ...]] = []
        for at in range(len(classes)):
            probabilities, cam, last = self._grad_cam(tokens, texts, at, rows, columns)
            affinity = torch.stack([*attentions, last][-self.layers :]).mean(0)[0, 1:, 1:].numpy()
            mask = box_mask(cam, self.box_threshold)
            refined = refine(affinity, mask, cam)
            shown = refined - refined.min() * self.shift
            shown = shown / (1e-7 + shown.max())
            full = cv2.resize(shown, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
            found.append((probabilities, cam, mask, refined, full))
        return Stages(*(np.stack(items) for items in zip(*found, strict=True)))

    def _encode(self, pixels: Tensor, rows: int, columns: int) -> tuple[Tensor, list[Tensor]]:
        """Return the input of the last block (L, 1, D), and the weights of the blocks before it."""
        patches = F.conv2d(pixels, self.stem, stride=PATCH).flatten(2).mT
        x = torch.cat([self.cls.expand(1, 1, -1), patches], dim=1)
        side = round((len(self.position) - 1) ** 0.5)
        grid = self.position[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
        position = torch.cat([self.position[:1], grid.flatten(2).mT[0]])
        if self.fp16_position:
            position = position.half().float()
        attentions = []
        with torch.no_grad():
            x = self.ln_pre(x + position).transpose(0, 1)
            for block in self.blocks[:-1]:
                x, weights = block(x)
                attentions.append(weights)
        return x, attentions

    def _grad_cam(self, tokens: Tensor, texts: Tensor, at: int, rows: int, columns: int) -> tuple[Any, ...]:
        """Run the last block and derive the probability of one class with respect to its normalised input."""
        block, kept = self.blocks[-1], {}
        block.zero_grad()

        def keep(_: nn.Module, __: Any, output: Tensor) -> None:
            output.retain_grad()
            kept["activation"] = output

        handle = block.ln_1.register_forward_hook(keep)
        try:
            out, weights = block(tokens.detach().requires_grad_())
        finally:
            handle.remove()
        pooled = self.ln_post(out)[1:].mean(0) @ self.proj
        pooled = pooled / pooled.norm(dim=-1, keepdim=True)
        probabilities = (self.scale * pooled @ texts.T).softmax(-1)
        probabilities[0, at].backward(retain_graph=True)
        activation, gradient = (
            item[1:, 0].reshape(rows, columns, -1).detach().numpy()
            for item in (kept["activation"], kept["activation"].grad)
        )
        cam = np.maximum((gradient.mean((0, 1)) * activation).sum(-1), 0)
        for _ in range(2):
            cam = cam - cam.min()
            cam = cam / (1e-7 + cam.max())
        return probabilities.detach()[0].numpy(), cam, weights.detach()


def preprocess(image: NDArray[np.uint8]) -> Tensor:
    """Return (1, 3, h, w): sides rounded up to the patch, PIL bicubic, CLIP's mean and deviation."""
    height, width = (PATCH * -(-side // PATCH) for side in image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.float32) / 255
    return torch.from_numpy(((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1).copy())[None]


def box_mask(cam: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return 1 inside the boxes of the contours above a share of the maximum; never in the last row or column."""
    height, width = cam.shape
    levels = (cam * 255).astype(np.uint8)
    binary = cv2.threshold(levels, int(threshold * int(levels.max())), 255, cv2.THRESH_BINARY)[1]
    mask = np.zeros((height, width), np.uint8)
    for contour in cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, w, h = cv2.boundingRect(contour)
        mask[y : min(y + h, height - 1), x : min(x + w, width - 1)] = 1
    return mask


def refine(attention: NDArray[np.float32], mask: NDArray[np.uint8], cam: NDArray[np.float32]) -> NDArray[np.float32]:
    """Spread a map over the squared, doubly normalised, symmetric attention; only columns inside the boxes give."""
    affinity = torch.from_numpy(attention)
    for _ in range(3):
        affinity = affinity / affinity.sum(0, keepdim=True)
        affinity = affinity / affinity.sum(1, keepdim=True)
    affinity = (affinity + affinity.T) / 2
    affinity = affinity @ affinity
    affinity = affinity * torch.from_numpy(mask.reshape(1, -1).astype(np.float32))
    return (affinity @ torch.from_numpy(np.ascontiguousarray(cam)).reshape(-1, 1)).reshape(cam.shape).numpy()
