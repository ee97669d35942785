"""A band sees the mean of a spectrum over its response, by an integral worked out apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.modeling.sensors_a2mae import Band
from a2mae_hub.spectra import band_reflectance


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(420, 2450), st.floats(5, 200))
def test_a_flat_spectrum_has_one_reflectance_in_every_band(level, wavelength, width):
    band = Band("b", "", wavelength, width, 10.0, 0.1, 0.1, (-0.2, 2.0))
    assert band_reflectance((400, 900, 2500), (level,) * 3, band) == pytest.approx(level, abs=1e-12)


def test_a_band_on_a_straight_spectrum_sees_the_reflectance_at_its_centre():
    # A symmetric response averages a line to its value in the middle.
    band = Band("b", "", 1000.0, 50.0, 10.0, 0.1, 0.1, (-0.2, 2.0))
    assert band_reflectance((400, 2500), (0.0, 0.21), band) == pytest.approx(0.06, abs=1e-9)


def test_a_band_wider_than_a_dip_fills_it_as_the_integral_over_the_response_says():
    band = Band("b", "", 680.0, 60.0, 10.0, 0.1, 0.1, (-0.2, 2.0))
    fine = np.linspace(400, 2500, 210_001)
    response = np.exp(-0.5 * ((fine - 680) / (60 / 2.3548200450309493)) ** 2)
    dip = np.interp(fine, (640, 680, 720), (0.4, 0.0, 0.4))
    expected = (dip * response).sum() / response.sum()
    found = band_reflectance((400, 640, 680, 720, 2500), (0.4, 0.4, 0.0, 0.4, 0.4), band)
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_thermal_band_is_refused():
    band = Band("B10", "lwir11", 10_900.0, 600.0, 100.0, 300.0, 10.0, (100.0, 400.0))
    with pytest.raises(ValueError, match=r"B10.*10900 nm.*leave it out"):
        band_reflectance((400, 2500), (0.1, 0.1), band)
