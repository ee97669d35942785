"""From tokens back to maps: folding, and one map for all images of a set."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.modeling.grids_a2mae import fold_tokens, fuse_on_anchor_grid
from a2mae_hub.modeling.tokens_a2mae import first_tokens, grid_positions

KEYS = "attention_mask image_ids patch_positions ground_resolutions anchor_ids grid_shapes".split()
PATCH_SIZE = 4
grids = st.lists(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3), min_size=1, max_size=3
)


def fuse(tokens, batch, **changed):
    return fuse_on_anchor_grid(tokens, **{key: {**batch, **changed}[key] for key in KEYS}, patch_size=PATCH_SIZE)


def values_for(batch, width=3, seed=0):
    num_sets, num_tokens = batch["image_ids"].shape
    return torch.randn(num_sets, num_tokens, width, generator=torch.Generator().manual_seed(seed))


def own_map(tokens, grid):
    """The tokens of one image, in order, as (width, rows, columns)."""
    return tokens.T.unflatten(1, grid)


# Folding


@settings(deadline=None, max_examples=30)
@given(grids=grids)
def test_every_token_lies_where_its_grid_position_says(make_batch, grids):
    batch = make_batch(*[[{"grid": grid} for grid in of_set] for of_set in grids])
    places = grid_positions(batch["image_ids"], batch["grid_shapes"])
    tokens = torch.cat([places, batch["image_ids"][..., None]], dim=-1)
    maps, token_ids = fold_tokens(tokens, batch["grid_shapes"])
    for b, of_set in enumerate(grids):
        for t in range(batch["grid_shapes"].shape[1]):
            rows, columns = of_set[t] if t < len(of_set) else (0, 0)
            row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            expected = torch.stack([row, column, torch.full_like(row, t)])
            assert torch.equal(maps[b, t, :, :rows, :columns], expected)
            inside = torch.zeros(maps.shape[-2:], dtype=torch.bool)
            inside[:rows, :columns] = True
            assert not maps[b, t, :, ~inside].any()
            assert torch.equal(token_ids[b, t] >= 0, inside)
        used = token_ids[b][token_ids[b] >= 0]
        assert used.tolist() == list(range(sum(rows * columns for rows, columns in of_set)))


def test_images_follow_one_another():
    shapes = torch.tensor([[[2, 3], [1, 4], [5, 5]], [[7, 1], [0, 0], [0, 0]]])
    assert first_tokens(shapes).tolist() == [[0, 6, 10], [0, 7, 7]]


# Fusing


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 4), (4, 1), (1, 1)])
def test_the_map_of_a_single_image_is_its_own(make_batch, grid):
    batch = make_batch([{"grid": grid}])
    tokens = values_for(batch)
    torch.testing.assert_close(fuse(tokens, batch)[0], own_map(tokens[0], grid), atol=1e-6, rtol=0)


@pytest.mark.parametrize("stretch", [0.5, 0.8, 1.6])
def test_the_map_of_an_image_in_degrees_is_its_own(make_batch, stretch):
    """Pixels of a raster in EPSG:4326 are oblong on the ground, at 60° of latitude half as wide as high."""
    batch = make_batch([{"grid": (3, 4)}])
    oblong = batch["patch_positions"] * torch.tensor([1 / math.sqrt(stretch), math.sqrt(stretch)])
    tokens = values_for(batch)
    fused = fuse(tokens, batch, patch_positions=oblong)
    torch.testing.assert_close(fused[0], own_map(tokens[0], (3, 4)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("images", [2, 3])
def test_images_on_one_grid_are_averaged(make_batch, images):
    batch = make_batch([{"day": 30 * t} for t in range(images)])
    tokens = values_for(batch)
    mean = tokens[0].unflatten(0, (images, 16)).mean(0)
    torch.testing.assert_close(fuse(tokens, batch)[0], own_map(mean, (4, 4)), atol=1e-6, rtol=0)


def test_a_coarse_and_a_fine_image_have_one_vote_each(make_batch):
    images = [{"grid": (6, 6)}, {"gsd": 30.0, "grid": (2, 2), "sensor": 1}]
    batch = make_batch(images)
    tokens = values_for(batch)
    fine, coarse = own_map(tokens[0, :36], (6, 6)), own_map(tokens[0, 36:], (2, 2))
    on_fine = (fine + coarse.repeat_interleave(3, 1).repeat_interleave(3, 2)) / 2
    torch.testing.assert_close(fuse(tokens, batch)[0], on_fine, atol=1e-6, rtol=0)
    on_coarse = (coarse + fine.unflatten(1, (2, 3)).unflatten(3, (2, 3)).mean((2, 4))) / 2
    fused = fuse(tokens, batch, anchor_ids=torch.tensor([1]))
    torch.testing.assert_close(fused[0], on_coarse, atol=1e-6, rtol=0)


def weights_by_rectangles(batch, cell, tokens):
    """Areas in square metres that the square of a cell shares with the squares of tokens, by interval arithmetic."""
    centres = batch["patch_positions"][0].numpy().astype(np.float64)
    sizes = batch["ground_resolutions"][0, batch["image_ids"][0]].numpy().astype(np.float64) * PATCH_SIZE
    low, high = centres - sizes[:, None] / 2, centres + sizes[:, None] / 2
    sides = np.minimum(high[cell], high[tokens]) - np.maximum(low[cell], low[tokens])
    return np.clip(sides, 0, None).prod(-1)


@settings(deadline=None, max_examples=30)
@given(
    north=st.floats(-90, 90, width=32),
    east=st.floats(-90, 90, width=32),
    gsd=st.sampled_from([5.0, 10.0, 17.0, 30.0]),
    anchor=st.integers(0, 1),
)
def test_shifted_images_count_by_the_area_they_share(make_batch, north, east, gsd, anchor):
    images = [{"grid": (3, 4)}, {"gsd": gsd, "grid": (4, 2), "centre": (north, east), "sensor": 1}]
    batch = make_batch(images, anchors=[anchor])
    tokens = values_for(batch)
    fused = fuse(tokens, batch)[0].flatten(1).T.numpy()
    cells = (batch["image_ids"][0] == anchor).nonzero().flatten().tolist()
    assert len(fused) == len(cells)
    for value, cell in zip(fused, cells, strict=True):
        weights = weights_by_rectangles(batch, cell, np.arange(20))
        expected = weights @ tokens[0].numpy().astype(np.float64) / weights.sum()
        # An overlap of less than a thousandth of a patch counts as touching.
        np.testing.assert_allclose(value, expected, atol=0.03)


@settings(deadline=None, max_examples=25)
@given(angle=st.floats(0, 360), east=st.floats(-2000, 2000), grid=st.sampled_from([(6, 6), (3, 6), (6, 3)]))
def test_turning_the_whole_set_leaves_the_map(make_batch, angle, east, grid):
    """Grid north is not true north in most projections."""
    coarse = (grid[0] // 3, grid[1] // 3)
    batch = make_batch([{"grid": grid}, {"gsd": 30.0, "grid": coarse, "sensor": 1}, {"grid": grid, "day": 9}])
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = torch.tensor([[cosine, sine], [-sine, cosine]])
    turned = batch["patch_positions"] @ turn + torch.tensor([0.0, east])
    tokens = values_for(batch)
    torch.testing.assert_close(fuse(tokens, batch, patch_positions=turned), fuse(tokens, batch), atol=1e-4, rtol=0)


@pytest.mark.parametrize("grid", [(1, 6), (6, 1)])
def test_a_single_row_or_column_may_be_turned_too(make_batch, grid):
    batch = make_batch([{"grid": grid}, {"grid": grid, "day": 9}])
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    tokens = values_for(batch)
    fused = fuse(tokens, batch, patch_positions=batch["patch_positions"] @ turn)
    torch.testing.assert_close(fused, fuse(tokens, batch), atol=1e-5, rtol=0)


def test_tokens_without_data_do_not_vote(make_batch):
    batch = make_batch([{}, {"day": 30}])
    batch["attention_mask"][0, [5, 16 + 5, 16 + 6]] = False
    tokens = values_for(batch)
    first, second = tokens[0].unflatten(0, (2, 16))
    expected = (first + second) / 2
    expected[6] = first[6]
    expected[5] = 0  # no image has data here
    torch.testing.assert_close(fuse(tokens, batch)[0], own_map(expected, (4, 4)), atol=1e-6, rtol=0)


def test_what_covers_no_image_but_the_anchor_is_the_anchors_own(make_batch):
    batch = make_batch([{}, {"centre": (0.0, 80.0), "day": 30}])
    tokens = values_for(batch)
    left = fuse(tokens, batch)[0, :, :, :2]
    torch.testing.assert_close(left, own_map(tokens[0, :16], (4, 4))[:, :, :2], atol=1e-6, rtol=0)


def test_sets_of_different_anchors_are_fused_side_by_side(make_batch):
    sets = [[{"grid": (3, 5)}], [{"grid": (2, 2), "gsd": 20.0}, {"grid": (4, 4)}], [{}, {"gsd": 30.0, "grid": (2, 2)}]]
    anchors = [0, 1, 1]
    batch = make_batch(*sets, anchors=anchors)
    tokens = values_for(batch)
    fused = fuse(tokens, batch)
    assert fused.shape == (3, 3, 4, 5)
    for b, (images, anchor) in enumerate(zip(sets, anchors, strict=True)):
        alone = make_batch(images, anchors=[anchor])
        expected = fuse(tokens[b : b + 1, : alone["image_ids"].shape[1]], alone)[0]
        rows, columns = expected.shape[-2:]
        torch.testing.assert_close(fused[b, :, :rows, :columns], expected, atol=1e-6, rtol=0)
        assert not fused[b, :, rows:].any()
        assert not fused[b, :, :, columns:].any()


def test_all_tokens_exist_where_no_mask_says_otherwise(make_batch):
    batch = make_batch([{}, {"day": 30}])
    tokens = values_for(batch)
    assert torch.equal(fuse(tokens, batch, attention_mask=None), fuse(tokens, batch))
