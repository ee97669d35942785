"""Scenes are found in folders, by patterns and through STAC, each once, under names without folders of a machine."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import shapely

from a2mae_hub.raster import write_raster
from a2mae_hub.stssd.catalogue import SceneIndex, open_collection
from a2mae_hub.stssd.footprints import Footprint
from a2mae_hub.stssd.recipe import Collection, Scenes

from .scenes import NORTH, UTM, WEST, write_scene

SMALL = (20, 20)


def opened(root, *paths, **facts):
    return open_collection(Collection("one", (Scenes(paths=paths, **facts),)), Path(root))


def names(scenes):
    return [scene.name for scene in scenes]


def scene_at(path, **options):
    return write_scene(path, shape=SMALL, **options)


def band_files(folder, product, bands, *, pixel=10.0, size=12):
    """Write one file per band, whose names alone tell what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for band in bands:
        write_raster(
            folder / f"{product}{band}.tif",
            np.full((1, size, size), 1_000, np.uint16),
            crs=UTM,
            transform=(pixel, 0, WEST, 0, -pixel, NORTH),
        )


@pytest.fixture
def archive(tmp_path):
    """Scenes at several depths, with what lies about beside them."""
    for name in ("a/2019/x.tif", "a/2020/x.tif", "a/2020/y.tif", "b/z.tif"):
        scene_at(tmp_path / name, acquired=None)
    (tmp_path / "a" / "notes.txt").write_text("no raster")
    (tmp_path / "a" / "2020" / "x.tif.aux.xml").write_text("<PAMDataset/>")
    (tmp_path / "a" / "empty").mkdir()
    for hidden in ("a/._x.tif", "a/.trash/x.tif", "a/2020/.x.tif"):
        path = tmp_path / hidden
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no raster")
    return tmp_path


# -------------------------------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["a/2019/x.tif"], ["a/2019/x.tif"]),
        (["a"], ["a/2019/x.tif", "a/2020/x.tif", "a/2020/y.tif"]),
        (["a/"], ["a/2019/x.tif", "a/2020/x.tif", "a/2020/y.tif"]),
        (["."], ["a/2019/x.tif", "a/2020/x.tif", "a/2020/y.tif", "b/z.tif"]),
        (["a/20??"], ["a/2019/x.tif", "a/2020/x.tif", "a/2020/y.tif"]),
        (["a/*/x.tif"], ["a/2019/x.tif", "a/2020/x.tif"]),
        (["a/2020/*"], ["a/2020/x.tif", "a/2020/y.tif"]),
        (["a/**/x.tif"], ["a/2019/x.tif", "a/2020/x.tif"]),
        (["**/x.tif"], ["a/2019/x.tif", "a/2020/x.tif"]),
        (["**"], ["a/2019/x.tif", "a/2020/x.tif", "a/2020/y.tif", "b/z.tif"]),
        (["*"], ["a/2019/x.tif", "a/2020/x.tif", "a/2020/y.tif", "b/z.tif"]),
        (["b", "a/2019"], ["b/z.tif", "a/2019/x.tif"]),
        (["a/2020/y.tif", "a/2020", "a/*/*.tif"], ["a/2020/y.tif", "a/2020/x.tif", "a/2019/x.tif"]),
        (["./a/../b/z.tif"], ["b/z.tif"]),
        (["a/2020/[x]*.tif"], ["a/2020/x.tif"]),
    ],
)
def test_paths_folders_and_patterns_find_every_scene_once_in_the_order_of_the_recipe_and_of_names(
    archive, paths, found
):
    assert names(opened(archive, *paths)) == found


def test_patterns_may_find_files_of_any_suffix_but_take_no_others_along(archive):
    shutil.copy(archive / "b" / "z.tif", archive / "b" / "z.dat")
    assert names(opened(archive, "b/*.dat")) == ["b/z.dat"]
    assert names(opened(archive, "b/*")) == ["b/z.tif"]
    assert names(opened(archive, "b/z.dat")) == ["b/z.dat"]
    assert names(opened(archive, "b", "b/*.dat")) == ["b/z.tif", "b/z.dat"]


def test_brackets_in_names_of_folders_and_files_are_no_pattern(tmp_path):
    root = tmp_path / "data [2020]"
    scene_at(root / "a [1]" / "x[2].tif")
    for path in ("a [1]/x[2].tif", "a [1]", "*/*.tif", "a*"):
        assert names(opened(root, path)) == ["a [1]/x[2].tif"], path


