"""What to build: collections of scenes, where to sample them, and what to keep; written in YAML or in Python.

root: ../data                     # paths below are relative to it; left out, to the recipe's folder
collections:
  - name: boadella
    kind: grid
    sampling: grid                # or footprints, or a file of points or polygons
    size: 960                     # metres
    derive: landsat-8-sr          # where a place has one sensor only
    scenes:
      - paths: sentinel2/*.tif    # rasters, folders of rasters, or patterns
        sensor: sentinel-2-l2a
        bands: [B02, B03, B04, B08]
        licence: Copernicus
      - stac: items/*.json        # STAC items, collections or catalogues, or URLs of them
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from a2mae_hub.modeling.sensors_a2mae import get_sensor
from a2mae_hub.products import parse_time

GRID, FOOTPRINTS = "grid", "footprints"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Scenes:
    """Scenes that have the same things to declare. What is None or empty is as the files say.

    Attributes:
        paths: Rasters, folders (searched to any depth), or patterns of either, relative to the recipe's root.
        stac: STAC items, item collections, collections or catalogues: files, patterns of files, or URLs.
        sensor: Name in the sensor registry.
        bands: Band names in file order, or those to take of files that name theirs.
        acquired: Acquisition time as ISO text; or, where it holds "(?P<year>", a regular expression with the groups
            year, month and day that finds it in the path. Where no day is told it is taken in the middle of the month,
            where no month is, in the middle of the year.
        scale: Factor from stored number to physical value, one or one per band.
        offset: Offset from stored number to physical value, one or one per band.
        nodata: Stored number that means "no data".
        licence: Terms of use, recorded with every image.
    """

    paths: tuple[str, ...] = ()
    stac: tuple[str, ...] = ()
    sensor: str | None = None
    bands: tuple[str, ...] | None = None
    acquired: str | None = None
    scale: float | tuple[float, ...] | None = None
    offset: float | tuple[float, ...] | None = None
    nodata: float | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Collection:
    """Scenes to be sampled together: images of one place, of at most two of their sensors, become one set.

    Attributes:
        name: Begins the names of shards and the ids of sets.
        scenes: The scenes.
        kind: Kind of the sets: "grid", "city", "gf1", "gf2", or the user's own.
        sampling: "grid" lays a grid over the footprints of the scenes, in UTM, the same for whoever builds;
            "footprints" takes the footprint of every scene (once where several have the same), cut into tiles of
            `size`; a path names a file of points or polygons (GeoJSON, GeoPackage, whatever GDAL reads vectors from).
        size: Side of the footprint of a set, metres. None with "footprints" leaves scenes whole.
        spacing: Metres between the centres of a grid; None is `size`.
        derive: Sensor of the images to derive where a place has one sensor only.
        images: Images of a set at most.
        max_cloud: Share of an image that may lie under cloud or cloud shadow.
        max_nodata: Share of an image that may be without data.
        validation: Share of the sets that go to the split "validation"; cells of 0.1° go there as a whole.
    """

    name: str
    scenes: tuple[Scenes, ...]
    kind: str = "grid"
    sampling: str = GRID
    size: float | None = 960.0
    spacing: float | None = None
    derive: str | None = None
    images: int = 6
    max_cloud: float = 0.2
    max_nodata: float = 0.1
    validation: float = 0.0

    def __post_init__(self) -> None:
        """Check what can be checked without opening a file."""
        what = f"collection {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{what}: a name begins with a letter or digit and holds letters, digits, '.', '_' and '-'."
            )
        if not self.scenes or not all(scenes.paths or scenes.stac for scenes in self.scenes):
            raise ValueError(f"{what}: every entry of scenes names paths or stac, and there is at least one.")
        for name in (scenes.sensor for scenes in self.scenes if scenes.sensor):
            get_sensor(name)
        for number in ("size", "spacing"):
            value = getattr(self, number)
            if value is not None and not value > 0:
                raise ValueError(f"{what}: {number} is {value!r}, and must be a positive number of metres.")
        if self.size is None and self.sampling != FOOTPRINTS:
            raise ValueError(f"{what}: size in metres is missing; only sampling: footprints can do without.")
        for share in ("max_cloud", "max_nodata", "validation"):
            value = getattr(self, share)
            if not 0 <= value <= 1:
                raise ValueError(f"{what}: {share} is {value!r}, and must be a share from 0 to 1.")
        if self.images < 1:
            raise ValueError(f"{what}: images is {self.images!r}, and must be at least 1.")
        if self.derive is not None:
            get_sensor(self.derive)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a build makes.

    Attributes:
        collections: The collections, each under a name of its own.
        root: Folder that paths are relative to.
    """

    collections: tuple[Collection, ...]
    root: Path = Path(".")

    def __post_init__(self) -> None:
        """Check that there is something to do, and that names are told apart."""
        names = [collection.name for collection in self.collections]
        if not names:
            raise ValueError("The recipe names no collections, so there is nothing to build.")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"Two collections are named {name!r}; give each a name of its own.")

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain types, without the root: where data lie does not decide what is built of them."""
        return {"collections": [asdict(collection) for collection in self.collections]}


def read_recipe(path: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: The file.
        root: Folder that paths in it are relative to; None takes the recipe's own word, else its folder.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no recipe; names the file, the collection and the key.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not YAML ({' '.join(str(error).split())}); see docs/stssd.md for a recipe."
        ) from error
    try:
        top = _checked(content, ("root", "collections"), "the recipe")
        collections = tuple(_collection(item) for item in _listed(top.get("collections"), "collections"))
        folder = Path(root) if root is not None else path.parent / top.get("root", ".")
        return Recipe(collections, folder)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _collection(item: Any) -> Collection:
    """Read one collection."""
    known = _checked(item, [field.name for field in fields(Collection)], "a collection")
    what = f"collection {known.get('name')!r}"
    for field in fields(Collection):
        if field.default is MISSING and field.name not in known:
            raise ValueError(f"{what}: {field.name} is missing.")
    scenes = []
    for entry in _listed(known["scenes"], f"{what}: scenes"):
        facts = dict(_checked(entry, [field.name for field in fields(Scenes)], f"{what}: scenes"))
        for name in ("paths", "stac", "bands"):
            if isinstance(facts.get(name), str):
                facts[name] = [facts[name]]
        for name in ("paths", "stac", "bands", "scale", "offset"):
            if isinstance(facts.get(name), list):
                facts[name] = tuple(facts[name])
        # YAML reads an unquoted 2020-06-21 as a date.
        if facts.get("acquired") is not None:
            facts["acquired"] = str(facts["acquired"])
        scenes.append(Scenes(**facts))
    try:
        return Collection(**{**known, "scenes": tuple(scenes)})
    except TypeError as error:
        raise ValueError(f"{what}: a value is of the wrong type ({error}).") from error


def _checked(item: Any, keys: Sequence[str], what: str) -> Mapping[str, Any]:
    """Return a mapping that has no keys but these."""
    if not isinstance(item, Mapping):
        raise ValueError(f"{what} must be a mapping with some of the keys {', '.join(keys)}, not {item!r}.")
    unknown = [str(key) for key in item if key not in keys]
    if unknown:
        raise ValueError(f"{what} has the unknown key {unknown[0]!r}; known are {', '.join(keys)}.")
    return item


def _listed(item: Any, what: str) -> list[Any]:
    """Return a list that holds something."""
    if not isinstance(item, list) or not item:
        raise ValueError(f"{what} must be a list with at least one entry, not {item!r}.")
    return item


def acquired_from_path(pattern: str, path: str) -> str:
    """Find the acquisition time in a path by a regular expression with the groups year, month and day.

    Returns:
        ISO text; the middle of the month or year where the day or month is not told.

    Raises:
        ValueError: If the pattern does not fit the path, or what it finds is no date.
    """
    try:
        match = re.search(pattern, path)
    except re.error as error:
        raise ValueError(f"acquired={pattern!r} is no regular expression ({error}).") from error
    if match is None:
        raise ValueError(f"{path}: acquired={pattern!r} finds no time in the path; correct the pattern.")
    found = {key: int(text) for key, text in match.groupdict().items() if text}
    # 2 July is the middle of a year, the 15th about that of a month.
    month, day = found.get("month", 7), found.get("day", 15 if "month" in found else 2)
    text = f"{found['year']:04d}-{month:02d}-{day:02d}"
    parse_time(text)
    return text
