"""Pixel grids on the ground: windows by coordinates, shared footprints, and pixels brought onto a finer grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from rasterio.crs import CRS
from rasterio.warp import transform as transform_points

Box = tuple[float, float, float, float]
"""West, south, east, north; in degrees, or in the units of a CRS."""

Window = tuple[int, int, int, int]
"""Column and row of the first pixel, width and height."""

_LONGITUDE_LATITUDE = CRS.from_epsg(4326)
# Pixel edges computed in floating point are taken as equal when closer than this part of a pixel.
PIXEL_TOLERANCE = 1e-3
# Points along each side of a box when it is projected: straight lines do not stay straight.
_POINTS_PER_SIDE = 41


@dataclass(frozen=True)
class Grid:
    """The pixels of a raster and where they lie.

    Attributes:
        height: Rows.
        width: Columns.
        transform: (a, b, c, d, e, f): x = a·column + b·row + c, y = d·column + e·row + f, in the units of the CRS.
        crs: Coordinate reference system; None without georeference, `transform` then mapping to the unit square.
    """

    height: int
    width: int
    transform: tuple[float, ...]
    crs: CRS | None

    def __hash__(self) -> int:
        """Hash the numbers alone: rasters seldom differ by CRS only, and to hash one takes as long as a small read."""
        return hash((self.height, self.width, self.transform))

    @cached_property
    def crs_text(self) -> str | None:
        """The CRS as "EPSG:32631" where it has a number, else as WKT; None without georeference."""
        number = self.crs.to_epsg() if self.crs is not None else None
        return f"EPSG:{number}" if number else self.crs.to_wkt() if self.crs is not None else None

    @property
    def matrix(self) -> np.ndarray:
        """The transform as a (3, 3) float64 matrix for column vectors (column, row, 1)."""
        return np.array([self.transform[:3], self.transform[3:], (0.0, 0.0, 1.0)])

    @property
    def pixel_area(self) -> float:
        """Area of a pixel in squared units of the CRS."""
        return abs(float(np.linalg.det(self.matrix)))

    @property
    def footprint(self) -> Box:
        """The box around the raster, in its own CRS."""
        corners = [(x, y, 1) for x, y in itertools.product((0, self.width), (0, self.height))]
        xs, ys, _ = self.matrix @ np.transpose(corners)
        return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())

    @property
    def whole(self) -> Window:
        """The window of all pixels."""
        return 0, 0, self.width, self.height

    def crop(self, window: Window) -> Grid:
        """Return the grid of a window."""
        column, row, width, height = window
        a, b, c, d, e, f = self.transform
        return replace(
            self,
            height=height,
            width=width,
            transform=(a, b, a * column + b * row + c, d, e, d * column + e * row + f),
        )

    def pixels_in(self, other: Grid) -> np.ndarray:
        """Return the (3, 3) matrix from pixel coordinates of this grid to those of another in the same CRS."""
        return np.linalg.inv(other.matrix) @ self.matrix


def window_of_bounds(grid: Grid, bounds: Sequence[float]) -> Window:
    """Return the window of all pixels that touch a box of longitude and latitude.

    Args:
        grid: Pixels.
        bounds: West, south, east, north in degrees; west greater than east crosses the antimeridian.

    Returns:
        The window, within the grid.

    Raises:
        ValueError: If the bounds are no box, or lie outside the grid, or the grid is not georeferenced.
    """
    numbers = tuple(float(number) for number in bounds)
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"bounds={bounds!r} are no box; pass west, south, east, north in degrees.")
    west, south, east, north = numbers
    if not (-90 <= south < north <= 90 and -180 <= west <= 180 and -180 <= east <= 180 and west != east):
        raise ValueError(f"bounds={bounds!r} are no box on Earth; pass west, south, east, north in degrees.")
    if grid.crs is None:
        raise ValueError("the image is not georeferenced, so bounds= cannot be found in it; leave bounds= out.")
    asked = (west, south, east if west < east else east + 360, north)
    extent = _project(grid.footprint, grid.crs, _LONGITUDE_LATITUDE, near=(asked[0] + asked[2]) / 2)
    if asked[2] - asked[0] == 360:
        asked = (extent[0], south, extent[2], north)  # All the way around, wherever the run of longitudes starts.
    # Far from an image its CRS may not hold, so only the part of the bounds around the image is projected.
    pad_x, pad_y = 0.01 * (extent[2] - extent[0]), 0.01 * (extent[3] - extent[1])
    near = _intersect(asked, (extent[0] - pad_x, extent[1] - pad_y, extent[2] + pad_x, extent[3] + pad_y))
    window = window_of_box(grid, near, _LONGITUDE_LATITUDE) if near[0] < near[2] and near[1] < near[3] else None
    if window is None:
        raise ValueError(
            f"the bounds {_text(asked)} lie outside the image, which covers {_text(extent)}; pass bounds within it."
        )
    return window


def common_windows(grids: Sequence[Grid], names: Sequence[str], anchor: int) -> list[Window]:
    """Return for every grid the window of the footprint that all georeferenced ones have in common.

    The footprint is a box in the CRS of the anchor (of the first georeferenced grid, if the anchor is not). Grids whose
    boxes agree within the largest pixel of all are left whole, and so are those without georeference.

    Args:
        grids: Pixels of every image.
        names: What to call every image in an error.
        anchor: Index of the anchor.

    Returns:
        One window per grid, snapped outward to whole pixels.

    Raises:
        ValueError: If two footprints do not overlap; names both images.
    """
    placed = [index for index, grid in enumerate(grids) if grid.crs is not None]
    if len(placed) < 2:
        return [grid.whole for grid in grids]
    leader = anchor if anchor in placed else placed[0]
    crs = grids[leader].crs
    west, _, east, _ = grids[leader].footprint
    boxes = {
        index: _project(grid.footprint, grid.crs, crs, near=(west + east) / 2)
        for index, grid in enumerate(grids)
        if grid.crs is not None
    }
    for one, other in itertools.combinations(placed, 2):
        shared = _intersect(boxes[one], boxes[other])
        # Neighbours that touch share an edge within rounding, and no ground.
        slack_x, slack_y = (1e-6 * (boxes[one][side + 2] - boxes[one][side]) for side in (0, 1))
        if shared[2] - shared[0] < slack_x or shared[3] - shared[1] < slack_y:
            raise _no_overlap(names[one], names[other])
    pixel = max(
        max((box[2] - box[0]) / grids[index].width, (box[3] - box[1]) / grids[index].height)
        for index, box in boxes.items()
    )
    edges = np.array(list(boxes.values()))
    if np.ptp(edges, axis=0).max() <= pixel * (1 + PIXEL_TOLERANCE):
        return [grid.whole for grid in grids]
    west, south = edges[:, :2].max(axis=0)
    east, north = edges[:, 2:].min(axis=0)
    windows = []
    for index, grid in enumerate(grids):
        window = window_of_box(grid, (west, south, east, north), crs) if index in boxes else grid.whole
        if window is None:
            raise _no_overlap(names[index], names[leader])
        windows.append(window)
    return windows


def _no_overlap(one: str, other: str) -> ValueError:
    """Return the error for two images of different places."""
    return ValueError(
        f"{one} and {other} do not overlap; put images of one place into a set and read the others apart."
    )


def _edge_points(box: Box, source: CRS | None, target: CRS | None, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points along the sides of a box in another CRS; longitudes as one run without a jump, about `near`."""
    west, south, east, north = box
    along_x, along_y = np.linspace(west, east, _POINTS_PER_SIDE), np.linspace(south, north, _POINTS_PER_SIDE)
    xs = np.concatenate([along_x, along_x, np.full_like(along_y, west), np.full_like(along_y, east)])
    ys = np.concatenate([np.full_like(along_x, south), np.full_like(along_x, north), along_y, along_y])
    if source is not None and target is not None and source != target:
        xs, ys = (np.asarray(values) for values in transform_points(source, target, xs, ys))
        if target.is_geographic:
            xs = xs[0] + (xs - xs[0] + 180) % 360 - 180
    if target is not None and target.is_geographic:
        xs = xs + 360 * np.round((near - (xs.min() + xs.max()) / 2) / 360)
    return xs, ys


