"""Input gradients against finite differences, and SmoothGrad against its definition."""

from __future__ import annotations

import pytest
import timm
import torch

from wsol import cams
from wsol.errors import ConfigError
from wsol.models.classifier import Classifier


def model(name: str = "test_vit") -> Classifier:
    torch.manual_seed(1)
    options = {"dynamic_img_size": True} if "vit" in name else {}
    module = timm.create_model(name, num_classes=5, **options).eval()
    torch.nn.init.normal_(module.get_classifier().weight)
    return Classifier(module, input_size=(48, 80))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_saliency_is_the_largest_change_of_the_score_over_the_colours(name):
    known, images = model(name), noise(2, 3, 48, 80)
    raw = cams.create("saliency", known)(images, [[4, 1], [2]])
    assert raw.values[0].shape == (2, 48, 80)
    module = known.module.double()
    step = 1e-6
    for at, k, label, row, column in ((0, 0, 4, 7, 60), (0, 1, 1, 20, 3), (1, 0, 2, 47, 79)):
        changes = []
        for colour in range(3):
            moved = images[at : at + 1].double().repeat(2, 1, 1, 1)
            moved[0, colour, row, column] += step
            moved[1, colour, row, column] -= step
            with torch.no_grad():
                scores = module(moved)[:, label]
            changes.append(abs(float(scores[0] - scores[1])) / (2 * step))
        assert raw.values[at][k, row, column].item() == pytest.approx(max(changes), rel=1e-3)


def test_smoothgrad_is_the_mean_gradient_over_noisy_images():
    known, images = model(), noise(2, 3, 48, 80)
    images[1] *= 3
    raw = cams.create("saliency", known, samples=3, noise=0.2, seed=9)(images, [[4, 1], [2]])
    generator = torch.Generator().manual_seed(9)
    drawn = [torch.randn(3, 48, 80, generator=generator) for _ in range(3)]
    for at, row in enumerate(raw.class_ids):
        spread = 0.2 * (images[at].max() - images[at].min())
        for k, label in enumerate(row):
            gradients = []
            for one in drawn:
                pixels = (images[at] + spread * one)[None].requires_grad_()
                gradients.append(torch.autograd.grad(known.module(pixels)[0, label], pixels)[0][0])
            expected = (sum(gradients) / 3).abs().amax(0)
            torch.testing.assert_close(raw.values[at][k], expected, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(raw.logits, known.module(images), rtol=1e-4, atol=1e-5)


def test_smoothgrad_repeats_itself_and_follows_its_seed():
    known, images = model("test_resnet"), noise(1, 3, 48, 80)
    first, again, other = (
        cams.create("saliency", known, samples=2, seed=seed)(images, [[1]]).values[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("options", [{"samples": -1}, {"noise": -0.1}])
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match="must not be negative"):
        cams.create("saliency", model(), **options)
