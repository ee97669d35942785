from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from a2mae_hub.modeling.geocoding_a2mae import (
    cell_size,
    code_bits,
    decode_coordinate,
    encode_coordinate,
    encode_footprint,
)

LEVELS = range(1, 33)
longitudes = st.floats(-180, 180, allow_nan=False)
levels = st.integers(1, 32)


def bit_string(degrees, level):
    """The published layout, field by field in exact rational numbers and text."""
    rest = abs(Fraction(degrees))
    text = "1" if degrees < 0 else "0"
    for width, per_unit in ((8, 1), (6, 60), (6, 60), (11, 2048)):
        rest *= per_unit
        field = rest.numerator // rest.denominator
        rest -= field
        text += format(field, f"0{width}b")
    return text[:level].ljust(32, "0")


@given(longitudes, levels)
@settings(max_examples=300, deadline=None)
def test_a_code_has_the_bit_layout_of_geosot(degrees, level):
    finest_cells = abs(Fraction(degrees)) * 3600 * 2048
    assume(finest_cells % 1 < 1 - Fraction(1, 50_000))  # short of an edge by rounding: see the test of the carry
    assume(degrees != 0)  # for the sign of zero see below
    assert format(int(encode_coordinate(degrees, level)), "032b") == bit_string(degrees, level)


def test_fields_of_a_known_coordinate():
    code = encode_coordinate(39 + 54 / 60 + 26.5 / 3600)
    assert int(code) == 0b0_00100111_110110_011010_10000000000
    assert int(encode_coordinate(-(39 + 54 / 60 + 26.5 / 3600))) == 0b1_00100111_110110_011010_10000000000


def test_the_textbook_cell_in_beijing():
    """G001310322-230230-310312 is 39°54'37" N, 116°18'54" E; each digit is 2 × latitude bit + longitude bit."""
    latitude = code_bits(encode_coordinate(39 + 54 / 60 + 37 / 3600, 21))
    longitude = code_bits(encode_coordinate(116 + 18 / 60 + 54 / 3600, 21))
    digits = "".join(str(digit) for digit in (2 * latitude + longitude)[:21])
    assert digits == "001310322" + "230230" + "310312"


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=longitudes), levels)
@settings(max_examples=200, deadline=None)
def test_a_decoded_code_is_within_one_cell_and_encodes_to_itself(degrees, level):
    codes = encode_coordinate(degrees, level)
    decoded = decode_coordinate(codes, level)
    inward = np.abs(degrees) - np.abs(decoded)
    rounding = 1e-11  # of the carry tolerance: 1e-5 of the finest cell is 1.4e-12 degrees
    assert (inward > -rounding).all()
    assert (inward < cell_size(level) + rounding).all()
    np.testing.assert_array_equal(encode_coordinate(decoded, level), codes)
    np.testing.assert_array_equal(np.signbit(decoded), np.signbit(degrees))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("degrees", [0.0, 90.0, -90.0, 180.0, -180.0, 1e-12, -1e-12, 179.9999999999, -45.999722])
def test_poles_antimeridian_and_zero_come_back_within_one_cell_at_every_level(degrees, level):
    decoded = float(decode_coordinate(encode_coordinate(degrees, level), level))
    assert abs(decoded) <= 180
    assert abs(degrees - decoded) < cell_size(level)


@given(longitudes, levels)
@settings(max_examples=200, deadline=None)
def test_a_coarse_code_is_the_beginning_of_the_fine_one(degrees, level):
    fine = format(int(encode_coordinate(degrees)), "032b")
    assert format(int(encode_coordinate(degrees, level)), "032b") == fine[:level] + "0" * (32 - level)


@given(st.lists(st.floats(0, 180), min_size=2, max_size=20), levels)
@settings(max_examples=100, deadline=None)
def test_codes_rise_with_the_distance_from_zero_on_both_sides(degrees, level):
    degrees = np.sort(degrees)
    assert (np.diff(encode_coordinate(degrees, level)) >= 0).all()
    assert (np.diff(encode_coordinate(-degrees, level)) >= 0).all()


@given(st.integers(0, 179), st.integers(0, 59), st.integers(0, 59), st.integers(0, 2047), st.booleans())
@settings(max_examples=300, deadline=None)
def test_degrees_minutes_and_seconds_summed_in_float_keep_their_own_fields(whole, minutes, seconds, fraction, negative):
    degrees = whole + minutes / 60 + (seconds + fraction / 2048) / 3600
    code = int(encode_coordinate(-degrees if negative else degrees))
    assert (code >> 31, code >> 23 & 255, code >> 17 & 63, code >> 11 & 63, code & 2047) == (
        negative,
        whole,
        minutes,
        seconds,
        fraction,
    )


