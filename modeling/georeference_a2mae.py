"""Where and when an image was taken: corner coordinates, metres on the ground, minutes since 2000.

Positions live in a local frame of true metres, north and east of the centre of a footprint. Degrees, Web Mercator
(whose metres are 1/cos(latitude) too long) and images of neighbouring UTM zones therefore agree with each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .masking_a2mae import UNKNOWN_TIME

_EPOCH = datetime(2000, 1, 1, tzinfo=timezone.utc)
_FIRST_YEAR, _LAST_YEAR = 1970, 2100

# World Geodetic System 1984: semi-major axis in metres and squared first eccentricity (NIMA TR8350.2, table 3.1 and
# 3.3).
_SEMI_MAJOR_AXIS = 6378137.0
_ECCENTRICITY_SQUARED = 6.69437999014e-3

# Coordinate systems whose x is a longitude and y a latitude in degrees, on WGS 84 or within two metres of it.
_DEGREE_CODES = {"EPSG:4326", "EPSG:4269", "OGC:CRS84", "CRS84", "WGS84"}
_DEGREE_WKT = re.compile(
    r'\s*(GEOGCS|GEOGCRS|GEODCRS|GEODETICCRS)\s*\[\s*"'
    r'(WGS ?84|WGS 84 \(CRS84\)|GCS_WGS_1984|NAD83|GCS_North_American_1983)"',
    re.IGNORECASE,
)
_ISO_TIME = re.compile(
    r"(?P<day>\d{4}-\d{2}-\d{2})([T ](?P<clock>\d{2}:\d{2}(:\d{2})?)([.,]\d+)?\s*(?P<zone>Z|[+-]\d{2}(:?\d{2})?)?)?"
)


# ---------------------------------------------------------------------------------------------------------------- time


def minutes_since_2000(acquired: Any, label: str = "the image") -> int:
    """Return an acquisition time as whole minutes since 2000-01-01 00:00 UTC.

    Args:
        acquired: ISO 8601 text (a date, or a date and a time, with or without zone), `datetime`, `date`,
            `numpy.datetime64`, or None or NaT where unknown. A time without a zone is UTC, a date is its first minute.
        label: What the time belongs to, quoted in errors.

    Returns:
        Minutes, rounded down; `UNKNOWN_TIME` where unknown.

    Raises:
        ValueError: If the value cannot be read as a time, or lies before 1970 or after 2100.
    """
    if acquired is None or acquired != acquired:  # NaT and NaN differ from themselves
        return UNKNOWN_TIME
    moment = _read_time(acquired, label)
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        raise ValueError(
            f"{label} was acquired at {acquired}, but times from {_FIRST_YEAR} to {_LAST_YEAR} are expected: "
            "correct the date, or pass acquired=None where it is unknown."
        )
    return (moment - _EPOCH) // timedelta(minutes=1)


def _read_time(acquired: Any, label: str) -> datetime:
    """Return the time as a zoned `datetime`; raise ValueError where it is none."""
    if isinstance(acquired, np.datetime64):
        # To seconds first: a finer unit would come out of `item` as a bare integer.
        acquired = acquired.astype("datetime64[s]").item()
    if isinstance(acquired, str):
        return _parse_iso(acquired, label)
    if isinstance(acquired, datetime):
        return acquired if acquired.tzinfo else acquired.replace(tzinfo=timezone.utc)
    if isinstance(acquired, date):
        return datetime(acquired.year, acquired.month, acquired.day, tzinfo=timezone.utc)
    raise ValueError(
        f"{label} has acquired={acquired!r} of type {type(acquired).__name__}: pass an ISO 8601 text, a datetime, a "
        "date, a numpy datetime64, or None where it is unknown."
    )


def _parse_iso(text: str, label: str) -> datetime:
    """Read ISO 8601 text; `datetime.fromisoformat` of Python 3.10 knows neither "Z" nor fractions of other lengths."""
    match = _ISO_TIME.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError("not in the form YYYY-MM-DDThh:mm:ss")
        zone = match["zone"] or "Z"
        if zone == "Z":
            offset = "+00:00"
        else:
            digits = zone[1:].replace(":", "").ljust(4, "0")
            offset = f"{zone[0]}{digits[:2]}:{digits[2:]}"
        return datetime.fromisoformat(f"{match['day']}T{match['clock'] or '00:00'}{offset}")
    except ValueError as reason:
        raise ValueError(
            f"{label} has acquired={text!r}, which is no ISO 8601 time ({reason}): write it like "
            "'2020-01-23T10:56:29Z' or '2020-01-23', or pass None where it is unknown."
        ) from None


# --------------------------------------------------------------------------------------------------------------- space


class PixelGrid(NamedTuple):
    """The pixel grid of one image and what ties it to the ground.

    Attributes:
        label: Name of the image in errors.
        height: Rows.
        width: Columns.
        gsd: Ground sample distance, metres per pixel; used where there is no georeference.
        crs: Coordinate reference system as text (`crs_text`), or None.
        transform: (a, b, c, d, e, f) of x = a·column + b·row + c, y = d·column + e·row + f, or None.
    """

    label: str
    height: int
    width: int
    gsd: float
    crs: str | None = None
    transform: tuple[float, ...] | None = None


class Placement(NamedTuple):
    """The images of one set on the ground.

    Attributes:
        corners: (T, 4, 2) float64. North and east of the corners in metres from the footprint centre, in the order
            upper left, upper right, lower right, lower left of the pixel grid.
        anchor_corners: (4, 2) float64. Longitude and latitude of the anchor's corners in degrees; NaN where unknown.
    """

    corners: np.ndarray
    anchor_corners: np.ndarray


def place_images(
    grids: Sequence[PixelGrid],
    anchor: int = 0,
    longitude: float | None = None,
    latitude: float | None = None,
    label: str = "the set",
    degrees: Sequence[np.ndarray | None] | None = None,
) -> Placement:
    """Put the images of one set on the ground, in metres around the centre of the set's footprint.

    The centre is that of the anchor image; where the anchor carries no georeference, the given longitude and latitude;
    without those, the centre of the first georeferenced image. Images without georeference are centred there, north up.

    Args:
        grids: The T images of the set.
        anchor: Index of the anchor image.
        longitude: Degrees east of the centre of images without georeference.
        latitude: Degrees north of it.
        label: Name of the set in errors.
        degrees: What `corner_degrees` returns of the images, where it was called for many sets at once.

    Returns:
        The corners of every image in metres, and those of the anchor in degrees.

    Raises:
        ValueError: If coordinates are no place on Earth, a CRS cannot be read, rasterio is needed and missing, or an
            image does not overlap the anchor's footprint.
    """
    centre = _given_centre(longitude, latitude, label)
    degrees = corner_degrees(grids) if degrees is None else degrees
    located = {index: corners for index, corners in enumerate(degrees) if corners is not None}
    if located and (anchor in located or centre is None):
        centre = _middle(located.get(anchor, next(iter(located.values()))))

    corners = np.empty((len(grids), 4, 2))
    for index, grid in enumerate(grids):
        if index in located:
            assert centre is not None
            corners[index] = to_metres(located[index], centre)
        else:
            half = np.array([grid.height, grid.width]) * (grid.gsd / 2)
            corners[index] = half * [[1, -1], [1, 1], [-1, 1], [-1, -1]]
    _check_overlap(grids, corners, anchor, located)

    if anchor in located:
        anchor_corners = located[anchor]
    elif centre is not None:
        anchor_corners = to_degrees(corners[anchor], centre)
    else:
        anchor_corners = np.full((4, 2), np.nan)
    return Placement(corners, anchor_corners)


def ground_resolution(corners: np.ndarray, height: int, width: int) -> float:
    """Return the metres per pixel of an image: the square root of the mean area of its pixels.

    Args:
        corners: (4, 2) north and east of the corners in metres, in order around the image.
        height: Rows.
        width: Columns.
    """
    north, east = corners[:, 0], corners[:, 1]
    # Half the product of the diagonals, the shoelace formula for four corners.
    doubled_area = (east[2] - east[0]) * (north[3] - north[1]) - (east[3] - east[1]) * (north[2] - north[0])
    return float(np.sqrt(abs(doubled_area) / 2 / (height * width)))


def patch_centres(corners: np.ndarray, height: int, width: int, patch_size: int) -> np.ndarray:
    """Return the ground positions of the patch centres of an image.

    Patches start at the upper left. The last row and column may reach beyond the image, and their centres with them.

    Args:
        corners: (4, 2) north and east of the corners in metres: upper left, upper right, lower right, lower left.
        height: Rows of pixels.
        width: Columns of pixels.
        patch_size: Side of a patch in pixels.

    Returns:
        (rows, columns, 2) float64, north and east in metres.
    """
    down = ((np.arange(-(-height // patch_size)) + 0.5) * (patch_size / height))[:, None, None]
    right = ((np.arange(-(-width // patch_size)) + 0.5) * (patch_size / width))[None, :, None]
    upper_left, upper_right, lower_right, lower_left = corners
    left_edge = upper_left + (lower_left - upper_left) * down
    right_edge = upper_right + (lower_right - upper_right) * down
    return left_edge + (right_edge - left_edge) * right


def to_metres(degrees: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """Return north and east in metres from a centre: the differences of latitude and longitude times the Earth's radii.

    The radii of curvature in the meridian and the prime vertical of WGS 84 (Snyder, Map Projections: a Working Manual,
    1987, equations 4-18 and 4-20) are taken at the centre, so the frame is meant for footprints of tens of kilometres.

    Args:
        degrees: (..., 2) longitude and latitude.
        centre: Longitude and latitude of the centre.

    Returns:
        (..., 2) float64.
    """
    metres_north, metres_east = _metres_per_degree(centre[1])
    north = (degrees[..., 1] - centre[1]) * metres_north
    east = _wrap(degrees[..., 0] - centre[0]) * metres_east
    return np.stack([north, east], axis=-1)


def to_degrees(metres: np.ndarray, centre: tuple[float, float]) -> np.ndarray:
    """Return longitude and latitude of points north and east of a centre; the inverse of `to_metres`.

    Args:
        metres: (..., 2) north and east.
        centre: Longitude and latitude of the centre.

    Returns:
        (..., 2) float64, longitude in [-180, 180) and latitude in [-90, 90].
    """
    metres_north, metres_east = _metres_per_degree(centre[1])
    # At a pole every longitude is the same place.
    longitude = _wrap(centre[0] + metres[..., 1] / max(metres_east, 1.0))
    latitude = np.clip(centre[1] + metres[..., 0] / metres_north, -90.0, 90.0)
    return np.stack([longitude, latitude], axis=-1)


def crs_text(crs: Any) -> str | None:
    """Return a CRS as text: from an EPSG number, a text, or an object with `to_wkt` (of rasterio or pyproj)."""
    if crs is None or isinstance(crs, str):
        return crs or None
    if isinstance(crs, (int, np.integer)):
        return f"EPSG:{crs}"
    return crs.to_wkt() or None


def _metres_per_degree(latitude: float) -> tuple[float, float]:
    """Return the length of a degree of latitude and of longitude in metres at a latitude in degrees."""
    radians = np.deg2rad(latitude)
    flattened = 1 - _ECCENTRICITY_SQUARED * np.sin(radians) ** 2
    prime_vertical = _SEMI_MAJOR_AXIS / np.sqrt(flattened)
    meridian = prime_vertical * (1 - _ECCENTRICITY_SQUARED) / flattened
    return np.deg2rad(meridian), np.deg2rad(prime_vertical * np.cos(radians))


def _wrap(longitude: Any) -> Any:
    """Bring a longitude, or a difference of longitudes, into [-180, 180) degrees."""
    return (longitude + 180.0) % 360.0 - 180.0


def _middle(corners: np.ndarray) -> tuple[float, float]:
    """Return longitude and latitude of the centre of four corners, also across the antimeridian."""
    first = corners[0, 0]
    return float(_wrap(first + _wrap(corners[:, 0] - first).mean())), float(corners[:, 1].mean())


def _given_centre(longitude: float | None, latitude: float | None, label: str) -> tuple[float, float] | None:
    """Check the longitude and latitude given for a set, and return them as the centre."""
    if longitude is None and latitude is None:
        return None
    if longitude is None or latitude is None:
        raise ValueError(f"{label} has longitude {longitude} and latitude {latitude}: give both, or neither.")
    if not (-180 <= longitude <= 180 and -90 <= latitude <= 90):
        raise ValueError(
            f"{label} has longitude {longitude} and latitude {latitude}, which is no place on Earth: give degrees, "
            "longitude within ±180 and latitude within ±90."
        )
    return float(longitude), float(latitude)


def corner_degrees(grids: Sequence[PixelGrid]) -> list[np.ndarray | None]:
    """Return where the corners of images lie, by one call of PROJ for each coordinate system.

    Args:
        grids: The images, of one set or of many.

    Returns:
        For every image (4, 2) float64 longitude and latitude in degrees, None without georeference.

    Raises:
        ValueError: As `place_images`, where a CRS cannot be read or an image is no place on Earth.
    """
    corners: list[np.ndarray | None] = [None] * len(grids)
    by_crs: dict[str, list[int]] = {}
    for index, grid in enumerate(grids):
        if grid.crs is not None and grid.transform is not None:
            by_crs.setdefault(grid.crs, []).append(index)
    for crs, members in by_crs.items():
        planar = np.stack([_corner_coordinates(grids[index]) for index in members])
        degrees = planar if _is_degrees(crs) else _through_rasterio(crs, planar, grids[members[0]].label)
        for index, quadrilateral in zip(members, degrees, strict=True):
            _check_degrees(quadrilateral, grids[index])
            quadrilateral[:, 0] = _wrap(quadrilateral[:, 0])
            corners[index] = quadrilateral
    return corners


def _corner_coordinates(grid: PixelGrid) -> np.ndarray:
    """Return (4, 2) x and y of an image's corners in its own CRS."""
    assert grid.transform is not None
    a, b, c, d, e, f = grid.transform
    column = np.array([0.0, grid.width, grid.width, 0.0])
    row = np.array([0.0, 0.0, grid.height, grid.height])
    return np.stack([a * column + b * row + c, d * column + e * row + f], axis=-1)


