"""Maps of vision transformers against explicit algebra: the blocks written out, N x N matrices, one class at a time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch

import wsol.models.token_heads  # noqa: F401 (enters models into timm)
from wsol import cams
from wsol.cams.head_masks import mass_mask
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier, load_classifier

CLASSES, DEPTH = 4, 3
SMALL = {"depth": DEPTH, "embed_dim": 32, "num_heads": 2, "num_classes": CLASSES, "dynamic_img_size": True}
NAMES = {
    "cls": ("deit_tiny_patch16_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "pooled": ("deit_tiny_patch16_224", {"global_pool": "avg"}),
    "pooled, no class token": ("deit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
    "tscam": ("tscam_small_patch16_224", {}),
    "mctformer v1": ("mctformer_v1_small_patch16_224", {}),
    "mctformer v2": ("mctformer_v2_small_patch16_224", {}),
}
IDS = [[3, 0], [], [2, 1, 1]]
every_model = pytest.mark.parametrize("kind", list(NAMES))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(kind: str) -> Classifier:
    name, options = NAMES[kind]
    module = timm.create_model(name, **SMALL, **options).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # fresh weights are too small to tell one patch from another
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            scale = 1.5 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.2
            parameter.add_(scale * drawn)
    side = 4 * module.patch_embed.patch_size[0]
    return Classifier(module, input_size=(side, side))


def batch(known: Classifier) -> torch.Tensor:
    return noise(len(IDS), 3, 2 * known.stride, 5 * known.stride, seed=1)


class Explicit:
    """A transformer written out in float64, with its attention as tensors that gradients can be taken for."""

    def __init__(self, known: Classifier, image: torch.Tensor) -> None:
        module = copy.deepcopy(known.module).double()
        x = module.norm_pre(module._pos_embed(module.patch_embed(image[None].double())))
        self.attention, self.outputs = [], []
        for block in module.blocks:
            layer, normed = block.attn, block.norm1(x)
            size = x.shape[2] // layer.num_heads
            q, k, v = layer.qkv(normed).reshape(1, -1, 3, layer.num_heads, size).permute(2, 0, 3, 1, 4)
            weights = torch.softmax(q @ k.mT / size**0.5, dim=-1)
            x = x + block.ls1(layer.proj((weights @ v).transpose(1, 2).flatten(2)))
            x = x + block.ls2(block.mlp(block.norm2(x)))
            self.attention.append(weights)
            self.outputs.append(x)
        self.tokens = module.norm(x)
        self.module, self.logits = module, module.forward_head(self.tokens)[0]
        self.grid, self.prefix = known.grid(*image.shape[1:]), known.prefix_tokens

    def matrices(self) -> list[np.ndarray]:
        """Attention (heads, N, N) of every block."""
        return [weights[0].detach().numpy() for weights in self.attention]

    def gradients(self, score: torch.Tensor, of: list[torch.Tensor]) -> list[np.ndarray]:
        return [g[0].numpy() for g in torch.autograd.grad(score, of, retain_graph=True)]

    def to_map(self, tokens: np.ndarray) -> np.ndarray:
        return tokens[self.prefix :].reshape(self.grid)


def output_rows(kind: str, known: Classifier) -> list[int]:
    """Which tokens the head reads; of the distilled model the class token stands for both."""
    tokens = known.prefix_tokens + 10
    if kind.startswith("mctformer"):
        return list(range(CLASSES))
    return list(range(known.prefix_tokens, tokens)) if kind in ("tscam",) or "pooled" in kind else [0]


def check(raw, known: Classifier, images: torch.Tensor, expected) -> None:
    """Compare every map with `expected(explicit, class id)`, each relative to its peak."""
    for at, row in enumerate(IDS):
        explicit = Explicit(known, images[at])
        torch.testing.assert_close(raw.logits[at].double(), explicit.logits.detach(), rtol=1e-3, atol=1e-4)
        assert raw.values[at].shape == (len(row), *explicit.grid)
        for plane, label in zip(raw.values[at], row, strict=True):
            wanted = expected(explicit, label)
            peak = np.abs(wanted).max()
            assert peak > 0
            assert np.ptp(wanted) > 0.01 * peak, "an even map tells nothing"
            np.testing.assert_allclose(plane / peak, wanted / peak, rtol=0, atol=2e-4)


@every_model
@pytest.mark.parametrize("start_layer", [0, 2])
def test_chefer_is_a_product_of_matrices(kind, start_layer):
    known = build(kind)
    images = batch(known)
    rows = output_rows(kind, known)

    def expected(explicit: Explicit, label: int) -> np.ndarray:
        gradients = explicit.gradients(explicit.logits[label], explicit.attention)
        relevance = np.eye(explicit.tokens.shape[1])
        for weights, gradient in list(zip(explicit.matrices(), gradients, strict=True))[start_layer:]:
            relevance = relevance + np.maximum(gradient * weights, 0).mean(0) @ relevance
        return explicit.to_map(relevance[rows].mean(0))

    raw = cams.create("chefer", known, start_layer=start_layer)(images, IDS)
    check(raw, known, images, expected)


@every_model
@pytest.mark.parametrize("start_layer", [0, 2])
def test_legrad_derives_each_block_s_own_score(kind, start_layer):
    known = build(kind)
    images = batch(known)

    def expected(explicit: Explicit, label: int) -> np.ndarray:
        module, each = explicit.module, []
        for weights, output in list(zip(explicit.attention, explicit.outputs, strict=True))[start_layer:]:
            score = module.forward_head(module.norm(output))[0, label]
            each.append(np.maximum(explicit.gradients(score, [weights])[0], 0).mean((0, 1)))
        return explicit.to_map(np.mean(each, axis=0))

    raw = cams.create("legrad", known, start_layer=start_layer)(images, IDS)
    check(raw, known, images, expected)


def test_the_gradient_of_legrad_is_a_finite_difference():
    """More attention to one patch in one head, the rest as it is, changes the block's score by the gradient."""
    known = build("cls")
    images = batch(known)
    explicit, step = Explicit(known, images[0]), 1e-5
    block, x = explicit.module.blocks[2], explicit.outputs[1].detach()
    (gradient,) = explicit.gradients(explicit.logits[1], [explicit.attention[2]])

    def score(weights: torch.Tensor) -> float:
        layer = block.attn
        v = layer.qkv(block.norm1(x)).reshape(1, -1, 3, layer.num_heads, 16).permute(2, 0, 3, 1, 4)[2]
        y = x + layer.proj((weights @ v).transpose(1, 2).flatten(2))
        return explicit.module.forward_head(explicit.module.norm(y + block.mlp(block.norm2(y))))[0, 1].item()

    for head, row, column in ((0, 0, 3), (1, 0, 7)):
        more = explicit.attention[2].detach().clone()
        more[0, head, row, column] += step
        less = more.clone()
        less[0, head, row, column] -= 2 * step
        np.testing.assert_allclose((score(more) - score(less)) / (2 * step), gradient[head, row, column], rtol=1e-4)


