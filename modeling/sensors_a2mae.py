"""What each sensor measures: wavelengths, ground resolutions, units and statistics of its bands.

The registry `SENSORS` holds the shipped sensors by name. A sensor that is not in it takes a few lines:

    from a2mae_hub.modeling.sensors_a2mae import Band, Sensor, register_sensor

    my_camera = Sensor(
        name="my-camera",
        bands=(
            Band("green", "green", 550.0, 40.0, 0.05, mean=0.08, std=0.05, valid_range=(-0.2, 2.0)),
            Band("nir", "nir", 840.0, 60.0, 0.05, mean=0.25, std=0.12, valid_range=(-0.2, 2.0)),
        ),
        unit="reflectance",
    )
    register_sensor(my_camera)

Common names are those of the STAC electro-optical extension 2.0 (STAC 1.1, https://github.com/stac-extensions/eo),
which tells the red-edge and near-infrared bands apart: rededge071, rededge075, rededge078, nir, nir08, nir09.

Means and standard deviations are over single pixels of the physical value (stored × scale + offset), whatever the
image they lie in, so that standardised pixels have variance near one. Measured ones come from all valid pixels of:

- Sentinel-2 L2A: 1 400 chips of 64 × 64 pixels at 10 m, Copernicus, places not recorded.
- Sentinel-2 L1C: 100 EuroSAT multispectral tiles of 64 × 64 pixels, ten of each land cover class, Europe.
- HLS: 120 tiles of 128 × 128 pixels at 30 m, collected for mapping surface water, NASA.
- NAIP: 720 images of 128 × 128 pixels at 1.2 m over six Californian cities and 3 of 723 × 934 at 5 m.

Sensors of which no image was at hand take the statistics of the nearest band, by centre wavelength, of a measured
sensor at the same processing level (`_with_statistics_of`).
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

UNITS = ("reflectance", "DN", "dB")

# Clouds, snow and sun glint exceed 1; atmospheric correction over dark water falls below 0.
REFLECTANCE_RANGE = (-0.2, 2.0)
EIGHT_BIT_RANGE = (0.0, 255.0)


@dataclass(frozen=True)
class Band:
    """One spectral band of a sensor.

    Attributes:
        name: The sensor's own name, "B08".
        common_name: Name in STAC's `eo:common_name`, "nir"; empty where STAC has none.
        wavelength: Centre, nanometres.
        width: Full width at half maximum, nanometres.
        resolution: Native ground resolution, metres per pixel.
        mean: Mean of the physical value over land, in the unit of the sensor.
        std: Standard deviation of the physical value of single pixels over land, in the unit of the sensor.
        valid_range: Lowest and highest physical value that can be this quantity; beyond them the unit must be wrong.
    """

    name: str
    common_name: str
    wavelength: float
    width: float
    resolution: float
    mean: float
    std: float
    valid_range: tuple[float, float]

    def __post_init__(self) -> None:
        """Hold the range as a tuple, so that a band read from JSON equals the one written."""
        if isinstance(self.valid_range, list):
            object.__setattr__(self, "valid_range", tuple(self.valid_range))


@dataclass(frozen=True)
class Sensor:
    """A sensor at one processing level: its bands, their unit, and how stored numbers become physical values.

    Attributes:
        name: Name in the registry, "sentinel-2-l2a".
        bands: The bands in the sensor's own order.
        unit: "reflectance" (0 to 1), "DN" (digital numbers without physical calibration) or "dB".
        scale: Default factor of the product: physical = stored × scale + offset.
        offset: Default offset of the product, in physical units.
        source: The documents the facts come from.

    Raises:
        ValueError: If a fact cannot be true (a width of zero, two bands of one name); names the sensor and the band.
    """

    name: str
    bands: tuple[Band, ...]
    unit: str
    scale: float = 1.0
    offset: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        """Check the facts, so that every sensor in use, shipped, added or loaded, has passed."""
        object.__setattr__(self, "bands", tuple(self.bands))
        _check_sensor(self)

    def find(self, name: str) -> Band:
        """Return the band of that name.

        Own names come first, then common names; neither letter case nor zero padding matters ("B8", "b08"). A common
        name without its number ("nir", "rededge") finds the only band of that kind, as before STAC 1.1.

        Args:
            name: Own name or common name of the band.

        Returns:
            The band.

        Raises:
            ValueError: If no band has the name, or more than one has.
        """
        wanted = _key(name)
        if wanted in self._by_own_name:
            return self._by_own_name[wanted]
        matches = [band for band in self.bands if wanted and _key(band.common_name) == wanted]
        if not matches and wanted:
            matches = [band for band in self.bands if _key(band.common_name).rstrip("0123456789") == wanted]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(
                f"Band {name!r} of sensor {self.name!r} could be {_list_bands(matches)}: use the band's own name."
            )
        raise ValueError(f"Sensor {self.name!r} has no band {name!r}: it has {_list_bands(self.bands)}.")

    @cached_property
    def _by_own_name(self) -> dict[str, Band]:
        """The bands by their own names, which differ (`_check_sensor`)."""
        return {_key(band.name): band for band in self.bands}

    def to_dict(self) -> dict[str, Any]:
        """Return the sensor as plain JSON types (dict, list, str, float), the form `from_dict` reads."""
        # asdict keeps tuples; a trip through JSON turns them to lists, and proves that the result is plain.
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensor:
        """Build a sensor from plain JSON types, as `to_dict` writes them.

        Args:
            data: The fields of `Sensor`, `bands` being a list of the fields of `Band`.

        Returns:
            The sensor.

        Raises:
            ValueError: If a field is missing, unknown or cannot be true; names the sensor and the band.
        """
        name = data.get("name", "?")
        _check_fields(cls, data, f"Sensor {name!r}")
        for band in data["bands"]:
            _check_fields(Band, band, f"Band {band.get('name', '?')!r} of sensor {name!r}")
        return cls(**{**data, "bands": tuple(Band(**band) for band in data["bands"])})


@lru_cache(maxsize=1024)
def _key(name: str) -> str:
    """Return a band name without letter case and zero padding: "B08", "b8" → "b8"; "nir08" → "nir8"."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", name.strip().lower())


