"""Footprints on the ground: squares of true metres, as windows of any pixel grid, and as polygons."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import shapely
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

from a2mae_hub.grids import Grid, Window
from a2mae_hub.modeling.georeference_a2mae import to_degrees, to_metres

LONGITUDE_LATITUDE = CRS.from_epsg(4326)
_WEB_MERCATOR = CRS.from_epsg(3857)
# Once around the globe in its metres: the equator of a sphere of the radius of WGS 84 (EPSG Guidance Note 7-2, 1024).
_WEB_MERCATOR_TURN = 2 * math.pi * 6_378_137.0

# Pixels that are less than a tenth off square, and turned less than ten degrees off north, are used as they are: the
# model takes positions from the true georeference. (Neighbouring UTM zones differ by three degrees at most.)
_MOST_STRETCH, _MOST_TURN = 1.1, math.radians(10)
# A footprint may stick out of a scene by this part of a pixel, and is then moved in.
_SLACK = 1.0
# Points along each side of a grid: straight lines on a map are none in longitude and latitude.
_POINTS_PER_SIDE = 8
# North and east of the centre and the four corners of a footprint, in halves of its extents.
_SPOTS = np.array([[0, 0], [1, -1], [1, 1], [-1, 1], [-1, -1]])


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
        half = _SPOTS[1:] * (self.north / 2, self.east / 2)
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
        return _inverse(self.per_metre)

    @property
    def resolution(self) -> float:
        """Metres per pixel: the side of a square of its area."""
        return math.sqrt(abs(float(np.linalg.det(self.pixel_metres))))

    @property
    def longest_side(self) -> float:
        """Metres along a column or a row of a pixel, the more of the two."""
        return float(_lengths(self.pixel_metres).max())

    @property
    def is_upright(self) -> bool:
        """Whether pixels are about square on the ground, with north up or down and east right or left."""
        return bool(_are_upright(self.pixel_metres))


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Return the inverses of (..., 2, 2) matrices; infinite where there is none."""
    (a, b), (c, d) = np.moveaxis(matrix, (-2, -1), (0, 1))
    with np.errstate(all="ignore"):
        return np.moveaxis(np.array([[d, -b], [-c, a]]) / (a * d - b * c), (0, 1), (-2, -1))


def _turns(pixel_metres: np.ndarray) -> np.ndarray:
    """Return by how many radians pixels of (..., 2, 2) metres are off north and east, the more of the two."""
    (column_east, row_east), (column_south, row_south) = np.abs(np.moveaxis(pixel_metres, (-2, -1), (0, 1)))
    return np.maximum(np.arctan2(column_south, column_east), np.arctan2(row_east, row_south))


def _are_upright(pixel_metres: np.ndarray) -> np.ndarray:
    """Return where pixels of (..., 2, 2) metres are square and north up enough to be used as they are."""
    lengths = _lengths(pixel_metres)
    return (lengths.max(axis=-1) <= _MOST_STRETCH * lengths.min(axis=-1)) & (_turns(pixel_metres) <= _MOST_TURN)


def _lengths(pixel_metres: np.ndarray) -> np.ndarray:
    """Return (..., 2) metres along a column and along a row of pixels of (..., 2, 2) metres."""
    return np.hypot(pixel_metres[..., 0, :], pixel_metres[..., 1, :])


def polygon(corners: np.ndarray) -> shapely.Geometry:
    """Return the polygon of (n, 2) corners in degrees; two, cut at 180°, where it crosses the antimeridian."""
    return cut_at_180(shapely.Polygon(np.stack([np.unwrap(corners[:, 0], period=360), corners[:, 1]], axis=-1)))


def cut_at_180(shape: shapely.Geometry) -> shapely.Geometry:
    """Return a shape of longitudes that may pass ±180 as one, or several, within ±180."""
    west, _, east, _ = shape.bounds
    if -180 <= west and east <= 180:
        return shape
    turns = range(math.floor((west + 180) / 360), math.floor((east + 180) / 360) + 1)
    parts = [
        shapely.transform(
            shape.intersection(shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)),
            lambda places, shift=360 * turn: places - (shift, 0),
        )
        for turn in turns
    ]
    return shapely.MultiPolygon([one for part in parts for one in shapely.get_parts(part) if one.area > 0])


