from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from wsol.cli.main import main
from wsol.data.images import read_image
from wsol.engine.demo_classes import ClassNames
from wsol.engine.demo_image import demo_image
from wsol.engine.demo_options import ImageDemoConfig
from wsol.errors import ConfigError, ModelError
from wsol.models.classifier import Classifier, load_classifier, save_classifier


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    classifier = load_classifier("test_resnet", num_classes=4, img_size=64)
    save_classifier(classifier, folder, classes=("tabby cat", "Siamese cat", "dog", "car"), multi_label=True)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("one.png", (61, 83)), ("two.jpg", (97, 45))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(root / name)
    return root


def options(photos, trained, out, *names, **changes):
    images = tuple(photos / name for name in names or ("one.png", "two.jpg"))
    given = {"image": images, "checkpoint": str(trained), "device": "cpu", "out": out}
    return ImageDemoConfig(**{**given, **changes})


def test_one_overlay_a_photo_class_and_method_and_a_grid(photos, checkpoint, tmp_path):
    shown = demo_image(
        options(photos, checkpoint, tmp_path, classes=("dog,car",), method=("gradcam", "layercam"), resize="keep")
    )
    names = sorted(path.name for path in shown.overlays)
    single = [f"{p}-{c}-{m}.png" for p in ("one", "two") for c in ("car", "dog") for m in ("gradcam", "layercam")]
    assert names == sorted([*single, "one-grid.png", "two-grid.png"])
    assert all(path.parent == tmp_path and path.is_file() for path in shown.overlays)
    assert read_image(tmp_path / "one-dog-gradcam.png").shape == (61, 83, 3)
    assert read_image(tmp_path / "two-dog-gradcam.png").shape == (97, 45, 3)
    page = shown.report.read_text()
    assert page.count("data:image/webp") == 2 * 2 * 3
    assert "one.png" in page
    assert "dog" in page


def test_without_classes_the_likeliest_and_one_method_needs_no_grid(photos, checkpoint, tmp_path):
    shown = demo_image(options(photos, checkpoint, tmp_path, "one.png"))
    assert len(shown.overlays) == 4  # the model has no more classes
    assert not (tmp_path / "one-grid.png").exists()


def test_an_overlay_is_the_map_of_the_class_that_was_asked_for(photos, checkpoint, tmp_path):
    from wsol import cams
    from wsol.data.transforms import to_input
    from wsol.ops.normalize import relu_max
    from wsol.report.overlays import heatmap
    from wsol.schema import ScoreMaps

    demo_image(options(photos, checkpoint, tmp_path, "one.png", classes=("2",), method=("cam",)))
    known, photo = load_classifier(checkpoint=checkpoint), read_image(photos / "one.png")
    inputs = to_input(photo, (64, 64), mean=known.mean, std=known.std, interpolation=known.interpolation)
    raw = cams.create("cam", known)(torch.from_numpy(inputs)[None], [[2]])
    maps = ScoreMaps(id="x", values=relu_max(raw.values[0].numpy()), class_ids=np.array([2]), image_size=(61, 83))
    expected = heatmap(photo, np.clip(maps.at_image_size()[0], 0, 1))
    np.testing.assert_array_equal(read_image(tmp_path / "one-dog-cam.png"), expected)


