"""From files to scenes: finding rasters, settling what each image is, and reading windows of it.

A scene is one image before its pixels are read: which band of which file each of its bands is, on which pixel grid,
when taken, and how its numbers are stored. What the caller declares wins over what the files say
(`a2mae_hub.products`), and what neither tells is asked for.
"""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from types import TracebackType
from typing import Any, TypedDict

import numpy as np
import rasterio
import rasterio.windows
from rasterio import Affine
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from .grids import Grid, Window, are_aligned, are_one_grid, interpolate, neighbours_of
from .images import Image
from .modeling.sensors_a2mae import SENSORS, Sensor, get_sensor
from .products import (
    FILE_ORDER,
    RASTER_SUFFIXES,
    Product,
    acquired_from_name,
    is_quality_layer,
    is_radar,
    names_a_product,
    parse_time,
    product_from_name,
    product_from_tags,
    read_landsat_mtl,
    split_band_file,
)

PathLike = str | os.PathLike[str]
Opener = Callable[[str], AbstractContextManager[rasterio.DatasetReader]]


class Declarations(TypedDict, total=False):
    """What a caller can declare of images, as `a2mae_hub.read_image_set` explains it; it wins over what files say."""

    sensor: str | Sequence[str | None] | None
    bands: Sequence[str] | Sequence[Sequence[str] | None] | None
    acquired: Any
    scale: float | Sequence[float] | None
    offset: float | Sequence[float] | None
    nodata: float | None


@dataclass(frozen=True)
class RasterFile:
    """One raster file, as its header describes it; tuples have one entry per band."""

    path: str
    declared: bool  # named by the caller, not found in a folder
    grid: Grid
    descriptions: tuple[str | None, ...]
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    alpha: int | None  # index of a band marked as transparency
    masked: bool  # has a mask band of its own
    tags: dict[str, str]


@dataclass(frozen=True)
class Layer:
    """One band of an image: which band of which file, and how its numbers are stored."""

    file: RasterFile
    index: int  # from 0
    name: str  # empty where the file tells none
    nodata: float | None


@dataclass(frozen=True)
class Scene:
    """One image before its pixels are read; `grid` is the finest of its layers."""

    layers: tuple[Layer, ...]
    grid: Grid
    alpha: int | None  # index of the band of its only file that is transparency
    sensor: Sensor
    acquired: datetime | None
    scale: float | list[float] | None
    offset: float | list[float] | None
    source: str


def open_scenes(
    paths: PathLike | Sequence[PathLike],
    *,
    sensor: str | Sequence[str | None] | None = None,
    bands: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
    acquired: Any = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    nodata: float | None = None,
) -> list[Scene]:
    """Describe every image that the paths hold, without reading pixels.

    Arguments are those of `a2mae_hub.read_image_set`.

    Returns:
        One scene per image, in the order of the paths.

    Raises:
        FileNotFoundError: If a path or a raster in a folder is missing.
        ValueError: If a file cannot be opened, its sensor or bands cannot be known, or a declaration does not fit;
            names the file.
    """
    groups = _group(_open_paths(paths))
    count = len(groups)
    sensors = _per_image("sensor", sensor, count, _is_text)
    bands_per_image = _per_image("bands", bands, count, lambda value: all(map(_is_text, value)))
    times = _per_image("acquired", acquired, count, lambda value: not isinstance(value, (list, tuple, np.ndarray)))
    return [
        _describe(group, sensor=s, bands=b, acquired=t, scale=scale, offset=offset, nodata=nodata)
        for group, s, b, t in zip(groups, sensors, bands_per_image, times, strict=True)
    ]


def open_scene(
    paths: PathLike | Sequence[PathLike],
    *,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    acquired: Any = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    nodata: float | None = None,
) -> Scene:
    """Describe the one image that the paths hold, without reading pixels.

    Arguments are those of `a2mae_hub.read_image`.

    Raises:
        FileNotFoundError: If a path is missing.
        ValueError: As `open_scenes`, and if the paths hold more than one image.
    """
    files = _open_paths(paths)
    groups = _group(files)
    if len(groups) > 1 and bands is not None and len(bands) == len(files) and all(len(f.nodata) == 1 for f in files):
        groups = [files]
    if len(groups) > 1:
        raise ValueError(
            f"{groups[1][0].path}: a second image beside {groups[0][0].path}; read both with read_image_set, or, if "
            "they are bands of one image, pass bands= with one name per file."
        )
    return _describe(
        groups[0], sensor=sensor, bands=bands, acquired=acquired, scale=scale, offset=offset, nodata=nodata
    )


