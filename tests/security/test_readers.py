"""What strangers' files may not do: run code, unpack to more than memory holds, or lead out of a folder."""

from __future__ import annotations

import json
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from wsol.config import load_yaml
from wsol.data.annotation import read_annotation
from wsol.data.benchmark import read_samples
from wsol.data.coco import load as load_coco
from wsol.data.folder import load as load_folder
from wsol.data.images import read_image
from wsol.engine.checkpoint import read_checkpoint
from wsol.errors import ConfigError, DataError, ModelError, StoreError, WsolError
from wsol.eval.sources import NpyMaps
from wsol.models.checkpoints import read_card, read_weights
from wsol.ops.rle import decode, encode
from wsol.schema import ScoreMaps, check_id
from wsol.store.manifest import read_rows
from wsol.store.maps import read_maps
from wsol.store.masks import read_labels

ROOT = Path(__file__).resolve().parents[2]


class Bomb:
    """Leaves a file where unpickling runs it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def refuses_code(read, mark: Path) -> None:
    with pytest.raises(WsolError):
        read()
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path, zipped):
    mark, path = tmp_path / "ran", tmp_path / "checkpoint.pt"
    torch.save({"module": Bomb(mark)}, path, _use_new_zipfile_serialization=zipped)
    refuses_code(lambda: read_weights(path), mark)
    refuses_code(lambda: read_checkpoint(tmp_path), mark)


def test_a_pickle_in_an_npz_or_npy_is_not_run(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "maps").mkdir()
    np.savez(tmp_path / "maps" / "a.npz", values=np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    np.save(tmp_path / "b.npy", np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    (tmp_path / "maps" / "c.npz").write_bytes(pickle.dumps(Bomb(mark)))
    (tmp_path / "d.npy").write_bytes(pickle.dumps(Bomb(mark)))
    for name in "ac":
        refuses_code(lambda name=name: read_maps(tmp_path, name), mark)
    for name in "bd":
        refuses_code(lambda name=name: NpyMaps(tmp_path).read(name), mark)


def test_an_archive_with_code_for_loading_is_not_run(tmp_path):
    from wsol.models.clip_load import read_clip_weights

    class Loud(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.training = False

        @torch.jit.export
        def __getstate__(self):
            return self.weight, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]):
            print("ran")
            self.weight = state[0]
            self.training = state[1]

        def forward(self, x):
            return x * self.weight

    path = tmp_path / "a.pt"
    torch.jit.script(Loud()).save(str(path))
    with pytest.raises(ModelError, match="code of its own"):
        read_clip_weights(path)


def test_no_source_of_the_package_unpickles_or_evaluates():
    words = (
        r"\bimport (pickle|marshal|shelve)\b",
        r"(?<!`)\b(np\.load|read_array)\([^)]*allow_pickle=True",
        "weights_only=False",
        r"yaml\.(unsafe|full)",
        "extractall",
    )
    for path in (ROOT / "wsol").rglob("*.py"):
        text = path.read_text()
        assert not [word for word in words if re.search(word, text)], path
        assert text.count("torch.load(") == text.count("weights_only=True"), path


# Bombs


def deflated(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path):
    (tmp_path / "maps").mkdir()
    deflated(tmp_path / "maps" / "a.npz", {"values.npy": bytes(3 * 10**8)})
    deflated(tmp_path / "a.pt", {"a/data.pkl": b"", "a/data/0": bytes(3 * 10**8)})
    with pytest.raises(StoreError, match="unpack"):
        read_maps(tmp_path, "a")
    with pytest.raises(ModelError, match="unpack"):
        read_weights(tmp_path / "a.pt")


def test_an_array_that_declares_more_than_it_holds(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1000000, 1000000), }"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n"
    (tmp_path / "maps").mkdir()
    deflated(tmp_path / "maps" / "a.npz", {"values.npy": data, "image_size.npy": data, "class_ids.npy": data})
    (tmp_path / "b.npy").write_bytes(data)
    with pytest.raises(StoreError):
        read_maps(tmp_path, "a")
    with pytest.raises(StoreError):
        NpyMaps(tmp_path).read("b")


def test_maps_of_an_image_beyond_any_camera():
    with pytest.raises(DataError, match="size"):
        ScoreMaps("a", np.zeros((1, 1, 1), np.float16), np.array([0]), (10**6, 10**6))
    for wrong in (-1, 2**15, 70000):
        with pytest.raises(DataError, match="class ids"):
            ScoreMaps("a", np.zeros((1, 1, 1), np.float16), np.array([wrong]), (5, 7))


@pytest.mark.parametrize("read", [read_image, read_labels])
def test_a_picture_of_more_pixels_than_a_photo_is_not_decoded(tmp_path, read):
    body = struct.pack(">IIBBBBB", 12000, 12000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", body), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    parts = (
        struct.pack(">I", len(item)) + kind + item + struct.pack(">I", zlib.crc32(kind + item)) for kind, item in chunks
    )
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(WsolError, match="pixels"):
        read(path)


def test_postscript_is_no_image(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "a.jpg"
    text = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n({mark}) (w) file closefile\n%%EOF\n"
    path.write_text(text)
    refuses_code(lambda: read_image(path), mark)
    with pytest.raises(DataError, match="not an image"):
        read_image(path)


def test_a_tensor_that_claims_more_than_the_file_holds(tmp_path):
    torch.save({"a": torch.zeros(1).half().expand(10**6, 10**6)}, tmp_path / "a.pt")
    with pytest.raises(ModelError, match="claims"):
        read_weights(tmp_path / "a.pt")


def test_a_model_card_of_a_giant(tmp_path):
    (tmp_path / "model.safetensors").touch()
    card = {
        "name": "resnet18",
        "num_classes": 10**12,
        "img_size": 64,
        "mean": [0.5],
        "std": [0.5],
        "interpolation": "bilinear",
    }
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="num_classes"):
        read_card(tmp_path)


# Text


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object/apply:os.system ['touch ran']", "a: &x [1, 2]\nb: [*x, *x]", "a: &x [*x]", "[" * 5000,
     "!!timestamp x", "a: 2020-13-40", "!!bool x", "a: " + "9" * 5000, "\x00", "a: '" + "x" * 2**20 + "'"],
)  # fmt: skip
def test_yaml_that_is_no_recipe(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text",
    [
        '<!DOCTYPE a [<!ENTITY b "' + "x" * 50 + '">]><annotation>&b;</annotation>',
        '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
        '<!DOCTYPE a SYSTEM "http://localhost/x.dtd"><annotation/>',
        "<annotation><size><width>1e999</width><height>5</height></size></annotation>",
        "<annotation><object><bndbox><xmin>nan</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>",
    ],
)
def test_xml_with_entities_or_numbers_without_end(tmp_path, text):
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(DataError):
        read_annotation(tmp_path / "a.xml")


# Names


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/passwd", "a\x00b", "a\\b", "a//b", "", "a/", "\udcff", "."]
)
def test_ids_that_lead_elsewhere(tmp_path, name):
    with pytest.raises(DataError):
        check_id(name)
    row = json.dumps({"id": name, "ok": True})
    (tmp_path / "manifest-000-of-001.jsonl").write_text(
        f'{row}\n{{"id": ["a"], "ok": true}}\n[1]\n{{"id": "b", "ok": true}}\n'
    )
    assert set(read_rows(tmp_path)) == {"b"}


@pytest.mark.parametrize("line", ["val/a.jpg,../../x.png,", "val/a.jpg,/etc/x.png,", "val/a.jpg,m.png,../x.png"])
def test_masks_that_lead_out_of_the_data_set(tmp_path, line):
    (tmp_path / "image_ids.txt").write_text("val/a.jpg\n")
    (tmp_path / "class_labels.txt").write_text("val/a.jpg,1\n")
    (tmp_path / "localization.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match="cannot be a file name"):
        read_samples(tmp_path, images=tmp_path, masks=tmp_path)


def test_a_class_id_that_would_list_classes_for_ever(tmp_path):
    (tmp_path / "image_ids.txt").write_text("val/a.jpg\n")
    (tmp_path / "class_labels.txt").write_text(f"val/a.jpg,{10**15}\n")
    with pytest.raises(DataError, match="class id"):
        read_samples(tmp_path, images=tmp_path, masks=tmp_path)


def test_a_table_cannot_make_this_program_open_a_connection(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("labels.csv").write_text("file,labels\nhttp://localhost:9/a.jpg,cat\n")
    with pytest.raises(DataError, match="no path"):
        load_folder(root=Path(), split=None)


def test_a_run_folder_whose_folders_are_links_is_not_written_through(tmp_path):
    from wsol.store.maps import write_maps

    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (run / "maps").symlink_to(outside)
    maps = ScoreMaps("a", np.zeros((1, 2, 3), np.float16), np.array([0]), (5, 7))
    with pytest.raises(StoreError, match="link"):
        write_maps(run, maps)
    assert not list(outside.iterdir())


# Run lengths and polygons, which C code follows wherever they lead


@pytest.mark.parametrize("counts", [[5], [10**9], [-5, 40], [30, 10], "P", "oooooooooooo", "\x00", "\x7f"])
def test_runs_that_do_not_fill_their_mask(counts):
    with pytest.raises(ValueError):
        decode({"size": [5, 7], "counts": counts})


def test_run_lengths_are_those_of_pycocotools():
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(0)
    for _ in range(100):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.random()
        rle = encode(mask)
        np.testing.assert_array_equal(decode(rle), mask)
        np.testing.assert_array_equal(decode(rle), coco_mask.decode(rle).astype(bool))


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[0, 0, float("nan"), 5, 9, 9]],
        {"size": [5, 7], "counts": "0a"},
        {"size": [9, 9], "counts": [81]},
        "x",
        5,
    ],
)
def test_coco_annotations_that_would_crash(tmp_path, segmentation):
    (tmp_path / "annotations").mkdir()
    item = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation, "area": 4, "bbox": [0, 0, 2, 2]}
    images = [{"id": 1, "file_name": "a.jpg", "height": 5, "width": 7}]
    raw = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": [item]}
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(raw))
    dataset = load_coco(root=tmp_path, split="val", cache=tmp_path / "cache")
    with pytest.raises(DataError):
        dataset.read_truth(dataset.samples[0])


def test_ten_seconds_of_fuzzing(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), "--minutes", "0.17", "--keep", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
