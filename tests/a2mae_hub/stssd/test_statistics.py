"""Statistics are those of all valid pixels in physical units, and take over in the processor."""

import json
from collections import Counter
from datetime import datetime, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub import A2MAEImageProcessor
from a2mae_hub.modeling.sensors_a2mae import SENSORS, get_sensor
from a2mae_hub.stssd import statistics
from a2mae_hub.stssd.schema import StoredImage, StoredSet
from a2mae_hub.stssd.statistics import BandStatistics, inspect

UTM = {"crs": "EPSG:32632", "transform": (10.0, 0.0, 5e5, 0.0, -10.0, 5.3e6)}


def mixed_sets():
    """Sets of every kind of stored numbers: scales, offsets, masks, fill, whole and real numbers, one band or more."""
    rng = np.random.default_rng(7)
    images = [
        StoredImage(rng.integers(0, 5000, (2, 9, 9), np.uint16), ["B02", "B08"], "sentinel-2-l2a", nodata=0),
        StoredImage(
            rng.integers(1000, 6000, (2, 7, 8), np.uint16), ["nir", "B02"], "sentinel-2-l2a", scale=[2e-4, 1e-4],
            offset=[-0.1, -0.05], valid=rng.random((7, 8)) < 0.7,
        ),
        StoredImage(
            rng.normal(0.2, 0.1, (1, 6, 6)).astype(np.float32), ["B08"], "sentinel-2-l2a", scale=1.0,
            valid=rng.random((1, 6, 6)) < 0.5,
        ),
        StoredImage(rng.integers(0, 256, (4, 8, 8), np.uint8), ["red", "green", "blue", "nir"], "naip"),
        StoredImage(rng.integers(-2000, 9000, (1, 5, 5), np.int16), ["B11"], "sentinel-2-l2a", nodata=-9999),
        StoredImage(rng.integers(5000, 70_000, (1, 5, 5), np.int32), ["B5"], "landsat-8-sr"),
    ]  # fmt: skip
    images[2].pixels[0, 0, 0] = np.nan
    images[2].valid[0, 0, :2] = True
    return [StoredSet([images[i], images[j]], id=f"{i}{j}") for i, j in ((0, 3), (1, 4), (2, 5))]


def all_values(sets):
    """The valid physical values of every sensor and band, in float64, image by image."""
    found = {}
    for image_set in sets:
        for image in image_set:
            sensor = get_sensor(image.sensor)
            for index, name in enumerate(image.bands):
                stored = image.pixels[index].astype(np.float64)
                real = np.isfinite(stored) & (stored != image.nodata if image.nodata is not None else True)
                if image.valid is not None:
                    real &= np.broadcast_to(image.valid, image.pixels.shape)[index]
                scale = (
                    sensor.scale if image.scale is None else np.atleast_1d(image.scale)[index % np.size(image.scale)]
                )
                offset = (
                    sensor.offset
                    if image.offset is None
                    else np.atleast_1d(image.offset)[index % np.size(image.offset)]
                )
                values = found.setdefault((image.sensor, sensor.find(name).name), [])
                values.extend((stored[real] * scale + offset).tolist())
    return {key: np.array(values) for key, values in found.items()}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, write_shards):
    return write_shards(tmp_path_factory.mktemp("mixed"), mixed_sets(), sets_per_shard=2, rows_per_group=1)


# --------------------------------------------------------------------------------------------------------------- values


def test_every_number_of_every_band_is_that_of_all_its_pixels(mixed):
    found, expected = inspect(mixed).values, all_values(mixed_sets())
    assert {(sensor, band) for sensor, bands in found.items() for band in bands} == set(expected)
    for (sensor, band), values in expected.items():
        of = found[sensor][band]
        assert of.count == len(values) > 20
        assert of.mean == pytest.approx(values.mean(), rel=1e-12)
        assert of.std == pytest.approx(values.std(), rel=1e-10)
        assert (of.minimum, of.maximum) == pytest.approx((values.min(), values.max()), rel=1e-12)


