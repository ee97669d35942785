"""Image sets are taken where scenes lie, at the same places whoever builds, and at none twice."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from a2mae_hub.grids import Grid
from a2mae_hub.modeling.sensors_a2mae import get_sensor
from a2mae_hub.scene_files import Layer, RasterFile, Scene
from a2mae_hub.stssd.catalogue import CatalogueScene
from a2mae_hub.stssd.footprints import Footprint, footprint_of, locate, surrounding_window, utm_zone, window_of, z_order
from a2mae_hub.stssd.recipe import Collection, Scenes
from a2mae_hub.stssd.sampling import sample

WGS84 = pyproj.Geod(ellps="WGS84")
HERE = Path(".")


def scene_on(grid, name="scene", sensor="sentinel-2-l2a"):
    """A scene of one band on a grid, without any file."""
    file = RasterFile(f"/data/{name}.tif", True, grid, (None,), (None,), (1.0,), (0.0,), None, False, {})
    known = get_sensor(sensor)
    layer = Layer(file, 0, known.bands[1].name, None)
    scene = Scene((layer,), grid, None, known, None, None, None, file.path)
    return CatalogueScene(scene, name, footprint_of(grid) if grid.crs else None, None, None, None)


def grid_at(longitude, latitude, code=None, *, pixel=10.0, size=300, shift=(0.0, 0.0), turn=0.0):
    """A grid of `size` (or height, width) pixels around a place that is moved by metres east and north."""
    code = code or utm_zone(longitude, latitude).to_epsg()
    height, width = (size, size) if isinstance(size, int) else size
    x, y = pyproj.Transformer.from_crs(4326, code, always_xy=True).transform(longitude, latitude)
    x, y = x + shift[0], y + shift[1]
    cos, sin = pixel * math.cos(math.radians(turn)), pixel * math.sin(math.radians(turn))
    left, top = x - (cos * width + sin * height) / 2, y - (sin * width - cos * height) / 2
    return Grid(height, width, (cos, sin, left, sin, -cos, top), CRS.from_epsg(code))


def unplaced(height, width):
    return Grid(height, width, (1 / width, 0.0, 0.0, 0.0, 1 / height, 0.0), None)


def scenes_on(*grids, **facts):
    return [scene_on(grid, f"scene-{number}", **facts) for number, grid in enumerate(grids)]


def sampled(scenes, root=HERE, **facts):
    entry = Scenes(paths=("*.tif",))
    return sample(Collection("one", (entry,), **facts), scenes, root)


def lies_on(footprint, grid):
    """Whether a footprint lies on a grid within a pixel and a half, by pyproj."""
    code = grid.crs.to_epsg()
    xs, ys = pyproj.Transformer.from_crs(4326, code, always_xy=True).transform(*footprint.corners().T)
    if code == 4326:
        west, _, east, _ = grid.footprint
        xs = (west + east) / 2 + (np.asarray(xs) - (west + east) / 2 + 180) % 360 - 180
    pixels = (np.linalg.inv(grid.matrix) @ np.stack([xs, ys, np.ones(4)]))[:2].T
    # Turned by three degrees against the grid, corners stick out by a twentieth of half a side.
    slack = 1.51 + 0.06 * footprint.east / math.sqrt(grid.pixel_area) * 0.5
    return (pixels >= -slack).all() and (pixels <= np.array([grid.width, grid.height]) + slack).all()


def centres(locations):
    return {(location.footprint.longitude, location.footprint.latitude) for location in locations}


def utm_of(location):
    """Zone, easting and northing of the centre of a location, by pyproj."""
    footprint = location.footprint
    zone = min(math.floor((footprint.longitude + 180) / 6), 59) + 1
    code = (32600 if footprint.latitude >= 0 else 32700) + zone
    transformer = pyproj.Transformer.from_crs(4326, code, always_xy=True)
    return code, *transformer.transform(footprint.longitude, footprint.latitude)


# ----------------------------------------------------------------------------------------------------------------- grid


@given(
    longitude=st.floats(-180, 180),
    latitude=st.floats(-75, 75),
    spacing=st.sampled_from([None, 300.0, 1_000.0, 1_234.5]),
    size=st.sampled_from([480.0, 960.0]),
)
@settings(max_examples=30, deadline=None)
def test_a_grid_has_its_places_at_whole_multiples_of_the_spacing_wholly_on_scenes(longitude, latitude, spacing, size):
    scenes = scenes_on(grid_at(longitude, latitude), grid_at(longitude, latitude, shift=(1_500.0, 700.0)))
    locations = sampled(scenes, size=size, spacing=spacing)
    step = spacing or size
    for location in locations:
        _, east, north = utm_of(location)
        assert abs(east / step - round(east / step)) * step < 1e-3
        assert abs(north / step - round(north / step)) * step < 1e-3
        assert location.window is None
        assert location.footprint[2:] == (size, size)
        assert location.scenes
        for number, scene in enumerate(scenes):
            grid = scene.scene.grid
            window = window_of(location.footprint, locate(location.footprint, grid), grid)
            assert (number in location.scenes) == (window is not None)
            assert number not in location.scenes or lies_on(location.footprint, grid)
    assert len(centres(locations)) == len(locations)
    # Nothing that fits is left out: a scene of 3 km has room for (3000 - size) / step places or one more, each way.
    on_first = sum(0 in location.scenes for location in locations)
    fewest = math.floor((2_990 - size) / step)
    assert on_first >= fewest**2 or min(abs(utm_edge - longitude) for utm_edge in range(-180, 181, 6)) < 0.1


def test_builds_of_overlapping_scenes_share_the_places_they_both_have():
    west, middle, east = (grid_at(15.3, 48.2, shift=(shift, shift / 3)) for shift in (-1_200.0, 0.0, 1_300.0))
    one, other = sampled(scenes_on(west, middle), size=480), sampled(scenes_on(middle, east), size=480)
    alone = sampled(scenes_on(middle), size=480)
    assert centres(alone) <= centres(one)
    assert centres(alone) <= centres(other)
    assert centres(alone)
    backwards = sampled(scenes_on(middle, west), size=480)
    assert [location.footprint for location in backwards] == [location.footprint for location in one]


def test_places_of_a_large_scene_at_high_latitude_reach_its_edges():
    # In degrees the edges of a tile at 70 degrees north are curves that bulge by seven hundred metres.
    grid = grid_at(17.0, 70.0, 32633, size=10_980)
    locations = sampled(scenes_on(grid), size=200.0, spacing=400.0)
    pixels = np.array([locate(location.footprint, grid).centre for location in locations[::50]])
    assert len(locations) == pytest.approx((109_800 / 400) ** 2, rel=0.01)
    assert pixels.min() < 100
    assert pixels.max() > 10_880


def test_dates_of_one_place_share_its_locations():
    grid = grid_at(15.3, 48.2)
    locations = sampled(scenes_on(*[grid] * 5), size=960)
    assert {location.scenes for location in locations} == {(0, 1, 2, 3, 4)}
    assert len(locations) >= 4


def test_scenes_in_two_zones_are_sampled_in_both_and_at_their_seam_in_one():
    grid = grid_at(6.0, 45.0, 32631, size=(300, 900))
    locations = sampled(scenes_on(grid), size=300.0)
    zones = [utm_of(location)[0] for location in locations]
    assert set(zones) == {32631, 32632}
    for code, longitude in zip(zones, [location.footprint.longitude for location in locations], strict=True):
        assert (code == 32631) == (longitude < 6)
    assert len(locations) == pytest.approx(30 * 10, rel=0.15)


def test_scenes_across_the_equator_are_sampled_on_both_sides():
    grid = grid_at(9.3, 0.0, 32632)
    locations = sampled(scenes_on(grid), size=480.0)
    assert {utm_of(location)[0] for location in locations} == {32632, 32732}
    assert len(locations) == pytest.approx(5 * 5, abs=6)


@pytest.mark.parametrize("code", [32760, 32701, 4326, 3857])
def test_scenes_across_the_antimeridian_are_sampled_on_both_sides(code):
    pixel = 9e-5 if code == 4326 else 10.0
    grid = grid_at(179.9999, -17.0, code, pixel=pixel)
    locations = sampled(scenes_on(grid), size=480.0)
    assert {location.footprint.longitude > 0 for location in locations} == {True, False}
    assert len(locations) == pytest.approx(5 * 5, abs=6)
    assert all(-180 <= longitude < 180 for longitude, _ in centres(locations))
    # The scene that ends there and the one that starts there are the same ground.
    turned = grid_at(-179.9999, -17.0, 32701, size=400)
    assert centres(sampled(scenes_on(turned), size=480.0)) >= centres(locations)


def test_a_scene_smaller_than_the_size_is_named():
    scenes = scenes_on(grid_at(15.3, 48.2, size=90))
    with pytest.raises(ValueError, match=r"'one': .*960.*/data/scene-0\.tif.*smaller size") as raised:
        sampled(scenes, size=960.0)
    assert "\n" not in str(raised.value)


def test_a_scene_without_georeference_lies_on_no_grid_and_is_named():
    scenes = scenes_on(grid_at(15.3, 48.2), unplaced(64, 64))
    for sampling in ("grid", "places.geojson"):
        with pytest.raises(ValueError, match=r"/data/scene-1\.tif: has no coordinate reference system"):
            sampled(scenes, sampling=sampling)


def test_a_spacing_of_more_places_than_anyone_has_is_refused_before_the_memory_is_full():
    with pytest.raises(ValueError, match=r"spacing is 0\.01 m"):
        sampled(scenes_on(grid_at(15.3, 48.2)), spacing=0.01)


def test_neighbours_on_the_ground_follow_each_other():
    locations = sampled(scenes_on(grid_at(15.3, 48.2, size=1_000), grid_at(-60.0, -20.0)), size=480)
    longitude, latitude = np.array([location.footprint[:2] for location in locations]).T
    keys = z_order(longitude, latitude)
    assert (np.diff(keys) >= 0).all()
    assert len(locations) > 100


def test_a_scene_that_is_turned_has_only_places_that_lie_on_it():
    grid = grid_at(15.3, 48.2, turn=30.0)
    locations = sampled(scenes_on(grid), size=480.0, spacing=240.0)
    assert locations
    for location in locations:
        assert surrounding_window(location.footprint, grid) is not None
    # Its four corners, which the box around it has, are empty.
    square = sampled(scenes_on(grid_at(15.3, 48.2)), size=480.0, spacing=240.0)
    assert 0.7 * len(square) < len(locations) < len(square)


def test_sensors_are_put_together_where_they_cover_the_same_place():
    scenes = [
        scene_on(grid_at(15.3, 48.2), "s2"),
        scene_on(grid_at(15.3, 48.2, shift=(1_500.0, 0.0), pixel=30.0, size=100), "l8", "landsat-8-sr"),
    ]
    locations = sampled(scenes, size=480.0)
    assert {location.scenes for location in locations} == {(0,), (1,), (0, 1)}


@pytest.mark.parametrize("sampling", ["grid", "footprints"])
def test_sensors_that_overlap_nowhere_are_named_by_a_file_of_each(sampling):
    scenes = [
        scene_on(grid_at(15.3, 48.2), "s2"),
        scene_on(grid_at(15.3, 48.2, shift=(2_900.0, 0.0), pixel=30.0, size=100), "l8", "landsat-8-sr"),
    ]
    with pytest.raises(ValueError, match=r"'one': scenes of landsat-8-sr and sentinel-2-l2a overlap nowhere") as raised:
        sampled(scenes, size=480.0, sampling=sampling)
    message = str(raised.value)
    assert "/data/s2.tif" in message
    assert "/data/l8.tif" in message
    assert "\n" not in message


# ----------------------------------------------------------------------------------------------------------- footprints


def test_two_dates_of_one_footprint_are_one_location_and_another_footprint_is_another():
    here, there = grid_at(15.3, 48.2), grid_at(15.3, 48.2, shift=(5_000.0, 0.0))
    locations = sampled(scenes_on(here, there, here), sampling="footprints", size=None)
    assert sorted(location.scenes for location in locations) == [(0, 2), (1,)]
    assert {location.footprint for location in locations} == {footprint_of(here), footprint_of(there)}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        # Shifted by less than a pixel, and less than two.
        ({}, {"shift": (4.0, -7.0)}, [(0, 1)]),
        ({}, {"shift": (18.0, 0.0)}, [(0,), (1,)]),
        # A row more: what fits the smaller fits both.
        ({"size": (100, 96)}, {"size": (101, 96), "shift": (0.0, 5.0)}, [(0, 1)]),
        # Two sensors whose grids do not meet: what fits ten metres fits thirty.
        ({}, {"pixel": 30.0, "size": 100, "shift": (12.0, 18.0)}, [(0, 1)]),
        # One in the other is not the same, although it lies on it.
        ({}, {"size": 100}, [(0,), (0, 1)]),
        # The neighbouring zone shows the same ground.
        ({"size": 96}, {"size": 96, "code": 32632}, [(0, 1)]),
    ],
)
def test_scenes_share_a_location_where_their_footprints_are_the_same_within_two_pixels_whatever_comes_first(
    order, one, other, found
):
    grids = [grid_at(11.999, 48.2, **{"code": 32633, **facts}) for facts in (one, other)]
    scenes = scenes_on(*[grids[number] for number in order])
    locations = sampled(scenes, sampling="footprints", size=None)
    assert sorted(tuple(sorted(order[number] for number in location.scenes)) for location in locations) == found
    # No scene is lost.
    assert {number for location in locations for number in location.scenes} == {0, 1}


def test_footprints_are_cut_into_tiles_that_share_no_pixel():
    grid = grid_at(15.3, 48.2, size=(300, 410))
    locations = sampled(scenes_on(grid, grid), sampling="footprints", size=960.0)
    assert {location.scenes for location in locations} == {(0, 1)}
    windows = [window_of(location.footprint, locate(location.footprint, grid), grid) for location in locations]
    assert sorted(windows) == sorted(
        (left, top, 96, 96) for left, top in itertools.product(range(13, 396, 96), range(6, 294, 96)) if left < 302
    )


@pytest.mark.parametrize("shift", [(0.0, 1_000.0), (1_000.0, 0.0)])
def test_scenes_that_overlap_are_cut_each_over_its_own_ground(shift):
    locations = sampled(
        scenes_on(grid_at(15.3, 48.2), grid_at(15.3, 48.2, shift=shift)), sampling="footprints", size=960.0
    )
    own = [
        sampled(scenes_on(grid_at(15.3, 48.2, shift=at)), sampling="footprints", size=960.0) for at in ((0, 0), shift)
    ]
    assert centres(locations) == centres(own[0]) | centres(own[1])


def test_scenes_shorter_than_a_tile_stay_whole():
    grid = grid_at(15.3, 48.2, size=(40, 60))
    (location,) = sampled(scenes_on(grid), sampling="footprints", size=960.0)
    assert window_of(location.footprint, locate(location.footprint, grid), grid) == grid.whole


@pytest.mark.parametrize("turn", [3.0, 30.0])
@pytest.mark.parametrize("size", [None, 480.0])
def test_footprints_of_turned_scenes_lie_on_them(turn, size):
    grid = grid_at(15.3, 48.2, turn=turn)
    locations = sampled(scenes_on(grid, grid), sampling="footprints", size=size)
    assert {location.scenes for location in locations} == {(0, 1)}
    assert len(locations) == (1 if size is None else 16 if turn == 30 else 36)


def test_footprints_across_the_antimeridian_are_the_same_from_both_sides():
    east, west = grid_at(180.0, -17.0, 32760), grid_at(-180.0, -17.0, 32701)
    (location,) = sampled(scenes_on(east, east), sampling="footprints", size=None)
    assert location.scenes == (0, 1)
    found = sampled(scenes_on(east, west), sampling="footprints", size=480.0)
    assert max(len(location.scenes) for location in found) == 2


def test_scenes_without_georeference_are_locations_of_their_own_after_the_others():
    scenes = scenes_on(unplaced(64, 64), grid_at(15.3, 48.2), unplaced(64, 64))
    locations = sampled(scenes, sampling="footprints", size=None)
    assert [location.scenes for location in locations] == [(1,), (0,), (2,)]
    assert [location.window for location in locations] == [None, (0, 0, 64, 64), (0, 0, 64, 64)]
    assert [location.footprint is None for location in locations] == [False, True, True]


def test_tiles_of_a_scene_without_georeference_are_pixels_at_the_resolution_of_its_sensor():
    locations = sampled(scenes_on(unplaced(70, 100)), sampling="footprints", size=320.0)
    # Ten metres a pixel.
    assert [location.window for location in locations] == [
        (left, top, 32, 32) for top, left in itertools.product((3, 35), (2, 34, 66))
    ]
    (location,) = sampled(scenes_on(unplaced(70, 100)), sampling="footprints", size=5_000.0)
    assert location.window == (0, 0, 100, 70)
    (location,) = sampled(scenes_on(unplaced(20, 33)), sampling="footprints", size=320.0)
    assert location.window == (0, 0, 32, 20)


# ---------------------------------------------------------------------------------------------------------------- files

AREA = (15.28, 48.19, 15.32, 48.21)


def places_file(folder, *geometries, code=None, name="places.geojson"):
    features = [
        {
            "type": "Feature",
            "properties": {"n": n},
            "geometry": None if shape is None else json.loads(shapely.to_geojson(shape)),
        }
        for n, shape in enumerate(geometries)
    ]
    document = {"type": "FeatureCollection", "features": features}
    if code:
        document["crs"] = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{code}"}}
    path = folder / name
    path.write_text(json.dumps(document))
    return path


def sampled_by(path, scenes=None, **facts):
    facts = {"size": 480.0, **facts}
    return sampled(scenes or scenes_on(grid_at(15.3, 48.2)), path.parent, sampling=path.name, **facts)


def test_points_are_the_centres_of_locations_and_those_off_the_scenes_are_left_out(tmp_path):
    points = [shapely.Point(15.3, 48.2), shapely.Point(15.301, 48.203), shapely.Point(0.0, 0.0)]
    # Ten metres within the edge: the footprint sticks out.
    east, north, _ = WGS84.fwd(15.3, 48.2, 90, 1_490)
    locations = sampled_by(places_file(tmp_path, *points, shapely.Point(east, north)))
    assert centres(locations) == {(15.3, 48.2), (15.301, 48.203)}
    assert {location.footprint[2:] for location in locations} == {(480.0, 480.0)}


def test_points_may_be_in_another_coordinate_reference_system(tmp_path):
    x, y = pyproj.Transformer.from_crs(4326, 32633, always_xy=True).transform(15.3, 48.2)
    (location,) = sampled_by(places_file(tmp_path, shapely.Point(x, y), code=32633))
    assert location.footprint[:2] == pytest.approx((15.3, 48.2), abs=1e-9)


def test_a_geopackage_is_a_file_of_places_too(tmp_path):
    import geopandas

    frame = geopandas.GeoDataFrame(geometry=[shapely.Point(15.3, 48.2)], crs=4326).to_crs(3857)
    path = tmp_path / "places.gpkg"
    frame.to_file(path)
    (location,) = sampled_by(path)
    assert location.footprint[:2] == pytest.approx((15.3, 48.2), abs=1e-9)
    # And its own path need not be below the root.
    (location,) = sampled(scenes_on(grid_at(15.3, 48.2)), HERE, sampling=str(path), size=480.0)


def test_a_place_that_is_there_twice_is_one_location(tmp_path):
    point = shapely.Point(15.3, 48.2)
    assert len(sampled_by(places_file(tmp_path, point, shapely.MultiPoint([point, point])))) == 1


def test_polygons_hold_the_places_of_the_grid_that_lie_in_them(tmp_path):
    scenes = scenes_on(grid_at(15.3, 48.2))
    area = shapely.box(15.29, 48.19, 15.305, 48.205)
    everywhere = sampled(scenes, size=480.0, spacing=240.0)
    locations = sampled_by(places_file(tmp_path, area), scenes, spacing=240.0)
    assert centres(locations) == {place for place in centres(everywhere) if area.contains(shapely.Point(place))}
    assert 4 < len(locations) < len(everywhere)


def test_polygons_of_one_feature_and_polygons_that_overlap_give_every_place_once(tmp_path):
    west, east = shapely.box(15.28, 48.19, 15.302, 48.21), shapely.box(15.298, 48.19, 15.32, 48.21)
    whole = sampled_by(places_file(tmp_path, shapely.box(*AREA)))
    for shapes in ((west, east), (shapely.MultiPolygon([west, shapely.box(*AREA)]),), (shapely.box(*AREA), None)):
        locations = sampled_by(places_file(tmp_path, *shapes))
        assert centres(locations) == centres(whole)
        assert len(locations) == len(whole)


def test_a_polygon_between_the_places_of_the_grid_gives_one_within_it(tmp_path):
    area = shapely.box(15.3, 48.2, 15.3001, 48.2001)
    (location,) = sampled_by(places_file(tmp_path, area), size=960.0, spacing=50_000.0)
    assert area.contains(shapely.Point(location.footprint[:2]))


def test_a_polygon_that_crosses_itself_is_taken_for_what_it_encloses(tmp_path):
    west, south, east, north = AREA
    bow = shapely.Polygon([(west, south), (east, north), (east, south), (west, north)])
    locations = sampled_by(places_file(tmp_path, bow), spacing=240.0)
    assert locations
    assert all(shapely.make_valid(bow).contains(shapely.Point(place)) for place in centres(locations))


@pytest.mark.parametrize("turn", [0, 360])
def test_places_beyond_180_degrees_are_those_on_the_other_side(tmp_path, turn):
    scenes = scenes_on(grid_at(-179.99, -17.0))
    point = shapely.Point(turn - 179.99, -17.0)
    (location,) = sampled_by(places_file(tmp_path, point), scenes)
    assert location.footprint.longitude == pytest.approx(-179.99)
    area = shapely.box(turn - 179.999, -17.01, turn - 179.98, -16.99)
    assert len(sampled_by(places_file(tmp_path, area), scenes)) >= 4


def test_a_polygon_across_180_degrees_has_places_on_both_sides(tmp_path):
    scenes = scenes_on(grid_at(180.0, -17.0, 32760))
    locations = sampled_by(places_file(tmp_path, shapely.box(179.97, -17.03, 180.03, -16.97)), scenes)
    assert centres(locations) == centres(sampled(scenes, size=480.0))
    assert {longitude > 0 for longitude, _ in centres(locations)} == {True, False}


def refused_file(path, match, kind=ValueError):
    with pytest.raises(kind, match=match) as raised:
        sampled_by(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message


def test_files_that_hold_no_places_are_named(tmp_path):
    line = shapely.LineString([(15.3, 48.2), (15.31, 48.2)])
    refused_file(places_file(tmp_path, shapely.Point(15.3, 48.2), line), "feature 1 is a LineString; only points")
    refused_file(
        places_file(tmp_path, shapely.MultiPoint([(15.3, 48.2), (15.31, 48.2)]), line), "feature 1 is a LineString"
    )
    refused_file(places_file(tmp_path, shapely.Point(500_000, 4_700_000)), "feature 0 lies nowhere on Earth")
    refused_file(tmp_path / "none.geojson", "no such file of points or polygons", FileNotFoundError)
    broken = tmp_path / "broken.geojson"
    broken.write_text("{]")
    refused_file(broken, "no points or polygons that can be read")
    table = tmp_path / "places.csv"
    table.write_text("longitude,latitude\n15.3,48.2\n")
    refused_file(table, "no points or polygons that can be read .*without geometry")


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
def test_a_file_without_coordinate_reference_system_is_named(tmp_path):
    import geopandas

    path = tmp_path / "places.shp"
    geopandas.GeoDataFrame(geometry=[shapely.Point(15.3, 48.2)]).to_file(path)
    refused_file(path, "no coordinate reference system")


@pytest.mark.filterwarnings("ignore:OGRGeoJSONReadRawPoint")
@pytest.mark.parametrize("shapes", [[], [None], [shapely.Point(0, 0)], [shapely.Point()]])
def test_places_that_all_lie_off_the_scenes_make_nothing_and_name_a_scene(tmp_path, shapes):
    with pytest.raises(ValueError, match=r"/data/scene-0\.tif.*correct sampling"):
        sampled_by(places_file(tmp_path, *shapes))


# ---------------------------------------------------------------------------------------------------------------- speed


def seconds(call):
    started = time.process_time()
    call()
    return time.process_time() - started


@pytest.mark.parametrize("sampling", ["grid", "footprints"])
def test_two_thousand_dates_of_one_place_are_planned_at_once(sampling):
    grid = grid_at(15.3, 48.2, size=3_000)
    scenes = scenes_on(grid)
    dates = [CatalogueScene(scenes[0].scene, f"{n}", scenes[0].footprint, None, None, None) for n in range(2_000)]
    found = []
    # 31 x 31 places: two million pairs of a place and a scene.
    assert seconds(lambda: found.extend(sampled(dates, sampling=sampling))) < 2
    assert {len(location.scenes) for location in found} == {2_000}
    assert len(found) == pytest.approx(31 * 31, rel=0.05)


def test_footprints_that_all_overlap_are_planned_in_seconds():
    generator = np.random.default_rng(0)
    grids = [grid_at(15.3, 48.2, size=100, shift=tuple(generator.uniform(-300, 300, 2))) for _ in range(400)]
    scenes = scenes_on(*grids)
    assert seconds(lambda: sampled(scenes, sampling="footprints", size=None)) < 4


def test_scenes_apart_are_planned_in_seconds():
    grids = [grid_at(-120 + 0.05 * (n % 40), 35 + 0.05 * (n // 40), size=100) for n in range(400)]
    scenes = scenes_on(*grids)
    for sampling in ("footprints", "grid"):
        assert seconds(lambda sampling=sampling: sampled(scenes, sampling=sampling, size=480.0)) < 4


def test_a_footprint_is_what_a_location_gives_the_assembly():
    locations = sampled(scenes_on(grid_at(15.3, 48.2)))
    assert all(isinstance(location.footprint, Footprint) for location in locations)
    assert all(isinstance(number, int) for location in locations for number in location.scenes)


# ---------------------------------------------------------------------------------------------------- what is to derive


def with_all_bands(scene):
    """The scene with every band that its sensor has, each in one file."""
    layers = tuple(replace(scene.scene.layers[0], name=band.name) for band in scene.scene.sensor.bands)
    return replace(scene, scene=replace(scene.scene, layers=layers))


@pytest.mark.parametrize(
    ("sensor", "pixel", "target", "finest"),
    [
        ("sentinel-2-l2a", 10.0, "gaofen-2", 4),
        ("landsat-8-sr", 30.0, "sentinel-2-l2a", 10),
        ("naip", 5.0, "gaofen-2", 4),
    ],
)
def test_a_sensor_finer_than_the_scenes_is_refused_before_a_set_is_made(sensor, pixel, target, finest):
    scenes = [with_all_bands(scene) for scene in scenes_on(grid_at(3, 42, pixel=pixel, size=600), sensor=sensor)]
    message = rf"scene-0\.tif, .*has pixels of {pixel:g}(\.\d+)? m, coarser than the {finest} m of sensor '{target}'"
    for sampling in ("grid", "footprints"):
        with pytest.raises(ValueError, match=message):
            sampled(scenes, sampling=sampling, derive=target)


def test_pixels_decide_on_what_can_be_derived_and_not_what_the_sensor_has_by_nature():
    (fine,) = scenes_on(grid_at(3, 42, pixel=10.0), sensor="landsat-8-sr")
    assert sampled([with_all_bands(fine)], derive="sentinel-2-l2a")
    (coarse,) = scenes_on(grid_at(3, 42, pixel=20.0), sensor="sentinel-2-l2a")
    with pytest.raises(ValueError, match=r"pixels of 20.* m, coarser than the 3 m of sensor 'planetscope-8'"):
        sampled([with_all_bands(coarse)], derive="planetscope-8")
    assert sampled([with_all_bands(coarse)], derive="landsat-8-sr")


def test_a_place_of_unknown_pixels_has_those_that_its_sensor_has_by_nature():
    scene = with_all_bands(scene_on(unplaced(300, 300)))
    assert sampled([scene], sampling="footprints", derive="landsat-8-sr")
    with pytest.raises(ValueError, match=r"pixels of 10 m, coarser than the 4 m of sensor 'gaofen-2'"):
        sampled([scene], sampling="footprints", derive="gaofen-2")


def test_where_two_sensors_are_nothing_has_to_be_derived():
    sentinel = scene_on(grid_at(3, 42), "one", "sentinel-2-l2a")
    landsat = scene_on(grid_at(3, 42, pixel=30.0, size=100), "other", "landsat-8-sr")
    assert sampled([with_all_bands(sentinel), with_all_bands(landsat)], derive="gaofen-2")
