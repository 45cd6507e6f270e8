"""`wsol segment predict`: masks of a data set, of a folder or of listed files."""

from __future__ import annotations

import zipfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsol import data, refine
from wsol.data.transforms import input_size, resize_image
from wsol.engine.device import resolve_device
from wsol.engine.export_masks import write_coco
from wsol.engine.loaders import normalize, read_images
from wsol.engine.outcome import Outcome, log_to, say_failures
from wsol.engine.progress import track
from wsol.engine.segment_data import check_classes, image_files
from wsol.engine.segment_infer import View, predict
from wsol.engine.segment_options import SegmentPredictConfig
from wsol.engine.sharding import resolve_shard
from wsol.engine.training_run import checkpoint_hash
from wsol.errors import ConfigError, DataError, StoreError
from wsol.models.segmenter import Segmenter, load_segmenter
from wsol.models.vit_segmenter import MaskTransformer, ViTSegmenter
from wsol.refine import Refiner
from wsol.schema import IGNORE, PseudoMask, Sample, ScoreMaps
from wsol.store.atomic import atomic_write
from wsol.store.manifest import Manifest, finished
from wsol.store.maps import write_maps
from wsol.store.masks import mask_path, read_labels, write_mask
from wsol.store.runs import open_run
from wsol.store.shards import has_file, read_file

_SERVER = "results/VOC2012/Segmentation/{}_test_cls"
_Labelled = tuple[NDArray[np.uint8], NDArray[np.float16]]


