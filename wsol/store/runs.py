"""Run folders: configuration, provenance, and the right to continue."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import wsol
from wsol.config import LARGEST_LIST, config_hash, dump_yaml, is_neutral, load_yaml, to_dict
from wsol.errors import ConfigError, DataError, StoreError
from wsol.schema import DatasetSpec, RunInfo
from wsol.store.atomic import write_text
from wsol.store.lock import hold

_OWN_FILES = (
    "maps",
    "masks",
    "confidence",
    "report",
    "instances",
    "instances.coco.json",
    "recipe.yaml",
    "curves.svg",
    "card.md",
    "pseudo.coco.json",
    "stages.json",
    "results.zip",
    "sweep.csv",
    "config.yaml",
    "dataset.yaml",
    "run.json",
    "metrics.json",
    "curves.csv",
    "model.json",
)
_OTHER = "give another --out"
_OWN_PATTERNS = ("manifest-*.jsonl", "run-*.json", "*.safetensors", "checkpoint.pt", "history.jsonl")
_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "opencv-python",
    "numba",
    "pycocotools",
    "pillow",
    "segmentation-models-pytorch",
    "open_clip_torch",
)


class Run:
    """An open run folder, locked; a context manager that completes `run.json` when the work ends well.

    Attributes:
        path: The folder.
        facts: What the run found out; goes into `run.json`.
    """

    def __init__(
        self, path: Path, info: RunInfo, *, shard: tuple[int, int] = (0, 1), lock: BinaryIO | None = None
    ) -> None:
        self.path, self.info, self.shard = path, info, shard
        self._lock = lock
        self.facts: dict[str, Any] = {}
        self._clock = time.monotonic()

    def __enter__(self) -> Run:
        self._save()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        seconds = round(time.monotonic() - self._clock, 3)
        self.info = replace(self.info, seconds=seconds, peak_memory_mb=peak_memory_mb(), facts=self.facts)
        try:
            if kind is None:
                self._save()
        finally:
            if self._lock is not None:
                self._lock.close()

    def _save(self) -> None:
        name = "run.json" if self.shard[0] == 0 else f"run-{self.shard[0]:03d}.json"
        write_text(self.path / name, json.dumps(asdict(self.info), indent=1, default=str) + "\n")


def open_run(
    path: Path,
    *,
    verb: str,
    config: Any,
    dataset: DatasetSpec | None = None,
    device: str = "cpu",
    inputs: Mapping[str, str] | None = None,
    overwrite: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Run:
    """Create a run folder, or continue one that was made with the same configuration.

    Args:
        path: The folder.
        verb: Verb of the command line.
        config: Frozen dataclass of the verb; its `config_hash` decides whether the folder may be continued.
        dataset: Saved as `dataset.yaml`, so that later steps need no flags to find the images.
        device: Device in use.
        inputs: Input path to hash; a run is not continued from other ones.
        overwrite: Remove what an earlier run wrote in this folder and start again.
        shard: (index, count) of this process.

    Raises:
        StoreError: When the folder holds a run of another configuration or made from other inputs, or no run at all
            but other files, when it would replace its own input, or when another process is writing the same part.
    """
    digest = config_hash(config)
    overwrite = overwrite and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"  # torchrun's restarts continue
    known = _known_hash(path)
    if overwrite and any(Path(name).resolve() == path.resolve() for name in inputs or {}):
        raise StoreError("this run is made from that folder, which --overwrite would clear", where=path, hint=_OTHER)
    if known is None and _holds_files(path):
        raise StoreError("the folder is not empty and holds no run", where=path, hint=_OTHER)
    lock = hold(path, shard=shard, alone=known is not None and overwrite)
    if known is not None and overwrite:
        _clear(path)
        known = None
    if known is not None and known != f"{verb}:{digest}":
        before, hint = known.partition(":")[0], f"{_OTHER}, or --overwrite to replace it"
        if before != verb:
            raise StoreError(f"the folder holds a run of wsol {before}", where=path, hint=hint)
        raise StoreError(
            f"the folder holds a run with other options{_changed_options(path, config)}", where=path, hint=hint
        )
    if known is not None:
        _refuse_changed_inputs(path, inputs or {})
    if known is None:
        write_text(path / "config.yaml", f"# wsol {verb}, {digest}\n{dump_yaml(config)}")
    if dataset is not None and not (path / "dataset.yaml").is_file():  # after what makes the folder a run
        write_text(path / "dataset.yaml", dump_yaml(dataset))
    info = RunInfo(
        verb=verb,
        config=to_dict(config),
        config_hash=digest,
        seed=int(getattr(config, "seed", 0)),
        versions=versions(),
        device=device,
        argv=tuple(sys.argv),
        inputs=dict(inputs or {}),
        code_hash=code_hash(),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return Run(path, info, shard=shard, lock=lock)


def read_info(path: Path) -> RunInfo:
    """Read `run.json`.

    Raises:
        StoreError: When the folder holds no run.
    """
    try:
        raw = json.loads((path / "run.json").read_text(encoding="utf-8"))
        if not all(isinstance(raw[name], dict) for name in ("config", "inputs", "facts")):
            raise TypeError("expected mappings")
        return RunInfo(**{**raw, "argv": tuple(raw["argv"])})
    except FileNotFoundError as error:
        raise StoreError("no run in this folder", where=path, hint="give a folder that wsol wrote") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise StoreError(f"run.json cannot be read: {error}", where=path) from error


def read_dataset(path: Path) -> dict[str, Any]:
    """Return what `dataset.yaml` of a run says: name, root, split, classes, ...

    Raises:
        ConfigError: When the file is missing or no YAML mapping.
    """
    return load_yaml(path / "dataset.yaml", largest=LARGEST_LIST)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror}", where=path) from error


@functools.cache
def code_hash() -> str:
    """Return 16 hex digits over the installed sources of this package: a version that needs no git."""
    digest = hashlib.sha256()
    root = Path(wsol.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in ("wsol", *_PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _holds_files(path: Path) -> bool:
    return path.is_dir() and any(not item.name.startswith(".") and item.name != "log.txt" for item in path.iterdir())


def _known_hash(path: Path) -> str | None:
    try:
        first = (path / "config.yaml").read_text(encoding="utf-8").partition("\n")[0]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"config.yaml cannot be read: {error}", where=path, hint=_OTHER) from error
    words = first.removeprefix("# wsol ").split(", ")
    return f"{words[0]}:{words[1]}" if len(words) == 2 else "?"


def _changed_options(path: Path, config: Any) -> str:
    try:
        before = load_yaml(path / "config.yaml")
    except ConfigError:
        return ""
    now = to_dict(config)
    names = [name for name in now if not is_neutral(config, name) and before.get(name) != now[name]]
    return f": {', '.join(f'{name} was {before.get(name)!r}' for name in names)}" if names else ""


def _refuse_changed_inputs(path: Path, inputs: Mapping[str, str]) -> None:
    """Refuse to continue a run whose weights or maps are others by now: it would become a mixture of both."""
    try:
        before = read_info(path).inputs
    except StoreError:
        return
    changed = [name for name, digest in inputs.items() if before.get(name, digest) != digest]
    if changed:
        what = f"{', '.join(changed)} changed since this run began"
        raise StoreError(what, where=path, hint=f"{_OTHER}, or --overwrite to start again")


def _clear(path: Path) -> None:
    own = [path / name for name in _OWN_FILES if name != "config.yaml"]
    for pattern in _OWN_PATTERNS:
        own += path.glob(pattern)
    own.append(path / "config.yaml")  # last: what is cleared half is still a run
    for item in own:
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink(missing_ok=True)


def peak_memory_mb() -> float | None:
    """Return the largest resident size of this process so far in MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1024.0 if sys.platform != "darwin" else 1024.0**2
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
