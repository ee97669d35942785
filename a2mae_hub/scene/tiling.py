"""Windows over a scene, and one map of what they say.

A scene is laid out in cells, the patches of its anchor. Windows of some cells a side overlap their neighbours; the last
of a row or column is moved back to end with the scene, so that all have as much to look at. The output is made in
blocks, each whole as soon as the windows that touch it are done, so that only the edges of blocks wait in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from a2mae_hub.grids import Window

Block = tuple[int, int]
"""Row and column of a block among the blocks."""

# Sides of blocks are multiples of this many cells, so that one is a whole number of tiles of the output.
TILE = 128


@dataclass(frozen=True)
class Tiling:
    """Windows and blocks over a scene; all in cells.

    Attributes:
        rows: Of the scene.
        columns: Of the scene.
        window: Side of a window; a scene that is smaller has one window along that side.
        overlap: What neighbouring windows share, at least.
    """

    rows: int
    columns: int
    window: int
    overlap: int

    def __post_init__(self) -> None:
        """Check that windows advance."""
        if not 0 <= self.overlap < self.window:
            raise ValueError(f"An overlap of {self.overlap} does not fit windows of {self.window}; make it smaller.")

    @property
    def block(self) -> int:
        """Side of a block."""
        return -(-2 * self.window // TILE) * TILE

    def blocks(self) -> list[Block]:
        """Return the blocks, row by row."""
        rows, columns = (-(-size // self.block) for size in (self.rows, self.columns))
        return [(row, column) for row in range(rows) for column in range(columns)]

    def extent(self, block: Block) -> Window:
        """Return the cells of a block; those at the end of the scene may be smaller."""
        row, column = (index * self.block for index in block)
        return column, row, min(self.block, self.columns - column), min(self.block, self.rows - row)

    def windows(self, block: Block) -> list[Window]:
        """Return the windows that touch a block, row by row."""
        column, row, width, height = self.extent(block)
        rows = self._starts(self.rows, row, row + height)
        columns = self._starts(self.columns, column, column + width)
        sides = min(self.window, self.columns), min(self.window, self.rows)
        return [(left, top, *sides) for top in rows for left in columns]

    def touched(self, window: Window) -> list[Block]:
        """Return the blocks that a window touches, row by row."""
        column, row, width, height = window
        rows, columns = (
            range(start // self.block, (start + size - 1) // self.block + 1)
            for start, size in ((row, height), (column, width))
        )
        return [(down, across) for down in rows for across in columns]

    @property
    def count(self) -> int:
        """Windows over the whole scene."""
        rows, columns = (len(self._starts(size, 0, size)) for size in (self.rows, self.columns))
        return rows * columns

    def _starts(self, size: int, first: int, stop: int) -> list[int]:
        """Return where the windows along one side start that touch the cells from `first` to `stop`."""
        step, last = self.window - self.overlap, max(0, size - self.window)
        # Only near `first` and `stop` is there anything to compare: a scene has many windows, a block few.
        lowest = max(0, (first - self.window) // step)
        near = {min(number * step, last) for number in range(lowest, stop // step + 2)}
        return sorted(start for start in near if start < stop and start + self.window > first)


class Blend:
    """One map of what overlapping windows say: their mean, in which a window counts less toward its edges.

    Args:
        tiling: The windows.
        scale: Values a side of a cell: 1 where windows answer by cell, pixels a cell where they answer by pixel.
        done: Blocks that nobody asks for any more.
    """

    def __init__(self, tiling: Tiling, scale: int = 1, done: Collection[Block] = ()) -> None:
        self._tiling = tiling
        self._scale = scale
        self._done = frozenset(done)
        self._waiting: dict[Block, list[tuple[int, int, np.ndarray, np.ndarray]]] = {}

    def add(self, window: Window, values: np.ndarray, covered: np.ndarray) -> None:
        """Take what a window says.

        Args:
            window: Cells of the window.
            values: (channels, height, width) float32.
            covered: (height, width) bool, False where the window says nothing.
        """
        column, row, width, height = (side * self._scale for side in window)
        rows, columns = covered.shape  # fewer than the window's where the scene ends within a cell
        weights = np.outer(self._ramp(height), self._ramp(width))[:rows, :columns] * covered
        weighted = np.where(covered, values, np.float32(0)) * weights
        for block in self._tiling.touched(window):
            if block in self._done:
                continue
            left, top, across, down = (side * self._scale for side in self._tiling.extent(block))
            first_row, first_column = max(top - row, 0), max(left - column, 0)
            here = np.s_[first_row : top + down - row, first_column : left + across - column]
            part = weighted[(slice(None), *here)]
            # A copy, lest the edge that a later block waits for keeps the whole window.
            place = row + first_row - top, column + first_column - left
            self._waiting.setdefault(block, []).append((*place, part.copy(), weights[here].copy()))

    def finish(self, block: Block, channels: int) -> np.ndarray:
        """Return a block, all of whose windows were added: (channels, height, width) float32, NaN where none says."""
        width, height = (side * self._scale for side in self._tiling.extent(block)[2:])
        total = np.zeros((channels, height, width), np.float32)
        weight = np.zeros((height, width), np.float32)
        for row, column, values, weights in self._waiting.pop(block, []):
            here = np.s_[row : row + weights.shape[0], column : column + weights.shape[1]]
            total[(slice(None), *here)] += values
            weight[here] += weights
        with np.errstate(invalid="ignore"):
            return np.divide(total, weight, out=total)

    def _ramp(self, length: int) -> np.ndarray:
        """Return the weights along one side of a window: rising over the overlap, then 1, then falling."""
        position = np.arange(length, dtype=np.float32) + 0.5
        edge = np.minimum(position, position[::-1])
        overlap = self._tiling.overlap * self._scale
        return np.minimum(edge / overlap, np.float32(1)) if overlap else np.ones(length, np.float32)


def order(tiling: Tiling, done: Collection[Block]) -> Iterator[tuple[Block, list[Window]]]:
    """Yield the blocks that are not done, each with the windows that no earlier one has asked for.

    Args:
        tiling: The windows.
        done: Blocks that need no window any more.
    """
    asked: set[Window] = set()
    for block in tiling.blocks():
        if block in done:
            continue
        new = [window for window in tiling.windows(block) if window not in asked]
        # A window is asked for again only by the blocks that it touches, and the last of these comes now or later.
        asked = {window for window in asked if tiling.touched(window)[-1] > block} | set(new)
        yield block, new
