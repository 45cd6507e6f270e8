"""Every block of the documentation is used: commands parse, Python compiles, YAML loads, and three guides run.

A block that no rule covers is a failure. What a reader has and a test has not (data sets, weights, a GPU) is replaced
by the tables below, and by nothing else.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import wsol
from wsol.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
_FENCE = re.compile(r"^```([\w{}-]*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^\n(?:    .+\n)+", re.MULTILINE)

# Lines of shell blocks that are no `wsol` command, and why they are not run here.
OTHER_LINES = {
    r"make (demo|test|docs|bench|setup|slow)\b.*": "targets of the Makefile, read below",
    r"(\S*python -m )?pip install .*": "needs an index",
    r"python docs/_ext/pictures\.py": "the build of the site runs that module",
    r"git clone .*": "needs a network",
    r"docker .*": "needs an engine",
    r"rsync .*": "copies between machines",
    r"aws .*|gsutil .*": "needs an account",
}
# What stands before `wsol` on a line: a launcher or an assignment, which the shell or torch reads.
LAUNCHERS = r"(?:[A-Z_]+=\S+ )*(?:srun [^w]*|torchrun (?:--[\w-]+[= ]\S+ +)*-m |\.venv/bin/|python -m )?"
# Languages of blocks that are not commands, and what reads them here.
READERS = {"python", "yaml", "toml", "json", "jsonl", "csv", "mermaid", "{toctree}", "text", "bibtex"}


def blocks(path):
    """Yield (language, text) of the fenced and indented blocks of a page; an indented block has no language."""
    text = path.read_text(encoding="utf-8")
    yield from _FENCE.findall(text)
    for block in _INDENTED.findall(_FENCE.sub("", text)):
        yield "", re.sub("^    ", "", block.lstrip("\n"), flags=re.M)


def lines(language, text):
    """Return the logical lines of a shell block."""
    if language == "console":
        text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
    joined = text.replace("\\\n", " ")
    return [line for line in (row.partition(" #")[0].strip() for row in joined.splitlines()) if line and line[0] != "#"]


def kind(language, text):
    """Return what a block without a language is: shell, or text, yaml and csv that show a file."""
    if language in ("bash", "sh", "console"):
        return "shell"
    if language:
        return language
    first = next(iter(lines("", text)), "")
    if re.match(LAUNCHERS + r"wsol ", first) or any(re.fullmatch(line, first) for line in OTHER_LINES):
        return "shell"
    if re.match(r"\w+: ", first):
        return "yaml"
    return "csv" if re.match(r"\w+(,\w+)+$", first) else "text"


FOUND = [(path, kind(*block), block[1]) for path in PAGES for block in blocks(path)]
SHELL = [(path, line) for path, sort, text in FOUND if sort == "shell" for line in lines("", text)]
RECIPES = [
    (path, line[2:])
    for path in sorted((ROOT / "configs/recipes").glob("*.yaml"))
    for line in path.read_text(encoding="utf-8").splitlines()
    if line.startswith("# wsol ")
]


def words_of(line):
    """Return the words after `wsol`, or None for a line that is another program's."""
    if any(re.fullmatch(other, line) for other in OTHER_LINES):
        return None
    match = re.match(LAUNCHERS + r"wsol (.*)$", line)
    assert match, f"neither a wsol command nor in OTHER_LINES: {line}"
    return shlex.split(re.split(r" (?:&|\||>|&&) ?", match[1])[0])


def test_every_block_has_a_reader():
    unread = [(path.name, sort, text[:60]) for path, sort, text in FOUND if sort not in READERS | {"shell"}]
    assert not unread
    assert len(SHELL) > 60


@pytest.mark.parametrize(
    ("path", "line"), [*SHELL, *RECIPES], ids=[f"{path.name}-{at}" for at, (path, _) in enumerate([*SHELL, *RECIPES])]
)
def test_command_parses(path, line, monkeypatch, capsys):
    """With --print-config nothing runs, but an unknown verb, flag, method or a wrong type is refused."""
    monkeypatch.chdir(ROOT)
    words = words_of(line)
    if words is None or "absgrad" in words:  # the method of the worked example: test_docs.py
        return
    while "-c" in words and words[words.index("-c") + 1].startswith("runs/"):  # written by the command before
        at = words.index("-c")
        del words[at : at + 2]
    if words[:2] == ["info", "cite"] or words[0] in ("--version", "--help"):
        assert main(words) in (0, 1)
        return
    with pytest.raises(SystemExit) as ended:
        status = main([*words, "--print-config"])
        pytest.fail(f"{line}: exit status {status}: {capsys.readouterr().err}")
    assert ended.value.code == 0


