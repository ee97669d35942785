"""The processor against hand-made patches, pyproj, and real scenes."""

import re
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pyproj
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.images import Image, ImageSet
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.sensors_a2mae import SENSORS, Band, Sensor

GEOD = pyproj.Geod(ellps="WGS84")
L2A = SENSORS["sentinel-2-l2a"]
L2A_BANDS = [band.name for band in L2A.bands]
RGB = ["B04", "B03", "B02"]
KEYS = {
    "pixel_values",
    "attention_mask",
    "image_ids",
    "patch_positions",
    "band_wavelengths",
    "band_widths",
    "ground_resolutions",
    "acquisition_times",
    "source_ids",
    "geographic_codes",
    "anchor_ids",
    "grid_shapes",
}


def stored(count=3, height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(300, 4000, (count, height, width), dtype=np.uint16)


def scene(**changes):
    return {"pixels": stored(), "sensor": "sentinel-2-l2a", "bands": RGB} | changes


def standardised(pixels, bands=RGB, scale=1e-4, offset=0.0):
    """The definition, in float64."""
    found = [L2A.find(band) for band in bands]
    mean, std = (np.array([getattr(band, name) for band in found])[:, None, None] for name in ("mean", "std"))
    return (np.asarray(pixels, np.float64) * scale + offset - mean) / std


def fold(tokens, rows, columns, patch):
    """Put (tokens, bands, P·P) together, one patch after the other."""
    image = np.zeros((tokens.shape[1], rows * patch, columns * patch), tokens.dtype)
    for index, token in enumerate(tokens):
        row, column = divmod(index, columns)
        square = token.reshape(-1, patch, patch)
        image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = square
    return image


def outputs(batch, mask=None, tokens=None, logits=None):
    """What the model would return if it predicted the input itself for `tokens` (all by default)."""
    values = np.asarray(batch["pixel_values"])
    tokens = np.tile(np.arange(values.shape[1]), (len(values), 1)) if tokens is None else np.asarray(tokens)
    own = np.take_along_axis(values, np.maximum(tokens, 0)[:, :, None, None], 1)
    return SimpleNamespace(
        logits=torch.from_numpy(own if logits is None else logits),
        token_ids=torch.from_numpy(tokens),
        mask=torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask,
    )


def at(transform, column, row):
    """CRS coordinates of a place on the pixel grid."""
    a, b, c, d, e, f = transform[:6]
    return a * column + b * row + c, d * column + e * row + f


# ----------------------------------------------------------------------------------------------------------- the batch


def test_the_batch_has_exactly_the_keys_and_types_that_models_consume():
    sets = [[scene(acquired="2020-05-01", crs="EPSG:32631", transform=(10, 0, 5e5, 0, -10, 4.7e6))], [scene(), scene()]]
    batch = A2MAEImageProcessor()(sets)
    expected = {
        "pixel_values": ((2, 8, 3, 256), np.float32),
        "attention_mask": ((2, 8), np.bool_),
        "image_ids": ((2, 8), np.int64),
        "patch_positions": ((2, 8, 2), np.float32),
        "band_wavelengths": ((2, 2, 3), np.float32),
        "band_widths": ((2, 2, 3), np.float32),
        "ground_resolutions": ((2, 2), np.float32),
        "acquisition_times": ((2, 2), np.int64),
        "source_ids": ((2, 2), np.int64),
        "geographic_codes": ((2, 8), np.int64),
        "anchor_ids": ((2,), np.int64),
        "grid_shapes": ((2, 2, 2), np.int64),
    }
    assert {key: (value.shape, value.dtype.type) for key, value in batch.items()} == expected
    tensors = A2MAEImageProcessor()(sets, return_tensors="pt")
    for key, value in tensors.items():
        assert isinstance(value, torch.Tensor)
        np.testing.assert_array_equal(value.numpy(), batch[key])
    assert set(A2MAEImageProcessor.model_input_names) == KEYS | {"pixel_mask"}


def test_every_form_of_a_set_gives_the_same_batch():
    pixels, common = stored(), {"sensor": "sentinel-2-l2a", "bands": RGB}
    processor = A2MAEImageProcessor()
    expected = processor([{"images": [scene(pixels=pixels)]}])
    forms = [
        (pixels, common),
        (torch.from_numpy(pixels.astype(np.int32)), common),
        (pixels[None], common),
        ([pixels], common),
        ([[pixels]], common),
        (np.ma.masked_array(pixels), common),
        ({"pixels": pixels}, common),
        (Image(pixels, RGB, "sentinel-2-l2a"), {}),
        ([Image(pixels, ["red", "Green", "b2"], "sentinel-2-l2a")], {}),
        (ImageSet([Image(pixels, RGB, "sentinel-2-l2a")]), {}),
        ([ImageSet([Image(pixels, RGB, "sentinel-2-l2a")])], {}),
        (SimpleNamespace(images=[SimpleNamespace(pixels=pixels)]), common),
    ]
    for form, arguments in forms:
        batch = processor(form, **arguments)
        assert batch.keys() == expected.keys()
        for key in expected:
            np.testing.assert_array_equal(batch[key], expected[key])


def test_a_four_dimensional_array_is_one_set_and_a_list_of_them_many():
    stack = np.stack([stored(seed=0), stored(seed=1)])
    arguments = {"sensor": "sentinel-2-l2a", "bands": RGB}
    assert A2MAEImageProcessor()(stack, **arguments)["grid_shapes"].shape == (1, 2, 2)
    assert A2MAEImageProcessor()([stack, stack, stack], **arguments)["grid_shapes"].shape == (3, 2, 2)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 4), st.integers(5, 23), st.integers(5, 23)), min_size=1, max_size=3),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([1, 4, 5]),
)
def test_folding_the_tokens_of_ragged_sets_gives_every_image_back(shapes, patch):
    sets = [
        [scene(pixels=stored(*shape, seed=index), bands=L2A_BANDS[: shape[0]]) for index, shape in enumerate(images)]
        for images in shapes
    ]
    batch = A2MAEImageProcessor(patch_size=patch)(sets)
    for number, images in enumerate(sets):
        first = 0
        for index, image in enumerate(images):
            count, height, width = image["pixels"].shape
            rows, columns = batch["grid_shapes"][number, index]
            assert (rows, columns) == (int(np.ceil(height / patch)), int(np.ceil(width / patch)))
            tokens = slice(first, first + rows * columns)
            first = tokens.stop
            folded = fold(batch["pixel_values"][number, tokens], rows, columns, patch)
            truth = standardised(image["pixels"], image["bands"])
            np.testing.assert_allclose(folded[:count, :height, :width], truth, atol=1e-5)
            assert (folded[count:] == 0).all()
            assert (folded[:, height:] == 0).all()
            assert (folded[:, :, width:] == 0).all()
            assert (batch["image_ids"][number, tokens] == index).all()
            if "pixel_mask" in batch:
                real = fold(batch["pixel_mask"][number, tokens], rows, columns, patch)
                assert real[:count, :height, :width].all()
                assert real.sum() == image["pixels"].size
        assert batch["attention_mask"][number, :first].all()
        assert not batch["attention_mask"][number, first:].any()
        assert not batch["pixel_values"][number, first:].any()
        assert (batch["acquisition_times"][number] == np.iinfo(np.int64).min).all()
        assert (batch["grid_shapes"][number, len(images) :] == 0).all()
        assert (batch["band_wavelengths"][number, len(images) :] == 0).all()
    on_the_grid = all(height % patch == 0 and width % patch == 0 for one in shapes for _, height, width in one)
    assert ("pixel_mask" in batch) == (not on_the_grid)


