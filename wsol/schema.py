"""The types that every floor shares: frozen, NumPy only, checked once when they are made.

Conventions: images are RGB uint8 (H, W, 3); boxes are float32 (N, 4) xyxy in pixels, half-open; masks hold
0 for background, class id + 1 for classes and 255 for ignored pixels; class ids count from 0 without
background.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsol.errors import DataError, StoreError

IGNORE = 255
Annotations = Literal["box", "mask", "both", "none"]
FloatArray = NDArray[np.floating[Any]]
MOST_PIXELS = 2**27
"""Of an image or mask: 11585 x 11585; decoded and copied, it takes 1.7 GB."""
_UNSAFE_ID = re.compile(r"(^|/)\.{1,2}(/|$)|^/|//|/$|[\\\x00-\x1f\ud800-\udfff]")


def check_id(image_id: str) -> str:
    """Return an id that is safe as a relative file name, or refuse it.

    Args:
        image_id: May hold "/" as in "n01440764/x.JPEG"; never "..", a leading "/", control characters or bytes
            that are no UTF-8.

    Raises:
        DataError: When the id could leave the folder it is written to.
    """
    if not image_id or _UNSAFE_ID.search(image_id):
        raise DataError(
            f"image id {image_id!r} cannot be a file name", hint="rename it: no '..', '\\\\' or control characters"
        )
    return image_id


def _expect(condition: bool, owner: str, expected: str, got: object) -> None:
    if not condition:
        raise DataError(f"{owner}: expected {expected}, got {got}")


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """What a data set is, without its images.

    Attributes:
        name: Registry name of the data set, for example "voc".
        classes: Class names; the position is the class id.
        root: Folder that holds the data set.
        split: Name of the chosen split.
        splits: Names of all splits that the folder offers.
        annotations: Which ground truth the split carries.
        prompts: One text a class for text-driven methods; the class names by default.
        multi_label: Whether an image may hold several classes.
        id_hash: Hash of the ids of the split, in order.
    """

    name: str
    classes: tuple[str, ...]
    root: Path
    split: str
    splits: tuple[str, ...] = ()
    annotations: Annotations = "none"
    prompts: tuple[str, ...] = ()
    multi_label: bool = True
    id_hash: str = ""

    def __post_init__(self) -> None:
        if not self.prompts:
            object.__setattr__(self, "prompts", self.classes)
        _expect(
            len(self.prompts) == len(self.classes),
            "DatasetSpec",
            f"{len(self.classes)} prompts",
            len(self.prompts),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image by name, with its labels and ground truth; holds no pixels.

    Attributes:
        id: Unique in the split; may hold "/".
        image: Path of the image file.
        labels: Class ids in the image, ascending.
        size: (H, W) in pixels; None when only the pixels can tell.
        boxes: float32 (N, 4) xyxy half-open in pixels of the file, or None.
        box_labels: Class id of each box (N,), or None.
        mask: Path of the ground-truth mask, or None.
        mask_ignore: Path of a mask of pixels to ignore (OpenImages), or None.
        extra_masks: Further instance masks of the same image (OpenImages).
        upright: Whether to apply the EXIF orientation; off where the ground truth was drawn on the raw pixels.
    """

    id: str
    image: Path
    labels: tuple[int, ...] = ()
    size: tuple[int, int] | None = None
    boxes: NDArray[np.float32] | None = None
    box_labels: tuple[int, ...] | None = None
    mask: Path | None = None
    mask_ignore: Path | None = None
    extra_masks: tuple[Path, ...] = ()
    upright: bool = False

    def __post_init__(self) -> None:
        check_id(self.id)
        if self.boxes is not None:
            boxes = np.asarray(self.boxes, dtype=np.float32)
            _expect(
                boxes.ndim == 2 and boxes.shape[1] == 4,
                f"Sample {self.id}",
                "boxes of shape (N, 4)",
                boxes.shape,
            )
            ordered = bool(np.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all())
            _expect(ordered, f"Sample {self.id}", "boxes of numbers with x0 <= x1 and y0 <= y1", boxes.tolist())
            object.__setattr__(self, "boxes", boxes)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMaps:
    """Score maps of one image, one a class, on the model's own grid.

    Attributes:
        id: Image id.
        values: float16 or float32 (K, h, w) in [0, 1]; the grid spans the whole image.
        class_ids: int16 (K,), without background.
        image_size: (H, W) of the image in pixels.
        logits: float32 (C,) of the classifier for all classes, or None.
    """

    id: str
    values: FloatArray
    class_ids: NDArray[np.int16]
    image_size: tuple[int, int]
    logits: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        owner, values = f"ScoreMaps {check_id(self.id)}", np.asarray(self.values)
        _expect(values.ndim == 3, owner, "values of shape (K, h, w)", values.shape)
        _expect(values.dtype in (np.float16, np.float32), owner, "float16 or float32 values", values.dtype)
        given = np.asarray(self.class_ids)
        _expect(given.shape == values.shape[:1], owner, f"{values.shape[0]} class ids", given.shape)
        _expect(not given.size or (given.min() >= 0 and given.max() < 2**15), owner, "class ids in 0..32767", given)
        ids = given.astype(np.int16)
        _expect(bool(np.isfinite(values).all()), owner, "finite values", "NaN or infinity")
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        _expect(low >= 0.0 and high <= 1.0, owner, "values in [0, 1]", f"[{low:.4g}, {high:.4g}]")
        size = (int(self.image_size[0]), int(self.image_size[1]))
        _expect(min(size) > 0 and size[0] * size[1] <= MOST_PIXELS, owner, "the size (H, W) of an image", size)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "class_ids", ids)
        object.__setattr__(self, "image_size", size)
        if self.logits is not None:
            object.__setattr__(self, "logits", np.asarray(self.logits, dtype=np.float32))

    def at_image_size(self) -> NDArray[np.float32]:
        """Return the maps at the size of the image.

        Returns:
            float32 (K, H, W) in [0, 1]: bilinear, pixel centres aligned (cv2.INTER_LINEAR).
        """
        import cv2  # imported here so that `import wsol` stays light

        height, width = self.image_size
        full = np.empty((len(self.values), height, width), dtype=np.float32)
        for plane, out in zip(self.values, full, strict=True):
            cv2.resize(plane.astype(np.float32), (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
        return full


@dataclass(frozen=True, slots=True, eq=False)
class PseudoMask:
    """A label for every pixel of one image.

    Attributes:
        id: Image id.
        labels: uint8 (H, W): 0 background, class id + 1, 255 ignored.
        confidence: float16 (H, W) in [0, 1], or None.
    """

    id: str
    labels: NDArray[np.uint8]
    confidence: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        owner = f"PseudoMask {check_id(self.id)}"
        _expect(self.labels.ndim == 2, owner, "labels of shape (H, W)", self.labels.shape)
        _expect(self.labels.dtype == np.uint8, owner, "uint8 labels", self.labels.dtype)
        if self.confidence is not None:
            confidence = np.asarray(self.confidence, dtype=np.float16)
            _expect(
                confidence.shape == self.labels.shape,
                owner,
                f"confidence {self.labels.shape}",
                confidence.shape,
            )
            object.__setattr__(self, "confidence", confidence)


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Predicted boxes of one image.

    Attributes:
        xyxy: float32 (N, 4), half-open, in pixels.
        class_ids: int16 (N,).
        scores: float32 (N,).
    """

    xyxy: NDArray[np.float32]
    class_ids: NDArray[np.int16]
    scores: NDArray[np.float32]

    def __post_init__(self) -> None:
        xyxy = np.asarray(self.xyxy, dtype=np.float32).reshape(-1, 4)
        ids, scores = np.asarray(self.class_ids, dtype=np.int16), np.asarray(self.scores, dtype=np.float32)
        _expect(
            ids.shape == scores.shape == xyxy.shape[:1],
            "Boxes",
            f"{len(xyxy)} ids and scores",
            (ids.shape, scores.shape),
        )
        for name, value in (("xyxy", xyxy), ("class_ids", ids), ("scores", scores)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The outcome of one evaluation: prints as a table, round-trips through JSON.

    Attributes:
        task: "localization" or "segmentation".
        metrics: Name to value; percentages are in [0, 100].
        n: Number of images that were counted.
        split: Split they came from.
        threshold: The chosen score thresholds by metric, where there is one.
        threshold_source: Where they came from: "fixed", "best on SPLIT", or "chosen on SPLIT".
        per_class: Class name to metric name to value.
        curves: Curve name to {"x": [...], "y": [...]}.
        per_image: Image id to metric name to value, for galleries of best and worst.
        warnings: What a reader must know before quoting the numbers.
    """

    task: str
    metrics: Mapping[str, float]
    n: int
    split: str
    threshold: Mapping[str, float] = field(default_factory=dict)
    threshold_source: str = "fixed"
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    per_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the result as a JSON document (NaN becomes null)."""
        return json.dumps(_plain(asdict(self)), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> EvalResult:
        """Rebuild a result from `to_json`.

        Raises:
            StoreError: When the text is not such a document.
        """
        try:
            raw = json.loads(text)
            raw["warnings"] = tuple(raw["warnings"])
            return cls(**_restore_nan(raw))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"not a result of wsol eval: {error}") from error

    def __str__(self) -> str:
        width = max((len(name) for name in self.metrics), default=6)
        lines = [f"{self.task} on '{self.split}', n = {self.n}, threshold: {self.threshold_source}"]
        for name, value in self.metrics.items():
            at = f"   at threshold {self.threshold[name]:.3f}" if name in self.threshold else ""
            lines.append(f"  {name:<{width}}  {value:7.2f}{at}")
        return "\n".join([*lines, *(f"  note: {text}" for text in self.warnings)])


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What ran, with what, on what, for how long: enough to do it again.

    Attributes:
        verb: Verb of the command line.
        config: The full configuration.
        config_hash: Hash of the part that decides the outputs.
        seed: Seed of every generator.
        versions: Package name to version.
        device: Device the run used.
        argv: Command line, or empty when called from Python.
        inputs: Input file or folder to its hash.
        code_hash: Hash of the installed package's sources.
        started: UTC time, ISO 8601.
        seconds: Wall time; 0 while running.
        peak_memory_mb: Peak resident memory of the process in MiB; None where the system does not tell.
        facts: What the run found out: counts, chosen layer, chosen epoch.
    """

    verb: str
    config: Mapping[str, Any]
    config_hash: str
    seed: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    argv: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    code_hash: str = ""
    started: str = ""
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return None if not np.isfinite(value) else float(value)
    return value


def _restore_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restore_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore_nan(item) for item in value]
    return float("nan") if value is None else value