def test_a_bad_photo_is_a_line_and_the_rest_goes_on(photos, checkpoint, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no picture")
    words = ["demo", "--image", str(photos / "one.png"), str(tmp_path / "text.jpg"), "--checkpoint", str(checkpoint)]
    words += ["--classes", "dog", "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    out, complaint = capsys.readouterr()
    assert f"{tmp_path / 'out' / 'one-dog-gradcam.png'}\n" in out
    assert "report: " in out
    assert "text.jpg" in complaint
    assert main([*words[:2], str(tmp_path / "text.jpg"), *words[4:]]) == 2
    assert "no photo could be read" in capsys.readouterr().err


def test_photos_of_one_name_do_not_overwrite_each_other(photos, checkpoint, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "one.png").write_bytes((photos / "one.png").read_bytes())
    images = (photos / "one.png", other / "one.png")
    shown = demo_image(options(photos, checkpoint, tmp_path / "out", image=images, classes=("dog",)))
    assert len({path.name for path in shown.overlays}) == 2


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"classes": ("dgo",)}, ConfigError, "did you mean 'dog'"),
        ({"classes": ("ca",)}, ConfigError, "names with it: Siamese cat, car, tabby cat"),
        ({"classes": ("9",)}, ConfigError, "no class '9'"),
        ({"method": ("gradcamm",)}, ConfigError, "did you mean 'gradcam"),
        ({"method": ()}, ConfigError, "no method"),
        ({"image": ()}, ConfigError, "no photo"),
        ({"checkpoint": "no/such"}, ModelError, "no/such"),
        ({"model": "clip:ViT-B-16", "checkpoint": None}, ConfigError, "give --classes"),
    ],
)
def test_a_mistake_is_one_line(photos, checkpoint, tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message) as caught:
        demo_image(options(photos, checkpoint, tmp_path, "one.png", **changes))
    assert "\n" not in str(caught.value)


def names_of(count, classes=()):
    classifier = load_classifier("test_resnet", num_classes=count, img_size=64)
    return ClassNames.of(Classifier(classifier.module, input_size=(64, 64), classes=classes))


def test_a_word_may_be_the_end_of_several_names_and_the_likeliest_is_taken():
    names = names_of(4, ("tabby cat", "Siamese cat", "dog", "car"))
    assert names.find("cat") == (0, 1)
    assert names.find("siamese CAT") == (1,)
    assert names.find("3") == (3,)
    asked = [names.find("cat"), names.find("dog")]
    assert names.choose(torch.tensor([0.0, 2.0, 5.0, 9.0]), asked) == [1, 2]
    assert names.choose(torch.tensor([3.0, 2.0, 5.0, 9.0]), asked) == [0, 2]
    assert names.choose(torch.tensor([0.0, 2.0, 5.0, 9.0]), []) == [3, 2, 1, 0]
    assert names.title(0, torch.zeros(4), "cat") == "cat: tabby cat (25 %)"
    assert names.title(2, torch.zeros(4), "dog") == "dog (25 %)"


def test_imagenet_classes_are_known_by_all_their_names():
    names = names_of(1000)
    assert names.find("tabby") == names.find("Tabby Cat") == (281,)
    assert {281, 282, 283, 284, 285} <= set(names.find("cat"))
    assert names.title(281, torch.zeros(1000), "") == "tabby (0 %)"
    assert names.find("crane (n02012849)") == (134,)
    assert len(names.find("crane")) == 2
    with pytest.raises(ConfigError, match="did you mean 'tabby'"):
        names.find("tabyb")


def test_a_model_without_names_or_without_a_head():
    assert names_of(3).find("class 2") == (2,)
    assert names_of(0).choose(torch.zeros(0), []) == [0]
    assert names_of(0).title(0, torch.zeros(0), "") == "all classes"


def test_the_packaged_model_finds_the_cat(lite0_weights, tmp_path):
    from wsol.engine.demo_photos import packaged_photos

    cat = next(path for path in packaged_photos() if path.stem == "chelsea")
    shown = demo_image(ImageDemoConfig(image=(cat,), classes=("cat",), device="cpu", out=tmp_path))
    assert [path.name for path in shown.overlays] == ["chelsea-cat_egyptian_cat-gradcam.png"]


def test_any_words_for_a_model_that_reads_text(photos, tmp_path, monkeypatch):
    from open_clip.model import CLIP

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))  # where text features are kept
    vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}
    text = {"width": 64, "heads": 1, "layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = CLIP(24, vision, text, quick_gelu=True).state_dict()
    torch.save({key: item for key, item in weights.items() if key != "attn_mask"}, tmp_path / "tiny.pt")
    given = {"model": "clip", "classes": ("red kite,bow tie",), "resize": "native", "method": ("gradcam", "clip_es")}
    shown = demo_image(options(photos, tmp_path / "tiny.pt", tmp_path / "out", "one.png", **given))
    names = [f"one-{text}-{method}.png" for text in ("red_kite", "bow_tie") for method in ("gradcam", "clip_es")]
    assert [path.name for path in shown.overlays] == [*names, "one-grid.png"]
