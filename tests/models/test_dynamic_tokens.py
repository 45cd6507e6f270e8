"""DynamicTokens around timm models: which patches stay, and that both ways to leave patches out agree."""

from __future__ import annotations

import copy

import pytest
import timm
import torch

from wsol import cams
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier
from wsol.models.dynamic_tokens import DynamicTokens, masked_attention, sample

SHAPE = {"depth": 4, "embed_dim": 32, "num_heads": 2, "num_classes": 5, "dynamic_img_size": True}


def vit(name="deit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    return noisy(timm.create_model(name, **(SHAPE | options)).eval())


def noisy(module):
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
    return module


def dynamic(**options):
    model = DynamicTokens(vit(options.pop("name", "deit_tiny_patch16_224")), **options)
    noisy(model.predictors)
    return model


def images(size=(80, 112), count=2):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_left_out_or_masked_is_the_same(name):
    model = dynamic(name=name)
    gathered = copy.deepcopy(model)
    gathered.gather = True
    with torch.no_grad():
        one, two = model.run(images()), gathered.run(images())
        torch.testing.assert_close(model(images()), gathered(images()), atol=1e-4, rtol=1e-4)
        assert (model(images()) - model.base(images())).abs().max() > 1e-4
    counts = [int(35 * 0.7**stage) for stage in (1, 2, 3)]
    for stage, count in enumerate(counts):
        assert torch.equal(one.decisions[stage], two.decisions[stage])
        assert one.decisions[stage].sum(1).tolist() == [count, count]
        torch.testing.assert_close(one.scores[stage], two.scores[stage], atol=1e-4, rtol=1e-4)
    kept = one.decisions[-1].bool()
    prefix = model.num_prefix_tokens
    torch.testing.assert_close(one.tokens[:, prefix:][kept], two.tokens[:, prefix:][kept], atol=1e-4, rtol=1e-4)
    assert two.tokens.shape == one.tokens.shape


@pytest.mark.parametrize("gather", [False, True])
def test_keeping_all_is_the_model_inside(gather):
    model = dynamic(keep=1.0, gather=gather)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), model.base(images()), atol=1e-4, rtol=1e-4)


def test_attention_with_policy_by_loops():
    generator = torch.Generator().manual_seed(0)
    scores, policy = torch.randn(1, 1, 5, 5, generator=generator), torch.tensor([[1.0, 0, 1, 0, 1]])
    ours = masked_attention(scores.softmax(3), policy)[0, 0]
    for row in range(5):
        raised = (scores[0, 0, row] - scores[0, 0, row].max()).exp()
        raised = torch.tensor([raised[j] * (1.0 if j == row else policy[0, j]) for j in range(5)])
        torch.testing.assert_close(ours[row], (raised + 1e-6 / 5) / (raised.sum() + 1e-6))
    everything = masked_attention(scores.softmax(3), torch.ones(1, 5))
    torch.testing.assert_close(everything, scores.softmax(3), atol=1e-6, rtol=1e-5)


def test_training_samples_and_learns():
    model = dynamic().train()
    torch.manual_seed(5)
    seen = model.run(images())
    torch.manual_seed(5)
    again = model.run(images())
    assert all(torch.equal(one, two) for one, two in zip(seen.decisions, again.decisions, strict=True))
    before = torch.ones_like(seen.decisions[0])
    for kept in seen.decisions:
        assert ((kept - kept.round()).abs() < 1e-6).all()
        assert (kept <= before + 1e-6).all()
        before = kept
    sum(kept.mean() for kept in seen.decisions).backward()
    assert all(parameter.grad is not None for parameter in model.predictors[0].parameters())


def test_samples_are_those_of_torch():
    scores = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(0)).log_softmax(2).requires_grad_()
    torch.manual_seed(9)
    expected = torch.nn.functional.gumbel_softmax(scores, hard=True)[..., 0]
    ours = sample(scores, torch.Generator().manual_seed(9))
    assert torch.equal(ours, expected)
    weights = torch.randn(3, 7)
    grads = [torch.autograd.grad((item * weights).sum(), scores)[0] for item in (ours, expected)]
    torch.testing.assert_close(*grads)


def test_survival_counts_stages_and_settles_ties():
    model = dynamic()
    maps = model.survival_map(images())
    assert maps.shape == (2, 5, 7)
    with torch.no_grad():
        seen = model.run(images())
    stages = torch.stack(seen.decisions).sum(0).view(2, 5, 7)
    assert torch.equal(maps.floor(), stages)
    flat, kept, scores = maps.flatten(1), seen.decisions, seen.scores
    for row in range(2):
        first_out = (kept[0][row] == 0).nonzero().flatten()
        by_map = first_out[flat[row, first_out].argsort()]
        by_score = first_out[scores[0][row, first_out].argsort()]
        assert torch.equal(by_map, by_score)
    model.train()
    torch.testing.assert_close(model.survival_map(images()), maps)
    assert model.training


@pytest.mark.parametrize("gather", [False, True])
def test_survival_as_a_map_method(gather):
    model = dynamic(gather=gather)
    known = Classifier(model, input_size=(64, 64))
    raw = cams.create("survival", known)(images(), [[1], [0, 3]])
    expected = model.survival_map(images())
    assert [tuple(planes.shape) for planes in raw.values] == [(1, 5, 7), (2, 5, 7)]
    torch.testing.assert_close(raw.values[1][1], expected[1])
    with torch.no_grad():
        torch.testing.assert_close(raw.logits, model(images()))


def test_survival_refuses_other_models():
    with pytest.raises(ModelError, match="drops no patches") as caught:
        cams.create("survival", vit())
    assert caught.value.hint


def test_map_methods_read_it():
    model = dynamic()
    known = Classifier(model, input_size=(64, 64))
    assert (known.kind, known.grid(80, 112), known.prefix_tokens) == ("tokens", (5, 7), 1)
    for method in ("attention", "rollout", "gradcam", "chefer"):
        raw = cams.create(method, known)(images(), [[1], [0, 3]])
        assert raw.values[1].shape == (2, 5, 7)
    with torch.no_grad():
        dropped = model.run(images()).decisions[-1].view(2, 5, 7) == 0
    looked = cams.create("attention", known)(images(), [[1], [1]])
    assert looked.values[0][0][dropped[0]].max() < 1e-5 < looked.values[0][0][~dropped[0]].min()


def test_gathered_attention_is_refused_not_misread():
    known = Classifier(dynamic(gather=True), input_size=(64, 64))
    with pytest.raises(ModelError, match="not between the patches"):
        cams.create("attention", known)(images(), [[1], [0]])


@pytest.mark.parametrize(
    ("options", "what"),
    [({"keep": 0.0}, "keep must be"), ({"stages": (2, 1)}, "in order"), ({"stages": (9,)}, "stages must be")],
)
def test_mistakes_are_named(options, what):
    with pytest.raises(ConfigError, match=what):
        DynamicTokens(vit(), **options)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit2"])
def test_other_models_are_refused(name):
    with pytest.raises(ModelError, match="class token"):
        DynamicTokens(timm.create_model(name))


def test_default_stages():
    assert dynamic().stages == (1, 2, 3)
    assert DynamicTokens(timm.create_model("deit_tiny_patch16_224", embed_dim=32, num_heads=2)).stages == (3, 6, 9)


def test_weights_of_the_model_inside_fit():
    model = dynamic()
    weights = model.adapt(vit().state_dict())
    model.load_state_dict(weights)
    assert {name.partition(".")[0] for name in weights} == {"base", "predictors"}
