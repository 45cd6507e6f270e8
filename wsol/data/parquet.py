"""Images in Parquet files, as Hugging Face stores them: a column of encoded images, one of labels.

Format: https://parquet.apache.org. The images of a row group are read together, so keep row groups small (100 images)
where they are read in random order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsol.data import DATASETS
from wsol.data._archives import FACTS, Record, build, find_archives, record
from wsol.data.catalog import Dataset, Layout, Part
from wsol.errors import DataError
from wsol.store.archives import address, image_column, open_parquet

_IDS = ("id", "image_id", "__key__", "file_name")
LAYOUT = Layout(
    "parquet",
    folders=(),
    markers=("*.parquet", "*/*.parquet"),
    parts=(
        Part("*.parquet|*/*.parquet", "files with the columns image and label", "write them, for example with pyarrow"),
        Part("classes.txt", "class names in order", "write it", needed=False),
    ),
)


@DATASETS.register("parquet")
def load(*, root: Path | None, split: str | None) -> Dataset:
    """List the images of Parquet files; the root may be a URL.

    - SPLIT-000.parquet or SPLIT/000.parquet, as many as there are.
    - Column `image` (or img, jpg, jpeg, png, webp, bytes): the bytes of an image file, or a struct with `bytes`.
    - Column `label` or `labels` (or cls): class ids or names, one or a list; as wanted, `boxes` (x0, y0, x1, y1 in
      pixels, the end outside) and `box_labels`.
    - Column `id` (or image_id, __key__, file_name); without it an id is the name of the file and the row.
    - Class names: classes.txt in the root, or what Hugging Face writes into the files, or the labels, sorted.

    Args:
        root: Folder of the files.
        split: A split, see above.

    Raises:
        DataError: When a file is torn or has no images, or labels are malformed, or pyarrow is not installed.
    """
    folder, split, splits = find_archives(LAYOUT, root, split)
    records = [item for file in splits[split] for item in _records(file)]
    names = _names(open_parquet(splits[split][0]).schema_arrow)
    several = any(len(item.labels) > 1 for item in records)
    return build(LAYOUT, folder, split, tuple(splits), records, names=names, multi_label=several)


def _records(file: Path) -> Iterator[Record]:
    import pyarrow

    table = open_parquet(file)
    image_column(table.schema_arrow, file)
    known = table.schema_arrow.names
    key = next((name for name in _IDS if name in known), None)
    columns = [name for name in (key, *FACTS) if name in known]
    row = 0
    try:
        for group in range(table.num_row_groups):
            rows = table.read_row_group(group, columns=columns).to_pylist() if columns else None
            for facts in rows or [{}] * table.metadata.row_group(group).num_rows:
                image_id = str(facts[key]) if key is not None else f"{file.stem}/{row}"
                yield record(image_id, address(file, row, image_id), facts)
                row += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"not a whole Parquet file: {error}", where=file) from error


def _names(schema: Any) -> list[str]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features["label"] if "label" in features else features["labels"]["feature"]
        return [str(name) for name in feature["names"]]
    except (KeyError, ValueError, TypeError):
        return []
