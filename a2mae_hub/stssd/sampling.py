"""Where to take image sets: a grid over the scenes, the scenes' own footprints, or the user's points and polygons."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely

from a2mae_hub.grids import Window
from a2mae_hub.modeling.georeference_a2mae import to_metres
from a2mae_hub.modeling.sensors_a2mae import get_sensor

from .catalogue import CatalogueScene, SceneIndex
from .derive import check_source
from .footprints import (
    LONGITUDE_LATITUDE,
    Footprint,
    covered,
    cut_at_180,
    locate,
    rounded,
    tiles,
    transformed,
    utm_zone,
    z_order,
)
from .recipe import FOOTPRINTS, GRID, Collection

# Footprints of two scenes are one if they differ by less than this many of their coarsest pixels.
_SAME_FOOTPRINT = 2.0
# Nodes of a grid that are looked at together, and those that one stretch of ground in one UTM zone may have: a spacing
# of 600 m over all of a zone.
_NODES_AT_ONCE, _MOST_NODES = 2**16, 20_000_000
# Locations of a collection at most; they are planned in memory, at about a kilobyte each.
_MOST_PLACES = 2_000_000


class Location(NamedTuple):
    """A place to take one image set from.

    Attributes:
        footprint: The ground it covers; None where no scene says where it lies.
        window: The pixels of its only scene, without georeference.
        scenes: Numbers of the scenes that cover it.
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
        FileNotFoundError: If there is no file of points or polygons.
        ValueError: If a scene has no georeference and is needed, no location lies on a scene, the collection has scenes
            of several sensors and no location lies on two, or the sensor to derive cannot be had from a scene; names a
            scene.
    """
    index = SceneIndex(scenes)
    placed: list[Footprint]
    loose: list[Location] = []
    if collection.sampling == FOOTPRINTS:
        placed = _scene_tiles(index, collection.size)
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
            places = _grid_over(index.shapes, spacing)
        else:
            places = iter(_places_of_file(root / collection.sampling, spacing))
        placed = [Footprint(*place, collection.size, collection.size) for place in islice(places, _MOST_PLACES + 1)]
    if len(placed) > _MOST_PLACES:
        raise ValueError(
            f"collection {collection.name!r}: a spacing of {collection.spacing or collection.size} m makes more than "
            f"{_MOST_PLACES} places; choose a larger one, or split the collection."
        )
    # Places less than a metre apart are one, and would have one id.
    placed = list({rounded(footprint): footprint for footprint in placed}.values())
    located = [
        Location(footprint, None, below) for footprint, below in zip(placed, index.below(placed), strict=True) if below
    ]
    _check(collection, scenes, located, loose)
    order = z_order(
        np.array([location.footprint.longitude for location in located if location.footprint]),
        np.array([location.footprint.latitude for location in located if location.footprint]),
    )
    return [located[number] for number in np.argsort(order, kind="stable")] + loose


def _scene_tiles(index: SceneIndex, size: float | None) -> list[Footprint]:
    """Return the footprints of the scenes, once where several scenes have the same, in tiles."""
    wholes = index.footprints
    pixels = [locate(whole, grid).resolution for whole, grid in zip(wholes, index.grids, strict=True)]
    reach = 2 * _SAME_FOOTPRINT * max(pixels, default=0.0)
    tree = shapely.STRtree([shapely.Point(whole.longitude, whole.latitude) for whole in wholes])
    cut: dict[int, list[Footprint]] = {}
    # What fits the finest pixels of the smallest scene fits the others that have its footprint, not the other way.
    for number in sorted(range(len(wholes)), key=lambda n: (pixels[n], wholes[n].east * wholes[n].north)):
        whole, grid = wholes[number], index.grids[number]
        around = Footprint(whole.longitude, whole.latitude, reach, reach).geometry()
        if not any(
            other in cut
            and _is_same(whole, wholes[other], _SAME_FOOTPRINT * max(pixels[number], pixels[other]))
            and covered(cut[other], grid).any()
            for other in tree.query(around, predicate="intersects").tolist()
        ):
            cut[number] = tiles(whole, grid, size)
    return [tile for footprints in cut.values() for tile in footprints]


def _is_same(one: Footprint, other: Footprint, tolerance: float) -> bool:
    """Return whether two footprints agree within metres."""
    north, east = to_metres(np.array(other[:2]), one[:2])
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
    xs, ys = transformed(LONGITUDE_LATITUDE, crs, *corners.T)
    if not (np.isfinite(xs).all() and np.isfinite(ys).all()):
        return  # Around a pole, where UTM does not reach.
    (west, east), (south, north) = (
        (math.floor(values.min() / spacing), math.ceil(values.max() / spacing)) for values in (xs, ys)
    )
    if (north - south + 1) * (east - west + 1) > _MOST_NODES:
        raise ValueError(
            f"spacing is {spacing} m, which makes more than {_MOST_NODES} places of one stretch of ground; choose a "
            "larger one."
        )
    columns = np.arange(west, east + 1)
    step = max(1, _NODES_AT_ONCE // len(columns))
    for start in range(south, north + 1, step):
        rows = np.arange(start, min(start + step, north + 1))
        at = (np.tile(columns, len(rows)) * spacing, np.repeat(rows, len(columns)) * spacing)
        longitudes, latitudes = transformed(crs, LONGITUDE_LATITUDE, *at)
        inside = shapely.contains_xy(shape, longitudes, latitudes)
        yield from zip(longitudes[inside].tolist(), latitudes[inside].tolist(), strict=True)


def _places_of_file(path: Path, spacing: float) -> list[tuple[float, float]]:
    """Return points, and the grid nodes on polygons (or a point on those that hold none), longitude and latitude."""
    import geopandas

    if not os.path.exists(path):
        raise FileNotFoundError(
            f"{path}: no such file of points or polygons; correct sampling, or write grid or footprints."
        )
    try:
        frame = geopandas.read_file(path)
        if not isinstance(frame, geopandas.GeoDataFrame):
            raise ValueError("it is a table without geometry")
        if frame.crs is None:
            raise ValueError("it has no coordinate reference system, give it one")
        shapes: Any = frame.geometry.to_crs(4326).explode(index_parts=False)
    except (ValueError, RuntimeError) as error:  # those of pyogrio and pyproj are RuntimeErrors
        raise ValueError(f"{path}: no points or polygons that can be read ({' '.join(str(error).split())}).") from error
    places: list[tuple[float, float]] = []
    for number, shape in shapes.items():
        if shape is None or shape.is_empty:
            continue
        if shape.geom_type not in ("Point", "Polygon"):
            raise ValueError(f"{path}: feature {number} is a {shape.geom_type}; only points and polygons are places.")
        if not np.isfinite(shape.bounds).all() or np.abs(shapely.get_coordinates(shape)[:, 1]).max() > 90:
            raise ValueError(
                f"{path}: feature {number} lies nowhere on Earth; correct its coordinates, or the coordinate reference "
                "system of the file."
            )
        if shape.geom_type == "Point":
            longitude = float(shape.x)
            places.append((longitude if -180 <= longitude < 180 else (longitude + 180) % 360 - 180, float(shape.y)))
        else:
            within = cut_at_180(shapely.make_valid(shape))
            point = within.representative_point()
            places += list(islice(_grid_over([within], spacing), _MOST_PLACES + 1)) or [
                (float(point.x), float(point.y))
            ]
    return list(dict.fromkeys(places))


def _check(
    collection: Collection, scenes: list[CatalogueScene], located: list[Location], loose: list[Location]
) -> None:
    """Raise ValueError where nothing, or nothing of what was asked for, can come of it."""
    what = f"collection {collection.name!r}"
    if collection.derive is not None and all(scene.sensor == collection.derive for scene in scenes):
        raise ValueError(f"{what}: every scene is of {collection.derive} already; derive another sensor, or none.")
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
    if collection.derive is not None:
        _check_derivable(collection.derive, scenes, located + loose)


def _check_derivable(target: str, scenes: list[CatalogueScene], locations: list[Location]) -> None:
    """Raise ValueError where a place has scenes of one sensor only, and the other cannot be derived from one of them.

    Of scenes that share sensor, bands and pixel grid the first is looked at, where it is needed first; where a place
    has two sensors, nothing is derived.
    """
    checked = set()
    for location in locations:
        if len({scenes[number].sensor for number in location.scenes}) > 1:
            continue
        for number in location.scenes:
            scene = scenes[number].scene
            bands = tuple(layer.name for layer in scene.layers)
            if scene.sensor.name == target or (key := (scene.sensor.name, bands, scene.grid)) in checked:
                continue
            checked.add(key)
            if location.footprint is None:
                side = min(scene.sensor.find(band).resolution for band in bands)
            else:
                place = locate(location.footprint, scene.grid)
                # What is not upright is brought to square pixels of the same area.
                side = place.longest_side if place.is_upright else place.resolution
            label = f"Scene {scene.source}, from which a collection asks to derive {target},"
            check_source(scene.sensor, bands, side, get_sensor(target), label)
