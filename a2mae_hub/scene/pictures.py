"""Pictures of scenes: features as colours, maps of classes and of similarity, and the scene itself.

All are drawn from thumbnails that are read block by block or from overviews, so memory does not grow with the scene.
Figures need matplotlib (`pip install a2mae-hub[plot]`), which is imported only when one is drawn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import rasterio
import rasterio.windows
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from a2mae_hub.grids import Grid, Window
from a2mae_hub.images import Image
from a2mae_hub.inference import check_output
from a2mae_hub.plotting import composite, display_bands, new_figure, physical_pixels, save_figure, stretch_limits
from a2mae_hub.prediction import NO_CLASS
from a2mae_hub.scene_files import Layer, Scene, grid_of, no_georeference_warning, one_line

from .feature_files import FeatureFile, open_features
from .reading import open_options
from .similarity import Place, locate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PATCHES = 2048
"""Longest side of what is drawn, in patches of features or pixels of a map."""

_SIMILARITY_SIDE = _PICTURE_SIDE = 1024
_MOST_SAMPLES = 50_000
_NODATA_GREY = 0.92
_LABEL_GREY = "0.45"
_DOTS_PER_INCH = 150
_SMALLEST_PANEL = 4.5
_LEGEND_ROWS = 24


@dataclass(frozen=True, eq=False)
class Picture:
    """A scene to look at.

    Attributes:
        colours: (height, width, 3) from 0 to 1.
        grid: Where its pixels lie.
        name: What to write above it.
    """

    colours: np.ndarray
    grid: Grid
    name: str


def draw_features(features: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Draw the first three principal components of the features of a scene as red, green and blue.

    Args:
        features: GeoTIFF or Zarr, as `embed_scene` wrote it.
        output: `.png`; at most 2048 patches a side are drawn, of larger scenes every second, third, …

    Returns:
        The output.

    Raises:
        FileNotFoundError: If the features or the folder of the output are missing.
        ImportError: If matplotlib is not installed.
        ValueError: If the file holds no features, or nowhere any.
    """
    path = Path(output)
    check_output(path, (".png",))
    with open_features(features) as opened:
        colours = feature_colours(opened)
        grid, name = opened.grid, opened.tags.get("checkpoint", "")
    figure, (axes,) = _new_panels(grid, 1, MOST_PATCHES, beside=(0, 0))
    _show(axes, colours, _resized(grid, *colours.shape[:2]))
    axes.set_title(f"{name} principal components 1 to 3".strip(), fontsize=8)
    return save_figure(figure, path)


