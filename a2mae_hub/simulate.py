"""Simulated satellite scenes with known truth, for the demo and the tests.

A place is a patch of ground on a fine grid: terrain with a river and a lake, woods on the heights, fields in parcels, a
small town. A sensor observes it at a date:

    land cover + season ──► fractions of surface materials ──► reflectance in the sensor's bands (published spectra)
    ──► sunlight on the slopes, clouds and their shadows ──► point spread ──► pixels ──► noise ──► stored numbers

What is left out: the atmosphere (images are surface reflectance, also for sensors of a top-of-atmosphere product),
shadows cast by terrain and buildings, the direction of view, snow. Everything follows from the seed: same seed, same
bytes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path

import numpy as np

from .images import Image, ImageSet
from .landscape import (
    BARE_SOIL,
    BROADLEAF,
    BUILT_UP,
    CONIFER,
    GRASSLAND,
    LAND_COVER_COLOURS,
    LAND_COVER_NAMES,
    ROAD,
    SUMMER_CROP,
    WATER,
    WINTER_CROP,
    Place,
    random_field,
    simulate_place,
)
from .modeling.sensors_a2mae import Band, Sensor, get_sensor
from .optics import point_spread, sensor_noise, to_stored
from .raster import write_raster
from .spectra import MATERIALS, material_reflectance

# Relative contrast within a class at the scale of crowns and buildings (8 m) and of stands and soils (80 m).
_TEXTURE_CONTRAST = {
    WATER: (0.02, 0.06),
    CONIFER: (0.16, 0.09),
    BROADLEAF: (0.13, 0.07),
    GRASSLAND: (0.04, 0.06),
    WINTER_CROP: (0.02, 0.05),
    SUMMER_CROP: (0.02, 0.05),
    BARE_SOIL: (0.03, 0.08),
    BUILT_UP: (0.10, 0.04),
    ROAD: (0.04, 0.03),
}

_DIFFUSE_SHARE = 0.2  # share of skylight in the light on flat ground, clear sky, mid-latitude sun
_SHADED_SHARE = 0.3  # light left in the shadow of a thick cloud
_CLOUD_REFLECTANCE = 0.7
_CLOUD_HEIGHT_M = 1_500.0


@dataclass(frozen=True)
class Acquisition:
    """One image to take.

    Attributes:
        sensor: Name in the sensor registry.
        acquired: Time of acquisition; a naive time is UTC.
        cloud_cover: Share of the place under cloud, 0 to 1.
    """

    sensor: str
    acquired: datetime
    cloud_cover: float = 0.0


# ---------------------------------------------------------------------------------------------------------------- light


def solar_position(acquired: datetime, longitude: float, latitude: float) -> tuple[float, float]:
    """Return elevation and azimuth of the sun.

    Declination and equation of time by the Fourier series of Spencer 1971 (Search 2(5), p. 172; error of the
    declination below 0.04°), without refraction.

    Args:
        acquired: Time; a naive time is UTC.
        longitude: Degrees east.
        latitude: Degrees north.

    Returns:
        Elevation above the horizon and azimuth clockwise from north, degrees.
    """
    time = _utc(acquired)
    hours = time.hour + time.minute / 60 + time.second / 3600
    # Spencer's day angle, taken at the moment itself rather than at midnight.
    angle = 2 * math.pi * (time.timetuple().tm_yday - 1 + (hours - 12) / 24) / 365
    declination = (
        0.006918
        - 0.399912 * math.cos(angle)
        + 0.070257 * math.sin(angle)
        - 0.006758 * math.cos(2 * angle)
        + 0.000907 * math.sin(2 * angle)
        - 0.002697 * math.cos(3 * angle)
        + 0.001480 * math.sin(3 * angle)
    )
    equation_of_time = (12 / math.pi) * (
        0.000075
        + 0.001868 * math.cos(angle)
        - 0.032077 * math.sin(angle)
        - 0.014615 * math.cos(2 * angle)
        - 0.040890 * math.sin(2 * angle)
    )
    hour_angle = math.radians(15 * (hours + longitude / 15 + equation_of_time - 12))
    phi = math.radians(latitude)
    up = math.sin(phi) * math.sin(declination) + math.cos(phi) * math.cos(declination) * math.cos(hour_angle)
    east = -math.cos(declination) * math.sin(hour_angle)
    north = math.cos(phi) * math.sin(declination) - math.sin(phi) * math.cos(declination) * math.cos(hour_angle)
    return math.degrees(math.asin(max(-1.0, min(1.0, up)))), math.degrees(math.atan2(east, north)) % 360


def overpass(day: date, longitude: float) -> datetime:
    """Return 10:30 local mean solar time of a day, when the morning orbits of Sentinel-2 and Landsat pass, in UTC."""
    local = datetime(day.year, day.month, day.day, 10, 30, tzinfo=timezone.utc)
    return (local - timedelta(hours=longitude / 15)).replace(second=0, microsecond=0)


def _utc(time: datetime) -> datetime:
    """Return the time in UTC; a naive one is UTC already."""
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)


def _illumination(place: Place, sun_elevation: float, sun_azimuth: float) -> np.ndarray:
    """Return the light on every cell relative to flat ground: the cosine law for sunlight, even skylight; (h, w)."""
    to_south, to_east = np.gradient(place.elevation, place.resolution)
    height, azimuth = math.radians(sun_elevation), math.radians(sun_azimuth)
    sun_east, sun_north = math.cos(height) * math.sin(azimuth), math.cos(height) * math.cos(azimuth)
    cosine = (math.sin(height) - sun_east * to_east + sun_north * to_south) / np.sqrt(1 + to_east**2 + to_south**2)
    return _DIFFUSE_SHARE + (1 - _DIFFUSE_SHARE) * np.maximum(cosine, 0) / math.sin(height)


# ---------------------------------------------------------------------------------------------------------- the seasons


def _step(value: np.ndarray | float, at: np.ndarray | float, width: np.ndarray | float) -> np.ndarray:
    """Return a smooth step (logistic) from 0 to 1 at `at`."""
    return 1 / (1 + np.exp(-np.clip((np.asarray(value) - at) / width, -50, 50)))


def surface_fractions(place: Place, acquired: datetime) -> np.ndarray:
    """Return how much of every cell each material covers at a date.

    Greenness follows logistic curves of the day of year. Spring comes later and autumn earlier by 4 days per degree of
    latitude from 48° and per 122 m of height (bioclimatic law, Hopkins 1920). The southern hemisphere is half a year
    apart. Woods and grass within 10° of the equator stay green. Every field has its own days of sowing, ripening and
    harvest.

    Args:
        place: The place.
        acquired: The date; a naive time is UTC.

    Returns:
        (materials, height, width) float32 in the order of `MATERIALS`, summing to 1.
    """
    rng = np.random.default_rng([place.seed, 3])
    day = _utc(acquired).timetuple().tm_yday
    if place.latitude < 0:
        day = (day + 182) % 365
    later = 4 * np.clip(abs(place.latitude) - 48, -6, 6) + (place.elevation - place.elevation.mean()) * (4 / 122)
    seasonality = float(np.clip((abs(place.latitude) - 10) / 25, 0, 1))
    per_parcel = rng.uniform(size=(4, int(place.parcels.max()) + 1))
    shift, vigour, mowing, yellowing = (values[place.parcels] for values in per_parcel)

    fractions = np.zeros((len(MATERIALS), *place.land_cover.shape), np.float32)

    def cover(where: np.ndarray, **parts: np.ndarray | float) -> None:
        """Set the fractions of the cells `where`; parts are maps or numbers."""
        fractions[:, where] = 0
        for name, part in parts.items():
            fractions[MATERIALS.index(name), where] = part[where] if isinstance(part, np.ndarray) else part

    dense = np.clip(0.9 + 0.06 * place.texture[1], 0.7, 1.0)
    leaves = 1 - seasonality * (1 - _step(day, 116 + later, 6) * (1 - _step(day, 292 - later, 8)))
    turned = seasonality * np.exp(-(((day - 296 + later) / 14) ** 2)) * 0.5
    cover(
        place.land_cover == BROADLEAF,
        broadleaf=dense * leaves,
        dry_grass=(1 - dense * leaves) * turned,
        litter=(1 - dense * leaves) * (1 - turned),
    )
    cover(place.land_cover == CONIFER, conifer=dense, litter=1 - dense)

    growth = _step(day, 88 + later, 9) * (1 - _step(day, 300 - later, 15))
    since_mown = np.where((day > 140) & (day < 285), (day - 140 + 60 * mowing) % 60, 60)
    lush = (1 - seasonality * 0.45 * (1 - growth)) * (0.72 + 0.26 * vigour) * (1 - 0.4 * np.exp(-since_mown / 14))
    lush = np.clip(lush + 0.05 * place.texture[1], 0.05, 1)
    cover(place.land_cover == GRASSLAND, grass=lush, dry_grass=(1 - lush) * 0.75, soil=(1 - lush) * 0.25)

    def crop(
        sown: float, full: float, ripe: float, harvest: float, plough: float, winter: float
    ) -> dict[str, np.ndarray]:
        """Return the fractions of a field crop that covers `winter` of the ground until spring."""
        moved = day - 20 * (shift - 0.5) - later
        height = (winter + (0.95 - winter) * _step(moved, full, 9)) * (0.82 + 0.18 * vigour)
        yellow = _step(moved, ripe + 12 * (yellowing - 0.5), 6)
        standing, stubble = 1 - _step(moved, harvest, 1.5), _step(moved, harvest, 1.5) * (1 - _step(moved, plough, 2))
        next_crop = winter * _step(moved, sown, 8) * (1 - standing)
        height = np.clip(height + 0.05 * place.texture[1], 0, 1)
        green = height * (1 - yellow) * standing + next_crop
        dry = height * yellow * standing + 0.5 * stubble * (1 - next_crop)
        return {"grass": green, "dry_grass": dry, "soil": 1 - green - dry}

    cover(place.land_cover == WINTER_CROP, **crop(sown=285, full=92, ripe=178, harvest=203, plough=232, winter=0.3))
    cover(place.land_cover == SUMMER_CROP, **crop(sown=400, full=160, ripe=258, harvest=276, plough=296, winter=0.0))
    cover(place.land_cover == BARE_SOIL, soil=0.94, dry_grass=0.04, grass=0.02)
    cover(place.land_cover == WATER, water=1.0)
    cover(place.land_cover == ROAD, asphalt=0.85, concrete=0.15)

    gardens = (place.land_cover == BUILT_UP) & (place.roofs == 0)
    cover(
        gardens,
        grass=0.42 * lush,
        dry_grass=0.42 * (1 - lush),
        broadleaf=0.2 * leaves,
        litter=0.2 * (1 - leaves),
        concrete=0.14,
        asphalt=0.12,
        soil=0.12,
    )
    for roof, material in enumerate(("tile", "concrete", "metal"), start=1):
        cover((place.land_cover == BUILT_UP) & (place.roofs == roof), **{material: 1.0})

    change = place.change
    if change is not None and _utc(acquired) >= _utc(change.since):
        # Herbs take the ground back within some years.
        years = (_utc(acquired) - _utc(change.since)).days / 365.25
        bare = math.exp(-years / 3)
        left = (
            {"soil": 0.55, "litter": 0.3, "dry_grass": 0.15}
            if change.kind == "clear-cut"
            else {"char": 0.8, "soil": 0.2}
        )
        parts = {name: bare * share for name, share in left.items()}
        parts["dry_grass"] = parts.get("dry_grass", 0.0) + (1 - bare) * (1 - lush)
        cover(change.mask, grass=(1 - bare) * lush, **parts)
    return fractions


def _brightness(place: Place) -> np.ndarray:
    """Return the variation of brightness within and between fields, mean 1, (h, w): crowns, roofs, soils."""
    table = np.zeros((2, max(_TEXTURE_CONTRAST) + 1), np.float32)
    for cover, contrast in _TEXTURE_CONTRAST.items():
        table[:, cover] = contrast
    fine, broad = table[:, place.land_cover]
    field = np.random.default_rng([place.seed, 4]).uniform(-1, 1, int(place.parcels.max()) + 1)[place.parcels]
    tilled = np.isin(place.land_cover, (GRASSLAND, WINTER_CROP, SUMMER_CROP, BARE_SOIL))
    roofs = np.where(place.roofs > 0, 0.12 * place.texture[0], 0)
    return np.clip(1 + fine * place.texture[0] + broad * place.texture[1] + 0.14 * field * tilled + roofs, 0.3, 2)


def cloud_opacity(place: Place, acquisition: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """Return the opacity of clouds and of their shadows over every cell.

    Args:
        place: The place.
        acquisition: When, and how large a share of the place lies under cloud.

    Returns:
        Two (height, width) arrays, 0 clear to 1 opaque; cells of cloud opacity over 0.5 make up the share asked for.

    Raises:
        ValueError: If the cloud cover is no share from 0 to 1, or the sun is less than 5° high.
    """
    sun_elevation, sun_azimuth = _sun(place, acquisition)
    share = acquisition.cloud_cover
    if not 0 <= share <= 1:
        raise ValueError(f"A cloud cover of {share!r} is no share of the place: give a number from 0 to 1.")
    if share == 0:
        return np.zeros(place.land_cover.shape), np.zeros(place.land_cover.shape)
    # One sky at a time, whichever sensor looks.
    rng = np.random.default_rng([place.seed, 5, int(_utc(acquisition.acquired).timestamp()) // 60])
    depth = random_field(rng, place.land_cover.shape[0], place.resolution, 0.1 * place.extent, 1.0)
    opacity = _step(depth, np.quantile(depth, 1 - share), 0.15)
    # The field is periodic: what lies beyond one edge, and throws its shadow in, is the sky of the other edge.
    cells = _CLOUD_HEIGHT_M / math.tan(math.radians(sun_elevation)) / place.resolution
    azimuth = math.radians(sun_azimuth)
    shift = (round(cells * math.cos(azimuth)), round(-cells * math.sin(azimuth)))
    return opacity, np.roll(opacity, shift, axis=(0, 1))


def _sun(place: Place, acquisition: Acquisition) -> tuple[float, float]:
    """Return elevation and azimuth of the sun in degrees; raise ValueError where it is too low for an image."""
    elevation, azimuth = solar_position(acquisition.acquired, place.longitude, place.latitude)
    if elevation < 5:
        raise ValueError(
            f"At {acquisition.acquired:%Y-%m-%d %H:%M} UTC the sun stands {elevation:.0f}° over latitude "
            f"{place.latitude:g}, too low for an image: take the time from overpass(day, longitude)."
        )
    return elevation, azimuth


# ----------------------------------------------------------------------------------------------------------- the sensor


def observe(place: Place, acquisition: Acquisition, bands: Sequence[str] | None = None, *, seed: int = 0) -> Image:
    """Take an image of a place.

    Every band is sampled at its native ground resolution behind a Gaussian point spread of one pixel's width; coarser
    bands are then repeated onto the grid of the finest one (nearest neighbour), as stacked products do.

    Args:
        place: The place.
        acquisition: Sensor, time and cloud cover.
        bands: Bands to take, own or common names; None takes all bands of the sensor.
        seed: Seed of the sensor's noise.

    Returns:
        Image with the sensor's own band names, uint16 stored numbers with the sensor's scale and offset (uint8 where
        the sensor's unit is DN: square root of reflectance, 0.5 shown as 255), nodata 0, UTM georeference.

    Raises:
        ValueError: If a sensor or band is unknown, its pixels are finer than the place's cells, the extent is no
            multiple of its ground resolution, the cloud cover is no share, or the sun is too low.
    """
    sensor = get_sensor(acquisition.sensor)
    chosen = [sensor.find(name) for name in bands] if bands is not None else list(sensor.bands)
    pixel_size = min(band.resolution for band in chosen)
    size = round(place.extent / pixel_size)
    if pixel_size < place.resolution * (1 - 1e-9):
        raise ValueError(
            f"Sensor {sensor.name!r} sees {pixel_size:g} m, finer than the place's cells of {place.resolution:g} m: "
            f"simulate the place with fine_resolution={pixel_size:g} or less."
        )
    if size < 1 or not math.isclose(size * pixel_size, place.extent):
        raise ValueError(
            f"The place is {place.extent:g} m wide, no multiple of the {pixel_size:g} m pixels of sensor "
            f"{sensor.name!r}: simulate it with another extent (1920 suits 10, 15, 20, 30 and 60 m)."
        )
    scene = _scene_reflectance(place, acquisition, chosen)
    image = np.empty((len(chosen), size, size), np.float32)
    cells = place.land_cover.shape[0]
    for native in sorted({band.resolution for band in chosen}):
        members = [index for index, band in enumerate(chosen) if band.resolution == native]
        pixels = math.ceil(place.extent / native - 1e-9)
        weights = point_spread(cells, pixels, place.resolution, native, blur=native)
        nearest = np.minimum(((np.arange(size) + 0.5) * pixel_size // native).astype(int), pixels - 1)
        sampled = weights @ scene[members] @ weights.T
        sampled += sensor_noise(sampled, sensor, _noise_source(sensor, acquisition, place.seed, seed, native))
        image[members] = sampled[:, nearest[:, None], nearest]
    return Image(
        pixels=to_stored(image, sensor),
        bands=[band.name for band in chosen],
        sensor=sensor.name,
        acquired=acquisition.acquired,
        crs=place.crs,
        transform=(pixel_size, 0.0, place.west, 0.0, -pixel_size, place.north),
        nodata=0,
        scale=sensor.scale,
        offset=sensor.offset,
        source="simulated",
    )


def _scene_reflectance(place: Place, acquisition: Acquisition, bands: Sequence[Band]) -> np.ndarray:
    """Return what the bands would see of every cell without blur and noise: (bands, h, w) float32 reflectance."""
    fractions = surface_fractions(place, acquisition.acquired)
    scene = np.tensordot(material_reflectance(bands).astype(np.float32), fractions, axes=1)
    light = _brightness(place) * _illumination(place, *_sun(place, acquisition))
    if acquisition.cloud_cover:
        opacity, shadow = cloud_opacity(place, acquisition)
        light = light * (1 - (1 - _SHADED_SHARE) * shadow) * (1 - opacity)
        glow = _CLOUD_REFLECTANCE * opacity * (0.8 + 0.2 * opacity)
        return scene * light.astype(np.float32) + glow.astype(np.float32)
    return scene * light.astype(np.float32)


def _noise_source(
    sensor: Sensor, acquisition: Acquisition, place_seed: int, seed: int, resolution: float
) -> np.random.Generator:
    """Return the random numbers of the noise of one image at one ground resolution."""
    minutes = int(_utc(acquisition.acquired).timestamp()) // 60
    return np.random.default_rng(
        [place_seed, seed, 6, minutes, zlib.crc32(sensor.name.encode()), round(resolution * 10)]
    )


# ------------------------------------------------------------------------------------------------------- sets and files


def default_acquisitions(longitude: float) -> list[Acquisition]:
    """Return two sensors on each of two dates, in the growing season and after it, north of the tropics."""
    return [
        Acquisition(sensor, overpass(day, longitude))
        for day in (date(2023, 7, 5), date(2023, 10, 22))
        for sensor in ("sentinel-2-l2a", "landsat-8-sr")
    ]


def simulate_image_set(
    seed: int, acquisitions: Sequence[Acquisition] | None = None, *, place: Place | None = None
) -> ImageSet:
    """Make up a place and images of it.

    Args:
        seed: Seed of the place, and of the noise of the sensors.
        acquisitions: The images to take; None takes Sentinel-2 and Landsat-8 on the same days in July and October.
        place: The place; None makes one up from the seed.

    Returns:
        The images in the order of the acquisitions; the first is the anchor.

    Raises:
        ValueError: If an acquisition cannot be taken (see `observe`).
    """
    place = simulate_place(seed) if place is None else place
    chosen = default_acquisitions(place.longitude) if acquisitions is None else acquisitions
    return ImageSet(
        images=[observe(place, acquisition, seed=seed) for acquisition in chosen],
        longitude=place.longitude,
        latitude=place.latitude,
        name=f"simulated place {place.seed}",
    )


def write_scenes(
    folder: str | Path,
    seed: int,
    acquisitions: Sequence[Acquisition] | None = None,
    *,
    place: Place | None = None,
) -> list[Path]:
    """Write images of a simulated place as georeferenced GeoTIFFs, and its land cover beside them.

    Images are named `place<seed>_<sensor>_<YYYYMMDD>.tif`. They carry band names as descriptions, the tags `sensor`
    and `acquired`, scale and offset per band, and nodata 0. `truth/land_cover.tif` has the fine grid, a colour table
    and the class names as tags `class_<number>`; `truth/change.tif` (0/1) is there if the place has a change.

    Args:
        folder: Where to write; made if absent, and files of the same names are replaced.
        seed: As in `simulate_image_set`.
        acquisitions: As in `simulate_image_set`.
        place: As in `simulate_image_set`.

    Returns:
        Paths of the images, in the order of the acquisitions; without the truth.

    Raises:
        ValueError: If an acquisition cannot be taken (see `observe`), or two would get the same file name.
    """
    place = simulate_place(seed) if place is None else place
    chosen = default_acquisitions(place.longitude) if acquisitions is None else acquisitions
    folder = Path(folder)
    paths = [folder / f"place{place.seed}_{taken.sensor}_{_utc(taken.acquired):%Y%m%d}.tif" for taken in chosen]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"Two acquisitions would be written to {path.name}: give them different days or sensors.")
    images = simulate_image_set(seed, chosen, place=place)
    folder.mkdir(parents=True, exist_ok=True)
    for path, image, taken in zip(paths, images, chosen, strict=True):
        tags = {"sensor": image.sensor, "acquired": _utc(taken.acquired).isoformat(), "source": "simulated"}
        write_raster(
            path,
            image.pixels,
            like=image,
            descriptions=image.bands,
            nodata=image.nodata,
            scale=image.scale,
            offset=image.offset,
            tags=tags,
        )
    names = {f"class_{number}": name for number, name in LAND_COVER_NAMES.items()}
    grid = (place.resolution, 0.0, place.west, 0.0, -place.resolution, place.north)
    truth, colours = folder / "truth", LAND_COVER_COLOURS
    truth.mkdir(exist_ok=True)
    write_raster(truth / "land_cover.tif", place.land_cover, crs=place.crs, transform=grid, tags=names, colours=colours)
    if place.change is not None:
        tags = {"change": place.change.kind, "since": _utc(place.change.since).isoformat()}
        write_raster(truth / "change.tif", place.change.mask, crs=place.crs, transform=grid, tags=tags)
    return paths
