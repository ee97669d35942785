"""What a data set holds: counts, dates, places, and the mean, spread and histogram of every band, in one pass."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from a2mae_hub.images import Image
from a2mae_hub.modeling.sensors_a2mae import SENSORS, Band, Sensor, get_sensor
from a2mae_hub.whole_files import write_atomically

from .features import scale_and_offset
from .schema import SCHEMA, StoredImage, StoredSet, decode, from_row
from .shards import find_shards, open_shards, root_of, row_groups

# Steps of 0.002 over the range of reflectance.
_BINS = 1100
# Of a range of whole numbers no longer than this, every number has its own bin.
_MOST_WHOLE_NUMBERS = 1100
# Below this part of the registry's, a standard deviation is that of a band that shows one value everywhere; divided by
# it, noise would be all there is.
_LEAST_SPREAD = 1e-3
_UNKNOWN = "unknown"


@dataclass
class BandStatistics:
    """The valid values of one band of one sensor, in the sensor's unit.

    Attributes:
        edges: Lowest and highest edge of the histogram, whose bins are equally wide.
        histogram: (bins,) int64, how many values lie in each bin.
        count: How many values there are.
        mean: Their mean; NaN where there is none.
        squares: Sum of their squared deviations from the mean.
        minimum: The lowest value.
        maximum: The highest value.
        below: How many lie below the histogram.
        above: How many lie above it.
    """

    edges: tuple[float, float]
    histogram: np.ndarray
    count: int = 0
    mean: float = math.nan
    squares: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    below: int = 0
    above: int = 0

    @classmethod
    def of_band(cls, band: Band, unit: str) -> BandStatistics:
        """Return the statistics of no value, with bins that suit the band: 0.002 of reflectance, or one number."""
        low, high = map(float, band.valid_range)
        if unit == "DN" and low.is_integer() and high.is_integer() and high - low < _MOST_WHOLE_NUMBERS:
            return cls((low - 0.5, high + 0.5), np.zeros(int(high - low) + 1, np.int64))
        return cls((low, high), np.zeros(_BINS, np.int64))

    @property
    def std(self) -> float:
        """The standard deviation over all pixels of all images; NaN where there is none."""
        return math.sqrt(self.squares / self.count) if self.count else math.nan

    def add(self, values: np.ndarray, counts: np.ndarray) -> None:
        """Add (n,) values that occur (n,) times each, at least one of them once."""
        count = int(counts.sum())
        mean = float((values * counts).sum() / count)
        squares = float(((values - mean) ** 2 * counts).sum())
        # Mean and squares of two parts make those of the whole (Chan, Golub & LeVeque 1979), without loss of digits.
        total = self.count + count
        step = mean - self.mean if self.count else 0.0
        self.mean = self.mean + step * count / total if self.count else mean
        self.squares += squares + step**2 * self.count * count / total
        self.count = total
        present = values[counts > 0]
        self.minimum = min(self.minimum, float(present.min()))
        self.maximum = max(self.maximum, float(present.max()))

        (low, high), bins = self.edges, len(self.histogram)
        # A stored number on the edge of two bins may miss it by the last digit.
        positions = np.floor((values - low) / (high - low) * bins + 1e-6)
        positions[values == high] = bins - 1
        inside = (positions >= 0) & (positions < bins)
        self.histogram += np.bincount(positions[inside].astype(int), counts[inside], bins).astype(np.int64)
        self.below += int(counts[positions < 0].sum())
        self.above += int(counts[positions >= bins].sum())

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain JSON types; what no value tells is None."""
        known = bool(self.count)
        return {
            "count": self.count,
            "mean": self.mean if known else None,
            "std": self.std if known else None,
            "min": self.minimum if known else None,
            "max": self.maximum if known else None,
            "histogram": {
                "low": self.edges[0],
                "high": self.edges[1],
                "counts": self.histogram.tolist(),
                "below": self.below,
                "above": self.above,
            },
        }


