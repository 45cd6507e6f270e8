"""One image of `wsol refine`: its maps and pixels from files, its mask, and back to a file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsol import refine
from wsol.data.images import read_image
from wsol.engine.mask_source import read_saliency
from wsol.engine.refine_options import RefineConfig
from wsol.errors import ConfigError, DataError, ModelError, WriteError, WsolError
from wsol.schema import IGNORE, PseudoMask, Sample, ScoreMaps
from wsol.store.maps import read_maps, write_maps
from wsol.store.masks import write_mask

Done = tuple[str, dict[str, Any], str | None]
"""Image id, facts for its row of the manifest, and why it has no mask."""


def refine_one(sample: Sample, config: RefineConfig, num_classes: int) -> Done:
    """Write the mask of one image.

    Args:
        sample: The image.
        config: Options of the job.
        num_classes: Of the data set.

    Raises:
        WsolError: What is wrong for every image: a full disk, a refiner without its network.
    """
    try:
        maps, image = read_pair(sample, config)
        mask, refined = refine_pair(maps, image, config, num_classes)
        return sample.id, write_result(maps, mask, refined, config, num_classes), None
    except (ConfigError, ModelError, WriteError):
        raise
    except WsolError as error:
        return sample.id, {}, str(error)


def read_pair(sample: Sample, config: RefineConfig) -> tuple[ScoreMaps, NDArray[np.uint8]]:
    """Return the maps and the pixels of an image.

    Raises:
        StoreError: When the maps are missing or torn.
        DataError: When the image cannot be read, or is not the one of the maps.
    """
    maps = read_maps(config.maps, sample.id)
    image = read_image(sample.image, upright=sample.upright)
    if maps.image_size != image.shape[:2]:
        height, width = maps.image_size
        what = f"the maps are of an image {height}x{width}, the file holds {image.shape[0]}x{image.shape[1]} pixels"
        raise DataError(what, where=sample.image, hint="make the maps of these images, or check the data set")
    return maps, image


def refine_pair(
    maps: ScoreMaps, image: NDArray[np.uint8], config: RefineConfig, num_classes: int
) -> tuple[PseudoMask, NDArray[np.float32]]:
    """Return the mask of an image, and its refined scores float32 (1 + K, H, W)."""
    named = maps.class_ids if num_classes < IGNORE else np.arange(len(maps.class_ids))
    full = maps.at_image_size()
    chain = refine.chain(config.method, config.options)
    saliency = None if config.saliency is None else read_saliency(config.saliency, maps.id, maps.image_size)

    def label(scores: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
        return chain.label(scores, named, saliency=saliency, min_confidence=config.min_confidence)

    background = config.background if config.alpha is None else None
    refined = chain(image, refine.with_background(full, background=background, alpha=config.alpha))
    labels, confidence = label(refined)
    if config.background_low is not None:
        loose = chain(image, refine.with_background(full, background=config.background_low))
        labels = refine.merge_labels(labels, label(loose)[0])
    return PseudoMask(id=maps.id, labels=labels, confidence=confidence if config.confidence else None), refined


def write_result(
    maps: ScoreMaps, mask: PseudoMask, refined: NDArray[np.float32], config: RefineConfig, num_classes: int
) -> dict[str, Any]:
    """Write the mask, and the refined scores where they are wanted; return the facts for the row."""
    if config.scores:
        write_maps(config.out, replace(maps, values=np.clip(refined[1:], 0, 1).astype(np.float16)))
    facts: dict[str, Any] = {"bytes": write_mask(config.out, mask)}
    fits = num_classes < IGNORE
    named = maps.class_ids if fits else np.arange(len(maps.class_ids))
    vanished = maps.class_ids[~np.isin(named + 1, mask.labels)].tolist()
    if vanished:
        facts["vanished"] = vanished
    return facts if fits else {**facts, "classes": maps.class_ids.tolist()}
