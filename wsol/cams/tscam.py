"""TS-CAM: the class scores of the patch tokens, coupled with what the class token looks at in all blocks.

Gao, Wan, Pan, Peng, Tian, Han, Zhou, Ye, "TS-CAM: Token Semantic Coupled Attention Map for Weakly Supervised Object
Localization", ICCV 2021, https://arxiv.org/abs/2103.14862. M_c = A * S_c: S_c is what the head makes of each patch
token after the last norm, A the class token's attention, mean over blocks and heads. (The authors' code sums A over
the blocks: a constant that any normalization removes. It resizes M_c bilinearly and normalizes by min-max, for which
give `--normalize minmax`.)

Made for models trained so, whose logits are the mean of S_c over the patches: `tscam_small_patch16_224` with the
paper's 3x3 convolution, or transformers that pool. A head that was trained on the class token only is applied to the
patch tokens all the same, which it has never seen: then expect S_c to be rough.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsol.cams import CAMS
from wsol.cams._attention import TokenMethod, patch_map, read_layers
from wsol.cams.base import ClassChoice, RawMaps, choose
from wsol.errors import ModelError
from wsol.models.classifier import Classifier
from wsol.models.taps import tap


@CAMS.register("tscam")
@dataclass(frozen=True, kw_only=True)
class TSCAM(TokenMethod):
    """Class scores of the patch tokens, coupled with what the class token looks at in all blocks."""

    def check(self, classifier: Classifier) -> None:
        """Refuse models without attention over all tokens, or without a head that fits a token."""
        super().check(classifier)
        pooled = getattr(classifier.module, "attn_pool", None) is not None
        linear = all(isinstance(head, nn.Linear) for head in _heads(classifier))
        if pooled or not (linear or _scores_patches(classifier)):
            hint = "legrad and chefer work with any head"
            raise ModelError("needs a linear head that reads tokens", where=classifier.name, hint=hint)

    def output_tokens(self, classifier: Classifier) -> slice:
        """Return the class token where there is one, also in models that pool."""
        if self.token == "auto" and getattr(classifier.module, "cls_token", None) is not None:  # noqa: S105
            return slice(0, 1)
        return super().output_tokens(classifier)

    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch."""
        module, names = classifier.module, classifier.attention
        with torch.inference_mode():
            with tap(module, attention=names, reduce=lambda weights: weights.mean(1)) as tapped:
                tokens = module.forward_features(images)
            scores, semantic = module.forward_head(tokens), _semantic(classifier, tokens, images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            logits = scores.float().clone()
            ids = choose(class_ids, logits)
            layers = [layer.float() for layer in read_layers(classifier, tapped, names, images)]
            rows = [torch.einsum("r,brn->bn", self.start(classifier, layer), layer) for layer in layers]
            looked = patch_map(classifier, torch.stack(rows).mean(0), images)
            values = tuple(looked[at] * semantic[at, list(row)].float() for at, row in enumerate(ids))
        return RawMaps(values, ids, logits)


def _semantic(classifier: Classifier, tokens: Tensor, images: Tensor) -> Tensor:
    """Return class scores (B, C, rows, columns) of the patches; the mean of two heads in distilled models."""
    module = classifier.module
    if _scores_patches(classifier):
        scores: Tensor = module.patch_scores(tokens)
        return scores
    norm = getattr(module, "fc_norm", None) or nn.Identity()
    patches = norm(tokens[:, classifier.prefix_tokens :])
    each = torch.stack([head(patches) for head in _heads(classifier)]).mean(0)
    return classifier.to_grid(each, *images.shape[-2:])


def _scores_patches(classifier: Classifier) -> bool:
    return hasattr(classifier.module, "patch_scores") and isinstance(classifier.module.head, nn.Conv2d)


def _heads(classifier: Classifier) -> list[nn.Module]:
    head = classifier.head
    return list(head) if isinstance(head, nn.ModuleList) else [head]
