"""`wsol cam clip-prompts`: choose the sentence around the class names of a CLIP model by its sharpness.

Lin et al., "CLIP Is Also an Efficient Segmenter: A Text-Driven Approach for Weakly Supervised Semantic Segmentation",
CVPR 2023, https://arxiv.org/abs/2212.09506, section "sharpness-based prompt selection". Written from the paper's
description: the authors published the chosen sentence, not the code that chose it, so nothing here is checked
against theirs.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol import data
from wsol.data.images import read_image
from wsol.data.prompts import TEMPLATE, Prompts, load_prompts, write_prompts
from wsol.data.transforms import to_input
from wsol.engine.clip_prompts_options import ClipPromptsConfig
from wsol.engine.device import resolve_device
from wsol.engine.progress import track
from wsol.errors import ConfigError, DataError, WsolError
from wsol.models.classifier import Classifier
from wsol.schema import Sample

_log = logging.getLogger("wsol")
PUBLISHED = (TEMPLATE, "a rendering of a weird {}.")


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """What `choose_prompts` found.

    Attributes:
        sharpness: Candidate to its sharpness, the best (lowest) first.
        images: Number of images of several classes that it was measured on.
        prompts: The texts with the best candidate as the only template.
    """

    sharpness: Mapping[str, float]
    images: int
    prompts: Prompts


def choose_prompts(config: ClipPromptsConfig) -> PromptChoice:
    """Measure every candidate and write the texts with the best one.

    Args:
        config: See `ClipPromptsConfig`.

    Raises:
        WsolError: On a mistake in the options, or when no image has several classes.
    """
    from wsol.models.clip import set_texts
    from wsol.models.clip_load import load_towers
    from wsol.models.clip_text import default_cache

    candidates = read_templates(config.templates)
    device = resolve_device(config.device)
    dataset = data.load(config.data, root=config.root, split=config.split, **config.data_options)
    prompts = load_prompts(config.prompts, dataset.spec)
    samples = [sample for sample in dataset.samples if len(sample.labels) > 1][: config.limit]
    if not samples:
        where = f"split '{dataset.spec.split}' of '{config.data}'"
        raise DataError("no image of several classes", where=where, hint="sharpness compares the classes of an image")
    towers = load_towers(config.model, checkpoint=config.checkpoint, pretrained=config.pretrained, device=device)
    classifier = Classifier(towers.image, name=config.model)
    head: Any = classifier.module.head
    features, labels = _encode(classifier, samples, config)
    found = {}
    with track(len(candidates), "templates", quiet=config.quiet) as tracker:
        for template in candidates:
            texts = towers.text.class_features(prompts.texts, templates=(template,), cache=default_cache())
            set_texts(classifier.module, texts)
            logits = head.logit_scale * features @ head.text_features.T + head.logit_bias
            found[template] = sharpness(logits, labels)
            tracker.advance()
    ranked = dict(sorted(found.items(), key=lambda item: item[1]))
    chosen = replace(prompts, templates=(next(iter(ranked)),))
    write_prompts(config.out, chosen)
    return PromptChoice(ranked, len(labels), chosen)


def sharpness(logits: Tensor, labels: Sequence[Sequence[int]]) -> float:
    """Return how unevenly a model scores the classes that are in the same image, summed over images.

    With s the softmax scores over all classes, an image adds var(s_c) / mean(s_c) over its classes c (the paper's
    modified coefficient of variation; variance with divisor n). Lower is better: every class of an image is seen.

    Args:
        logits: (N, C).
        labels: Class ids of each image; one class alone adds 0.
    """
    scores = logits.double().softmax(1)
    total = 0.0
    for row, present in zip(scores, labels, strict=True):
        values = row[list(present)]
        if len(present) > 1:
            total += float(values.var(correction=0) / values.mean())
    return total


def read_templates(path: Path | None) -> tuple[str, ...]:
    """Return the candidates of a text file, one a line, or by default OpenAI's for ImageNet and those of CLIP-ES.

    Raises:
        ConfigError: When the file cannot be read, is empty, or a line lacks its "{}".
    """
    if path is None:
        import open_clip

        known = (template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
        return tuple(dict.fromkeys((*PUBLISHED, *known)))
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the templates: {error}", where=path) from error
    found = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    wrong = [line for line in found if line.count("{}") != 1]
    if not found or wrong:
        what = f"{wrong[0]!r} must hold '{{}}' once" if wrong else "no template"
        raise ConfigError(what, where=path, hint=f"one a line, for example {PUBLISHED[0]!r}")
    return found


def _encode(
    classifier: Classifier, samples: Sequence[Sample], config: ClipPromptsConfig
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Return unit features (N, E) of the readable images, and their labels."""
    features: list[Tensor] = []
    labels: list[tuple[int, ...]] = []
    module: Any = classifier.module

    def read(sample: Sample) -> NDArray[np.float32] | WsolError:
        try:
            image = read_image(sample.image, upright=sample.upright)
        except WsolError as error:
            return error
        facts = {"mean": classifier.mean, "std": classifier.std}
        return to_input(image, classifier.input_size, interpolation=classifier.interpolation, **facts)

    with (
        ThreadPoolExecutor(max(1, config.workers)) as pool,
        track(len(samples), "images", quiet=config.quiet) as tracker,
    ):
        for batch in _chunks(samples, config.batch_size):
            kept = []
            for sample, array in zip(batch, pool.map(read, batch), strict=True):
                if isinstance(array, WsolError):
                    _log.warning("left out: %s", array)
                else:
                    kept.append(array)
                    labels.append(sample.labels)
            if kept:
                images = torch.from_numpy(np.stack(kept)).to(classifier.device)
                with torch.no_grad():
                    pooled = module.forward_head(module.forward_features(images), pre_logits=True)
                    features.append(module.head.embed(pooled))
            tracker.advance(len(batch))
    if not features:
        raise DataError("no image of several classes can be read", where=config.data)
    return torch.cat(features), labels


def _chunks(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    queue = iter(samples)
    while batch := list(itertools.islice(queue, max(1, size))):
        yield batch
