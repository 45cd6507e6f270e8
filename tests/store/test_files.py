from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsol.config import neutral
from wsol.errors import StoreError
from wsol.schema import DatasetSpec, PseudoMask, ScoreMaps
from wsol.store.atomic import atomic_write, write_text
from wsol.store.manifest import Manifest, finished, read_rows
from wsol.store.maps import map_path, read_maps, write_maps
from wsol.store.masks import encode_mask, mask_path, read_labels, read_mask, write_mask
from wsol.store.runs import file_hash, open_run, read_dataset, read_info


def sample_maps(image_id="a/b.jpg", logits=None):
    values = np.random.default_rng(0).random((2, 5, 7)).astype(np.float16)
    return ScoreMaps(id=image_id, values=values, class_ids=np.array([3, 19]), image_size=(33, 51), logits=logits)


@pytest.mark.parametrize("logits", [None, np.arange(4, dtype=np.float32)])
def test_maps_round_trip_and_equal_maps_give_equal_bytes(tmp_path, logits):
    maps = sample_maps(logits=logits)
    size = write_maps(tmp_path, maps)
    first = map_path(tmp_path, maps.id).read_bytes()
    write_maps(tmp_path, maps)
    assert map_path(tmp_path, maps.id).read_bytes() == first
    assert len(first) == size
    again = read_maps(tmp_path, maps.id)
    assert (again.values == maps.values).all()
    assert again.class_ids.tolist() == [3, 19]
    assert again.image_size == (33, 51)
    assert (again.logits is None) if logits is None else (again.logits == logits).all()


def test_every_torn_length_of_a_map_file_is_noticed(tmp_path):
    write_maps(tmp_path, sample_maps("x"))
    path = map_path(tmp_path, "x")
    whole = path.read_bytes()
    for length in range(0, len(whole), 13):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="run wsol cam again"):
            read_maps(tmp_path, "x")


def test_a_flipped_bit_in_a_map_file_is_noticed(tmp_path):
    write_maps(tmp_path, sample_maps("x"))
    path = map_path(tmp_path, "x")
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("values.npy").header_offset + 140
    data[start + 40] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError):
        read_maps(tmp_path, "x")


def test_a_file_that_is_no_archive_gives_no_advice_on_pickles(tmp_path):
    path = map_path(tmp_path, "x")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    with pytest.raises(StoreError, match="no npz archive"):
        read_maps(tmp_path, "x")


def test_a_pickle_is_never_loaded(tmp_path):
    path = map_path(tmp_path, "x")
    path.parent.mkdir(parents=True)
    np.savez(path, values=np.array([{"evil": 1}], dtype=object), class_ids=[0], image_size=[1, 1])
    with pytest.raises(StoreError, match="allow_pickle"):
        read_maps(tmp_path, "x")


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 11))))
def test_masks_round_trip(tmp_path_factory, labels):
    folder = tmp_path_factory.mktemp("run")
    write_mask(folder, PseudoMask(id="s/a", labels=labels))
    assert (read_mask(folder, "s/a").labels == labels).all()


def test_confidence_lies_beside_the_mask(tmp_path):
    confidence = np.linspace(0, 1, 15, dtype=np.float16).reshape(3, 5)
    write_mask(tmp_path, PseudoMask(id="a", labels=np.zeros((3, 5), np.uint8), confidence=confidence))
    again = read_mask(tmp_path, "a").confidence
    assert np.abs(again.astype(float) - confidence).max() < 0.5 / 255 + 1e-3


def test_a_colour_picture_is_no_mask(tmp_path):
    from PIL import Image

    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(StoreError, match="label ids, not colours"):
        read_labels(tmp_path / "a.png")
    Image.fromarray(np.full((2, 3), 300, np.uint16)).save(tmp_path / "wide.png")
    with pytest.raises(StoreError, match="300"):
        read_labels(tmp_path / "wide.png")
    (tmp_path / "b.png").write_bytes(encode_mask(np.zeros((40, 50), np.uint8))[:60])
    with pytest.raises(StoreError, match="cannot read"):
        read_labels(tmp_path / "b.png")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "f"
    write_text(path, "old")
    with pytest.raises(ValueError), atomic_write(path) as stream:
        stream.write(b"new")
        raise ValueError
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_is_one_line_with_advice():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    from wsol.store.atomic import _advice

    with pytest.raises(OSError) as caught, open("/dev/full", "wb", buffering=0) as stream:
        stream.write(b"x")
    assert "disk is full" in _advice(caught.value)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "x")


def test_manifest_survives_a_torn_last_line(tmp_path):
    with Manifest(tmp_path) as manifest:
        manifest.done("a", bytes=3)
        manifest.failed("b", "bad image")
    with manifest.path.open("ab") as stream:
        stream.write(b'{"id": "c", "o')
    with Manifest(tmp_path) as manifest:
        manifest.done("d")
    rows = read_rows(tmp_path)
    assert set(rows) == {"a", "b", "d"}
    assert rows["b"]["error"] == "bad image"


def test_finished_needs_the_row_and_the_whole_file(tmp_path):
    for name in ("a", "b", "c"):
        write_maps(tmp_path, sample_maps(name))
    with Manifest(tmp_path, (0, 2)) as manifest:
        manifest.done("a")
        manifest.done("b")
    with Manifest(tmp_path, (1, 2)) as manifest:
        manifest.failed("a", "a later failure elsewhere does not undo the file")
        manifest.done("missing")
    map_path(tmp_path, "b").write_bytes(b"torn")
    assert finished(tmp_path, lambda name: read_maps(tmp_path, name)) == {"a"}


@dataclass(frozen=True)
class Config:
    method: str = "cam"
    seed: int = 3
    workers: int = neutral(default=1)


