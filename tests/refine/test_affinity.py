"""The learned refiners: geometry of the grid, planted boundaries that nothing crosses, planted centroids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsol.errors import ConfigError, DataError, ModelError
from wsol.models.affinity import create_affinity, save_affinity
from wsol.refine import create, irn, psa
from wsol.refine._instances import find_centroids, group_by_centroid, read_instances, split_by_group
from wsol.refine._walk import to_grid, to_image
from wsol.refine.irn import IRN

H, W = 45, 61


@dataclass
class Planted:
    """A network whose output is written into the image: red is the side, green and blue the displacement."""

    stride: int
    module: object
    size: tuple[int, int] = (H, W)

    def prepare(self, image, *, img_size=None):
        del img_size
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
        rest = -image.shape[1] % 32, -image.shape[0] % 32
        return F.pad(pixels, (0, rest[0], 0, rest[1])), image.shape[:2]


def two_sides(column=32):
    """An image that is dark left of a column of the grid and bright right of it."""
    image = np.zeros((H, W, 3), dtype=np.uint8)
    image[:, column:] = 200
    return image


def seeds(background):
    scores = np.zeros((3, H, W), dtype=np.float32)
    scores[0] = background
    scores[1, 8:24, 4:12] = 1
    return scores


@pytest.mark.parametrize(("size", "stride"), [((45, 61), 8), ((45, 61), 4), ((8, 16), 8), ((3, 5), 4)])
def test_the_grid_averages_cells(size, stride):
    scores = np.random.default_rng(0).random((2, *size), dtype=np.float32)
    grid = to_grid(scores, size, stride=stride)
    rows, columns = (-(-side // stride) for side in size)
    assert grid.shape == (2, rows, columns)
    for y in range(size[0] // stride):
        for x in range(size[1] // stride):
            cell = scores[:, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
            np.testing.assert_allclose(grid[:, y, x], cell.mean((1, 2)), rtol=1e-5)


def test_the_way_back_keeps_places():
    ramp = np.broadcast_to(np.linspace(0, 1, W, dtype=np.float32), (1, H, W))
    back = to_image(to_grid(ramp, (H, W), stride=4), (H, W), stride=4, image_size=(H, W))
    np.testing.assert_allclose(back[:, :, 4:-6], ramp[:, :, 4:-6], atol=1e-5)
    other = to_image(to_grid(ramp, (90, 122), stride=4), (90, 122), stride=4, image_size=(H, W))
    assert other.shape == (1, H, W)
    np.testing.assert_allclose(other[:, :, 4:-6], ramp[:, :, 4:-6], atol=1e-2)


def test_psa_walks_to_all_pixels_of_alike_features_and_no_others(monkeypatch):
    features = lambda pixels: F.avg_pool2d(pixels, 8)  # noqa: E731
    monkeypatch.setattr(psa, "network", lambda *_, **__: Planted(8, features))
    refined = create("psa")(two_sides(), seeds(background=0.1))
    assert refined.shape == (3, H, W)
    assert refined[1, :, 36:].max() < 1e-6
    assert refined[1, :, :28].min() > 0.02  # spread from 8 % of its side over all of it
    assert np.ptp(refined[1, :, :28]) < 0.1 * refined[1].max()
    np.testing.assert_allclose(refined[0], 0.1, atol=1e-5)  # a mean of equal scores
    assert not refined[2].any()


def test_irn_walks_up_to_a_boundary_and_no_further(monkeypatch):
    def module(pixels):
        side = F.max_pool2d(pixels, 4)[:, :1] / 200
        edge = (side - F.pad(side, (1, 0))[..., :-1]).abs() + (side - F.pad(side, (0, 1))[..., 1:]).abs()
        edge[..., :1] = edge[..., -1:] = 0
        return 100 * (2 * (edge > 0.5).float() - 1), torch.zeros(len(pixels), 2, *side.shape[2:])

    monkeypatch.setattr(irn, "network", lambda *_, **__: Planted(4, module))
    scores = seeds(background=0.25)
    refined = create("irn", flip=False)(two_sides(), scores)
    np.testing.assert_array_equal(refined[0], scores[0])
    assert refined.max() == 1.0
    assert refined[1, :, :24].min() > 0.7
    assert refined[1, :, 38:].max() == 0.0
    assert not refined[2].any()


def test_nothing_crosses_a_wall_and_everything_reaches_where_there_is_none():
    grid = np.zeros((1, 13, 17), np.float32)
    grid[0, 2:5, 1:3] = 1
    wall = np.zeros((13, 17), np.float32)
    wall[:, 8] = 1
    walked = IRN().walk(grid, wall)
    assert walked[0, :, 8:].max() == 0
    assert walked[0, :, :8].min() > 0
    assert IRN().walk(grid, np.zeros_like(wall)).min() > 0
    wall[6, 8] = 0.5  # a gap lets a little through
    assert 0 < IRN().walk(grid, wall)[0, :, 9:].max() < 0.1 * walked.max()


@pytest.fixture(scope="module", params=["psa", "irn"])
def untrained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    save_affinity(create_affinity(request.param, "test_resnet", img_size=64), folder)
    return request.param, folder


@pytest.mark.parametrize("shape", [(1, 13, 17), (2, 1, 9), (3, 45, 31), (4, 70, 33)], ids=str)
def test_contract(untrained, shape):
    name, folder = untrained
    rng = np.random.default_rng(sum(shape))
    image, scores = rng.integers(0, 256, (*shape[1:], 3), dtype=np.uint8), rng.random(shape, dtype=np.float32)
    image.setflags(write=False)
    scores.setflags(write=False)
    refiner = create(name, checkpoint=str(folder))
    before = torch.get_rng_state()
    refined = refiner(image, scores)
    assert refined.shape == shape
    assert refined.dtype == np.float32
    assert refined.min() >= 0
    assert refined.max() <= 1
    assert not np.shares_memory(refined, scores)
    np.testing.assert_array_equal(refiner(image, scores), refined)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(DataError):
        refiner(image, scores[:, :-1] if shape[1] > 1 else scores[0])


def test_a_new_training_is_noticed(untrained, tmp_path):
    name, folder = untrained
    rng = np.random.default_rng(0)
    image, scores = rng.integers(0, 256, (H, W, 3), dtype=np.uint8), rng.random((3, H, W), dtype=np.float32)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    refiner = create(name, checkpoint=str(tmp_path))
    first = refiner(image, scores)
    torch.manual_seed(1)
    save_affinity(create_affinity(name, "test_resnet", img_size=64), tmp_path)
    assert np.abs(refiner(image, scores) - first).max() > 1e-6


def test_mistakes(untrained, tmp_path):
    name, _ = untrained
    image, scores = np.zeros((H, W, 3), np.uint8), np.zeros((2, H, W), np.float32)
    with pytest.raises(ConfigError, match="no checkpoint"):
        create(name)(image, scores)
    with pytest.raises(ModelError, match="no network"):
        create(name, checkpoint=str(tmp_path))(image, scores)
    for options in ({"beta": 0.0}, {"steps": -1}, {"radius": 1}, {"img_size": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            create(name, **options)


def follow(field, place, iterations):
    """One pixel's way, in plain Python."""
    height, width = field.shape[1:]
    y, x = map(float, place)
    for _ in range(iterations):
        a, b = int(np.floor(y)), int(np.floor(x))
        c, d = min(a + 1, height - 1), min(b + 1, width - 1)
        v, u = y - a, x - b
        corners = ((a, b, (1 - v) * (1 - u)), (a, d, (1 - v) * u), (c, b, v * (1 - u)), (c, d, v * u))
        move = sum(weight * field[:, i, j].astype(float) for i, j, weight in corners)
        y, x = min(max(y + move[0], 0), height - 1), min(max(x + move[1], 0), width - 1)
    return y, x


