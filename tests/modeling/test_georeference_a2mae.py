"""Times and places, against pyproj and the calendar."""

import builtins
import sys
from datetime import date, datetime, timedelta, timezone

import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.modeling.georeference_a2mae import (
    UNKNOWN_TIME,
    PixelGrid,
    crs_text,
    ground_resolution,
    minutes_since_2000,
    patch_centres,
    place_images,
    to_degrees,
    to_metres,
)

GEOD = pyproj.Geod(ellps="WGS84")
LONGITUDES = st.floats(-180, 180)
LATITUDES = st.floats(-80, 80)


def grid(size=(64, 64), crs=None, transform=None, gsd=10.0, label="image 0"):
    return PixelGrid(label, *size, gsd, crs, transform)


def projected(crs, longitude, latitude, pixel, size=(64, 64), label="image 0"):
    """A north-up grid of `pixel` CRS units whose centre lies at a longitude and latitude, placed by pyproj."""
    x, y = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(longitude, latitude)
    transform = (pixel, 0.0, x - pixel * size[1] / 2, 0.0, -pixel, y + pixel * size[0] / 2)
    return grid(size, crs, transform, label=label)


def ground_truth(centre, longitude, latitude):
    """North and east in metres of a point near a centre, along the geodesic."""
    azimuth, _, distance = GEOD.inv(*centre, longitude, latitude)
    return distance * np.cos(np.deg2rad(azimuth)), distance * np.sin(np.deg2rad(azimuth))


@pytest.mark.parametrize(
    ("acquired", "minutes"),
    [
        ("2000-01-01", 0),
        ("2000-01-02", 1440),
        ("2000-01-01T00:10:59Z", 10),
        ("2000-01-01 01:00:00.1234567+01:00", 0),
        ("2000-01-01T00:00-0130", 90),
        ("1999-12-31T23:59:30", -1),
        (datetime(2000, 1, 1, 2), 120),
        (datetime(2000, 1, 1, 2, tzinfo=timezone(timedelta(hours=2))), 0),
        (date(2000, 1, 3), 2880),
        (np.datetime64("2000-01-01T01:00:00.000000001"), 60),
        (np.datetime64("2000-01-02"), 1440),
        (None, UNKNOWN_TIME),
        (np.datetime64("NaT"), UNKNOWN_TIME),
        (float("nan"), UNKNOWN_TIME),
    ],
)
def test_a_time_in_any_common_form_is_minutes_since_2000_utc(acquired, minutes):
    assert minutes_since_2000(acquired) == minutes


