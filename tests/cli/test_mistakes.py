"""The thirty likeliest mistakes: each ends in one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import errno
import os
import socket
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch

from wsol.cli.main import main

SIZE = 64
CAM = "cam --data folder --root photos --model test_resnet --img-size 64 --method layercam --checkpoint weights.pth"
TRAIN = "train --data folder --root photos --model test_resnet --img-size 64 --epochs 1 --batch-size 2 --workers 0"
SEGMENT = "segment train --data folder --root photos --split train --epochs 1 --workers 0 --img-size 64"
REFINE = "refine --maps maps --method threshold --background 0.3"
HUB = "could not download"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder as a user has it: photos, weights, a run of maps, a run of masks, and broken things."""
    here = tmp_path_factory.mktemp("desk")
    generator = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for name in ("cat", "dog"):
            for at in range(count):
                _photo(here / f"photos/{split}/{name}/{at}.jpg", generator)
    _photo(here / "mixed/cat/1.jpg", generator)
    (here / "mixed/cat/2.jpg").write_bytes(b"\xff\xd8\xff no photo")
    for name in ("cat", "cow", "dog"):
        _photo(here / f"farm/{name}/1.jpg", generator)
    (here / "mixed/dog").mkdir()
    _photo(here / "mixed/dog/1.jpg", generator)
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken/photo.jpg").write_bytes(b"not a photo")
    torch.save(timm.create_model("test_resnet", num_classes=2).state_dict(), here / "weights.pth")
    (here / "text.pth").write_text("no weights")
    (here / "recipe.yaml").write_text("methd: cam\n")
    (here / "wrong.yaml").write_text("img_size: large\n")
    (here / "a_file").write_text("in the way")
    before = Path.cwd()
    os.chdir(here)
    try:
        assert main(f"{CAM} --split train --out maps --workers 0 --quiet".split()) == 0
        assert main(f"{REFINE} --out masks --workers 0 --quiet".split()) == 0
    finally:
        os.chdir(before)
    first = next((here / "masks/masks").rglob("*.png"))
    other = here / "small_masks" / first.relative_to(here / "masks/masks")
    other.parent.mkdir(parents=True)
    cv2.imwrite(str(other), np.zeros((5, 7), np.uint8))
    return here


def _photo(path, generator):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), generator.integers(0, 255, (50, 70, 3), dtype=np.uint8))


