"""The `layer` option: one layer or several, fused, in one forward pass and one backward pass a class."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from wsol import cams
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier

METHODS = ("gradcam", "gradcampp", "xgradcam", "layercam", "hirescam", "eigengradcam", "eigencam", "scorecam")
METHODS = (*METHODS, "ablationcam")
LAYERS = ("layer4", "layer2", "layer3")


@pytest.fixture
def known() -> Classifier:
    torch.manual_seed(1)
    return Classifier(timm.create_model("test_resnet", num_classes=5).eval(), input_size=(64, 64))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(1))


def count(monkeypatch, known: Classifier) -> dict[str, int]:
    """Count forward passes through the first layer, images in them, and backward passes."""
    calls = {"forward": 0, "images": 0, "backward": 0}

    def forward(module, args):
        calls["forward"] += 1
        calls["images"] += len(args[0])

    known.module.conv1.register_forward_pre_hook(forward)
    plain = torch.autograd.grad

    def backward(*args, **kwargs):
        calls["backward"] += 1
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", backward)
    return calls


@pytest.mark.parametrize("method", METHODS)
def test_fused_maps_are_the_mean_of_the_layers_scaled_maps(method, known, images):
    ids = [[4, 0], []]
    raw = cams.create(method, known, layer=LAYERS)(images, ids)
    size = raw.values[0].shape[1:]
    total = torch.zeros(2, *size)
    for layer in LAYERS:
        maps = cams.create(method, known, layer=layer)(images, ids).values[0]
        for k, plane in enumerate(maps.clamp(min=0)):
            span = (plane.max() - plane.min()).item() or 1.0
            scaled = (plane - plane.min()) / span
            total[k] += F.interpolate(scaled[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    assert tuple(size) == (9, 13)
    torch.testing.assert_close(raw.values[0], total / len(LAYERS), rtol=0, atol=1e-4)
    assert raw.values[1].shape == (0, *size)


def test_one_name_in_a_list_is_that_layer(known, images):
    plain = cams.create("gradcam", known, layer="layer3")(images, [[1], [2]])
    listed = cams.create("gradcam", known, layer=["layer3"])(images, [[1], [2]])
    for one, two in zip(plain.values, listed.values, strict=True):
        assert torch.equal(one, two)


def test_one_forward_and_one_backward_a_class_for_all_layers_and_images(monkeypatch, known, images):
    bound, calls = cams.create("layercam", known, layer=LAYERS), count(monkeypatch, known)
    bound(images, [[0, 1, 2, 3], [4]])
    assert calls == {"forward": 1, "images": 2, "backward": 4}


def test_eigencam_takes_no_gradient(monkeypatch, known, images):
    bound, calls = cams.create("eigencam", known), count(monkeypatch, known)
    bound(images, [[0, 1, 2, 3], [4]])
    assert calls == {"forward": 1, "images": 2, "backward": 0}


def test_scorecam_shares_its_passes_between_classes(monkeypatch, known, images):
    bound, calls = cams.create("scorecam", known, batch_size=40), count(monkeypatch, known)
    bound(images, [[0, 1, 2, 3], []])
    assert calls == {"forward": 1 + 3, "images": 2 + 96, "backward": 0}, "96 channels; nothing for the second image"


@pytest.mark.parametrize(("layer", "forward"), [("layer4", 1), ("layer3", 1 + 5)])
def test_ablationcam_runs_only_what_follows_the_layer(monkeypatch, known, images, layer, forward):
    bound, calls = cams.create("ablationcam", known, batch_size=40, layer=layer), count(monkeypatch, known)
    bound(images, [[0, 1, 2, 3], []])
    # 192 channels in layer3: five passes of up to 40, each with the one image before that layer.
    assert calls == {"forward": forward, "images": 2 + forward - 1, "backward": 0}


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_are_not_there(method, known):
    with pytest.raises(ModelError, match=r"no layer 'layer5' .*did you mean 'layer4'|no layer 'layer5' .*'layer"):
        cams.create(method, known, layer=["layer4", "layer5"])
    for nothing in ("", []):
        with pytest.raises(ConfigError, match="no layer to look at"):
            cams.create(method, known, layer=nothing)
    with pytest.raises(ConfigError, match="option 'layer' must be"):
        cams.create(method, known, layer=4)


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_have_no_part_in_the_scores(method, known, images):
    known.module.unused = torch.nn.Identity()
    with pytest.raises(ModelError, match="do not depend on layer 'unused'"):
        cams.create(method, known, layer=["layer4", "unused"])(images, [[1], [2]])


@pytest.mark.parametrize(
    ("name", "layer", "axis"),
    [
        ("test_convnext", "stages.2.blocks.1.norm", 3),
        ("test_convnext", "stages.2.blocks.1.conv_dw", 1),
        ("test_vit", "patch_embed", 3),
        ("swin", "patch_embed.proj", 1),
        ("swin", "layers.2", 3),
    ],
)
def test_layers_may_have_their_channels_anywhere(name, layer, axis, images):
    shape = {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 4), "img_size": (64, 96)}
    options = {"test_convnext": {}, "test_vit": {"dynamic_img_size": True}, "swin": shape}[name]
    name = "swin_tiny_patch4_window7_224" if name == "swin" else name
    torch.manual_seed(1)
    known = Classifier(timm.create_model(name, num_classes=5, **options).eval(), input_size=(64, 96))
    torch.nn.init.normal_(known.module.get_classifier().weight)
    seen, images = [], images[:, :, :64, :96]
    handle = known.module.get_submodule(layer).register_forward_hook(lambda *given: seen.append(given[2]))
    scores = known.module(images)
    handle.remove()
    gradient = torch.autograd.grad(scores[0, 4] + scores[1, 2], seen[0])[0]
    expected = (gradient.relu() * seen[0]).sum(axis).detach()
    raw = cams.create("layercam", known, layer=layer)(images, [[4], [2]])
    got = torch.stack([planes[0] for planes in raw.values]) / expected[0].numel()
    torch.testing.assert_close(got / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_layers_that_see_windows_are_refused(method, images):
    shape = {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 1, 2, 4), "img_size": (64, 96)}
    module = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **shape).eval()
    bound = cams.create(method, Classifier(module, input_size=(64, 96)), layer="layers.0.blocks.0.attn.attn_drop")
    with pytest.raises(ModelError, match=r"gives \d+ activations for 2 images .*choose another layer"):
        bound(images[:, :, :64, :96], [[1], [2]])


def test_a_layer_that_runs_but_does_not_reach_the_scores(known, images):
    class Aside(torch.nn.Module):
        def __init__(self, stage):
            super().__init__()
            self.stage, self.side = stage, torch.nn.LazyConv2d(8, 1)

        def forward(self, x):
            self.side(x)
            return self.stage(x)

    known.module.layer4 = Aside(known.module.layer4)
    with pytest.raises(ModelError, match=r"do not depend on layer 'layer4\.side'"):
        cams.create("gradcam", known, layer=["layer3", "layer4.side"])(images, [[1], [2]])


def test_a_model_whose_target_layer_is_not_known(known):
    known.layer = None
    with pytest.raises(ModelError, match=r"cannot tell the target layer .*name it"):
        cams.create("eigencam", known)
    assert cams.create("eigencam", known, layer="layer4").method.layers(known) == ("layer4",)
