"""Filters choose what they say, and pixels that nobody asked for are not read."""

from datetime import date, datetime, timedelta, timezone

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.stssd import load
from a2mae_hub.stssd.selection import Selection, make_plan
from a2mae_hub.stssd.shards import find_shards

# Every set's kind, split, sensors, days between its images, longitude and latitude; None where unknown.
SETS = [
    ("city", "train", ("sentinel-2-l2a", "landsat-8-sr"), 100, 2.3, 48.9),
    ("city", "train", ("sentinel-2-l2a",), 100, 2.4, 48.9),
    ("city", "validation", ("landsat-8-sr",), None, None, None),
    ("gf1", "train", ("naip", "naip"), 400, -179.97, -17.0),
    ("gf1", "train", ("naip", "sentinel-2-l2a", "naip"), 400, 179.97, -17.0),
    ("gf1", "validation", ("naip",), 400, -120.0, 37.0),
    ("grid", "train", ("sentinel-2-l2a", "landsat-8-sr", "sentinel-2-l2a"), 366, 3.0, 42.0),
    ("grid", "validation", ("sentinel-2-l2a",), None, 3.2, 42.0),
    ("grid", "train", ("landsat-8-sr", "landsat-8-sr"), 30, None, None),
    ("city", "train", ("naip", "landsat-8-sr"), 30, -73.9, 40.7),
]
START = datetime(2020, 1, 1, 10, 30, tzinfo=timezone.utc)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory, make_set, write_shards):
    """The sets of `SETS` in two shards and four row groups; the first two row groups are of one kind each."""
    names = ("kind", "split", "sensors", "days", "longitude", "latitude")
    sets = [make_set(number, **dict(zip(names, facts, strict=True))) for number, facts in enumerate(SETS)]
    return write_shards(tmp_path_factory.mktemp("mixed"), sets, sets_per_shard=6)


def numbers(dataset):
    """The numbers of the sets, each with that of its images, in order."""
    return [(int(example["id"][-4:]), len(example["images"])) for example in dataset]