# Finding and opening files


def _open_paths(paths: PathLike | Sequence[PathLike]) -> list[RasterFile]:
    """Open the header of every raster the paths name, folders expanded in the order of their names."""
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not given:
        raise ValueError("No paths were given; pass at least one raster file or folder.")
    files = []
    for entry in given:
        path = os.fspath(entry)
        if not os.path.isdir(path):
            files.append(_open(path, declared=True))
            continue
        names = sorted(name for name in os.listdir(path) if name.lower().endswith(RASTER_SUFFIXES))
        rasters = [os.path.join(path, name) for name in names if not name.startswith(".")]
        if not rasters:
            raise FileNotFoundError(
                f"{path}: the folder holds no raster ({', '.join(RASTER_SUFFIXES)}); name the files, or the folders "
                "that directly hold them."
            )
        optical = [raster for raster in rasters if not is_quality_layer(raster)]
        if not optical:
            raise ValueError(f"{path}: the folder holds masks and other layers, but no optical band; name other files.")
        files += [_open(raster, declared=False) for raster in optical]
    return files


def _open(path: str, *, declared: bool) -> RasterFile:
    """Read the header of one raster."""
    local = not path.startswith("/vsi") and not re.match(r"[A-Za-z][A-Za-z0-9_+.]+:", path)
    if local and not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder; check the path.")
    if is_radar(path):
        raise ValueError(f"{path}: radar is not supported, only optical images; leave out Sentinel-1 files.")
    if is_quality_layer(path):
        raise ValueError(f"{path}: this is a mask or another layer that is no optical band; leave it out.")
    try:
        with no_georeference_warning(), rasterio.open(path) as dataset:
            if not dataset.count:
                inside = f", for example {dataset.subdatasets[0]}" if dataset.subdatasets else ""
                raise ValueError(f"{path}: holds no bands of its own; name one of the rasters in it{inside}.")
            alpha = [index for index, kind in enumerate(dataset.colorinterp) if kind is ColorInterp.alpha]
            flags = dataset.mask_flag_enums[0]
            return RasterFile(
                path=path,
                declared=declared,
                grid=grid_of(dataset),
                descriptions=dataset.descriptions,
                nodata=dataset.nodatavals,
                scales=dataset.scales,
                offsets=dataset.offsets,
                alpha=alpha[0] if alpha else None,
                masked=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
                tags=dataset.tags() | dataset.tags(ns="IMAGERY"),
            )
    except RasterioError as error:
        raise ValueError(
            f"{path}: not a raster that GDAL can open, or a damaged one ({one_line(error)}); check the file."
        ) from error


def grid_of(dataset: rasterio.DatasetReader) -> Grid:
    """Return the pixel grid of an open raster."""
    if dataset.crs is not None and dataset.transform != Affine.identity():
        return Grid(dataset.height, dataset.width, tuple(dataset.transform)[:6], dataset.crs)
    # With the unit square for footprint, bands without georeference align whatever their sizes.
    return Grid(dataset.height, dataset.width, (1 / dataset.width, 0.0, 0.0, 0.0, 1 / dataset.height, 0.0), None)


def _group(files: list[RasterFile]) -> list[list[RasterFile]]:
    """Gather single-band files of one product; every other file is a group of its own. Keeps the order."""
    groups: dict[str, list[RasterFile]] = {}
    for position, file in enumerate(files):
        band_file = split_band_file(file.path)
        key = f"{position}"
        if band_file and len(file.nodata) == 1:
            # A name with place and date is one product wherever its files lie; Sentinel-2 has a folder per resolution.
            folder = "" if names_a_product(band_file.product) else os.path.dirname(file.path)
            key = os.path.join(folder, f"{band_file.product}_")
        groups.setdefault(key, []).append(file)
    return list(groups.values())


def _per_image(what: str, value: Any, count: int, is_one: Callable[[Any], bool]) -> list[Any]:
    """Return one declaration per image, from one for all (`is_one`) or a list of one per image."""
    if value is None or is_one(value):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{what}= lists {len(value)} entries for {count} images; pass one for all, or one per image.")
    return list(value)


def _is_text(value: Any) -> bool:
    """Return whether the value is a text."""
    return isinstance(value, str)


# Describing an image


