"""Which part of the work is ours, under any launcher or none."""

from __future__ import annotations

import os
import re

from wsol.errors import ConfigError

_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


def resolve_shard(text: str) -> tuple[int, int]:
    """Return (index, count) of this process.

    Args:
        text: "i/n" of the flag; "0/1" asks the launcher (torchrun, Slurm), which speaks through the environment.

    Raises:
        ConfigError: When it is not i/n with 0 <= i < n.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--shard must be i/n with 0 <= i < n, got '{text}'", hint="for example --shard 0/4")
    if match[2] == "1":
        for rank, world in _LAUNCHERS:
            if rank in os.environ and world in os.environ:
                return int(os.environ[rank]), int(os.environ[world])
    return int(match[1]), int(match[2])
