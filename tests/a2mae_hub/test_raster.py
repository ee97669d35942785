"""Rasters in and out, on the real scenes and on small files with known faults."""

import os
import shutil
import warnings
from datetime import datetime, timezone

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
import rasterio.warp
import rasterio.windows
from rasterio.enums import ColorInterp, Resampling
from rasterio.shutil import copy as gdal_copy
from scipy.ndimage import map_coordinates

from a2mae_hub.raster import read_image, read_image_set, write_raster

SENTINEL_2 = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
UTM_31 = "EPSG:32631"


def read_directly(path, window=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path) as dataset:
            return dataset.read(window=window)


def write_scene(path, pixels, *, west=500_000.0, north=4_690_000.0, size=10.0, crs=UTM_31, **arguments):
    """Write a small scene near 3° east, 42.36° north, and return its path as text."""
    write_raster(path, pixels, crs=crs, transform=(size, 0, west, 0, -size, north), **arguments)
    return str(path)


@pytest.fixture
def scenes(shared):
    return shared / "data" / "scenes"


# Real scenes


def test_eight_dates_without_band_names_are_read_as_declared(scenes):
    folder = scenes / "boadella_sentinel2"
    images = read_image_set(folder, sensor="sentinel-2-l2a", bands=SENTINEL_2, name="Boadella")
    assert [image.acquired.date().isoformat() for image in images] == [
        "2020-01-23", "2020-02-02", "2020-06-21", "2020-09-14", "2021-06-26", "2021-07-21", "2022-03-08", "2022-06-01",
    ]  # fmt: skip
    assert all(image.acquired.tzinfo is timezone.utc for image in images)
    assert {image.pixels.shape for image in images} == {(12, 377, 380)}
    assert {(image.crs, image.nodata, image.scale, image.offset, image.gsd) for image in images} == {
        ("EPSG:4326", None, None, None, None)
    }
    assert np.array_equal(images[2].pixels, read_directly(folder / "Boadella_2020-06-21.tif"))
    with rasterio.open(folder / "Boadella_2020-06-21.tif") as dataset:
        assert images[2].transform == tuple(dataset.transform)[:6]


def test_a_landsat_pair_takes_dates_and_calibration_from_its_metadata_and_is_cropped_to_common_ground(scenes):
    folders = sorted((scenes / "landsat8_pair").iterdir())
    before, after = read_image_set(folders)
    assert before.sensor == after.sensor == "landsat-8-sr"
    assert before.bands == after.bands == ("B2", "B3", "B4", "B5", "B6", "B7")
    assert before.acquired == datetime(2019, 1, 14, 12, 57, 13, 180496, tzinfo=timezone.utc)
    assert after.acquired.date().isoformat() == "2019-01-30"
    assert (before.scale, before.offset, before.nodata) == (2.75e-05, -0.2, 0)
    # The second scene lies 900 m, 30 pixels, further east.
    assert before.pixels.shape == after.pixels.shape == (6, 300, 370)
    assert before.transform == after.transform == (30, 0, 584_385, 0, -30, -2_222_685)
    files = [sorted(folder.glob("*_SR_B4.TIF"))[0] for folder in folders]
    assert np.array_equal(before.pixels[2], read_directly(files[0])[0, :, 30:])
    assert np.array_equal(after.pixels[2], read_directly(files[1])[0, :, :370])


def test_loose_band_files_of_one_landsat_product_find_its_metadata_and_keep_the_bands_asked_for(scenes):
    files = sorted(next((scenes / "landsat8_pair").iterdir()).glob("*_B[45].TIF"))
    image = read_image([str(file) for file in files], bands=["nir08", "red"])
    assert image.bands == ("B5", "B4")
    assert image.scale == 2.75e-05
    assert np.array_equal(image.pixels, np.concatenate([read_directly(files[1]), read_directly(files[0])]))


