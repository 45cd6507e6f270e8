"""`wsol segment self-train`: GIST and RIST, training in stages on given masks or on the network's own.

Teh, DeVries, Duke, Jiang, Aarabi, Taylor, "The GIST and RIST of Iterative Self-Training for Semi-Supervised
Segmentation", CRV 2022, https://arxiv.org/abs/2103.17105. Every stage starts from the weights of the one before and
learns either from the given masks or from the masks that the stage before predicted: a fixed mixture of both lets the
errors grow. GIST tries both and keeps the better one on a validation split; RIST chooses at random.
"""

from __future__ import annotations

import json
import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from wsol.engine.device import resolve_device
from wsol.engine.fit import History, Trained, read_history
from wsol.engine.parallel import World, joined, own_device
from wsol.engine.seeding import generator
from wsol.engine.segment import segment_train
from wsol.engine.segment_options import SegmentPredictConfig, SegmentTrainConfig, SelfTrainConfig
from wsol.engine.segment_predict import segment_predict
from wsol.models.segmenter import load_segmenter, save_segmenter
from wsol.store.atomic import write_text
from wsol.store.runs import open_run

_log = logging.getLogger("wsol")
_GIVEN, _OWN = "given", "own"


def self_train(config: SelfTrainConfig) -> Trained:
    """Train in stages, or continue where an interrupted run stopped.

    Args:
        config: See `SelfTrainConfig`.

    Returns:
        The run folder with the network of the last stage (model.safetensors, model.json), stages.json, and a folder
        for each stage and its masks; the history of the last stage, and the images that were left out anywhere.

    Raises:
        WsolError: On a mistake in the options, or when the run folder cannot be written.
    """
    config.validate()
    with joined(resolve_device(own_device(config.device))) as world:
        if world.first:
            run = open_run(config.out, verb="segment self-train", config=config, overwrite=config.overwrite)
        stages = _Stages(config, world)
        if not world.first:
            return stages.run()
        with run:
            trained = stages.run()
            save_segmenter(load_segmenter(Path(str(stages.kept))), config.out)
            run.facts.update(stages=stages.rows, failed=len(trained.failures))
        return trained


class _Stages:
    """The stages one after the other; what is finished on disk is taken from there.

    Args:
        config: Options.
        world: Who trains; every process takes the same path.
    """

    def __init__(self, config: SelfTrainConfig, world: World) -> None:
        self.config, self.world = config, world
        self.kept: Path | None = None
        self.failures: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []

    def run(self) -> Trained:
        for stage in range(self.config.stages):
            masks = self.config.out / f"masks-{stage}"
            if self.kept is not None:
                self._predict(self.kept, masks)
            tried = {name: self._train(stage, name, masks) for name in self._branches(stage)}
            name = max(tried, key=lambda branch: tried[branch][-1].get("val_miou", 0.0))
            self.kept = self._folder(stage, name)
            self._note({"stage": stage, "masks": name, "folder": self.kept.name, **tried[name][-1]})
        return Trained(self.config.out, tried[name], self.failures)

    def _branches(self, stage: int) -> tuple[str, ...]:
        if stage == 0:
            return (_GIVEN,)
        if self.config.strategy == "gist":
            return _GIVEN, _OWN
        return ((_GIVEN, _OWN)[int(generator(self.config.seed, "order", stage).integers(2))],)

    def _folder(self, stage: int, name: str) -> Path:
        return self.config.out / f"stage-{stage}-{name}"

    def _train(self, stage: int, name: str, masks: Path) -> History:
        config = self.config
        plain: dict[str, Any] = {
            item.name: getattr(config, item.name) for item in fields(SegmentTrainConfig) if item.init
        }
        chosen = replace(SegmentTrainConfig(**plain), out=self._folder(stage, name), resume=True)
        chosen = replace(chosen, seed=config.seed + stage)  # other views and another order than the stage before
        if self.kept is not None:
            chosen = replace(chosen, checkpoint=str(self.kept), encoder_weights=None)
        if name == _OWN:
            split = config.pseudo_split or config.split
            chosen = replace(chosen, masks=str(masks), split=split, min_confidence=0.0)
        self.failures.update(segment_train(chosen).failures)
        self.world.barrier()
        return read_history(chosen.out)  # only the first process has measured

    def _predict(self, network: Path, out: Path) -> None:
        config = self.config
        outcome = segment_predict(
            SegmentPredictConfig(
                data=config.data,
                root=config.root,
                split=config.pseudo_split or config.split,
                data_options=config.data_options,
                limit=config.limit,
                checkpoint=network,
                out=out,
                min_confidence=config.pseudo_confidence,
                amp=config.amp,
                workers=config.workers,
                device=own_device(config.device),
                overwrite=config.overwrite and self.world.size == 1,
                quiet=config.quiet,
            )
        )
        self.failures.update(self.world.merge(outcome.failures))
        self.world.barrier()

    def _note(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.world.first:
            write_text(self.config.out / "stages.json", json.dumps(self.rows, indent=1) + "\n")
            _log.info("stage %d: %s masks, %s", row["stage"], row["masks"], row.get("val_miou", ""))
