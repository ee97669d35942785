import json
import re
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import rasterio

import a2mae_hub.modeling.sensors_a2mae as sensors_module
from a2mae_hub.modeling.sensors_a2mae import SENSORS, Band, Sensor, get_sensor, register_sensor

# The electro-optical extension 2.0 of STAC: the range of each common name, micrometres.
STAC_RANGES = {
    "pan": (0.40, 1.00),
    "coastal": (0.40, 0.45),
    "blue": (0.45, 0.53),
    "green": (0.51, 0.60),
    "green05": (0.51, 0.55),
    "yellow": (0.58, 0.62),
    "red": (0.62, 0.69),
    "rededge071": (0.69, 0.73),
    "rededge075": (0.73, 0.76),
    "rededge078": (0.76, 0.79),
    "nir": (0.76, 1.00),
    "nir08": (0.80, 0.90),
    "nir09": (0.90, 1.00),
    "cirrus": (1.35, 1.40),
    "swir16": (1.55, 1.75),
    "swir22": (2.08, 2.35),
}
SHIPPED = (
    "sentinel-2-l1c sentinel-2-l2a landsat-8-toa landsat-8-sr landsat-9-toa landsat-9-sr hls gaofen-1 gaofen-2 naip "
    "planetscope-4 planetscope-8"
).split()
EUROSAT_ORDER = "B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 B12 B8A".split()


@pytest.fixture
def registry(monkeypatch):
    """A copy of the registry, so that a test may add to it."""
    copy = dict(SENSORS)
    monkeypatch.setattr(sensors_module, "SENSORS", copy)
    return copy


def a_sensor(**changes):
    """A sensor of two bands; `changes` are facts about the first."""
    band = Band("B01", "green", 550.0, 40.0, 0.05, 0.08, 0.05, (-0.2, 2.0))
    return Sensor(
        "camera", (replace(band, **changes), replace(band, name="B02", common_name="", wavelength=900.0)), "DN"
    )


def test_the_registry_ships_the_sensors_of_the_design():
    assert set(SHIPPED) <= set(SENSORS)
    counts = {"sentinel-2-l1c": 13, "sentinel-2-l2a": 12, "landsat-8-sr": 7, "hls": 7, "naip": 4, "planetscope-8": 8}
    assert {name: len(SENSORS[name].bands) for name in counts} == counts


@pytest.mark.parametrize("name", SHIPPED)
def test_every_band_is_where_stac_says_a_band_of_its_name_is(name):
    for band in SENSORS[name].bands:
        low, high = STAC_RANGES[band.common_name]
        assert low * 1000 <= band.wavelength <= high * 1000, band.name


@pytest.mark.parametrize("name", SHIPPED)
def test_every_band_could_have_been_built(name):
    sensor = SENSORS[name]
    assert sensor.name == name and sensor.source
    for band in sensor.bands:
        assert 0 < band.width < band.wavelength / 2
        assert 0.5 <= band.resolution <= 60
        low, high = band.valid_range
        assert low <= band.mean - band.std and band.mean + band.std <= high
        if sensor.unit == "reflectance":
            assert 0.02 <= band.std <= 0.2
        else:
            assert sensor.unit == "DN" and (low, high) == (0, 255)
            assert (sensor.scale, sensor.offset) == (1, 0)


@pytest.mark.parametrize("name", SHIPPED)
def test_bands_stand_in_spectral_order_except_where_the_product_orders_them_otherwise(name):
    wavelengths = [band.wavelength for band in SENSORS[name].bands]
    if name == "naip":  # red first
        assert [band.name for band in SENSORS[name].bands] == ["red", "green", "blue", "nir"]
    elif name.endswith("-toa"):  # panchromatic and cirrus come after the multispectral bands
        assert wavelengths[:7] == sorted(wavelengths[:7])
        assert [band.common_name for band in SENSORS[name].bands[7:]] == ["pan", "cirrus"]
    else:
        assert wavelengths == sorted(wavelengths)


def test_sensors_agree_where_they_see_the_same():
    sentinel, landsat, hls = get_sensor("sentinel-2-l2a"), get_sensor("landsat-8-sr"), get_sensor("hls")
    for common in ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22"):
        assert abs(sentinel.find(common).wavelength - landsat.find(common).wavelength) < 20
        assert hls.find(common).wavelength == landsat.find(common).wavelength
        assert hls.find(common).width == landsat.find(common).width
    assert get_sensor("landsat-9-sr").bands == landsat.bands
    for one, other in (("gaofen-1", "gaofen-2"), ("sentinel-2-l1c", "sentinel-2-l2a")):
        for band in get_sensor(other).bands:
            assert get_sensor(one).find(band.name).wavelength == band.wavelength


def test_native_resolutions_are_those_of_the_instruments():
    sentinel = {band.name: band.resolution for band in get_sensor("sentinel-2-l1c").bands}
    assert {name for name, metres in sentinel.items() if metres == 10} == {"B02", "B03", "B04", "B08"}
    assert {name for name, metres in sentinel.items() if metres == 60} == {"B01", "B09", "B10"}
    landsat = {band.name: band.resolution for band in get_sensor("landsat-9-toa").bands}
    assert landsat.pop("B8") == 15 and set(landsat.values()) == {30}


