"""Policies that choose a quantile for each image of a batch, and learn from the saliency that survives the mixing.

RL-Mix trains its agent by PPO (Schulman et al., 2017, https://arxiv.org/abs/1707.06347). Mixing one batch does not
change the next one, so the problem is a contextual bandit: the advantage of a choice is its reward minus the value
that the critic expected. All state lies in buffers and in weights that want no gradient: it is checkpointed, and the
trainer's optimizer leaves it alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

ARMS = 10
"""Quantiles to choose from, even steps from 0 to 0.99."""
Look: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def uniform_policy(count: int, like: Tensor) -> Tensor:
    """Return equal chances (count, ARMS)."""
    return like.new_full((count, ARMS), 1.0 / ARMS)


def choose(chances: Tensor, uniform: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Turn uniform numbers into choices.

    Args:
        chances: (B, ARMS), rows summing to 1.
        uniform: (B,) in [0, 1).

    Returns:
        int64 (B,) arms and their float (B,) quantiles.
    """
    drawn = torch.from_numpy(uniform).to(chances.device)[:, None]
    arms = (chances.double().cumsum(1) <= drawn).sum(1).clamp_max(ARMS - 1)
    return arms, torch.linspace(0.0, 0.99, ARMS, device=chances.device)[arms]


def similarity(clean: Tensor, mixed: Tensor) -> Tensor:
    """Return the cosine (B,) between saliency maps (B, H, W): the reward of RL-Mix, image by image."""
    return functional.cosine_similarity(clean.flatten(1), mixed.flatten(1), dim=1)


