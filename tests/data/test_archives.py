from __future__ import annotations

import io
import json
import multiprocessing
import os
import tarfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsol import data
from wsol.data.check import check
from wsol.data.images import image_size, read_image
from wsol.errors import DataError
from wsol.store import archives
from wsol.store.masks import encode_mask

pyarrow = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photo(at, size=(13, 17)):
    return np.random.default_rng(at).integers(0, 255, (size[0] + at, size[1], 3), np.uint8)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def pack(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def shards(root):
    """Two shards of three photos: class ids, then JSON with boxes; a mask, and members that are no photos."""
    first = {}
    for at in range(3):
        first |= {f"{at:03d}.png": png(photo(at)), f"{at:03d}.cls": str(at % 2).encode()}
    first |= {
        "__meta__.json": b"no json",
        "000.txt": b"a cat",
        "000.mask.png": encode_mask(np.eye(13, 17, dtype=np.uint8)),
    }
    pack(root / "train-000.tar", first)
    second = {}
    for at in range(3, 6):
        facts = {"labels": [0, 2], "boxes": [[1, 2, 5, 9]], "box_labels": [2], "other": {}}
        second |= {f"deep/{at:03d}.json": json.dumps(facts).encode(), f"deep/{at:03d}.png": png(photo(at))}
    pack(root / "train-001.tar", second)
    pack(root / "val" / "0.tar", {"x.png": png(photo(9)), "x.cls": b"2"})
    return root


def test_tar_shards_give_the_photos_labels_boxes_and_masks(tmp_path):
    dataset = data.load("tar", root=shards(tmp_path / "set"))
    assert [sample.id for sample in dataset] == [f"{at:03d}.png" for at in range(3)] + [
        f"deep/{at:03d}.png" for at in range(3, 6)
    ]
    assert dataset.spec.classes == ("0", "1", "2")
    assert dataset.spec.splits == ("train", "val")
    assert [sample.labels for sample in dataset] == [(0,), (1,), (0,), (0, 2), (0, 2), (0, 2)]
    assert dataset.samples[4].boxes.tolist() == [[1, 2, 5, 9]]
    assert dataset.samples[4].box_labels == (2,)
    for at, sample in enumerate(dataset):
        assert (read_image(sample.image) == photo(at)).all()
        assert image_size(sample.image) == photo(at).shape[:2]
        assert sample.image.stem == f"{at:03d}"
        assert sample.image.suffix == ".png"
    assert (dataset.read_truth(dataset.samples[0]) == np.eye(13, 17)).all()
    assert data.load("tar", root=tmp_path / "set", split="val").samples[0].labels == (2,)
    assert all(finding.level != "missing" for finding in check("tar", tmp_path / "set", deep=True))


def test_a_folder_of_classes_that_somebody_packed_with_tar_is_a_data_set(tmp_path):
    pack(tmp_path / "photos.tar", {"./dog/1.png": png(photo(1)), "./cat/0.png": png(photo(0))})
    dataset = data.load("tar", root=tmp_path)
    assert dataset.spec.classes == ("cat", "dog")
    assert {sample.id: sample.labels for sample in dataset} == {"dog/1.png": (1,), "cat/0.png": (0,)}


def test_members_are_read_in_other_processes(tmp_path):
    dataset = data.load("tar", root=shards(tmp_path / "set"))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(read_image, [sample.image for sample in dataset])
    assert all((image == photo(at)).all() for at, image in enumerate(found))


def test_the_headers_are_listed_once_and_again_when_a_shard_changes(tmp_path, monkeypatch):
    root = shards(tmp_path / "set")
    first = data.load("tar", root=root)
    calls = []
    real = archives.scan_tar
    monkeypatch.setattr("wsol.data.tar.scan_tar", lambda path, **rest: calls.append(path.name) or real(path, **rest))
    assert data.load("tar", root=root).spec == first.spec
    assert calls == []
    pack(root / "train-001.tar", {"new.png": png(photo(7)), "new.cls": b"1"})
    assert [sample.id for sample in data.load("tar", root=root)][3:] == ["new.png"]
    assert calls == ["train-001.tar"]
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text("torn")
    assert len(data.load("tar", root=root)) == 4
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../x.png": b""}, "cannot be a file name"),
        ({"x.png": png(photo(0)), "x.json": b"{"}, "not the labels"),
        ({"x.png": png(photo(0)), "x.json": b"[" * 100_000}, "not the labels"),
        ({"x.png": png(photo(0)), "x.json": b'{"labels": [1.5]}'}, "numbers or names"),
        ({"x.png": png(photo(0)), "x.json": b'{"label": 0, "boxes": [["a"]]}'}, "not boxes"),
        ({"x.png": png(photo(0)), "x.json": b'{"label": 0, "boxes": [[1, 2, 3, 4], [1, 2]]}'}, "not boxes"),
        ({"x.png": png(photo(0)), "x.json": b'{"label": 0, "boxes": [[1, 2, 3, NaN]]}'}, "boxes of numbers"),
        ({"x.png": png(photo(0)), "x.cls": b"cat", "y.png": png(photo(0)), "y.cls": b"7"}, "some are names"),
        ({"x.txt": b"no photo"}, "no images"),
    ],
)
def test_what_is_wrong_with_a_shard_is_said(tmp_path, files, message):
    pack(tmp_path / "train.tar", files)
    with pytest.raises(DataError, match=message):
        data.load("tar", root=tmp_path)


