"""Features describe the ground, whatever sensor, numbers, order and pixel size it was stored in."""

import copy
import itertools

import numpy as np
import pytest

from a2mae_hub import inference
from a2mae_hub.images import Image, ImageSet
from a2mae_hub.modeling.sensors_a2mae import SENSORS, get_sensor
from a2mae_hub.stssd import features
from a2mae_hub.stssd.features import (
    BAND_GROUPS,
    SPECTRAL_FEATURES,
    checkpoint_features,
    heterogeneity,
    scale_and_offset,
    spectral_statistics,
    standardise,
)

SENTINEL = get_sensor("sentinel-2-l2a")


def sentinel(seed=0, bands=("B02", "B03", "B04", "B08", "B11"), side=12, **facts):
    rng = np.random.default_rng(seed)
    return Image(rng.integers(200, 5000, (len(bands), side, side), np.uint16), list(bands), SENTINEL.name, **facts)


def named(image_set):
    return dict(zip(SPECTRAL_FEATURES, spectral_statistics(image_set).tolist(), strict=True))


def standardised(image, band):
    facts = SENTINEL.find(band)
    stored = image.pixels[image.bands.index(band)].astype(np.float64)
    return (stored * 1e-4 - facts.mean) / facts.std


# ----------------------------------------------------------------------------------------------------------- statistics


def test_every_number_has_a_name_and_the_length_is_fixed():
    numbers = spectral_statistics(ImageSet([sentinel()]))
    assert numbers.shape == (len(SPECTRAL_FEATURES),) == (32,) and numbers.dtype == np.float32
    assert len(set(SPECTRAL_FEATURES)) == 32


def test_numbers_of_a_group_are_those_of_its_standardised_values():
    image = sentinel()
    found, blue = named(ImageSet([image])), standardised(image, "B02")
    expected = [blue.mean(), blue.std(), np.percentile(blue, 10), np.percentile(blue, 90)]
    assert [found[f"blue {number}"] for number in ("mean", "std", "p10", "p90")] == pytest.approx(expected, rel=1e-5)


def test_bands_of_one_group_are_averaged_pixel_by_pixel():
    image = sentinel(bands=("B05", "B06", "B07"))
    edge = np.mean([standardised(image, band) for band in image.bands], axis=0)
    found = named(ImageSet([image]))
    assert (found["red edge mean"], found["red edge std"]) == pytest.approx((edge.mean(), edge.std()), rel=1e-5)


def test_what_no_band_shows_is_0():
    found = named(ImageSet([sentinel(bands=("B02", "B01", "B09"))]))
    shown = {name for name, value in found.items() if value}
    assert shown == {"blue mean", "blue std", "blue p10", "blue p90", "heterogeneity"}


@pytest.mark.parametrize(
    ("sensor", "band", "group"),
    [
        ("sentinel-2-l2a", "B01", None),
        ("sentinel-2-l2a", "B07", "red edge"),
        ("sentinel-2-l2a", "B8A", "nir"),
        ("landsat-8-toa", "B8", None),  # panchromatic, centred on green
        ("landsat-8-toa", "B9", None),
        ("gaofen-1", "B4", "nir"),
        ("planetscope-8", "yellow", None),
        ("planetscope-8", "rededge", "red edge"),
    ],
)
def test_bands_belong_to_the_group_of_their_wavelength(sensor, band, group):
    assert features._group(get_sensor(sensor).find(band)) == group


def test_red_green_blue_and_infrared_of_every_shipped_sensor_are_in_their_groups():
    expected = {"blue": "blue", "green": "green", "red": "red", "nir": "nir", "nir08": "nir", "swir16": "swir16"}
    for sensor in SENSORS.values():
        for band in sensor.bands:
            if band.common_name in expected:
                assert features._group(band) == expected[band.common_name], (sensor.name, band.name)


def test_the_vegetation_index_is_that_of_reflectance_less_that_of_the_land_at_large():
    image = sentinel(bands=("B04", "B08"))
    red, nir = image.pixels.astype(np.float64) * 1e-4
    index = (nir - red) / (nir + red)
    at_large = (0.2179 - 0.0568) / (0.2179 + 0.0568)
    found = named(ImageSet([image]))
    assert found["ndvi mean"] == pytest.approx(index.mean() - at_large, abs=1e-5)
    assert found["ndvi std"] == pytest.approx(index.std(), abs=1e-5)


def test_the_vegetation_index_of_dark_water_stays_an_index():
    image = sentinel(bands=("B04", "B08"), scale=1e-4, offset=-0.1)
    image.pixels[:] = np.random.default_rng(0).integers(900, 1100, image.pixels.shape)  # reflectance around 0
    red, nir = (np.maximum(band.astype(np.float64) * 1e-4 - 0.1, 0.005) for band in image.pixels)
    found = named(ImageSet([image]))
    assert found["ndvi mean"] == pytest.approx(((nir - red) / (nir + red)).mean() - 0.58645, abs=1e-4)


def test_the_same_reflectance_in_other_numbers_is_described_alike():
    image = sentinel()
    other = copy.copy(image)
    other.pixels, other.scale, other.offset = image.pixels * 2 + 1000, 0.5e-4, -0.05
    assert spectral_statistics(ImageSet([other])) == pytest.approx(spectral_statistics(ImageSet([image])), abs=1e-4)


