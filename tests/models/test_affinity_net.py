"""The networks of PSA and IRNet on timm backbones, and the affinities of pairs of pixels, by brute force."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from wsol.errors import ModelError
from wsol.models.affinity import create_affinity, load_affinity, save_affinity
from wsol.models.affinity_net import AffinityNet
from wsol.models.features import Backbone
from wsol.models.irnet import IRNet, MeanShift
from wsol.models.pixel_pairs import (
    boundary_affinity,
    displacement_difference,
    feature_affinity,
    path_between,
    shifted,
)
from wsol.ops.random_walk import neighbour_offsets

SIZE = (7, 9)
steps = st.tuples(st.integers(0, 9), st.integers(-9, 9)).filter(lambda step: step > (0, 0))


def partner(offsets, at, y, x):
    """The second position of a pair, or None outside."""
    there = y + int(offsets[at, 0]), x + int(offsets[at, 1])
    return there if 0 <= there[0] < SIZE[0] and 0 <= there[1] < SIZE[1] else None


def every_pair(offsets):
    for at in range(len(offsets)):
        for y in range(SIZE[0]):
            for x in range(SIZE[1]):
                yield at, y, x, partner(offsets, at, y, x)


def test_the_paper_has_34_offsets():
    assert len(neighbour_offsets(5)) == 34


@given(step=steps)
def test_paths_join_both_ends_without_gaps(step):
    dy, dx = step
    path = path_between(dy, dx)
    assert {(0, 0), (dy, dx)} <= set(path)
    nearest_first = sorted(path, key=lambda place: (place[0] * dy + place[1] * dx, place))
    assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 1 for a, b in pairwise(nearest_first))
    for y, x in path:
        assert abs(dy * x - dx * y) / np.hypot(dy, dx) < 1
        assert (dy - y, dx - x) in path  # the same from the other end


def test_paths_by_hand():
    assert path_between(0, 3) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert path_between(2, -2) == [(0, -1), (0, 0), (1, -2), (1, -1), (1, 0), (2, -2), (2, -1)]
    assert path_between(1, 2) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]  # the last are 0.9 away
    assert path_between(3, 3) == [(y, x) for y in range(4) for x in range(4) if abs(y - x) < 2]


def test_shifted_views():
    values, offsets = torch.rand(2, 3, *SIZE), neighbour_offsets(4)
    views = torch.stack(list(shifted(values, offsets, fill=-1.0)), dim=1)
    for at, y, x, there in every_pair(offsets):
        expected = values[:, :, there[0], there[1]] if there else torch.full((2, 3), -1.0)
        assert torch.equal(views[:, at, :, y, x], expected)


def test_feature_affinity_by_brute_force():
    features, offsets = torch.randn(2, 5, *SIZE), neighbour_offsets(3)
    affinity = feature_affinity(features, offsets)
    for at, y, x, there in every_pair(offsets):
        expected = torch.zeros(2)
        if there:
            expected = torch.exp(-(features[:, :, y, x] - features[:, :, there[0], there[1]]).abs().mean(dim=1))
        torch.testing.assert_close(affinity[:, at, y, x], expected)


def test_boundary_affinity_by_brute_force():
    boundary, offsets = torch.rand(2, 1, *SIZE), neighbour_offsets(5)
    affinity = boundary_affinity(boundary, offsets)
    for at, y, x, there in every_pair(offsets):
        expected = torch.zeros(2)
        if there:
            path = [(y + a, x + b) for a, b in path_between(*offsets[at].tolist())]
            expected = 1 - torch.stack([boundary[:, 0, a, b] for a, b in path]).amax(0)
        torch.testing.assert_close(affinity[:, at, y, x], expected)


def test_displacements_to_one_centroid_differ_by_the_offset():
    offsets, centre = neighbour_offsets(4), torch.tensor([3.0, 5.0])
    places = torch.stack(torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")).float()
    difference = displacement_difference((centre[:, None, None] - places)[None], offsets)
    for at, y, x, there in every_pair(offsets):
        expected = torch.from_numpy(offsets[at]).float() if there else torch.zeros(2)
        assert torch.equal(difference[0, :, at, y, x], expected)


def test_affinity_net_has_the_papers_grid_and_width():
    torch.manual_seed(0)
    net = AffinityNet(Backbone("test_resnet")).train()
    assert net.stride == 8
    out = net(torch.randn(2, 3, 64, 96))
    assert out.shape == (2, 448, 8, 12)
    assert not any(module.training for module in net.backbone.modules())
    norms = [m for m in net.backbone.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert not any(p.requires_grad for m in norms for p in m.parameters())


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext"])
def test_irnet_takes_backbones_of_any_levels(name):
    net = IRNet(Backbone(name)).eval()
    size = (160, 320) if name == "test_vit" else (64, 96)
    with torch.no_grad():
        logits, field = net(torch.randn(1, 3, *size))
    rows, columns = size[0] // net.stride, size[1] // net.stride
    assert logits.shape == (1, 1, rows, columns)
    assert field.shape == (1, 2, rows, columns)


def test_irnet_has_the_papers_layers_on_a_resnet():
    net = IRNet(Backbone("resnet18", output_stride=16))
    assert net.stride == 4
    assert net.edge_out.in_channels == 160
    assert net.field_coarse[0].in_channels == 768
    assert net.field_out[0][0].in_channels == 448
    groups = [module.num_groups for module in net.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert sorted(groups) == [4] * 5 + [8] + [16] * 6


@pytest.mark.parametrize(("kind", "frozen"), [(AffinityNet, False), (AffinityNet, True), (IRNet, False), (IRNet, True)])
def test_parameter_groups_hold_what_is_trained_once(kind, frozen):
    net = kind(Backbone("test_resnet"), frozen=frozen).train()
    grouped = [id(parameter) for _, group in net.parameter_groups() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in net.parameters() if parameter.requires_grad)
    outputs = net(torch.randn(2, 3, 64, 64))
    sum(out.sum() for out in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
    reached = any(parameter.grad is not None for parameter in net.backbone.parameters())
    assert reached is not frozen


def test_mean_shift_subtracts_the_mean_of_the_training():
    shift, values = MeanShift(), torch.randn(4, 2, 9, 7) + torch.tensor([3.0, -2.0])[:, None, None]
    shift.train()
    for _ in range(200):
        assert torch.equal(shift(values), values)
    shift.eval()
    torch.testing.assert_close(shift(values).mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)


def test_the_backbone_comes_from_a_classifier(tmp_path):
    classifier = timm.create_model("test_resnet", num_classes=3)
    save_file(classifier.state_dict(), tmp_path / "model.safetensors")
    model = create_affinity("irn", "test_resnet", img_size=64, checkpoint=str(tmp_path / "model.safetensors"))
    image = torch.randn(1, 3, 64, 64)
    classifier.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.module.backbone(image)[-1], classifier.forward_features(image))
    with pytest.raises(ModelError):
        create_affinity("irn", "resnet18", img_size=64, checkpoint=str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("method", ["psa", "irn"])
def test_a_saved_network_gives_the_same(method, tmp_path):
    model = create_affinity(method, "test_resnet", img_size=64, output_stride=16)
    save_affinity(model, tmp_path)
    state = torch.get_rng_state()
    again = load_affinity(tmp_path, method=method)
    assert torch.equal(torch.get_rng_state(), state)
    assert again.facts == model.facts
    image = np.random.default_rng(0).integers(0, 256, (41, 53, 3), dtype=np.uint8)
    pixels, size = again.prepare(image)
    assert size == (50, 64)
    assert pixels.shape == (1, 3, 64, 64)
    assert not pixels[:, :, 50:].any()
    with torch.no_grad():
        one, two = (each.module.eval()(pixels) for each in (model, again))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ModelError, match=f"a network of {method}"):
        load_affinity(tmp_path, method="irn" if method == "psa" else "psa")


def test_mistakes(tmp_path):
    with pytest.raises(ModelError, match="did you mean"):
        create_affinity("irn", "test_resne", img_size=64)
    with pytest.raises(ModelError, match="no model name"):
        create_affinity("irn", None, img_size=64)
    with pytest.raises(ModelError, match="no network of affinities here"):
        load_affinity(tmp_path, method="irn")
    (tmp_path / "weights.pth").write_bytes(b"")
    with pytest.raises(ModelError, match="no network of affinities"):
        load_affinity(tmp_path / "weights.pth", method="irn")
    (tmp_path / "model.json").write_text(json.dumps({"kind": "segmenter"}))
    with pytest.raises(ModelError, match="not a network of affinities"):
        load_affinity(tmp_path, method="irn")
    with pytest.raises(ModelError, match="output"):
        Backbone("test_vit", output_stride=16)
