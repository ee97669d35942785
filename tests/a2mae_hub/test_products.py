"""What names, tags and metadata files of satellite products say."""

import math
from datetime import date, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub import products
from a2mae_hub.modeling.sensors_a2mae import get_sensor

LEVEL_2 = "LC08_L2SP_218074_20190114_20200829_02_T1"


def utc(*numbers):
    return datetime(*numbers, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("path", "sensor", "acquired"),
    [
        ("patch/S2A_MSIL2A_20170617T113321_36_85_B02.tif", "sentinel-2-l2a", (2017, 6, 17, 11, 33, 21)),
        ("S2B_MSIL2A_20170924T93021_41_29_B8A.tif", "sentinel-2-l2a", (2017, 9, 24, 9, 30, 21)),
        ("S2B_MSIL1C_20200101T101319_N0208_R022_T32UPU.tif", "sentinel-2-l1c", (2020, 1, 1, 10, 13, 19)),
        ("cogs/S2A_31TCJ_20200621_0_L2A/B04.tif", "sentinel-2-l2a", (2020, 6, 21)),
        ("R10m/T31TCJ_20200621T105031_B04_10m.jp2", "sentinel-2-l2a", (2020, 6, 21, 10, 50, 31)),
        (
            "S2A_MSIL1C_20180103T112431_N0206_R037_T29SMC_20180103T131505.SAFE/GRANULE/L1C_T29SMC_A013229/IMG_DATA/"
            "T29SMC_20180103T112431_B04.jp2",
            "sentinel-2-l1c",
            (2018, 1, 3, 11, 24, 31),
        ),
        ("LC08_L2SP_218074_20190114_20200829_02_T1_SR_B4.TIF", "landsat-8-sr", (2019, 1, 14)),
        ("LC09_L1TP_218074_20220114_20220115_02_T1_B4.TIF", "landsat-9-toa", (2022, 1, 14)),
        ("HLS.L30.T14TPT.2020123T171225.v2.0.B02.tif", "hls", (2020, 5, 2, 17, 12, 25)),
        ("m_4709963_se_14_1_20150926.tif", "naip", (2015, 9, 26)),
        ("m_3707763_se_18_060_20180825_20190211.tif", "naip", (2018, 8, 25)),
        ("GF1_PMS1_E113.9_N34.4_20200101_L1A0004529453-MSS1.tiff", "gaofen-1", (2020, 1, 1)),
        ("GF2_PMS2_E118.0_N32.1_20160729_L1A0001733010-MSS2.tiff", "gaofen-2", (2016, 7, 29)),
        ("20210101_101010_12_2403_3B_AnalyticMS_SR_8b_clip.tif", "planetscope-8", (2021, 1, 1, 10, 10, 10)),
        ("20210101_101010_1003_3B_AnalyticMS_SR.tif", "planetscope-4", (2021, 1, 1, 10, 10, 10)),
        ("Boadella_2020-06-21.tif", None, (2020, 6, 21)),
        ("site_20200621.tif", None, (2020, 6, 21)),
        ("2020-06-21/red.tif", None, (2020, 6, 21)),
    ],
)  # fmt: skip
def test_known_names_tell_sensor_and_time(path, sensor, acquired):
    assert products.product_from_name(path).sensor == sensor
    assert products.acquired_from_name(path) == utc(*acquired)


@pytest.mark.parametrize(
    "path",
    [
        "field.tif",
        "tile_20209999.tif",  # eight digits that are no date
        "composite_2019-01-01_2019-12-31.tif",  # a period
        "bark_beetle/2019-09/205232.tif",
        "LC08_L2SP_218074.tif",
    ],
)
def test_names_that_tell_no_time_leave_it_unknown(path):
    assert products.acquired_from_name(path) is None


@pytest.mark.parametrize(
    "name", ["Boadella_2020-13-01.tif", "S2A_MSIL2A_20201301T101010_1_2_B02.tif", "m_4709963_se_14_1_20150931.tif"]
)
def test_a_date_that_cannot_be_is_reported_with_the_file_and_the_way_out(name):
    with pytest.raises(ValueError, match=rf"{name}.*cannot be; pass acquired="):
        products.acquired_from_name(f"/data/{name}")


def test_level_1_collection_1_of_landsat_is_not_taken_for_collection_2():
    assert products.product_from_name("LC08_L1TP_218074_20190114_20190201_01_T1_B4.TIF").sensor is None


