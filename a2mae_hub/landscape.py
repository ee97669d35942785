"""The ground of simulated scenes: terrain, land cover, and what happens to it.

`simulate_place` lays out water, woods, fields and a town on fractal terrain; `a2mae_hub.simulate` takes images of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Literal

import numpy as np

WATER, CONIFER, BROADLEAF, GRASSLAND, WINTER_CROP, SUMMER_CROP, BARE_SOIL, BUILT_UP, ROAD = range(1, 10)

LAND_COVER_NAMES = {
    WATER: "water",
    CONIFER: "conifer forest",
    BROADLEAF: "broadleaf forest",
    GRASSLAND: "grassland",
    WINTER_CROP: "winter crop",
    SUMMER_CROP: "summer crop",
    BARE_SOIL: "bare soil",
    BUILT_UP: "built-up",
    ROAD: "road",
}
LAND_COVER_COLOURS = {
    WATER: (38, 96, 164),
    CONIFER: (20, 74, 46),
    BROADLEAF: (66, 138, 58),
    GRASSLAND: (168, 208, 110),
    WINTER_CROP: (236, 212, 112),
    SUMMER_CROP: (238, 160, 60),
    BARE_SOIL: (162, 116, 82),
    BUILT_UP: (204, 66, 62),
    ROAD: (110, 110, 118),
}

ChangeKind = Literal["clear-cut", "burn"]


@dataclass(frozen=True, eq=False)
class Change:
    """An event after which part of a place looks different.

    Attributes:
        kind: "clear-cut" or "burn".
        since: Time of the event; a naive time is UTC.
        mask: (height, width) bool on the fine grid, True where the ground changed.
    """

    kind: ChangeKind
    since: datetime
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Place:
    """A patch of ground and the truth about it, north up, on a fine grid of height × width cells.

    Attributes:
        seed: Seed that everything about the place follows from.
        longitude: Degrees east of the centre (to within the 60 m grid the corner is snapped to).
        latitude: Degrees north of the centre.
        crs: "EPSG:326zz" or "EPSG:327zz", the UTM zone of the centre.
        west: Easting of the left edge, metres.
        north: Northing of the upper edge, metres.
        resolution: Side of a cell, metres.
        land_cover: (height, width) uint8, the keys of `LAND_COVER_NAMES`.
        elevation: (height, width) float32, metres.
        parcels: (height, width) int32, number of the field a cell lies in, over the whole place.
        roofs: (height, width) uint8, 0 = no roof, else 1 tile, 2 concrete, 3 metal.
        texture: (2, height, width) float32 of mean 0 and variance 1: fine and broad variation within a class.
        change: What happened to the place, or None.
    """

    seed: int
    longitude: float
    latitude: float
    crs: str
    west: float
    north: float
    resolution: float
    land_cover: np.ndarray
    elevation: np.ndarray
    parcels: np.ndarray
    roofs: np.ndarray
    texture: np.ndarray
    change: Change | None = None

    @property
    def extent(self) -> float:
        """Side of the place in metres."""
        return self.land_cover.shape[0] * self.resolution


def random_field(
    rng: np.random.Generator, size: int, resolution: float, length: float, smoothness: float = 1.0
) -> np.ndarray:
    """Return a square Gaussian random field of mean 0 and variance 1 with a Matérn spectrum (Whittle 1954), periodic.

    Args:
        rng: Source of random numbers.
        size: Cells per side.
        resolution: Side of a cell, metres.
        length: Distance over which values stay alike, metres; the field is fractal below it.
        smoothness: Matérn's ν: 0.5 is rugged, 2 is smooth.

    Returns:
        (size, size) float64.
    """
    rows, columns = np.fft.fftfreq(size, resolution)[:, None], np.fft.rfftfreq(size, resolution)[None]
    amplitude = (1 + (2 * math.pi * length) ** 2 * (rows**2 + columns**2)) ** (-(smoothness + 1) / 2)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * amplitude, s=(size, size))
    return (field - field.mean()) / field.std()


def _river(rng: np.random.Generator, elevation: np.ndarray, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """Lay a river from the left to the right edge through low ground.

    The course is the cheapest path that moves one column at a time, cost rising with elevation (dynamic programming).

    Returns:
        Distance of every cell from the middle of the river, metres, and the elevation of the river in every column.
    """
    size = elevation.shape[0]
    cost = ((elevation - elevation.min()) / np.ptp(elevation) + 0.1) ** 2
    steps, far = (-2, -1, 0, 1, 2), 1e9
    total, came_from = cost[:, 0], np.zeros((size, size), np.int64)
    for column in range(1, size):
        padded = np.pad(total, 2, constant_values=far)
        candidates = np.stack([padded[2 + s : 2 + s + size] + 0.02 * abs(s) for s in steps])
        best = candidates.argmin(axis=0)
        came_from[:, column] = best - 2
        total = candidates[best, np.arange(size)] + cost[:, column]
    row, course = int(total.argmin()), np.zeros(size)
    for column in range(size - 1, -1, -1):
        course[column] = row
        row += came_from[row, column]
    # Rivers bend: the grid path is smoothed over 100 m and given meanders of some 15 m.
    half = max(1, round(50 / resolution))
    course = np.convolve(np.pad(course, half, mode="edge"), np.full(2 * half + 1, 1 / (2 * half + 1)), mode="valid")
    course += random_field(rng, size, resolution, 40.0, 2.0)[0] * 15 / resolution
    course = course * resolution
    axis = np.arange(size) * resolution
    knots = np.unique(np.append(np.arange(0, size, max(1, round(20 / resolution))), size - 1))
    distance = np.full(elevation.shape, np.inf)
    for start, end in pairwise(knots):
        east, south = axis[end] - axis[start], course[end] - course[start]
        x, y = axis[None] - axis[start], axis[:, None] - course[start]
        along = np.clip((x * east + y * south) / (east**2 + south**2), 0, 1)
        np.minimum(distance, (x - along * east) ** 2 + (y - along * south) ** 2, out=distance)
    distance = np.sqrt(distance)
    bed = elevation[np.clip(np.rint(course / resolution), 0, size - 1).astype(int), np.arange(size)]
    # Water runs downhill: from the higher end to the lower one.
    ends = sorted((float(bed.min()), float(np.median(bed))), reverse=bool(bed[0] > bed[-1]))
    return distance, np.linspace(ends[0], ends[1], size)


def _terrain(
    rng: np.random.Generator, east: np.ndarray, south: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make hills with a valley cut by a river and a lake in the lowest hollow away from it.

    Returns:
        Elevation, distance from the middle of the river, and distance outside the shore of the lake (negative in it),
        all (height, width) in metres.
    """
    size, resolution = east.shape[0], float(east[0, 1] - east[0, 0])
    extent = size * resolution
    elevation = 26 * random_field(rng, size, resolution, 260.0, 1.6) + 1.5 * random_field(rng, size, resolution, 40.0)
    river, bed = _river(rng, elevation, resolution)
    elevation = bed[None] + (1 - np.exp(-((river / 280) ** 2))) * np.maximum(elevation - bed[None] + 10, 0)
    if rng.uniform() < 0.5:
        elevation, river = elevation.T, river.T

    inland = np.minimum.reduce([east, south, extent - east, extent - south])
    hollow = np.where((river > 260) & (inland > 0.12 * extent), elevation, np.inf)
    row, column = np.unravel_index(hollow.argmin(), hollow.shape)
    radius = rng.uniform(0.045, 0.07) * extent
    lake = np.hypot(east - east[row, column], south - south[row, column])
    lake = lake * (1 + np.clip(0.3 * random_field(rng, size, resolution, 70.0, 1.5), -0.5, 0.5)) - radius
    if np.isinf(hollow[row, column]):  # no room for one
        lake = np.full_like(lake, np.inf)
    shore = np.clip(lake / (4 * radius), 0, 1)
    level = elevation[row, column]
    elevation = level + (elevation - level) * np.where(lake < 0, 0, shore * (2 - shore))
    # Banks are ragged.
    return elevation + 420, river + 4 * random_field(rng, size, resolution, 60.0, 1.5), lake


