"""The batch: what is filled in, what is refused, and how tokens and images are picked from it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.modeling.batch_a2mae import BATCH_KEYS, TOKEN_KEYS, complete_batch, select_tokens, split_batch
from a2mae_hub.modeling.modeling_a2mae import A2MAEModel
from a2mae_hub.modeling.tokens_a2mae import gather_images, grid_positions, is_image_by_image, take_tokens

UNKNOWN_TIME = -(2**63)


@pytest.fixture(scope="module")
def ragged(make_batch):
    return make_batch([{"grid": (2, 3)}, {"grid": (3, 3)}], [{"grid": (2, 2)}])


# Completing


def test_what_is_left_out_counts_as_unknown(ragged, tiny_config):
    given_keys = ("pixel_values", "band_wavelengths", "band_widths")
    batch = complete_batch(tiny_config(), **{key: ragged[key] for key in given_keys})
    assert batch["image_ids"].shape == (2, 15)
    assert not batch["image_ids"].any()
    assert batch["ground_resolutions"].tolist() == [[0, 0], [0, 0]]
    assert batch["acquisition_times"].tolist() == [[UNKNOWN_TIME] * 2] * 2
    assert batch["source_ids"].tolist() == [[0, 0], [0, 0]]
    assert batch["anchor_ids"].tolist() == [0, 0]
    assert not {"pixel_mask", "attention_mask", "patch_positions", "geographic_codes"} & batch.keys()


def test_what_is_given_stays_and_none_is_left_out(ragged, tiny_config):
    batch = complete_batch(tiny_config(), **{**ragged, "geographic_codes": None})
    assert batch.keys() == ragged.keys() - {"geographic_codes"}
    assert all(batch[key] is ragged[key] for key in batch)


def test_the_keys_of_the_batch_are_those_of_the_design(ragged):
    assert set(BATCH_KEYS) - {"grid_positions"} == ragged.keys()
    assert set(TOKEN_KEYS) - {"grid_positions"} < ragged.keys()


def test_bands_that_nothing_tells_apart_are_refused(ragged, tiny_config):
    with pytest.raises(ValueError, match=r"band_wavelengths or band_widths is missing .*nanometres"):
        complete_batch(tiny_config(), **{**ragged, "band_widths": None})
    identity = tiny_config(spectral_projection="identity", num_channels=4)
    assert complete_batch(identity, pixel_values=ragged["pixel_values"])["band_wavelengths"].shape == (2, 1, 0)


@pytest.mark.parametrize("shape", [(2, 15, 4, 64), (2, 15, 64), (2, 3, 32, 32)])
def test_patches_of_another_shape_are_refused(ragged, tiny_config, shape):
    with pytest.raises(ValueError, match=r"pixel_values has shape \(2, .*A2MAEImageProcessor with patch_size=4"):
        complete_batch(tiny_config(), **{**ragged, "pixel_values": torch.zeros(shape)})


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("band_wavelengths", lambda value: value[..., :3]),  # fewer bands than pixel_values
        ("image_ids", lambda value: value[:, :-1]),  # fewer tokens
        ("image_ids", lambda value: value + 1),  # an image that the set does not have
        ("ground_resolutions", lambda value: value[:, :1]),  # fewer images than band_wavelengths
        ("pixel_mask", lambda value: value[:, :, :3]),
        ("attention_mask", lambda value: value[:, :-1]),
        ("patch_positions", lambda value: value[:, :-1]),
        ("geographic_codes", lambda value: value[:, :4]),
    ],
    ids=["bands", "tokens", "image id", "images", "pixel mask", "attention mask", "positions", "codes"],
)
def test_keys_that_do_not_fit_one_another_are_refused_by_name(ragged, tiny_model, key, change):
    """`A2MAEModel.forward` promises a `ValueError` that names the key."""
    with pytest.raises(ValueError, match=key):
        tiny_model(A2MAEModel)(**{**ragged, key: change(ragged[key])})


def test_keyword_arguments_split_into_the_batch_and_the_rest(ragged):
    batch, rest = split_batch({**ragged, "output_attentions": True})
    assert batch == ragged
    assert rest == {"output_attentions": True}


# Picking


@settings(deadline=None, max_examples=30)
@given(data=st.data(), num_sets=st.integers(1, 4), num_tokens=st.integers(1, 9), num_images=st.integers(1, 4))
def test_tokens_and_images_are_picked_set_by_set(data, num_sets, num_tokens, num_images):
    token_ids = data.draw(st.lists(st.integers(0, num_tokens - 1), min_size=num_sets * 3, max_size=num_sets * 3))
    token_ids = torch.tensor(token_ids).view(num_sets, 3)
    values = torch.arange(num_sets * num_tokens * 2).view(num_sets, num_tokens, 2)
    taken = take_tokens(values, token_ids)
    image_ids = token_ids % num_images
    image_values = torch.arange(num_sets * num_images * 5).view(num_sets, num_images, 5)
    gathered = gather_images(image_values, image_ids)
    for b in range(num_sets):
        for k in range(3):
            assert torch.equal(taken[b, k], values[b, token_ids[b, k]])
            assert torch.equal(gathered[b, k], image_values[b, image_ids[b, k]])


@settings(deadline=None, max_examples=30)
@given(chosen=st.lists(st.lists(st.booleans(), min_size=15, max_size=15), min_size=2, max_size=2))
def test_chosen_tokens_keep_their_order_and_all_they_hold(ragged, chosen):
    token_ids, batch = select_tokens(ragged, torch.tensor(chosen), at_most=None)
    counts = [sum(of_set) for of_set in chosen]
    assert token_ids.shape == (2, max(1, *counts))
    for b, count in enumerate(counts):
        expected = [index for index, is_chosen in enumerate(chosen[b]) if is_chosen]
        assert token_ids[b, :count].tolist() == expected
        assert batch["attention_mask"][b].tolist() == [True] * count + [False] * (token_ids.shape[1] - count)
        for key in ("pixel_values", "pixel_mask", "image_ids", "patch_positions"):
            assert torch.equal(batch[key][b, :count], ragged[key][b, expected])
    assert batch["grid_shapes"] is ragged["grid_shapes"]


def test_of_more_tokens_than_fit_those_of_lowest_priority_value_stay(ragged):
    chosen = torch.zeros(2, 15, dtype=torch.bool)
    chosen[:, [1, 4, 5, 9]] = True
    priority = torch.arange(15.0).flip(0).expand(2, 15)
    token_ids, batch = select_tokens(ragged, chosen, at_most=3, priority=priority)
    assert token_ids.tolist() == [[9, 5, 4]] * 2
    assert batch["attention_mask"].all()


def test_grid_positions_count_rows_and_columns_within_each_image(ragged):
    positions = grid_positions(ragged["image_ids"], ragged["grid_shapes"])
    of_grid = [
        [[row, column] for row in range(rows) for column in range(columns)] for rows, columns in [(2, 3), (3, 3)]
    ]
    assert positions[0].tolist() == of_grid[0] + of_grid[1]
    assert positions[1, :4].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize(
    ("image_ids", "num_images", "expected"),
    [
        ([[0, 0, 1, 1]], 2, True),
        ([[0, 0, 1, 1], [0, 0, 1, 1]], 2, True),
        ([[0, 1, 0, 1]], 2, False),
        ([[0, 0, 1, 1], [0, 0, 0, 1]], 2, False),
        ([[0, 0, 0]], 2, False),
        ([[0, 0, 0]], 1, True),
    ],
)
def test_image_by_image_means_equally_many_tokens_one_image_after_another(image_ids, num_images, expected):
    assert is_image_by_image(torch.tensor(image_ids), num_images) is expected