def _list_bands(bands: Iterable[Band]) -> str:
    """Return bands as text for an error message: "B02 (blue), B03 (green)"."""
    return ", ".join(f"{b.name} ({b.common_name})" if b.common_name not in ("", b.name) else b.name for b in bands)


def _check_fields(cls: type, data: Mapping[str, Any], what: str) -> None:
    """Raise ValueError unless `data` has every required field of the dataclass `cls` and no unknown one."""
    known = [field.name for field in fields(cls)]
    missing = [field for field in known if field not in data and field not in ("scale", "offset", "source")]
    unknown = [field for field in data if field not in known]
    if missing or unknown:
        fault = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
        raise ValueError(f"{what} {fault}: its fields are {', '.join(known)}.")


def _check_sensor(sensor: Sensor) -> None:
    """Raise ValueError naming the sensor and the band if a fact cannot be true."""
    if not isinstance(sensor.name, str) or not sensor.name:
        raise ValueError(f"A sensor needs a name that is a non-empty text, not {sensor.name!r}.")
    if not sensor.bands:
        raise ValueError(f"Sensor {sensor.name!r} has no bands: give it at least one.")
    if sensor.unit not in UNITS:
        raise ValueError(f"Sensor {sensor.name!r} has unit {sensor.unit!r}: it must be one of {', '.join(UNITS)}.")
    for fact in ("scale", "offset"):
        if not _is_finite(getattr(sensor, fact)):
            raise ValueError(
                f"Sensor {sensor.name!r} has {fact} {getattr(sensor, fact)!r}: it must be a finite number."
            )
    if sensor.scale == 0:
        raise ValueError(f"Sensor {sensor.name!r} has scale 0, which would make every value the same: give the factor.")
    for band in sensor.bands:
        _check_band(band, f"Band {band.name!r} of sensor {sensor.name!r}")
    for position, band in enumerate(sensor.bands):
        for other in sensor.bands[:position]:
            if _key(other.name) == _key(band.name):
                raise ValueError(f"Sensor {sensor.name!r} has two bands named {band.name!r}: give each its own name.")
        for other in sensor.bands:
            # Otherwise `find` would have to guess which of the two is meant.
            if other is not band and _key(other.common_name) == _key(band.name) and band.common_name != band.name:
                raise ValueError(
                    f"Band {band.name!r} of sensor {sensor.name!r} is named as the common name of band "
                    f"{other.name!r}: rename one of the two."
                )


