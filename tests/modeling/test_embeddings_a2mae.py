"""From pixels and metadata to embeddings: which differences count, and which must not."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.modeling.embeddings_a2mae import (
    MINUTES_PER_YEAR,
    SEASON_HARMONICS,
    A2MAECoordinates,
    A2MAESpectralNetwork,
    ReleasedCoordinates,
    geographic_bits,
    image_features,
    sine_cosine,
    spectral_features,
    weights_of_kernels,
)
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining, A2MAEModel
from a2mae_hub.modeling.tokens_a2mae import gather_images

UNKNOWN_TIME = -(2**63)
DAY = 24 * 60  # minutes


@pytest.fixture(scope="module")
def two_sensors(make_batch):
    """A set of four bands and of three, a day apart."""
    return make_batch([{}, {"sensor": 1, "day": 1, "bands": ((480.0, 60.0), (655.0, 37.0), (1610.0, 90.0))}])


@pytest.fixture(scope="module")
def patch_embedding(tiny_model):
    return tiny_model(A2MAEModel).patch_embedding


def without(batch, *keys):
    return {key: value for key, value in batch.items() if key not in keys}


def permute_bands(batch, order):
    swapped = {key: batch[key][:, :, order] for key in ("pixel_values", "pixel_mask") if key in batch}
    return {**batch, **swapped, **{key: batch[key][..., order] for key in ("band_wavelengths", "band_widths")}}


# Fourier features


@pytest.mark.parametrize("periods", [(4.0, 40_000.0, 16), (0.5, 8.0, 4)])
@settings(deadline=None, max_examples=30)
@given(values=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=5))
def test_sine_and_cosine_at_geometric_periods(periods, values):
    shortest, longest, count = periods
    lengths = np.geomspace(shortest, longest, count)
    phase = 2 * np.pi * np.array(values, dtype=np.float64)[:, None] / lengths
    expected = np.concatenate([np.sin(phase), np.cos(phase)], axis=-1)
    # A phase of up to 2π · 1000 / 0.5 in float32 is off by 2⁻²² of itself.
    tolerance = 1e-6 + np.abs(phase).max() * 2.0**-22
    np.testing.assert_allclose(sine_cosine(torch.tensor(values), periods), expected, atol=tolerance)


def test_neighbouring_bands_look_alike_and_distant_ones_do_not():
    def features(wavelength, width=30.0):
        return spectral_features(torch.tensor([[[wavelength]]]), torch.tensor([[[width]]])).flatten()

    red, length = features(665.0), features(665.0).norm()
    assert (features(664.5) - red).norm() < 0.05 * length  # Sentinel-2A and Sentinel-2B
    assert (features(705.0) - red).norm() > 0.3 * length  # red edge
    assert (features(1610.0) - red).norm() > 0.5 * length  # short-wave infrared
    assert (features(665.0, 90.0) - red).norm() > 0.3 * length  # a panchromatic band
    differences = [(features(665.0 + step) - red).norm().item() for step in (1, 2, 4, 8, 16)]
    assert differences == sorted(differences)


def test_an_absent_band_has_no_features_and_a_band_of_unknown_width_has_finite_ones():
    features = spectral_features(torch.tensor([[[0.0, 665.0]]]), torch.tensor([[[0.0, 0.0]]]))
    assert not features[0, 0, 0].any()
    assert features.isfinite().all()
    assert features[0, 0, 1].any()


# Metadata of images


def features_of_time(minutes):
    """What an image of nothing but a date looks like; its season comes first, as sines and then cosines."""
    none, count = torch.zeros(1, len(minutes), 0), len(minutes)
    features = image_features(none, none, torch.zeros(1, count), torch.tensor([minutes]), 8)[0]
    first = features.any(0).nonzero().min()
    return features[:, first : first + 2 * SEASON_HARMONICS], features


def minutes_since_2000(date):
    return int((np.datetime64(date, "m") - np.datetime64("2000-01-01", "m")).astype(int))


def test_the_same_day_of_two_years_is_the_same_season_at_another_time():
    summers, features = features_of_time([minutes_since_2000(f"{year}-07-01") for year in range(2013, 2025)])
    # Leap years move a date by at most a day and a half, of which harmonic 4 makes four times as much.
    assert (summers - summers[0]).abs().max() <= 2 * math.pi * SEASON_HARMONICS * 1.5 / 365.2425
    assert (features[1:] - features[0]).norm(dim=1).min() > 0.1


def test_season_is_the_phase_of_the_year():
    minutes = [minutes_since_2000(date) for date in ("1999-03-01", "2016-02-29", "2024-12-31")]
    years = np.array(minutes, dtype=np.float64) / (365.2425 * DAY)
    phase = 2 * np.pi * years[:, None] * np.arange(1, SEASON_HARMONICS + 1)
    expected = np.concatenate([np.sin(phase), np.cos(phase)], axis=-1)
    np.testing.assert_allclose(features_of_time(minutes)[0], expected, atol=1e-3)
    assert pytest.approx(365.2425 * DAY) == MINUTES_PER_YEAR


def test_winter_and_summer_are_far_apart():
    season, _ = features_of_time([minutes_since_2000("2020-01-01"), minutes_since_2000("2020-07-01")])
    assert (season[0] - season[1]).norm() > 2


def test_unknown_metadata_of_an_image_is_all_zero():
    none = torch.zeros(1, 1, 3)
    assert not image_features(none, none, torch.zeros(1, 1), torch.full((1, 1), UNKNOWN_TIME), 8).any()


def test_scale_is_metres_per_patch_whatever_patch_and_pixel():
    def scale(gsd, patch_size):
        none = torch.zeros(1, 1, 0)
        return image_features(none, none, torch.tensor([[gsd]]), torch.full((1, 1), UNKNOWN_TIME), patch_size)

    torch.testing.assert_close(scale(10.0, 16), scale(20.0, 8))
    assert (scale(10.0, 8) - scale(30.0, 8)).norm() > 0.5


# Place


@settings(deadline=None, max_examples=50)
@given(codes=st.lists(st.integers(0, 2**32 - 1), min_size=8, max_size=8), level=st.integers(1, 32))
def test_geographic_bits_are_the_binary_digits_down_to_the_level(codes, level):
    expected = [
        (1 if digit == "1" else -1) if place < level else 0
        for code in codes
        for place, digit in enumerate(format(code, "032b"))
    ]
    assert geographic_bits(torch.tensor([codes]), level).tolist() == [expected]


def test_an_unknown_code_has_no_bits():
    bits = geographic_bits(torch.tensor([[-1, 5, -1, 5, -1, 5, -1, 5]]), 32).view(8, 32)
    assert not bits[::2].any()
    assert bits[1::2].all()


# Patch embedding


@settings(deadline=None, max_examples=20)
@given(order=st.permutations(range(4)))
def test_the_order_of_the_bands_does_not_matter(two_sensors, patch_embedding, order):
    for batch in (two_sensors, without(two_sensors, "pixel_mask")):
        shuffled = patch_embedding(permute_bands(batch, list(order)))
        torch.testing.assert_close(shuffled, patch_embedding(batch), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bands", [1, 5])
def test_absent_bands_change_nothing(two_sensors, patch_embedding, pad_batch, bands):
    for batch in (two_sensors, without(two_sensors, "pixel_mask")):
        padded = patch_embedding(pad_batch(batch, bands=bands))
        torch.testing.assert_close(padded, patch_embedding(batch), atol=1e-5, rtol=0)


def test_a_band_and_what_it_shows_do_change_the_embedding(two_sensors, patch_embedding):
    """Else the tests above would pass for an embedding of nothing."""
    embedded = patch_embedding(two_sensors)
    for key, change in (("pixel_values", 1.0), ("band_wavelengths", 200.0), ("band_widths", 100.0)):
        assert (patch_embedding({**two_sensors, key: two_sensors[key] + change}) - embedded).std() > 0.01


def test_a_mask_that_hides_nothing_is_no_mask(make_batch, patch_embedding):
    batch = make_batch([{}, {"sensor": 1, "grid": (2, 3)}])
    unmasked = patch_embedding(without(batch, "pixel_mask"))
    torch.testing.assert_close(patch_embedding(batch), unmasked, atol=1e-5, rtol=0)


RED_AND_INFRARED = (((665.0, 31.0), (842.0, 115.0)), ((655.0, 37.0), (865.0, 28.0)), ((660.0, 40.0), (830.0, 120.0)))
ORDERS = pytest.mark.parametrize(
    ("grid", "same_bands", "num_kernels"),
    [((1, 2), False, None), ((8, 8), False, 3), ((1, 2), True, 1)],
    ids=["bands first", "a kernel per image", "one kernel"],
)


def three_images(make_batch, grid, same_bands):
    """Few or many patches of two bands, for four virtual bands: which order of the products is cheaper differs."""
    bands = RED_AND_INFRARED[:1] * 3 if same_bands else RED_AND_INFRARED
    return without(make_batch([{"grid": grid, "bands": pair} for pair in bands]), "pixel_mask")


@ORDERS
def test_bands_and_kernels_mixed_first_give_the_same(make_batch, patch_embedding, grid, same_bands, num_kernels):
    batch = three_images(make_batch, grid, same_bands)
    weights = patch_embedding.spectral_network(batch["band_wavelengths"], batch["band_widths"]) / 2
    of_kernels = weights_of_kernels(weights, batch)
    assert (None if of_kernels is None else len(of_kernels)) == num_kernels
    virtual = gather_images(weights, batch["image_ids"]).transpose(2, 3) @ batch["pixel_values"]
    bands_first = patch_embedding.projection(virtual.flatten(2))
    torch.testing.assert_close(patch_embedding(batch), bands_first, atol=1e-5, rtol=0)
    mixed = patch_embedding.project_with_mixed_kernels(batch["pixel_values"], weights.flatten(0, 1))
    torch.testing.assert_close(mixed, bands_first, atol=1e-5, rtol=0)


@ORDERS
def test_predictions_are_read_out_at_the_bands_in_either_order(make_batch, tiny_model, grid, same_bands, num_kernels):
    prediction = tiny_model(A2MAEForPreTraining).decoder.patch_prediction
    with torch.no_grad():
        prediction.projection.bias.normal_(generator=torch.Generator().manual_seed(0))
    batch = three_images(make_batch, grid, same_bands)
    states = torch.randn(1, batch["image_ids"].shape[1], 16, generator=torch.Generator().manual_seed(1))
    weights = prediction.spectral_network(batch["band_wavelengths"], batch["band_widths"])
    of_kernels = weights_of_kernels(weights, batch)
    assert (None if of_kernels is None else len(of_kernels)) == num_kernels
    virtual = prediction.projection(states).unflatten(-1, (4, 16))
    expected = gather_images(weights, batch["image_ids"]) @ virtual
    torch.testing.assert_close(prediction(states, batch), expected, atol=1e-5, rtol=0)
    mixed = prediction.predict_with_mixed_kernels(states, weights.flatten(0, 1))
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=0)


def test_tokens_in_any_order_are_embedded_alike(two_sensors, patch_embedding):
    """The order of the tokens decides which products are taken, and must not decide the result."""
    batch = without(two_sensors, "pixel_mask")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    shuffled = {**batch, **{key: batch[key][:, order] for key in ("pixel_values", "image_ids")}}
    torch.testing.assert_close(patch_embedding(shuffled), patch_embedding(batch)[:, order], atol=1e-5, rtol=0)


def test_a_patch_is_the_mean_over_its_bands(make_batch, patch_embedding):
    """The same band twice is that band once: more bands are no brighter picture."""
    band = (665.0, 31.0)
    batch = make_batch([{"bands": (band,)}])
    twice = {key: torch.cat([batch[key]] * 2, dim=2) for key in ("pixel_values", "pixel_mask")}
    twice |= {key: torch.cat([batch[key]] * 2, dim=-1) for key in ("band_wavelengths", "band_widths")}
    torch.testing.assert_close(patch_embedding({**batch, **twice}), patch_embedding(batch), atol=1e-5, rtol=0)


def test_a_pixel_seen_in_one_band_only_is_the_mean_over_that_band(make_batch, patch_embedding):
    batch = make_batch([{}])
    red_only = torch.zeros_like(batch["pixel_mask"])
    red_only[:, :, 2] = True
    masked = {**batch, "pixel_mask": red_only, "pixel_values": batch["pixel_values"] * red_only}
    red = make_batch([{"bands": ((665.0, 31.0),)}])
    red["pixel_values"] = batch["pixel_values"][:, :, 2:3]
    torch.testing.assert_close(patch_embedding(masked), patch_embedding(red), atol=1e-5, rtol=0)


def test_a_wrong_number_of_bands_is_refused_where_bands_are_taken_as_they_come(two_sensors, tiny_model):
    embedding = tiny_model(A2MAEModel, spectral_projection="identity", num_channels=3).patch_embedding
    with pytest.raises(ValueError, match=r"pixel_values has 4 bands, .* takes 3"):
        embedding(two_sensors)


def test_the_spectral_network_gives_an_absent_band_no_weight(tiny_config):
    network = A2MAESpectralNetwork(tiny_config())
    weights = network(torch.tensor([[[665.0, 0.0]]]), torch.tensor([[[31.0, 0.0]]]))
    assert weights[0, 0, 0].any()
    assert not weights[0, 0, 1].any()


# Coordinates


def coordinates_of(tiny_model, **overrides):
    return tiny_model(A2MAEModel, **overrides).coordinates


UNKNOWN = {
    "acquisition_times": UNKNOWN_TIME,
    "ground_resolutions": 0,
    "band_wavelengths": 0,
    "geographic_codes": -1,
}


def test_a_token_of_which_nothing_is_known_has_no_coordinates(two_sensors, tiny_model):
    coordinates = coordinates_of(tiny_model)
    unknown = {**two_sensors, **{key: torch.full_like(two_sensors[key], value) for key, value in UNKNOWN.items()}}
    nothing = coordinates(without(unknown, "patch_positions"))
    assert nothing.shape == (1, 32, 32)
    assert not nothing.any()
    assert not coordinates(without(unknown, "patch_positions", "geographic_codes")).any()


@pytest.mark.parametrize("key", [*UNKNOWN, "patch_positions"])
def test_each_kind_of_metadata_adds_a_part_of_its_own(two_sensors, tiny_model, key):
    """What one kind adds does not depend on whether the others are known."""
    coordinates = coordinates_of(tiny_model)
    unknown = {**two_sensors, **{name: torch.full_like(two_sensors[name], value) for name, value in UNKNOWN.items()}}
    if key == "patch_positions":
        added = coordinates(two_sensors) - coordinates(without(two_sensors, key))
    else:
        added = coordinates(two_sensors) - coordinates({**two_sensors, key: unknown[key]})
    nothing_else = {**unknown, key: two_sensors[key]}
    alone = coordinates(nothing_else if key == "patch_positions" else without(nothing_else, "patch_positions"))
    assert added.abs().max() > 0.01
    torch.testing.assert_close(added, alone, atol=1e-5, rtol=0)


def test_finer_bits_than_the_level_do_not_change_the_place(two_sensors, tiny_model):
    coordinates = coordinates_of(tiny_model, geographic_level=21)
    moved = {**two_sensors, "geographic_codes": two_sensors["geographic_codes"] ^ (2**11 - 1)}
    elsewhere = {**two_sensors, "geographic_codes": two_sensors["geographic_codes"] ^ 2**11}
    assert torch.equal(coordinates(moved), coordinates(two_sensors))
    assert not torch.equal(coordinates(elsewhere), coordinates(two_sensors))


def test_without_bits_the_place_is_left_out(two_sensors, tiny_model):
    coordinates = coordinates_of(tiny_model, geographic_level=0)
    unknown = {**two_sensors, "geographic_codes": torch.full_like(two_sensors["geographic_codes"], -1)}
    assert torch.equal(coordinates(two_sensors), coordinates(unknown))
    assert not [name for name, _ in coordinates.named_parameters() if "place" in name]


def test_only_the_decoder_tells_two_images_of_one_kind_apart(make_batch, tiny_config):
    batch = make_batch([{}, {}])
    of_encoder = A2MAECoordinates(tiny_config(), 16)(batch).unflatten(1, (2, 16))
    of_decoder = A2MAECoordinates(tiny_config(), 16, tells_images_apart=True)(batch).unflatten(1, (2, 16))
    torch.testing.assert_close(of_encoder[:, 0], of_encoder[:, 1], atol=1e-5, rtol=0)
    assert (of_decoder[:, 0] - of_decoder[:, 1]).norm() > 0.1


def released_position(row, column, resolution, width):
    """The released code's two-dimensional sine-cosine, in numpy float64 (reference/released_code.md)."""
    frequencies = 10_000.0 ** -(np.arange(width // 4) / (width / 4))
    x, y = resolution * column * frequencies, resolution * row * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])


