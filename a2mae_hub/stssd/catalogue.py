"""The scenes of a collection: found, opened by their headers, and laid out on the globe."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely

from a2mae_hub.grids import Grid
from a2mae_hub.products import RASTER_SUFFIXES, is_quality_layer, parse_time
from a2mae_hub.scene_files import Scene, no_georeference_warning, open_scene, open_scenes

from .clouds import quality_layer
from .footprints import Footprint, covered, footprint_of, outline_of, polygon
from .recipe import Collection, Scenes, acquired_from_path

# Stands in for the times in file names, which are not to be read where a pattern finds them.
_UNREAD = datetime(2000, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class CatalogueScene:
    """A scene of a collection.

    Attributes:
        scene: Its files, bands and grid.
        name: Its path below the recipe's root, or below the folder that the recipe names, or its STAC id: what
            provenance records.
        footprint: Where it lies; None without georeference.
        quality_path: Where its quality layer is, if it has one.
        cloud_share: Share under cloud of the whole scene, as a catalogue says.
        licence: Terms of use.
    """

    scene: Scene
    name: str
    footprint: Footprint | None
    quality_path: str | None
    cloud_share: float | None
    licence: str | None

    @property
    def sensor(self) -> str:
        """Name of the sensor."""
        return self.scene.sensor.name

    @property
    def acquired(self) -> datetime | None:
        """Acquisition time, if known."""
        return self.scene.acquired

    def describe(self) -> list[object]:
        """Return what decides the pixels that are taken of it, as plain types, to tell one build from another."""
        scene = self.scene
        files = [[layer.name, layer.index, Path(layer.file.path).name] for layer in scene.layers]
        return [
            self.name,
            self.sensor,
            files,
            str(scene.acquired),
            str(scene.scale),
            str(scene.offset),
            [scene.grid.width, scene.grid.height, *scene.grid.transform],
            self.quality_path and Path(self.quality_path).name,
        ]


def open_collection(collection: Collection, root: Path) -> list[CatalogueScene]:
    """Open the headers of all scenes of a collection.

    Args:
        collection: The collection.
        root: Folder that its paths are relative to.

    Returns:
        The scenes, in the order in which the recipe names them and their names sort.

    Raises:
        FileNotFoundError: If a path or pattern names nothing.
        ValueError: If a file cannot be opened or described, or two scenes would have one name; names it.
    """
    scenes: list[CatalogueScene] = []
    for entry in collection.scenes:
        scenes += _from_files(entry, root)
        scenes += _from_stac(entry, root)
    named: dict[str, CatalogueScene] = {}
    for scene in scenes:
        other = named.setdefault(scene.name, scene)
        if other is not scene:
            raise ValueError(
                f"{scene.scene.source}: would be called {scene.name} in the data set, as {other.scene.source} is; name "
                "a scene only once, or set root to a folder that holds both."
            )
    return scenes


def _from_files(entry: Scenes, root: Path) -> Iterator[CatalogueScene]:
    """Open the scenes that paths and patterns name, each once."""
    seen: set[tuple[tuple[str, int], ...]] = set()
    for given in entry.paths:
        paths, base = _rasters(given, root)
        described = open_scenes(
            paths,
            sensor=entry.sensor,
            bands=entry.bands,
            acquired=_UNREAD if entry.finds_time else entry.acquired,
            scale=entry.scale,
            offset=entry.offset,
            nodata=entry.nodata,
        )
        for scene in described:
            files = [layer.file.path for layer in scene.layers]
            key = tuple((path, layer.index) for path, layer in zip(files, scene.layers, strict=True))
            if key in seen:
                continue
            seen.add(key)
            if entry.finds_time:
                scene = replace(scene, acquired=_time_in(files[0], entry, root, named=os.path.isabs(given)))
            name = _relative(scene.source, root, base) or os.path.basename(files[0])
            yield _catalogued(scene, name, quality_layer(files), None, entry.licence)


def _time_in(path: str, entry: Scenes, root: Path, *, named: bool) -> datetime:
    """Return the time that an entry's pattern finds in a path, in the part of it that is not of this machine alone.

    Args:
        path: The file.
        entry: What the recipe declares.
        root: Its root.
        named: Whether the recipe names the file by its absolute path, all of which it then tells about.
    """
    assert entry.acquired is not None
    if _is_remote(path):
        return parse_time(acquired_from_path(entry.acquired, path))
    whole = Path(os.path.abspath(path)).as_posix()
    shared = os.path.commonpath([whole, os.path.abspath(root)])
    # A path that is given as absolute and lies beside the root has no part that the root tells apart.
    below = 0 if named and shared != os.path.abspath(root) else len(shared.rstrip("/"))
    return parse_time(acquired_from_path(entry.acquired, whole, below=below, named=0 if named else below))


def _rasters(given: str, root: Path) -> tuple[list[str], str]:
    """Return the rasters, and the folders that directly hold some, that a path or pattern names, and what it is below.

    Folders are given as such, and so are those that a pattern takes all rasters of: of what is in them not all has to
    be an optical band, while every file that is given by its name has.
    """
    if _is_remote(given):
        return [given], given
    full = os.path.join(root, given)
    found = _found(given, root)
    if not found:
        raise FileNotFoundError(f"{full}: no such file or folder; correct the path, or the root it is relative to.")
    is_pattern = found != [full]
    suffixes = (*RASTER_SUFFIXES, os.path.splitext(given)[1].lower() or RASTER_SUFFIXES[0])
    folders, files = set(), set()
    for path in found:
        if not os.path.isdir(path):
            if not is_pattern or path.lower().endswith(suffixes):
                files.add(os.path.normpath(path))
            continue
        for at, inside, _ in os.walk(path):
            inside[:] = [name for name in inside if not name.startswith(".")]
            if _optical_rasters(at):
                folders.add(os.path.normpath(at))
    if is_pattern:
        folders |= {at for at in map(os.path.dirname, files) if set() < _optical_rasters(at) <= files}
    held = set().union(*map(_optical_rasters, folders))
    rasters = sorted(folders | {path for path in files - held if _is_optical(path)})
    if not rasters:
        raise FileNotFoundError(f"{full}: holds no optical raster ({', '.join(RASTER_SUFFIXES)}); correct the path.")
    base = full if os.path.isdir(full) else os.path.dirname(re.split(r"[*?[]", full, maxsplit=1)[0])
    return rasters, base


def _found(given: str, root: Path) -> list[str]:
    """Return what a path, or else a pattern, names; sorted."""
    full = os.path.join(root, given)
    if os.path.exists(full):
        return [full]
    return sorted(os.path.join(root, path) for path in glob.glob(given, root_dir=root, recursive=True))


def _optical_rasters(folder: str) -> set[str]:
    """Return the optical rasters that lie directly in a folder."""
    names = (name for name in os.listdir(folder or ".") if name.lower().endswith(RASTER_SUFFIXES) and _is_optical(name))
    return {os.path.normpath(os.path.join(folder, name)) for name in names}


def _is_optical(path: str) -> bool:
    """Return whether a file is neither hidden nor a layer that is no band."""
    return not os.path.basename(path).startswith(".") and not is_quality_layer(path)


def _is_remote(path: str) -> bool:
    """Return whether a path is one of GDAL's, or a URL."""
    return path.startswith("/vsi") or "://" in path


