"""Single-stage training: labels and losses against hand-written ones, resuming, and the whole way to masks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from wsol import data, refine
from wsol.cli.main import main
from wsol.engine import fit as fit_module
from wsol.engine.losses_segment import dense_energy
from wsol.engine.segment_options import SegmentPredictConfig
from wsol.engine.segment_predict import segment_predict
from wsol.engine.single_stage import _Work, segment_single_stage
from wsol.engine.single_stage_labels import SaliencyViews, online_labels, saliency_loss, segmentation_loss
from wsol.engine.single_stage_options import SingleStageConfig
from wsol.errors import ConfigError, DataError
from wsol.models.segmenter import create_segmenter, load_segmenter
from wsol.models.two_branch import add_classifier
from wsol.ops.confusion import confusion_matrix, mean_iou
from wsol.refine.getam_completion import GETAMCompletion
from wsol.store.masks import mask_path, read_labels

COLOURS = {"blue": (20, 40, 220), "red": (220, 30, 20)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Coloured boxes on noise, their masks and saliency: 12 to train on and 4 to validate, of odd sizes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for label, name in enumerate(COLOURS, start=1):
            for at in range(count):
                height, width = 61 + 2 * at, 77 - 6 * at
                image = rng.integers(90, 140, (height, width, 3)).astype(np.uint8)
                mask = np.zeros((height, width), dtype=np.uint8)
                box = np.s_[5 + at : 39, 9 : 35 + at]
                image[box], mask[box] = COLOURS[name], label
                files = {root / split / name: image, root / split / "masks" / name: mask}
                for path, array in (files | {root / "saliency" / name: 255 * (mask > 0).astype(np.uint8)}).items():
                    path.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(path / f"{at}.png")
    return root


def config(root, out, **changes):
    options = {"data": "folder", "root": root, "split": "train", "saliency": root / "saliency", "out": out}
    options |= {"arch": "segmenter", "encoder": "test_vit", "decoder": "linear", "img_size": 64, "batch_size": 4}
    options |= {"epochs": 4, "lr": 1e-3, "workers": 0, "device": "cpu", "quiet": True}
    return SingleStageConfig(**(options | changes))


def work(settings, *, segments=True):
    torch.manual_seed(0)
    dataset = data.load("folder", root=settings.root, split="train")
    segmenter = create_segmenter(
        settings.arch, settings.encoder, classes=dataset.spec.classes, img_size=settings.img_size, decoder="linear"
    )
    made = _Work(settings, dataset, None, segmenter, add_classifier(segmenter), CPU)
    made.branches.eval()  # no dropout: one loss for the same weights
    made._segments = segments
    return made


def by_hand(raw, class_ids, images, salient):
    """The labels of a batch, image by image with the refiners of the package."""
    found = []
    for maps, ids, image, objects in zip(raw, class_ids, images, salient, strict=True):
        full = F.interpolate(maps[None], image.shape[:2], mode="bilinear", align_corners=True)[0]
        smooth = refine.create("pamr")(image, (full / full.amax()).numpy()) * full.amax().item()
        scaled = smooth / (smooth.max(axis=(1, 2), keepdims=True) + 1e-5)
        scores = np.concatenate([(1 - scaled.max(axis=0, keepdims=True)) ** 32, scaled])
        saliency = None if objects is None else objects.astype(np.float32)
        found.append(GETAMCompletion().label(scores, np.array(ids), saliency=saliency)[0])
    return np.stack(found)


@pytest.mark.parametrize("given", [True, False])
def test_labels_are_those_of_the_refiners(given):
    rng = np.random.default_rng(3)
    images = np.repeat(np.repeat(rng.integers(0, 256, (2, 5, 7, 3)).astype(np.uint8), 9, axis=1), 9, axis=2)
    maps = [torch.from_numpy(rng.random((count, 4, 6), dtype=np.float32) ** 6) * 2e-3 for count in (2, 1)]
    ids, salient = [[0, 3], [2]], np.zeros(images.shape[:3], bool)
    salient[:, 12:38, 8:50] = True
    labels, completed = online_labels(maps, ids, images, salient if given else None)
    expected = by_hand(maps, ids, images, salient if given else [None, None])
    assert (labels != expected).mean() < 1e-3  # PAMR on scaled maps rounds otherwise
    assert {int(value) for value in np.unique(labels)} >= ({0, 255} if given else {0})
    assert completed.any() == given  # without saliency the background is what no class claims anyway
    assert not (completed & salient).any()


def test_an_image_without_class_is_background():
    images = np.zeros((2, 20, 24, 3), np.uint8)
    salient = np.zeros((2, 20, 24), bool)
    labels, completed = online_labels([torch.ones(1, 2, 3), torch.ones(0, 2, 3)], [[1], []], images, salient)
    assert (labels[1] == 0).all()
    assert not completed.any()


def test_losses_are_those_written_by_hand():
    torch.manual_seed(0)
    logits = (3 * torch.randn(2, 4, 9, 13)).requires_grad_()
    labels = torch.randint(0, 4, (2, 9, 13), dtype=torch.uint8)
    labels[1, :3] = 255
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 13, 3)).astype(np.uint8)
    inside = labels != 255
    salient = torch.rand(2, 9, 13) < 0.4
    share = logits.softmax(1)
    at = [(b, y, x) for b, y, x in np.ndindex(2, 9, 13)]
    terms = {side: [] for side in ("background", "objects", "saliency")}
    for b, y, x in at:
        label = int(labels[b, y, x])
        if label != 255:
            terms["objects" if label else "background"].append(-share[b, label, y, x].log())
            p = share[b, 0, y, x]
            terms["saliency"].append(-(1 - p).log() if salient[b, y, x] else -p.log())
    means = {name: torch.stack(values).mean() for name, values in terms.items()}
    energy = dense_energy(share, images, inside, sigma_rgb=15, sigma_xy=100, scale=0.5)
    expected = means["background"] + means["objects"] + 1e-3 * energy
    found = segmentation_loss(logits, labels, images, inside, crf_weight=1e-3)
    torch.testing.assert_close(found, expected)
    assert abs(segmentation_loss(logits, labels, images, inside, crf_weight=0) - found) > 1e-6
    torch.testing.assert_close(saliency_loss(logits, salient, inside), means["saliency"])
    assert torch.isfinite(saliency_loss(200 * logits, salient, inside))
    ignored = torch.full_like(labels, 255)
    assert segmentation_loss(logits, ignored, images, inside, crf_weight=0) == 0


def test_views_turn_image_and_saliency_alike(tmp_path):
    rng = np.random.default_rng(0)
    salient = np.zeros((41, 67), np.uint8)
    salient[8:30, 11:50] = 1 + rng.integers(0, 255, (22, 39))
    for folder, array in (("img", np.where(salient > 0, 250, 0).astype(np.uint8)), ("sal", salient)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(tmp_path / folder / "a.png")
    sample = SimpleNamespace(id="a.jpg", image=tmp_path / "img" / "a.png", upright=False)
    views = SaliencyViews(tmp_path / "sal", 64, (0.7, 1.3), 0.5, 0.0)
    for seed in range(6):
        view, target = views(sample, np.random.default_rng(seed))
        assert view.shape == (64, 64, 3)
        known = target != 255
        assert known.any()
        assert ((view[..., 0] > 125) == (target == 1))[known].mean() > 0.97
        plain = SaliencyViews(None, 64, (0.7, 1.3), 0.5, 0.0)(sample, np.random.default_rng(seed))
        assert np.array_equal(plain[0], view)
        assert np.array_equal(plain[1] == 255, ~known)
        assert set(np.unique(plain[1])) <= {1, 255}
    Image.fromarray(salient[1:]).save(tmp_path / "sal" / "a.png")
    with pytest.raises(DataError, match="expected saliency of 41x67"):
        views(sample, np.random.default_rng(0))


@pytest.mark.parametrize("released", [False, True])
def test_a_step_is_the_sum_of_its_parts(photos, tmp_path, released):
    made = work(config(photos, tmp_path, released_saliency_loss=released, crf_weight=1e-5))
    batch = next(made.stream(0))
    loss = made.loss(batch, 0, 0)
    assert all(item.grad is None for item in made.branches.parameters())
    mean, std = (torch.tensor(item)[:, None, None] for item in (made.segmenter.facts.mean, made.segmenter.facts.std))
    x = (torch.from_numpy(batch.images).permute(0, 3, 1, 2) / 255 - mean) / std
    ids = [list(sample.labels) for sample in batch.samples]
    given, padding = batch.targets == 1, batch.targets == 255
    assert padding.any()
    labels, completed = online_labels(made.maps(x, ids).values, ids, batch.images, given)
    labels[padding] = 255
    scores, logits = made.branches(x)
    present = torch.zeros_like(scores)
    for at, row in enumerate(ids):
        present[at, row] = 1
    inside, found = torch.from_numpy(~padding), torch.from_numpy(labels)
    salient = torch.from_numpy(completed if released else given | completed)
    expected = F.binary_cross_entropy_with_logits(scores, present) + saliency_loss(logits, salient, inside)
    expected = expected + segmentation_loss(logits, found, batch.images, inside, crf_weight=1e-5)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(item.grad is not None for item in made.branches.parameters())


def test_the_classifier_learns_alone_first(photos, tmp_path):
    made = work(config(photos, tmp_path), segments=False)
    loss = made.loss(next(made.stream(0)), 0, 0)
    loss.backward()
    with_gradient = {name for name, item in made.branches.named_parameters() if item.grad is not None}
    assert {"head.weight", "segmenter.encoder.blocks.0.attn.qkv.weight"} <= with_gradient
    assert not any(name.startswith("segmenter.decoder") for name in with_gradient)


@pytest.mark.parametrize("sched", ["poly", "none"])
def test_the_rate_falls_where_the_second_branch_begins(photos, tmp_path, sched):
    settings = config(photos, tmp_path / "run", sched=sched, cls_epochs=1, epochs=3, val_split="val", batch_size=6)
    history = segment_single_stage(settings).history
    steps = 3 * 2
    last = [2 * (epoch + 1) - 1 for epoch in range(3)]  # of each epoch
    plain = [1e-3 * ((1 - at / steps) ** 0.9 if sched == "poly" else 1.0) for at in last]
    assert [row["lr"] for row in history] == pytest.approx([plain[0], 0.1 * plain[1], 0.1 * plain[2]])
    assert ["val_miou" in row for row in history] == [False, True, True]


class StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_training_continues_bit_for_bit(photos, tmp_path, monkeypatch, stop):
    options = {"opt": "momentum", "sched": "poly", "ema": 0.5, "batch_size": 6}
    whole = segment_single_stage(config(photos, tmp_path / "whole", **options))
    write = fit_module.write_checkpoint

    def stop_there(folder, state):
        write(folder, state)
        if len(state["history"]) == stop:
            raise StopError

    monkeypatch.setattr(fit_module, "write_checkpoint", stop_there)
    with pytest.raises(StopError):
        segment_single_stage(config(photos, tmp_path / "broken", **options))
    monkeypatch.undo()
    broken = segment_single_stage(config(photos, tmp_path / "broken", **options))
    for one, two in zip(whole.history, broken.history, strict=True):
        assert {name: one[name] for name in ("loss", "lr")} == {name: two[name] for name in ("loss", "lr")}
    one, two = (load_segmenter(tmp_path / name).module.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns_to_segment_from_image_labels(photos, tmp_path):
    options = {"epochs": 24, "cls_epochs": 8, "seg_lr_scale": 1.0, "lr": 2e-3, "val_split": "val", "zoom": (0.9, 1.1)}
    trained = segment_single_stage(config(photos, tmp_path / "run", **options))
    assert trained.history[-1]["val_miou"] > 50.0
    prediction = SegmentPredictConfig(
        data="folder", root=photos, split="val", checkpoint=tmp_path / "run", out=tmp_path / "masks", workers=0,
        device="cpu", quiet=True,
    )  # fmt: skip
    assert segment_predict(prediction).done == 4
    val = data.load("folder", root=photos, split="val")
    matrix = np.zeros((3, 3), dtype=np.int64)
    for sample in val:
        matrix += confusion_matrix(val.read_truth(sample), read_labels(mask_path(tmp_path / "masks", sample.id)), 3)
    assert 100 * mean_iou(matrix) == pytest.approx(trained.history[-1]["val_miou"])


def test_an_image_without_saliency_is_left_out(photos, tmp_path):
    folder = tmp_path / "saliency"
    for path in sorted((photos / "saliency").rglob("*.png"))[1:]:
        target = folder / path.relative_to(photos / "saliency")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    trained = segment_single_stage(config(photos, tmp_path / "run", saliency=folder, epochs=1))
    assert set(trained.failures) == {"blue/0.png"}
    assert trained.status == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"img_size": 60}, "multiple of 16"),
        ({"cls_epochs": 4}, "--cls-epochs must be fewer than --epochs"),
        ({"quantile": 1.0}, "--quantile"),
        ({"saliency": None, "released_saliency_loss": True}, "needs --saliency"),
        ({"saliency": Path("nowhere")}, "--saliency nowhere: no such folder"),
    ],
)
def test_options_that_cannot_work(photos, tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        segment_single_stage(config(photos, tmp_path / "run", **changes))


def test_the_command_line_from_image_labels_to_measured_masks(tmp_path):
    root, out = tmp_path / "data", tmp_path / "run"
    options = ["--data", "synthetic", "--root", root, "--data-options.train", 4, "--data-options.val", 2]
    options += ["--workers", 0, "--device", "cpu", "--quiet"]
    train = ["--arch", "dpt", "--encoder", "test_vit", "--img-size", 64, "--batch-size", 4, "--epochs", 2, "--amp"]

    def wsol(*words):
        return main([str(word) for word in words])

    assert wsol("segment", "single-stage", *options, *train, "--split", "train", "--out", out) == 0
    card = json.loads((out / "model.json").read_text())
    assert (card["arch"], card["encoder"], card["img_size"]) == ("dpt", "tu-test_vit", 64)
    sizes = ["--scales", 1, 1.25, 1.875, "--crf", "getam", "--split", "val"]
    assert wsol("segment", "predict", *options, *sizes, "--checkpoint", out, "--out", tmp_path / "masks") == 0
    assert wsol("eval", "seg", "--pred", tmp_path / "masks", "--workers", 0, "--out", tmp_path / "eval") == 0
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["n"] == 2
