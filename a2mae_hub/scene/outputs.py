"""Finished blocks as one file: a cloud-optimised GeoTIFF, Zarr, or GeoParquet with a row for every patch.

All are written block by block elsewhere and renamed at the end, so memory does not grow with the scene.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import rasterio.warp
import torch
from rasterio import Affine
from rasterio.windows import Window

from a2mae_hub.scene_files import no_georeference_warning, one_line
from a2mae_hub.whole_files import naming, whole_file

from .tiling import TILE

Blocks = Callable[[], Iterator[tuple[int, int, np.ndarray]]]
"""Gives column and row of the first value of every block, and its values (channels, height, width)."""

COG_SUFFIXES = (".tif", ".tiff")
FEATURE_SUFFIXES = (*COG_SUFFIXES, ".zarr", ".parquet")
MAP_SUFFIXES = (*COG_SUFFIXES, ".zarr")
# int8 keeps one value for "no data".
_INT8_NODATA, _INT8_LARGEST = -128, 127
# Side of the tiles of a GeoTIFF of classes; of 128 features in half precision a tile of `TILE` has 4 MiB.
_CLASS_TILE = 512

# A polygon of one ring of four corners in well-known binary (OGC 06-103r4, 8.2): byte order, kind 3, counts, corners.
_WKB_RING = np.dtype([("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("ring", "<f8", (5, 2))])


@dataclass(frozen=True)
class Layout:
    """What the blocks make up.

    Attributes:
        channels: Values a place.
        rows: Of places.
        columns: Of places.
        block: Side of a block in places.
        dtype: "uint8" of classes; "float16" or "int8" of features, which blocks hold as float16.
        crs: As in `Image`.
        transform: From (column, row) of places to `crs`; None without georeference.
        names: One per channel.
        tags: Metadata of the file.
        colours: Red, green and blue of classes.
        nodata: What stands for "no data" in the blocks.
    """

    channels: int
    rows: int
    columns: int
    block: int
    dtype: str
    crs: str | None
    transform: tuple[float, ...] | None
    names: list[str]
    nodata: float
    tags: dict[str, str] = field(default_factory=dict)
    colours: dict[int, tuple[int, int, int]] | None = None


def write_output(path: Path, blocks: Blocks, layout: Layout, work: Path) -> None:
    """Write blocks in the format that the name of the file asks for.

    Args:
        path: The output.
        blocks: Its values.
        layout: What they make up.
        work: Folder on the same disk for what is not finished; what is there from an earlier run is written over.

    Raises:
        ValueError: If the format cannot hold them.
        OSError: If the disk does not take it.
    """
    scales = _int8_scales(blocks, layout.channels) if layout.dtype == "int8" else None
    write = {".zarr": _write_zarr, ".parquet": _write_geoparquet}.get(path.suffix.lower(), _write_cog)
    write(path, blocks, layout, scales, work)


def check_format(path: Path, crs: str | None) -> None:
    """Say, before the work is done, that the format cannot be written.

    Raises:
        ValueError: If it needs a georeference that is not there.
        ImportError: If it needs a package that is not there.
    """
    is_zarr = path.suffix.lower() == ".zarr"
    if path.is_dir() and not (is_zarr and (path / "zarr.json").is_file()):
        raise ValueError(f"{path}: is a folder, and what is in it would be lost; choose another name.")
    if is_zarr and path.is_file():
        raise ValueError(f"{path}: is a file; choose another name.")
    if is_zarr:
        try:
            import zarr  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{path}: writing it needs zarr; install it with: pip install zarr.") from error
    if path.suffix.lower() == ".parquet":
        if crs is None:
            raise ValueError(f"{path}: GeoParquet needs to know where the scene lies; write .tif or .zarr instead.")
        try:
            import shapely  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{path}: writing it needs shapely; install it with: pip install shapely.") from error


def _int8_scales(blocks: Blocks, channels: int) -> np.ndarray:
    """Return the factor of every channel that takes its largest value to the largest of int8."""
    largest = np.zeros(channels, np.float32)
    for _, _, values in blocks():
        seen = values[:, ~np.isnan(values[0])]
        if seen.size:
            largest = np.maximum(largest, np.abs(_single(seen)).max(1))
    return np.where(largest > 0, largest / _INT8_LARGEST, 1).astype(np.float32)


def _quantised(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return features as int8."""
    numbers = np.rint(_single(values) / scales[:, None, None])
    return np.where(np.isnan(numbers), _INT8_NODATA, numbers).astype(np.int8)


def _single(values: np.ndarray) -> np.ndarray:
    """Return values in single precision if they are in half; by torch, which is twenty times as fast as numpy here."""
    return torch.from_numpy(values).float().numpy() if values.dtype == np.float16 else values


