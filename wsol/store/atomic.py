"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from wsol.errors import StoreError


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and move it into place when the block ends well.

    Args:
        path: The file; its folder is made where it is missing.
        durable: Also survive a power cut (fsync): for checkpoints, which nothing can check and redo.

    The name carries the process id, so that two writers never share one. A crash leaves at most a `.tmp-*`
    file; it is never read.

    Raises:
        StoreError: When the folder cannot be written to or the disk is full.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write: {error.strerror or error}", where=path, hint=_advice(error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@lru_cache(maxsize=4096)
def _leads_out(folder: Path, run: Path) -> bool:
    return not folder.resolve().is_relative_to(run.resolve())


def inside(run: Path, path: Path) -> Path:
    """Return a path below a run folder, or refuse it where a link leads out of the folder.

    Raises:
        StoreError: When the file would lie elsewhere.
    """
    if _leads_out(path.parent, run):
        raise StoreError("cannot write: a link leads out of the run", where=path, hint="link the run folder itself")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8"))


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space and run the same command again, it continues"
    return "check that the folder exists and may be written to, or give another --out"
