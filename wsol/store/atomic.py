"""Write a file whole or not at all, and clear away what killed writers left."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from typing import BinaryIO

from wsol.errors import StoreError, WriteError

_TEMPORARY = re.compile(r"\.tmp-(?:(?P<machine>[0-9a-f]{8})-)?(?P<pid>\d+)-.+", re.DOTALL)
_DAY = 86400.0
_COUNT = count()


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` and move it into place when the block ends well.

    Args:
        path: The file; its folder is made where it is missing.
        durable: Also survive a power cut (fsync): for checkpoints, which nothing can check and redo.

    The name of the temporary file is short whatever `path` is called, and carries machine, process and a number, so
    that two writers never share one. A crash leaves at most a `.tmp-*` file; it is never read, and the next job in the
    folder removes it.

    Raises:
        WriteError: When the folder cannot be written to or the disk is full.
        StoreError: When the name is too long for the file system.
    """
    temporary = path.with_name(f".tmp-{_machine()}-{os.getpid()}-{next(_COUNT)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
        if durable:
            _sync_folder(path.parent)
    except OSError as error:
        what = f"cannot write: {error.strerror or error}"
        if error.errno == errno.ENAMETOOLONG:  # of this file alone
            raise StoreError(what, where=path, hint="give the image a shorter name") from error
        raise WriteError(what, where=path, hint=_advice(error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_stale(folder: Path, now: float) -> None:
    """Remove the temporary files below a folder whose writers are dead; links are not followed.

    A process of this machine is dead when it runs no more; one of another machine, when it has not touched its file
    for a day. So jobs that write side by side, here or elsewhere, keep theirs.

    Args:
        folder: Run folder.
        now: Time in seconds by the clock that stamps its files.
    """
    folders = [os.fspath(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as items:  # one at a time: a folder may hold millions
            for item in items:
                if item.is_dir(follow_symlinks=False):
                    folders.append(item.path)
                elif (writer := _TEMPORARY.fullmatch(item.name)) is not None:
                    here = writer["machine"] == _machine()
                    with suppress(OSError):
                        if (here and not _runs(int(writer["pid"]))) or now - item.stat().st_mtime > _DAY:
                            Path(item.path).unlink()


@cache
def _machine() -> str:
    """Name what process ids are counted in: a machine, or a container of one (they may share its name)."""
    with suppress(OSError):
        return _short(f"{platform.node()} {Path('/proc/self/ns/pid').stat().st_ino}")
    return _short(platform.node())


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _runs(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 is no question
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@lru_cache(maxsize=4096)
def _leads_out(folder: Path, run: Path) -> bool:
    return not folder.resolve().is_relative_to(run.resolve())


def inside(run: Path, path: Path) -> Path:
    """Return a path below a run folder, or refuse it where a link leads out of the folder.

    Raises:
        WriteError: When the file would lie elsewhere.
    """
    if _leads_out(path.parent, run):
        raise WriteError("cannot write: a link leads out of the run", where=path, hint="link the run folder itself")
    return path


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder survive a power cut too; some file systems, and Windows, do not offer it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all."""
    with atomic_write(path) as stream:
        stream.write(text.encode("utf-8"))


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full: free some space and run the same command again, it continues"
    return "check that the folder exists and may be written to, or give another --out"
