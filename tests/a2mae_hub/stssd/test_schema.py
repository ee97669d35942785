"""Rows of shards: what goes in comes out, and rows that lie about themselves are refused before memory is taken."""

import tracemalloc
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from a2mae_hub.stssd.schema import PIXEL_TYPES, SCHEMA, StoredImage, StoredSet, decode, from_row, to_row


def table_of(*rows):
    return pa.Table.from_pylist([row if isinstance(row, dict) else to_row(row) for row in rows], schema=SCHEMA)


def image_of(pixels, **facts):
    return StoredImage(pixels=pixels, bands=[f"B{n}" for n in range(len(pixels))], sensor="sentinel-2-l2a", **facts)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_images_come_back_as_they_were_stored(data):
    def an_image():
        dtype = np.dtype(data.draw(st.sampled_from(PIXEL_TYPES)))
        byte_order = data.draw(st.sampled_from("<>"))
        shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)))
        pixels = data.draw(arrays.arrays(dtype.newbyteorder(byte_order), shape))
        count = len(pixels)
        facts = {
            "valid": data.draw(st.none() | arrays.arrays(bool, data.draw(st.sampled_from([shape, shape[1:]])))),
            "acquired": data.draw(st.none() | st.datetimes(datetime(1972, 1, 1), datetime(2090, 1, 1))),
            "scale": data.draw(st.none() | st.just(0.5) | st.just([0.5] * count)),
            "nodata": data.draw(st.none() | st.integers(0, 99)),
            "gsd": data.draw(st.none() | st.floats(0.1, 1000)),
        }
        return image_of(pixels, **facts)

    stored = StoredSet(images=[an_image() for _ in range(data.draw(st.integers(1, 3)))], id="one")
    other = StoredSet(images=[an_image()], id="other")
    first, restored = map(from_row, decode(table_of(other, stored), "here"))
    assert (first.id, restored.id) == ("other", "one")
    assert len(restored) == len(stored)
    for ours, theirs in zip(restored, stored, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert ours.pixels.dtype == theirs.pixels.dtype.newbyteorder("<")
        # A mask for all bands may come back band by band.
        if theirs.valid is None:
            assert ours.valid is None
        else:
            ours_of_all, theirs_of_all = (np.broadcast_to(one.valid, one.pixels.shape) for one in (ours, theirs))
            np.testing.assert_array_equal(ours_of_all, theirs_of_all)
        assert ours.acquired == (theirs.acquired and theirs.acquired.replace(tzinfo=timezone.utc))
        assert (ours.nodata, ours.gsd, ours.bands) == (theirs.nodata, theirs.gsd, theirs.bands)
        if theirs.scale is None:
            assert ours.scale is None
        else:
            assert list(ours.scale) == list(np.atleast_1d(theirs.scale))


def test_a_row_tells_of_its_images_and_its_place(make_set):
    row = to_row(make_set(3, longitude=10.0, latitude=50.0))
    assert row["sensors"] == ["sentinel-2-l2a", "landsat-8-sr"]
    assert row["first_acquired"] == datetime(2020, 1, 1, 10, 30, tzinfo=timezone.utc)
    assert row["last_acquired"] == row["first_acquired"] + timedelta(days=200)
    assert row["bbox"] == pytest.approx({"xmin": 9.95, "ymin": 49.95, "xmax": 10.05, "ymax": 50.05})
    nowhere = to_row(make_set(3, longitude=None, days=None))
    assert (nowhere["bbox"], nowhere["geometry"], nowhere["first_acquired"]) == (None, None, None)


def test_decoding_copies_no_pixel(make_set):
    table = table_of(*(make_set(number, side=64) for number in range(4)))
    allocated = pa.total_allocated_bytes()
    rows = list(decode(table, "here")) + list(decode(table.slice(2, 2), "here"))
    assert pa.total_allocated_bytes() - allocated < 20_000  # metadata; one image has 32 768
    column = table["images"].chunk(0).flatten().field("pixels")
    start = column.buffers()[2].address
    for row in rows:
        for image in row["images"]:
            assert start <= image["pixels"].ctypes.data < start + column.buffers()[2].size
            assert not image["pixels"].flags.writeable


def test_decoding_a_part_of_a_table_gives_the_same_rows(make_set):
    table = table_of(*(make_set(number, sensors=["naip"] * (1 + number % 3)) for number in range(7)))
    whole = list(decode(table, "here"))
    for start in range(7):
        part = list(decode(table.slice(start, 3), "here"))
        for ours, theirs in zip(part, whole[start : start + 3], strict=True):
            assert ours["id"] == theirs["id"]
            for one, other in zip(ours["images"], theirs["images"], strict=True):
                np.testing.assert_array_equal(one["pixels"], other["pixels"])
    assert list(decode(table.slice(7), "here")) == []


def test_tables_in_several_chunks_are_decoded(make_set):
    tables = [table_of(make_set(number)) for number in range(3)]
    assert [row["id"] for row in decode(pa.concat_tables(tables), "here")] == [f"grid-{n:04d}" for n in range(3)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": [4, 10**9, 10**9]}, r"says its shape is \[4, 1000000000, 1000000000\]"),
        ({"shape": [1024, 2**15, 2**15]}, r"holds 2048 bytes where shape .* takes 2199023255552"),
        ({"shape": [4, -16, -16]}, r"says its shape is \[4, -16, -16\]"),
        ({"shape": [4, 0, 16]}, r"says its shape is \[4, 0, 16\]"),
        ({"shape": [4, 256]}, r"says its shape is \[4, 256\]"),
        ({"shape": [4, None, 16]}, r"says its shape is \[4, None, 16\]"),
        ({"shape": None}, r"says its shape is None"),
        ({"shape": [4, 16, 17]}, r"holds 2048 bytes where shape \[4, 16, 17\] of uint16 takes 2176"),
        ({"shape": [2, 32, 16]}, r"names 4 bands and holds 2"),
        ({"bands": None}, r"names 0 bands and holds 4"),
        ({"dtype": "object"}, r"says its numbers are of type 'object'"),
        ({"dtype": "O"}, r"says its numbers are of type 'O'"),
        ({"dtype": None}, r"says its numbers are of type None"),
        ({"dtype": "float64"}, r"holds 2048 bytes where shape \[4, 16, 16\] of float64 takes 8192"),
        ({"pixels": None}, r"has no pixels"),
        ({"pixels": b"short"}, r"holds 5 bytes where shape \[4, 16, 16\] of uint16 takes 2048"),
        ({"valid": b"short"}, r"has a valid mask of 5 bytes, which fits no shape of it"),
    ],
)  # fmt: skip
def test_images_that_lie_about_themselves_are_named_before_anything_is_made_of_them(make_set, fields, message):
    honest, hostile = to_row(make_set(0)), to_row(make_set(1))
    hostile["images"][2].update(fields)
    table = table_of(honest, hostile)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"far/a\.parquet: row 31, image 2 {message}"):
        list(decode(table, "far/a.parquet", 30))
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": []}, "has no images"),
        ({"images": None}, "has no images"),
        ({"images": [None]}, "image 0 has no sensor"),
        ({"id": None}, "has no id"),
        ({"kind": None}, "has no kind"),
        ({"split": ""}, "has no split"),
        ({"longitude": 1e300}, "longitude 1e.300, which is no place on Earth"),
        ({"latitude": float("nan")}, "latitude nan, which is no place on Earth"),
    ],
)
def test_rows_that_cannot_be_sets_are_named(make_set, fields, message):
    rows = decode(table_of(to_row(make_set(3)), to_row(make_set(1)) | fields), "here")
    assert next(rows)["id"] == "grid-0003"
    with pytest.raises(ValueError, match=f"here: row 1.*{message}.*fetch the shard again"):
        next(rows)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sensor": None}, "no sensor"),
        ({"provenance": None}, "no provenance"),
        ({"transform": [1.0]}, r"transform \[1.0\]"),
        ({"scale": [float("inf")]}, r"scale \[inf\]"),
        ({"offset": [0.0, 0.0]}, r"offset \[0.0, 0.0\]"),
        ({"cloud_share": 7.0}, "cloud_share 7.0"),
        ({"gsd": -1.0}, "gsd -1.0"),
    ],
)
def test_images_whose_facts_cannot_be_true_are_named(make_set, fields, message):
    row = to_row(make_set(1))
    row["images"][2].update(fields)
    with pytest.raises(ValueError, match=f"here: row 0, image 2 has {message}"):
        list(decode(table_of(row), "here"))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (image_of(np.zeros((2, 4, 4), np.complex64)), r"image 0 of one has pixels of type complex64"),
        (image_of(np.zeros((2, 4, 4), bool)), r"image 0 of one has pixels of type bool"),
        (image_of(np.zeros((4, 4), np.uint8)), r"image 0 of one has pixels of shape \(4, 4\)"),
        (StoredImage(np.zeros((2, 4, 4), np.uint8), ["red"], "naip"), r"pixels of shape \(2, 4, 4\) and 1 band names"),
    ],
)
def test_images_that_no_shard_can_hold_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        to_row(StoredSet(images=[image], id="one"))
