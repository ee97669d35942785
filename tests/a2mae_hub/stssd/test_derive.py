"""A derived image is what the other sensor would have taken: its bands, its pixels, its noise, and its place."""

from dataclasses import replace
from datetime import date, datetime

import numpy as np
import pyproj
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from a2mae_hub import read_image
from a2mae_hub.images import Image
from a2mae_hub.landscape import simulate_place
from a2mae_hub.modeling.sensors_a2mae import Band, Sensor, get_sensor
from a2mae_hub.simulate import Acquisition, observe, overpass
from a2mae_hub.spectra import KNOTS, SPECTRA, band_reflectance
from a2mae_hub.stssd.derive import band_weights, derive
from a2mae_hub.stssd.schema import StoredImage, StoredSet, to_row

SENTINEL, LANDSAT, NAIP = (get_sensor(name) for name in ("sentinel-2-l2a", "landsat-8-sr", "naip"))
SENTINEL_BANDS, NAIP_BANDS = ([band.name for band in sensor.bands] for sensor in (SENTINEL, NAIP))
BOADELLA = "data/scenes/boadella_sentinel2/Boadella_2020-06-21.tif"
SUMMER = overpass(date(2023, 7, 5), 9.4)
STEP = LANDSAT.scale


@pytest.fixture(scope="module")
def pair() -> tuple[Image, Image]:
    """One place at one moment, as Sentinel-2 and as Landsat-8 see it."""
    place = simulate_place(3, extent=960.0)
    return tuple(observe(place, Acquisition(name, SUMMER), seed=11) for name in ("sentinel-2-l2a", "landsat-8-sr"))


@pytest.fixture(scope="module")
def boadella(shared) -> Image:
    bounds = (2.805, 42.340, 2.818, 42.350)
    return read_image(shared / BOADELLA, sensor="sentinel-2-l2a", bands=SENTINEL_BANDS, bounds=bounds)


def sentinel(reflectance: np.ndarray, **facts) -> Image:
    """An image of all bands of Sentinel-2 from (height, width) or (bands, height, width) reflectance."""
    pixels = np.broadcast_to(np.rint(reflectance * 1e4), (12, *np.shape(reflectance)[-2:])).astype(np.uint16)
    return Image(**{"pixels": pixels, "bands": SENTINEL_BANDS, "sensor": "sentinel-2-l2a", "gsd": 10.0, **facts})


def physical(image: Image) -> np.ndarray:
    scale, offset = (getattr(get_sensor(image.sensor), fact) for fact in ("scale", "offset"))
    return image.pixels * scale + offset


# ------------------------------------------------------------------------------------------------------- band matching


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["sentinel-2-l2a", "naip", "hls", "planetscope-8"]),
    st.sampled_from(["landsat-8-sr", "gaofen-2", "sentinel-2-l2a"]),
    st.data(),
)
def test_the_weights_of_a_band_sum_to_1_and_stay_tame_whatever_bands_are_there(source, target, data):
    names = [band.name for band in get_sensor(source).bands]
    bands = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    try:
        supported, weights = band_weights(get_sensor(source), bands, get_sensor(target))
    except ValueError:
        assume(False)
    assert weights.shape == (len(supported), len(bands))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    assert weights.min() > -0.5 and weights.max() < 1.5


