"""Windows cover a scene, blocks are whole when their windows are done, and blending keeps what windows agree on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.scene.tiling import TILE, Blend, Tiling, order


@st.composite
def tilings(draw: st.DrawFn) -> Tiling:
    """Scenes of some blocks, and windows of any size that overlap."""
    window = draw(st.integers(8, 70))
    rows, columns = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    return Tiling(rows, columns, window, draw(st.integers(0, window - window // 3)))


def windows_one_by_one(size: int, window: int, overlap: int) -> list[int]:
    """Return where windows along a side start, as one would write it down."""
    starts = [0]
    while starts[-1] + window < size:
        starts.append(min(starts[-1] + window - overlap, size - window))
    return starts


@settings(deadline=None, max_examples=40)
@given(tilings())
def test_windows_of_blocks_are_those_of_the_scene(tiling: Tiling) -> None:
    expected = {
        (left, top)
        for top in windows_one_by_one(tiling.rows, tiling.window, tiling.overlap)
        for left in windows_one_by_one(tiling.columns, tiling.window, tiling.overlap)
    }
    steps = list(order(tiling, ()))
    asked = [window for _, windows in steps for window in windows]
    assert len(asked) == len(set(asked)) == tiling.count == len(expected)
    assert {window[:2] for window in asked} == expected
    assert [block for block, _ in steps] == tiling.blocks()


@settings(deadline=None, max_examples=40)
@given(tilings(), st.data())
def test_a_block_has_been_given_all_its_windows_whatever_was_done_before(tiling: Tiling, data: st.DataObject) -> None:
    blocks = tiling.blocks()
    done = set(data.draw(st.lists(st.sampled_from(blocks), unique=True)))
    seen: set = set()
    for block, windows in order(tiling, done):
        assert not seen & set(windows)
        seen |= set(windows)
        left, top, width, height = tiling.extent(block)
        touching = {
            (column, row, across, down)
            for column, row, across, down in seen
            if column < left + width and column + across > left and row < top + height and row + down > top
        }
        assert touching == set(tiling.windows(block))
        covered = np.zeros((height, width), bool)
        for column, row, across, down in touching:
            covered[max(row - top, 0) : row + down - top, max(column - left, 0) : column + across - left] = True
        assert covered.all()


@settings(deadline=None, max_examples=40)
@given(tilings(), st.sampled_from([1, 3]))
def test_what_all_windows_agree_on_is_kept(tiling: Tiling, scale: int) -> None:
    """A map that windows see parts of comes back: no seams, at no edge, whatever the windows."""
    truth = np.random.default_rng(0).normal(size=(2, tiling.rows * scale, tiling.columns * scale)).astype(np.float32)
    blend = Blend(tiling, scale)
    for block, windows in order(tiling, ()):
        for window in windows:
            column, row, width, height = (side * scale for side in window)
            part = truth[:, row : row + height, column : column + width]
            blend.add(window, part, np.ones(part.shape[1:], bool))
        column, row, width, height = (side * scale for side in tiling.extent(block))
        found = blend.finish(block, 2)
        np.testing.assert_allclose(found, truth[:, row : row + height, column : column + width], atol=1e-5)


def test_from_one_window_to_the_next_values_change_gradually() -> None:
    """Windows that say 0 and 1: in between lies a ramp as wide as they overlap, by the weights in float64."""
    tiling = Tiling(8, 14, 8, 2)
    blend = Blend(tiling)
    for number, window in enumerate(tiling.windows((0, 0))):
        blend.add(window, np.full((1, 8, 8), float(number), np.float32), np.ones((8, 8), bool))
    found = blend.finish((0, 0), 1)[0]
    falling, rising = np.array([0.75, 0.25]), np.array([0.25, 0.75])
    expected = np.concatenate([np.zeros(6), rising / (falling + rising), np.ones(6)])
    np.testing.assert_allclose(found, np.broadcast_to(expected, (8, 14)), atol=1e-6)


def test_where_no_window_says_anything_there_is_nothing() -> None:
    tiling = Tiling(8, 8, 8, 0)
    blend = Blend(tiling)
    covered = np.zeros((8, 8), bool)
    covered[2:5] = True
    blend.add((0, 0, 8, 8), np.full((3, 8, 8), np.nan, np.float32), np.zeros((8, 8), bool))
    blend.add((0, 0, 8, 8), np.where(covered, np.float32(7), np.float32(np.nan))[None].repeat(3, 0), covered)
    found = blend.finish((0, 0), 3)
    np.testing.assert_array_equal(np.isnan(found), ~covered[None].repeat(3, 0))
    np.testing.assert_array_equal(found[:, covered], 7)


def test_blocks_are_whole_tiles_of_the_output() -> None:
    for window in (1, 16, 65, 200):
        assert Tiling(1000, 1000, window, 0).block % TILE == 0


def test_windows_that_do_not_advance_are_refused() -> None:
    with pytest.raises(ValueError, match="An overlap of 8 does not fit windows of 8; make it smaller"):
        Tiling(10, 10, 8, 8)
