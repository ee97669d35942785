"""The simulated scenes obey what is known of sunlight, spectra, seasons and sensors."""

from dataclasses import replace
from datetime import date, datetime, timezone

import numpy as np
import pyproj
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.landscape import (
    BROADLEAF,
    BUILT_UP,
    CONIFER,
    GRASSLAND,
    LAND_COVER_NAMES,
    ROAD,
    SUMMER_CROP,
    WATER,
    WINTER_CROP,
    Place,
    simulate_place,
    with_change,
)
from a2mae_hub.modeling.sensors_a2mae import get_sensor
from a2mae_hub.simulate import (
    Acquisition,
    cloud_opacity,
    default_acquisitions,
    observe,
    overpass,
    simulate_image_set,
    solar_position,
    surface_fractions,
    write_scenes,
)
from a2mae_hub.spectra import MATERIALS

SUMMER = overpass(date(2023, 7, 5), 9.4)
WINTER = overpass(date(2023, 1, 20), 9.4)


@pytest.fixture(scope="module")
def place() -> Place:
    return simulate_place(7, extent=960.0)


def flat(place: Place, cover: int) -> Place:
    """The place, but flat, of one land cover and of one field."""
    return replace(
        place,
        land_cover=np.full_like(place.land_cover, cover),
        elevation=np.full_like(place.elevation, 400),
        parcels=np.zeros_like(place.parcels),
        roofs=np.zeros_like(place.roofs),
    )


def reflectances(place: Place, sensor: str, acquired: datetime, **options) -> dict[str, np.ndarray]:
    """Physical values by common name."""
    image = observe(place, Acquisition(sensor, acquired, **options))
    physical = image.pixels * get_sensor(sensor).scale + get_sensor(sensor).offset
    return {get_sensor(sensor).find(name).common_name: band for name, band in zip(image.bands, physical, strict=True)}


def mean_reflectance(place: Place, cover: int, sensor: str = "sentinel-2-l2a", acquired: datetime = SUMMER):
    return {name: float(band.mean()) for name, band in reflectances(flat(place, cover), sensor, acquired).items()}


def ndvi(values):
    return (values["nir"] - values["red"]) / (values["nir"] + values["red"])


# ------------------------------------------------------------------------------------------------------------------ sun


def test_the_sun_stands_where_the_solar_position_algorithm_of_nrel_puts_it():
    # Worked example of Reda and Andreas 2004 (NREL/TP-560-34302): zenith 50.11°, azimuth 194.34°.
    elevation, azimuth = solar_position(datetime(2003, 10, 17, 19, 30, 30), -105.1786, 39.742476)
    assert elevation == pytest.approx(90 - 50.11, abs=0.3)
    assert azimuth == pytest.approx(194.34, abs=0.3)


def test_the_sun_is_near_the_zenith_at_noon_of_the_equinox_on_the_equator():
    # The sun runs 7.5 minutes late on that day.
    elevation, _ = solar_position(datetime(2023, 3, 20, 12, 7, 30), 0.0, 0.0)
    assert elevation > 89


@pytest.mark.parametrize(("latitude", "day", "height"), [(51.48, (6, 21), 61.96), (51.48, (12, 21), 15.08)])
def test_noon_at_greenwich_on_the_solstices(latitude, day, height):
    # 90° − latitude ± 23.44°, the obliquity of the ecliptic.
    elevation, _ = solar_position(datetime(2023, *day, 12, 0), 0.0, latitude)
    assert elevation == pytest.approx(height, abs=0.15)


def test_the_overpass_is_at_half_past_ten_by_the_sun_and_the_sun_is_then_in_the_south_east():
    assert overpass(date(2023, 7, 5), 0.0) == datetime(2023, 7, 5, 10, 30, tzinfo=timezone.utc)
    assert overpass(date(2023, 7, 5), -75.0).hour == 15
    _, azimuth = solar_position(SUMMER, 9.4, 48.4)
    assert 90 < azimuth < 180


# ----------------------------------------------------------------------------------------------- land cover and seasons


@pytest.mark.parametrize("cover", [CONIFER, BROADLEAF])
def test_woods_in_summer_are_green_and_have_a_red_edge(place, cover):
    wood = mean_reflectance(place, cover)
    assert ndvi(wood) > 0.7
    assert wood["blue"] < wood["green"] > wood["red"]  # green leaves
    assert wood["red"] < wood["rededge071"] < wood["rededge075"] < wood["rededge078"]
    assert wood["nir08"] > wood["swir16"] > wood["swir22"]  # leaf water


