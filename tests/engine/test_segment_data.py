"""What a segmentation network learns from and predicts on: every broken mask is one clear line."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from wsol import data
from wsol.engine.mask_source import with_masks
from wsol.engine.segment_data import SegmenterViews, image_files
from wsol.errors import ConfigError, DataError, StoreError, WsolError
from wsol.schema import PseudoMask
from wsol.store.masks import confidence_path, mask_path, write_mask

SIZE = (23, 37)


@pytest.fixture
def photos(tmp_path):
    rng, root = np.random.default_rng(0), tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for at in range(2):
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)).save(root / name / f"{at}.png")
    return data.load("folder", root=root)


def write(run, sample, labels, confidence=None):
    write_mask(run, PseudoMask(id=sample.id, labels=labels, confidence=confidence))


def views(dataset, **changes):
    options = {"img_size": 32, "zoom": (1.0, 1.0), "hflip": 0.0, "color_jitter": 0.0}
    return SegmenterViews(dataset.truth, len(dataset.spec.classes), **(options | changes))


def look(dataset, at=0, **changes):
    return views(dataset, **changes)(dataset.samples[at], np.random.default_rng(0))


def test_a_view_tells_padding_from_unlabelled_pixels(photos, tmp_path):
    labels = np.ones(SIZE, dtype=np.uint8)
    labels[:, :10] = 255
    write(tmp_path, photos.samples[0], labels)
    dataset, _ = with_masks(photos, str(tmp_path))
    image, (found, inside) = look(dataset)
    assert image.shape == (32, 32, 3)
    assert set(np.unique(found)) == {1, 255}
    assert (found[inside == 0] == 255).all()
    height = round(23 * 32 / 37)
    assert inside.sum() == height * 32
    assert (found[inside == 1] == 255).mean() == pytest.approx(10 / 37, abs=0.02)


def test_crops_of_one_class_are_drawn_again(photos, tmp_path):
    labels = np.zeros(SIZE, dtype=np.uint8)
    labels[:, :8], labels[:3] = 1, 255
    write(tmp_path, photos.samples[0], labels)
    dataset, _ = with_masks(photos, str(tmp_path))

    def share(ratio, seed):
        look = views(dataset, zoom=(2.5, 2.5), cat_max_ratio=ratio)
        _, (found, _) = look(photos.samples[0], np.random.default_rng(seed))
        counts = np.bincount(found[found != 255], minlength=2)
        return counts.max() / counts.sum()

    plain, varied = (np.array([share(ratio, seed) for seed in range(60)]) for ratio in (1.0, 0.75))
    assert (plain >= 0.75).mean() > 0.4
    assert (varied >= 0.75).mean() < 0.15


def test_confidence_below_the_limit_is_ignored(photos, tmp_path):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, SIZE).astype(np.uint8)
    confidence = rng.random(SIZE).astype(np.float16)
    write(tmp_path, photos.samples[0], labels, confidence)
    dataset, _ = with_masks(photos, str(tmp_path), min_confidence=0.95)
    found = dataset.read_truth(dataset.samples[0])
    levels = np.rint(confidence.astype(np.float32) * 255)
    assert np.array_equal(found, np.where(levels < 242, 255, labels))
    plain, _ = with_masks(photos, str(tmp_path))
    assert np.array_equal(plain.read_truth(plain.samples[0]), labels)


def test_no_confidence_to_go_by(photos, tmp_path):
    labels = np.zeros(SIZE, dtype=np.uint8)
    write(tmp_path, photos.samples[0], labels)
    for masks in ("gt", str(tmp_path), str(tmp_path / "masks")):
        with pytest.raises(ConfigError, match="needs the confidence of the masks"):
            with_masks(photos, masks, min_confidence=0.5)
    write(tmp_path, photos.samples[1], labels, np.ones(SIZE, dtype=np.float16))
    dataset, _ = with_masks(photos, str(tmp_path), min_confidence=0.5)
    with pytest.raises(DataError, match="no confidence of this mask"):
        look(dataset)
    write(tmp_path, photos.samples[0], labels[1:], np.ones(SIZE, dtype=np.float16)[1:])
    write(tmp_path, photos.samples[0], labels)
    with pytest.raises(DataError, match=r"the confidence is \(22, 37\) but the mask is \(23, 37\)"):
        look(dataset)
    assert confidence_path(tmp_path, photos.samples[0].id).is_file()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((5, 7), dtype=np.uint8), r"the mask is \(5, 7\) but the image is \(23, 37\)"),
        (np.full(SIZE, 3, dtype=np.uint8), "the mask holds label 3 but there are 2 classes"),
        (np.full(SIZE, 254, dtype=np.uint8), "the mask holds label 254"),
        (np.full(SIZE, 255, dtype=np.uint8), "every pixel of the mask is ignored"),
    ],
)
def test_wrong_masks(photos, tmp_path, labels, message):
    write(tmp_path, photos.samples[0], labels)
    dataset, _ = with_masks(photos, str(tmp_path))
    with pytest.raises(DataError, match=message) as caught:
        look(dataset)
    assert photos.samples[0].id in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unlabelled_mask_is_of_use_to_losses_without_labels(photos, tmp_path):
    write(tmp_path, photos.samples[0], np.full(SIZE, 255, dtype=np.uint8))
    dataset, _ = with_masks(photos, str(tmp_path))
    _, (labels, inside) = look(dataset, whole=True)
    assert (labels == 255).all()
    assert inside.any()


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_corrupt_masks(photos, tmp_path, content):
    write(tmp_path, photos.samples[0], np.zeros(SIZE, dtype=np.uint8))
    path = mask_path(tmp_path, photos.samples[0].id)
    if content is None:
        colours = io.BytesIO()
        Image.new("RGB", SIZE[::-1]).save(colours, format="PNG")
        content = colours.getvalue()
    path.write_bytes(content)
    dataset, _ = with_masks(photos, str(tmp_path))
    with pytest.raises(StoreError) as caught:
        look(dataset)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_a_torn_png(photos, tmp_path):
    write(tmp_path, photos.samples[0], np.random.default_rng(0).integers(0, 2, SIZE).astype(np.uint8))
    path = mask_path(tmp_path, photos.samples[0].id)
    whole = path.read_bytes()
    dataset, _ = with_masks(photos, str(tmp_path))
    for length in range(0, len(whole) - 24, 17):  # the pixels end before the last checksum and trailer
        path.write_bytes(whole[:length])
        with pytest.raises(WsolError):
            look(dataset)


def test_files_folders_and_a_list_are_images(photos, monkeypatch, tmp_path):
    root = photos.spec.root
    whole = image_files([str(root)], classes=("a",))
    assert [sample.id for sample in whole] == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert whole.spec.root == root
    one = image_files([str(root / "cat" / "0.png")], classes=("a",))
    assert [sample.id for sample in one] == ["0.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{root}/cat/1.png\n\n{root}/dog/0.png\n"))
    mixed = image_files(["-", str(root / "dog")], classes=("a",))
    assert [sample.id for sample in mixed] == ["cat/1.png", "dog/0.png", "dog/1.png"]
    monkeypatch.chdir(root)
    assert [sample.image for sample in image_files(["cat"], classes=("a",))] == [root / "cat/0.png", root / "cat/1.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        image_files([str(tmp_path / "empty")], classes=())
