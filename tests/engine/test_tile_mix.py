"""MUM: mixing and un-mixing are inverse, and the teacher follows the student."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsol.engine.tile_mix import WithTeacher, draw_tiles, mix_tiles, unmix_tiles
from wsol.models.segmenter import create_segmenter


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("count", "size"), [(4, (8, 12)), (12, (16, 4)), (8, (20, 28))])
def test_unmixing_undoes_mixing_and_commutes_with_pixelwise_networks(count, size):
    images = torch.randn(count, 3, *size, generator=numbers())
    mask = draw_tiles(count, numbers(1))
    assert torch.equal(mask.sort(dim=1).values, torch.arange(4)[None, :, None, None].expand_as(mask))
    mixed = mix_tiles(images, mask)
    assert not torch.equal(mixed, images)
    assert torch.equal(unmix_tiles(mixed, mask), images)
    network = nn.Conv2d(3, 5, 1)
    torch.testing.assert_close(unmix_tiles(network(mixed), mask), network(images))


def test_each_tile_comes_from_the_image_that_the_mask_names():
    images = torch.arange(8.0)[:, None, None, None].expand(8, 1, 12, 8).clone()
    mask = draw_tiles(8, numbers(2))
    mixed = mix_tiles(images, mask)
    for group in range(2):
        for place in range(4):
            cells = mixed[4 * group + place, 0].reshape(4, 3, 4, 2)
            assert torch.equal(cells[:, 0, :, 0], 4 * group + mask[group, place].float())
            assert (cells == cells[:, :1, :, :1]).all()


def test_the_teacher_follows_and_learns_nothing_itself():
    student = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    pair = WithTeacher(student, ramp=10)
    pair.train()
    assert student[1].training
    assert not pair.teacher[1].training
    start = pair.teacher[0].weight.clone()
    with torch.no_grad():
        student[0].weight += 1.0
        student[1].num_batches_tracked += 3
    pair.follow()
    torch.testing.assert_close(pair.teacher[0].weight, start + 0.5)
    pair.updates.fill_(10**6)
    pair.follow()
    torch.testing.assert_close(pair.teacher[0].weight, start + 0.5 + 0.5 * 0.0004, rtol=1e-6, atol=1e-7)
    assert pair.teacher[1].num_batches_tracked == 3
    assert not any(parameter.requires_grad for parameter in pair.teacher.parameters())
    pair.eval()
    assert not student[1].training


@pytest.mark.parametrize(("arch", "encoder"), [("fpn", "tu-test_resnet"), ("segmenter", "test_vit")])
def test_consistency_is_zero_without_sure_pixels_and_has_gradients_with_them(arch, encoder):
    torch.manual_seed(0)
    segmenter = create_segmenter(arch, encoder, classes=("a", "b"), img_size=64)
    pair = WithTeacher(segmenter.module, ramp=10)
    pair.train()
    images = torch.randn(6, 3, 64, 96, generator=numbers())
    assert float(pair.consistency(images[:3], numbers())) == 0.0
    head = pair.teacher.segmentation_head[0] if arch == "fpn" else pair.teacher.decoder.mask_norm
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    assert float(pair.consistency(images, numbers()).detach()) == 0.0  # probabilities of one third
    with torch.no_grad():
        head.bias[1] = 9.0
    loss = pair.consistency(images, numbers())
    loss.backward()
    assert float(loss.detach()) > 0
    assert all(parameter.grad is None for parameter in pair.teacher.parameters())
    assert any(parameter.grad.any() for parameter in pair.student.parameters() if parameter.grad is not None)
