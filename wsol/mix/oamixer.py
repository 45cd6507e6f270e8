"""OAMixer's training: the network is told the labels of the patches, which are mixed as the images are.

Kang, Mo, Shin, "OAMixer: Object-aware Mixing Layer for Vision Transformers", CVPRW 2022,
https://arxiv.org/abs/2212.06595; the model is `wsol.models.object_aware`. Where the authors take ReLabel's or
BigBiGAN's maps, these are stored score maps (`wsol cam` on the training images): with the background's score, 1 - the
largest, they are divided by their sum. Without labels, as in validation, the model is the transformer inside.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, cast

from wsol.errors import ConfigError, ModelError
from wsol.mix import MIXES
from wsol.mix._compose import Over
from wsol.mix.base import Context, Draws, Family, Mixed, Need, Output

if TYPE_CHECKING:
    from torch import Tensor

    from wsol.models.classifier import Classifier


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PatchLabelled(Mixed):
    """A mixed batch with the labels of its patches.

    Attributes:
        patch_labels: Float (B, N, K + 1), background first, with sum 1.
    """

    patch_labels: Tensor


@MIXES.register("oamixer")
@dataclass(frozen=True, kw_only=True)
class OAMixerTraining(Over):
    """Train an object-aware model, over a strategy that keeps every pixel in its place, such as cutmix and mixup."""

    family: ClassVar[Family] = "attention"
    paper: ClassVar[str] = "Kang et al., CVPRW 2022"
    needs: ClassVar[frozenset[Need]] = frozenset({"label_maps"})

    inner: str = "choice"
    """The strategy that mixes the images: its name, or with options as in 'cutmix: {alpha: 0.5}'."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models that know no patch labels, and inner strategies with labels or a loss of their own."""
        from wsol.mix._tokens import require_plain
        from wsol.models.object_aware import ObjectAware

        require_plain(self.strategy, name="oamixer")
        if not isinstance(classifier.module, ObjectAware):
            hint = "put object_aware: before the name of a vision transformer"
            raise ModelError("knows no labels of patches", where=classifier.name, hint=hint)
        super().check(classifier)

    def mix(self, x: Tensor, y: Tensor, draws: Draws, context: Context | None = None) -> Mixed:
        """Mix as the inner strategy does, and the labels of the patches likewise; see `MixStrategy.mix`."""
        from torch.nn.functional import adaptive_avg_pool2d

        from wsol.mix._providers import require

        context = require(context, name="oamixer")
        mixed = self.strategy.mix(x, y, draws, context)
        if context.label_maps is None:
            hint = "give the store of `wsol cam` on the training images"
            raise ConfigError("score maps of the images are not there", where="mix 'oamixer'", hint=hint)
        if mixed.own_mask is None:
            what = "the inner strategy does not say whose each pixel is"
            raise ConfigError(what, where="mix 'oamixer'", hint="put it over cutmix or mixup")
        grid = context.classifier.grid(x.shape[2], x.shape[3])
        labels = label_vectors(context.label_maps, grid)
        share = adaptive_avg_pool2d(mixed.own_mask.to(labels), grid).flatten(2).transpose(1, 2)
        known = {item.name: getattr(mixed, item.name) for item in fields(Mixed)}
        return PatchLabelled(**known, patch_labels=share * labels + (1 - share) * labels[mixed.partner])

    def after_step(self, context: Context) -> None:
        """Bring kappa back into its range, beyond which it has no gradient; update the state of the inner strategy."""
        context.classifier.module.clamp_kappa()
        super().after_step(context)

    def forward(self, mixed: Mixed, context: Context) -> Output:
        """Run the network on the mixed images with the labels of their patches."""
        with context.classifier.module.labelled(cast(PatchLabelled, mixed).patch_labels):
            return super().forward(mixed, context)


def label_vectors(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return label vectors (B, N, K + 1) of the patches, background first, with sum 1.

    Args:
        maps: (B, K, h, w), scores in [0, 1].
        grid: (rows, columns) of the N patches.
    """
    import torch
    import torch.nn.functional as F

    scores = F.interpolate(maps.float(), grid, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
    both = torch.cat([1 - scores.amax(1, keepdim=True), scores], 1)
    return (both / both.sum(1, keepdim=True)).flatten(2).transpose(1, 2)
