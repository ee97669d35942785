"""Squares of true metres lie where the ground is, in whatever pixels it is drawn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from a2mae_hub.grids import Grid
from a2mae_hub.scene_files import grid_of
from a2mae_hub.stssd.footprints import (
    Footprint,
    covered,
    cut_at_180,
    footprint_of,
    locate,
    outline_of,
    polygon,
    surrounding_window,
    tiles,
    transformed,
    upright_grid,
    utm_zone,
    window_of,
    z_order,
)

WGS84 = pyproj.Geod(ellps="WGS84")


def grid_at(longitude, latitude, code=None, *, pixel=10.0, size=200, turn=0.0, south_up=False):
    """A grid of `size` (or height, width) pixels around a place; the code of its UTM zone where none is given."""
    code = code or utm_zone(longitude, latitude).to_epsg()
    height, width = (size, size) if isinstance(size, int) else size
    x, y = pyproj.Transformer.from_crs(4326, code, always_xy=True).transform(longitude, latitude)
    across, down = (pixel, pixel) if isinstance(pixel, float) else pixel
    down = down if south_up else -down
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    a, b, d, e = across * cos, -down * sin, across * sin, down * cos
    left, top = x - (a * width + b * height) / 2, y - (d * width + e * height) / 2
    return Grid(height, width, (a, b, left, d, e, top), CRS.from_epsg(code))


def place_of(grid, column, row):
    """Longitude and latitude of a place in the pixels of a grid, by pyproj."""
    x, y, _ = grid.matrix @ (column, row, 1)
    return pyproj.Transformer.from_crs(grid.crs.to_epsg(), 4326, always_xy=True).transform(x, y)


def pixel_of(grid, longitude, latitude):
    """Column and row of a place on the globe, by pyproj."""
    x, y = pyproj.Transformer.from_crs(4326, grid.crs.to_epsg(), always_xy=True).transform(longitude, latitude)
    return (np.linalg.inv(grid.matrix) @ (x, y, 1))[:2]


def metres(one, other):
    return WGS84.inv(*one, *other)[2]


def area(shape):
    """Square metres of polygons on the ellipsoid."""
    return sum(abs(WGS84.geometry_area_perimeter(part)[0]) for part in shapely.get_parts(shape))


longitudes = st.floats(-180, 180, allow_nan=False)


# ------------------------------------------------------------------------------------------------------ on the ground


@given(longitude=longitudes, latitude=st.floats(-80, 80), side=st.sampled_from([120.0, 960.0, 5_000.0]))
@settings(max_examples=100, deadline=None)
def test_a_footprint_is_as_long_as_it_says_in_both_directions_anywhere_up_to_80_degrees(longitude, latitude, side):
    upper_left, upper_right, lower_right, lower_left = Footprint(longitude, latitude, side, side).corners()
    west, east = ((upper + lower) / 2 for upper, lower in ((upper_left, lower_left), (upper_right, lower_right)))
    assert metres(west, east) == pytest.approx(side, rel=2e-5)
    for upper, lower in ((upper_left, lower_left), (upper_right, lower_right)):
        assert metres(upper, lower) == pytest.approx(side, rel=2e-5)
        assert upper[1] > lower[1]


@given(longitude=st.floats(-180.01, -179.99).map(lambda x: (x + 180) % 360 - 180), latitude=st.floats(-80, 80))
@settings(max_examples=60, deadline=None)
def test_a_footprint_is_cut_at_the_antimeridian_without_losing_ground(longitude, latitude):
    footprint = Footprint(longitude, latitude, 960, 960)
    shape = footprint.geometry()
    for part in shapely.get_parts(shape):
        west, _, east, _ = part.bounds
        assert -180 <= west < east <= 180
        assert east - west < 1
    assert shape.is_valid
    assert area(shape) == pytest.approx(960**2, rel=1e-3)
    assert shape.distance(shapely.Point(longitude, latitude)) == 0


def test_a_footprint_across_the_antimeridian_is_two_polygons_that_meet_there():
    shape = Footprint(180, 0, 2_000, 1_000).geometry()
    east, west = shape.geoms
    assert {east.bounds[2], west.bounds[0]} == {180.0, -180.0}
    assert area(east) == pytest.approx(area(west), rel=1e-6)


def test_a_footprint_off_the_antimeridian_is_one_polygon():
    assert Footprint(179.9, 10, 960, 960).geometry().geom_type == "Polygon"


@pytest.mark.parametrize("latitude", [-90, -89.9999, 89.9999, 90])
@pytest.mark.parametrize("longitude", [-180, 0, 77, 180])
def test_a_footprint_at_a_pole_has_a_geometry(longitude, latitude):
    shape = Footprint(longitude, latitude, 960, 960).geometry()
    assert shape.is_valid
    assert not shape.is_empty
    assert np.isfinite(shape.bounds).all()


@given(st.lists(st.tuples(st.floats(-179, 179), st.floats(-60, 60)), min_size=3, max_size=3), st.integers(-3, 3))
@settings(max_examples=60, deadline=None)
def test_shapes_cut_at_180_cover_the_same_ground_whatever_turn_of_the_globe_they_are_on(places, turn):
    shape = shapely.Polygon(places)
    assume(shape.is_valid and shape.area > 1e-3)
    moved = cut_at_180(shapely.transform(shape, lambda places: places + np.array([360 * turn, 0])))
    assert moved.symmetric_difference(shape).area < 1e-6


# ------------------------------------------------------------------------------------------------------- in the pixels

PLACES = {
    "UTM": grid_at(15.3, 48.2),
    "UTM at the edge of its zone, 70 degrees north": grid_at(17.9, 70.0, 32633),
    "the neighbouring UTM zone": grid_at(18.5, 60.0, 32633),
    "UTM south": grid_at(-44.1, -20.1),
    "UTM across the antimeridian": grid_at(180.0, -17.0, 32760),
    "UTM across the equator": grid_at(9.0, 0.0, 32632),
    "degrees, square on the ground": grid_at(2.8, 42.3, 4326, pixel=(0.000121, 0.0000902)),
    "degrees across the antimeridian": grid_at(180.0, 10.0, 4326, pixel=(9e-5, 9e-5)),
    "Web Mercator": grid_at(16.0, 49.5, 3857),
    "Web Mercator across the antimeridian": grid_at(180.0, -17.0, 3857),
    "south up": grid_at(15.3, 48.2, south_up=True),
    "turned by five degrees": grid_at(15.3, 48.2, turn=5.0),
    "Lambert": grid_at(4.9, 45.0, 2154),
    "polar stereographic, off the central meridian": grid_at(-45.0, 72.0, 3413),
}


@pytest.mark.parametrize("name", PLACES)
def test_the_centre_of_a_window_is_within_half_a_pixel_of_that_of_the_footprint(name):
    grid = PLACES[name]
    generator = np.random.default_rng(0)
    for _ in range(20):
        column, row = generator.uniform(80, 120, 2)
        footprint = Footprint(*place_of(grid, column, row), 600, 600)
        place = locate(footprint, grid)
        assert place.is_upright
        assert np.allclose(place.centre, (column, row), atol=1e-4)
        left, top, width, height = window_of(footprint, place, grid)
        assert abs(left + width / 2 - column) <= 0.5 + 1e-6
        assert abs(top + height / 2 - row) <= 0.5 + 1e-6
        # As many pixels as the footprint is long in them.
        across = metres(place_of(grid, column - 0.5, row), place_of(grid, column + 0.5, row))
        down = metres(place_of(grid, column, row - 0.5), place_of(grid, column, row + 0.5))
        assert abs(width - 600 / across) <= 0.51
        assert abs(height - 600 / down) <= 0.51


@given(
    latitude=st.floats(-79, 79),
    shift=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    side=st.sampled_from([320.0, 640.0, 960.0]),
)
@settings(max_examples=60, deadline=None)
def test_images_of_one_resolution_have_equally_many_pixels_in_their_own_zone_and_the_next(latitude, shift, side):
    # Six degrees is where zones 31 and 32 meet.
    footprint = Footprint(6.0, latitude, side, side)
    letter = 32600 if latitude >= 0 else 32700
    shapes = set()
    for zone in (31, 32):
        grid = grid_at(6.0, latitude, letter + zone)
        a, b, c, d, e, f = grid.transform
        grid = Grid(200, 200, (a, b, c + 10 * shift[0], d, e, f + 10 * shift[1]), grid.crs)
        place = locate(footprint, grid)
        assert place.is_upright
        shapes.add(window_of(footprint, place, grid)[2:])
    assert shapes == {(side // 10, side // 10)}


@given(shift=st.tuples(st.floats(-60, 60), st.floats(-60, 60)), odd=st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_footprint_has_no_window_exactly_when_it_sticks_out_by_more_than_a_pixel(shift, odd):
    grid = PLACES["UTM"]
    count = 121 if odd else 120
    place_at = place_of(grid, 100 + shift[0], 100 + shift[1])
    footprint = Footprint(*place_at, count * 10.0, count * 10.0)
    window = window_of(footprint, locate(footprint, grid), grid)
    starts = [math.floor(100 + along - count / 2 + 0.5) for along in shift]
    # Rounding of pyproj and of GDAL may fall on either side.
    assume(all(abs(100 + along - count / 2 + 0.5 - round(100 + along - count / 2 + 0.5)) > 1e-6 for along in shift))
    if all(-1 <= start and start + count <= 201 for start in starts):
        column, row = (min(max(start, 0), 200 - count) for start in starts)
        assert window == (column, row, count, count)
    else:
        assert window is None
    assert covered([footprint], grid).tolist() == [window is not None]


def test_a_footprint_of_more_pixels_than_the_grid_has_sticks_out():
    grid = PLACES["UTM"]
    place = place_of(grid, 100, 100)
    for east, north, fits in (
        (2_000.0, 500.0, True),
        (500.0, 2_000.0, True),
        (2_020.0, 500.0, False),
        (500, 2_020, False),
    ):
        footprint = Footprint(*place, east, north)
        assert (window_of(footprint, locate(footprint, grid), grid) is not None) == fits
        assert covered([footprint], grid).tolist() == [fits]


def test_a_footprint_smaller_than_a_pixel_is_one_pixel():
    grid = PLACES["UTM"]
    footprint = Footprint(*place_of(grid, 17.4, 30.6), 3.0, 0.1)
    assert window_of(footprint, locate(footprint, grid), grid) == (17, 30, 1, 1)


@given(steps=st.integers(1, 4), count=st.integers(5, 40), start=st.floats(20, 30))
@settings(max_examples=60, deadline=None)
def test_footprints_side_by_side_have_windows_side_by_side(steps, count, start):
    assume(abs(start % 0.5) > 1e-5 and abs(start % 0.5 - 0.5) > 1e-5)
    grid = PLACES["UTM"]
    windows = []
    for step in range(steps):
        footprint = Footprint(*place_of(grid, start + step * count, 100), count * 10.0, count * 10.0)
        windows.append(window_of(footprint, locate(footprint, grid), grid))
    for one, other in itertools.pairwise(windows):
        assert other[0] == one[0] + one[2]


@pytest.mark.parametrize("half", [0.0, 0.5])
def test_windows_whose_centres_lie_between_pixels_stay_side_by_side(half):
    # Every second number would be rounded the other way by round().
    grid = Grid(100, 100, (1e-4, 0.0, 0.0, 0.0, -1e-4, 5e-3), CRS.from_epsg(4326))
    footprints = [Footprint((10 + half + 7 * step) * 1e-4, 0.0, 7 * 11.1319, 7 * 11.0574) for step in range(8)]
    windows = [window_of(footprint, locate(footprint, grid), grid) for footprint in footprints]
    assert {window[2:] for window in windows} == {(7, 7)}
    assert np.ptp(np.diff([window[0] for window in windows])) <= (0 if half else 7)


@pytest.mark.parametrize(
    ("name", "grid", "upright"),
    [
        ("square degrees at 60 degrees north are twice as high as wide", grid_at(10, 60, 4326, pixel=1e-4), False),
        ("square degrees at the equator", grid_at(10, 0, 4326, pixel=1e-4), True),
        ("square degrees at 24 degrees north: a tenth", grid_at(10, 24, 4326, pixel=1e-4), True),
        ("square degrees at 26 degrees north: more", grid_at(10, 26, 4326, pixel=1e-4), False),
        ("turned by 30 degrees", grid_at(15.3, 48.2, turn=30.0), False),
        ("turned by 11 degrees", grid_at(15.0, 48.2, turn=11.0), False),
        ("turned by 9 degrees", grid_at(15.0, 48.2, turn=-9.0), True),
        ("turned by 90 degrees", grid_at(15.0, 48.2, turn=90.0), False),
        ("upside down", grid_at(15.0, 48.2, turn=180.0), True),
        ("south up", grid_at(15.0, 48.2, south_up=True), True),
        ("mirrored", grid_at(15.0, 48.2, pixel=(-10.0, 10.0)), True),
    ],
)
def test_pixels_are_used_as_they_are_where_they_are_square_and_along_the_axes(name, grid, upright):
    footprint = Footprint(*place_of(grid, 100, 100), 100, 100)
    assert locate(footprint, grid).is_upright == upright, name


@pytest.mark.parametrize("latitude", [0.5, 45.0, 60.0, 79.0])
def test_neighbouring_utm_zones_are_turned_by_three_degrees_at_most_and_used_as_they_are(latitude):
    # Half a degree into the neighbour's zone.
    grid = grid_at(18.5, latitude, 32633)
    place = locate(Footprint(18.5, latitude, 960, 960), grid)
    turn = math.degrees(math.atan2(place.pixel_metres[1, 0], place.pixel_metres[0, 0]))
    # Snyder 1987, Map Projections, equation 8-15 in its first term.
    assert abs(turn) == pytest.approx(3.5 * math.sin(math.radians(latitude)), abs=0.02)
    assert place.is_upright


def test_the_resolution_of_web_mercator_is_that_on_the_ground():
    grid = grid_at(16.0, 60.0, 3857)
    across = metres(place_of(grid, 100, 100), place_of(grid, 101, 100))
    down = metres(place_of(grid, 100, 100), place_of(grid, 100, 101))
    place = locate(Footprint(16.0, 60.0, 500, 500), grid)
    assert place.resolution == pytest.approx(math.sqrt(across * down), rel=1e-4)
    assert place.resolution == pytest.approx(5.0, rel=0.01)


def test_real_sentinel_2_in_degrees_is_used_as_it_is(shared):
    for path in sorted((shared / "data" / "scenes" / "boadella_sentinel2").glob("*.tif"))[:2]:
        with rasterio.open(path) as dataset:
            grid = grid_of(dataset)
        footprint = footprint_of(grid)
        place = locate(footprint, grid)
        assert place.is_upright
        assert place.resolution == pytest.approx(10, rel=0.01)
        assert window_of(footprint, place, grid) == grid.whole


@pytest.mark.parametrize("turn", [0.0, 30.0, 77.0])
def test_the_window_around_a_footprint_holds_its_corners_and_a_margin(turn):
    grid = grid_at(15.3, 48.2, turn=turn, size=(180, 260))
    footprint = Footprint(*place_of(grid, 130, 90), 500, 500)
    left, top, width, height = surrounding_window(footprint, grid)
    pixels = np.array([pixel_of(grid, *corner) for corner in footprint.corners()])
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    assert np.array_equal((left, top), np.floor(low) - 2)
    assert np.array_equal((left + width, top + height), np.ceil(high) + 2)
    tight = surrounding_window(footprint, grid, margin=0)
    assert np.array_equal(tight[:2], np.floor(low))
    far = Footprint(*place_of(grid, 130, 20), 500, 500)
    assert surrounding_window(far, grid) is None
    assert covered([footprint, far], grid).tolist() == [True, False]


def test_the_window_around_a_footprint_at_the_edge_stays_within_the_grid():
    grid = grid_at(10, 60, 4326, pixel=1e-4)
    footprint = footprint_of(grid)
    assert surrounding_window(footprint, grid) == grid.whole
    assert covered([footprint], grid).all()


@pytest.mark.parametrize("place", [(15.3, 48.2), (-44.0, -20.0), (179.999, 1.0)])
def test_the_grid_to_reproject_to_is_centred_on_its_footprint_in_its_utm_zone(place):
    grid = upright_grid(Footprint(*place, 960, 480), 15.0)
    assert (grid.width, grid.height) == (64, 32)
    assert metres(place_of(grid, 32, 16), place) < 1e-3
    assert grid.crs.to_epsg() == (32600 if place[1] > 0 else 32700) + math.floor((place[0] + 180) / 6) + 1
    assert (grid.transform[0], grid.transform[4]) == (15.0, -15.0)


def test_180_degrees_east_is_in_the_last_zone():
    assert utm_zone(180.0, 5.0).to_epsg() == 32660
    assert utm_zone(-180.0, 5.0).to_epsg() == 32601
    assert utm_zone(0.0, 0.0).to_epsg() == 32631


def test_a_footprint_far_from_a_grid_is_not_covered():
    for name, grid in PLACES.items():
        elsewhere = [Footprint(100.0, -40.0, 960, 960), Footprint(-10.0, 89.99, 960, 960)]
        assert not covered(elsewhere, grid).any(), name


# ---------------------------------------------------------------------------------------------------- of whole scenes


@pytest.mark.parametrize("size", [96, (37, 244), 1024, (10_980, 10_980)])
@pytest.mark.parametrize("name", [*PLACES, "70 degrees north"])
def test_the_footprint_of_a_scene_is_cut_out_of_it_as_the_whole_scene(name, size):
    like = PLACES.get(name) or grid_at(17.0, 70.0, 32633)
    height, width = (size, size) if isinstance(size, int) else size
    corner = np.array([100, 100]) - np.array([width, height]) / 2
    a, b, _, d, e, _ = like.transform
    left, top, _ = like.matrix @ (*corner, 1)
    grid = Grid(height, width, (a, b, left, d, e, top), like.crs)
    footprint = footprint_of(grid)
    place = locate(footprint, grid)
    if not place.is_upright:
        pytest.skip("degrees that stay square on the ground only near one latitude")
    assert window_of(footprint, place, grid) == grid.whole
    middle = place_of(grid, width / 2, height / 2)
    assert metres(footprint[:2], middle) < 1e-2
    assert footprint.east == pytest.approx(
        metres(place_of(grid, 0, height / 2), place_of(grid, width, height / 2)), rel=2e-3
    )
    assert footprint.north == pytest.approx(
        metres(place_of(grid, width / 2, 0), place_of(grid, width / 2, height)), rel=2e-3
    )


def test_the_footprint_of_stretched_pixels_is_as_long_as_the_scene_in_both_directions():
    grid = grid_at(10, 60, 4326, pixel=1e-4, size=(300, 400))
    footprint = footprint_of(grid)
    assert footprint.east == pytest.approx(metres(place_of(grid, 0, 150), place_of(grid, 400, 150)), rel=1e-3)
    assert footprint.north == pytest.approx(metres(place_of(grid, 200, 0), place_of(grid, 200, 300)), rel=1e-3)


@given(turn=st.floats(-180, 180), size=st.tuples(st.integers(50, 300), st.integers(50, 300)))
@settings(max_examples=60, deadline=None)
def test_the_footprint_of_a_turned_scene_lies_in_it_and_touches_its_edge(turn, size):
    assume(min(abs(turn % 180), abs(180 - turn % 180)) > 11)
    grid = grid_at(15.0, 48.2, turn=turn, size=size)
    footprint = footprint_of(grid)
    corners = np.array([pixel_of(grid, *corner) for corner in footprint.corners()])
    slack = np.stack([corners, (grid.width, grid.height) - corners])
    assert slack.min() == pytest.approx(0, abs=1e-3)
    assert covered([footprint], grid).all()


def test_a_square_turned_by_45_degrees_has_a_footprint_of_half_its_area():
    grid = grid_at(15.0, 48.2, turn=45.0)
    footprint = footprint_of(grid)
    assert footprint.east * footprint.north == pytest.approx(2_000**2 / 2, rel=2e-3)
    assert footprint.east == pytest.approx(footprint.north, rel=1e-3)


@pytest.mark.parametrize("name", PLACES)
def test_the_outline_of_a_scene_lies_on_its_edges_all_around(name):
    grid = PLACES[name]
    outline = outline_of(grid)
    assert np.abs(np.diff(outline[:, 0])).max() < 1
    pixels = np.array([pixel_of(grid, *place) for place in outline])
    if "across the antimeridian" in name and "UTM" not in name:
        # Half a globe off the grid is where pyproj may be a turn off it.
        turn = 2 * math.pi * 6_378_137 / 10 if "Mercator" in name else 360 / 9e-5
        pixels[:, 0] = (pixels[:, 0] + turn / 2) % turn - turn / 2
    edges = np.minimum(np.abs(pixels), np.abs(pixels - (grid.width, grid.height))).min(axis=1)
    assert edges.max() < 1e-3
    assert np.ptp(pixels, axis=0) == pytest.approx((grid.width, grid.height), abs=1e-3)
    assert polygon(outline).is_valid


def test_the_edges_of_a_large_scene_are_curves_in_degrees():
    # The northern edge of a Sentinel-2 tile sags by hundreds of metres at 70 degrees north.
    grid = grid_at(17.0, 70.0, 32633, size=10_980)
    ground = polygon(outline_of(grid))
    for column, row in ((5_490, 5), (5_490, 10_975), (5, 5_490), (10_975, 5_490)):
        assert ground.contains(shapely.Point(place_of(grid, column, row))), (column, row)
    assert not ground.contains(shapely.Point(place_of(grid, 5_490, -5)))


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (Grid(10, 10, (10.0, 0, 5e8, 0, -10.0, 1e9), CRS.from_epsg(32631)), "no places on Earth"),
        (Grid(10, 10, (10.0, 0, 5e8, 0, -10.0, 1e9), CRS.from_epsg(3857)), "no places on Earth"),
        (Grid(10, 10, (10.0, 0, 500_000.0, 0, -10.0, 4.7e6), CRS.from_epsg(4326)), "no places on Earth"),
        (Grid(10, 10, (10.0, 0, 5e5, 0, -10.0, 4e6), CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')), "no places"),
        (Grid(10, 10, (1e3, 0, -5e3, 0, -1e3, 5e3), CRS.from_epsg(3413)), "around a pole"),
        (Grid(10, 10, (1e3, 0, -5e3, 0, -1e3, 5e3), CRS.from_epsg(3031)), "around a pole"),
        (Grid(180, 360, (1.0, 0, -180.0, 0, -1.0, 90.0), CRS.from_epsg(4326)), "half the globe"),
    ],
)
def test_a_scene_that_lies_nowhere_or_around_a_pole_is_refused_in_one_sentence(grid, reason):
    with pytest.raises(ValueError, match=reason) as raised:
        footprint_of(grid)
    assert "\n" not in str(raised.value)


def test_degrees_from_0_to_360_are_the_same_ground_as_from_minus_180_to_180():
    crs = CRS.from_epsg(4326)
    one, other = (Grid(200, 200, (1e-4, 0.0, west, 0.0, -1e-4, 5.0), crs) for west in (190.0, -170.0))
    assert footprint_of(one) == pytest.approx(footprint_of(other))
    assert -180 <= footprint_of(one).longitude < 180
    assert polygon(outline_of(one)).equals_exact(polygon(outline_of(other)), 1e-9)
    footprint = Footprint(-169.99, 4.99, 960, 960)
    assert window_of(footprint, locate(footprint, one), one) == window_of(footprint, locate(footprint, other), other)


# --------------------------------------------------------------------------------------------------------------- tiles


def windows_of_tiles(grid, size):
    cut = tiles(footprint_of(grid), grid, size)
    assert covered(cut, grid).all()
    return cut, [window_of(tile, locate(tile, grid), grid) for tile in cut]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("size", [310.0, 640.0, 960.0])
def test_tiles_share_no_pixel_and_leave_less_than_a_tile_uncovered(name, size):
    grid = PLACES[name]
    cut, windows = windows_of_tiles(grid, size)
    hits = np.zeros((grid.height, grid.width), int)
    for column, row, width, height in windows:
        hits[row : row + height, column : column + width] += 1
    assert hits.max() == 1
    (width, height) = windows[0][2:]
    assert {window[2:] for window in windows} == {(width, height)}
    assert len(cut) == (grid.width // width) * (grid.height // height)
    rows, columns = np.nonzero(hits)
    # About the centre.
    for first, last, count in ((rows.min(), rows.max(), grid.height), (columns.min(), columns.max(), grid.width)):
        assert abs(first - (count - 1 - last)) <= 1
    resolution = locate(cut[0], grid).resolution
    for tile in cut:
        assert tile.east == pytest.approx(size, abs=0.55 * resolution)
        assert tile.north == pytest.approx(size, abs=0.55 * resolution)


@pytest.mark.parametrize("longitude", [12.05, 15.0, 17.95])
def test_a_scene_of_twice_the_size_is_four_tiles_anywhere_in_its_zone(longitude):
    # UTM metres are up to a thousandth longer or shorter than those of the ground.
    assert len(tiles(*whole(grid_at(longitude, 1.0, 32633, size=192)), 960.0)) == 4


def whole(grid):
    return footprint_of(grid), grid


def test_a_scene_shorter_than_a_tile_is_left_as_long_as_it_is_along_that_side():
    grid = grid_at(15.3, 48.2, size=(50, 200))
    _, windows = windows_of_tiles(grid, 960.0)
    assert windows == [(4, 0, 96, 50), (100, 0, 96, 50)]
    small = grid_at(15.3, 48.2, size=(50, 60))
    assert tiles(*whole(small), 960.0) == [pytest.approx(footprint_of(small))]
    assert tiles(*whole(grid), None) == [footprint_of(grid)]


def test_tiles_of_a_whole_sentinel_2_tile_are_its_pixels_each_once():
    # Sixty degrees north at the edge of the zone, where the meridians are turned by 2.6 degrees.
    grid = grid_at(17.0, 60.0, 32633, size=10_980)
    cut = tiles(*whole(grid), 960.0)
    xs, ys = pyproj.Transformer.from_crs(4326, 32633, always_xy=True).transform(*np.array(cut)[:, :2].T)
    columns, rows, _ = np.linalg.inv(grid.matrix) @ np.stack([xs, ys, np.ones(len(cut))])
    # 10 980 pixels are 114 times 96, and 18 left over at both ends.
    centres = 18 + 96 * np.arange(114) + 48
    expected = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    assert np.allclose(np.stack([columns, rows], axis=-1), expected, atol=1e-3)
    assert covered(cut, grid).all()
    for tile in cut[::1_001]:
        assert window_of(tile, locate(tile, grid), grid)[2:] == (96, 96)


@pytest.mark.parametrize(
    "grid",
    [
        grid_at(10, 60, 4326, pixel=1e-4, size=600),
        grid_at(15.3, 60.0, turn=30.0, size=600),
        grid_at(15.3, 60.0, turn=80.0, size=(300, 900)),
    ],
    ids=["stretched", "turned", "turned and long"],
)
def test_tiles_of_pixels_that_are_to_be_resampled_overlap_nowhere_and_lie_on_the_scene(grid):
    footprint = footprint_of(grid)
    cut = tiles(footprint, grid, 500.0)
    assert covered(cut, grid).all()
    assert len(cut) == math.floor(footprint.east / 500 + 0.02) * math.floor(footprint.north / 500 + 0.02) > 1
    for one, other in itertools.combinations([tile.geometry() for tile in cut], 2):
        assert one.intersection(other).area <= 1e-3 * one.area
    assert all(tile[2:] == pytest.approx((500, 500), rel=0.02) for tile in cut)


@pytest.mark.parametrize(
    ("crs", "off"),
    [
        ("EPSG:32631", (1e9, 1e9)),
        ("EPSG:32631", (math.nan, 0.0)),
        ("+proj=geos +h=35785831 +lon_0=0 +sweep=y", (9e6, 9e6)),
    ],
)
def test_a_place_off_the_projection_is_infinitely_far_and_takes_no_other_along(crs, off):
    on = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(3.0, 45.0)
    xs, ys = transformed(CRS.from_string(crs), CRS.from_epsg(4326), *np.array([on, off, on]).T)
    np.testing.assert_allclose([xs[[0, 2]], ys[[0, 2]]], [[3.0, 3.0], [45.0, 45.0]], atol=1e-9)
    assert np.isinf([xs[1], ys[1]]).all()


@pytest.mark.parametrize(
    "wkt",
    [
        'LOCAL_CS["site",UNIT["metre",1]]',
        'GEOGCS["Moon",DATUM["Moon",SPHEROID["Moon",1737400,0]],PRIMEM["R",0],UNIT["degree",0.0174532925199433]]',
    ],
)
def test_a_crs_that_is_tied_to_no_place_on_earth_has_none(wkt):
    here = np.array([3.0, 4.0]), np.array([45.0, 46.0])
    for pair in ((CRS.from_wkt(wkt), CRS.from_epsg(4326)), (CRS.from_epsg(4326), CRS.from_wkt(wkt))):
        assert np.isinf(transformed(*pair, *here)).all()


# ------------------------------------------------------------------------------------------------------------- ranking


@given(st.lists(st.tuples(longitudes, st.floats(-90, 90)), max_size=20))
def test_the_z_order_is_the_bits_of_both_coordinates_in_turn(places):
    keys = z_order(*np.array(places).reshape(-1, 2).T)
    for (longitude, latitude), key in zip(places, keys.tolist(), strict=True):
        x, y = (min(int(share * 2**24), 2**24 - 1) for share in ((longitude + 180) / 360, (latitude + 90) / 180))
        bits = "".join(b + a for a, b in zip(f"{x:024b}", f"{y:024b}", strict=True))
        assert key == int(bits, 2)
    assert keys.dtype == np.int64


@given(depth=st.integers(6, 16), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_places_of_one_cell_follow_each_other_in_z_order(depth, seed):
    longitude, latitude = np.random.default_rng(seed).uniform((10, 50), (11, 50.5), (300, 2)).T
    order = np.argsort(z_order(longitude, latitude), kind="stable")
    columns, rows = np.floor((longitude + 180) / 360 * 2**depth), np.floor((latitude + 90) / 180 * 2**depth)
    cells = list(zip(columns[order], rows[order], strict=True))
    assert len([cell for cell, _ in itertools.groupby(cells)]) == len(set(cells))
