"""Pictures show components, classes, places and scenes in the colours that they should have, where they lie."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from rasterio.warp import transform as transform_points

from a2mae_hub import write_raster
from a2mae_hub.plotting import composite, principal_colours
from a2mae_hub.prediction import class_colours
from a2mae_hub.scene import pictures
from a2mae_hub.scene.feature_files import open_features
from a2mae_hub.scene.pictures import draw_classes, draw_features, draw_similarity, feature_colours, scene_picture
from a2mae_hub.scene_files import open_scene

image_files = pytest.importorskip("matplotlib.image", reason="figures need the extra [plot]")
_NEIGHBOUR = importlib.util.spec_from_file_location("similarity_tests", Path(__file__).with_name("test_similarity.py"))
_SIMILARITY = importlib.util.module_from_spec(_NEIGHBOUR)
_NEIGHBOUR.loader.exec_module(_SIMILARITY)
write_features = _SIMILARITY.write_features
GREY = 0.92
UTM = {"crs": "EPSG:32614", "transform": (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_220_000.0)}


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that are saved."""
    figures = []
    save = pictures.save_figure
    monkeypatch.setattr(pictures, "save_figure", lambda figure, path: figures.append(figure) or save(figure, path))
    return figures


def smooth(rows: int, columns: int) -> np.ndarray:
    """Seven features that vary slowly along four directions of different strength, and a hole without data."""
    y, x = np.mgrid[:rows, :columns] / 40
    hidden = np.stack([3 * np.sin(x), 2 * np.cos(y + x / 2), np.sin(2 * y - x), 0.3 * np.cos(3 * x)])
    values = np.tensordot(np.random.default_rng(2).normal(size=(7, 4)), hidden, axes=1) + 5
    values[:, 5 : rows // 4, 9 : columns // 3] = np.nan
    return values.astype(np.float16)


@pytest.mark.parametrize("name", ["features.tif", "features.zarr"])
def test_colours_are_the_principal_components_of_all_patches(tmp_path, name):
    values = smooth(105, 150)
    with open_features(write_features(tmp_path / name, values)) as opened:
        np.testing.assert_allclose(feature_colours(opened), principal_colours(values), atol=1e-3)


def test_a_sample_of_a_large_scene_has_the_same_components(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_MOST_SAMPLES", 2_000)
    values = smooth(105, 150)
    with open_features(write_features(tmp_path / "features.tif", values)) as opened:
        colours = feature_colours(opened)
        np.testing.assert_array_equal(colours, feature_colours(opened))
    assert np.abs(colours - principal_colours(values)).mean() < 0.03


def test_of_a_large_scene_every_third_patch_is_drawn(tmp_path):
    values = smooth(110, 290)
    wanted = principal_colours(values[:, ::3, ::3])
    for name, tolerance in (("features.zarr", 1e-3), ("features.tif", 0.05)):  # a GeoTIFF gives means over patches
        with open_features(write_features(tmp_path / name, values)) as opened:
            colours = feature_colours(opened, longest=100)
        assert colours.shape == (37, 97, 3)
        real = (wanted != GREY).any(-1) & (colours != np.float32(GREY)).any(-1)
        assert np.abs(colours - wanted)[real].mean() < tolerance


def test_what_does_not_vary_is_grey_and_no_data_lighter(tmp_path):
    values = np.full((2, 12, 15), 3, np.float16)
    values[0, :6] = 1
    values[:, 0, 0] = np.nan
    with open_features(write_features(tmp_path / "two.tif", values)) as opened:
        colours = feature_colours(opened)
    np.testing.assert_allclose(colours[0, 0], GREY)
    np.testing.assert_allclose(colours[5, 5], (0, 0.5, 0.5))
    np.testing.assert_allclose(colours[6, 5], (1, 0.5, 0.5))
    values[:] = np.nan
    with pytest.raises(ValueError, match="no data anywhere"):
        draw_features(write_features(tmp_path / "none.tif", values), tmp_path / "none.png")


@pytest.mark.parametrize("crs", ["EPSG:32614", None])
def test_features_are_drawn_where_they_lie(tmp_path, drawn, crs):
    placed = {} if crs else {"crs": None, "transform": None}
    features = write_features(tmp_path / "features.tif", smooth(40, 80), **placed)
    assert draw_features(features, tmp_path / "features.png") == tmp_path / "features.png"
    (axes,) = drawn[0].axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if crs:
        assert (left, right, bottom, top) == (500_000, 506_400, 5_216_800, 5_220_000)
        assert "EPSG:32614" in axes.get_xlabel()
    else:
        assert (left, right, bottom, top) == (0, 80, 40, 0) and not len(axes.get_xticks())
    height, width = image_files.imread(tmp_path / "features.png").shape[:2]
    assert 0.5 < height / width < 0.75


def test_a_map_of_classes_has_its_colours_and_a_legend_of_those_that_are_there(tmp_path, drawn):
    colours = class_colours(4)
    classes = np.zeros((30, 50), np.uint8)
    classes[:, 20:], classes[10:, 40:] = 2, 255
    tags = {"class_0": "water", "class_1": "crops", "class_2": "forest", "class_3": "bare"}
    write_raster(tmp_path / "map.tif", classes, nodata=255, tags=tags, colours=dict(enumerate(colours)), **UTM)
    draw_classes(tmp_path / "map.tif", tmp_path / "map.png")
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == ["water", "forest", "no data"]
    seen = np.rint(image_files.imread(tmp_path / "map.png")[..., :3] * 255).astype(int)
    shares = [(seen == colour).all(-1).mean() for colour in colours]
    assert shares[0] > 0.2 and shares[2] > 0.2 and shares[1] == shares[3] == 0


def test_what_is_no_map_of_classes_is_refused(tmp_path):
    write_raster(tmp_path / "grey.tif", np.ones((1, 8, 8), np.uint8), **UTM)
    with pytest.raises(ValueError, match=r"grey\.tif: has no colour table"):
        draw_classes(tmp_path / "grey.tif", tmp_path / "grey.png")
    (tmp_path / "text.tif").write_text("nothing")
    with pytest.raises(ValueError, match=r"text\.tif: GDAL cannot read it"):
        draw_classes(tmp_path / "text.tif", tmp_path / "grey.png")
    with pytest.raises(FileNotFoundError, match=r"none\.tif: no such file"):
        draw_classes(tmp_path / "none.tif", tmp_path / "grey.png")
    with pytest.raises(ValueError, match=r"\.png"):
        draw_classes(tmp_path / "grey.tif", tmp_path / "grey.jpg")


def test_crosses_mark_the_places_beside_the_scene(tmp_path, drawn):
    values = np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30)
    write_raster(tmp_path / "similarity.tif", values, nodata=float("nan"), **UTM)
    write_raster(
        tmp_path / "scene.tif", np.full((3, 20, 30), 90, np.uint8), descriptions=["red", "green", "blue"], **UTM
    )
    scene = open_scene(tmp_path / "scene.tif", sensor="naip", acquired="2020-08-31")
    easting, northing = 500_000 + 10 * 12.5, 5_220_000 - 10 * 4.5
    (longitude,), (latitude,) = transform_points("EPSG:32614", "EPSG:4326", [easting + 3], [northing - 4])
    picture = scene_picture(scene, scene.grid.whole)
    draw_similarity(tmp_path / "similarity.tif", [(longitude, latitude)], tmp_path / "map.png", picture=picture)
    left, right, bar = drawn[0].axes
    assert left.get_title() == "naip, 2020-08-31" and "cosine" in bar.get_ylabel()
    for axes in (left, right):
        assert [tuple(np.ravel(line.get_xydata())) for line in axes.lines] == [(easting, northing)] * 2
        assert axes.get_xlim() == (500_000, 500_300)
    np.testing.assert_array_equal(right.images[0].get_array(), values)


def test_the_picture_of_a_scene_is_its_composite(tmp_path):
    pixels = np.random.default_rng(4).integers(300, 3_000, (4, 24, 36), dtype=np.uint16)
    pixels[:, :6, :8] = 0
    bands = ["B02", "B03", "B04", "B08"]
    write_raster(tmp_path / "scene.tif", pixels, descriptions=bands, **UTM)
    scene = open_scene(tmp_path / "scene.tif", sensor="sentinel-2-l2a", nodata=0, scale=[1e-4, 1e-4, 2e-4, 1e-4])
    physical = np.where(pixels == 0, np.nan, pixels * np.array([1, 1, 2, 1])[:, None, None] * 1e-4)
    seen = scene_picture(scene, scene.grid.whole)
    np.testing.assert_allclose(seen.colours, composite(physical, bands, "sentinel-2-l2a"), atol=1e-5)
    part = scene_picture(scene, (8, 6, 20, 10))
    assert part.colours.shape == (10, 20, 3) and part.grid == scene.grid.crop((8, 6, 20, 10))
    small = scene_picture(scene, scene.grid.whole, longest=18)
    assert small.colours.shape == (12, 18, 3) and small.grid.footprint == scene.grid.footprint
    np.testing.assert_array_equal((small.colours == GREY).all(-1), (seen.colours == GREY).all(-1)[::2, ::2])


def test_coarser_bands_of_a_scene_lie_where_the_finer_do(tmp_path):
    fine = np.repeat(np.repeat(np.arange(1, 7, dtype=np.uint16).reshape(2, 3) * 500, 4, 0), 4, 1)
    name = "S2B_MSIL2A_20170927T094019_66_56"
    for band, step in (("B04", 1), ("B03", 2), ("B02", 4)):
        a, b, c, d, e, f = UTM["transform"]
        placed = {"crs": UTM["crs"], "transform": (a * step, b, c, d, e * step, f)}
        write_raster(tmp_path / f"{name}_{band}.tif", fine[::step, ::step], **placed)
    scene = open_scene(tmp_path, scale=1e-4, offset=0.0)
    wanted = composite(np.stack([fine * 1e-4] * 3), ["B04", "B03", "B02"], scene.sensor)
    np.testing.assert_allclose(scene_picture(scene, scene.grid.whole).colours, wanted, atol=1e-6)
    np.testing.assert_allclose(scene_picture(scene, (4, 0, 8, 8)).colours.std(axis=-1), 0, atol=1e-6)