def outline_of(grid: Grid) -> np.ndarray:
    """Return (n, 2) longitude and latitude of points around a georeferenced grid, without a jump at 180°.

    Raises:
        ValueError: If it lies nowhere on Earth, around a pole, or around half the globe.
    """
    along, still = np.arange(_POINTS_PER_SIDE) / _POINTS_PER_SIDE, np.zeros(_POINTS_PER_SIDE)
    columns = np.concatenate([along, still + 1, 1 - along, still]) * grid.width
    rows = np.concatenate([still, along, still + 1, 1 - along]) * grid.height
    around = _degrees_at(grid, columns, rows)
    if not np.isfinite(around).all() or np.abs(around[:, 1]).max() > 90:
        raise ValueError("its corners are no places on Earth; check its coordinate reference system and transform.")
    around[:, 0] = np.unwrap((around[:, 0] + 180) % 360 - 180, period=360)
    if abs(around[-1, 0] - around[0, 0]) > 180 or np.ptp(around[:, 0]) > 180:
        raise ValueError("it lies around a pole or around half the globe; cut it into scenes that do not.")
    return around


def _degrees_at(grid: Grid, columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return (n, 2) longitude and latitude of places in the pixels of a georeferenced grid; infinite off the Earth."""
    assert grid.crs is not None
    xs, ys, _ = grid.matrix @ np.stack([columns, rows, np.ones(len(columns))])
    return np.stack(transformed(grid.crs, LONGITUDE_LATITUDE, xs, ys), axis=-1)


def transformed(source: CRS, target: CRS, xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places in another CRS; infinite where either does not hold."""
    if source == target:
        return xs, ys
    transformer = _transformer(source, target)
    if transformer is None:
        return np.full_like(xs, np.inf), np.full_like(ys, np.inf)
    moved = np.stack(transformer.transform(xs, ys))
    moved[:, ~np.isfinite(moved).all(axis=0)] = np.inf
    return moved[0], moved[1]


@lru_cache(maxsize=64)
def _transformer(source: CRS, target: CRS) -> Transformer | None:
    """Return what brings places from one CRS to another, or None where one is tied to no place, or not to the Earth.

    rasterio has the same, but raises errors without a public name for a single place off the projection.
    """
    try:
        return Transformer.from_crs(source.to_wkt(), target.to_wkt(), always_xy=True)
    except ProjError:
        return None


def rounded(footprint: Footprint) -> tuple[str, str]:
    """Return place and extent as texts, to about a metre: what tells footprints, and sets, apart."""
    return f"{footprint.latitude:+.5f}{footprint.longitude:+.5f}", f"{footprint.east:.0f}x{footprint.north:.0f}"


def footprint_of(grid: Grid) -> Footprint:
    """Return the footprint of a georeferenced grid: about its centre, as long as its rows and columns are.

    In a grid that is turned it is the largest rectangle, north up, of the shape of the box around the grid.

    Raises:
        ValueError: If the grid lies nowhere on Earth, around a pole, or around half the globe.
    """
    outline_of(grid)
    (footprint,) = _footprints_of(grid, np.array([grid.whole]))
    if not (np.isfinite(footprint).all() and footprint.east > 0 and footprint.north > 0):
        raise ValueError("its corners are no places on Earth; check its coordinate reference system and transform.")
    return footprint


def _footprints_of(grid: Grid, windows: np.ndarray) -> list[Footprint]:
    """Return the footprints of (n, 4) windows of a georeferenced grid."""
    sizes = windows[:, 2:]
    centres = windows[:, :2] + sizes / 2
    # The centre and the middles of the left, right, upper and lower side.
    spots = centres + np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]])[:, None] * sizes / 2
    degrees = _degrees_at(grid, *spots.reshape(-1, 2).T).reshape(5, -1, 2)
    places = np.stack([(degrees[0, :, 0] + 180) % 360 - 180, degrees[0, :, 1]], axis=-1)
    left, right, top, bottom = to_metres(degrees[1:], (places[:, 0], places[:, 1]))
    across = np.stack([(right - left) / sizes[:, :1], (bottom - top) / sizes[:, 1:]], axis=-1)
    pixel_metres = across[:, ::-1] * [[1], [-1]]  # north and east to east and south
    upright = _are_upright(pixel_metres)
    extents = np.where(
        upright[:, None], _lengths(pixel_metres) * sizes, (np.abs(pixel_metres) @ sizes[..., None])[..., 0]
    )
    # Until its corners, which lie on meridians and parallels, say the same of its extents.
    for _ in range(3):
        spots = _spots_of(np.concatenate([places, extents], axis=1), grid)
        straight = _lengths(_inverse(_per_metre(spots, extents))) * sizes
        with np.errstate(all="ignore"):
            out = (np.abs(spots[:, 1:] - centres[:, None]) / (sizes / 2)[:, None]).max(axis=(1, 2))
            extents = np.where(upright[:, None], straight, extents / out[:, None])
    return [Footprint(*numbers) for numbers in np.concatenate([places, extents], axis=1).tolist()]