def test_bands_are_told_apart_by_name_whatever_their_order():
    batch = A2MAEImageProcessor()(scene(bands=["nir", "B02", "red"]))
    np.testing.assert_allclose(batch["band_wavelengths"][0, 0], [832.8, 492.4, 664.6], rtol=1e-6)
    truth = standardised(stored(), ["B08", "B02", "B04"])
    np.testing.assert_allclose(fold(batch["pixel_values"][0], 2, 2, 16), truth, atol=1e-5)


def test_images_of_one_sensor_share_a_source():
    naip = {"pixels": stored(4, 16, 16) // 16, "sensor": "naip", "bands": ["red", "green", "blue", "nir"]}
    batch = A2MAEImageProcessor()([scene(), naip, scene()])
    ids = batch["source_ids"][0]
    assert ids[0] == ids[2] != ids[1]
    assert [list(SENSORS)[index] for index in ids] == ["sentinel-2-l2a", "naip", "sentinel-2-l2a"]


def test_the_anchor_and_the_dates_reach_the_batch():
    images = [scene(acquired=when) for when in ("2000-01-02", datetime(2000, 1, 1, 1), None)]
    batch = A2MAEImageProcessor()({"images": images, "anchor": 1})
    assert batch["anchor_ids"].tolist() == [1]
    assert batch["acquisition_times"].tolist() == [[1440, 60, np.iinfo(np.int64).min]]


# --------------------------------------------------------------------------------------------------------- real values


def test_an_images_own_scale_and_offset_go_before_those_of_its_sensor():
    pixels = stored()
    for scale, offset in ((1e-4, -0.1), ([2e-4, 1e-4, 5e-5], [0.0, 0.1, 0.01])):
        batch = A2MAEImageProcessor()(scene(pixels=pixels, scale=scale, offset=offset))
        truth = standardised(pixels, RGB, *(np.reshape(number, (-1, 1, 1)) for number in (scale, offset)))
        np.testing.assert_allclose(fold(batch["pixel_values"][0], 2, 2, 16), truth, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64, ">u2"])