@pytest.fixture
def offline(monkeypatch):
    """No network, as fast as possible."""

    def refuse(*_args, **_kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


# (what is wrong, command, what the line must name: where and what to do)
MISTAKES = [
    ("unknown verb", "cams --data folder", ["cams", "did you mean 'cam'"]),
    ("unknown flag", f"{CAM} --flap --out x", ["--flap", "did you mean '--flip'"]),
    ("wrong type", f"{CAM} --batch-size many --out x", ["--batch-size", "many", "--help"]),
    ("flag left out", "cam --data folder --model test_resnet", ["--out", "--help"]),
    ("wrong data name", "cam --data vok --model test_resnet --out x", ["'vok'", "did you mean 'voc'"]),
    ("misspelt method", f"{CAM} --out x".replace("layercam", "layrcam"), ["'layrcam'", "did you mean 'layercam'"]),
    ("misspelt refiner", "refine --maps maps --method dencecrf --out x", ["'dencecrf'", "did you mean 'densecrf'"]),
    ("misspelt strategy", f"{TRAIN} --mix cutmx --out x", ["'cutmx'", "did you mean 'cutmix'"]),
    ("option of another method", f"{CAM} --options.samples 4 --out x", ["--options.samples", "--options."]),
    ("misspelt model", f"{CAM} --out x".replace("test_resnet", "resnet5"), ["'resnet5'", "did you mean 'resnet"]),
    ("no model", "cam --data folder --root photos --out x", ["no model", "--model", "--checkpoint"]),
    ("missing folder", f"{CAM} --out x".replace("photos", "fotos"), ["fotos", "--root"]),
    (
        "no folder at all",
        "cam --data voc --model test_resnet --checkpoint weights.pth --out x",
        ["voc", "--root", "WSOL_DATA"],
    ),
    ("no such split", f"{CAM} --split test --out x", ["'test'", "train", "val"]),
    ("empty folder", f"{CAM} --out x".replace("photos", "empty"), ["empty", "photos/cat/"]),
    ("missing checkpoint", f"{CAM} --out x".replace("weights.pth", "weight.pth"), ["weight.pth", "pip:"]),
    ("checkpoint that is none", f"{CAM} --out x".replace("weights.pth", "text.pth"), ["text.pth", "safetensors"]),
    (
        "weights of another model",
        f"{CAM} --out x".replace("test_resnet", "test_vit"),
        ["weights.pth", "do not fit", "--model"],
    ),
    ("classes mismatch", f"{CAM} --out x".replace("photos", "farm"), ["2 classes", "3", "wsol train"]),
    ("weights from two sources", f"{CAM} --pretrained --out x", ["--pretrained", "--checkpoint"]),
    (
        "hub without a network",
        "cam --data folder --root photos --model resnet10t --pretrained --out x",
        [HUB, "--checkpoint"],
    ),
    ("GPU that is not there", f"{CAM} --device cuda:7 --out x", ["cuda:7", "cpu"]),
    ("device that this torch does not know", f"{CAM} --device xpu --out x", ["xpu", "cpu"]),
    ("device without numbers", f"{CAM} --device meta --out x", ["meta", "cpu"]),
    ("fewer processes than none", f"{CAM} --workers -1 --out x", ["--workers", "0 or more", "-1"]),
    ("fewer processes than none to refine", f"{REFINE} --workers -1 --out x", ["--workers", "0 or more", "-1"]),
    ("scale that is no number", f"{CAM} --scales nan --out x", ["--scales", "positive", "nan"]),
    ("scale without end", f"{CAM} --scales 1 inf --out x", ["--scales", "positive", "inf"]),
    ("zoom without end", f"{SEGMENT} --masks gt --zoom 1 inf --out x", ["--zoom", "LOW HIGH", "inf"]),
    ("wrong shard", f"{CAM} --shard 2/2 --out x", ["--shard", "2/2", "0 <= i < n"]),
    ("other options in a run", f"{CAM} --split train --flip --out maps", ["maps", "flip", "--overwrite"]),
    ("a folder with other files", f"{CAM} --out photos", ["photos", "holds no run", "--out"]),
    ("output cannot be written", f"{CAM} --out a_file/x", ["a_file", "--out"]),
    ("masks for maps", "refine --maps masks --method threshold --background 0.3 --out x", ["masks", "wsol cam"]),
    ("background out of range", "refine --maps maps --background 3 --out x", ["background", "[0, 1]", "3"]),
    ("threshold out of range", "eval loc --maps maps --threshold 1.5", ["--threshold", "[0, 1]", "1.5"]),
    ("no truth to measure with", "eval loc --maps maps", ["'train'", "boxes", "--split"]),
    ("maps that are not there", "eval loc --maps mapz", ["mapz", "wsol cam"]),
    ("recipe that is not there", f"{CAM} -c recipes.yaml --out x", ["recipes.yaml", "-c"]),
    ("misspelt key in a recipe", f"{CAM} -c recipe.yaml --out x", ["recipe.yaml", "methd", "did you mean 'method'"]),
    ("wrong value in a recipe", f"{CAM} -c wrong.yaml --out x", ["wrong.yaml", "img_size", "large"]),
    (
        "masks that are not there",
        "segment train --data folder --root photos --masks maskz --out x",
        ["maskz", "wsol refine"],
    ),
    (
        "masks of another size",
        f"{SEGMENT} --masks small_masks --out x",
        ["no batch", "see the images listed above"],
    ),
    ("a single photo that is none", "demo --image broken/photo.jpg", ["broken/photo.jpg", "image"]),
    ("unknown class", "demo --image photos/train/cat/0.jpg --classes kat", ["--classes", "'kat'", "meerkat"]),
    ("epochs of nothing", f"{TRAIN} --epochs 0 --out x", ["--epochs", "at least 1", "0"]),
    ("unknown export format", "data export --masks masks --format coko --out x", ["'coko'", "did you mean 'coco'"]),
]


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("command", "named"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_mistake(desk, command, named, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(desk)
    command = command.replace("--out x", f"--out {tmp_path / 'x'}")
    monkeypatch.delenv("WSOL_DATA", raising=False)
    assert main(command.split()) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("wsol: ")]
    assert len(lines) == 1
    assert "Traceback" not in lines[0]
    assert len(lines[0]) < 400
    missing = [word for word in named if word not in lines[0]]
    assert not missing, lines[0]


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("refine --maps maps --background 0.3 --method caa", ["caa", "--options.checkpoint"]),
        ("refine --maps maps --background 0.3 --method pamr,psa", ["psa", "no checkpoint"]),
        ("refine --maps maps --background 0.3 --method irn --options.checkpoint empty", ["empty", "train-affinity"]),
        (
            "refine --maps maps --background 0.3 --method caa --options.model test_resnet"
            " --options.checkpoint weights.pth",
            ["test_resnet", "a ViT"],
        ),
        ("refine instances --maps maps --options.checkpoint empty", ["empty", "train-affinity"]),
    ],
)
def test_a_refiner_without_its_network_makes_no_run(desk, command, named, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(desk)
    assert main([*command.split(), "--out", str(tmp_path / "x")]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in named), said
    assert not (tmp_path / "x").exists()


def test_a_broken_image_is_a_line_at_the_end(desk, monkeypatch, capfd):
    monkeypatch.chdir(desk)
    command = CAM.replace("photos", "mixed") + " --out some --workers 0"
    assert main(command.split()) == 1
    said = capfd.readouterr().err
    assert "2.jpg" in said
    assert "cannot read the image" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), ["memory", "--batch-size"]),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
            ["--img-size"],
        ),
        (MemoryError(), ["memory", "--workers"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["disk is full", "TMPDIR"]),
        (BrokenProcessPool("A process was terminated abruptly"), ["killed", "--workers"]),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), ["killed", "--workers"]),
    ],
)
def test_what_the_machine_cannot_do_is_one_line(monkeypatch, capfd, error, named):
    def run(_argv):
        raise error

    monkeypatch.setattr("wsol.cli.info.run", run)
    assert main(["info"]) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in named), said
    with pytest.raises(type(error)):
        main(["info", "--debug"])


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    def run(_argv):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("wsol.cli.info.run", run)
    with pytest.raises(RuntimeError, match="mat1"):
        main(["info"])
