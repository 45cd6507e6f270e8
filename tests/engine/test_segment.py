"""Segmentation networks on masks: ignored pixels, resuming, and masks of any size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from wsol import data
from wsol.cli import segment as verb
from wsol.engine import fit as fit_module
from wsol.engine.losses_segment import masked_cross_entropy
from wsol.engine.mask_source import with_masks
from wsol.engine.segment import segment_predict, segment_train
from wsol.engine.segment_infer import View, predict_labels
from wsol.engine.segment_options import SegmentPredictConfig, SegmentTrainConfig
from wsol.errors import ConfigError, DataError, StoreError
from wsol.models.segmenter import Segmenter, SegmenterFacts, load_segmenter
from wsol.ops.confusion import confusion_matrix, mean_iou
from wsol.schema import PseudoMask
from wsol.store.manifest import read_rows
from wsol.store.masks import mask_path, read_labels, write_mask

COLOURS = {"blue": (20, 40, 220), "red": (220, 30, 20)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Coloured boxes on noise with their masks: 10 to train on and 4 to validate, of odd sizes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for label, name in enumerate(COLOURS, start=1):
            for at in range(count):
                height, width = 41 + 2 * at, 67 - 6 * at
                image = rng.integers(90, 140, (height, width, 3)).astype(np.uint8)
                mask = np.zeros((height, width), dtype=np.uint8)
                box = np.s_[5 + at : 33, 9 : 25 + at]
                image[box], mask[box] = COLOURS[name], label
                for path, array in ((root / split / name, image), (root / split / "masks" / name, mask)):
                    path.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(path / f"{at}.png")
    return root


def config(root, out, **changes):
    options = {
        "data": "folder",
        "root": root,
        "masks": "gt",
        "out": out,
        "arch": "linknet",
        "encoder": "tu-test_resnet",
        "epochs": 3,
        "batch_size": 5,
        "lr": 1e-2,
        "img_size": 64,
        "zoom": (0.8, 1.2),
        "workers": 0,
        "device": "cpu",
        "quiet": True,
    }
    return SegmentTrainConfig(**(options | changes))


def predict_config(root, checkpoint, out, **changes):
    options = {"data": "folder", "root": root, "split": "val", "checkpoint": checkpoint, "out": out, "workers": 0}
    return SegmentPredictConfig(**(options | {"device": "cpu", "quiet": True} | changes))


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    return segment_train(config(photos, tmp_path_factory.mktemp("run") / "run", val_split="val", epochs=12))


def test_it_learns_and_measures(photos, trained, tmp_path):
    assert trained.history[-1]["loss"] < 0.5 * trained.history[0]["loss"]
    assert trained.history[-1]["val_miou"] > 70.0
    outcome = segment_predict(predict_config(photos, trained.path, tmp_path / "masks"))
    assert outcome.status == 0
    assert outcome.done == 4
    val = data.load("folder", root=photos, split="val")
    matrix = np.zeros((3, 3), dtype=np.int64)
    for sample in val:
        truth, labels = val.read_truth(sample), read_labels(mask_path(tmp_path / "masks", sample.id))
        assert labels.shape == truth.shape
        matrix += confusion_matrix(truth, labels, 3)
    assert 100 * mean_iou(matrix) == pytest.approx(trained.history[-1]["val_miou"])


def test_predicting_goes_on_where_it_stopped(photos, trained, tmp_path):
    out = tmp_path / "masks"
    whole = segment_predict(predict_config(photos, trained.path, tmp_path / "whole", workers=1, flip=True))
    assert whole.done == 4
    options = {"flip": True, "shard": "0/2"}
    segment_predict(predict_config(photos, trained.path, out, **options))
    files = sorted(path.relative_to(out) for path in out.glob("masks/**/*.png"))
    assert len(files) == 2
    (out / files[0]).write_bytes(b"torn")
    rest = segment_predict(predict_config(photos, trained.path, out, flip=True))
    assert (rest.done, rest.skipped) == (3, 1)
    for path in (tmp_path / "whole").glob("masks/**/*.png"):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "whole")).read_bytes()


def test_scales_and_flip_give_whole_masks(photos, trained, tmp_path):
    options = {"scales": (0.5, 1.0, 1.5), "flip": True, "img_size": 48, "amp": True}
    outcome = segment_predict(predict_config(photos, trained.path, tmp_path / "masks", **options))
    assert outcome.done == 4


def test_bad_images_are_rows_of_the_manifest(photos, trained, tmp_path):
    root = tmp_path / "photos"
    for name in COLOURS:
        (root / "val" / name).mkdir(parents=True)
        (root / "val" / name / "good.png").write_bytes((photos / "val" / name / "1.png").read_bytes())
    (root / "val" / "red" / "torn.png").write_bytes(b"no image")
    outcome = segment_predict(predict_config(root, trained.path, tmp_path / "out"))
    assert outcome.status == 1
    rows = read_rows(tmp_path / "out")
    assert not rows["red/torn.png"]["ok"]
    assert "not an image" in rows["red/torn.png"]["error"]
    assert rows["red/good.png"]["ok"]
    with pytest.raises(StoreError, match="--fail-fast"):
        segment_predict(predict_config(root, trained.path, tmp_path / "fast", fail_fast=True))


def test_pseudo_masks_of_a_run_and_of_a_plain_folder(photos, tmp_path):
    train = data.load("folder", root=photos, split="train")
    for sample in train.samples[:6]:
        labels = train.read_truth(sample).copy()
        labels[:4] = 255
        write_mask(tmp_path / "refined", PseudoMask(id=sample.id, labels=labels))
    from_run, missing = with_masks(train, str(tmp_path / "refined"))
    assert (len(from_run), missing) == (6, 4)
    assert (from_run.read_truth(from_run.samples[0])[:4] == 255).all()
    plain, missing = with_masks(train, str(photos / "train" / "masks"))  # blue/0.png, not blue/0.png.png
    assert (len(plain), missing) == (10, 0)
    result = segment_train(config(photos, tmp_path / "run", masks=str(tmp_path / "refined"), epochs=1, batch_size=3))
    assert np.isfinite(result.history[0]["loss"])
    with pytest.raises(DataError, match="no image has a mask"):
        with_masks(train, str(tmp_path))


class StopError(Exception):
    pass


def test_an_interrupted_training_continues_bit_for_bit(photos, tmp_path, monkeypatch):
    segment_train(config(photos, tmp_path / "whole"))
    write = fit_module.write_checkpoint

    def stop_after_one(folder, state):
        write(folder, state)
        raise StopError

    monkeypatch.setattr(fit_module, "write_checkpoint", stop_after_one)
    with pytest.raises(StopError):
        segment_train(config(photos, tmp_path / "broken"))
    monkeypatch.undo()
    segment_train(config(photos, tmp_path / "broken"))
    one, two = (load_segmenter(tmp_path / name).module.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_wrong_mask_is_left_out(photos, tmp_path):
    folder = tmp_path / "masks"
    train = data.load("folder", root=photos, split="train")
    for at, sample in enumerate(train):
        labels = train.read_truth(sample)
        labels = labels[1:] if at == 0 else np.full_like(labels, 9) if at == 1 else labels
        write_mask(tmp_path, PseudoMask(id=sample.id, labels=labels))
    result = segment_train(config(photos, tmp_path / "run", masks=str(folder), epochs=1))
    first, second = train.samples[0].id, train.samples[1].id
    assert set(result.failures) == {first, second}
    assert "the mask is" in result.failures[first]
    assert "holds label 9" in result.failures[second]


def test_ignored_pixels_count_nothing():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 7, requires_grad=True)
    labels = torch.randint(0, 4, (2, 5, 7), dtype=torch.uint8)
    labels[0, :3] = 255
    by_hand = torch.stack(
        [
            -F.log_softmax(logits[b, :, y, x], 0)[labels[b, y, x].long()]
            for b, y, x in np.argwhere(labels.numpy() != 255)
        ]
    ).mean()
    torch.testing.assert_close(masked_cross_entropy(logits, labels), by_hand)
    nothing = masked_cross_entropy(logits, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


class Colour(nn.Module):
    """A network that needs no training: its logits are the three colours, and it insists on its stride."""

    def forward(self, x):
        assert x.shape[2] % 32 == 0
        assert x.shape[3] % 32 == 0
        return 50 * x


@pytest.mark.parametrize("size", [(37, 53), (64, 64), (1, 1), (33, 7)])
@pytest.mark.parametrize(("scales", "flip"), [((1.0,), False), ((0.5, 1.0), True)])
def test_padding_is_cut_off_and_nothing_is_shifted(size, scales, flip):
    facts = SegmenterFacts("none", "none", ("g", "b"), img_size=max(size), mean=(0.0,) * 3, std=(1.0,) * 3)
    segmenter = Segmenter(Colour(), facts, stride=32)
    image = np.zeros((*size, 3), dtype=np.uint8)
    truth = np.zeros(size, dtype=np.uint8)
    truth[size[0] // 2 :, : size[1] // 3] = 1
    truth[: size[0] // 4] = 2
    np.put_along_axis(image, truth[..., None], 255, axis=2)
    labels = predict_labels(segmenter, image, View(scales=scales, flip=flip), device=CPU)
    assert labels.shape == size
    assert labels.dtype == np.uint8
    if scales == (1.0,):
        assert np.array_equal(labels, truth)
    else:
        assert (labels == truth).mean() > 0.85


def test_classes_must_be_those_of_the_network(trained, tmp_path):
    (tmp_path / "green").mkdir()
    Image.fromarray(np.zeros((5, 7, 3), dtype=np.uint8)).save(tmp_path / "green" / "x.png")
    options = predict_config(tmp_path, trained.path, tmp_path / "out", split=None)
    with pytest.raises(DataError, match="predict on the data set it was trained on"):
        segment_predict(options)


def test_the_verb(photos, trained, tmp_path, capsys):
    assert verb.run(["--help"]) == 0
    assert "predict" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="did you mean 'train'"):
        verb.run(["trian"])
    words = ["predict", "--data", "folder", "--root", str(photos), "--split", "val", "--workers", "0", "--quiet"]
    words += ["--checkpoint", str(trained.path), "--out", str(tmp_path / "masks"), "--limit", "2", "--device", "cpu"]
    assert verb.run(words) == 0
    assert len(list((tmp_path / "masks").glob("masks/**/*.png"))) == 2
    assert json.loads((tmp_path / "masks" / "run.json").read_text())["verb"] == "segment predict"
    assert Path(tmp_path / "masks" / "dataset.yaml").is_file()