def test_the_size_of_an_image_and_the_order_of_images_do_not_count():
    first, second = sentinel(0), sentinel(1)
    large = copy.copy(second)
    large.pixels = second.pixels.repeat(3, axis=1).repeat(3, axis=2)
    expected, found = named(ImageSet([first, second])), named(ImageSet([large, first]))
    for name in SPECTRAL_FEATURES:
        # Percentiles lie between two pixels, which three times as many are closer to.
        assert found[name] == pytest.approx(expected[name], abs=0.06 if "p10" in name or "p90" in name else 1e-5)


def test_pixels_without_data_do_not_count():
    image = sentinel()
    clipped = copy.copy(image)
    clipped.pixels = image.pixels[:, :, :7]
    masked = copy.copy(image)
    masked.pixels, masked.nodata = image.pixels.copy(), 0
    masked.pixels[:, :, 7:9] = 0
    masked.valid = np.tile(np.arange(12) < 9, (12, 1))
    expected = spectral_statistics(ImageSet([clipped]))
    assert spectral_statistics(ImageSet([masked])) == pytest.approx(expected, abs=1e-6)


def test_an_image_without_data_says_nothing():
    empty = copy.copy(sentinel(1))
    empty.valid = np.zeros((12, 12), bool)
    expected = spectral_statistics(ImageSet([sentinel()]))
    assert spectral_statistics(ImageSet([sentinel(), empty])) == pytest.approx(expected, abs=1e-6)
    assert not spectral_statistics(ImageSet([empty])).any()


def test_temporal_change_is_the_spread_of_the_means_of_one_sensor():
    bright = sentinel()
    dark = copy.copy(bright)
    dark.pixels = bright.pixels - np.uint16(100)
    landsat = Image(np.full((1, 4, 4), 20_000, np.uint16), ["B2"], "landsat-8-sr")
    assert named(ImageSet([bright, landsat]))["temporal change"] == 0
    stds = [SENTINEL.find(band).std for band in bright.bands]
    # A hundredth of reflectance between two dates is half of it on either side of their mean.
    expected = np.mean([0.005 / std for std in stds])
    assert named(ImageSet([bright, dark, landsat]))["temporal change"] == pytest.approx(expected, rel=1e-4)


def test_heterogeneity_comes_along():
    image_set = ImageSet([sentinel(0), sentinel(1)])
    assert named(image_set)["heterogeneity"] == pytest.approx(heterogeneity(image_set))


def test_heterogeneity_is_the_spread_over_the_pixels_in_standard_deviations():
    image = sentinel()
    expected = np.mean([standardised(image, band).std() for band in image.bands])
    assert heterogeneity(ImageSet([image])) == pytest.approx(expected, rel=1e-5)
    flat = copy.copy(image)
    flat.pixels = np.full_like(image.pixels, 700)
    assert heterogeneity(ImageSet([flat])) == pytest.approx(0, abs=1e-6)
    flat.valid = np.zeros((12, 12), bool)
    assert heterogeneity(ImageSet([flat])) is None


def test_standardising_masks_what_is_no_number():
    image = Image(np.array([[[0.1, np.nan, np.inf]]], np.float32), ["B04"], SENTINEL.name, scale=1.0)
    values = standardise(image)
    assert values.mask.tolist() == [[[False, True, True]]]
    assert values[0, 0, 0] == pytest.approx((0.1 - 0.0568) / 0.0578, rel=1e-5)


def test_scale_and_offset_are_one_number_or_one_per_band():
    image = sentinel(bands=("B02", "B03"), scale=[1.0, 2.0])
    assert [factor.tolist() for factor in scale_and_offset(image)] == [[1.0, 2.0], [0.0, 0.0]]
    image.offset = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="3 numbers as offset for 2 bands"):
        scale_and_offset(image)


def test_groups_do_not_overlap():
    limits = sorted(BAND_GROUPS.values())
    assert all(low < high for low, high in limits)
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(limits))


# ----------------------------------------------------------------------------------------------------------- checkpoint


@pytest.fixture(scope="module")
def checkpoint():
    return inference.load_checkpoint()


def some_sets():
    return [ImageSet([sentinel(seed, side=side)]) for seed, side in enumerate((16, 32, 48, 16, 16))]


@pytest.mark.parametrize("tokens_at_once", [1, 12, 10_000])
def test_features_of_a_checkpoint_are_its_vectors_whatever_goes_through_together(
    checkpoint, monkeypatch, tokens_at_once
):
    monkeypatch.setattr(features, "_TOKENS_AT_ONCE", tokens_at_once)
    expected = np.stack([inference.embed(checkpoint, image_set).pooled for image_set in some_sets()])
    assert checkpoint_features(some_sets(), checkpoint) == pytest.approx(expected, abs=1e-5)


def test_sets_are_padded_to_no_more_patches_than_one_pass_holds(checkpoint, monkeypatch):
    patches = {side: (-(-side // checkpoint.processor.patch_size)) ** 2 for side in (16, 32, 48)}
    monkeypatch.setattr(features, "_TOKENS_AT_ONCE", patches[48] + 1)
    runs = [[image_set[0].pixels.shape[1] for image_set in run] for run in features._batches(some_sets(), checkpoint)]
    assert runs == [[16, 32], [48], [16, 16]]


def test_a_set_too_large_for_one_pass_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(inference, "MAX_TOKENS", 3)
    monkeypatch.setattr(features, "_TOKENS_AT_ONCE", 3)
    with pytest.raises(ValueError, match="more than the 3 of one pass"):
        checkpoint_features([ImageSet([sentinel(side=48)])], checkpoint)


def test_no_sets_have_no_features(checkpoint):
    assert checkpoint_features([], checkpoint).shape == (0, checkpoint.model.config.hidden_size)