def test_conifers_are_darker_than_broadleaf_trees_in_the_near_infrared(place):
    assert mean_reflectance(place, CONIFER)["nir"] < 0.75 * mean_reflectance(place, BROADLEAF)["nir"]


def test_water_is_darkest_in_the_near_infrared_and_its_ndvi_is_negative(place):
    water = mean_reflectance(place, WATER)
    assert water["nir"] < water["green"]
    assert ndvi(water) < 0
    assert water["swir16"] < 0.01


def test_broadleaf_woods_lose_their_leaves_in_winter_and_conifers_do_not(place):
    assert ndvi(mean_reflectance(place, BROADLEAF, acquired=WINTER)) < 0.45
    assert ndvi(mean_reflectance(place, CONIFER, acquired=WINTER)) > 0.7


def test_seasons_are_half_a_year_apart_on_the_two_hemispheres():
    north, south = (simulate_place(1, latitude=latitude, extent=480.0) for latitude in (45.0, -45.0))
    january, july = overpass(date(2023, 1, 15), 9.4), overpass(date(2023, 7, 15), 9.4)
    leaf = MATERIALS.index("broadleaf")

    def leaves(place, when):
        return surface_fractions(flat(place, BROADLEAF), when)[leaf].mean()

    assert leaves(north, july) > 0.8 > 0.1 > leaves(north, january)
    assert leaves(south, january) > 0.8 > 0.1 > leaves(south, july)


def test_wheat_is_green_in_may_and_maize_in_august(place):
    may, august = overpass(date(2023, 5, 15), 9.4), overpass(date(2023, 8, 20), 9.4)
    wheat_may, wheat_august = (ndvi(mean_reflectance(place, WINTER_CROP, acquired=day)) for day in (may, august))
    maize_may, maize_august = (ndvi(mean_reflectance(place, SUMMER_CROP, acquired=day)) for day in (may, august))
    assert wheat_may > 0.6 > 0.35 > wheat_august
    assert maize_august > 0.6 > 0.35 > maize_may


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 364), st.sampled_from([-40.0, 0.0, 48.4]))
def test_materials_cover_the_ground_completely_on_every_day(day, latitude):
    place = simulate_place(3, extent=240.0, latitude=latitude)
    when = datetime.fromordinal(date(2023, 1, 1).toordinal() + day)
    fractions = surface_fractions(place, when)
    np.testing.assert_allclose(fractions.sum(axis=0), 1, atol=1e-5)
    assert fractions.min() > -1e-6


def test_a_place_has_every_kind_of_ground_and_water_lies_level_with_or_below_its_banks():
    place = simulate_place(0)
    shares = {name: (place.land_cover == number).mean() for number, name in LAND_COVER_NAMES.items()}
    assert min(shares.values()) > 0.005, shares
    assert place.elevation[place.land_cover == WATER].mean() < place.elevation.mean()


# ----------------------------------------------------------------------------------------------- light, clouds, sensors


def test_slopes_that_face_the_sun_are_brighter(place):
    # A ridge from north to south: its eastern side looks at the morning sun.
    ground = flat(place, GRASSLAND)
    columns = np.arange(ground.land_cover.shape[1])
    ridge = -0.3 * ground.resolution * np.abs(columns - columns.mean())
    ground = replace(ground, elevation=np.broadcast_to(ridge, ground.elevation.shape).astype(np.float32))
    red = reflectances(ground, "sentinel-2-l2a", SUMMER)["red"]
    half = red.shape[1] // 2
    assert red[:, half:].mean() > 1.15 * red[:, :half].mean()


@pytest.mark.parametrize("cover", [ROAD, GRASSLAND])
def test_sentinel_2_and_landsat_8_of_one_day_agree_where_their_bands_match(place, cover):
    sentinel, landsat = mean_reflectance(place, cover), mean_reflectance(place, cover, "landsat-8-sr")
    # Centres of these bands are within 5 nm. Red is 10 nm apart, which matters on leaves but hardly on asphalt.
    matched = {"coastal", "nir08", "swir16", "swir22"} | ({"green", "red"} if cover == ROAD else set())
    for name in matched:
        assert landsat[name] == pytest.approx(sentinel[name], rel=0.02), name


def test_a_mean_over_the_place_does_not_depend_on_the_pixel_size(place):
    sentinel = reflectances(place, "sentinel-2-l2a", SUMMER)["nir08"].mean()
    assert reflectances(place, "landsat-8-sr", SUMMER)["nir08"].mean() == pytest.approx(sentinel, rel=0.02)