def test_run_folder_is_continued_only_with_the_same_options(tmp_path):
    folder = tmp_path / "run"
    with open_run(folder, verb="cam", config=Config()) as run:
        run.facts["n"] = 5
    info = read_info(folder)
    assert info.verb == "cam"
    assert info.seed == 3
    assert info.facts == {"n": 5}
    assert info.versions["numpy"] == np.__version__
    with open_run(folder, verb="cam", config=Config(workers=9)):
        pass
    with pytest.raises(StoreError, match=r"method was 'cam'.*--overwrite"):
        open_run(folder, verb="cam", config=Config(method="gradcam"))
    with pytest.raises(StoreError, match="holds a run of wsol cam"):
        open_run(folder, verb="refine", config=Config())


def test_a_run_reads_back_the_classes_that_it_wrote_however_many_and_long(tmp_path):
    classes = tuple(f"{at} {'synonym, ' * 100}" for at in range(800))
    spec = DatasetSpec(name="folder", classes=classes, root=tmp_path, split="train")
    with open_run(tmp_path / "run", verb="cam", config=Config(), dataset=spec):
        pass
    assert (tmp_path / "run/dataset.yaml").stat().st_size > 2**20
    assert read_dataset(tmp_path / "run")["classes"] == list(classes)


def test_only_what_decides_is_named_when_a_run_is_refused(tmp_path):
    with open_run(tmp_path / "run", verb="cam", config=Config()):
        pass
    with pytest.raises(StoreError, match=r"other options: seed was 3 \("):
        open_run(tmp_path / "run", verb="cam", config=Config(seed=4, workers=9))


def test_overwrite_never_clears_the_folder_that_the_run_is_made_from(tmp_path):
    folder = tmp_path / "maps"
    with open_run(folder, verb="cam", config=Config()):
        write_maps(folder, sample_maps("a"))
    with pytest.raises(StoreError, match="made from that folder"):
        open_run(
            folder, verb="refine", config=Config(), inputs={str(tmp_path / "x" / ".." / "maps"): ""}, overwrite=True
        )
    assert map_path(folder, "a").is_file()


def test_a_run_is_not_continued_from_other_inputs(tmp_path):
    with open_run(tmp_path / "run", verb="cam", config=Config(), inputs={"weights": "1"}):
        pass
    with open_run(tmp_path / "run", verb="cam", config=Config(), inputs={"weights": "1"}):
        pass
    with pytest.raises(StoreError, match="weights changed since"):
        open_run(tmp_path / "run", verb="cam", config=Config(), inputs={"weights": "2"})
    with open_run(tmp_path / "run", verb="cam", config=Config(), inputs={"weights": "2"}, overwrite=True):
        pass


def test_overwrite_removes_what_the_run_wrote_and_nothing_else(tmp_path):
    with open_run(tmp_path / "run", verb="cam", config=Config()), Manifest(tmp_path / "run") as manifest:
        write_maps(tmp_path / "run", sample_maps("a"))
        manifest.done("a")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with open_run(tmp_path / "run", verb="cam", config=Config(method="x"), overwrite=True):
        pass
    assert not read_rows(tmp_path / "run")
    assert not map_path(tmp_path / "run", "a").exists()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_folder_of_other_files_is_refused_even_with_overwrite(tmp_path):
    (tmp_path / "photo.jpg").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="holds no run"):
            open_run(tmp_path, verb="cam", config=Config(), overwrite=overwrite)
    assert (tmp_path / "photo.jpg").exists()


def test_a_run_that_failed_keeps_no_time(tmp_path):
    with pytest.raises(KeyError), open_run(tmp_path / "run", verb="cam", config=Config()):
        raise KeyError
    assert read_info(tmp_path / "run").seconds == 0


def test_file_hash_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_hash(tmp_path / "f").startswith("ba7816bf8f01cfea")


def test_kill_at_any_moment_leaves_whole_files(tmp_path):
    """A child writes without pause; it is killed; every file that exists reads whole."""
    program = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom wsol.schema import ScoreMaps\n"
        "from wsol.store.maps import write_maps\nfrom wsol.store.manifest import Manifest\n"
        "run = Path(sys.argv[1])\nprint('go', flush=True)\n"
        "with Manifest(run) as m:\n"
        "  for i in range(10**6):\n"
        "    v = np.full((3, 60, 80), (i % 7) / 7, np.float16)\n"
        "    write_maps(run, ScoreMaps(id=f'{i % 50}', values=v, class_ids=np.arange(3), image_size=(9, 9)))\n"
        "    m.done(f'{i % 50}')\n"
    )
    for wait in (0.02, 0.05, 0.11):
        child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
        child.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        rows = read_rows(tmp_path)
        assert rows
        assert finished(tmp_path, lambda name: read_maps(tmp_path, name)) == set(rows)
        assert mask_path(tmp_path, "x").name == "x.png"


def test_a_manifest_is_read_a_line_at_a_time(tmp_path):
    line = json.dumps({"id": "ID", "ok": True, "classes": list(range(300))})
    (tmp_path / "manifest-000-of-001.jsonl").write_text(
        "".join(line.replace("ID", f"{at}") + "\n" for at in range(5000))
    )
    tracemalloc.start()
    try:
        assert len(finished(tmp_path, lambda _: None)) == 5000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (tmp_path / "manifest-000-of-001.jsonl").stat().st_size / 4


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
def test_finished_ids_are_those_whose_row_is_ok(rows):
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(json.dumps({"id": name, "ok": ok}) + "\n" for name, ok in rows)
        (Path(folder) / "manifest-000-of-001.jsonl").write_text(text)
        expected = {name for name, row in read_rows(Path(folder)).items() if row["ok"]}
        assert finished(Path(folder), lambda _: None) == expected
