"""What every map method is: images and class ids in, one raw map a class out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wsol.errors import ModelError
from wsol.models.classifier import Classifier
from wsol.models.layout import run_features
from wsol.models.taps import evaluating

ClassIds = Sequence[Sequence[int]]
ClassChoice = ClassIds | Callable[[Tensor], ClassIds]


@dataclass(frozen=True, slots=True, eq=False)
class RawMaps:
    """Maps of a batch as the formula gives them: neither rectified nor normalized.

    Attributes:
        values: A float32 tensor (K_i, rows, columns) an image.
        class_ids: The K_i class ids of each image.
        logits: float32 (B, C) of the same forward pass.
    """

    values: tuple[Tensor, ...]
    class_ids: tuple[tuple[int, ...], ...]
    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class MapMethod(ABC):
    """One way to make maps; subclasses are frozen dataclasses whose fields are the options.

    Attributes:
        normalization: What brings the maps to [0, 1] where nothing else is asked for: "relu" or "minmax".
    """

    normalization: ClassVar[Literal["relu", "minmax"]] = "relu"

    def bind(self, classifier: Classifier | nn.Module) -> BoundMethod:
        """Return the method for one classifier.

        Args:
            classifier: A `Classifier`, or a timm model to wrap in one.

        Raises:
            ModelError: When the method cannot work with this model.
        """
        known = classifier if isinstance(classifier, Classifier) else Classifier(classifier)
        self.check(known)
        return BoundMethod(self, known)

    def check(self, classifier: Classifier) -> None:  # noqa: B027 (most methods accept any model)
        """Refuse a model or an option that cannot work.

        Raises:
            ModelError: Saying what the method needs.
            ConfigError: Naming the option.
        """

    @abstractmethod
    def maps(self, classifier: Classifier, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch; the model is in evaluation mode.

        Args:
            classifier: The model.
            images: Float (B, 3, h, w), normalized as the model expects.
            class_ids: Class ids of each image, or a function of the logits (B, C) that chooses them.
        """


@dataclass(frozen=True, slots=True, eq=False)
class BoundMethod:
    """A map method and its classifier, ready to be called.

    Attributes:
        method: The method with its options.
        classifier: The model; a call leaves its mode, gradients, hooks and switches as they were.
    """

    method: MapMethod
    classifier: Classifier

    def __call__(self, images: Tensor, class_ids: ClassChoice) -> RawMaps:
        """Make the maps of a batch.

        Args:
            images: Float (B, 3, h, w) on the model's device, normalized as the model expects.
            class_ids: Class ids of each image (none is fine), or a function of the logits (B, C) that chooses them.

        Raises:
            ModelError: When the images are no such tensor, or a class id or the size of the input does not fit the
                model.
        """
        known = self.classifier
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            facts = (type(images).__name__, getattr(images, "dtype", ""), tuple(getattr(images, "shape", ())))
            raise ModelError("expected a float Tensor of images (B, 3, h, w), got {} {} {}".format(*facts))
        if images.device != known.device:
            raise ModelError(
                f"the images are on {images.device}, the model on {known.device}", hint="images.to(device)"
            )
        try:
            with evaluating(known.module):
                return self.method.maps(known, images, class_ids)
        except (AssertionError, RuntimeError) as error:
            size = (images.shape[2], images.shape[3])
            if isinstance(error, torch.OutOfMemoryError) or _runs_at(known, size):
                raise
            height, width = known.input_size
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            hint = f"it certainly takes {height}x{width}: fixed sizes need --resize squash and one scale"
            raise ModelError(
                f"cannot run at {size[0]}x{size[1]} pixels: {reason}", where=known.name, hint=hint
            ) from error
        finally:
            # Autocast of torch before 2.11 would give a caller who trains the weights cast in inference mode.
            torch.clear_autocast_cache()


def _runs_at(classifier: Classifier, size: tuple[int, int]) -> bool:
    """Return whether the model runs at an input size (h, w), so that an error has another cause."""
    try:
        return size == classifier.input_size or bool(run_features(classifier.module, size=size))
    except ModelError:
        return False


def choose(class_ids: ClassChoice, logits: Tensor) -> tuple[tuple[int, ...], ...]:
    """Return the class ids of each image as plain numbers.

    Args:
        class_ids: What the caller gave.
        logits: (B, C); a model without a head (C = 0) takes any id, for methods that ignore the class.

    Raises:
        ModelError: When there is not one row of ids an image, or an id is no number or no class of the model.
    """
    rows = class_ids(logits) if callable(class_ids) else class_ids
    try:
        ids = tuple(tuple(int(value) for value in row) for row in rows)
    except (TypeError, ValueError) as error:
        hint = "one list of class ids an image, as in [[3], [1, 4]]"
        raise ModelError(f"expected class ids of each image, got {rows!r:.80}", hint=hint) from error
    if len(ids) != len(logits):
        raise ModelError(f"expected class ids for {len(logits)} images, got {len(ids)} rows")
    count = logits.shape[1]
    wrong = [value for row in ids for value in row if value < 0 or (count and value >= count)]
    if wrong:
        raise ModelError(f"class id {wrong[0]} is not in [0, {count - 1}]", hint="the data set and the head must agree")
    return ids


def true_logits(classifier: Classifier, output: Tensor) -> Tensor:
    """Return float32 logits (B, C); a headless model gives features instead, and so has C = 0."""
    return (output if classifier.num_classes else output[:, :0]).float()