def _describe(
    files: list[RasterFile],
    *,
    sensor: str | None,
    bands: Sequence[str] | None,
    acquired: Any,
    scale: float | Sequence[float] | None,
    offset: float | Sequence[float] | None,
    nodata: float | None,
) -> Scene:
    """Settle sensor, bands, time, calibration and pixel grid of one image, from what is declared and what is known."""
    first = files[0]
    source = first.path
    if len(files) > 1:
        band_file = split_band_file(first.path)
        source = os.path.join(os.path.dirname(first.path), band_file.product if band_file else "").rstrip("/\\")
    try:
        product = _product(first, wants_time=acquired is None)
        name = sensor or product.sensor
        if name is None:
            raise ValueError(
                f"{source}: neither name nor tags tell the sensor; pass sensor=, one of {', '.join(sorted(SENSORS))}."
            )
        known = get_sensor(name)
        layers, alpha = _split_alpha(_layers(files, known, product, bands), known, bands)
        if not first.declared and product.sensor is not None and all(layer.name for layer in layers):
            # A product folder holds bands that are not optical, such as the thermal ones of Landsat.
            layers = [layer for layer in layers if _found(known, layer.name)] or layers
        layers = _choose_bands(layers, known, bands)
        if nodata is not None:
            layers = [replace(layer, nodata=float(nodata)) for layer in layers]
        finest = min((layer.file for layer in layers), key=lambda file: file.grid.pixel_area)
        for layer in layers:
            if layer.file.grid.crs != finest.grid.crs or not are_aligned(finest.grid, layer.file.grid):
                raise ValueError(
                    f"{layer.file.path}: its extent or coordinate reference system is not that of {finest.path}; read "
                    f"them as images of their own, not as bands of {source}."
                )
        return Scene(
            layers=tuple(layers),
            grid=finest.grid,
            alpha=alpha,
            sensor=known,
            acquired=product.acquired if acquired is None else parse_time(acquired),
            scale=_factor("scale", scale, layers, product.scale),
            offset=_factor("offset", offset, layers, product.offset),
            source=source,
        )
    except ValueError as error:
        text = str(error)
        raise ValueError(text if source in text else f"{source}: {text}") from error


def _product(first: RasterFile, *, wants_time: bool) -> Product:
    """Return what the metadata file, the tags and the names say, the earlier winning over the later."""
    told = [product_from_tags(first.tags), product_from_name(first.path)]
    band_file = split_band_file(first.path)
    mtl = os.path.join(os.path.dirname(first.path), f"{band_file.product}_MTL.txt") if band_file else ""
    if os.path.isfile(mtl):
        told.insert(0, read_landsat_mtl(mtl))
    acquired = next((product.acquired for product in told if product.acquired), None)
    return Product(
        sensor=next((product.sensor for product in told if product.sensor), None),
        acquired=acquired_from_name(first.path) if acquired is None and wants_time else acquired,
        bands=next((product.bands for product in told if product.bands), {}),
        scale=next((product.scale for product in told if product.scale), {}),
        offset=next((product.offset for product in told if product.offset), {}),
    )


def _layers(files: list[RasterFile], sensor: Sensor, product: Product, declared: Sequence[str] | None) -> list[Layer]:
    """Return every band of the files, under the name its file or the product's fixed order gives it, or none."""
    layers = []
    for file in files:
        band_file = split_band_file(file.path) if len(file.nodata) == 1 else None
        for index, (text, nodata) in enumerate(zip(file.descriptions, file.nodata, strict=True)):
            name = text or ""
            if band_file and product.bands:
                # Outside the table the number means another band than in the registry, so it must not be found there.
                name = product.bands.get(band_file.layer.upper(), f"{band_file.layer} (of this product)")
            elif band_file:
                name = band_file.layer
            layers.append(Layer(file, index, name, nodata))
    if len(files) > 1:
        if declared is not None:
            return layers  # They are found by name, or else taken in the order given.
        order = [band.name for band in sensor.bands]
        return sorted(
            layers, key=lambda layer: order.index(name) if (name := _found(sensor, layer.name)) else len(order)
        )
    if any(_found(sensor, layer.name) for layer in layers) or (split_band_file(files[0].path) and len(layers) == 1):
        return layers
    # Descriptions such as "Band 1" say nothing.
    names = FILE_ORDER.get(sensor.name, ())
    if len(names) != len(layers) or (declared is not None and len(declared) == len(layers)):
        names = ("",) * len(layers)
    return [replace(layer, name=name) for layer, name in zip(layers, names, strict=True)]


def _found(sensor: Sensor, name: str) -> str | None:
    """Return the sensor's own name of a band, or None if it has none of that name."""
    try:
        return sensor.find(name).name
    except ValueError:
        return None


