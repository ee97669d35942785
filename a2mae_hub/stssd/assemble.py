"""One image set at one location: which scenes, in which order; their windows; and what is refused.

scenes that cover the footprint ──► two sensors at most ──► dates far apart in the year first ──► window of each scene,
reprojected only where its pixels are not square and north up ──► refused if cloudy or without data ──► a second
sensor derived, where there is one only
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import rasterio.windows
import shapely
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.warp import reproject

from a2mae_hub.grids import Grid, Window
from a2mae_hub.images import Image
from a2mae_hub.modeling.image_inputs_a2mae import band_table, image_fields, read_image
from a2mae_hub.products import parse_time
from a2mae_hub.scene_files import Opener, grid_of, no_georeference_warning, one_line, read_scene

from .catalogue import CatalogueScene
from .clouds import estimate_clouds, read_flags
from .derive import derive
from .features import heterogeneity
from .footprints import Footprint, locate, rounded, surrounding_window, upright_grid, window_of
from .recipe import FOOTPRINTS, Collection
from .sampling import Location
from .schema import StoredImage, StoredSet

_DAYS_IN_YEAR = 365.25
# Two images of one sensor within half a day are parts of one overpass.
_SAME_OVERPASS_DAYS = 0.5
# A patch of the smaller models; an image below it is no input for any.
_SHORTEST_SIDE = 8
_TOO_SMALL = f"fewer than {_SHORTEST_SIDE} pixels"
# Sets of one cell of this many degrees go to one split, so that validation does not lie next door to training.
_SPLIT_CELL = 0.1


def assemble(
    location: Location, collection: Collection, scenes: Sequence[CatalogueScene], opener: Opener, refused: Counter[str]
) -> StoredSet | None:
    """Return the image set of a location.

    Args:
        location: The place.
        collection: What to keep.
        scenes: The scenes that the location's numbers count.
        opener: What opens rasters.
        refused: Counts, by reason, the images that were looked at and left out.

    Returns:
        The set, or None where no image is left.

    Raises:
        ValueError: If a file is damaged, or its numbers cannot be in the unit of its sensor, or no second sensor can be
            derived from it; names the file and the set, and the window that cannot be read.
    """
    name = set_name(location, collection, scenes)
    split = _split(name, location.footprint, collection.validation)
    if split is None:
        refused["across the border of a split"] += 1
        return None
    by_sensor: dict[str, list[int]] = {}
    for number in location.scenes:
        by_sensor.setdefault(scenes[number].sensor, []).append(number)
    # The sensor with most images leads, since its dates are the ones to choose from.
    sensors = sorted(by_sensor, key=lambda sensor: (-len(by_sensor[sensor]), min(by_sensor[sensor])))[:2]
    shared = len(sensors) > 1 or collection.derive not in (None, *sensors)
    quota = math.ceil(collection.images / 2) if shared else collection.images

    def take(number: int) -> StoredImage | None:
        """Return the image of a scene there, or None if it is refused."""
        try:
            image, reason = _image_of(scenes[number], location, collection, opener)
        except ValueError as error:
            raise ValueError(f"{error} (Set {name}.)") from error
        if reason:
            refused[reason] += 1
        return image

    images = _pick(by_sensor[sensors[0]], scenes, quota, take, _apart_from)
    if len(sensors) > 1:
        images += _pick(
            by_sensor[sensors[1]],
            scenes,
            collection.images - len(images),
            take,
            _close_to if images else _apart_from,
            [image.acquired for image in images],
        )
    if not images:
        return None
    sensor = images[0].sensor
    if collection.derive not in (None, sensor) and all(image.sensor == sensor for image in images):
        observed = images[: max(1, collection.images // 2)]
        seed = zlib.crc32(name.encode())
        try:
            derived = [
                derive(image, str(collection.derive), seed=[seed, index]) for index, image in enumerate(observed)
            ]
        except ValueError as error:
            raise ValueError(f"{error} (Set {name}.)") from error
        usable = [image for image in derived if min(image.pixels.shape[1:]) >= _SHORTEST_SIDE]
        if len(usable) < len(derived):
            refused[f"derived, {_TOO_SMALL}"] += len(derived) - len(usable)
        images = observed + usable[: collection.images - len(observed)]
    footprint = location.footprint
    image_set = StoredSet(
        images=list(images),
        longitude=None if footprint is None else footprint.longitude,
        latitude=None if footprint is None else footprint.latitude,
        name=name,
        id=name,
        kind=collection.kind,
        split=split,
        geometry=None if footprint is None else footprint.geometry().wkb,
    )
    image_set.heterogeneity = heterogeneity(image_set)
    return image_set


def set_name(location: Location, collection: Collection, scenes: Sequence[CatalogueScene]) -> str:
    """Return the id of the set of a location: by its place, or by its scene and pixels where the place is unknown."""
    if location.footprint is not None:
        place, extent = rounded(location.footprint)
        # Scenes may lie within each other, around one centre.
        return f"{collection.name}/{place}" + (f"/{extent}" if collection.sampling == FOOTPRINTS else "")
    scene = scenes[location.scenes[0]]
    assert location.window is not None
    column, row, width, height = location.window
    whole = (width, height) == (scene.scene.grid.width, scene.scene.grid.height)
    stem = PurePosixPath(scene.name).with_suffix("").as_posix()
    return f"{collection.name}/{stem}" + ("" if whole else f"/{row}-{column}")


def _split(name: str, footprint: Footprint | None, validation: float) -> str | None:
    """Return "validation" for the share of sets asked for, whole cells of the globe at once, and else "train".

    None for a set that reaches from a cell of one into a cell of the other, and would show both the same ground.
    """

    def is_drawn(cell: str) -> bool:
        drawn = int.from_bytes(hashlib.blake2b(cell.encode(), digest_size=8).digest(), "big") / 2**64
        return drawn < validation

    if footprint is None:
        return "validation" if is_drawn(name) else "train"
    if validation in (0, 1):
        return "validation" if validation else "train"
    cells = _cells(footprint)
    drawn = is_drawn(next(cells))
    if any(is_drawn(cell) != drawn for cell in cells):
        return None
    return "validation" if drawn else "train"


def _cells(footprint: Footprint) -> Iterator[str]:
    """Iterate over all cells of the globe that a footprint lies in, its middle and edges alike."""
    for part in shapely.get_parts(footprint.geometry()):
        # The sides of a footprint run along meridians and parallels, so its box is the footprint itself.
        west, south, east, north = (float(degrees) / _SPLIT_CELL for degrees in part.bounds)
        for row in range(math.floor(south), max(math.ceil(north), math.floor(south) + 1)):
            for column in range(math.floor(west), max(math.ceil(east), math.floor(west) + 1)):
                yield f"{column}/{row}"


# Which dates


def _pick(
    numbers: Sequence[int],
    scenes: Sequence[CatalogueScene],
    quota: int,
    take: Callable[[int], StoredImage | None],
    rank: Callable[[CatalogueScene, Sequence[datetime | None]], float],
    beside: Sequence[datetime | None] = (),
) -> list[StoredImage]:
    """Take scenes of one sensor, the best ranked first, until the quota is full.

    Args:
        numbers: The scenes to choose from.
        scenes: All scenes.
        quota: Images to take at most.
        take: Reads a scene, or refuses it.
        rank: How well a scene goes with the times given; the highest is tried next.
        beside: Times that it shall go with; empty stands for those already taken.
    """
    images: list[StoredImage] = []
    left = list(numbers)
    while left and len(images) < quota:
        times = [image.acquired for image in images]
        number = max(left, key=lambda number: (rank(scenes[number], beside or times), -number))
        left.remove(number)
        if any(_days_between(scenes[number].acquired, time) < _SAME_OVERPASS_DAYS for time in times):
            continue
        image = take(number)
        if image is not None:
            images.append(image)
    return images


def _apart_from(scene: CatalogueScene, times: Sequence[datetime | None]) -> float:
    """Rank a scene by how far its season is from those taken; the first is the least cloudy."""
    gaps = [_season_gap(scene.acquired, time) for time in times]
    return min(gaps) if gaps else -(scene.cloud_share or 0.0)


def _close_to(scene: CatalogueScene, times: Sequence[datetime | None]) -> float:
    """Rank a scene of the second sensor by how close in time it is to one of the first."""
    return -min((_days_between(scene.acquired, time) for time in times), default=0.0)


def _days_between(one: datetime | None, other: datetime | None) -> float:
    """Return the days between two times; many where one of them is unknown."""
    if one is None or other is None:
        return math.inf
    return abs((parse_time(one) - parse_time(other)).total_seconds()) / 86_400


def _season_gap(one: datetime | None, other: datetime | None) -> float:
    """Return days between two times of the year, 0 to 183; a year apart counts as twenty days; 0 where unknown."""
    days = _days_between(one, other)
    if not math.isfinite(days):
        return 0.0
    within = days % _DAYS_IN_YEAR
    return min(within, _DAYS_IN_YEAR - within) + 20 * min(days / _DAYS_IN_YEAR, 3)


# Pixels


def _image_of(
    scene: CatalogueScene, location: Location, collection: Collection, opener: Opener
) -> tuple[StoredImage | None, str | None]:
    """Return the image of a scene at a location, or None and why it is refused."""
    flags = _quality_flags(scene, location, opener)
    if flags is not None and flags[0] > collection.max_cloud:
        return None, "clouds"
    if flags is not None and flags[1] > collection.max_nodata:
        return None, "no data"
    image = crop(scene, location, opener)
    if image is None:
        return None, "sticking out of the scene"
    if min(image.pixels.shape[1:]) < _SHORTEST_SIDE:
        return None, _TOO_SMALL
    real = image.valid_values()
    if 1 - np.count_nonzero(real) / real.size > collection.max_nodata:
        return None, "no data"
    cloudy = flags[0] if flags else None
    estimated = estimate_clouds(image) if flags is None else None
    if estimated is not None:
        cloudy = float(estimated.mean())
        if cloudy > collection.max_cloud:
            return None, "clouds"
    label = f"{scene.scene.source}"
    fields = image_fields(image, label)
    # The processor will say the same of the set, but years later and not to whoever has the scene at hand.
    read_image(fields, band_table([scene.scene.sensor], image.sensor, image.bands, label), label)
    facts: dict[str, Any] = {**fields, "source": scene.name, "nodata": image.nodata}
    return StoredImage(**facts, cloud_share=cloudy, licence=scene.licence), None


def _quality_flags(scene: CatalogueScene, location: Location, opener: Opener) -> tuple[float, float] | None:
    """Return the shares of cloud and of missing data that a quality layer tells; None where there is none."""
    if scene.quality_path is None:
        return None
    where = "its header"
    try:
        with no_georeference_warning(), opener(scene.quality_path) as dataset:
            grid = grid_of(dataset)
            window = location.window
            if location.footprint is not None and grid.crs is not None:
                window = surrounding_window(location.footprint, grid, margin=0)
            if window is None:
                return 0.0, 1.0
            where = _told(window)
            values = dataset.read(1, window=rasterio.windows.Window(*window))
    except RasterioError as error:
        raise ValueError(
            f"{scene.quality_path}: the quality layer cannot be read in {where} "
            f"({one_line(error.__cause__ or error)}); the file is damaged or cut short, so fetch it again."
        ) from error
    try:
        flags = read_flags(values, scene.quality_path)
    except ValueError as error:
        raise ValueError(f"{error} (In {where}.)") from error
    known = ~flags.missing
    return float((flags.cloudy & known).sum() / max(known.sum(), 1)), float(flags.missing.mean())


def _told(window: Window) -> str:
    """Return a window as errors name it."""
    column, row, width, height = window
    return f"columns {column} to {column + width - 1}, rows {row} to {row + height - 1}"


def crop(scene: CatalogueScene, location: Location, opener: Opener) -> Image | None:
    """Read a scene at a location: a window of its own pixels wherever they are square and north up.

    Args:
        scene: The scene.
        location: The place.
        opener: What opens rasters.

    Returns:
        The image, as stored; None where the footprint sticks out of the scene.

    Raises:
        ValueError: If the file is damaged there; names it, and the window.
    """
    footprint, grid = location.footprint, scene.scene.grid
    if footprint is None:
        return read_scene(scene.scene, location.window, opener)
    upright, resolution, window = _window_in(footprint, grid)
    if upright:
        return None if window is None else read_scene(scene.scene, window, opener)
    around: Window | None = surrounding_window(footprint, grid)
    if around is None:
        return None
    return _reprojected(read_scene(scene.scene, around, opener), grid.crop(around), footprint, resolution)


@lru_cache(maxsize=256)
def _window_in(footprint: Footprint, grid: Grid) -> tuple[bool, float, Window | None]:
    """Return whether a grid is upright at a footprint, its metres per pixel, and the window; dates share a grid."""
    place = locate(footprint, grid)
    return place.is_upright, place.resolution, window_of(footprint, place, grid) if place.is_upright else None


def _reprojected(image: Image, grid: Grid, footprint: Footprint, resolution: float) -> Image:
    """Return an image on the UTM grid of a footprint, bilinearly; what has no data has no weight."""
    target = upright_grid(footprint, resolution)
    real = image.valid_values()
    values = np.where(real, image.pixels, np.nan).astype(np.float32)
    moved = np.full((len(values), target.height, target.width), np.nan, np.float32)
    reproject(
        values,
        moved,
        src_transform=rasterio.Affine(*grid.transform),
        src_crs=grid.crs,
        src_nodata=np.nan,
        dst_transform=rasterio.Affine(*target.transform),
        dst_crs=target.crs,
        dst_nodata=np.nan,
        resampling=Resampling.bilinear,
    )
    known = np.isfinite(moved)
    dtype = image.pixels.dtype
    fill = 0 if image.nodata is None or not math.isfinite(image.nodata) else image.nodata
    pixels = np.where(known, np.rint(moved) if dtype.kind in "iu" else moved, fill).astype(dtype)
    return Image(
        pixels=pixels,
        bands=image.bands,
        sensor=image.sensor,
        acquired=image.acquired,
        crs=target.crs_text,
        transform=target.transform,
        nodata=image.nodata,
        valid=None if known.all() else known,
        scale=image.scale,
        offset=image.offset,
        source=image.source,
    )
