"""The commands and the Python of every page run, in the order of the page, in one folder that holds what it assumes.

A run that a page reads and does not make comes from the command on a page that it links to. What is replaced, made
small or left out is listed in doc_rules.py.
"""

from __future__ import annotations

import glob
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from doc_pages import PAGES, ROOT, SHELL, blocks, chain, split_line
from doc_rules import as_run, is_left_out

import wsol.cli.demo
from wsol.cli.main import main

# Pages that take more than ten seconds: an ONNX export, launchers of processes, the demonstration, a server.
SLOW = {"boxes-to-segmenter", "several-machines", "index", "serve"}
# What a page tells to install.
EXTRAS = {"serve": "gradio", "several-machines": "ray", "interop": "supervision", "boxes-to-segmenter": "onnxscript"}
RUN = [
    pytest.param(
        page,
        id=page.relative_to(ROOT).with_suffix("").as_posix(),
        marks=[pytest.mark.slow] if page.stem in SLOW else [],
    )
    for page in PAGES
    if any(kind in ("python", "shell") for kind, _ in blocks(page))
]


def expanded(words):
    """Replace patterns by the files that match, as a shell does."""
    for word in words:
        found = sorted(glob.glob(word)) if "*" in word else [word]
        assert found, f"no file matches {word}"
        yield from found


def run(line, patch):
    """Run a command as what stands before it asks for; return the exit status."""
    before, words = split_line(line)
    words = list(expanded(words))
    if before.startswith("torchrun"):
        launcher = [sys.executable, "-m", "torch.distributed.run", *before.split()[1:]]
        return subprocess.run([*launcher, "wsol", *words]).returncode
    if before.startswith("srun"):
        tasks = re.search(r"--ntasks (\d+)", before)[1]
        with patch.context() as slurm:
            slurm.setenv("SLURM_NTASKS", tasks)
            states = [slurm.setenv("SLURM_PROCID", str(rank)) or main(words) for rank in range(int(tasks))]
        return max(states)
    return main(words)


class Reader:
    """Stands for whoever looks at the page of `wsol demo --serve`, and ends it."""

    def __init__(self, capfd):
        self.capfd = capfd

    def wait(self):
        address = re.search(r"page: (\S+)", self.capfd.readouterr().out)[1]
        with urlopen(address) as answer:
            assert answer.status == 200
        raise KeyboardInterrupt


def reader_of_fiftyone():
    """What the page asks of FiftyOne, which is not among the packages of the tests: are the files there?"""

    def from_dir(*paths, dataset_type, **named):
        assert all(Path(path).is_dir() and any(Path(path).iterdir()) for path in (*paths, *named.values()))
        return SimpleNamespace()

    kinds = ("FiftyOneImageDetectionDataset", "ImageSegmentationDirectory")
    types = SimpleNamespace(**dict.fromkeys(kinds))
    return SimpleNamespace(Dataset=SimpleNamespace(from_dir=from_dir), types=types)


@pytest.mark.parametrize("page", RUN)
@pytest.mark.usefixtures("lite0_weights", "desk")
def test_page_runs(page, capfd, monkeypatch):
    if page.stem in EXTRAS:
        pytest.importorskip(EXTRAS[page.stem])
    monkeypatch.setattr(wsol.cli.demo, "threading", SimpleNamespace(Event=lambda: Reader(capfd)))
    monkeypatch.setitem(sys.modules, "fiftyone", reader_of_fiftyone())
    for kind, text in chain(page):
        if is_left_out(text):
            continue
        if kind == "python":
            exec(compile(text, str(page), "exec"), {})
            continue
        line = as_run(text)
        status = run(line, monkeypatch)
        assert status == 0, f"{text}\n{capfd.readouterr().err}"
        if "--out" in line:
            assert Path(re.search(r"--out (\S+)", line)[1]).exists(), text


def downloads():
    """Return a command of each verb and model that asks the hub; `bench mix` notes a failure for each strategy."""
    found = {}
    for _, line in SHELL:
        model = re.search(r"--model (\S+) --pretrained", line)
        if model and not line.startswith("wsol bench") and not is_left_out(line):
            found.setdefault((*split_line(line)[1][:1], model[1]), line)
    return found.values()


@pytest.mark.parametrize("line", downloads())
@pytest.mark.usefixtures("desk")
def test_without_a_network_one_line_says_so(line, capfd):
    """The lines that run above with other weights, as they stand."""
    assert main(list(expanded(split_line(line)[1]))) == 2
    (said,) = capfd.readouterr().err.strip().splitlines()
    assert re.match(r"wsol: \S+: could not download the weights: .*give --checkpoint", said)