def segment_predict(config: SegmentPredictConfig) -> Outcome:
    """Write the mask of every image that has none yet.

    Args:
        config: See `SegmentPredictConfig`.

    Returns:
        Counts, and the images that failed with their reasons; those are also rows of the manifest.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    crf = None if config.crf is None else refine.create("densecrf", preset=config.crf)
    shard, device = resolve_shard(config.shard), resolve_device(config.device)
    segmenter = load_segmenter(config.checkpoint, device=device)
    if config.attention and not isinstance(getattr(segmenter.module, "decoder", None), MaskTransformer):
        raise ConfigError("--attention needs a mask transformer", hint="train with --arch segmenter --decoder mask")
    dataset = _dataset(config, segmenter)
    if config.zip is not None:
        _check_names(dataset)
    run = open_run(
        config.out,
        verb="segment predict",
        config=config,
        dataset=dataset.spec,
        device=str(device),
        inputs=checkpoint_hash(config.checkpoint),
        overwrite=config.overwrite,
        shard=shard,
    )
    with run, Manifest(config.out, shard) as manifest, log_to(config.out / "log.txt"):
        ours = dataset.samples[shard[0] :: shard[1]]
        done = finished(config.out, lambda image_id: read_labels(mask_path(config.out, image_id)))
        if config.store == "shards":
            manifest.pack([sample.id for sample in ours], done)
        pending = [sample for sample in ours if sample.id not in done]
        outcome = Outcome(skipped=len(ours) - len(pending))
        view = View(
            img_size=config.img_size,
            scales=config.scales,
            flip=config.flip,
            window=config.window,
            stride=config.stride,
            amp=config.amp,
        )
        finish = partial(_finish, config=config, crf=crf)
        # The CRF and the files of an image are done beside the network's next one.
        waiting: deque[tuple[Sample, Future[int]]] = deque()
        with (
            track(len(pending), "masks (segment)", quiet=config.quiet) as tracker,
            ThreadPoolExecutor(max(1, config.workers)) as pool,
        ):

            def settle(left: int) -> None:
                while len(waiting) > left:
                    sample, size = waiting.popleft()
                    manifest.done(sample.id, bytes=size.result())
                    outcome.done += 1
                    tracker.advance()

            for sample, image in read_images(pending, workers=config.workers, device=device):
                if isinstance(image, str):
                    manifest.failed(sample.id, image)
                    outcome.failures[sample.id] = image
                    tracker.advance()
                    if config.fail_fast:
                        raise StoreError(image, hint="without --fail-fast the other images go on")
                    continue
                probabilities = predict(segmenter, image, view, device=device)
                found = _labels(probabilities) if crf is None else probabilities.cpu().numpy()
                if config.attention:
                    write_maps(config.out, _attention(segmenter, sample.id, image, config, device))
                waiting.append((sample, pool.submit(finish, sample.id, image, found)))
                settle(max(1, config.workers))
            settle(0)
        run.facts.update(outcome.facts())
        say_failures(outcome)
    if config.coco:
        write_coco(config.out, dataset.samples, dataset.spec)
    if config.zip is not None:
        write_server_zip(config.out, dataset.samples, competition=config.zip)
    return outcome


def write_server_zip(run: Path, samples: tuple[Sample, ...], *, competition: str) -> Path:
    """Pack the masks of a run as the PASCAL VOC test server wants them: palette PNGs named after the photos.

    Args:
        run: Run folder with masks.
        samples: Images of the split; those without a mask are left out.
        competition: "comp5" or "comp6".

    Returns:
        Path of `results.zip`.
    """
    with atomic_write(run / "results.zip") as stream, zipfile.ZipFile(stream, "w") as archive:
        for sample in samples:
            path = mask_path(run, sample.id)
            if has_file(path):
                name = f"{_SERVER.format(competition)}/{sample.image.stem}.png"
                archive.writestr(zipfile.ZipInfo(name), read_file(path))  # no clock time: equal masks, equal file
    return run / "results.zip"


def _dataset(config: SegmentPredictConfig, segmenter: Segmenter) -> data.Dataset:
    if config.data is None:
        found = image_files(config.images, classes=segmenter.facts.classes)
        return found if config.limit is None else found.limit(config.limit)
    dataset = data.load(config.data, root=config.root, split=config.split, limit=config.limit, **config.data_options)
    check_classes(segmenter, dataset)
    return dataset


def _check_names(dataset: data.Dataset) -> None:
    seen: set[str] = set()
    for sample in dataset.samples:
        if sample.image.stem in seen:
            raise DataError(f"two photos are named '{sample.image.stem}'", where="--zip", hint="predict without --zip")
        seen.add(sample.image.stem)


def _labels(probabilities: torch.Tensor) -> _Labelled:
    best, labels = probabilities.max(dim=0)
    return labels.to(torch.uint8).cpu().numpy(), best.half().cpu().numpy()


def _finish(
    image_id: str,
    image: NDArray[np.uint8],
    found: NDArray[np.float32] | _Labelled,
    *,
    config: SegmentPredictConfig,
    crf: Refiner | None,
) -> int:
    if isinstance(found, tuple):
        labels, confidence = found
    else:
        marginals = found if crf is None else crf(image, found)
        labels, confidence = marginals.argmax(axis=0).astype(np.uint8), marginals.max(axis=0).astype(np.float16)
    labels[confidence < config.min_confidence] = IGNORE
    mask = PseudoMask(id=image_id, labels=labels, confidence=confidence if config.confidence else None)
    return write_mask(config.out, mask)


@torch.no_grad()
def _attention(
    segmenter: Segmenter, image_id: str, image: NDArray[np.uint8], config: SegmentPredictConfig, device: torch.device
) -> ScoreMaps:
    """Return the class attention of an image, each map divided by its largest value."""
    module, facts = segmenter.module, segmenter.facts
    side = config.img_size or facts.img_size
    size = input_size((image.shape[0], image.shape[1]), img_size=side, resize="keep", stride=segmenter.stride)
    x = normalize(resize_image(image, size)[None], mean=facts.mean, std=facts.std, device=device)
    if not isinstance(module, ViTSegmenter):
        raise ConfigError("--attention needs a mask transformer")
    maps = module.class_attention(x)[0, 1:]
    values = (maps / maps.amax(dim=(1, 2), keepdim=True)).cpu().numpy().astype(np.float16)
    return ScoreMaps(
        id=image_id,
        values=values,
        class_ids=np.arange(len(values), dtype=np.int16),
        image_size=(image.shape[0], image.shape[1]),
    )
