"""What lies between reflectance on the ground and the numbers of a product: point spread, noise, storage.

The simulator (`a2mae_hub.simulate`) looks at the ground through it, and `a2mae_hub.stssd.derive` at another image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .modeling.sensors_a2mae import Sensor

# Signal-to-noise ratio at reflectance 0.1: rounded to the specification of Sentinel-2 MSI (ESA, about 90 to 170 over
# its bands) and to OLI in orbit (Morfitt et al. 2015, Remote Sensing 7, about 200 to 350). Others are assumed.
SIGNAL_TO_NOISE = {"sentinel-2": 140.0, "landsat": 250.0, "hls": 200.0, "naip": 60.0}
SIGNAL_TO_NOISE_ELSEWHERE = 100.0
REFERENCE_REFLECTANCE = 0.1

WHITE_REFLECTANCE = 0.5
"""The reflectance that 8-bit products of unit DN show as 255."""


def point_spread(
    cells: int, pixels: int, cell_size: float, pixel_size: float, blur: float, start: float = 0.0
) -> np.ndarray:
    """Return the weights by which a row of cells makes a row of pixels: Gaussian blur, then the mean over the pixel.

    Args:
        cells: Cells in the row.
        pixels: Pixels in the row; the last may reach beyond the cells, but every one overlaps them.
        cell_size: Side of a cell, metres.
        pixel_size: Side of a pixel, metres.
        blur: Full width at half maximum of the Gaussian, metres; 0 for none.
        start: Where the first pixel begins, metres from the beginning of the first cell.

    Returns:
        (pixels, cells) float32, rows summing to 1. The operation is separable: image = W @ scene @ W.T.
    """
    edges = np.arange(cells + 1) * cell_size
    starts = start + np.arange(pixels)[:, None] * pixel_size
    overlap = np.minimum(edges[1:], starts + pixel_size) - np.maximum(edges[:-1], starts)
    weights = np.maximum(overlap, 0)
    if blur > 0:
        centres = edges[:-1] + cell_size / 2
        spread = np.exp(-4 * math.log(2) * ((centres[:, None] - centres) / blur) ** 2)
        weights = weights @ (spread / spread.sum(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def sensor_noise(reflectance: np.ndarray, sensor: Sensor, rng: np.random.Generator) -> np.ndarray:
    """Return Gaussian noise of a sensor, half of its variance constant and half growing with the signal (photon noise).

    Args:
        reflectance: What the sensor sees without noise, any shape.
        sensor: The sensor; its name decides the signal-to-noise ratio.
        rng: Source of the random numbers.

    Returns:
        Noise in reflectance, of the shape and type of floating point of `reflectance`.
    """
    ratio = next(
        (ratio for family, ratio in SIGNAL_TO_NOISE.items() if sensor.name.startswith(family)),
        SIGNAL_TO_NOISE_ELSEWHERE,
    )
    level = np.sqrt(0.5 + 0.5 * np.maximum(reflectance, 0) / REFERENCE_REFLECTANCE) * REFERENCE_REFLECTANCE / ratio
    return level * rng.standard_normal(reflectance.shape, np.float32)


def to_stored(reflectance: np.ndarray, sensor: Sensor) -> np.ndarray:
    """Return reflectance as the product stores it; 0 stays free for nodata.

    Args:
        reflectance: Any shape.
        sensor: The sensor. Where its unit is DN, the numbers are a display of the square root of reflectance, with
            `WHITE_REFLECTANCE` shown as 255.

    Returns:
        uint16 by the sensor's default scale and offset, or uint8 DN.
    """
    if sensor.unit == "DN":
        display = 255 * np.sqrt(np.clip(reflectance / WHITE_REFLECTANCE, 0, 1))
        return np.clip(np.rint(display), 1, 255).astype(np.uint8)
    return np.clip(np.rint((reflectance - sensor.offset) / sensor.scale), 1, 65_535).astype(np.uint16)


def to_reflectance(
    stored: np.ndarray,
    sensor: Sensor,
    scale: float | Sequence[float] | None = None,
    offset: float | Sequence[float] | None = None,
) -> np.ndarray:
    """Return stored numbers as reflectance; the inverse of `to_stored`.

    Digital numbers (DN) of aerial and 8-bit products are not calibrated: camera, exposure and mosaicking decide what
    they mean. They are read as the display that `to_stored` writes, which is an assumption, not a measurement.

    Args:
        stored: (bands, height, width) stored numbers.
        sensor: The sensor.
        scale: Factor to the physical value, one or one per band; None takes the sensor's default.
        offset: Offset to the physical value, likewise.

    Returns:
        (bands, height, width) float64.

    Raises:
        ValueError: If the sensor measures no reflectance (radar, in dB), or scale or offset do not fit the bands.
    """
    if sensor.unit == "dB":
        raise ValueError(f"Sensor {sensor.name!r} measures dB and no reflectance: use images of an optical sensor.")
    factors, offsets = (
        np.atleast_1d(np.asarray(default if given is None else given, np.float64))
        for given, default in ((scale, sensor.scale), (offset, sensor.offset))
    )
    for name, numbers in (("scale", factors), ("offset", offsets)):
        if numbers.shape not in ((1,), (len(stored),)):
            raise ValueError(f"{name} has {numbers.size} numbers for {len(stored)} bands: pass one, or one per band.")
    physical = stored * factors[:, None, None] + offsets[:, None, None]
    return WHITE_REFLECTANCE * (np.maximum(physical, 0) / 255) ** 2 if sensor.unit == "DN" else physical
