"""Maps equal those of pytorch-grad-cam and torchcam for the same model, layer and class, by the same formula."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from wsol import cams
from wsol.models.classifier import Classifier

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
torchcam = pytest.importorskip("torchcam.methods")

GRADCAM_PEERS = {
    "gradcam": "GradCAM",
    "gradcampp": "GradCAMPlusPlus",
    "xgradcam": "XGradCAM",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
}
TORCHCAM_PEERS = {"gradcam": "GradCAM", "xgradcam": "XGradCAM", "layercam": "LayerCAM", "scorecam": "ScoreCAM"}
SIZES = {"test_resnet": (65, 97), "test_vit": (80, 112)}
LAYERS = [("test_resnet", "layer4"), ("test_resnet", "layer3"), ("test_vit", "blocks.1.norm1")]


def random_model(name: str) -> Classifier:
    """All weights random: fresh heads are nearly 0, and fresh last norms may be."""
    options = {"depth": 2, "dynamic_img_size": True} if name == "test_vit" else {}
    module = timm.create_model(name, num_classes=5, **options).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator))
    return Classifier(module, input_size=(64, 64))


def noise(name: str, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *SIZES[name], generator=torch.Generator().manual_seed(1))


def reshaping(known: Classifier, images: torch.Tensor):
    """What turns tokens into maps for the peers, which do not know the grid."""
    rows, columns = known.grid(*images.shape[2:])

    def transform(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))

    return transform if known.kind == "tokens" else None


def raw_of_grad_cam(kind: str, known: Classifier, images: torch.Tensor, labels: list[int], *layers: str, **options):
    """The maps (B, h, w) of each layer before pytorch-grad-cam rectifies, scales and enlarges them."""
    targets = [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(label) for label in labels]
    modules = [known.module.get_submodule(layer) for layer in layers]
    peer = getattr(pytorch_grad_cam, kind)(known.module, modules, reshape_transform=reshaping(known, images))
    for name, value in options.items():
        setattr(peer, name, value)
    original, seen = peer.get_cam_image, []

    def listen(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    peer.get_cam_image = listen
    with peer:
        peer(images, targets)
    return seen


def check(ours: torch.Tensor, theirs: np.ndarray, *, sign: bool = True) -> None:
    one, two = ours.numpy(), np.asarray(theirs)
    assert one.shape == two.shape
    assert np.ptp(two) > 0
    one, two = one / np.abs(one).max(), two / np.abs(two).max()
    if not sign and (one * two).sum() < 0:
        two = -two
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("name", "layer"), LAYERS)
@pytest.mark.parametrize("method", GRADCAM_PEERS)
def test_as_pytorch_grad_cam(method, name, layer):
    known, images = random_model(name), noise(name)
    options = {"eps": 1e-6} if method == "gradcampp" else {}
    ours = cams.create(method, known, layer=layer, **options)(images, [[4, 2], [3]])
    (first,) = raw_of_grad_cam(GRADCAM_PEERS[method], known, images, [4, 3], layer)
    (second,) = raw_of_grad_cam(GRADCAM_PEERS[method], known, images, [2, 3], layer)
    for mine, theirs in ((ours.values[0][0], first[0]), (ours.values[0][1], second[0]), (ours.values[1][0], first[1])):
        check(mine, theirs, sign="eigen" not in method)


@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_gradcampp_needs_no_eps_where_gradients_are_large(name, layer):
    known, images = random_model(name), noise(name)
    known.module.get_classifier().weight.data.mul_(10_000)
    ours = cams.create("gradcampp", known, layer=layer)(images, [[4], [3]])
    (theirs,) = raw_of_grad_cam("GradCAMPlusPlus", known, images, [4, 3], layer)
    for at in range(2):
        check(ours.values[at][0], theirs[at])


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_ablationcam_as_pytorch_grad_cam(layer):
    known, images = random_model("test_resnet"), noise("test_resnet")
    with torch.no_grad():
        labels = known.module(images).argmax(1).tolist()
    ours = cams.create("ablationcam", known, layer=layer)(images, [[label] for label in labels])
    (theirs,) = raw_of_grad_cam("AblationCAM", known, images, labels, layer)
    for at in range(2):
        assert ours.logits[at, labels[at]] > 0
        check(ours.values[at][0], theirs[at])


@pytest.mark.parametrize(("name", "layer"), LAYERS)
@pytest.mark.parametrize("method", TORCHCAM_PEERS)
def test_as_torchcam(method, name, layer):
    known, images = random_model(name), noise(name)
    ours = cams.create(method, known, layer=layer)(images, [[4, 2], [3]])
    kind = getattr(torchcam, TORCHCAM_PEERS[method])
    with kind(known.module, layer, reshape_transform=reshaping(known, images)) as peer:
        peer._relu = False
        first = peer(class_idx=[4, 3], scores=known.module(images), normalized=False)[0].detach()
        second = peer(class_idx=[2, 3], scores=known.module(images), normalized=False)[0].detach()
    for mine, theirs in ((ours.values[0][0], first[0]), (ours.values[0][1], second[0]), (ours.values[1][0], first[1])):
        check(mine, theirs)


def test_cam_as_torchcam():
    known, images = random_model("test_resnet"), noise("test_resnet")
    ours = cams.create("cam", known)(images, [[4], [3]])
    with torchcam.CAM(known.module, "layer4", "fc") as peer, torch.no_grad():
        known.module(images)
        theirs = peer(class_idx=[4, 3], normalized=False)[0]
    for at in range(2):
        check(ours.values[at][0], theirs[at])


@pytest.mark.parametrize("method", ["gradcam", "layercam", "hirescam", "xgradcam"])
def test_several_layers_are_fused_as_pytorch_grad_cam_does(method):
    known, images, layers = random_model("test_resnet"), noise("test_resnet"), ("layer2", "layer4", "layer3")
    ours = cams.create(method, known, layer=layers)(images, lambda logits: logits.topk(1).indices.tolist())
    shape = ours.values[0].shape[1:]
    labels = [row[0] for row in ours.class_ids]
    targets = [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(label) for label in labels]
    modules = [known.module.get_submodule(layer) for layer in layers]
    with getattr(pytorch_grad_cam, GRADCAM_PEERS[method])(known.module, modules) as peer:
        peer.get_target_width_height = lambda images: shape[::-1]
        theirs = peer(images, targets)
    for at in range(2):
        plane = ours.values[at][0].numpy()
        assert plane.min() >= 0
        assert plane.max() <= 1
        np.testing.assert_allclose((plane - plane.min()) / np.ptp(plane), theirs[at], rtol=0, atol=1e-4)