def test_histograms_count_every_value_once_in_bins_over_the_range_of_the_band(mixed):
    for (sensor, band), values in all_values(mixed_sets()).items():
        of = inspect(mixed).values[sensor][band]
        edges = np.linspace(*of.edges, len(of.histogram) + 1)
        # Values on an edge, which every stored number of Sentinel-2 at a step of 0.002 is, belong to the bin above.
        expected, _ = np.histogram(values + 1e-9, edges)
        assert of.histogram.tolist() == expected.tolist()
        assert of.below == (values < edges[0] - 1e-9).sum() and of.above == (values > edges[-1]).sum()
        assert of.histogram.sum() + of.below + of.above == of.count


def test_bins_are_two_thousandths_of_reflectance_or_one_digital_number():
    reflectance = BandStatistics.of_band(get_sensor("sentinel-2-l2a").find("B04"), "reflectance")
    assert reflectance.edges == (-0.2, 2.0)
    assert np.diff(reflectance.edges)[0] / len(reflectance.histogram) == pytest.approx(0.002)
    reflectance.add(np.array([-0.201, -0.2, 2.0, 2.001]), np.ones(4, np.int64))
    assert reflectance.histogram[[0, -1]].tolist() == [1, 1] and (reflectance.below, reflectance.above) == (1, 1)
    digital = BandStatistics.of_band(get_sensor("naip").find("red"), "DN")
    digital.add(np.array([0.0, 7.0, 255.0]), np.array([2, 3, 4]))
    assert digital.histogram[[0, 7, 255]].tolist() == [2, 3, 4] and digital.histogram.sum() == 9
    assert len(digital.histogram) == 256 and digital.below == digital.above == 0


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-3, 3), st.integers(1, 1000)), min_size=1, max_size=6), min_size=1, max_size=6
    )
)
def test_parts_add_up_to_the_whole_however_it_is_cut(parts):
    band = get_sensor("sentinel-2-l2a").find("B04")
    of, whole = BandStatistics.of_band(band, "reflectance"), []
    for part in parts:
        values, counts = np.array(part).T
        of.add(values, counts.astype(np.int64))
        whole.append(np.repeat(values, counts.astype(int)))
    values = np.concatenate(whole)
    assert of.count == len(values)
    assert of.mean == pytest.approx(values.mean(), abs=1e-12)
    assert of.std == pytest.approx(values.std(), abs=1e-9)
    assert of.histogram.sum() + of.below + of.above == len(values)


def test_a_small_spread_far_from_zero_loses_no_digits():
    of = BandStatistics.of_band(get_sensor("sentinel-2-l2a").find("B04"), "reflectance")
    values = 1.0 + np.random.default_rng(0).normal(0, 1e-7, (50, 1000))
    for part in values:
        of.add(part, np.ones(1000, np.int64))
    assert of.std == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.float32])
def test_numbers_and_how_often_they_occur_are_the_stored_ones(dtype):
    stored = np.array([3, 3, 7, 100, 0], dtype) - dtype(5 if np.dtype(dtype).kind == "i" else 0)
    levels, counts = statistics._levels(stored)
    assert levels.dtype == np.float64 and counts.dtype == np.int64
    assert sorted(np.repeat(levels, counts).tolist()) == sorted(stored.tolist())


# -------------------------------------------------------------------------------------------------------------- sensors


def test_measured_sensors_make_the_processor_give_mean_0_and_variance_1(tmp_path, make_set, write_shards):
    sets = [make_set(number) for number in range(6)]
    found = inspect(write_shards(tmp_path / "all", sets))
    processor = A2MAEImageProcessor(patch_size=16, sensors=found.sensors())
    batch = processor(sets, return_tensors="np")
    values, wavelengths = batch["pixel_values"], batch["band_wavelengths"]
    token_wavelengths = np.take_along_axis(wavelengths, batch["image_ids"][..., None], axis=1)
    real = batch["attention_mask"][..., None] & (token_wavelengths > 0)
    for wavelength in np.unique(token_wavelengths[real]):
        band = values[real & (token_wavelengths == wavelength)]
        assert band.mean() == pytest.approx(0, abs=1e-4) and band.std() == pytest.approx(1, abs=1e-4)


def test_bands_that_are_not_measured_keep_what_the_registry_says(mixed):
    found = {sensor.name: sensor for sensor in inspect(mixed).sensors()}
    assert list(found) == list(SENSORS)
    assert found["hls"] == SENSORS["hls"]
    changed, registered = found["sentinel-2-l2a"], SENSORS["sentinel-2-l2a"]
    measured = {
        b.name for b, r in zip(changed.bands, registered.bands, strict=True) if (b.mean, b.std) != (r.mean, r.std)
    }
    assert measured == {"B02", "B08", "B11"}
    assert changed.source.startswith(registered.source) and "measured on mixed" in changed.source