def test_every_number_type_is_standardised_alike(dtype):
    batch = A2MAEImageProcessor()(scene(pixels=np.asfortranarray(stored().astype(dtype))))
    np.testing.assert_allclose(fold(batch["pixel_values"][0], 2, 2, 16), standardised(stored()), atol=1e-5)


def test_invalid_values_are_zero_and_masked_however_they_are_marked():
    pixels = stored().astype(np.float64)
    holes = np.zeros(pixels.shape, dtype=bool)
    holes[0, 3, 4] = holes[:, 20, 20] = True
    punched, filled = pixels.copy(), np.where(holes, -1.7e308, pixels)
    punched[0, 3, 4], punched[:, 20, 20] = np.nan, -np.inf
    forms = [
        scene(pixels=punched),
        scene(pixels=filled, nodata=-1.7e308),
        scene(pixels=pixels, valid=~holes),
        scene(pixels=pixels, valid=torch.from_numpy(~holes)),
        scene(pixels=np.ma.masked_array(pixels, holes)),
        scene(pixels=np.where(holes, 0, pixels).astype(np.uint16), nodata=0.0),
    ]
    for form in forms:
        batch = A2MAEImageProcessor()(form)
        np.testing.assert_array_equal(fold(batch["pixel_mask"][0], 2, 2, 16), ~holes)
        values = fold(batch["pixel_values"][0], 2, 2, 16)
        np.testing.assert_allclose(values, np.where(holes, 0, standardised(pixels)), atol=1e-5)


def test_a_mask_of_the_pixel_grid_hides_all_bands():
    valid = np.ones((32, 32), dtype=bool)
    valid[5] = False
    mask = A2MAEImageProcessor()(scene(valid=valid))["pixel_mask"][0]
    np.testing.assert_array_equal(fold(mask, 2, 2, 16), np.broadcast_to(valid, (3, 32, 32)))


def test_a_nodata_value_that_never_occurs_masks_nothing():
    assert A2MAEImageProcessor()(scene(nodata=-9999)).keys() == KEYS
    assert A2MAEImageProcessor()(scene(nodata=float("nan"))).keys() == KEYS


def test_a_patch_without_any_valid_value_keeps_its_place_but_is_no_token():
    pixels = stored()
    pixels[:, :16, 16:] = 0
    whole, holed = (A2MAEImageProcessor()(scene(pixels=stored() if number else pixels, nodata=0)) for number in (1, 0))
    assert holed["attention_mask"].tolist() == [[True, False, True, True]]
    # What is left of the image is all real.
    assert "pixel_mask" not in holed
    assert not holed["pixel_values"][0, 1].any()
    np.testing.assert_array_equal(holed["patch_positions"], whole["patch_positions"])
    np.testing.assert_array_equal(holed["grid_shapes"], whole["grid_shapes"])


def test_an_image_with_holes_leaves_the_others_of_its_batch_real():
    pixels = stored()
    pixels[:, 0, 0] = 0
    batch = A2MAEImageProcessor()(
        [[scene(nodata=0)], [scene(pixels=pixels, nodata=0), scene(bands=["B02"], pixels=stored(1))]]
    )
    mask = batch["pixel_mask"]
    assert mask[0, :4].all()
    assert not mask[0, 4:].any()
    assert (~mask[1, :4]).sum() == 3
    assert mask[1, 4:, 0].all()
    assert not mask[1, 4:, 1:].any()


# ------------------------------------------------------------------------------------------------------------ resample


def test_resampling_changes_the_ground_resolution_and_not_the_ground():
    processor = A2MAEImageProcessor(patch_size=16)
    image = scene(pixels=stored(3, 64, 96), gsd=10.0)
    own, half = processor(image), processor(image, size=(32, 48))
    assert half["grid_shapes"].tolist() == [[[2, 3]]]
    np.testing.assert_allclose(own["ground_resolutions"], 10.0)
    np.testing.assert_allclose(half["ground_resolutions"], 20.0)
    np.testing.assert_allclose(half["patch_positions"][0, 0], [160.0, -320.0], rtol=1e-6)
    saved = A2MAEImageProcessor(patch_size=16, size=[32, 48])
    np.testing.assert_array_equal(saved(image)["pixel_values"], half["pixel_values"])


