"""Options of `wsol bench mix`: those of `wsol train`, with a list of strategies and a number of seeds."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from wsol.config import neutral
from wsol.engine.train_options import TrainConfig
from wsol.errors import ConfigError
from wsol.mix import create, split_text


@dataclass(frozen=True, kw_only=True)
class BenchMixConfig(TrainConfig):
    """Mix strategies under one budget and several seeds: accuracy, localization, milliseconds a step, peak memory."""

    out: Path = neutral(default=Path("runs/bench-mix"))
    """Folder for a run a strategy and seed, and bench.json; what is there already is continued."""
    strategies: tuple[str, ...] = ("none", "cutout", "hide_and_seek", "gridmask", "mixup", "cutmix", "resizemix")
    """Strategies, separated by spaces: names, or names with options as in 'cutmix: {alpha: 0.5}'."""
    seeds: int = 3
    """Trainings a strategy, with the seeds from --seed on."""
    timed_steps: int = neutral(default=10)
    """Steps to take the time of, for each strategy; 0: none."""
    json: bool = neutral(default=False)
    """Print JSON instead of a table."""

    def validate(self) -> None:
        """Check values that a type cannot, and every strategy.

        Raises:
            ConfigError: Naming the flag.
        """
        super().validate()
        if self.mix != "none" or self.mix_options:
            raise ConfigError("wsol bench mix compares a list", where="--mix", hint="give --strategies")
        if self.linear_probe:
            raise ConfigError("a linear probe sees each image as it is", where="--linear-probe")
        if self.seeds < 1 or self.timed_steps < 0 or not self.strategies:
            raise ConfigError("give at least one strategy and one seed, and 0 or more timed steps")
        if self.val_split is None:
            raise ConfigError("nothing to measure on", hint="give --val-split")
        for text in self.strategies:
            name, options = split_text(text)
            create(name, **options)

    def training(self, text: str, seed: int) -> TrainConfig:
        """Return the options of one training.

        Args:
            text: One of the strategies.
            seed: Its seed.
        """
        plain: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(TrainConfig) if item.init}
        name, options = split_text(text)
        wanted = "label_maps" in create(name, **options).wants()
        return replace(
            TrainConfig(**plain),
            mix=name,
            mix_options=options,
            label_maps=self.label_maps if wanted else None,
            seed=seed,
            resume=True,
            out=self.out / f"{slug(text)}-seed{seed}",
        )


def slug(text: str) -> str:
    """Return the text of a strategy as a name of a folder."""
    return re.sub(r"[^\w.]+", "-", text).strip("-")
