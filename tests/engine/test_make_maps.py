from __future__ import annotations

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from wsol.engine import loaders, map_batches
from wsol.engine.make_maps import make_maps, plan_batches
from wsol.engine.options import CamConfig
from wsol.engine.sharding import resolve_shard
from wsol.errors import ConfigError, ModelError, StoreError, WsolError
from wsol.schema import Sample
from wsol.store.manifest import read_rows
from wsol.store.maps import read_maps

SIZES = [(61, 83), (83, 61), (50, 50), (97, 33), (61, 83), (40, 71), (61, 83)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of noise photos, non-square and odd."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for at, (height, width) in enumerate(SIZES * 3):
        folder = root / ("cat", "dog")[at % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{at:02d}.png")
    return root


def config(photos, trained, out, **changes):
    options = {"data": "folder", "root": photos, "checkpoint": str(trained), "img_size": 64, "resize": "keep"}
    return CamConfig(
        **{**options, "out": out, "batch_size": 4, "workers": 0, "quiet": True, "device": "cpu", **changes}
    )


def contents(run):
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in sorted((run / "maps").rglob("*.npz"))}


def test_maps_of_a_model_without_weights_say_so(tmp_path, caplog):
    (tmp_path / "photos" / "0").mkdir(parents=True)
    (tmp_path / "photos" / "classes.txt").write_text("".join(f"{at}\n" for at in range(1000)))
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "photos" / "0" / "a.png")
    options = {"checkpoint": None, "model": "test_resnet", "method": "layercam"}
    with caplog.at_level("INFO", "wsol"):
        make_maps(config(tmp_path / "photos", None, tmp_path / "run", **options))
    assert "random weights" in caplog.text


def test_an_image_whose_maps_cannot_be_stored_does_not_end_the_job(photos, checkpoint, tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "dog").mkdir()
    for name in ("cat/" + "x" * 248, "dog/y"):  # with .npz behind, no file system takes the first
        shutil.copy(photos / "cat" / "00.png", tmp_path / "photos" / f"{name}.png")
    outcome = make_maps(config(tmp_path / "photos", checkpoint, tmp_path / "run"))
    assert (outcome.done, list(outcome.failures)) == (1, ["cat/" + "x" * 248 + ".png"])
    assert "shorter name" in next(iter(outcome.failures.values()))


@pytest.mark.parametrize("reader", ["maps", "images"])
def test_reading_processes_get_no_copy_of_the_list_of_images(tmp_path, monkeypatch, reader):
    sent = []

    def loader(dataset, **_options):
        sent.append(len(pickle.dumps(dataset)))
        return []

    monkeypatch.setattr(map_batches, "DataLoader", loader)
    monkeypatch.setattr(loaders, "DataLoader", loader)
    facts = map_batches.InputFacts(32, "squash", 32, (0.0,) * 3, (1.0,) * 3, "bilinear")
    for count in (2, 2000):
        samples = [Sample(id=f"{at}.jpg", image=tmp_path / f"{at}.jpg") for at in range(count)]
        options = CamConfig(data="folder", model="test_resnet", out=tmp_path, workers=2)
        if reader == "maps":
            list(map_batches.read_batches([samples], options, facts, torch.device("cpu")))
        else:
            with pytest.raises(ValueError, match="zip"):  # the loader of this test gives nothing
                list(loaders.read_images(samples, workers=2, device=torch.device("cpu")))
    assert sent[0] == sent[1] < 2000


@pytest.mark.parametrize("resize", ["keep", "native"])
def test_a_photo_that_stands_upright_only_by_its_exif_shares_no_batch_with_those_that_lie(checkpoint, tmp_path, resize):
    pixels = np.random.default_rng(3).integers(0, 255, (64, 128, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "dog").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "cat" / "turned.png", exif=turned)
    Image.fromarray(pixels).save(tmp_path / "photos" / "dog" / "plain.png")
    make_maps(config(tmp_path / "photos", checkpoint, tmp_path / "run", resize=resize))
    upright, plain = (read_maps(tmp_path / "run", name) for name in ("cat/turned.png", "dog/plain.png"))
    assert (upright.image_size, plain.image_size) == ((128, 64), (64, 128))
    assert upright.values.shape[1] == 2 * upright.values.shape[2]
    assert plain.values.shape[2] == 2 * plain.values.shape[1]


def test_one_map_for_each_label_with_the_size_of_its_image(photos, checkpoint, tmp_path):
    outcome = make_maps(config(photos, checkpoint, tmp_path / "run"))
    assert (outcome.done, outcome.skipped, outcome.status) == (21, 0, 0)
    for at, (height, width) in enumerate(SIZES * 3):
        maps = read_maps(tmp_path / "run", f"{('cat', 'dog')[at % 2]}/{at:02d}.png")
        assert maps.class_ids.tolist() == [at % 2]
        assert maps.image_size == (height, width)
        assert maps.logits.shape == (2,)
        assert (maps.values.shape[1] > maps.values.shape[2]) == (height > width * 1.2)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["facts"]["done"] == 21
    assert info["config"]["method"] == "cam"


