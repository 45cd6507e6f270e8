"""What `wsol segment predict` can be asked for: windows, CRF, files and lists, confidence, attention, COCO, zip."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import nn

from wsol.cli import segment as verb
from wsol.engine.segment_infer import View, _size, predict, predict_labels, slide
from wsol.engine.segment_options import SegmentPredictConfig
from wsol.engine.segment_predict import segment_predict
from wsol.errors import ConfigError, DataError
from wsol.models.segmenter import Segmenter, SegmenterFacts, create_segmenter, save_segmenter
from wsol.ops.palette import voc_palette
from wsol.refine import create as create_refiner
from wsol.store.manifest import read_rows
from wsol.store.maps import read_maps
from wsol.store.masks import mask_path, read_labels, read_mask

CPU = torch.device("cpu")
SIZES = ((41, 67), (53, 38))
FILES = {"cat": "1.png", "dog": "2.png"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for at, (name, size) in enumerate(zip(("cat", "dog"), SIZES, strict=True), start=1):
        (folder / name).mkdir()
        blocks = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((10, 10, 1)))[: size[0], : size[1]]
        Image.fromarray(blocks.astype(np.uint8)).save(folder / name / f"{at}.png")
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    torch.manual_seed(1)
    segmenter = create_segmenter("segmenter", "test_vit", classes=("cat", "dog"), img_size=64)
    folder = tmp_path_factory.mktemp("network")
    save_segmenter(segmenter, folder)
    return folder, Segmenter(segmenter.module.eval(), segmenter.facts, segmenter.stride)


def run(photos, network, out, **changes):
    options = {"data": "folder", "root": photos, "checkpoint": network[0], "out": out, "workers": 0}
    return segment_predict(SegmentPredictConfig(**(options | {"device": "cpu", "quiet": True} | changes)))


def photo(root, name):
    return np.asarray(Image.open(root / name / FILES[name]))


@pytest.mark.parametrize(("size", "window", "stride"), [((64, 64), 64, 64), ((70, 101), 32, 20), ((33, 90), 33, 33)])
def test_windows_cover_every_pixel_and_average(size, window, stride):
    seen = torch.zeros(size)

    def network(part):
        assert part.shape[2:] == (window, window)
        return torch.stack([part[:, 0], part[:, 0] ** 2], dim=1)

    images = torch.randn(2, 3, *size)
    logits = slide(network, images, window=window, stride=stride)
    torch.testing.assert_close(logits, torch.stack([images[:, 0], images[:, 0] ** 2], dim=1))
    positions = iter(range(10**6))
    count, total = torch.zeros(size), torch.zeros(size)
    for top in sorted({*range(0, size[0] - window, stride), size[0] - window}):
        for left in sorted({*range(0, size[1] - window, stride), size[1] - window}):
            total[top : top + window, left : left + window] += next(positions)
            count[top : top + window, left : left + window] += 1
    numbers = iter(range(10**6))
    found = slide(
        lambda part: part.new_full((1, 1, window, window), next(numbers)), images[:1], window=window, stride=stride
    )
    torch.testing.assert_close(found[0, 0], total / count)
    assert (seen + count > 0).all()


class Colour(nn.Module):
    """Logits are the colours; insists on whole windows."""

    def forward(self, x):
        assert x.shape[2:] == (32, 32)
        return 50 * x


@pytest.mark.parametrize("size", [(37, 53), (20, 90), (9, 9)])
@pytest.mark.parametrize("scales", [(1.0,), (0.3, 1.0)])
def test_small_images_are_enlarged_to_the_window(size, scales):
    facts = SegmenterFacts("none", "none", ("g", "b"), img_size=max(size), mean=(0.0,) * 3, std=(1.0,) * 3)
    segmenter = Segmenter(Colour(), facts, stride=32)
    truth = np.zeros(size, dtype=np.uint8)
    truth[size[0] // 2 :, : size[1] // 3] = 1
    image = np.zeros((*size, 3), dtype=np.uint8)
    np.put_along_axis(image, truth[..., None].astype(np.int64), 255, axis=2)
    view = View(window=32, stride=20, scales=scales, flip=True)
    labels = predict_labels(segmenter, image, view, device=CPU)
    assert (labels == truth).mean() > 0.85
    probabilities = predict(segmenter, image, view, device=CPU)
    torch.testing.assert_close(probabilities.sum(0), torch.ones(size))


@pytest.mark.parametrize("size", [(345, 5), (172, 4), (7, 21), (301, 99)])
@pytest.mark.parametrize("window", [224, 640])
def test_an_enlarged_image_keeps_its_shape_to_the_pixel(size, window):
    short = min(size)
    expected = tuple(side * window // short for side in size)
    assert _size(np.zeros((*size, 3), dtype=np.uint8), 100, window) == expected


def test_every_flag_at_once(root, network, tmp_path):
    options = {"scales": (0.75, 1.25), "flip": True, "window": 48, "stride": 32, "confidence": True, "amp": True}
    outcome = run(root, network, tmp_path / "out", crf="irn", coco=True, zip="comp6", attention=True, **options)
    assert (outcome.done, outcome.status) == (2, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_dense_crf(root, network, tmp_path, workers):
    run(root, network, tmp_path / "out", crf="irn", workers=workers)
    crf = create_refiner("densecrf", preset="irn")
    for name in ("cat", "dog"):
        image = photo(root, name)
        probabilities = predict(network[1], image, View(), device=CPU).numpy()
        assert np.array_equal(
            read_labels(mask_path(tmp_path / "out", f"{name}/{FILES[name]}")), crf(image, probabilities).argmax(0)
        )
    with pytest.raises(ConfigError, match="irn"):
        run(root, network, tmp_path / "wrong", crf="irm")


def test_confidence(root, network, tmp_path):
    run(root, network, tmp_path / "out", confidence=True, min_confidence=0.45)
    best, labels = predict(network[1], photo(root, "dog"), View(), device=CPU).max(dim=0)
    mask = read_mask(tmp_path / "out", "dog/2.png")
    assert np.abs(mask.confidence - best.numpy()).max() < 0.004
    sure = best.numpy().astype(np.float16) >= 0.45
    assert 0 < sure.mean() < 1
    assert np.array_equal(mask.labels, np.where(sure, labels.numpy(), 255))


def test_class_attention_as_maps(root, network, tmp_path):
    run(root, network, tmp_path / "out", attention=True)
    maps = read_maps(tmp_path / "out", "cat/1.png")
    assert maps.class_ids.tolist() == [0, 1]
    assert maps.image_size == SIZES[0]
    assert maps.values.shape == (2, 2, 4)
    assert (maps.values.max(axis=(1, 2)) == 1).all()
    save_segmenter(create_segmenter("fpn", "tu-test_resnet", classes=("cat", "dog"), img_size=64), tmp_path / "cnn")
    with pytest.raises(ConfigError, match="--attention needs"):
        run(root, (tmp_path / "cnn",), tmp_path / "none", attention=True)


def test_coco_and_the_zip_of_the_voc_server(root, network, tmp_path):
    out = tmp_path / "out"
    run(root, network, out, images=(str(root),), data=None, root=None, coco=True, zip="comp5")
    document = json.loads((out / "pseudo.coco.json").read_text())
    by_name = {item["id"]: item for item in document["images"]}
    for annotation in document["annotations"]:
        name = {SIZES[0][0]: "cat", SIZES[1][0]: "dog"}[by_name[annotation["image_id"]]["height"]]
        labels = read_labels(mask_path(out, f"{name}/{FILES[name]}"))
        region = coco_mask.decode(annotation["segmentation"])
        assert np.array_equal(region, labels == annotation["category_id"])
    first = (out / "results.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        names = archive.namelist()
        assert names == [f"results/VOC2012/Segmentation/comp5_test_cls/{name}" for name in FILES.values()]
        picture = Image.open(io.BytesIO(archive.read(names[0])))
        assert picture.mode == "P"
        assert bytes(picture.getpalette()[: 21 * 3]) == voc_palette()[:21].tobytes()
    run(root, network, out, images=(str(root),), data=None, root=None, zip="comp5")
    assert (out / "results.zip").read_bytes() == first
    (tmp_path / "twice").mkdir()
    (tmp_path / "twice" / "2.png").write_bytes((root / "dog" / "2.png").read_bytes())
    listed = (str(root), str(tmp_path / "twice"))
    with pytest.raises(DataError, match="two photos are named '2'"):
        run(None, network, tmp_path / "none", images=listed, data=None, zip="comp5")


def test_listed_files_go_on_and_bad_ones_are_rows(root, network, tmp_path, monkeypatch):
    words = ["predict", "--checkpoint", str(network[0]), "--out", str(tmp_path / "out"), "--quiet", "--workers", "0"]
    words += ["--device", "cpu", "--images", "-"]
    listed = [root / "cat" / "1.png", root / "dog" / "2.png", root / "dog" / "none.png"]
    for count, status in ((2, 0), (3, 1)):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{path}\n" for path in listed[:count])))
        assert verb.run(words) == status
    rows = read_rows(tmp_path / "out")
    assert {name: row["ok"] for name, row in rows.items()} == {
        "cat/1.png": True,
        "dog/2.png": True,
        "dog/none.png": False,
    }
    assert "no such image" in rows["dog/none.png"]["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "either --data NAME or --images PATH"),
        ({"images": ("x",)}, "either --data NAME or --images PATH"),
        ({"stride": 8}, "--stride goes with --window"),
        ({"window": 8, "stride": 9}, "--stride must be at most --window"),
        ({"window": 0}, "--window must be at least 1"),
        ({"min_confidence": 1.5}, "--min-confidence must be in"),
        ({"scales": ()}, "--scales must be positive"),
        ({"zip": "comp6", "min_confidence": 0.5}, "--zip needs a class for every pixel"),
    ],
)
def test_mistakes(root, network, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(root, network, tmp_path / "out", **changes)


def test_eval_is_that_of_wsol_eval(root, network, tmp_path, capsys):
    run(root, network, tmp_path / "out")
    with pytest.raises(SystemExit):
        verb.run(["eval", "--help"])
    assert "--pred" in capsys.readouterr().out