@pytest.mark.parametrize("kind", ["cls", "distilled", "registers", "pooled", "pooled, no class token", "tscam"])
def test_tscam_couples_patch_scores_with_attention(kind):
    known = build(kind)
    images = batch(known)
    rows = [0] if known.prefix_tokens else list(range(10))

    def semantic(explicit: Explicit, label: int) -> np.ndarray:
        module, patches = explicit.module, explicit.tokens[0, explicit.prefix :].detach()
        if kind == "tscam":
            height, width = explicit.grid
            padded = np.zeros((patches.shape[1], height + 2, width + 2))
            padded[:, 1:-1, 1:-1] = patches.T.reshape(-1, height, width).numpy()
            kernel, scores = module.head.weight[label].detach().numpy(), np.zeros(explicit.grid)
            for i, j in np.ndindex(height, width):
                scores[i, j] = (kernel * padded[:, i : i + 3, j : j + 3]).sum() + module.head.bias[label].item()
            np.testing.assert_allclose(scores.mean(), explicit.logits[label].item(), rtol=1e-6)
            return scores
        heads = [module.head, module.head_dist] if kind == "distilled" else [module.head]
        normed = module.fc_norm(patches)
        scores = [(normed @ head.weight[label] + head.bias[label]).detach().numpy() for head in heads]
        return np.mean(scores, axis=0).reshape(explicit.grid)

    def expected(explicit: Explicit, label: int) -> np.ndarray:
        total = sum(weights.mean(0)[rows].mean(0) for weights in explicit.matrices())
        return explicit.to_map(total) / DEPTH * semantic(explicit, label)

    check(cams.create("tscam", known)(images, IDS), known, images, expected)