def _check_degrees(corners: np.ndarray, grid: PixelGrid) -> None:
    """Raise ValueError where (4, 2) longitude and latitude are no place on Earth; a footprint may cross ±180°."""
    longitude, latitude = corners[:, 0], corners[:, 1]
    # Some count longitudes from 0 to 360, and a window of a raster that crosses 180° lies beyond it.
    if abs(latitude).max() <= 90 and abs(longitude.mean()) <= 360:
        return
    if not np.isfinite(corners).all():
        raise ValueError(
            f"{grid.label} lies where its coordinate reference system {_short(grid.crs)} is not defined: check its crs "
            "and transform."
        )
    raise ValueError(
        f"{grid.label} has corners at longitude {longitude.min():.6g} to {longitude.max():.6g} and latitude "
        f"{latitude.min():.6g} to {latitude.max():.6g}, which is no place on Earth: check that its transform is in the "
        f"units of its crs {_short(grid.crs)}."
    )


def _short(crs: str | None) -> str:
    """Return the beginning of a CRS text, enough to tell it by."""
    text = " ".join(str(crs).split())
    return text if len(text) <= 60 else text[:57] + "…"


@lru_cache(maxsize=256)
def _is_degrees(crs: str) -> bool:
    """Return whether x and y of a CRS are longitude and latitude already."""
    return crs.strip().upper() in _DEGREE_CODES or _DEGREE_WKT.match(crs) is not None


