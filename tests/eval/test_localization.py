"""The whole evaluation of a folder of maps against an independent few lines of brute force."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from wsol.cli.eval import run
from wsol.errors import ConfigError, DataError, EvalError, StoreError
from wsol.eval import evaluate_localization
from wsol.eval.curves import read_result
from wsol.eval.localization import localize, read_pixels
from wsol.eval.options import LocConfig
from wsol.eval.sources import read_metadata
from wsol.schema import EvalResult, ScoreMaps
from wsol.store.maps import map_path, write_maps

CLASSES = 7


def _write_metadata(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image_ids.txt").write_text("\n".join(row["id"] for row in rows))
    (folder / "class_labels.txt").write_text("\n".join(f"{row['id']},{row['label']}" for row in rows))
    (folder / "image_sizes.txt").write_text("\n".join("{id},{w},{h}".format(**row) for row in rows))
    lines = [f"{row['id']},{','.join(map(str, box))}" for row in rows for box in row["boxes"]]
    (folder / "localization.txt").write_text("\n".join(lines))
    return folder


def _rows(count, seed):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        w, h = (int(side) for side in rng.integers(40, 300, 2))
        corners = [np.sort(rng.integers(0, side, (int(rng.integers(1, 4)), 2)), axis=1) for side in (w, h)]
        boxes = [
            [int(x0), int(y0), int(x1), int(y1)] for (x0, x1), (y0, y1) in zip(corners[0], corners[1], strict=False)
        ]
        rows.append(
            {"id": f"val/{number:03d}.JPEG", "label": int(rng.integers(CLASSES)), "w": w, "h": h, "boxes": boxes}
        )
    return rows


def _blob(rng, size):
    grid = cv2.resize(rng.random((4, 5)), size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(grid, 0, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of maps with logits on odd grids, and the same split as metadata."""
    root, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(5)
    rows = _rows(40, seed=1)
    for row in rows:
        logits = rng.normal(size=CLASSES).astype(np.float32)
        logits[row["label"]] += 1
        values = np.stack([_blob(rng, (9, 13)) for _ in range(2)]).astype(np.float16)
        other = (row["label"] + 1) % CLASSES
        maps = ScoreMaps(row["id"], values, np.array([other, row["label"]]), (row["h"], row["w"]), logits)
        write_maps(root / "run", maps)
    return root / "run", _write_metadata(root / "meta" / "test", rows), rows


def _brute(run_folder, rows, thresholds, *, every):
    """IoU of each image at each threshold, straight from the protocol's text; and whether it is Top-1 and Top-5."""
    ious, ranks = [], []
    for row in rows:
        with np.load(map_path(run_folder, row["id"])) as stored:
            values = stored["values"][stored["class_ids"].tolist().index(row["label"])].astype(np.float64)
            order = np.argsort(-stored["logits"], kind="stable").tolist()
        ranks.append(order.index(row["label"]))
        cam = cv2.resize(values, (224, 224), interpolation=cv2.INTER_CUBIC)
        cam -= cam.min()
        cam /= cam.max()
        levels = (cam * 255).astype(np.uint8)
        truth = [
            [int(v * 224 / side) for v, side in zip(box, [row["w"], row["h"]] * 2, strict=True)] for box in row["boxes"]
        ]
        line = []
        for threshold in thresholds:
            binary = cv2.threshold(levels, int(threshold * levels.max()), 255, cv2.THRESH_BINARY)[1]
            contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
            if not every and contours:
                contours = [max(contours, key=cv2.contourArea)]
            boxes = [(x, y, min(x + w, 223), min(y + h, 223)) for x, y, w, h in map(cv2.boundingRect, contours)]
            line.append(max(_iou(box, other) for box in boxes or [(0, 0, 0, 0)] for other in truth))
        ious.append(line)
    return np.array(ious), np.array(ranks)


def _iou(a, b):
    inter = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    return inter / (sum((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)) - inter)