@pytest.mark.parametrize(
    ("line", "hint"), [("cam --data voc --flap --out x", "--flip"), ("cam --data voc --method cams --out x", "cam")]
)
def test_a_wrong_flag_would_be_found(line, hint, capsys):
    assert main([*line.split(), "--print-config"]) == 2
    assert hint in capsys.readouterr().err


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    named = {match for _, line in SHELL for match in re.findall(r"^make ([a-z]+)", line)}
    assert named
    assert named <= targets


def test_files_that_are_shown_can_be_read():
    import tomllib

    for path, sort, text in FOUND:
        if sort == "yaml":
            assert isinstance(yaml.safe_load(text), dict), (path.name, text)
        elif sort == "toml":
            assert tomllib.loads(text), path.name
        elif sort == "json":
            json.loads(text)
        elif sort == "jsonl":
            assert all(isinstance(json.loads(row), dict) for row in text.splitlines()), path.name
        elif sort == "csv":
            assert len({row.count(",") for row in text.strip().splitlines()}) == 1, (path.name, text)


def test_python_compiles_and_names_what_is_public():
    for path, sort, text in FOUND:
        if sort == "python":
            compile(text, str(path), "exec")
            for name in re.findall(r"\bwsol\.(\w+)\(", text):
                assert callable(getattr(wsol, name, None)), (path.name, name)


# A reader's own words to those of a test: tiny models and data, one epoch.
SUBSTITUTES = [
    (r"--model resnet50 --pretrained", "--model test_resnet --img-size 64"),
    (r"(wsol train .*--model test_resnet --img-size 64)(?! --linear-probe)", r"\1 --batch-size 4 --workers 0"),
    (r"(--linear-probe)", r"\1 --workers 0"),
    (r"--data voc( --root \S+)?", "--data folder --root photos"),
    (r"--epochs \d+", "--epochs 1"),
    (r"(wsol train (?!.*--epochs)(?!.*--linear-probe))", r"\1--epochs 1 "),
    (r"(wsol segment train )", r"\1--epochs 1 --img-size 64 --batch-size 2 --workers 0 "),
    (r"--arch deeplabv3plus --encoder resnet50 --encoder-weights imagenet", "--arch unet --encoder resnet18"),
    (r"--encoder tu-resnet50", "--encoder resnet18"),
    (r"--img-size 512", "--img-size 64"),
    (r"(train-affinity )", r"\1--epochs 1 --img-size 64 --batch-size 2 --workers 0 "),
    (r"--images new-photos", "--images photos/val/cat"),
    (r"photos/(\*/|cat/)?\*\.jpg", "photos/train/cat/0.jpg photos/train/cat/1.jpg"),
]
# Commands of the guides that need what no test has.
NOT_RUN = {
    r".*clip:.*": "needs CLIP's weights; tests/engine/test_make_maps_clip.py runs such a flow",
    r".*segment export .*": "tests/engine/test_export_onnx.py runs it on a small network",
}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with photos, boxes nowhere, masks for all: what the guides assume."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name, label in (("cat", 1), ("dog", 2)):
            for at in range(count):
                photo, mask = tmp_path / f"photos/{split}/{name}/{at}.jpg", tmp_path / f"photos/masks/{name}/{at}.png"
                image = generator.integers(0, 90, (50, 70, 3), dtype=np.uint8)
                image[15:40, 20:55, label] = 250
                truth = np.zeros((50, 70), np.uint8)
                truth[15:40, 20:55] = label
                for path, picture in ((photo, image), (mask, truth)):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(path), picture)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/guides/own-data.md", "docs/guides/boxes-to-segmenter.md"],
    ids=lambda page: Path(page).stem,
)
@pytest.mark.usefixtures("lite0_weights")
def test_guide_runs(page, desk, capsys):
    """The commands of a page, in its order, one after the other in one folder."""
    chain = [line for path, line in SHELL if path == ROOT / page and words_of(line) is not None]
    if "boxes" in page:
        chain.insert(0, "wsol train --data voc --model resnet50 --pretrained --out runs/classifier")
    for line in chain:
        if any(re.fullmatch(skipped, line) for skipped in NOT_RUN):
            continue
        for pattern, instead in SUBSTITUTES:
            line = re.sub(pattern, instead, line)
        words = shlex.split(line)[1:]
        if words == ["demo"]:  # tests/e2e runs it
            continue
        assert main(words) in (0, 1), f"{line}: {capsys.readouterr().err}"
    if page == "README.md":
        (desk / "cat.jpg").write_bytes((desk / "photos/train/cat/0.jpg").read_bytes())
        exec(next(text for path, sort, text in FOUND if path == ROOT / page and sort == "python"), {})
        assert capsys.readouterr().out.strip().endswith("index.html")
