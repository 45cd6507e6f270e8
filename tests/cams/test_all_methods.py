"""What every registered map method keeps, whoever wrote it: found by name, so a new method is tested at once."""

from __future__ import annotations

import copy
import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn

from wsol import cams
from wsol.cams.base import BoundMethod, MapMethod, RawMaps
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier, load_classifier
from wsol.ops.normalize import minmax, relu_max

CLASSES = 6
METHODS = cams.CAMS.names()
# Input sizes (h, w): a CNN, transformers with 1, 2 and 5 prefix tokens, one that pools, a hierarchical one, CLIP, and
# the transformers with heads for localization.
SIZES = {
    "test_resnet": (65, 97),
    "test_vit": (48, 80),
    "distilled": (80, 48),
    "registers": (42, 70),
    "pooled": (48, 80),
    "swin": (64, 96),
    "clip": (48, 80),
    "tscam": (48, 80),
    "mctformer": (48, 80),
    "dynamic": (48, 80),
}
# Options without which a method would be slow or cannot work on these tiny models.
OPTIONS: dict[str, dict[str, object]] = {"scorecam": {"batch_size": 96}, "ablationcam": {"batch_size": 96}}
# The map of a class depends on the other classes of the image.
COMPETING = {"clip_es"}


@functools.cache
def shared(model: str) -> Classifier:
    """A model for tests that leave it as it was, and do not look at whether they did."""
    torch.manual_seed(2)
    known = _build(model)
    # Fresh heads and position embeddings are nearly 0, and fresh last norms may be.
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in known.module.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.add_(drawn / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1 * drawn)
    return known


def _build(model: str) -> Classifier:
    size, shape = {"num_classes": CLASSES, "dynamic_img_size": True}, {"depth": 2, "embed_dim": 48, "num_heads": 3}
    if model == "registers":
        module = timm.create_model("vit_small_patch14_reg4_dinov2", **shape, **size)
        return Classifier(module.eval(), input_size=(42, 42))
    if model == "distilled":
        return Classifier(timm.create_model("deit_tiny_distilled_patch16_224", **shape, **size).eval())
    if model == "pooled":
        return Classifier(timm.create_model("test_vit2", depth=2, **size).eval())
    if model == "swin":
        shape = {"depths": (1, 1, 1, 2), "embed_dim": 16, "num_heads": (1, 1, 2, 4), "strict_img_size": False}
        module = timm.create_model("swin_tiny_patch4_window7_224", num_classes=CLASSES, img_size=64, **shape)
        return Classifier(module.eval(), input_size=(64, 64))
    if model == "dynamic":
        from wsol.models.dynamic_tokens import DynamicTokens

        return Classifier(DynamicTokens(timm.create_model("deit_tiny_patch16_224", **shape, **size).eval()))
    if model == "clip":
        from wsol.models.clip import ClipViT, set_texts

        tower = ClipViT(img_size=(48, 48), patch_size=16, width=32, depth=3, num_heads=2, embed_dim=16, logit_scale=10)
        texts = torch.randn(CLASSES + 3, 16, generator=torch.Generator().manual_seed(5))
        set_texts(tower, texts[:CLASSES], texts[CLASSES:])
        return Classifier(tower.eval(), input_size=(48, 48))
    if model in ("tscam", "mctformer"):
        from wsol.models import token_heads

        name = {"tscam": "tscam_small_patch16_224", "mctformer": "mctformer_v2_small_patch16_224"}[model]
        return Classifier(getattr(token_heads, name)(**shape, **size).eval())
    return load_classifier(model, num_classes=CLASSES)


OTHERS: dict[str, dict[str, object]] = {
    "test_convnext": {},
    "test_byobnet": {},
    "pvt_v2_b0": {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 16, 32), "num_heads": (1, 2, 2, 2)},
    "xcit_nano_12_p16_224": {"depth": 2, "embed_dim": 32, "num_heads": 2},
}


@functools.cache
def other(name: str) -> Classifier:
    torch.manual_seed(2)
    return Classifier(timm.create_model(name, num_classes=CLASSES, **OTHERS[name]).eval(), input_size=(64, 64))