@settings(max_examples=60, deadline=None)
@given(st.datetimes(datetime(1970, 1, 1), datetime(2100, 12, 31), timezones=st.timezones()))
def test_an_iso_text_and_its_datetime_are_the_same_minute(moment):
    moment = moment.replace(fold=0)
    truth = int((moment - datetime(2000, 1, 1, tzinfo=timezone.utc)).total_seconds() // 60)
    if 1970 < moment.year < 2100:
        assert minutes_since_2000(moment) == truth
        assert minutes_since_2000(moment.astimezone(timezone.utc).isoformat()) == truth


@pytest.mark.parametrize("acquired", ["1969-12-31", "2101-01-01", datetime(1950, 1, 1), np.datetime64("2150-01-01")])
def test_a_time_before_1970_or_after_2100_is_an_error_naming_image_and_value(acquired):
    with pytest.raises(ValueError, match=r"image 3 was acquired at .*(1969|2101|1950|2150).*acquired=None"):
        minutes_since_2000(acquired, "image 3")


@pytest.mark.parametrize("acquired", ["yesterday", "2020-13-01", "2020-01-32", "20", 737425, "2020-01-01T25:00"])
def test_what_is_no_time_is_an_error_that_says_how_to_write_one(acquired):
    with pytest.raises(ValueError, match=r"image 3 has acquired=.*(ISO 8601)"):
        minutes_since_2000(acquired, "image 3")


@settings(max_examples=60, deadline=None)
@given(LONGITUDES, LATITUDES, st.floats(-179, 179), st.floats(10, 3000))
def test_metres_from_a_centre_agree_with_geodesics(longitude, latitude, azimuth, distance):
    there = GEOD.fwd(longitude, latitude, azimuth, distance)[:2]
    north, east = to_metres(np.array(there), (longitude, latitude))
    # Meridians converge: at 80 degrees and 3 km, by a few metres.
    assert (north, east) == pytest.approx(ground_truth((longitude, latitude), *there), abs=2e-3 * distance)


@settings(max_examples=60, deadline=None)
@given(LONGITUDES, LATITUDES, st.floats(-5e4, 5e4), st.floats(-5e4, 5e4))
def test_degrees_and_metres_are_inverse_also_across_the_antimeridian(longitude, latitude, north, east):
    centre = (longitude, latitude)
    degrees = to_degrees(np.array([north, east]), centre)
    assert abs(degrees[0]) <= 180
    np.testing.assert_allclose(to_metres(degrees, centre), [north, east], atol=1e-6)


def test_places_at_the_poles_stay_on_earth():
    placement = place_images([grid((100, 100))], longitude=10.0, latitude=90.0)
    assert np.isfinite(placement.corners).all()
    assert np.abs(placement.anchor_corners[:, 1]).max() <= 90


@pytest.mark.parametrize("latitude", [0.0, 37.0, -50.0, 60.0])
def test_web_mercator_metres_are_longer_than_ground_metres_by_the_cosine_of_latitude(latitude):
    placement = place_images([projected("EPSG:3857", 15.0, latitude, 10.0)])
    # The projection is on a sphere, the ground on the ellipsoid: up to 0.7 % apart.
    expected = 10.0 * np.cos(np.deg2rad(latitude))
    assert ground_resolution(placement.corners[0], 64, 64) == pytest.approx(expected, rel=7e-3)


def test_ten_metre_web_mercator_pixels_at_50_degrees_north_are_6_4_metres():
    placement = place_images([projected("EPSG:3857", 15.0, 50.0, 10.0)])
    assert ground_resolution(placement.corners[0], 64, 64) == pytest.approx(6.44, abs=0.02)


@pytest.mark.parametrize("crs", ["EPSG:4326", "OGC:CRS84", "EPSG:4269", "EPSG:32631", "EPSG:3857", "EPSG:3035"])
def test_patch_centres_lie_where_pyproj_puts_them(crs):
    pixel = 0.0001 if pyproj.CRS(crs).is_geographic else 10.0
    image = projected(crs, 2.8, 42.3, pixel, size=(48, 80))
    placement = place_images([image])
    centres = patch_centres(placement.corners[0], 48, 80, 16)
    assert centres.shape == (3, 5, 2)
    to_lonlat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    a, _, c, _, e, f = image.transform
    middle = to_lonlat.transform(c + a * 40, f + e * 24)
    for row in range(3):
        for column in range(5):
            there = to_lonlat.transform(c + a * (column + 0.5) * 16, f + e * (row + 0.5) * 16)
            np.testing.assert_allclose(centres[row, column], ground_truth(middle, *there), atol=0.3)


def test_wkt_proj_text_numbers_and_crs_objects_name_the_same_place():
    image = projected("EPSG:32631", 2.8, 42.3, 10.0)
    expected = place_images([image]).anchor_corners
    crs = pyproj.CRS("EPSG:32631")
    for form in (32631, "32631", crs.to_wkt(), "+proj=utm +zone=31 +datum=WGS84 +units=m +no_defs", crs):
        other = image._replace(crs=crs_text(form))
        np.testing.assert_allclose(place_images([other]).anchor_corners, expected, atol=1e-9)
    assert crs_text(None) is None


def test_degrees_need_no_rasterio_whether_named_by_code_or_by_wkt(monkeypatch):
    image = projected("EPSG:4326", 2.8, 42.3, 0.0001)
    expected = place_images([image]).corners
    wkts = [pyproj.CRS(4326).to_wkt(), pyproj.CRS(4326).to_wkt("WKT1_GDAL"), rasterio.crs.CRS.from_epsg(4269).to_wkt()]
    monkeypatch.setitem(sys.modules, "rasterio.warp", None)
    for wkt in wkts:
        np.testing.assert_array_equal(place_images([image._replace(crs=wkt)]).corners, expected)


def test_without_rasterio_a_projected_image_is_an_error_naming_the_ways_out(monkeypatch):
    image = projected("EPSG:32631", 2.8, 42.3, 10.0)
    really_import = builtins.__import__

    def without_rasterio(name, *args, **kwargs):
        if name.split(".")[0] == "rasterio":
            raise ImportError(name)
        return really_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_rasterio)
    with pytest.raises(ValueError, match=r"image 0 .*EPSG:32631.*install rasterio, or pass longitude and latitude"):
        place_images([image])