def _write_cog(path: Path, blocks: Blocks, layout: Layout, scales: np.ndarray | None, work: Path) -> None:
    """Write a cloud-optimised GeoTIFF, with the tiles of all channels together, and overviews of classes."""
    is_classes = layout.dtype == "uint8"
    nodata = _INT8_NODATA if scales is not None else layout.nodata
    whole = work / "whole.tif"
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": layout.columns,
        "height": layout.rows,
        "count": layout.channels,
        # GDAL has no half precision of its own, and keeps 16 of 32 bits: in the end, for it is slow at that.
        "dtype": "float32" if layout.dtype == "float16" else layout.dtype,
        "crs": layout.crs,
        "transform": None if layout.transform is None else Affine(*layout.transform),
        "nodata": nodata,
        "tiled": True,
        "blockxsize": _CLASS_TILE if is_classes else TILE,
        "blockysize": _CLASS_TILE if is_classes else TILE,
        "interleave": "pixel",
        "photometric": "PALETTE" if layout.colours else "MINISBLACK",
        "bigtiff": "IF_SAFER",
    }
    try:
        with naming(path), no_georeference_warning():
            with rasterio.open(whole, "w", **profile) as dataset:
                for column, row, values in blocks():
                    stored = _quantised(values, scales) if scales is not None else values
                    height, width = stored.shape[1:]
                    dataset.write(_single(stored), window=Window(column, row, width, height))
                for index, name in enumerate(layout.names, start=1):
                    dataset.set_band_description(index, name)
                if scales is not None:
                    dataset.scales = scales.tolist()
                if layout.colours:
                    dataset.write_colormap(1, layout.colours)
                dataset.update_tags(**layout.tags)
            with whole_file(path) as temporary:
                options: dict[str, Any] = {
                    "BLOCKSIZE": _CLASS_TILE if is_classes else TILE,
                    "COMPRESS": "DEFLATE" if is_classes else "ZSTD",
                    "LEVEL": 6 if is_classes else 1,
                    # Features have one value a patch: overviews of so many channels take longer than all the rest.
                    "OVERVIEWS": "AUTO" if is_classes else "NONE",
                    "OVERVIEW_RESAMPLING": "MODE",
                    "BIGTIFF": "IF_SAFER",
                    "NUM_THREADS": "ALL_CPUS",
                    **({"NBITS": 16} if layout.dtype == "float16" else {}),
                }
                rasterio.shutil.copy(whole, temporary, driver="COG", **options)
    except Exception as error:
        # GDAL's own errors, such as that of a full disk, have no public base class.
        if not type(error).__module__.startswith("rasterio"):
            raise
        raise ValueError(
            f"{path}: could not be written ({one_line(error)}); see whether the disk has room, and call again to go on."
        ) from error
    finally:
        whole.unlink(missing_ok=True)


def _write_zarr(path: Path, blocks: Blocks, layout: Layout, scales: np.ndarray | None, work: Path) -> None:
    """Write a Zarr group that xarray opens: `features` or `classes`, coordinates `x` and `y`, and `spatial_ref`."""
    import zarr

    temporary = work / "whole.zarr"
    is_classes = layout.dtype == "uint8"
    name = "classes" if is_classes else "features"
    try:
        with naming(path):
            group = zarr.open_group(temporary, mode="w", attributes={"Conventions": "CF-1.10", **layout.tags})
            side = (layout.block, layout.block)
            shape: tuple[int, ...] = (layout.rows, layout.columns)
            chunks: tuple[int, ...] = side
            dimensions = ["y", "x"]
            if not is_classes:
                shape, chunks = (layout.channels, *shape), (layout.channels, *side)
                dimensions = ["feature", *dimensions]
            attributes: dict[str, Any] = {"grid_mapping": "spatial_ref"}
            if scales is not None:
                attributes["_FillValue"] = _INT8_NODATA
            elif is_classes:
                names = [name for tag, name in layout.tags.items() if tag.startswith("class_")]
                attributes |= {
                    "_FillValue": layout.nodata,
                    "flag_values": list(range(len(names))),
                    "flag_meanings": " ".join("_".join(name.split()) for name in names),
                }
            array = group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=layout.dtype,
                fill_value=_INT8_NODATA if scales is not None else layout.nodata,
                dimension_names=dimensions,
                attributes=attributes,
            )
            if scales is not None:
                group.create_array("scale", data=scales, dimension_names=["feature"])
            _write_coordinates(group, layout)
            for column, row, values in blocks():
                stored = _quantised(values, scales) if scales is not None else values
                height, width = stored.shape[1:]
                place = np.s_[row : row + height, column : column + width]
                if is_classes:
                    array[place] = stored[0]
                else:
                    array[(slice(None), *place)] = stored
            _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_coordinates(group: Any, layout: Layout) -> None:
    """Write the centres of columns and rows, and the coordinate reference system, by the CF conventions."""
    reference: dict[str, Any] = {}
    if layout.crs is not None:
        reference["crs_wkt"] = rasterio.crs.CRS.from_user_input(layout.crs).to_wkt()
    if layout.transform is not None:
        a, b, c, d, e, f = layout.transform
        reference["GeoTransform"] = f"{c} {a} {b} {f} {d} {e}"
        if b == d == 0:
            columns, rows = (np.arange(size) + 0.5 for size in (layout.columns, layout.rows))
            group.create_array("x", data=c + a * columns, dimension_names=["x"])
            group.create_array("y", data=f + e * rows, dimension_names=["y"])
    group.create_array("spatial_ref", data=np.array(0), attributes=reference)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Rename a folder, in place of one that is there."""
    before = path.with_name(f".{os.getpid()}.before.{path.name}")
    if path.is_dir():
        os.replace(path, before)
    os.replace(temporary, path)
    shutil.rmtree(before, ignore_errors=True)


def _write_geoparquet(path: Path, blocks: Blocks, layout: Layout, scales: np.ndarray | None, work: Path) -> None:
    """Write a row for every patch with data: its row and column, its outline, and its features."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.int8() if scales is not None else pa.float32()
    geo = {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"]}},
    }
    metadata = {"geo": json.dumps(geo), **layout.tags}
    if scales is not None:
        metadata["scales"] = json.dumps(scales.tolist())
    schema = pa.schema(
        [
            ("row", pa.int32()),
            ("column", pa.int32()),
            ("geometry", pa.binary()),
            ("features", pa.list_(kind, layout.channels)),
        ],
        metadata=metadata,
    )
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["row", "column"]}
    if scales is None:
        # Signs and exponents together, then the rest of the digits: smaller, and faster to make so.
        options["use_byte_stream_split"] = ["features.list.element"]
    with whole_file(path, work) as temporary, pq.ParquetWriter(temporary, schema, **options) as writer:
        for first_column, first_row, values in blocks():
            rows, columns = np.nonzero(~np.isnan(values[0]))
            if not len(rows):
                continue
            numbers = _quantised(values, scales) if scales is not None else _single(values)
            features = pa.array(np.ascontiguousarray(numbers[:, rows, columns].T).ravel())
            rows, columns = rows + first_row, columns + first_column
            table = [
                pa.array(rows.astype(np.int32)),
                pa.array(columns.astype(np.int32)),
                _outlines(_corners(rows, columns, layout)),
                pa.FixedSizeListArray.from_arrays(features, layout.channels),
            ]
            writer.write_table(pa.Table.from_arrays(table, schema=schema))


