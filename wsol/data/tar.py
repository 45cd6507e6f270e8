"""Images in tar shards, as WebDataset lays them out: NAME.jpg with NAME.cls or NAME.json beside it.

Layout: https://github.com/webdataset/webdataset. Nothing is unpacked: the headers are listed once, the list is kept in
the user's cache, and every image is read at its place in the shard, in whatever process needs it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from wsol.data import DATASETS
from wsol.data._archives import FACTS, Record, build, find_archives, record
from wsol.data.catalog import IMAGE_SUFFIXES, Dataset, Layout, Part
from wsol.errors import DataError, StoreError
from wsol.store.archives import Member, address, scan_tar
from wsol.store.atomic import write_text
from wsol.store.places import url_of, version

_MASK = "mask.png"
LAYOUT = Layout(
    "tar",
    folders=(),
    markers=("*.tar", "*/*.tar"),
    parts=(
        Part("*.tar|*/*.tar", "uncompressed shards of NAME.jpg and NAME.cls or NAME.json", "pack them with tar -cf"),
        Part("classes.txt", "class names in order", "write it", needed=False),
    ),
)


@DATASETS.register("tar")
def load(*, root: Path | None, split: str | None) -> Dataset:
    """List the images of tar shards; the root may be a URL. An id is the name of the image in its shard.

    - SPLIT-000.tar or SPLIT/000.tar, as many as there are.
    - NAME.cls holds a class id or name; NAME.json holds `label` or `labels`, and, as wanted, `boxes` (x0, y0, x1, y1 in
      pixels, the end outside) and `box_labels`; without both, the folder of NAME is the class.
    - NAME.mask.png is the ground-truth mask, for evaluation only.
    - NAME ends at the first dot, as WebDataset has it: `a.b.jpg` is no photo, but belongs to `a`.
    - classes.txt in the root gives the order of the classes; by default they are sorted.

    Args:
        root: Folder of the shards.
        split: A split, see above.

    Raises:
        DataError: When a shard is torn, compressed, or holds links or unsafe names, or when labels are malformed.
    """
    folder, split, splits = find_archives(LAYOUT, root, split)
    records = [item for shard in splits[split] for item in _records(shard)]
    return build(LAYOUT, folder, split, tuple(splits), records, multi_label=any(len(r.labels) > 1 for r in records))


def _records(shard: Path) -> list[Record]:
    found = []
    for name, start, size, facts, mask in _index(shard):
        hidden = None if mask is None else address(shard, mask[0], Path(name).name, size=mask[1])
        found.append(record(name, address(shard, start, name, size=size), facts, mask=hidden))
    return found


def _index(shard: Path) -> list[list[Any]]:
    """List a shard, or take the list from the cache where the shard has not changed since."""
    place = shard if url_of(shard) else shard.absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wsol" / "tar"
    cached = cache / f"{hashlib.sha256(str(place).encode()).hexdigest()[:32]}.json"
    try:
        stamp = version(shard)
    except OSError as error:
        raise DataError(f"cannot read the shard: {error}", where=shard) from error
    with suppress(OSError, ValueError, KeyError, TypeError):  # no list yet, or none that can be used
        kept = json.loads(cached.read_text(encoding="utf-8"))
        if kept["version"] == stamp:
            return list(kept["images"])
    images = list(_images(scan_tar(shard, read=(".cls", ".json")), shard))
    with suppress(StoreError):  # a home that cannot be written costs time only
        write_text(cached, json.dumps({"version": stamp, "images": images}))
    return images


def _images(members: Iterable[Member], shard: Path) -> Iterable[list[Any]]:
    parts: dict[str, dict[str, Member]] = {}
    for member in members:
        parent, slash, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        if not stem.startswith("__"):
            parts.setdefault(f"{parent}{slash}{stem}", {})[ending.lower()] = member
    for key, found in parts.items():
        image = next((item for end, item in found.items() if f".{end}" in IMAGE_SUFFIXES), None)
        if image is None:
            continue
        mask = found.get(_MASK)
        yield [
            image.name,
            image.start,
            image.size,
            _facts(key, found, shard),
            None if mask is None else [mask.start, mask.size],
        ]


def _facts(key: str, found: dict[str, Member], shard: Path) -> dict[str, Any]:
    try:
        if "json" in found:
            facts = json.loads(found["json"].data)
            return {name: facts[name] for name in FACTS if name in facts}
        if "cls" in found:
            text = found["cls"].data.decode().strip()
            return {"label": int(text) if text.isdecimal() else text}
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"not the labels of {key}: {error}", where=shard) from error
    return {"label": key.split("/")[0]} if "/" in key else {}