def test_sixty_seconds_short_by_rounding_carry_into_the_next_minute():
    almost = 12 + 34 / 60 + 59.9999999999 / 3600
    assert int(encode_coordinate(almost)) == int(encode_coordinate(12 + 35 / 60))
    clearly_before = 12 + 34 / 60 + 59.9999 / 3600
    assert int(encode_coordinate(clearly_before)) >> 17 & 63 == 34


def test_zero_lies_above_zero_and_minus_zero_just_below():
    assert encode_coordinate([0.0, -0.0]).tolist() == [0, 1 << 31]
    assert np.signbit(decode_coordinate([0, 1 << 31])).tolist() == [False, True]


def test_cells_halve_with_every_bit_within_a_field():
    sizes = np.array([cell_size(level) for level in LEVELS])
    assert sizes[0] == 256 and sizes[8] == 1
    assert sizes[14] == pytest.approx(1 / 60) and sizes[20] == pytest.approx(1 / 3600)
    assert sizes[31] == pytest.approx(1 / 3600 / 2048)
    ratios = sizes[:-1] / sizes[1:]
    starts_of_fields = [8, 14]  # 64 values are provided for 60 minutes or seconds
    np.testing.assert_allclose(np.delete(ratios, starts_of_fields), 2)
    np.testing.assert_allclose(ratios[starts_of_fields], 60 / 32)


def test_unknown_coordinates_are_minus_one_and_have_no_bits():
    codes = encode_coordinate([np.nan, -180.0])
    assert codes.dtype == np.int64
    assert codes[0] == -1 and codes[1] == 0b1_10110100 << 23
    assert np.isnan(decode_coordinate(codes)[0])
    bits = code_bits(codes)
    assert not bits[:32].any()
    assert bits[32:].sum() == 5


@given(hnp.arrays(np.int64, hnp.array_shapes(max_dims=3, max_side=4), elements=st.integers(0, 2**32 - 1)))
@settings(max_examples=100, deadline=None)
def test_bits_are_the_binary_numerals_of_the_codes(codes):
    bits = code_bits(codes)
    assert bits.dtype == np.uint8
    assert bits.shape == (*codes.shape[:-1], codes.shape[-1] * 32)
    rows = codes.reshape(-1, codes.shape[-1])
    expected = ["".join(format(code, "032b") for code in row) for row in rows.tolist()]
    assert ["".join(map(str, row)) for row in bits.reshape(len(rows), -1)] == expected


def test_a_footprint_gives_longitude_and_latitude_of_each_corner_in_turn():
    corners = np.array([[10.0, 50.0], [11.0, 50.0], [11.0, 49.0], [10.0, -49.0]])
    codes = encode_footprint(np.stack([corners, corners + 1]), level=9)
    assert codes.shape == (2, 8)
    assert (codes[0] >> 23).tolist() == [10, 50, 11, 50, 11, 49, 10, 256 + 49]
    assert code_bits(codes).shape == (2, 256)


def test_a_footprint_with_an_unknown_corner_keeps_the_others():
    codes = encode_footprint([[np.nan, np.nan], [180, 90], [-180, -90], [0, 0]])
    assert (codes == -1).tolist() == [True, True] + [False] * 6


@pytest.mark.parametrize(
    ("corner", "message"),
    [((190.0, 10.0), "Longitude 190"), ((10.0, 95.0), "Latitude 95"), ((10.0, -90.5), "Latitude -90.5")],
)
def test_a_footprint_off_the_globe_names_the_coordinate(corner, message):
    with pytest.raises(ValueError, match=message):
        encode_footprint([[0, 0], [0, 1], [1, 1], corner])


def test_what_is_no_coordinate_code_or_level_is_refused():
    with pytest.raises(ValueError, match=r"180\.5 lies beyond ±180"):
        encode_coordinate([0.0, 180.5])
    with pytest.raises(ValueError, match="inf lies beyond"):
        encode_coordinate(np.inf)
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        encode_footprint(np.zeros((3, 2)))
    for level in (0, 33, 1.5, True):
        with pytest.raises(ValueError, match="no level"):
            encode_coordinate(1.0, level)
        with pytest.raises(ValueError, match="no level"):
            cell_size(level)
    for code in (-2, 2**32):
        with pytest.raises(ValueError, match=f"{code} is no GeoSOT code"):
            decode_coordinate(code)
        with pytest.raises(ValueError, match=f"{code} is no GeoSOT code"):
            code_bits([code])
    with pytest.raises(ValueError, match="more than 59 minutes"):
        decode_coordinate(60 << 17)
    with pytest.raises(ValueError, match="integers, not float64"):
        decode_coordinate(1.0)