def images_of(number):
    """Sensor and time of the images of a set."""
    *_, sensors, days, _, _ = SETS[number]
    return [
        (sensor, None if days is None else START + index * timedelta(days=days)) for index, sensor in enumerate(sensors)
    ]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"kinds": "gf1"}, [(3, 2), (4, 3), (5, 1)]),
        ({"kinds": ["gf1", "city"], "split": "validation"}, [(2, 1), (5, 1)]),
        ({"sensors": "landsat-8-sr"}, [(0, 1), (2, 1), (6, 1), (8, 2), (9, 1)]),
        ({"sensors": ["naip"], "kinds": "gf1"}, [(3, 2), (4, 2), (5, 1)]),
        ({"start": "2021-01-01"}, [(3, 1), (4, 2), (6, 2)]),
        ({"start": "2020-01-01", "end": "2020-01-02", "kinds": "grid"}, [(6, 1), (8, 1)]),
        ({"start": START, "end": START + timedelta(days=400), "kinds": "gf1"}, [(3, 1), (4, 1), (5, 1)]),  # end is out
        ({"end": START + timedelta(days=400, seconds=1), "kinds": "gf1"}, [(3, 2), (4, 2), (5, 1)]),
        ({"end": START}, None),
        ({"bounds": (2.0, 48.0, 2.31, 49.0)}, [(0, 2)]),
        ({"bounds": (2.34, 48.9, 2.36, 48.9)}, [(0, 2), (1, 1)]),  # both reach into it
        ({"bounds": (2.2, 48.8, 2.4, 49.0), "end": "2020-01-02"}, [(0, 1), (1, 1)]),
        ({"bounds": (179.0, -20.0, -179.0, -10.0)}, [(3, 2), (4, 3)]),  # across the antimeridian
        ({"bounds": (-180.0, -20.0, -179.99, -10.0)}, [(3, 2), (4, 3)]),  # both are cut in two by it
        ({"bounds": (-179.94, -20.0, -179.0, -10.0)}, [(3, 2)]),
        ({"bounds": (-70.0, -20.0, 150.0, -10.0), "kinds": ["gf1", "city"]}, None),  # inside the box around both halves
        ({"bounds": (-180.0, -90.0, 180.0, 90.0)}, [(n, len(SETS[n][2])) for n in (0, 1, 3, 4, 5, 6, 7, 9)]),
        ({"bounds": (-74.0, 40.0, 3.1, 43.0), "sensors": "sentinel-2-l2a"}, [(6, 2)]),
    ],
)  # fmt: skip
def test_filters_choose_sets_and_leave_out_images(mixed, filters, expected):
    if expected is None:
        with pytest.raises(ValueError, match="leaves no set"):
            load(mixed, **filters)
        return
    dataset = load(mixed, **filters)
    assert numbers(dataset) == expected
    assert dataset.num_sets == len(expected)


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.none() | st.lists(st.sampled_from(["city", "grid", "gf1"]), min_size=1),
    split=st.none() | st.sampled_from(["train", "validation"]),
    sensors=st.none() | st.lists(st.sampled_from(["naip", "landsat-8-sr", "sentinel-2-l2a"]), min_size=1),
    start=st.none() | st.dates(date(2019, 12, 1), date(2022, 1, 1)),
    end=st.none() | st.dates(date(2022, 1, 2), date(2023, 1, 1)) | st.dates(date(2020, 1, 1), date(2020, 2, 1)),
    bounds=st.none() | st.sampled_from([(2, 40, 4, 50), (179, -20, -70, 45), (-180, -90, 0, 90)]),
)
def test_what_is_planned_from_statistics_is_what_a_look_at_every_image_finds(mixed, **filters):
    if filters["start"] and filters["end"] and filters["start"] >= filters["end"]:
        filters["start"] = None

    def at_midnight(day):
        return datetime(day.year, day.month, day.day, tzinfo=timezone.utc)

    def fits(sensor, acquired):
        if filters["sensors"] is not None and sensor not in filters["sensors"]:
            return False
        if filters["start"] is None and filters["end"] is None:
            return True
        return (
            acquired is not None
            and (filters["start"] is None or at_midnight(filters["start"]) <= acquired)
            and (filters["end"] is None or acquired < at_midnight(filters["end"]))
        )

    def lies_within(longitude, latitude):
        if filters["bounds"] is None:
            return True
        if longitude is None:
            return False
        west, south, east, north = filters["bounds"]
        if not south <= latitude + 0.05 or not latitude - 0.05 <= north:
            return False
        turns = [longitude + turn for turn in (-360, 0, 360)]
        return any(west <= turn + 0.05 and turn - 0.05 <= east + 360 * (west > east) for turn in turns)

    expected = []
    for number, (kind, split, *_, longitude, latitude) in enumerate(SETS):
        left = [image for image in images_of(number) if fits(*image)]
        of_kind = filters["kinds"] is None or kind in filters["kinds"]
        if of_kind and filters["split"] in (None, split) and lies_within(longitude, latitude) and left:
            expected.append((number, len(left)))
    if expected:
        dataset = load(mixed, **filters)
        assert numbers(dataset) == expected
        assert dataset.num_sets == len(expected)
    else:
        with pytest.raises(ValueError, match=r"leaves no set|at once"):
            load(mixed, **filters)


def test_columns_about_images_tell_of_those_that_are_left(mixed):
    example = next(iter(load(mixed, kinds="grid", sensors="sentinel-2-l2a")))
    times = [image["acquired"] for image in example["images"]]
    assert example["sensors"] == ["sentinel-2-l2a"]
    assert (
        (example["first_acquired"], example["last_acquired"])
        == (times[0], times[1])
        == (START, START + timedelta(days=732))
    )
    assert example["anchor"] < 2


def test_times_are_read_as_text_date_or_datetime_in_any_zone():
    moment = datetime(2021, 6, 1, tzinfo=timezone.utc)
    east = timezone(timedelta(hours=2))
    for given_time in (
        "2021-06-01",
        "2021-06-01T00:00Z",
        "2021-06-01T02:00+02:00",
        date(2021, 6, 1),
        moment.replace(tzinfo=None),
    ):
        assert Selection.parse(start=given_time).start == moment
    assert Selection.parse(end=datetime(2021, 6, 1, 2, tzinfo=east)).end == moment


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"start": "June 2021"}, r"start='June 2021' is no ISO 8601 time"),
        ({"start": "2021-01-01", "end": "2020-01-01"}, r"end=2020-01-01 is not after start=2021-01-01"),
        ({"bounds": (0, 0, 10)}, r"bounds=\(0, 0, 10\) are not four numbers"),
        ({"bounds": (0, 10, 10, 0)}, r"are no box on the globe"),
        ({"bounds": (0, 0, 190, 10)}, r"are no box on the globe"),
        ({"kinds": "town"}, r"00\.parquet and 1 more: kinds=\('town',\) leaves no set.*kind from city to grid"),
        ({"split": "test"}, r"split='test' leaves no set; the shards hold split from train to validation"),
        ({"sensors": "modis", "kinds": "city"}, r"sensors=\('modis',\) leaves no set.*sensors from landsat-8-sr"),
        ({"start": "2030-01-01"}, r"start='2030-01-01T00:00:00\+00:00' leaves no set.*last_acquired from"),
        ({"bounds": (10, 60, 20, 70)}, r"bounds=\(10.0, .*\) leaves no set.*bbox.ymax from -16.95 to 48.95"),
        ({"kinds": "gf1", "sensors": "landsat-8-sr"}, r"no set fits kinds=\('gf1',\) and sensors=\('lands.*\) at once"),
    ],
)  # fmt: skip
def test_what_leaves_nothing_is_named(mixed, filters, message):
    with pytest.raises(ValueError, match=message):
        load(mixed, **filters)


