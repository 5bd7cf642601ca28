"""Recipes as text: strict changes by the command line's key=value, and what the configuration of a run holds."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from inspect import cleandoc
from types import UnionType
from typing import Any, get_args, get_origin

from overfeat_tf.arguments import suggest
from training.recipes.recipe import Recipe


def override(recipe: Recipe, settings: list[str]) -> Recipe:
    """Change a recipe by "key=value" settings, a dot leading inside: "detection.steps=2000"; of equal keys the last.

    Raises:
        ValueError: no such key (the message names the nearest), a value of another kind, or values that do not fit
            together.
    """
    known = dict(leaves(recipe))
    changes = {}
    for setting in settings:
        key, equals, text = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ValueError(f"expected key=value; got '{setting}'")
        if key not in known:
            raise ValueError(f"expected a key of the recipe; got '{key}'{_meant(key, known)}")
        changes[key] = _value(key, *known[key], text)
    for key in [key for key in changes if key.endswith(".steps")]:  # a number that is set does not follow
        changes.setdefault(f"{key.removesuffix('steps')}passes", None)
    return _changed(recipe, changes)


def describe(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """List what can be set: its key, its value as `override` reads it, and what it means."""
    for key, (_, value) in leaves(recipe):
        owner, _, name = key.rpartition(".")
        part = getattr(recipe, owner) if owner else recipe
        text = ",".join(map(str, value)) or "()" if isinstance(value, tuple) else str(value)
        yield key, text, _meanings(type(part)).get(name, "")


def _meanings(kind: type) -> dict[str, str]:
    """Read what a dataclass's docstring says of its attributes, which may share an entry."""
    section = cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n {8,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(meaning.split()) for names, meaning in entries for name in names.split(", ")}


def leaves(part: Any, before: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """List what can be set, by its whole key: its type and value."""
    for each in fields(part):
        value = getattr(part, each.name)
        if is_dataclass(value):
            yield from leaves(value, f"{before}{each.name}.")
        else:
            yield before + each.name, (each.type, value)


def _meant(key: str, known: Iterable[str]) -> str:
    """Return the end of a message that names what may be meant: the keys that end or begin so, else the nearest."""
    such = [name for name in known if name.endswith(f".{key}") or name.startswith(f"{key.rstrip('.')}.")]
    section, dot, word = key.rpartition(".")  # detection.rate for detection.learning_rate
    such = such or [name for name in known if dot and name.startswith(f"{section}.") and name.endswith(f"_{word}")]
    if such:
        return f"; there is {', '.join(such)}"
    parts = dict.fromkeys(name.partition(".")[0] + ".*" * ("." in name) for name in known)
    return suggest(key, known) or f"; there is {', '.join(parts)}"


def _changed(part: Any, changes: dict[str, Any]) -> Any:
    """Replace values by their keys, all of one part at once: two may be valid only together."""
    own = {key: value for key, value in changes.items() if "." not in key}
    for name in {key.partition(".")[0] for key in changes if "." in key}:
        within = {key.partition(".")[2]: value for key, value in changes.items() if key.startswith(f"{name}.")}
        own[name] = _changed(getattr(part, name), within)
    return replace(part, **own)


def _value(key: str, kind: Any, old: Any, text: str) -> Any:
    try:
        return _parse(kind, text)
    except ValueError:
        named = kind.__name__ if isinstance(kind, type) else kind
        raise ValueError(f"expected {key} to be of type {named}, like {old!r}; got '{text}'") from None


def _parse(kind: Any, text: str) -> Any:
    """Read a value of the type that a field is annotated with; ValueError where it is of another."""
    if isinstance(kind, UnionType):  # with None
        return None if text == "None" else _parse(get_args(kind)[0], text)
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        kinds = get_args(kind)
        kinds = kinds[:1] * len(parts) if kinds[-1] is Ellipsis else kinds
        return tuple(_parse(*pair) for pair in zip(kinds, parts, strict=True))
    if kind is bool and text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true" if kind is bool else kind(text)


def read_recipe(began: dict[str, Any]) -> Recipe:
    """Read a recipe as a run of this or an earlier version wrote it: what it did not know was as the default is now.

    Raises:
        ValueError: it has a key that this version does not know, or the run was imported.
    """
    if "preset" not in began:
        raise ValueError("expected a run that was trained; this one was not: it is imported, or damaged")
    return _rebuild(Recipe, {key: value for key, value in began.items() if key != "versions"})


def _rebuild(kind: Any, values: dict[str, Any], before: str = "") -> Any:
    known = {f.name: f.type for f in fields(kind)}
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(f"expected a run of this version or an earlier one; it has the setting '{before}{unknown[0]}'")
    return kind(
        **{
            key: _rebuild(known[key], value, f"{before}{key}.") if is_dataclass(known[key]) else _tuples(value)
            for key, value in values.items()
        }
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
