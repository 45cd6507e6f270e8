"""Images inside archives: members of tar files and rows of Parquet files, each named by a path of its own.

The path goes on behind the archive and so stays a plain `Path`, which can be sent to a reading process:
`train-0.tar#1536+20480/cat/1.jpg` are the 20480 bytes from byte 1536 on, `train-0.parquet#7/cat/1.jpg` is the image
of row 7. What follows the slash is only a name. The archive may lie at a URL.
"""

from __future__ import annotations

import functools
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsol.errors import DataError
from wsol.schema import check_id
from wsol.store.places import is_file, open_file, read_part, url_of

_ADDRESS = re.compile(r"(?P<file>.+?\.(?:tar|parquet))#(?P<first>\d+)(?:\+(?P<size>\d+))?/", re.DOTALL)
_SMALL = 1 << 20
_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar archive.

    Attributes:
        name: Relative path, safe as an image id.
        start: Its first byte in the archive.
        size: Bytes.
        data: The bytes themselves where the reader asked for them.
    """

    name: str
    start: int
    size: int
    data: bytes = b""


def address(archive: Path, first: int, name: str, *, size: int | None = None) -> Path:
    """Return the path of a member (first byte and size) or of a row (its number) of an archive."""
    return Path(f"{archive.as_posix()}#{first}{'' if size is None else f'+{size}'}/{name}")


def is_plain(path: Path) -> bool:
    """Return whether a path names a file of this machine that others can open by it."""
    return _ADDRESS.match(path.as_posix()) is None and url_of(path) is None


def read_bytes(path: Path) -> bytes:
    """Read a file, a member or a row, on this machine or at a URL.

    Raises:
        OSError: When it is not there or is cut off.
        DataError: When a package for it is not installed, or a Parquet file is none.
    """
    part = _ADDRESS.match(path.as_posix())
    if part is None:
        return read_part(path, 0, None)
    file, first = Path(part["file"]), int(part["first"])
    if file.suffix == ".parquet":
        return _read_row(file, first)
    size = int(part["size"] or 0)
    data = read_part(file, first, size)
    if len(data) != size:
        raise OSError(f"the archive ends before byte {first + size}")
    return data


def exists(path: Path) -> bool:
    """Return whether a file is there, or the archive that a path goes through."""
    part = _ADDRESS.match(path.as_posix())
    return is_file(Path(part["file"]) if part else path)


def opened(path: Path) -> Path | io.BytesIO:
    """Return what Pillow can open: the path of a plain file, or the bytes of anything else."""
    return path if is_plain(path) else io.BytesIO(read_bytes(path))


def scan_tar(path: Path, *, read: tuple[str, ...] = ()) -> Iterator[Member]:
    """List the files of an uncompressed tar archive from its headers; folders are passed over.

    Args:
        path: The archive.
        read: Endings of names; of these small files the bytes come along.

    Raises:
        DataError: When it is torn or no archive, or holds a link, a device, or a name that leaves its folder.
    """
    try:
        with open_file(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            while (item := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps every header otherwise
                if item.isdir():
                    continue
                if not item.isreg() or item.issparse():
                    raise DataError(f"'{item.name}' is a link or no plain file", where=path, hint="pack files only")
                small = read and item.name.endswith(read) and item.size <= _SMALL
                source = archive.extractfile(item) if small else None
                data = source.read() if source is not None else b""
                yield Member(check_id(item.name.removeprefix("./")), item.offset_data, item.size, data)
    except (OSError, tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"not a whole tar archive: {error}", where=path, hint="uncompressed .tar only") from error


def open_parquet(path: Path) -> Any:
    """Open a Parquet file with pyarrow.

    Raises:
        DataError: When pyarrow is not installed, or the file is missing, torn or none.
    """
    return _parquet(path, os.getpid())


def image_column(schema: Any, where: Path) -> str:
    """Return the column that holds encoded images: bytes, or a struct with `bytes` (as Hugging Face writes them).

    Raises:
        DataError: When there is none.
    """
    import pyarrow.types as kinds

    for name in _IMAGE_COLUMNS:
        kind = schema.field(name).type if name in schema.names else None
        if kind is not None and kinds.is_struct(kind):
            kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else None
        if kind is not None and (kinds.is_binary(kind) or kinds.is_large_binary(kind)):
            return name
    hint = f"one of {', '.join(_IMAGE_COLUMNS)} must hold the bytes of image files"
    raise DataError("no column of images", where=where, hint=hint)


@functools.lru_cache(maxsize=16)
def _parquet(path: Path, process: int) -> Any:
    """Open a file once a process: handles must not cross a fork."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("Parquet needs pyarrow", where=path, hint="pip install 'wsol[remote]'") from error
    try:
        return pyarrow.parquet.ParquetFile(path if url_of(path) is None else open_file(path))
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"not a whole Parquet file: {error}", where=path) from error


def _read_row(path: Path, row: int) -> bytes:
    file = open_parquet(path)
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row < rows:
            value = _images(path, group, os.getpid())[row].as_py()
            found = value.get("bytes") if isinstance(value, dict) else value
            if found is None:
                raise OSError("the row holds no image")
            return bytes(found)
        row -= rows
    raise OSError("no such row")


@functools.lru_cache(maxsize=2)
def _images(path: Path, group: int, process: int) -> Any:
    """Read the images of a row group: a compressed column opens only as a whole, so neighbours come for free."""
    import pyarrow

    file = open_parquet(path)
    name = image_column(file.schema_arrow, path)
    try:
        return file.read_row_group(group, columns=[name]).column(name)
    except pyarrow.ArrowException as error:
        raise OSError(f"not a whole Parquet file: {error}") from error