def test_every_number_equals_brute_force(world):
    run_folder, meta, rows = world
    thresholds = np.arange(0, 1, 0.02)
    result = evaluate_localization(maps=run_folder, metadata=meta, curve_interval=0.02, workers=0)
    largest, ranks = _brute(run_folder, rows, thresholds, every=False)
    every, _ = _brute(run_folder, rows, thresholds, every=True)
    expected = {}
    for iou in (30, 50, 70):
        expected[f"MaxBoxAcc@{iou}"] = 100 * (largest >= iou / 100).mean(axis=0)
        expected[f"MaxBoxAccV2@{iou}"] = 100 * (every >= iou / 100).mean(axis=0)
    expected["GT-known"] = expected["MaxBoxAcc@50"]
    expected["Top-1 Loc"] = 100 * ((largest >= 0.5) & (ranks < 1)[:, None]).mean(axis=0)
    expected["Top-5 Loc"] = 100 * ((largest >= 0.5) & (ranks < 5)[:, None]).mean(axis=0)
    for name, curve in expected.items():
        np.testing.assert_allclose(result.curves[name]["y"], curve, atol=1e-12)
        assert result.metrics[name] == pytest.approx(curve.max(), abs=1e-12)
        assert result.threshold[name] == thresholds[curve.argmax()]
    mean = np.mean([expected[f"MaxBoxAccV2@{iou}"].max() for iou in (30, 50, 70)])
    assert result.metrics["MaxBoxAccV2"] == pytest.approx(mean, abs=1e-12)
    assert result.metrics["Top-1 accuracy"] == pytest.approx(100 * (ranks < 1).mean())
    assert result.metrics["Top-5 accuracy"] == pytest.approx(100 * (ranks < 5).mean())
    assert (result.n, result.split, result.threshold_source) == (40, "test", "best on test")
    at = expected["MaxBoxAcc@50"].argmax()
    np.testing.assert_allclose([result.per_image[row["id"]]["iou"] for row in rows], largest[:, at], atol=1e-6)
    count = sum(row["label"] == 2 for row in rows)
    right = sum(iou >= 0.5 for iou, row in zip(largest[:, at], rows, strict=True) if row["label"] == 2)
    assert result.per_class["class 2"]["MaxBoxAcc@50"] == pytest.approx(100 * right / count)
    assert 0 < result.metrics["GT-known"] < 100


def test_any_number_of_workers_and_any_chunk_give_the_same(world, monkeypatch):
    run_folder, meta, _ = world
    alone = evaluate_localization(maps=run_folder, metadata=meta, workers=0, protocol=("all",))
    monkeypatch.setattr("wsol.eval.workers._CHUNK", 2)
    together = evaluate_localization(maps=run_folder, metadata=meta, workers=2, protocol=("all",))
    assert alone.to_json() == together.to_json()


def test_threshold_chosen_on_one_split_is_applied_on_another(world, tmp_path):
    run_folder, meta, rows = world
    chosen = evaluate_localization(maps=run_folder, metadata=_write_metadata(tmp_path / "val", rows[:15]), workers=0)
    (tmp_path / "metrics.json").write_text(chosen.to_json())
    result = evaluate_localization(maps=run_folder, metadata=meta, workers=0, threshold_from=tmp_path)
    assert result.threshold_source == "chosen on val"
    assert dict(result.threshold) == dict(chosen.threshold)
    best = evaluate_localization(maps=run_folder, metadata=meta, workers=0)
    for name, at in chosen.threshold.items():
        grid = np.array(best.curves[name]["x"])
        assert result.metrics[name] == best.curves[name]["y"][int(np.argmin(abs(grid - at)))]
    assert result.metrics["MaxBoxAccV2@50"] <= best.metrics["MaxBoxAccV2@50"]


def _mean_over_images(result, name):
    rows = [row for row in result.per_class.values() if name in row]
    return np.average([row[name] for row in rows], weights=[row["n"] for row in rows])


@pytest.mark.parametrize("protocol", [("maxboxaccv2", "maxboxacc", "top1"), ("cam", "top1", "gt-known"), ("cam",)])
def test_the_numbers_of_the_classes_add_up_to_those_of_the_split(world, protocol):
    run_folder, meta, _ = world
    result = evaluate_localization(maps=run_folder, metadata=meta, workers=0, protocol=protocol)
    columns = {name for row in result.per_class.values() for name in row} - {"n"}
    assert len(columns) == 2 + (protocol[0] == "maxboxaccv2")
    for name in columns:
        assert _mean_over_images(result, name) == pytest.approx(result.metrics[name])


