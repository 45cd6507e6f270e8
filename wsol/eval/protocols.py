"""Localization protocols as data: what each paper's evaluation code computes, by name.

A view says how a score map becomes predicted boxes and how ground truth is brought to the same pixels; a metric says
when an image counts as right. One pass over the maps serves any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsol.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class View:
    """From a score map to the best IoU with ground truth at every threshold.

    Attributes:
        contours: "largest": the contour with the largest `cv2.contourArea`; "all": every contour, holes included;
            "pixels": the 8-connected component with the most pixels of the float map above the threshold.
        interpolation: How maps are brought to the evaluation size.
        order: Whether the map is min-max normalised after it is resized, or before.
        clip: Whether the end of a box, `x + w` and `y + h` of its contour, is clipped to the last pixel. IoU treats
            ends as the last pixel inside, so that predicted boxes are one pixel wider than their contour.
        truth: Rule that scales ground truth: "benchmark" truncates inclusive ends, "ts-cam" truncates half-open ends
            and clips them to the last pixel, "float" keeps fractions.
        empty: Predicted box where nothing is above the threshold: x0, y0, x1, y1, or the whole image.
    """

    contours: Literal["largest", "all", "pixels"] = "largest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    order: Literal["after", "before"] = "after"
    clip: bool = True
    truth: Literal["benchmark", "ts-cam", "float"] = "benchmark"
    empty: tuple[int, int, int, int] | Literal["image"] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Metric:
    """When an image counts as right.

    Attributes:
        name: Column name.
        view: How boxes are made.
        iou: Percent that the best box must reach.
        strict: Whether IoU must exceed it instead.
        top: The true class must be among this many predicted ones; 0: the class is given (GT-known).
        threshold: Fixed threshold of the paper; None: the best one of a split, each metric its own.
        mean_of: Names of metrics to average instead.
    """

    name: str
    view: View = View()
    iou: int = 50
    strict: bool = False
    top: int = 0
    threshold: float | None = None
    mean_of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Protocol:
    """A named set of metrics.

    Attributes:
        about: Paper and what is peculiar.
        metrics: Its columns.
        note: What a reader must know before comparing the numbers.
        pixels: Whether masks are scored too (PxAP).
    """

    about: str
    metrics: tuple[Metric, ...] = ()
    note: str = ""
    pixels: bool = False


LARGEST, ALL = View(), View(contours="all")
_TS_CAM = View(interpolation="bilinear", clip=False, truth="ts-cam", empty=(0, 0, 1, 1))
_F_CAM = View(interpolation="bilinear", order="before")
_NO_CROP = "the paper scores a centre crop of 224 in 256 and classifies ten crops; here it is the whole image"
_BAS = View(contours="pixels", interpolation="bilinear", order="before", clip=False, truth="float", empty="image")


def _ious(name: str, view: View) -> tuple[Metric, ...]:
    return tuple(Metric(f"{name}@{iou}", view, iou) for iou in (30, 50, 70))


def _fixed(name: str, view: View, threshold: float, *, strict: bool = False) -> tuple[Metric, ...]:
    """GT-known with >=, Top-1 and Top-5 with >, as TS-CAM's code has it; `strict` makes all three strict."""
    return (
        Metric(f"{name} GT-known", view, strict=strict, threshold=threshold),
        Metric(f"{name} Top-1", view, strict=True, top=1, threshold=threshold),
        Metric(f"{name} Top-5", view, strict=True, top=5, threshold=threshold),
    )


def _best(name: str, view: View) -> tuple[Metric, ...]:
    return (
        Metric(f"{name} GT-known", view),
        Metric(f"{name} Top-1", view, top=1),
        Metric(f"{name} Top-5", view, top=5),
    )