def test_the_weights_solve_the_least_squares_problem_they_are_said_to():
    # Independently: the condition built in as w = p + N z, the columns of N summing to 0, and solved by numpy's lstsq.
    _, weights = band_weights(NAIP, NAIP_BANDS, get_sensor("gaofen-2"))
    target = get_sensor("gaofen-2").bands[0]
    seen = np.array([[band_reflectance(KNOTS, s, band) / 100 for band in NAIP.bands] for s in SPECTRA.values()])
    asked = np.array([band_reflectance(KNOTS, s, target) / 100 for s in SPECTRA.values()])
    grid = np.arange(200, 1200, 0.5)
    response = [np.exp(-4 * np.log(2) * ((grid - b.wavelength) / b.width) ** 2) / b.width for b in NAIP.bands]
    prior = np.array(response) @ np.exp(-4 * np.log(2) * ((grid - target.wavelength) / target.width) ** 2)
    prior /= prior.sum()
    plane = np.vstack([np.eye(3), -np.ones(3)])
    root = np.sqrt(len(SPECTRA)) * 0.015
    solution = np.linalg.lstsq(np.vstack([seen @ plane, root * plane]), np.r_[asked - seen @ prior, np.zeros(4)])[0]
    np.testing.assert_allclose(weights[0], prior + plane @ solution, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("sentinel-2-l2a", "landsat-8-sr", "B1 B2 B3 B4 B5 B6 B7"),
        ("sentinel-2-l2a", "landsat-8-toa", "B1 B2 B3 B4 B5 B6 B7 B8"),  # L2A has no cirrus band
        ("naip", "gaofen-2", "B1 B2 B3 B4"),
        ("naip", "sentinel-2-l2a", "B01 B02 B03 B04 B08 B8A"),  # no red edge, no short-wave infrared
    ],
)
def test_a_target_band_is_supported_where_it_overlaps_a_source_band(source, target, expected):
    names, _ = band_weights(get_sensor(source), [b.name for b in get_sensor(source).bands], get_sensor(target))
    assert names == expected.split()


def test_bands_that_match_take_nearly_all_of_the_weight():
    names, weights = band_weights(SENTINEL, SENTINEL_BANDS, LANDSAT)
    for target, source in (("B1", "B01"), ("B4", "B04"), ("B6", "B11"), ("B7", "B12")):
        row = weights[names.index(target)]
        assert row.argmax() == SENTINEL_BANDS.index(source)
        assert row.max() > 0.9
    others = weights[names.index("B6")].copy()
    others[SENTINEL_BANDS.index("B11")] = 0
    assert np.abs(others).max() < 0.02


@pytest.mark.parametrize("edge", [705, 715, 725])
def test_a_spectrum_that_the_library_does_not_hold_comes_out_too(edge):
    # A leaf as a logistic red edge. What Landsat sees of it is integrated here, over its own responses.
    wavelengths = np.arange(400, 2501.0)
    leaf = 0.04 + 0.4 / (1 + np.exp(-(wavelengths - edge) / 12))
    names, weights = band_weights(SENTINEL, SENTINEL_BANDS, LANDSAT)
    seen = weights @ [band_reflectance(wavelengths, leaf, band) for band in SENTINEL.bands]
    truth = [band_reflectance(wavelengths, leaf, LANDSAT.find(name)) for name in names]
    np.testing.assert_allclose(seen, truth, atol=0.01)


def test_weights_are_found_by_common_names_and_cannot_be_spoilt_for_the_next_caller():
    names, weights = band_weights(SENTINEL, ["red", "nir08"], LANDSAT)
    assert names == ["B4", "B5"]
    assert np.array_equal(weights, band_weights(SENTINEL, ["B04", "B8A"], LANDSAT)[1])
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 0


def test_a_band_beyond_the_known_spectra_weighs_nothing():
    thermal = Band("T", "lwir", 10_900.0, 600.0, 100.0, 290.0, 10.0, (150.0, 400.0))
    camera = Sensor("camera", (*SENTINEL.bands, thermal), "reflectance")
    _, weights = band_weights(camera, ["B04", "T", "B8A"], LANDSAT)
    assert weights[:, 1].tolist() == [0, 0]


# ---------------------------------------------------------------------------------------------------------- radiometry


@pytest.mark.parametrize("level", [0.02, 0.1, 0.45])
def test_ground_without_colour_stays_without_colour(level):
    derived = derive(sentinel(np.full((96, 96), level)), "landsat-8-sr", seed=1)
    means, noise = physical(derived).mean(axis=(1, 2)), physical(derived).std(axis=(1, 2))
    expected = np.sqrt(0.5 + 5 * level) * 0.1 / 250
    np.testing.assert_allclose(noise, expected, rtol=0.12)
    np.testing.assert_allclose(means, level, atol=4 * expected / 32)  # 32 × 32 pixels


