"""Transformers with a head over the patches or a class token a class: their logits, sizes, weights and files."""

from __future__ import annotations

import pytest
import timm
import torch

from wsol.errors import ModelError
from wsol.models.classifier import Classifier, load_classifier, save_classifier
from wsol.models.token_heads import ClassTokens, PatchHead

NAMES = ("tscam_small_patch16_224", "mctformer_v1_small_patch16_224", "mctformer_v2_small_patch16_224")
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2, "dynamic_img_size": True}
every_name = pytest.mark.parametrize("name", NAMES)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(name: str, num_classes: int = 5) -> PatchHead:
    torch.manual_seed(1)
    return timm.create_model(name, num_classes=num_classes, **SMALL).eval()


@every_name
@pytest.mark.parametrize("size", [(64, 64), (48, 80), (80, 16)])
def test_logits_are_means(name, size):
    module, images = build(name), noise(2, 3, *size)
    with torch.no_grad():
        tokens, logits = module.forward_features(images), module(images)
    rows, columns = size[0] // 16, size[1] // 16
    prefix = 1 if name.startswith("tscam") else 5
    assert tokens.shape == (2, prefix + rows * columns, 32)
    wanted = []
    if not name.startswith("tscam"):
        wanted.append(tokens[:, :5].sum(2) / 32)
    if "v1" not in name:
        grid = tokens[:, prefix:].mT.reshape(2, 32, rows, columns)
        scores = torch.nn.functional.conv2d(grid, module.head.weight, module.head.bias, padding=1)
        torch.testing.assert_close(module.patch_scores(tokens), scores)
        wanted.append(scores.mean((2, 3)))
    torch.testing.assert_close(logits, torch.stack(wanted).mean(0))
    assert logits.std(1).min() > 0


@pytest.mark.parametrize("name", NAMES[1:])
def test_each_class_has_a_token_of_its_own(name):
    module, images = build(name), noise(1, 3, 48, 80)
    with torch.no_grad():
        before = module.forward_features(images)
        module.class_tokens.weight[2] += 1
        moved = (module.forward_features(images) - before).abs().amax(2)[0]
    assert moved[2] > 5 * moved[[0, 1, 3, 4]].max()


def test_what_a_classifier_knows_about_them():
    shapes = {"tscam_small_patch16_224": (1, 0), NAMES[1]: (5, 5), NAMES[2]: (5, 5)}
    for name, (prefix, tokens) in shapes.items():
        known = Classifier(build(name), input_size=(64, 64))
        assert (known.prefix_tokens, known.class_tokens, known.num_classes) == (prefix, tokens, 5)
        assert known.class_token == (tokens > 0)
        assert known.output_tokens == (slice(0, 5) if tokens else slice(1, None))
        assert known.grid(48, 80) == (3, 5)
        assert known.layer == "blocks.1.norm1"
        assert not known.pools_linearly
        assert not known.distillation_token


@every_name
def test_without_classes_they_give_features(name):
    module = build(name, num_classes=0)
    assert module(noise(2, 3, 48, 80)).shape == (2, 32)
    assert Classifier(module, input_size=(64, 64)).num_classes == 0
    module.reset_classifier(3)
    assert module(noise(2, 3, 48, 80)).shape == (2, 3)


@every_name
def test_all_weights_learn(name):
    module = build(name).train()
    torch.nn.functional.multilabel_soft_margin_loss(module(noise(2, 3, 48, 80)), torch.eye(5)[:2]).backward()
    unused = {key for key, parameter in module.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert unused == set()
    assert {"pos_embed", *({"class_tokens.weight"} if "mct" in name else {"cls_token"})} <= module.no_weight_decay()


@every_name
def test_they_start_from_deit(name, tmp_path):
    deit = timm.create_model("deit_small_patch16_224", **SMALL)
    torch.save({"model": deit.state_dict()}, tmp_path / "deit.pth")
    overlay = {"file": str(tmp_path / "deit.pth")}
    module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, **SMALL).eval()
    images, seen = noise(1, 3, 48, 80), {}
    for at, model in enumerate((deit.eval(), module)):
        model.patch_embed.register_forward_hook(lambda m, a, out, at=at: seen.update({at: out}))
        model(images)
    torch.testing.assert_close(seen[0], seen[1])
    ours, theirs = module.state_dict(), deit.state_dict()
    same = {key for key, value in ours.items() if key in theirs and torch.equal(value, theirs[key])}
    fresh = {"pos_embed", "head.weight", "head.bias", "class_tokens.weight"} if "mct" in name else {"head.weight"}
    assert set(ours) - same <= {*fresh, "head.bias"}
    if "mct" in name:
        torch.testing.assert_close(ours["pos_embed"], theirs["pos_embed"][:, 1:])
        assert "norm.weight" not in ours
    assert isinstance(module, ClassTokens if "mct" in name else PatchHead)
    assert timm.get_pretrained_cfg(name).hf_hub_id == "timm/deit_small_patch16_224.fb_in1k"


@every_name
def test_deit_as_a_checkpoint_gives_all_but_the_head(name, tmp_path, monkeypatch):
    deit, plain = timm.create_model("deit_small_patch16_224", **SMALL), timm.create_model
    torch.save({"model": deit.state_dict()}, tmp_path / "deit.pth")
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: plain(*args, **{**options, **SMALL}))
    known = load_classifier(name, checkpoint=tmp_path / "deit.pth", num_classes=3)
    assert known.num_classes == 3
    torch.testing.assert_close(known.module.blocks[1].attn.qkv.weight, deit.blocks[1].attn.qkv.weight)
    torch.save(known.module.state_dict(), tmp_path / "own.pth")
    again = load_classifier(name, checkpoint=tmp_path / "own.pth")
    torch.testing.assert_close(again.module.state_dict(), known.module.state_dict())
    assert load_classifier(name, checkpoint=tmp_path / "deit.pth").num_classes == 0


@pytest.mark.slow
@every_name
def test_a_run_folder_brings_them_back(name, tmp_path):
    known = load_classifier(name, num_classes=3, img_size=64)
    save_classifier(known, tmp_path, classes=("a", "b", "c"), multi_label=True)
    again, images = load_classifier(checkpoint=tmp_path), noise(1, 3, 48, 80)
    assert (again.name, again.classes, again.num_classes) == (name, ("a", "b", "c"), 3)
    with torch.no_grad():
        torch.testing.assert_close(again.module(images), known.module(images))
    other = load_classifier(checkpoint=tmp_path, num_classes=7)
    assert other.num_classes == 7
    torch.testing.assert_close(other.module.blocks[3].mlp.fc1.weight, known.module.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize("name", ["tscam", "mctformer_v1", "mctformer_v2"])
@pytest.mark.parametrize("other", ["test_resnet", "test_convnext", "test_vit"])
def test_weights_of_another_network_are_refused(name, other, tmp_path):
    torch.save(timm.create_model(other, num_classes=5).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ModelError, match="the weights do not fit .* missing"):
        load_classifier(f"{name}_small_patch16_224", checkpoint=tmp_path / "other.pth")