def test_resampling_a_plane_gives_the_same_plane_at_the_new_pixel_centres():
    column = np.arange(64) + 0.5
    pixels = np.broadcast_to(1000 + 20 * column, (3, 64, 64))
    for size in (32, 128):
        folded = fold(
            A2MAEImageProcessor()(scene(pixels=pixels), size=size)["pixel_values"][0], size // 16, size // 16, 16
        )
        truth = standardised(np.broadcast_to(1000 + 20 * (np.arange(size) + 0.5) * 64 / size, (3, size, size)))
        inner = slice(size // 16, -size // 16)
        np.testing.assert_allclose(folded[:, :, inner], truth[:, :, inner], atol=2e-4)


def test_invalid_values_do_not_bleed_into_resampled_ones():
    pixels = np.full((3, 64, 64), 1000, dtype=np.uint16)
    pixels[:, :, :20] = 65535
    for size in (32, 48, 100):
        batch = A2MAEImageProcessor(patch_size=size)(scene(pixels=pixels, nodata=65535), size=size)
        real = batch["pixel_mask"][0, 0].reshape(3, size, size)
        values = batch["pixel_values"][0, 0].reshape(3, size, size)
        expected = standardised(np.full((3, 1, 1), 1000))
        np.testing.assert_allclose(
            values[real].reshape(3, -1), np.broadcast_to(expected[:, 0], (3, real[0].sum())), atol=1e-4
        )
        assert (values[~real] == 0).all()
        assert real[0].mean() == pytest.approx(44 / 64, abs=0.02)


def test_an_image_smaller_than_a_patch_can_be_resampled():
    assert A2MAEImageProcessor()(scene(pixels=stored(3, 7, 9)), size=32)["grid_shapes"].tolist() == [[[2, 2]]]


# --------------------------------------------------------------------------------------------------------------- place


def test_without_georeference_the_finest_band_gives_the_ground_resolution():
    batch = A2MAEImageProcessor()([scene(), scene(bands=["B01", "B05", "B11"])])
    np.testing.assert_allclose(batch["ground_resolutions"], [[10.0, 20.0]])
    assert (batch["geographic_codes"] == -1).all()


def test_a_degree_scene_is_placed_in_true_metres(shared):
    path = shared / "data/scenes/boadella_sentinel2/Boadella_2020-06-21.tif"
    with rasterio.open(path) as file:
        window = rasterio.windows.Window(100, 150, 64, 48)
        pixels, transform = file.read(window=window), file.window_transform(window)[:6]
        crs = file.crs
    batch = A2MAEImageProcessor()(Image(pixels, L2A_BANDS, "sentinel-2-l2a", crs=crs, transform=transform))
    middle = at(transform, 32, 24)
    across = GEOD.inv(*at(transform, 0, 24), *at(transform, 64, 24))[2]
    down = GEOD.inv(*at(transform, 32, 0), *at(transform, 32, 48))[2]
    resolution = np.sqrt(across * down / (64 * 48))
    np.testing.assert_allclose(batch["ground_resolutions"][0, 0], resolution, rtol=1e-4)
    for token, (row, column) in enumerate(np.ndindex(3, 4)):
        azimuth, _, distance = GEOD.inv(*middle, *at(transform, (column + 0.5) * 16, (row + 0.5) * 16))
        truth = distance * np.cos(np.deg2rad(azimuth)), distance * np.sin(np.deg2rad(azimuth))
        np.testing.assert_allclose(batch["patch_positions"][0, token], truth, atol=0.1)
    assert (batch["geographic_codes"] >= 0).all()


def test_a_web_mercator_scene_with_nodata_has_true_metres_and_masked_edges(shared):
    path = shared / "data/bark_beetle/2019-09/205232.tif"
    with rasterio.open(path) as file:
        pixels, crs, transform, nodata = file.read(), file.crs.to_string(), file.transform, file.nodata
    assert crs == "EPSG:3857"
    image = Image(pixels, L2A_BANDS, "sentinel-2-l2a", crs=crs, transform=transform[:6], nodata=nodata)
    batch = A2MAEImageProcessor()(image)
    height, width = pixels.shape[1:]
    to_degrees = pyproj.Transformer.from_crs(3857, 4326, always_xy=True)
    corners = [
        to_degrees.transform(*at(transform, *corner)) for corner in ((0, 0), (width, 0), (width, height), (0, height))
    ]
    area = abs(GEOD.polygon_area_perimeter(*zip(*corners, strict=True))[0])
    np.testing.assert_allclose(batch["ground_resolutions"][0, 0], np.sqrt(area / (height * width)), rtol=1e-4)
    assert 6 < batch["ground_resolutions"][0, 0] < 7
    rows, columns = batch["grid_shapes"][0, 0]
    real = fold(batch["pixel_mask"][0], rows, columns, 16)[:, :height, :width]
    np.testing.assert_array_equal(real, pixels != 0)
    values = fold(batch["pixel_values"][0], rows, columns, 16)[:, :height, :width]
    np.testing.assert_allclose(values[real], standardised(pixels, L2A_BANDS)[pixels != 0], atol=1e-4)


def test_two_dates_of_aerial_imagery_in_utm_share_their_ground(shared):
    images = []
    for name in ("m_4709963_se_14_1_20150926", "m_4709963_se_14_1_20200831"):
        with rasterio.open(shared / f"data/scenes/naip_5m/{name}.tif") as file:
            window = rasterio.windows.Window(200, 200, 64, 64)
            images.append(
                {
                    "pixels": file.read(window=window),
                    "sensor": "naip",
                    "bands": ["red", "green", "blue", "nir"],
                    "crs": file.crs.to_wkt(),
                    "transform": file.window_transform(window),
                    "acquired": f"{name[-8:-4]}-{name[-4:-2]}-{name[-2:]}",
                    "source": name,
                }
            )
    batch = A2MAEImageProcessor()(images)
    # UTM stretches by at most 0.1 % here.
    np.testing.assert_allclose(batch["ground_resolutions"], 5.0, rtol=1e-3)
    east, north = (images[1]["transform"][index] - images[0]["transform"][index] for index in (2, 5))
    assert (east, north) != (0, 0)
    moved = batch["patch_positions"][0, 16:] - batch["patch_positions"][0, :16]
    np.testing.assert_allclose(moved, np.tile([north, east], (16, 1)), atol=0.05)


def test_landsat_water_and_offsets_are_no_wrong_unit(shared):
    folder = shared / "data/scenes/landsat8_pair/LC08_L2SP_218074_20190114_20200829_02_T1"
    paths = sorted(folder.glob("*_SR_B?.TIF"))
    pixels = np.stack([rasterio.open(path).read(1) for path in paths])
    bands = [path.stem[-2:] for path in paths]
    batch = A2MAEImageProcessor()(pixels, sensor="landsat-8-sr", bands=bands)
    found = [SENSORS["landsat-8-sr"].find(band) for band in bands]
    physical = pixels * 2.75e-5 - 0.2
    truth = (physical.mean((1, 2)) - [band.mean for band in found]) / [band.std for band in found]
    rows, columns = batch["grid_shapes"][0, 0]
    folded = fold(batch["pixel_values"][0], rows, columns, 16)[:, : pixels.shape[1], : pixels.shape[2]]
    np.testing.assert_allclose(folded.mean((1, 2), dtype=np.float64), truth, atol=1e-4)
    with pytest.raises(ValueError, match="scaled twice"):
        A2MAEImageProcessor()(physical, sensor="landsat-8-sr", bands=bands)


def test_dark_lakes_are_no_wrong_unit(shared):
    bands = [f"B{number:02d}" for number in range(1, 13)] + ["B8A"]
    images = [
        rasterio.open(path).read() for path in sorted((shared / "data/eurosat_multispectral/SeaLake").glob("*.tif"))
    ]
    batch = A2MAEImageProcessor()([[image] for image in images], sensor="sentinel-2-l1c", bands=bands)
    assert len(batch["pixel_values"]) == len(images) > 0
    for image in images:
        A2MAEImageProcessor()(image[9:10], sensor="sentinel-2-l1c", bands=["B10"])


# -------------------------------------------------------------------------------------------------------- bad input


def bad(message, given=None, **changes):
    return pytest.param(scene(**changes) if given is None else given, message, id=message[:40])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        bad("list of image sets is empty", given=[]),
        bad("the set holds no images", given={"images": []}),
        bad("set 1 holds no images", given=[[scene()], []]),
        bad("Item 0 of the list is an image and item 1 is none", given=[scene(), [scene()]]),
        bad("the set is of type str", given="scene.tif"),
        bad("image 0 is of type str", given=[["scene.tif"]]),
        bad("image 0 has unknown keys date, where", date="2020-01-01", where=0),
        bad("the set has unknown keys place", given={"images": [scene()], "place": 1}),
        bad("without the key 'images'", given={"longitude": 5.0, "latitude": 3.0}),
        bad("the set has anchor=1, but its images are numbered 0 to 0", given={"images": [scene()], "anchor": 1}),
        bad("set 'lake' has anchor=-1", given=[[scene()], {"images": [scene()], "anchor": -1, "name": "lake"}]),
        bad(r"image 0 has pixels of shape \(32, 32\)", pixels=stored()[0]),
        bad("image 0 has pixels of type bool", pixels=stored() > 1000),
        bad("image 0 has pixels of type complex", pixels=stored() * 1j),
        bad(r"image 0 \(a\.tif\) names no sensor: pass sensor=, one of .*sentinel-2-l2a", sensor=None, source="a.tif"),
        bad("image 0 has sensor 'sputnik', which this processor does not know", sensor="sputnik"),
        bad("image 0 names no bands: pass bands=", bands=None),
        bad("image 0: Sensor 'sentinel-2-l2a' has no band 'B99'", bands=["B99", "B03", "B02"]),
        bad("image 0 names band B04 of sentinel-2-l2a more than once", bands=["B04", "red", "B02"]),
        bad("image 0 has 3 bands of pixels but 2 band names .B04, B03.", bands=["B04", "B03"]),
        bad("image 0 names no band at all", bands=[]),
        bad("image 0 is 8 by 32 pixels, .* of 16: read a larger window, or, .* size=", pixels=stored(3, 8, 32)),
        bad("image 0 has a valid mask of shape", valid=np.ones((3, 3), bool)),
        bad("image 0 holds no valid pixel", valid=np.zeros((32, 32), bool)),
        bad("image 0 holds no valid pixel", pixels=np.zeros((3, 32, 32), np.uint8), nodata=0),
        bad("image 0 holds no valid pixel", pixels=np.full((3, 32, 32), np.nan)),
        bad("image 0 has 2 numbers as scale for 3 bands", scale=[1.0, 2.0]),
        bad("image 0 has scale 0", scale=0),
        bad("image 0 has offset nan", offset=float("nan")),
        bad("image 0 has gsd=-5", gsd=-5),
        bad("image 0 has a crs but no transform", crs="EPSG:4326"),
        bad("image 0 has a transform but no crs", transform=(1, 0, 0, 0, 1, 0)),
        bad("six finite numbers", crs="EPSG:4326", transform=(1, 0, 0)),
        bad("whose pixels have no area", crs="EPSG:4326", transform=(1, 0, 0, 0, 0, 0)),
        bad("image 0 was acquired at 2150-01-01", acquired="2150-01-01"),
        bad(
            "the set has longitude 3.0 and latitude 95.0",
            given={"images": [scene()], "longitude": 3.0, "latitude": 95.0},
        ),
    ],
)
def test_bad_input_is_one_sentence_that_names_it(given, message):
    with pytest.raises(ValueError, match=message) as error:
        A2MAEImageProcessor()(given)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def test_stored_numbers_taken_for_reflectance_are_named_with_unit_value_band_and_way_out():
    pixels = np.stack([np.full((32, 32), value, np.uint16) for value in (3000, 500, 400)])
    sentence = r"band B04 of image 0 \(a\.tif\) has mean reflectance 3000, which no reflectance is.*pass scale=0\.0001"
    with pytest.raises(ValueError, match=sentence):
        A2MAEImageProcessor()(scene(pixels=pixels, scale=1, source="a.tif"))