@pytest.mark.parametrize(("classes", "count"), [("labels", 1), ("top1", 1), ("top5", 2), ("all", 2)])
def test_which_classes(photos, checkpoint, tmp_path, classes, count):
    make_maps(config(photos, checkpoint, tmp_path / "run", classes=classes, limit=3))
    maps = read_maps(tmp_path / "run", "cat/00.png")
    assert len(maps.class_ids) == count
    if classes == "top1":
        assert maps.class_ids[0] == maps.logits.argmax()


def test_stored_at_image_size(photos, checkpoint, tmp_path):
    make_maps(config(photos, checkpoint, tmp_path / "grid", limit=2))
    make_maps(config(photos, checkpoint, tmp_path / "image", limit=2, store="image"))
    grid, full = (read_maps(tmp_path / name, "cat/00.png") for name in ("grid", "image"))
    assert full.values.shape == (1, 61, 83)
    assert np.abs(grid.at_image_size() - full.values).max() < 1e-3


def test_shards_of_any_number_give_the_same_bytes(photos, checkpoint, tmp_path):
    make_maps(config(photos, checkpoint, tmp_path / "one"))
    for index in range(3):
        make_maps(config(photos, checkpoint, tmp_path / "three", shard=f"{index}/3"))
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert len(list((tmp_path / "three").glob("manifest-*-of-003.jsonl"))) == 3
    again = make_maps(config(photos, checkpoint, tmp_path / "three"))
    assert (again.done, again.skipped) == (0, 21)


def test_readers_in_processes_give_the_same_bytes(photos, checkpoint, tmp_path):
    make_maps(config(photos, checkpoint, tmp_path / "zero"))
    make_maps(config(photos, checkpoint, tmp_path / "two", workers=2))
    assert contents(tmp_path / "zero") == contents(tmp_path / "two")


def test_only_what_is_missing_is_written_and_it_is_the_same(photos, checkpoint, tmp_path):
    run = tmp_path / "run"
    make_maps(config(photos, checkpoint, run))
    before = contents(run)
    stamps = {name: (run / name).stat().st_mtime_ns for name in before}
    (run / "maps/cat/00.png.npz").unlink()
    (run / "maps/dog/05.png.npz").write_bytes(b"torn")
    outcome = make_maps(config(photos, checkpoint, run))
    assert (outcome.done, outcome.skipped) == (2, 19)
    assert contents(run) == before
    rewritten = {name for name, stamp in stamps.items() if (run / name).stat().st_mtime_ns != stamp}
    assert rewritten == {"maps/cat/00.png.npz", "maps/dog/05.png.npz"}


