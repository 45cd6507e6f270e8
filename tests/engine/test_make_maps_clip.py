"""CLIP in `wsol cam`: images at their own size, texts, rows instead of ends, and writing beside computing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image

import wsol.engine.map_writer as module
from wsol.cams import CAMS
from wsol.engine.make_maps import make_maps
from wsol.engine.options import CamConfig
from wsol.errors import ConfigError, WriteError, WsolError
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


@pytest.fixture(scope="module")
def clip_weights(tmp_path_factory):
    """A small model in OpenAI's naming."""
    vision, text = (
        {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
        {"width": 64, "heads": 1, "layers": 1},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = CLIP(24, vision, text, quick_gelu=True).state_dict()
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save({key: item for key, item in weights.items() if key != "attn_mask"}, path)
    return path


@pytest.fixture
def clip_config(photos, clip_weights, tmp_path, monkeypatch):
    """Options of a run with that model; text features are kept in a folder of the test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def make(out, **changes):
        options = {"model": "clip", "method": "gradcam", "resize": "native", "img_size": None}
        options |= {"data": "folder", "root": photos, "checkpoint": str(clip_weights), "batch_size": 4, "workers": 0}
        return CamConfig(**{**options, "out": tmp_path / out, "quiet": True, "device": "cpu", **changes})

    return make


def test_clip_makes_maps_of_images_at_their_own_size(clip_config, tmp_path):
    outcome = make_maps(clip_config("run"))
    assert (outcome.done, outcome.status) == (21, 0)
    for at, (height, width) in enumerate(SIZES):
        maps = read_maps(tmp_path / "run", f"{('cat', 'dog')[at % 2]}/{at:02d}.png")
        assert maps.values.shape == (1, -(-height // 16), -(-width // 16))
        assert maps.image_size == (height, width)
        assert maps.logits.shape == (2,)
    assert len(list((tmp_path / "torch").rglob("*.safetensors"))) == 2  # the classes and the background
    make_maps(clip_config("limited", img_size=64, scales=(1.0, 1.5), flip=True, classes="all"))
    assert read_maps(tmp_path / "limited", "cat/00.png").values.shape == (2, 4, 6)


def test_a_batch_of_one_grid_gives_what_its_images_give_alone(clip_config, tmp_path):
    make_maps(clip_config("many", batch_size=8))
    make_maps(clip_config("single", batch_size=1))
    for image_id in ("cat/00.png", "dog/01.png", "cat/06.png", "dog/13.png"):
        many, single = (read_maps(tmp_path / run, image_id) for run in ("many", "single"))
        np.testing.assert_allclose(many.values.astype(float), single.values.astype(float), atol=2e-3)
        np.testing.assert_allclose(many.logits, single.logits, atol=1e-4)


def test_texts_of_a_file_decide_the_logits(clip_config, tmp_path):
    (tmp_path / "own.yaml").write_text("classes: {cat: cat, dog: [dog, puppy]}\nbackground: [sky]\n")
    make_maps(clip_config("own", prompts=str(tmp_path / "own.yaml"), limit=1))
    make_maps(clip_config("plain", limit=1))
    own, plain = (read_maps(tmp_path / run, "cat/00.png").logits for run in ("own", "plain"))
    assert own[0] == pytest.approx(plain[0], abs=1e-4)
    assert abs(own[1] - plain[1]) > 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": "FILE"}, "no text for class 'dog'.*did you mean 'dogs'"),
        ({"prompts": "none.yaml"}, "no prompts 'none.yaml'"),
        ({"output_stride": 8}, "--output-stride"),
        ({"prompts": "voc", "model": None}, "--model clip:NAME"),
        ({"model": "clip:ViT-B-1"}, "did you mean 'ViT-B-1"),
        ({"method": "cam"}, "linear"),
    ],
)
def test_a_mistake_with_clip_is_one_line(clip_config, tmp_path, changes, message):
    (tmp_path / "own.yaml").write_text("classes: {dogs: dog, cat: cat}\n")
    if changes.get("prompts") == "FILE":
        changes = {"prompts": str(tmp_path / "own.yaml")}
    with pytest.raises(WsolError, match=message) as caught:
        make_maps(clip_config("run", **changes))
    assert "\n" not in str(caught.value)


def test_an_image_that_is_too_large_is_a_row(clip_config, tmp_path, monkeypatch):
    method = CAMS.get("gradcam")
    plain = method.maps

    def maps(self, classifier, images, class_ids):
        if images.shape[-1] == 48:  # the one of 97 x 33 pixels
            raise torch.OutOfMemoryError("no memory")
        return plain(self, classifier, images, class_ids)

    monkeypatch.setattr(method, "maps", maps)
    outcome = make_maps(clip_config("run"))
    assert set(outcome.failures) == {"dog/03.png", "cat/10.png", "dog/17.png"}
    assert "112 x 48 pixels" in outcome.failures["dog/03.png"]
    assert (outcome.done, outcome.status) == (18, 1)
    monkeypatch.undo()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert make_maps(clip_config("run")).done == 3


def test_files_and_rows_keep_the_order_of_the_images_and_a_row_follows_its_file(clip_config, tmp_path, monkeypatch):
    events = []
    write, done = module.write_maps, module.Manifest.done
    monkeypatch.setattr(module, "write_maps", lambda out, maps: (events.append(maps.id), write(out, maps))[1])
    monkeypatch.setattr(
        module.Manifest, "done", lambda self, at, **facts: (events.append(f"row {at}"), done(self, at, **facts))[1]
    )
    make_maps(clip_config("run", resize="squash", img_size=32))
    ids = [item for item in events if not item.startswith("row ")]
    assert ids == list(read_rows(tmp_path / "run"))
    assert events == [item for image_id in ids for item in (image_id, f"row {image_id}")]


def test_an_error_of_the_writer_ends_the_job(clip_config, tmp_path, monkeypatch):
    for failing in (1, 21):  # in the middle, and at the very last image
        count = iter(range(1, 99))

        def write(out, maps, count=count, failing=failing):
            if next(count) == failing:
                raise WriteError("cannot write")
            return 1

        monkeypatch.setattr(module, "write_maps", write)
        with pytest.raises(WriteError, match="cannot write"):
            make_maps(clip_config(f"run{failing}"))
        assert len(read_rows(tmp_path / f"run{failing}")) == failing - 1


@pytest.mark.parametrize("method", ["gradcam", "clip_es", "attention"])
def test_an_image_without_labels_has_no_maps_and_ends_nothing(clip_config, photos, tmp_path, method):
    lines = [
        f"{path.parent.name}/{path.name},{'cat;dog' if '02' in path.name else ''}" for path in photos.rglob("*.png")
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["id,labels", *sorted(lines)]) + "\n")
    options = {"data_options": {"labels": str(tmp_path / "labels.csv")}}
    assert make_maps(clip_config("run", method=method, **options)).status == 0
    assert read_maps(tmp_path / "run", "cat/02.png").values.shape == (2, 4, 4)
    assert read_maps(tmp_path / "run", "dog/03.png").values.shape[0] == 0
    assert len(read_rows(tmp_path / "run")) == 21


@pytest.mark.parametrize(("method", "default"), [("gradcam", "relu"), ("clip_es", "minmax")])
def test_a_method_says_how_its_maps_are_normalized(clip_config, tmp_path, method, default):
    found = {}
    for how in ("auto", "relu", "minmax"):
        make_maps(clip_config(how, method=method, limit=2, normalize=how))
        found[how] = read_maps(tmp_path / how, "cat/02.png").values
    assert not np.array_equal(found["relu"], found["minmax"])
    np.testing.assert_array_equal(found["auto"], found[default])


@pytest.mark.parametrize(
    ("method", "dtype"), [("gradcam", "bfloat16"), ("clip_es", "bfloat16"), ("clip_es", "float16")]
)
def test_mixed_precision_is_close(clip_config, tmp_path, method, dtype):
    make_maps(clip_config("exact", method=method, limit=4))
    make_maps(clip_config("mixed", method=method, limit=4, amp=True, amp_dtype=dtype))
    exact, mixed = (read_maps(tmp_path / run, "cat/00.png") for run in ("exact", "mixed"))
    np.testing.assert_allclose(mixed.values.astype(float), exact.values.astype(float), atol=0.2)
    assert np.corrcoef(mixed.values.ravel(), exact.values.ravel())[0, 1] > 0.98
    assert not np.array_equal(mixed.logits, exact.logits)


def test_float16_is_refused_where_gradients_would_underflow(clip_config):
    with pytest.raises(ConfigError, match="float16 gradients of 'gradcam' would underflow"):
        make_maps(clip_config("half", method="gradcam", amp=True, amp_dtype="float16"))