def _project(box: Box, source: CRS, target: CRS, near: float) -> Box:
    """Return the box in another CRS around a box."""
    xs, ys = _edge_points(box, source, target, near)
    return float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())


def _intersect(one: Box, other: Box) -> Box:
    """Return the common part of two boxes; turned inside out where there is none."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def window_of_box(grid: Grid, box: Box, crs: CRS | None) -> Window | None:
    """Return the window of all pixels of a grid that touch a box, or None where none does.

    Args:
        grid: Pixels; without georeference where the box has none.
        box: In units of `crs`, or as parts of the extent without georeference.
        crs: Of the box.
    """
    west, _, east, _ = grid.footprint
    xs, ys = _edge_points(box, crs, grid.crs, near=(west + east) / 2)
    columns, rows, _ = np.linalg.inv(grid.matrix) @ np.stack([xs, ys, np.ones_like(xs)])
    spans = []
    for positions, size in ((columns, grid.width), (rows, grid.height)):
        if not np.isfinite(positions).all():
            return None
        start = math.floor(positions.min() + PIXEL_TOLERANCE)
        stop = max(math.ceil(positions.max() - PIXEL_TOLERANCE), start + 1)
        spans.append((max(start, 0), min(stop, size)))
    (left, right), (top, bottom) = spans
    return (left, top, right - left, bottom - top) if left < right and top < bottom else None


def _text(box: Box) -> str:
    """Return a box of degrees as text."""
    return "west {:.5f}, south {:.5f}, east {:.5f}, north {:.5f}".format(*box)


def are_one_grid(one: Grid, other: Grid) -> bool:
    """Return whether two grids of one CRS have the same pixels, within a thousandth of a pixel."""
    if (one.height, one.width, one.transform) == (other.height, other.width, other.transform):
        return True
    mapping = one.pixels_in(other)
    corners = np.array([(0, 0, 1), (one.width, 0, 1), (0, one.height, 1)]).T
    moved = np.abs(mapping @ corners - corners).max()
    return (one.height, one.width) == (other.height, other.width) and bool(moved <= PIXEL_TOLERANCE)


def are_aligned(fine: Grid, coarse: Grid) -> bool:
    """Return whether two grids of one CRS have parallel axes and cover one extent within a coarse pixel."""
    mapping = fine.pixels_in(coarse)
    start, stop = mapping @ (0, 0, 1), mapping @ (fine.width, fine.height, 1)
    gaps = (*start[:2], stop[0] - coarse.width, stop[1] - coarse.height)
    turned = abs(mapping[0, 1]) * fine.height + abs(mapping[1, 0]) * fine.width > 0.5
    return not turned and max(map(abs, gaps)) <= 1 + PIXEL_TOLERANCE


@dataclass(frozen=True)
class Neighbours:
    """Along one axis, the two coarse pixels around the centre of every fine one.

    Attributes:
        first: The first coarse pixel any fine one needs.
        count: How many coarse pixels from there are needed.
        lower: (n,) int64, the coarse pixel before every centre, counted from `first`.
        upper: (n,) int64, the one after it.
        weight: (n,) float64 in [0, 1), the weight of the one after it.
    """

    first: int
    count: int
    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray

    @classmethod
    def around(cls, positions: np.ndarray, size: int) -> Neighbours:
        """Find them.

        Args:
            positions: (n,) centres of the fine pixels in coarse pixels from the edge of the coarse grid.
            size: Coarse pixels along the axis; beyond the outermost centres the outermost pixel goes on.
        """
        centres = np.clip(positions - 0.5, 0, size - 1)
        lower = np.floor(centres).astype(np.int64)
        upper = np.minimum(lower + 1, size - 1)
        first = int(lower.min())
        return cls(first, int(upper.max()) - first + 1, lower - first, upper - first, centres - lower)

    @property
    def nearest(self) -> np.ndarray:
        """(n,) int64, the nearer of the two."""
        return np.where(self.weight > 0.5, self.upper, self.lower)


def neighbours_of(fine: Grid, coarse: Grid, window: Window) -> tuple[Neighbours, Neighbours]:
    """Return the coarse rows and columns around the fine pixels of a window; the grids must be aligned."""
    column, row, width, height = window
    mapping = fine.pixels_in(coarse)
    rows = (row + np.arange(height) + 0.5) * mapping[1, 1] + mapping[1, 2]
    columns = (column + np.arange(width) + 0.5) * mapping[0, 0] + mapping[0, 2]
    return Neighbours.around(rows, coarse.height), Neighbours.around(columns, coarse.width)


def interpolate(
    pixels: np.ndarray, real: np.ndarray, rows: Neighbours, columns: Neighbours
) -> tuple[np.ndarray, np.ndarray]:
    """Bring coarse pixels onto a finer grid, bilinearly; pixels that are not real weigh nothing.

    Args:
        pixels: (bands, height, width) of the coarse pixels that `rows` and `columns` need.
        real: (bands, height, width) bool.
        rows: Coarse rows around the fine ones.
        columns: Coarse columns around the fine ones.

    Returns:
        Values (bands, fine height, fine width) in the dtype of `pixels`, integers rounded, 0 where not real; and where
        they are real (bool), which the nearest coarse pixel decides.
    """
    share = _bilinear(real.astype(np.float64), rows, columns)
    values = _bilinear(np.where(real, pixels, 0).astype(np.float64), rows, columns)
    real = real[:, rows.nearest][:, :, columns.nearest]
    values = np.divide(values, share, out=np.zeros_like(values), where=real)
    return (np.rint(values) if pixels.dtype.kind in "iu" else values).astype(pixels.dtype), real


def _bilinear(values: np.ndarray, rows: Neighbours, columns: Neighbours) -> np.ndarray:
    """Interpolate (bands, rows, columns) at every pair of a fine row and a fine column."""
    down = rows.weight[:, None]
    values = values[:, rows.lower] * (1 - down) + values[:, rows.upper] * down
    return values[:, :, columns.lower] * (1 - columns.weight) + values[:, :, columns.upper] * columns.weight
