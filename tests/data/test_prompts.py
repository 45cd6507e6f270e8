"""Prompts come from the package, from a file or from the data set, in the order of the data set's classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsol.data.prompts import TEMPLATE, Prompts, load_prompts, names, write_prompts
from wsol.data.voc import CLASSES
from wsol.errors import ConfigError
from wsol.schema import DatasetSpec


def spec(*classes: str, name: str = "folder", prompts: tuple[str, ...] = ()) -> DatasetSpec:
    return DatasetSpec(name=name, classes=classes, root=Path(), split="train", prompts=prompts)


def test_the_package_holds_voc_and_coco() -> None:
    assert names() == ("coco", "voc")


def test_a_data_set_of_that_name_takes_the_list_by_itself() -> None:
    found = load_prompts(None, spec(*CLASSES, name="voc"))
    assert found.classes == CLASSES
    assert found.texts[CLASSES.index("bird")] == "bird avian"
    assert len(found.background) == 25
    assert found.templates == (TEMPLATE,)


def test_texts_follow_the_order_of_the_classes() -> None:
    found = load_prompts("voc", spec("tvmonitor", "bird"))
    assert found.texts == ("tvmonitor screen", "bird avian")


def test_other_data_sets_bring_their_own_texts() -> None:
    found = load_prompts(None, spec("Tree", "wren", prompts=("Tree", "wren, a bird")))
    assert found.texts == ("Tree", "wren, a bird")
    assert "tree" not in found.background
    assert "sky" in found.background


@pytest.mark.parametrize(
    "text",
    [
        "classes: {cat: cat, dog: [dog, puppy], 7: seven}\nbackground: [sky]\ntemplates: ['a {}']\n",
        "classes:\n  dog: dog,puppy\n  cat: cat\n  '7': seven\n  more: more\nbackground:\n- sky\ntemplates:\n- a {}\n",
    ],
)
def test_a_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    found = load_prompts(tmp_path / "own.yaml", spec("7", "dog", "cat"))
    assert found == Prompts(
        classes=("7", "dog", "cat"), texts=("seven", "dog,puppy", "cat"), background=("sky",), templates=("a {}",)
    )


def test_a_list_of_names_is_enough(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("classes: [cat, dog]\n")
    found = load_prompts(str(tmp_path / "own.yaml"), spec("dog", "cat"))
    assert found == Prompts(classes=("dog", "cat"), texts=("dog", "cat"))


def test_a_file_may_name_more_classes_than_a_recipe_has_room_for(tmp_path: Path) -> None:
    classes = tuple(f"{at} {'synonym, ' * 100}" for at in range(800))
    write_prompts(tmp_path / "p.yaml", load_prompts(None, spec(*classes)))
    assert (tmp_path / "p.yaml").stat().st_size > 2**20
    assert load_prompts(tmp_path / "p.yaml", spec(*classes)).texts == classes


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    prompts = Prompts(classes=("no", "ünï: #x"), texts=("no", "a, b"), background=("on",), templates=("{} and", "a {}"))
    write_prompts(tmp_path / "out" / "p.yaml", prompts)
    assert load_prompts(tmp_path / "out" / "p.yaml", spec(*prompts.classes)) == prompts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [cat]\n", "no text for class 'dog'"),
        ("classes: {cats: x, dog: y}\n", "'cat'.*did you mean 'cats'"),
        ("clases: [cat, dog]\n", "did you mean 'classes'"),
        ("background: [sky]\n", "'classes'"),
        ("classes: [cat, dog]\nbackground: sky\n", "'background' must be a list"),
        ("classes: {cat: '', dog: y}\n", "expected a text"),
        ("classes: {cat: x, dog: y, no: z}\n", "expected a text, got False"),
        ("classes: [cat, dog]\ntemplates: [a photo]\n", "must hold '{}' once"),
        ("classes: [cat, dog]\ntemplates: ['{} {}']\n", "must hold '{}' once"),
        ("- cat\n", "mapping"),
        ("classes: [cat\n", "not YAML"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_prompts(tmp_path / "own.yaml", spec("cat", "dog"))
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no prompts 'vocc'.*did you mean 'voc'"):
        load_prompts("vocc", spec("cat"))
    with pytest.raises(ConfigError, match="one text for each"):
        load_prompts(None, spec())
