"""The texts that a text-driven model compares images with: one a class, and some of what is no class.

The lists of this folder are those of CLIP-ES; a data set of one's own takes a YAML file of the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from wsol.config import LARGEST_LIST, dump_yaml, load_yaml
from wsol.errors import ConfigError, did_you_mean
from wsol.schema import DatasetSpec
from wsol.store.atomic import write_text

TEMPLATE = "a clean origami {}."
_KEYS = ("templates", "classes", "background")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Texts of the classes of a data set.

    Attributes:
        classes: Class names; the position is the class id.
        texts: What fills the templates, one a class; synonyms stand inside one text.
        background: What fills the templates for things that are no class; may be empty.
        templates: Sentences with one "{}" each; the features of a text are their mean.
    """

    classes: tuple[str, ...]
    texts: tuple[str, ...]
    background: tuple[str, ...] = ()
    templates: tuple[str, ...] = (TEMPLATE,)

    def __post_init__(self) -> None:
        if not self.classes or len(self.texts) != len(self.classes):
            raise ConfigError(f"expected one text for each of the classes, got {len(self.texts)}/{len(self.classes)}")
        for template in self.templates:
            if template.count("{}") != 1:
                raise ConfigError(f"template {template!r} must hold '{{}}' once", hint=f"for example {TEMPLATE!r}")
        if not self.templates:
            raise ConfigError("no template", hint=f"for example {TEMPLATE!r}")


def names() -> tuple[str, ...]:
    """Return the names of the lists that come with the package."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml")))


def load_prompts(source: str | Path | None, spec: DatasetSpec) -> Prompts:
    """Return the texts for the classes of a data set, in their order.

    Args:
        source: Name of a list of the package, or a YAML file: `classes` maps class names to texts (or lists of
            synonyms, which are joined by commas; or is a list of names that are texts), `background` lists texts,
            `templates` sentences with "{}". By default the list named like the data set; else the data set's own
            prompts, with VOC's background without what is a class.
        spec: The data set; more classes in the source do no harm.

    Raises:
        ConfigError: When there is no such list, it is malformed, or it lacks a class.
    """
    if source is None and spec.name in names():
        source = spec.name
    if source is None:
        own = {word.lower() for word in (*spec.classes, *spec.prompts)}
        background = tuple(text for text in _packaged("voc")["background"] if text not in own)
        return Prompts(classes=spec.classes, texts=spec.prompts, background=background)
    known = str(source) in names()
    if not known and not Path(source).expanduser().is_file():
        near = did_you_mean(str(source), names())
        raise ConfigError(f"no prompts '{source}'", hint=f"give a YAML file or one of {', '.join(names())}; {near}")
    raw = _packaged(str(source)) if known else load_yaml(Path(source).expanduser(), largest=LARGEST_LIST)
    return _parse(raw, spec.classes, where=f"prompts {source}")


def write_prompts(path: Path, prompts: Prompts) -> None:
    """Write a YAML file that `load_prompts` reads."""
    classes = dict(zip(prompts.classes, prompts.texts, strict=True))
    data = {"templates": prompts.templates, "classes": classes, "background": prompts.background}
    write_text(path, dump_yaml(data))


def _packaged(name: str) -> dict[str, Any]:
    with resources.as_file(resources.files(__name__) / f"{name}.yaml") as path:
        return load_yaml(path)


def _parse(raw: Mapping[str, Any], classes: tuple[str, ...], *, where: str) -> Prompts:
    for key in raw:
        if key not in _KEYS:
            raise ConfigError(f"unknown key '{key}'", where=where, hint=did_you_mean(key, _KEYS))
    given = raw.get("classes")
    if isinstance(given, list):
        given = {name: name for name in given}
    if not isinstance(given, dict):
        raise ConfigError("'classes' must map class names to texts", where=where)
    texts = {_text(name, where): _text(text, where) for name, text in given.items()}
    for name in classes:
        if name not in texts:
            raise ConfigError(f"no text for class '{name}'", where=where, hint=did_you_mean(name, texts))
    lists = {key: raw.get(key) or [] for key in ("background", "templates")}
    for key, value in lists.items():
        if not isinstance(value, list):
            raise ConfigError(f"'{key}' must be a list of texts", where=where)
    background, templates = (tuple(_text(item, where) for item in lists[key]) for key in ("background", "templates"))
    return Prompts(
        classes=classes,
        texts=tuple(texts[name] for name in classes),
        background=background,
        templates=templates or (TEMPLATE,),
    )


def _text(value: object, where: str) -> str:
    if isinstance(value, list) and value:
        return ",".join(_text(item, where) for item in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"expected a text, got {value!r}", where=where, hint="YAML reads bare yes, no, on and off")
    return value
