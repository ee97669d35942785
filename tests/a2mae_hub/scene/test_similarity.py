"""Similarity is the cosine of features beyond their mean, on the patches, and found by longitude and latitude."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import typer
from rasterio.warp import transform as transform_points
from transformers.utils import logging
from typer.testing import CliRunner

from a2mae_hub import write_raster
from a2mae_hub.grids import Grid
from a2mae_hub.scene import embed_scene
from a2mae_hub.scene.commands import similar
from a2mae_hub.scene.feature_files import is_feature_file, open_features
from a2mae_hub.scene.outputs import Layout, write_output
from a2mae_hub.scene.similarity import locate, similar_scene
from a2mae_hub.simulate import write_scenes

ROWS, COLUMNS, CHANNELS = 110, 141, 6  # more than a block or a tile either way
WEST, NORTH, PATCH = 500_000.0, 5_220_000.0, 80.0  # UTM 14, a central meridian at 99° west
FORMATS = [("features.tif", "float16"), ("features.tif", "int8"), ("features.zarr", "float16"), ("f.zarr", "int8")]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Load checkpoints without bars."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def made_up(rows: int = ROWS, columns: int = COLUMNS, common: float = 40.0) -> np.ndarray:
    """Features with a large common part, and a corner without data; whole quarters, which float16 holds exactly."""
    values = np.random.default_rng(5).integers(-20, 21, (CHANNELS, rows, columns)) / 4 + common
    values[:, : rows // 5, : columns // 6] = np.nan
    return values.astype(np.float16)


def write_features(path: Path, values: np.ndarray, dtype: str = "float16", **fields) -> Path:
    """Write features as `embed_scene` does."""
    channels, rows, columns = values.shape
    layout = Layout(
        channels=channels,
        rows=rows,
        columns=columns,
        block=96,
        dtype=dtype,
        crs="EPSG:32614",
        transform=(PATCH, 0, WEST, 0, -PATCH, NORTH),
        names=[f"feature {number}" for number in range(channels)],
        nodata=float("nan"),
        tags={"checkpoint": "made-up", "sensors": "sentinel-2-l2a", "acquired": "2023-07-05"},
    )

    def blocks():
        for row in range(0, rows, 96):
            for column in range(0, columns, 96):
                yield column, row, values[:, row : row + 96, column : column + 96]

    write_output(path, blocks, replace(layout, **fields), path.parent)
    return path


def place_of(row: float, column: float) -> tuple[float, float]:
    """Longitude and latitude of a place, in patches from the corner."""
    (longitude,), (latitude,) = transform_points(
        "EPSG:32614", "EPSG:4326", [WEST + PATCH * column], [NORTH - PATCH * row]
    )
    return longitude, latitude


def cosines(values: np.ndarray, patches: list[tuple[int, int]]) -> np.ndarray:
    """The definition, in float64."""
    beyond = values.astype(np.float64)
    beyond = beyond - np.nanmean(beyond, axis=(1, 2), keepdims=True)
    beyond /= np.linalg.norm(beyond, axis=0)
    reference = np.mean([beyond[:, row, column] for row, column in patches], axis=0)
    return np.einsum("c,chw->hw", reference / np.linalg.norm(reference), beyond)


def read_map(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read(1)


@pytest.mark.parametrize(("name", "dtype"), FORMATS)
def test_it_is_the_cosine_beyond_the_mean_of_the_scene(tmp_path, name, dtype):
    values = made_up(common=2.0)
    features = write_features(tmp_path / name, values, dtype)
    places = [place_of(90.5, 100.5), place_of(30.2, 7.9), place_of(109.9, 140.9)]
    for count in (1, 3):
        similar_scene(features, places[:count], tmp_path / "map.tif")
        wanted = cosines(values, [(90, 100), (30, 7), (109, 140)][:count])
        # int8 keeps 127 steps, here of 7/127 each.
        np.testing.assert_allclose(read_map(tmp_path / "map.tif"), wanted, atol=2e-6 if dtype == "float16" else 0.02)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_all_patches_share_changes_nothing(tmp_path):
    for common in (0.0, 64.0):
        features = write_features(tmp_path / f"{common}.tif", made_up(30, 40, common))
        similar_scene(features, [place_of(20.5, 20.5)], tmp_path / f"{common}-map.tif")
    np.testing.assert_allclose(read_map(tmp_path / "0.0-map.tif"), read_map(tmp_path / "64.0-map.tif"), atol=1e-5)


def test_the_map_lies_on_the_patches_and_says_what_it_is(tmp_path):
    features = write_features(tmp_path / "features.zarr", made_up())
    longitude, latitude = place_of(50.5, 60.5)
    grid = similar_scene(features, [(longitude, latitude)], tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.dtypes == ("float32",) and np.isnan(dataset.nodata) and dataset.descriptions == ("similarity",)
        assert dataset.crs == "EPSG:32614" and tuple(dataset.transform)[:6] == (PATCH, 0, WEST, 0, -PATCH, NORTH)
        assert dataset.shape == (grid.height, grid.width) == (ROWS, COLUMNS)
        tags, values = dataset.tags(), dataset.read(1)
    assert tags["checkpoint"] == "made-up" and tags["places"] == f"{longitude:.6g}, {latitude:.6g}"
    assert np.unravel_index(np.nanargmax(values), values.shape) == (50, 60) and values[50, 60] > 0.999999
    np.testing.assert_array_equal(np.isnan(values), np.isnan(made_up()[0]))


def test_a_place_without_data_or_outside_is_refused_with_the_extent(tmp_path):
    features = write_features(tmp_path / "features.tif", made_up())
    (west, _), (_, north) = place_of(ROWS, 0), place_of(0, 0)
    for place, why in ((place_of(2.5, 2.5), "no data at"), (place_of(-0.5, 3), "outside"), ((200.0, 5.0), "outside")):
        with pytest.raises(ValueError, match=why) as told:
            similar_scene(features, [place_of(50, 50), place], tmp_path / "map.tif")
        assert f"west {west:.5f}" in str(told.value) and f"north {north:.5f}" in str(told.value)
    with pytest.raises(ValueError, match="longitude, then latitude"):
        similar_scene(features, [place_of(50, 50)[::-1]], tmp_path / "map.tif")
    with pytest.raises(ValueError, match="names no place"):
        similar_scene(features, [], tmp_path / "map.tif")
    bare = write_features(tmp_path / "bare.tif", made_up(10, 10), crs=None, transform=None)
    with pytest.raises(ValueError, match="no georeference"):
        similar_scene(bare, [(1.0, 2.0)], tmp_path / "map.tif")
    assert not (tmp_path / "map.tif").exists()


def test_a_patch_like_the_mean_is_like_nothing(tmp_path):
    flat = np.full((3, 8, 8), 2.0, np.float16)
    with pytest.raises(ValueError, match="as the mean of the scene"):
        similar_scene(write_features(tmp_path / "flat.tif", flat), [place_of(2.5, 2.5)], tmp_path / "map.tif")
    flat[:, :4], flat[:, 5:] = 1, 3  # row 4 is the mean
    features = write_features(
        tmp_path / "three.tif", np.concatenate([flat[:, :4], flat[:, 4:5], flat[:, 5:], flat[:, 5:6]], 1)
    )
    similar_scene(features, [place_of(0.5, 0.5)], tmp_path / "map.tif")
    np.testing.assert_allclose(read_map(tmp_path / "map.tif")[:, 0], [1] * 4 + [0] + [-1] * 4, atol=1e-6)
    with pytest.raises(ValueError, match="nothing in common"):
        similar_scene(features, [place_of(0.5, 0.5), place_of(7.5, 0.5)], tmp_path / "map.tif")


def test_longitudes_go_on_across_the_antimeridian():
    grid = Grid(10, 20, (0.01, 0.0, 179.9, 0.0, -0.01, 10.0), rasterio.crs.CRS.from_epsg(4326))
    assert locate(grid, (179.905, 9.995)) == (0, 0)
    assert locate(grid, (-179.995, 9.915)) == locate(grid, (180.005, 9.915)) == (10, 8)


def test_only_features_are_taken(tmp_path):
    features = write_features(tmp_path / "features.tif", made_up(20, 20))
    zarr = write_features(tmp_path / "features.zarr", made_up(20, 20))
    place = place_of(15.5, 15.5)
    similar_scene(features, [place], tmp_path / "map.tif")
    write_raster(tmp_path / "image.tif", np.ones((3, 9, 9), np.uint8))
    paths = (features, zarr, tmp_path / "image.tif", tmp_path, tmp_path / "none")
    assert [is_feature_file(path) for path in paths] == [True, True, False, False, False]
    for path, why in (
        ("map.tif", "no features but similarity"),
        ("image.tif", "no features"),
        ("a.parquet", "read from"),
    ):
        (tmp_path / "a.parquet").touch()
        with pytest.raises(ValueError, match=why):
            similar_scene(tmp_path / path, [place], tmp_path / "other.tif")
    with pytest.raises(ValueError, match="the features themselves"):
        similar_scene(features, [place], features)
    with pytest.raises(FileNotFoundError, match="no such file"):
        similar_scene(tmp_path / "none.tif", [place], tmp_path / "other.tif")


def test_a_damaged_file_is_named(tmp_path):
    features = write_features(tmp_path / "features.tif", made_up())
    whole = features.read_bytes()
    features.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"features\.tif.*damaged"):
        similar_scene(features, [place_of(100.5, 130.5)], tmp_path / "map.tif")


def test_blocks_hold_every_patch_once(tmp_path):
    values = made_up()
    with open_features(write_features(tmp_path / "features.zarr", values)) as opened:
        for step in (1, 3):
            whole = np.full((CHANNELS, -(-ROWS // step), -(-COLUMNS // step)), -1, np.float32)
            for column, row, block in opened.blocks(step):
                assert block.dtype == np.float32 and max(block.shape[1:]) <= opened.block
                whole[:, row : row + block.shape[1], column : column + block.shape[2]] = block
            np.testing.assert_array_equal(whole, values[:, ::step, ::step])


# ---------------------------------------------------------------------------------------------------------- the command


def run(*arguments: object):
    """Run the command alone; return what it ended with."""
    app = typer.Typer()
    app.command()(similar)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("form", ["--at=", "--at"])
def test_western_longitudes_are_no_options(tmp_path, form):
    features = write_features(tmp_path / "features.tif", made_up(20, 20))
    longitude, latitude = place_of(15.5, 15.5)
    assert longitude < 0
    place = f"{longitude},{latitude}"
    at = [f"--at={place}"] if form == "--at=" else ["--at", place, "--at", place]
    told = run(features, *at, "-o", tmp_path / "map.tif")
    assert told.exit_code == 0, told.output
    where = "a place" if form == "--at=" else "2 places"
    assert told.output == f"{tmp_path / 'map.tif'}: similarity to {where} on 20 × 20 patches.\n"
    np.testing.assert_allclose(read_map(tmp_path / "map.tif")[15, 15], 1, atol=1e-6)


def test_mistakes_are_told_before_the_work(tmp_path, monkeypatch):
    features = write_features(tmp_path / "features.tif", made_up(20, 20))
    image = tmp_path / "scene.tif"
    grid = {"crs": "EPSG:32614", "transform": (10, 0, WEST, 0, -10, NORTH), "descriptions": ["red", "green", "blue"]}
    write_raster(image, np.ones((3, 80, 80), np.uint8), **grid)
    near = "{},{}".format(*place_of(1, 1))
    monkeypatch.setattr("a2mae_hub.scene.inference.embed_scene", lambda *_, **__: pytest.fail("worked"))
    for arguments, why in (
        ([features, "--at", "-99.2;47"], "--at -99.2;47: give longitude,latitude"),
        ([features, "--at", near, "--sensor", "naip", "--anchor", 1], "leave out --sensor, --anchor"),
        ([features, image, "--at", near], "name it alone"),
        ([image, "--at", "-99.2,47.1", "--sensor", "naip"], "outside the scene"),
        ([image, "--at", near, "--sensor", "naip", "--bounds", "1,2"], "four numbers"),
        ([image, "--at", near, "--sensor", "naip", "--bounds", "1,2,3,4"], "outside the image"),
        ([image, "--at", near, "--sensor", "naip", "--anchor", 1], "--anchor 1 is no image"),
    ):
        told = run(*arguments, "-o", tmp_path / "map.tif")
        assert isinstance(told.exception, ValueError) and re.search(re.escape(why), str(told.exception)), told.exception


def test_images_are_embedded_first(tmp_path, small):
    pytest.importorskip("matplotlib", reason="figures need the extra [plot]")
    (tmp_path / "place").mkdir()
    scene = write_scenes(tmp_path / "place", 3)[0]
    with rasterio.open(scene) as dataset:
        (longitude,), (latitude,) = transform_points(dataset.crs, "EPSG:4326", *([one] for one in dataset.xy(40, 52)))
    at = f"--at={longitude},{latitude}"
    for name in ("map.tif", "map.png"):
        told = run(scene, at, "-o", tmp_path / name, "-c", small.name)
        assert told.exit_code == 0, told.exception
        assert told.stderr == ""
    embed_scene(scene, tmp_path / "features.tif", checkpoint=small)
    similar_scene(tmp_path / "features.tif", [(longitude, latitude)], tmp_path / "again.tif")
    values = read_map(tmp_path / "map.tif")
    np.testing.assert_array_equal(values, read_map(tmp_path / "again.tif"))
    assert values[10, 13] > 0.9999  # patches of 4 pixels
    assert (tmp_path / "map.png").stat().st_size > 20_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "again.tif",
        "features.tif",
        "map.png",
        "map.tif",
        "place",
    ]