def fresh(model: str) -> Classifier:
    return copy.deepcopy(shared(model))


def bind(method: str, known: Classifier) -> BoundMethod | None:
    """Return the method on a model, or None where it refuses the model as it should: in one line with a hint."""
    try:
        return cams.create(method, known, **OPTIONS.get(method, {}))
    except ModelError as error:
        refusal = error
    assert "\n" not in str(refusal)
    assert refusal.hint
    return None


def batch(model: str, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, *SIZES[model], generator=torch.Generator().manual_seed(4))


def check_equal(ours: RawMaps, theirs: RawMaps, *, atol: float = 1e-5) -> None:
    assert ours.class_ids == theirs.class_ids
    for one, two in zip(ours.values, theirs.values, strict=True):
        scale = (float(two.abs().max()) if two.numel() else 0.0) or 1.0
        torch.testing.assert_close(one / scale, two / scale, rtol=0, atol=atol)


def state(module: nn.Module) -> list[object]:
    found: list[object] = [torch.is_grad_enabled(), torch.get_rng_state().tolist(), torch.is_inference_mode_enabled()]
    for name, item in module.named_modules():
        found.append((name, item.training, getattr(item, "fused_attn", None), sorted(vars(item))))
        found.append((len(item._forward_hooks), len(item._forward_pre_hooks), len(item._backward_hooks)))
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        found.append((name, value.requires_grad, value._version))
        found.append(None if value.grad is None else (id(value.grad), value.grad._version))
    return found


everywhere = pytest.mark.parametrize("model", list(SIZES))
every_method = pytest.mark.parametrize("method", METHODS)


def test_the_methods_are_there():
    family = {"cam", "gradcam", "gradcampp", "xgradcam", "layercam", "hirescam", "eigencam", "eigengradcam"}
    assert {*family, "scorecam", "ablationcam", "saliency", "attention", "rollout"} <= set(METHODS)


@every_method
def test_each_method_works_with_some_model(method):
    refusals = 0
    for model in SIZES:
        try:
            cams.create(method, shared(model), **OPTIONS.get(method, {}))
        except ModelError:
            refusals += 1
    assert refusals < len(SIZES)