def _split_alpha(layers: list[Layer], sensor: Sensor, declared: Sequence[str] | None) -> tuple[list[Layer], int | None]:
    """Take a transparency band off the layers; return what is left, and its index in the file.

    GDAL marks the fourth band of many a file as transparency that is near infrared in truth. It is the latter if the
    file, the caller or the product has a band name for it.
    """
    file = layers[0].file
    if file.alpha is None or any(layer.file is not file for layer in layers):
        return layers, None
    marked = layers[file.alpha]
    if _found(sensor, marked.name) or (not marked.name and declared is not None and len(declared) == len(layers)):
        return layers, None
    return [layer for layer in layers if layer is not marked], file.alpha


def _choose_bands(layers: list[Layer], sensor: Sensor, declared: Sequence[str] | None) -> list[Layer]:
    """Return the layers to read, each under the sensor's own name of its band."""
    named = all(layer.name for layer in layers)
    if isinstance(declared, str):
        raise ValueError(f"bands={declared!r} is one text; pass a list of names.")
    if declared is None:
        if not named:
            example = ", ".join(band.name for band in sensor.bands[: len(layers)])
            raise ValueError(f"{len(layers)} bands without names; pass bands= in file order, for example {example}.")
        own = [sensor.find(layer.name).name for layer in layers]
        return [_finest(layers, own, name) for name in dict.fromkeys(own)]
    wanted = [sensor.find(name).name for name in declared]
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"bands={list(declared)!r} must name at least one band, and each only once.")
    held = [_found(sensor, layer.name) for layer in layers]
    if set(wanted) <= set(held):
        return [_finest(layers, held, name) for name in wanted]
    if len(wanted) != len(layers):
        what = f"holds {', '.join(name or '?' for name in held)}" if any(held) else f"has {len(layers)} without names"
        raise ValueError(
            f"bands= names {len(wanted)} bands ({', '.join(wanted)}), but the image {what}; pass one name per band in "
            "file order, or names it holds."
        )
    return [replace(layer, name=name) for layer, name in zip(layers, wanted, strict=True)]


def _finest(layers: list[Layer], names: Sequence[str | None], wanted: str) -> Layer:
    """Return the layer of a band; of several at different ground resolutions, as Sentinel-2 delivers, the finest."""
    found = sorted(
        (layer for layer, name in zip(layers, names, strict=True) if name == wanted),
        key=lambda layer: layer.file.grid.pixel_area,
    )
    if len(found) > 1 and found[0].file.grid.width == found[1].file.grid.width:
        places = f"{found[0].file.path}, {found[1].file.path}"
        raise ValueError(f"band {wanted} is there twice ({places}); leave one out, or declare bands=.")
    return replace(found[0], name=wanted)


def _factor(
    what: str, declared: float | Sequence[float] | None, layers: Sequence[Layer], told: Mapping[str, float]
) -> float | list[float] | None:
    """Return scale or offset as declared, else as in the files, else as the product tells, else None."""
    stored = [(layer.file.scales[layer.index], layer.file.offsets[layer.index]) for layer in layers]
    names = [layer.name for layer in layers]
    if declared is not None:
        values = per_band(what, declared, len(layers))
    elif any(factors != (1, 0) for factors in stored):
        values = [scale if what == "scale" else offset for scale, offset in stored]
    elif "" in told:
        values = [told[""]]
    elif all(name in told for name in names):
        values = [told[name] for name in names]
    else:
        return None
    return values[0] if len(set(values)) == 1 else values


def per_band(what: str, value: float | Sequence[float], count: int) -> list[float]:
    """Return one number per band from one for all or a list."""
    values = [float(number) for number in np.atleast_1d(value)]
    if len(values) not in (1, count):
        raise ValueError(f"{what}= has {len(values)} numbers for {count} bands; pass one, or one per band.")
    return values * count if len(values) == 1 else values


class OpenRasters:
    """Keeps rasters open between reads of windows, and closes those not read for longest.

    Of use where many windows are read from few files: opening a file costs more than reading a small window of it.

    Args:
        limit: Files held open at most.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._open: OrderedDict[str, rasterio.DatasetReader] = OrderedDict()

    @contextmanager
    def __call__(self, path: str) -> Iterator[rasterio.DatasetReader]:
        """Give an open raster, for use until the next one is asked for."""
        dataset = self._open.pop(path, None) or rasterio.open(path)
        self._open[path] = dataset
        while len(self._open) > self._limit:
            self._open.popitem(last=False)[1].close()
        yield dataset

    def __enter__(self) -> OpenRasters:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every raster."""
        while self._open:
            self._open.popitem()[1].close()


