from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsol.config import config_hash, dump_yaml, from_dict, load_yaml, neutral, to_dict
from wsol.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    alpha: float = 1.0


@dataclass(frozen=True)
class Options:
    data: str
    root: Path | None = None
    scales: tuple[float, ...] = (1.0,)
    size: tuple[int, int] = (3, 5)
    mode: Literal["keep", "squash"] = "keep"
    flip: bool = False
    lr: float = 0.1
    epochs: int = 2
    extra: dict = field(default_factory=dict)
    inner: Inner = Inner()
    workers: int = neutral(default=2)


TEXT = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]))
OPTIONS = st.builds(
    Options,
    data=TEXT,
    root=st.none() | st.sampled_from([Path("a/b"), Path("/c d")]),
    scales=st.lists(st.floats(0.1, 4), max_size=3).map(tuple),
    size=st.tuples(st.integers(), st.integers()),
    mode=st.sampled_from(["keep", "squash"]),
    flip=st.booleans(),
    lr=st.floats(allow_nan=False, allow_infinity=False),
    epochs=st.integers(-5, 5),
    extra=st.dictionaries(TEXT, st.integers() | TEXT | st.booleans()),
    inner=st.builds(Inner, alpha=st.floats(0, 1)),
    workers=st.integers(0, 9),
)


@given(OPTIONS)
def test_yaml_round_trip(tmp_path_factory, options):
    path = tmp_path_factory.mktemp("config") / "options.yaml"
    path.write_text(dump_yaml(options), encoding="utf-8")
    again = from_dict(Options, load_yaml(path))
    assert again == options
    assert config_hash(again) == config_hash(options)


@given(OPTIONS, st.integers(10, 20))
def test_hash_ignores_neutral_fields_and_nothing_else(options, workers):
    plain = to_dict(options)
    assert config_hash(from_dict(Options, {**plain, "workers": workers})) == config_hash(options)
    changed = {
        "data": options.data + "x",
        "lr": 2.0 if options.lr == 1.0 else 1.0,
        "flip": not options.flip,
        "inner": {"alpha": 2.0},
    }
    for name, value in changed.items():
        assert config_hash(from_dict(Options, {**plain, name: value})) != config_hash(options), name


def test_hash_is_stable_across_processes_and_versions():
    assert config_hash(Options(data="voc")) == "1c28700d8b2df230"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "'data' is required"),
        ({"data": "v", "epoch": 3}, "did you mean 'epochs'"),
        ({"data": "v", "mode": "keeep"}, "did you mean 'keep'"),
        ({"data": "v", "flip": "False"}, "'flip' must be bool"),
        ({"data": "v", "epochs": True}, "'epochs' must be int"),
        ({"data": "v", "epochs": 1.5}, "'epochs' must be int"),
        ({"data": "v", "size": [1, 2, 3]}, "'size' must be"),
        ({"data": "v", "inner": {"beta": 1}}, "unknown option 'beta'"),
        ({"data": 3}, "'data' must be str"),
    ],
)
def test_mistakes_are_named(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(Options, data)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "!!python/object/apply:os.getcwd []"])
def test_bad_recipe_is_one_line(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dashes_in_recipes_are_underscores(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("img-size: 3\n")
    assert load_yaml(path) == {"img_size": 3}


def test_every_field_of_the_test_class_is_covered():
    assert {item.name for item in fields(Options)} == set(to_dict(Options(data="x")))


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("5E-05", 5e-5), ("-2.5e+3", -2500.0), ("1.e2", 100.0)])
def test_a_recipe_may_write_a_number_with_an_exponent_as_python_does(tmp_path, text, value):
    @dataclass(frozen=True)
    class Rates:
        lr: float = 1.0

    (tmp_path / "recipe.yaml").write_text(f"lr: {text}\n")
    assert from_dict(Rates, load_yaml(tmp_path / "recipe.yaml")).lr == value
    with pytest.raises(ConfigError, match="'lr' must be float"):
        from_dict(Rates, {"lr": text.partition("e")[0] + "x"})


def test_a_whole_number_too_large_for_a_float_is_refused():
    @dataclass(frozen=True)
    class Rates:
        lr: float = 1.0

    with pytest.raises(ConfigError, match="'lr' must be float"):
        from_dict(Rates, {"lr": 10**400})
