"""What every registered map method keeps, whoever wrote it: found by name, so a new method is tested at once."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

from wsol import cams
from wsol.cams.base import BoundMethod, MapMethod, RawMaps
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier, load_classifier

CLASSES = 6
METHODS = cams.CAMS.names()
SIZES = {"test_resnet": (97, 161), "test_vit": (48, 80), "registers": (42, 70), "distilled": (80, 48)}


def build(model: str) -> Classifier:
    torch.manual_seed(2)
    size = {"num_classes": CLASSES, "dynamic_img_size": True}
    if model == "registers":
        shape = {"depth": 2, "embed_dim": 48, "num_heads": 3}
        return Classifier(
            timm.create_model("vit_small_patch14_reg4_dinov2", **shape, **size).eval(), input_size=(42, 42)
        )
    if model == "distilled":
        shape = {"depth": 2, "embed_dim": 48, "num_heads": 3}
        return Classifier(timm.create_model("deit_tiny_distilled_patch16_224", **shape, **size).eval())
    return load_classifier(model, num_classes=CLASSES)


def bind(method: str, model: str) -> BoundMethod | None:
    """Return the method on a model; None when it refuses the model, which takes one line and a hint."""
    try:
        return cams.create(method, build(model))
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
        scale = max(1.0, float(two.abs().max()) if two.numel() else 1.0)
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


def test_the_methods_of_the_first_release_are_there():
    assert {"cam", "gradcam", "gradcampp", "layercam", "attention", "rollout"} <= set(METHODS)


@every_method
def test_each_method_works_with_some_model(method):
    worked = 0
    for model in SIZES:
        try:
            cams.create(method, build(model))
        except ModelError:
            continue
        worked += 1
    assert worked


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
        cams.create(method, build("test_vit"), no_such_option=1)


@every_method
@everywhere
def test_shapes_and_types(method, model):
    bound, images = bind(method, model), batch(model)
    if bound is None:
        return
    ids = [[5, 0, 3], [], [2]]
    raw = bound(images, ids)
    rows, columns = bound.classifier.grid(*images.shape[-2:])
    assert [tuple(item.shape) for item in raw.values] == [(3, rows, columns), (0, rows, columns), (1, rows, columns)]
    assert raw.class_ids == ((5, 0, 3), (), (2,))
    for item in (*raw.values, raw.logits):
        assert item.dtype == torch.float32
        assert item.isfinite().all()
        assert not item.requires_grad
        assert not item.is_inference()
    with torch.no_grad():
        torch.testing.assert_close(raw.logits, bound.classifier.module(images), rtol=1e-4, atol=1e-5)


@every_method
@everywhere
def test_batch_is_single_and_classes_are_one_by_one(method, model):
    bound, images = bind(method, model), batch(model)
    if bound is None:
        return
    ids = [[5, 0], [1], [2, 2, 4]]
    together = bound(images, ids)
    for at, row in enumerate(ids):
        check_equal(bound(images[at : at + 1], [row]), RawMaps((together.values[at],), (tuple(row),), together.logits))
        for k, label in enumerate(row):
            plane = together.values[at][k : k + 1]
            check_equal(bound(images[at : at + 1], [[label]]), RawMaps((plane,), ((label,),), together.logits))
    torch.testing.assert_close(together.values[2][0], together.values[2][1], rtol=0, atol=1e-6)


@every_method
@everywhere
def test_nothing_is_changed_also_after_an_exception(method, model):
    bound, images = bind(method, model), batch(model)
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
def test_every_autograd_mode_gives_the_same(method, model):
    bound, images = bind(method, model), batch(model)
    if bound is None:
        return
    ids = [[0], [1, 2], []]
    plain = bound(images, ids)
    with torch.no_grad():
        check_equal(bound(images, ids), plain, atol=0)
    with torch.inference_mode():
        check_equal(bound(images.clone(), ids), plain, atol=0)
    bound.classifier.module.requires_grad_(False)
    check_equal(bound(images, ids), plain, atol=0)
    wanted = images.clone().requires_grad_()
    check_equal(bound(wanted, ids), plain, atol=0)
    assert wanted.grad is None


@every_method
@everywhere
def test_training_mode_of_the_caller_does_not_matter(method, model):
    bound, images = bind(method, model), batch(model)
    if bound is None:
        return
    plain = bound(images, [[0], [1, 2], []])
    bound.classifier.module.train()
    check_equal(bound(images, [[0], [1, 2], []]), plain, atol=0)


@every_method
@everywhere
def test_classes_chosen_by_the_logits(method, model):
    bound, images = bind(method, model), batch(model)
    if bound is None:
        return
    raw = bound(images, lambda logits: logits.topk(2).indices.tolist())
    assert raw.class_ids == tuple(tuple(row) for row in raw.logits.topk(2).indices.tolist())
    check_equal(bound(images, raw.class_ids), raw, atol=0)


@every_method
def test_half_precision_of_the_caller(method):
    model = "test_resnet" if method == "cam" else "test_vit"
    bound, images = cams.create(method, build(model)), batch(model)
    plain = bound(images, [[0], [1], [2]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = bound(images, [[0], [1], [2]])
    for one, two in zip(half.values, plain.values, strict=True):
        assert one.dtype == torch.float32
        cosine = torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)
        assert cosine > 0.95
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bound(images, [[0], [1], [2]])
        bound.classifier.module(images).float().sum().backward()
    assert bound.classifier.head.weight.grad is not None


@every_method
@pytest.mark.parametrize("name", ["test_convnext", "test_byobnet", "pvt_v2_b0", "test_vit2", "xcit_nano_12_p16_224"])
def test_other_families_work_or_are_refused_in_one_line(method, name):
    known = load_classifier(name, num_classes=CLASSES, img_size=64)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    try:
        raw = cams.create(method, known)(images, [[1], [0, 2]])
    except ModelError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert raw.values[1].shape == (2, *known.grid(64, 96))
    assert "\n" not in refusal


@every_method
def test_a_fixed_input_size_is_explained(method):
    known = load_classifier("test_vit_relpos", num_classes=CLASSES, img_size=64)
    try:
        bound = cams.create(method, known)
    except ModelError:
        return
    assert bound(torch.zeros(1, 3, 64, 64), [[0]]).values[0].shape == (1, 4, 4)
    with pytest.raises(ModelError, match=r"cannot run at 48x80 pixels: .*it certainly takes 64x64"):
        bound(torch.zeros(1, 3, 48, 80), [[0]])


@pytest.mark.parametrize(
    ("images", "ids", "message"),
    [
        (torch.zeros(3, 64, 64), [[0]], "expected images"),
        (torch.zeros(1, 3, 64, 64), [[0], [1]], "class ids for 1 images, got 2 rows"),
        (torch.zeros(1, 3, 64, 64), [[CLASSES]], rf"class id {CLASSES} is not in \[0, {CLASSES - 1}\]"),
        (torch.zeros(1, 3, 64, 64), [[-1]], "class id -1"),
    ],
)
def test_mistakes_in_the_call(images, ids, message):
    with pytest.raises(ModelError, match=message):
        cams.create("cam", build("test_resnet"))(images, ids)


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
    for method in ("attention", "rollout"):
        raw = cams.create(method, known)(batch("test_vit"), [[0], [19], []])
        assert raw.logits.shape == (3, 0)
        assert raw.values[1].shape == (1, 3, 5)
    with pytest.raises(ModelError, match="no class scores"):
        cams.create("gradcam", known)


def test_listing_methods_imports_no_torch():
    code = "import sys; from wsol import cams; print(cams.CAMS.names()); print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert "'rollout'" in answer[0]
    assert answer[1] == "False"