def test_fixed_threshold_between_the_grid(world):
    run_folder, meta, rows = world
    result = evaluate_localization(maps=run_folder, metadata=meta, workers=0, threshold=0.2345, curve_interval=0.1)
    ious, _ = _brute(run_folder, rows, [0.2345], every=False)
    assert result.metrics["GT-known"] == pytest.approx(100 * (ious[:, 0] >= 0.5).mean())
    assert result.threshold_source == "fixed"


def test_paper_variants(world):
    run_folder, meta, rows = world
    result = evaluate_localization(maps=run_folder, metadata=meta, workers=0, protocol=("ts-cam-cub", "bas-cub", "cam"))
    ts, bas = [], []
    for row in rows:
        with np.load(map_path(run_folder, row["id"])) as stored:
            values = stored["values"][stored["class_ids"].tolist().index(row["label"])].astype(np.float64)
        cam = cv2.resize(values, (224, 224))
        cam = (cam - cam.min()) / (cam.max() - cam.min())
        levels = (cam * 255).astype(np.uint8)
        shown = cv2.threshold(levels, int(0.1 * levels.max()), 255, cv2.THRESH_TOZERO)[1]
        contours = cv2.findContours(shown, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
        sides = [row["w"], row["h"]]
        truth = [
            [int(max(v / side * 224, 0)) for v, side in zip(box[:2], sides, strict=True)]
            + [int(min((v + 1) / side * 224, 223)) for v, side in zip(box[2:], sides, strict=True)]
            for box in row["boxes"]
        ]
        ts.append(max(_iou((x, y, x + w, y + h), box) for box in truth))
        low = (values - values.min()) / (values.max() - values.min())
        mask = cv2.resize(low, (224, 224)) > 0.15
        _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        y, x = np.nonzero(labels == 1 + np.bincount(labels.ravel())[1:].argmax())
        truth = [
            [v / side * 224 for v, side in zip([*box[:2], box[2] + 1, box[3] + 1], sides * 2, strict=True)]
            for box in row["boxes"]
        ]
        bas.append(max(_iou((x.min(), y.min(), x.max() + 1, y.max() + 1), box) for box in truth))
    assert result.metrics["TS-CAM CUB GT-known"] == pytest.approx(100 * np.mean(np.array(ts) >= 0.5))
    assert result.metrics["BAS CUB GT-known"] == pytest.approx(100 * np.mean(np.array(bas) > 0.5))
    largest, _ = _brute(run_folder, rows, [0.2], every=False)
    assert result.metrics["CAM GT-known"] == pytest.approx(100 * (largest >= 0.5).mean())
    assert result.threshold["TS-CAM CUB GT-known"] == 0.1
    assert result.threshold_source == "fixed by the paper"


def _npy_world(tmp_path, count=6):
    rng, rows = np.random.default_rng(0), _rows(count, seed=3)
    for row in rows:
        scoremap = _blob(rng, (224, 224))
        path = tmp_path / "scoremaps" / f"{row['id']}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, scoremap)
    return tmp_path / "scoremaps", _write_metadata(tmp_path / "test", rows), rows


def test_npy_maps_are_evaluated_as_they_are(tmp_path):
    maps, meta, rows = _npy_world(tmp_path)
    result = evaluate_localization(maps=maps, metadata=meta, curve_interval=0.1)
    ious = []
    for row in rows:
        levels = (np.load(maps / f"{row['id']}.npy") * 255).astype(np.uint8)
        binary = (levels > int(0.3 * levels.max())).astype(np.uint8)
        contours = cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
        truth = [
            [int(v * 224 / side) for v, side in zip(box, [row["w"], row["h"]] * 2, strict=True)] for box in row["boxes"]
        ]
        ious.append(max(_iou((x, y, min(x + w, 223), min(y + h, 223)), box) for box in truth))
    at = result.curves["MaxBoxAcc@30"]["x"].index(np.arange(0, 1, 0.1)[3])
    assert result.curves["MaxBoxAcc@30"]["y"][at] == pytest.approx(100 * np.mean(np.array(ious) >= 0.3))
    assert np.isnan(result.metrics["Top-1 Loc"])
    assert any("no logits" in text for text in result.warnings)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda a: np.where(a == a.max(), np.nan, a), "NaN"),
        (lambda a: a.astype(np.float32), "float64"),
        (lambda a: a + 0.5, r"\[0, 1\]"),
        (lambda a: a[None], r"\(H, W\)"),
    ],
)
def test_a_bad_map_is_refused_with_the_name_of_its_image(tmp_path, spoil, reason):
    maps, meta, rows = _npy_world(tmp_path)
    path = maps / f"{rows[2]['id']}.npy"
    np.save(path, spoil(np.load(path)))
    found = localize(LocConfig(maps=maps, metadata=meta))
    assert list(found.failures) == [rows[2]["id"]]
    assert rows[2]["id"] in found.failures[rows[2]["id"]]
    assert re.search(reason, found.failures[rows[2]["id"]])
    assert found.result.n == 5
    assert any("1 of 6 images could not be evaluated" in text for text in found.result.warnings)


