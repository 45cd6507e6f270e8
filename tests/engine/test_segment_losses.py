"""Losses on incomplete masks against loops over pixels, exact sums over all pairs of them, and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from wsol.engine.losses_segment import _filter, dense_energy, hard_pixel_loss, masked_cross_entropy


def scene(seed, size=(23, 29), noise=6.0):
    """Blocks of colour with a little noise."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((8, 8, 1)))[: size[0], : size[1]]
    return np.clip(blocks + rng.normal(0, noise, (*size, 3)), 0, 255).astype(np.uint8)


def by_pixels(logits, labels, threshold, keep):
    found = []
    for b, y, x in np.argwhere(labels.numpy() != 255):
        label = int(labels[b, y, x])
        probability = torch.softmax(logits[b, :, y, x], 0)[label]
        found.append((float(probability), -torch.log(probability)))
    if not found:
        return torch.zeros(())
    found.sort(key=lambda item: item[0])
    least = max(1, round(keep * len(found)))
    chosen = [loss for at, (probability, loss) in enumerate(found) if at < least or probability <= threshold]
    return torch.stack(chosen).mean()


@given(seed=st.integers(0, 10**6), threshold=st.floats(0.05, 0.95), keep=st.floats(0.0, 1.0))
def test_hard_pixels(seed, threshold, keep):
    numbers = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 3, 5, 7, generator=numbers)
    labels = torch.randint(0, 3, (2, 5, 7), generator=numbers, dtype=torch.uint8)
    labels[0, :2] = 255
    found = hard_pixel_loss(logits, labels, threshold=threshold, keep=keep)
    torch.testing.assert_close(found, by_pixels(logits, labels, threshold, keep), rtol=1e-4, atol=1e-5)


def test_hard_pixels_of_nothing_and_of_everything():
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    hard_pixel_loss(logits, torch.full((1, 4, 5), 255)).backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    labels = torch.randint(0, 3, (1, 4, 5))
    torch.testing.assert_close(hard_pixel_loss(logits, labels, keep=1.0), F.cross_entropy(logits, labels))


def test_scribbles_are_pixels_with_a_label():
    logits, labels = torch.randn(1, 4, 6, 9), torch.full((1, 6, 9), 255)
    labels[0, 2, 1:7], labels[0, 5, 3] = 1, 3
    marked = [(2, x, 1) for x in range(1, 7)] + [(5, 3, 3)]
    expected = torch.stack([-F.log_softmax(logits[0, :, y, x], 0)[label] for y, x, label in marked]).mean()
    torch.testing.assert_close(masked_cross_entropy(logits, labels), expected)


@pytest.mark.parametrize(("sigma_rgb", "sigma_xy"), [(15.0, 100.0), (30.0, 10.0)])
def test_the_filter_is_a_gaussian_up_to_its_scale(sigma_rgb, sigma_xy):
    image, (height, width) = scene(0), (23, 29)
    shares = np.random.default_rng(1).dirichlet(np.ones(4), (height, width)).transpose(2, 0, 1).astype(np.float32)
    rows, columns = np.mgrid[:height, :width]
    features = np.concatenate([np.stack([columns, rows], -1) / sigma_xy, image / sigma_rgb], -1).reshape(-1, 5)
    pairs = np.exp(-((features[:, None] - features[None]) ** 2).sum(-1) / 2)
    exact = (shares.reshape(4, -1) @ pairs).ravel()
    found = _filter(shares, image.transpose(2, 0, 1).astype(np.float32), sigma_rgb, sigma_xy).ravel()
    assert np.corrcoef(exact, found)[0, 1] > 0.95
    assert 0.45 < (exact * found).sum() / (exact**2).sum() < 0.65


def test_labels_that_follow_the_colours_have_the_least_energy():
    image = np.zeros((1, 24, 31, 3), dtype=np.uint8)
    image[:, :, 15:] = 200
    inside = torch.ones(1, 24, 31, dtype=torch.bool)

    def energy(border):
        shares = torch.zeros(1, 2, 24, 31)
        shares[:, 0, :, :border], shares[:, 1, :, border:] = 1, 1
        return float(dense_energy(shares, image, inside, scale=1.0))

    energies = {border: energy(border) for border in range(9, 22)}
    assert min(energies, key=energies.get) == 15


@pytest.mark.parametrize("seed", range(3))
def test_its_gradient(seed):
    images = np.stack([scene(seed), scene(seed + 10)])
    inside = torch.ones(2, 23, 29, dtype=torch.bool)
    inside[:, :4] = False
    logits = torch.randn(2, 3, 23, 29, generator=torch.Generator().manual_seed(seed)).requires_grad_()

    def energy(z):
        return dense_energy(z.softmax(1), images, inside, sigma_xy=20.0)

    energy(logits).backward()
    direction = logits.grad / logits.grad.norm()
    with torch.no_grad():
        measured = (energy(logits + direction) - energy(logits - direction)) / 2
    assert float(measured) == pytest.approx(float(logits.grad.norm()), rel=0.02)
    assert not logits.grad[:, :, :2].any()  # padding
    assert energy(logits).dtype == torch.float32
