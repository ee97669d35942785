"""From labels as files have them to the numbers that models are trained on."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from .label_files import CLASSIFICATION, IGNORED, MULTI, REGRESSION, SINGLE, LabelledFiles, Mask

_SEVERAL = (list, tuple, set, np.ndarray)


def check_names(classes: Sequence[str] | Mapping[int, str] | None) -> None:
    """Raise ValueError where two classes have one name."""
    names = list(classes.values() if isinstance(classes, Mapping) else classes or ())
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"classes: {name!r} is given twice; give every class a name of its own.")


def problem_of(task: str, found: Sequence[LabelledFiles], classes: Sequence[str] | Mapping[int, str] | None) -> str:
    """Return the problem type that the labels make.

    Raises:
        ValueError: If a label is of another kind than the first, or does not suit the task; names both sets.
    """
    kinds = [_kind(one.label, classes is not None) for one in found]
    if REGRESSION in kinds:
        # Among numbers that are not whole, those that happen to be are values, too.
        kinds = [
            REGRESSION if kind in (SINGLE, MULTI) and _is_numeric(one.label) else kind
            for one, kind in zip(found, kinds, strict=True)
        ]
    for one, kind in zip(found, kinds, strict=True):
        if kind is None or (task != CLASSIFICATION) != (kind == "mask"):
            raise ValueError(f"{one.name}: its label {_shown(one.label)} suits no {task}; see docs/finetuning.md.")
    several = {MULTI, SINGLE} >= set(kinds) and MULTI in kinds
    for one, kind in zip(found, kinds, strict=True):
        if kind != kinds[0] and not several:
            raise ValueError(
                f"{one.name}: its label {_shown(one.label)} is of another kind than that of {found[0].name}"
                f" ({_shown(found[0].label)}); give texts to all or numbers to all."
            )
    return MULTI if several else SINGLE if kinds[0] == "mask" else str(kinds[0])


def _kind(label: Any, has_classes: bool) -> str | None:
    """Return the problem type of one label, "mask" of a mask, None of what is no label."""
    if isinstance(label, Mask):
        return "mask"
    is_list, parts = isinstance(label, _SEVERAL), _parts(label)
    if all(isinstance(part, str) for part in parts):
        return MULTI if is_list else SINGLE
    if not _is_numeric(label):
        return None
    whole = all(float(part) == int(part) for part in parts)
    if whole and (has_classes or all(isinstance(part, Integral) for part in parts)):
        return MULTI if is_list else SINGLE
    return REGRESSION


def _parts(label: Any) -> list[Any]:
    """Return what a label is made of: itself, or what it lists."""
    return list(label) if isinstance(label, _SEVERAL) else [label]


def _is_numeric(label: Any) -> bool:
    """Return whether a label is a finite number, or several and nothing else."""
    parts = _parts(label)
    return bool(parts) and all(isinstance(part, Real) and np.isfinite(float(part)) for part in parts)


def _shown(label: Any) -> str:
    """Return a label as a message quotes it."""
    return "of pixels" if isinstance(label, Mask) else reprlib.repr(label)


def encode_labels(
    problem: str,
    found: Sequence[LabelledFiles],
    is_train: np.ndarray,
    classes: Sequence[str] | Mapping[int, str] | None,
    *,
    change: bool = False,
) -> tuple[list[str], list[np.ndarray]]:
    """Return the names of the classes, and the label of every set as `LabelledSet` has it.

    Args:
        problem: As `problem_of` says.
        found: The sets.
        is_train: (N,) bool, which are to learn from.
        classes: All names, or None for those of the training part; of masks by stored number.
        change: Of a mask of two classes, the first is what did not change.

    Raises:
        ValueError: If a label is of no known class, a class has no training example, or there are fewer than two
            classes; names the set.
    """
    if problem == REGRESSION:
        values = [np.atleast_1d(np.asarray(one.label, np.float32)) for one in found]
        for one, value in zip(found, values, strict=True):
            if value.shape != values[0].shape:
                raise ValueError(f"{one.name}: has {len(value)} values, and {found[0].name} {len(values[0])}.")
        names = list(classes.values() if isinstance(classes, Mapping) else classes or ())
        if names and len(names) != len(values[0]):
            raise ValueError(
                f"classes={names}: the sets have {len(values[0])} values each; give as many names, or leave it out."
            )
        return names or [f"value {number}" for number in range(len(values[0]))], values
    keys = [keys_of(one.label) for one in found]
    is_mask = isinstance(found[0].label, Mask)
    known = _names(keys, is_train, classes, is_mask, change)
    trained: set[Any] = set()
    way_out = ("split in another way" if classes is None else "name it among classes") + ", or leave it out."
    for one, own, learnt in zip(found, keys, is_train, strict=True):
        for key in own:
            if key not in known:
                raise ValueError(
                    f"{_source(one)}: the class {key!r} is none of {', '.join(map(repr, list(known)[:20]))}"
                    + (", those of the training part; " if classes is None else "; ")
                    + ("ignore it, or split in another way." if is_mask else way_out)
                )
        if learnt:
            trained |= own
    for key, name in known.items():
        if key not in trained:
            raise ValueError(
                f"The class {name!r} has no training example; add some, ignore it, or split in another way."
            )
    if len(known) < 2 and problem == SINGLE:
        raise ValueError(f"The labels hold one class alone, {next(iter(known.values()))!r}; two are the least.")
    if len(known) > IGNORED:
        raise ValueError(f"The masks hold {len(known)} classes, and {IGNORED} are the most.")
    numbers = {key: number for number, key in enumerate(known)}
    return list(known.values()), [_encoded(one.label, numbers, problem) for one in found]


def keys_of(label: Any) -> set[Any]:
    """Return the classes of a label as they are written: texts, or whole numbers."""
    if isinstance(label, Mask):
        return set(label.numbers)
    return {part if isinstance(part, str) else int(part) for part in _parts(label)}


def _names(
    keys: Sequence[set[Any]],
    is_train: np.ndarray,
    classes: Sequence[str] | Mapping[int, str] | None,
    masks: bool,
    change: bool,
) -> dict[Any, str]:
    """Return the names of the classes by what labels call them, in the order of their numbers."""
    trained = {key for own, learnt in zip(keys, is_train, strict=True) if learnt for key in own}
    written = sorted(trained, key=lambda key: (isinstance(key, str), key))
    if isinstance(classes, Mapping):
        return {key: classes[key] for key in sorted(classes)}
    if classes is not None:
        by_number = masks or any(isinstance(key, int) for key in written)
        return dict(enumerate(classes)) if by_number else {name: name for name in classes}
    if change and len(written) == 2:
        return dict(zip(written, ("unchanged", "changed"), strict=True))
    return {key: str(key) for key in written}


def _source(one: LabelledFiles) -> str:
    """Return the file that a label stands in."""
    return one.label.source if isinstance(one.label, Mask) else one.name


def _encoded(label: Any, numbers: Mapping[Any, int], problem: str) -> np.ndarray:
    """Return a label as numbers."""
    if isinstance(label, Mask):
        encoded = np.full(label.values.shape, IGNORED, np.uint8)
        for key, number in numbers.items():
            encoded[label.known & (label.values == key)] = number
        return encoded
    own = [numbers[key] for key in keys_of(label)]
    if problem == SINGLE:
        return np.array(own[0], np.int64)
    present = np.zeros(len(numbers), np.float32)
    present[own] = 1
    return present
