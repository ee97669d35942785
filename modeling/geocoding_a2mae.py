"""GeoSOT-2D codes: where on Earth an image lies, as bits that a network can read.

GeoSOT, a Chinese global grid, divides a coordinate by degrees, minutes and seconds, each padded to a power of two, so
that every further bit halves the cell. One coordinate takes 32 bits, laid out as in the released A2-MAE code
(github.com/ZhaoYi1222/AAMAE), most significant first; a coarser level keeps the first ones and leaves the rest zero:

    sign (1) | whole degrees (8) | minutes (6) | seconds (6) | 1/2048 of a second (11)

The finest cell, 1/2048 of a second, is about 1.5 cm along a meridian. A cell includes its edge nearest to zero and
excludes the other. A code is an int64 in [0, 2**32); −1 means unknown.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

UNKNOWN = -1

CODE_BITS = 32
_DEGREE_END, _MINUTE_END, _SECOND_END = (
    9,
    15,
    21,
)  # levels at which the fields for degrees, minutes and seconds are full
_UNITS_PER_SECOND = 2048
_UNITS_PER_DEGREE = 3600 * _UNITS_PER_SECOND

# 59.999 999 999 seconds, written by arithmetic that meant 60, belong to the next minute. The tolerance, 0.15 µm on the
# ground, is some fifty times the rounding error of float64 at 180 degrees.
_TOLERANCE_UNITS = 1e-5


def encode_coordinate(degrees: ArrayLike, level: int = CODE_BITS) -> np.ndarray:
    """Return the codes of the cells that hold longitudes or latitudes.

    Args:
        degrees: Any shape, degrees in [−180, 180]; NaN where unknown. −0.0 lies in the cell just below
            zero, of which `decode_coordinate` returns it.
        level: Number of leading bits to keep, 1 to 32.

    Returns:
        int64 codes of the same shape; −1 where `degrees` is NaN.

    Raises:
        ValueError: If a coordinate lies beyond ±180 degrees or the level outside 1 to 32.
    """
    values = np.asarray(degrees, dtype=np.float64)
    _check_limit(values, 180.0, "Coordinate")
    unknown = np.isnan(values)
    magnitude = np.where(unknown, 0.0, np.abs(values))
    # One integer holds the whole coordinate, so that no field can round up to 60 on its own.
    units = np.floor(magnitude * _UNITS_PER_DEGREE + _TOLERANCE_UNITS).astype(np.int64)
    whole_seconds, fraction = np.divmod(units, _UNITS_PER_SECOND)
    whole_minutes, seconds = np.divmod(whole_seconds, 60)
    whole_degrees, minutes = np.divmod(whole_minutes, 60)
    sign = np.signbit(values).astype(np.int64)
    codes = (((sign << 8 | whole_degrees) << 6 | minutes) << 6 | seconds) << 11 | fraction
    return np.where(unknown, UNKNOWN, codes & _level_mask(level))


def decode_coordinate(codes: ArrayLike, level: int = CODE_BITS) -> np.ndarray:
    """Return the edge nearest to zero of the cells that codes name.

    The edge, and not the centre, because it is never beyond a pole or the antimeridian, and encodes to the same code.

    Args:
        codes: Any shape, integer codes; −1 where unknown.
        level: Number of leading bits to read, 1 to 32; later ones are ignored.

    Returns:
        float64 degrees of the same shape; NaN where the code is −1, −0.0 for the cell just below zero.

    Raises:
        ValueError: If a number is no GeoSOT code or the level lies outside 1 to 32.
    """
    values = _check_codes(codes)
    unknown = values == UNKNOWN
    kept = np.where(unknown, 0, values) & _level_mask(level)
    minutes, seconds = kept >> 17 & 63, kept >> 11 & 63
    impossible = np.maximum(minutes, seconds) > 59
    if impossible.any():
        raise ValueError(f"{values[impossible].flat[0]} is no GeoSOT code: it holds more than 59 minutes or seconds.")
    units = (((kept >> 23 & 255) * 60 + minutes) * 60 + seconds) * _UNITS_PER_SECOND + (kept & 2047)
    degrees = np.copysign(units / _UNITS_PER_DEGREE, np.where(kept >> 31, -1.0, 1.0))
    return np.where(unknown, np.nan, degrees)


def cell_size(level: int) -> float:
    """Return the size of a cell in degrees.

    Minutes and seconds use 60 of the 64 values of their six bits, so the last cell within a degree or a minute can be
    smaller; this is the size of the others.

    Args:
        level: 1 to 32.

    Returns:
        Degrees: 256 at level 1, 1 at level 9, 1/60 at level 15, 1/3600 at level 21, 1/(3600 · 2048) at level 32.

    Raises:
        ValueError: If the level lies outside 1 to 32.
    """
    _level_mask(level)
    if level <= _DEGREE_END:
        return 2.0 ** (_DEGREE_END - level)
    if level <= _MINUTE_END:
        return 2.0 ** (_MINUTE_END - level) / 60
    return 2.0 ** (_SECOND_END - level) / 3600


def encode_footprint(corners: ArrayLike, level: int = CODE_BITS) -> np.ndarray:
    """Return the codes of the four corners of footprints, the `geographic_codes` of a batch.

    Args:
        corners: (..., 4, 2) longitude and latitude of each corner, degrees; NaN where unknown.
        level: Number of leading bits to keep, 1 to 32.

    Returns:
        (..., 8) int64: longitude and latitude of the first corner, then of the second, and so on; −1 where unknown.

    Raises:
        ValueError: If the shape does not fit, a longitude lies beyond ±180 degrees, a latitude beyond ±90, or the level
            outside 1 to 32.
    """
    values = np.asarray(corners, dtype=np.float64)
    if values.shape[-2:] != (4, 2):
        raise ValueError(
            f"A footprint has shape {values.shape}: give four corners of (longitude, latitude), shape (..., 4, 2)."
        )
    _check_limit(values[..., 0], 180.0, "Longitude")
    _check_limit(values[..., 1], 90.0, "Latitude")
    return encode_coordinate(values, level).reshape(*values.shape[:-2], 8)


def code_bits(codes: ArrayLike) -> np.ndarray:
    """Return codes as bits.

    Args:
        codes: (..., n) integer codes; −1 where unknown.

    Returns:
        (..., n · 32) uint8 zeros and ones, most significant bit of the first code first; zeros where unknown.

    Raises:
        ValueError: If a number lies outside [−1, 2**32).
    """
    values = np.atleast_1d(_check_codes(codes))
    big_endian = np.where(values == UNKNOWN, 0, values).astype(">u4", order="C")
    return np.unpackbits(big_endian.view(np.uint8), axis=-1)


def _level_mask(level: int) -> int:
    """Return the integer whose first `level` of 32 bits are ones."""
    if isinstance(level, bool) or not isinstance(level, (int, np.integer)) or not 1 <= level <= CODE_BITS:
        raise ValueError(f"GeoSOT has no level {level!r}: choose a whole number from 1 to {CODE_BITS}.")
    return (1 << CODE_BITS) - (1 << (CODE_BITS - int(level)))


def _check_limit(degrees: np.ndarray, limit: float, what: str) -> None:
    """Raise ValueError if a coordinate (NaN excepted) lies beyond ± `limit` degrees."""
    beyond = np.abs(degrees) > limit
    if beyond.any():
        raise ValueError(
            f"{what} {float(degrees[beyond].flat[0])} lies beyond ±{limit:g} degrees: give degrees, longitude first."
        )


def _check_codes(codes: ArrayLike) -> np.ndarray:
    """Return codes as int64; raise ValueError if one is neither −1 nor of 32 bits."""
    values = np.asarray(codes)
    if values.dtype.kind not in "iu":
        raise ValueError(f"GeoSOT codes are integers, not {values.dtype}: convert them with astype(numpy.int64).")
    values = values.astype(np.int64)
    wrong = (values < UNKNOWN) | (values >= 1 << CODE_BITS)
    if wrong.any():
        raise ValueError(
            f"{values[wrong].flat[0]} is no GeoSOT code: codes lie from 0 to 2**32 - 1, or are -1, unknown."
        )
    return values