@pytest.mark.parametrize(
    ("baseline", "offset"), [("N0208", {}), ("N0400", {"": -0.1}), ("N0510", {"": -0.1}), ("N9999", {})]
)
def test_sentinel_2_numbers_are_shifted_from_processing_baseline_4_on(baseline, offset):
    name = f"S2A_MSIL2A_20220613T101031_{baseline}_R022_T33UUP_20220613T160000"
    assert products.product_from_name(f"{name}.SAFE/R10m/T33UUP_20220613T101031_B04_10m.jp2").offset == offset


@pytest.mark.parametrize(
    ("path", "product", "layer", "kind"),
    [
        ("a/S2B_MSIL2A_20170924T93021_41_29_B8A.tif", "S2B_MSIL2A_20170924T93021_41_29", "B8A", "band"),
        (f"{LEVEL_2}_SR_B4.TIF", LEVEL_2, "B4", "band"),
        (f"{LEVEL_2}_ST_B10.TIF", LEVEL_2, "ST_B10", "quality"),
        (f"{LEVEL_2}_QA_PIXEL.TIF", LEVEL_2, "QA_PIXEL", "quality"),
        ("HLS.L30.T14TPT.2020123T171225.v2.0.B02.tif", "HLS.L30.T14TPT.2020123T171225.v2.0", "B02", "band"),
        ("HLS.L30.T14TPT.2020123T171225.v2.0.Fmask.tif", "HLS.L30.T14TPT.2020123T171225.v2.0", "Fmask", "quality"),
        ("T31TCJ_20200621T105031_B04_10m.jp2", "T31TCJ_20200621T105031", "B04", "band"),
        ("T31TCJ_20200621T105031_SCL_20m.jp2", "T31TCJ_20200621T105031", "SCL", "quality"),
        ("https://host/S2A_31TCJ_20200621_0_L2A/B04.tif?sig=a/b_B02.tif", "", "B04", "band"),
        ("field_nir.tif", "field", "nir", "band"),
        ("S1A_IW_GRDH_1SDV_20170613T165043_VV.tif", "S1A_IW_GRDH_1SDV_20170613T165043", "VV", "radar"),
    ],
)  # fmt: skip
def test_the_layer_is_read_off_the_name_of_a_band_file(path, product, layer, kind):
    assert products.split_band_file(path) == products.BandFile(product, layer, kind)


@pytest.mark.parametrize(
    "path", ["Boadella_2020-06-21.tif", "m_4709963_se_14_1_20150926.tif", "shared.tif", "B123.tif"]
)
def test_other_names_are_no_band_files(path):
    assert products.split_band_file(path) is None


def test_the_same_band_number_of_the_two_hls_products_is_another_band():
    landsat = products.product_from_name("HLS.L30.T14TPT.2020123T171225.v2.0.B05.tif").bands
    sentinel = products.product_from_name("HLS.S30.T14TPT.2020123T171225.v2.0.B05.tif").bands
    assert (landsat["B05"], sentinel["B8A"]) == ("nir", "nir")
    assert "B05" not in sentinel  # a red edge, which HLS for both sensors does not have
    hls = get_sensor("hls")
    assert {hls.find(name).name for name in (*landsat.values(), *sentinel.values())} == {b.name for b in hls.bands}


@pytest.mark.parametrize("sensor", sorted(products.FILE_ORDER))
def test_products_with_a_fixed_order_have_exactly_the_bands_of_the_registry(sensor):
    known = get_sensor(sensor)
    found = [known.find(name).wavelength for name in products.FILE_ORDER[sensor]]
    assert sorted(found) == sorted(band.wavelength for band in known.bands)
    # NAIP delivers red first, all others from short to long wavelengths.
    assert found == ([found[0], *sorted(found[1:3], reverse=True), found[3]] if sensor == "naip" else sorted(found))


@pytest.mark.parametrize(
    ("tags", "sensor"),
    [
        ({"sensor": "sentinel-2", "level": "L2A"}, "sentinel-2-l2a"),
        ({"sensor": "landsat-8", "product": "HLS"}, "hls"),
        ({"SENSOR": "Landsat 9 TOA"}, "landsat-9-toa"),
        ({"sensor": "naip", "year": "2018"}, "naip"),
        ({"sensor": "sentinel-2"}, None),
        ({}, None),
    ],
)
def test_tags_tell_the_sensor_only_where_they_name_one_of_the_registry(tags, sensor):
    assert products.product_from_tags(tags).sensor == sensor