def test_bands_at_10_20_and_60_metres_come_onto_the_finest_grid(scenes):
    folder = scenes / "bigearthnet_native" / "S2B_MSIL2A_20170924T93021_41_29"
    image = read_image(folder)
    assert image.sensor == "sentinel-2-l2a"
    assert image.acquired == datetime(2017, 9, 24, 9, 30, 21, tzinfo=timezone.utc)
    assert image.bands == tuple(SENTINEL_2)
    assert image.pixels.shape == (12, 120, 120) and image.pixels.dtype == np.uint16
    assert image.transform == (10, 0, 649_200, 0, -10, 6_965_220)
    for name, factor in (("B02", 1), ("B11", 2), ("B09", 6)):
        native = read_directly(folder / f"{folder.name}_{name}.tif")[0].astype(float)
        centres = (np.arange(120) + 0.5) / factor - 0.5
        expected = map_coordinates(native, np.meshgrid(centres, centres, indexing="ij"), order=1, mode="nearest")
        assert np.abs(image.pixels[image.bands.index(name)] - expected).max() <= 0.5 + 1e-6


def test_a_window_of_coarse_bands_equals_the_same_part_of_the_whole(scenes):
    folder = scenes / "bigearthnet_native" / "S2B_MSIL2A_20170924T93021_41_29"
    whole = read_image(folder)
    to_degrees = pyproj.Transformer.from_crs(whole.crs, 4326, always_xy=True)
    west, north = to_degrees.transform(649_200 + 333, 6_965_220 - 444)
    east, south = to_degrees.transform(649_200 + 777, 6_965_220 - 999)
    part = read_image(folder, bounds=(west, south, east, north))
    column, row = round((part.transform[2] - 649_200) / 10), round((6_965_220 - part.transform[5]) / 10)
    height, width = part.pixels.shape[1:]
    assert 30 <= column <= 33 and 40 <= row <= 44 and column + width >= 78 and row + height >= 100
    assert np.array_equal(part.pixels, whole.pixels[:, row : row + height, column : column + width])


def test_every_bigearthnet_patch_is_read_and_says_when_it_was_taken(scenes):
    folders = sorted((scenes / "bigearthnet_native").glob("S2*"))
    assert len(folders) == 11
    for folder in folders:
        image = read_image(folder)
        day = folder.name.split("_")[2][:8]
        assert image.pixels.shape == (12, 120, 120) and f"{image.acquired:%Y%m%d}" == day


def test_radar_is_refused_by_name(scenes):
    folders = sorted((scenes / "bigearthnet_native").glob("S1*"))
    assert len(folders) == 3
    for folder in folders:
        with pytest.raises(ValueError, match=r"S1A_IW.*V[HV]\.tif: radar is not supported"):
            read_image(folder)


def test_a_cloud_optimised_geotiff_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 4000, (2, 600, 600), dtype=np.uint16)
    local = write_scene(tmp_path / "S2A_MSIL2A_20230705T103031.tif", pixels, descriptions=["B04", "B08"])
    cog = tmp_path / "cog" / "S2A_MSIL2A_20230705T103031.tif"
    cog.parent.mkdir()
    with rasterio.open(local) as dataset:
        rasterio.shutil.copy(dataset, cog, driver="COG", blocksize=128)
    image = read_image(cog)
    assert image.sensor == "sentinel-2-l2a" and image.bands == ("B04", "B08")
    assert np.array_equal(image.pixels, pixels)


def test_aerial_photographs_need_no_declaration_and_keep_their_pixels_when_they_agree_within_one(scenes):
    images = read_image_set(scenes / "naip_5m")
    assert [image.acquired.date().isoformat() for image in images] == ["2009-08-18", "2015-09-26", "2020-08-31"]
    assert {image.bands for image in images} == {("red", "green", "blue", "nir")}
    assert {(image.sensor, image.crs, image.nodata) for image in images} == {("naip", "EPSG:26914", 0)}
    assert images[0].valid is None
    # The scenes differ by 2 m and a row of 5 m, so they stay whole.
    assert [image.pixels.shape[1:] for image in images] == [(724, 934), (723, 934), (723, 934)]
    # Vegetation in August: near infrared is the fourth band.
    assert np.median(images[0].pixels[3]) > np.median(images[0].pixels[2])


