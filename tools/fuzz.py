"""The fuzz run: every reader on files that were valid before a seeded mutator got hold of them.

Whatever the bytes, a reader must return or raise a WsolError: any other exception, more than 10 seconds, or more than
2 GiB of new memory is a finding, and so is a crash. The offending files are kept. `--minutes N` shares N minutes out
among the readers.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from _fuzz_mutate import mutate
from _fuzz_readers import Reader, make_readers

from wsol.errors import WsolError

HANG, MEMORY = 10, 2 * 2**30


def main() -> int:
    """Run the fuzzer, print what it found and return 1 where it found anything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--reader", action="append", help="only readers whose name holds this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where offending files go")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="wsol-fuzz-"))
    os.environ["XDG_CACHE_HOME"] = str(place / ".cache")
    readers = [item for item in make_readers(place) if not given.reader or any(w in item.name for w in given.reader)]
    share = 60 * given.minutes / len(readers)
    rows, found = [], 0
    for reader in readers:
        tries, findings = attack(reader, share, seed=given.seed, keep=given.keep)
        rows.append({"reader": reader.name, "tries": tries, "findings": findings})
        found += len(findings)
        print(f"{reader.name:<16} {tries:>8} files {len(findings):>3} findings", flush=True)
        for name, count in findings.items():
            print(f"    {count:>6} x {name}", flush=True)
    shutil.rmtree(place)
    if given.json:
        given.json.write_text(json.dumps({"minutes": given.minutes, "seed": given.seed, "rows": rows}, indent=1) + "\n")
    return 1 if found else 0


def attack(reader: Reader, seconds: float, *, seed: int, keep: Path) -> tuple[int, dict[str, int]]:
    """Feed mutated files to a reader for some time.

    Returns:
        How many files, and what was found: a line that says it, to how often.
    """
    end, tries, findings = time.monotonic() + seconds, 0, Counter[str]()
    note = reader.root.parent / f"{reader.name}.jsonl"
    while time.monotonic() < end:
        note.write_text("")
        pid = os.fork()
        if pid == 0:
            _work(reader, end, seed=seed + tries, note=note)
        status = _watch(pid, note)
        rows = [json.loads(line) for line in note.read_text().splitlines()]
        tries += max((row["at"] for row in rows), default=0) + 1
        for row in rows:
            if row.get("finding"):
                _keep(reader, row, findings, keep)
        if status:
            _keep(reader, {"finding": status, "file": rows[-1]["file"] if rows else ""}, findings, keep, here=True)
        reader.restore()
    return tries, dict(findings)


def _work(reader: Reader, end: float, *, seed: int, note: Path) -> None:
    """Try file after file in a process of its own, and leave a line about each that is of interest."""
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    rng = random.Random(seed)
    with note.open("a", buffering=1) as stream:
        at = 0
        while time.monotonic() < end:
            name, data = rng.choice(list(reader.files.items()))
            path = reader.root / name
            path.write_bytes(mutate(data, rng, suffix=path.suffix, others=reader.pool))
            stream.write(json.dumps({"at": at, "file": name}) + "\n")
            try:
                reader.read(reader.root, path)
            except WsolError:
                pass
            except BaseException as error:
                place = traceback.extract_tb(error.__traceback__)
                ours = [frame for frame in place if "/wsol/" in frame.filename] or place
                line = (
                    f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}: {str(error)[:80]!r}"
                )
                (note.parent / f"{reader.name}-{at}").write_bytes(path.read_bytes())
                stream.write(json.dumps({"at": at, "file": name, "finding": line}) + "\n")
            path.write_bytes(data)
            at += 1
    os._exit(0)


def _watch(pid: int, note: Path) -> str:
    """Wait for a worker; return what is wrong where it hangs or crashes."""
    size, since = -1, time.monotonic()
    while True:
        done, raw = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(raw)
            return "" if status == 0 else f"crash: {signal.Signals(-status).name if status < 0 else status}"
        if (now := note.stat().st_size) != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > HANG:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"hang: more than {HANG} s"
        time.sleep(0.02)


def _keep(reader: Reader, row: dict, findings: Counter[str], keep: Path, *, here: bool = False) -> None:
    if not findings[row["finding"]]:
        keep.mkdir(parents=True, exist_ok=True)
        source = reader.root / row["file"] if here else reader.root.parent / f"{reader.name}-{row['at']}"
        if source.is_file():
            shutil.copy(source, keep / f"{reader.name}-{len(findings):02d}-{Path(row['file']).name}")
    findings[row["finding"]] += 1


if __name__ == "__main__":
    raise SystemExit(main())