def _outlines(corners: np.ndarray) -> Any:
    """Return polygons as an Arrow array of WKB, those across the antimeridian cut along it.

    Args:
        corners: (patches, 5, 2) longitude and latitude, from corner to corner and back.
    """
    import pyarrow as pa

    # Longitudes of a ring without a jump, counted from its first corner.
    longitudes = corners[:, :1, 0] + (corners[..., 0] - corners[:, :1, 0] + 180) % 360 - 180
    rings = np.stack([longitudes, corners[..., 1]], axis=-1)
    beyond = (longitudes.max(1) > 180) | (longitudes.min(1) < -180)
    if beyond.any():
        return pa.array(_cut_at_antimeridian(rings, beyond), pa.binary())
    # All of one form, which shapely would make one by one: half of the time of the whole file.
    polygons = np.zeros(len(rings), _WKB_RING)
    polygons["order"], polygons["kind"], polygons["rings"], polygons["points"] = 1, 3, 1, 5
    polygons["ring"] = rings
    starts = np.arange(len(rings) + 1, dtype=np.int32) * _WKB_RING.itemsize
    return pa.Array.from_buffers(pa.binary(), len(rings), [None, pa.py_buffer(starts), pa.py_buffer(polygons)])


def _cut_at_antimeridian(rings: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """Return rings (patches, 5, 2) as WKB, those `beyond` it as a part on either side."""
    import shapely

    polygons = shapely.polygons(rings)
    whole = shapely.box(-180, -90, 180, 90)
    for index in np.flatnonzero(beyond):
        turned = np.array([-360.0 if rings[index, :, 0].max() > 180 else 360.0, 0.0])
        outside = shapely.difference(polygons[index], whole)
        there = shapely.set_coordinates(outside, shapely.get_coordinates(outside) + turned)
        polygons[index] = shapely.union(shapely.intersection(polygons[index], whole), there)
    return shapely.to_wkb(polygons)


def _corners(rows: np.ndarray, columns: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the outlines of patches in degrees of longitude and latitude, (patches, 5, 2) float64."""
    # Neighbours share corners, and PROJ is asked of each once.
    top, left = rows.min(), columns.min()
    down, across = np.meshgrid(np.arange(top, rows.max() + 2), np.arange(left, columns.max() + 2), indexing="ij")
    a, b, c, d, e, f = layout.transform or ()
    xs, ys = a * across + b * down + c, d * across + e * down + f
    places = rasterio.warp.transform(layout.crs, "OGC:CRS84", xs.ravel(), ys.ravel())
    lattice = np.stack([np.asarray(axis).reshape(xs.shape) for axis in places], axis=-1)
    return lattice[
        (rows - top)[:, None] + np.array([1, 1, 0, 0, 1]), (columns - left)[:, None] + np.array([0, 1, 1, 0, 0])
    ]
