"""Shards: thousands of small files of a run in one tar archive each, as git packs loose objects.

A job writes every file as it always does: `maps/ID.npz`, whole or not at all. Once all images of a stretch of the plan
are settled, their files are copied into `maps/000-of-001-00000-0.tar` (writer, writers, stretch, turn), and removed. So
a shard holds the same bytes for any number of workers and interruptions, and whatever a kill leaves reads whole.

The first member, `__index__.npy`, is uint64 (N, 3): hash of the name, first byte and size of each member. Readers of
WebDataset pass over names in double underscores. Nothing is ever unpacked: a name is looked up, never written to.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
import re
import tarfile
import time
from collections.abc import Collection, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from wsol.errors import DataError
from wsol.store.archives import is_plain, read_bytes, scan_tar
from wsol.store.atomic import atomic_write

KINDS = {"maps": ".npz", "masks": ".png", "confidence": ".png"}
STRETCH = 4096
"""Images to a shard."""
_INDEX = "__index__.npy"
_SHARD = re.compile(r"\d{3,}-of-\d{3,}-\d{5,}-\d+\.tar")
_Table = NDArray[np.uint64]
_BLOCK = tarfile.BLOCKSIZE
_TICK = 2 * 10**9
_log = logging.getLogger("wsol")


def read_file(path: Path) -> bytes:
    """Read a file of a run: the loose one, else the member of a shard; else what `archives.read_bytes` knows.

    Raises:
        OSError: When there is none (FileNotFoundError), or the shard is cut off.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        found = _find(path)
        if found is None:
            if is_plain(path):
                raise
            return read_bytes(path)
    shard, start, size = found
    with shard.open("rb") as stream:
        stream.seek(start)
        data = stream.read(size)
    if len(data) != size:
        raise OSError(f"{shard.name} is cut off")
    return data


def has_file(path: Path) -> bool:
    """Return whether a file of a run is there, loose or in a shard."""
    return path.is_file() or _find(path) is not None


class Sealer:
    """Packs the files of images into shards as soon as a stretch of the plan is settled.

    Args:
        run: Run folder.
        ids: All ids of this writer in the order of the plan, done or not.
        done: Those that need no work.
        shard: (index, count) of this writer.
    """

    def __init__(self, run: Path, ids: Sequence[str], done: Collection[str], shard: tuple[int, int] = (0, 1)) -> None:
        self._run, self._ids, self._done = run, ids, done
        self._prefix = f"{shard[0]:03d}-of-{shard[1]:03d}"
        self._before = {name for kind, suffix in KINDS.items() for name in _loose(run / kind, suffix)}
        self._loose = set(self._before)
        self._ahead: set[str] = set()
        self._stretch = -1
        self._left: set[str] = set()
        self._advance()

    def settle(self, image_id: str) -> None:
        """Take note that an image has its files, or failed."""
        self._loose.add(image_id)
        if image_id not in self._left:
            self._ahead.add(image_id)
            return
        self._left.remove(image_id)
        if not self._left:
            self._seal()
            self._advance()

    def close(self) -> None:
        """Pack what is left, at the end of the job."""
        while self._stretch * STRETCH < len(self._ids):
            self._seal()
            self._stretch += 1

    def _advance(self) -> None:
        while not self._left and (self._stretch + 1) * STRETCH < len(self._ids):
            self._stretch += 1
            stretch = set(self._of_stretch())
            self._left = stretch.difference(self._done, self._ahead)
            self._ahead -= stretch
            if not self._left:
                self._seal()
        if not self._left:
            self._stretch += 1  # past the end

    def _of_stretch(self) -> Sequence[str]:
        return self._ids[self._stretch * STRETCH : (self._stretch + 1) * STRETCH]

    def _seal(self) -> None:
        ids = [image_id for image_id in self._of_stretch() if image_id in self._loose]
        self._loose.difference_update(ids)
        for kind, suffix in KINDS.items():
            folder = self._run / kind
            names = [f"{image_id}{suffix}" for image_id in ids if (folder / f"{image_id}{suffix}").is_file()]
            # What lay there before this job may be packed already: a kill came before the removal.
            old = {f"{image_id}{suffix}" for image_id in ids if image_id in self._before}
            fresh = [name for name in names if name not in old or not _is_packed(folder, name)]
            if fresh:
                _pack(folder, fresh, f"{self._prefix}-{self._stretch:05d}")
            for name in names:
                (folder / name).unlink(missing_ok=True)


def _pack(folder: Path, names: Sequence[str], stem: str) -> None:
    target = next(path for turn in count() if not (path := folder / f"{stem}-{turn}.tar").exists())
    headers = [_header(name, (folder / name).stat().st_size) for name in names]
    start = len(_header(_INDEX, 0)) + _padded(len(_npy(np.zeros((len(names), 3), np.uint64))))
    table = np.zeros((len(names), 3), dtype=np.uint64)
    for row, name, header in zip(table, names, headers, strict=True):
        size = (folder / name).stat().st_size
        row[:] = _hash(name), start + len(header), size
        start += len(header) + _padded(size)
    with atomic_write(target, durable=True) as stream:
        index = _npy(table)
        _add(stream, _header(_INDEX, len(index)), index)
        for name, header in zip(names, headers, strict=True):
            _add(stream, header, (folder / name).read_bytes())
        stream.write(bytes(2 * _BLOCK))


