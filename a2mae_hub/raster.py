"""Rasters in and out: images and image sets from any files GDAL opens, and GeoTIFFs from arrays.

Pixels keep their stored numbers; scale and offset come along. What the files are is settled in
`a2mae_hub.scene_files`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np
import rasterio
from rasterio import Affine
from rasterio.errors import CRSError, RasterioError

from .grids import Box, Window, common_windows, window_of_bounds
from .images import Image, ImageSet
from .scene_files import (
    PathLike,
    Scene,
    no_georeference_warning,
    one_line,
    open_scene,
    open_scenes,
    per_band,
    read_scene,
)


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
    scenes = open_scenes(
        paths, sensor=sensor, bands=bands, acquired=acquired, scale=scale, offset=offset, nodata=nodata
    )
    count = len(scenes)
    if not 0 <= anchor < count:
        raise ValueError(f"anchor={anchor} is no image of the set: {count} found, so it is from 0 to {count - 1}.")
    if bounds is None:
        windows = common_windows([scene.grid for scene in scenes], [scene.source for scene in scenes], anchor)
    else:
        windows = [_window_of_bounds(scene, bounds) for scene in scenes]
    images = [read_scene(scene, window) for scene, window in zip(scenes, windows, strict=True)]
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
    scene = open_scene(paths, sensor=sensor, bands=bands, acquired=acquired, scale=scale, offset=offset, nodata=nodata)
    return read_scene(scene, None if bounds is None else _window_of_bounds(scene, bounds))


def _window_of_bounds(scene: Scene, bounds: Box) -> Window:
    """Return the window of a box of longitude and latitude, or raise ValueError naming the image."""
    try:
        return window_of_bounds(scene.grid, bounds)
    except ValueError as error:
        raise ValueError(f"{scene.source}: {error}") from error


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
        with no_georeference_warning(), rasterio.open(temporary, "w", **profile) as dataset:
            dataset.write(pixels)
            for index, text in enumerate(names, start=1):
                dataset.set_band_description(index, text)
            if scale is not None:
                dataset.scales = per_band("scale", scale, count)
            if offset is not None:
                dataset.offsets = per_band("offset", offset, count)
            if colours is not None:
                dataset.write_colormap(1, colours)
            dataset.update_tags(**(tags or {}))
        os.replace(temporary, path)
    except (RasterioError, CRSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: could not be written as a GeoTIFF ({one_line(error)}).") from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