def test_images_in_neighbouring_utm_zones_register():
    # Zones 31 and 32 meet at 6 degrees east.
    images = [projected(crs, 6.0, 48.0, 10.0) for crs in ("EPSG:32631", "EPSG:32632")]
    first, second = place_images(images).corners
    np.testing.assert_allclose(first.mean(0), second.mean(0), atol=0.01)
    # Grid north differs between the zones by 2 × 3° × sin(48°), which turns the squares against each other.
    edge_one, edge_two = first[1] - first[0], second[1] - second[0]
    cosine = edge_one @ edge_two / np.linalg.norm(edge_one) / np.linalg.norm(edge_two)
    assert np.rad2deg(np.arccos(cosine)) == pytest.approx(6 * np.sin(np.deg2rad(48)), abs=0.1)


@pytest.mark.parametrize("crs", ["EPSG:32601", "EPSG:32660", "EPSG:4326"])
def test_a_footprint_across_the_antimeridian_stays_in_one_piece(crs):
    pixel = 0.0001 if crs == "EPSG:4326" else 10.0
    image = projected(crs, 180.0 if crs != "EPSG:4326" else 179.999, 10.0, pixel, size=(64, 64))
    placement = place_images([image])
    assert np.abs(placement.corners).max() < 600
    assert np.abs(placement.anchor_corners[:, 0]).max() <= 180
    assert np.ptp(placement.anchor_corners[:, 0]) > 350
    np.testing.assert_allclose(placement.corners[0].mean(0), 0, atol=1)


def test_without_georeference_the_ground_sample_distance_spans_the_footprint():
    near, far = grid((96, 48)), grid((32, 16), gsd=30.0)
    placement = place_images([near, far], longitude=10.0, latitude=50.0)
    np.testing.assert_allclose(placement.corners[0], placement.corners[1])
    np.testing.assert_allclose(placement.corners[0], [[480, -240], [480, 240], [-480, 240], [-480, -240]])
    assert ground_resolution(placement.corners[1], 32, 16) == pytest.approx(30.0)
    upper_left, upper_right, _, lower_left = placement.anchor_corners
    assert GEOD.inv(*upper_left, *upper_right)[2] == pytest.approx(480, rel=1e-3)
    assert GEOD.inv(*upper_left, *lower_left)[2] == pytest.approx(960, rel=1e-3)


def test_an_unknown_place_has_positions_but_no_corner_coordinates():
    placement = place_images([grid()])
    assert np.isnan(placement.anchor_corners).all()
    assert np.abs(placement.corners).max() == 320


def test_an_image_without_georeference_shares_the_centre_of_those_with_one():
    referenced = projected("EPSG:32631", 2.8, 42.3, 10.0)
    alone = place_images([referenced])
    for images, anchor in (([grid((20, 20)), referenced], 0), ([referenced, grid((20, 20))], 0)):
        placement = place_images(images, anchor)
        np.testing.assert_allclose(placement.corners[images.index(referenced)], alone.corners[0])
        np.testing.assert_allclose(placement.corners[1 - images.index(referenced)].mean(0), 0, atol=1e-9)
        assert np.isfinite(placement.anchor_corners).all()


def test_georeference_goes_before_a_given_centre():
    referenced = projected("EPSG:32631", 2.8, 42.3, 10.0)
    placement = place_images([referenced], longitude=2.801, latitude=42.3)
    np.testing.assert_array_equal(placement.corners, place_images([referenced]).corners)


