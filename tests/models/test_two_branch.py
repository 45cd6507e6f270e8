"""Classifier and segmentation network on one transformer: its maps are GETAM's, and nothing of them leaks."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from wsol import cams
from wsol.errors import ModelError
from wsol.models.segmenter import create_segmenter
from wsol.models.two_branch import add_classifier

CLASSES = ("a", "b", "c")
SIZE = (64, 96)
IDS = [[0, 2], [1]]


@pytest.fixture(scope="module", params=["dpt", "segmenter"])
def branches(request):
    torch.manual_seed(0)
    return add_classifier(create_segmenter(request.param, "tu-test_vit", classes=CLASSES, img_size=64)).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def brute_force(branches, image, class_id, start=3):
    """The map of one class of one image: one backward pass through the whole network, as the published code does."""
    blocks, kept, undo = branches.transformer.blocks[start:], [], []
    for block in blocks:
        block.attn.fused_attn = False

        def keep(_, args):
            args[0].retain_grad()
            kept.append(args[0])

        undo.append(block.attn.attn_drop.register_forward_pre_hook(keep))
    branches.classify(image[None])[0, class_id].backward()
    total = torch.zeros(kept[0].shape[-2:])
    for weights in kept:
        total += (weights.grad * weights)[0].relu().mean(0) * weights.grad[0].relu().mean(0)
    for block, handle in zip(blocks, undo, strict=True):
        block.attn.fused_attn = True
        handle.remove()
    branches.zero_grad()
    return total[0, 1:].reshape(SIZE[0] // 16, SIZE[1] // 16).detach()


def test_maps_are_those_of_a_backward_pass_each(branches, images):
    raw = cams.create("getam", branches.classifier(img_size=64))(images, IDS)
    assert torch.allclose(raw.logits, branches.classify(images), atol=1e-6)
    for image, row, maps in zip(images, IDS, raw.values, strict=True):
        for class_id, found in zip(row, maps, strict=True):
            expected = brute_force(branches, image, class_id)
            assert expected.max() > 0
            torch.testing.assert_close(found / expected.max(), expected / expected.max(), rtol=1e-4, atol=1e-5)


def test_the_map_pass_leaves_no_trace(branches, images):
    method = cams.create("getam", branches.classifier(img_size=64))
    branches.train()
    branches.transformer.blocks[0].eval()
    modes = [module.training for module in branches.modules()]
    branches.head.weight.grad = marked = torch.ones_like(branches.head.weight)
    method(images, IDS)
    assert [module.training for module in branches.modules()] == modes
    assert branches.head.weight.grad is marked
    assert (marked == 1).all()
    assert all(item.grad is None for name, item in branches.named_parameters() if name != "head.weight")
    assert all(item.requires_grad for item in branches.parameters())
    branches.zero_grad()
    branches.eval()


def test_one_pass_gives_what_each_branch_gives(branches, images):
    with torch.no_grad():
        scores, logits = branches(images)
        assert scores.shape == (2, 3)
        assert logits.shape == (2, 4, *SIZE)
        torch.testing.assert_close(scores, branches.classify(images))
        torch.testing.assert_close(logits, branches.segmenter(images))


def test_no_weight_has_two_names(branches):
    state = branches.state_dict()
    assert len({item.data_ptr() for item in state.values() if item.numel()}) == len(state)
    assert len(state) == len(branches.segmenter.state_dict()) + 2


def test_dpt_classifies_what_its_decoder_halves(images):
    network = create_segmenter("dpt", "tu-test_vit", classes=CLASSES, img_size=64).module.eval()
    both, seen = add_classifier(create_segmenter("dpt", "tu-test_vit", classes=CLASSES, img_size=64)).eval(), []
    both.segmenter.load_state_dict(network.state_dict())
    network.decoder.reassemble_blocks[-1].upsample.register_forward_hook(lambda *args: seen.append(args[2]))
    with torch.no_grad():
        network(images)
        assert seen[0].shape[2:] == (SIZE[0] // 32, SIZE[1] // 32)
        torch.testing.assert_close(both.classify(images), both.head(seen[0].mean((2, 3))))


def test_segmenter_classifies_as_timm_does():
    torch.manual_seed(0)
    plain = timm.create_model("test_vit", num_classes=3).eval()
    both = add_classifier(create_segmenter("segmenter", "test_vit", classes=CLASSES, img_size=160)).eval()
    both.transformer.load_state_dict({name: x for name, x in plain.state_dict().items() if "head." not in name})
    both.head.load_state_dict(plain.head.state_dict())
    images = torch.randn(1, 3, 160, 160)
    maps = [cams.create("getam", model)(images, [[1]]) for model in (plain, both.classifier(img_size=160))]
    torch.testing.assert_close(maps[0].logits, maps[1].logits)
    torch.testing.assert_close(maps[0].values, maps[1].values, rtol=1e-4, atol=1e-9)


def test_other_networks_are_refused():
    segmenter = create_segmenter("fpn", "tu-test_resnet", classes=CLASSES, img_size=64)
    assert isinstance(segmenter.module, nn.Module)
    with pytest.raises(ModelError, match="plain vision transformer"):
        add_classifier(segmenter)
