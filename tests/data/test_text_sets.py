"""Data sets described by text files: CUB, ILSVRC, OpenImages, Tiny ImageNet, GlaS, each as a small tree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsol.data import load
from wsol.data.imagenet import class_names, imagenet_index, synsets
from wsol.errors import DataError


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _image(path: Path, array: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((5, 7), np.uint8) if array is None else array).save(path)


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2011"
    names = ["001.Black_footed_Albatross/A_1.jpg", "002.Laysan_Albatross/B_2.jpg", "002.Laysan_Albatross/B_3.jpg"]
    _write(
        root,
        {
            "images.txt": "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)),
            "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n",
            "image_class_labels.txt": "1 1\n2 2\n3 2\n",
            "train_test_split.txt": "1 1\n2 0\n3 0\n",
            "bounding_boxes.txt": "1 1.0 2.0 3.0 2.5\n2 0.0 0.0 7.0 5.0\n3 0.0 0.0 1.0 1.0\n",
        },
    )
    for name in names[:2]:
        _image(root / "images" / name)
    return root


def test_cub(cub: Path) -> None:
    train, test = load("cub", root=cub.parent, split="train"), load("cub", root=cub, split="test")
    assert train.spec.classes == ("Black footed Albatross", "Laysan Albatross")
    assert (len(train), train.missing, len(test), test.missing) == (1, 0, 1, 1)
    assert train.samples[0].labels == (0,)
    assert test.samples[0].labels == test.samples[0].box_labels == (1,)
    np.testing.assert_array_equal(train.samples[0].boxes, [[1, 2, 4, 4.5]])
    with pytest.raises(DataError, match="w9d68"):
        train.read_truth(train.samples[0])


@pytest.mark.parametrize("place", [".", ".."])
def test_cub_segmentations_by_vote(cub: Path, place: str) -> None:
    votes = np.array([[0, 51, 102, 153, 204, 255, 128]], np.uint8)
    _image(cub / place / "segmentations" / "002.Laysan_Albatross" / "B_2.png", votes)
    dataset = load("cub", root=cub, split="test")
    assert dataset.spec.annotations == "both"
    np.testing.assert_array_equal(dataset.read_truth(dataset.samples[0]), [[0, 0, 0, 2, 2, 2, 2]])


@pytest.mark.parametrize("name", ["002.Laysan_Albatross/B_2.jpg", "val2/002/0.jpeg"])
def test_cub_with_the_benchmark_lists(cub: Path, tmp_path: Path, name: str) -> None:
    _image(cub / "images" / name)
    metadata = _write(
        tmp_path / "metadata",
        {
            "val/image_ids.txt": name,
            "val/class_labels.txt": f"{name},1",
            "val/image_sizes.txt": f"{name},7,5",
            "val/localization.txt": f"{name},0,1,6,4",
        },
    )
    (sample,) = load("cub", root=cub, split="val", metadata=metadata)
    assert sample.size == (5, 7)
    np.testing.assert_array_equal(sample.boxes, [[0, 1, 7, 5]])
    with pytest.raises(DataError, match=r"no image_ids\.txt"):
        load("cub", root=cub, metadata=tmp_path / "nowhere")


def test_cub_broken_lists(cub: Path) -> None:
    (cub / "bounding_boxes.txt").write_text("1 1 1 1 1\n")
    with pytest.raises(DataError, match="do not fit together"):
        load("cub", root=cub, split="test")
    (cub / "bounding_boxes.txt").write_text("1 1 1 1\n")
    with pytest.raises(DataError, match="expected an id and 4 values"):
        load("cub", root=cub)
    (cub / "bounding_boxes.txt").unlink()
    with pytest.raises(DataError, match="cannot read the list"):
        load("cub", root=cub)


def test_imagenet_classes() -> None:
    assert len(synsets()) == 1000
    assert list(synsets()) == sorted(synsets())
    assert imagenet_index("n02102040") == 217
    assert imagenet_index("n00000000") is None
    names = class_names(synsets())
    assert len(set(names)) == 1000  # "crane" is a bird and a machine
    assert names[0] == "tench"


def test_ilsvrc_metadata_flat_and_in_folders(tmp_path: Path) -> None:
    first, second = "val/x.JPEG", "val/y.JPEG"
    files = {
        "image_ids.txt": f"{first}\n{second}",  # no newline at the end, as the benchmark has it
        "class_labels.txt": f"{first},482\n{second},0",
        "image_sizes.txt": f"{first},500,375\n{second},9,8",
        "localization.txt": f"{first},175,184,499,341\n{first},0,0,1,1\n{second},2,3,4,5",
    }
    flat = _write(tmp_path / "flat" / "ILSVRC", {f"metadata/{name}": text for name, text in files.items()})
    deep = _write(tmp_path / "deep" / "ILSVRC", {f"metadata/test/{name}": text for name, text in files.items()})
    for root, split in ((flat, "val"), (deep, "test")):
        dataset = load("ilsvrc", root=root.parent)
        assert dataset.spec.split == split
        assert [sample.id for sample in dataset] == [first, second]
        assert dataset.samples[0].size == (375, 500)
        assert dataset.samples[0].image == root / first
        np.testing.assert_array_equal(dataset.samples[0].boxes, [[175, 184, 500, 342], [0, 0, 2, 2]])
        assert dataset.samples[0].box_labels == (482, 482)
        assert dataset.spec.classes[482] == "cassette player"
        assert len(dataset.spec.classes) == 1000


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("localization.txt", "val/x.JPEG,1,2,3", "line 1: expected 2 or 4"),
        ("localization.txt", "val/x.JPEG,1,2,3,b", "whole number"),
        ("localization.txt", "val/x.JPEG,a.png,i.png\nval/x.JPEG,b.png,j.png", "two files of pixels to ignore"),
        ("class_labels.txt", "val/x.JPEG", "line 1: expected 1"),
        ("class_labels.txt", None, "cannot read the list"),
    ],
)
def test_broken_metadata(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    root = _write(tmp_path, {"metadata/image_ids.txt": "val/x.JPEG", "metadata/class_labels.txt": "val/x.JPEG,0"})
    (root / "metadata" / name).write_text(text) if text is not None else (root / "metadata" / name).unlink()
    with pytest.raises(DataError, match=message):
        load("ilsvrc", root=root)


def test_ilsvrc_official_layout(tmp_path: Path) -> None:
    box = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    item = "<object><name>n01751748</name><bndbox>" + box.format(111, 108, 441, 193) + "</bndbox></object>"
    size = "<size><width>500</width><height>375</height></size>"
    root = _write(
        tmp_path / "ILSVRC",
        {
            "Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": f"<annotation>{size}{item}</annotation>",
            "Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": "",
            "Data/CLS-LOC/train/n01751748/n01751748_1.JPEG": "",
            "Data/CLS-LOC/train/n01440764/n01440764_2.JPEG": "",
        },
    )
    val, train = load("ilsvrc", root=root, split="val"), load("ilsvrc", root=root, split="train")
    (sample,) = val
    assert sample.id == "val/ILSVRC2012_val_00000001.JPEG"
    assert sample.image.is_file()
    # The benchmark's localization.txt has 111,108,441,193 for this image, with inclusive ends.
    np.testing.assert_array_equal(sample.boxes, [[111, 108, 442, 194]])
    assert sample.labels == (imagenet_index("n01751748"),)
    assert [item.id for item in train] == ["train/n01440764/n01440764_2.JPEG", "train/n01751748/n01751748_1.JPEG"]
    assert train.samples[0].labels == (0,)
    assert train.spec.annotations == "none"
    assert val.spec.classes == train.spec.classes


def test_ilsvrc_with_foreign_classes(tmp_path: Path) -> None:
    root = _write(tmp_path / "ILSVRC", {"train/n99999998/a.JPEG": "", "train/n99999999/b.JPEG": ""})
    dataset = load("ilsvrc", root=root)
    assert dataset.spec.classes == ("n99999998", "n99999999")
    assert [sample.labels for sample in dataset] == [(0,), (1,)]


@pytest.fixture
def openimages(tmp_path: Path) -> Path:
    root = tmp_path / "OpenImages"
    ids = ["test/01226z/a.jpg", "test/0138tl/b.jpg"]
    _write(
        root,
        {
            "metadata/test/image_ids.txt": "\n".join(ids),
            "metadata/test/class_labels.txt": f"{ids[0]},0\n{ids[1]},1",
            "metadata/test/image_sizes.txt": "",
            "metadata/test/localization.txt": (
                f"{ids[0]},test/01226z/a_m1.png,test/01226z/a_ignore.png\n{ids[0]},test/01226z/a_m2.png,\n"
                f"{ids[1]},test/0138tl/b_m1.png,test/0138tl/b_ignore.png"
            ),
        },
    )
    one, two, ignore = (np.zeros((6, 9), np.uint8) for _ in range(3))
    one[0], two[:, 0], ignore[:2, 2:] = 255, 255, 255
    for name, mask in (("01226z/a_m1", one), ("01226z/a_m2", two), ("01226z/a_ignore", ignore)):
        _image(root / "test" / f"{name}.png", mask)
    _image(root / "test" / "0138tl" / "b_m1.png", two > 0)
    _image(root / "test" / "0138tl" / "b_ignore.png", np.kron(ignore, np.ones((2, 2), np.uint8)))
    return root


def test_openimages(openimages: Path) -> None:
    dataset = load("openimages", root=openimages)
    assert dataset.spec.classes == ("01226z", "0138tl")
    assert dataset.spec.annotations == "mask"
    first, second = dataset
    assert len(first.extra_masks) == 1
    assert first.boxes is None
    expected = np.zeros((6, 9), np.uint8)
    expected[1, 2:] = 255
    expected[0], expected[:, 0] = 1, 1
    np.testing.assert_array_equal(dataset.read_truth(first), expected)
    truth = dataset.read_truth(second)  # the ignore mask has twice the size of the instance mask
    np.testing.assert_array_equal(np.unique(truth), [0, 2, 255])
    assert (truth[:2, 2:] == 255).all()
    assert (truth[:, 0] == 2).all()


def test_openimages_class_names(openimages: Path) -> None:
    (openimages / "class-descriptions-boxable.csv").write_text('/m/01226z,Football\n/m/0138tl,"Toy"\n')
    assert load("openimages", root=openimages).spec.classes == ("Football", "Toy")


def test_openimages_without_masks(openimages: Path) -> None:
    (openimages / "metadata" / "test" / "localization.txt").unlink()
    dataset = load("openimages", root=openimages)
    assert dataset.spec.annotations == "none"
    with pytest.raises(DataError, match="no ground-truth mask"):
        dataset.read_truth(dataset.samples[0])


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = _write(
        tmp_path / "tiny-imagenet-200",
        {
            "wnids.txt": "n02124075\nn01443537\n",
            "train/n02124075/n02124075_boxes.txt": "n02124075_0.JPEG\t0\t3\t63\t62\n",
            "train/n01443537/n01443537_boxes.txt": "n01443537_0.JPEG\t1\t2\t3\t4\n",
            "val/val_annotations.txt": "val_0.JPEG\tn02124075\t0\t32\t44\t62\n",
        },
    )
    train, val = load("tiny_imagenet", root=root), load("tiny_imagenet", root=root, split="val")
    assert train.spec.classes == ("goldfish", "Egyptian cat")  # ascending ids, as ImageFolder numbers them
    assert [sample.labels for sample in train] == [(0,), (1,)]
    np.testing.assert_array_equal(train.samples[1].boxes, [[0, 3, 64, 63]])
    assert val.samples[0].labels == (1,)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02124075\t0\t32\t44\n")
    with pytest.raises(DataError, match="four box ends"):
        load("tiny_imagenet", root=root, split="val")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn0\t0\t32\t44\t1\n")
    with pytest.raises(DataError, match=r"not in wnids\.txt"):
        load("tiny_imagenet", root=root, split="val")


def test_glas(tmp_path: Path) -> None:
    root = tmp_path / "GlaS"
    glands = np.array([[0, 1, 2], [0, 0, 7]], np.uint8)
    for name in ("train_2", "train_10", "testA_1", "testB_1"):
        _image(root / f"{name}.bmp")
        _image(root / f"{name}_anno.bmp", glands)
    dataset = load("glas", root=tmp_path)
    assert [sample.id for sample in dataset] == ["train_2", "train_10"]
    assert dataset.spec.splits == ("testA", "testB", "train", "test")
    np.testing.assert_array_equal(dataset.read_truth(dataset.samples[0]), glands > 0)
    assert len(load("glas", root=root, split="test")) == 2
    with pytest.raises(DataError, match="cannot read the grades"):
        load("glas", root=root, labels="grade")
    (root / "Grade.csv").write_text("name,patient ID, grade (GlaS)\ntrain_2,1, benign\ntrain_10,2, malignant\n")
    graded = load("glas", root=root, labels="grade")
    assert [sample.labels for sample in graded] == [(0,), (1,)]
    assert graded.read_truth(graded.samples[1]).max() == 2
    with pytest.raises(DataError, match="no grade for testA_1"):
        load("glas", root=root, split="testA", labels="grade")
