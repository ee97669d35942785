"""What names, tags and metadata files of known satellite products say: sensor, time, bands, calibration.

Sources of the naming rules:

- Sentinel-2: ESA, Sentinel-2 Products Specification Document; BigEarthNet (Sumbul et al. 2019) keeps the product name,
  some with a time that has lost its leading zero; the cloud-optimised copies of Element 84 put the level last.
- Landsat: USGS, Landsat 8-9 Collection 2 Level-1 and Level-2 Data Format Control Books (names and MTL file).
- HLS: NASA LP DAAC, HLS Product User Guide v2.0 (year and day of year in the name; the bands of the parent sensor).
- NAIP: USDA, NAIP naming of quarter quadrangles, the acquisition date before the optional date of version.
- Gaofen: CRESDA product names. PlanetScope: Planet, Imagery Product Specifications.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np

from a2mae_hub.modeling.sensors_a2mae import SENSORS

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img")

# How far up the folders a product name may stand: <name>.SAFE/GRANULE/<tile>/IMG_DATA/R10m/<file>.
_FOLDERS_ABOVE = 5

# The order in which these products store their bands, under the names of the registry. Other products are not guessed.
FILE_ORDER: dict[str, tuple[str, ...]] = {
    "naip": ("red", "green", "blue", "nir"),
    "gaofen-1": ("blue", "green", "red", "nir"),
    "gaofen-2": ("blue", "green", "red", "nir"),
    "planetscope-4": ("blue", "green", "red", "nir"),
    "planetscope-8": ("coastal_blue", "blue", "green_i", "green", "yellow", "red", "rededge", "nir"),
}

# HLS names its bands as the parent sensor does; the registry names those that both have in common. The others are left
# out on purpose: B05 of S30 is a red edge, not the B05 of L30.
_HLS_BANDS = {
    "L30": {
        "B01": "coastal",
        "B02": "blue",
        "B03": "green",
        "B04": "red",
        "B05": "nir",
        "B06": "swir16",
        "B07": "swir22",
    },
    "S30": {
        "B01": "coastal",
        "B02": "blue",
        "B03": "green",
        "B04": "red",
        "B8A": "nir",
        "B11": "swir16",
        "B12": "swir22",
    },
}

_SPECTRAL = r"(?:SR_|TOA_)?B(?:\d{1,2}|8A)|coastal|blue|green|red|rededge\d*|nir\d*|swir\d*|pan|cirrus"
_QUALITY = r"(?:SR_)?QA_\w+|ST_\w+|BQA|QA|SCL|AOT|WVP|TCI|Fmask|[SV][AZ]A|udm2?|MSK_\w+|visual"
_RADAR = "VV|VH|HH|HV"
_BAND_FILE = re.compile(
    rf"(?:(?P<product>.+?)[_.\-])?(?:(?P<band>{_SPECTRAL})|(?P<quality>{_QUALITY})|(?P<radar>{_RADAR}))"
    r"(?:_(?:10|20|60)m)?",
    re.IGNORECASE,
)

_DAY, _TIME = r"(?P<day>\d{8})", r"(?P<time>\d{5,6})"
# A pattern per product, and the registry name its groups make; without a name, the file says only when.
_PRODUCTS: tuple[tuple[re.Pattern[str], str | None], ...] = tuple(
    (re.compile(rf"(?<![A-Za-z0-9]){pattern}", re.IGNORECASE), sensor)
    for pattern, sensor in (
        (rf"S2[A-D]_MSI(?P<level>L1C|L2A)_{_DAY}T{_TIME}(?:_N(?P<baseline>\d{{4}}))?", "sentinel-2-{level}"),
        (rf"S2[A-D]_T?\d{{1,2}}[A-Z]{{3}}_{_DAY}_\d+_(?P<level>L1C|L2A)", "sentinel-2-{level}"),
        # Only level 2A puts the ground resolution into the name of a band file.
        (rf"T\d{{2}}[A-Z]{{3}}_{_DAY}T{_TIME}_\w+_(?:10|20|60)m$", "sentinel-2-l2a"),
        (rf"T\d{{2}}[A-Z]{{3}}_{_DAY}T{_TIME}", None),
        (rf"L[CO]0(?P<number>[89])_L1(?:TP|GT|GS)_\d{{6}}_{_DAY}_\d{{8}}_02_", "landsat-{number}-toa"),
        (rf"LC0(?P<number>[89])_L2S[PR]_\d{{6}}_{_DAY}_\d{{8}}_02_", "landsat-{number}-sr"),
        (rf"HLS\.(?P<hls>[LS]30)\.T\d{{2}}[A-Z]{{3}}\.(?P<day_of_year>\d{{7}})T{_TIME}", "hls"),
        (rf"m_\d{{7}}_(?:ne|nw|se|sw)_\d{{2}}_(?:\d+|h)_{_DAY}(?!\d)", "naip"),
        (rf"GF(?P<number>[12])_(?:PMS|WFV)\d?_[EW][\d.]+_[NS][\d.]+_{_DAY}(?!\d)", "gaofen-{number}"),
        (rf"{_DAY}_{_TIME}_\w+?_3B_AnalyticMS_SR_8b", "planetscope-8"),
        (rf"{_DAY}_{_TIME}_\w+?_3B_AnalyticMS_SR", "planetscope-4"),
        (rf"{_DAY}_{_TIME}_\w+?_3B_", None),
    )
)
_RADAR_PRODUCT = re.compile(r"(?<![A-Za-z0-9])S1[A-D]_(?:IW|EW|SM|WV|S\d)_", re.IGNORECASE)
_ISO_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)-(\d\d)-(\d\d)(?:T(\d\d)[-:]?(\d\d)(?:[-:]?(\d\d))?)?(?!\d)")
_PLAIN_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)(_?)(\d\d)\2(\d\d)(?:T(\d\d)(\d\d)(\d\d))?(?!\d)")
_TIMESTAMP = re.compile(
    r"(\d{4})-?(\d\d)-?(\d\d)(?:[T ](\d\d):?(\d\d)(?::?(\d\d)(?:\.(\d{1,9}))?)?\s*(Z|UTC|[+-]\d\d:?\d\d)?)?"
)


@dataclass(frozen=True)
class Product:
    """What is known of an image before its pixels are read. Anything may be unknown.

    Attributes:
        sensor: Name in the sensor registry.
        acquired: Acquisition time, UTC.
        bands: The product's own band name to the registry's, where they differ; empty where they do not. A product that
            has a table has no other optical bands than those in it.
        scale: Factor of the whole product (key "") or of single bands (key "B4"), to physical units.
        offset: Offset of the whole product (key "") or of single bands, in physical units.
    """

    sensor: str | None = None
    acquired: datetime | None = None
    bands: Mapping[str, str] = field(default_factory=dict)
    scale: Mapping[str, float] = field(default_factory=dict)
    offset: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BandFile:
    """The name of a file that holds one layer of a product.

    Attributes:
        product: What is left of the name without the layer; empty for "B04.tif".
        layer: The layer as the name writes it, without "SR_" or "TOA_": "B04", "SCL", "VV".
        kind: "band", "quality" (masks, angles, thermal, previews) or "radar".
    """

    product: str
    layer: str
    kind: str


def stem_of(path: str) -> str:
    """Return the file name of a path or URL without raster suffix and query."""
    name = os.path.basename(path.split("?")[0].rstrip("/\\"))
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in RASTER_SUFFIXES else name


def split_band_file(path: str) -> BandFile | None:
    """Read the layer off the name of a per-band file: `S2A_…_36_85_B02.tif`, `LC08_…_SR_B4.TIF`, `HLS.….B02.tif`.

    Args:
        path: Path or URL.

    Returns:
        The product and the layer, or None where the name ends in no layer known.
    """
    match = _BAND_FILE.fullmatch(stem_of(path))
    if not match:
        return None
    kind = next(kind for kind in ("band", "quality", "radar") if match[kind])
    layer = re.sub(r"^(?:SR|TOA)_(?=B)", "", match[kind], flags=re.IGNORECASE)
    return BandFile(match["product"] or "", layer, kind)


def names_a_product(text: str) -> bool:
    """Return whether a name holds a product name, with which place and date are settled."""
    return any(pattern.search(text) for pattern, _ in _PRODUCTS)


def is_radar(path: str) -> bool:
    """Return whether the path names a Sentinel-1 product or a polarisation."""
    layer = split_band_file(path)
    return bool(_RADAR_PRODUCT.search(stem_of(path))) or (layer is not None and layer.kind == "radar")


def is_quality_layer(path: str) -> bool:
    """Return whether the file name says that its layer is a mask, an angle, a temperature or a preview."""
    layer = split_band_file(path)
    return layer is not None and layer.kind == "quality"


def product_from_name(path: str) -> Product:
    """Read sensor, band names and calibration off the names of a file and the folders above it.

    Sentinel-2 names carry the processing baseline. From 04.00 on (25 January 2022) the stored numbers hold 1000 more
    (ESA, Sentinel-2 Products Specification Document), so reflectance = stored / 10000 − 0.1. N9999 marks a product
    made outside ESA and says nothing.

    Args:
        path: Path or URL of a raster.

    Returns:
        What the names say, without the acquisition time (`acquired_from_name`).
    """
    known = Product()
    for part, (pattern, template) in itertools.product(_parts(path), _PRODUCTS):
        match = pattern.search(part)
        if not match or not template:
            continue
        found = match.groupdict()
        sensor = template.format(**{key: (text or "").lower() for key, text in found.items()})
        if known.sensor not in (None, sensor):
            break  # A folder of another product says nothing about this file.
        # The folder of a Sentinel-2 product may know the baseline that the file in it does not.
        shifted = 400 <= int(found.get("baseline") or 0) < 9999
        bands = _HLS_BANDS[found["hls"].upper()] if found.get("hls") else {}
        known = Product(sensor, bands=known.bands or bands, offset={"": -0.1} if shifted else known.offset)
    return known


def acquired_from_name(path: str) -> datetime | None:
    """Read the acquisition time off the names of a file and the folders above it.

    Product names count at any level, plain dates (`2020-06-21`, `20200621`) in the file and its folder. Where only a
    day is known the time is midnight UTC. Two different dates in one name are a period, which is no acquisition time.

    Args:
        path: Path or URL of a raster.

    Returns:
        The time in UTC, or None where the names tell none.

    Raises:
        ValueError: If a date that is surely meant as one cannot be (month 13); names the path.
    """
    for level, part in enumerate(_parts(path)):
        for pattern, _ in _PRODUCTS:
            match = pattern.search(part)
            if match:
                return _product_time(match.groupdict(), part, path)
        if level < 2:
            found = _plain_time(part, path)
            if found is not None:
                return found
    return None


def product_from_tags(tags: Mapping[str, str]) -> Product:
    """Read sensor and acquisition time off GDAL tags: `sensor`, `level`, `product`, `acquired`, `ACQUISITIONDATETIME`.

    TIFFTAG_DATETIME is left aside: the TIFF standard makes it the time the file was written.

    Args:
        tags: Tag names, in any letter case, to text.

    Returns:
        What the tags say.

    Raises:
        ValueError: If the acquisition time is no time.
    """
    known = {key.lower(): str(text).strip() for key, text in tags.items()}
    name = re.sub(r"[\s_]+", "-", known.get("sensor", "").lower())
    level = known.get("level", "").lower()
    candidates = (known.get("product", "").lower(), name, f"{name}-{level}")
    when = known.get("acquired") or known.get("acquisitiondatetime")
    return Product(next((c for c in candidates if c in SENSORS), None), parse_time(when) if when else None)


def read_landsat_mtl(path: str) -> Product:
    """Read a Landsat Collection 2 metadata file.

    The file of a level-2 product repeats the level-1 factors under the same names, so the group decides. Level-1
    factors give reflectance without the sun's height; scale and offset are divided by the sine of the sun elevation at
    the scene centre here, which makes it true (USGS, Landsat 8 Data Users Handbook, section 5.2).

    Args:
        path: Path of the `_MTL.txt` file.

    Returns:
        Sensor, acquisition time, and scale and offset of every reflective band ("B4").

    Raises:
        ValueError: If the file lacks what such a file holds; names the file.
    """
    groups: dict[str, dict[str, str]] = {}
    group: dict[str, str] = {}
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, _, text = (part.strip().strip('"') for part in line.partition("="))
            if key == "GROUP":
                group = groups.setdefault(text, {})
            elif text:
                group[key] = text
    try:
        level = groups["PRODUCT_CONTENTS"]["PROCESSING_LEVEL"]
        scene = groups["IMAGE_ATTRIBUTES"]
        surface = level.startswith("L2")
        factors = groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS" if surface else "LEVEL1_RADIOMETRIC_RESCALING"]
        divisor = 1.0 if surface else math.sin(math.radians(float(scene["SUN_ELEVATION"])))
        scale, offset = (
            {
                f"B{key.removeprefix(prefix)}": float(text) / divisor
                for key, text in factors.items()
                if key.startswith(prefix)
            }
            for prefix in ("REFLECTANCE_MULT_BAND_", "REFLECTANCE_ADD_BAND_")
        )
        sensor = f"{scene['SPACECRAFT_ID'].lower().replace('_', '-')}-{'sr' if surface else 'toa'}"
        acquired = parse_time(f"{scene['DATE_ACQUIRED']}T{scene['SCENE_CENTER_TIME']}")
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path}: not a Landsat Collection 2 metadata file that can be read ({error}); pass sensor=, acquired=, "
            "scale= and offset= and move the file away."
        ) from error
    return Product(sensor if sensor in SENSORS else None, acquired, scale=scale, offset=offset)


def parse_time(value: Any) -> datetime:
    """Return a moment as a datetime in UTC.

    Args:
        value: ISO 8601 text ("2020-06-21", "2020-06-21T10:50:31.024Z", "20200621"), date, datetime or numpy datetime64.
            Without a zone the time is UTC; without a time it is midnight.

    Returns:
        The time in UTC, to the microsecond.

    Raises:
        ValueError: If the value is no moment.
    """
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, datetime):
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=timezone.utc)
    match = _TIMESTAMP.fullmatch(value.strip()) if isinstance(value, str) else None
    if match:
        *numbers, fraction, zone = match.groups()
        year, month, day, hour, minute, second = (int(number or 0) for number in numbers)
        microsecond = int((fraction or "").ljust(6, "0")[:6])
        shift = timedelta()
        if zone and zone[0] in "+-":
            shift = timedelta(hours=int(zone[1:3]), minutes=int(zone[-2:])) * (1 if zone[0] == "+" else -1)
        try:
            return datetime(year, month, day, hour, minute, second, microsecond, timezone.utc) - shift
        except (ValueError, OverflowError):
            pass  # The sentence below says it better.
    raise ValueError(f"{value!r} is no moment in time; write it as 2020-06-21 or 2020-06-21T10:50:31Z.")


def _parts(path: str) -> list[str]:
    """Return the stem of a path and the names of the folders above it, nearest first."""
    folders = [part for part in re.split(r"[/\\]+", path.split("?")[0])[:-1] if part]
    return [stem_of(path), *reversed(folders[-_FOLDERS_ABOVE:])]


def _product_time(found: Mapping[str, str | None], part: str, path: str) -> datetime:
    """Return the time in the groups of a product pattern, or raise ValueError naming the path."""
    # Some BigEarthNet names drop the leading zero of the hour: T93021 is 09:30:21.
    clock = (found.get("time") or "").zfill(6)
    day, form = (found["day"], "%Y%m%d") if found.get("day") else (found["day_of_year"], "%Y%j")
    try:
        return datetime.strptime(f"{day}{clock}", f"{form}%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        raise ValueError(
            f"{path}: the date {day}T{clock} in {part!r} cannot be; pass acquired=, for example acquired='2020-06-21'."
        ) from None


def _plain_time(part: str, path: str) -> datetime | None:
    """Return the one date that a name holds, or None; raise ValueError for an ISO date that cannot be."""
    moments = set()
    for year, month, day, *clock in _ISO_DAY.findall(part):
        try:
            moments.add(_moment(year, month, day, *clock))
        except ValueError:
            raise ValueError(
                f"{path}: the date {year}-{month}-{day} in {part!r} cannot be; pass acquired=, for example "
                "acquired='2020-06-21'."
            ) from None
    for year, _, month, day, *clock in _PLAIN_DAY.findall(part):
        try:
            moments.add(_moment(year, month, day, *clock))
        except ValueError:
            continue  # Eight digits may just as well be a number.
    return moments.pop() if len(moments) == 1 else None


def _moment(year: str, month: str, day: str, hour: str = "", minute: str = "", second: str = "") -> datetime:
    """Return the time of these digits in UTC; what is empty is 0."""
    return datetime(
        int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0), 0, timezone.utc
    )
