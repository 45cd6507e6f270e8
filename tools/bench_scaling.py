"""Measure one against two processes, and whether a long job keeps its pace and its memory.

    python tools/bench_scaling.py [--part pairs|steady] [--images N] [--folder DIR] [--json FILE]

pairs: `cam` (ResNet-18 at 224 pixels, untrained), `refine` (dense CRF) and `eval loc` on generated scenes, by one
process and by two, each with one thread. Maps and masks are split by --shard, evaluation by --workers. The time is that
of the work, without starting Python and loading the model; the files must be equal.

steady: N generated images of 40 to 56 pixels through `cam` (a tiny ResNet) and `eval loc`: images a second and resident
memory, children included, for each tenth of the work (Linux). Generating 100,000 scenes takes some minutes once;
--folder keeps them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _bench import machine

from wsol.cli.main import main as wsol
from wsol.data.synthetic import MARK, write_synthetic

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
_PAIR_IMAGES = 768  # wsol eval starts a second process from 512 images on
_TARGET = 1.7


def pairs(folder: Path, images: int) -> list[dict[str, Any]]:
    """Return a row a verb: seconds of one process and of two, their ratio, and whether the files are equal."""
    root, model = _scenes(folder / f"scenes-{images}", images, sides=(120, 170)), _model(folder, "resnet18", 224)
    cam = ["cam", "--data", "synthetic", "--root", root, "--split", "val", "--checkpoint", model, "--device", "cpu"]
    with tempfile.TemporaryDirectory(dir=folder) as name:
        runs = Path(name)
        rows = [_sharded("cam", cam, runs)]
        rows.append(_sharded("refine", ["refine", "--maps", runs / "cam-1", "--method", "densecrf"], runs))
        spent = {}
        for count in (1, 2):
            out = ["--out", runs / f"eval-{count}", "--workers", count]
            spent[count] = _watched(["eval", "loc", "--maps", runs / "cam-1", *out], runs / "watch.jsonl")[-1]["s"]
        equal = len({(runs / f"eval-{count}" / "metrics.json").read_bytes() for count in (1, 2)}) == 1
        rows.append(_pair("eval loc", spent, equal=equal))
    return rows


def steady(folder: Path, images: int) -> list[dict[str, Any]]:
    """Return a row a verb: pace and memory of each tenth of the work."""
    root, model = _scenes(folder / f"small-{images}", images, sides=(40, 57)), _model(folder, "test_resnet", 64)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        run = Path(name) / "maps"
        words = ["--data", "synthetic", "--root", root, "--split", "val", "--checkpoint", model, "--img-size", 64]
        jobs = {
            "cam": ["cam", *words, "--device", "cpu", "--workers", 1, "--quiet", "--out", run],
            "eval loc": ["eval", "loc", "--maps", run, "--workers", 0, "--out", Path(name) / "eval"],
        }
        return [_tenths(verb, _watched(job, Path(name) / "watch.jsonl"), images) for verb, job in jobs.items()]


def _sharded(verb: str, words: Sequence[object], runs: Path) -> dict[str, Any]:
    spent = {}
    for count in (1, 2):
        out = runs / f"{verb}-{count}"
        commands = [[*words, "--out", out, "--workers", 0, "--quiet", "--shard", f"{i}/{count}"] for i in range(count)]
        started = [subprocess.Popen(_command(command), env=os.environ | _ONE_THREAD) for command in commands]
        if sum(abs(child.wait()) for child in started):
            raise SystemExit(f"wsol {verb} failed")
        spent[count] = max(json.loads(path.read_text())["seconds"] for path in out.glob("run*.json"))
    return _pair(verb, spent, equal=_digest(runs / f"{verb}-1") == _digest(runs / f"{verb}-2"))


def _pair(verb: str, spent: dict[int, float], *, equal: bool) -> dict[str, Any]:
    ratio = spent[1] / spent[2]
    row = {"verb": verb, "one_s": spent[1], "two_s": spent[2], "ratio": round(ratio, 3), "target": _TARGET}
    return {**row, "equal": equal}


def _tenths(verb: str, marks: list[dict[str, float]], images: int) -> dict[str, Any]:
    ends = [tenth * images / 10 for tenth in range(11)]
    seconds = np.diff(np.interp(ends, [mark["n"] for mark in marks], [mark["s"] for mark in marks]))
    paces = [round(images / 10 / spent, 1) for spent in seconds.tolist()]
    memory = [next(mark["mb"] for mark in marks if mark["n"] >= end) for end in ends[1:]]
    change = {"pace_last_to_first": round(paces[-1] / paces[0], 3), "memory_grown_mb": round(memory[-1] - memory[0], 1)}
    return {"verb": verb, "n": images, "images_per_s": paces, "resident_mb": memory, **change}


def _watched(words: Sequence[object], path: Path) -> list[dict[str, float]]:
    """Run a verb in a process that notes how far it is; return the notes."""
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--watch", str(path), *map(str, words)]
    subprocess.run(command, check=True, env=os.environ | _ONE_THREAD, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in path.read_text().splitlines()]


def _watch(path: Path, argv: list[str]) -> int:
    """Run a verb in this process, and append seconds, images and resident memory to a file after every batch."""
    from wsol.engine.map_writer import MapWriter
    from wsol.eval import localization

    start, done, stream = time.perf_counter(), 0, path.open("a", buffering=1)

    def note(images: int) -> None:
        nonlocal start, done
        done += images
        start = start if done else time.perf_counter()
        mark = {"s": round(time.perf_counter() - start, 4), "n": done, "mb": _resident_mb()}
        stream.write(json.dumps(mark) + "\n")

    put, chunks, enter = MapWriter.put, localization.map_chunks, MapWriter.__enter__

    def noted_enter(self: MapWriter) -> MapWriter:
        note(0)
        return enter(self)

    def noted_put(self: MapWriter, computed: Sequence[Any], failed: Any) -> None:
        put(self, computed, failed)
        note(len(computed) + len(failed))

    def noted_chunks(work: Callable[..., Any], items: Sequence[Any], *, workers: int) -> Iterator[Any]:
        note(0)
        for at, result in enumerate(chunks(work, items, workers=workers)):
            note(min(32, len(items) - 32 * at))
            yield result

    MapWriter.put, MapWriter.__enter__ = noted_put, noted_enter  # type: ignore[method-assign]
    localization.map_chunks = noted_chunks  # type: ignore[assignment]
    return wsol(argv)


def _resident_mb() -> float:
    children = [word for path in Path("/proc/self/task").glob("*/children") for word in path.read_text().split()]
    pages = sum(int(Path(f"/proc/{name}/statm").read_text().split()[1]) for name in ("self", *children))
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _scenes(root: Path, images: int, *, sides: tuple[int, int]) -> Path:
    if not (root / MARK).is_file() or not json.loads((root / MARK).read_text())["complete"]:
        write_synthetic(root, train=1, val=images, sides=sides)
    return root


def _model(folder: Path, name: str, img_size: int) -> Path:
    from wsol.models.classifier import load_classifier, save_classifier

    classifier = load_classifier(name, num_classes=5, img_size=img_size, device="cpu")
    classes = ("circle", "square", "triangle", "ring", "cross")
    save_classifier(classifier, folder / name, classes=classes, multi_label=True)
    return folder / name


def _command(words: Sequence[object]) -> list[str]:
    return [sys.executable, "-m", "wsol", *map(str, words)]


def _digest(run: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for kind in ("maps", "masks") for path in (run / kind).rglob("*.*")):
        digest.update(path.relative_to(run).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def main() -> int:
    """Measure from the command line; exit status 1 when files differ."""
    if sys.argv[1:2] == ["--watch"]:
        return _watch(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("pairs", "steady"), help="only this part")
    parser.add_argument("--images", type=int, default=100_000, help="images of the long job")
    parser.add_argument("--pair-images", type=int, default=_PAIR_IMAGES, help="images of each pair")
    parser.add_argument("--folder", type=Path, help="keep the generated images here")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result: dict[str, Any] = {"machine": machine(threads=1)}
        if args.part != "steady":
            result["pairs"] = pairs(folder, args.pair_images)
        if args.part != "pairs":
            result["steady"] = steady(folder, args.images)
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if args.json:
        args.json.write_text(text, encoding="utf-8")
    return 0 if all(row["equal"] for row in result.get("pairs", [])) else 1


if __name__ == "__main__":
    raise SystemExit(main())
