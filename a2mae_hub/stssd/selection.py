"""Which sets of a data set a stream yields, found without reading a pixel.

Row groups are ruled out by the statistics in the footers first; of those left, the small columns tell which rows match.
The result is a plan: for every row group with a match, how many of its rows match, and which.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import date, datetime, timezone
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .shards import ShardFiles, open_shard, read_group

# Footers are small and wait for the network most of the time.
_MOST_THREADS = 16


@dataclass(frozen=True)
class Selection:
    """What sets and images must be like; None: anything goes.

    Attributes:
        kinds: Kinds of sets.
        sensors: Sensors of images.
        start: First acquisition time of images.
        end: The time from which on images are too late.
        bounds: West, south, east and north in degrees; west > east crosses the antimeridian.
        split: Split of the sets.
    """

    kinds: tuple[str, ...] | None = None
    sensors: tuple[str, ...] | None = None
    start: datetime | None = None
    end: datetime | None = None
    bounds: tuple[float, float, float, float] | None = None
    split: str | None = None

    @classmethod
    def parse(
        cls,
        kinds: str | Iterable[str] | None = None,
        sensors: str | Iterable[str] | None = None,
        start: str | date | None = None,
        end: str | date | None = None,
        bounds: Sequence[float] | None = None,
        split: str | None = None,
    ) -> Selection:
        """Read what a caller asks for, as `a2mae_hub.stssd.load` takes it.

        Raises:
            ValueError: If a time is no ISO 8601 text, the end is not after the start, or the bounds are no box on the
                globe.
        """
        first, last = _moment(start, "start"), _moment(end, "end")
        if first is not None and last is not None and first >= last:
            raise ValueError(
                f"end={end} is not after start={start}; images from start up to, not including, end are read."
            )
        return cls(_texts(kinds), _texts(sensors), first, last, None if bounds is None else _box(bounds), split)

    @property
    def of_images(self) -> bool:
        """Whether images may have to be left out of sets."""
        return self.sensors is not None or self.start is not None or self.end is not None

    def keeps(self, image: Mapping[str, Any]) -> bool:
        """Return whether an image, given by its `sensor` and `acquired`, is asked for."""
        if self.sensors is not None and image["sensor"] not in self.sensors:
            return False
        acquired = image["acquired"]
        if acquired is None:
            return self.start is None and self.end is None
        return (self.start is None or acquired >= self.start) and (self.end is None or acquired < self.end)

    def boxes(self) -> list[tuple[float, float, float, float]]:
        """Return the bounds as boxes with west ≤ east."""
        if self.bounds is None:
            return []
        west, south, east, north = self.bounds
        if west <= east:
            return [self.bounds]
        return [(west, south, 180.0, north), (-180.0, south, east, north)]

    def alone(self) -> list[tuple[str, Selection]]:
        """Return every filter that is set, as a caller would write it and as a selection of its own."""
        filters = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                shown = value.isoformat() if isinstance(value, datetime) else value
                filters.append((f"{field.name}={shown!r}", Selection(**{field.name: value})))
        return filters


def _texts(given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Return one text or several as a tuple."""
    return None if given is None else (given,) if isinstance(given, str) else tuple(given)


def _moment(given: str | date | None, name: str) -> datetime | None:
    """Return a time with its zone; a time without one is UTC, a date is its first moment."""
    if isinstance(given, str):
        try:
            # Python 3.10 knows no "Z".
            given = datetime.fromisoformat(given.strip().removesuffix("Z"))
        except ValueError:
            raise ValueError(
                f"{name}={given!r} is no ISO 8601 time; write it like '2020-01-23' or '2020-01-23T10:56'."
            ) from None
    if given is not None and not isinstance(given, datetime):
        given = datetime(given.year, given.month, given.day)
    return given.replace(tzinfo=timezone.utc) if given is not None and given.tzinfo is None else given


