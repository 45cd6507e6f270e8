"""Score maps from a classifier: one map method a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsol.config import from_dict
from wsol.registry import Registry

if TYPE_CHECKING:  # torch is imported with the first method that is asked for
    from torch import nn

    from wsol.cams.base import BoundMethod, MapMethod
    from wsol.models.classifier import Classifier

__all__ = ["CAMS", "create"]

CAMS: Registry[type[MapMethod]] = Registry("map method", "wsol.cams", shared=("base", "tta"))


def create(name: str, classifier: Classifier | nn.Module, **options: Any) -> BoundMethod:
    """Make a map method for a classifier.

    Args:
        name: Registry name, for example "gradcam".
        classifier: From `wsol.models.classifier.load_classifier`, or any timm model.
        **options: Fields of the method's dataclass.

    Returns:
        Callable `(images (B, 3, h, w), class_ids)` -> `RawMaps`; see `BoundMethod`.

    Raises:
        ConfigError: When the name, an option or its value is wrong.
        ModelError: When the method cannot work with this model.
    """
    method = from_dict(CAMS.get(name), options, where=f"map method '{name}'")
    return method.bind(classifier)
