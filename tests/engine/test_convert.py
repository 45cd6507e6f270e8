"""`wsol data convert`: from the files of other projects to run folders, and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from wsol import data
from wsol.cli.main import main
from wsol.engine.convert import convert
from wsol.engine.convert_options import ConvertConfig
from wsol.engine.make_instances import write_coco_instances
from wsol.errors import ConfigError, DataError, StoreError
from wsol.store.instances import Instance, read_instances, write_instances
from wsol.store.manifest import read_rows
from wsol.store.maps import read_maps
from wsol.store.masks import read_labels
from wsol.store.runs import read_info


@pytest.fixture
def root(tmp_path):
    """Photos of two classes, 30 to 32 x 41 pixels."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for at in range(3):
            Image.new("RGB", (41, 30 + at)).save(tmp_path / "photos" / name / f"{at}.png")
    return tmp_path / "photos"


@pytest.fixture
def irn_cams(tmp_path, root):
    """Files as irn saves them, of four of the six images."""
    rng = np.random.default_rng(0)
    for name, label in (("cat", 0), ("dog", 1)):
        (tmp_path / "irn" / name).mkdir(parents=True)
        for at in range(2):
            high = rng.random((1, 30 + at, 41)).astype(np.float16).astype(np.float32)
            items = {"keys": torch.tensor([label]), "cam": torch.rand(1, 8, 11), "high_res": high}
            np.save(tmp_path / "irn" / name / f"{at}.npy", items, allow_pickle=True)
    return tmp_path / "irn"


def read(root, folder, out, **changes):
    config = {"source": folder, "out": out, "read": "irn", "data": "folder", "root": root, "quiet": True}
    return convert(ConvertConfig(**{**config, **changes}))


def test_there_and_back(root, irn_cams, tmp_path, capsys):
    words = ["--source", str(irn_cams), "--data", "folder", "--root", str(root), "--quiet"]
    assert main(["data", "convert", "--read", "irn", *words, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "4 written" in said
    assert "2 images of the split have no file" in said
    info = read_info(tmp_path / "run")
    assert (info.verb, info.facts["done"], info.config["options"]) == ("data convert", 4, {})
    assert set(read_rows(tmp_path / "run")) == {"cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"}
    back = ["data", "convert", "--source", str(tmp_path / "run"), "--quiet"]
    assert main([*back, "--write", "irn", "--out", str(tmp_path / "again")]) == 0
    for path in sorted(irn_cams.rglob("*.npy")):
        first = np.load(path, allow_pickle=True).item()
        found = np.load(tmp_path / "again" / path.relative_to(irn_cams), allow_pickle=True).item()
        np.testing.assert_array_equal(found["high_res"], first["high_res"])
        np.testing.assert_array_equal(found["keys"], first["keys"])
        assert found["cam"].shape == (1, 8, 11)
    assert main([*back, "--write", "psa", "--options.files", "crf", "--out", str(tmp_path / "psa")]) == 0
    assert list(np.load(tmp_path / "psa/dog/1.npy", allow_pickle=True).item()) == [0, 2]
    assert main([*back, "--write", "wsolevaluation", "--out", str(tmp_path / "maps")]) == 0
    assert np.load(tmp_path / "maps/dog/1.png.npy").shape == (224, 224)


def test_a_converted_run_is_refined_and_evaluated(root, irn_cams, tmp_path):
    read(root, irn_cams, tmp_path / "run", limit=2)
    out = tmp_path / "masks"
    words = ["--out", str(out), "--background", "0.4", "--workers", "0", "--quiet"]
    assert main(["refine", "--maps", str(tmp_path / "run"), *words]) == 0
    expected = read_maps(tmp_path / "run", "cat/1.png").values[0] > np.float32(0.4)
    np.testing.assert_array_equal(read_labels(out / "masks/cat/1.png.png"), expected)
    back = ConvertConfig(source=out, write="psa", options={"files": "rw"}, out=tmp_path / "rw", quiet=True)
    assert convert(back).done == 2
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "rw/cat/1.png")), expected)


def test_the_same_command_again_and_other_options(root, irn_cams, tmp_path):
    for _ in range(2):
        assert read(root, irn_cams, tmp_path / "run").done == 4
    with pytest.raises(StoreError, match="other options: options was"):
        read(root, irn_cams, tmp_path / "run", options={"values": "cam"})
    assert read(root, irn_cams, tmp_path / "run", options={"values": "cam"}, overwrite=True).done == 4
    assert read_maps(tmp_path / "run", "cat/1.png").values.shape == (1, 8, 11)
    assert read_maps(tmp_path / "run", "cat/1.png").image_size == (31, 41)


