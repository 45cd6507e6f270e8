"""GETAM and CLIP-ES, ours beside the usual way to compute them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from _bench import Call, Case
from _bench_images import photo
from _cams_family import class_ids, images, random_model
from _clip_es_reference import ReferenceClipEs, preprocess
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from wsol import cams
from wsol.models.classifier import Classifier
from wsol.models.clip import halve_encoder, set_texts
from wsol.models.clip_convert import image_tower
from wsol.ops.normalize import relu_max
from wsol.schema import ScoreMaps

B16 = {"embed_dim": 512, "width": 768, "layers": 12, "image_size": 224, "head_width": 64}
FOREGROUND, BACKGROUND = 20, 25
FP32_TARGETS, BF16_TARGETS = {1: 1.13, 2: 1.27, 4: 1.55}, {1: 1.85, 2: 1.9, 4: 2.2}
# Eight bits of mantissa, through eleven blocks.
BF16_TOLERANCE = 0.05


def usual_getam(model: nn.Module, inputs: Tensor, ids: list[list[int]], *, start: int) -> list[NDArray[Any]]:
    """Return GETAM maps (K, h, w) an image by one backward pass an image and class through the whole network."""
    side = inputs.shape[-1] // 16
    kept: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].retain_grad()
        kept.append(args[0])

    blocks: Any = model.blocks
    handles = []
    for block in blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_pre_hook(keep))
    try:
        scores = model(inputs)
        found = []
        for at, row in enumerate(ids):
            maps = []
            for label in row:
                model.zero_grad()
                for attention in kept:
                    attention.grad = None
                scores[at, label].backward(retain_graph=True)
                total = torch.zeros(kept[0].shape[2:])
                for attention in kept[start:]:
                    gradient = attention.grad[at]  # type: ignore[index]
                    coupled = (gradient * attention.detach()[at]).relu().mean(0)
                    total = total + coupled * gradient.relu().mean(0)
                maps.append(total.relu()[0, 1:].reshape(side, side).numpy())
            found.append(np.stack(maps))
        return found
    finally:
        for handle in handles:
            handle.remove()


def getam(name: str, batch: int, classes: int, side: int = 224) -> Callable[[ExitStack], tuple[Call, Call]]:
    """Return the builder of a GETAM case; maps are compared after division by their maximum."""

    def build(_: ExitStack) -> tuple[Call, Call]:
        inputs, ids = images(batch, side), class_ids(batch, classes)
        bound, model = cams.create("getam", Classifier(random_model(name)), start_layer=6), random_model(name)
        return (
            lambda: [relu_max(values.numpy()) for values in bound(inputs, ids).values],
            lambda: [relu_max(values) for values in usual_getam(model, inputs, ids, start=6)],
        )

    return build


def random_clip(embed_dim: int, width: int, layers: int, image_size: int, head_width: int) -> nn.Module:
    """Return a CLIP model of open_clip with QuickGELU and random weights; attention is far from uniform."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=layers, width=width, head_width=head_width, patch_size=16, image_size=image_size)
    text = CLIPTextCfg(context_length=8, vocab_size=64, width=embed_dim, heads=1, layers=1)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(embed_dim, vision, text, quick_gelu=True).eval()
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2 and name != "class_embedding":
                parameter.add_(0.05 * noise)
                continue
            fan = width if name in ("class_embedding", "positional_embedding", "proj") else parameter[0].numel()
            parameter.copy_(noise * fan**-0.5)
            if name.endswith("in_proj_weight"):
                parameter[: 2 * width] *= 1.6
        model.logit_scale.fill_(float(np.log(100.0)))
    return model


def random_texts(embed_dim: int) -> tuple[Tensor, Tensor]:
    """Return unit features of classes and background that resemble each other, as those of one template do."""
    generator = torch.Generator().manual_seed(7)
    shared = torch.randn(1, embed_dim, generator=generator)
    features = shared + 0.3 * torch.randn(FOREGROUND + BACKGROUND, embed_dim, generator=generator)
    features = F.normalize(features, dim=-1)
    return features[:FOREGROUND], features[FOREGROUND:]


def clip_es(
    classes: int, *, size: tuple[int, int] = (375, 500), bf16: bool = False, clip: dict[str, int] | None = None
) -> Callable[[ExitStack], tuple[Call, Call]]:
    """Return the builder of a CLIP-ES case: from the RGB photo to maps at its size.

    Both sides divide by the maximum in the end, without the paper's subtraction of the minimum: random attention is
    almost even, so the maps are almost flat, and the subtraction would enlarge rounding a hundredfold.
    """
    shape = clip or B16

    def build(_: ExitStack) -> tuple[Call, Call]:
        image, ids = photo(size), [7, 14, 8, 11][:classes]
        model, texts = random_clip(**shape), random_texts(shape["embed_dim"])
        heads = shape["width"] // shape["head_width"]
        weights = {key: value.detach().clone() for key, value in model.state_dict().items()}
        peer = ReferenceClipEs(weights, heads=heads, foreground=texts[0], background=texts[1], shift=False)
        ours = _ours(model, texts, bf16=bf16)
        return lambda: ours(image, ids), lambda: peer(image, ids)

    return build


def _ours(
    model: nn.Module, texts: tuple[Tensor, Tensor], *, bf16: bool
) -> Callable[[NDArray[np.uint8], list[int]], NDArray[np.float32]]:
    tower = image_tower(model, where="benchmark")
    set_texts(tower, *texts)
    # The published boxes never reach the last row and column of the grid.
    bound = cams.create("clip_es", Classifier(tower.eval(), name="clip"), reference_boxes=True)
    if bf16:
        halve_encoder(tower)

    def call(image: NDArray[np.uint8], ids: list[int]) -> NDArray[np.float32]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            values = relu_max(bound(preprocess(image), [ids]).values[0].numpy())
        size, order = (image.shape[0], image.shape[1]), np.array(ids, dtype=np.int16)
        return ScoreMaps(id="photo", values=values, class_ids=order, image_size=size).at_image_size()

    return call


def cases() -> list[Case]:
    """Return every case of this part."""
    found = [
        Case(
            f"getam {name} B=4 K=4",
            getam(name, 4, 4),
            part="getam",
            rounds=3 if name.startswith("deit_base") else 7,
            tolerance=1e-4,
            quick=name.startswith("deit_tiny"),
            target=3.0,
        )
        for name in ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")
    ]
    for bf16, targets in ((False, FP32_TARGETS), (True, BF16_TARGETS)):
        found += [
            Case(
                f"clip_es ViT-B/16 500x375 K={classes} {'bf16 encoder' if bf16 else 'fp32'}",
                clip_es(classes, bf16=bf16),
                part="clip_es",
                rounds=15,
                tolerance=BF16_TOLERANCE if bf16 else 1e-5,
                quick=classes == 2 and not bf16,
                target=target,
            )
            for classes, target in targets.items()
        ]
    return found