def test_a_band_of_one_value_everywhere_keeps_its_standard_deviation(tmp_path, write_shards):
    image = StoredImage(np.full((1, 4, 4), 700, np.uint16), ["B04"], "sentinel-2-l2a")
    found = inspect(write_shards(tmp_path / "all", [StoredSet([image], id="a")]))
    assert found.values["sentinel-2-l2a"]["B04"].mean == pytest.approx(0.07)
    assert {s.name: s for s in found.sensors()}["sentinel-2-l2a"] == SENSORS["sentinel-2-l2a"]


# --------------------------------------------------------------------------------------------------------------- counts


def dated_sets(make_set):
    sets = [
        make_set(0, days=100),
        make_set(1, kind="city", split="validation", longitude=None, days=None),
        make_set(2, sensors=("naip",), longitude=-70.0, latitude=-10.0),
    ]
    images = [image for image_set in sets for image in image_set]
    for number, image in enumerate(images):
        image.cloud_share = (None, 0.0, 0.7, 0.999, 1.0, 0.1, None)[number]
        image.provenance = "derived" if number == 1 else "observed"
        image.licence = ("CC-BY-4.0", "CC-BY-4.0", None)[number % 3]
        image.source = ("s2/a/b.tif", "s2/c.tif", None, "https://x.org/d/e.tif", "single.tif", "simulated", "s2/f.tif")[
            number
        ]
    return sets


@pytest.fixture
def counted(tmp_path, make_set, write_shards):
    return inspect(write_shards(tmp_path / "set", dated_sets(make_set), sets_per_shard=2, columns={"label": [1, 2, 3]}))


def test_everything_is_counted(counted):
    told = counted.to_dict()
    assert (told["name"], told["sets"], told["images"], told["shards"]) == ("set", 3, 7, 2)
    assert told["bytes"] > 2000 and told["columns"] == {"label": "int64"}
    assert told["sets_by_kind"] == {"city": {"validation": 1}, "grid": {"train": 2}}
    assert told["images_per_set"] == {"1": 1, "3": 2}
    assert told["images_by_sensor"] == {
        "landsat-8-sr": {"derived": 1, "observed": 1},
        "naip": {"observed": 1},
        "sentinel-2-l2a": {"observed": 4},
    }
    assert told["bands"]["landsat-8-sr"] == {"B2": 2, "B3": 2, "B4": 2, "B5": 2}
    assert told["shapes"]["naip"] == {"16 × 16": 1} and told["ground_resolutions"]["naip"] == {"10": 1}
    assert told["acquired"] == {"first": "2020-01-01T10:30:00+00:00", "last": "2020-07-19T10:30:00+00:00"}
    assert told["months"]["sentinel-2-l2a"] == {"2020-01": 1, "2020-07": 1, "unknown": 2}
    assert told["months"]["landsat-8-sr"] == {"2020-04": 1, "unknown": 1}
    assert told["cloud_shares"] == {"unknown": 2, "0-0.1": 1, "0.1-0.2": 1, "0.7-0.8": 1, "0.9-1": 2}
    known = {"known": 2, "unknown": 1, "west": -70.0, "south": -10.0, "east": 3.0, "north": 42.0}
    assert told["places"] == known
    assert told["licences"] == {"CC-BY-4.0": 5, "unknown": 2}
    assert told["sources"] == {
        "*.tif": {"observed": 1},
        "https://x.org": {"observed": 1},
        "s2": {"derived": 1, "observed": 2},
        "simulated": {"observed": 1},
        "unknown": {"observed": 1},
    }
    assert told["heterogeneity"]["p50"] == 0.5


def test_the_table_tells_it_in_words(counted):
    text = str(counted)
    for part in (
        "set: 3 sets, 7 images, 2 shards,",
        "city         1 sets (validation 1)",
        "images       1 to 3 a set, 2.3 on average",
        "dates        2020-01-01 to 2020-07-19, 3 images without",
        "places       2 known, 1 unknown, -70.0 to 3.0° E, -10.0 to 42.0° N",
        "licences     CC-BY-4.0 (5), unknown (2)",
    ):
        assert part in text
    assert next(line.split()[:3] for line in text.splitlines() if line.startswith("naip")) == ["naip", "1", "0"]
    red = next(line.split() for line in text.splitlines() if line.split()[:2] == ["naip", "red"])
    assert int(red[2]) == 256 and float(red[3]) == pytest.approx(counted.values["naip"]["red"].mean, rel=1e-4)


