"""Tiny image sets and shards of a few rows to a row group, for every test of `stssd`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from fsspec.asyn import AsyncFileSystem
from fsspec.spec import AbstractBufferedFile

from a2mae_hub.landscape import Place, simulate_place
from a2mae_hub.stssd import footprints
from a2mae_hub.stssd.schema import SCHEMA, StoredImage, StoredSet, to_row

BANDS = {
    "sentinel-2-l2a": ("B02", "B03", "B04", "B08"),
    "landsat-8-sr": ("B2", "B3", "B4", "B5"),
    "naip": ("red", "green", "blue", "nir"),
}


def _image(sensor: str, acquired: datetime | None, side: int, generator: np.random.Generator) -> StoredImage:
    """Return an image of made-up numbers that its sensor can give."""
    low, high, dtype = (30, 200, np.uint8) if sensor == "naip" else (8000, 14000, np.uint16)
    if sensor == "sentinel-2-l2a":
        low, high = 1200, 3000
    bands = BANDS[sensor]
    return StoredImage(
        pixels=generator.integers(low, high, (len(bands), side, side), dtype=dtype),
        bands=list(bands),
        sensor=sensor,
        acquired=acquired,
        gsd=10.0,
        source=f"{sensor}.tif",
    )


@pytest.fixture(scope="session")
def make_set() -> Callable[..., StoredSet]:
    """A function from a number to an image set that is a function of the number alone.

    Its images are one for each of `sensors`, `days` apart from 2020-01-01 on (None: no date); its footprint is a tenth
    of a degree wide around (`longitude`, `latitude`) (None: unknown place).
    """

    def make(
        number: int = 0,
        *,
        kind: str = "grid",
        split: str = "train",
        sensors: Iterable[str] = ("sentinel-2-l2a", "landsat-8-sr", "sentinel-2-l2a"),
        days: int | None = 100,
        longitude: float | None = 3.0,
        latitude: float | None = 42.0,
        side: int = 16,
    ) -> StoredSet:
        generator = np.random.default_rng(number)
        first = datetime(2020, 1, 1, 10, 30, tzinfo=timezone.utc)
        images = [
            _image(sensor, None if days is None else first + index * timedelta(days=days), side, generator)
            for index, sensor in enumerate(sensors)
        ]
        geometry = None
        if longitude is not None and latitude is not None:
            corners = np.array([[-1, 1], [1, 1], [1, -1], [-1, -1]]) * 0.05 + (longitude, latitude)
            geometry = shapely.to_wkb(footprints.polygon(corners))
        return StoredSet(
            images=list(images),
            id=f"{kind}-{number:04d}",
            kind=kind,
            split=split,
            longitude=longitude,
            latitude=latitude,
            geometry=geometry,
            heterogeneity=0.5,
        )

    return make


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., Path]:
    """A function that writes sets as shards, `sets_per_shard` to a file and `rows_per_group` to a row group.

    Files are named `sets-00000.parquet` and so on; `columns` are further columns, one list of values each.
    """

    def write(
        folder: Path,
        sets: Iterable[StoredSet],
        *,
        sets_per_shard: int = 10,
        rows_per_group: int = 3,
        columns: dict[str, list] | None = None,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist([to_row(image_set) for image_set in sets], schema=SCHEMA)
        for name, values in (columns or {}).items():
            table = table.append_column(name, pa.array(values))
        for start in range(0, max(len(table), 1), sets_per_shard):
            path = folder / f"sets-{start // sets_per_shard:05d}.parquet"
            pq.write_table(table.slice(start, sets_per_shard), path, row_group_size=rows_per_group, compression="zstd")
        return folder

    return write


class RemoteFileSystem(AsyncFileSystem):
    """Local files behind an event loop in a thread, as fsspec reads HTTP and S3; remembers which bytes were asked for.

    As with those, an instance from before a fork refuses to work after it.
    """

    protocol = "remote"
    requests: ClassVar[list[tuple[str, int, int]]] = []

    async def _info(self, path, **_):
        status = os.stat(self._strip_protocol(path))
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "file"
        return {"name": self._strip_protocol(path), "size": status.st_size, "type": kind}

    async def _ls(self, path, detail=True, **_):
        names = [f"{path.rstrip('/')}/{name}" for name in os.listdir(path)]
        return [await self._info(name) for name in names] if detail else names

    async def _cat_file(self, path, start=None, end=None, **_):
        self.requests.append((path, start, end))
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _open(self, path, mode="rb", **options):
        return _RemoteFile(self, path, mode, **options)

    @classmethod
    def _strip_protocol(cls, path):
        return path.removeprefix("remote://")


class _RemoteFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        return self.fs.cat_file(self.path, start=start, end=end)


@pytest.fixture
def remote() -> Iterator[type[RemoteFileSystem]]:
    """The file system behind `remote://`, its memory of requests empty."""
    fsspec.register_implementation("remote", RemoteFileSystem, clobber=True)
    RemoteFileSystem.requests.clear()
    yield RemoteFileSystem
    RemoteFileSystem.requests.clear()


@pytest.fixture(scope="session")
def place() -> Place:
    """A simulated place of 480 m, for scenes that STAC items tell of."""
    return simulate_place(7, extent=480.0)