def test_missing_and_torn_maps_are_listed_and_the_exit_status_is_1(tmp_path, capsys):
    maps, meta, rows = _npy_world(tmp_path)
    (maps / f"{rows[0]['id']}.npy").unlink()
    path = maps / f"{rows[1]['id']}.npy"
    path.write_bytes(path.read_bytes()[:1000])
    out = tmp_path / "out"
    status = run(["loc", "--maps", str(maps), "--metadata", str(meta), "--out", str(out)])
    captured = capsys.readouterr()
    assert status == 1
    assert rows[0]["id"] in captured.err
    assert rows[1]["id"] in captured.err
    assert "n = 4" in captured.out
    assert "worst images" in captured.out
    assert read_result(out).n == 4
    assert (out / "curves.csv").read_text().startswith("curve,threshold,value\nMaxBoxAccV2@30,0,")
    assert (out / "curves.svg").read_text().lstrip().startswith("<svg")
    worst = list(csv.DictReader((out / "worst.csv").open()))
    assert len(worst) == 4
    assert [float(row["iou"]) for row in worst] == sorted(float(row["iou"]) for row in worst)


def test_json_output_round_trips(world, tmp_path, capsys):
    run_folder, meta, _ = world
    out = tmp_path / "out"
    argv = ["loc", "--maps", str(run_folder), "--metadata", str(meta), "--json", "--out", str(out), "--limit", "5"]
    assert run(argv) == 0
    printed = EvalResult.from_json(capsys.readouterr().out)
    assert printed.n == 5
    assert json.loads((out / "metrics.json").read_text())["n"] == 5


def test_maps_of_predicted_classes_only(tmp_path):
    rows, rng = _rows(12, seed=4), np.random.default_rng(0)
    for number, row in enumerate(rows):
        predicted = row["label"] if number % 3 else (row["label"] + 2) % CLASSES
        logits = np.zeros(CLASSES, np.float32)
        logits[predicted] = 1
        values = _blob(rng, (7, 7))[None].astype(np.float16)
        maps = ScoreMaps(row["id"], values, np.array([predicted]), (row["h"], row["w"]), logits)
        write_maps(tmp_path / "run", maps)
    result = evaluate_localization(maps=tmp_path / "run", metadata=_write_metadata(tmp_path / "val", rows))
    assert result.n == 12
    assert np.isnan(result.metrics["GT-known"])
    assert not np.isnan(result.metrics["Top-1 Loc"])
    assert result.metrics["Top-1 accuracy"] == pytest.approx(100 * 8 / 12)
    assert _mean_over_images(result, "Top-1 Loc") == pytest.approx(result.metrics["Top-1 Loc"])
    assert {name for row in result.per_class.values() for name in row} == {"Top-1 Loc", "n"}
    assert len(result.per_image) == 8
    assert any("4 of 12 images have no map of their true class" in text for text in result.warnings)


