"""`wsol refine --method one,two`: options of each refiner, in flags, recipes and messages."""

from __future__ import annotations

import yaml

from wsol.cli.main import main


def printed(capsys, *words: str) -> str:
    try:
        assert main(["refine", "--maps", "a", "--out", "b", *words]) == 2
    except SystemExit:
        return capsys.readouterr().out
    return capsys.readouterr().err


def test_options_of_each_refiner(capsys, tmp_path):
    flags = ["--options.pamr.iterations", "3", "--options.densecrf.preset", "irn", "--background", "otsu"]
    text = printed(capsys, "--method", "pamr,densecrf", *flags, "--print-config")
    found = yaml.safe_load(text)
    assert found["method"] == "pamr,densecrf"
    assert found["options"] == {"pamr": {"iterations": 3}, "densecrf": {"preset": "irn"}}
    assert found["background"] == "otsu"
    (tmp_path / "recipe.yaml").write_text(text)
    assert printed(capsys, "-c", str(tmp_path / "recipe.yaml"), "--print-config") == text


def test_one_refiner_has_flat_options(capsys):
    text = printed(capsys, "--method", "pamr", "--options.iterations", "3", "--print-config")
    assert yaml.safe_load(text)["options"] == {"iterations": 3}
    text = printed(capsys, "--method", "threshold,getam_completion", "--print-config")
    assert yaml.safe_load(text)["options"] == {}


def test_help_names_what_belongs_to_the_verb(capsys):
    text = printed(capsys, "--help")
    assert all(word in text for word in ("--sweep", "train-affinity", "instances", "-c recipe.yaml"))


def test_help_lists_the_options_of_each(capsys):
    text = printed(capsys, "--method", "pamr,densecrf", "--help")
    assert "--options.pamr.iterations" in text
    assert "--options.densecrf.preset" in text


def test_mistakes_name_the_nearest_word(capsys):
    chain = ("--method", "pamr,densecrf")
    assert "did you mean 'densecrf'" in printed(capsys, "--method", "pamr,densecfr")
    wrong = printed(capsys, *chain, "--options.pamr.iteration", "3")
    assert "did you mean '--options.pamr.iterations'" in wrong
    assert "iterations: must be at least 0" in printed(capsys, *chain, "--options.pamr.iterations", "-3")
