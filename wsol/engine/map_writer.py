"""From raw maps to files and rows, while the next batch is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wsol.cams import CAMS
from wsol.engine.options import CamConfig
from wsol.engine.outcome import Outcome
from wsol.errors import StoreError, WriteError, WsolError
from wsol.ops.normalize import normalize
from wsol.schema import Sample, ScoreMaps
from wsol.store.manifest import Manifest
from wsol.store.maps import write_maps


@dataclass(frozen=True)
class Computed:
    """The raw maps of one image, as they leave the device.

    Attributes:
        sample: The image.
        size: (H, W) of the image in pixels.
        values: float32 (K, rows, columns).
        class_ids: The K class ids.
        logits: float32 (C,).
    """

    sample: Sample
    size: tuple[int, int]
    values: NDArray[np.float32]
    class_ids: tuple[int, ...]
    logits: NDArray[np.float32]


class MapWriter:
    """Writes the maps of one batch while the next one is computed; a context manager.

    One thread, one batch ahead at most: files and rows keep their order, a row follows its file, and an error of
    the writer ends the job at the next batch.
    """

    def __init__(self, config: CamConfig, manifest: Manifest, outcome: Outcome, done: set[str]) -> None:
        self.config, self.manifest, self.outcome, self.kept = config, manifest, outcome, done
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if kind is None and self._last is not None:
            self._last.result()

    def put(self, computed: Sequence[Computed], failed: Mapping[str, str]) -> None:
        """Write a batch: the images, and the reasons of those that have no maps."""
        if self._last is not None:
            self._last.result()
        self._last = self._thread.submit(self._write, computed, failed)

    def _write(self, computed: Sequence[Computed], failed: Mapping[str, str]) -> None:
        for image_id, reason in failed.items():
            self._fail(image_id, reason)
        for image in computed:
            if image.sample.id in self.kept:
                self.outcome.skipped += 1
                continue
            try:
                maps = _finish(image, self.config)
                size = write_maps(self.config.out, maps)
            except WriteError:
                raise
            except WsolError as error:  # NaN in the maps, or a name too long for the file system
                self._fail(image.sample.id, str(error))
                continue
            self.manifest.done(maps.id, classes=maps.class_ids.tolist(), bytes=size)
            self.outcome.done += 1

    def _fail(self, image_id: str, reason: str) -> None:
        self.manifest.failed(image_id, reason)
        self.outcome.failures[image_id] = reason
        if self.config.fail_fast:
            raise StoreError(reason, hint="without --fail-fast the other images go on")


def _finish(image: Computed, config: CamConfig) -> ScoreMaps:
    """Normalize raw maps and bring them to the size they are stored at."""
    how = CAMS.get(config.method).normalization if config.normalize == "auto" else config.normalize
    values = normalize(image.values, how)
    maps = ScoreMaps(
        id=image.sample.id,
        values=values.astype(np.float16),
        class_ids=np.asarray(image.class_ids, dtype=np.int16),
        image_size=image.size,
        logits=image.logits,
    )
    if config.store != "image":
        return maps
    full = np.clip(maps.at_image_size(), 0, 1).astype(np.float16)
    return replace(maps, values=full)