def _parcels(rng: np.random.Generator, east: np.ndarray, south: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divide the ground into estates, each with its own direction, and these into strips of rectangular fields.

    Returns:
        Number of the field and distance to its edge in metres, both (height, width).
    """
    extent = float(east[0, -1] + east[0, 0])
    estates = max(1, round((extent / 700) ** 2))
    centres = rng.uniform(0, extent, (estates, 2))
    estate = ((east[..., None] - centres[:, 0]) ** 2 + (south[..., None] - centres[:, 1]) ** 2).argmin(axis=-1)
    numbers, edge = np.zeros(east.shape, np.int32), np.full(east.shape, np.inf)
    first = 0
    for index in range(estates):
        inside = estate == index
        angle = rng.uniform(0, math.pi)
        u = east[inside] * math.cos(angle) + south[inside] * math.sin(angle) + 2 * extent
        v = -east[inside] * math.sin(angle) + south[inside] * math.cos(angle) + 2 * extent
        strips = np.cumsum(rng.uniform(60, 190, math.ceil(4 * extent / 60)))
        strip = np.searchsorted(strips, u)
        # The breaks of all strips lie on one line, strip after strip, so that one search finds every field.
        lengths = np.cumsum(rng.uniform(90, 330, (len(strips) + 1, math.ceil(4 * extent / 90))), axis=1)
        span = 1_000 * math.ceil(lengths.max() / 1_000)
        breaks = (lengths + span * np.arange(len(lengths))[:, None]).ravel()
        field = np.searchsorted(breaks, v + span * strip)
        _, compact = np.unique(field, return_inverse=True)
        numbers[inside] = compact + first
        first = int(numbers[inside].max(initial=first - 1)) + 1
        across = np.minimum(np.abs(strips[strip] - u), np.abs(u - strips[np.maximum(strip - 1, 0)]))
        along = np.minimum(
            breaks[field] - v - span * strip, np.abs(v + span * strip - breaks[np.maximum(field - 1, 0)])
        )
        edge[inside] = np.minimum(across, along)
    return numbers, edge


def _open_country(
    rng: np.random.Generator,
    elevation: np.ndarray,
    river: np.ndarray,
    parcels: np.ndarray,
    parcel_edge: np.ndarray,
    resolution: float,
) -> np.ndarray:
    """Return the land cover outside towns and water, (h, w): woods on steep and high ground, fields on the rest."""
    size = elevation.shape[0]
    slope = np.hypot(*np.gradient(elevation, resolution))
    rise = (elevation - elevation.mean()) / elevation.std()
    wood = 0.7 * rise + 4.0 * slope + 0.7 * random_field(rng, size, resolution, 140.0, 0.9)
    conifer = 0.5 * rise + random_field(rng, size, resolution, 110.0, 0.7) > 0.5

    count = int(parcels.max()) + 1
    crops = np.array([GRASSLAND, WINTER_CROP, SUMMER_CROP, BARE_SOIL, BROADLEAF], np.uint8)
    of_parcel = rng.choice(crops, count, p=[0.22, 0.36, 0.28, 0.09, 0.05])
    cells = np.maximum(np.bincount(parcels.ravel(), minlength=count), 1)
    steep = np.bincount(parcels.ravel(), slope.ravel(), minlength=count) / cells > 0.2
    of_parcel[steep] = GRASSLAND  # too steep for the plough
    land_cover = of_parcel[parcels]
    hedged = rng.uniform(size=count)[parcels] < 0.3
    land_cover = np.where(parcel_edge < 3, np.where(hedged, BROADLEAF, GRASSLAND), land_cover)
    trees = random_field(rng, size, resolution, 25.0) > 0.2
    land_cover = np.where(river < 45, np.where(trees, BROADLEAF, GRASSLAND), land_cover)
    return np.where(wood > np.quantile(wood, 0.66), np.where(conifer, CONIFER, BROADLEAF), land_cover)


def _town(
    rng: np.random.Generator, east: np.ndarray, south: np.ndarray, centre: tuple[float, float], radius: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay out a town: a grid of streets, plots with houses, some blocks with halls, and two roads out of it.

    Returns:
        Masks of the town and of roads, and the roofs, all (height, width).
    """
    size = east.shape[0]
    resolution = float(east[0, 1] - east[0, 0])
    angle = rng.uniform(0, math.pi / 2)
    u = (east - centre[0]) * math.cos(angle) + (south - centre[1]) * math.sin(angle)
    v = -(east - centre[0]) * math.sin(angle) + (south - centre[1]) * math.cos(angle)
    distance = np.hypot(u, v) * (1 + 0.2 * random_field(rng, size, resolution, 150.0, 1.5))
    town = distance < radius
    road = town & ((np.mod(u, 84) < 8) | (np.mod(v, 56) < 7))
    for along, across in ((u, v), (v, u)):
        reach = np.linspace(-3 * radius - 4_000, 3 * radius + 4_000, 65)
        bend = np.convolve(rng.standard_normal(65), [0.25, 0.5, 0.25], mode="same").cumsum() * 30
        bend -= bend[32]
        # Straight through the town, where it is one of the streets.
        bend *= np.clip((np.abs(reach) - radius) / 500, 0, 1)
        shift = np.interp(along, reach, bend)
        road |= np.abs(across - shift - 4) < 5
    # Two rows of four plots, 19 × 24 m, fill a block of 76 × 49 m.
    block = np.floor(u / 84).astype(int) * 31 + np.floor(v / 56).astype(int) * 17
    in_u, in_v = np.mod(u, 84) - 8, np.mod(v, 56) - 7
    plot = block * 8 + np.clip(in_u // 19, 0, 3).astype(int) * 2 + np.clip(in_v // 24.5, 0, 1).astype(int)
    plot_u, plot_v = np.mod(in_u, 19) - 9.5, np.mod(in_v, 24.5) - 12.25
    draw = rng.uniform(size=(3, 4_096))[:, np.mod(plot, 4_096)]
    hall_draw = rng.uniform(size=(2, 1_024))[:, np.mod(block, 1_024)]
    centrality = np.clip(1 - distance / radius, 0, 1)
    house = (
        (np.abs(plot_u) < 4 + 2 * draw[1] + 2.5 * centrality)
        & (np.abs(plot_v) < 4 + 3 * draw[2] + 3 * centrality)
        & (draw[0] < 0.6 + 0.5 * centrality)
    )
    hall = (np.abs(in_u - 38) < 26) & (np.abs(in_v - 24.5) < 15)
    roofs = np.where(house, np.where(draw[1] < 0.75, 1, np.where(draw[1] < 0.97, 2, 3)), 0)
    roofs = np.where(hall_draw[0] < 0.08, np.where(hall, np.where(hall_draw[1] < 0.7, 2, 3), 0), roofs)
    return town, road, np.where(town & ~road, roofs, 0).astype(np.uint8)


def simulate_place(
    seed: int,
    *,
    longitude: float = 9.4,
    latitude: float = 48.4,
    extent: float = 1_920.0,
    fine_resolution: float = 5.0,
) -> Place:
    """Make up a place of land and water.

    Args:
        seed: Seed; another one is another place.
        longitude: Degrees east of the centre.
        latitude: Degrees north of the centre; it sets the seasons and the sun.
        extent: Side in metres, a multiple of every ground resolution to observe (1 920 m suits 10, 15, 20, 30, 60 m).
        fine_resolution: Side of a cell of truth in metres, no larger than the finest pixel to observe.

    Returns:
        The place.

    Raises:
        ValueError: If the centre lies outside UTM (80° S to 84° N), or the extent is no multiple of the fine
            resolution.
    """
    from rasterio.warp import transform  # GDAL is slow to import, and a reader of this module may not need it

    if not (-180 <= longitude <= 180 and -80 <= latitude <= 84):
        raise ValueError(
            f"A place at longitude {longitude:g}, latitude {latitude:g} lies outside the UTM zones: choose a longitude "
            "of -180 to 180 and a latitude of -80 to 84."
        )
    size = round(extent / fine_resolution) if fine_resolution > 0 else 0
    if size < 8 or not math.isclose(size * fine_resolution, extent):
        raise ValueError(
            f"An extent of {extent:g} m does not hold a whole number, at least 8, of cells of {fine_resolution:g} m: "
            "change extent or fine_resolution."
        )
    zone = min(int((longitude + 180) // 6) + 1, 60)
    crs = f"EPSG:{(32600 if latitude >= 0 else 32700) + zone}"
    (x,), (y,) = transform("EPSG:4326", crs, [longitude], [latitude])
    # Snapped to 60 m, so that the grids of all sensors share their corner.
    west, north = 60 * round((x - extent / 2) / 60), 60 * round((y + extent / 2) / 60)

    rng = np.random.default_rng([seed, 1])
    axis = (np.arange(size) + 0.5) * fine_resolution
    east, south = np.meshgrid(axis, axis)
    elevation, river, lake = _terrain(rng, east, south)
    parcels, parcel_edge = _parcels(rng, east, south)
    land_cover = _open_country(rng, elevation, river, parcels, parcel_edge, fine_resolution)

    # The town lies on flat ground by the river, not by the lake, and not at the edge.
    radius = 0.13 * extent
    inland = np.minimum.reduce([east, south, extent - east, extent - south])
    site = 8 * np.hypot(*np.gradient(elevation, fine_resolution)) + np.abs(river - 1.2 * radius) / radius
    site = site + 2 * (lake < 1.3 * radius) + 4 * (inland < 1.2 * radius)
    row, column = np.unravel_index(site.argmin(), site.shape)
    town, road, roofs = _town(rng, east, south, (float(axis[column]), float(axis[row])), radius)
    land_cover = np.where(town & (river > 40), BUILT_UP, land_cover)
    land_cover = np.where((river < 14) | (lake < 0), WATER, land_cover)
    land_cover = np.where(road & (lake > 0), ROAD, land_cover).astype(np.uint8)

    texture = [random_field(rng, size, fine_resolution, *shape) for shape in ((3.0, 1.0), (60.0, 0.8))]
    return Place(
        seed=seed,
        longitude=longitude,
        latitude=latitude,
        crs=crs,
        west=float(west),
        north=float(north),
        resolution=float(fine_resolution),
        land_cover=land_cover,
        elevation=elevation.astype(np.float32),
        parcels=parcels,
        roofs=np.where(land_cover == BUILT_UP, roofs, 0).astype(np.uint8),
        texture=np.stack(texture).astype(np.float32),
    )


def with_change(place: Place, kind: ChangeKind, since: datetime) -> Place:
    """Return the place with an event: a clear-cut (a straight-sided hole in a wood) or a burn (a ragged one).

    Args:
        place: The place; its event, if it has one, is replaced.
        kind: "clear-cut" or "burn".
        since: Time of the event.

    Returns:
        The place with `change` set; `land_cover` keeps the cover before the event.

    Raises:
        ValueError: If the kind is unknown or the place has no wood to lose.
    """
    if kind not in ("clear-cut", "burn"):
        raise ValueError(f'A change of kind {kind!r} is unknown: ask for "clear-cut" or "burn".')
    wood = np.isin(place.land_cover, (CONIFER, BROADLEAF))
    if not wood.any():
        raise ValueError("The place has no wood that could change: choose another seed or a larger extent.")
    rng = np.random.default_rng([place.seed, 2])
    size, half = wood.shape[0], 0.06 * place.extent
    # The densest stand: the window of twice the half side that holds most wood, by a summed-area table.
    side = min(size, max(1, math.ceil(2 * half / place.resolution)))
    total = np.pad(wood.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    score = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    row, column = (index + side // 2 for index in np.unravel_index(score.argmax(), score.shape))
    south, east = (np.mgrid[:size, :size] - np.array([row, column])[:, None, None]) * place.resolution
    if kind == "clear-cut":
        angle = rng.uniform(0, math.pi)
        u, v = east * math.cos(angle) + south * math.sin(angle), -east * math.sin(angle) + south * math.cos(angle)
        shape = (np.abs(u) < half) & (np.abs(v) < 0.7 * half)
    else:
        shape = np.hypot(east, south) * (1 + 0.35 * random_field(rng, size, place.resolution, half)) < 1.6 * half
    return replace(place, change=Change(kind, since, shape & wood))