@every_method
def test_it_is_a_documented_frozen_dataclass(method):
    kind = cams.CAMS.get(method)
    assert issubclass(kind, MapMethod)
    assert dataclasses.is_dataclass(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().anything = 1
    assert cams.CAMS.summary(method)
    doc = __import__(kind.__module__, fromlist=["*"]).__doc__
    assert "http" in doc, "the head of a method's file links its paper"
    with pytest.raises(ConfigError, match="unknown option 'no_such_option'"):
        cams.create(method, shared("test_vit"), no_such_option=1)


@every_method
@everywhere
def test_shapes_types_and_ranges(method, model):
    bound, images = bind(method, shared(model)), batch(model)
    if bound is None:
        return
    raw = bound(images, [[5, 0, 3], [], [2]])
    shape = tuple(raw.values[0].shape[1:])
    assert shape in (bound.classifier.grid(*images.shape[-2:]), tuple(images.shape[-2:]))
    assert [tuple(item.shape) for item in raw.values] == [(3, *shape), (0, *shape), (1, *shape)]
    assert raw.class_ids == ((5, 0, 3), (), (2,))
    for item in (*raw.values, raw.logits):
        assert item.dtype == torch.float32
        assert item.isfinite().all()
        assert not item.requires_grad
        assert not item.is_inference()
    for item in raw.values:
        assert not item.numel() or (item.amax((1, 2)) > item.amin((1, 2))).all(), "an even map says nothing"
        for normalize in (minmax, relu_max):
            scaled = normalize(item.numpy())
            assert not scaled.size or (scaled.min() >= 0 and scaled.max() <= 1)
    with torch.no_grad():
        torch.testing.assert_close(raw.logits, bound.classifier.module(images), rtol=1e-4, atol=1e-4)
    check_equal(bound(images, raw.class_ids), raw, atol=0)


@every_method
@everywhere
def test_batch_is_single_and_classes_are_one_by_one(method, model):
    bound, images = bind(method, shared(model)), batch(model)
    if bound is None:
        return
    ids = [[5, 0], [1], [2, 2, 4]]
    together = bound(images, ids)
    for at, row in enumerate(ids):
        check_equal(bound(images[at : at + 1], [row]), RawMaps((together.values[at],), (tuple(row),), together.logits))
    if method in COMPETING:
        return
    for k, label in enumerate(ids[0]):
        plane = together.values[0][k : k + 1]
        check_equal(bound(images[:1], [[label]]), RawMaps((plane,), ((label,),), together.logits))
    torch.testing.assert_close(together.values[2][0], together.values[2][1], rtol=0, atol=1e-6)


@every_method
@everywhere
def test_nothing_is_changed_also_after_an_exception(method, model):
    bound, images = bind(method, fresh(model)), batch(model)
    if bound is None:
        return
    module = bound.classifier.module
    module.train()
    next(module.children()).eval()
    module(images).sum().backward()
    next(module.parameters()).requires_grad_(False)
    before, pixels = state(module), images.clone()
    bound(images, [[0], [1, 2], []])
    assert state(module) == before
    assert torch.equal(images, pixels)
    with pytest.raises(ModelError):
        bound(images, [[0], [CLASSES], []])

    def fail(logits: torch.Tensor) -> list[list[int]]:
        raise KeyError("a choice that fails")

    with pytest.raises(KeyError):
        bound(images, fail)
    assert state(module) == before


@every_method
@everywhere
def test_what_the_caller_does_with_the_model_does_not_matter(method, model):
    bound, images = bind(method, fresh(model)), batch(model)
    if bound is None:
        return
    ids = [[0], [1, 2], []]
    plain = bound(images, ids)
    with torch.no_grad():
        check_equal(bound(images, ids), plain, atol=0)
    with torch.inference_mode():
        check_equal(bound(images.clone(), ids), plain, atol=0)
    wanted = images.clone().requires_grad_()
    bound.classifier.module.requires_grad_(False).train()
    check_equal(bound(wanted, ids), plain, atol=0)
    assert wanted.grad is None


@every_method
def test_classes_chosen_by_the_logits(method):
    bound, images = on_some_model(method)
    raw = bound(images, lambda logits: logits.topk(2).indices.tolist())
    assert raw.class_ids == tuple(tuple(row) for row in raw.logits.topk(2).indices.tolist())
    check_equal(bound(images, raw.class_ids), raw, atol=0)
    none = bound(images, [[], [], []])
    assert all(item.shape == (0, *raw.values[0].shape[1:]) for item in none.values)


def on_some_model(method: str) -> tuple[BoundMethod, torch.Tensor]:
    """The first of the models that the method takes, fresh."""
    for model in ("test_vit", *SIZES):
        try:
            return cams.create(method, fresh(model), **OPTIONS.get(method, {})), batch(model)
        except ModelError:
            continue
    raise AssertionError(f"no model for {method}")


@every_method
def test_half_precision_of_the_caller(method):
    bound, images = on_some_model(method)
    plain = bound(images, [[0], [1], [2]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = bound(images, [[0], [1], [2]])
        bound.classifier.module(images).float().sum().backward()
    for one, two in zip(half.values, plain.values, strict=True):
        assert one.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)
        assert cosine > 0.95
    assert all(parameter.grad is not None for parameter in bound.classifier.head.parameters())


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_precision(method, dtype):
    bound, images = on_some_model(method)
    plain = bound(images, [[0], [1], [2]])
    bound.classifier.module.to(dtype)
    if method == "clip_es":
        with pytest.raises(ModelError, match="last block in float32"):
            bound(images.to(dtype), [[0], [1], [2]])
        return
    for one, two in zip(bound(images.to(dtype), [[0], [1], [2]]).values, plain.values, strict=True):
        assert one.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)
        assert cosine > (0.95 if dtype == torch.bfloat16 else 0.99999)


def test_clip_of_another_precision():
    known, images = fresh("clip"), batch("clip")
    plain = cams.create("gradcam", known)(images, [[0], [1], [2]])
    known.module.double()
    check_equal(cams.create("gradcam", known)(images.double(), [[0], [1], [2]]), plain, atol=1e-4)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_an_error_of_another_cause_is_not_blamed_on_the_size(model):
    bound, images = cams.create("gradcam", fresh(model)), batch(model)
    with pytest.raises(RuntimeError, match="Double|double"):
        bound(images.double(), [[0], [1], [2]])


@every_method
@pytest.mark.parametrize("name", OTHERS)
def test_other_families_work_or_are_refused_in_one_line(method, name):
    known = other(name)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    try:
        raw = cams.create(method, known, **OPTIONS.get(method, {}))(images, [[1], [0, 2]])
    except ModelError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert tuple(raw.values[1].shape) in ((2, *known.grid(64, 96)), (2, 64, 96))
    assert "\n" not in refusal


@every_method
def test_a_fixed_input_size_is_explained(method):
    known = load_classifier("test_vit_relpos", num_classes=CLASSES, img_size=64)
    bound = bind(method, known)
    if bound is None:
        return
    assert bound(torch.zeros(1, 3, 64, 64), [[0]]).values[0].shape in ((1, 4, 4), (1, 64, 64))
    with pytest.raises(ModelError, match=r"cannot run at 48x80 pixels: .*it certainly takes 64x64"):
        bound(torch.zeros(1, 3, 48, 80), [[0]])


@pytest.mark.parametrize(
    ("images", "ids", "message"),
    [
        (torch.zeros(3, 64, 64), [[0]], "expected a float Tensor of images"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), [[0]], "got Tensor torch.uint8"),
        (np.zeros((1, 3, 64, 64), np.float32), [[0]], "got ndarray float32"),
        (torch.zeros(1, 3, 64, 64, device="meta"), [[0]], "the images are on meta, the model on cpu"),
        (torch.zeros(1, 3, 64, 64), [0], "expected class ids of each image, got"),
        (torch.zeros(1, 3, 64, 64), torch.tensor([0]), "expected class ids of each image, got"),
        (torch.zeros(1, 3, 64, 64), [["cat"]], "expected class ids of each image, got"),
        (torch.zeros(1, 3, 64, 64), None, "expected class ids of each image, got None"),
        (torch.zeros(1, 3, 64, 64), [[0], [1]], "class ids for 1 images, got 2 rows"),
        (torch.zeros(1, 3, 64, 64), [[CLASSES]], rf"class id {CLASSES} is not in \[0, {CLASSES - 1}\]"),
        (torch.zeros(1, 3, 64, 64), [[-1]], "class id -1"),
    ],
)
def test_mistakes_in_the_call(images, ids, message):
    with pytest.raises(ModelError, match=message):
        cams.create("cam", shared("test_resnet"))(images, ids)


def test_a_timm_model_may_be_given_as_it_is():
    module = timm.create_model("test_resnet", num_classes=CLASSES)
    before = copy.deepcopy(module.state_dict())
    raw = cams.create("gradcam", module)(batch("test_resnet"), [[0], [1], [2]])
    assert len(raw.values) == 3
    torch.testing.assert_close(module.state_dict(), before)
    with pytest.raises(ModelError, match="is no timm model"):
        cams.create("gradcam", nn.Linear(2, 2))


def test_a_model_without_a_head():
    known = load_classifier("test_vit", num_classes=0)
    for method in ("attention", "rollout", "eigencam"):
        raw = cams.create(method, known)(batch("test_vit"), [[0], [19], []])
        assert raw.logits.shape == (3, 0)
        assert raw.values[1].shape == (1, 3, 5)
    for method in ("gradcam", "scorecam", "ablationcam", "saliency"):
        with pytest.raises(ModelError, match="no class scores"):
            cams.create(method, known)


def test_listing_methods_imports_no_torch():
    code = "import sys; from wsol import cams; print(cams.CAMS.names()); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert "'rollout'" in answer[0]
    assert answer[1] == "False"
