"""Segmenter on timm transformers: sizes, positions, class attention, weights of classifiers; DeepLabV2 beside it."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay

from wsol.errors import ModelError
from wsol.models.classifier import Classifier, save_classifier
from wsol.models.segmenter import create_segmenter, decode, encode, load_segmenter, save_segmenter

CLASSES = ("cat", "dog")


def make(encoder="test_vit", **options):
    torch.manual_seed(0)
    return create_segmenter("segmenter", encoder, classes=CLASSES, img_size=64, **options)


@pytest.mark.parametrize("encoder", ["test_vit", "test_vit2", "test_vit3", "test_vit4", "tu-test_vit"])
@pytest.mark.parametrize("decoder", ["mask", "linear"])
@torch.no_grad()
def test_any_size_and_any_position_embedding(encoder, decoder):
    module = make(encoder, decoder=decoder).module.eval()
    for size in ((64, 96), (50, 71), (17, 160)):
        images = torch.randn(2, 3, *size)
        logits = module(images)
        assert logits.shape == (2, 3, *size)
        assert torch.isfinite(logits).all()
        torch.testing.assert_close(decode(module, encode(module, images), size), logits)


@torch.no_grad()
def test_at_the_trained_grid_the_tokens_are_those_of_timm():
    module = make().module.eval()
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(module.tokens(images), module.encoder.forward_features(images))


@torch.no_grad()
def test_distilled_transformers_have_two_tokens_before_the_patches():
    encoder = timm.create_model(
        "deit_tiny_distilled_patch16_224", embed_dim=48, depth=2, num_heads=3, dynamic_img_size=True
    )
    from wsol.models.vit_segmenter import ViTSegmenter

    module = ViTSegmenter(Classifier(encoder, input_size=(224, 224)), 3).eval()
    assert module.prefix == 2
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(module.tokens(images), encoder.forward_features(images))
    assert module(torch.randn(1, 3, 40, 60)).shape == (1, 3, 40, 60)


@torch.no_grad()
def test_patches_are_where_they_belong():
    module = make(decoder="linear").module.eval()
    images = torch.zeros(1, 3, 64, 96)
    images[:, :, 16:32, 48:64] = 3.0
    (grid,), (empty,) = module.encode(images), module.encode(torch.zeros_like(images))
    changed = (grid - empty).norm(dim=1)[0]
    assert divmod(int(changed.argmax()), 6) == (1, 3)


@torch.no_grad()
def test_class_attention_is_what_the_class_tokens_attend_to():
    module = make().module.eval()
    images = torch.randn(2, 3, 50, 70)
    maps = module.class_attention(images)
    assert maps.shape == (2, 3, 4, 5)
    assert (maps > 0).all()
    assert (maps.sum((2, 3)) < 1).all()  # the rest is for the classes themselves
    assert not torch.equal(maps, module.class_attention(images, block=0))
    torch.testing.assert_close(maps, module.class_attention(images, block=1))
    decoder, (grid,) = module.decoder, module.encode(images)
    x = torch.cat([decoder.proj_dec(grid.flatten(2).transpose(1, 2)), decoder.cls_emb.expand(2, -1, -1)], dim=1)
    x = decoder.blocks[1].norm1(decoder.blocks[0](x))
    attention = decoder.blocks[1].attn
    q, k, _ = attention.qkv(x).reshape(2, 23, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    expected = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1).mean(1)[:, 20:, :20]
    torch.testing.assert_close(maps, expected.reshape(2, 3, 4, 5))
    with pytest.raises(ModelError, match="no class attention"):
        make(decoder="linear").module.class_attention(images)


def test_weights_of_a_classifier_are_taken_over_whole(tmp_path):
    torch.manual_seed(7)
    classifier = timm.create_model("test_vit", num_classes=5)
    save_classifier(Classifier(classifier, name="test_vit"), tmp_path)
    started = create_segmenter("segmenter", classes=CLASSES, img_size=64, checkpoint=str(tmp_path))
    assert started.facts.encoder == "test_vit"
    own = started.module.encoder.state_dict()
    given = {name: value for name, value in classifier.state_dict().items() if not name.startswith("head.")}
    assert own.keys() == given.keys()
    assert all(torch.equal(own[name], given[name]) for name in own)
    file = tmp_path / "model.safetensors"
    again = create_segmenter("segmenter", "test_vit", classes=CLASSES, img_size=64, checkpoint=str(file))
    assert torch.equal(again.module.encoder.pos_embed, classifier.pos_embed)


def test_the_default_encoder_is_the_classifier_of_the_run(tmp_path):
    save_classifier(Classifier(timm.create_model("test_resnet", num_classes=5), name="test_resnet"), tmp_path)
    found = create_segmenter("fpn", classes=CLASSES, img_size=64, checkpoint=str(tmp_path))
    assert found.facts.encoder == "tu-test_resnet"


@pytest.mark.parametrize("arch", ["segmenter", "fpn"])
def test_a_whole_network_is_continued(tmp_path, arch):
    encoder = "test_vit" if arch == "segmenter" else "tu-test_resnet"
    torch.manual_seed(3)
    first = create_segmenter(arch, encoder, classes=CLASSES, img_size=64)
    save_segmenter(first, tmp_path)
    torch.manual_seed(4)
    again = create_segmenter(arch, classes=CLASSES, img_size=96, checkpoint=str(tmp_path))
    assert again.facts.img_size == 96
    one, two = first.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(ModelError, match="for 2 classes"):
        create_segmenter(arch, classes=("cat", "cow"), img_size=64, checkpoint=str(tmp_path))


@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_saved_and_loaded_it_says_the_same(tmp_path, decoder):
    segmenter = make(decoder=decoder, drop_path=0.1)
    segmenter.module.eval()
    save_segmenter(segmenter, tmp_path)
    again, x = load_segmenter(tmp_path), torch.randn(1, 3, 50, 70)
    assert again.facts == segmenter.facts
    with torch.no_grad():
        assert torch.equal(segmenter.module(x), again.module(x))


def test_stochastic_depth_grows_and_spares_evaluation():
    module = make(drop_path=0.3).module
    rates = [block.drop_path1.drop_prob for block in module.encoder.blocks]
    assert all(isinstance(block.drop_path2, DropPath) for block in module.encoder.blocks)
    assert rates[0] == 0.0
    assert rates[-1] == pytest.approx(0.3)
    assert rates == sorted(rates)


def test_tokens_and_embeddings_decay_not():
    module = make().module
    names = module.no_weight_decay()
    assert {"encoder.pos_embed", "encoder.cls_token", "decoder.cls_emb"} <= names
    assert not any(name.endswith("weight") for name in names)


def test_learning_rates_can_decay_with_depth():
    module = make().module
    groups = param_groups_layer_decay(module, layer_decay=0.5)
    scale = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    assert len(scale) == len(list(module.parameters()))
    encoder = module.encoder
    found = [scale[id(item)] for item in (encoder.pos_embed, *(block.norm1.weight for block in encoder.blocks))]
    assert found == [0.5 ** (len(found) - at) for at in range(len(found))]
    assert scale[id(encoder.norm.weight)] == 0.5
    assert scale[id(module.decoder.cls_emb)] == 1.0


def test_the_logit_of_a_mask_transformer_is_a_cosine_normalised_over_classes():
    decoder = make().module.decoder.eval()
    tokens = torch.randn(2, 20, decoder.proj_dec.in_features)
    with torch.no_grad():
        logits = decoder(tokens)
        doubled = {"proj_patch": decoder.proj_patch * 2, "proj_classes": decoder.proj_classes * 3}
        scaled = torch.func.functional_call(decoder, doubled, (tokens,))
    torch.testing.assert_close(logits, scaled)
    torch.testing.assert_close(logits.mean(-1), torch.zeros(2, 20), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [("test_resnet", "needs patch tokens"), ("test_vitt", "did you mean 'test_vit"), ("volo_d1_224", "one size only")],
)
def test_encoders_that_do_not_do(encoder, message):
    with pytest.raises(ModelError, match=message):
        make(encoder)


@torch.no_grad()
def test_deeplabv2_sums_four_dilated_classifiers_at_stride_8(tmp_path):
    torch.manual_seed(0)
    segmenter = create_segmenter("deeplabv2", "tu-test_resnet", classes=CLASSES, img_size=64)
    module = segmenter.module.eval()
    images = torch.randn(1, 3, 64, 96)
    features = module.encoder(images)[-1]
    assert features.shape[2:] == (8, 12)
    head = module.segmentation_head
    expected = sum(
        F.conv2d(features, stage.weight, stage.bias, padding=rate, dilation=rate)
        for stage, rate in zip(head.stages, (6, 12, 18, 24), strict=True)
    )
    expected = F.interpolate(expected, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(images), expected)
    save_segmenter(segmenter, tmp_path)
    assert torch.equal(load_segmenter(tmp_path).module(images), module(images))
