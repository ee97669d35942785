"""A second sensor where a place has only one: its image, derived from the real one.

    stored numbers ──► reflectance ──► point spread and pixels of the target, band by band of the source
    ──► bands of the target, each a weighted sum ──► noise of the target ──► stored numbers of the target

What a derived image cannot have: detail or wavelengths that the source did not see, another atmosphere, another moment,
another direction of view. So it is recorded as derived, and it is surface reflectance where the source is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from a2mae_hub.images import Image
from a2mae_hub.modeling.georeference_a2mae import PixelGrid, crs_text, place_images
from a2mae_hub.modeling.sensors_a2mae import Band, Sensor, get_sensor
from a2mae_hub.optics import point_spread, sensor_noise, to_reflectance, to_stored
from a2mae_hub.spectra import KNOTS, material_reflectance

from .schema import StoredImage

# How well the spectra of materials are taken to be known, in reflectance: an error of this size in every band, apart
# from the others, puts the price materials × error² on squared weights (ridge regression). Measured from 0.003 to 0.16:
# with less, weights grow (below −0.1 from NAIP); with more, materials left out of the fit come out worse.
_SPECTRAL_ERROR = 0.015

# UTM is 0.04 % short at its central meridian and 0.1 % long at the edge of its zone. Products are cut on whole metres
# of the projection, so within this share its metres are taken as true.
_PROJECTION_TOLERANCE = 2e-3
_PIXEL_TOLERANCE = 0.01  # 30 m pixels brought to degrees come out a little longer or shorter
_ROUNDING = 1e-6  # pixels
_LONGEST_SIDE = 2048  # pixels; the weights of point spread grow with its square
_LEAST_VALID = 0.5  # share of a pixel's weight that must lie on real ones


def derive(
    image: Image, target: str, *, seed: int | Sequence[int] = 0, bands: Sequence[str] | None = None
) -> StoredImage:
    """Return the image that another sensor would have taken of the same ground at the same moment.

    Bands are matched by `band_weights`. Every band is sampled at its native ground resolution behind a Gaussian point
    spread of one pixel's width, less what the source has blurred already; coarser bands are repeated onto the grid of
    the finest one, as stacked products do. The noise is that of the target (`a2mae_hub.optics.sensor_noise`); what is
    left of the source's own noise comes on top.

    Digital numbers of aerial and 8-bit products are not calibrated. They are read and written as a display of the
    square root of reflectance (`a2mae_hub.optics.to_reflectance`), so between those and calibrated sensors the level of
    a derived image is an assumption.

    Args:
        image: The real image: north-up (or south-up) in any CRS, or without georeference and with `gsd`.
        target: Name of the other sensor in the registry.
        seed: Seed of the noise; give every image of a data set its own.
        bands: Target bands to derive, own or common names; None takes all that the source supports.

    Returns:
        The derived image: uint16 by the sensor's scale and offset, or uint8 where its unit is DN; nodata 0. The grid is
        centred on the source and within it, north-up in its CRS, with square pixels in true metres. Source, time,
        licence and share of clouds are those of the image.

    Raises:
        ValueError: If a sensor or band is unknown, the source supports no target band or not one asked for, or the
            image does not fit its bands, is coarser than the target, smaller than a pixel of it, longer than 2048
            pixels, or turned against its CRS.
    """
    source, sensor = get_sensor(image.sensor), get_sensor(target)
    label = f"The {source.name} image" if image.source is None else f"Image {image.source}"
    if image.pixels.ndim != 3 or len(image.bands) != len(image.pixels):
        raise ValueError(
            f"{label} has pixels of shape {image.pixels.shape} and {len(image.bands)} band names: pixels are (bands, "
            "height, width)."
        )
    chosen, weights = _chosen(source, image.bands, sensor, bands)
    used = [index for index in range(len(image.bands)) if weights[:, index].any()]
    natives = [source.find(image.bands[index]).resolution for index in used]
    finest = min(band.resolution for band in chosen)
    pixel_height, pixel_width, transform = _pixel_size(image, source, label)
    _, height, width = image.pixels.shape
    rows, columns = (
        _axis(cells, size, finest, sensor, label) for cells, size in ((height, pixel_height), (width, pixel_width))
    )
    real: np.ndarray = np.all(image.valid_values()[used], axis=0)  # Where every band in use has a value.
    reflectance = np.where(real, to_reflectance(image.pixels, source, image.scale, image.offset)[used], 0)
    if transform is not None:  # Rows are to run south, and columns east.
        turn = (..., slice(None, None, -1 if transform[4] > 0 else 1), slice(None, None, -1 if transform[0] < 0 else 1))
        reflectance, real = reflectance[turn], real[turn]

    rng = np.random.default_rng(seed)
    stored = np.empty((len(chosen), rows.pixels, columns.pixels), np.uint8 if sensor.unit == "DN" else np.uint16)
    for native in sorted({band.resolution for band in chosen}):
        members = [index for index, band in enumerate(chosen) if band.resolution == native]
        sampled, kept = _resample(reflectance, real, natives, rows, columns, native)
        sampled = np.tensordot(weights[members][:, used], sampled, axes=1)
        numbers = to_stored(sampled + sensor_noise(sampled, sensor, rng), sensor)
        stored[members] = np.where(kept, numbers, 0)[:, rows.nearest(native)[:, None], columns.nearest(native)]
    return StoredImage(
        pixels=stored,
        bands=[band.name for band in chosen],
        sensor=sensor.name,
        acquired=image.acquired,
        crs=None if transform is None else image.crs,
        transform=None if transform is None else _target_transform(transform, rows, columns),
        gsd=finest if transform is None else None,
        nodata=0,
        # A display of the square root has no scale of its own: its numbers are the DN.
        scale=1.0 if sensor.unit == "DN" else sensor.scale,
        offset=0.0 if sensor.unit == "DN" else sensor.offset,
        source=image.source,
        # A plain `Image` has neither share of clouds nor licence.
        cloud_share=getattr(image, "cloud_share", None),
        provenance="derived",
        licence=getattr(image, "licence", None),
    )


def _chosen(
    source: Sensor, source_bands: Sequence[str], target: Sensor, bands: Sequence[str] | None
) -> tuple[list[Band], np.ndarray]:
    """Return the target bands to derive and their weights, or raise ValueError where the source cannot support one."""
    names, weights = band_weights(source, source_bands, target)
    if bands is None:
        return [target.find(name) for name in names], weights
    chosen = [target.find(name) for name in bands]
    beyond = [band.name for band in chosen if band.name not in names]
    if beyond or not chosen:
        raise ValueError(
            f"bands={list(bands)} of sensor {target.name!r} cannot be derived from the bands at hand of sensor "
            f"{source.name!r}: choose among {', '.join(names)}."
        )
    return chosen, weights[[names.index(band.name) for band in chosen]]


def check_source(source: Sensor, bands: Sequence[str], pixel_size: float, target: Sensor, label: str) -> None:
    """Refuse what no image of a scene can be derived from, by what is known before its pixels are read.

    Args:
        source: The sensor at hand.
        bands: Its bands that are there, own or common names.
        pixel_size: Side of its pixels in true metres, the longer one.
        target: The sensor asked for.
        label: Name of the scene in errors.

    Raises:
        ValueError: If no band of the target can be had, or the pixels are coarser than its finest; names the scene.
    """
    try:
        names, _ = band_weights(source, bands, target)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from error
    _refuse_coarser(pixel_size, min(target.find(name).resolution for name in names), target, label)


def _refuse_coarser(cell_size: float, pixel_size: float, target: Sensor, label: str) -> None:
    """Raise ValueError where pixels are coarser than those to derive from them, metres each."""
    if cell_size > pixel_size * (1 + _PIXEL_TOLERANCE):
        raise ValueError(
            f"{label} has pixels of {cell_size:.4g} m, coarser than the {pixel_size:g} m of sensor {target.name!r}: "
            "derive from a finer image, or choose a coarser target."
        )


# ------------------------------------------------------------------------------------------------------- band matching


def band_weights(source: Sensor, source_bands: Sequence[str], target: Sensor) -> tuple[list[str], np.ndarray]:
    """Return how the bands of one sensor are weighted to stand for those of another.

    Both sensors look at the spectra of materials (`a2mae_hub.spectra`) through Gaussian responses. The weights w of a
    target band minimise |X w − y|² + r |w − p|², X being what the source sees of the materials, y what the target sees,
    r a small ridge and p the overlap of the responses, under the condition that they sum to 1: ground without colour
    stays without colour. That is one linear system (Karush-Kuhn-Tucker; Boyd and Vandenberghe 2004, Convex
    Optimization, section 10.1.1). Ground resolution plays no part: a source band coarser than the target's pixels
    counts like any other, and makes the derived band less sharp.

    Args:
        source: The sensor at hand.
        source_bands: Its bands that are there, own or common names.
        target: The sensor asked for.

    Returns:
        Own names of the target bands that can be had, in the target's order: those whose full width at half maximum
        overlaps that of a band at hand. And (targets, sources) float64 weights, read-only, each row summing to 1.

    Raises:
        ValueError: If a band is unknown, or no target band can be had; names both sensors.
    """
    names, weights = _weights(source, tuple(source.find(name).name for name in source_bands), target)
    return list(names), weights


@lru_cache(maxsize=128)
def _weights(source: Sensor, source_bands: tuple[str, ...], target: Sensor) -> tuple[tuple[str, ...], np.ndarray]:
    """Return what `band_weights` does, from own names."""
    seen = [source.find(name) for name in source_bands]
    known = [KNOTS[0] <= band.wavelength <= KNOTS[-1] for band in seen]
    usable = [band for band, inside in zip(seen, known, strict=True) if inside]
    wanted = [
        band
        for band in target.bands
        if KNOTS[0] <= band.wavelength <= KNOTS[-1]
        and any(abs(band.wavelength - other.wavelength) < (band.width + other.width) / 2 for other in usable)
    ]
    if not wanted:
        raise ValueError(
            f"No band of sensor {target.name!r} overlaps the bands {', '.join(source_bands) or '(none)'} of sensor "
            f"{source.name!r}: choose another target, or an image with more bands."
        )
    seeing, asked = material_reflectance(usable), material_reflectance(wanted)
    prior = _response_overlap(wanted, usable)
    ridge = seeing.shape[1] * _SPECTRAL_ERROR**2
    count = len(usable)
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = seeing @ seeing.T + ridge * np.eye(count)
    system[count, count] = 0
    right = np.vstack([seeing @ asked.T + ridge * prior.T, np.ones(len(wanted))])
    weights = np.zeros((len(wanted), len(seen)))
    weights[:, known] = np.linalg.solve(system, right)[:count].T
    weights.setflags(write=False)  # the cache hands it to every caller
    return tuple(band.name for band in wanted), weights


def _response_overlap(targets: Sequence[Band], sources: Sequence[Band]) -> np.ndarray:
    """Return the overlap of Gaussian responses of area 1, (targets, sources), rows divided by their sum."""
    (centre, width), (other_centre, other_width) = (
        np.array([(band.wavelength, band.width) for band in bands]).T for bands in (targets, sources)
    )
    # The integral of the product of two Gaussians is a Gaussian of the distance of their centres, variances added.
    squared_width = width[:, None] ** 2 + other_width**2
    overlap = np.exp(-4 * math.log(2) * (centre[:, None] - other_centre) ** 2 / squared_width) / np.sqrt(squared_width)
    return overlap / overlap.sum(axis=1, keepdims=True)


# ------------------------------------------------------------------------------------------------------------ geometry


class _Axis(NamedTuple):
    """Rows or columns of source and target, in true metres.

    Attributes:
        cells: Pixels of the source.
        cell_size: Side of a source pixel.
        pixels: Pixels of the target's grid, that of its finest band.
        pixel_size: Side of such a pixel.
        start: Where the first one begins, from the beginning of the source.
    """

    cells: int
    cell_size: float
    pixels: int
    pixel_size: float
    start: float

    def count(self, native: float) -> int:
        """Return how many pixels of a coarser band cover the grid; the last may reach beyond it."""
        return math.ceil(self.pixels * self.pixel_size / native - _ROUNDING)

    def nearest(self, native: float) -> np.ndarray:
        """Return the pixel of a coarser band in which each pixel of the grid lies, (pixels,) int."""
        centres = (np.arange(self.pixels) + 0.5) * self.pixel_size
        return np.minimum((centres // native).astype(int), self.count(native) - 1)


def _axis(cells: int, cell_size: float, pixel_size: float, target: Sensor, label: str) -> _Axis:
    """Return the axis on which whole target pixels are centred in the source, or raise ValueError where none can be."""
    _refuse_coarser(cell_size, pixel_size, target, label)
    pixels = math.floor(cells * cell_size / pixel_size + _ROUNDING)
    if pixels < 1:
        raise ValueError(
            f"{label} has a side of {cells * cell_size:.4g} m, less than a pixel of {pixel_size:g} m of sensor "
            f"{target.name!r}: cut a larger image."
        )
    if cells > _LONGEST_SIDE:
        raise ValueError(f"{label} is {cells} pixels long, more than {_LONGEST_SIDE}: derive from crops of it.")
    return _Axis(cells, cell_size, pixels, pixel_size, (cells * cell_size - pixels * pixel_size) / 2)


def _pixel_size(image: Image, source: Sensor, label: str) -> tuple[float, float, tuple[float, ...] | None]:
    """Return height and width of a pixel in true metres, and the six numbers of the georeference or None."""
    _, height, width = image.pixels.shape
    crs = crs_text(image.crs)
    if crs is None or image.transform is None:
        if image.gsd is None and (crs is not None or image.transform is not None):
            raise ValueError(f"{label} has only one of crs and transform: pass both, or gsd in metres per pixel.")
        gsd = min(source.find(name).resolution for name in image.bands) if image.gsd is None else float(image.gsd)
        if not 0 < gsd < math.inf:
            raise ValueError(f"{label} has gsd={gsd}: it must be the positive number of metres that a pixel spans.")
        return gsd, gsd, None
    a, b, c, d, e, f = (float(number) for number in list(image.transform)[:6])
    if abs(b) * height > _PIXEL_TOLERANCE * abs(a) or abs(d) * width > _PIXEL_TOLERANCE * abs(e):
        raise ValueError(f"{label} is turned against the axes of its crs: resample it onto a north-up grid first.")
    corners = place_images([PixelGrid(label, height, width, 1.0, crs, (a, b, c, d, e, f))]).corners[0]
    upper_left, upper_right, lower_right, lower_left = corners
    down = (math.dist(upper_left, lower_left) + math.dist(upper_right, lower_right)) / (2 * height)
    across = (math.dist(upper_left, upper_right) + math.dist(lower_left, lower_right)) / (2 * width)
    return _by_projection(down, e), _by_projection(across, a), (a, b, c, d, e, f)


def _by_projection(metres: float, step: float) -> float:
    """Return the side of a pixel: by the projection where that is true to scale, else in true metres."""
    return abs(step) if abs(metres / abs(step) - 1) < _PROJECTION_TOLERANCE else metres


def _target_transform(transform: Sequence[float], rows: _Axis, columns: _Axis) -> tuple[float, ...]:
    """Return the six numbers of the target's grid, north-up, in the CRS of the source."""
    a, _, c, _, e, f = transform
    per_metre_x, per_metre_y = abs(a) / columns.cell_size, abs(e) / rows.cell_size
    west, north = min(c, c + a * columns.cells), max(f, f + e * rows.cells)
    return (
        columns.pixel_size * per_metre_x,
        0.0,
        west + columns.start * per_metre_x,
        0.0,
        -rows.pixel_size * per_metre_y,
        north - rows.start * per_metre_y,
    )


