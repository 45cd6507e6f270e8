"""`wsol refine train-affinity`: train the network of the refiners psa and irn on score maps (resumable)."""

from __future__ import annotations

from collections.abc import Sequence

from wsol.cli.parse import parse
from wsol.engine.affinity_options import AffinityConfig, labels_of


def run(argv: Sequence[str]) -> int:
    """Parse the flags and train; return the exit status."""
    config = parse(AffinityConfig, argv, prog="wsol refine train-affinity", choices=[("method", "options", labels_of)])
    from wsol.engine.train_affinity import train_affinity  # torch takes seconds: not for --help

    return train_affinity(config).status