def test_reflectance_scaled_once_more_is_named_with_the_way_out():
    physical = stored() * 1e-4
    sentence = r"image 1 of set 1 has next to nothing in every band, and mean reflectance 2\.\d+e-05 in its brightest"
    with pytest.raises(ValueError, match=sentence + ".*pass scale=1 and offset=0"):
        A2MAEImageProcessor()([[scene()], [scene(), scene(pixels=physical)]])
    batch = A2MAEImageProcessor()(scene(pixels=physical, scale=1.0))
    np.testing.assert_allclose(fold(batch["pixel_values"][0], 2, 2, 16), standardised(stored()), atol=1e-5)


def test_undeclared_fill_is_named():
    with pytest.raises(ValueError, match="or nodata= if they are fill"):
        A2MAEImageProcessor()(scene(pixels=np.zeros((3, 32, 32), np.uint16)))
    pixels = stored().astype(np.int16)
    pixels[0] = -9999
    with pytest.raises(ValueError, match=r"band B04 of image 0 has mean reflectance -0\.9999.*pass nodata="):
        A2MAEImageProcessor()(scene(pixels=pixels))
    assert "pixel_mask" in A2MAEImageProcessor()(scene(pixels=pixels, nodata=-9999))


def test_nodata_does_not_count_in_the_unit_check():
    pixels = stored().astype(np.int32)
    pixels[:, :30] = -(10**9)
    assert "pixel_mask" in A2MAEImageProcessor()(scene(pixels=pixels, nodata=-(10**9)))


