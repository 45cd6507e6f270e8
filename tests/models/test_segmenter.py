"""Segmentation networks: every architecture with timm encoders, saved, loaded, started from classifiers."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from wsol.errors import ModelError
from wsol.models.affinity import create_affinity, save_affinity
from wsol.models.classifier import Classifier, load_classifier, save_classifier
from wsol.models.segmenter import create_segmenter, decode, encode, load_segmenter, save_segmenter
from wsol.models.smp_segmenter import architectures

CLASSES = ("cat", "dog")


def make(arch="unet", encoder="tu-test_resnet", **options):
    torch.manual_seed(0)
    return create_segmenter(arch, encoder, classes=CLASSES, img_size=64, **options)


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("unet", "tu-test_resnet"),
        ("fpn", "tu-test_efficientnet"),
        ("deeplabv3plus", "tu-test_efficientnet"),
        ("pan", "tu-test_resnet"),
        ("linknet", "resnet18"),
        ("segformer", "tu-test_convnext"),
        ("dpt", "tu-vit_tiny_patch16_224"),  # whose position embedding is for one size
    ],
)
def test_logits_have_the_size_of_the_input(arch, encoder):
    segmenter = make(arch, encoder)
    segmenter.module.eval()
    height, width = 2 * segmenter.stride, 3 * segmenter.stride
    with torch.no_grad():
        assert segmenter.module(torch.zeros(1, 3, height, width)).shape == (1, 3, height, width)


@pytest.mark.parametrize("arch", sorted({*architectures(), "segmenter"} - {"dpt"}))  # dpt decodes tokens, too
def test_encoder_and_decoder_one_after_the_other_are_the_network(arch):
    segmenter = make(arch, "test_vit" if arch == "segmenter" else "resnet18")
    module = segmenter.module.eval()
    size = (segmenter.stride * 2, segmenter.stride * 3)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        assert torch.equal(decode(module, encode(module, images), size), module(images))


def test_saved_and_loaded_it_says_the_same(tmp_path):
    segmenter = make("unet", "tu-test_efficientnet")
    segmenter.module.eval()
    save_segmenter(segmenter, tmp_path)
    again = load_segmenter(tmp_path)
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(segmenter.module(x), again.module(x))
    assert again.facts == segmenter.facts
    assert again.facts.classes == CLASSES
    assert not again.module.training


def test_normalization_is_that_of_the_encoder():
    assert make().facts.mean == timm.create_model("test_resnet").pretrained_cfg["mean"]
    assert make(encoder="resnet18").facts.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_the_encoder_starts_from_a_classifier(tmp_path, name):
    torch.manual_seed(7)
    module = timm.create_model(name, num_classes=5)
    save_classifier(Classifier(module, name=name), tmp_path)
    arch = "segformer" if "convnext" in name else "unet"
    plain, started = make(arch, f"tu-{name}"), make(arch, f"tu-{name}", checkpoint=str(tmp_path))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        own = started.module.eval().encoder(x)[-1]
        expected = timm.create_model(name, features_only=True)
        expected.load_state_dict(
            {key.removeprefix("model."): value for key, value in started.module.encoder.state_dict().items()}
        )
        deepest = module.eval().forward_intermediates(x, intermediates_only=True)[-1]
        torch.testing.assert_close(own, deepest)
        assert not torch.equal(plain.module.eval().encoder(x)[-1], own)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    save_classifier(Classifier(timm.create_model("test_vit", num_classes=5), name="test_vit"), tmp_path)
    with pytest.raises(ModelError, match="tensors of encoder 'tu-test_resnet'"):
        make(checkpoint=str(tmp_path))


@pytest.mark.parametrize("arch", ["unet", "segmenter"])
def test_a_run_of_another_kind_is_refused(tmp_path, arch):
    with torch.random.fork_rng():
        save_affinity(create_affinity("irn", "test_resnet", img_size=64), tmp_path)
    with pytest.raises(ModelError, match="a network of kind 'affinity', no classifier"):
        make(arch, None, checkpoint=str(tmp_path))
    with pytest.raises(ModelError, match="a network of kind 'affinity', no classifier"):
        load_classifier(checkpoint=tmp_path)


def test_a_card_without_its_fields_is_refused(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"kind": "segmenter"}))
    with pytest.raises(ModelError, match="cannot read the network: 'classes'"):
        make("unet", None, checkpoint=str(tmp_path))


def test_a_run_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_classifier(Classifier(timm.create_model("test_resnet", num_classes=5), name="test_resnet"), tmp_path / "run")
    first = make("unet", None, checkpoint="~/run")
    assert first.facts.encoder == "tu-test_resnet"
    save_segmenter(first, tmp_path / "second")
    again = make("unet", None, checkpoint="~/second").module.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in first.module.state_dict().items())


@pytest.mark.parametrize(
    ("arch", "encoder", "message"),
    [
        ("unett", "tu-test_resnet", "did you mean 'unet'"),
        ("unet", "tu-resnet5O", "did you mean 'resnet50"),
        ("unet", "resnet19", "did you mean 'resnet1"),
        ("unet", "tu-test_vit", "cannot make 'unet' with encoder 'tu-test_vit'"),
    ],
)
def test_mistakes_are_named(arch, encoder, message):
    with pytest.raises(ModelError, match=message):
        make(arch, encoder)


def test_weights_that_cannot_be_fetched(monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", no_network)
    with pytest.raises(ModelError, match="no route to host.*hub must be reachable"):
        make(encoder="resnet18", encoder_weights="imagenet")


def test_folders_that_hold_no_network(tmp_path):
    with pytest.raises(ModelError, match="no segmentation network"):
        load_segmenter(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"name": "resnet18"}))
    with pytest.raises(ModelError, match="not a segmentation network"):
        load_segmenter(tmp_path)
    with pytest.raises(ModelError, match="no segmentation network here"):
        load_segmenter(tmp_path / "model.json")


@pytest.mark.parametrize(("arch", "encoder"), [("unet", "tu-test_resnet"), ("segmenter", "test_vit")])
def test_loading_draws_nothing_from_torchs_generator(tmp_path, arch, encoder):
    save_segmenter(make(arch, encoder), tmp_path)
    before = torch.get_rng_state()
    load_segmenter(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