def test_released_coordinates_are_place_bits_and_the_grid_at_every_resolution(tiny_config):
    config = tiny_config(
        coordinate_layout="released", hidden_size=256 + 24, num_attention_heads=4, released_num_images=2
    )
    resolutions, codes = [10.0, 30.0], [7, 2**31, 0, 1, 2, 3, 4, 2**32 - 1]
    batch = {
        "pixel_values": torch.zeros(1, 3, 3, 16),
        "image_ids": torch.tensor([[0, 1, 1]]),
        "ground_resolutions": torch.tensor([resolutions]),
        "geographic_codes": torch.tensor([codes]),
        "anchor_ids": torch.zeros(1, dtype=torch.int64),
        "grid_positions": torch.tensor([[[0, 0], [1, 2], [5, 3]]]),
    }
    bits = [int(digit) for code in codes for digit in format(code, "032b")]
    for token, (row, column) in enumerate([(0, 0), (1, 2), (5, 3)]):
        positions = [released_position(row, column, resolution, 12) for resolution in resolutions]
        found = ReleasedCoordinates(config, 280)(batch)[0, token]
        np.testing.assert_allclose(found, np.concatenate([bits, *positions]), atol=1e-4)
        own = ReleasedCoordinates(config, 16, of_own_image=True)(batch)[0, token]
        resolution = resolutions[batch["image_ids"][0, token]]
        np.testing.assert_allclose(own, released_position(row, column, resolution, 16), atol=1e-4)
    assert not ReleasedCoordinates(config, 280)(without(batch, "geographic_codes"))[0, :, :256].any()
