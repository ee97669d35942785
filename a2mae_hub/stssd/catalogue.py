"""The scenes of a collection: found, opened by their headers, and laid out on the globe."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import shapely

from a2mae_hub.products import RASTER_SUFFIXES, is_quality_layer, parse_time
from a2mae_hub.scene_files import Scene, open_scene, open_scenes

from .clouds import quality_layer
from .footprints import Footprint, corners_of, footprint_of, polygon
from .recipe import Collection, Scenes, acquired_from_path


@dataclass(frozen=True)
class CatalogueScene:
    """A scene of a collection.

    Attributes:
        scene: Its files, bands and grid.
        name: Its path relative to the recipe's root, or its STAC id: what provenance records.
        footprint: Where it lies; None without georeference.
        quality: Its quality layer, if it has one: a scene of one band.
        quality_path: Where that is.
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
        ValueError: If a file cannot be opened or described; names it.
    """
    scenes: list[CatalogueScene] = []
    for entry in collection.scenes:
        scenes += _from_files(entry, root)
        scenes += _from_stac(entry, root)
    return scenes


def _from_files(entry: Scenes, root: Path) -> Iterator[CatalogueScene]:
    """Open the scenes that paths and patterns name."""
    pattern = entry.acquired if entry.acquired and "(?P<year>" in entry.acquired else None
    for given in entry.paths:
        for paths in _rasters(given, root):
            described = open_scenes(
                paths,
                sensor=entry.sensor,
                bands=entry.bands,
                acquired=None if pattern else entry.acquired,
                scale=entry.scale,
                offset=entry.offset,
                nodata=entry.nodata,
            )
            for scene in described:
                if pattern:
                    when = acquired_from_path(pattern, scene.layers[0].file.path)
                    scene = replace(scene, acquired=parse_time(when))
                files = [layer.file.path for layer in scene.layers]
                yield _catalogued(scene, _relative(scene.source, root), quality_layer(files), None, entry.licence)


def _rasters(given: str, root: Path) -> Iterator[list[str]]:
    """Return the rasters that a path or pattern names, together with the others of their folder."""
    full = given if "://" in given or given.startswith("/vsi") else os.path.join(root, given)
    if full.startswith("/vsi") or "://" in full:
        yield [full]
        return
    found = sorted(glob.glob(full, recursive=True))
    if not found:
        raise FileNotFoundError(f"{full}: no such file or folder; correct the path, or the root it is relative to.")
    files = [path for path in found if os.path.isfile(path)]
    folders = [path for path in found if os.path.isdir(path)]
    for folder in folders:
        within = [os.path.join(at, name) for at, _, names in sorted(os.walk(folder)) for name in sorted(names)]
        files += [path for path in within if path.lower().endswith(RASTER_SUFFIXES)]
    optical = [path for path in files if not is_quality_layer(path) and not os.path.basename(path).startswith(".")]
    if not optical:
        raise FileNotFoundError(f"{full}: holds no optical raster ({', '.join(RASTER_SUFFIXES)}); correct the path.")
    by_folder: dict[str, list[str]] = {}
    for path in optical:
        by_folder.setdefault(os.path.dirname(path), []).append(path)
    yield from by_folder.values()


def _from_stac(entry: Scenes, root: Path) -> Iterator[CatalogueScene]:
    """Open the scenes that STAC items describe."""
    if not entry.stac:
        return
    from .stac import sources_of_items  # pystac is only needed here

    paths: list[str] = []
    for given in entry.stac:
        found = [given] if "://" in given else sorted(glob.glob(os.path.join(root, given), recursive=True))
        if not found:
            raise FileNotFoundError(f"{os.path.join(root, given)}: no such STAC file; correct the path.")
        paths += found
    for source in sources_of_items(paths, sensor=entry.sensor, bands=entry.bands):
        scene = open_scene(
            source.paths,
            sensor=source.sensor,
            bands=source.bands,
            acquired=source.acquired if entry.acquired is None else entry.acquired,
            scale=source.scale if entry.scale is None else entry.scale,
            offset=source.offset if entry.offset is None else entry.offset,
            nodata=source.nodata if entry.nodata is None else entry.nodata,
        )
        yield _catalogued(scene, source.name, source.quality, source.cloud_share, entry.licence or source.licence)


def _catalogued(
    scene: Scene, name: str, quality: str | None, cloud_share: float | None, licence: str | None
) -> CatalogueScene:
    """Return the entry of one scene."""
    try:
        footprint = None if scene.grid.crs is None else footprint_of(scene.grid)
    except ValueError as error:
        raise ValueError(f"{scene.source}: {error}") from error
    return CatalogueScene(scene, name, footprint, quality, cloud_share, licence)


def _relative(path: str, root: Path) -> str:
    """Return a path without the folders of this machine."""
    inside = os.path.relpath(path, root)
    return Path(path).name if inside.startswith("..") else Path(inside).as_posix()


class SceneIndex:
    """Finds the scenes that touch a footprint.

    Args:
        scenes: The scenes of a collection.
    """

    def __init__(self, scenes: list[CatalogueScene]) -> None:
        self._members = [index for index, scene in enumerate(scenes) if scene.footprint is not None]
        shapes = [polygon(corners_of(scenes[index].scene.grid)) for index in self._members]
        self.shapes = dict(zip(self._members, shapes, strict=True))
        self._tree = shapely.STRtree(shapes)

    def touching(self, shape: shapely.Geometry) -> list[int]:
        """Return the numbers of the scenes whose footprint a shape in longitude and latitude touches, rising."""
        return sorted(self._members[index] for index in self._tree.query(shape, predicate="intersects"))
