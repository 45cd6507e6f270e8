from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

from wsol.cli.parse import parse
from wsol.config import from_dict, neutral
from wsol.errors import ConfigError
from wsol.registry import Registry

TOYS: Registry[Any] = Registry("toy", "wsol.ops", shared=("boxes",))


@TOYS.register("plain")
class Plain: ...


@TOYS.register("rich")
@dataclass(frozen=True)
class Rich:
    fusion: Literal["mean", "max"] = "mean"
    """How heads are fused."""
    start: int = 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Do the thing."""

    data: str
    """Data set."""
    out: Path = neutral()
    method: str = "plain"
    options: Mapping[str, Any] = field(default_factory=dict)
    scales: tuple[float, ...] = (1.0,)
    alpha: float | None = None
    flip: bool = False
    batch_size: int = 4


BASE = ["--data", "voc", "--out", "runs/x"]


def run(*words, base=BASE):
    return parse(Config, [*base, *words], prog="wsol toy", choices=[("method", "options", TOYS.get)])


def test_defaults_flags_and_method_options():
    assert run() == Config(data="voc", out=Path("runs/x"))
    got = run("--method", "rich", "--options.fusion", "max", "--scales", "0.5", "2", "--flip", "--batch-size", "3")
    expected = {"method": "rich", "options": {"fusion": "max"}, "scales": (0.5, 2.0), "flip": True, "batch_size": 3}
    assert got == Config(data="voc", out=Path("runs/x"), **expected)


def test_recipes_lie_between_defaults_and_flags_and_later_ones_win(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("data: coco\nout: runs/a\nbatch-size: 7\nmethod: rich\noptions: {fusion: max, start: 5}\n")
    second.write_text("batch_size: 8\nalpha: 2\n")
    got = run("-c", str(first), "-c", str(second), "--data", "cub", "--options.start", "6", base=[])
    assert (got.data, got.out, got.batch_size, got.alpha) == ("cub", Path("runs/a"), 8, 2.0)
    assert got.options == {"fusion": "max", "start": 6}


def test_printed_config_loads_back(tmp_path, capsys):
    words = ["--method", "rich", "--options.start", "4", "--scales", "0.5", "1", "--alpha", "4"]
    with pytest.raises(SystemExit) as stop:
        run(*words, "--print-config")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(text)
    assert run("-c", str(tmp_path / "again.yaml"), base=[]) == run(*words)
    assert from_dict(Config, yaml.safe_load(text)) == run(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--scalse", "1"], "unknown option --scalse.*did you mean '--scales'"),
        (["--method", "ritch"], "unknown toy 'ritch'.*did you mean 'rich'"),
        (["--method", "rich", "--options.fusion", "sum"], "sum"),
        (["--method", "rich", "--options.fusoin", "max"], "did you mean '--options.fusion'"),
        (["--batch-size", "many"], "batch-size"),
        (["-c"], "needs a recipe"),
        (["-c", "no/such.yaml"], "no/such.yaml"),
        (["stray"], "unknown option stray"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(ConfigError, match=message) as caught:
        run(*words)
    assert "\n" not in str(caught.value)
    assert "│" not in str(caught.value)


def test_a_missing_required_flag_is_named():
    with pytest.raises(ConfigError, match="--data"):
        run(base=[])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 3", "did you mean 'batch_size'"),
        ("method: rich\noptions: {fusoin: max}", "did you mean 'fusion'"),
        ("options: {start: 3}", "'plain' has no options"),
    ],
)
def test_mistakes_in_recipes_name_the_nearest(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        run("-c", str(path))


def test_help_shows_the_options_of_the_chosen_method(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--method", "rich", "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--options.fusion" in text
    assert "How heads are fused." in text
    assert "Do the thing." in text
    assert "Data set." in text