@pytest.mark.filterwarnings("error")
def test_the_derived_image_is_the_one_that_the_other_sensor_takes(pair):
    source, truth = pair
    derived = derive(source, "landsat-8-sr", seed=1)
    assert derived.pixels.shape == truth.pixels.shape
    assert derived.transform == truth.transform
    error = physical(derived) - physical(truth)
    rmse, bias = np.sqrt((error**2).mean(axis=(1, 2))), error.mean(axis=(1, 2))
    closest = [min(SENTINEL.bands, key=lambda b: abs(b.wavelength - band.wavelength)).name for band in LANDSAT.bands]
    picked = physical(source)[[SENTINEL_BANDS.index(name) for name in closest]][:, 1::3, 1::3]
    plain = np.sqrt(((picked - physical(truth)) ** 2).mean(axis=(1, 2)))
    # Coastal and blue come from B01, whose 60 m hold no more.
    assert (rmse < [0.0080, 0.0030, 0.0010, 0.0010, 0.0025, 0.0020, 0.0020]).all(), rmse
    assert (plain[1:] > 3.5 * rmse[1:]).all(), plain / rmse
    assert plain[0] > rmse[0]
    np.testing.assert_allclose(bias, 0, atol=0.0006)


def test_a_real_scene_keeps_its_mean_where_bands_match(boadella):
    derived = derive(boadella, "landsat-8-sr", seed=0)
    means = dict(zip(derived.bands, physical(derived).mean(axis=(1, 2)), strict=True))
    before = dict(zip(boadella.bands, (boadella.pixels * 1e-4).mean(axis=(1, 2)), strict=True))
    for target, source in (("B5", "B8A"), ("B6", "B11"), ("B7", "B12"), ("B4", "B04")):
        assert means[target] == pytest.approx(before[source], rel=0.01), target


def test_a_real_scene_comes_out_as_the_band_pass_adjustment_of_nasa_has_it(boadella):
    # Claverie et al. 2018, Remote Sensing of Environment 219: OLI from Sentinel-2A MSI, fitted on 500 Hyperion scenes.
    published = {
        ("B1", "B01"): (0.9959, -0.0002),
        ("B2", "B02"): (0.9778, -0.0040),
        ("B3", "B03"): (1.0053, -0.0009),
        ("B4", "B04"): (0.9765, 0.0009),
        ("B5", "B8A"): (0.9983, -0.0001),
        ("B6", "B11"): (0.9987, -0.0011),
        ("B7", "B12"): (1.0030, -0.0012),
    }
    derived = derive(boadella, "landsat-8-sr", seed=0)
    means = dict(zip(derived.bands, physical(derived).mean(axis=(1, 2)), strict=True))
    before = dict(zip(boadella.bands, (boadella.pixels * 1e-4).mean(axis=(1, 2)), strict=True))
    for (target, source), (slope, offset) in published.items():
        assert means[target] == pytest.approx(slope * before[source] + offset, abs=0.003), target


def test_reflectance_below_0_stays_below_0_where_the_product_can_hold_it():
    # Baseline 04.00: 1000 is reflectance 0.
    dark = sentinel(np.full((60, 60), 0.07), offset=-0.1)
    assert physical(derive(dark, "landsat-8-sr")).mean() == pytest.approx(-0.03, abs=1e-4)
    assert np.unique(derive(dark, "hls", bands=["red"]).pixels).tolist() == [1]


def test_the_noise_is_that_of_the_target():
    image = sentinel(np.full((120, 120), 0.1))
    one, other = (derive(image, "landsat-8-sr", seed=seed).pixels * STEP for seed in (1, 2))
    assert (one - other).std() / np.sqrt(2) == pytest.approx(0.1 / 250, rel=0.05)


@pytest.mark.parametrize("seed", [7, (7, 1, 2)])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_noise(pair, seed):
    one, again = (derive(pair[0], "landsat-8-sr", seed=seed) for _ in range(2))
    assert one.pixels.tobytes() == again.pixels.tobytes()
    assert not np.array_equal(one.pixels, derive(pair[0], "landsat-8-sr", seed=8).pixels)


# -------------------------------------------------------------------------------------------------------- point spread


def green(derived: StoredImage) -> np.ndarray:
    """Reflectance of the green band of Landsat."""
    return physical(derived)[derived.bands.index("B3")]


