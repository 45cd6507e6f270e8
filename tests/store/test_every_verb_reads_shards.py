"""Every verb says the same of a run that lies in shards as of one that lies in loose files."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest

from wsol import data
from wsol.cli.main import main
from wsol.data.synthetic import write_synthetic
from wsol.engine.options import CamConfig
from wsol.engine.refine_options import RefineConfig
from wsol.schema import PseudoMask, ScoreMaps
from wsol.store import shards
from wsol.store.manifest import Manifest
from wsol.store.maps import write_maps
from wsol.store.masks import write_mask
from wsol.store.runs import open_run

STORES = ("loose", "packed")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """`maps-STORE` as wsol cam leaves it and `masks-STORE` as wsol refine does, made from noisy true masks."""
    place = tmp_path_factory.mktemp("place")
    write_synthetic(place / "set", train=6, val=2, sides=(50, 80), classes=2)
    dataset = data.load("synthetic", root=place / "set")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "STRETCH", 4)
        for store in STORES:
            cam = CamConfig(data="synthetic", root=place / "set", model="test_resnet", out=place / f"maps-{store}")
            masks = RefineConfig(maps=cam.out, out=place / f"masks-{store}", confidence=True)
            for verb, config in (("cam", cam), ("refine", masks)):
                open_one = open_run(config.out, verb=verb, config=config, dataset=dataset.spec)
                with open_one as run, Manifest(config.out) as manifest:
                    if store == "packed":
                        manifest.pack([sample.id for sample in dataset], set())
                    for at, sample in enumerate(dataset):
                        write(config.out, sample, dataset.read_truth(sample), np.random.default_rng(at))
                        manifest.done(sample.id)
                    run.facts["done"] = len(dataset)
    for kind, name in (("maps", "maps"), ("masks", "masks"), ("masks", "confidence")):
        packed = place / f"{kind}-packed" / name
        assert [path.name for path in sorted(packed.iterdir())] == [f"000-of-001-0000{at}-0.tar" for at in range(2)]
    return place


def write(run, sample, truth, rng):
    if run.name.startswith("maps"):
        planes = [cv2.resize((truth == label + 1).astype(np.float32), (11, 9)) for label in sample.labels]
        values = (0.7 * np.stack(planes) + 0.3 * rng.random((len(planes), 9, 11))).astype(np.float16)
        logits = rng.random(2).astype(np.float32)
        write_maps(run, ScoreMaps(sample.id, values, np.array(sample.labels), truth.shape, logits=logits))
    else:
        labels = np.where(rng.random(truth.shape) < 0.1, 0, truth).astype(np.uint8)
        write_mask(run, PseudoMask(sample.id, labels, rng.random(truth.shape).astype(np.float16)))


def said(path, store):
    """What a verb wrote, without what differs between any two calls: folders, times, hashes, memory."""
    if path.suffix == ".html":
        return re.findall(r"data:image/[^\"')]+", path.read_text())
    if path.suffix in (".npz", ".npy", ".png", ".tar"):
        return path.read_bytes()
    text = path.read_text().replace(f"-{store}", "")
    found = text
    if path.suffix.startswith(".json"):
        found = [json.loads(line) for line in (text.splitlines() if path.suffix == ".jsonl" else [text])]
    changing = {"seconds", "ms", "peak_mb"}

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key not in changing}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return plain(found)


TRAIN = "--data synthetic --root {set} --epochs 1 --batch-size 3 --img-size 32 --workers 0 --device cpu --quiet"
SEGMENT = f"segment train --arch segmenter --encoder test_vit {TRAIN} --out {{out}} --masks"
VERBS = {
    "eval loc": ("eval loc --maps {maps} --out {out} --workers 0", "metrics.json"),
    "eval seg of maps": ("eval seg --pred {maps} --out {out} --workers 0", "metrics.json"),
    "eval seg of masks": ("eval seg --pred {masks} --out {out} --workers 2 --boundary 0.01", "metrics.json"),
    "eval seg of a folder": (
        "eval seg --pred {masks}/masks --data synthetic --root {set} --out {out} --workers 0",
        "metrics.json",
    ),
    "report": ("report {maps} {masks} --out {out}/report.html", "report.html"),
    "bench refine": ("bench refine --maps {maps} --methods threshold --workers 0 --out {out}", "bench.json"),
    "refine": ("refine --maps {maps} --workers 0 --out {out} --quiet", "masks/**/*.png"),
    "refine --sweep": ("refine --sweep --maps {maps} --backgrounds 0.2 0.4 --workers 0 --out {out}", "sweep.csv"),
    "refine train-affinity": (
        "refine train-affinity --maps {maps} --model test_resnet --out {out} --img-size 32 --epochs 1 --batch-size 3"
        " --options.radius 3 --workers 0 --device cpu --quiet",
        "history.jsonl",
    ),
    "segment train": (f"{SEGMENT} {{masks}} --min-confidence 0.2", "history.jsonl"),
    "segment train on a folder": (f"{SEGMENT} {{masks}}/masks", "history.jsonl"),
    "segment self-train": (
        f"{SEGMENT} {{masks}} --stages 2 --val-split val --strategy gist".replace(
            "segment train", "segment self-train"
        ),
        "**/history.jsonl",
    ),
    "train --label-maps": (
        f"train --model test_vit {TRAIN} --img-size 160 --out {{out}} --label-maps {{maps}} --mix tokenmix"
        " --mix-options.maps teacher",
        "history.jsonl",
    ),
    "data export": ("data export --masks {masks} --format coco --out {out}", "**/*.json"),
    "data export, folder": (
        "data export --masks {masks}/masks --data synthetic --root {set} --format labelme --out {out}",
        "**/*.json",
    ),
    "data convert, irn": ("data convert --source {maps} --write irn --out {out}", "**/*.npy"),
    "data convert, masks": (
        "data convert --source {masks} --write irn --options.files sem_seg --out {out}",
        "**/*.png",
    ),
    "data convert, psa": ("data convert --source {maps} --write psa --out {out}", "**/*.npy"),
    "data convert, clip_es": ("data convert --source {maps} --write clip_es --out {out}", "**/*.npy"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_verb_reads_shards(verb, place, tmp_path):
    words, pattern = VERBS[verb]
    found = []
    for store in STORES:
        out = tmp_path / f"out-{store}"
        paths = {"maps": place / f"maps-{store}", "masks": place / f"masks-{store}", "set": place / "set", "out": out}
        assert main([word.format(**paths) for word in words.split()]) == 0
        files = sorted(path for path in out.glob(pattern) if path.is_file())
        found.append({path.relative_to(out).as_posix(): said(path, store) for path in files})
    assert found[0]
    assert all(found[0].values())
    assert found[0] == found[1]


def test_supervision_reads_shards(place):
    pytest.importorskip("supervision")
    import wsol

    loose, packed = (list(wsol.to_supervision(place / f"masks-{store}")) for store in STORES)
    assert len(loose) == len(packed) == 6
    for (one, a), (other, b) in zip(loose, packed, strict=True):
        assert one == other
        assert (a.mask == b.mask).all()
        assert (a.confidence == b.confidence).all()
        assert (a.class_id == b.class_id).all()