@dataclass
class Statistics:
    """What a data set holds, as `inspect` finds it.

    Attributes:
        name: The folder, file or id.
        shards: Paths of the shards in the data set.
        size: Their bytes.
        columns: Columns that are not part of the layout, such as labels, and their types.
        kinds: The kind of every set.
        splits: The split of every set.
        places: (sets, 2) longitude and latitude of every set, NaN where unknown.
        heterogeneity: (sets,) float, NaN where unknown.
        images_per_set: How many sets have so many images.
        images: Images by sensor and provenance.
        bands: Images by sensor and band (its own name).
        resolutions: Images by sensor and metres per pixel, to two digits.
        shapes: Images by sensor and rows and columns.
        months: Images by sensor and month of acquisition, "2023-07"; "unknown" where no time is.
        first_acquired: The earliest time; None where none is known.
        last_acquired: The latest time.
        clouds: Images by tenths of their cloud share (0 to 9); None where it is not known.
        sources: Images by the top-level folder of their source, and provenance.
        licences: Images by terms of use; "unknown" where none are given.
        values: By sensor and band (its own name), the valid values.
    """

    name: str
    shards: list[str] = field(default_factory=list)
    size: int = 0
    columns: dict[str, str] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    heterogeneity: np.ndarray = field(default_factory=lambda: np.zeros(0))
    images_per_set: Counter[int] = field(default_factory=Counter)
    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    bands: Counter[tuple[str, str]] = field(default_factory=Counter)
    resolutions: Counter[tuple[str, float]] = field(default_factory=Counter)
    shapes: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    months: Counter[tuple[str, str]] = field(default_factory=Counter)
    first_acquired: datetime | None = None
    last_acquired: datetime | None = None
    clouds: Counter[int | None] = field(default_factory=Counter)
    sources: Counter[tuple[str, str]] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    values: dict[str, dict[str, BandStatistics]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(self.kinds)

    def sensors(self) -> list[Sensor]:
        """Return the sensors of the registry with the means and standard deviations of this data set.

        `A2MAEImageProcessor(sensors=statistics.sensors())` standardises by them. Bands that the data set lacks, or
        shows with one value everywhere, keep what the registry says.
        """
        sensors = []
        for sensor in SENSORS.values():
            measured = self.values.get(sensor.name, {})
            bands = tuple(_measured_band(band, measured.get(band.name)) for band in sensor.bands)
            if bands != sensor.bands:
                note = f"{sensor.source} Means and standard deviations: measured on {self.name}.".strip()
                sensor = replace(sensor, bands=bands, source=note)
            sensors.append(sensor)
        return sensors

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain JSON types, without what is told of every single set."""
        known = np.isfinite(self.places).all(axis=1)
        west, south = self.places[known].min(axis=0).tolist() if known.any() else (None, None)
        east, north = self.places[known].max(axis=0).tolist() if known.any() else (None, None)
        spread = self.heterogeneity[np.isfinite(self.heterogeneity)]
        times = (self.first_acquired, self.last_acquired)
        return {
            "name": self.name,
            "shards": len(self.shards),
            "bytes": self.size,
            "columns": self.columns,
            "sets": len(self),
            "images": self.images.total(),
            "sets_by_kind": _nested(Counter(zip(self.kinds, self.splits, strict=True))),
            "images_per_set": {str(number): self.images_per_set[number] for number in sorted(self.images_per_set)},
            "images_by_sensor": _nested(self.images),
            "bands": _nested(self.bands, by_name=False),
            "ground_resolutions": _nested(self.resolutions),
            "shapes": _nested(Counter({(s, f"{h} × {w}"): count for (s, h, w), count in self.shapes.items()})),
            "months": _nested(self.months),
            "acquired": dict(
                zip(("first", "last"), (None if time is None else time.isoformat() for time in times), strict=True)
            ),
            "cloud_shares": {
                "unknown" if tenth is None else f"{tenth / 10:g}-{(tenth + 1) / 10:g}": self.clouds[tenth]
                for tenth in sorted(self.clouds, key=lambda tenth: -1 if tenth is None else tenth)
            },
            "places": {
                "known": int(known.sum()),
                "unknown": int((~known).sum()),
                "west": west,
                "south": south,
                "east": east,
                "north": north,
            },
            "heterogeneity": {
                f"p{share}": float(np.percentile(spread, share)) if len(spread) else None
                for share in (0, 10, 50, 90, 100)
            },
            "sources": _nested(self.sources),
            "licences": dict(sorted(self.licences.items())),
            "values": {
                sensor: {band: numbers.to_dict() for band, numbers in bands.items()}
                for sensor, bands in self.values.items()
            },
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` as JSON, whole or not at all.

        Raises:
            FileNotFoundError: If the folder does not exist.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist; create it first.")
        write_atomically(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def __str__(self) -> str:
        """Tell the statistics in a table."""
        told = self.to_dict()
        numbers = list(self.images_per_set.elements())
        lines = [
            f"{self.name}: {len(self)} sets, {told['images']} images, {len(self.shards)} shards, {_bytes(self.size)}",
        ]
        for kind, splits in told["sets_by_kind"].items():
            each = ", ".join(f"{split} {count}" for split, count in splits.items())
            lines.append(f"  {kind:<12} {sum(splits.values())} sets ({each})")
        lines.append(f"  images       {min(numbers)} to {max(numbers)} a set, {np.mean(numbers):.1f} on average")
        if self.first_acquired is not None and self.last_acquired is not None:
            undated = sum(count for (_, month), count in self.months.items() if month == _UNKNOWN)
            lines.append(
                f"  dates        {self.first_acquired:%Y-%m-%d} to {self.last_acquired:%Y-%m-%d}"
                + (f", {undated} images without" if undated else "")
            )
        places = told["places"]
        extent = "" if not places["known"] else ", {west:.1f} to {east:.1f}° E, {south:.1f} to {north:.1f}° N"
        lines.append(f"  places       {places['known']} known, {places['unknown']} unknown{extent.format(**places)}")
        clouds = ", ".join(f"{count} of {share}" for share, count in told["cloud_shares"].items())
        lines.append(f"  cloud share  {clouds}")
        licences = ", ".join(f"{licence} ({count})" for licence, count in told["licences"].items())
        lines += [f"  licences     {licences}", ""]
        lines.append(f"{'sensor':<16} {'images':>8} {'derived':>8}  metres per pixel")
        for sensor, provenances in told["images_by_sensor"].items():
            metres = ", ".join(f"{metres:g}" for (name, metres) in sorted(self.resolutions) if name == sensor)
            lines.append(f"{sensor:<16} {sum(provenances.values()):>8} {provenances.get('derived', 0):>8}  {metres}")
        lines += ["", f"{'sensor':<16} {'band':<12} {'values':>12} {'mean':>10} {'std':>10} {'min':>10} {'max':>10}"]
        for sensor, bands in self.values.items():
            for band, of in bands.items():
                measured = " ".join(f"{number:>10.5g}" for number in (of.mean, of.std, of.minimum, of.maximum))
                lines.append(f"{sensor:<16} {band:<12} {of.count:>12} {measured if of.count else '':<43}".rstrip())
        return "\n".join(lines)


def inspect(path: str | os.PathLike[str], *, progress: bool = False) -> Statistics:
    """Count and measure a data set in one pass; of the pixels, one row group is in memory at a time.

    Args:
        path: The data set, as `find_shards` takes it.
        progress: Show a bar on the error stream.

    Returns:
        The statistics.

    Raises:
        FileNotFoundError: If there are no shards.
        ValueError: If a shard is damaged or empty, or a set names a sensor or band that is not registered; names the
            shard and the set.
    """
    files = find_shards(path)
    statistics = Statistics(Path(path).resolve().name if os.path.exists(path) else os.fspath(path))
    root = root_of(path, files)
    places, spreads = [], []
    with tqdm(desc="inspect", unit="set", disable=not progress) as bar:
        for shard_path, shard in open_shards(files):
            statistics.shards.append(os.path.relpath(shard_path, root))
            statistics.size += int(files.filesystem.size(shard_path))
            own = {column.name: str(column.type) for column in shard.schema_arrow if column.name not in SCHEMA.names}
            statistics.columns.update(own)
            for first_row, table in row_groups(shard, shard_path):
                for row in decode(table, shard_path, first_row):
                    image_set = from_row(row)
                    longitude, latitude = image_set.longitude, image_set.latitude
                    is_known = longitude is not None and latitude is not None
                    places.append((longitude, latitude) if is_known else (math.nan, math.nan))
                    spreads.append(math.nan if image_set.heterogeneity is None else image_set.heterogeneity)
                    try:
                        _count(statistics, image_set)
                    except ValueError as error:
                        raise ValueError(f"{shard_path}: set {image_set.id!r}: {error}") from error
                    bar.update()
    if not places:
        raise ValueError(f"{os.fspath(path)}: holds no image sets; build some with `a2mae stssd build`.")
    statistics.places, statistics.heterogeneity = np.array(places, float), np.array(spreads, float)
    _sort_values(statistics)
    return statistics


# ------------------------------------------------------------------------------------------------------------- counting


def _count(statistics: Statistics, image_set: StoredSet) -> None:
    """Add one set."""
    statistics.kinds.append(image_set.kind)
    statistics.splits.append(image_set.split)
    statistics.images_per_set[len(image_set)] += 1
    for image in image_set:
        assert isinstance(image, StoredImage)
        sensor = get_sensor(image.sensor)
        bands = [sensor.find(name) for name in image.bands]
        statistics.images[sensor.name, image.provenance] += 1
        statistics.bands.update((sensor.name, band.name) for band in bands)
        statistics.resolutions[
            sensor.name, float(f"{image.ground_resolution() or min(band.resolution for band in bands):.2g}")
        ] += 1
        _, height, width = image.pixels.shape
        statistics.shapes[sensor.name, height, width] += 1
        _count_time(statistics, image)
        share = image.cloud_share
        statistics.clouds[None if share is None else min(int(share * 10 + 1e-6), 9)] += 1
        statistics.sources[_origin(image.source), image.provenance] += 1
        statistics.licences[image.licence or _UNKNOWN] += 1
        _count_values(statistics.values.setdefault(sensor.name, {}), image, sensor, bands)


def _count_time(statistics: Statistics, image: Image) -> None:
    """Add the acquisition time of an image."""
    acquired = image.acquired
    if acquired is None:
        statistics.months[image.sensor, _UNKNOWN] += 1
        return
    statistics.months[image.sensor, f"{acquired:%Y-%m}"] += 1
    first, last = statistics.first_acquired, statistics.last_acquired
    statistics.first_acquired = acquired if first is None else min(first, acquired)
    statistics.last_acquired = acquired if last is None else max(last, acquired)


def _count_values(values: dict[str, BandStatistics], image: Image, sensor: Sensor, bands: list[Band]) -> None:
    """Add the valid values of an image."""
    real = image.valid_values()
    for band, pixels, valid, scale, offset in zip(bands, image.pixels, real, *scale_and_offset(image), strict=True):
        numbers = values.setdefault(band.name, BandStatistics.of_band(band, sensor.unit))
        stored = pixels.ravel() if valid.all() else pixels[valid]
        if stored.size:
            levels, counts = _levels(stored)
            numbers.add(levels * scale + offset, counts)


def _levels(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return stored numbers as (n,) float64 and how often each occurs, (n,) int64.

    Of short integers there are few different ones, and everything that follows is cheaper for them.
    """
    if stored.dtype.kind in "ui" and stored.dtype.itemsize <= 2:
        low = int(stored.min())
        counts = np.bincount(stored.astype(np.int64) - low)
        return np.arange(low, low + len(counts), dtype=np.float64), counts
    return stored.astype(np.float64), np.ones(stored.size, np.int64)


def _origin(source: str | None) -> str:
    """Return the top-level folder of a source, the host of a URL, or the kind of a file without either."""
    if not source:
        return _UNKNOWN
    host = re.match(r"\w+://[^/]+", source)
    if host:
        return host.group()
    parts = [part for part in re.split(r"[/\\]", source) if part]
    return parts[0] if len(parts) > 1 else f"*{Path(source).suffix}" if Path(source).suffix else source


def _measured_band(band: Band, measured: BandStatistics | None) -> Band:
    """Return a band with measured mean and standard deviation, where they can be told."""
    if measured is None or not measured.count or measured.std < _LEAST_SPREAD * band.std:
        return band
    return replace(band, mean=measured.mean, std=measured.std)


def _sort_values(statistics: Statistics) -> None:
    """Put sensors and bands into the order of the registry, whatever came first in the shards."""
    statistics.values = {
        name: {
            band.name: statistics.values[name][band.name]
            for band in sensor.bands
            if band.name in statistics.values[name]
        }
        for name, sensor in SENSORS.items()
        if name in statistics.values
    }


# -------------------------------------------------------------------------------------------------------------- telling


def _nested(counts: Mapping[tuple[Any, Any], int], by_name: bool = True) -> dict[str, dict[str, int]]:
    """Return counts by two keys as dicts of dicts, sorted by name, or in the order of counting."""
    nested: dict[str, dict[str, int]] = {}
    for first, second in sorted(counts) if by_name else counts:
        nested.setdefault(str(first), {})[f"{second:g}" if isinstance(second, float) else str(second)] = counts[
            first, second
        ]
    return nested


def _bytes(size: int) -> str:
    """Return a number of bytes as people read it."""
    power = min(max(0, int(math.log(max(size, 1), 1000))), 4)
    return f"{size / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"