@pytest.mark.parametrize("size", [8, (32, 8), "32", 32.0, (1, 2, 3), True])
def test_a_size_must_be_whole_pixels_of_at_least_one_patch(size):
    with pytest.raises(ValueError, match=re.escape(f"size is {size!r}: it must be")):
        A2MAEImageProcessor(patch_size=16, size=size)
    with pytest.raises(ValueError, match="size is"):
        A2MAEImageProcessor()(scene(), size=size)


@pytest.mark.parametrize("patch_size", [0, -1, 2.5, None])
def test_a_patch_must_be_whole_pixels(patch_size):
    with pytest.raises(ValueError, match="patch_size is"):
        A2MAEImageProcessor(patch_size=patch_size)


# ---------------------------------------------------------------------------------------------------------------- save


def my_camera():
    bands = (Band("green", "green", 550.0, 40.0, 0.05, 0.08, 0.05, (-0.2, 2.0)),)
    return Sensor(name="my-camera", bands=bands, unit="reflectance", scale=0.001)


def test_a_saved_processor_describes_its_own_inputs(tmp_path):
    processor = A2MAEImageProcessor(patch_size=8, size=(24, 32), sensors=[L2A, my_camera()])
    image = {"pixels": stored(1) // 10, "sensor": "my-camera", "bands": ["green"]}
    before = processor(image)
    processor.save_pretrained(tmp_path)
    loaded = A2MAEImageProcessor.from_pretrained(tmp_path)
    assert loaded == processor
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.sensors == [L2A, my_camera()]
    after = loaded(image)
    assert all(np.array_equal(after[key], before[key]) for key in before)
    assert "my-camera" not in SENSORS
    assert loaded != A2MAEImageProcessor(patch_size=8)


def test_settings_can_be_overridden_on_loading(tmp_path):
    A2MAEImageProcessor().save_pretrained(tmp_path)
    loaded = A2MAEImageProcessor.from_pretrained(tmp_path, patch_size=8, size=64)
    assert (loaded.patch_size, loaded.size) == (8, [64, 64])
    assert loaded.sensors == list(SENSORS.values())


def test_two_sensors_of_one_name_are_an_error():
    with pytest.raises(ValueError, match="Two sensors are named 'my-camera'"):
        A2MAEImageProcessor(sensors=[my_camera(), my_camera().to_dict()])


# ---------------------------------------------------------------------------------------------- predictions as images


def test_predictions_come_back_as_physical_values_on_every_images_own_grid():
    sets = [
        [scene(pixels=stored(3, 40, 24)), scene(pixels=stored(2, 16, 16, seed=1), bands=["B08", "B02"])],
        [scene(pixels=stored(3, 33, 17, seed=2))],
    ]
    processor = A2MAEImageProcessor()
    batch = processor(sets, return_tensors="pt")
    images = processor.post_process_reconstruction(outputs(batch), batch, sets)
    assert [[image.shape for image in one] for one in images] == [[(3, 40, 24), (2, 16, 16)], [(3, 33, 17)]]
    for one, restored in zip(sets, images, strict=True):
        for image, values in zip(one, restored, strict=True):
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, image["pixels"] * 1e-4, atol=1e-6)


