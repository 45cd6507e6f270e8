"""The masks and saliency maps that a data set is read with: its own, or those of a run or folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol import data
from wsol.data.images import read_image
from wsol.errors import ConfigError, DataError
from wsol.eval.sources import mask_file
from wsol.schema import IGNORE, Sample
from wsol.store.masks import read_labels
from wsol.store.shards import has_file

TRUTH = "gt"


@dataclass(frozen=True)
class MaskFolder:
    """Reads the mask of a sample from a folder of ID.png files; an id that ends in .jpg may also become .png.

    Attributes:
        path: The folder.
        confidence: Folder of the confidence of each mask, or None.
        least: Pixels of less confidence become 255.
    """

    path: Path
    confidence: Path | None = None
    least: float = 0.0

    def file(self, sample: Sample) -> Path:
        """Return where the mask of a sample lies."""
        return mask_file(self.path, sample.id)

    def __call__(self, sample: Sample) -> NDArray[np.uint8]:
        """Return uint8 (H, W).

        Raises:
            WsolError: When the mask or its confidence cannot be read.
        """
        labels = read_labels(self.file(sample))
        if self.confidence is None:
            return labels
        path = mask_file(self.confidence, sample.id)
        if not has_file(path):
            raise DataError("no confidence of this mask", where=path, hint="make the masks with --confidence")
        confidence = read_labels(path)
        if confidence.shape != labels.shape:
            raise DataError(f"the confidence is {confidence.shape} but the mask is {labels.shape}", where=sample.id)
        labels[confidence < round(self.least * 255)] = IGNORE
        return labels


def with_masks(dataset: data.Dataset, masks: str, *, min_confidence: float = 0.0) -> tuple[data.Dataset, int]:
    """Make a data set whose ground truth are other masks.

    Args:
        dataset: All images.
        masks: "gt" for the data set's own masks, a run folder of wsol refine, or a folder of ID.png files.
        min_confidence: Pixels whose stored confidence is lower become 255.

    Returns:
        The images that have a mask, and how many have none.

    Raises:
        DataError: When no image has one.
        ConfigError: When there is no confidence to go by.
    """
    folder = Path(masks).expanduser()
    run = masks != TRUTH and (folder / "masks").is_dir()
    if min_confidence and not (run and (folder / "confidence").is_dir()):
        hint = "give a run of wsol refine --confidence as --masks"
        raise ConfigError("--min-confidence needs the confidence of the masks", where=masks, hint=hint)
    if masks == TRUTH:
        if dataset.spec.annotations not in ("mask", "both"):
            raise DataError(f"data set '{dataset.spec.name}' has no true masks", hint="give --masks RUN or FOLDER")
        return dataset, 0
    confidence = folder / "confidence" if min_confidence else None
    reader = MaskFolder(folder / "masks" if run else folder, confidence, min_confidence)
    kept = tuple(sample for sample in dataset.samples if has_file(reader.file(sample)))
    if not kept:
        first = reader.file(dataset.samples[0])
        hint = f"looked for {first.name}; give a run of wsol refine, a folder of masks, or gt"
        raise DataError("no image has a mask here", where=folder, hint=hint)
    return replace(dataset, samples=kept, truth=reader), len(dataset) - len(kept)


def read_saliency(folder: Path, image_id: str, size: tuple[int, int]) -> NDArray[np.float32]:
    """Read the saliency map of an image from a folder of ID.png files; an id that ends in .jpg may also become .png.

    Args:
        folder: The folder.
        image_id: The image.
        size: Its (H, W).

    Returns:
        float32 (H, W) in [0, 1], 0 where there is no object.

    Raises:
        DataError: When the map cannot be read or has another size.
    """
    path = mask_file(folder, image_id)
    saliency = read_image(path).max(axis=2)
    if saliency.shape != size:
        what = f"expected saliency of {size[0]}x{size[1]} pixels, got {saliency.shape[0]}x{saliency.shape[1]}"
        raise DataError(what, where=path)
    return np.asarray(saliency / np.float32(255), dtype=np.float32)
