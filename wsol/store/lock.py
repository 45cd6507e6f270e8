"""One writer a part of a run folder: a lock that the system itself drops when the process ends, however it ends."""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from wsol.errors import StoreError, WriteError
from wsol.store.atomic import remove_stale

try:
    import fcntl
except ImportError:  # Windows: no lock, as on file systems that have none
    fcntl = None  # type: ignore[assignment]

_HELD: weakref.WeakSet[BinaryIO] = weakref.WeakSet()
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


def hold(run: Path, *, shard: tuple[int, int] = (0, 1), alone: bool = False) -> BinaryIO | None:
    """Take the part of a run folder that a process will write, until the returned stream is closed.

    Shards of one count may work side by side; the same shard twice, or shards of different counts, would do the
    same images twice. The lock is flock's: nothing stays behind after kill -9, and the empty file means nothing.
    Temporary files that dead writers left in the folder are removed.

    Args:
        run: Run folder; made where it is missing.
        shard: (index, count) of this process.
        alone: Refuse any other writer, as before the folder is cleared.

    Returns:
        The open lock file; None where the file system or the platform knows no locks.

    Raises:
        StoreError: When another process works there.
        WriteError: When the folder cannot be written.
    """
    own = run / f".lock-{shard[0]:03d}-of-{shard[1]:03d}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        stream = own.open("ab", buffering=0)
    except OSError as error:
        hint = "check that the folder exists and may be written to, or give another --out"
        raise WriteError(f"cannot write: {error.strerror or error}", where=run, hint=hint) from error
    locked = _take(stream, own, exclusive=True)
    if locked:
        _HELD.add(stream)
        for other in sorted(run.glob(".lock-*-of-*")):
            if other != own and (alone or not other.name.endswith(own.name[-7:])):
                with other.open("rb") as probe:
                    _take(probe, other, exclusive=False)
    with suppress(OSError):
        os.utime(own)  # the clock of the file system, which may be another machine's
        remove_stale(run, own.stat().st_mtime)
    return stream if locked else None


def _take(stream: BinaryIO, path: Path, *, exclusive: bool) -> bool:
    """Lock an open file; False where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(stream, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _BUSY:
            return False
        hint = "wait for it, or give each process its own --shard i/n with one n for all"
        raise StoreError("another process is writing this run", where=path, hint=hint) from error
    return True


def _drop() -> None:
    # A forked reader may outlive a killed driver for seconds, and must not hold its lock.
    for stream in list(_HELD):
        stream.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop)
