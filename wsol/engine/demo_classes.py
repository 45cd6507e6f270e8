"""Which classes of a model a user means by a few words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from wsol.data.imagenet import class_names, synsets
from wsol.errors import ConfigError, did_you_mean
from wsol.models.classifier import Classifier

_LIKELIEST = 5


@dataclass(frozen=True)
class ClassNames:
    """The names of a model's classes.

    Attributes:
        names: One name a class, by class id; empty for a model without a head.
        synonyms: All names of each class, lower case.
        multi_label: Whether each class has a probability of its own (sigmoid), instead of one for all (softmax).
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    multi_label: bool = False

    @classmethod
    def of(cls, classifier: Classifier) -> ClassNames:
        """Return the names that a classifier carries; those of ImageNet-1k where it has 1000 and names none."""
        count = classifier.num_classes
        if classifier.classes:
            names = tuple(classifier.classes)
        elif count == len(synsets()):
            return cls(class_names(synsets()), _imagenet_synonyms(), classifier.multi_label)
        else:
            names = tuple(f"class {at}" for at in range(count))
        return cls(names, tuple((name.lower(),) for name in names), classifier.multi_label)

    def find(self, word: str) -> tuple[int, ...]:
        """Return the ids of the classes that a word may mean.

        Args:
            word: A name, a class id, or the last word of some names ("cat" for "tabby cat" and "Siamese cat").

        Raises:
            ConfigError: When there is none; the hint names the nearest.
        """
        if word.isdecimal() and int(word) < len(self.names):
            return (int(word),)
        key = word.lower()
        exact = tuple(at for at, known in enumerate(self.synonyms) if key in known or key == self.names[at].lower())
        found = exact or tuple(
            at for at, known in enumerate(self.synonyms) if any(name.endswith(f" {key}") for name in known)
        )
        if not found:
            choices = {name for known in self.synonyms for name in known} if len(self.names) > 30 else set(self.names)
            raise ConfigError(f"the model knows no class '{word}'", where="--classes", hint=_nearest(key, choices))
        return found

    def choose(self, logits: Tensor, asked: Sequence[tuple[int, ...]]) -> list[int]:
        """Return one class id a word: of those that it may mean, the likeliest in this image.

        Args:
            logits: (C,) of the image; C = 0 without a head.
            asked: From `find`; the five likeliest classes where empty.
        """
        if not len(logits):
            return [0]
        if not asked:
            chosen: list[int] = logits.topk(min(_LIKELIEST, len(logits))).indices.tolist()
            return chosen
        return [max(ids, key=lambda at: float(logits[at])) for ids in asked]

    def title(self, class_id: int, logits: Tensor, word: str) -> str:
        """Return what to write over a map: the class, its probability, and the word where that was another one."""
        if not len(logits):
            return "all classes"
        scores = logits.float()
        share = float(scores.sigmoid()[class_id] if self.multi_label else scores.softmax(0)[class_id])
        name = self.names[class_id]
        shown = name if not word or word.isdecimal() or word.lower() == name.lower() else f"{word}: {name}"
        return f"{shown} ({100 * share:.0f} %)"


def _nearest(key: str, choices: set[str]) -> str:
    holding = sorted(name for name in choices if key in name)
    return f"names with it: {', '.join(holding[:8])}" if holding else did_you_mean(key, choices)


def _imagenet_synonyms() -> tuple[tuple[str, ...], ...]:
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    texts = (str(info.index_to_description(at)) for at in range(len(synsets())))
    return tuple(tuple(name.strip().lower() for name in text.split(",")) for text in texts)
