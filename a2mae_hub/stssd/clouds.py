"""Where clouds are: the quality layers that products carry, and a threshold test where there is none.

Sources of the codes:

- SCL: scene classification of Sentinel-2 level 2A. ESA, Sentinel-2 Products Specification Document, and Level-2A
  Algorithm Theoretical Basis Document (Sen2Cor), table of the classes.
- QA_PIXEL: Landsat Collection 2. USGS LSDS-1619, Landsat 8-9 Collection 2 Level 2 Science Product Guide, pixel quality
  assessment bit index.
- Fmask: HLS v2.0. NASA LP DAAC, HLS Product User Guide v2.0, bits of the quality assessment layer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np

from a2mae_hub.images import Image
from a2mae_hub.modeling.sensors_a2mae import Sensor, get_sensor
from a2mae_hub.products import RASTER_SUFFIXES, is_quality_layer, split_band_file, stem_of

QualityKind = Literal["scl", "qa_pixel", "fmask"]
_KINDS: tuple[QualityKind, ...] = get_args(QualityKind)

# SCL classes: 0 no data, 1 saturated or defective; 3 cloud shadow, 8 and 9 cloud of medium and high probability,
# 10 thin cirrus. What is left of 0 to 11 is ground, water, snow, and shadow of terrain.
_SCL_CLASSES = 12
_SCL_MISSING = (0, 1)
_SCL_CLOUDY = (3, 8, 9, 10)

# QA_PIXEL bits: 0 fill; 1 dilated cloud, 2 cirrus, 3 cloud, 4 cloud shadow.
_QA_PIXEL_FILL = 0b1
_QA_PIXEL_CLOUDY = 0b11110

# Fmask bits: 0 cirrus (reserved), 1 cloud, 2 adjacent to cloud or shadow, 3 cloud shadow. 255 is fill, not all bits.
_FMASK_FILL = 255
_FMASK_CLOUDY = 0b1111

# Folders of a Sentinel-2 level-2A product (SAFE), one per ground resolution; SCL exists at 20 and 60 m.
_SAFE_FOLDERS = ("R10m", "R20m", "R60m")

# Thresholds of Braaten, Cohen & Yang 2015 on green reflectance, and of the Sentinel-2 variant on B11.
_BRIGHT_GREEN = 0.39
_HAZY_GREEN = 0.175
_CLOUD_SWIR = 0.1


class Flags(NamedTuple):
    """What a quality layer says of its pixels; two bool arrays of the shape of the layer.

    Attributes:
        cloudy: Cloud, cirrus, cloud shadow, or next to cloud where the layer tells.
        missing: No data. A missing pixel is not cloudy.
    """

    cloudy: np.ndarray
    missing: np.ndarray


def quality_kind(path: str) -> QualityKind | None:
    """Return which quality layer a file name says it is.

    Args:
        path: Path or URL: `…_SCL_20m.jp2`, `…_QA_PIXEL.TIF`, `….Fmask.tif`.

    Returns:
        "scl", "qa_pixel", "fmask", or None for every other file.
    """
    layer = split_band_file(path)
    name = layer.layer.lower() if layer else ""
    return next((kind for kind in _KINDS if kind == name), None)


def quality_layer(paths: Sequence[str]) -> str | None:
    """Find the quality layer of an image.

    It is one of the paths themselves, or a file of the same product beside the local ones: `<product>_SCL.tif` beside
    `<product>_B04.tif` or `<product>.tif`, and for the SAFE layout of Sentinel-2 in the sibling folder `R20m` or
    `R60m`. A plain `SCL.tif` belongs to `B04.tif` beside it, and to a raster of another name only if that is alone in
    its folder. Nothing is looked for beside remote files.

    Args:
        paths: The rasters of one image, or their folder.

    Returns:
        Path of the layer, the finest where there are several; None where there is none.
    """
    given = [os.fspath(path) for path in paths]
    listed = [path for path in given if quality_kind(path)]
    found = listed or [layer for path in given for layer in _beside(path)]
    return min(found, key=_preference, default=None)


def read_flags(values: np.ndarray, path: str, *, kind: QualityKind | None = None) -> Flags:
    """Read a quality layer: which of its pixels are under cloud or shadow, and which hold no data.

    Args:
        values: Numbers of the layer as stored, integers of any shape; never interpolated, as they are codes.
        path: File of the layer; its name tells the kind, and messages quote it.
        kind: The kind, where the name does not tell it.

    Returns:
        Two bool arrays of the shape of the values.

    Raises:
        ValueError: If the name tells no kind, or a value is none that such a layer holds; names the file.
    """
    values = np.asarray(values)
    kind = kind or quality_kind(path)
    if kind not in _KINDS:
        raise ValueError(f"{path}: its name does not tell which quality layer it is; pass kind=, {_or(_KINDS)}.")
    if values.dtype.kind not in "ui":
        raise ValueError(f"{path}: a quality layer holds integer codes, not {values.dtype}; read it as it is stored.")
    highest = {"scl": _SCL_CLASSES - 1, "qa_pixel": 2**16 - 1, "fmask": 2**8 - 1}[kind]
    if values.size and (values.min() < 0 or values.max() > highest):
        odd = values.min() if values.min() < 0 else values.max()
        raise ValueError(f"{path}: holds {odd}, but codes of {kind} go from 0 to {highest}; check that this is one.")
    if kind == "scl":
        return Flags(cloudy=np.isin(values, _SCL_CLOUDY), missing=np.isin(values, _SCL_MISSING))
    if kind == "qa_pixel":
        missing, cloudy = (values & _QA_PIXEL_FILL) != 0, (values & _QA_PIXEL_CLOUDY) != 0
    else:
        missing, cloudy = values == _FMASK_FILL, (values & _FMASK_CLOUDY) != 0
    return Flags(cloudy=cloudy & ~missing, missing=missing)


def estimate_clouds(image: Image) -> np.ndarray | None:
    """Estimate from the reflectance of an image where clouds are. It sees bright clouds, neither haze nor shadow.

    The test is that of Braaten, Cohen & Yang 2015, "Automated cloud and cloud shadow identification in Landsat MSS
    imagery for temperate ecosystems", Remote Sensing of Environment 169: a pixel is cloud if green is above 0.39, or if
    green is above 0.175 and above red (a normalised difference of green and red above 0; bare soil and roofs, as
    bright as that, are redder). Where the image has the short-wave infrared band at 1.6 µm, cloud is above 0.1 there
    too, as in the variant for Sentinel-2 of Sentinel Hub's collection of custom scripts; snow is not.

    Args:
        image: The image; scale and offset are the sensor's where it gives none.

    Returns:
        (height, width) bool, True for cloud; pixels that are invalid in a band of the test are False. None if the unit
        of the sensor is not reflectance, or the image lacks green or red.

    Raises:
        ValueError: If the sensor or one of the bands is unknown.
    """
    sensor = get_sensor(image.sensor)
    green, red, swir = _positions(sensor, image.bands)
    if sensor.unit != "reflectance" or green is None or red is None:
        return None
    # Where green is above the threshold the sum of the two is positive, so the sign of the difference is that of the
    # normalised one. NaN compares as False, so invalid pixels fall out.
    greens = _values(image, sensor, green)
    hazy = greens > _HAZY_GREEN
    if not hazy.any():
        return hazy
    reds = _values(image, sensor, red)
    cloud = hazy & np.isfinite(reds) & ((greens > _BRIGHT_GREEN) | (greens > reds))
    return cloud if swir is None else cloud & (_values(image, sensor, swir) > _CLOUD_SWIR)


def _positions(sensor: Sensor, bands: Sequence[str]) -> list[int | None]:
    """Return where green, red and the short-wave infrared at 1.6 µm are among bands; None for each that is not."""
    names = [sensor.find(name).name for name in bands]
    found: list[int | None] = []
    for common_name in ("green", "red", "swir16"):
        try:
            wanted = sensor.find(common_name).name
        except ValueError:  # The sensor has no such band, or several.
            wanted = ""
        found.append(names.index(wanted) if wanted in names else None)
    return found


def _values(image: Image, sensor: Sensor, index: int) -> np.ndarray:
    """Return the physical values of a band, (h, w) float32, NaN where invalid."""
    stored = image.pixels[index]
    numbers = []
    for given, default in ((image.scale, sensor.scale), (image.offset, sensor.offset)):
        several = np.atleast_1d(default if given is None else given)
        numbers.append(np.float32(several[index if len(several) > 1 else 0]))
    values = stored.astype(np.float32) * numbers[0] + numbers[1]
    if image.nodata is not None:
        values[stored == image.nodata] = np.nan
    if image.valid is not None:
        values[~(image.valid if image.valid.ndim == 2 else image.valid[index])] = np.nan
    return values


def _beside(path: str) -> Iterator[str]:
    """Iterate over the quality layers that lie with a local raster, or a folder of rasters, and belong to it."""
    if os.path.isdir(path):
        for name in _rasters(path):
            if quality_kind(name):
                yield os.path.join(path, name)
        return
    folder = os.path.dirname(path)
    parent, last = os.path.split(folder)
    siblings = [os.path.join(parent, name) for name in _SAFE_FOLDERS if name != last] if last in _SAFE_FOLDERS else []
    band_file = split_band_file(path)
    owners = {stem_of(path).lower()} | ({band_file.product.lower()} if band_file else set())
    for place in (folder, *siblings):
        layers, others = _contents(place)
        wanted = owners | {""} if not band_file and others == 1 else owners
        for product in wanted:
            for name in layers.get(product, ()):
                yield os.path.join(place, name)


def _rasters(folder: str) -> list[str]:
    """Return the names of the rasters in a folder, in their order; none if there is no such folder."""
    if not os.path.isdir(folder or "."):
        return []
    return sorted(name for name in os.listdir(folder or ".") if name.lower().endswith(RASTER_SUFFIXES))


def _contents(folder: str) -> tuple[dict[str, list[str]], int]:
    """Return the quality layers of a folder by their product in small letters, and the number of other rasters."""
    stamp = os.stat(folder or ".").st_mtime_ns if os.path.isdir(folder or ".") else 0
    return _contents_at(folder, stamp)


@lru_cache(maxsize=16)
def _contents_at(folder: str, stamp: int) -> tuple[dict[str, list[str]], int]:
    """Do it once for each change of the folder: with a thousand scenes in one, every scene asks."""
    layers: dict[str, list[str]] = {}
    others = 0
    for name in _rasters(folder):
        layer = split_band_file(name)
        if layer and quality_kind(name):
            layers.setdefault(layer.product.lower(), []).append(name)
        others += not is_quality_layer(name)
    return layers, others


def _preference(path: str) -> tuple[int, str]:
    """Order quality layers: by kind, then by name, where "R20m" and "_20m" come before 60."""
    kind = quality_kind(path)
    return (_KINDS.index(kind) if kind else len(_KINDS), path)


def _or(names: Sequence[str]) -> str:
    """Return names as text: '"a", "b" or "c"'."""
    *first, last = (f'"{name}"' for name in names)
    return f"{', '.join(first)} or {last}"
