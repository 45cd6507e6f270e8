"""Run folders at a URL: a verb works in a local copy, which is fetched first and kept up to date at the URL.

pathlib turns `s3://bucket/run` into the relative path `s3:/bucket/run`, and that is where the copy lies: below the
working folder. So a verb needs no other code for remote runs, and what it writes down about its inputs holds on any
machine. Object stores know neither append nor rename; what goes up is whole files, the manifests last.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from wsol.config import load_yaml
from wsol.errors import StoreError
from wsol.store.atomic import atomic_write, write_text
from wsol.store.places import file_system, url_of
from wsol.store.shards import KINDS

_log = logging.getLogger("wsol")
_INPUT = "root"  # photos are read where they are, not copied
_CONNECTIONS = 16
_NOTES = ".sent.json"
_FINAL = {".tar", ".npz", ".png"}  # never rewritten with the same size


@contextmanager
def local_runs(config: Any, *, every: float = 60.0) -> Iterator[None]:
    """Fetch the run folders that the options of a verb name by URL, and send back what it writes to `out`.

    Args:
        config: Dataclass of options; fields that are no URL cost nothing.
        every: Seconds between two uploads of what has changed.

    Raises:
        StoreError: When a run cannot be fetched, or at the end not be sent; the local copy is whole then.
    """
    named = {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name != _INPUT}
    runs = {
        name: Path(value)
        for name, value in named.items()
        if isinstance(value, Path | str) and url_of(value) is not None
    }
    for path in runs.values():
        Mirror(path).fetch()
    if "out" not in runs:
        yield
        return
    mirror, stop = Mirror(runs["out"]), Event()
    thread = Thread(target=mirror.send_until, args=(stop, every), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        mirror.send(last=True)


class Mirror:
    """A run folder at a URL and its local copy.

    Args:
        path: What pathlib makes of the URL; also where the copy lies. It may name one file, such as a checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.url = path, str(url_of(path))
        self._files, place = file_system(self.url)
        self._place = place.rstrip("/")
        self._notes = path / _NOTES
        self._sent: dict[str, list[int]] = _read_notes(self._notes)

    def fetch(self) -> None:
        """Get what is missing here or may have changed there; what was written here and not yet sent is kept.

        Raises:
            StoreError: When the URL cannot be read, or holds a name that would leave the folder.
        """
        try:
            self._files.invalidate_cache()
            try:
                found = self._files.find(self._place, detail=True)
            except FileNotFoundError:
                found = {}
            wanted = {}
            for place, facts in found.items():
                name = place[len(self._place) + 1 :]
                if place != self._place and not _is_safe(name):
                    raise StoreError(f"refusing the object '{place}'", where=self.url, hint="it would leave the folder")
                if self._is_stale(name, facts["size"]):
                    wanted[name] = place
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                list(pool.map(self._get, wanted, wanted.values()))
        except StoreError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise StoreError(f"cannot fetch the run: {error}", where=self.url) from error

    def send(self, *, last: bool = False) -> None:
        """Send what has changed: the manifests as they were before, and after all else.

        Args:
            last: Also send the loose files of a run that packs them, and remove there what was packed or replaced here.

        Raises:
            StoreError: When the URL cannot be written.
        """
        packs = _packs(self.path)
        try:
            manifests = [(path.name, _stamp(path), path.read_bytes()) for path in self.path.glob("manifest-*.jsonl")]
            changes = dict(self._changes(loose=last or not packs))
            with ThreadPoolExecutor(_CONNECTIONS) as pool:
                list(pool.map(self._put, changes))
            for name, stamp, data in manifests:
                if self._sent.get(name) != stamp:
                    self._files.pipe_file(f"{self._place}/{name}", data)
                    self._sent[name] = stamp
            gone = [name for name in self._sent if last and not (self.path / name).exists()]
            for name in gone:
                self._files.rm_file(f"{self._place}/{name}")
                del self._sent[name]
        except Exception as error:  # as above
            hint = f"what was written is in {self.path}; run the same command again to send it"
            raise StoreError(f"cannot send the run: {error}", where=self.url, hint=hint) from error
        write_text(self._notes, json.dumps(self._sent))

    def send_until(self, stop: Event, every: float) -> None:
        """Send what has changed every few seconds; a failure is logged and tried again."""
        while not stop.wait(every):
            try:
                self.send()
            except StoreError as error:
                _log.warning("%s", error)

    def _is_stale(self, name: str, size: int) -> bool:
        path = self.path / name
        if not path.is_file():
            return True
        if name and self._sent.get(name) != _stamp(path):
            return False
        return path.suffix not in _FINAL or path.stat().st_size != size

    def _changes(self, *, loose: bool) -> Iterator[tuple[str, list[int]]]:
        for parent, _, files in os.walk(self.path):
            for file in sorted(files):
                path = Path(parent) / file
                name = path.relative_to(self.path).as_posix()
                skipped = not loose and name.split("/")[0] in KINDS and path.suffix != ".tar"
                if skipped or file.startswith((".", "manifest-")) or path.is_symlink() or not path.is_file():
                    continue
                with suppress(FileNotFoundError):  # packed meanwhile
                    stamp = _stamp(path)
                    if self._sent.get(name) != stamp:
                        yield name, stamp

    def _get(self, name: str, place: str) -> None:
        target = self.path / name
        with atomic_write(target) as stream, self._files.open(place, "rb") as source:
            shutil.copyfileobj(source, stream)
        if name:
            self._sent[name] = _stamp(target)

    def _put(self, name: str) -> None:
        path = self.path / name
        with suppress(FileNotFoundError):  # replaced or packed meanwhile: the next time
            stamp = _stamp(path)
            self._files.put_file(str(path), f"{self._place}/{name}")
            self._sent[name] = stamp


def _stamp(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def _packs(run: Path) -> bool:
    path = run / "config.yaml"
    return path.is_file() and load_yaml(path).get("store") == "shards"


def _read_notes(path: Path) -> dict[str, list[int]]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _is_safe(name: str) -> bool:
    return not ({"", ".", ".."} & set(name.split("/"))) and "\\" not in name and not name.startswith(".")