def test_an_anchor_without_georeference_lies_at_the_given_centre():
    placement = place_images([grid(), projected("EPSG:32631", 2.8, 42.3, 10.0)], 0, longitude=2.801, latitude=42.3)
    gap = GEOD.inv(2.800, 42.3, 2.801, 42.3)[2]
    np.testing.assert_allclose(placement.corners[0].mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(placement.corners[1].mean(0), [0, -gap], atol=0.1)


def test_the_frame_is_centred_on_the_anchor():
    west, east = (projected("EPSG:32631", longitude, 42.3, 10.0) for longitude in (2.800, 2.802))
    gap = GEOD.inv(2.800, 42.3, 2.802, 42.3)[2]
    np.testing.assert_allclose(place_images([west, east], 0).corners[1].mean(0)[1], gap, atol=0.1)
    np.testing.assert_allclose(place_images([west, east], 1).corners[0].mean(0)[1], -gap, atol=0.1)


def test_centres_of_padded_edge_patches_continue_the_pixel_grid():
    corners = place_images([grid((20, 40))]).corners[0]
    centres = patch_centres(corners, 20, 40, 16)
    assert centres.shape == (2, 3, 2)
    np.testing.assert_allclose(centres[:, 0, 0], [100 - 80, 100 - 240])
    np.testing.assert_allclose(centres[0, :, 1], [-200 + 80, -200 + 240, -200 + 400])


def test_images_that_do_not_overlap_the_anchor_are_an_error_naming_both():
    images = [projected("EPSG:32631", 2.8 + index, 42.3, 10.0, label=f"image {index}") for index in range(2)]
    with pytest.raises(ValueError, match=r"image 1 does not overlap the anchor, image 0: .* 82\.\d+ km apart"):
        place_images(images)


def test_footprints_that_only_touch_or_whose_boxes_overlap_alone_share_no_ground():
    left = grid((10, 10), "EPSG:32631", (10.0, 0.0, 500000.0, 0.0, -10.0, 4700000.0))
    beside = left._replace(transform=(10.0, 0.0, 500100.0, 0.0, -10.0, 4700000.0))
    # A square on its tip whose bounding box, though not itself, reaches over the corner of `left`.
    turned = left._replace(transform=(7.0, 7.0, 500090.0, 7.0, -7.0, 4700035.0 + 20.0))
    for other in (beside, turned):
        for anchor in (0, 1):
            with pytest.raises(ValueError, match="does not overlap"):
                place_images([left, other], anchor)
    place_images([left, left._replace(transform=(10.0, 0.0, 500099.0, 0.0, -10.0, 4700000.0))])


@pytest.mark.parametrize(
    ("crs", "transform", "message"),
    [
        ("EPSG:4326", (1e-4, 0, 10.0, 0, -1e-4, 95.0), r"latitude .* to 95, which is no place.*units of its crs EPSG"),
        ("EPSG:4326", (1e-4, 0, 400.0, 0, -1e-4, 45.0), "longitude 400 to .*no place on Earth"),
        ("EPSG:4326", (10.0, 0, 1743790.0, 0, -10.0, 6423380.0), "no place on Earth"),
        ("EPSG:32631", (10.0, 0, 5e9, 0, -10.0, 5e6), "image 0 lies where .*EPSG:32631 is not defined"),
        ("EPSG:99999", (10.0, 0, 0.0, 0, -10.0, 0.0), "image 0 has crs 'EPSG:99999', which is no coordinate"),
        ("a map", (10.0, 0, 0.0, 0, -10.0, 0.0), "image 0 has crs 'a map', which is no coordinate"),
    ],
)
def test_coordinates_that_are_no_place_on_earth_are_an_error(crs, transform, message):
    with pytest.raises(ValueError, match=message):
        place_images([grid(crs=crs, transform=transform)])


@pytest.mark.parametrize(
    ("longitude", "latitude", "message"),
    [
        (10.0, 95.0, "set 2 has longitude 10.0 and latitude 95.0, which is no place on Earth"),
        (181.0, 5.0, "no place on Earth"),
        (float("nan"), 5.0, "no place on Earth"),
        (10.0, None, "set 2 has longitude 10.0 and latitude None: give both, or neither"),
    ],
)
def test_a_given_centre_must_be_a_place_on_earth(longitude, latitude, message):
    with pytest.raises(ValueError, match=message):
        place_images([grid()], longitude=longitude, latitude=latitude, label="set 2")


def test_a_window_beyond_180_degrees_lies_where_its_longitude_less_360_does():
    beyond, within = (
        place_images([PixelGrid("an image", 96, 96, 0.0, "EPSG:4326", (1e-4, 0, west, 0, -1e-4, -16.0))])
        for west in (180.5, -179.5)
    )
    np.testing.assert_allclose(beyond.anchor_corners, within.anchor_corners, atol=1e-9)
    np.testing.assert_allclose(beyond.corners, within.corners, atol=1e-6)
