"""Several scales, mirror images and the choice of classes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from wsol import cams
from wsol.cams.tta import multi_scale, select_classes
from wsol.errors import ConfigError
from wsol.models.classifier import load_classifier


def rescaled(images, *, stride):
    def at(scale):
        size = [round(side * scale / stride) * stride for side in images.shape[-2:]]
        return images if scale == 1 else F.interpolate(images, size=size, mode="bicubic", antialias=True)

    return at


@pytest.fixture(scope="module")
def bound():
    torch.manual_seed(0)
    return cams.create("cam", load_classifier("test_resnet", num_classes=7))


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))


def test_one_scale_is_the_method_itself(bound, images):
    plain = bound(images, [[1], [2, 3]])
    raw = multi_scale(bound, rescaled(images, stride=32), [[1], [2, 3]])
    for ours, theirs in zip(raw.values, plain.values, strict=True):
        assert torch.equal(ours, theirs)


def test_flip_adds_the_mirrored_map(bound, images):
    raw = multi_scale(bound, lambda scale: images, [[1], []], flip=True)
    straight, mirrored = bound(images, [[1], []]), bound(images.flip(3), [[1], []])
    torch.testing.assert_close(raw.values[0], straight.values[0] + mirrored.values[0].flip(2))
    assert raw.values[1].shape == (0, 3, 5)
    both = multi_scale(bound, lambda scale: images.flip(3), [[1], []], flip=True)
    torch.testing.assert_close(both.values[0], raw.values[0].flip(2), rtol=1e-4, atol=1e-4)


def test_scales_are_summed_on_the_largest_grid(bound, images):
    inputs = {0.5: images[:, :, :64, :96], 1.0: images, 2.0: F.interpolate(images, scale_factor=2)}
    raw = multi_scale(bound, inputs.__getitem__, [[1, 4], [2]], scales=(2.0, 0.5, 1.0))
    parts = [bound(inputs[scale], [[1, 4], [2]]).values for scale in inputs]
    assert raw.values[0].shape == (2, 6, 10)
    for at in range(2):
        total = sum(
            F.interpolate(part[at][None], size=(6, 10), mode="bilinear", align_corners=False)[0] for part in parts
        )
        torch.testing.assert_close(raw.values[at], total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(raw.logits, bound(images, [[], []]).logits)


def test_rectified_maps_are_summed_without_their_negative_evidence(bound, images):
    inputs = {0.5: images[:, :, :64, :96], 1.0: images}
    raw = multi_scale(bound, inputs.__getitem__, [[1, 4], [2]], scales=(0.5, 1.0), flip=True, rectify=True)
    for at, ids in enumerate([[1, 4], [2]]):
        total = torch.zeros(len(ids), 3, 5)
        for x in inputs.values():
            for maps in (bound(x, [[1, 4], [2]]).values[at], bound(x.flip(3), [[1, 4], [2]]).values[at].flip(2)):
                total += F.interpolate(maps.relu()[None], size=(3, 5), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(raw.values[at], total, rtol=1e-4, atol=1e-4)
    assert (bound(images, [[1, 4], [2]]).values[0] < 0).any()
    alone = multi_scale(bound, inputs.__getitem__, [[1], []], rectify=True)
    assert torch.equal(alone.values[0], bound(images, [[1], []]).values[0])


def test_classes_are_chosen_once_at_the_scale_nearest_to_one(bound, images):
    calls = []

    def choose(logits):
        calls.append(logits)
        return select_classes(logits, "top1", [[], []])

    inputs = rescaled(images, stride=32)
    raw = multi_scale(bound, inputs, choose, scales=(2.0, 1.25), flip=True)
    assert len(calls) == 1
    torch.testing.assert_close(calls[0], bound(inputs(1.25), [[], []]).logits)
    assert raw.class_ids == tuple((int(row.argmax()),) for row in raw.logits)


@pytest.mark.parametrize(
    "method", ["cam", "gradcam", "gradcampp", "xgradcam", "layercam", "hirescam", "scorecam", "ablationcam"]
)
def test_maps_keep_their_size_over_scales(method):
    """An image of three by three copies: each has the map of the one, so no scale outweighs another in a sum."""
    torch.manual_seed(0)
    bound = cams.create(method, load_classifier("test_resnet", num_classes=7))
    one = 1 + 0.05 * torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    small, large = bound(one, [[3]]).values[0], bound(one.repeat(1, 1, 3, 3), [[3]]).values[0]
    torch.testing.assert_close(large.abs().amax(), small.abs().amax(), rtol=0.05, atol=0)


def test_select_classes():
    logits = torch.tensor([[0.1, 3.0, 2.0], [5.0, 1.0, 4.0]])
    labels = [(2,), ()]
    assert [list(row) for row in select_classes(logits, "labels", labels)] == [[2], []]
    assert select_classes(logits, "top1", labels) == [[1], [0]]
    assert select_classes(logits, "top5", labels) == [[1, 2, 0], [0, 2, 1]]
    assert select_classes(logits, "all", labels) == [[0, 1, 2]] * 2
    with pytest.raises(ConfigError, match="did you mean 'top1'"):
        select_classes(logits, "top_1", labels)
    with pytest.raises(ConfigError, match="no scale"):
        multi_scale(None, lambda scale: logits, [[]], scales=())