def test_noise_is_what_the_signal_to_noise_ratio_says(place):
    acquisition = Acquisition("sentinel-2-l2a", SUMMER)
    one, other = (observe(place, acquisition, ["B04"], seed=seed).pixels.astype(float) for seed in (1, 2))
    near_reference = (one > 800) & (one < 1200)
    assert (one - other)[near_reference].std() / np.sqrt(2) == pytest.approx(1000 / 140, rel=0.15)


def test_coarse_bands_are_repeated_onto_the_fine_grid(place):
    image = observe(place, Acquisition("sentinel-2-l2a", SUMMER), ["B02", "B05", "B01"])
    fine, twenty, sixty = image.pixels
    assert np.array_equal(twenty, np.kron(twenty[::2, ::2], np.ones((2, 2), int)))
    assert np.array_equal(sixty, np.kron(sixty[::6, ::6], np.ones((6, 6), int)))
    assert not np.array_equal(fine, np.kron(fine[::2, ::2], np.ones((2, 2), int)))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.8])
def test_clouds_cover_the_share_that_was_asked(place, share):
    acquisition = Acquisition("sentinel-2-l2a", SUMMER, share)
    opacity, _ = cloud_opacity(place, acquisition)
    assert (opacity > 0.5).mean() == pytest.approx(share, abs=0.02)
    blue = reflectances(place, "sentinel-2-l2a", SUMMER, cloud_cover=share)["blue"]
    clear = reflectances(place, "sentinel-2-l2a", SUMMER)["blue"]
    assert (blue > clear + 0.25).mean() == pytest.approx(share, abs=0.05)


def test_cloud_shadows_fall_away_from_the_sun_and_darken_the_ground(place):
    opacity, shadow = cloud_opacity(place, Acquisition("sentinel-2-l2a", SUMMER, 0.2))
    elevation, azimuth = np.radians(solar_position(SUMMER, place.longitude, place.latitude))
    # The morning sun is in the south-east, so the shadow lies to the north-west: up and left.
    reach = 1_500 / np.tan(elevation) / place.resolution
    moved = np.roll(opacity, (round(reach * np.cos(azimuth)), round(-reach * np.sin(azimuth))), axis=(0, 1))
    assert np.cos(azimuth) < 0 < np.sin(azimuth)
    assert np.array_equal(shadow, moved)
    clear, cloudy = (reflectances(place, "sentinel-2-l2a", SUMMER, cloud_cover=share)["red"] for share in (0, 0.2))
    coarse = [field.reshape(96, 2, 96, 2).mean(axis=(1, 3)) for field in (opacity, shadow)]
    shaded = (coarse[0] < 0.01) & (coarse[1] > 0.99)
    assert shaded.any()
    assert cloudy[shaded].mean() < 0.5 * clear[shaded].mean()


def test_a_thick_cloud_is_bright_and_spectrally_flat(place):
    overcast = reflectances(place, "sentinel-2-l2a", SUMMER, cloud_cover=1.0)
    middle = [np.percentile(band, 90) for band in overcast.values()]
    assert min(middle) > 0.5
    assert max(middle) / min(middle) < 1.05


def test_aerial_imagery_is_eight_bit():
    place = simulate_place(2, extent=96.0, fine_resolution=0.6)
    image = observe(place, Acquisition("naip", SUMMER))
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape == (4, 160, 160)
    assert 30 < image.pixels.mean() < 220


# --------------------------------------------------------------------------------------------------------------- events


@pytest.mark.parametrize("kind", ["clear-cut", "burn"])
def test_an_event_takes_the_trees_inside_its_mask_and_leaves_the_rest(place, kind):
    changed = with_change(place, kind, datetime(2023, 6, 1))
    mask = changed.change.mask
    assert 0.002 < mask.mean() < 0.2
    assert np.isin(place.land_cover[mask], (CONIFER, BROADLEAF)).all()
    before = overpass(date(2023, 5, 25), 9.4)
    leaves = [MATERIALS.index(name) for name in ("broadleaf", "conifer")]
    assert np.array_equal(surface_fractions(changed, before), surface_fractions(place, before))
    after, untouched = surface_fractions(changed, SUMMER), surface_fractions(place, SUMMER)
    assert after[leaves][:, mask].max() == 0 and untouched[leaves][:, mask].sum(axis=0).min() > 0.5
    assert np.array_equal(after[:, ~mask], untouched[:, ~mask])


def test_a_place_without_trees_has_none_to_lose(place):
    with pytest.raises(ValueError, match="no wood"):
        with_change(flat(place, BUILT_UP), "burn", SUMMER)


# ------------------------------------------------------------------------------------------------------- sets and files