def test_a_bad_file_is_a_failure_of_its_image(root, irn_cams, tmp_path):
    (irn_cams / "cat/0.npy").write_bytes((irn_cams / "cat/0.npy").read_bytes()[:300])
    Image.new("RGB", (9, 9)).save(root / "dog/0.png")
    counts = read(root, irn_cams, tmp_path / "run")
    assert (counts.done, counts.status) == (2, 1)
    assert "not a file of arrays" in counts.failures["cat/0.png"]
    assert "the image is (9, 9)" in counts.failures["dog/0.png"]
    assert read_rows(tmp_path / "run")["dog/0.png"]["ok"] is False


def test_objects(root, tmp_path):
    mask = np.zeros((2, 30, 41))
    mask[0, 3:9, 4:20], mask[1, 20:, 30:] = 1, 1
    (tmp_path / "ins/dog").mkdir(parents=True)
    items = {"score": np.array([0.75, 0.5]), "mask": mask, "class": np.array([1, 0])}
    np.save(tmp_path / "ins/dog/0.npy", items, allow_pickle=True)
    run = tmp_path / "run"
    assert read(root, tmp_path / "ins", run, options={"files": "ins_seg"}).done == 1
    size, found = read_instances(run, "dog/0.png")
    assert size == (30, 41)
    assert [(item.class_id, item.score) for item in found] == [(1, 0.75), (0, 0.5)]
    back = ConvertConfig(source=run, write="irn", options={"files": "ins_seg"}, out=tmp_path / "back", quiet=True)
    assert convert(back).done == 1
    np.testing.assert_array_equal(np.load(tmp_path / "back/dog/0.npy", allow_pickle=True).item()["mask"], mask)


def test_objects_as_coco_name_files_from_the_data_sets_folder(root, tmp_path):
    dataset = data.load("folder", root=root)
    mask = np.zeros((30, 41), bool)
    mask[3:9, 4:20] = True
    write_instances(tmp_path / "run", "dog/0.png", (30, 41), [Instance(1, 0.5, mask)])
    path = write_coco_instances(tmp_path / "run", dataset.samples, dataset.spec)
    coco = COCO(str(path))
    (image,) = coco.loadImgs(coco.getImgIds())
    assert image["file_name"] == "dog/0.png"
    assert (root / image["file_name"]).is_file()
    (item,) = coco.loadAnns(coco.getAnnIds())
    assert (item["score"], item["category_id"], item["bbox"], item["area"]) == (0.5, 2, [4, 3, 16, 6], 96)
    np.testing.assert_array_equal(coco.annToMask(item), mask)
    elsewhere = write_coco_instances(tmp_path / "run", dataset.samples, data.load("folder", root=root / "cat/..").spec)
    assert json.loads(elsewhere.read_text())["images"][0]["file_name"] == str(root / "dog/0.png")


def test_metadata_of_a_data_set(tmp_path, capsys):
    data_words = ["--data", "synthetic", "--root", str(tmp_path / "shapes")]
    try:
        dataset = data.load("synthetic", root=tmp_path / "shapes", split="val")
    except (ConfigError, DataError):
        pytest.skip("needs other options")
    words = ["data", "convert", "--write", "wsolevaluation", "--options.files", "metadata", "--split", "val"]
    status = main([*words, *data_words, "--out", str(tmp_path / "meta")])
    several = any(len(sample.labels) != 1 for sample in dataset)
    assert status == (2 if several else 0)
    if several:
        assert "one class an image" in capsys.readouterr().err
    else:
        assert len((tmp_path / "meta/image_ids.txt").read_text().splitlines()) == len(dataset)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"write": "psa"}, ConfigError, "either --read or --write"),
        ({"read": None}, ConfigError, "either --read or --write"),
        ({"read": "inr"}, ConfigError, "did you mean 'irn'"),
        ({"data": None}, ConfigError, "give --data, --root and --split"),
        ({"source": None}, ConfigError, "give --source FOLDER"),
        ({"options": {"file": "cam"}}, ConfigError, "did you mean 'files'"),
        ({"options": {"files": "sem_seg"}}, StoreError, "looked for cat/0.png"),
        ({"read": "wsolevaluation", "options": {"files": "metadata"}}, ConfigError, "wsol eval loc --metadata"),
        ({"read": None, "write": "irn"}, StoreError, "no image has maps here"),
    ],
)
def test_mistakes(root, irn_cams, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        read(root, irn_cams, tmp_path / "run", **changes)


def test_what_is_there_is_not_written_over(root, irn_cams, tmp_path):
    read(root, irn_cams, tmp_path / "run")
    with pytest.raises(StoreError, match="not empty"):
        convert(ConvertConfig(source=tmp_path / "run", write="irn", out=irn_cams))
    with pytest.raises(StoreError, match="no such folder"):
        read(root, tmp_path / "nowhere", tmp_path / "out")
