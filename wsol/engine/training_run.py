"""How a training opens its run folder, alone or with others."""

from __future__ import annotations

from pathlib import Path

from wsol.engine.fit import has_ended
from wsol.engine.parallel import World
from wsol.engine.train_options import LoopOptions
from wsol.models.checkpoints import resolve
from wsol.schema import DatasetSpec
from wsol.store.runs import Run, file_hash, open_run


def open_training(
    config: LoopOptions, *, verb: str, dataset: DatasetSpec, device: str, checkpoint: str | None, world: World
) -> tuple[Run | None, bool]:
    """Open the run folder in the first process, while the others wait.

    Args:
        config: Options of the training.
        verb: Command that writes the run.
        dataset: What is trained on.
        device: Where, for `run.json`.
        checkpoint: Weights to start from, or None.
        world: Who trains.

    Returns:
        The run in the first process and None in the others, and in all of them whether the training has ended before.

    Raises:
        WsolError: When the folder holds something else, or a training that ended and is not to be resumed.
    """
    run = None
    if world.first:
        run = open_run(
            config.out,
            verb=verb,
            config=config,
            dataset=dataset,
            device=device,
            inputs=checkpoint_hash(checkpoint),
            overwrite=config.overwrite,
        )
    world.barrier()
    ended = has_ended(config.out, resume=config.resume)
    world.barrier()
    return run, ended


def checkpoint_hash(checkpoint: str | Path | None) -> dict[str, str]:
    """Return the hash of the weights to start from, for `run.json`; empty where there are none."""
    if checkpoint is None:
        return {}
    path = resolve(checkpoint)
    return {str(checkpoint): file_hash(path / "model.safetensors" if path.is_dir() else path)}