def test_a_bright_point_spreads_as_a_gaussian_and_loses_no_energy():
    scene = np.zeros((99, 99))
    scene[49, 46] = 6.0
    image = sentinel(scene, bands=["B03"], pixels=np.rint(scene[None] * 1e4).astype(np.uint16))
    derived = green(derive(image, "landsat-8-sr"))
    # 30 m of the target in quadrature with the 10 m of Sentinel-2, in pixels of 10 m.
    sigma = np.sqrt(30**2 - 10**2) / 10 / np.sqrt(8 * np.log(2))
    expected = gaussian_filter(scene, sigma, truncate=8).reshape(33, 3, 33, 3).mean(axis=(1, 3))
    noise = 0.1 / 250 * np.sqrt(0.5 + 5 * expected.clip(0))
    assert (np.abs(derived - expected) < 5 * noise + STEP).all()
    assert np.unravel_index(derived.argmax(), derived.shape) == (16, 15)
    assert derived.sum() * 9 == pytest.approx(6.0, abs=0.2)


def test_what_is_coarse_already_is_blurred_less():
    edge = np.where(np.arange(96) < 48, 0.1, 0.5)[None] * np.ones((96, 1))
    one, other = (
        physical(
            derive(sentinel(edge[None], bands=[band], pixels=sentinel(edge).pixels[:1]), "landsat-8-sr", bands=[to])
        )
        for band, to in (("B04", "red"), ("B11", "swir16"))
    )
    steepest = [np.abs(np.diff(image[0].mean(axis=0))).max() for image in (one, other)]
    assert steepest[1] > 1.1 * steepest[0]


def test_a_coarse_band_of_the_target_is_repeated_on_the_grid_of_its_finest():
    pixels = np.random.default_rng(0).integers(60, 200, (4, 300, 300), dtype=np.uint8)
    image = Image(pixels, NAIP_BANDS, "naip", gsd=0.6)
    derived = derive(image, "sentinel-2-l2a")
    assert derived.pixels.shape == (6, 18, 18)
    bands = dict(zip(derived.bands, derived.pixels, strict=True))
    assert np.array_equal(bands["B8A"], np.kron(bands["B8A"][::2, ::2], np.ones((2, 2), int)))
    assert np.array_equal(bands["B01"], np.kron(bands["B01"][::6, ::6], np.ones((6, 6), int)))
    assert not np.array_equal(bands["B08"], np.kron(bands["B08"][::2, ::2], np.ones((2, 2), int)))
    assert derive(image, "sentinel-2-l2a", bands=["nir08"]).pixels.shape == (1, 9, 9)


# -------------------------------------------------------------------------------------------------------------- nodata


@pytest.mark.parametrize("how", ["nodata", "valid", "valid in all bands but one", "NaN"])
def test_no_data_weighs_nothing_and_stays_no_data(how):
    image = sentinel(np.full((96, 96), 0.2))
    hole = np.zeros((96, 96), bool)
    hole[:, :46] = True  # A third of the pixels in target column 15, the columns 45 to 47 of the source.
    pixels = np.where(hole, 60_000, image.pixels).astype(np.float32)
    one_band = np.ones(pixels.shape, bool)
    one_band[5] = ~hole
    facts = {
        "nodata": {"pixels": pixels, "nodata": 60_000},
        "valid": {"pixels": pixels, "valid": ~hole},
        "valid in all bands but one": {"pixels": pixels, "valid": one_band},
        "NaN": {"pixels": np.where(hole, np.nan, pixels)},
    }[how]
    derived = derive(replace(image, **facts), "landsat-8-sr")
    assert derived.nodata == 0
    assert (derived.pixels[:, :, :15] == 0).all()
    assert (derived.pixels[:, :, 15:] > 0).all()
    np.testing.assert_allclose(physical(derived)[:, :, 15:], 0.2, atol=0.004)


@pytest.mark.parametrize(("lost", "kept"), [(46, True), (47, False)])
def test_a_pixel_with_less_than_half_of_its_weight_on_data_has_none(lost, kept):
    valid = np.ones((96, 96), bool)
    valid[:lost] = False  # One or two of the three rows 45 to 47 of the source, which make row 15 of the target.
    derived = derive(sentinel(np.full((96, 96), 0.2), valid=valid), "landsat-8-sr")
    assert (derived.pixels[:, 15] > 0).all() == kept
    assert (derived.pixels[:, 15] > 0).any() == kept