# Reading pixels


def read_scene(scene: Scene, window: Window | None = None, opener: Opener = rasterio.open) -> Image:
    """Read the pixels of a window of a scene.

    Args:
        scene: The scene.
        window: Columns and rows of its grid; None reads them all.
        opener: What opens its files, `OpenRasters` to keep them open.

    Returns:
        The image; `pixels` as stored, (bands, height, width).

    Raises:
        ValueError: If a file cannot be read there; names the file, the bands and the rows and columns.
    """
    window = scene.grid.whole if window is None else window
    grid = scene.grid.crop(window)
    # One number for all bands stays a number; a mask or transparency band, or numbers that differ, need a mask.
    numbers = {str(layer.nodata) for layer in scene.layers}
    masked = scene.alpha is not None or any(layer.file.masked for layer in scene.layers) or len(numbers) > 1
    parts, masks = [], []
    for _, run in itertools.groupby(scene.layers, key=lambda layer: layer.file.path):
        pixels, real = _read_file(list(run), scene.grid, window, scene.alpha, opener, masked=masked)
        parts.append(pixels)
        masks.append(real)
    valid = np.concatenate(masks) if masked else None
    if valid is not None and (valid == valid[:1]).all():
        valid = valid[0]
    return Image(
        pixels=np.concatenate(parts),
        bands=tuple(layer.name for layer in scene.layers),
        sensor=scene.sensor.name,
        acquired=scene.acquired,
        crs=scene.grid.crs_text,
        transform=grid.transform if grid.crs is not None else None,
        # Chips without georeference are taken to be cut at the native ground resolution of their finest band.
        gsd=None if grid.crs is not None else min(scene.sensor.find(layer.name).resolution for layer in scene.layers),
        nodata=scene.layers[0].nodata if len(numbers) == 1 else None,
        valid=valid,
        scale=scene.scale,
        offset=scene.offset,
        source=scene.source,
    )


def _read_file(
    layers: list[Layer], grid: Grid, window: Window, alpha: int | None, opener: Opener, *, masked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Read bands of one file on a window of the image's grid: pixels, and where they are real if `masked`."""
    file = layers[0].file
    if are_one_grid(grid, file.grid):
        return _read_window(layers, window, alpha, opener, masked=masked)
    rows, columns = neighbours_of(grid, file.grid, window)
    around = (columns.first, rows.first, columns.count, rows.count)
    coarse, coarse_real = _read_window(layers, around, alpha, opener, masked=True)
    pixels, real = interpolate(coarse, coarse_real, rows, columns)
    for band, band_real, layer in zip(pixels, real, layers, strict=True):
        if not band_real.all():
            band[~band_real] = np.nan if layer.nodata is None and band.dtype.kind == "f" else layer.nodata or 0
    return pixels, real


def _read_window(
    layers: list[Layer], window: Window, alpha: int | None, opener: Opener, *, masked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Read bands of one file in a window of its own pixels: pixels, and where they are real if `masked`."""
    file = layers[0].file
    indexes = [layer.index + 1 for layer in layers]
    column, row, width, height = window
    area = rasterio.windows.Window(column, row, width, height)
    try:
        with no_georeference_warning(), opener(file.path) as dataset:
            pixels = dataset.read(indexes, window=area)
            real = np.ones(pixels.shape if masked else (len(layers), 0, 0), dtype=bool)
            if masked and file.masked:
                real &= dataset.read_masks(indexes, window=area) > 0
            if masked and alpha is not None:
                real &= dataset.read(alpha + 1, window=area) > 0
    except RasterioError as error:
        reason = one_line(error.__cause__ or error)
        raise ValueError(
            f"{file.path}: band {', '.join(layer.name for layer in layers)} cannot be read in columns {column} to "
            f"{column + width - 1}, rows {row} to {row + height - 1} ({reason}); the file is damaged or cut short, so "
            "fetch it again."
        ) from error
    if masked:
        for band, band_real, layer in zip(pixels, real, layers, strict=True):
            if layer.nodata is not None:
                band_real &= band != layer.nodata
            if band.dtype.kind == "f":
                band_real &= ~np.isnan(band)
    return pixels, real


@contextmanager
def no_georeference_warning() -> Iterator[None]:
    """Keep rasterio's warning on files without georeference, which are handled here, from the caller."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def one_line(error: BaseException) -> str:
    """Return an error of GDAL as one line without a full stop."""
    return " ".join(str(error).split()).rstrip(".")
