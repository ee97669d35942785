"""Shards on disk and on the Hub: written whole or not at all, found, and opened with their faults named."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub.errors import HfHubHTTPError

from a2mae_hub.whole_files import naming, sync_folder

from .schema import BINARY_FIELDS, FORMAT_VERSION, SCHEMA, VERSION_KEY, StoredSet, to_row

ROW_GROUP_BYTES = 16 * 2**20
"""Bytes of a row group before compression: what a reader holds, and fetches from the Hub, at once."""

UNFINISHED = ".build"
"""The folder in a data set that a build keeps its state in, and removes when everything is there."""

# A row group with more is none of ours, and would fill the memory of whoever reads it.
_MOST_BYTES_IN_ROW_GROUP = 2**31

# LZ4 gives Sentinel-2 back four times as fast as zstd at level 3 does, at 0.67 of the plain size against 0.47.
# Decompression costs every epoch, a download only the first. Readers take any codec (docs/design.md).
_COMPRESSION = "lz4"

# The pixels of a row group are one page: read in pages of 1 MiB, Arrow's default, they take a fifth longer.
_PAGE_BYTES = 2 * ROW_GROUP_BYTES

# The HTTP library of huggingface_hub, whose errors are no OSErrors, is one in its version 1 and another in 2.
_NETWORK_ERRORS: tuple[type[BaseException], ...] = (OSError, *HfHubHTTPError.__bases__)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class ShardWriter:
    """Writes one shard under a temporary name, and gives it its own when it is complete and on the disk.

    Args:
        path: Where the shard will be; an existing file is replaced.
        schema: Columns and metadata: `SCHEMA`, or more columns where the user has some.

    Example:
        ```python
        with ShardWriter("out/grid-00000.parquet") as shard:
            shard.write(image_set)
        ```
    """

    def __init__(self, path: str | os.PathLike[str], schema: pa.Schema = SCHEMA) -> None:
        self.path = Path(path)
        self.count = 0
        self._schema = schema
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._rows: list[dict[str, Any]] = []
        self._waiting: list[pa.Table] = []
        self._bytes = 0

    def __enter__(self) -> ShardWriter:
        """Open the temporary file."""
        self._file = open(self._temporary, "wb")
        columns = _leaf_columns(self._schema)
        # Dictionaries and statistics of pixels would cost time and say nothing.
        small = [column for column in columns if not column.endswith(BINARY_FIELDS)]
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            use_dictionary=small,
            write_statistics=small,
            write_page_checksum=True,
            data_page_size=_PAGE_BYTES,
            compression=_COMPRESSION,
        )
        return self

    def write(self, image_set: StoredSet) -> None:
        """Add an image set.

        Raises:
            ValueError: If an image cannot be stored; names the set and the image.
        """
        row = to_row(image_set)
        self._rows.append(row)
        self._count(sum(len(image["pixels"]) for image in row["images"]))

    def write_table(self, rows: pa.Table) -> None:
        """Add rows that are in the shard's schema already."""
        self._gather()
        for start in range(len(rows)):
            row = rows.slice(start, 1)
            self._waiting.append(row)
            self._count(row.nbytes)

    def _count(self, size: int) -> None:
        """Count a row that waits, and write when there are enough bytes for a row group."""
        self.count += 1
        self._bytes += size
        if self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _gather(self) -> None:
        """Turn the rows that wait into a table: many at once, as each costs a copy of its pixels otherwise."""
        if self._rows:
            self._waiting.append(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def _flush(self) -> None:
        """Write the rows that wait as one row group."""
        self._gather()
        if self._waiting:
            table = pa.concat_tables(self._waiting).combine_chunks()
            with naming(self.path):
                self._writer.write_table(table, row_group_size=len(table))
        self._waiting, self._bytes = [], 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the file and rename it, or remove it if something went wrong."""
        try:
            if kind is None:
                self._flush()
                with naming(self.path):
                    self._writer.close()
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    self._file.close()
                os.replace(self._temporary, self.path)
                sync_folder(self.path.parent)
        finally:
            self._discard()

    def _discard(self) -> None:
        """Close and remove the temporary file, if it is still there."""
        # What a writer does in its destructor, if it is still open, is to write a footer into the closed file.
        self._writer.is_open = False
        try:
            self._file.close()
        except OSError:
            # What the buffer still holds has no room on the disk; the error that led here says so.
            pass
        self._temporary.unlink(missing_ok=True)


@lru_cache(maxsize=8)
def _leaf_columns(schema: pa.Schema) -> list[str]:
    """Return the paths of the columns that Parquet makes of a schema."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink)
    columns = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(index).path for index in range(len(columns))]


class ShardFiles(NamedTuple):
    """Where the shards of a data set are.

    Attributes:
        filesystem: The fsspec file system that opens them.
        paths: In the order of their names.
    """

    filesystem: fsspec.AbstractFileSystem
    paths: list[str]