# -------------------------------------------------------------------------------------------------------- point spread


@lru_cache(maxsize=32)
def _spread(axis: _Axis, size: float, native: float) -> np.ndarray:
    """Return the weights (pixels, cells) that take a source band of a native resolution to target pixels of a size.

    Gaussians widen each other in quadrature, so the difference of the squares is left to blur. A product repeats bands
    that are coarser than its grid: their values are means over native pixels, and they stand off-centre. Both have the
    variance of a box, side² / 12, less that of the grid's pixel, which the mean over the target pixel accounts for.
    """
    own = max(native, axis.cell_size)
    repeated = 8 * math.log(2) * (own**2 - axis.cell_size**2) / 6  # variance as squared full width at half maximum
    blur = math.sqrt(max(size**2 - own**2 - repeated, 0.0))
    weights = point_spread(axis.cells, axis.count(size), axis.cell_size, size, blur, axis.start)
    weights.setflags(write=False)
    return weights


def _resample(
    reflectance: np.ndarray, real: np.ndarray, natives: Sequence[float], rows: _Axis, columns: _Axis, size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bring source bands to target pixels of one size.

    Args:
        reflectance: (sources, height, width), 0 where not real.
        real: (height, width) bool.
        natives: Native ground resolution of every source band, metres.
        rows: Rows of source and target.
        columns: Their columns.
        size: Side of the target pixels, metres.

    Returns:
        (sources, pixel rows, pixel columns) float64; and (pixel rows, pixel columns) bool, True where at least half of
        the weight lies on real pixels, for every source band.
    """
    shape = rows.count(size), columns.count(size)
    sampled, kept = np.empty((len(reflectance), *shape)), np.ones(shape, bool)
    all_real = bool(real.all())
    for native in set(natives):
        members = [index for index, other in enumerate(natives) if other == native]
        down, across = _spread(rows, size, native), _spread(columns, size, native).T
        means = down @ reflectance[members] @ across
        if not all_real:
            share = down @ real.astype(np.float64) @ across
            kept &= share >= _LEAST_VALID
            means = np.divide(means, share, out=means, where=share > 0)
        sampled[members] = means
    return sampled, kept
