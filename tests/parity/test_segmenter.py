"""Segmenter, its sliding windows, its schedule and the tiles of MUM against the authors' own code."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from wsol.engine.optim import Schedule
from wsol.engine.segment_infer import slide
from wsol.engine.tile_mix import mix_tiles, unmix_tiles
from wsol.engine.train_options import LoopOptions
from wsol.models.classifier import Classifier
from wsol.models.taps import tap
from wsol.models.vit_segmenter import LinearDecoder, MaskTransformer, ViTSegmenter

pytestmark = pytest.mark.parity
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def arrays(golden):
    with np.load(golden / "other" / "segmenter.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def weights(arrays, prefix):
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def grid(logits, rows, columns):
    return logits.transpose(1, 2).reshape(len(logits), -1, rows, columns)


@torch.no_grad()
def test_mask_transformer(arrays):
    decoder = MaskTransformer(24, 7, inner=32, heads=4).eval()
    decoder.load_state_dict(weights(arrays, "A_w."))
    names = ["blocks.0.attn", "blocks.1.attn"]
    with tap(decoder, attention=names) as tapped:
        logits = decoder(arrays["A_x"])
    torch.testing.assert_close(grid(logits, 6, 8), arrays["A_masks"], **CLOSE)
    for at, name in enumerate(names):
        torch.testing.assert_close(tapped.attention[name], arrays[f"A_attn{at}"], **CLOSE)


@torch.no_grad()
def test_linear_decoder(arrays):
    decoder = LinearDecoder(24, 7)
    decoder.load_state_dict(weights(arrays, "B_w."))
    torch.testing.assert_close(grid(decoder(arrays["A_x"]), 6, 8), arrays["B_masks"], **CLOSE)


@pytest.fixture(scope="module")
def whole(arrays):
    encoder = VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=32,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        num_classes=5,
        dynamic_img_size=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    encoder.pretrained_cfg = {**timm.get_pretrained_cfg("vit_tiny_patch16_224").to_dict(), "input_size": (3, 64, 64)}
    model = ViTSegmenter(Classifier(encoder, name="tiny", input_size=(64, 64)), 5, decoder="mask")
    model.decoder = MaskTransformer(32, 5, heads=4)
    stored = {name: value for name, value in weights(arrays, "C_w.").items() if not name.startswith("encoder.head")}
    model.load_state_dict(stored)
    return model.eval()


@torch.no_grad()
def test_the_whole_model(arrays, whole):
    image = arrays["C_im"]
    torch.testing.assert_close(whole.tokens(nn.functional.pad(image, (0, 10, 0, 14))), arrays["C_tokens"], **CLOSE)
    torch.testing.assert_close(whole(image), arrays["C_logits"], **CLOSE)


@torch.no_grad()
def test_sliding_windows(arrays, whole):
    image = arrays["C_sw_im"]
    total = torch.zeros_like(arrays["C_sw_prob"])
    for x, undo in ((image, lambda y: y), (image.flip(-1), lambda y: y.flip(-1))):
        logits = slide(whole, x, window=64, stride=48)
        full = nn.functional.interpolate(logits, size=(90, 117), mode="bilinear", align_corners=False)
        total += undo(full)[0].softmax(0) / 2
    torch.testing.assert_close(total, arrays["C_sw_prob"], **CLOSE)


def test_the_poly_schedule(arrays, tmp_path):
    config = LoopOptions(out=tmp_path, epochs=4, sched="poly", lr=1e-3, min_lr=1e-5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = Schedule(optimizer, config, 5)
    found = []
    for done in range(25):
        schedule.set(done)
        found.append(optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(found, arrays["D_lr"].numpy(), rtol=1e-6)


@pytest.mark.parametrize(("folder", "image", "mask"), [("other", "img", "mix_mask"), ("mix", "x", "mask")])
def test_tiles_of_mum(golden, folder, image, mask):
    with np.load(golden / folder / "mum.npz") as stored:
        found = {name: torch.from_numpy(stored[name]) for name in stored.files}
    mixed = mix_tiles(found[image], found[mask])
    torch.testing.assert_close(mixed, found["mixed"], rtol=0, atol=0)
    torch.testing.assert_close(unmix_tiles(mixed, found[mask]), found[image], rtol=0, atol=0)
    features = [name.removesuffix("_unmixed") for name in found if name.endswith("_unmixed")]
    assert features
    for name in features:
        torch.testing.assert_close(unmix_tiles(found[name], found[mask]), found[f"{name}_unmixed"], **CLOSE)
