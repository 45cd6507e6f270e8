"""The manifest: one JSON line an image, appended after its file is in place."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from wsol.errors import DataError, StoreError, WriteError
from wsol.schema import check_id
from wsol.store.shards import Sealer


class Manifest:
    """Append-only record of one shard; a context manager.

    Args:
        run: Run folder.
        shard: (index, count) of this writer; one writer a file, so no locks are needed.
    """

    def __init__(self, run: Path, shard: tuple[int, int] = (0, 1)) -> None:
        self.path = run / f"manifest-{shard[0]:03d}-of-{shard[1]:03d}.jsonl"
        self._run, self._shard = run, shard
        self._sealer: Sealer | None = None

    def __enter__(self) -> Manifest:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self.path.open("ab", buffering=0)
            if _ends_torn(self.path):
                self._stream.write(b"\n")
        except OSError as error:
            raise WriteError(f"cannot write: {error.strerror}", where=self.path, hint="give another --out") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if kind is None and self._sealer is not None:
            self._sealer.close()

    def pack(self, ids: Sequence[str], done: Collection[str]) -> None:
        """From now on, move the files of images into shards once they have their rows.

        Args:
            ids: Every id of this writer, in the order of the plan.
            done: Those that need no work.
        """
        self._sealer = Sealer(self._run, ids, done, self._shard)

    def done(self, image_id: str, **facts: Any) -> None:
        """Record that the file of an image is in place."""
        self._append({"id": image_id, "ok": True, **facts})

    def failed(self, image_id: str, error: str) -> None:
        """Record why an image has no file."""
        self._append({"id": image_id, "ok": False, "error": error})

    def _append(self, row: Mapping[str, Any]) -> None:
        # One unbuffered write a row: a kill leaves at most one torn last line, which readers skip.
        try:
            line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
            if self._stream.write(line) != len(line):  # a disk that fills up takes a part and says nothing
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            hint = "free some space and run the same command again, it continues"
            raise WriteError(f"cannot write: {error.strerror}", where=self.path, hint=hint) from error
        if self._sealer is not None:
            self._sealer.settle(str(row["id"]))


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def iterate_rows(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield id and row of every line over all shards of a run, one at a time; torn and foreign lines are skipped.

    The order of the files is that of their names: what the clock says does not matter. An id may come several times.
    """
    for path in sorted(run.glob("manifest-*.jsonl")):
        with path.open("rb") as stream:
            for line in stream:
                try:
                    row = json.loads(line)
                    image_id = check_id(row["id"])
                except (ValueError, KeyError, TypeError, RecursionError, DataError):
                    continue
                yield image_id, row


def read_rows(run: Path) -> dict[str, dict[str, Any]]:
    """Return the row of every id over all shards of a run: the last one, but an ok one before any that failed."""
    rows: dict[str, dict[str, Any]] = {}
    for image_id, row in iterate_rows(run):
        # A file that one shard wrote stays valid even if another shard failed on the same id.
        if not (rows.get(image_id, {}).get("ok") and not row.get("ok")):
            rows[image_id] = row
    return rows


def finished(run: Path, reads_whole: Callable[[str], object]) -> set[str]:
    """Return the ids that are ok in a manifest and whose file reads whole.

    Args:
        run: Run folder.
        reads_whole: Reads the file of an id and raises StoreError when it is missing or torn.
    """
    ids = set()
    for image_id, row in iterate_rows(run):
        if row.get("ok") and image_id not in ids:
            try:
                reads_whole(image_id)
            except StoreError:
                continue
            ids.add(image_id)
    return ids