def test_centroids_by_brute_force():
    field = np.random.default_rng(3).normal(0, 1.5, (2, 6, 9)).astype(np.float32)
    for iterations in (1, 2):
        centroids = find_centroids(field, iterations=iterations)
        for y in range(6):
            for x in range(9):
                assert np.abs(centroids[:, y, x] - follow(field, (y, x), iterations)).max() <= 0.5 + 1e-3


def planted(height=20, width=33):
    """Displacements to the nearer one of two centroids, and which it is."""
    places = np.mgrid[:height, :width].astype(np.float32)
    centres = np.array([[9, 7], [10, 25]], np.float32)
    left = places[1] < 16
    target = np.where(left, centres[0][:, None, None], centres[1][:, None, None])
    return (target - places).astype(np.float32), left


def test_pixels_of_one_centroid_form_one_group():
    field, left = planted()
    groups = group_by_centroid(find_centroids(0.3 * field), field)
    assert groups.max() == 1
    assert len(np.unique(groups[left])) == 1
    assert groups[0, 0] != groups[0, -1]
    np.testing.assert_array_equal(groups == groups[0, 0], left)
    parts = split_by_group(np.ones((2, *left.shape), np.float32), groups)
    assert parts.shape == (4, *left.shape)
    np.testing.assert_array_equal(parts[:2].sum(0), 1)
    np.testing.assert_array_equal(parts[groups[0, 0]] > 0, left)


def test_two_touching_objects_of_one_class_are_two_instances(monkeypatch):
    field, _ = planted(20, 32)
    boundary = np.zeros((20, 32), np.float32)
    relations = (0.3 * field, boundary, (80, 128), 4)
    monkeypatch.setattr(IRN, "relations", lambda *_: relations)
    monkeypatch.setattr(IRN, "walk", lambda self, grid, boundary: grid)
    maps = np.zeros((2, 80, 128), np.float32)
    maps[1, 16:64, 16:112] = 1
    found = IRN().instances(np.zeros((80, 128, 3), np.uint8), maps)
    assert [each.channel for each in found] == [1, 1]
    assert sum(each.mask.astype(int) for each in found).max() == 1
    for each, columns in zip(sorted(found, key=lambda each: each.mask.argmax()), ((16, 64), (64, 112)), strict=True):
        truth = np.zeros((80, 128), bool)
        truth[16:64, slice(*columns)] = True
        assert (each.mask & truth).sum() / (each.mask | truth).sum() > 0.9
    assert IRN().instances(np.zeros((80, 128, 3), np.uint8), maps[:0]) == []


def test_small_parts_and_background_are_no_instances():
    scores = np.zeros((2, 30, 40), np.float32)
    scores[0, 5:15, 5:15], scores[0, 20, 30], scores[1, 16:28, 2:12] = 1.0, 1.0, 0.2
    found = list(read_instances(scores, channels=2, background=0.25))
    assert len(found) == 1
    assert (found[0].channel, found[0].score, found[0].mask.sum()) == (0, 1.0, 100)
    assert len(list(read_instances(scores, channels=2, background=0.1))) == 2
    assert not list(read_instances(scores[:0], channels=0, background=0.1))
