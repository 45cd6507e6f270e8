"""Valid data sets in every layout, and their readers."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from wsol import data
from wsol.data.images import image_size, read_image
from wsol.data.scene import KINDS
from wsol.data.synthetic import write_synthetic
from wsol.data.voc import read_devkit
from wsol.ops.rle import encode

_RNG = np.random.default_rng(0)
PHOTO = _RNG.integers(0, 255, (21, 33, 3), np.uint8)


def read_dataset(name: str, **options: Any) -> Callable[[Path], object]:
    def load(root: Path) -> None:
        found = data.load(name, root=root, split=None, limit=None, **options)
        for sample in found:
            if sample.mask is not None or name == "coco":
                found.read_truth(sample)

    return load


def write_voc(root: Path) -> None:
    write_synthetic(root, train=3, val=1, seed=0)


def read_voc(root: Path) -> None:
    found = read_devkit("voc", root, None, classes=[kind.name for kind in KINDS])
    for sample in found:
        found.read_truth(sample)


def write_coco(root: Path) -> None:
    mask = np.zeros((21, 33), bool)
    mask[3:9, 4:20] = True
    segments: list[Any] = [[[2, 3, 20, 4, 18, 15.5]], encode(mask), {"size": [21, 33], "counts": [100, 50, 543]}]
    objects = [
        {
            "id": at,
            "image_id": 7,
            "category_id": 1 + at % 2,
            "segmentation": item,
            "area": 60.5,
            "bbox": [2, 3, 18, 12],
            "iscrowd": at % 2,
        }
        for at, item in enumerate(segments)
    ]
    raw = {
        "images": [{"id": 7, "file_name": "000007.jpg", "height": 21, "width": 33}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": objects,
    }
    (root / "annotations").mkdir()
    (root / "train2017").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(raw))
    Image.fromarray(PHOTO).save(root / "train2017" / "000007.jpg")


def read_coco(root: Path) -> None:
    import shutil

    read_dataset("coco", cache=root / ".cache")(root)
    shutil.rmtree(root / ".cache", ignore_errors=True)


def write_cub(root: Path) -> None:
    (root / "images" / "001.A_bird").mkdir(parents=True)
    for name in ("a", "b"):
        Image.fromarray(PHOTO).save(root / "images" / "001.A_bird" / f"{name}.jpg")
    texts = {
        "images.txt": "1 001.A_bird/a.jpg\n2 001.A_bird/b.jpg\n",
        "classes.txt": "1 001.A_bird\n2 002.B_bird\n",
        "image_class_labels.txt": "1 1\n2 1\n",
        "train_test_split.txt": "1 1\n2 1\n",
        "bounding_boxes.txt": "1 2.0 3.0 10.0 11.0\n2 1.0 1.0 5.0 6.0\n",
    }
    for name, text in texts.items():
        (root / name).write_text(text)


def write_ilsvrc(root: Path) -> None:
    folder = root / "metadata" / "val"
    folder.mkdir(parents=True)
    (root / "val").mkdir()
    for name, text in {
        "image_ids.txt": "val/a.JPEG\nval/b.JPEG\n",
        "class_labels.txt": "val/a.JPEG,3\nval/b.JPEG,5\n",
        "image_sizes.txt": "val/a.JPEG,33,21\nval/b.JPEG,33,21\n",
        "localization.txt": "val/a.JPEG,1,2,10,12\nval/b.JPEG,1,2,10,12\nval/b.JPEG,3,4,9,9\n",
    }.items():
        (folder / name).write_text(text)


def write_openimages(root: Path) -> None:
    folder = root / "metadata" / "val"
    folder.mkdir(parents=True)
    (root / "val" / "m").mkdir(parents=True)
    Image.fromarray(PHOTO).save(root / "val" / "m" / "a.jpg")
    Image.fromarray((PHOTO[..., 0] > 99).astype(np.uint8) * 255).save(root / "val" / "m" / "a.png")
    for name, text in {
        "image_ids.txt": "val/m/a.jpg\n",
        "class_labels.txt": "val/m/a.jpg,3\n",
        "image_sizes.txt": "val/m/a.jpg,33,21\n",
        "localization.txt": "val/m/a.jpg,val/m/a.png,val/m/a.png\n",
    }.items():
        (folder / name).write_text(text)


def write_tiny(root: Path) -> None:
    (root / "train" / "n01").mkdir(parents=True)
    (root / "wnids.txt").write_text("n01\nn02\n")
    (root / "train" / "n02").mkdir()
    for name in ("n01", "n02"):
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t10\t63\t58\n")


def write_folder(root: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(PHOTO).save(root / f"{name}.jpg")
    (root / "labels.csv").write_text(
        "file,labels,x0,y0,x1,y1,split\na.jpg,cat;dog,1,2,9,9,train\nb.jpg,dog,,,,,train\n"
    )
    rows = [
        {"file": "a.jpg", "labels": ["cat"], "boxes": [[1, 2, 9, 9]], "split": "train"},
        {"file": "b.jpg", "labels": "dog"},
    ]
    (root / "labels.json").write_text(json.dumps(rows))
    (root / "classes.txt").write_text("cat\ndog\n")


def read_folder(root: Path) -> None:
    for table in ("labels.csv", "labels.json"):
        data.load("folder", root=root, split=None, limit=None, labels=root / table)


def read_pictures_of(name: str) -> Callable[[Path], object]:
    def load(root: Path) -> None:
        for sample in data.load(name, root=root, split=None, limit=None):
            image_size(sample.image)
            read_image(sample.image)

    return load


def write_tar(root: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "jpeg")
    with tarfile.open(root / "train-000.tar", "w") as archive:
        for name, content in {
            "x/a.jpg": buffer.getvalue(),
            "x/a.json": b'{"label": 1}',
            "x/b.jpg": buffer.getvalue(),
            "x/b.cls": b"0",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_parquet(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "jpeg")
    rows = {"image": [buffer.getvalue()] * 3, "label": [0, 1, 1], "id": ["a.jpg", "b.jpg", "c.jpg"]}
    pq.write_table(pa.table(rows), root / "train-000.parquet")