def test_far_from_no_data_nothing_changes():
    image = sentinel(np.random.default_rng(0).uniform(0.05, 0.4, (12, 96, 96)))
    valid = np.ones((96, 96), bool)
    valid[:30, :30] = False
    whole, part = (derive(replace(image, valid=mask), "landsat-8-sr").pixels for mask in (None, valid))
    far = np.s_[:, 14:, 14:]
    assert np.abs(whole[far].astype(int) - part[far]).max() <= 1
    assert (part[:, :9, :9] == 0).all()


def test_an_image_without_any_data_has_none_after():
    assert (derive(sentinel(np.zeros((30, 30)), nodata=0), "landsat-8-sr").pixels == 0).all()


# ------------------------------------------------------------------------------------------------------------ geometry


def corner(image: Image, column: float, row: float, to: int = 4326) -> tuple[float, float]:
    a, b, c, d, e, f = image.transform
    project = pyproj.Transformer.from_crs(image.crs, to, always_xy=True).transform
    return project(a * column + b * row + c, d * column + e * row + f)


@pytest.mark.parametrize("latitude", [1.0, 48.4, -62.0])
@pytest.mark.parametrize("system", ["UTM", "EPSG:3857", "EPSG:4326"])
def test_pixels_are_30_true_metres_and_the_centre_stays(system, latitude):
    longitude = 9.4
    crs = f"EPSG:{32632 if latitude > 0 else 32732}" if system == "UTM" else system
    x, y = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(longitude, latitude)
    # Source pixels of about 10 m, as a provider would choose them.
    side_x, side_y = {
        "UTM": (10.0, 10.0),
        "EPSG:3857": (10 / np.cos(np.radians(latitude)),) * 2,
        "EPSG:4326": (10 / 111_320 / np.cos(np.radians(latitude)), 10 / 111_320),
    }[system]
    shape = (101, 97)
    transform = (side_x, 0.0, x - side_x * shape[1] / 2, 0.0, -side_y, y + side_y * shape[0] / 2)
    image = sentinel(np.full(shape, 0.2), crs=crs, transform=transform, gsd=None)
    derived = derive(image, "landsat-8-sr")
    assert derived.crs == crs and derived.gsd is None
    _, height, width = derived.pixels.shape
    assert height in (33, 34) and width in (32, 33)
    measure = pyproj.Geod(ellps="WGS84").inv
    middle = width / 2, height / 2
    right = measure(*corner(derived, *middle), *corner(derived, middle[0] + 1, middle[1]))[2]
    below = measure(*corner(derived, *middle), *corner(derived, middle[0], middle[1] + 1))[2]
    assert right == pytest.approx(30, rel=2e-3)
    assert below == pytest.approx(30, rel=2e-3)
    apart = measure(*corner(derived, *middle), *corner(image, shape[1] / 2, shape[0] / 2))[2]
    assert apart < 1
    # All of the target lies within the source.
    a, _, c, _, e, f = derived.transform
    assert transform[2] <= c + 1e-9 and c + a * width <= transform[2] + side_x * shape[1] + 1e-9
    assert transform[5] >= f - 1e-9 and f + e * height >= transform[5] - side_y * shape[0] - 1e-9


def test_a_utm_image_gets_the_whole_metres_of_the_real_product():
    image = sentinel(
        np.full((96, 98), 0.2), crs="EPSG:32632", transform=(10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0), gsd=None
    )
    derived = derive(image, "landsat-8-sr")
    assert derived.pixels.shape == (7, 32, 32)
    assert derived.transform == pytest.approx((30.0, 0.0, 500_010.0, 0.0, -30.0, 5_000_000.0), abs=1e-6)


def test_a_bright_field_is_found_at_its_coordinates_after():
    scene = np.full((96, 94), 0.05)
    scene[60:75, 21:36] = 0.6
    transform = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
    derived = derive(sentinel(scene, crs="EPSG:32632", transform=transform, gsd=None), "landsat-8-sr")
    light = green(derived) - 0.05
    light[np.abs(light) < 0.004] = 0
    rows, columns = (np.indices(light.shape) + 0.5) * light / light.sum()
    a, _, c, _, e, f = derived.transform
    assert a * columns.sum() + c == pytest.approx(500_000 + 285, abs=1)
    assert e * rows.sum() + f == pytest.approx(5_000_000 - 675, abs=1)


