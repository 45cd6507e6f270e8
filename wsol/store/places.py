"""Files at any place: on this machine through pathlib, at a URL through fsspec.

pathlib folds the slashes of `s3://bucket/x` into one; `url_of` puts them back. So a URL travels as a `Path` through
options, data sets and processes, and `parent`, `stem` and `/` work as ever.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from wsol.errors import DataError, WsolError

_URL = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)", re.DOTALL)


def url_of(path: Path | str) -> str | None:
    """Return the URL that a path names, None where it names a file of this machine (one letter is a drive)."""
    match = _URL.fullmatch(path.as_posix() if isinstance(path, Path) else path)
    return f"{match[1]}://{match[2]}" if match else None


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raises:
        DataError: When the package for such URLs is not installed, or there is no such kind.
    """
    try:
        from fsspec.core import url_to_fs

        found: tuple[Any, str] = url_to_fs(url)
        return found
    except (ImportError, ValueError) as error:
        raise DataError(f"cannot open: {error}", where=url, hint="pip install 'wsol[remote]'") from error


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading and seeking.

    Raises:
        OSError: When it cannot be opened.
    """
    url = url_of(path)
    if url is None:
        return path.open("rb")
    files, place = file_system(url)
    with os_errors():
        stream: BinaryIO = files.open(place, "rb")
        return stream


def read_part(path: Path, start: int, size: int | None) -> bytes:
    """Read some bytes of a file, fewer where it ends; all of it for the size None.

    Raises:
        OSError: When it cannot be read.
    """
    url = url_of(path)
    if url is None:
        with path.open("rb") as stream:
            stream.seek(start)
            # An address of a stranger may ask for more than there is; never make room for that.
            return stream.read(-1 if size is None else min(size, os.fstat(stream.fileno()).st_size))
    files, place = file_system(url)
    with os_errors():
        return bytes(files.cat_file(place, start=start, end=None if size is None else start + size))


def is_file(path: Path) -> bool:
    """Return whether a file is there."""
    url = url_of(path)
    if url is None:
        return path.is_file()
    files, place = file_system(url)
    with os_errors():
        return bool(files.isfile(place))


def is_folder(path: Path) -> bool:
    """Return whether a folder is there."""
    url = url_of(path)
    if url is None:
        return path.is_dir()
    files, place = file_system(url)
    with os_errors():
        return bool(files.isdir(place))


def list_files(folder: Path) -> list[str]:
    """Return the files below a folder, relative and sorted; hidden files and folders are left out.

    Raises:
        OSError: When a URL cannot be listed.
    """
    url = url_of(folder)
    found = []
    if url is None:
        for parent, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [(Path(parent) / name).relative_to(folder).as_posix() for name in files if name[0] != "."]
    else:
        system, place = file_system(url)
        with os_errors():
            found = [name[len(place.rstrip("/")) + 1 :] for name in system.find(place)]
        found = [name for name in found if not any(part.startswith(".") for part in name.split("/"))]
    return sorted(found)


def version(path: Path) -> str:
    """Return what changes when a file does: its size and its time, or what an object store says of it.

    Raises:
        OSError: When it is not there.
    """
    url = url_of(path)
    if url is None:
        facts = path.stat()
        return f"{facts.st_size} {facts.st_mtime_ns}"
    files, place = file_system(url)
    with os_errors():
        known = files.info(place)
    return " ".join(str(known.get(key, "")) for key in ("size", "ETag", "LastModified", "mtime", "created"))


@contextmanager
def os_errors() -> Iterator[None]:
    """Turn whatever a file system of fsspec raises into OSError."""
    try:
        yield
    except (OSError, WsolError):
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