def test_tags_tell_the_acquisition_time_but_the_time_of_writing_does_not():
    assert products.product_from_tags({"acquired": "2020-06-21T10:50:31Z"}).acquired == utc(2020, 6, 21, 10, 50, 31)
    assert products.product_from_tags({"TIFFTAG_DATETIME": "2020:06:21 10:50:31"}).acquired is None


@given(
    moment=st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)),
    zone=st.integers(-12 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
@settings(max_examples=50, deadline=None)
def test_iso_texts_and_datetimes_of_any_zone_mean_the_same_moment(moment, zone):
    aware = moment.replace(tzinfo=zone)
    assert products.parse_time(aware.isoformat()) == products.parse_time(aware) == aware
    assert products.parse_time(aware).utcoffset() == timedelta(0)
    naive = moment.replace(tzinfo=timezone.utc)
    assert products.parse_time(moment.isoformat()) == products.parse_time(np.datetime64(moment)) == naive


def test_a_day_is_midnight_and_digits_below_a_microsecond_are_cut():
    assert products.parse_time("2020-06-21") == products.parse_time(date(2020, 6, 21)) == utc(2020, 6, 21)
    assert products.parse_time("2019-01-14T12:57:13.1804960Z") == utc(2019, 1, 14, 12, 57, 13, 180496)


@pytest.mark.parametrize("value", ["21.06.2020", "2020-13-01", "yesterday", 20200621, ""])
def test_what_is_no_moment_is_refused_with_an_example(value):
    with pytest.raises(ValueError, match="write it as 2020-06-21"):
        products.parse_time(value)


def test_surface_reflectance_factors_are_not_confused_with_the_level_1_ones_in_the_same_file(shared):
    path = shared / "data/scenes/landsat8_pair" / LEVEL_2 / f"{LEVEL_2}_MTL.txt"
    product = products.read_landsat_mtl(str(path))
    assert product.sensor == "landsat-8-sr"
    assert product.acquired == utc(2019, 1, 14, 12, 57, 13, 180496)
    assert product.scale == {f"B{n}": 2.75e-05 for n in range(1, 8)}
    assert product.offset == {f"B{n}": -0.2 for n in range(1, 8)}


def write_level_1_mtl(path, **scene):
    facts = {
        "SPACECRAFT_ID": '"LANDSAT_9"',
        "DATE_ACQUIRED": "2022-03-01",
        "SCENE_CENTER_TIME": '"09:00:00.5Z"',
        "SUN_ELEVATION": "30.0",
    } | scene
    lines = [
        "GROUP = LANDSAT_METADATA_FILE",
        "GROUP = PRODUCT_CONTENTS",
        'PROCESSING_LEVEL = "L1TP"',
        "END_GROUP = PRODUCT_CONTENTS",
        "GROUP = IMAGE_ATTRIBUTES",
        *(f"{key} = {text}" for key, text in facts.items()),
        "END_GROUP = IMAGE_ATTRIBUTES",
        "GROUP = LEVEL1_RADIOMETRIC_RESCALING",
        "RADIANCE_MULT_BAND_4 = 1.0E-02",
        "REFLECTANCE_MULT_BAND_4 = 2.0000E-05",
        "REFLECTANCE_ADD_BAND_4 = -0.100000",
        "END_GROUP = LEVEL1_RADIOMETRIC_RESCALING",
    ]
    path.write_text("\n".join(lines))
    return str(path)


def test_level_1_reflectance_is_corrected_for_the_height_of_the_sun(tmp_path):
    product = products.read_landsat_mtl(write_level_1_mtl(tmp_path / "x_MTL.txt"))
    assert product.sensor == "landsat-9-toa"
    assert product.acquired == utc(2022, 3, 1, 9, 0, 0, 500000)
    # The sine of 30 degrees is one half.
    assert math.isclose(product.scale["B4"], 4e-5) and math.isclose(product.offset["B4"], -0.2)


@pytest.mark.parametrize("text", ["", "GROUP = PRODUCT_CONTENTS\nPROCESSING_LEVEL = L1TP\n"])
def test_a_metadata_file_without_its_facts_is_named(tmp_path, text):
    path = tmp_path / "y_MTL.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"y_MTL\.txt: not a Landsat Collection 2 metadata file"):
        products.read_landsat_mtl(str(path))