def locate(footprint: Footprint, grid: Grid) -> PixelPlace:
    """Return where a footprint lies in the pixels of a georeferenced grid, which it may lie outside of."""
    footprints = np.array([footprint])
    spots = _spots_of(footprints, grid)
    return PixelPlace(spots[0, 0], _per_metre(spots, footprints[:, 2:])[0])


def _spots_of(footprints: np.ndarray, grid: Grid) -> np.ndarray:
    """Return (n, 5, 2) column and row of the centre and the corners of (n, 4) footprints."""
    longitude, latitude, east, north = footprints.T[..., None]
    # `to_degrees` takes one centre; a degree of latitude and longitude in metres is what it divides by.
    metres = to_metres(footprints[:, :2] + 1, (footprints[:, 0], footprints[:, 1]))
    ys = np.clip(latitude + _SPOTS[:, 0] * north / 2 / metres[:, :1], -90, 90)
    xs = longitude + _SPOTS[:, 1] * east / 2 / np.maximum(metres[:, 1:], 1)
    columns, rows = _pixels_at(grid, xs.ravel(), ys.ravel())
    return np.stack([columns, rows], axis=-1).reshape(-1, 5, 2)


def _pixels_at(grid: Grid, longitude: np.ndarray, latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return columns and rows of places on the globe, on the turn of the globe that the grid is on."""
    assert grid.crs is not None
    xs, ys = transformed(LONGITUDE_LATITUDE, grid.crs, longitude, latitude)
    turn = 360.0 if grid.crs.is_geographic else _WEB_MERCATOR_TURN if grid.crs == _WEB_MERCATOR else None
    if turn is not None:
        west, _, east, _ = grid.footprint
        middle = (west + east) / 2
        xs = middle + (xs - middle + turn / 2) % turn - turn / 2
    columns, rows, _ = np.linalg.inv(grid.matrix) @ np.stack([xs, ys, np.ones(len(xs))])
    return columns, rows


def _per_metre(spots: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """Return (n, 2, 2) columns and rows per metre east and south from the spots of footprints of (n, 2) metres."""
    _, upper_left, upper_right, lower_right, lower_left = np.moveaxis(spots, 1, 0)
    with np.errstate(all="ignore"):
        east = (upper_right + lower_right - upper_left - lower_left) / (2 * extents[:, :1])
        south = (lower_left + lower_right - upper_left - upper_right) / (2 * extents[:, 1:])
    return np.stack([east, south], axis=-1)


def covered(footprints: Sequence[Footprint], grid: Grid) -> np.ndarray:
    """Return (n,) bool: which footprints lie on a georeferenced grid as a whole, and can be cut from it."""
    numbers = np.array(footprints, np.float64).reshape(-1, 4)
    spots = _spots_of(numbers, grid)
    pixel_metres = _inverse(_per_metre(spots, numbers[:, 2:]))
    _, fits = _windows(spots[:, 0], numbers[:, 2:], pixel_metres, grid)
    with np.errstate(invalid="ignore"):
        inside = ((spots >= -_SLACK) & (spots <= (grid.width + _SLACK, grid.height + _SLACK))).all(axis=(1, 2))
        return np.where(_are_upright(pixel_metres), fits, inside)


def _windows(
    centres: np.ndarray, extents: np.ndarray, pixel_metres: np.ndarray, grid: Grid
) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and counts, (2, n, 2), of the pixels that footprints cover, and which of them are in the grid."""
    sizes = np.array([grid.width, grid.height])
    with np.errstate(all="ignore"):
        # Halves always go up, so footprints that lie side by side have windows that do.
        counts = np.maximum(1, np.floor(extents / _lengths(pixel_metres) + 0.5))
        starts = np.floor(centres - counts / 2 + 0.5)
        fits = (starts >= -_SLACK) & (starts + counts <= sizes + _SLACK) & (counts <= sizes)
        return np.stack([np.clip(starts, 0, sizes - counts), counts]), fits.all(axis=-1)


def window_of(footprint: Footprint, place: PixelPlace, grid: Grid) -> Window | None:
    """Return the window of an upright grid that a footprint covers, or None where it sticks out.

    The window has as many pixels as the footprint is long in theirs, rounded, so all images of one resolution have the
    same; its centre is within half a pixel of the footprint's, or within one and a half where it sticks out by a pixel
    and is moved in. A footprint of more pixels than the grid has sticks out.
    """
    windows, fits = _windows(place.centre[None], np.array([footprint[2:]]), place.pixel_metres[None], grid)
    if not fits[0]:
        return None
    (column, row), (width, height) = windows[:, 0].astype(int).tolist()
    return column, row, width, height


def surrounding_window(footprint: Footprint, grid: Grid, margin: int = 2) -> Window | None:
    """Return the window that holds a footprint and some pixels around it, or None where the footprint sticks out."""
    columns, rows = _spots_of(np.array([footprint]), grid)[0].T
    spans = []
    for positions, size in ((columns, grid.width), (rows, grid.height)):
        if not (positions.min() >= -_SLACK and positions.max() <= size + _SLACK):
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


def tiles(footprint: Footprint, grid: Grid, size: float | None) -> list[Footprint]:
    """Cut the footprint of a georeferenced grid into squares of about `size` metres around its centre.

    Tiles are whole pixels of the grid, side by side, so no pixel is in two. Along a side that is shorter than `size`
    there is one, of all pixels. Of a grid that is turned, its footprint is cut, along meridians and parallels.

    Args:
        footprint: That of the grid, from `footprint_of`.
        grid: The grid.
        size: Metres; None is one tile of everything.
    """
    if size is None:
        return [footprint]
    place = locate(footprint, grid)
    if _turns(place.pixel_metres) > _MOST_TURN:
        return tiles(footprint, _straightened(footprint, place.resolution), size)
    spans = []
    for length, count in zip(_lengths(place.pixel_metres), (grid.width, grid.height), strict=True):
        side = max(1, min(math.floor(size / length + 0.5), count))
        spans.append([(start, side) for start in range(count % side // 2, count - side + 1, side)])
    windows = [(left, top, width, height) for (top, height), (left, width) in itertools.product(spans[1], spans[0])]
    return _footprints_of(grid, np.array(windows))


def _straightened(footprint: Footprint, resolution: float) -> Grid:
    """Return a grid along meridians and parallels on a footprint, of pixels of about `resolution` metres."""
    width, height = (max(1, round(extent / resolution)) for extent in (footprint.east, footprint.north))
    (west, north), _, (east, south), _ = footprint.corners()
    step = ((east - west) % 360 / width, (south - north) / height)
    return Grid(height, width, (step[0], 0.0, float(west), 0.0, float(step[1]), float(north)), LONGITUDE_LATITUDE)
