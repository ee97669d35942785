"""Pixel grids on the ground."""

import numpy as np
import pyproj
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from scipy.ndimage import map_coordinates

from a2mae_hub.grids import Grid, Neighbours, are_aligned, are_one_grid, common_windows, interpolate, window_of_bounds

# Code, and west, north and pixel size of a place where each is used: degrees, UTM on both sides of the antimeridian and
# of the equator, and a polar stereographic projection.
PLACES = {
    4326: (2.8, 42.3, 1e-4),
    32631: (500_000.0, 4_690_000.0, 10.0),
    32701: (181_500.0, 8_007_000.0, 30.0),
    32660: (735_800.0, 4_988_000.0, 30.0),
    3031: (1_000_000.0, 1_200_000.0, 30.0),
}


def grid_at(code, height=40, width=50, turn=0.0):
    west, north, size = PLACES[code]
    cos, sin = size * np.cos(turn), size * np.sin(turn)
    return Grid(height, width, (cos, sin, west, sin, -cos, north), CRS.from_epsg(code))


def centres(grid, code):
    """Longitude and latitude of every pixel centre, by pyproj."""
    rows, columns = np.mgrid[: grid.height, : grid.width] + 0.5
    a, b, c, d, e, f = grid.transform
    xs, ys = a * columns + b * rows + c, d * columns + e * rows + f
    return pyproj.Transformer.from_crs(code, 4326, always_xy=True).transform(xs, ys)


@given(
    code=st.sampled_from(sorted(PLACES)),
    turn=st.sampled_from([0.0, 0.3, -1.0]),
    corners=st.tuples(*[st.tuples(st.integers(0, 39), st.integers(0, 49))] * 2),
)
@settings(max_examples=60, deadline=None)
def test_the_window_of_bounds_holds_every_pixel_whose_centre_lies_in_them(code, turn, corners):
    grid = grid_at(code, turn=turn)
    longitude, latitude = centres(grid, code)
    # About the middle, so that the antimeridian is no jump.
    shifted = (longitude - longitude[20, 25] + 180) % 360 - 180
    xs, ys = [shifted[corner] for corner in corners], [latitude[corner] for corner in corners]
    assume(min(np.ptp(xs), np.ptp(ys)) > 1e-6)
    inside = (shifted >= min(xs)) & (shifted <= max(xs)) & (latitude >= min(ys)) & (latitude <= max(ys))
    west, east = ((x + longitude[20, 25] + 180) % 360 - 180 for x in (min(xs), max(xs)))
    column, row, width, height = window_of_bounds(grid, (west, min(ys), east, max(ys)))
    found = np.zeros_like(inside)
    found[row : row + height, column : column + width] = True
    assert found[inside].all()
    # And no more than the box around the bounds, which is tight where the axes are those of longitude and latitude.
    if code == 4326 and turn == 0:
        rows, columns = np.nonzero(inside)
        assert height <= np.ptp(rows) + 3 and width <= np.ptp(columns) + 3


@given(code=st.sampled_from(sorted(PLACES)), turn=st.sampled_from([0.0, 0.3]))
@settings(max_examples=10, deadline=None)
def test_bounds_around_a_whole_image_give_all_of_it(code, turn):
    grid = grid_at(code, turn=turn)
    assert window_of_bounds(grid, (-180, -90, 180, 90)) == grid.whole
    longitude, latitude = centres(grid, code)
    pad = 0.1
    middle = longitude[20, 25]
    bounds = (
        (middle - 2 * pad + 180) % 360 - 180,
        latitude.min() - pad,
        (middle + 2 * pad + 180) % 360 - 180,
        latitude.max() + pad,
    )
    assert window_of_bounds(grid, bounds) == grid.whole


