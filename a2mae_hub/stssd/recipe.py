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

import math
import numbers
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from a2mae_hub.products import parse_time
from a2mae_hub.recipe_files import (
    check_sensor,
    check_text,
    checked,
    checked_fields,
    is_number,
    listed,
    read_entries,
)

GRID, FOOTPRINTS = "grid", "footprints"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_PARTS = ("year", "month", "day")
_FINDS_TIME = "(?P<year>"


@dataclass(frozen=True)
class Scenes:
    """Scenes that have the same things to declare. What is None or empty is as the files say.

    Attributes:
        paths: Rasters, folders (searched to any depth), or patterns of either, relative to the recipe's root.
        stac: STAC items, item collections, collections or catalogues: files, patterns of files, or URLs.
        sensor: Name in the sensor registry.
        bands: Band names in file order, or those to take of files that name theirs.
        acquired: Acquisition time as ISO text; or, where it holds "(?P<year>", a regular expression with the groups
            year, month and day that finds it in the path below the root, "/" before it, or else in the absolute path,
            though not in folders above the root that `paths` does not name. Where no day is told it is taken in the
            middle of the month, where no month is, in the middle of the year.
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

    @property
    def finds_time(self) -> bool:
        """Whether `acquired` is a pattern that finds the time in the path."""
        return self.acquired is not None and _FINDS_TIME in self.acquired

    def __post_init__(self) -> None:
        """Check what can be checked without opening a file."""
        for name in ("paths", "stac", "bands"):
            value = getattr(self, name)
            if name == "bands" and value is None:
                continue
            if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) and text for text in value):
                raise ValueError(f"{name} is {value!r}, and must be a list of texts; quote what is no text to YAML.")
        for name in ("sensor", "acquired", "licence"):
            check_text(name, getattr(self, name), optional=True)
        for name in ("scale", "offset"):
            value = getattr(self, name)
            each = value if isinstance(value, (list, tuple)) and value else [value]
            if value is not None and not all(is_number(number) and math.isfinite(number) for number in each):
                raise ValueError(f"{name} is {value!r}, and must be a number, or a list of one per band.")
        if self.nodata is not None and not is_number(self.nodata):
            raise ValueError(f"nodata is {self.nodata!r}, and must be a number.")
        if not self.paths and not self.stac:
            raise ValueError("paths or stac is missing.")
        if self.bands is not None and not self.bands:
            raise ValueError("bands is empty; name at least one, or leave it out.")
        if self.sensor is not None:
            check_sensor("sensor", self.sensor)
        if self.finds_time:
            try:
                re.compile(str(self.acquired))
            except re.error as error:
                raise ValueError(f"acquired is {self.acquired!r}, which is no regular expression ({error}).") from error
        elif self.acquired is not None:
            try:
                parse_time(self.acquired)
            except ValueError as error:
                raise ValueError(f"acquired: {error}") from error


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
        size: Side of the footprint of a set, metres; tiles of "footprints" are as many whole pixels as come next to it.
            None with "footprints" leaves scenes whole.
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
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{what}: a name begins with a letter or digit and holds letters, digits, '.', '_' and '-'."
            )
        if not isinstance(self.scenes, (list, tuple)) or not all(isinstance(entry, Scenes) for entry in self.scenes):
            raise ValueError(f"{what}: scenes is {self.scenes!r}, and must be a list of Scenes.")
        if not self.scenes:
            raise ValueError(f"{what}: scenes is empty, so there is nothing to sample.")
        for name in ("kind", "sampling", "derive"):
            check_text(f"{what}: {name}", getattr(self, name), optional=name == "derive")
        for name in ("size", "spacing"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and 0 < value < math.inf):
                raise ValueError(f"{what}: {name} is {value!r}, and must be a positive number of metres.")
        if self.size is None and self.sampling != FOOTPRINTS:
            raise ValueError(f"{what}: size in metres is missing; only sampling: footprints can do without.")
        for share in ("max_cloud", "max_nodata", "validation"):
            value = getattr(self, share)
            if not (is_number(value) and 0 <= value <= 1):
                raise ValueError(f"{what}: {share} is {value!r}, and must be a share from 0 to 1.")
        if isinstance(self.images, bool) or not isinstance(self.images, numbers.Integral) or self.images < 1:
            raise ValueError(f"{what}: images is {self.images!r}, and must be a whole number from 1 on.")
        if self.derive is not None and self.images < 2:
            raise ValueError(f"{what}: derive makes a second image, and images is {self.images}; allow at least 2.")
        if self.derive is not None:
            check_sensor(f"{what}: derive", self.derive)


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
        # Shards are files, and there are systems to which the files "a" and "A" are one.
        twice = [name for name, count in Counter(name.casefold() for name in names).items() if count > 1]
        if twice:
            raise ValueError(f"Two collections are named {twice[0]!r}; give each a name of its own.")

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
    return read_entries(path, root, "docs/stssd.md", "collections", _collection, Recipe)


def _collection(item: Any, number: int) -> Collection:
    """Read one collection."""
    known, what = checked_fields(item, Collection, "collection", f"collection {number}")
    scenes = []
    for position, entry in enumerate(listed(known["scenes"], f"{what}: scenes"), start=1):
        where = f"{what}: scenes {position}"
        facts = dict(checked(entry, [field.name for field in fields(Scenes)], where))
        for name in ("paths", "stac"):
            # Left empty is left out.
            if name in facts and facts[name] is None:
                del facts[name]
        for name in ("paths", "stac", "bands"):
            if isinstance(facts.get(name), str):
                facts[name] = [facts[name]]
        for name in ("paths", "stac", "bands", "scale", "offset"):
            if isinstance(facts.get(name), list):
                facts[name] = tuple(facts[name])
        # An unquoted 20200621 is a number to YAML.
        if isinstance(facts.get("acquired"), int) and not isinstance(facts["acquired"], bool):
            facts["acquired"] = str(facts["acquired"])
        try:
            scenes.append(Scenes(**facts))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return Collection(**{**known, "scenes": tuple(scenes)})


def acquired_from_path(pattern: str, path: str, *, below: int = 0, named: int = 0) -> str:
    """Find the acquisition time in a path by a regular expression with the groups year, month and day.

    The end of the path is searched first, as if it were all there is, and then the whole, since a pattern may spell the
    folders above: `^/data/(?P<year>` fits `/data/2020/x.tif` also where the end is `/2020/x.tif`. But the year must not
    stand in a folder that the recipe does not name.

    Args:
        pattern: The regular expression.
        path: The path.
        below: Where its end begins, with a "/": that of the part below the recipe's root.
        named: Where the part begins that the recipe names.

    Returns:
        ISO text; the middle of the month or year where the day or month is not told.

    Raises:
        ValueError: If the pattern does not fit the path, or what it finds is no date.
    """
    try:
        matches = [re.search(pattern, path[below:])]
        matches += [match for match in re.finditer(pattern, path) if match.start("year") >= named]
    except re.error as error:
        raise ValueError(f"acquired={pattern!r} is no regular expression ({error}).") from error
    match = next((match for match in matches if match and match["year"]), None)
    found = {key: text for key, text in match.groupdict().items() if text and key in _PARTS} if match else {}
    if "year" not in found:
        end = f", the folders {path[:named]} left out" if named else ""
        raise ValueError(f"{path}: acquired={pattern!r} finds no year in the path{end}; correct the pattern.")
    if "day" in found and "month" not in found:
        raise ValueError(f"{path}: acquired={pattern!r} finds a day but no month in the path; correct the pattern.")
    # 2 July is the middle of a year, the 15th about that of a month.
    month, day = found.get("month", "7"), found.get("day", "15" if "month" in found else "2")
    text = f"{found['year']}-{month:0>2}-{day:0>2}"
    try:
        parse_time(text)
    except ValueError as error:
        raise ValueError(f"{path}: acquired={pattern!r} finds {text} in the path, which is no date.") from error
    return text
