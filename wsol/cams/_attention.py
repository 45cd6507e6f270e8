"""What the attention methods share: the models they take, the tokens they start from, and reading maps off tokens.

Class-wise maps take one forward pass, and one backward pass for the k-th class of every image together. Below the first
attention that is read nothing is recorded, and no parameter gets a gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wsol.cams._layers import check_scores
from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose, true_logits
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import Tapped, tap

Fusion = Literal["mean", "max", "min"]
Token = Literal["auto", "cls", "dist", "patches"]


@dataclass(frozen=True, kw_only=True)
class TokenMethod(MapMethod):
    """Maps that say how much each patch gives to some output token."""

    token: Token = "auto"  # noqa: S105
    """Output token: class, distillation, or the mean over all patches; auto: the class token where the head reads it
    (the mean over them, where there is one a class), else the mean over the patches."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention over all tokens, and tokens that the model has not."""
        require_attention(classifier)
        has_cls = classifier.class_tokens == 1 or getattr(classifier.module, "cls_token", None) is not None
        if not {"cls": has_cls, "dist": classifier.distillation_token}.get(self.token, True):
            raise ConfigError(f"{classifier.name} has no token '{self.token}'", where="token", hint="choose auto")

    def output_tokens(self, classifier: Classifier) -> slice:
        """Return which tokens are the output tokens."""
        patches = slice(classifier.prefix_tokens, None)
        known = {"auto": classifier.output_tokens, "cls": slice(0, 1), "dist": slice(1, 2), "patches": patches}
        return known[self.token]

    def start(self, classifier: Classifier, layer: Tensor) -> Tensor:
        """Return the weights (rows,) of the output tokens, with sum 1, for attention (..., rows, N) of a block."""
        start = layer.new_zeros(layer.shape[-2])
        start[self.output_tokens(classifier)] = 1
        return start / start.sum()


@dataclass(frozen=True, kw_only=True)
class AttentionMethod(TokenMethod):
    """Maps from attention weights: the same map for every class.

    The map says how much each patch gives to what the head reads: the class token, or the mean over the patches for
    models that pool (then it is the attention that each patch receives).
    """

    head_fusion: Fusion = "mean"
    """How the heads of a block are put together."""

    @abstractmethod
    def blocks(self, classifier: Classifier) -> tuple[str, ...]:
        """Return the names of the attention modules to read, in order."""

    @abstractmethod
    def received(self, layers: Sequence[Tensor], start: Tensor) -> Tensor:
        """Return what each token gives to the output.

        Args:
            layers: Fused attention (B, rows, N) of each block in order.
            start: (rows,) weights of the output tokens, with sum 1.

        Returns:
            (B, N).
        """

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        names = self.blocks(classifier)
        with torch.inference_mode(), tap(classifier.module, attention=names, reduce=self._fuse) as tapped:
            scores = classifier.module(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = true_logits(classifier, scores).clone()
            ids = choose(class_ids, logits)
            layers = [layer.float() for layer in read_layers(classifier, tapped, names, images)]
            given = patch_map(classifier, self.received(layers, self.start(classifier, layers[-1])), images)
        values = tuple(given[at].expand(len(row), -1, -1).clone() for at, row in enumerate(ids))
        return RawMaps(values, ids, logits)

    def _fuse(self, weights: Tensor) -> Tensor:
        if self.head_fusion == "mean":
            return weights.mean(1)
        return weights.amax(1) if self.head_fusion == "max" else weights.amin(1)


@dataclass(frozen=True, kw_only=True)
class AttentionGradientMethod(TokenMethod):
    """Class-wise maps from attention weights and the gradients of class scores there."""

    start_layer: int = 0
    """First block that takes part."""

    @abstractmethod
    def received(self, seen: Seen, class_ids: Sequence[Sequence[int]]) -> Tensor:
        """Return what each token gives to the score of each class.

        Args:
            seen: What the forward pass left behind.
            class_ids: The classes of each image.

        Returns:
            float32 (B, K, N) with K the most classes of an image.
        """

    def activations(self, classifier: Classifier) -> tuple[str, ...]:
        """Return the names of sub-modules whose outputs are needed, too."""
        return ()

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention over all tokens or without class scores, and options out of range."""
        super().check(classifier)
        check_scores(classifier)
        check_start_layer(classifier, self.start_layer)

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        names, others = classifier.attention[self.start_layer :], self.activations(classifier)
        with tap(classifier.module, attention=names, activations=others, gradients=True) as tapped:
            scores = classifier.module(images.clone() if images.is_inference() else images.detach())
            layers = read_layers(classifier, tapped, names, images)
            logits = scores.detach().float()
            ids = choose(class_ids, logits)
            given = self.received(Seen(classifier, scores, layers, tapped.activations), ids)
            maps = patch_map(classifier, given, images)
        return RawMaps(tuple(planes[: len(row)] for planes, row in zip(maps, ids, strict=True)), ids, logits)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a forward pass left behind, with its graph.

    Attributes:
        classifier: The model.
        scores: (B, C) as the model gave them.
        layers: Attention (B, heads, rows, N) of each block in order.
        activations: Sub-module name to its output, of the sub-modules that were asked for.
    """

    classifier: Classifier
    scores: Tensor
    layers: Sequence[Tensor]
    activations: Mapping[str, Tensor]


def require_attention(classifier: Classifier) -> None:
    """Refuse models without attention over all tokens.

    Raises:
        ModelError: Naming methods that work.
    """
    if not classifier.attention:
        what = "needs attention between all patches, as in a plain vision transformer"
        raise ModelError(what, where=classifier.name, hint="cam, gradcam and layercam work with this model")


def read_layers(classifier: Classifier, tapped: Tapped, names: Sequence[str], images: Tensor) -> list[Tensor]:
    """Return the attention of the named blocks.

    Raises:
        ModelError: When a block does not attend to all tokens.
    """
    rows, columns = classifier.grid(*images.shape[-2:])
    layers = [tapped.attention[name] for name in names]
    if any(layer.shape[-1] != classifier.prefix_tokens + rows * columns for layer in layers):
        hint = "gradcam and layercam work with this model"
        raise ModelError("attention is not between the patches of the grid", where=classifier.name, hint=hint)
    return layers


def require_square(layers: Sequence[Tensor]) -> None:
    """Refuse blocks in which only the class token attends.

    Raises:
        ModelError: Naming what to use.
    """
    if any(layer.shape[-2] != layer.shape[-1] for layer in layers):
        raise ModelError("needs blocks in which every token attends to every token", hint="use attention")


def check_start_layer(classifier: Classifier, start_layer: int) -> None:
    """Refuse a first block that the model has not.

    Raises:
        ConfigError: Naming the range.
    """
    count = len(classifier.attention)
    if not 0 <= start_layer < count:
        raise ConfigError(f"start_layer must be in [0, {count - 1}], got {start_layer}", where=classifier.name)


def patch_map(classifier: Classifier, tokens: Tensor, images: Tensor) -> Tensor:
    """Return values (..., N) of tokens as maps (..., rows, columns), without prefix tokens."""
    patches = tokens[..., classifier.prefix_tokens :]
    return patches.reshape(*patches.shape[:-1], *classifier.grid(*images.shape[-2:]))