def test_default_scales_turn_stored_numbers_into_reflectance():
    # Landsat Collection 2 stores 7 273 for zero and 43 636 for one (surface), 5 000 and 55 000 (top of atmosphere).
    for name, zero, one in (
        ("sentinel-2-l2a", 0, 10000),
        ("hls", 0, 10000),
        ("landsat-8-sr", 7273, 43636),
        ("landsat-9-toa", 5000, 55000),
        ("planetscope-8", 0, 10000),
    ):
        sensor = get_sensor(name)
        assert zero * sensor.scale + sensor.offset == pytest.approx(0, abs=3e-5)
        assert one * sensor.scale + sensor.offset == pytest.approx(1, abs=3e-5)


def test_only_level_1c_has_the_cirrus_band():
    assert get_sensor("sentinel-2-l1c").find("cirrus").name == "B10"
    with pytest.raises(ValueError, match=r"'sentinel-2-l2a' has no band 'B10': it has B01 \(coastal\), B02 \(blue\)"):
        get_sensor("sentinel-2-l2a").find("B10")


@pytest.mark.parametrize(
    ("sensor", "name", "own"),
    [
        ("sentinel-2-l2a", "B8", "B08"),
        ("sentinel-2-l2a", "b02", "B02"),
        ("sentinel-2-l2a", "b8a", "B8A"),
        ("sentinel-2-l2a", "B08A", "B8A"),
        ("sentinel-2-l2a", "nir", "B08"),
        ("sentinel-2-l2a", "NIR08", "B8A"),
        ("sentinel-2-l2a", "rededge75", "B06"),
        ("landsat-8-sr", "B04", "B4"),
        ("landsat-8-sr", "nir", "B5"),
        ("planetscope-8", "rededge", "rededge"),
        ("planetscope-8", "green", "green"),
        ("planetscope-8", "green05", "green_i"),
        ("hls", "nir08", "nir"),
    ],
)
def test_a_band_is_found_by_the_ways_people_write_its_name(sensor, name, own):
    assert get_sensor(sensor).find(name).name == own


@pytest.mark.parametrize("sensor", SHIPPED)
def test_every_band_is_found_by_both_its_names(sensor):
    for band in SENSORS[sensor].bands:
        assert SENSORS[sensor].find(band.name) is band
        assert SENSORS[sensor].find(band.common_name) is band


@pytest.mark.parametrize(("sensor", "name"), [("sentinel-2-l2a", "rededge"), ("hls", "swir")])
def test_a_name_that_several_bands_share_is_not_guessed(sensor, name):
    with pytest.raises(ValueError, match=rf"Band '{name}' of sensor '{sensor}' could be .*: use the band's own name"):
        get_sensor(sensor).find(name)


def test_two_bands_of_one_common_name_need_their_own_names():
    sensor = a_sensor()
    sensor = replace(sensor, bands=(sensor.bands[0], replace(sensor.bands[1], common_name="green")))
    assert sensor.find("B2").wavelength == 900
    with pytest.raises(ValueError, match=r"could be B01 \(green\), B02 \(green\)"):
        sensor.find("green")


def test_an_empty_name_finds_no_band():
    with pytest.raises(ValueError, match="has no band ''"):
        a_sensor().find("")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_sensor_survives_json(name):
    data = SENSORS[name].to_dict()
    assert json.loads(json.dumps(data)) == data
    assert Sensor.from_dict(json.loads(json.dumps(data))) == SENSORS[name]


def test_a_user_adds_a_sensor_in_under_ten_lines(registry):
    """The very lines that the documentation shows."""
    block = re.search(r"take[^\n]*\n\n(    .*?)\n\n\S", sensors_module.__doc__, re.DOTALL).group(1)
    lines = textwrap.dedent(block).strip().splitlines()
    statement = [line for line in lines if line and not line.startswith("from ")]
    assert 0 < len(statement) < 10
    exec("\n".join(lines), {})
    assert get_sensor("my-camera").find("nir").wavelength == 840
    assert Sensor.from_dict(get_sensor("my-camera").to_dict()) == registry["my-camera"]


def test_a_name_is_not_taken_twice_by_accident(registry):
    first, other = a_sensor(), a_sensor(width=50.0)
    assert register_sensor(first) is first
    register_sensor(a_sensor())  # the same definition again is no conflict
    with pytest.raises(ValueError, match="'camera' is already registered with another definition"):
        register_sensor(other)
    assert registry["camera"] == first
    assert register_sensor(other, overwrite=True) is other
    assert get_sensor("camera") == other