def test_footprints_that_agree_within_the_coarsest_pixel_stay_whole_and_others_are_cropped():
    crs = CRS.from_epsg(32631)
    fine = Grid(120, 120, (10.0, 0.0, 0.0, 0.0, -10.0, 0.0), crs)
    coarse = Grid(20, 20, (60.0, 0.0, 30.0, 0.0, -60.0, -30.0), crs)
    assert common_windows([fine, coarse], ["fine", "coarse"], 0) == [fine.whole, coarse.whole]
    shifted = Grid(20, 20, (60.0, 0.0, 120.0, 0.0, -60.0, -60.0), crs)
    assert common_windows([fine, shifted], ["fine", "shifted"], 0) == [(12, 6, 108, 114), (0, 0, 18, 19)]
    elsewhere = Grid(20, 20, (60.0, 0.0, 1200.0, 0.0, -60.0, 0.0), crs)
    with pytest.raises(ValueError, match=r"(shifted|fine) and elsewhere do not overlap"):
        common_windows([fine, shifted, elsewhere], ["fine", "shifted", "elsewhere"], 0)


@given(
    size=st.integers(1, 9),
    factor=st.sampled_from([1, 2, 3, 6]),
    shift=st.floats(-0.9, 0.9),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_interpolation_equals_scipy_where_every_pixel_is_real(size, factor, shift, seed):
    coarse = np.random.default_rng(seed).random((2, size, size))
    positions = (np.arange(size * factor) + 0.5) / factor + shift
    around = Neighbours.around(positions, size)
    needed = slice(around.first, around.first + around.count)
    values, real = interpolate(
        coarse[:, needed, needed], np.ones((2, around.count, around.count), bool), around, around
    )
    grid = np.meshgrid(positions - 0.5, positions - 0.5, indexing="ij")
    expected = [map_coordinates(band, grid, order=1, mode="nearest") for band in coarse]
    assert real.all() and np.allclose(values, expected, atol=1e-12)


@given(mask=st.lists(st.booleans(), min_size=16, max_size=16))
@settings(max_examples=30, deadline=None)
def test_pixels_without_data_never_leak_into_their_neighbours(mask):
    real = np.reshape(mask, (1, 4, 4))
    pixels = np.where(real, 50, 60_000).astype(np.uint16)
    around = Neighbours.around((np.arange(12) + 0.5) / 3, 4)
    values, kept = interpolate(pixels, real, around, around)
    assert np.array_equal(kept, np.kron(real, np.ones((1, 3, 3), bool)))
    assert (values[kept] == 50).all() and (values[~kept] == 0).all()


def test_grids_are_one_only_when_every_corner_agrees():
    grid = grid_at(32631)
    a, b, c, d, e, f = grid.transform
    assert are_one_grid(grid, Grid(40, 50, (a, b, c + 0.005, d, e, f), grid.crs))
    assert not are_one_grid(grid, Grid(40, 50, (a, b, c + 1, d, e, f), grid.crs))
    assert not are_one_grid(grid, Grid(20, 25, (2 * a, b, c, d, 2 * e, f), grid.crs))
    assert are_aligned(grid, Grid(20, 25, (2 * a, b, c + 15, d, 2 * e, f), grid.crs))
    assert not are_aligned(grid, Grid(20, 25, (2 * a, b, c + 25, d, 2 * e, f), grid.crs))
    assert not are_aligned(grid, Grid(20, 25, (2 * a, 1.0, c, d, 2 * e, f), grid.crs))


def test_the_grid_of_a_window_starts_where_the_window_does():
    grid = grid_at(3031, turn=0.3)
    part = grid.crop((7, 5, 20, 10))
    assert (part.width, part.height) == (20, 10)
    assert part.matrix @ (2, 3, 1) == pytest.approx(grid.matrix @ (9, 8, 1), rel=1e-12)


def test_an_image_across_the_antimeridian_is_as_narrow_in_degrees_as_on_the_ground():
    across = grid_at(32660)
    with pytest.raises(ValueError, match=r"covers west (179\.9|-180\.0)"):
        window_of_bounds(across, (0, 44, 1, 46))
    longitude, _ = centres(across, 32660)
    assert longitude.min() < 0 < longitude.max()
    wide = Grid(1000, 1000, (0.001, 0.0, 179.5, 0.0, -0.001, 45.5), CRS.from_epsg(4326))
    _, (column, row, width, height) = common_windows([wide, across], ["wide", "across"], 0)
    assert (column, row, width, height) == across.whole
    (_, _, width, height), _ = common_windows([wide, across], ["wide", "across"], 0)
    # 1500 m by 1200 m at 45 degrees north, and the pixels that the edges cut.
    assert width == pytest.approx(1500 / 78.8, abs=3) and height == pytest.approx(1200 / 111.1, abs=3)