def test_pxap_of_openimages_metadata(tmp_path):
    rng, rows = np.random.default_rng(2), _rows(5, seed=6)
    meta, maps, masks = tmp_path / "meta" / "test", tmp_path / "maps", tmp_path / "masks"
    lines, expected = [], []
    for row in rows:
        scoremap = _blob(rng, (224, 224))
        (maps / "val").mkdir(parents=True, exist_ok=True)
        np.save(maps / f"{row['id']}.npy", scoremap)
        stem = Path(row["id"]).stem
        union, ignored = np.zeros((224, 224), bool), None
        for instance in range(2):
            mask = rng.random((37 + instance, 53)) < 0.2
            name = f"{stem}_{instance}.png"
            masks.mkdir(exist_ok=True)
            Image.fromarray((mask * 255).astype(np.uint8)).save(masks / name)
            union |= cv2.resize(mask.astype(np.uint8), (224, 224), interpolation=cv2.INTER_NEAREST) > 0
            if instance == 0:
                skip = rng.random((37, 53)) < 0.3
                Image.fromarray((skip * 255).astype(np.uint8)).save(masks / f"{stem}_ignore.png")
                ignored = cv2.resize(skip.astype(np.uint8), (224, 224), interpolation=cv2.INTER_NEAREST) > 0
            lines.append(f"{row['id']},{name},{f'{stem}_ignore.png' if instance == 0 else ''}")
        expected.append((scoremap, union, ignored & ~union))
    _write_metadata(meta, rows)
    (meta / "localization.txt").write_text("\n".join(lines))
    (meta / "image_sizes.txt").write_text("")
    result = evaluate_localization(maps=maps, metadata=meta, masks=masks, curve_interval=0.01)
    edges = np.append(np.arange(0, 1, 0.01), [1.0, 2.0, 3.0])
    true = sum(np.histogram(s[m], edges)[0] for s, m, _ in expected)[::-1].cumsum()
    false = sum(np.histogram(s[~m & ~i], edges)[0] for s, m, i in expected)[::-1].cumsum()
    recall, precision = true / true[-1], true / np.maximum(true + false, 1)
    assert result.metrics["PxAP"] == pytest.approx(100 * np.sum(np.diff(recall) * precision[1:]), abs=1e-12)
    assert result.metrics["pIoU"] == pytest.approx(100 * (true / (true[-1] + false)).max(), abs=1e-12)
    assert set(result.metrics) == {"PxAP", "pIoU"}
    assert result.n == 5


def test_coloured_masks_count_in_every_channel(tmp_path):
    _write_metadata(tmp_path / "test", [{"id": "a.jpg", "label": 0, "w": 4, "h": 2, "boxes": []}])
    (tmp_path / "test" / "localization.txt").write_text("a.jpg,a.png,b.png")
    green, blue = np.zeros((2, 2, 4, 3), np.uint8)
    green[:, :2, 1], blue[:, 2, 2] = 128, 128
    Image.fromarray(green).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "a.png")
    Image.fromarray(blue).save(tmp_path / "b.png")
    dataset = read_metadata(tmp_path / "test", masks=tmp_path)
    plan = SimpleNamespace(instances=True)
    found = read_pixels(dataset.samples[0], 0, plan, (2, 4))
    np.testing.assert_array_equal(found, [[1, 1, 255, 0]] * 2)


def test_mistakes_are_named(world, tmp_path):
    run_folder, meta, _ = world
    with pytest.raises(ConfigError, match="did you mean 'maxboxaccv2'"):
        evaluate_localization(maps=run_folder, metadata=meta, protocol=("maxboxacv2",))
    with pytest.raises(ConfigError, match="curve-interval"):
        evaluate_localization(maps=run_folder, metadata=meta, curve_interval=0.0)
    with pytest.raises(EvalError, match="no masks"):
        evaluate_localization(maps=run_folder, metadata=meta, protocol=("pxap",))
    with pytest.raises(StoreError, match="no such folder"):
        evaluate_localization(maps=tmp_path / "nowhere", metadata=meta)
    with pytest.raises(EvalError, match="nothing says which data set"):
        evaluate_localization(maps=run_folder)
    with pytest.raises(EvalError, match="exclude each other"):
        evaluate_localization(maps=run_folder, metadata=meta, threshold=0.2, threshold_from=tmp_path)
    with pytest.raises(DataError, match="one of its splits: test"):
        read_metadata(meta.parent)
    with pytest.raises(EvalError, match="none of 40 images"):
        (tmp_path / "maps").mkdir()
        evaluate_localization(maps=tmp_path, metadata=meta)


def test_no_torch_is_imported(world, tmp_path):
    run_folder, meta, _ = world
    argv = ["eval", "loc", "--maps", str(run_folder), "--metadata", str(meta), "--out", str(tmp_path)]
    code = (
        "import sys; from wsol.cli.main import main; "
        f"assert main({argv!r}) == 0; assert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'timm')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
