"""From flags and recipe files to one frozen dataclass, and from any mistake to one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_type_hints

import tyro

from wsol.config import coerce, dump_yaml, from_dict, load_yaml, to_dict
from wsol.errors import ConfigError, did_you_mean
from wsol.store.remote import local_runs

T = TypeVar("T")
Choice = tuple[str, str, Callable[[str], Any]]
RUNS = contextlib.ExitStack()
"""Local copies of the runs at URLs that the options name; closed at the end of the command."""


def parse(kind: type[T], argv: Sequence[str], *, prog: str, choices: Sequence[Choice] = ()) -> T:
    """Parse the flags of one verb.

    Args:
        kind: Frozen dataclass of the verb's options.
        argv: Words after the verb. `-c FILE` reads a recipe (repeatable, later ones win, flags win over all);
            `--print-config` prints the result as YAML and ends.
        prog: Name for help and messages, for example "wsol cam".
        choices: (field that names a method, field that holds the method's own options, name to the class of those
            options). The options of the chosen method become flags `--<options field>.<option>`.

    Returns:
        An instance of `kind`.

    Raises:
        ConfigError: On any mistake, with the nearest right word.
        StoreError: When a run at a URL cannot be fetched.
        SystemExit: After `--help` and `--print-config`.
    """
    words, recipes, show = _take_recipes(list(argv))
    values: dict[str, Any] = {}
    for path in recipes:
        values.update(coerce(kind, load_yaml(path), where=path))
    options_type: Any = kind
    defaults = {item.name: values.get(item.name, _default(item)) for item in dataclasses.fields(options_type)}
    methods: dict[str, tuple[Any, Any]] = {}
    for field, options_field, class_of in choices:
        name, given = _peek(words, field) or defaults[field], defaults[options_field]
        if name in (None, tyro.MISSING):
            continue
        chosen = class_of(name)
        if dataclasses.is_dataclass(chosen) and any(item.init for item in dataclasses.fields(chosen)):
            methods[options_field] = (chosen, from_dict(cast(Any, chosen), given, where=f"options of {name}"))
        elif given:
            raise ConfigError(f"'{name}' has no options", where=options_field)
    parsed = _call_tyro(kind, defaults, methods, words, prog)
    own = {field: _changed(parsed[field], chosen()) for field, (chosen, _) in methods.items()}
    config: T = dataclasses.replace(parsed["config"], **own)
    if show:
        sys.stdout.write(dump_yaml(config))
        raise SystemExit(0)
    RUNS.enter_context(local_runs(config))
    return config


def _call_tyro(
    kind: type[Any], defaults: dict[str, Any], methods: dict[str, Any], words: list[str], prog: str
) -> dict[str, Any]:
    # Mappings hold the options of a method, which get typed flags of their own.
    hidden = [name for name, hint in get_type_hints(kind).items() if "Mapping" in str(hint) or hint is dict]
    holder = dataclasses.make_dataclass(
        kind.__name__,
        [
            (name, Annotated[dict[str, Any], tyro.conf.Suppress], dataclasses.field(default_factory=dict))
            for name in hidden
        ],
        bases=(kind,),
        frozen=True,
    )
    start: Any = object.__new__(holder)
    for name, value in defaults.items():
        object.__setattr__(start, name, value)
    fields: list[Any] = [("config", Annotated[holder, tyro.conf.arg(name="")], dataclasses.field(default=start))]
    fields += [(name, type(value), dataclasses.field(default=value)) for name, (_, value) in methods.items()]
    root = dataclasses.make_dataclass("Options", fields, frozen=True)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            result: Any = tyro.cli(root, args=words, prog=prog, description=_doc(kind), use_underscores=False)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(*_one_line(complaint.getvalue(), root, prog)) from None
    found = vars(result.config)
    plain = kind(**{name: found[name] for name in defaults})
    return {"config": plain, **{name: getattr(result, name) for name in methods}}


def _take_recipes(words: list[str]) -> tuple[list[str], list[Path], bool]:
    rest, recipes, show = [], [], False
    queue = iter(words)
    for word in queue:
        if word in ("-c", "--config"):
            path = next(queue, None)
            if path is None:
                raise ConfigError("-c needs a recipe file", hint="for example -c configs/recipes/demo.yaml")
            recipes.append(Path(path))
        elif word.startswith("--config="):
            recipes.append(Path(word.removeprefix("--config=")))
        elif word == "--print-config":
            show = True
        else:
            rest.append(word)
    return rest, recipes, show


def _peek(words: list[str], field: str) -> str | None:
    flag = "--" + field.replace("_", "-")
    for at, word in enumerate(words):
        if word == flag and at + 1 < len(words):
            return words[at + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def _default(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return item.default
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return tyro.MISSING


def _changed(options: Any, plain: Any) -> dict[str, Any]:
    """Keep only what differs from the method's defaults, so that a config file says what was chosen."""
    found, usual = {}, to_dict(plain)
    for name, value in to_dict(options).items():
        inner = getattr(options, name)
        if dataclasses.is_dataclass(inner):
            value, usual[name] = _changed(inner, getattr(plain, name)), {}
        if value != usual[name]:
            found[name] = value
    return found


def _doc(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _one_line(complaint: str, root: type[Any], prog: str) -> tuple[str]:
    """Fold tyro's boxed message into one line, naming the nearest flag where one was misspelt."""
    lines = [line.strip(" │╭╮╰╯─") for line in complaint.splitlines() if not line.startswith(("╭", "╰"))]
    lines = [line for line in lines if line]
    text = " ".join(lines)
    if "nrecognized options:" in text:
        word = text.partition("nrecognized options:")[2].split()[0].rstrip(",")
        flags = _flags(root)
        return (f"unknown option {word} ({did_you_mean(word, flags) if word.startswith('-') else 'see --help'})",)
    text = text.partition(" For full helptext")[0]
    return (f"{text} (see {prog} --help)",)


def _flags(root: type[Any]) -> list[str]:
    names = []
    for item in dataclasses.fields(root):
        prefix = "" if item.name == "config" else f"{item.name}."
        names += [f"--{prefix}{name}".replace("_", "-") for name in _paths(item.default)]
    return [*names, "--config", "--print-config"]


def _paths(options: Any) -> list[str]:
    """Name every field of a dataclass, with dots into the dataclasses that it holds."""
    names = []
    for item in dataclasses.fields(options):
        value = getattr(options, item.name)
        inner = _paths(value) if dataclasses.is_dataclass(value) else []
        names += [f"{item.name}.{name}" for name in inner] or [item.name]
    return names
