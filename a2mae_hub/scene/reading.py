"""Image sets of the windows of a scene, read ahead of the model.

The windows of a block are cut from one read per image, for files are stored in tiles, which many windows share. Where
such a read fails, its windows are read one by one, and only those that fail again are lost.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import rasterio

from a2mae_hub.grids import Window, window_of_box
from a2mae_hub.images import Image, ImageSet, cut_image
from a2mae_hub.scene_files import OpenRasters, Scene, read_scene

# Images that are read at one time; beyond, disks are no faster.
_MOST_READS = 4
# Of pixels that are read at one time; a block of a year of dates at 10 m stays below it.
_MOST_BYTES = 2**29
_END: Any = object()
Item = TypeVar("Item")


class WindowReader:
    """Reads what the images of a place show in windows of the anchor's pixels.

    Args:
        scenes: Images of one place.
        anchor: Which one is the anchor.
        area: Pixels of the anchor that windows lie in.
        cell: Pixels a side of a cell.
        pad: Fill windows that reach beyond the area with no data, so that all are equally large.
        fewest: Images that need data in a window; with fewer it is left out.

    Attributes:
        failures: One sentence for every window that could not be read.
    """

    def __init__(
        self, scenes: Sequence[Scene], anchor: int, area: Window, cell: int, *, pad: bool = False, fewest: int = 1
    ) -> None:
        self.failures: list[str] = []
        self._scenes, self._anchor, self._area, self._cell = scenes, anchor, area, cell
        self._pad, self._fewest = pad, fewest
        self._openers = [OpenRasters() for _ in scenes]
        self._threads = ThreadPoolExecutor(min(len(scenes), _MOST_READS), "read")

    def __enter__(self) -> WindowReader:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every file."""
        self._threads.shutdown(cancel_futures=True)
        for opener in self._openers:
            opener.__exit__(kind, error, trace)

    def read(self, windows: Sequence[Window]) -> Iterator[tuple[Window, ImageSet]]:
        """Yield those windows that have data, with what the images show there.

        Args:
            windows: In cells, near each other.
        """
        if not windows:
            return
        if len({window[1] for window in windows}) > 1 and self._bytes(windows) > _MOST_BYTES:
            # One row of windows after the other: a fine image beside a coarse anchor.
            for _, row in itertools.groupby(windows, key=lambda window: window[1]):
                yield from self.read(list(row))
            return
        pixels = [self.pixels(window) for window in windows]
        anchor = self._scenes[self._anchor].grid
        footprints = [anchor.crop(window).footprint for window in pixels]
        wanted = [
            pixels
            if number == self._anchor or scene.grid == anchor
            else [window_of_box(scene.grid, box, anchor.crs) for box in footprints]
            for number, scene in enumerate(self._scenes)
        ]
        columns = self._threads.map(self._read_image, range(len(self._scenes)), wanted)
        for window, images in zip(windows, zip(*columns, strict=True), strict=True):
            failed = [image for image in images if isinstance(image, str)]
            if failed:
                self.failures.append(failed[0])
                continue
            image_set = self._set(window, images)
            if image_set is not None:
                yield window, image_set

    def _bytes(self, windows: Sequence[Window]) -> float:
        """Return about how many bytes a read of all images around windows takes."""
        around = _around([self.pixels(window) for window in windows])
        if around is None:
            return 0.0
        anchor = self._scenes[self._anchor].grid
        box = anchor.crop(around).footprint
        seen = [window_of_box(scene.grid, box, anchor.crs) for scene in self._scenes]
        return sum(
            2.0 * window[2] * window[3] * len(scene.layers)
            for scene, window in zip(self._scenes, seen, strict=True)
            if window is not None
        )

    def pixels(self, window: Window) -> Window:
        """Return the pixels of the anchor in a window of cells, those within the area."""
        column, row, width, height = (side * self._cell for side in window)
        left, top, across, down = self._area
        return left + column, top + row, min(width, across - column), min(height, down - row)

    def _set(self, window: Window, images: Sequence[Any]) -> ImageSet | None:
        """Return the images that have data, and the anchor; None where too few have."""
        shown = [image is not None and bool(image.valid_values().any()) for image in images]
        if sum(shown) < self._fewest:
            return None
        anchor: Image = images[self._anchor]
        if self._pad:
            anchor = _padded(anchor, window[3] * self._cell, window[2] * self._cell)
        kept = [number for number, has_data in enumerate(shown) if has_data or number == self._anchor]
        chosen = [anchor if number == self._anchor else images[number] for number in kept]
        return ImageSet(chosen, anchor=kept.index(self._anchor))

    def _read_image(self, number: int, windows: Sequence[Window | None]) -> list[Image | str | None]:
        """Return what an image shows in windows of its own pixels, None where it has none, or why it cannot be read."""
        scene, opener = self._scenes[number], self._openers[number]
        around = _around([window for window in windows if window is not None])
        if around is None:
            return [None] * len(windows)
        # In an environment of rasterio, what GDAL warns of goes to the log; threads have none of their own.
        with rasterio.Env():
            try:
                whole = read_scene(scene, around, opener)
            except ValueError:
                return [None if window is None else _read_or_say(scene, window, opener) for window in windows]
        return [None if window is None else _cut(whole, around, window) for window in windows]


def ahead(items: Iterator[Item], count: int) -> Iterator[Item]:
    """Yield items that a thread makes ahead of their use.

    Args:
        items: What makes them; used by one thread at a time.
        count: How many it is ahead at most.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting: deque[Future[Any]] = deque(thread.submit(next, items, _END) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(thread.submit(next, items, _END))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)


def _read_or_say(scene: Scene, window: Window, opener: OpenRasters) -> Image | str:
    """Return what an image shows in a window, or why it cannot be read."""
    try:
        return read_scene(scene, window, opener)
    except ValueError as error:
        return str(error)


def _around(windows: Sequence[Window]) -> Window | None:
    """Return the window around windows."""
    if not windows:
        return None
    left, top = (min(window[axis] for window in windows) for axis in (0, 1))
    right, bottom = (max(window[axis] + window[axis + 2] for window in windows) for axis in (0, 1))
    return left, top, right - left, bottom - top


def _cut(image: Image, around: Window, window: Window) -> Image:
    """Return the part of an image of the pixels `around` that lies in a window."""
    column, row = window[0] - around[0], window[1] - around[1]
    return cut_image(image, slice(row, row + window[3]), slice(column, column + window[2]))


def _padded(image: Image, height: int, width: int) -> Image:
    """Return an image with pixels that are no data after its last rows and columns."""
    rows, columns = image.pixels.shape[1:]
    if (rows, columns) == (height, width):
        return image
    ends = ((0, 0), (0, height - rows), (0, width - columns))
    return replace(image, pixels=np.pad(image.pixels, ends), valid=np.pad(image.valid_values(), ends))


def open_options() -> rasterio.Env:
    """Return settings of GDAL under which memory does not grow with the scene.

    Blocks that touch share tiles of the files; the cache holds three rows of those of a scene of 5 000 pixels a side
    and ten bands, so that each is decoded once.
    """
    return rasterio.Env(GDAL_CACHEMAX=192 * 2**20)
