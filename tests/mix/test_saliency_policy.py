"""The policies of R-Mix choose by given numbers, learn what is rewarded, and go on alike after a restart."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from wsol import mix
from wsol.mix import Context
from wsol.mix._policy import ARMS, Agent, Bandit, PolicyGradient, choose, similarity, uniform_policy
from wsol.models.classifier import Classifier


def make(kind, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options)


@given(seed=st.integers(0, 1000))
def test_choices_follow_the_chances(seed):
    rng = np.random.default_rng(seed)
    chances = torch.from_numpy(rng.dirichlet(np.full(ARMS, 0.3), 4)).float()
    uniform = rng.random(4)
    arms, quantiles = choose(chances, uniform)
    for row in range(4):
        edges = np.concatenate([[0.0], np.cumsum(chances[row].double().numpy())])
        assert edges[arms[row]] <= uniform[row] < edges[arms[row] + 1] or arms[row] == ARMS - 1
    torch.testing.assert_close(quantiles, arms * 0.11)


def test_the_random_policy_is_uniform():
    uniform = (np.arange(1000) + 0.5) / 1000
    arms, _ = choose(uniform_policy(1000, torch.zeros(())), uniform)
    assert torch.bincount(arms, minlength=ARMS).tolist() == [100] * ARMS


def test_reward_is_a_cosine_of_whole_maps():
    a, b = torch.rand(3, 5, 7), torch.rand(3, 5, 7)
    torch.testing.assert_close(similarity(a, a * 9), torch.ones(3))
    expected = (a * b).sum((1, 2)) / (a.square().sum((1, 2)) * b.square().sum((1, 2))).sqrt()
    torch.testing.assert_close(similarity(a, b), expected)


def play(agent, reward_of, *, batches, seed=0, count=32):
    rng = np.random.default_rng(seed)
    for _ in range(batches):
        saliency = torch.from_numpy(rng.random((count, 9, 14))).float()
        arms, _ = choose(agent.chances(saliency), rng.random(count))
        agent.update(saliency, arms, reward_of(saliency, arms))


@pytest.mark.parametrize(
    ("agent", "batches"),
    [(make(Bandit), 60), (make(PolicyGradient, horizon=256, lr=0.01), 160)],
    ids=["bandit", "ppo"],
)
def test_agents_find_the_best_arm(agent, batches):
    play(agent, lambda _, arms: 1.0 - (arms - 7).abs() / 10, batches=batches)
    chances = agent.chances(torch.rand(6, 9, 14)).mean(0)
    assert chances.argmax() == 7
    assert chances[7] > 0.5
    torch.testing.assert_close(chances.sum(), torch.tensor(1.0))


def test_ppo_looks_at_the_image():
    agent = make(PolicyGradient, horizon=256, lr=0.01)

    def batch(rng, count=32):
        kind = torch.from_numpy(rng.integers(2, size=count))
        saliency = torch.ones(count, 8, 8) * 0.1
        saliency[kind == 0, :4] = 1.0
        saliency[kind == 1, 4:] = 1.0
        return saliency, kind

    rng = np.random.default_rng(0)
    for _ in range(200):
        saliency, kind = batch(rng)
        arms, _ = choose(agent.chances(saliency), rng.random(32))
        agent.update(saliency, arms, (arms == torch.where(kind == 0, 2, 8)).float())
    saliency, kind = batch(rng)
    assert torch.equal(agent.chances(saliency).argmax(1), torch.where(kind == 0, 2, 8))


@pytest.mark.parametrize("kind", [Bandit, PolicyGradient])
def test_a_restart_changes_nothing(kind):
    options = {"horizon": 100} if kind is PolicyGradient else {}
    agent = make(kind, **options)
    rewards = lambda saliency, arms: saliency.mean((1, 2)) * arms / 10  # noqa: E731
    play(agent, rewards, batches=5, seed=1)
    again = kind(**options)
    again.load_state_dict(copy.deepcopy(agent.state_dict()))
    for item in (agent, again):
        play(item, rewards, batches=6, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(agent.state_dict().values(), again.state_dict().values()))
    assert not any(parameter.requires_grad for parameter in agent.parameters()), "the trainer leaves them alone"


@pytest.mark.parametrize("policy", ["bandit", "ppo"])
def test_training_teaches_the_agent(policy):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(timm.create_model("test_resnet", num_classes=6).train(), input_size=(32, 47))
        strategy = mix.create("rmix", policy=policy)
        own = strategy.own(classifier)
    assert isinstance(own, Agent)
    context = Context(classifier, F.cross_entropy, own=own)
    x, y, rng = torch.rand(5, 3, 32, 47), torch.eye(6)[:5], np.random.default_rng(0)
    before, state = copy.deepcopy(own.state_dict()), torch.get_rng_state()
    for _ in range(2):  # gradients of two batches before a step
        strategy.mix(x, y, strategy.draw(x, rng), context)
    strategy.after_step(context)
    changed = [key for key, value in own.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == (["value"] if policy == "bandit" else ["memory", "filled"])
    if policy == "ppo":
        assert own.filled == 10
        assert (own.memory[:10, -1].abs() <= 1 + 1e-6).all()
    now = copy.deepcopy(own.state_dict())
    strategy.after_step(context)
    assert all(torch.equal(value, now[key]) for key, value in own.state_dict().items()), "nothing is rewarded twice"
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in classifier.module.parameters())


def test_the_plain_policy_has_no_state():
    assert mix.create("rmix").own(None) is None  # type: ignore[arg-type]