def test_what_is_neither_predicted_nor_visible_is_nan():
    processor, pixels = A2MAEImageProcessor(), stored()
    pixels[1, 0, 0] = 0
    image = scene(pixels=pixels, nodata=0)
    batch = processor(image)
    # Token 0 is visible; 1 to 3 are hidden, of which only 2 is predicted, as 0 in standardised units; −1 is padding.
    mask = torch.tensor([[False, True, True, True]])
    model = outputs(batch, mask, tokens=[[2, -1]], logits=np.zeros((1, 2, 3, 256), np.float32))
    mean = np.array([L2A.find(band).mean for band in RGB])[:, None, None]
    pasted = processor.post_process_reconstruction(model, batch, image)[0][0]
    truth = np.full((3, 32, 32), np.nan)
    truth[:, 16:, :16] = mean
    alone = processor.post_process_reconstruction(model, batch, image, paste_visible=False)[0][0]
    np.testing.assert_allclose(alone, truth, atol=1e-6)
    truth[:, :16, :16] = pixels[:, :16, :16] * 1e-4
    truth[1, 0, 0] = np.nan
    np.testing.assert_allclose(pasted, truth, atol=1e-6)


def test_visible_tokens_replace_their_prediction_unless_asked_not_to():
    processor, image = A2MAEImageProcessor(), scene()
    batch = processor(image)
    model = outputs(batch, mask=torch.zeros(1, 4, dtype=torch.bool), logits=np.zeros((1, 4, 3, 256), np.float32))
    shown = processor.post_process_reconstruction(model, batch, image)[0][0]
    np.testing.assert_allclose(shown, image["pixels"] * 1e-4, atol=1e-6)
    predicted = processor.post_process_reconstruction(model, batch, image, paste_visible=False)[0][0]
    assert np.ptp(predicted, axis=(1, 2)).max() == pytest.approx(0)