def _through_rasterio(crs: str, planar: np.ndarray, label: str) -> np.ndarray:
    """Turn (images, 4, 2) x and y of any CRS into longitude and latitude in degrees."""
    try:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError
        from rasterio.warp import transform
    except ImportError:
        raise ValueError(
            f"{label} has the coordinate reference system {_short(crs)}, which needs rasterio to be read: install "
            "rasterio, or pass longitude and latitude of the set and gsd of its images in place of crs and transform."
        ) from None
    try:
        source, target = _parse_crs(CRS, crs), _parse_crs(CRS, "EPSG:4326")
    except CRSError:
        raise ValueError(
            f"{label} has crs {_short(crs)!r}, which is no coordinate reference system: pass an EPSG code such as "
            "'EPSG:32631', WKT or PROJ text."
        ) from None
    try:
        longitude, latitude = transform(source, target, planar[..., 0].ravel(), planar[..., 1].ravel())
    except Exception:  # rasterio's own class for it is private; its other answer is infinity, which the caller reports
        if len(planar) > 1:
            return np.concatenate([_through_rasterio(crs, one[None], label) for one in planar])
        longitude = latitude = np.full(planar[..., 0].size, np.inf)
    return np.stack([longitude, latitude], axis=-1).reshape(planar.shape)


