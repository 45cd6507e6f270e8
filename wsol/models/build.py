"""timm models by name, built to take as many input sizes as their architecture can."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from wsol.errors import ModelError, did_you_mean
from wsol.models._hub import hub
from wsol.models._wrapped import WRAPPERS, wrap


def build(
    name: str, *, num_classes: int | None, img_size: int | None, pretrained: bool, output_stride: int | None = None
) -> nn.Module:
    """Build a timm model.

    Args:
        name: timm model name, with or without a tag ("resnet50.a1_in1k"); a wrapper may stand before it
            ("dynamic_tokens:deit_small_patch16_224").
        num_classes: Outputs of the head; None for the model's own, 0 for none.
        img_size: Side in pixels for architectures of a fixed input size; the others need none.
        pretrained: Load timm's weights from the hub.
        output_stride: Stride of the last features, for CNNs that can dilate; None for the model's own.

    Raises:
        ModelError: When the name is unknown, or the weights cannot be had.
    """
    import timm

    wrapper, _, inner = name.partition(":")
    if wrapper in WRAPPERS:
        options: dict[str, Any] = {"num_classes": num_classes, "img_size": img_size, "output_stride": output_stride}
        return wrap(wrapper, build(inner, pretrained=pretrained, **options))
    if ":" not in name and not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models())
        hint = hint if hint.startswith("did you mean") else "timm.list_models() lists them all"
        hint = "it is a path: give it as --checkpoint" if Path(name).exists() else hint
        raise ModelError(f"unknown model '{name}'", hint=hint)
    fixed: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    head: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if output_stride is not None:
        head["output_stride"] = output_stride
    # timm has no switch that all architectures know: offer the freest one, until the constructor takes it.
    for sizes in ({"dynamic_img_size": True}, {"strict_img_size": False, **fixed}, fixed, {}):
        try:
            with _quiet(pretrained=pretrained):
                return timm.create_model(name, pretrained=pretrained, **head, **sizes)
        except TypeError as error:
            reason = str(error)
        except Exception as error:
            # The hub's client, its transport and timm raise errors of many families.
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            if pretrained:
                hint = "without a network, give --checkpoint FILE"
                raise ModelError(f"could not download the weights: {reason}", where=name, hint=hint) from error
            raise ModelError(f"cannot build the model: {reason}", where=name) from error
    raise ModelError(f"cannot build the model: {reason}", where=name)


@contextmanager
def _quiet(*, pretrained: bool) -> Iterator[None]:
    """Hold back deprecation notes of timm, and what the hub client says: the error says it in one line."""
    with warnings.catch_warnings(), hub() if pretrained else nullcontext():
        warnings.simplefilter("ignore")
        yield