def test_predictions_of_normalised_patches_are_scaled_back_by_their_own_statistics():
    processor, pixels = A2MAEImageProcessor(), stored(2, 24, 16)
    pixels[1, 2:5] = 0
    image = scene(pixels=pixels, bands=["B04", "B08"], nodata=0)
    # A second set with more bands, so that one band of the first is absent.
    batch = processor([[image], [scene()]], return_tensors="pt")
    values, mask = batch["pixel_values"].double(), batch["pixel_mask"]
    logits = torch.zeros_like(values)
    for index in np.ndindex(*values.shape[:2]):
        real = values[index][mask[index]]
        if len(real):
            logits[index][mask[index]] = (real - real.mean()) / (real.var(unbiased=True) + 1e-6).sqrt()
    model = outputs(batch, logits=logits.float().numpy())
    restored = processor.post_process_reconstruction(model, batch, [[image], [scene()]], normalize_targets=True)
    real = pixels != 0
    np.testing.assert_allclose(restored[0][0][real], pixels[real] * 1e-4, atol=1e-5)
    np.testing.assert_allclose(restored[1][0], scene()["pixels"] * 1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [True, False])
def test_resampled_predictions_return_to_the_images_own_grid(own):
    column = np.arange(64) + 0.5
    image = scene(pixels=np.broadcast_to(1000 + 20 * column, (3, 64, 64)))
    processor = A2MAEImageProcessor(size=32 if own else None)
    batch = processor(image, size=None if own else 32)
    restored = processor.post_process_reconstruction(outputs(batch), batch, image)[0][0]
    assert restored.shape == (3, 64, 64)
    np.testing.assert_allclose(restored[:, :, 8:-8], image["pixels"][:, :, 8:-8] * 1e-4, atol=1e-4)
    again = processor.post_process_reconstruction(outputs(batch), batch, image, size=32)[0][0]
    np.testing.assert_array_equal(again, restored)


def test_half_precision_predictions_are_read():
    processor, image = A2MAEImageProcessor(), scene()
    batch = processor(image, return_tensors="pt")
    model = outputs(batch)
    model.logits = model.logits.bfloat16()
    restored = processor.post_process_reconstruction(model, batch, image)[0][0]
    np.testing.assert_allclose(restored, image["pixels"] * 1e-4, atol=5e-3)


def test_a_mask_over_tokens_becomes_one_over_pixels():
    processor = A2MAEImageProcessor()
    images = [scene(pixels=stored(3, 20, 32)), scene(pixels=stored(3, 16, 16))]
    batch = processor(images)
    mask = torch.tensor([[True, False, False, True, True]])
    first, second = processor.post_process_mask(mask, batch, images)[0]
    truth = np.zeros((20, 32), dtype=bool)
    truth[:16, :16] = truth[16:, 16:] = True
    np.testing.assert_array_equal(first, truth)
    assert second.shape == (16, 16)
    assert second.all()
    resampled = processor(images[0], size=64)
    checkerboard = np.indices((4, 4)).sum(0) % 2 == 1
    spread = processor.post_process_mask(checkerboard.reshape(1, -1), resampled, images[0], size=64)[0][0]
    np.testing.assert_array_equal(spread, checkerboard.repeat(5, 0).repeat(8, 1))


def test_a_batch_of_other_sets_is_an_error():
    processor = A2MAEImageProcessor()
    batch = processor(scene())
    mask = np.zeros((1, 4), dtype=bool)
    with pytest.raises(ValueError, match="The batch holds 1 sets and image_sets 2"):
        processor.post_process_mask(mask, batch, [[scene()], [scene()]])
    with pytest.raises(ValueError, match="image 1 does not fit the batch, which has 0 by 0 patches"):
        processor.post_process_mask(mask, batch, [scene(), scene()])
    with pytest.raises(ValueError, match="image 0 does not fit the batch, which has 2 by 2 patches"):
        processor.post_process_mask(mask, batch, scene(), size=64)


@pytest.mark.parametrize(("field", "value"), [("gsd", "ten"), ("nodata", "x"), ("scale", "x"), ("transform", "abc")])
def test_what_is_no_number_is_named_with_its_image(field, value):
    image = {"pixels": np.full((1, 16, 16), 900, np.uint16), "bands": ["B04"], "sensor": "sentinel-2-l2a"}
    with pytest.raises(ValueError, match=rf"^image 0 has {field}='{value}', which is no number: pass numbers"):
        A2MAEImageProcessor(patch_size=8)(
            {**image, "crs": "EPSG:32631", "transform": (10, 0, 0, 0, -10, 0), field: value}
        )
