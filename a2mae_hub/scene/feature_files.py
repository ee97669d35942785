"""Features that `embed_scene` wrote, read block by block."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.windows
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from a2mae_hub.grids import Grid, Window
from a2mae_hub.scene_files import grid_of, no_georeference_warning, one_line

from .reading import open_options

# Side of the blocks in which a file without tiles is read, in patches.
_BLOCK = 128


@dataclass(frozen=True)
class FeatureFile:
    """Features of a scene on the disk.

    Attributes:
        path: The file.
        grid: Its patches.
        channels: Features a patch.
        block: Side of the blocks to read, in patches.
        tags: What the file says of itself: `checkpoint`, `sensors`, `acquired`.
        read: Gives every `step`-th patch of a window: (channels, ⌈height / step⌉, ⌈width / step⌉) float32, NaN where
            there is no data. Of a GeoTIFF with overviews these are means over about `step` patches a side.
    """

    path: Path
    grid: Grid
    channels: int
    block: int
    tags: dict[str, str]
    read: Callable[[Window, int], np.ndarray]

    def blocks(self, step: int = 1) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield every `step`-th patch: column and row of the first of a block, counted in steps, and its values."""
        side = self.block * step
        height, width = self.grid.height, self.grid.width
        for row, column in itertools.product(range(0, height, side), range(0, width, side)):
            window = (column, row, min(side, width - column), min(side, height - row))
            yield column // step, row // step, self.read(window, step)


def is_feature_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path holds what a checkpoint said of a scene, by its metadata, and not an image."""
    if _is_zarr(Path(path)) or Path(path).suffix.lower() == ".parquet":
        return True
    if os.path.isdir(path):
        return False
    try:
        with no_georeference_warning(), rasterio.open(path) as dataset:
            return "checkpoint" in dataset.tags() or dataset.descriptions[:1] == ("feature 0",)
    except RasterioError:
        return False


@contextmanager
def open_features(path: str | os.PathLike[str]) -> Iterator[FeatureFile]:
    """Open the features of a scene.

    Args:
        path: GeoTIFF or Zarr, as `embed_scene` wrote it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no features, or is damaged.
    """
    source = Path(path)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file; check the path.")
    if source.suffix.lower() == ".parquet":
        raise ValueError(f"{source}: features are read from .tif or .zarr; write them in one of these formats.")
    if _is_zarr(source):
        yield _open_zarr(source)
        return
    with open_options():
        try:
            with no_georeference_warning():
                dataset = rasterio.open(source)
        except RasterioError as error:
            raise ValueError(f"{source}: GDAL cannot open it ({one_line(error)}); name a feature file.") from error
        with dataset:
            yield _of_geotiff(source, dataset)


def _is_zarr(path: Path) -> bool:
    """Return whether a path is a Zarr group."""
    return any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def _of_geotiff(path: Path, dataset: rasterio.DatasetReader) -> FeatureFile:
    """Return the features of an open GeoTIFF."""
    held = dataset.descriptions[0] or "an image"
    if not held.startswith("feature"):
        raise ValueError(f"{path}: holds no features but {held}; name a file that a2mae embed wrote.")
    scales = np.array(dataset.scales, np.float32)[:, None, None]
    nodata = dataset.nodata

    def read(window: Window, step: int) -> np.ndarray:
        column, row, width, height = window
        try:
            stored = dataset.read(
                window=rasterio.windows.Window(column, row, width, height),
                out_shape=(dataset.count, -(-height // step), -(-width // step)),
            )
        except RasterioError as error:
            reason = one_line(error.__cause__ or error)
            raise ValueError(f"{path}: cannot be read ({reason}); the file is damaged or cut short.") from error
        return stored if stored.dtype.kind == "f" else _from_int8(stored, nodata, scales)

    # All bands of a tile are stored together.
    block = dataset.block_shapes[0][0] if dataset.profile.get("tiled") else _BLOCK
    return FeatureFile(path, grid_of(dataset), dataset.count, block, dataset.tags(), read)


def _open_zarr(path: Path) -> FeatureFile:
    """Return the features of a Zarr group."""
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"{path}: reading it needs zarr; install it with: pip install zarr.") from error
    group = zarr.open_group(path, mode="r")
    if "features" not in group:
        raise ValueError(f"{path}: holds no features but {', '.join(sorted(group.array_keys()))}; name another file.")
    array: Any = group["features"]
    attributes: dict[str, Any] = dict(group["spatial_ref"].attrs) if "spatial_ref" in group else {}
    channels, height, width = array.shape
    grid = Grid(height, width, (1 / width, 0.0, 0.0, 0.0, 1 / height, 0.0), None)
    if "crs_wkt" in attributes and "GeoTransform" in attributes:
        c, a, b, f, d, e = (float(number) for number in attributes["GeoTransform"].split())
        grid = Grid(height, width, (a, b, c, d, e, f), CRS.from_wkt(attributes["crs_wkt"]))
    factors: Any = group["scale"] if "scale" in group else None
    scales = None if factors is None else np.asarray(factors)[:, None, None]

    def read(window: Window, step: int) -> np.ndarray:
        column, row, width, height = window
        stored = np.asarray(array[:, row : row + height : step, column : column + width : step])
        return stored.astype(np.float32) if scales is None else _from_int8(stored, array.fill_value, scales)

    tags = {key: value for key, value in group.attrs.items() if isinstance(value, str)}
    return FeatureFile(path, grid, channels, array.chunks[-1], tags, read)


def _from_int8(stored: np.ndarray, nodata: float, scales: np.ndarray) -> np.ndarray:
    """Return features that were kept as int8 with a factor per channel."""
    return np.where(stored == nodata, np.float32(np.nan), stored * scales)
