"""Rasters in and out: images and image sets from any files GDAL opens, and GeoTIFFs from arrays.

What products say about themselves in names, tags and metadata files is used (`a2mae_hub.products`), what the caller
declares wins over it, and what neither tells is asked for. Pixels keep their stored numbers; scale and offset come
along.
"""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

import numpy as np
import rasterio
import rasterio.windows
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError

from a2mae_hub.grids import (
    Box,
    Grid,
    Window,
    are_aligned,
    are_one_grid,
    common_windows,
    interpolate,
    neighbours_of,
    window_of_bounds,
)
from a2mae_hub.images import Image, ImageSet
from a2mae_hub.modeling.sensors_a2mae import SENSORS, Sensor, get_sensor
from a2mae_hub.products import (
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


@dataclass(frozen=True)
class _File:
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
class _Layer:
    """One band of an image: which band of which file, and how its numbers are stored."""

    file: _File
    index: int  # from 0
    name: str  # empty where the file tells none
    nodata: float | None


@dataclass(frozen=True)
class _Scene:
    """One image before its pixels are read; `grid` is the finest of its layers."""

    layers: tuple[_Layer, ...]
    grid: Grid
    alpha: int | None  # index of the band of its only file that is transparency
    sensor: Sensor
    acquired: datetime | None
    scale: float | list[float] | None
    offset: float | list[float] | None
    source: str


def read_image_set(
    paths: PathLike | Sequence[PathLike],
    *,
    sensor: str | Sequence[str | None] | None = None,
    bands: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
    acquired: str | date | np.datetime64 | Sequence[Any] | None = None,
    bounds: Box | None = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    nodata: float | None = None,
    anchor: int = 0,
    name: str | None = None,
) -> ImageSet:
    """Read the images of one place.

    A path is a raster file, any other name GDAL opens (`/vsicurl/…`, `/vsizip/…`, `s3://…`, a VRT), or a folder, whose
    rasters are taken in the order of their names. Single-band files of one product (equal names up to the band, such as
    `…_B02.tif` and `…_B03.tif`) become one image on the finest of their pixel grids, coarser bands by bilinear
    interpolation; every other file is an image of its own. Masks, angles and other layers that are no optical bands are
    left out of folders.

    Without `bounds`, georeferenced images are cropped to the footprint they have in common (a box in the CRS of the
    anchor, snapped outward to whole pixels of each image), unless their footprints agree within the coarsest pixel.

    Args:
        paths: One path, or many; images come in this order.
        sensor: Name in the sensor registry for all images, or one per image (None: as the product says).
        bands: Band names for all images, or one list per image (None: as the product says). Where the files name their
            bands, the asked ones are read in the order asked; where they do not, these are the names in file order.
        acquired: Acquisition time (ISO text, date, datetime) for all images, or one per image (None: as the
            product says).
        bounds: West, south, east, north in degrees of longitude and latitude; only the pixels that touch this box are
            read. West greater than east crosses the antimeridian.
        scale: Factor from stored number to physical value, one or one per band.
        offset: Offset from stored number to physical value, one or one per band.
        nodata: Stored number that means "no data".
        anchor: Index of the anchor image.
        name: Free text for messages and outputs.

    Returns:
        The set; every image with its pixels as stored, (bands, height, width).

    Raises:
        FileNotFoundError: If a path or a raster in a folder is missing.
        ValueError: If a file cannot be read, its sensor or bands cannot be known, a declaration does not fit, the
            bounds lie outside an image, or two images do not overlap; names the file.
    """
    groups = _group(_open_paths(paths))
    count = len(groups)
    if not 0 <= anchor < count:
        raise ValueError(f"anchor={anchor} is no image of the set: {count} found, so it is from 0 to {count - 1}.")
    sensors = _per_image("sensor", sensor, count, _is_text)
    bands_per_image = _per_image("bands", bands, count, lambda value: all(map(_is_text, value)))
    times = _per_image("acquired", acquired, count, lambda value: not isinstance(value, (list, tuple, np.ndarray)))
    scenes = [
        _describe(group, sensor=s, bands=b, acquired=t, scale=scale, offset=offset, nodata=nodata)
        for group, s, b, t in zip(groups, sensors, bands_per_image, times, strict=True)
    ]
    if bounds is None:
        windows = common_windows([scene.grid for scene in scenes], [scene.source for scene in scenes], anchor)
    else:
        windows = [_window_of_bounds(scene, bounds) for scene in scenes]
    images = [_read(scene, window) for scene, window in zip(scenes, windows, strict=True)]
    return ImageSet(images, anchor=anchor, name=name)


def read_image(
    paths: PathLike | Sequence[PathLike],
    *,
    sensor: str | None = None,
    bands: Sequence[str] | None = None,
    acquired: str | date | np.datetime64 | None = None,
    bounds: Box | None = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    nodata: float | None = None,
) -> Image:
    """Read one image from one file, from a folder of band files, or from the files of its bands.

    Arguments are those of `read_image_set`. Single-band files whose names tell no band are stacked in the order given,
    under the names in `bands`.

    Returns:
        The image; `pixels` as stored, (bands, height, width).

    Raises:
        FileNotFoundError: If a path is missing.
        ValueError: As `read_image_set`, and if the paths hold more than one image.
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
    scene = _describe(
        groups[0], sensor=sensor, bands=bands, acquired=acquired, scale=scale, offset=offset, nodata=nodata
    )
    return _read(scene, scene.grid.whole if bounds is None else _window_of_bounds(scene, bounds))


def write_raster(
    path: PathLike,
    pixels: np.ndarray,
    *,
    like: Image | None = None,
    crs: str | None = None,
    transform: Sequence[float] | None = None,
    descriptions: Sequence[str] | None = None,
    nodata: float | None = None,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
    tags: dict[str, str] | None = None,
    colours: dict[int, tuple[int, int, int]] | None = None,
) -> None:
    """Write a GeoTIFF (deflate, tiled where large), whole or not at all.

    The file is written under a temporary name in its folder and then renamed, so that no reader ever meets half of it.
    `read_image` understands the tags `sensor` (name in the registry) and `acquired` (ISO time), and band names in
    `descriptions`.

    Args:
        path: Where to write; an existing file is replaced.
        pixels: (bands, height, width) or (height, width). bool is written as uint8, float16 as float32.
        like: Image on whose pixel grid the pixels lie; gives `crs` and `transform`.
        crs: Coordinate reference system, as in `Image`.
        transform: Six numbers, as in `Image`.
        descriptions: One text per band.
        nodata: Stored number that means "no data".
        scale: Factor from stored number to physical value, one or one per band.
        offset: Offset from stored number to physical value, one or one per band.
        tags: Further metadata of the file.
        colours: Red, green and blue from 0 to 255 of the values of a single band of classes (uint8 or uint16).

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the arguments do not fit each other, or GDAL cannot write them; names the file.
    """
    path = os.fspath(path)
    folder, filename = os.path.split(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{path}: the folder {folder} does not exist; create it first.")
    pixels = np.asarray(pixels)
    stored = {"bool": np.uint8, "float16": np.float32}.get(pixels.dtype.name)
    pixels = pixels.astype(stored) if stored else pixels
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(f"{path}: pixels of shape {pixels.shape} are no image; pass (bands, height, width).")
    if like is not None:
        if pixels.shape[1:] != like.pixels.shape[1:]:
            raise ValueError(
                f"{path}: {pixels.shape[1:]} pixels do not lie on the grid of an image of {like.pixels.shape[1:]}; "
                "pass crs= and transform= of their own grid."
            )
        crs, transform = crs or like.crs, transform or like.transform
    count, height, width = pixels.shape
    names = list(descriptions or [])
    if names and len(names) != count:
        raise ValueError(f"{path}: {len(names)} descriptions for {count} bands; pass one per band.")
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": count,
        "height": height,
        "width": width,
        "dtype": pixels.dtype,
        "crs": crs,
        "transform": None if transform is None else Affine(*tuple(transform)[:6]),
        "nodata": nodata,
        "compress": "deflate",
        "predictor": 3 if pixels.dtype.kind == "f" else 2,
        "interleave": "band",
        # Left to itself GDAL calls the fourth of four 8-bit bands transparency.
        "photometric": "PALETTE" if colours else "MINISBLACK",
        "bigtiff": "IF_SAFER",
    }
    if min(height, width) >= 512:
        profile |= {"tiled": True, "blockxsize": 256, "blockysize": 256}
    temporary = os.path.join(folder, f".{os.getpid()}.{filename}")
    try:
        with _no_georeference_warning(), rasterio.open(temporary, "w", **profile) as dataset:
            dataset.write(pixels)
            for index, text in enumerate(names, start=1):
                dataset.set_band_description(index, text)
            if scale is not None:
                dataset.scales = _per_band("scale", scale, count)
            if offset is not None:
                dataset.offsets = _per_band("offset", offset, count)
            if colours is not None:
                dataset.write_colormap(1, colours)
            dataset.update_tags(**(tags or {}))
        os.replace(temporary, path)
    except (RasterioError, CRSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: could not be written as a GeoTIFF ({_one_line(error)}).") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


# Finding and opening files


def _open_paths(paths: PathLike | Sequence[PathLike]) -> list[_File]:
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


def _open(path: str, *, declared: bool) -> _File:
    """Read the header of one raster."""
    local = not path.startswith("/vsi") and not re.match(r"[A-Za-z][A-Za-z0-9_+.]+:", path)
    if local and not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file or folder; check the path.")
    if is_radar(path):
        raise ValueError(f"{path}: radar is not supported, only optical images; leave out Sentinel-1 files.")
    if is_quality_layer(path):
        raise ValueError(f"{path}: this is a mask or another layer that is no optical band; leave it out.")
    try:
        with _no_georeference_warning(), rasterio.open(path) as dataset:
            if not dataset.count:
                inside = f", for example {dataset.subdatasets[0]}" if dataset.subdatasets else ""
                raise ValueError(f"{path}: holds no bands of its own; name one of the rasters in it{inside}.")
            alpha = [index for index, kind in enumerate(dataset.colorinterp) if kind is ColorInterp.alpha]
            flags = dataset.mask_flag_enums[0]
            return _File(
                path=path,
                declared=declared,
                grid=_grid(dataset),
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
            f"{path}: not a raster that GDAL can open, or a damaged one ({_one_line(error)}); check the file."
        ) from error


def _grid(dataset: rasterio.DatasetReader) -> Grid:
    """Return the pixel grid of an open raster."""
    if dataset.crs is not None and dataset.transform != Affine.identity():
        return Grid(dataset.height, dataset.width, tuple(dataset.transform)[:6], dataset.crs)
    # With the unit square for footprint, bands without georeference align whatever their sizes.
    return Grid(dataset.height, dataset.width, (1 / dataset.width, 0.0, 0.0, 0.0, 1 / dataset.height, 0.0), None)


def _group(files: list[_File]) -> list[list[_File]]:
    """Gather single-band files of one product; every other file is a group of its own. Keeps the order."""
    groups: dict[str, list[_File]] = {}
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
    files: list[_File],
    *,
    sensor: str | None,
    bands: Sequence[str] | None,
    acquired: Any,
    scale: float | Sequence[float] | None,
    offset: float | Sequence[float] | None,
    nodata: float | None,
) -> _Scene:
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
        return _Scene(
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


def _product(first: _File, *, wants_time: bool) -> Product:
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


def _layers(files: list[_File], sensor: Sensor, product: Product, declared: Sequence[str] | None) -> list[_Layer]:
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
            layers.append(_Layer(file, index, name, nodata))
    if len(files) > 1:
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


def _split_alpha(
    layers: list[_Layer], sensor: Sensor, declared: Sequence[str] | None
) -> tuple[list[_Layer], int | None]:
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


def _choose_bands(layers: list[_Layer], sensor: Sensor, declared: Sequence[str] | None) -> list[_Layer]:
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


def _finest(layers: list[_Layer], names: Sequence[str | None], wanted: str) -> _Layer:
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
    what: str, declared: float | Sequence[float] | None, layers: Sequence[_Layer], told: Mapping[str, float]
) -> float | list[float] | None:
    """Return scale or offset as declared, else as in the files, else as the product tells, else None."""
    stored = [(layer.file.scales[layer.index], layer.file.offsets[layer.index]) for layer in layers]
    names = [layer.name for layer in layers]
    if declared is not None:
        values = _per_band(what, declared, len(layers))
    elif any(factors != (1, 0) for factors in stored):
        values = [scale if what == "scale" else offset for scale, offset in stored]
    elif "" in told:
        values = [told[""]]
    elif all(name in told for name in names):
        values = [told[name] for name in names]
    else:
        return None
    return values[0] if len(set(values)) == 1 else values


def _per_band(what: str, value: float | Sequence[float], count: int) -> list[float]:
    """Return one number per band from one for all or a list."""
    values = [float(number) for number in np.atleast_1d(value)]
    if len(values) not in (1, count):
        raise ValueError(f"{what}= has {len(values)} numbers for {count} bands; pass one, or one per band.")
    return values * count if len(values) == 1 else values


# Reading pixels


def _window_of_bounds(scene: _Scene, bounds: Box) -> Window:
    """Return the window of a box of longitude and latitude, or raise ValueError naming the image."""
    try:
        return window_of_bounds(scene.grid, bounds)
    except ValueError as error:
        raise ValueError(f"{scene.source}: {error}") from error


def _read(scene: _Scene, window: Window) -> Image:
    """Read the pixels of a window of an image."""
    grid = scene.grid.crop(window)
    # One number for all bands stays a number; a mask or transparency band, or numbers that differ, need a mask.
    numbers = {str(layer.nodata) for layer in scene.layers}
    masked = scene.alpha is not None or any(layer.file.masked for layer in scene.layers) or len(numbers) > 1
    parts, masks = [], []
    for _, run in itertools.groupby(scene.layers, key=lambda layer: layer.file.path):
        pixels, real = _read_file(list(run), scene.grid, window, scene.alpha, masked=masked)
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
        crs=_crs_text(grid.crs) if grid.crs is not None else None,
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
    layers: list[_Layer], grid: Grid, window: Window, alpha: int | None, *, masked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Read bands of one file on a window of the image's grid: pixels, and where they are real if `masked`."""
    file = layers[0].file
    if are_one_grid(grid, file.grid):
        return _read_window(layers, window, alpha, masked=masked)
    rows, columns = neighbours_of(grid, file.grid, window)
    around = (columns.first, rows.first, columns.count, rows.count)
    coarse, coarse_real = _read_window(layers, around, alpha, masked=True)
    pixels, real = interpolate(coarse, coarse_real, rows, columns)
    for band, band_real, layer in zip(pixels, real, layers, strict=True):
        if not band_real.all():
            band[~band_real] = np.nan if layer.nodata is None and band.dtype.kind == "f" else layer.nodata or 0
    return pixels, real


def _read_window(
    layers: list[_Layer], window: Window, alpha: int | None, *, masked: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Read bands of one file in a window of its own pixels: pixels, and where they are real if `masked`."""
    file = layers[0].file
    indexes = [layer.index + 1 for layer in layers]
    column, row, width, height = window
    area = rasterio.windows.Window(column, row, width, height)
    try:
        with _no_georeference_warning(), rasterio.open(file.path) as dataset:
            pixels = dataset.read(indexes, window=area)
            real = np.ones(pixels.shape if masked else (len(layers), 0, 0), dtype=bool)
            if masked and file.masked:
                real &= dataset.read_masks(indexes, window=area) > 0
            if masked and alpha is not None:
                real &= dataset.read(alpha + 1, window=area) > 0
    except RasterioError as error:
        reason = _one_line(error.__cause__ or error)
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


def _crs_text(crs: CRS) -> str:
    """Return "EPSG:32631" where the CRS has a number, else WKT."""
    number = crs.to_epsg()
    return f"EPSG:{number}" if number else crs.to_wkt()


@contextmanager
def _no_georeference_warning() -> Iterator[None]:
    """Keep rasterio's warning on files without georeference, which are handled here, from the caller."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _one_line(error: BaseException) -> str:
    """Return an error of GDAL as one line without a full stop."""
    return " ".join(str(error).split()).rstrip(".")
