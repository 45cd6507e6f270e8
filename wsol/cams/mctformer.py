"""MCTformer: what the token of each class looks at, spread along the attention between patches.

Xu, Ouyang, Bennamoun, Boussaid, Xu, "Multi-class Token Transformer for Weakly Supervised Semantic Segmentation",
CVPR 2022, https://arxiv.org/abs/2203.02891. M_c = P (T_c * relu(S_c)): T_c is the attention of the token of class c to
the patches, mean over heads and the last blocks; P the attention between patches, mean over heads and all blocks; S_c
PatchCAM, the patch scores of a model that has them (V2). The authors' code sums over blocks instead of taking the
mean: a constant that any normalization removes. By default it takes all blocks for T_c; the maps are normalized by
min-max.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from wsol.cams import CAMS
from wsol.cams._attention import read_layers, require_attention
from wsol.cams.base import ClassChoice, MapMethod, RawMaps, choose
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import tap


@CAMS.register("mctformer")
@dataclass(frozen=True, kw_only=True)
class MCTformer(MapMethod):
    """What the token of each class looks at, spread along the attention between patches."""

    normalization: ClassVar[Literal["relu", "minmax"]] = "minmax"  # maps that were spread have no zero
    last_layers: int | None = None
    """Number of last blocks whose class tokens are read; default: all."""
    affinity: bool = True
    """Spread the maps along the attention between patches."""
    patch_cam: bool = True
    """Multiply by the patch scores of a model that has them (V2)."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without a class token for each class, and options out of range."""
        require_attention(classifier)
        if not 0 < classifier.num_classes == classifier.class_tokens:
            hint = "train mctformer_v1_small_patch16_224, or use chefer or legrad"
            raise ModelError("needs one class token for each class", where=classifier.name, hint=hint)
        count = len(classifier.attention)
        if self.last_layers is not None and not 0 < self.last_layers <= count:
            raise ConfigError(f"last_layers must be in [1, {count}], got {self.last_layers}", where="mctformer")

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        module, names, count = classifier.module, classifier.attention, classifier.num_classes
        semantic: Tensor | None = None
        with torch.inference_mode():
            with tap(module, attention=names, reduce=lambda weights: weights.mean(1)) as tapped:
                tokens = module.forward_features(images)
            scores = module.forward_head(tokens)
            if self.patch_cam and getattr(module, "patch_cam", False):
                semantic = module.patch_scores(tokens).float().relu().flatten(2)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = scores.float().clone()
            ids = choose(class_ids, logits)
            layers = [layer.float() for layer in read_layers(classifier, tapped, names, images)]
            used = layers[-(self.last_layers or len(layers)) :]
            looked = torch.stack([layer[:, :count, count:] for layer in used]).mean(0)
            looked = looked if semantic is None else looked * semantic
            if self.affinity:
                patches = torch.stack([layer[:, count:, count:] for layer in layers]).mean(0)
                chosen = [looked[at, list(row)] @ patches[at].T for at, row in enumerate(ids)]
            else:
                chosen = [looked[at, list(row)] for at, row in enumerate(ids)]
            grid = classifier.grid(*images.shape[-2:])
        return RawMaps(tuple(planes.reshape(-1, *grid) for planes in chosen), ids, logits)