def test_compressed_torn_and_absent_shards(tmp_path):
    with pytest.raises(DataError):
        data.load("tar", root=tmp_path)
    with tarfile.open(tmp_path / "train.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"), None)
    with pytest.raises(DataError, match="uncompressed"):
        data.load("tar", root=tmp_path)
    pack(tmp_path / "train.tar", {"x.png": png(photo(0)), "x.cls": b"0"})
    dataset = data.load("tar", root=tmp_path)
    os.truncate(tmp_path / "train.tar", 600)
    with pytest.raises(DataError, match="ends before"):
        read_image(dataset.samples[0].image)
    (tmp_path / "train.tar").unlink()
    with pytest.raises(DataError, match="no such image"):
        read_image(dataset.samples[0].image)


def table(root, name="train-0.parquet", *, struct=False, rows=7, **columns):
    root.mkdir(parents=True, exist_ok=True)
    images = [png(photo(at)) for at in range(rows)]
    images = [{"bytes": image, "path": None} for image in images] if struct else images
    found = pyarrow.table({"image": images, **columns})
    pyarrow.parquet.write_table(found, root / name, row_group_size=3)
    return root


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_files_give_the_photos_in_any_order(tmp_path, struct):
    root = table(tmp_path, struct=struct, label=[at % 3 for at in range(7)], id=[f"cat/{at}" for at in range(7)])
    dataset = data.load("parquet", root=root)
    assert [sample.id for sample in dataset] == [f"cat/{at}" for at in range(7)]
    assert [sample.labels for sample in dataset] == [(at % 3,) for at in range(7)]
    for at in (6, 0, 3, 2, 5, 1, 4):
        assert (read_image(dataset.samples[at].image) == photo(at)).all()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(read_image, [sample.image for sample in dataset])
    assert all((image == photo(at)).all() for at, image in enumerate(found))


def test_parquet_names_several_labels_and_boxes(tmp_path):
    root = table(
        tmp_path,
        labels=[["dog", "cat"], ["cat"], [], ["dog"], ["cat"], ["cat"], ["dog"]],
        boxes=[[[1.0, 2.0, 3.0, 4.0]]] + [[]] * 6,
        box_labels=[["dog"]] + [[]] * 6,
    )
    dataset = data.load("parquet", root=root)
    assert dataset.spec.classes == ("cat", "dog")
    assert dataset.samples[0].labels == (0, 1)
    assert dataset.samples[0].box_labels == (1,)
    assert dataset.samples[2].labels == ()
    assert dataset.samples[1].id == "train-0/1"
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert data.load("parquet", root=root).samples[0].box_labels == (0,)


def test_class_names_that_hugging_face_writes_are_used(tmp_path):
    root = table(tmp_path, label=[0, 1, 0, 1, 0, 1, 0])
    found = pyarrow.parquet.read_table(root / "train-0.parquet")
    facts = {"info": {"features": {"label": {"names": ["tench", "goldfish"], "_type": "ClassLabel"}}}}
    found = found.replace_schema_metadata({b"huggingface": json.dumps(facts).encode()})
    pyarrow.parquet.write_table(found, root / "train-0.parquet")
    assert data.load("parquet", root=root).spec.classes == ("tench", "goldfish")


def test_parquet_that_is_none_or_has_no_images(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 torn PAR1")
    with pytest.raises(DataError, match="Parquet"):
        data.load("parquet", root=tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"image": [1, 2]}), tmp_path / "val.parquet")
    with pytest.raises(DataError, match="no column of images"):
        data.load("parquet", root=tmp_path, split="val")


@given(st.binary(max_size=400), st.integers(0, 900))
def test_no_bytes_break_the_reading_of_parquet(tmp_path_factory, noise, at):
    root = tmp_path_factory.mktemp("noise")
    path = table(root, rows=2, label=[0, 1]) / "train-0.parquet"
    raw = bytearray(path.read_bytes())
    raw[at : at + len(noise)] = noise
    path.write_bytes(raw)
    try:
        for sample in data.load("parquet", root=root):
            read_image(sample.image)
    except DataError:
        pass