def feature_colours(features: FeatureFile, longest: int = MOST_PATCHES) -> np.ndarray:
    """Return the first three principal components of features as red, green and blue.

    The components are those of at most 50 000 patches, chosen at random, as many in every block as its size allows.

    Args:
        features: Open features.
        longest: Patches a side at most; of larger scenes every second, third, … is taken.

    Returns:
        (height, width, 3) float32 from 0 to 1, every component between its 2nd and 98th percentile; mid-grey where a
        component does not vary or does not exist, light grey where there are no features.

    Raises:
        ValueError: If there are nowhere any.
    """
    step = max(1, -(-max(features.grid.height, features.grid.width) // longest))
    mean, axes = _principal_axes(features, step)
    height, width = -(-features.grid.height // step), -(-features.grid.width // step)
    components = np.full((3, height, width), np.nan, np.float32)
    for column, row, values in features.blocks(step):
        beyond = values - mean.astype(np.float32)[:, None, None]
        rows, columns = values.shape[1:]
        components[: len(axes), row : row + rows, column : column + columns] = np.tensordot(
            axes.astype(np.float32), beyond, axes=1
        )
    real = np.isfinite(components[0])
    components[len(axes) :, real] = 0
    low, high = stretch_limits(components).T[:, :, None]
    varies = high - low > 1e-6 * max(float((high - low).max()), 1e-30)
    colours = np.full((height, width, 3), _NODATA_GREY, np.float32)
    stretched = np.clip((components[:, real] - low) / np.where(varies, high - low, 1), 0, 1)
    colours[real] = np.where(varies, stretched, 0.5).T
    return colours


def _principal_axes(features: FeatureFile, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (channels,) and the first three principal axes (up to 3, channels) of a sample, float64."""
    rng = np.random.default_rng(0)
    share = min(1.0, _MOST_SAMPLES * step**2 / (features.grid.height * features.grid.width))
    count, total, products = 0, np.zeros(features.channels), np.zeros((features.channels, features.channels))
    origin: np.ndarray | None = None
    for _, _, values in features.blocks(step):
        real = np.flatnonzero(~np.isnan(values[0]))
        quota = min(len(real), math.ceil(share * values[0].size))
        if quota < len(real):
            real = np.sort(rng.choice(real, quota, replace=False))
        vectors = values.reshape(len(values), -1)[:, real].T.astype(np.float64)
        if not len(vectors):
            continue
        # Features share a large common part; without it the products below lose no digits to it.
        origin = vectors.mean(axis=0) if origin is None else origin
        vectors -= origin
        count += len(vectors)
        total += vectors.sum(axis=0)
        products += vectors.T @ vectors
    if origin is None:
        raise ValueError(f"{features.path}: has no data anywhere, so that there is nothing to draw.")
    shift = total / count
    axes = np.linalg.eigh(products / count - np.outer(shift, shift))[1].T[::-1][:3]
    # The sign of a component is arbitrary: the largest weight is made positive, as in `principal_colours`.
    return origin + shift, axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))


def draw_classes(class_map: str | os.PathLike[str], output: str | os.PathLike[str]) -> Path:
    """Draw a map of classes in the colours of its table, with a legend of the classes that are there.

    Args:
        class_map: GeoTIFF with a colour table, and names of classes in tags `class_<number>`, as `predict_scene`
            writes it.
        output: `.png`; at most 2048 pixels a side are drawn.

    Returns:
        The output.

    Raises:
        FileNotFoundError: If the map or the folder of the output is missing.
        ImportError: If matplotlib is not installed.
        ValueError: If the file is no map of classes.
    """
    source, path = Path(class_map), Path(output)
    check_output(path, (".png",))
    values, grid, facts = _read_thumbnail(source, MOST_PATCHES, Resampling.nearest)
    if facts.colours is None:
        raise ValueError(
            f"{source}: has no colour table, so it is no map of classes; name one that a2mae predict wrote."
        )
    nodata = NO_CLASS if facts.nodata is None else int(facts.nodata)
    present = np.unique(values[values != nodata]).tolist()
    table = np.full((256, 3), _NODATA_GREY)
    for number in present:
        table[number] = np.array(facts.colours[number][:3]) / 255
    entries = [(facts.tags.get(f"class_{number}", str(number)), table[number]) for number in present]
    if (values == nodata).any():
        table[nodata] = _NODATA_GREY
        entries.append(("no data", table[nodata]))
    figure, (axes,) = _new_panels(grid, 1, MOST_PATCHES, beside=_legend_size(entries))
    _show(axes, table[values], grid)
    _add_legend(axes, entries)
    return save_figure(figure, path)


def draw_similarity(
    similarity: str | os.PathLike[str],
    places: Sequence[Place],
    output: str | os.PathLike[str],
    *,
    picture: Picture | None = None,
) -> Path:
    """Draw a map of similarity, the places marked by crosses, beside the scene if there is a picture of it.

    Args:
        similarity: GeoTIFF, as `similar_scene` writes it.
        places: Longitude and latitude in degrees.
        output: `.png`.
        picture: The scene.

    Returns:
        The output.

    Raises:
        FileNotFoundError: If the map or the folder of the output is missing.
        ImportError: If matplotlib is not installed.
        ValueError: If a place lies outside the map.
    """
    path = Path(output)
    check_output(path, (".png",))
    values, grid, _ = _read_thumbnail(Path(similarity), _SIMILARITY_SIDE, Resampling.average)
    marks = [_centre(grid, locate(grid, place)) for place in places]
    figure, panels = _new_panels(grid, 1 if picture is None else 2, _SIMILARITY_SIDE, beside=(0.9, 0))
    if picture is not None:
        _show(panels[0], picture.colours, picture.grid)
        panels[0].set_title(picture.name, fontsize=8)
    # White is as the scene is on the whole, red more like the places, blue less.
    shown = _show(panels[-1], values, grid, cmap="RdBu_r", vmin=-1, vmax=1)
    panels[-1].set_title("similarity to the place" if len(marks) == 1 else "similarity to the places", fontsize=8)
    for axes in panels:
        _frame(axes, grid if picture is None else picture.grid)  # the last patches reach beyond the scene
        for size, width, colour in ((9, 3.2, "white"), (8, 1.4, "black")):
            axes.plot(*zip(*marks, strict=True), "x", markersize=size, markeredgewidth=width, color=colour)
        axes.label_outer()
    bar = figure.colorbar(shown, ax=panels[-1], fraction=0.05, pad=0.02)
    bar.set_label("cosine, mean of the scene taken off", fontsize=7)
    bar.ax.tick_params(labelsize=6, length=2, width=0.4)
    return save_figure(figure, path)


def scene_picture(scene: Scene, window: Window, longest: int = _PICTURE_SIDE) -> Picture:
    """Return a part of a scene in natural colours, else false colours, else grey.

    Args:
        scene: The scene.
        window: Columns and rows of its grid.
        longest: Pixels a side at most; fewer than the scene has are read from overviews where there are any.

    Returns:
        The picture; light grey where a shown band has no data.

    Raises:
        ValueError: If a file cannot be read.
    """
    part = scene.grid.crop(window)
    step = max(1.0, max(window[2:]) / longest)
    height, width = (max(1, round(size / step)) for size in (part.height, part.width))
    names = [layer.name for layer in scene.layers]
    shown = list(dict.fromkeys(display_bands(names, scene.sensor)))
    read = [_read_small(scene, scene.layers[index], window, (height, width)) for index in shown]
    image = Image(
        pixels=np.stack([pixels for pixels, _ in read]),
        bands=[names[index] for index in shown],
        sensor=scene.sensor.name,
        valid=np.stack([real for _, real in read]),
        scale=[scene.scale[index] for index in shown] if isinstance(scene.scale, list) else scene.scale,
        offset=[scene.offset[index] for index in shown] if isinstance(scene.offset, list) else scene.offset,
    )
    colours = composite(physical_pixels(image), image.bands, scene.sensor)
    name = f"{scene.sensor.name}, {scene.acquired:%Y-%m-%d}" if scene.acquired else scene.sensor.name
    return Picture(colours, _resized(part, height, width), name)


def _read_small(scene: Scene, layer: Layer, window: Window, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Read one band of a window of a scene in fewer pixels: the pixels, and where they are real."""
    file, band = layer.file, layer.index + 1
    # The band may lie on a coarser grid than the scene.
    mapping = scene.grid.pixels_in(file.grid)
    column, row, width, height = window
    (left, top, _), (right, bottom, _) = mapping @ (column, row, 1), mapping @ (column + width, row + height, 1)
    edges = [round(float(edge), 6) for edge in (left, top, right - left, bottom - top)]
    options: dict[str, Any] = {"window": rasterio.windows.Window(*edges), "out_shape": shape}
    # A mean takes in what GDAL does not know to be no data.
    told = layer.nodata is None or layer.nodata == file.nodata[layer.index]
    try:
        with open_options(), no_georeference_warning(), rasterio.open(file.path) as dataset:
            pixels = dataset.read(band, **options, resampling=Resampling.average if told else Resampling.nearest)
            real = np.isfinite(pixels) & (pixels != layer.nodata)
            if file.masked:
                real &= dataset.read_masks(band, **options) > 0
            if scene.alpha is not None:
                real &= dataset.read(scene.alpha + 1, **options) > 0
    except RasterioError as error:
        raise ValueError(
            f"{file.path}: band {layer.name} cannot be read ({one_line(error)}); fetch it again."
        ) from error
    return pixels, real


@dataclass(frozen=True)
class _Facts:
    """What a raster of one band says of itself."""

    tags: dict[str, str]
    colours: dict[int, tuple[int, ...]] | None
    nodata: float | None


def _read_thumbnail(path: Path, longest: int, resampling: Resampling) -> tuple[np.ndarray, Grid, _Facts]:
    """Read the first band of a raster in at most so many pixels a side; from overviews where there are any."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; check the path.")
    try:
        with open_options(), no_georeference_warning(), rasterio.open(path) as dataset:
            step = max(1, -(-max(dataset.shape) // longest))
            shape = -(-dataset.height // step), -(-dataset.width // step)
            values = dataset.read(1, out_shape=shape, resampling=resampling)
            try:
                colours = dataset.colormap(1)
            except ValueError:  # there is none
                colours = None
            return values, _resized(grid_of(dataset), *shape), _Facts(dataset.tags(), colours, dataset.nodata)
    except RasterioError as error:
        raise ValueError(f"{path}: GDAL cannot read it ({one_line(error)}); name a GeoTIFF.") from error


def _resized(grid: Grid, height: int, width: int) -> Grid:
    """Return other pixels on the ground of a grid."""
    a, b, c, d, e, f = grid.transform
    across, down = grid.width / width, grid.height / height
    return replace(grid, height=height, width=width, transform=(a * across, b * down, c, d * across, e * down, f))


def _centre(grid: Grid, cell: tuple[int, int]) -> tuple[float, float]:
    """Return the centre of a cell (column, row) in units of the CRS."""
    x, y, _ = grid.matrix @ (cell[0] + 0.5, cell[1] + 0.5, 1)
    return float(x), float(y)


# Axes


def _new_panels(grid: Grid, count: int, longest: int, beside: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels that suit a grid, with inches (width, height) `beside` them for a legend or a bar."""
    west, south, east, north = _box(grid)
    ratio = float(np.clip((north - south) * _aspect(grid) / (east - west), 0.2, 5))
    side = float(np.clip(max(grid.height, grid.width), _SMALLEST_PANEL * _DOTS_PER_INCH, longest)) / _DOTS_PER_INCH
    width, height = (side, side * ratio) if ratio <= 1 else (side / ratio, side)
    figure = new_figure(count * (width + 0.25) + 0.5 + beside[0], max(height, beside[1]) + 0.65)
    figure.set_layout_engine("constrained")
    return figure, list(np.ravel(figure.subplots(1, count)))


def _show(axes: Axes, values: np.ndarray, grid: Grid, **options: Any) -> Any:
    """Show values on the ground; return what a colour bar needs."""
    from matplotlib.transforms import Affine2D

    to_ground = Affine2D(grid.matrix if grid.crs is not None else np.eye(3))
    shown = axes.imshow(
        values,
        extent=(0, grid.width, grid.height, 0),
        interpolation="nearest",
        transform=to_ground + axes.transData,
        **options,
    )
    axes.set_facecolor((_NODATA_GREY,) * 3)
    for spine in axes.spines.values():
        spine.set(linewidth=0.4, color="0.5")
    _frame(axes, grid)
    return shown


def _frame(axes: Axes, grid: Grid) -> None:
    """Have axes show the ground of a grid, with light coordinates where it has any."""
    west, south, east, north = _box(grid)
    axes.set_xlim(west, east)
    axes.set_ylim(*((south, north) if grid.crs is not None else (north, south)))
    axes.set_aspect(_aspect(grid))
    if grid.crs is None:
        axes.set_xticks([])
        axes.set_yticks([])
        return
    axes.locator_params(nbins=5)
    axes.ticklabel_format(style="plain", useOffset=False)
    axes.tick_params(labelsize=6, length=2, width=0.4, color=_LABEL_GREY, labelcolor=_LABEL_GREY)
    labels = ("longitude, °", "latitude, °")
    if not grid.crs.is_geographic:
        code = grid.crs_text or ""
        labels = (f"easting, {grid.crs.linear_units}{f', {code}' if len(code) < 12 else ''}", "northing")
    axes.set_xlabel(labels[0], fontsize=6, color=_LABEL_GREY)
    axes.set_ylabel(labels[1], fontsize=6, color=_LABEL_GREY)


def _box(grid: Grid) -> tuple[float, float, float, float]:
    """Return the box around a grid in its CRS; in cells without one."""
    return grid.footprint if grid.crs is not None else (0.0, 0.0, float(grid.width), float(grid.height))


def _aspect(grid: Grid) -> float:
    """Return the length of a unit of y over that of a unit of x on the ground, at the middle of the grid."""
    if grid.crs is None or not grid.crs.is_geographic:
        return 1.0
    _, south, _, north = grid.footprint
    return 1 / max(math.cos(math.radians((south + north) / 2)), 0.01)


def _legend_size(entries: Sequence[tuple[str, np.ndarray]]) -> tuple[float, float]:
    """Return width and height of a legend in inches, about."""
    longest = max((len(name) for name, _ in entries), default=0)
    return -(-len(entries) // _LEGEND_ROWS) * (0.4 + 0.065 * longest), min(len(entries), _LEGEND_ROWS) * 0.16


def _add_legend(axes: Axes, entries: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write names beside their colours, to the right of axes."""
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=tuple(colour), edgecolor="0.5", linewidth=0.4, label=name) for name, colour in entries]
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        borderaxespad=0,
        ncols=max(1, -(-len(entries) // _LEGEND_ROWS)),
        fontsize=7,
        frameon=False,
        handlelength=1.2,
    )
