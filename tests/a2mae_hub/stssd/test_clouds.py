"""Quality layers mean what their documents say, and bright clouds are found where there is no such layer."""

import re
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2mae_hub import Image, read_image
from a2mae_hub.landscape import simulate_place
from a2mae_hub.simulate import Acquisition, cloud_opacity, observe, overpass
from a2mae_hub.stssd.clouds import estimate_clouds, quality_kind, quality_layer, read_flags

BOADELLA_BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
CLOUDY_DATE = "2020-01-23"


# --------------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize(
    ("code", "meaning", "says"),
    [
        (0, "no data", "missing"),
        (1, "saturated or defective", "missing"),
        (2, "dark area, cast shadow of terrain", "clear"),
        (3, "cloud shadow", "cloudy"),
        (4, "vegetation", "clear"),
        (5, "not vegetated", "clear"),
        (6, "water", "clear"),
        (7, "unclassified", "clear"),
        (8, "cloud, medium probability", "cloudy"),
        (9, "cloud, high probability", "cloudy"),
        (10, "thin cirrus", "cloudy"),
        (11, "snow or ice", "clear"),
    ],
)
def test_classes_of_the_sentinel_2_scene_classification(code, meaning, says):
    flags = read_flags(np.array([[code]], np.uint8), "T31TCJ_20200621T105031_SCL_20m.jp2")
    assert (bool(flags.cloudy[0, 0]), bool(flags.missing[0, 0])) == (says == "cloudy", says == "missing"), meaning


@pytest.mark.parametrize(
    ("value", "meaning", "says"),
    [  # interpretation of pixel values in USGS LSDS-1619
        (1, "fill", "missing"),
        (21824, "clear", "clear"),
        (21826, "dilated cloud over land", "cloudy"),
        (21888, "water", "clear"),
        (21890, "dilated cloud over water", "cloudy"),
        (22280, "cloud, high confidence", "cloudy"),
        (23888, "cloud shadow", "cloudy"),
        (24088, "cloud with shadow", "cloudy"),
        (30048, "snow or ice", "clear"),
        (54596, "cirrus", "cloudy"),
        (55052, "cirrus over cloud", "cloudy"),
    ],
)
def test_values_of_the_landsat_collection_2_pixel_quality_band(value, meaning, says):
    flags = read_flags(np.array([value], np.uint16), "LC08_L2SP_218074_20190114_20200829_02_T1_QA_PIXEL.TIF")
    assert (bool(flags.cloudy[0]), bool(flags.missing[0])) == (says == "cloudy", says == "missing"), meaning


@given(st.integers(0, 255))
def test_every_byte_of_the_hls_fmask_follows_from_its_four_lowest_bits(byte):
    flags = read_flags(np.array([byte], np.uint8), "HLS.L30.T14TPT.2020123T171225.v2.0.Fmask.tif")
    fill = byte == 255
    lowest = format(byte, "08b")[-4:]  # cloud shadow, adjacent, cloud, cirrus
    assert bool(flags.missing[0]) == fill
    assert bool(flags.cloudy[0]) == ("1" in lowest and not fill)


def test_fill_of_a_quality_band_is_missing_and_not_cloudy_whatever_else_is_set():
    flags = read_flags(np.array([0b11111], np.uint16), "qa_pixel.tif")
    assert flags.missing[0] and not flags.cloudy[0]


def test_the_kind_can_be_declared_where_the_name_does_not_tell():
    values = np.array([[9, 4]], np.uint8)
    assert read_flags(values, "mask.tif", kind="scl").cloudy.tolist() == [[True, False]]
    with pytest.raises(ValueError, match=r"^mask\.tif: its name does not tell .* pass kind="):
        read_flags(values, "mask.tif")


@pytest.mark.parametrize(
    ("values", "path"),
    [
        (np.array([12], np.uint8), "SCL.tif"),
        (np.array([-1], np.int16), "SCL.tif"),
        (np.array([256], np.uint16), "x.Fmask.tif"),
        (np.array([70_000], np.int32), "x_QA_PIXEL.TIF"),
    ],
)
def test_a_code_that_no_such_layer_holds_is_refused_with_the_file(values, path):
    with pytest.raises(ValueError, match=rf"^{re.escape(path)}: holds {values[0]}, but codes of"):
        read_flags(values, path)