@pytest.mark.parametrize("turned", ["south-up", "east to west"])
def test_an_image_stored_the_other_way_up_gives_the_same_north_up_image(pair, turned):
    source = pair[0]
    a, _, c, _, e, f = source.transform
    _, height, width = source.pixels.shape
    other = {
        "south-up": replace(source, pixels=source.pixels[:, ::-1], transform=(a, 0.0, c, 0.0, -e, f + e * height)),
        "east to west": replace(
            source, pixels=source.pixels[:, :, ::-1], transform=(-a, 0.0, c + a * width, 0.0, e, f)
        ),
    }[turned]
    one, two = derive(source, "landsat-8-sr"), derive(other, "landsat-8-sr")
    assert np.array_equal(one.pixels, two.pixels)
    assert one.transform == pytest.approx(two.transform)


def test_without_georeference_the_ground_resolution_is_kept_as_gsd():
    derived = derive(sentinel(np.full((50, 40), 0.1), gsd=12.0), "landsat-8-sr")
    assert (derived.crs, derived.transform, derived.gsd) == (None, None, 30.0)
    assert derived.pixels.shape == (7, 20, 16)
    assert derive(sentinel(np.full((50, 40), 0.1), gsd=None), "landsat-8-sr").pixels.shape == (7, 16, 13)


# ---------------------------------------------------------------------------------------------------------- provenance


def test_the_result_says_that_it_is_derived_and_from_what(pair):
    source = StoredImage(**{**vars(pair[0]), "source": "S2A_T32UNU", "licence": "CC BY 4.0", "cloud_share": 0.25})
    derived = derive(source, "landsat-8-sr")
    assert isinstance(derived, StoredImage)
    assert (derived.provenance, derived.source, derived.licence) == ("derived", "S2A_T32UNU", "CC BY 4.0")
    assert (derived.cloud_share, derived.acquired, derived.sensor) == (0.25, SUMMER, "landsat-8-sr")
    assert (derived.scale, derived.offset, derived.nodata) == (2.75e-5, -0.2, 0)
    row = to_row(StoredSet([source, derived], id="a"))
    assert [image["provenance"] for image in row["images"]] == ["observed", "derived"]


def test_a_plain_image_has_no_licence_to_hand_on(pair):
    derived = derive(pair[0], "landsat-8-sr", bands=["nir08", "B4"])
    assert (derived.licence, derived.cloud_share) == (None, None)
    assert derived.bands == ["B5", "B4"]
    assert np.abs(physical(derived)[1] - physical(derive(pair[0], "landsat-8-sr"))[3]).max() < 0.005


# ------------------------------------------------------------------------------------------------------ aerial imagery


@pytest.fixture(scope="module")
def aerial(shared) -> Image:
    return read_image(shared / "data/naip_two_dates/chico_10_2018.tif", sensor="naip", bands=NAIP_BANDS)


def test_real_aerial_imagery_becomes_gaofen_2(aerial):
    derived = derive(aerial, "gaofen-2", seed=3)
    assert derived.pixels.shape == (4, 38, 38)  # 153.6 m in pixels of 4 m
    assert derived.pixels.dtype == np.uint8
    assert (derived.scale, derived.offset, derived.bands) == (1.0, 0.0, ["B1", "B2", "B3", "B4"])
    light = 0.5 * (aerial.pixels / 255.0) ** 2
    after = 0.5 * (derived.pixels / 255.0) ** 2
    # Green and near infrared lie close; Gaofen's red and blue are shifted by 25 and 20 nm.
    for gaofen, naip, share in ((1, 1, 0.02), (3, 3, 0.06), (2, 0, 0.15), (0, 2, 0.1)):
        assert after[gaofen].mean() == pytest.approx(light[naip].mean(), rel=share)
    # The pixels themselves, by scipy: cells of 0.4 m, of which 2 are left over at every side, and 10 make a pixel.
    fine = np.kron(light, np.ones((3, 3)))
    sigma = np.sqrt(4**2 - 1.2**2) / 0.4 / np.sqrt(8 * np.log(2))
    blurred = gaussian_filter(fine, (0, sigma, sigma), mode="nearest")[:, 2:-2, 2:-2]
    pixels = blurred.reshape(4, 38, 10, 38, 10).mean(axis=(2, 4))
    expected = np.tensordot(band_weights(NAIP, NAIP_BANDS, get_sensor("gaofen-2"))[1], pixels, axes=1)
    inside = np.s_[:, 2:-2, 2:-2]
    error = (after - expected)[inside]
    assert np.sqrt((error**2).mean()) < 0.003
    assert after[inside].std() > 20 * error.std()