@lru_cache(maxsize=256)
def _parse_crs(reader: Any, crs: str) -> Any:
    """Return a CRS read by rasterio's class `reader`, which is handed in because rasterio may be absent."""
    return reader.from_user_input(int(crs) if crs.isdigit() else crs)


def _check_overlap(
    grids: Sequence[PixelGrid], corners: np.ndarray, anchor: int, located: dict[int, np.ndarray]
) -> None:
    """Raise ValueError where a georeferenced image does not share ground with the anchor's footprint."""
    for index in located:
        if index != anchor and not _overlap(corners[index], corners[anchor]):
            distance = np.linalg.norm(corners[index].mean(0) - corners[anchor].mean(0))
            raise ValueError(
                f"{grids[index].label} does not overlap the anchor, {grids[anchor].label}: their centres are "
                f"{distance / 1000:.4g} km apart; a set holds images of one place, so put them into different sets or "
                "check crs and transform."
            )


def _overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Return whether two convex quadrilaterals (4, 2) share an area: no edge of either separates them."""
    for edges in (first, second):
        along = np.roll(edges, -1, axis=0) - edges
        normals = np.stack([-along[:, 1], along[:, 0]]) / np.maximum(np.linalg.norm(along, axis=1), 1e-9)
        one, other = first @ normals, second @ normals
        # Within a millimetre, footprints touch and do not overlap.
        if (np.minimum(one.max(0), other.max(0)) - np.maximum(one.min(0), other.min(0)) < 1e-3).any():
            return False
    return True