def test_interpolated_codes_are_refused():
    with pytest.raises(ValueError, match=r"^SCL\.tif: a quality layer holds integer codes, not float32"):
        read_flags(np.array([8.5], np.float32), "SCL.tif")


# --------------------------------------------------------------------------------------------------------------- files


def touch(folder, *names):
    """Make empty files; the search looks at names alone."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return [str(folder / name) for name in names]


@pytest.mark.parametrize(
    ("bands", "layer"),
    [
        (["B03.tif", "B04.tif"], "SCL.tif"),
        (["S2A_31TCJ_20200621_0_L2A_B04.tif"], "S2A_31TCJ_20200621_0_L2A_SCL.tif"),
        (
            ["LC08_L2SP_218074_20190114_20200829_02_T1_SR_B4.TIF"],
            "LC08_L2SP_218074_20190114_20200829_02_T1_QA_PIXEL.TIF",
        ),
        (["HLS.L30.T14TPT.2020123T171225.v2.0.B04.tif"], "HLS.L30.T14TPT.2020123T171225.v2.0.Fmask.tif"),
        (["scene.tif"], "scene_SCL.tif"),
        (["scene.tif"], "scene.SCL.tif"),
        (["scene.tif"], "SCL.tif"),
    ],
)
def test_the_quality_layer_of_the_same_product_is_found_beside_the_bands(tmp_path, bands, layer):
    paths = touch(tmp_path, *bands)
    (expected,) = touch(tmp_path, layer)
    assert quality_layer(paths) == expected
    assert quality_layer([*paths, expected]) == expected


def test_the_scene_classification_of_a_safe_product_is_found_in_the_sibling_folder_and_the_finer_one_is_taken(tmp_path):
    inside = "GRANULE/L2A_T31TCJ/IMG_DATA"
    (band,) = touch(tmp_path, f"{inside}/R10m/T31TCJ_20200621T105031_B04_10m.jp2")
    coarse, fine = touch(
        tmp_path,
        f"{inside}/R60m/T31TCJ_20200621T105031_SCL_60m.jp2",
        f"{inside}/R20m/T31TCJ_20200621T105031_SCL_20m.jp2",
    )
    touch(tmp_path, f"{inside}/R20m/T31TCJ_20200626T105031_SCL_20m.jp2")  # of another day
    assert quality_layer([band]) == fine
    (tmp_path / f"{inside}/R20m/T31TCJ_20200621T105031_SCL_20m.jp2").unlink()
    assert quality_layer([band]) == coarse


def test_a_folder_of_bands_holds_its_quality_layer(tmp_path):
    touch(tmp_path, "B03.tif", "B04.tif")
    (expected,) = touch(tmp_path, "SCL.tif")
    assert quality_layer([str(tmp_path)]) == expected


@pytest.mark.parametrize(
    ("image", "others"),
    [
        ("scene.tif", []),
        ("scene.tif", ["other.tif", "SCL.tif"]),  # of which of the two?
        ("scene.tif", ["scene_2_SCL.tif"]),
        ("scene.tif", ["scene_SCL.xml", "SCL.txt"]),
        ("scene.tif", ["scene_AOT.tif"]),
        ("patch_1_B04.tif", ["patch_2_SCL.tif", "SCL.tif"]),
    ],
)
def test_no_quality_layer_is_guessed(tmp_path, image, others):
    paths = touch(tmp_path, image)
    touch(tmp_path, *others)
    assert quality_layer(paths) is None


def test_nothing_is_looked_for_beside_remote_files():
    assert quality_layer(["/vsicurl/https://host/S2A/B04.tif", "s3://bucket/B03.tif", "/nowhere/B02.tif"]) is None
    assert quality_layer(["s3://bucket/B03.tif", "s3://bucket/SCL.tif"]) == "s3://bucket/SCL.tif"


def test_names_of_other_layers_are_no_quality_layers():
    assert [quality_kind(name) for name in ("AOT.tif", "B04.tif", "QA_RADSAT.TIF", "scl_notes.tif")] == [None] * 4


# ----------------------------------------------------------------------------------------------------------- estimates


def reflectance_image(values, *, sensor="sentinel-2-l2a", **options):
    """An image of float reflectance, one column per pixel, from values by band."""
    pixels = np.array([[row] for row in values.values()], np.float64)
    return Image(pixels, list(values), sensor, scale=1.0, offset=0.0, **options)


def test_the_thresholds_of_braaten_cohen_and_yang():
    image = reflectance_image(
        {
            #      bright, bright red soil, hazy, hazy red soil, dark, snow
            "B03": [0.40, 0.40, 0.18, 0.18, 0.17, 0.60],
            "B04": [0.30, 0.50, 0.17, 0.19, 0.10, 0.55],
            "B11": [0.30, 0.30, 0.11, 0.30, 0.30, 0.09],
        }
    )
    assert estimate_clouds(image).tolist() == [[True, True, True, False, False, False]]
    without_swir = reflectance_image({"green": [0.60, 0.18, 0.17], "red": [0.55, 0.17, 0.1]})
    assert estimate_clouds(without_swir).tolist() == [[True, True, False]]


def test_stored_numbers_are_taken_at_their_scale_and_offset():
    stored = np.array([[[3000]], [[2500]]], np.uint16)  # green 0.3, or 0.2 with the shift of baseline 4
    assert estimate_clouds(Image(stored, ["B03", "B04"], "sentinel-2-l2a"))[0, 0]
    assert estimate_clouds(Image(stored, ["B03", "B04"], "sentinel-2-l2a", offset=-0.1))[0, 0]
    assert not estimate_clouds(Image(stored, ["B03", "B04"], "sentinel-2-l2a", offset=-0.13))[0, 0]
    assert not estimate_clouds(Image(stored, ["B03", "B04"], "sentinel-2-l2a", scale=[5e-5, 1e-4]))[0, 0]


def test_invalid_pixels_are_no_cloud():
    bright = {"B03": [0.6, 0.6, 0.6, 0.6, 0.6], "B04": [0.5, 0.5, 0.5, 0.5, 0.5], "B11": [0.4, 0.4, 0.4, 0.4, 0.4]}
    image = reflectance_image(bright, nodata=9.0)
    image.pixels[0, 0, 1] = np.nan
    image.pixels[1, 0, 2] = 9.0
    image.pixels[2, 0, 3] = 9.0
    image.valid = np.array([[True, True, True, True, False]])
    assert estimate_clouds(image).tolist() == [[True, False, False, False, False]]
    image.valid = np.ones((3, 1, 5), bool)
    image.valid[1, 0, 0] = False
    assert estimate_clouds(image).tolist() == [[False, False, False, False, True]]


@pytest.mark.parametrize(
    ("sensor", "bands"),
    [
        ("naip", ["red", "green", "blue", "nir"]),  # digital numbers without calibration
        ("gaofen-1", ["B1", "B2", "B3", "B4"]),
        ("sentinel-2-l2a", ["B02", "B04", "B08"]),
        ("sentinel-2-l2a", ["B03", "B08"]),
    ],
)
def test_without_reflectance_in_green_and_red_nothing_is_estimated(sensor, bands):
    assert estimate_clouds(Image(np.full((len(bands), 2, 2), 200, np.uint8), bands, sensor)) is None


def test_the_cloudy_date_of_boadella_stands_out_of_seven_clear_ones(shared):
    shares = {}
    for path in sorted((shared / "data/scenes/boadella_sentinel2").glob("*.tif")):
        image = read_image(path, sensor="sentinel-2-l2a", bands=BOADELLA_BANDS)
        shares[path.stem.removeprefix("Boadella_")] = float(estimate_clouds(image).mean())
    assert len(shares) == 8
    assert 0.3 < shares.pop(CLOUDY_DATE) < 0.5  # "~40 % cloud", says who gathered the data
    assert max(shares.values()) < 0.002


@pytest.mark.parametrize("sensor", ["sentinel-2-l2a", "landsat-8-sr"])
@pytest.mark.parametrize("cover", [0.0, 0.4])
def test_opaque_clouds_of_the_simulator_are_found_and_clear_ground_is_left(sensor, cover):
    place = simulate_place(7, extent=960.0)
    taken = Acquisition(sensor, overpass(date(2023, 7, 5), place.longitude), cloud_cover=cover)
    estimate = estimate_clouds(observe(place, taken))
    opacity, _ = cloud_opacity(place, taken)
    cells = opacity.shape[0] // estimate.shape[0]
    opacity = opacity.reshape(estimate.shape[0], cells, estimate.shape[1], cells).mean(axis=(1, 3))
    assert estimate[opacity < 0.1].mean() < 0.01
    if cover:
        assert estimate[opacity > 0.8].mean() > 0.99
        assert (estimate == (opacity > 0.5)).mean() > 0.9
