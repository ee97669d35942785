"""Recipes in YAML, read strictly: what is misspelt, twice there or of another type is refused by name."""

from __future__ import annotations

import numbers
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import yaml

from .modeling.sensors_a2mae import get_sensor

Entry = TypeVar("Entry")
Made = TypeVar("Made")


def read_yaml(path: str | os.PathLike[str], guide: str) -> Any:
    """Read a YAML file as plain types.

    Args:
        path: The file.
        guide: Where a recipe of its kind is described, for errors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no YAML, or has a key twice; names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe; check the path.")
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())}); see {guide} for a recipe.") from error


def read_entries(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None,
    guide: str,
    key: str,
    read_entry: Callable[[Any, int], Entry],
    make: Callable[[tuple[Entry, ...], Path], Made],
) -> Made:
    """Read a recipe that is a list of entries under one key.

    Args:
        path: The file.
        root: Folder that paths in it are relative to; None takes the recipe's own word, else its folder.
        guide: Where such a recipe is described, for errors.
        key: What the list stands under.
        read_entry: Reads an entry, of which it is also told the number from 1 on.
        make: Makes the recipe of all entries and the root.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such recipe; names the file, the entry and the key.
    """
    path = Path(path)
    content = read_yaml(path, guide)
    try:
        top = checked(content, ("root", key), "the recipe")
        check_text("root", top.get("root"), optional=True)
        entries = tuple(read_entry(item, number) for number, item in enumerate(listed(top.get(key), key), start=1))
        return make(entries, Path(root) if root is not None else path.parent / (top.get("root") or "."))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def checked_fields(item: Any, kind: type, what: str, label: str) -> tuple[Mapping[str, Any], str]:
    """Return a mapping that gives the fields of a dataclass, none too many and none too few, and what to call it.

    Args:
        item: The mapping.
        kind: The dataclass, which has a field `name`.
        what: What it is, for errors: "task".
        label: What tells it from others as long as it has no name: "task 2".

    Raises:
        ValueError: If it is none, has other keys, or lacks one that has no default.
    """
    known = checked(item, [field.name for field in fields(kind)], label)
    label = f"{what} {known['name']!r}" if "name" in known else label
    for field in fields(kind):
        if field.default is MISSING and field.name not in known:
            raise ValueError(f"{label}: {field.name} is missing.")
    return known, label


class _Loader(yaml.SafeLoader):
    """Reads YAML, with numbers such as 1e-4 as numbers and dates as text; refuses keys that are there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key, count in Counter(keys).items():
            if count > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1, which PyYAML reads, wants a point in a number with an exponent; YAML 1.2 and people do not.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def checked(item: Any, keys: Sequence[str], what: str) -> Mapping[str, Any]:
    """Return a mapping that has no keys but these.

    Raises:
        ValueError: If it is none, or has others; says `what` it is.
    """
    if not isinstance(item, Mapping):
        raise ValueError(f"{what} must be a mapping with some of the keys {', '.join(keys)}, not {item!r}.")
    unknown = [str(key) for key in item if key not in keys]
    if unknown:
        raise ValueError(f"{what} has the unknown key {unknown[0]!r}; known are {', '.join(keys)}.")
    return item


def listed(item: Any, what: str) -> list[Any]:
    """Return a list that holds something.

    Raises:
        ValueError: If it is none, or empty; says `what` it is.
    """
    if not isinstance(item, list) or not item:
        raise ValueError(f"{what} must be a list with at least one entry, not {item!r}.")
    return item


def check_text(what: str, value: Any, *, optional: bool) -> None:
    """Raise ValueError where a value is no text."""
    if not (isinstance(value, str) and value) and not (optional and value is None):
        raise ValueError(f"{what} is {value!r}, and must be a text; quote what is none to YAML.")


def check_sensor(what: str, name: str) -> None:
    """Raise ValueError where a text is no sensor of the registry."""
    try:
        get_sensor(name)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def is_number(value: Any) -> TypeGuard[float]:
    """Return whether a value is a number; true and false are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