def _check_band(band: Band, what: str) -> None:
    """Raise ValueError starting with `what` if a fact about the band cannot be true."""
    if not isinstance(band.name, str) or not band.name.strip() or not isinstance(band.common_name, str):
        raise ValueError(f"{what} needs a name and a common name that are texts (the common name may be empty).")
    for fact in ("wavelength", "width", "resolution", "std"):
        value = getattr(band, fact)
        if not _is_finite(value) or value <= 0:
            raise ValueError(f"{what} has {fact} {value!r}: it must be a positive finite number.")
    if not _is_finite(band.mean):
        raise ValueError(f"{what} has mean {band.mean!r}: it must be a finite number.")
    limits = band.valid_range
    if not (isinstance(limits, tuple) and len(limits) == 2 and all(map(_is_finite, limits)) and limits[0] < limits[1]):
        raise ValueError(f"{what} has valid_range {limits!r}: it must be two finite numbers, the lower one first.")


def _is_finite(value: Any) -> bool:
    """Return whether the value is a real, finite number (booleans and texts are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


SENSORS: dict[str, Sensor] = {}


def register_sensor(sensor: Sensor, *, overwrite: bool = False) -> Sensor:
    """Add a sensor to the registry, so that images can name it.

    Args:
        sensor: The sensor.
        overwrite: Replace another definition of the same name.

    Returns:
        The sensor.

    Raises:
        ValueError: If another definition is registered under the name and `overwrite` is False.
    """
    if not overwrite and SENSORS.get(sensor.name, sensor) != sensor:
        raise ValueError(
            f"Sensor {sensor.name!r} is already registered with another definition: choose another name, "
            "or pass overwrite=True to replace it."
        )
    SENSORS[sensor.name] = sensor
    return sensor


def get_sensor(name: str) -> Sensor:
    """Return a registered sensor.

    Args:
        name: Name in the registry, "sentinel-2-l2a".

    Returns:
        The sensor.

    Raises:
        ValueError: If no sensor of that name is registered; names the closest ones and the way to add one.
    """
    if name in SENSORS:
        return SENSORS[name]
    close = difflib.get_close_matches(str(name).lower(), SENSORS, n=3, cutoff=0.5) or sorted(SENSORS)
    raise ValueError(
        f"No sensor is named {name!r}: did you mean {', '.join(close)}, or will you add yours with "
        "register_sensor(Sensor(...))?"
    )


# Name, common name, centre (nm), full width at half maximum (nm), native ground resolution (m).
_Row = tuple[str, str, float, float, float]


def _with_statistics(
    rows: Iterable[_Row], statistics: Mapping[str, tuple[float, float]], valid_range: tuple[float, float]
) -> tuple[Band, ...]:
    """Return the bands of a table that have a mean and a standard deviation, in the order of the table."""
    return tuple(Band(*row, *statistics[row[0]], valid_range) for row in rows if row[0] in statistics)


def _with_statistics_of(measured: Sensor, rows: Iterable[_Row]) -> tuple[Band, ...]:
    """Return the bands of a table, each with the statistics of the band of `measured` nearest in centre wavelength."""
    bands = []
    for row in rows:
        name, common_name, wavelength, width, resolution = row
        nearest = min(measured.bands, key=lambda band: abs(band.wavelength - wavelength))
        bands.append(
            replace(
                nearest,
                name=name,
                common_name=common_name,
                wavelength=wavelength,
                width=width,
                resolution=resolution,
            )
        )
    return tuple(bands)


# Sentinel-2A; the centres of 2B and 2C differ from it by at most 17 nm (B12) and 4 nm (all others).
_SENTINEL_2: tuple[_Row, ...] = (
    ("B01", "coastal", 442.7, 21.0, 60.0),
    ("B02", "blue", 492.4, 66.0, 10.0),
    ("B03", "green", 559.8, 36.0, 10.0),
    ("B04", "red", 664.6, 31.0, 10.0),
    ("B05", "rededge071", 704.1, 15.0, 20.0),
    ("B06", "rededge075", 740.5, 15.0, 20.0),
    ("B07", "rededge078", 782.8, 20.0, 20.0),
    ("B08", "nir", 832.8, 106.0, 10.0),
    ("B8A", "nir08", 864.7, 21.0, 20.0),
    ("B09", "nir09", 945.1, 20.0, 60.0),
    ("B10", "cirrus", 1373.5, 31.0, 60.0),
    ("B11", "swir16", 1613.7, 91.0, 20.0),
    ("B12", "swir22", 2202.4, 175.0, 20.0),
)
_SENTINEL_2_SOURCE = (
    "Wavelengths and widths: Sentinel-2A in ESA's Sentinel-2 Spectral Response Functions (COPE-GSEG-EOPG-TN-15-0007), "
    "as tabulated in the MSI user guide. Scale: Sentinel-2 Products Specification Document, quantification value "
    "10000. Products of processing baseline 04.00 and later add 1000 to the stored numbers unless a provider has "
    "removed it: pass offset=-0.1 for those. "
)
_L2A_STATISTICS = {
    "B01": (0.0373, 0.0282),
    "B02": (0.0392, 0.0381),
    "B03": (0.0619, 0.0465),
    "B04": (0.0568, 0.0578),
    "B05": (0.0929, 0.0644),
    "B06": (0.1803, 0.1182),
    "B07": (0.2091, 0.1423),
    "B08": (0.2179, 0.1511),
    "B8A": (0.2253, 0.1528),
    "B09": (0.2239, 0.1477),
    "B11": (0.1465, 0.1073),
    "B12": (0.0944, 0.0819),
}
_L1C_STATISTICS = {
    "B01": (0.1347, 0.0229),
    "B02": (0.1116, 0.0316),
    "B03": (0.1053, 0.0379),
    "B04": (0.0972, 0.0575),
    "B05": (0.1238, 0.0545),
    "B06": (0.2004, 0.0827),
    "B07": (0.2363, 0.1036),
    "B08": (0.2294, 0.1075),
    "B8A": (0.2590, 0.1175),
    "B09": (0.0746, 0.0419),
    # Measured 0.0004: EuroSAT tiles are free of the cirrus that this band is there to see. Divided by that, a thin
    # cloud would lie a hundred standard deviations out, so 0.02 stands in for it.
    "B10": (0.0012, 0.02),
    "B11": (0.1896, 0.1003),
    "B12": (0.1173, 0.0745),
}
_SENTINEL_2_L1C = register_sensor(
    Sensor(
        name="sentinel-2-l1c",
        bands=_with_statistics(_SENTINEL_2, _L1C_STATISTICS, REFLECTANCE_RANGE),
        unit="reflectance",
        scale=1e-4,
        source=_SENTINEL_2_SOURCE
        + "Statistics: measured on 100 EuroSAT multispectral tiles; the std of B10 is assumed.",
    )
)
_SENTINEL_2_L2A = register_sensor(
    Sensor(
        name="sentinel-2-l2a",
        bands=_with_statistics(_SENTINEL_2, _L2A_STATISTICS, REFLECTANCE_RANGE),  # L2A has no B10
        unit="reflectance",
        scale=1e-4,
        source=_SENTINEL_2_SOURCE + "Statistics: measured on 1400 chips.",
    )
)

# Landsat-8 OLI. OLI-2 on Landsat-9 was built to the same filters; its centres agree to about 1 nm.
_LANDSAT_8_9: tuple[_Row, ...] = (
    ("B1", "coastal", 442.96, 15.98, 30.0),
    ("B2", "blue", 482.04, 60.04, 30.0),
    ("B3", "green", 561.41, 57.33, 30.0),
    ("B4", "red", 654.59, 37.47, 30.0),
    ("B5", "nir08", 864.67, 28.25, 30.0),
    ("B6", "swir16", 1608.86, 84.72, 30.0),
    ("B7", "swir22", 2200.73, 186.66, 30.0),
    ("B8", "pan", 589.50, 172.40, 15.0),
    ("B9", "cirrus", 1373.43, 20.39, 30.0),
)
_OLI_SOURCE = (
    "Wavelengths and widths: OLI band averages in Barsi et al. 2014, The Spectral Response of the Landsat-8 "
    "Operational Land Imager, Remote Sensing 6(10), as published by USGS; used for OLI-2 as well. "
)

# The seven OLI bands of surface reflectance, under the names common to HLSL30 and HLSS30.
_HLS: tuple[_Row, ...] = tuple(
    (common_name if common_name != "nir08" else "nir", common_name, wavelength, width, 30.0)
    for _, common_name, wavelength, width, _ in _LANDSAT_8_9[:7]
)
_HLS_STATISTICS = {
    "coastal": (0.0409, 0.0260),
    "blue": (0.0513, 0.0325),
    "green": (0.0849, 0.0426),
    "red": (0.1011, 0.0608),
    "nir": (0.2142, 0.1044),
    "swir16": (0.2071, 0.1214),
    "swir22": (0.1437, 0.0987),
}
_HLS_SENSOR = register_sensor(
    Sensor(
        name="hls",
        bands=_with_statistics(_HLS, _HLS_STATISTICS, REFLECTANCE_RANGE),
        unit="reflectance",
        scale=1e-4,
        source=_OLI_SOURCE
        + "HLSS30 is adjusted to these bands, and the scale is given, in the HLS Product User Guide v2.0 "
        "(NASA). Statistics: measured on 120 tiles.",
    )
)
for _number in (8, 9):
    register_sensor(
        Sensor(
            name=f"landsat-{_number}-toa",
            bands=_with_statistics_of(_SENTINEL_2_L1C, _LANDSAT_8_9),
            unit="reflectance",
            scale=2e-5,
            offset=-0.1,
            source=_OLI_SOURCE + "Scale and offset: Landsat Collection 2 Level-1 rescaling factors (USGS), before the "
            "division by the sine of the sun elevation in the MTL file: pass both divided by it for true reflectance. "
            "Statistics: nearest band of sentinel-2-l1c.",
        )
    )
    register_sensor(
        Sensor(
            name=f"landsat-{_number}-sr",
            bands=_with_statistics_of(_HLS_SENSOR, _LANDSAT_8_9[:7]),
            unit="reflectance",
            scale=2.75e-5,
            offset=-0.2,
            source=_OLI_SOURCE + "Scale and offset: Landsat Collection 2 Level-2 Science Product Guide (USGS). "
            "Statistics: nearest band of hls.",
        )
    )


def _gaofen(resolution: float) -> tuple[_Row, ...]:
    """Return the multispectral bands of the Gaofen-1 and Gaofen-2 cameras, whose spectral limits are the same."""
    limits = (("B1", "blue", 450, 520), ("B2", "green", 520, 590), ("B3", "red", 630, 690), ("B4", "nir", 770, 890))
    return tuple((name, common, (low + high) / 2, float(high - low), resolution) for name, common, low, high in limits)


_GAOFEN_SOURCE = (
    "Band limits and resolution: China Centre for Resources Satellite Data and Application (CRESDA), {camera}; centre "
    "and width are taken from the limits. Statistics: 8-bit sets of STSSD in the released A2-MAE code. The cameras "
    "deliver 10 bits: stretch those to 8, or pass the scale that does. "
)
register_sensor(
    Sensor(
        name="gaofen-1",
        bands=_with_statistics(
            _gaofen(8.0),
            {"B1": (96.11, 37.65), "B2": (98.68, 36.20), "B3": (99.80, 35.68), "B4": (99.68, 38.72)},
            EIGHT_BIT_RANGE,
        ),
        unit="DN",
        source=_GAOFEN_SOURCE.format(camera="Gaofen-1 PMS")
        + "The wide-field camera (WFV) has the same bands at 16 m; an image's own pixel size says which it is.",
    )
)
register_sensor(
    Sensor(
        name="gaofen-2",
        bands=_with_statistics(
            _gaofen(4.0),
            {"B1": (78.68, 33.51), "B2": (81.17, 33.20), "B3": (85.89, 33.76), "B4": (86.31, 36.01)},
            EIGHT_BIT_RANGE,
        ),
        unit="DN",
        source=_GAOFEN_SOURCE.format(camera="Gaofen-2 PMS"),
    )
)

register_sensor(
    Sensor(
        name="naip",
        bands=_with_statistics(
            (
                ("red", "red", 635.0, 32.0, 0.6),
                ("green", "green", 555.0, 60.0, 0.6),
                ("blue", "blue", 465.0, 60.0, 0.6),
                ("nir", "nir", 845.0, 74.0, 0.6),
            ),
            {
                "red": (114.31, 43.27),
                "green": (116.47, 37.44),
                "blue": (107.95, 36.68),
                "nir": (126.65, 43.71),
            },
            EIGHT_BIT_RANGE,
        ),
        unit="DN",
        source="Approximate: USDA flies several cameras; the limits are those of the Leica ADS100, red 619-651, green "
        "525-585, blue 435-495, near infrared 808-882 nm. Resolution: 0.6 m, the USDA specification since 2018 (1 m "
        "before). Statistics: measured on 723 images.",
    )
)

_PLANET_SOURCE = (
    "Bands and scale: Planet Imagery Product Specifications, {instrument}, ortho surface reflectance at 3 m. "
    "Statistics: nearest band of sentinel-2-l2a. "
)
register_sensor(
    Sensor(
        name="planetscope-4",
        bands=_with_statistics_of(
            _SENTINEL_2_L2A,
            (
                ("blue", "blue", 485.0, 60.0, 3.0),
                ("green", "green", 545.0, 90.0, 3.0),
                ("red", "red", 630.0, 80.0, 3.0),
                ("nir", "nir", 820.0, 80.0, 3.0),
            ),
        ),
        unit="reflectance",
        scale=1e-4,
        source=_PLANET_SOURCE.format(instrument="Dove (PS2)")
        + "Four-band files of a SuperDove are four bands of planetscope-8.",
    )
)
register_sensor(
    Sensor(
        name="planetscope-8",
        bands=_with_statistics_of(
            _SENTINEL_2_L2A,
            (
                ("coastal_blue", "coastal", 443.0, 20.0, 3.0),
                ("blue", "blue", 490.0, 50.0, 3.0),
                ("green_i", "green05", 531.0, 36.0, 3.0),
                ("green", "green", 565.0, 36.0, 3.0),
                ("yellow", "yellow", 610.0, 20.0, 3.0),
                ("red", "red", 665.0, 31.0, 3.0),
                ("rededge", "rededge071", 705.0, 15.0, 3.0),
                ("nir", "nir08", 865.0, 40.0, 3.0),
            ),
        ),
        unit="reflectance",
        scale=1e-4,
        source=_PLANET_SOURCE.format(instrument="SuperDove (PSB.SD)"),
    )
)