def test_saved_statistics_are_json_for_everyone(counted, tmp_path):
    counted.save(tmp_path / "statistics.json")

    def refuse(constant):
        raise AssertionError(constant)

    told = json.loads((tmp_path / "statistics.json").read_text(), parse_constant=refuse)
    assert told == counted.to_dict()
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        counted.save(tmp_path / "nowhere" / "statistics.json")


def test_a_band_without_a_valid_pixel_has_no_numbers(tmp_path, write_shards):
    image = StoredImage(np.zeros((1, 4, 4), np.uint16), ["B04"], "sentinel-2-l2a", nodata=0)
    found = inspect(write_shards(tmp_path / "all", [StoredSet([image], id="a")]))
    told = found.to_dict()["values"]["sentinel-2-l2a"]["B04"]
    assert (told["count"], told["mean"], told["std"], told["min"]) == (0, None, None, None)
    assert "B04" in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("facts", "metres"),
    [
        (UTM, 10.0),
        ({"crs": "EPSG:4326", "transform": (0.0001, 0.0, 9.0, 0.0, -0.0001, 60.0)}, 7.9),  # √(11.1 m × 5.6 m)
        ({"gsd": 3.7}, 3.7),
        ({}, 10.0),  # that of the sensor's finest band
    ],
)
def test_ground_resolution_is_that_of_the_georeference_else_of_the_image_else_of_the_sensor(
    tmp_path, write_shards, facts, metres
):
    image = StoredImage(np.full((1, 8, 8), 700, np.uint16), ["B04"], "sentinel-2-l2a", **facts)
    found = inspect(write_shards(tmp_path / "all", [StoredSet([image], id="a")]))
    assert found.resolutions == Counter({("sentinel-2-l2a", metres): 1})


def test_months_are_those_of_utc(tmp_path, write_shards):
    taken = datetime.fromisoformat("2021-01-01T05:00:00+08:00")
    image = StoredImage(np.full((1, 4, 4), 700, np.uint16), ["B04"], "sentinel-2-l2a", acquired=taken)
    found = inspect(write_shards(tmp_path / "all", [StoredSet([image], id="a")]))
    assert found.months == {("sentinel-2-l2a", "2020-12"): 1}
    assert found.first_acquired == datetime(2020, 12, 31, 21, tzinfo=timezone.utc)


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_an_unknown_sensor_or_band_is_named_with_its_shard_and_set(tmp_path, make_set, write_shards):
    bad = make_set(5)
    bad.images[1].bands = ["B2", "B3", "B4", "B99"]
    source = write_shards(tmp_path / "all", [make_set(4), bad])
    with pytest.raises(ValueError, match=r"sets-00000.parquet: set 'grid-0005': .*landsat-8-sr.* no band 'B99'"):
        inspect(source)


def test_a_georeference_that_cannot_be_is_named_with_its_shard_and_set(tmp_path, write_shards):
    image = StoredImage(
        np.ones((1, 4, 4), np.uint16), ["B04"], "sentinel-2-l2a", crs="EPSG:0", transform=UTM["transform"]
    )
    source = write_shards(tmp_path / "all", [StoredSet([image], id="a")])
    with pytest.raises(ValueError, match=r"sets-00000.parquet: set 'a': .*EPSG:0"):
        inspect(source)


def test_no_sets_and_no_shards_are_told(tmp_path, write_shards):
    with pytest.raises(ValueError, match="holds no image sets"):
        inspect(write_shards(tmp_path / "none", []))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        inspect(tmp_path / "nowhere")


def test_a_damaged_shard_is_named(mixed, tmp_path):
    whole = (mixed / "sets-00000.parquet").read_bytes()
    (tmp_path / "bad.parquet").write_bytes(whole[:400] + b"\0" * 300 + whole[700:])
    with pytest.raises(ValueError, match=r"bad\.parquet"):
        inspect(tmp_path)
