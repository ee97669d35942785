"""Reflectance spectra of surface materials, and what the bands of a sensor see of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .modeling.sensors_a2mae import Band

# Reflectance of materials in per cent at the knots, linear between them. Set by hand, to two digits, to the shapes of
# the spectra named; they are typical curves and not any one measurement.
# - Canopies: PROSPECT + SAIL (Jacquemoud et al. 2009, Remote Sensing of Environment 113): chlorophyll at 450 and 680
#   nm, red edge 690 to 750 nm, near-infrared plateau, leaf water at 970, 1200, 1450 and 1940 nm.
# - Dry grass (cellulose at 2100 nm), loam (clay at 2200 nm), concrete, asphalt, tile, sheet metal, charred ground: USGS
#   Spectral Library Version 7 (Kokaly et al. 2017, Data Series 1035) and ECOSTRESS library (Meerdink et al. 2019).
# - Inland water, nearly black beyond 750 nm: Mobley 1994, Light and Water.
# fmt: off
KNOTS = (  # nanometres
    400, 450, 500, 550, 600, 650, 680, 700, 720, 740, 780, 860,
    970, 1080, 1200, 1300, 1450, 1650, 1800, 1940, 2100, 2200, 2350, 2500,
)
SPECTRA = {
    "conifer": (1.3, 1.4, 1.7, 3.4, 2.4, 1.9, 1.6, 3.6, 9, 16, 22.5, 24,
                22, 23.5, 20, 19.5, 4.5, 10, 7, 2, 3.5, 4.5, 3, 1.5),
    "broadleaf": (1.6, 1.8, 2.3, 5.2, 3.3, 2.4, 2, 5.5, 17, 31, 41, 43,
                  40, 43, 37, 36, 10, 20, 15, 4, 7.5, 9, 6, 3),
    "grass": (2.4, 2.8, 3.6, 7.6, 5.2, 3.8, 3.2, 8, 21, 35, 45, 48,
              44, 47, 40, 39, 13, 24, 18, 5.5, 10, 12, 8, 4),
    "dry_grass": (6, 7.5, 10, 13.5, 17, 20, 21, 22, 23, 24, 25.5, 28,
                  30, 32, 32.5, 33.5, 25, 32, 29, 18, 18.5, 21, 17, 13),
    "litter": (2.5, 3, 3.8, 5, 6.8, 8.5, 9.3, 10, 11, 12, 14, 18,
               22, 25, 26, 27, 20, 27, 24, 14, 15, 17, 14, 10),
    "soil": (5, 6.2, 7.8, 10.2, 12.6, 14.6, 15.5, 16, 16.6, 17.2, 18.5, 21,
             23.5, 26, 28, 29.5, 26, 32, 32, 24, 30, 28.5, 27, 23),
    "water": (3.4, 3.8, 4.3, 4.6, 2.8, 1.9, 1.6, 1.3, 0.8, 0.7, 0.6, 0.4,
              0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1),
    "concrete": (17, 20, 23, 25.5, 27, 28, 28.5, 29, 29, 29.5, 30, 31,
                 32, 33, 33.5, 34, 32, 35, 34.5, 30, 32, 32, 30, 27),
    "asphalt": (6.5, 7, 7.8, 8.5, 9.2, 9.8, 10, 10.2, 10.4, 10.6, 11, 11.6,
                12.3, 13, 13.6, 14, 14, 15.5, 15.8, 15, 16, 16, 15, 14),
    "tile": (5, 6, 7, 9.5, 17, 21, 22, 22.5, 23, 23.5, 24, 25,
             27, 29.5, 32, 33, 32, 36, 36, 32, 34, 33, 31, 28),
    "metal": (44, 48, 50, 51, 51.5, 52, 52, 52, 52, 52, 52, 51,
              51, 52, 52, 52, 51, 51, 50, 49, 49, 48, 46, 44),
    "char": (2.6, 2.8, 3, 3.3, 3.6, 4, 4.2, 4.4, 4.6, 4.8, 5.2, 6,
             7, 8, 9, 9.8, 9.5, 12.5, 13, 11.5, 13.5, 14, 14, 13),
}
# fmt: on
MATERIALS = tuple(SPECTRA)


def band_reflectance(wavelengths: Sequence[float], reflectance: Sequence[float], band: Band) -> float:
    """Return the reflectance that a band sees of a spectrum: the mean weighted by a Gaussian spectral response.

    Args:
        wavelengths: Rising wavelengths of the spectrum, nanometres.
        reflectance: Reflectance at those wavelengths; linear between them.
        band: The band; its `width` is the full width at half maximum of the response.

    Returns:
        Reflectance in the unit of the spectrum.

    Raises:
        ValueError: If the band's centre lies outside the spectrum.
    """
    if not wavelengths[0] <= band.wavelength <= wavelengths[-1]:
        raise ValueError(
            f"Band {band.name!r} at {band.wavelength:g} nm lies outside the spectra known here ({wavelengths[0]:g} to "
            f"{wavelengths[-1]:g} nm): leave it out of `bands`."
        )
    grid = np.arange(wavelengths[0], wavelengths[-1] + 0.5)
    response = np.exp(-4 * math.log(2) * ((grid - band.wavelength) / band.width) ** 2)
    return float(np.average(np.interp(grid, wavelengths, reflectance), weights=response))


def material_reflectance(bands: Sequence[Band]) -> np.ndarray:
    """Return what bands see of every material.

    Args:
        bands: The bands.

    Returns:
        (bands, materials) float64 reflectance, 0 to 1, in the order of `MATERIALS`.

    Raises:
        ValueError: If the centre of a band lies outside the spectra.
    """
    return np.array(
        [[band_reflectance(KNOTS, spectrum, band) / 100 for spectrum in SPECTRA.values()] for band in bands]
    )
