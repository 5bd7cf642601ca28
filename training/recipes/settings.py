"""Strict changes to a recipe, from the command line's key=value."""

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from types import UnionType
from typing import Any, get_args, get_origin

from training.recipes.recipe import Recipe


def override(recipe: Recipe, settings: list[str]) -> Recipe:
    """Change a recipe by "key=value" settings, a dot leading inside: "detection.steps=2000".

    Raises:
        ValueError: no such key (the message names the nearest), or a value of another kind.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"expected key=value; got '{setting}'")
        recipe = _changed(recipe, key.strip(), key.strip().split("."), text.strip())
    return recipe


def _changed(part: Any, key: str, path: list[str], text: str) -> Any:
    kinds = {f.name: f.type for f in fields(part)}
    if path[0] not in kinds:
        raise ValueError(f"expected a key of the recipe; got '{key}'{nearest(path[0], kinds)}; there are {[*kinds]}")
    old = getattr(part, path[0])
    if is_dataclass(old):
        if len(path) == 1:
            raise ValueError(f"expected '{key}.' and one of {[f.name for f in fields(old)]}; got '{key}'")
        return replace(part, **{path[0]: _changed(old, key, path[1:], text)})
    if len(path) > 1:
        raise ValueError(f"expected '{path[0]}' to end the key; got '{key}'")
    return replace(part, **{path[0]: _value(key, kinds[path[0]], text, old)})


def _value(key: str, kind: Any, text: str, old: Any) -> Any:
    try:
        return _read(kind, text)
    except ValueError:
        named = kind.__name__ if isinstance(kind, type) else kind
        raise ValueError(f"expected {key} to be of type {named}, like {old!r}; got '{text}'") from None


def _read(kind: Any, text: str) -> Any:
    """Read a value of the type that a field is annotated with; ValueError where it is of another."""
    if isinstance(kind, UnionType):  # with None
        return None if text == "None" else _read(get_args(kind)[0], text)
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        kinds = get_args(kind)
        kinds = kinds[:1] * len(parts) if kinds[-1] is Ellipsis else kinds
        return tuple(_read(*pair) for pair in zip(kinds, parts, strict=True))
    if kind is bool and text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true" if kind is bool else kind(text)


def nearest(name: str, known: Iterable[str]) -> str:
    """Give the end of a message that names the nearest of those known; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
