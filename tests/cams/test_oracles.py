"""Every formula against an independent, slow way to compute it: full graphs, one image and one class at a time."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from wsol import cams
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier, load_classifier

CNNS = ("test_resnet", "test_efficientnet", "resnet18", "small_swin")
GRADIENT = ("gradcam", "gradcampp", "xgradcam", "layercam", "hirescam", "eigengradcam")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_model(name: str, *, num_classes: int = 5) -> Classifier:
    """A classifier whose weights are all random: fresh heads are nearly 0 and fresh last norms may be."""
    if name == "small_swin":
        shape = {"depths": (1, 1, 1, 2), "embed_dim": 16, "num_heads": (1, 1, 2, 4), "strict_img_size": False}
        module = timm.create_model("swin_tiny_patch4_window7_224", num_classes=num_classes, img_size=64, **shape)
        known = Classifier(module.eval(), input_size=(64, 64))
    else:
        known = load_classifier(name, num_classes=num_classes, img_size=64)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in known.module.parameters():
            if parameter.ndim > 1:
                fan = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan**0.5)
            else:
                parameter.add_(0.2 * torch.rand(parameter.shape, generator=generator))
    return known


@pytest.mark.parametrize("name", CNNS)
def test_cam_is_the_linear_head_at_each_position(name):
    known, images = random_model(name), noise(3, 3, 96, 160)
    ids = [[4, 0], [], [2]]
    raw = cams.create("cam", known)(images, ids)
    with torch.no_grad():
        features = known.module.forward_features(images)
        features = features if features.shape[1] > features.shape[3] else features.permute(0, 3, 1, 2)
        logits = known.module(images)
        layer = known.module.get_classifier()
    torch.testing.assert_close(raw.logits, logits, rtol=1e-4, atol=1e-5)
    for at, row in enumerate(ids):
        assert raw.values[at].shape == (len(row), 3, 5)
        for k, label in enumerate(row):
            brute = sum(layer.weight[label, d].item() * features[at, d].numpy() for d in range(features.shape[1]))
            np.testing.assert_allclose(raw.values[at][k], brute, rtol=1e-3, atol=1e-4)
            mean = raw.values[at][k].mean() + layer.bias[label].detach()
            torch.testing.assert_close(mean, logits[at, label], rtol=1e-3, atol=1e-4)


def test_cam_of_a_transformer_that_pools_without_a_norm():
    module = timm.create_model(
        "test_vit", num_classes=4, global_pool="avg", fc_norm=False, dynamic_img_size=True
    ).eval()
    known, images = Classifier(module, input_size=(64, 64)), noise(2, 3, 64, 96)
    raw = cams.create("cam", known)(images, [[1], [3]])
    for at, label in enumerate((1, 3)):
        assert raw.values[at].shape == (1, 4, 6)
        torch.testing.assert_close(raw.values[at].mean() + module.head.bias[label].detach(), raw.logits[at, label])


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "mobilenetv3_small_050"])
def test_cam_refuses_other_heads(name):
    with pytest.raises(ModelError, match=r"average pool and one linear layer .*\(gradcam"):
        cams.create("cam", load_classifier(name, num_classes=3, img_size=64))


def principal_component(features: np.ndarray, *, evidence: np.ndarray | None = None) -> np.ndarray:
    """Power iteration on the covariance of the channels, instead of a singular value decomposition."""
    points = features.reshape(len(features), -1).T
    points = points - points.mean(axis=0)
    direction = np.random.default_rng(0).normal(size=points.shape[1])
    for _ in range(3000):
        direction = points.T @ (points @ direction)
        direction /= np.linalg.norm(direction)
    plane = (points @ direction).reshape(features.shape[1:])
    upside_down = plane.max() < -plane.min() if evidence is None else np.corrcoef(plane.flat, evidence.flat)[0, 1] < 0
    return -plane if upside_down else plane


def naive_gradient_map(known: Classifier, method: str, image: torch.Tensor, label: int, layer: str) -> np.ndarray:
    """One image, one class, the whole graph, loops over channels in float64."""
    seen = {}
    handle = known.module.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.update(out=out))
    score = known.module(image[None])[0, label]
    handle.remove()
    gradient = torch.autograd.grad(score, seen["out"])[0][0]
    activation = seen["out"].detach()[0]
    rows, columns = known.grid(*image.shape[1:])
    if activation.ndim == 2:
        activation = activation[known.prefix_tokens :].T.reshape(-1, rows, columns)
        gradient = gradient[known.prefix_tokens :].T.reshape(-1, rows, columns)
    elif activation.shape[0] < activation.shape[2]:
        activation, gradient = activation.permute(2, 0, 1), gradient.permute(2, 0, 1)
    a, g = activation.double().numpy(), gradient.double().numpy()
    total = np.zeros(a.shape[1:])
    if method == "eigengradcam":
        return principal_component(a * g, evidence=(a * g).sum(axis=0)) * total.size
    for d in range(len(a)):
        if method == "gradcam":
            total += g[d].mean() * a[d]
        elif method == "layercam":
            total += np.maximum(g[d], 0) * a[d]
        elif method == "hirescam":
            total += g[d] * a[d]
        elif method == "xgradcam":
            total += (g[d] * a[d] / (a[d].sum() or 1)).sum() * a[d]
        else:
            alpha = np.zeros_like(g[d])
            for i, j in zip(*np.nonzero(g[d]), strict=True):
                alpha[i, j] = g[d, i, j] ** 2 / (2 * g[d, i, j] ** 2 + g[d, i, j] ** 3 * a[d].sum())
            total += (alpha * np.maximum(g[d], 0)).sum() * a[d]
    # A pool over the positions divides gradients by their number, which the sum of Grad-CAM++ makes good.
    return total if method == "gradcampp" else total * total.size


@pytest.mark.parametrize("method", GRADIENT)
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("test_resnet", None),
        ("test_resnet", "layer3"),
        ("test_convnext", None),
        ("mobilenetv3_small_050", None),
        ("small_swin", None),
        ("test_vit", None),
        ("test_vit2", None),
        ("deit_tiny_distilled_patch16_224", None),
    ],
)
def test_gradient_methods_equal_full_graphs_one_by_one(method, name, layer):
    known, images = random_model(name), noise(2, 3, 64, 96, seed=2)
    ids = [[3, 1], [2]]
    bound = cams.create(method, known, **({} if layer is None else {"layer": layer}))
    raw = bound(images, ids)
    if layer == "layer3":
        assert raw.values[0].shape == (2, 4, 6)
        known.grid = lambda height, width: (4, 6)
    for at, row in enumerate(ids):
        for k, label in enumerate(row):
            expected = naive_gradient_map(known, method, images[at], label, layer or known.layer)
            assert np.abs(expected).max() > 0
            scale = np.abs(expected).max()
            np.testing.assert_allclose(raw.values[at][k] / scale, expected / scale, rtol=0, atol=2e-4)


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_gradcam_before_a_pooled_linear_head_is_cam(name, method):
    known, images = random_model(name), noise(2, 3, 97, 161)
    ids = [[0, 4], [3, 2]]
    for ours, plain in zip(
        cams.create(method, known)(images, ids).values, cams.create("cam", known)(images, ids).values, strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "layer"), [("test_resnet", "layer3"), ("test_vit", None), ("test_convnext", None)])
def test_eigencam_is_the_first_principal_component(name, layer):
    known, images = random_model(name), noise(2, 3, 64, 96, seed=2)
    layer = layer or known.layer
    raw = cams.create("eigencam", known, layer=layer)(images, [[3, 1], [2]])
    seen = {}
    handle = known.module.get_submodule(layer).register_forward_hook(lambda m, a, out: seen.update(out=out))
    with torch.no_grad():
        known.module(images)
    handle.remove()
    for at, row in enumerate(raw.class_ids):
        features = seen["out"][at].double().numpy()
        if features.ndim == 2:
            features = features[1:].T.reshape(-1, 4, 6)
        expected = principal_component(features)
        assert expected.max() >= -expected.min()
        for k in range(len(row)):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(raw.values[at][k] / scale, expected / scale, rtol=0, atol=2e-4)


def test_a_layer_that_the_scores_do_not_see():
    known = random_model("deit_tiny_distilled_patch16_224")
    with pytest.raises(ModelError, match="do not depend on layer 'fc_norm.gone'|no layer 'fc_norm.gone'"):
        cams.create("gradcam", known, layer="fc_norm.gone")

    known.module.unused = nn.Identity()
    with pytest.raises(ModelError, match="do not depend on layer 'unused'"):
        cams.create("gradcam", known, layer="unused")(noise(1, 3, 64, 64), [[0]])


def attention_weights(known: Classifier, image: torch.Tensor) -> list[np.ndarray]:
    """Softmax of queries and keys of every block (heads, N, N), from the inputs of the attention modules."""
    inputs, weights = {}, []
    modules = [known.module.get_submodule(name) for name in known.attention]
    handles = [
        module.register_forward_pre_hook(lambda m, args, at=at: inputs.update({at: args[0]}))
        for at, module in enumerate(modules)
    ]
    with torch.no_grad():
        known.module(image[None])
        for at, module in enumerate(modules):
            x = inputs[at]
            tokens, width = x.shape[1], x.shape[2]
            qkv = module.qkv(x).reshape(tokens, 3, module.num_heads, width // module.num_heads)
            q, k = (module.q_norm(qkv[:, 0]), module.k_norm(qkv[:, 1]))
            logits = torch.einsum("ihd,jhd->hij", q, k) * (width // module.num_heads) ** -0.5
            weights.append(logits.double().softmax(-1).numpy())
    for handle in handles:
        handle.remove()
    return weights


def registers() -> Classifier:
    module = timm.create_model(
        "vit_small_patch14_reg4_dinov2", depth=3, embed_dim=48, num_heads=3, num_classes=5, dynamic_img_size=True
    )
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "qkv.weight" in name:
                parameter.copy_(noise(*parameter.shape) * 0.3)
    return Classifier(module.eval(), name="registers", input_size=(56, 56))


def transformer(name: str) -> Classifier:
    return registers() if name == "registers" else random_model(name)


TRANSFORMERS = [("test_vit", (64, 96)), ("test_vit2", (64, 96)), ("deit_tiny_distilled_patch16_224", (48, 80))]
TRANSFORMERS += [("registers", (42, 70))]


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize(("name", "size"), TRANSFORMERS)
def test_attention_is_a_row_of_the_last_block(name, size, fusion):
    known, images = transformer(name), noise(2, 3, *size)
    raw = cams.create("attention", known, head_fusion=fusion)(images, [[0, 1], [2]])
    prefix = known.prefix_tokens
    for at in range(2):
        fused = getattr(attention_weights(known, images[at])[-1], fusion)(axis=0)
        row = fused[0] if name != "test_vit2" else fused[prefix:].mean(axis=0)
        expected = row[prefix:].reshape(known.grid(*size))
        for plane in raw.values[at]:
            np.testing.assert_allclose(plane, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("fusion", "discard", "start"), [("mean", 0.0, 0), ("max", 0.0, 1), ("min", 0.3, 0), ("mean", 0.9, 2)]
)
@pytest.mark.parametrize(("name", "size"), TRANSFORMERS)
def test_rollout_is_a_product_of_matrices(name, size, fusion, discard, start):
    known, images = transformer(name), noise(2, 3, *size)
    options = {"head_fusion": fusion, "discard_ratio": discard, "start_layer": start}
    raw = cams.create("rollout", known, **options)(images, [[0], [2]])
    prefix = known.prefix_tokens
    for at in range(2):
        product = None
        for weights in attention_weights(known, images[at])[start:]:
            fused = getattr(weights, fusion)(axis=0)
            order = np.argsort(fused, axis=None)[: int(fused.size * discard)]
            fused.reshape(-1)[order] = 0
            mixed = 0.5 * fused + 0.5 * np.eye(len(fused))
            mixed = mixed / mixed.sum(axis=1, keepdims=True)
            product = mixed if product is None else mixed @ product
        row = product[0] if name != "test_vit2" else product[prefix:].mean(axis=0)
        expected = row[prefix:].reshape(known.grid(*size))
        # Rounding decides which of two nearly equal weights is left out.
        np.testing.assert_allclose(raw.values[at][0], expected, rtol=5e-3, atol=1e-6)


def test_class_attention_blocks_give_attention_but_no_rollout():
    known, images = load_classifier("xcit_nano_12_p16_224", num_classes=3), noise(1, 3, 64, 96)
    assert cams.create("attention", known)(images, [[0]]).values[0].shape == (1, 4, 6)
    with pytest.raises(ModelError, match="not between the patches|every token attends"):
        cams.create("rollout", known)(images, [[0]])


@pytest.mark.parametrize("options", [{"discard_ratio": 1.0}, {"start_layer": 6}, {"start_layer": -1}])
def test_rollout_options_out_of_range(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        cams.create("rollout", load_classifier("test_vit", num_classes=3), **options)
