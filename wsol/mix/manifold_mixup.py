"""Manifold mixup: mixup of what a random layer puts out.

Verma et al., "Manifold Mixup: Better Representations by Interpolating Hidden States", ICML 2019,
https://arxiv.org/abs/1806.05236. lambda ~ Beta(alpha, alpha); the layer is drawn from the input and the first stages;
its output h becomes lambda h + (1 - lambda) h[partner], and the labels are mixed alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from wsol.errors import ConfigError, ModelError
from wsol.mix import MIXES
from wsol.mix._blend import blend, tensor_like
from wsol.mix._boxes import draw_lam
from wsol.mix.base import Context, Draws, Family, Mixed, MixStrategy, Output, Partner, check_options, draw_partner

if TYPE_CHECKING:
    from torch import Tensor, nn

    from wsol.models.classifier import Classifier


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Inside(Mixed):
    """A batch that is mixed within the network.

    Attributes:
        layer: 0 for the input, else the stage whose output is mixed; `images` are then the clean ones, and `own_mask`
            is None.
    """

    layer: int


@MIXES.register("manifold_mixup")
@dataclass(frozen=True)
class ManifoldMixup(MixStrategy):
    """Weighted sum of two images' hidden states."""

    family: ClassVar[Family] = "mixup"
    paper: ClassVar[str] = "Verma et al., ICML 2019"

    alpha: float = 2.0
    """lambda ~ Beta(alpha, alpha)."""
    prob: float = 1.0
    """Probability of mixing a batch."""
    partner: Partner = "perm"
    """perm: a random permutation of the batch; flip: the batch in reverse."""
    stages: int = 2
    """Stages, beside the input, to draw from: a network counts four, transformers of one width by quarters."""

    def __post_init__(self) -> None:
        check_options("manifold_mixup", alpha=self.alpha, prob=self.prob)
        if not 0 <= self.stages <= 4:
            raise ConfigError(f"stages must lie in [0, 4], got {self.stages}", where="manifold_mixup")

    def draw(self, x: Tensor, generator: np.random.Generator) -> Draws:
        """Draw `lam` (float), `layer` (int, 0 for the input) and `partner` (int64 (B,))."""
        lam = draw_lam(len(x), generator, alpha=self.alpha, prob=self.prob)
        layer = int(generator.integers(self.stages + 1))
        return {"lam": lam, "layer": layer, "partner": draw_partner(len(x), generator, partner=self.partner)}

    def check(self, classifier: Classifier) -> None:
        """Refuse a model whose stages are unknown or do not put out one tensor.

        Raises:
            ModelError: Saying so.
        """
        import torch

        from wsol.models.taps import evaluating, tap

        names = sorted({stage_name(classifier, layer) for layer in range(1, self.stages + 1)})
        image = torch.zeros(1, 3, *classifier.input_size, device=classifier.device)
        with evaluating(classifier.module), torch.no_grad(), tap(classifier.module, activations=names):
            classifier.module.forward_features(image)

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Mix the labels, and the images when the input is drawn; see `MixStrategy.mix`."""
        lam = tensor_like([draws["lam"]], y)
        mixed = blend(x, y, lam[:, None, None, None], draws["partner"], weight=lam)
        known = {item.name: getattr(mixed, item.name) for item in fields(Mixed)}
        if draws["layer"] > 0:
            known.update(images=x, own_mask=None)
        return Inside(**known, layer=draws["layer"])

    def forward(self, mixed: Mixed, context: Context) -> Output:
        """Run the network and mix the output of the drawn stage on the way."""
        from wsol.models.taps import find

        layer = cast(Inside, mixed).layer
        if layer == 0:
            return super().forward(mixed, context)

        def add(_: nn.Module, args: Any, output: Tensor) -> Tensor:
            share = mixed.own_weight.to(output.dtype).reshape(-1, *[1] * (output.ndim - 1))
            return output * share + output[mixed.partner] * (1.0 - share)

        module: nn.Module = context.classifier.module
        handle = find(module, stage_name(context.classifier, layer)).register_forward_hook(add)
        try:
            return super().forward(mixed, context)
        finally:
            handle.remove()


def stage_name(classifier: Classifier, layer: int) -> str:
    """Return the dotted name of the sub-module that ends a stage.

    Args:
        classifier: Its timm model lists the modules where features may be taken.
        layer: 1 to 4; of a list of another length, the end of so many quarters.

    Raises:
        ModelError: When the model has no such list.
    """
    info: Any = getattr(classifier.module, "feature_info", None) or ()
    known = dict(classifier.module.named_modules())
    names = [row["module"] for row in getattr(info, "info", info) if row.get("module") in known]
    if not names:
        raise ModelError("does not say where its stages end", where=classifier.name, hint="take another timm model")
    return str(names[math.ceil(len(names) * layer / 4) - 1])