def _from_stac(entry: Scenes, root: Path) -> Iterator[CatalogueScene]:
    """Open the scenes that STAC items describe."""
    if not entry.stac:
        return
    from .stac import sources_of_items  # pystac is only needed here

    paths: list[str] = []
    for given in entry.stac:
        found = [given] if _is_remote(given) else _found(given, root)
        if not found:
            raise FileNotFoundError(f"{os.path.join(root, given)}: no such STAC file; correct the path.")
        paths += found
    for source in sources_of_items(paths, sensor=entry.sensor, bands=entry.bands):
        acquired: Any = source.acquired if entry.acquired is None else entry.acquired
        scene = open_scene(
            source.paths,
            sensor=source.sensor,
            bands=source.bands,
            acquired=_time_in(source.paths[0], entry, root, named=False) if entry.finds_time else acquired,
            scale=source.scale if entry.scale is None else entry.scale,
            offset=source.offset if entry.offset is None else entry.offset,
            nodata=source.nodata if entry.nodata is None else entry.nodata,
        )
        yield _catalogued(scene, source.name, source.quality, source.cloud_share, entry.licence or source.licence)


def _catalogued(
    scene: Scene, name: str, quality: str | None, cloud_share: float | None, licence: str | None
) -> CatalogueScene:
    """Return the entry of one scene."""
    _check_numbers(scene)
    try:
        footprint = None if scene.grid.crs is None else footprint_of(scene.grid)
    except ValueError as error:
        raise ValueError(f"{scene.source}: {error}") from error
    return CatalogueScene(scene, name, footprint, quality, cloud_share, licence)