def _box(bounds: Sequence[float]) -> tuple[float, float, float, float]:
    """Return bounds as four numbers on the globe."""
    try:
        west, south, east, north = (float(number) for number in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds={bounds!r} are not four numbers: west, south, east, north in degrees.") from None
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south <= north <= 90):
        raise ValueError(
            f"bounds={bounds!r} are no box on the globe: west and east lie in -180 to 180 (west > east crosses the "
            "antimeridian), south ≤ north in -90 to 90."
        )
    return west, south, east, north


class Plan:
    """The sets of a selection, by row group: nothing but small arrays, so that it travels to workers cheaply.

    Attributes:
        paths: The files.
        files: For every row group, the number of its file.
        groups: Its number in the file.
        first_rows: The number of its first row in the file.
        counts: How many of its rows are selected.
        rows: Which, counted within the row group; None where all are.
        num_sets: All of them.
        fingerprint: Tells plans apart, wherever the files lie.
    """

    def __init__(self, paths: Sequence[str], groups: Sequence[_Group]) -> None:
        self.paths = tuple(paths)
        self.files = np.array([group.file for group in groups], np.int32)
        self.groups = np.array([group.group for group in groups], np.int32)
        self.first_rows = np.array([group.first_row for group in groups], np.int64)
        self.counts = np.array([group.selected for group in groups], np.int64)
        self.rows = [group.rows for group in groups]
        self.num_sets = int(self.counts.sum())
        digest = hashlib.blake2b(digest_size=16)
        for path in self.paths:
            digest.update(path.rpartition("/")[2].encode())
        for numbers in (self.files, self.groups, self.counts):
            digest.update(numbers.tobytes())
        for rows in self.rows:
            digest.update(b"all" if rows is None else rows.tobytes())
        self.fingerprint = digest.hexdigest()

    def cut(self, start: int, stop: int) -> Plan:
        """Return the plan of the sets from `start` to `stop`, counted in the order of the plan."""
        groups, end = [], 0
        for index, count in enumerate(self.counts.tolist()):
            begin, end = end, end + count
            first, last = max(start - begin, 0), min(stop - begin, count)
            if first < last:
                rows = self.rows[index]
                if (first, last) != (0, count):
                    rows = np.arange(first, last, dtype=np.int32) if rows is None else rows[first:last]
                place = int(self.files[index]), int(self.groups[index]), int(self.first_rows[index])
                groups.append(_Group(*place, last - first, rows))
        return Plan(self.paths, groups)


class _Group(NamedTuple):
    """A row group with at least one row that is selected."""

    file: int
    group: int
    first_row: int
    selected: int
    rows: np.ndarray | None  # int32; None: all


def make_plan(files: ShardFiles, selection: Selection) -> Plan:
    """Find the sets of a selection from footers, and where these do not tell, from the small columns.

    Args:
        files: The shards.
        selection: What to look for.

    Raises:
        ValueError: If no set is left, with the filter that left none; if a shard is damaged or is none.
    """
    plan = _plan(files, selection)
    if plan.num_sets:
        return plan
    where = f"{files.paths[0]}" + (f" and {len(files.paths) - 1} more" if len(files.paths) > 1 else "")
    for text, alone in selection.alone():
        if not _plan(files, alone).num_sets:
            raise ValueError(f"{where}: {text} leaves no set; {_extent(files, alone)}.")
    if selection.alone():
        together = " and ".join(text for text, _ in selection.alone())
        raise ValueError(f"{where}: no set fits {together} at once, though each of them fits some; ask for less.")
    raise ValueError(f"{where}: the shards hold no image set; build them again with `a2mae stssd build`.")


def _plan(files: ShardFiles, selection: Selection) -> Plan:
    """Return the plan of a selection, which may be empty."""

    def look(number: int) -> list[_Group]:
        return _plan_file(files.filesystem, files.paths[number], number, selection)

    with ThreadPoolExecutor(min(_MOST_THREADS, len(files.paths))) as pool:
        return Plan(files.paths, [group for groups in pool.map(look, range(len(files.paths))) for group in groups])