def test_shards_without_a_set_are_named(tmp_path, write_shards):
    with pytest.raises(ValueError, match=r"sets-00000\.parquet: the shards hold no image set"):
        load(write_shards(tmp_path / "none", []))


def pixel_bytes(path, group):
    """Where the pixels of a row group lie in a file, (start, stop)."""
    row_group = pq.read_metadata(path).row_group(group)
    columns = [row_group.column(index) for index in range(row_group.num_columns)]
    (column,) = [column for column in columns if column.path_in_schema.endswith(".pixels")]
    start = column.dictionary_page_offset or column.data_page_offset
    return start, start + column.total_compressed_size


@pytest.mark.parametrize(
    ("filters", "groups"),
    [
        ({"kinds": "gf1"}, {(0, 1)}),
        ({"split": "validation"}, {(0, 0), (0, 1), (1, 0)}),
        ({"sensors": "naip"}, {(0, 1), (1, 1)}),
        ({"start": "2021-06-01"}, {(0, 1), (1, 0)}),
        ({"bounds": (-125.0, 30.0, -70.0, 45.0)}, {(0, 1), (1, 1)}),
    ],
)
def test_pixels_of_row_groups_without_a_match_are_never_read(tmp_path, make_set, write_shards, remote, filters, groups):
    """The footer is fetched with the last 64 KiB of a file, whatever they are; pixels before that count."""
    names = ("kind", "split", "sensors", "days", "longitude", "latitude")
    sets = [make_set(n, side=128, **dict(zip(names, facts, strict=True))) for n, facts in enumerate(SETS)]
    folder = write_shards(tmp_path / "large", sets, sets_per_shard=6)
    paths = sorted(folder.iterdir())
    places = {(file, group): pixel_bytes(paths[file], group) for file in range(2) for group in range(2)}

    def touched():
        return {
            (file, group)
            for (file, group), (first, last) in places.items()
            for path, start, stop in remote.requests
            if path == str(paths[file]) and first < stop and start < min(last, paths[file].stat().st_size - 2**16)
        }

    dataset = load(f"remote://{folder}", **filters)
    assert not touched()
    assert len(list(dataset)) == dataset.num_sets
    assert touched() == groups


def test_counts_come_from_footers_alone_where_no_filter_looks_at_rows(mixed, monkeypatch):
    from a2mae_hub.stssd import selection

    read = []
    original = selection.read_group
    monkeypatch.setattr(selection, "read_group", lambda *args: read.append(args[2]) or original(*args))
    files = find_shards(mixed)
    assert make_plan(files, Selection()).num_sets == len(SETS)
    assert make_plan(files, Selection.parse(kinds="city")).num_sets == 4
    assert not read
    assert make_plan(files, Selection.parse(split="validation")).num_sets == 3
    assert sorted(read) == [0, 0, 1]  # of the fourth row group, the statistics say that all sets are of "train"


def test_a_plan_can_be_cut_anywhere(mixed):
    for filters in ({}, {"sensors": "landsat-8-sr"}):
        plan = make_plan(find_shards(mixed), Selection.parse(**filters))
        whole = rows_of(plan)
        for start in range(plan.num_sets + 1):
            for stop in range(start, plan.num_sets + 1):
                assert rows_of(plan.cut(start, stop)) == whole[start:stop]
                assert (plan.cut(start, stop).fingerprint == plan.fingerprint) == (stop - start == plan.num_sets)
        assert len({plan.cut(number, number + 1).fingerprint for number in range(plan.num_sets)}) == plan.num_sets


def rows_of(plan):
    """File and row of every set of a plan."""
    rows = []
    for file, first, count, chosen in zip(plan.files, plan.first_rows, plan.counts, plan.rows, strict=True):
        chosen = np.arange(count) if chosen is None else chosen
        rows += [(int(file), int(first + row)) for row in chosen]
    return rows