def _check_numbers(scene: Scene) -> None:
    """Raise ValueError where numbers of 8 bits are too small for the scale that their sensor has by default.

    Reflectance × 10 000, cut to 8 bits, ends at 0.0255: darker than the ground usually is in any band, and yet bright
    enough for the check of units that every image goes through. A scale that is declared, or told by the file, is
    taken as it is.
    """
    sensor, first = scene.sensor, scene.layers[0]
    brightest = 255 * sensor.scale + sensor.offset
    bands = [sensor.find(layer.name) for layer in scene.layers]
    if scene.scale is not None or sensor.unit != "reflectance" or any(brightest >= band.mean for band in bands):
        return
    with no_georeference_warning(), rasterio.open(first.file.path) as dataset:
        dtype = dataset.dtypes[first.index]
    if dtype in ("uint8", "int8"):
        raise ValueError(
            f"{scene.source}: holds numbers of type {dtype}, which by the default scale={sensor.scale:g} of "
            f"{sensor.name} make a reflectance of {brightest:.3g} at most; declare the scale= by which they were "
            "brought to 8 bits."
        )


def _relative(path: str, root: Path, base: str) -> str:
    """Return a path without the folders of this machine: below the root, or else below what the recipe names.

    It is empty where the path is both.
    """
    if "://" in path:
        host, _, place = path.partition("://")[2].partition("?")[0].partition("/")
        return f"{host.rpartition('@')[2]}/{place}"  # without passwords and signatures
    for folder in (root, base):
        inside = Path(os.path.relpath(path, folder))
        if inside.parts and inside.parts[0] != os.pardir:
            return inside.as_posix()
    return ""


class SceneIndex:
    """Finds the scenes that footprints lie on. Scenes of one pixel grid, such as dates of one tile, count as one.

    Args:
        scenes: The scenes of a collection; those without georeference lie nowhere.

    Attributes:
        grids: The pixel grids, each once.
        footprints: The footprint of each.
        shapes: The ground of each, in longitude and latitude.
    """

    def __init__(self, scenes: list[CatalogueScene]) -> None:
        by_grid: dict[Grid, list[int]] = {}
        footprints: dict[Grid, Footprint] = {}
        for number, scene in enumerate(scenes):
            if scene.footprint is not None:
                by_grid.setdefault(scene.scene.grid, []).append(number)
                footprints[scene.scene.grid] = scene.footprint
        self.grids, self.footprints = list(footprints), list(footprints.values())
        self.shapes = [polygon(outline_of(grid)) for grid in self.grids]
        self._members = list(by_grid.values())

    def below(self, footprints: Sequence[Footprint]) -> list[tuple[int, ...]]:
        """Return for every footprint the numbers of the scenes that it lies on as a whole, rising."""
        centres = np.array([footprint[:2] for footprint in footprints]).reshape(-1, 2)
        tree = shapely.STRtree(shapely.points(centres))
        below: list[list[int]] = [[] for _ in footprints]
        for number, (grid, shape) in enumerate(zip(self.grids, self.shapes, strict=True)):
            near = np.sort(tree.query(shape, predicate="intersects")).tolist()
            fits = covered([footprints[place] for place in near], grid)
            for place in itertools.compress(near, fits):
                below[place].append(number)
        # Places on the same grids share one tuple, so that many dates of many places stay small.
        together = {
            grids: tuple(sorted(scene for grid in grids for scene in self._members[grid]))
            for grids in set(map(tuple, below))
        }
        return [together[tuple(grids)] for grids in below]