def _plan_file(filesystem: fsspec.AbstractFileSystem, path: str, number: int, selection: Selection) -> list[_Group]:
    """Return the row groups of one file that hold a match."""
    shard = open_shard(filesystem, path)
    try:
        columns = _column_numbers(shard)
        needed = _columns(columns, selection)
        found, first_row = [], 0
        for index in range(shard.num_row_groups):
            group = shard.metadata.row_group(index)
            count = group.num_rows
            statistics = _Statistics(group, columns)
            if count and _may_match(statistics, selection):
                rows = None
                if not _all_match(statistics, selection):
                    matches = _matches(read_group(shard, path, index, needed), selection)
                    rows = np.flatnonzero(matches).astype(np.int32)
                if rows is None or len(rows) == count:
                    found.append(_Group(number, index, first_row, count, None))
                elif len(rows):
                    found.append(_Group(number, index, first_row, len(rows), rows))
            first_row += count
        return found
    finally:
        shard.close(force=True)


def _column_numbers(shard: pq.ParquetFile) -> dict[str, int]:
    """Return the number of every column of a shard by its path."""
    return {shard.metadata.schema.column(index).path: index for index in range(shard.metadata.num_columns)}


def _columns(paths: Iterable[str], selection: Selection) -> list[str]:
    """Return the paths of the columns that tell whether a row matches."""
    wanted = [name for name, on in (("kind", selection.kinds), ("split", selection.split)) if on is not None]
    wanted += ["bbox", "geometry"] * (selection.bounds is not None)
    if selection.of_images:
        # What stands between the two names depends on the writer: "list.element" or "list.item".
        wanted += [path for path in paths if path.startswith("images.") and path.endswith((".sensor", ".acquired"))]
    return wanted


# What statistics tell


class _Statistics:
    """The least and the greatest value of the columns of a row group, as its footer tells."""

    def __init__(self, group: pq.RowGroupMetaData, columns: Mapping[str, int]) -> None:
        self._group, self._columns = group, columns

    def range(self, path: str) -> tuple[Any, Any] | None:
        """Return both, or None where the footer does not say."""
        index = self._columns.get(path)
        statistics = None if index is None else self._group.column(index).statistics
        return (statistics.min, statistics.max) if statistics is not None and statistics.has_min_max else None

    def constant(self, path: str) -> Any:
        """Return the value that every row has, or None where they differ or the footer does not say."""
        index = self._columns.get(path)
        statistics = None if index is None else self._group.column(index).statistics
        if statistics is None or not statistics.has_min_max or not statistics.has_null_count or statistics.null_count:
            return None
        return statistics.min if statistics.min == statistics.max else None


def _may_match(statistics: _Statistics, selection: Selection) -> bool:
    """Return False where no row of a row group can match."""

    def within(path: str, least: Any, most: Any) -> bool:
        known = statistics.range(path)
        return known is None or ((most is None or known[0] <= most) and (least is None or known[1] >= least))

    kinds = () if selection.kinds is None else selection.kinds
    return (
        (selection.kinds is None or any(within("kind", kind, kind) for kind in kinds))
        and (selection.split is None or within("split", selection.split, selection.split))
        and within("last_acquired", selection.start, None)
        and within("first_acquired", None, selection.end)
        and (
            selection.bounds is None
            or any(
                within("bbox.xmin", None, east)
                and within("bbox.xmax", west, None)
                and within("bbox.ymin", None, north)
                and within("bbox.ymax", south, None)
                for west, south, east, north in selection.boxes()
            )
        )
    )


def _all_match(statistics: _Statistics, selection: Selection) -> bool:
    """Return True where every row of a row group is known to match."""
    return (
        not selection.of_images
        and selection.bounds is None
        and (selection.kinds is None or statistics.constant("kind") in selection.kinds)
        and (selection.split is None or statistics.constant("split") == selection.split)
    )


