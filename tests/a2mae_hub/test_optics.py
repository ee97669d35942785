"""Point spread, noise and storage of a sensor are what optics and the product guides say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.special import erf

from a2mae_hub.modeling.sensors_a2mae import Band, Sensor, get_sensor
from a2mae_hub.optics import point_spread, sensor_noise, to_reflectance, to_stored

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))


# -------------------------------------------------------------------------------------------------------- point spread


def test_a_point_becomes_a_gaussian_averaged_over_the_pixels():
    # The integral of a Gaussian over a pixel is a difference of error functions.
    cells, cell, pixel, blur, start = 600, 1.0, 30.0, 30.0, 4.0
    weights = point_spread(cells, 19, cell, pixel, blur, start)
    where = 300.5  # the centre of cell 300
    edges = start + np.arange(20) * pixel
    sigma = blur / FWHM_PER_SIGMA
    cumulated = 0.5 * (1 + erf((edges - where) / (sigma * np.sqrt(2))))
    np.testing.assert_allclose(weights[:, 300], np.diff(cumulated) * cell / pixel, atol=2e-6)


def test_point_spread_is_the_gaussian_filter_of_scipy_and_then_the_mean_over_the_pixel():
    scene = np.random.default_rng(0).uniform(size=300)
    blur, cell, factor = 28.0, 10.0, 3
    blurred = gaussian_filter1d(scene, blur / cell / FWHM_PER_SIGMA, truncate=8)
    expected = blurred.reshape(-1, factor).mean(axis=1)
    inside = slice(5, -5)  # scipy mirrors the scene at its ends
    np.testing.assert_allclose((point_spread(300, 100, cell, 30.0, blur) @ scene)[inside], expected[inside], atol=1e-6)


def test_at_its_ends_a_row_is_blurred_over_the_cells_that_are_there():
    scene = np.array([0.9, 0.1, 0.2, 0.4, 0.3, 0.7])
    sigma = 12.0 / FWHM_PER_SIGMA
    blurred = []
    for cell in range(6):
        response = [np.exp(-(((cell - other) * 5.0 / sigma) ** 2) / 2) for other in range(6)]
        blurred.append(sum(r * light for r, light in zip(response, scene, strict=True)) / sum(response))
    expected = [np.mean(blurred[:3]), np.mean(blurred[3:])]
    np.testing.assert_allclose(point_spread(6, 2, 5.0, 15.0, 12.0) @ scene, expected, atol=1e-6)


def test_without_blur_a_pixel_is_the_mean_of_the_ground_it_covers():
    weights = point_spread(5, 2, 10.0, 15.0, blur=0.0, start=5.0)
    np.testing.assert_allclose(weights, [[1 / 3, 2 / 3, 0, 0, 0], [0, 0, 2 / 3, 1 / 3, 0]], atol=1e-7)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 60), st.floats(1, 9), st.just(0.0) | st.floats(0.01, 40), st.floats(0, 1))
def test_an_even_scene_stays_even_up_to_its_edges(cells, ratio, blur, share):
    cell = 3.0
    pixel = cell * min(ratio, cells)
    pixels = int(cells * cell / pixel + 1e-6)
    weights = point_spread(cells, pixels, cell, pixel, blur, share * max(cells * cell - pixels * pixel, 0))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    assert weights.min() >= 0


# ---------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize(("sensor", "ratio"), [("sentinel-2-l2a", 140), ("landsat-8-sr", 250), ("gaofen-2", 100)])
def test_noise_has_the_signal_to_noise_ratio_of_the_sensor_at_reflectance_0_1(sensor, ratio):
    even = np.full((200, 200), 0.1)
    noise = sensor_noise(even, get_sensor(sensor), np.random.default_rng(0))
    assert noise.std() == pytest.approx(0.1 / ratio, rel=0.02)
    assert abs(noise.mean()) < 0.1 / ratio / 50


def test_half_the_variance_of_the_noise_grows_with_the_light():
    rng, sensor = np.random.default_rng(1), get_sensor("landsat-8-sr")
    dark, dim, bright = (sensor_noise(np.full((300, 300), level), sensor, rng).var() for level in (0.0, 0.1, 0.4))
    assert dark / dim == pytest.approx(0.5, rel=0.03)
    assert bright / dim == pytest.approx(2.5, rel=0.03)


# ------------------------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize(
    ("sensor", "reflectance", "stored"),
    [
        ("sentinel-2-l2a", 0.1234, 1234),
        ("landsat-8-sr", 0.1234, 11_760),  # (0.1234 + 0.2) / 0.0000275
        ("landsat-8-sr", -0.05, 5_455),
        ("sentinel-2-l2a", -0.05, 1),  # the product has no negative numbers, and 0 is nodata
        ("naip", 0.5, 255),
        ("naip", 0.125, 128),  # half of 255, rounded to even
        ("naip", 0.0, 1),
        ("naip", 0.8, 255),
    ],
)
def test_reflectance_is_stored_as_the_product_guide_says(sensor, reflectance, stored):
    numbers = to_stored(np.array([reflectance]), get_sensor(sensor))
    assert numbers.tolist() == [stored]
    assert numbers.dtype == (np.uint8 if sensor == "naip" else np.uint16)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["sentinel-2-l2a", "landsat-8-sr", "landsat-9-toa", "hls"]), st.floats(-0.05, 1.2))
def test_what_is_stored_reads_back_within_half_a_step(name, reflectance):
    sensor = get_sensor(name)
    back = to_reflectance(to_stored(np.full((1, 1, 1), reflectance), sensor), sensor).item()
    lowest, highest = sensor.scale + sensor.offset, 65_535 * sensor.scale + sensor.offset
    assert back == pytest.approx(np.clip(reflectance, lowest, highest), abs=0.5001 * sensor.scale)


def test_every_digital_number_reads_back_as_itself():
    numbers = np.arange(1, 256, dtype=np.uint8).reshape(1, 5, 51)
    reflectance = to_reflectance(numbers, get_sensor("naip"))
    assert np.array_equal(to_stored(reflectance, get_sensor("naip")), numbers)
    assert reflectance.max() == 0.5


def test_scale_and_offset_of_an_image_win_over_those_of_the_sensor():
    # Sentinel-2 from baseline 04.00 on adds 1000 to what it stores.
    stored = np.full((2, 1, 1), 1500, np.uint16)
    assert to_reflectance(stored, get_sensor("sentinel-2-l2a"), offset=-0.1).ravel() == pytest.approx([0.05, 0.05])
    by_band = to_reflectance(stored, get_sensor("sentinel-2-l2a"), scale=[1e-4, 2e-4])
    assert by_band.ravel() == pytest.approx([0.15, 0.30])


def test_radar_has_no_reflectance():
    radar = Sensor("radar", (Band("VV", "", 5.5e7, 1e6, 10.0, -10.0, 5.0, (-50.0, 20.0)),), unit="dB")
    with pytest.raises(ValueError, match="'radar' measures dB"):
        to_reflectance(np.zeros((1, 1, 1)), radar)


def test_one_scale_too_many_is_refused():
    with pytest.raises(ValueError, match="scale has 3 numbers for 2 bands"):
        to_reflectance(np.zeros((2, 1, 1)), get_sensor("sentinel-2-l2a"), scale=[1e-4] * 3)
