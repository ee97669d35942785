"""Footprints on the ground: squares of true metres, as windows of any pixel grid, and as polygons."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import shapely
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from a2mae_hub.grids import Grid, Window
from a2mae_hub.modeling.georeference_a2mae import to_degrees, to_metres

LONGITUDE_LATITUDE = CRS.from_epsg(4326)

# Pixels that are less than a tenth off square, and turned less than ten degrees off north, are used as they are: the
# model takes positions from the true georeference. (Neighbouring UTM zones differ by three degrees at most.)
_MOST_STRETCH, _MOST_TURN = 1.1, math.radians(10)
# A footprint may stick out of a scene by this part of a pixel, and is then moved in.
_SLACK = 1.0


class Footprint(NamedTuple):
    """A rectangle on the ground, north up.

    Attributes:
        longitude: Degrees east of its centre.
        latitude: Degrees north of its centre.
        east: Extent from west to east, metres.
        north: Extent from south to north, metres.
    """

    longitude: float
    latitude: float
    east: float
    north: float

    def corners(self) -> np.ndarray:
        """Return (4, 2) longitude and latitude of upper left, upper right, lower right and lower left."""
        half = np.array([[1, -1], [1, 1], [-1, 1], [-1, -1]]) * (self.north / 2, self.east / 2)
        return to_degrees(half, (self.longitude, self.latitude))

    def geometry(self) -> shapely.Geometry:
        """Return the polygon in longitude and latitude; two, cut at 180°, where it crosses the antimeridian."""
        return polygon(self.corners())


class PixelPlace(NamedTuple):
    """A footprint in the pixels of a grid.

    Attributes:
        centre: Column and row of its centre.
        per_metre: (2, 2) columns and rows per metre east (first column of the matrix) and south (second).
    """

    centre: np.ndarray
    per_metre: np.ndarray

    @property
    def pixel_metres(self) -> np.ndarray:
        """(2, 2) metres east and south of one column (first column of the matrix) and one row (second)."""
        return np.linalg.inv(self.per_metre)

    @property
    def resolution(self) -> float:
        """Metres per pixel: the side of a square of its area."""
        return math.sqrt(abs(float(np.linalg.det(self.pixel_metres))))

    @property
    def is_upright(self) -> bool:
        """Whether pixels are about square on the ground, with north up or down and east right or left."""
        column, row = self.pixel_metres.T
        lengths = np.hypot(*column), np.hypot(*row)
        turned = max(math.atan2(abs(column[1]), abs(column[0])), math.atan2(abs(row[0]), abs(row[1])))
        return bool(max(lengths) <= _MOST_STRETCH * min(lengths)) and turned <= _MOST_TURN


def polygon(corners: np.ndarray) -> shapely.Geometry:
    """Return the polygon of (4, 2) corners in degrees; two, cut at 180°, where it crosses the antimeridian."""
    east = corners[0, 0] + (corners[:, 0] - corners[0, 0] + 180) % 360 - 180
    shape = shapely.Polygon(np.stack([east, corners[:, 1]], axis=-1))
    if -180 <= east.min() and east.max() <= 180:
        return shape
    parts = [
        shapely.transform(
            shape.intersection(shapely.box(west, -90, west + 360, 90)), lambda xy, w=west: xy - (w + 180, 0)
        )
        for west in (-540.0, -180.0, 180.0)
    ]
    return shapely.MultiPolygon([part for part in parts if part.area > 0])


def corners_of(grid: Grid) -> np.ndarray:
    """Return (4, 2) longitude and latitude of the corners of a georeferenced grid."""
    assert grid.crs is not None
    columns, rows = np.array([0, grid.width, grid.width, 0]), np.array([0, 0, grid.height, grid.height])
    xs, ys, _ = grid.matrix @ np.stack([columns, rows, np.ones(4)])
    longitudes, latitudes = transform_points(grid.crs, LONGITUDE_LATITUDE, xs, ys)
    corners = np.stack([longitudes, latitudes], axis=-1)
    if not np.isfinite(corners).all() or np.abs(corners[:, 1]).max() > 90:
        raise ValueError("its corners are no places on Earth; check its coordinate reference system and transform.")
    corners[:, 0] = (corners[:, 0] + 180) % 360 - 180
    return corners


def footprint_of(grid: Grid) -> Footprint:
    """Return the footprint of a georeferenced grid: about its centre, as long as its rows and columns are."""
    corners = corners_of(grid)
    first = corners[0, 0]
    longitude = float((first + ((corners[:, 0] - first + 180) % 360 - 180).mean() + 180) % 360 - 180)
    centre = (longitude, float(corners[:, 1].mean()))
    metres = to_metres(corners, centre)
    north, east = metres.max(axis=0) - metres.min(axis=0)
    place = locate(Footprint(*centre, float(east), float(north)), grid)
    sides = np.hypot(*place.pixel_metres) * (grid.width, grid.height)
    if not place.is_upright:
        # The largest square, north up, in the smaller side of a grid that is turned.
        column = place.pixel_metres[:, 0]
        sides = np.full(2, sides.min() * np.hypot(*column) / np.abs(column).sum())
    return Footprint(*centre, *sides.tolist())


def locate(footprint: Footprint, grid: Grid) -> PixelPlace:
    """Return where a footprint lies in the pixels of a georeferenced grid, which it may lie outside of."""
    xs, ys = _to_crs(footprint.corners(), grid)
    columns, rows, _ = np.linalg.inv(grid.matrix) @ np.stack([xs, ys, np.ones(4)])
    points = np.stack([columns, rows])
    upper_left, upper_right, lower_right, lower_left = points.T
    east = (upper_right + lower_right - upper_left - lower_left) / (2 * footprint.east)
    south = (lower_left + lower_right - upper_left - upper_right) / (2 * footprint.north)
    return PixelPlace(points.mean(axis=1), np.stack([east, south], axis=-1))


def _to_crs(corners: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return degrees in the CRS of a grid; longitudes on the turn of the globe that the grid is on."""
    if grid.crs == LONGITUDE_LATITUDE:
        xs, ys = corners.T
    else:
        xs, ys = (np.asarray(values) for values in transform_points(LONGITUDE_LATITUDE, grid.crs, *corners.T))
    if grid.crs.is_geographic:
        west, _, east, _ = grid.footprint
        middle = (west + east) / 2
        xs = middle + (xs - middle + 180) % 360 - 180
    return xs, ys