@pytest.mark.parametrize("path", ["c/x.tif", "c", "a/*.jp2", "a/empty/**/*.tif"])
def test_a_path_that_names_nothing_is_named_with_its_root(archive, path):
    with pytest.raises(FileNotFoundError, match="no such file or folder") as raised:
        opened(archive, path)
    assert str(archive / path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", ["a/empty", "a/*.txt"])
def test_what_holds_no_raster_is_named(archive, path):
    if "txt" in path:
        with pytest.raises(ValueError, match=r"notes\.txt: not a raster"):
            opened(archive, path)
    else:
        with pytest.raises(FileNotFoundError, match="holds no optical raster"):
            opened(archive, path)


def test_a_damaged_raster_is_named(archive):
    (archive / "b" / "broken.tif").write_bytes(b"II*\0garbage")
    with pytest.raises(ValueError, match=r"broken\.tif"):
        opened(archive, "b")


def test_a_scene_named_twice_in_different_entries_is_refused(archive):
    collection = Collection("one", (Scenes(paths=("a",)), Scenes(paths=("a/2019",))))
    with pytest.raises(ValueError, match=r"x\.tif: would be called a/2019/x\.tif .*only once"):
        open_collection(collection, archive)


def test_entries_follow_each_other(archive):
    collection = Collection(
        "one", (Scenes(paths=("b",), licence="free"), Scenes(paths=("a/2019",), acquired="2019-05-01"))
    )
    scenes = open_collection(collection, archive)
    assert names(scenes) == ["b/z.tif", "a/2019/x.tif"]
    assert [scene.licence for scene in scenes] == ["free", None]
    assert [scene.acquired for scene in scenes] == [None, datetime(2019, 5, 1, tzinfo=timezone.utc)]


# ---------------------------------------------------------------------------------------------------------------- names


def test_names_of_scenes_beside_the_root_begin_below_what_the_recipe_names(archive, tmp_path):
    root = tmp_path / "elsewhere"
    root.mkdir()
    absolute = str(archive / "a")
    assert names(opened(root, absolute)) == ["2019/x.tif", "2020/x.tif", "2020/y.tif"]
    assert names(opened(root, f"{absolute}/20*/x.tif")) == ["2019/x.tif", "2020/x.tif"]
    assert names(opened(root, "../b/z.tif")) == ["z.tif"]
    assert names(opened(root, f"{absolute}/2020/*.tif")) == ["x.tif", "y.tif"]
    assert names(opened(archive, absolute)) == ["a/2019/x.tif", "a/2020/x.tif", "a/2020/y.tif"]


def test_two_scenes_that_would_have_one_name_are_refused_with_the_way_out(archive, tmp_path):
    root = tmp_path / "elsewhere"
    root.mkdir()
    with pytest.raises(ValueError, match=r"2020/x\.tif: would be called x\.tif .*2019/x\.tif is; .*set root"):
        opened(root, "../a/2019/x.tif", "../a/2020/x.tif")


def test_names_and_descriptions_hold_no_folder_of_this_machine(archive, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    write_raster(
        archive / "b" / "z_SCL.tif",
        np.full((20, 20), 4, np.uint8),
        crs=UTM,
        transform=(10, 0, WEST, 0, -10, NORTH),
    )
    for scene in [*opened(archive, "."), *opened(root, str(archive / "a")), *opened(root, str(archive / "b"))]:
        told = json.dumps([scene.name, scene.describe()])
        assert archive.name not in told
        assert str(archive.parent) not in told


def test_a_scene_is_described_alike_wherever_it_lies_and_otherwise_where_it_differs(archive, tmp_path):
    (scene,) = opened(archive, "b")
    moved = tmp_path / "moved"
    shutil.copytree(archive / "b", moved / "b")
    assert opened(moved, "b")[0].describe() == scene.describe()
    scene_at(moved / "b" / "z.tif", acquired=None, corner=(WEST + 10, NORTH))
    assert opened(moved, "b")[0].describe() != scene.describe()
    for shape in ((20, 21), (21, 20)):
        write_scene(moved / "b" / "z.tif", acquired=None, shape=shape)
        assert opened(moved, "b")[0].describe() != scene.describe()
    assert opened(archive, "b", acquired="2020-01-01")[0].describe() != scene.describe()
    assert opened(archive, "b", bands=("B02",))[0].describe() != scene.describe()


def test_remote_scenes_are_called_by_their_address_without_what_signs_it(tmp_path, monkeypatch):
    import a2mae_hub.stssd.catalogue as catalogue

    scene_at(tmp_path / "x.tif")
    real = catalogue.open_scenes

    def fetched(paths, **facts):
        from dataclasses import replace

        return [replace(scene, source=path) for path in paths for scene in real(tmp_path / "x.tif", **facts)]

    monkeypatch.setattr(catalogue, "open_scenes", fetched)
    for address, name in (
        ("https://me:secret@example.org/s2/x.tif?sig=secret", "example.org/s2/x.tif"),
        ("/vsicurl/https://example.org/s2/x.tif?sig=secret", "example.org/s2/x.tif"),
        ("s3://bucket/s2/x.tif", "bucket/s2/x.tif"),
        ("/vsizip/home/me/archive.zip/x.tif", "x.tif"),
    ):
        assert names(opened(tmp_path / "root", address)) == [name]


# ----------------------------------------------------------------------------------------------------- what scenes are


def test_band_files_of_one_product_are_one_scene(tmp_path):
    for date in ("20170617T113321", "20170717T113321"):
        product = f"S2A_MSIL2A_{date}_36_85"
        band_files(tmp_path / product, f"{product}_", ["B02", "B04", "B08"])
        band_files(tmp_path / product, f"{product}_", ["B05"], pixel=20.0, size=6)
    scenes = opened(tmp_path, ".")
    assert len(scenes) == 2
    assert {tuple(layer.name for layer in scene.scene.layers) for scene in scenes} == {("B02", "B04", "B05", "B08")}
    assert names(scenes)[0] == "S2A_MSIL2A_20170617T113321_36_85/S2A_MSIL2A_20170617T113321_36_85"
    assert names(opened(tmp_path, "*/*_B0[24].tif")) == names(scenes)


def test_the_folders_of_resolution_of_a_sentinel_2_product_are_one_scene_with_its_classification(tmp_path):
    images = tmp_path / "S2A_MSIL2A_20200621T105031_N9999_R051_T31TCG_20200621T120000.SAFE" / "GRANULE" / "L2A" / "IMG"
    tile = "T31TCG_20200621T105031_"
    for resolution, bands in ((10, ("B02", "B03", "TCI")), (20, ("B05", "SCL")), (60, ("B01",))):
        folder = images / f"R{resolution}m"
        folder.mkdir(parents=True)
        for band in bands:
            write_raster(
                folder / f"{tile}{band}_{resolution}m.tif",
                np.full((1, 120 // resolution, 120 // resolution), 5, np.uint8 if band == "SCL" else np.uint16),
                crs=UTM,
                transform=(resolution, 0, WEST, 0, -resolution, NORTH),
            )
    (scene,) = opened(tmp_path, ".")
    assert [layer.name for layer in scene.scene.layers] == ["B01", "B02", "B03", "B05"]
    assert scene.sensor == "sentinel-2-l2a"
    assert scene.acquired == datetime(2020, 6, 21, 10, 50, 31, tzinfo=timezone.utc)
    assert scene.quality_path == str(images / "R20m" / f"{tile}SCL_20m.tif")


def test_bands_of_a_product_that_are_not_optical_are_left_out_of_its_folder(tmp_path):
    product = "LC08_L1TP_218074_20190114_20200829_02_T1"
    band_files(tmp_path / product, f"{product}_", ["B2", "B3", "B4", "B5", "B10", "B11"])
    for path in (product, ".", "LC08*", "LC08*/*.tif", "LC08*/*_B*.tif", "*/*_B?.tif", "**/*"):
        (scene,) = opened(tmp_path, path)
        assert [layer.name for layer in scene.scene.layers] == ["B2", "B3", "B4", "B5"]
    with pytest.raises(ValueError, match="no band 'B10'"):
        opened(tmp_path, f"{product}/{product}_B10.tif")


def test_plain_band_files_in_a_folder_are_one_scene_that_is_called_by_the_folder(tmp_path):
    for folder in ("one", "two"):
        band_files(tmp_path / folder, "", ["B02", "B03"])
    scenes = opened(tmp_path, ".", sensor="sentinel-2-l2a")
    assert names(scenes) == ["one", "two"]
    (scene,) = opened(tmp_path / "one", ".", sensor="sentinel-2-l2a")
    assert scene.name == "B02.tif"


@pytest.mark.parametrize("layer", ["SCL", "QA_PIXEL", "Fmask"])
def test_a_quality_layer_is_attached_and_no_scene(tmp_path, layer):
    scene_at(tmp_path / "s2" / "x.tif")
    scene_at(tmp_path / "s2" / "y.tif")
    quality = tmp_path / "s2" / f"x_{layer}.tif"
    write_raster(quality, np.zeros((20, 20), np.uint8), crs=UTM, transform=(10, 0, WEST, 0, -10, NORTH))
    for path in ("s2", "s2/*.tif", "s2/*"):
        scenes = opened(tmp_path, path)
        assert names(scenes) == ["s2/x.tif", "s2/y.tif"]
        assert [scene.quality_path for scene in scenes] == [str(quality), None]


def test_a_folder_of_masks_alone_holds_no_scene(tmp_path):
    write_raster(tmp_path / "x_SCL.tif", np.zeros((20, 20), np.uint8))
    for path in (".", "*.tif", "x_SCL.tif"):
        with pytest.raises(FileNotFoundError, match="holds no optical raster"):
            opened(tmp_path, path)


def test_what_is_declared_is_what_scenes_say(tmp_path):
    path = tmp_path / "x.tif"
    write_raster(path, np.ones((2, 9, 9), np.uint16), crs=UTM, transform=(10, 0, WEST, 0, -10, NORTH))
    (scene,) = opened(
        tmp_path,
        "x.tif",
        sensor="sentinel-2-l2a",
        bands=("B04", "B08"),
        scale=(1e-4, 2e-4),
        offset=-0.1,
        nodata=0,
        acquired="2021-05-04",
        licence="CC0",
    )
    assert (scene.sensor, scene.licence, scene.cloud_share) == ("sentinel-2-l2a", "CC0", None)
    assert [layer.name for layer in scene.scene.layers] == ["B04", "B08"]
    assert [layer.nodata for layer in scene.scene.layers] == [0, 0]
    assert (scene.scene.scale, scene.scene.offset) == ([1e-4, 2e-4], -0.1)
    assert scene.acquired == datetime(2021, 5, 4, tzinfo=timezone.utc)


def test_a_scene_without_sensor_or_bands_is_named(tmp_path):
    write_raster(tmp_path / "x.tif", np.ones((2, 9, 9), np.uint16))
    with pytest.raises(ValueError, match=r"x\.tif: .*sensor"):
        opened(tmp_path, "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif: .*bands"):
        opened(tmp_path, "x.tif", sensor="sentinel-2-l2a")


@pytest.mark.parametrize(("sensor", "bands"), [("sentinel-2-l2a", ("B04", "B08")), ("landsat-8-sr", ("B4", "B5"))])
def test_numbers_of_8_bits_are_too_small_for_the_scale_that_a_sensor_has_by_default(tmp_path, sensor, bands):
    """Sentinel-2: 255 × 0.0001 is a reflectance of 0.0255."""
    pixels = np.random.default_rng(0).integers(1, 255, (2, 9, 9), np.uint8)
    place = {"crs": UTM, "transform": (10, 0, WEST, 0, -10, NORTH)}
    write_raster(tmp_path / "x.tif", pixels, **place)
    declared = {"sensor": sensor, "bands": bands}
    with pytest.raises(ValueError, match=r"x\.tif: holds numbers of type uint8, .*scale=.* of " + sensor) as raised:
        opened(tmp_path, "x.tif", **declared)
    assert "declare the scale=" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert opened(tmp_path, "x.tif", **declared, scale=0.0008)[0].scene.scale == 0.0008
    write_raster(tmp_path / "x.tif", pixels, **place, scale=0.0008)
    assert opened(tmp_path, "x.tif", **declared)[0].scene.scale == 0.0008
    write_raster(tmp_path / "x.tif", pixels.astype(np.uint16), **place)
    assert opened(tmp_path, "x.tif", **declared)[0].scene.scale is None


def test_digital_numbers_of_8_bits_are_what_aerial_images_hold(tmp_path):
    pixels = np.ones((4, 9, 9), np.uint8)
    write_raster(tmp_path / "x.tif", pixels, crs=UTM, transform=(0.6, 0, WEST, 0, -0.6, NORTH))
    (scene,) = opened(tmp_path, "x.tif", sensor="naip", bands=("red", "green", "blue", "nir"))
    assert scene.sensor == "naip"


def test_a_scene_has_a_footprint_where_it_has_a_georeference(tmp_path):
    scene_at(tmp_path / "placed.tif")
    scene_at(tmp_path / "unplaced.tif", crs=None)
    placed, unplaced = opened(tmp_path, ".")
    assert placed.footprint is not None
    assert placed.footprint.east == pytest.approx(200, rel=1e-3)
    assert unplaced.footprint is None


def test_a_scene_that_lies_nowhere_on_earth_is_named(tmp_path):
    scene_at(tmp_path / "good.tif")
    write_raster(
        tmp_path / "nowhere.tif",
        np.ones((4, 9, 9), np.uint16),
        crs="EPSG:4326",
        transform=(10, 0, 500_000, 0, -10, 4_700_000),
        descriptions=["B02", "B03", "B04", "B08"],
        tags={"sensor": "sentinel-2-l2a"},
    )
    with pytest.raises(ValueError, match=r"nowhere\.tif: its corners are no places on Earth"):
        opened(tmp_path, ".")


# ----------------------------------------------------------------------------------------------------------------- time


def test_files_of_one_folder_have_the_years_in_their_names(tmp_path):
    for year in (2016, 2018, 2020):
        scene_at(tmp_path / "cities" / f"chico_1_{year}.tif", acquired=None)
    scenes = opened(tmp_path, "cities", acquired=r"_(?P<year>\d{4})\.tif$")
    assert [scene.acquired.year for scene in scenes] == [2016, 2018, 2020]
    assert {(scene.acquired.month, scene.acquired.day) for scene in scenes} == {(7, 2)}


def test_a_pattern_looks_below_the_root_and_not_into_the_folders_of_this_machine(tmp_path):
    root = tmp_path / "backup-1999-12" / "data"
    scene_at(root / "2019-09" / "x.tif", acquired=None)
    pattern = r"/(?P<year>\d{4})-(?P<month>\d\d)/"
    (scene,) = opened(root, "2019-09/x.tif", acquired=pattern)
    assert scene.acquired == datetime(2019, 9, 15, tzinfo=timezone.utc)
    (scene,) = opened(root, "2019-09", acquired=r"(?P<year>\d{4})")
    assert scene.acquired.year == 2019


@pytest.mark.parametrize("pattern", [r"/(?P<year>\d{4})-(?P<month>\d\d)/", r"^/.*s2/(?P<year>\d{4})-(?P<month>\d\d)/x"])
@pytest.mark.parametrize("root", [".", "s2", "s2/2019-09", "s2/2019-09/work", "elsewhere/deep"])
def test_a_pattern_finds_the_same_time_in_an_absolute_path_whatever_the_root(tmp_path, root, pattern):
    scene_at(tmp_path / "s2" / "2019-09" / "x.tif", acquired=None)
    (tmp_path / root).mkdir(parents=True, exist_ok=True)
    (scene,) = opened(tmp_path / root, str(tmp_path / "s2" / "2019-09" / "*.tif"), acquired=pattern)
    assert scene.acquired == datetime(2019, 9, 15, tzinfo=timezone.utc)


def test_a_pattern_may_spell_the_folders_above_the_root_but_finds_no_time_in_them(tmp_path):
    root = tmp_path / "1999-12"
    scene_at(root / "2019-09" / "x.tif", acquired=None)
    (scene,) = opened(root, "2019-09/x.tif", acquired=rf"^{tmp_path}/.*/(?P<year>\d{{4}})-(?P<month>\d\d)/")
    assert scene.acquired == datetime(2019, 9, 15, tzinfo=timezone.utc)
    with pytest.raises(ValueError, match=rf"^{root}/2019-09/x\.tif: .*finds no year in the path, .*{root} left out"):
        opened(root, "2019-09/x.tif", acquired=r"/(?P<year>1999)-")


def test_a_path_beside_the_root_begins_with_a_slash_like_any_other(tmp_path):
    scene_at(tmp_path / "2019" / "x.tif", acquired=None)
    (tmp_path / "root").mkdir()
    (scene,) = opened(tmp_path / "root", "../2019/x.tif", acquired=r"^/(?P<year>\d{4})/")
    assert scene.acquired.year == 2019


def test_with_a_pattern_no_other_number_in_a_name_is_a_date(tmp_path):
    scene_at(tmp_path / "site-2020-45-99_y2018.tif", acquired=None)
    (scene,) = opened(tmp_path, ".", acquired=r"_y(?P<year>\d{4})")
    assert scene.acquired.year == 2018
    with pytest.raises(ValueError, match="cannot be"):
        opened(tmp_path, ".")


def test_a_pattern_that_does_not_fit_a_file_names_it(tmp_path):
    scene_at(tmp_path / "a_2018.tif", acquired=None)
    scene_at(tmp_path / "b.tif", acquired=None)
    with pytest.raises(ValueError, match=r"b\.tif: acquired=.* finds no year"):
        opened(tmp_path, ".", acquired=r"_(?P<year>\d{4})")


def test_a_declared_time_wins_over_that_of_the_file(tmp_path):
    scene_at(tmp_path / "x_2018-05-04.tif", acquired="2017-01-01")
    assert opened(tmp_path, ".")[0].acquired.year == 2017
    assert opened(tmp_path, ".", acquired="2020-06-21")[0].acquired.year == 2020
    assert opened(tmp_path, ".", acquired=r"x_(?P<year>\d{4})")[0].acquired.year == 2018


# ----------------------------------------------------------------------------------------------------------------- STAC


def write_item(folder, name, date="2020-06-21T10:50:31Z", **properties):
    """Write a STAC item with a band file for red and one for near infrared beside it."""
    band_files(folder, f"{name}_", ["red", "nir"])
    assets = {
        band: {
            "href": f"{name}_{band}.tif",
            "type": "image/tiff; application=geotiff",
            "roles": ["data"],
            "eo:bands": [{"name": band, "common_name": band}],
        }
        for band in ("red", "nir")
    }
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/eo/v1.1.0/schema.json"],
        "id": name,
        "geometry": None,
        "properties": {"datetime": date, "platform": "sentinel-2a", "eo:cloud_cover": 12.5, **properties},
        "links": [],
        "assets": assets,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(item))
    return path


def from_stac(root, *stac, **facts):
    return open_collection(Collection("one", (Scenes(stac=stac, sensor="sentinel-2-l2a", **facts),)), root)


def test_stac_items_are_scenes_under_their_ids(tmp_path):
    write_item(tmp_path / "items", "S2A_31TCG_20200621_0_L2A")
    write_item(tmp_path / "items", "S2A_31TCG_20200701_0_L2A", "2020-07-01T10:50:31Z")
    scenes = from_stac(tmp_path, "items/*.json", licence="Copernicus")
    assert names(scenes) == ["S2A_31TCG_20200621_0_L2A", "S2A_31TCG_20200701_0_L2A"]
    assert [scene.acquired.month for scene in scenes] == [6, 7]
    assert {scene.licence for scene in scenes} == {"Copernicus"}
    assert {scene.cloud_share for scene in scenes} == {0.125}
    assert {layer.name for layer in scenes[0].scene.layers} == {"B04", "B08"}
    assert names(from_stac(tmp_path, "items/S2A_31TCG_20200621_0_L2A.json")) == names(scenes)[:1]


def test_what_a_recipe_declares_wins_over_a_stac_item(tmp_path):
    write_item(tmp_path / "items [1]", "scene_2018")
    (scene,) = from_stac(tmp_path, "items [1]/scene_2018.json", acquired="2021-05-04", scale=0.5, nodata=7)
    assert (scene.acquired.year, scene.scene.scale, scene.scene.layers[0].nodata) == (2021, 0.5, 7)
    (scene,) = from_stac(tmp_path, "*/*.json", acquired=r"scene_(?P<year>\d{4})")
    assert scene.acquired.year == 2018


def test_a_missing_stac_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"items/\*\.json: no such STAC file"):
        from_stac(tmp_path, "items/*.json")


# ---------------------------------------------------------------------------------------------------------------- index


def test_the_index_gives_the_scenes_that_a_footprint_lies_on_as_a_whole(tmp_path):
    for name, shift in (("west", 0), ("west_again", 0), ("east", 500)):
        write_scene(tmp_path / f"{name}.tif", corner=(WEST + shift, NORTH), shape=(100, 100))
    write_scene(tmp_path / "unplaced.tif", crs=None, shape=(100, 100))
    scenes = opened(tmp_path, ".")
    assert names(scenes) == ["east.tif", "unplaced.tif", "west.tif", "west_again.tif"]
    index = SceneIndex(scenes)
    assert len(index.grids) == len(index.shapes) == len(index.footprints) == 2
    longitude, latitude = shapely.union_all(index.shapes).centroid.coords[0]
    degree = 111_320 * np.cos(np.radians(latitude))
    at = [Footprint(longitude + shift / degree, latitude, 400, 400) for shift in (0, -500, 500, 5_000, -700)]
    assert index.below(at) == [(0, 2, 3), (2, 3), (0,), (), ()]
    assert index.below([]) == []
    assert SceneIndex([scenes[1]]).below(at) == [()] * 5