def test_real_aerial_imagery_becomes_the_sentinel_2_bands_it_can_support(aerial):
    derived = derive(aerial, "sentinel-2-l2a", seed=3)
    assert derived.pixels.shape == (6, 15, 15)
    assert derived.pixels.dtype == np.uint16
    assert derived.bands == ["B01", "B02", "B03", "B04", "B08", "B8A"]
    assert derived.crs == aerial.crs
    assert derived.transform[0] == pytest.approx(10, abs=1e-6)
    light = 0.5 * (aerial.pixels / 255.0) ** 2
    bands = dict(zip(derived.bands, physical(derived), strict=True))
    assert bands["B03"].mean() == pytest.approx(light[1].mean(), rel=0.03)
    assert bands["B08"].mean() == pytest.approx(light[3].mean(), rel=0.03)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_sensors_without_a_band_in_common_are_named():
    with pytest.raises(ValueError, match=r"'landsat-8-sr'.*B05, B09.*'sentinel-2-l2a'"):
        band_weights(SENTINEL, ["B05", "B09"], LANDSAT)


def test_a_band_that_the_source_cannot_support_is_refused(pair):
    image = replace(pair[0], bands=pair[0].bands[:4], pixels=pair[0].pixels[:4])
    with pytest.raises(ValueError, match=r"bands=\['red', 'swir16'\] of sensor 'landsat-8-sr'.*B1, B2, B3, B4"):
        derive(image, "landsat-8-sr", bands=["red", "swir16"])
    with pytest.raises(ValueError, match=r"bands=\[\] of sensor 'landsat-8-sr'"):
        derive(image, "landsat-8-sr", bands=[])


@pytest.mark.parametrize(
    ("facts", "target", "message"),
    [
        ({}, "gaofen-2", "pixels of 10 m, coarser than the 4 m of sensor 'gaofen-2'"),
        ({"gsd": 0.5}, "landsat-8-sr", "a side of 20 m, less than a pixel of 30 m"),
        ({"gsd": -10.0}, "landsat-8-sr", "gsd=-10"),
        ({"crs": "EPSG:32632", "gsd": None}, "landsat-8-sr", "only one of crs and transform"),
        (
            {"crs": "EPSG:32632", "transform": (9.0, 4.0, 5e5, 0.0, -9.0, 5e6)},
            "landsat-8-sr",
            "turned against the axes of its crs",
        ),
        (
            {"crs": "EPSG:32632", "transform": (9.0, 0.0, 5e5, 4.0, -9.0, 5e6)},
            "landsat-8-sr",
            "turned against the axes of its crs",
        ),
        ({"bands": ["B04"]}, "landsat-8-sr", "shape \\(12, 40, 40\\) and 1 band names"),
        ({"source": "scene.tif", "scale": [1e-4] * 3}, "landsat-8-sr", "scale has 3 numbers for 12 bands"),
    ],
)
def test_images_that_cannot_be_derived_from_are_refused_with_the_reason(facts, target, message):
    with pytest.raises(ValueError, match=message):
        derive(sentinel(np.full((40, 40), 0.1), **facts), target)


def test_an_image_too_long_for_its_weights_is_refused():
    image = Image(np.ones((1, 8, 3000), np.uint16), ["B04"], "sentinel-2-l2a", gsd=10.0)
    with pytest.raises(ValueError, match=r"3000 pixels long, more than 2048"):
        derive(image, "landsat-8-sr")


def test_an_unknown_date_stays_unknown(pair):
    assert derive(replace(pair[0], acquired=None), "landsat-8-sr").acquired is None
    assert isinstance(derive(pair[0], "landsat-8-sr").acquired, datetime)
