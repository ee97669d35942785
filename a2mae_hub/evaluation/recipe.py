r"""What to evaluate on: tasks, written in YAML or in Python.

root: ../data                       # paths below are relative to it; left out, to the recipe's folder
tasks:
  - name: eurosat
    kind: classification            # or few-shot, segmentation, reconstruction
    parquet: eurosat/train.parquet  # columns image (encoded bytes), label, name; or folders: eurosat/*, one a class
    sensor: sentinel-2-l1c
    bands: [B04, B03, B02]
    scale: 0.0001
    test_every: 6                   # of every class, the sixth image and so on; or test_names, a regular expression
  - name: water
    kind: segmentation
    images: water/image_*.tif
    labels: [image_, label_]        # in the file name, what to replace by what
    label_band: 1
    ignore: [255]
    sensor: hls
    test_names: '[67]\.tif$'
  - name: sets
    kind: reconstruction
    shards: stssd
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from a2mae_hub.recipe_files import check_sensor, check_text, checked_fields, is_number, read_entries

CLASSIFICATION, FEW_SHOT, SEGMENTATION, RECONSTRUCTION = "classification", "few-shot", "segmentation", "reconstruction"
KINDS = (CLASSIFICATION, FEW_SHOT, SEGMENTATION, RECONSTRUCTION)
_TEXTS = ("sensor", "parquet", "folders", "images", "test_names", "shards")
_DECLARES_IMAGES = ("sensor", "bands", "scale", "offset", "nodata")
_OF_SEGMENTATION = ("images", "labels", "label_band", "ignore")
_SOURCES = {
    CLASSIFICATION: ("parquet", "folders"),
    FEW_SHOT: ("parquet", "folders"),
    SEGMENTATION: ("images",),
    RECONSTRUCTION: ("shards",),
}
_SPLITS = ("test_every", "test_names")


@dataclass(frozen=True)
class Task:
    """One question to the features, and the images to ask it of. What is None is as the files say.

    Attributes:
        name: Tells the task apart in the report.
        kind: "classification", "few-shot", "segmentation" or "reconstruction".
        parquet: File with the columns `image` (bytes of a JPEG or PNG), `label` and `name`.
        folders: Pattern of folders, each a class of that name with GeoTIFFs in it.
        images: Pattern of GeoTIFFs, each with labels of its size beside it.
        labels: What to replace in the file name of an image, and by what, to have that of its labels.
        label_band: Which band of the label file, counted from 1.
        ignore: Stored numbers that mean "no label".
        sensor: Name in the sensor registry.
        bands: Band names in file order, or those to take of files that name theirs.
        scale: Factor from stored number to physical value, one or one per band.
        offset: Offset from stored number to physical value, one or one per band.
        nodata: Stored number that means "no data".
        test_every: n puts every n-th image of each class, in file order, into the test part; of segmentation, every
            n-th image.
        test_names: Regular expression; images in whose name it is found are the test part.
        shards: Folder of STSSD shards, or id of a data set on the Hub.
    """

    name: str
    kind: str
    parquet: str | None = None
    folders: str | None = None
    images: str | None = None
    labels: tuple[str, str] | None = None
    label_band: int | None = None
    ignore: tuple[float, ...] | None = None
    sensor: str | None = None
    bands: tuple[str, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    offset: float | tuple[float, ...] | None = None
    nodata: float | None = None
    test_every: int | None = None
    test_names: str | None = None
    shards: str | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without opening a file."""
        check_text("name", self.name, optional=False)
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, and must be one of {', '.join(KINDS)}.")
        for key in _TEXTS:
            check_text(key, getattr(self, key), optional=True)
        self._check_numbers()
        self._check_texts()
        self._check_what_goes_together()

    def _check_numbers(self) -> None:
        """Raise ValueError where what must be a number is none."""
        for key in ("scale", "offset", "ignore"):
            value = getattr(self, key)
            each = value if isinstance(value, (list, tuple)) else [value]
            if value is not None and not all(is_number(number) and math.isfinite(number) for number in each):
                raise ValueError(f"{key} is {value!r}, and must be a number, or a list of them.")
        if self.nodata is not None and not is_number(self.nodata):
            raise ValueError(f"nodata is {self.nodata!r}, and must be a number.")
        for key, lowest in (("label_band", 1), ("test_every", 2)):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, int) and is_number(value) and value >= lowest):
                raise ValueError(f"{key} is {value!r}, and must be a whole number from {lowest} on.")

    def _check_texts(self) -> None:
        """Raise ValueError where a list of texts, a sensor or a regular expression is none."""
        for key in ("bands", "labels"):
            value = getattr(self, key)
            if value is not None and not (
                isinstance(value, (list, tuple)) and value and all(isinstance(text, str) and text for text in value)
            ):
                raise ValueError(f"{key} is {value!r}, and must be a list of texts; quote what is no text to YAML.")
        if self.labels is not None and len(self.labels) != 2:
            raise ValueError(f"labels is {list(self.labels)}, and must be two texts: what to replace, and by what.")
        if self.sensor is not None:
            check_sensor("sensor", self.sensor)
        if self.test_names is not None:
            try:
                re.compile(self.test_names)
            except re.error as error:
                raise ValueError(
                    f"test_names is {self.test_names!r}, which is no regular expression ({error})."
                ) from error

    def _check_what_goes_together(self) -> None:
        """Raise ValueError where a key is missing for the kind of task, or means nothing to it."""
        given = {field.name for field in fields(self) if field.name != "kind" and getattr(self, field.name) is not None}
        sources = _SOURCES[self.kind]
        if len(given & set(sources)) != 1:
            raise ValueError(f"a task of the kind {self.kind} needs {' or '.join(sources)}.")
        allowed = {"name", *sources}
        if self.kind != RECONSTRUCTION:
            allowed |= set(_DECLARES_IMAGES)
        if self.kind == SEGMENTATION:
            allowed |= set(_OF_SEGMENTATION)
            if self.labels is None:
                raise ValueError("labels is missing: two texts, what to replace in the name of an image, and by what.")
        if self.kind in (CLASSIFICATION, SEGMENTATION):
            allowed |= set(_SPLITS)
            if len(given & set(_SPLITS)) != 1:
                raise ValueError(f"a task of the kind {self.kind} needs {' or '.join(_SPLITS)}, to know its test part.")
        for key in sorted(given - allowed):
            raise ValueError(f"{key} means nothing to a task of the kind {self.kind}; leave it out.")
        if self.parquet is not None:
            for key in ("sensor", "bands"):
                if key not in given:
                    raise ValueError(f"{key} is missing: encoded images in a Parquet file do not tell theirs.")


@dataclass(frozen=True)
class Recipe:
    """The tasks of an evaluation.

    Attributes:
        tasks: The tasks, each under a name of its own.
        root: Folder that paths are relative to.
    """

    tasks: tuple[Task, ...]
    root: Path = Path(".")

    def __post_init__(self) -> None:
        """Check that there is something to do, and that names are told apart."""
        if not self.tasks:
            raise ValueError("The recipe names no tasks, so there is nothing to evaluate.")
        twice = [name for name, count in Counter(task.name for task in self.tasks).items() if count > 1]
        if twice:
            raise ValueError(f"Two tasks are named {twice[0]!r}; give each a name of its own.")


def read_recipe(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: The file.
        root: Folder that paths in it are relative to; None takes the recipe's own word, else its folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no recipe; names the file, the task and the key.
    """
    return read_entries(path, root, "docs/recipes/open_evaluation.yaml", "tasks", _task, Recipe)


def _task(item: Any, number: int) -> Task:
    """Read one task."""
    known, what = checked_fields(item, Task, "task", f"task {number}")
    facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    try:
        return Task(**facts)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
