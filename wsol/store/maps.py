"""Score maps on disk: one npz an image, loose or in a shard, without pickle."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from wsol.errors import StoreError
from wsol.schema import ScoreMaps
from wsol.store.atomic import atomic_write, inside
from wsol.store.shards import read_file

_UNPACKED = 2**28


def map_path(run: Path, image_id: str) -> Path:
    """Return where the maps of an image lie in a run folder; "/" in ids become folders."""
    return run / "maps" / f"{image_id}.npz"


def write_maps(run: Path, maps: ScoreMaps) -> int:
    """Write one file, whole or not at all.

    Args:
        run: Run folder.
        maps: Stored as float16; the same input gives the same bytes.

    Returns:
        Size of the file in bytes.
    """
    arrays = {
        "values": np.asarray(maps.values, dtype=np.float16),
        "class_ids": maps.class_ids,
        "image_size": np.asarray(maps.image_size, dtype=np.int32),
    }
    if maps.logits is not None:
        arrays["logits"] = maps.logits
    buffer = io.BytesIO()
    # np.savez stamps no clock time (ZipInfo's fixed 1980 date), so equal arrays give equal files.
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    with atomic_write(inside(run, map_path(run, maps.id))) as stream:
        stream.write(buffer.getbuffer())
    return buffer.getbuffer().nbytes


def _refuse_bomb(data: io.BytesIO) -> None:
    """Refuse an archive that unpacks to more than its own size, or 256 MiB; numpy stores arrays as they are."""
    if zipfile.is_zipfile(data):
        with zipfile.ZipFile(data) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
        if unpacked > max(_UNPACKED, data.getbuffer().nbytes):
            raise ValueError(f"it would unpack to {unpacked} bytes")
    data.seek(0)


def read_maps(run: Path, image_id: str) -> ScoreMaps:
    """Read the maps of one image.

    Raises:
        StoreError: When the file is missing, torn or not a score-map file.
    """
    path, data = map_path(run, image_id), io.BytesIO()
    try:
        data = io.BytesIO(read_file(path))
        _refuse_bomb(data)
        with np.load(data, allow_pickle=False) as arrays:
            height, width = (int(side) for side in arrays["image_size"])
            logits = arrays.get("logits")
            return ScoreMaps(
                id=image_id,
                values=arrays["values"],
                class_ids=arrays["class_ids"],
                image_size=(height, width),
                logits=logits,
            )
    except FileNotFoundError as error:
        raise StoreError("no score maps", where=path, hint="run wsol cam for this split") from error
    except Exception as error:  # numpy and zipfile raise whatever the bytes lead them to
        # What is no archive, numpy takes for a pickle, and says how to open that.
        reason = error if zipfile.is_zipfile(data) else "no npz archive"
        hint = "delete it and run wsol cam again"
        raise StoreError(f"not a whole score-map file: {reason}", where=path, hint=hint) from error