class Agent(nn.Module):
    """A policy with a memory of the choices that wait for their reward; subclasses learn."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @abstractmethod
    def chances(self, saliency: Tensor) -> Tensor:
        """Return the chances (B, ARMS) of each quantile for images of a saliency (B, H, W)."""

    @abstractmethod
    def update(self, saliency: Tensor, arms: Tensor, reward: Tensor) -> None:
        """Learn from the reward (B,) of arms (B,)."""

    def remember(self, saliency: Tensor, arms: Tensor, images: Tensor, targets: Tensor) -> None:
        """Keep choices and what came of them until `learn`."""
        self._waiting.append((saliency, arms, images.detach(), targets))

    def learn(self, look: Look) -> None:
        """Reward all that waits.

        Args:
            look: Mixed images and targets to their saliency (B, H, W).
        """
        for saliency, arms, images, targets in self._waiting:
            self.update(saliency, arms, similarity(saliency, look(images, targets)))
        self._waiting.clear()


class Bandit(Agent):
    """Epsilon-greedy over the mean reward of each quantile.

    Args:
        explore: Share of the choices made at random.
        rate: Weight of a new reward in the running mean.
    """

    value: Tensor

    def __init__(self, *, explore: float = 0.2, rate: float = 0.05) -> None:
        super().__init__()
        self.explore, self.rate = explore, rate
        self.register_buffer("value", torch.ones(ARMS))  # no cosine is greater: every arm gets tried

    def chances(self, saliency: Tensor) -> Tensor:
        """Return the same chances for every image."""
        best = functional.one_hot(self.value.argmax(), ARMS).to(saliency)
        return (best * (1.0 - self.explore) + self.explore / ARMS).expand(len(saliency), ARMS)

    def update(self, saliency: Tensor, arms: Tensor, reward: Tensor) -> None:
        """Move the mean of each chosen arm towards its rewards."""
        picked = functional.one_hot(arms, ARMS).to(reward)
        count = picked.sum(0)
        mean = (picked * reward[:, None]).sum(0) / count.clamp_min(1.0)
        self.value += (mean - self.value) * (1.0 - (1.0 - self.rate) ** count)


class PolicyGradient(Agent):
    """A small actor-critic that looks at the saliency, trained by PPO.

    Args:
        horizon: Images between two updates.
        epochs: Passes over them.
        lr: Learning rate of Adam.
        clip: Largest change of a choice's odds in one update.
        entropy: Weight of the entropy bonus.
    """

    SIDE = 8
    memory: Tensor
    filled: Tensor
    steps: Tensor

    def __init__(
        self, *, horizon: int = 1024, epochs: int = 4, lr: float = 3e-4, clip: float = 0.2, entropy: float = 0.01
    ) -> None:
        super().__init__()
        self.epochs, self.lr, self.clip, self.entropy = epochs, lr, clip, entropy
        self.net = nn.Sequential(nn.Linear(self.SIDE**2, 64), nn.Tanh(), nn.Linear(64, ARMS + 1)).requires_grad_(False)
        for name, parameter in self.net.named_parameters():
            for moment in ("first", "second"):
                self.register_buffer(f"{moment}_{name.replace('.', '_')}", torch.zeros_like(parameter))
        self.register_buffer("memory", torch.zeros(horizon, self.SIDE**2 + 2))
        for counter in ("filled", "steps"):
            self.register_buffer(counter, torch.zeros((), dtype=torch.int64))

    def chances(self, saliency: Tensor) -> Tensor:
        """Return what the actor says."""
        with torch.no_grad():
            output: Tensor = self.net(self._observe(saliency))
        return output[:, :ARMS].softmax(1)

    def update(self, saliency: Tensor, arms: Tensor, reward: Tensor) -> None:
        """Collect, and improve the policy whenever the memory is full."""
        rows = torch.cat([self._observe(saliency), arms[:, None].to(reward), reward[:, None]], 1)
        while len(rows):
            start = int(self.filled)
            taken = rows[: len(self.memory) - start]
            self.memory[start : start + len(taken)] = taken
            self.filled.fill_(start + len(taken))
            rows = rows[len(taken) :]
            if int(self.filled) == len(self.memory):
                self.filled.zero_()
                self._improve(self.memory[:, :-2], self.memory[:, -2].long(), self.memory[:, -1])

    def _observe(self, saliency: Tensor) -> Tensor:
        """Pool to 8 x 8 and divide by the mean, so that no scale is left."""
        pooled = functional.adaptive_avg_pool2d(saliency[:, None], self.SIDE).flatten(1)
        return pooled / pooled.mean(1, keepdim=True).clamp_min(1e-30)

    def _improve(self, seen: Tensor, arms: Tensor, reward: Tensor) -> None:
        with torch.no_grad():
            before = self.net(seen)
            old = before[:, :ARMS].log_softmax(1).gather(1, arms[:, None])[:, 0]
            advantage = reward - before[:, ARMS]
            advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        for _ in range(self.epochs):
            with torch.enable_grad():
                weights = {name: item.detach().requires_grad_() for name, item in self.net.named_parameters()}
                output = torch.func.functional_call(self.net, weights, (seen,))
                log = output[:, :ARMS].log_softmax(1)
                ratio = (log.gather(1, arms[:, None])[:, 0] - old).exp()
                gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
                spread = -(log.exp() * log).sum(1)
                loss = (output[:, ARMS] - reward).square().mean() / 2 - (gain + self.entropy * spread).mean()
                gradients = torch.autograd.grad(loss, tuple(weights.values()))
            self._adam(gradients)

    def _adam(self, gradients: tuple[Tensor, ...]) -> None:
        """One step of Adam with the usual constants; its moments are buffers, so that a resumed run goes on alike."""
        count = int(self.steps.add_(1))
        for (name, weight), gradient in zip(self.net.named_parameters(), gradients, strict=True):
            first = self.get_buffer(f"first_{name.replace('.', '_')}")
            second = self.get_buffer(f"second_{name.replace('.', '_')}")
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            scale = (second / (1 - 0.999**count)).sqrt() + 1e-8
            weight.sub_(self.lr * first / (1 - 0.9**count) / scale)
