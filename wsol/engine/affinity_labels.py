"""What affinities are learned from: pixels whose class or background the score maps and a CRF are certain of."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsol import refine
from wsol.data.images import read_image
from wsol.engine.affinity_options import IRNLabels, PSALabels
from wsol.engine.loaders import Failures
from wsol.engine.progress import track
from wsol.errors import DataError, WriteError, WsolError
from wsol.schema import IGNORE, PseudoMask, Sample
from wsol.store.maps import read_maps
from wsol.store.masks import mask_path, write_mask

_GT_PROBABILITY = 0.7  # what the code of IRNet believes of a label


def certain_labels(
    image: NDArray[np.uint8], maps: NDArray[np.float32], rule: PSALabels | IRNLabels
) -> NDArray[np.uint8]:
    """Return the labels that two readings of the maps agree on.

    Args:
        image: uint8 (H, W, 3) RGB.
        maps: float32 (K, H, W) in [0, 1]; K < 255.
        rule: Which readings.

    Returns:
        uint8 (H, W): 0 background, 1 + position of the class among the K, 255 uncertain.

    Raises:
        DataError: When there are too many maps for a mask.
    """
    if len(maps) >= IGNORE:
        raise DataError(
            f"expected fewer than {IGNORE} maps, got {len(maps)}", hint="run wsol cam with --classes labels"
        )
    if isinstance(rule, PSALabels):
        strict, loose = (_by_scores(image, maps, alpha) for alpha in (rule.low_alpha, rule.high_alpha))
    else:
        strict, loose = (_by_argmax(image, maps, level) for level in (rule.foreground, rule.background))
    return refine.merge_labels(strict, loose)


def write_labels(
    run: Path,
    samples: Sequence[Sample],
    *,
    maps: Path,
    rule: PSALabels | IRNLabels,
    workers: int,
    failures: Failures,
    quiet: bool = False,
) -> tuple[Sample, ...]:
    """Write the certain labels of every image that has none yet, as masks of the run.

    Args:
        run: Run folder to write into.
        samples: Images.
        maps: Run folder of wsol cam.
        rule: Which labels are certain.
        workers: Threads; the CRF leaves the interpreter free.
        failures: Gets the images that cannot be labelled.
        quiet: No progress.

    Returns:
        The samples that have labels.

    Raises:
        WriteError: When the folder cannot be written.
    """

    def work(sample: Sample) -> str | None:
        try:
            found = read_maps(maps, sample.id)
            image = read_image(sample.image, upright=sample.upright)
            labels = certain_labels(image, found.at_image_size(), rule)
            if found.class_ids.max(initial=0) + 1 < IGNORE:  # else positions, which say as much to a pair of pixels
                lookup = np.full(IGNORE + 1, IGNORE, np.uint8)
                lookup[: len(found.class_ids) + 1] = [0, *(found.class_ids + 1)]
                labels = lookup[labels]
            write_mask(run, PseudoMask(id=sample.id, labels=labels))
        except WriteError:
            raise
        except WsolError as error:
            return str(error)
        return None

    pending = [sample for sample in samples if not mask_path(run, sample.id).is_file()]
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        with track(len(pending), "labels", quiet=quiet) as tracker:
            for sample, reason in zip(pending, pool.map(work, pending), strict=True):
                if reason is not None:
                    failures.note([(sample.id, reason)])
                tracker.advance()
    finally:
        pool.shutdown(cancel_futures=True)
    return tuple(sample for sample in samples if mask_path(run, sample.id).is_file())


def _by_scores(image: NDArray[np.uint8], maps: NDArray[np.float32], alpha: float) -> NDArray[np.uint8]:
    """PSA: the CRF starts from the scores."""
    marginals = refine.create("densecrf", preset="irn")(image, refine.with_background(maps, alpha=alpha))
    return np.asarray(marginals.argmax(axis=0), dtype=np.uint8)


def _by_argmax(image: NDArray[np.uint8], maps: NDArray[np.float32], background: float) -> NDArray[np.uint8]:
    """IRNet: the CRF starts from labels that are believed with probability 0.7."""
    crf = refine.create("densecrf", preset="irn_label", gt_prob=_GT_PROBABILITY)
    return np.asarray(crf(image, refine.with_background(maps, background=background)).argmax(axis=0), dtype=np.uint8)