PROTOCOLS: dict[str, Protocol] = {
    "maxboxaccv2": Protocol(
        "Choe et al., TPAMI 2022: all contours, mean over IoU 30, 50, 70, each with its own threshold",
        (
            *_ious("MaxBoxAccV2", ALL),
            Metric("MaxBoxAccV2", ALL, mean_of=("MaxBoxAccV2@30", "MaxBoxAccV2@50", "MaxBoxAccV2@70")),
        ),
    ),
    "maxboxacc": Protocol(
        "Choe et al., CVPR 2020: largest contour; the paper's number is the one at IoU 50",
        _ious("MaxBoxAcc", LARGEST),
    ),
    "gt-known": Protocol("Class given, largest contour, IoU 50", (Metric("GT-known", LARGEST),)),
    "top1": Protocol("GT-known, and the true class is predicted first", (Metric("Top-1 Loc", LARGEST, top=1),)),
    "top5": Protocol("GT-known, and the true class is among five", (Metric("Top-5 Loc", LARGEST, top=5),)),
    "pxap": Protocol("Choe et al., CVPR 2020: pixel average precision with ignore masks", pixels=True),
    "cam": Protocol(
        "Zhou et al., CVPR 2016: largest contour at 0.2 of the maximum",
        (
            Metric("CAM GT-known", LARGEST, threshold=0.2),
            Metric("CAM Top-1", LARGEST, top=1, threshold=0.2),
            Metric("CAM Top-5", LARGEST, top=5, threshold=0.2),
        ),
        "the authors normalise by the maximum; maps here are min-max normalised",
    ),
    "ts-cam-cub": Protocol("Gao et al., ICCV 2021, fixed threshold 0.1", _fixed("TS-CAM CUB", _TS_CAM, 0.1)),
    "ts-cam-ilsvrc": Protocol("Gao et al., ICCV 2021, fixed threshold 0.12", _fixed("TS-CAM ILSVRC", _TS_CAM, 0.12)),
    "genpromp-cub": Protocol("Zhao et al., ICCV 2023, fixed threshold 0.23", _fixed("GenPromp CUB", _TS_CAM, 0.23)),
    "genpromp-ilsvrc": Protocol(
        "Zhao et al., ICCV 2023, fixed threshold 0.25", _fixed("GenPromp ILSVRC", _TS_CAM, 0.25)
    ),
    "scm": Protocol(
        "Bai et al., ECCV 2022 (second evaluator): MaxBoxAcc's boxes, a threshold of its own for each column",
        _best("SCM", LARGEST),
        "SCM chooses its thresholds on the test images at an interval of 0.01",
    ),
    "f-cam": Protocol(
        "Belharbi et al., WACV 2022: bilinear after a normalisation on the model's grid",
        (*_ious("F-CAM", _F_CAM), Metric("F-CAM Top-1", _F_CAM, top=1), Metric("F-CAM Top-5", _F_CAM, top=5)),
    ),
    "da-wsol": Protocol(
        "Zhu et al., CVPR 2022: the benchmark's boxes; Top-1 with its own threshold; pIoU beside PxAP",
        _best("DA-WSOL", LARGEST),
    ),
    "bas-cub": Protocol(
        "Wu et al., CVPR 2022: most pixels of the float map above 0.15",
        _fixed("BAS CUB", _BAS, 0.15, strict=True),
        _NO_CROP,
    ),
    "bas-ilsvrc": Protocol(
        "Wu et al., CVPR 2022: most pixels of the float map above 0.5",
        _fixed("BAS ILSVRC", _BAS, 0.5, strict=True),
        _NO_CROP,
    ),
    "sat": Protocol(
        "Wu et al., ICCV 2023: most pixels of the float map above 0.4",
        (
            *(Metric(f"SAT@{iou}", _BAS, iou, threshold=0.4) for iou in (30, 50, 70)),
            Metric("SAT Top-1", _BAS, top=1, threshold=0.4),
            Metric("SAT Top-5", _BAS, top=5, threshold=0.4),
        ),
        f"one box an image, so its mean over IoU is not MaxBoxAccV2, which scores all contours; {_NO_CROP}",
    ),
}

BENCHMARK = ("maxboxaccv2", "maxboxacc", "gt-known", "top1", "top5", "pxap")


def choose(names: tuple[str, ...]) -> dict[str, Protocol]:
    """Return protocols by name; "all" stands for every one.

    Raises:
        ConfigError: On an unknown name.
    """
    chosen = {}
    for name in tuple(PROTOCOLS) if names == ("all",) else names:
        if name not in PROTOCOLS:
            raise ConfigError(f"unknown protocol '{name}'", hint=did_you_mean(name, [*PROTOCOLS, "all"]))
        chosen[name] = PROTOCOLS[name]
    return chosen
