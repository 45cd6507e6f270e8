"""Text features follow the formula, are kept by content, and are made again when the content differs."""

from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch.nn import functional as F

from wsol.models.clip_text import TextTower

TEMPLATES = ("a photo of a {}.", "the {} in the snow")


@pytest.fixture
def tower():
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(24, vision, {"width": 64, "heads": 1, "layers": 1}, quick_gelu=True)
    return TextTower(model.eval(), SimpleTokenizer())


def files(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_features_are_the_normalized_mean_of_normalized_templates(tower):
    texts = ("dog", "tv screen,monitor", "ice cream")
    found = tower.class_features(texts, templates=TEMPLATES)
    for text, feature in zip(texts, found, strict=True):
        rows = [tower.encode([template.replace("{}", text)])[0] for template in TEMPLATES]
        mean = sum(F.normalize(row, dim=0) for row in rows) / 2
        assert torch.allclose(feature, mean / mean.norm(), atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert not found.is_inference()
    assert not found.requires_grad


def test_many_texts_are_encoded_in_parts(tower):
    texts = [f"thing {number}" for number in range(70)]
    assert torch.allclose(tower.encode(texts)[65:], tower.encode(texts[65:]), atol=1e-5)


def test_a_word_with_braces_is_only_a_word(tower):
    assert tower.class_features(("{0} {x}",), templates=("a {}",)).shape == (1, 24)


def test_no_texts_give_no_features(tower, tmp_path):
    assert tower.class_features((), templates=TEMPLATES, cache=tmp_path).shape == (0, 24)
    assert not files(tmp_path)


def test_features_are_kept_and_read_again(tower, tmp_path, monkeypatch):
    first = tower.class_features(("dog", "cat"), templates=TEMPLATES, cache=tmp_path / "new")
    assert len(files(tmp_path / "new")) == 1
    monkeypatch.setattr(TextTower, "encode", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(tower.class_features(("dog", "cat"), templates=TEMPLATES, cache=tmp_path / "new"), first)


def test_other_texts_templates_or_weights_are_other_files(tower, tmp_path):
    for texts, templates in [
        (("dog", "cat"), TEMPLATES),
        (("cat", "dog"), TEMPLATES),
        (("dog", "cat"), TEMPLATES[:1]),
        (("a photo of a dog.", "the dog in the snow", "a photo of a cat.", "the cat in the snow"), ("{}",)),
    ]:
        tower.class_features(texts, templates=templates, cache=tmp_path)
    assert len(files(tmp_path)) == 4
    other = TextTower(tower.module, tower.tokenize)
    with torch.no_grad():
        tower.module.ln_final.bias[3] += 1e-3
    changed = other.class_features(("dog", "cat"), templates=TEMPLATES, cache=tmp_path)
    assert len(files(tmp_path)) == 5
    assert torch.allclose(changed, other.class_features(("dog", "cat"), templates=TEMPLATES), atol=1e-6)
    with torch.no_grad():
        tower.module.visual.proj += 1
    TextTower(tower.module, tower.tokenize).class_features(("dog", "cat"), templates=TEMPLATES, cache=tmp_path)
    assert len(files(tmp_path)) == 5


def test_a_torn_file_is_made_again_and_a_folder_that_cannot_be_written_does_no_harm(tower, tmp_path):
    first = tower.class_features(("dog",), templates=TEMPLATES, cache=tmp_path)
    (name,) = files(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:40])
    assert torch.equal(tower.class_features(("dog",), templates=TEMPLATES, cache=tmp_path), first)
    assert (tmp_path / name).read_bytes() == whole
    (tmp_path / "file").write_text("")
    assert torch.equal(tower.class_features(("dog",), templates=TEMPLATES, cache=tmp_path / "file"), first)