def test_the_same_seed_gives_the_same_pixels_and_another_seed_another_place():
    first, again, other = (simulate_image_set(0, place=simulate_place(seed, extent=240.0)) for seed in (5, 5, 6))
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0].pixels, other[0].pixels)


def test_the_default_set_is_two_sensors_on_two_days(place):
    images = simulate_image_set(7, place=place)
    assert [image.sensor for image in images] == ["sentinel-2-l2a", "landsat-8-sr"] * 2
    assert images[0].acquired == images[1].acquired < images[2].acquired == images[3].acquired
    assert [image.pixels.shape for image in images] == [(12, 96, 96), (7, 32, 32)] * 2


def test_written_scenes_are_georeferenced_products(tmp_path):
    place = with_change(simulate_place(4, extent=480.0, longitude=-47.9, latitude=-15.8), "burn", datetime(2023, 8, 1))
    paths = write_scenes(tmp_path / "scenes", 4, place=place)
    assert [path.name for path in paths[:2]] == [
        "place4_sentinel-2-l2a_20230705.tif",
        "place4_landsat-8-sr_20230705.tif",
    ]
    for path, pixel_size, scale, offset in zip(paths, (10, 30), (1e-4, 2.75e-5), (0.0, -0.2), strict=False):
        with rasterio.open(path) as dataset:
            assert dataset.crs.to_epsg() == 32723
            assert dataset.res == (pixel_size, pixel_size)
            assert set(dataset.scales) == {scale} and set(dataset.offsets) == {offset}
            assert dataset.nodata == 0 and dataset.read().min() > 0
            assert dataset.tags()["sensor"] in path.name
            assert datetime.fromisoformat(dataset.tags()["acquired"]) == overpass(date(2023, 7, 5), -47.9)
            sensor = get_sensor(dataset.tags()["sensor"])
            assert dataset.descriptions == tuple(band.name for band in sensor.bands)
            to_degrees = pyproj.Transformer.from_crs(32723, 4326, always_xy=True)
            centre = to_degrees.transform(*dataset.xy(dataset.height / 2 - 0.5, dataset.width / 2 - 0.5))
            assert centre == pytest.approx((-47.9, -15.8), abs=0.0005)
    with rasterio.open(tmp_path / "scenes" / "truth" / "land_cover.tif") as dataset:
        assert np.array_equal(dataset.read(1), place.land_cover)
        assert dataset.tags()[f"class_{WATER}"] == "water"
        assert dataset.colormap(1)[WATER][2] > dataset.colormap(1)[WATER][0]
    with rasterio.open(tmp_path / "scenes" / "truth" / "change.tif") as dataset:
        assert np.array_equal(dataset.read(1) == 1, place.change.mask)
    assert {path.name for path in (tmp_path / "scenes").iterdir()} == {*(path.name for path in paths), "truth"}


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_scenes(tmp_path / folder, 1, place=simulate_place(1, extent=240.0))
    names = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.tif"))
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


# ------------------------------------------------------------------------------------------------------------ bad input


def test_pixels_finer_than_the_truth_are_refused(place):
    with pytest.raises(ValueError, match=r"naip.*0\.6 m.*finer.*fine_resolution=0\.6"):
        observe(place, Acquisition("naip", SUMMER))


def test_an_extent_that_holds_no_whole_number_of_pixels_is_refused():
    place = simulate_place(0, extent=250.0)
    with pytest.raises(ValueError, match="250 m wide, no multiple of the 30 m pixels"):
        observe(place, Acquisition("landsat-8-sr", SUMMER))


def test_an_image_at_night_is_refused(place):
    with pytest.raises(ValueError, match="too low for an image"):
        observe(place, Acquisition("sentinel-2-l2a", datetime(2023, 7, 5, 23, 0)))


def test_a_cloud_cover_in_per_cent_is_refused(place):
    with pytest.raises(ValueError, match="from 0 to 1"):
        observe(place, Acquisition("sentinel-2-l2a", SUMMER, 40))


def test_a_place_at_the_pole_or_of_broken_cells_is_refused():
    with pytest.raises(ValueError, match="latitude 95"):
        simulate_place(0, latitude=95.0)
    with pytest.raises(ValueError, match="whole number"):
        simulate_place(0, extent=1_000.0, fine_resolution=7.0)


def test_two_acquisitions_of_one_name_are_refused(tmp_path, place):
    twice = default_acquisitions(place.longitude)[:1] * 2
    with pytest.raises(ValueError, match="Two acquisitions"):
        write_scenes(tmp_path, 0, twice, place=place)
    assert not list(tmp_path.iterdir())