def test_an_unknown_sensor_is_answered_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"'sentinel2-l2a'.*sentinel-2-l2a.*register_sensor"):
        get_sensor("sentinel2-l2a")
    with pytest.raises(ValueError, match="hls, landsat-8-sr"):
        get_sensor("?")


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("wavelength", 0.0),
        ("wavelength", float("nan")),
        ("width", -20.0),
        ("resolution", "10"),
        ("std", 0.0),
        ("std", float("inf")),
        ("mean", None),
        ("valid_range", [1.0, 0.0]),
        ("valid_range", 3.0),
    ],
)
def test_a_fact_that_cannot_be_true_is_refused_naming_sensor_and_band(fact, value):
    data = a_sensor().to_dict()
    data["bands"][1][fact] = value
    with pytest.raises(ValueError, match=f"Band 'B02' of sensor 'camera' has {fact}"):
        Sensor.from_dict(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "radiance"}, "Sensor 'camera' has unit 'radiance'"),
        ({"scale": 0}, "Sensor 'camera' has scale 0"),
        ({"offset": float("nan")}, "Sensor 'camera' has offset nan"),
        ({"bands": []}, "Sensor 'camera' has no bands"),
        ({"colour": "blue"}, "Sensor 'camera' has unknown colour"),
        ({"name": ""}, "non-empty text"),
    ],
)
def test_a_sensor_that_cannot_be_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        Sensor.from_dict({**a_sensor().to_dict(), **change})


def test_a_missing_field_is_named():
    data = a_sensor().to_dict()
    del data["bands"][0]["width"]
    with pytest.raises(ValueError, match="Band 'B01' of sensor 'camera' lacks width"):
        Sensor.from_dict(data)
    with pytest.raises(ValueError, match="Sensor 'camera' lacks bands, unit"):
        Sensor.from_dict({"name": "camera"})


def test_two_bands_that_one_name_would_find_are_refused():
    with pytest.raises(ValueError, match="two bands named 'B02'"):
        a_sensor(name="b2")
    sensor = a_sensor()
    with pytest.raises(ValueError, match="Band 'B01' of sensor 'camera' is named as the common name of band 'B02'"):
        replace(sensor, bands=(sensor.bands[0], replace(sensor.bands[1], common_name="b1")))


def physical_pixels(paths, sensor, order=None, scale=None):
    """(bands, pixels) float64 physical values in the sensor's own band order, without pixels that are zero in all."""
    stacks = []
    for path in paths:
        with rasterio.open(path) as raster:
            stacks.append(raster.read().reshape(raster.count, -1).astype(np.float64))
    pixels = np.concatenate(stacks, axis=1)
    pixels = pixels[:, (pixels != 0).any(0)]
    if order:
        pixels = pixels[[order.index(band.name) for band in sensor.bands]]
    return pixels * (sensor.scale if scale is None else scale) + sensor.offset


def standardised_moments(pixels, sensor):
    mean, std = (np.array([getattr(band, fact) for band in sensor.bands]) for fact in ("mean", "std"))
    scores = (pixels - mean[:, None]) / std[:, None]
    return scores.mean(1), scores.std(1)


@pytest.mark.parametrize(
    ("name", "pattern", "order", "scale", "step"),
    [
        ("sentinel-2-l2a", "sentinel2_chips/*.tif", None, 0.0008, 5),
        ("sentinel-2-l1c", "eurosat_multispectral/*/*.tif", EUROSAT_ORDER, None, 1),
        ("hls", "hls_water/image_*.tif", None, None, 1),
        ("naip", "naip_two_dates/*.tif", None, None, 8),
    ],
)
def test_real_pixels_standardise_to_mean_zero_and_variance_one(shared, name, pattern, order, scale, step):
    sensor = get_sensor(name)
    paths = sorted((shared / "data").glob(pattern))[::step]
    mean, std = standardised_moments(physical_pixels(paths, sensor, order, scale), sensor)
    assert (np.abs(mean) < 0.2).all()
    # The std of the cirrus band is chosen for clouds, and these tiles have none.
    with_signal = [band.common_name != "cirrus" for band in sensor.bands]
    assert (0.7 < std[with_signal]).all() and (std < 1.4).all()


def test_the_band_order_of_eurosat_is_a_trap(shared):
    """Read as if B8A came ninth, the water-vapour band gets the near infrared, far from where it should be."""
    sensor = get_sensor("sentinel-2-l1c")
    paths = sorted((shared / "data").glob("eurosat_multispectral/*/*.tif"))
    wrong, _ = standardised_moments(physical_pixels(paths, sensor), sensor)
    names = [band.name for band in sensor.bands]
    assert abs(wrong[names.index("B8A")]) > 1
    assert abs(wrong[names.index("B10")]) > 1


def test_an_unmeasured_sensor_standardises_real_pixels_all_the_same(shared):
    """Landsat-8 over the valley of Brumadinho, with statistics taken from the nearest bands of HLS."""
    sensor = get_sensor("landsat-8-sr")
    for band in map(sensor.find, ("blue", "green", "red", "nir", "swir16", "swir22")):
        paths = sorted((shared / "data/scenes/landsat8_pair").glob(f"*/*_SR_{band.name}.TIF"))
        one_band = replace(sensor, bands=(band,))
        mean, std = standardised_moments(physical_pixels(paths, one_band), one_band)
        assert len(paths) == 2
        assert abs(mean[0]) < 1.5 and 0.3 < std[0] < 2