def _extent(files: ShardFiles, selection: Selection) -> str:
    """Say what the shards hold of the one column that a selection filters by, for the error that nothing is left."""
    columns = {
        "kinds": ["kind"],
        "split": ["split"],
        "sensors": ["sensors.list.element", "sensors.list.item"],
        "start": ["first_acquired", "last_acquired"],
        "end": ["first_acquired", "last_acquired"],
        "bounds": ["bbox.xmin", "bbox.ymin", "bbox.xmax", "bbox.ymax"],
    }
    name = next(field.name for field in fields(selection) if getattr(selection, field.name) is not None)
    ranges: dict[str, list[Any]] = {}
    for path in files.paths:
        shard = open_shard(files.filesystem, path)
        numbers = _column_numbers(shard)
        for index in range(shard.num_row_groups):
            statistics = _Statistics(shard.metadata.row_group(index), numbers)
            for column in columns[name]:
                ranges.setdefault(column, []).extend(statistics.range(column) or ())
        shard.close(force=True)
    known = [
        f"{column.partition('.list')[0]} from {_shown(min(values))} to {_shown(max(values))}"
        for column, values in ranges.items()
        if values
    ]
    return f"the shards hold {', '.join(known)}" if known else "no set of the shards says so much"


def _shown(value: Any) -> str:
    """Return a value of a column for a message."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# What rows tell


def _matches(table: pa.Table, selection: Selection) -> np.ndarray:
    """Return which rows match, (rows,) bool."""
    keep = np.ones(len(table), bool)
    for name, wanted in (("kind", selection.kinds), ("split", _texts(selection.split))):
        if wanted is not None:
            keep &= np.array([value in wanted for value in table[name].to_pylist()], bool)
    if selection.bounds is not None:
        keep &= _touches(table, selection)
    if selection.of_images:
        keep &= _images_left(table["images"].combine_chunks(), selection)
    return keep


def _touches(table: pa.Table, selection: Selection) -> np.ndarray:
    """Return which sets touch the bounds with the box around them; those without a place do not."""
    # What is null becomes NaN, of which every comparison is false.
    sides = np.stack([pc.struct_field(table["bbox"], side).to_numpy() for side in ("xmin", "ymin", "xmax", "ymax")])
    touches = _boxes_touch(sides, selection)
    # A box around more than half the globe is that of a set that was cut in two at the antimeridian.
    for row in np.flatnonzero(touches & (sides[2] - sides[0] > 180)):
        import shapely  # nothing else needs it to read

        parts = shapely.get_parts(shapely.from_wkb(table["geometry"][int(row)].as_py(), on_invalid="ignore"))
        touches[row] = _boxes_touch(shapely.bounds(parts).T, selection).any()
    return touches


def _boxes_touch(sides: np.ndarray, selection: Selection) -> np.ndarray:
    """Return which of the boxes (xmin, ymin, xmax and ymax of each) touch the bounds, (boxes,) bool."""
    xmin, ymin, xmax, ymax = sides
    touches = [
        (xmin <= east) & (xmax >= west) & (ymin <= north) & (ymax >= south)
        for west, south, east, north in selection.boxes()
    ]
    return np.logical_or.reduce(touches)


def _images_left(images: pa.ListArray, selection: Selection) -> np.ndarray:
    """Return which sets have at least one image that is asked for."""
    flat = images.flatten()
    fits = np.ones(len(flat), bool)
    if selection.sensors is not None:
        fits &= pc.is_in(flat.field("sensor"), pa.array(selection.sensors, pa.string())).to_numpy(zero_copy_only=False)
    for limit, compare in ((selection.start, pc.greater_equal), (selection.end, pc.less)):
        if limit is not None:
            inside = compare(flat.field("acquired"), pa.scalar(limit, pa.timestamp("us", "UTC")))
            fits &= inside.fill_null(False).to_numpy(zero_copy_only=False)
    total = np.concatenate([[0], np.cumsum(fits)])
    ends = images.offsets.to_numpy() - images.offsets[0].as_py()
    return total[ends[1:]] > total[ends[:-1]]
