"""The anchor-aware masking rule, as facts about which ground is hidden in which image."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.modeling.masking_a2mae import (
    UNKNOWN_TIME,
    anchor_aware_mask,
    correlation_with_anchor,
    most_hidden_tokens,
    most_visible_tokens,
    nearest_reference_patch,
)

KEYS = (
    "image_ids attention_mask patch_positions grid_shapes ground_resolutions acquisition_times source_ids anchor_ids"
).split()
A, B, C = 0, 1, 2  # sensors
DAY = 24 * 60  # minutes


def draw(batch, noise, mask_ratio=0.75, **rule):
    return anchor_aware_mask(noise, **{key: batch[key] for key in KEYS}, mask_ratio=mask_ratio, **rule)


def repeat(batch, times):
    """The same sets many times over, for facts about frequencies."""
    return {key: value.repeat(times, *[1] * (value.dim() - 1)) for key, value in batch.items()}


def visible_maps(visible, batch):
    """The visible patches of every image as maps (sets, rows, columns), for a batch whose sets are alike."""
    shapes = batch["grid_shapes"][0].tolist()
    images = visible.split([rows * columns for rows, columns in shapes], dim=1)
    return [image.unflatten(1, shape) for image, shape in zip(images, shapes, strict=True)]


def share_visible_in_both(one, other):
    return (one & other).float().mean().item()


@pytest.fixture(scope="module")
def ragged(make_batch):
    """Three sets of one, two and three images of several sensors, dates and resolutions."""
    return make_batch(
        [{"grid": (3, 5)}],
        [{"gsd": 30.0, "grid": (2, 2), "day": None}, {"sensor": B, "grid": (6, 6), "day": 3}],
        [{"grid": (4, 4)}, {"sensor": B, "day": 40, "grid": (4, 4)}, {"day": 4, "gsd": 20.0, "grid": (2, 2)}],
        anchors=[0, 0, 1],
    )


@pytest.mark.parametrize("anchor", [0, 1])
@pytest.mark.parametrize(("coarse", "nest"), [(10.0, 1), (20.0, 2), (30.0, 3), (60.0, 6)])
def test_another_sensor_of_the_same_day_hides_identical_ground_at_any_resolution(
    make_batch, make_noise, coarse, nest, anchor
):
    images = [{"sensor": A, "grid": (4 * nest, 4 * nest)}, {"sensor": B, "day": 0.9, "gsd": coarse, "grid": (4, 4)}]
    batch = repeat(make_batch(images, anchors=[anchor]), 50)
    fine, coarse_map = visible_maps(draw(batch, make_noise(batch)), batch)
    assert torch.equal(fine, coarse_map.repeat_interleave(nest, 1).repeat_interleave(nest, 2))
    assert len(coarse_map.flatten(1).unique(dim=0)) > 10


def test_images_that_follow_the_anchor_hide_identical_ground_also_where_a_coarser_one_follows_in_part(
    make_batch, make_noise
):
    images = [{"grid": (6, 6)}, {"sensor": B, "grid": (6, 6)}, {"sensor": C, "day": 45, "gsd": 30.0, "grid": (2, 2)}]
    batch = repeat(make_batch(images), 50)
    first, second, _ = visible_maps(draw(batch, make_noise(batch)), batch)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("other", "rule"),
    [
        ({"sensor": A, "day": 182}, {}),
        ({"sensor": A, "day": -182, "gsd": 20.0}, {}),
        ({"sensor": B, "day": 182}, {}),
        ({"sensor": B, "day": 0}, {"strategy": "independent"}),
    ],
    ids=["same sensor half a year on", "coarser half a year before", "another sensor half a year on", "independent"],
)  # fmt: skip
def test_other_content_hides_independently(make_batch, make_noise, other, rule):
    num_sets, tokens, kept = 3000, 16, 4
    batch = repeat(make_batch([{"grid": (4, 4)}, {"grid": (4, 4), **other}]), num_sets)
    one, two = visible_maps(draw(batch, make_noise(batch), **rule), batch)
    both = (one & two).sum().item()
    # Two independent draws of 4 out of 16 share a hypergeometric number of patches.
    share = kept / tokens
    variance = kept * share * (1 - share) * (tokens - kept) / (tokens - 1)
    assert abs(both - num_sets * kept * share) < 5 * math.sqrt(num_sets * variance)


@pytest.mark.parametrize("unknown", ["patch_positions", "grid_shapes"])
@pytest.mark.parametrize("strategy", ["anchor", "tube"])
def test_images_without_known_positions_hide_independently(make_batch, make_noise, unknown, strategy):
    batch = repeat(make_batch([{}, {"sensor": B}]), 3000)
    one, two = visible_maps(draw({**batch, unknown: None}, make_noise(batch), strategy=strategy), batch)
    assert share_visible_in_both(one, two) == pytest.approx(1 / 16, abs=0.005)


def test_agreement_of_the_masks_is_that_of_a_gaussian_copula(make_batch, make_noise):
    """Sheppard (1899): two normal numbers of correlation ρ lie below their medians together with 1/4 + asin(ρ)/2π."""
    shares = []
    for day, rho in ((0, 1.0), (1 + 89 / 3, 0.75), (1 + 89 / 2, 0.5), (1 + 2 * 89 / 3, 0.25), (90, 0.0)):
        batch = repeat(make_batch([{"grid": (14, 14)}, {"grid": (14, 14), "sensor": B, "day": day}]), 100)
        one, two = visible_maps(draw(batch, make_noise(batch), mask_ratio=0.5), batch)
        shares.append(share_visible_in_both(one, two))
        # A hundred sets of 196 patches: a standard error of 0.004 at most.
        assert shares[-1] == pytest.approx(0.25 + math.asin(rho) / (2 * math.pi), abs=0.015)
    assert shares == sorted(shares, reverse=True)


def correlation(days, same_sensor):
    times = torch.tensor([[0, *(round(day * DAY) for day in days)]])
    sources = torch.tensor([[A] + [A if same_sensor else B] * len(days)])
    return correlation_with_anchor(times, sources, torch.tensor([0]), 10.0, 90.0)[0, 1:]


@pytest.mark.parametrize(("same_sensor", "vanishes"), [(True, 10.0), (False, 90.0)])
@settings(deadline=None, max_examples=50)
@given(days=st.lists(st.floats(-400, 400), min_size=2, max_size=8))
def test_correlation_falls_with_the_time_gap_along_a_raised_cosine(same_sensor, vanishes, days):
    rho = correlation(days, same_sensor)
    by_gap = rho[torch.tensor(days).abs().argsort()]
    assert (by_gap.diff() <= 0.002).all()  # Days are rounded to minutes.
    for day, value in zip(days, rho.tolist(), strict=True):
        fall = min(max((abs(round(day * DAY)) / DAY - 1) / (vanishes - 1), 0), 1)
        assert value == pytest.approx((1 + math.cos(math.pi * fall)) / 2, abs=1e-5)


@pytest.mark.parametrize("same_sensor", [True, False])
def test_correlation_is_exactly_one_within_a_day_and_exactly_zero_far_away(same_sensor):
    vanishes = 10 if same_sensor else 90
    assert correlation([0, 0.5, -1, 1], same_sensor).tolist() == [1, 1, 1, 1]
    assert correlation([vanishes, -vanishes, 10_000], same_sensor).tolist() == [0, 0, 0]
    assert 0 < correlation([vanishes - 0.5], same_sensor).item() < 0.05


@pytest.mark.parametrize("unknown", [0, 1])
def test_with_an_unknown_date_only_the_sensor_speaks(unknown):
    times = torch.zeros(1, 3, dtype=torch.int64)
    times[0, unknown] = UNKNOWN_TIME
    rho = correlation_with_anchor(times, torch.tensor([[A, A, B]]), torch.tensor([0]), 10.0, 90.0)
    by_time_where_known = 1 if unknown == 1 else 0
    assert rho.tolist() == [[1, by_time_where_known if unknown == 2 else 0, 1]]


def test_the_anchor_follows_itself_though_its_date_is_unknown():
    times = torch.full((1, 3), UNKNOWN_TIME)
    assert correlation_with_anchor(times, torch.tensor([[A, B, A]]), torch.tensor([2]), 10.0, 90.0)[0, 2] == 1


def test_tube_hides_identical_ground_in_every_image(make_batch, make_noise):
    batch = repeat(
        make_batch([{"grid": (6, 6)}, {"day": 182, "grid": (6, 6)}, {"day": None, "gsd": 30.0, "grid": (2, 2)}]), 20
    )
    one, two, coarse = visible_maps(draw(batch, make_noise(batch), strategy="tube"), batch)
    assert torch.equal(one, two)
    assert torch.equal(one, coarse.repeat_interleave(3, 1).repeat_interleave(3, 2))


sizes = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=3), min_size=1, max_size=3
)
percents = st.integers(0, 99)


def batch_of_sizes(make_batch, sizes, seed):
    """Sets of images of the given grids, with sensors, dates and resolutions at random."""
    random = torch.Generator().manual_seed(seed)

    def any_of(*values):
        return values[torch.randint(len(values), (), generator=random)]

    sets = [
        [
            {"grid": grid, "sensor": any_of(A, B), "day": any_of(0, 3, 30, None), "gsd": any_of(10.0, 15.0, 30.0)}
            for grid in grids
        ]
        for grids in sizes
    ]
    return make_batch(*sets, anchors=[any_of(*range(len(grids))) for grids in sizes])


@pytest.mark.parametrize("strategy", ["anchor", "independent", "tube"])
@settings(deadline=None, max_examples=30)
@given(sizes=sizes, percent=percents, seed=st.integers(0, 1000))
def test_every_image_keeps_exactly_its_share(make_batch, make_noise, strategy, sizes, percent, seed):
    batch = batch_of_sizes(make_batch, sizes, seed)
    visible = draw(batch, make_noise(batch, seed), mask_ratio=percent / 100, strategy=strategy)
    for b, grids in enumerate(sizes):
        for t, (rows, columns) in enumerate(grids):
            of_image = (batch["image_ids"][b] == t) & batch["attention_mask"][b]
            assert visible[b, of_image].sum() == rows * columns * (100 - percent) // 100


@settings(deadline=None, max_examples=30)
@given(sizes=sizes, percent=percents, seed=st.integers(0, 1000))
def test_random_keeps_the_share_of_the_set(make_batch, make_noise, sizes, percent, seed):
    batch = batch_of_sizes(make_batch, sizes, seed)
    visible = draw(batch, make_noise(batch, seed), mask_ratio=percent / 100, strategy="random")
    counts = [sum(rows * columns for rows, columns in grids) for grids in sizes]
    assert visible.sum(1).tolist() == [count * (100 - percent) // 100 for count in counts]


@pytest.mark.parametrize(("tokens", "percent"), [(4300, 22), (4300, 47), (4675, 16), (65_536, 75), (99_999, 90)])
def test_the_share_is_exact_for_scenes_of_thousands_of_patches_too(tokens, percent):
    ids, none = torch.zeros(1, tokens, dtype=torch.int64), torch.zeros(1, 1)
    batch = {
        "image_ids": ids,
        "attention_mask": torch.ones(1, tokens, dtype=torch.bool),
        "patch_positions": None,
        "grid_shapes": None,
        "ground_resolutions": none,
        "acquisition_times": none.long(),
        "source_ids": none.long(),
        "anchor_ids": torch.zeros(1, dtype=torch.int64),
    }
    visible = draw(batch, torch.randn(1, 2, tokens), mask_ratio=percent / 100, strategy="independent")
    assert visible.sum() == tokens * (100 - percent) // 100


@pytest.mark.parametrize("strategy", ["anchor", "independent", "tube", "random"])
@settings(deadline=None, max_examples=20)
@given(sizes=sizes, percent=percents, seed=st.integers(0, 1000))
def test_the_bounds_hold_for_every_mask(make_batch, make_noise, strategy, sizes, percent, seed):
    batch = batch_of_sizes(make_batch, sizes, seed)
    visible = draw(batch, make_noise(batch, seed), mask_ratio=percent / 100, strategy=strategy)
    hidden = batch["attention_mask"] & ~visible
    num_tokens, num_images = visible.shape[1], batch["source_ids"].shape[1]
    assert visible.sum(1).max() <= most_visible_tokens(num_tokens, percent / 100)
    assert hidden.sum(1).max() <= most_hidden_tokens(num_tokens, num_images, percent / 100)
    # Bounds that say nothing would pass as well.
    assert most_visible_tokens(num_tokens, percent / 100) <= max(1, math.ceil(num_tokens * (100 - percent) / 100))
    assert most_hidden_tokens(num_tokens, num_images, percent / 100) <= num_tokens * percent / 100 + num_images


@pytest.mark.parametrize("strategy", ["anchor", "independent", "tube", "random"])
def test_padding_is_never_visible_and_the_mask_does_not_depend_on_it(ragged, pad_batch, make_noise, strategy):
    noise = make_noise(ragged)
    visible = draw(ragged, noise, strategy=strategy)
    assert not (visible & ~ragged["attention_mask"]).any()
    padded = pad_batch({**ragged, "noise": noise}, tokens=7, images=2)
    more = draw(padded, padded["noise"], strategy=strategy)
    assert torch.equal(more, torch.nn.functional.pad(visible, (0, 7)))
    for b, (tokens, images) in enumerate([(15, 1), (40, 2), (36, 3)]):
        alone = {key: ragged[key][b : b + 1] for key in KEYS}
        for key in ("image_ids", "attention_mask", "patch_positions"):
            alone[key] = alone[key][:, :tokens]
        for key in ("grid_shapes", "ground_resolutions", "acquisition_times", "source_ids"):
            alone[key] = alone[key][:, :images]
        assert torch.equal(draw(alone, noise[b : b + 1, :, :tokens], strategy=strategy)[0], visible[b, :tokens])


@pytest.mark.parametrize("strategy", ["anchor", "independent", "tube", "random"])
def test_same_noise_same_mask_and_sets_do_not_see_each_other(ragged, make_noise, strategy):
    noise = make_noise(ragged)
    visible = draw(ragged, noise, strategy=strategy)
    assert torch.equal(draw(ragged, noise.clone(), strategy=strategy), visible)
    assert not torch.equal(draw(ragged, make_noise(ragged, seed=1), strategy=strategy), visible)
    order = torch.tensor([2, 0, 1])
    permuted = {key: value[order] for key, value in ragged.items()}
    assert torch.equal(draw(permuted, noise[order], strategy=strategy), visible[order])


@pytest.mark.parametrize("strategy", ["anchor", "independent", "tube", "random"])
@pytest.mark.parametrize("percent", [75, 60])
def test_every_patch_of_an_image_is_hidden_equally_often(make_batch, make_noise, strategy, percent):
    """Also where the share ends within a patch of the coarser image."""
    images = [{}, {"sensor": B, "gsd": 20.0, "grid": (2, 2)}, {"sensor": B, "day": 30}, {"day": 90}]
    num_sets, counts = 4000, torch.tensor([16, 4, 16, 16])
    batch = repeat(make_batch(images), num_sets)
    frequency = draw(batch, make_noise(batch), mask_ratio=percent / 100, strategy=strategy).double().mean(0)
    groups = torch.tensor([52] * 4) if strategy == "random" else counts
    expected = (groups * (100 - percent) // 100 / groups).repeat_interleave(counts)
    assert ((frequency - expected).abs() < 5 * (expected * (1 - expected) / num_sets).sqrt()).all()


@settings(deadline=None, max_examples=25)
@given(
    angle=st.floats(0, 360),
    flip=st.booleans(),
    north=st.floats(-5000, 5000),
    east=st.floats(-5000, 5000),
    seed=st.integers(0, 100),
)
def test_turning_flipping_or_moving_the_whole_set_leaves_the_mask(
    make_batch, make_noise, angle, flip, north, east, seed
):
    batch = make_batch(
        [{"grid": (6, 6)}, {"sensor": B, "gsd": 30.0, "grid": (2, 2)}, {"sensor": B, "day": 30, "grid": (6, 6)}]
    )
    noise = make_noise(batch, seed)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turn = torch.tensor([[cosine, -sine], [sine, cosine]]) @ torch.diag(torch.tensor([-1.0 if flip else 1.0, 1.0]))
    moved = {**batch, "patch_positions": batch["patch_positions"] @ turn.T + torch.tensor([north, east])}
    assert torch.equal(draw(moved, noise), draw(batch, noise))


@settings(deadline=None, max_examples=25)
@given(
    angle=st.floats(0, 360),
    gsd=st.floats(5, 60),
    stretch=st.floats(0.4, 2.5),
    centre=st.tuples(st.floats(-200, 200), st.floats(-200, 200)),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_every_patch_reads_the_noise_of_the_nearest_patch(make_batch, angle, gsd, stretch, centre, grid):
    """Another zone, another grid: turned, shifted and, for rasters in degrees, with oblong pixels."""
    batch = make_batch([{"grid": (4, 5)}, {"gsd": gsd, "grid": grid, "centre": centre}])
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    lies = batch["patch_positions"][0].double()
    # A single row or column does not tell how wide it is.
    oblong = torch.tensor([stretch if min(grid) > 1 else 1.0, 1.0]).double()
    lies[20:] = (lies[20:] * oblong) @ torch.tensor([[cosine, -sine], [sine, cosine]]).double()
    nearest = nearest_reference_patch(lies[None].float(), batch["grid_shapes"], torch.tensor([1]))[0]
    distances = torch.cdist(lies, lies[20:])
    found = distances.gather(1, nearest[:, None] - 20)[:, 0]
    torch.testing.assert_close(found, distances.amin(1), atol=0.05, rtol=0)  # metres, for patches halfway


def test_an_image_without_a_single_token_does_not_free_the_others_from_the_anchor(make_batch, make_noise):
    """A coarse image of nothing but nodata has no patches on which noise could be drawn."""
    batch = repeat(make_batch([{}, {"sensor": B}, {"sensor": C, "gsd": 20.0, "grid": (2, 2)}]), 50)
    batch["attention_mask"][batch["image_ids"] == 2] = False
    one, two, empty = visible_maps(draw(batch, make_noise(batch)), batch)
    assert not empty.any()
    assert torch.equal(one, two)


def test_ground_hidden_in_one_sensor_is_hidden_in_the_other_where_the_anchor_has_no_data(make_batch, make_noise):
    """Nodata in the anchor: the other image still hides its share, and the same ground where both have data."""
    batch = repeat(make_batch([{"grid": (8, 8)}, {"sensor": B, "grid": (8, 8)}]), 50)
    batch["attention_mask"][:, :16] = False
    visible = draw(batch, make_noise(batch))
    assert visible.sum(1).eq(48 // 4 + 64 // 4).all()
    one, two = visible_maps(visible, batch)
    agreement = (one[:, 2:] == two[:, 2:]).float().mean()
    assert agreement > 0.85  # 0.625 by chance; the shares of both images differ, so some patches must.
