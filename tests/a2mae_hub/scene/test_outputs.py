"""The same features in every format, each as its own readers expect it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import zarr
from rasterio.warp import transform

from a2mae_hub.scene import embed_scene
from a2mae_hub.scene.outputs import Layout, write_output

from .conftest import CORNER, UTM

ROWS, COLUMNS, CHANNELS, SIDE = 150, 200, 3, 128
# One factor apart each, so that a quantised feature cannot be mistaken for another.
TRUTH = np.random.default_rng(0).normal(size=(CHANNELS, ROWS, COLUMNS)) * np.array([1, 10, 0.1])[:, None, None]


def blocks():
    """Yield what is made, in blocks; a corner has no data."""
    values = TRUTH.astype(np.float16)
    values[:, :5, :7] = np.nan
    for row in range(0, ROWS, SIDE):
        for column in range(0, COLUMNS, SIDE):
            yield column, row, values[:, row : row + SIDE, column : column + SIDE]


def layout(dtype: str = "float16") -> Layout:
    """Return what the blocks make up: patches of 40 m."""
    x, y = CORNER
    names = [f"feature {number}" for number in range(CHANNELS)]
    place = (40.0, 0.0, x, 0.0, -40.0, y)
    return Layout(CHANNELS, ROWS, COLUMNS, SIDE, dtype, UTM, place, names, float("nan"), {"checkpoint": "small"})


def written(folder: Path, suffix: str, dtype: str = "float16") -> Path:
    """Return what was written; nothing else is left."""
    path = folder / f"features{suffix}"
    write_output(path, blocks, layout(dtype), folder)
    assert [one.name for one in folder.iterdir()] == [path.name]
    return path


def test_a_geotiff_is_cloud_optimised_and_keeps_half_precision(tmp_path) -> None:
    with rasterio.open(written(tmp_path, ".tif")) as dataset:
        found = dataset.read()
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags(ns="IMAGE_STRUCTURE", bidx=1)["NBITS"] == "16"
        assert (
            dataset.descriptions == ("feature 0", "feature 1", "feature 2") and dataset.tags()["checkpoint"] == "small"
        )
        assert dataset.crs == UTM and dataset.transform[0] == 40.0 and np.isnan(dataset.nodata)
    assert np.isnan(found[:, :5, :7]).all()
    np.testing.assert_array_equal(found[:, 5:], TRUTH.astype(np.float16)[:, 5:])


def test_int8_is_within_half_a_step_of_each_feature(tmp_path) -> None:
    with rasterio.open(written(tmp_path, ".tif", "int8")) as dataset:
        stored, scales = dataset.read(), np.array(dataset.scales)
        assert dataset.dtypes[0] == "int8" and dataset.nodata == -128
    assert (stored[:, :5, :7] == -128).all()
    found = stored * scales[:, None, None]
    errors = np.abs(found - TRUTH)[:, 5:].max((1, 2))
    np.testing.assert_allclose(scales, np.abs(TRUTH[:, 5:]).max((1, 2)) / 127, rtol=0.05)
    assert (errors <= 0.51 * scales + 1e-3 * np.abs(TRUTH).max((1, 2))).all()


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_zarr_has_coordinates_and_a_reference_system(tmp_path, dtype) -> None:
    group = zarr.open_group(written(tmp_path, ".zarr", dtype), mode="r")
    array = group["features"]
    assert array.shape == TRUTH.shape and array.metadata.dimension_names == ("feature", "y", "x")
    values = array[:].astype(np.float64)
    if dtype == "int8":
        values = np.where(values == -128, np.nan, values * group["scale"][:][:, None, None])
    assert np.isnan(values[:, :5, :7]).all()
    np.testing.assert_allclose(values[:, 5:], TRUTH[:, 5:], atol=0.2, rtol=1e-2)
    x, y = CORNER
    np.testing.assert_allclose(group["x"][:2], [x + 20, x + 60])
    np.testing.assert_allclose(group["y"][:2], [y - 20, y - 60])
    assert rasterio.crs.CRS.from_wkt(group["spatial_ref"].attrs["crs_wkt"]) == UTM


def test_geoparquet_has_a_row_for_every_patch_with_data_where_it_lies(tmp_path) -> None:
    table = geopandas.read_parquet(written(tmp_path, ".parquet"))
    assert len(table) == ROWS * COLUMNS - 5 * 7 and table.crs == "OGC:CRS84"
    row = table[(table["row"] == 140) & (table["column"] == 133)].iloc[0]
    np.testing.assert_allclose(row["features"], TRUTH[:, 140, 133], rtol=2e-3)
    x, y = CORNER
    (longitude,), (latitude,) = transform(UTM, "OGC:CRS84", [x + 133.5 * 40], [y - 140.5 * 40])
    assert row.geometry.centroid.distance(shapely.Point(longitude, latitude)) < 1e-7
    assert shapely.is_ccw(row.geometry.exterior)


def test_every_format_tells_the_same_of_a_scene(small, scene, tmp_path) -> None:
    path = scene(rows=64, columns=64)
    for suffix in (".tif", ".zarr", ".parquet"):
        embed_scene(path, tmp_path / f"features{suffix}", checkpoint=small)
    with rasterio.open(tmp_path / "features.tif") as dataset:
        truth = dataset.read()
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "features.zarr")["features"][:], truth)
    table = geopandas.read_parquet(tmp_path / "features.parquet")
    np.testing.assert_array_equal(np.stack(table["features"]).T.reshape(truth.shape), truth)


def test_patches_across_the_antimeridian_are_cut_along_it(tmp_path) -> None:
    """In UTM zone 60, whose east lies beyond 180 degrees."""
    (longitude, latitude), east = (179.999, -17.0), "EPSG:32760"
    (x,), (y,) = transform("OGC:CRS84", east, [longitude], [latitude])
    place = replace(layout(), crs=east, transform=(40.0, 0.0, x, 0.0, -40.0, y))
    write_output(tmp_path / "features.parquet", blocks, place, tmp_path)
    table = geopandas.read_parquet(tmp_path / "features.parquet")
    assert table.geometry.is_valid.all()
    west, south, east_edge, north = table.geometry.bounds.to_numpy().T
    assert west.min() >= -180 and east_edge.max() <= 180 and (north - south).max() < 1e-3
    cut = table[table.geometry.geom_type == "MultiPolygon"]
    assert 100 < len(cut) < 400 and (table.geometry.area / table.geometry.area.median()).between(0.98, 1.02).all()