def test_near_infrared_marked_as_transparency_is_read_as_near_infrared(shared):
    path = shared / "data" / "naip_two_dates" / "chico_10_2018.tif"
    with rasterio.open(path) as dataset:
        assert dataset.colorinterp[3] is ColorInterp.alpha
    image = read_image(path)
    assert image.bands == ("red", "green", "blue", "nir") and image.valid is None
    assert np.array_equal(image.pixels, read_directly(path))


@pytest.mark.parametrize(
    ("name", "sensor", "scale", "gsd"),
    [
        ("sentinel2_chips/test_1001.tif", "sentinel-2-l2a", 0.0008, 10.0),
        ("hls_water/image_001.tif", "hls", 0.0001, 30.0),
        ("eurosat_multispectral/AnnualCrop/AnnualCrop_1.tif", "sentinel-2-l1c", 0.0001, None),
    ],
)
def test_tags_descriptions_and_scale_of_a_file_are_used(shared, name, sensor, scale, gsd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(shared / "data" / name)
    assert (image.sensor, image.scale, image.offset, image.gsd) == (sensor, scale, 0, gsd)
    assert (image.crs is None) == (image.transform is None) == (gsd is not None)
    assert np.array_equal(image.pixels, read_directly(shared / "data" / name))


def test_a_window_by_bounds_equals_the_same_pixels_of_a_direct_read(scenes):
    path = scenes / "boadella_sentinel2" / "Boadella_2020-06-21.tif"
    bounds = (2.80, 42.34, 2.81, 42.35)
    image = read_image(path, sensor="sentinel-2-l2a", bands=SENTINEL_2, bounds=bounds)
    with rasterio.open(path) as dataset:
        exact = rasterio.windows.from_bounds(*bounds, dataset.transform)
        left, top = int(np.floor(exact.col_off)), int(np.floor(exact.row_off))
        right, bottom = int(np.ceil(exact.col_off + exact.width)), int(np.ceil(exact.row_off + exact.height))
        window = rasterio.windows.Window(left, top, right - left, bottom - top)
        assert np.array_equal(image.pixels, dataset.read(window=window))
        assert image.transform == pytest.approx(tuple(dataset.window_transform(window))[:6], abs=1e-12)


def test_a_window_reaching_beyond_the_scene_is_clipped_to_it(scenes):
    path = scenes / "naip_5m" / "m_4709963_se_14_1_20150926.tif"
    assert np.array_equal(read_image(path, bounds=(-180, -90, 180, 90)).pixels, read_directly(path))


def test_a_virtual_raster_reads_as_its_source(scenes, tmp_path):
    source = scenes / "boadella_sentinel2" / "Boadella_2020-06-21.tif"
    gdal_copy(str(source), str(tmp_path / "Boadella_2020-06-21.vrt"), driver="VRT")
    image = read_image(tmp_path / "Boadella_2020-06-21.vrt", sensor="sentinel-2-l2a", bands=SENTINEL_2)
    assert np.array_equal(image.pixels, read_directly(source))
    assert image.acquired.date().isoformat() == "2020-06-21"


def test_a_scene_inside_a_zip_archive_is_read_through_gdal(scenes, tmp_path):
    folder = scenes / "bigearthnet_native" / "S2B_MSIL2A_20170924T93021_41_29"
    archive = shutil.make_archive(str(tmp_path / "patch"), "zip", folder)
    paths = [f"/vsizip/{archive}/{folder.name}_{band}.tif" for band in ("B02", "B03")]
    assert np.array_equal(read_image(paths).pixels, read_image(folder, bands=["B02", "B03"]).pixels)


def test_images_in_different_coordinate_systems_are_cropped_to_the_same_ground(scenes, tmp_path):
    source = scenes / "boadella_sentinel2" / "Boadella_2020-06-21.tif"
    with rasterio.open(source) as dataset:
        window = rasterio.windows.Window(100, 80, 400, 400)  # reaches beyond the scene in the east and south
        pixels = dataset.read(window=window)
        transform = dataset.window_transform(window)
        to_utm, width, height = rasterio.warp.calculate_default_transform(
            dataset.crs, UTM_31, pixels.shape[2], pixels.shape[1],
            *rasterio.transform.array_bounds(pixels.shape[1], pixels.shape[2], transform), resolution=20,
        )  # fmt: skip
        warped = np.zeros((12, height, width), np.int16)
        rasterio.warp.reproject(
            pixels, warped, src_transform=transform, src_crs=dataset.crs, dst_transform=to_utm, dst_crs=UTM_31,
            resampling=Resampling.nearest,
        )  # fmt: skip
    other = tmp_path / "utm_2020-06-21.tif"
    write_raster(other, warped, crs=UTM_31, transform=to_utm, nodata=0)
    images = read_image_set([source, other], sensor="sentinel-2-l2a", bands=SENTINEL_2)
    assert [image.crs for image in images] == ["EPSG:4326", UTM_31]
    boxes = []
    for image in images:
        a, _, c, _, e, f = image.transform
        height, width = image.pixels.shape[1:]
        corners = [(c + a * x, f + e * y) for x in (0, width) for y in (0, height)]
        lon, lat = pyproj.Transformer.from_crs(image.crs, 4326, always_xy=True).transform(*zip(*corners, strict=True))
        boxes.append((min(lon), min(lat), max(lon), max(lat)))
    # 20 m in degrees here; the box in UTM may stick out by the tilt of its axes against north.
    assert np.abs(np.subtract(*boxes)).max() < 3 * 20 / 82_000
    # The same pixel of ground in both, away from the resampled edges: nearest neighbours agree where read back.
    column, row = 120, 150
    lon, lat = (
        images[0].transform[2] + images[0].transform[0] * column,
        images[0].transform[5] + images[0].transform[4] * row,
    )
    x, y = pyproj.Transformer.from_crs(4326, UTM_31, always_xy=True).transform(lon, lat)
    column_2, row_2 = (x - images[1].transform[2]) / 20, (images[1].transform[5] - y) / 20
    nearby = images[0].pixels[7, row - 3 : row + 3, column - 3 : column + 3]
    assert images[1].pixels[7, int(row_2), int(column_2)] in nearby


# Made scenes


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_what_is_written_is_read_back(tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(1, 200, (3, 70, 530)).astype(dtype)
    path = write_scene(
        tmp_path / "a.tif", pixels, descriptions=["blue", "red", "B08"], nodata=0, scale=0.0002, offset=[0.1, 0.2, 0.3],
        tags={"sensor": "sentinel-2-l1c", "acquired": "2020-06-21T10:50:31Z"},
    )  # fmt: skip
    image = read_image(path)
    assert image.pixels.dtype == dtype and np.array_equal(image.pixels, pixels)
    assert (image.sensor, image.bands, image.nodata) == ("sentinel-2-l1c", ("B02", "B04", "B08"), 0)
    assert image.scale == 0.0002 and image.offset == pytest.approx([0.1, 0.2, 0.3])
    assert image.acquired == datetime(2020, 6, 21, 10, 50, 31, tzinfo=timezone.utc)
    assert (image.crs, image.transform) == (UTM_31, (10, 0, 500_000, 0, -10, 4_690_000))
    assert image.source == path


def test_pixels_of_an_image_are_written_onto_its_grid(tmp_path):
    image = read_image(write_scene(tmp_path / "m_4709963_se_14_1_20150926.tif", np.ones((4, 30, 40), np.uint8)))
    write_raster(tmp_path / "like.tif", np.ones((30, 40), bool), like=image)
    with rasterio.open(tmp_path / "like.tif") as dataset:
        assert dataset.crs == rasterio.CRS.from_epsg(32631) and tuple(dataset.transform)[:6] == image.transform
        assert dataset.dtypes == ("uint8",)
    with pytest.raises(ValueError, match=r"like\.tif: \(15, 20\) pixels do not lie on the grid"):
        write_raster(tmp_path / "like.tif", np.ones((15, 20)), like=image)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_scene(tmp_path / "a.tif", np.full((1, 8, 8), 7, np.uint8))
    with pytest.raises(ValueError, match=r"a\.tif"):
        write_scene(path, np.zeros((1, 8, 8), np.uint8), nodata=-5)
    assert os.listdir(tmp_path) == ["a.tif"]
    assert read_directly(path).max() == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pixels": np.zeros(4)}, "no image"),
        ({"pixels": np.zeros((2, 4, 4)), "descriptions": ["red"]}, "1 descriptions for 2 bands"),
        ({"pixels": np.zeros((2, 4, 4)), "crs": "nowhere"}, "could not be written"),
        ({"pixels": np.zeros((2, 4, 4)), "scale": [1.0, 2.0, 3.0]}, "scale= has 3 numbers for 2 bands"),
    ],
)
def test_what_cannot_be_written_is_said(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=rf"a\.tif: .*{message}"):
        write_raster(tmp_path / "a.tif", **arguments)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_to_write_to_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="create it first"):
        write_raster(tmp_path / "nowhere" / "a.tif", np.zeros((1, 4, 4)))


