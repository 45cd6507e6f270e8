"""Your own photos, in all the ways people keep them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol.data import load
from wsol.errors import DataError
from wsol.store.masks import encode_mask


def _photos(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (7, 5)).save(root / name)
    return root


def test_a_folder_a_class(tmp_path: Path) -> None:
    root = _photos(tmp_path, "dog/b.jpg", "dog/a.PNG", "cat/x/y.jpg", "loose.jpg", "dog/.hidden.jpg")
    (root / "dog" / "notes.txt").write_text("")
    dataset = load("folder", root=root)
    assert dataset.spec.classes == ("cat", "dog")
    assert (dataset.spec.split, dataset.spec.splits) == ("all", ("all",))
    found = {sample.id: sample.labels for sample in dataset}
    assert found == {"cat/x/y.jpg": (0,), "dog/a.PNG": (1,), "dog/b.jpg": (1,), "loose.jpg": ()}
    assert all(sample.upright for sample in dataset)
    assert dataset.spec.annotations == "none"


def test_listing_opens_no_image(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    (sample,) = load("folder", root=tmp_path)
    assert sample.size is None
    assert sample.labels == ()


def test_split_folders_share_their_classes(tmp_path: Path) -> None:
    root = _photos(tmp_path, "train/dog/1.jpg", "train/cat/2.jpg", "val/dog/3.jpg")
    val = load("folder", root=root, split="val")
    assert val.spec.classes == ("cat", "dog")
    assert [(sample.id, sample.labels) for sample in val] == [("dog/3.jpg", (1,))]
    assert load("folder", root=root).spec.split == "train"
    with pytest.raises(DataError, match="did you mean 'train'"):
        load("folder", root=root, split="trian")


def test_masks(tmp_path: Path) -> None:
    root = _photos(tmp_path, "dog/1.jpg", "dog/2.jpg")
    truth = np.arange(35, dtype=np.uint8).reshape(5, 7) % 3
    (root / "masks" / "dog").mkdir(parents=True)
    (root / "masks" / "dog" / "1.png").write_bytes(encode_mask(truth))
    dataset = load("folder", root=root)
    assert len(dataset) == 2
    assert dataset.spec.annotations == "mask"
    np.testing.assert_array_equal(dataset.read_truth(dataset.samples[0]), truth)
    assert dataset.samples[1].mask is None
    with pytest.raises(DataError, match="no such folder of masks"):
        load("folder", root=root, masks=tmp_path / "nowhere")


def test_csv(tmp_path: Path) -> None:
    root = _photos(tmp_path, "1.jpg", "sub/2.jpg")
    (root / "labels.csv").write_text(
        "file,labels,split,x0,y0,x1,y1\n"
        "1.jpg,dog;cat,train,,,,\n"
        "sub/2.jpg,dog,val,1,1,3,4\n"
        "sub/2.jpg,bird,val,0,0,7,5\n"
        "3.jpg,,train,,,,\n",
        encoding="utf-8-sig",
    )
    train, val = load("folder", root=root), load("folder", root=root, split="val")
    assert train.spec.classes == ("bird", "cat", "dog")
    assert [sample.labels for sample in train] == [(1, 2), ()]
    (sample,) = val
    assert sample.labels == (0, 2)
    assert sample.box_labels == (2, 0)
    np.testing.assert_array_equal(sample.boxes, [[1, 1, 3, 4], [0, 0, 7, 5]])
    assert sample.image == root / "sub" / "2.jpg"


def test_csv_with_ids_and_absolute_files(tmp_path: Path) -> None:
    photo = _photos(tmp_path, "elsewhere/1.jpg") / "elsewhere" / "1.jpg"
    (tmp_path / "t.csv").write_text(f"id,file,label\none,{photo},a|b\n")
    (sample,) = load("folder", root=tmp_path, labels=tmp_path / "t.csv")
    assert (sample.id, sample.image, sample.labels) == ("one", photo, (0, 1))


def test_masks_are_named_like_the_photos_or_like_the_ids_of_a_table(tmp_path: Path) -> None:
    root = _photos(tmp_path, "2007.01.jpg", "x/b.jpg", "c.jpg", "masks/2007.01.png", "masks/x/b.png", "masks/third.png")
    (root / "labels.csv").write_text("id,file,labels\n2007.01,2007.01.jpg,a\nsecond,x/b.jpg,a\nthird,c.jpg,a\n")
    names = ["2007.01", "x/b", "third"]
    assert [sample.mask for sample in load("folder", root=root)] == [root / "masks" / f"{name}.png" for name in names]


def test_masks_among_the_photos_are_no_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = _photos(tmp_path / "photos", "cat/1.jpg", "truth/cat/1.png")
    monkeypatch.chdir(tmp_path)
    for masks in (root / "truth", Path("photos/truth")):
        dataset = load("folder", root=root, masks=masks)
        assert dataset.spec.classes == ("cat",)
        assert [(sample.id, sample.mask) for sample in dataset] == [("cat/1.jpg", masks / "cat" / "1.png")]


@pytest.mark.parametrize("as_list", [True, False])
def test_json(tmp_path: Path, as_list: bool) -> None:
    root = _photos(tmp_path, "1.jpg", "2.jpg")
    rows = [{"file": "1.jpg", "labels": ["dog"], "boxes": [[1, 1, 2, 2]]}, {"file": "2.jpg", "labels": "cat;dog"}]
    raw = rows if as_list else {"1.jpg": ["dog"], "2.jpg": ["cat", "dog"]}
    (root / "labels.json").write_text(json.dumps(raw))
    dataset = load("folder", root=root)
    assert [sample.labels for sample in dataset] == [(1,), (0, 1)]
    assert dataset.spec.annotations == ("box" if as_list else "none")
    assert not as_list or dataset.samples[0].box_labels == (1,)


def test_class_order_from_a_file(tmp_path: Path) -> None:
    root = _photos(tmp_path, "dog/1.jpg", "cat/2.jpg")
    (root / "classes.txt").write_text("dog\nhorse\ncat\n")
    dataset = load("folder", root=root)
    assert dataset.spec.classes == ("dog", "horse", "cat")
    assert [sample.labels for sample in dataset] == [(2,), (0,)]
    (root / "classes.txt").write_text("dgo\ncat\n")
    with pytest.raises(DataError, match="did you mean 'dgo'"):
        load("folder", root=root)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.csv", "photo,labels\n1.jpg,dog\n", "lacks a file"),
        ("labels.csv", "file,class\n1.jpg,dog\n", "lacks a file or labels"),
        ("labels.csv", "file,labels,x0,y0,x1,y1\n1.jpg,dog,a,1,2,3\n", "could not convert"),
        ("labels.csv", "file,labels\n../1.jpg,dog\n", "cannot be a file name"),
        ("labels.csv", "file,labels,x0,y0,x1,y1\n1.jpg,dog,1,2,3,\n", "a box is x0, y0, x1, y1, got 1, 2, 3"),
        ("labels.csv", "file,labels,split\n1.jpg,dog,train\n1.jpg,cat,val\n", "'1.jpg' is listed with two files or"),
        ("labels.csv", "id,file,labels\n1,1.jpg,dog\n1,2.jpg,cat\n", "'1' is listed with two files or splits"),
        ("labels.json", '[{"file": "1.jpg", "labels": ["a"]}, {"file": "1.jpg", "labels": ["b"]}]', "listed twice"),
        ("labels.json", '[{"file": "1.jpg", "labels": ["a"], "boxes": [[0, 0, 1, 1, 2, 2, 3, 3]]}]', "a box is"),
        ("labels.json", "[1]", "not a table of labels"),
        ("labels.json", "{", "not a table of labels"),
        ("labels.json", '[{"file": "1.jpg", "labels": ["a"], "boxes": [[1, 2, 3]]}]', "a box is"),
    ],
)
def test_malformed_tables(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load("folder", root=tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(DataError, match="no images"):
        load("folder", root=tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load("folder", root=tmp_path / "absent")