def window_of(footprint: Footprint, place: PixelPlace, grid: Grid) -> Window | None:
    """Return the window of an upright grid that a footprint covers, or None where it sticks out.

    The window has as many pixels as the footprint is long in theirs, rounded, so all images of one resolution have the
    same; its centre is within half a pixel of the footprint's.
    """
    lengths = np.hypot(*place.pixel_metres)  # of a column and a row
    window = []
    for centre, extent, length, size in zip(
        place.centre, (footprint.east, footprint.north), lengths, (grid.width, grid.height), strict=True
    ):
        count = max(1, round(extent / length))
        start = round(centre - count / 2)
        if start < -_SLACK or start + count > size + _SLACK or count > size:
            return None
        window.append((min(max(start, 0), size - count), count))
    (column, width), (row, height) = window
    return column, row, width, height


def surrounding_window(footprint: Footprint, grid: Grid, margin: int = 2) -> Window | None:
    """Return the window that holds a footprint and some pixels around it, or None where the footprint sticks out."""
    xs, ys = _to_crs(footprint.corners(), grid)
    columns, rows, _ = np.linalg.inv(grid.matrix) @ np.stack([xs, ys, np.ones(4)])
    spans = []
    for positions, size in ((columns, grid.width), (rows, grid.height)):
        if positions.min() < -_SLACK or positions.max() > size + _SLACK:
            return None
        start, stop = math.floor(positions.min()) - margin, math.ceil(positions.max()) + margin
        spans.append((max(start, 0), min(stop, size)))
    (left, right), (top, bottom) = spans
    return left, top, right - left, bottom - top


def utm_zone(longitude: float, latitude: float) -> CRS:
    """Return the UTM zone of a place."""
    zone = min(int((longitude + 180) // 6) + 1, 60)
    return CRS.from_epsg((32600 if latitude >= 0 else 32700) + zone)


def upright_grid(footprint: Footprint, resolution: float) -> Grid:
    """Return the UTM grid of a footprint, centred on it, with pixels of `resolution` metres."""
    crs = utm_zone(footprint.longitude, footprint.latitude)
    (x,), (y,) = transform_points(LONGITUDE_LATITUDE, crs, [footprint.longitude], [footprint.latitude])
    width, height = (max(1, round(extent / resolution)) for extent in (footprint.east, footprint.north))
    west, north = x - width * resolution / 2, y + height * resolution / 2
    return Grid(height, width, (resolution, 0.0, west, 0.0, -resolution, north), crs)


def z_order(longitude: np.ndarray, latitude: np.ndarray) -> np.ndarray:
    """Return the rank of places along a Z-order curve, so that neighbours on the ground are neighbours in a file.

    Args:
        longitude: (n,) degrees.
        latitude: (n,) degrees.

    Returns:
        (n,) int64 keys to sort by, 24 bits of each coordinate (about two metres), interleaved.
    """
    key = np.zeros(len(longitude), np.int64)
    for position, (values, low, extent) in enumerate(((longitude, -180.0, 360.0), (latitude, -90.0, 180.0))):
        steps = np.clip((np.asarray(values) - low) / extent * 2**24, 0, 2**24 - 1).astype(np.int64)
        for bit in range(24):
            key |= ((steps >> bit) & 1) << (2 * bit + position)
    return key


def tiles(footprint: Footprint, size: float | None) -> list[Footprint]:
    """Cut a footprint into squares of `size` metres around its centre; one shorter than a square stays as it is."""
    if size is None:
        return [footprint]
    extents = (footprint.north, footprint.east)
    counts = [max(1, math.floor(extent / size + 1e-6)) for extent in extents]
    sides = [min(size, extent) for extent in extents]
    cut = []
    for row, column in itertools.product(*(range(count) for count in counts)):
        shift = np.array([((counts[0] - 1) / 2 - row) * sides[0], (column - (counts[1] - 1) / 2) * sides[1]])
        longitude, latitude = to_degrees(shift, (footprint.longitude, footprint.latitude))
        cut.append(Footprint(float(longitude), float(latitude), sides[1], sides[0]))
    return cut