def _add(stream: BinaryIO, header: bytes, data: bytes) -> None:
    stream.write(header)
    stream.write(data)
    stream.write(bytes(_padded(len(data)) - len(data)))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)  # no clock time, no owner: equal files give equal shards
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _npy(table: _Table) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    return buffer.getvalue()


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _loose(folder: Path, suffix: str) -> Iterator[str]:
    for parent, _, files in os.walk(folder):
        for name in files:
            if name.endswith(suffix) and not name.startswith(".tmp-"):
                yield (Path(parent) / name).relative_to(folder).as_posix().removesuffix(suffix)


def _is_packed(folder: Path, name: str) -> bool:
    found = _index(folder).find(name)
    if found is None:
        return False
    shard, start, size = found
    with shard.open("rb") as stream:
        stream.seek(start)
        return stream.read(size) == (folder / name).read_bytes()


def _find(path: Path) -> tuple[Path, int, int] | None:
    for folder in path.parents:
        if folder.name in KINDS:
            found = _index(folder).find(path.relative_to(folder).as_posix())
            if found is not None:
                return found
    return None


class _Index:
    """Where the members of all shards of a folder lie: 32 bytes each, so that ten million take 320 MB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stamp = -1
        self.tables: dict[tuple[str, int, int], _Table] = {}
        self.shards: list[str] = []
        self.keys = self.starts = self.sizes = self.owners = np.zeros(0, np.uint64)

    def find(self, name: str) -> tuple[Path, int, int] | None:
        """Return shard, first byte and size of a member; of the newest shard, where several hold it."""
        self._refresh()
        key = np.uint64(_hash(name))
        at = int(np.searchsorted(self.keys, key, side="right")) - 1
        if at < 0 or self.keys[at] != key:
            return None
        return self.folder / self.shards[int(self.owners[at])], int(self.starts[at]), int(self.sizes[at])

    def _refresh(self) -> None:
        try:
            stamp = self.folder.stat().st_mtime_ns
            if stamp == self.stamp:
                return
            with os.scandir(self.folder) as items:
                shards = [item for item in items if _SHARD.fullmatch(item.name) and item.is_file(follow_symlinks=False)]
            facts = [(item.stat(), item.name) for item in shards]
        except FileNotFoundError:
            stamp, facts = -1, []
        # Two changes within one tick of the clock look like one, so a folder must rest before it is believed.
        self.stamp = stamp if time.time_ns() - stamp > _TICK else -1
        order = sorted((fact.st_mtime_ns, name, fact.st_size) for fact, name in facts)
        keys = [(name, stamp, size) for stamp, name, size in order]
        if keys == list(self.tables):
            return
        self.tables = {
            key: self.tables[key] if key in self.tables else _read_table(self.folder / key[0]) for key in keys
        }
        self.shards = [name for name, _, _ in keys]
        table = np.concatenate([np.zeros((0, 3), np.uint64), *self.tables.values()])
        owners = np.repeat(np.arange(len(keys), dtype=np.uint64), [len(part) for part in self.tables.values()])
        by_key = np.argsort(table[:, 0], kind="stable")
        self.keys, self.starts, self.sizes = (np.ascontiguousarray(column) for column in table[by_key].T)
        self.owners = owners[by_key]


_index = functools.lru_cache(maxsize=16)(_Index)


def _read_table(shard: Path) -> _Table:
    """Read the index of a shard, or make one for an archive that another tool packed; a torn shard holds nothing."""
    try:
        total = shard.stat().st_size
        with shard.open("rb") as stream:
            info = tarfile.TarInfo.frombuf(stream.read(_BLOCK), "utf-8", "strict")
            if info.name != _INDEX or info.size > total:
                rows = [(_hash(member.name), member.start, member.size) for member in scan_tar(shard)]
                return np.array(rows, dtype=np.uint64).reshape(-1, 3)
            table: _Table = np.load(io.BytesIO(stream.read(info.size)), allow_pickle=False)
        limit = np.uint64(total)
        inside = (table[:, 1] <= limit) & (table[:, 2] <= limit) & (table[:, 1] + table[:, 2] <= limit)
        if table.dtype != np.uint64 or table.shape[1:] != (3,) or not inside.all():
            raise ValueError("its index points outside")
        return table
    except (OSError, ValueError, IndexError, EOFError, tarfile.TarError, DataError) as error:
        _log.warning("%s: not a whole shard, its images count as missing: %s", shard, error)
        return np.zeros((0, 3), dtype=np.uint64)