@pytest.mark.parametrize("kind", ["mctformer v1", "mctformer v2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"last_layers": 1}, {"affinity": False, "last_layers": 2}, {"patch_cam": False, "affinity": False}],
)
def test_mctformer_reads_the_token_of_each_class(kind, options):
    known = build(kind)
    images = batch(known)

    def expected(explicit: Explicit, label: int) -> np.ndarray:
        matrices = explicit.matrices()[-options.get("last_layers", DEPTH) :]
        looked = np.mean([weights.mean(0)[label, CLASSES:] for weights in matrices], axis=0)
        if kind.endswith("v2") and options.get("patch_cam", True):
            patches = explicit.tokens[:, CLASSES:].mT.reshape(1, -1, *explicit.grid)
            looked = looked * explicit.module.head(patches)[0, label].relu().flatten().detach().numpy()
        if options.get("affinity", True):
            spread = np.zeros_like(looked)
            for weights in explicit.matrices():
                for i in range(len(looked)):
                    spread[i] += (weights.mean(0)[CLASSES + i, CLASSES:] * looked).sum() / DEPTH
            looked = spread
        return looked.reshape(explicit.grid)

    check(cams.create("mctformer", known, **options)(images, IDS), known, images, expected)


def greedy_mask(weights: np.ndarray, mass: float) -> np.ndarray:
    """Take the strongest patch until the mass is reached."""
    mask, held, share = np.zeros(len(weights), dtype=bool), 0.0, weights / weights.sum()
    while held < mass:
        best = int(np.argmax(np.where(mask, -1, share)))
        mask[best] = True
        held += share[best]
    return mask


@pytest.mark.parametrize("kind", ["cls", "distilled", "registers", "pooled", "mctformer v1"])
@pytest.mark.parametrize(("mass", "head"), [(0.9, None), (0.5, 1), (0.31, 0)])
def test_head_masks_hold_the_mass(kind, mass, head):
    known = build(kind)
    images = batch(known)
    rows = output_rows(kind, known)
    raw = cams.create("head_masks", known, mass=mass, head=head)(images, IDS)
    for at, row in enumerate(IDS):
        explicit = Explicit(known, images[at])
        looked = explicit.matrices()[-1][:, rows].mean(1)[:, explicit.prefix :]
        masks = np.stack([greedy_mask(weights, mass) for weights in looked])
        expected = masks.mean(0) if head is None else masks[head]
        for plane in raw.values[at]:
            np.testing.assert_array_equal(plane, expected.reshape(explicit.grid).astype(np.float32))
        assert len(raw.values[at]) == len(row)


@pytest.mark.parametrize("shape", [(3, 5), (2, 7, 3), (2, 3, 1, 4)])
@pytest.mark.parametrize("mass", [0.05, 0.6, 1.0])
def test_a_mask_is_the_smallest_that_holds_the_mass(shape, mass):
    attention = noise(*shape, seed=3).exp()
    masks = mass_mask(attention, mass).flatten(0, -3).flatten(1) if len(shape) > 2 else mass_mask(attention, mass)
    masks, flat = masks.reshape(-1, shape[-1] * shape[-2]), attention.reshape(-1, shape[-1] * shape[-2])
    for mask, weights in zip(masks, flat / flat.sum(1, keepdim=True), strict=True):
        held = weights[mask].sum()
        assert held >= mass - 1e-5
        assert held - weights[mask].min() < mass + 1e-5, "one patch less would not do"
        assert mask.all() or weights[mask].min() >= weights[~mask].max()


ROWS = {"auto": [0], "cls": [0], "dist": [1], "patches": list(range(2, 12))}


@pytest.mark.parametrize("token", list(ROWS))
def test_tokens_to_start_from(token):
    known = build("distilled")
    images = batch(known)
    rows, planes = ROWS[token], {}
    for method in ("attention", "rollout", "chefer", "head_masks", "tscam"):
        planes[method] = cams.create(method, known, token=token)(images, [[1], [1], [1]]).values[0][0]
    explicit = Explicit(known, images[0])
    looked = explicit.matrices()[-1].mean(0)[rows].mean(0)
    np.testing.assert_allclose(planes["attention"], explicit.to_map(looked), rtol=1e-3, atol=1e-6)
    product, relevance = np.eye(12), np.eye(12)
    gradients = explicit.gradients(explicit.logits[1], explicit.attention)
    for weights, gradient in zip(explicit.matrices(), gradients, strict=True):
        product = (0.5 * weights.mean(0) + 0.5 * np.eye(12)) @ product
        relevance = relevance + np.maximum(gradient * weights, 0).mean(0) @ relevance
    np.testing.assert_allclose(planes["rollout"], explicit.to_map(product[rows].mean(0)), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(planes["chefer"], explicit.to_map(relevance[rows].mean(0)), rtol=1e-3, atol=1e-5)
    masks = [greedy_mask(head[rows].mean(0)[2:], 0.9) for head in explicit.matrices()[-1]]
    np.testing.assert_array_equal(planes["head_masks"], np.mean(masks, axis=0).reshape(2, 5).astype(np.float32))
    looked = [weights.mean(0)[rows].mean(0) for weights in explicit.matrices()]
    module, patches = explicit.module, explicit.tokens[0, 2:]
    scores = [(patches @ head.weight[1] + head.bias[1]).detach().numpy() for head in (module.head, module.head_dist)]
    wanted = explicit.to_map(np.mean(looked, axis=0)) * np.mean(scores, axis=0).reshape(2, 5)
    np.testing.assert_allclose(planes["tscam"], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["chefer", "legrad"])
def test_one_forward_and_one_backward_a_class_rank(method, monkeypatch):
    known = build("cls")
    images = batch(known)
    calls, plain = {"forward": 0, "backward": 0}, torch.autograd.grad

    def grad(*args, **options):
        calls["backward"] += 1
        return plain(*args, **options)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    known.module.blocks[0].register_forward_pre_hook(lambda m, a: calls.update(forward=calls["forward"] + 1))
    cams.create(method, known)(images, IDS)
    most = max(len(row) for row in IDS)
    assert calls == {"forward": 1, "backward": most if method == "chefer" else most * DEPTH}


def test_nothing_is_recorded_below_the_first_block_that_takes_part(monkeypatch):
    known = build("cls")
    images = batch(known)
    seen = {}
    for at, block in enumerate(known.module.blocks):
        block.register_forward_hook(lambda m, a, out, at=at: seen.update({at: (out.requires_grad, m.attn.fused_attn)}))
    fused = known.module.blocks[0].attn.fused_attn
    cams.create("chefer", known, start_layer=2)(images, IDS)
    assert seen == {0: (False, fused), 1: (False, fused), 2: (True, False)}


@pytest.mark.parametrize(
    ("method", "kind", "options", "message"),
    [
        ("chefer", "cls", {"start_layer": 3}, r"start_layer must be in \[0, 2\], got 3"),
        ("legrad", "cls", {"start_layer": -1}, "start_layer"),
        ("head_masks", "cls", {"mass": 0.0}, r"mass must be in \(0, 1\]"),
        ("head_masks", "cls", {"head": 2}, r"head must be in \[0, 1\], got 2"),
        ("mctformer", "mctformer v1", {"last_layers": 4}, r"last_layers must be in \[1, 3\]"),
        ("attention", "cls", {"token": "dist"}, "has no token 'dist'"),
        ("rollout", "pooled, no class token", {"token": "cls"}, "has no token 'cls'"),
        ("attention", "cls", {"token": "register"}, "token"),
    ],
)
def test_options_out_of_range(method, kind, options, message):
    with pytest.raises(ConfigError, match=message):
        cams.create(method, build(kind), **options)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_models_without_attention_between_all_patches_are_refused(name):
    known = load_classifier(name, num_classes=3, img_size=64)
    for method in ("attention", "rollout", "chefer", "legrad", "tscam", "mctformer", "head_masks"):
        with pytest.raises(ModelError, match=r"needs attention between all patches.*\(cam, gradcam and layercam work"):
            cams.create(method, known)


def test_models_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match=r"one class token for each class .*mctformer_v1_small_patch16_224"):
        cams.create("mctformer", build("cls"))
    with pytest.raises(ModelError, match="linear head that reads tokens"):
        cams.create("tscam", build("mctformer v1"))
    with pytest.raises(ModelError, match="a row of blocks, a norm and a head"):
        cams.create("legrad", load_classifier("xcit_nano_12_p16_224", num_classes=3, img_size=64))
    for method in ("chefer", "legrad"):
        with pytest.raises(ModelError, match="no class scores"):
            cams.create(method, load_classifier("test_vit", num_classes=0))


def test_an_ordinary_transformer_of_one_class_has_a_token_for_it():
    module = timm.create_model("deit_tiny_patch16_224", **{**SMALL, "num_classes": 1}).eval()
    known, images = Classifier(module, input_size=(64, 64)), noise(1, 3, 32, 80)
    plane = cams.create("mctformer", known, last_layers=1, affinity=False)(images, [[0]]).values[0]
    torch.testing.assert_close(plane, cams.create("attention", known)(images, [[0]]).values[0])