def test_four_bytes_are_not_written_as_colours_with_transparency(tmp_path):
    write_scene(tmp_path / "a.tif", np.zeros((4, 8, 8), np.uint8))
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert ColorInterp.alpha not in dataset.colorinterp


@pytest.mark.parametrize("kind", ["alpha", "mask"])
def test_transparency_and_mask_bands_say_which_pixels_are_real(tmp_path, kind):
    real = np.arange(48).reshape(6, 8) % 5 > 0
    profile = {"driver": "GTiff", "height": 6, "width": 8, "dtype": "uint8", "crs": UTM_31,
               "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4.69e6)}  # fmt: skip
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        with rasterio.open(tmp_path / "a.tif", "w", count=3 + (kind == "alpha"), **profile) as dataset:
            dataset.write(np.full((3, 6, 8), 9, np.uint8), [1, 2, 3])
            if kind == "alpha":
                dataset.write(real.astype(np.uint8) * 255, 4)
                dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
            else:
                dataset.write_mask(real)
    image = read_image(tmp_path / "a.tif", sensor="sentinel-2-l2a", bands=["red", "green", "blue"])
    assert image.pixels.shape == (3, 6, 8) and image.bands == ("B04", "B03", "B02")
    assert np.array_equal(image.valid, real)


def test_no_data_of_a_coarse_band_neither_spreads_nor_shrinks(tmp_path):
    fine = np.full((1, 12, 12), 100, np.uint16)
    coarse = np.full((1, 4, 4), 100, np.uint16)
    coarse[0, 1, 2] = 0
    for name, pixels, size in (("x_B02", fine, 10.0), ("x_B01", coarse, 30.0)):
        write_scene(tmp_path / f"{name}.tif", pixels, size=size, nodata=0)
    image = read_image(tmp_path, sensor="sentinel-2-l2a")
    assert image.bands == ("B01", "B02") and image.nodata == 0
    expected = np.full((12, 12), 100)
    expected[3:6, 6:9] = 0  # the nearest coarse pixel decides, and its neighbours stay what they are
    assert np.array_equal(image.pixels[0], expected)


def test_bands_with_different_no_data_numbers_get_a_mask(tmp_path):
    for name, nodata in (("x_B02", 0), ("x_B03", 7)):
        write_scene(tmp_path / f"{name}.tif", np.arange(16, dtype=np.uint16).reshape(1, 4, 4), nodata=nodata)
    image = read_image(tmp_path, sensor="sentinel-2-l2a")
    assert image.nodata is None
    assert [np.flatnonzero(~band.ravel()).tolist() for band in image.valid] == [[0], [7]]
    declared = read_image(tmp_path, sensor="sentinel-2-l2a", nodata=5)
    assert declared.nodata == 5 and declared.valid is None


def test_what_is_declared_wins_over_what_the_file_says(tmp_path):
    path = write_scene(
        tmp_path / "S2A_MSIL2A_20170617T113321.tif", np.ones((2, 8, 8), np.uint16), scale=0.5, nodata=3,
        descriptions=["Band 1", "Band 2"], tags={"sensor": "naip"},
    )  # fmt: skip
    image = read_image(
        path, sensor="landsat-8-toa", bands=["B4", "B5"], acquired="2001-02-03", scale=[2, 4], offset=1, nodata=9
    )
    assert (image.sensor, image.bands) == ("landsat-8-toa", ("B4", "B5"))
    assert (image.scale, image.offset, image.nodata) == ([2, 4], 1, 9)
    assert image.acquired == datetime(2001, 2, 3, tzinfo=timezone.utc)


def test_bands_asked_of_a_file_that_names_them_are_read_in_the_order_asked(tmp_path):
    pixels = np.stack([np.full((8, 8), value, np.uint8) for value in (1, 2, 3, 4)])
    named = write_scene(
        tmp_path / "a.tif", pixels, descriptions=["red", "green", "blue", "nir"], tags={"sensor": "naip"}
    )
    assert read_image(named, bands=["nir", "red"]).pixels[:, 0, 0].tolist() == [4, 1]
    assert read_image(named, bands=["blue", "green", "red", "nir"]).pixels[:, 0, 0].tolist() == [3, 2, 1, 4]
    fixed_order = write_scene(tmp_path / "m_4709963_se_14_1_20150926.tif", pixels)
    assert read_image(fixed_order, bands=["nir"]).pixels[:, 0, 0].tolist() == [4]


def test_files_that_name_no_band_are_stacked_as_declared(tmp_path):
    paths = [write_scene(tmp_path / f"{n}.tif", np.full((1, 8, 8), n, np.uint8)) for n in (5, 3)]
    image = read_image(paths, sensor="naip", bands=["nir", "red"])
    assert image.bands == ("nir", "red") and image.pixels[:, 0, 0].tolist() == [5, 3]


def test_equal_names_in_folders_of_different_dates_are_different_images(tmp_path):
    for day in ("2020-01-01", "2020-07-01"):
        (tmp_path / day).mkdir()
        for band in ("red", "nir"):
            write_scene(tmp_path / day / f"field_{band}.tif", np.ones((1, 8, 8), np.uint8))
    images = read_image_set([tmp_path / "2020-01-01", tmp_path / "2020-07-01"], sensor="naip")
    assert [image.acquired.month for image in images] == [1, 7]
    assert [image.bands for image in images] == [("red", "nir")] * 2


def test_of_a_band_delivered_at_several_resolutions_the_finest_is_read(tmp_path):
    for resolution, pixels in ((10, 12), (20, 6)):
        folder = tmp_path / f"R{resolution}m"
        folder.mkdir()
        for band in ("B02", "B05")[resolution == 10 : 2] if resolution == 20 else ("B02",):
            name = f"T31TCJ_20200621T105031_{band}_{resolution}m.tif"
            write_scene(folder / name, np.full((1, pixels, pixels), resolution, np.uint16), size=float(resolution))
    image = read_image([tmp_path / "R10m", tmp_path / "R20m"])
    assert image.sensor == "sentinel-2-l2a" and image.bands == ("B02", "B05")
    assert image.pixels[:, 0, 0].tolist() == [10, 20]


def test_layers_of_a_product_folder_that_are_no_optical_bands_are_left_out(tmp_path):
    product = "LC09_L1TP_218074_20220114_20220115_02_T1"
    for layer in ("B4", "B10", "QA_PIXEL", "SZA"):
        write_scene(tmp_path / f"{product}_{layer}.TIF", np.ones((1, 8, 8), np.uint16))
    image = read_image(tmp_path)
    assert (image.sensor, image.bands) == ("landsat-9-toa", ("B4",))
    with pytest.raises(ValueError, match=r"B10.*Sensor 'landsat-9-toa' has no band 'B10'"):
        read_image(tmp_path / f"{product}_B10.TIF")
    with pytest.raises(ValueError, match=r"QA_PIXEL\.TIF: this is a mask"):
        read_image(tmp_path / f"{product}_QA_PIXEL.TIF")


def test_files_without_georeference_are_read_quietly_and_never_cropped(tmp_path):
    small, large = tmp_path / "a.tif", tmp_path / "b.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_raster(small, np.ones((4, 8, 8), np.uint8))
        write_raster(large, np.ones((4, 16, 8), np.uint8))
        images = read_image_set([small, large], sensor="naip")
    assert [image.pixels.shape[1:] for image in images] == [(8, 8), (16, 8)]
    assert {(image.crs, image.transform, image.gsd) for image in images} == {(None, None, 0.6)}
    with pytest.raises(ValueError, match=r"a\.tif: the image is not georeferenced"):
        read_image(small, sensor="naip", bounds=(0, 0, 1, 1))


def test_images_across_the_antimeridian_share_ground_and_are_found_by_bounds(tmp_path):
    pixels = np.arange(400, dtype=np.uint16).reshape(1, 20, 20)
    arguments = {"sensor": "sentinel-2-l2a", "bands": ["B04"]}
    for name, west, crs in (("a", 179.99, "EPSG:4326"), ("b", -180.01, "EPSG:4326")):
        write_raster(tmp_path / f"{name}.tif", pixels, crs=crs, transform=(0.001, 0, west, 0, -0.001, 10))
    one, other = read_image_set([tmp_path / "a.tif", tmp_path / "b.tif"], **arguments)
    assert np.array_equal(one.pixels, other.pixels)
    window = read_image(tmp_path / "a.tif", bounds=(179.995, 9.99, -179.995, 10), **arguments)
    assert np.array_equal(window.pixels, pixels[:, :10, 5:15])


# Faults


def test_a_file_cut_short_is_named_with_band_and_window(scenes, tmp_path):
    # A cloud-optimised GeoTIFF starts with its header, so it opens although its pixels are gone.
    source = scenes / "boadella_sentinel2" / "Boadella_2020-06-21.tif"
    cut = tmp_path / "Boadella_2020-06-21.tif"
    gdal_copy(str(source), str(cut), driver="COG")
    os.truncate(cut, cut.stat().st_size // 2)
    with pytest.raises(
        ValueError,
        match=r"Boadella_2020-06-21\.tif: band B01, .* cannot be read in columns 0 to 379, rows 0 to 376 .*cut short",
    ):
        read_image(cut, sensor="sentinel-2-l2a", bands=SENTINEL_2)
    whole = cut.with_name("whole_2020-06-21.tif")
    whole.write_bytes(source.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"whole_2020-06-21\.tif: not a raster that GDAL can open, or a damaged one"):
        read_image(whole, sensor="sentinel-2-l2a", bands=SENTINEL_2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"a\.tif: neither name nor tags tell the sensor; pass sensor="),
        ({"sensor": "sentinel-2-l2a"}, r"a\.tif: 2 bands without names; pass bands= in file order, for example"),
        ({"sensor": "sentinel-3", "bands": ["B04", "B08"]}, r"a\.tif: .*sentinel-3"),
        ({"sensor": "naip", "bands": ["red", "B99"]}, r"a\.tif: .*'B99'"),
        ({"sensor": "naip", "bands": ["red"]}, r"a\.tif: bands= names 1 bands \(red\), but the image has 2"),
        ({"sensor": "naip", "bands": ["red", "red"]}, r"a\.tif: .*only once"),
        ({"sensor": "naip", "bands": "red"}, r"a\.tif: bands='red' is one text; pass a list"),
        ({"sensor": "naip", "bands": ["red", "nir"], "scale": [1, 2, 3]}, r"a\.tif: scale= has 3 numbers for 2 bands"),
        ({"sensor": "naip", "bands": ["red", "nir"], "acquired": "June"}, r"a\.tif: 'June' is no moment"),
        ({"sensor": "naip", "bands": ["red", "nir"], "bounds": (10, 50, 11, 51)}, r"a\.tif: the bounds.*covers west"),
        ({"sensor": "naip", "bands": ["red", "nir"], "bounds": (3, 43, 4, 42)}, r"a\.tif: bounds=.*no box on Earth"),
        ({"sensor": "naip", "bands": ["red", "nir"], "bounds": (3, 42, 4)}, r"a\.tif: bounds=.*no box"),
    ],
)  # fmt: skip
def test_what_cannot_be_known_or_does_not_fit_is_said_in_one_sentence_with_the_file(tmp_path, arguments, message):
    path = write_scene(tmp_path / "a.tif", np.ones((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=message) as caught:
        read_image_set(path, **arguments)
    assert "\n" not in str(caught.value)


def test_paths_that_lead_nowhere_are_named(tmp_path):
    with pytest.raises(ValueError, match="No paths"):
        read_image_set([])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tif: no such file"):
        read_image_set([tmp_path / "nowhere.tif"])
    with pytest.raises(FileNotFoundError, match="the folder holds no raster"):
        read_image_set(tmp_path)
    (tmp_path / "notes.tif").write_text("not a raster")
    with pytest.raises(ValueError, match=r"notes\.tif: not a raster that GDAL can open"):
        read_image_set(tmp_path)


def test_images_of_different_places_are_both_named(tmp_path):
    near = write_scene(tmp_path / "near.tif", np.ones((4, 8, 8), np.uint8))
    far = write_scene(tmp_path / "far.tif", np.ones((4, 8, 8), np.uint8), west=500_080.0)  # touches, shares nothing
    with pytest.raises(ValueError, match=r"near\.tif and .*far\.tif do not overlap"):
        read_image_set([near, far], sensor="naip")


def test_bands_of_different_extent_are_no_image(tmp_path):
    write_scene(tmp_path / "x_red.tif", np.ones((1, 8, 8), np.uint8))
    write_scene(tmp_path / "x_nir.tif", np.ones((1, 8, 8), np.uint8), west=500_030.0)
    with pytest.raises(ValueError, match=r"x_(red|nir)\.tif: its extent"):
        read_image(tmp_path, sensor="naip")


def test_declarations_are_counted_against_the_images(tmp_path):
    paths = [write_scene(tmp_path / f"{n}.tif", np.ones((4, 8, 8), np.uint8)) for n in range(2)]
    with pytest.raises(ValueError, match="acquired= lists 3 entries for 2 images"):
        read_image_set(paths, sensor="naip", acquired=["2020-01-01"] * 3)
    with pytest.raises(ValueError, match="anchor=2 is no image of the set"):
        read_image_set(paths, sensor="naip", anchor=2)
    with pytest.raises(ValueError, match=r"1\.tif: a second image beside .*0\.tif"):
        read_image(paths, sensor="naip")
    images = read_image_set(
        paths,
        sensor=["naip", "gaofen-1"],
        bands=[None, ["B1", "B2", "B3", "B4"]],
        acquired=["2020-01-01", None],
        anchor=1,
    )
    assert [image.sensor for image in images] == ["naip", "gaofen-1"] and images.anchor == 1
    assert images[0].acquired.year == 2020 and images[1].acquired is None


def test_declared_bands_of_several_files_keep_the_order_of_the_files_where_one_of_them_tells_no_band(tmp_path):
    paths = []
    for number, name in enumerate(("B02", "middle", "B04"), start=2):
        paths.append(tmp_path / f"{name}.tif")
        write_raster(paths[-1], np.full((1, 4, 4), number * 100, np.uint16))
    image = read_image(paths, sensor="sentinel-2-l2a", bands=["B02", "B03", "B04"])
    assert image.pixels[:, 0, 0].tolist() == [200, 300, 400]
