"""Where to take image sets: a grid over the scenes, the scenes' own footprints, or the user's points and polygons."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from rasterio.warp import transform as transform_points

from a2mae_hub.grids import Window

from .catalogue import CatalogueScene, SceneIndex
from .footprints import LONGITUDE_LATITUDE, Footprint, locate, tiles, utm_zone, window_of, z_order
from .recipe import FOOTPRINTS, GRID, Collection

# Footprints of two scenes are one if they differ by less than this many of their coarsest pixels.
_SAME_FOOTPRINT = 2.0


class Location(NamedTuple):
    """A place to take one image set from.

    Attributes:
        footprint: The ground it covers; None where no scene says where it lies.
        window: The pixels of its only scene, without georeference.
        scenes: Numbers of the scenes that may cover it.
    """

    footprint: Footprint | None
    window: Window | None
    scenes: tuple[int, ...]


def sample(collection: Collection, scenes: list[CatalogueScene], root: Path) -> list[Location]:
    """Return the locations of a collection, neighbours on the ground next to each other.

    Args:
        collection: How to sample.
        scenes: Its scenes.
        root: Folder that a file of points or polygons is relative to.

    Raises:
        ValueError: If a scene has no georeference and is needed, no location lies on a scene, or the collection has
            scenes of several sensors and no location lies on two; names a scene.
    """
    index = SceneIndex(scenes)
    placed: list[Footprint]
    loose: list[Location] = []
    if collection.sampling == FOOTPRINTS:
        placed = _scene_tiles(scenes, index, collection.size)
        loose = [
            location for number in range(len(scenes)) for location in _pixel_tiles(scenes, number, collection.size)
        ]
    else:
        for scene in scenes:
            if scene.footprint is None:
                raise ValueError(
                    f"{scene.scene.source}: has no coordinate reference system, so it lies on no grid and at no point; "
                    "give it one with gdal_edit.py -a_srs, or take it as it is with sampling: footprints."
                )
        assert collection.size is not None
        spacing = collection.spacing or collection.size
        if collection.sampling == GRID:
            placed = [
                Footprint(longitude, latitude, collection.size, collection.size)
                for longitude, latitude in _grid_over(list(index.shapes.values()), spacing)
            ]
        else:
            places = _places_of_file(root / collection.sampling, spacing)
            placed = [Footprint(*place, collection.size, collection.size) for place in places]
    located = []
    for footprint in placed:
        covering = tuple(_covering(footprint, scenes, index))
        if covering:
            located.append(Location(footprint, None, covering))
    _check(collection, scenes, located, loose)
    order = z_order(
        np.array([location.footprint.longitude for location in located if location.footprint]),
        np.array([location.footprint.latitude for location in located if location.footprint]),
    )
    return [located[number] for number in np.argsort(order, kind="stable")] + loose


def _covering(footprint: Footprint, scenes: list[CatalogueScene], index: SceneIndex) -> Iterator[int]:
    """Return the scenes that a footprint lies on as a whole."""
    for number in index.touching(footprint.geometry()):
        grid = scenes[number].scene.grid
        place = locate(footprint, grid)
        if not place.is_upright or window_of(footprint, place, grid) is not None:
            yield number


def _scene_tiles(scenes: list[CatalogueScene], index: SceneIndex, size: float | None) -> list[Footprint]:
    """Return the footprints of the scenes, once where several scenes have the same, in tiles."""
    whole: dict[int, Footprint] = {}
    for number, scene in enumerate(scenes):
        footprint = scene.footprint
        if footprint is None:
            continue
        centre = shapely.Point(footprint.longitude, footprint.latitude)
        near = (whole[other] for other in index.touching(centre) if other in whole)
        place = locate(footprint, scene.scene.grid)
        tolerance = _SAME_FOOTPRINT * place.resolution
        if not any(_is_same(footprint, other, tolerance) for other in near):
            whole[number] = footprint
    return [tile for footprint in whole.values() for tile in tiles(footprint, size)]


def _is_same(one: Footprint, other: Footprint, tolerance: float) -> bool:
    """Return whether two footprints agree within metres."""
    metres = 111_320.0
    north = (one.latitude - other.latitude) * metres
    turned = (one.longitude - other.longitude + 180) % 360 - 180
    east = turned * metres * math.cos(math.radians(one.latitude))
    gaps = (north, east, one.east - other.east, one.north - other.north)
    return max(map(abs, gaps)) <= tolerance


def _pixel_tiles(scenes: list[CatalogueScene], number: int, size: float | None) -> Iterator[Location]:
    """Return the locations of a scene without georeference: tiles of its pixels, at its nominal ground resolution."""
    scene = scenes[number]
    if scene.footprint is not None:
        return
    grid = scene.scene.grid
    resolution = min(scene.scene.sensor.find(layer.name).resolution for layer in scene.scene.layers)
    side = max(grid.width, grid.height) if size is None else max(1, round(size / resolution))
    width, height = min(side, grid.width), min(side, grid.height)
    left, top = grid.width % width // 2, grid.height % height // 2
    for row in range(top, grid.height - height + 1, height):
        for column in range(left, grid.width - width + 1, width):
            yield Location(None, (column, row, width, height), (number,))


def _grid_over(shapes: list[shapely.Geometry], spacing: float) -> Iterator[tuple[float, float]]:
    """Return the nodes of the UTM grid that lie on the shapes, longitude and latitude, each once.

    Nodes are at whole multiples of the spacing, so every build of the same spacing shares them.
    """
    ground = shapely.unary_union(shapes)
    for part in getattr(ground, "geoms", [ground]):
        west, _, east, _ = part.bounds
        for zone in range(int((west + 180) // 6), min(int((east + 180) // 6), 59) + 1):
            for low, high in ((-90.0, 0.0), (0.0, 90.0)):
                strip = shapely.box(zone * 6 - 180, low, zone * 6 - 174, high).intersection(part)
                if strip.area > 0:
                    yield from _nodes(strip, spacing, zone * 6 - 177, low + 45)


def _nodes(shape: shapely.Geometry, spacing: float, longitude: float, latitude: float) -> Iterator[tuple[float, float]]:
    """Return the nodes on a shape within one UTM zone, that of a place."""
    crs = utm_zone(longitude, latitude)
    corners = shapely.get_coordinates(shapely.segmentize(shape, 0.25))
    xs, ys = (np.asarray(values) for values in transform_points(LONGITUDE_LATITUDE, crs, *corners.T))
    for row in range(math.floor(ys.min() / spacing), math.ceil(ys.max() / spacing) + 1):
        columns = np.arange(math.floor(xs.min() / spacing), math.ceil(xs.max() / spacing) + 1)
        east, north = columns * spacing, np.full(len(columns), row * spacing)
        longitudes, latitudes = (np.asarray(v) for v in transform_points(crs, LONGITUDE_LATITUDE, east, north))
        inside = shapely.contains_xy(shape, longitudes, latitudes)
        yield from zip(longitudes[inside].tolist(), latitudes[inside].tolist(), strict=True)


def _places_of_file(path: Path, spacing: float) -> list[tuple[float, float]]:
    """Return points, and the grid nodes on polygons (or a point on those that hold none), longitude and latitude."""
    import geopandas

    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file of points or polygons; correct sampling.")
    try:
        frame = geopandas.read_file(path)
    except (ValueError, RuntimeError) as error:  # pyogrio's errors are RuntimeErrors
        raise ValueError(f"{path}: no points or polygons that can be read ({' '.join(str(error).split())}).") from error
    if frame.crs is None:
        raise ValueError(f"{path}: has no coordinate reference system; give it one.")
    places: list[tuple[float, float]] = []
    shapes: Any = frame.to_crs(4326).geometry.explode(index_parts=False)
    for number, shape in enumerate(shapes):
        if shape is None or shape.is_empty:
            continue
        if shape.geom_type == "Point":
            places.append((float(shape.x), float(shape.y)))
        elif shape.geom_type == "Polygon":
            point = shape.representative_point()
            places += list(_grid_over([shape], spacing)) or [(float(point.x), float(point.y))]
        else:
            raise ValueError(f"{path}: feature {number} is a {shape.geom_type}; only points and polygons are places.")
    return list(dict.fromkeys(places))


def _check(
    collection: Collection, scenes: list[CatalogueScene], located: list[Location], loose: list[Location]
) -> None:
    """Raise ValueError where nothing, or nothing of what was asked for, can come of it."""
    what = f"collection {collection.name!r}"
    if not located and not loose:
        raise ValueError(
            f"{what}: no location has a footprint of {collection.size} m that lies wholly on a scene, the first of "
            f"which is {scenes[0].scene.source}; choose a smaller size, or correct sampling."
        )
    first = {scene.sensor: scene for scene in reversed(scenes)}
    if len(first) > 1 and not any(len({scenes[n].sensor for n in location.scenes}) > 1 for location in located):
        one, other = sorted(first.values(), key=lambda scene: scene.name)[:2]
        raise ValueError(
            f"{what}: scenes of {one.sensor} and {other.sensor} overlap nowhere by a footprint of the asked size "
            f"(such as {one.scene.source} and {other.scene.source}); put them into collections of their own."
        )