def find_shards(path: str | os.PathLike[str]) -> ShardFiles:
    """Find the shards of a data set.

    Args:
        path: A folder (searched to any depth) or a file; a data set's id on the Hub ("org/name"); or any URL that
            fsspec opens, such as `hf://datasets/org/name@revision/train`.

    Raises:
        FileNotFoundError: If there is no such folder, or no shard in it.
        ValueError: If the folder is that of a build that has not finished.
    """
    text = os.fspath(path)
    if not os.path.exists(text) and "://" not in text:
        if not _HUB_ID.fullmatch(text) or os.path.isdir(os.path.dirname(text)):
            raise FileNotFoundError(
                f"{text}: no such folder or shard, and no data set's id on the Hub; check the path."
            )
        text = f"hf://datasets/{text}"
    filesystem, root = fsspec.core.url_to_fs(text)
    try:
        if filesystem.isfile(root):
            return ShardFiles(filesystem, [root])
        names = filesystem.find(root)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{text}: no such data set; check its name, and whether your token may read it."
        ) from error
    except _NETWORK_ERRORS as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{text}: cannot be reached ({reason}); check the network and the name.") from error
    unfinished = [name for name in names if f"/{UNFINISHED}/" in name[len(root) :]]
    if filesystem.exists(f"{root}/{UNFINISHED}"):
        unfinished.append(f"{root}/{UNFINISHED}/")
    if unfinished:
        raise ValueError(
            f"{unfinished[0].split(f'/{UNFINISHED}/')[0]}: the build of this data set has not finished; run the same "
            "`a2mae stssd build` again, which goes on where it stopped."
        )
    found = sorted(name for name in names if name.endswith(".parquet") and "/." not in name[len(root) :])
    if not found:
        raise FileNotFoundError(f"{text}: holds no shards (*.parquet); build some with `a2mae stssd build`.")
    return ShardFiles(filesystem, found)


def root_of(path: str | os.PathLike[str], files: ShardFiles) -> str:
    """Return the folder that the paths of shards are told relative to."""
    return os.path.abspath(path) if os.path.isdir(path) else os.path.commonpath(map(os.path.dirname, files.paths))


def open_shard(filesystem: fsspec.AbstractFileSystem, path: str, verify: bool = True) -> pq.ParquetFile:
    """Open a shard and check what its footer says of it.

    Args:
        filesystem: The fsspec file system that opens it.
        path: The file.
        verify: Compare the pages that are read with their checksums; leave it out only where that was done before.

    Raises:
        ValueError: If the file is damaged or cut short, lacks columns, or was written by a newer version; names the
            file.
    """
    try:
        if isinstance(filesystem, LocalFileSystem):
            # Read, not mapped: where a mapped file is cut short meanwhile, the system stops the process without a word.
            shard = pq.ParquetFile(path, page_checksum_verification=verify)
        else:
            # Arrow asks for whole columns, several at once: what fsspec would read ahead of them is read in vain.
            file = filesystem.open(path, "rb", cache_type="none")
            shard = pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=verify)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise damaged(path, error) from error
    metadata = shard.schema_arrow.metadata or {}
    try:
        version = int(json.loads(metadata[VERSION_KEY])["version"]) if VERSION_KEY in metadata else None
    except (ValueError, KeyError, TypeError):
        version = None
    if version is not None and version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: written in version {version} of the STSSD layout, and this a2mae-hub reads up to version "
            f"{FORMAT_VERSION}; upgrade it: pip install -U a2mae-hub."
        )
    fault = _schema_fault(shard.schema_arrow)
    if version is None:
        fault = fault or "does not say which version of the layout it is"
    if fault is not None:
        raise ValueError(f"{path}: {fault}, so it is no STSSD shard; build one with `a2mae stssd build`.")
    for group in range(shard.num_row_groups):
        size = shard.metadata.row_group(group).total_byte_size
        if size > _MOST_BYTES_IN_ROW_GROUP:
            raise ValueError(
                f"{path}: row group {group} takes {size / 2**30:.1f} GiB of memory, more than the "
                f"{_MOST_BYTES_IN_ROW_GROUP / 2**30:g} GiB a shard may have; write it with smaller row groups."
            )
    return shard


def open_shards(files: ShardFiles) -> Iterator[tuple[str, pq.ParquetFile]]:
    """Open one shard after the other, and close it; raise ValueError where one is damaged."""
    for path in files.paths:
        shard = open_shard(files.filesystem, path)
        try:
            yield path, shard
        finally:
            shard.close(force=True)


def read_group(shard: pq.ParquetFile, path: str, index: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a row group, or some of its columns.

    Raises:
        ValueError: If its bytes are damaged; names the file and the row group.
    """
    try:
        # Workers are processes: threads of Arrow on top would only fight for the cores.
        return shard.read_row_group(index, columns=None if columns is None else list(columns), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise damaged(f"{path}: row group {index}", error) from error


def row_groups(shard: pq.ParquetFile, path: str) -> Iterator[tuple[int, pa.Table]]:
    """Iterate over the row groups of a shard with the number of their first row; ValueError where one is damaged."""
    first_row = 0
    for index in range(shard.num_row_groups):
        table = read_group(shard, path, index)
        yield first_row, table
        first_row += len(table)


def damaged(path: str, error: Exception) -> ValueError:
    """Return the error for a shard whose bytes cannot be read."""
    reason = " ".join(str(error).split()).rstrip(".")
    return ValueError(f"{path}: damaged or cut short ({reason}); fetch it again, or remove it and build it again.")


def _schema_fault(schema: pa.Schema) -> str | None:
    """Return what keeps a schema from being a shard's: a column, or a field of images, missing or of another type."""
    ours, theirs = (_types(one) for one in (SCHEMA, schema))
    missing = [name for name in ours if name not in theirs]
    if missing:
        return f"lacks the columns {', '.join(missing)}"
    for name, kind in ours.items():
        if theirs[name] != kind:
            return f"holds {theirs[name]} and not {kind} in the column {name}"
    return None


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    """Return the type of every column of a schema, and of every field of its images, by name."""
    types = {field.name: field.type for field in schema}
    images = types.get("images")
    if images is not None and pa.types.is_list(images) and pa.types.is_struct(images.value_type):
        types |= {f"images.{field.name}": field.type for field in types.pop("images").value_type}
    return types