def test_kill_and_run_again_equals_an_uninterrupted_run(photos, checkpoint, tmp_path):
    words = ["cam", "--data", "folder", "--root", str(photos), "--checkpoint", str(checkpoint), "--img-size", "64"]
    words += ["--batch-size", "2", "--workers", "0", "--resize", "keep", "--device", "cpu"]
    command = [sys.executable, "-m", "wsol", *words, "--out"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    child = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(read_rows(tmp_path / "killed")) < 4 and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = set(read_rows(tmp_path / "killed"))
    assert len(left) >= 4
    again = subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True, text=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert f"{len(left)} there already" in again.stderr


def test_other_options_are_refused_and_overwrite_replaces(photos, checkpoint, tmp_path):
    run = tmp_path / "run"
    make_maps(config(photos, checkpoint, run, limit=2))
    with pytest.raises(StoreError, match=r"normalize was 'auto'.*--overwrite"):
        make_maps(config(photos, checkpoint, run, limit=2, normalize="minmax"))
    assert make_maps(config(photos, checkpoint, run, limit=4)).skipped == 2
    assert make_maps(config(photos, checkpoint, run, limit=2, normalize="minmax", overwrite=True)).done == 2


@pytest.fixture
def bad_photos(tmp_path):
    """One of every kind of file that has ended somebody's job."""
    folder = tmp_path / "bad" / "cat"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 255, (45, 63, 3), np.uint8)
    Image.fromarray(noise).save(folder / "good.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "good.jpg").read_bytes()[:900])
    Image.fromarray(noise).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 65535, (45, 63), np.uint16)).save(folder / "deep.png")
    Image.fromarray(noise[..., 0]).save(folder / "grey.png")
    Image.fromarray(noise[:1, :1]).save(folder / "one.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (tmp_path / "bad" / "dog").mkdir()
    Image.fromarray(noise).save(tmp_path / "bad" / "dog" / "also.png")
    return tmp_path / "bad"


def test_a_bad_image_is_a_row_and_the_rest_goes_on(bad_photos, checkpoint, tmp_path, caplog):
    run = tmp_path / "run"
    outcome = make_maps(config(bad_photos, checkpoint, run))
    assert set(outcome.failures) == {"cat/truncated.jpg", "cat/empty.png", "cat/text.jpg"}
    assert outcome.status == 1
    assert outcome.done == 6
    rows = read_rows(run)
    for image_id, reason in outcome.failures.items():
        assert rows[image_id]["error"] == reason
        assert "\n" not in reason
        assert image_id.rpartition("/")[2] in reason
    for name in ("cmyk.jpg", "deep.png", "grey.png", "one.png"):
        assert np.isfinite(read_maps(run, f"cat/{name}").values).all()
    with pytest.raises(WsolError, match=r"truncated|empty|text"):
        make_maps(config(bad_photos, checkpoint, tmp_path / "fast", fail_fast=True))


def test_an_image_without_labels_has_no_maps_and_is_no_error(bad_photos, checkpoint, tmp_path):
    (tmp_path / "labels.csv").write_text("id,labels\ncat/good.jpg,cat;dog\ncat/grey.png,\n")
    options = {"data_options": {"labels": str(tmp_path / "labels.csv")}}
    outcome = make_maps(config(bad_photos, checkpoint, tmp_path / "run", **options))
    assert outcome.status == 0
    assert read_maps(tmp_path / "run", "cat/grey.png").values.shape[0] == 0
    assert read_maps(tmp_path / "run", "cat/good.jpg").class_ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gradcamm"}, "did you mean 'gradcam"),
        ({"data": "vock"}, "did you mean 'voc'"),
        ({"checkpoint": "no/such/file"}, "no/such/file"),
        ({"checkpoint": None}, "--model NAME"),
        ({"checkpoint": None, "model": "resnet5o"}, "did you mean"),
        ({"device": "gpu"}, "cpu, cuda"),
        ({"scales": ()}, "--scales"),
        ({"batch_size": 0}, "--batch-size"),
        ({"shard": "2/2"}, "--shard"),
        ({"options": {"alpha": 1}}, "alpha"),
        ({"split": "vall"}, "vall"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(photos, checkpoint, tmp_path, changes, message):
    with pytest.raises(WsolError, match=message) as caught:
        make_maps(config(photos, checkpoint, tmp_path / "run", **changes))
    assert "\n" not in str(caught.value)


def test_a_model_of_other_classes_is_refused(photos, tmp_path):
    with pytest.raises(ModelError, match=r"1000 classes .* has 2"):
        make_maps(config(photos, "", tmp_path / "run", model="test_resnet", checkpoint=None))


def test_a_folder_that_cannot_be_written_is_one_line(photos, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        make_maps(config(photos, checkpoint, tmp_path / "file" / "run"))


def test_a_full_disk_ends_the_job_with_one_line_and_it_can_be_continued(photos, checkpoint, tmp_path):
    # A limit on the size of files makes the kernel refuse a write in the middle, as a full disk does.
    words = ["cam", "--data", "folder", "--root", str(photos), "--checkpoint", str(checkpoint), "--img-size", "64"]
    words += ["--workers", "0", "--store", "image", "--device", "cpu", "--out", str(tmp_path / "run")]
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
    program = limit + "from wsol.cli.main import main; sys.exit(main(sys.argv[1:]))"
    answer = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert answer.returncode == 2, answer.stderr
    assert answer.stderr.strip().splitlines()[-1].startswith("wsol: ")
    assert "cannot write" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not [path for path in (tmp_path / "run").rglob("*.npz") if path.stat().st_size > 9000]
    again = subprocess.run([sys.executable, "-m", "wsol", *words], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


SHAPES = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=30)


@given(SHAPES, st.integers(1, 5), st.sampled_from(["squash", "keep", "native"]))
def test_a_plan_holds_every_image_once_in_batches_of_one_shape(sizes, batch_size, resize):
    from wsol.data.transforms import input_size

    def shape(size, scale):
        return input_size(size, img_size=64, resize=resize, stride=32)

    samples = [Sample(id=str(at), image=Path("x"), size=size) for at, size in enumerate(sizes)]
    plan = plan_batches(samples, shape, batch_size)
    assert sorted(int(sample.id) for batch in plan for sample in batch) == list(range(len(sizes)))
    for batch in plan:
        assert 1 <= len(batch) <= batch_size
        assert len({shape(sample.size, 1.0) for sample in batch}) == 1
    starts = [int(batch[0].id) for batch in plan]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/1", {}, (0, 1)),
        ("2/4", {"RANK": "1", "WORLD_SIZE": "2"}, (2, 4)),
        ("0/1", {"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ("0/1", {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8)),
    ],
)
def test_the_shard_comes_from_the_flag_or_the_launcher(text, environment, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_shard(text) == expected


@pytest.mark.parametrize("text", ["1", "1/1", "a/b", "-1/2", "0/0"])
def test_a_wrong_shard_is_refused(text):
    with pytest.raises(ConfigError, match="i/n"):
        resolve_shard(text)
