"""Features and reconstructions of real image sets, and what is said of checkpoints that cannot be used."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import torch
from safetensors.torch import load_file, save_file

from a2mae_hub import A2MAEConfig, A2MAEForPreTraining, A2MAEImageProcessor, A2MAEModel, Image, ImageSet, read_image_set
from a2mae_hub.checkpoints import checkpoint as a2mae_checkpoint
from a2mae_hub.inference import MAX_TOKENS, Checkpoint, embed, load_checkpoint, reconstruct, save_features
from a2mae_hub.plotting import physical_pixels

SENTINEL_2 = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
# A kilometre of fields and lakes in North Dakota; the dam of Boadella and its shore; both in degrees.
FIELDS = (-99.175, 47.010, -99.168, 47.016)
SHORE = (2.800, 42.340, 2.810, 42.348)


@pytest.fixture(scope="module")
def nano() -> Checkpoint:
    return load_checkpoint()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("saved")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    A2MAEForPreTraining(A2MAEConfig.nano(**sizes, **decoder)).save_pretrained(folder)
    A2MAEImageProcessor(patch_size=8).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit(path: Path, **settings) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def scenes(shared, *names: str) -> list[Path]:
    return [shared / "data" / "scenes" / name for name in names]


def simple_set(count: int = 2, size: int = 24, nodata: int | None = None) -> ImageSet:
    """Images of one sensor, a month apart."""
    rng = np.random.default_rng(0)
    return ImageSet(
        [
            Image(
                rng.integers(300, 3_000, (4, size, size), dtype=np.uint16),
                ["B02", "B03", "B04", "B08"],
                "sentinel-2-l2a",
                np.datetime64(f"2023-0{month + 1}-01").astype(object),
                crs="EPSG:32631",
                transform=(10, 0, 500_000, 0, -10, 4_690_000),
                nodata=nodata,
            )
            for month in range(count)
        ]
    )


# ---------------------------------------------------------------------------------------------------------- checkpoints


def test_a_saved_checkpoint_is_loaded_with_its_processor_and_weights(saved):
    checkpoint = load_checkpoint(saved)
    assert checkpoint.name == str(saved) and checkpoint.has_decoder
    assert not checkpoint.model.training and checkpoint.processor == A2MAEImageProcessor(patch_size=8)
    weights = load_file(saved / "model.safetensors")
    assert weights and all(torch.equal(value, weights[name]) for name, value in checkpoint.model.state_dict().items())


def test_without_a_name_the_checkpoint_is_that_of_the_package():
    unnamed, named = load_checkpoint(), load_checkpoint("a2mae-nano")
    assert unnamed.name == named.name == "a2mae-nano" and unnamed.has_decoder
    weights = load_file(a2mae_checkpoint("a2mae-nano") / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in unnamed.model.state_dict().items())


@pytest.mark.parametrize("name", ["nowhere", "/nowhere", "./owner/name", "a/b/c", "~/checkpoint"])
def test_a_name_that_is_no_folder_and_no_id_is_refused_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr(A2MAEConfig, "get_config_dict", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match=rf"^{name}: no such folder; name a checkpoint folder"):
        load_checkpoint(name)


def test_an_id_that_cannot_be_fetched_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match=r"^owner/nothing-of-this-name: .* check the name and the connection, and log in"
    ):
        load_checkpoint("owner/nothing-of-this-name")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_the_file_that_a_folder_lacks_is_named(copy, file):
    (copy / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{copy}: no {file} in this folder; name a folder written by"):
        load_checkpoint(copy)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_settings_file_that_is_no_json_is_named(copy, file):
    (copy / file).write_text('{"patch_size": ')
    with pytest.raises(ValueError, match=rf"{copy}/{file}.* save the checkpoint again"):
        load_checkpoint(copy)


def test_the_checkpoint_of_another_kind_of_model_is_refused(copy):
    edit(copy / "config.json", model_type="vit_mae")
    with pytest.raises(ValueError, match="a checkpoint of 'vit_mae', not of 'a2mae'; convert it first"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        ({"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"hidden_size": 33}, "hidden_size=33 must be a multiple of num_attention_heads=4"),
    ],
)
def test_a_setting_that_describes_no_model_is_named(copy, setting, fault):
    edit(copy / "config.json", **setting)
    with pytest.raises(ValueError, match=rf"{copy}: config.json describes no model \(.*{fault}"):
        load_checkpoint(copy)


@pytest.mark.parametrize("share", [0, 0.5])
def test_weights_cut_short_are_told_from_other_faults(copy, share):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: int(share * weights.stat().st_size)])
    with pytest.raises(ValueError, match=rf"{copy}: the weights cannot be read .*; the file is damaged or cut short"):
        load_checkpoint(copy)


def test_weights_of_another_size_than_the_configuration_are_refused(copy):
    edit(copy / "config.json", hidden_size=64)
    with pytest.raises(ValueError, match=r"weights are of another shape than config.json says, .*\(1, 1, 32\), not"):
        load_checkpoint(copy)


def test_an_encoder_with_a_layer_missing_is_refused(copy):
    weights = load_file(copy / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layers.1." not in name or "decoder" in name}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{len(weights) - len(kept)} weights of the encoder are missing"):
        load_checkpoint(copy)


def test_a_processor_that_cuts_other_patches_than_the_model_wants_is_refused(copy):
    edit(copy / "preprocessor_config.json", patch_size=16)
    with pytest.raises(ValueError, match=r"cuts patches of 16 pixels, but config\.json wants 8"):
        load_checkpoint(copy)


def test_an_encoder_saved_alone_encodes_and_does_not_pretend_to_reconstruct(saved, copy):
    A2MAEModel.from_pretrained(saved).save_pretrained(copy)
    checkpoint = load_checkpoint(copy)
    assert not checkpoint.has_decoder
    np.testing.assert_array_equal(
        embed(checkpoint, simple_set()).pooled, embed(load_checkpoint(saved), simple_set()).pooled
    )
    with pytest.raises(ValueError, match="encoder without a decoder, which cannot reconstruct"):
        reconstruct(checkpoint, simple_set())


# ------------------------------------------------------------------------------------------------------------- features


def real_set(shared, name: str) -> ImageSet:
    if name == "naip":
        return read_image_set(scenes(shared, "naip_5m"), bounds=FIELDS)
    if name == "landsat":
        folders = sorted(scenes(shared, "landsat8_pair")[0].iterdir())
        return read_image_set(folders, bounds=(-44.14, -20.15, -44.11, -20.13))
    if name == "bigearthnet":
        return read_image_set(scenes(shared, "bigearthnet_native/S2B_MSIL2A_20180502T093039_43_14"))
    return read_image_set(scenes(shared, "boadella_sentinel2"), sensor="sentinel-2-l2a", bands=SENTINEL_2, bounds=SHORE)


@pytest.mark.parametrize(
    ("name", "images", "gsd"), [("naip", 3, 5.0), ("landsat", 2, 30.0), ("bigearthnet", 1, 10.0), ("boadella", 8, 10.0)]
)
def test_the_map_of_a_real_set_lies_on_the_ground_where_its_anchor_does(shared, nano, name, images, gsd):
    image_set = real_set(shared, name)
    assert len(image_set) == images
    features = embed(nano, image_set)
    anchor = image_set[0]
    height, width = anchor.pixels.shape[1:]
    rows, columns = math.ceil(height / 8), math.ceil(width / 8)
    assert features.maps.shape == (128, rows, columns) and features.maps.dtype == np.float32
    assert features.pooled.shape == (256,) and np.isfinite(features.pooled).all()
    assert np.isfinite(features.maps).all()

    # On the ellipsoid, by an independent library: a cell spans 8 pixels, and the maps of both begin at one corner.
    a, b, c, d, e, f = features.transform
    to_degrees = pyproj.Transformer.from_crs(features.crs, "OGC:CRS84", always_xy=True).transform
    corner, east, south = (to_degrees(a * x + b * y + c, d * x + e * y + f) for x, y in ((0, 0), (1, 0), (0, 1)))
    assert corner == to_degrees(anchor.transform[2], anchor.transform[5])
    ellipsoid = pyproj.Geod(ellps="WGS84")
    for there in (east, south):
        # UTM scales lengths by 0.9996 on its central meridian; cells in degrees over Boadella are 9.97 by 10.02 m.
        assert ellipsoid.inv(*corner, *there)[2] == pytest.approx(8 * gsd, rel=4e-3)


def test_ground_without_data_in_any_image_has_no_features(nano):
    images = simple_set(nodata=0)
    whole = embed(nano, images)
    for image in images:
        image.pixels[:, :8, :8] = 0
    images[0].pixels[:, 16:, 16:] = 0
    features = embed(nano, images)
    assert np.isfinite(whole.maps).all()
    hidden = np.isnan(features.maps)
    assert hidden[:, 0, 0].all()
    # One image of two sees the last cell, and that is enough.
    assert hidden.sum() == 128


def test_the_map_of_one_image_is_its_own_tokens_row_by_row(nano):
    images = simple_set(count=1, size=28)
    batch = nano.processor(images, return_tensors="pt")
    with torch.no_grad():
        outputs = nano.model.a2mae(**batch)
    features = embed(nano, images)
    tokens = outputs.last_hidden_state[0, 1:].T.reshape(128, 4, 4)
    np.testing.assert_allclose(features.maps, tokens.numpy(), rtol=0, atol=2e-5)
    np.testing.assert_allclose(features.pooled, outputs.pooler_output[0].numpy(), rtol=0, atol=1e-6)


def test_the_order_of_the_images_changes_nothing(shared, nano):
    image_set = real_set(shared, "naip")
    turned = ImageSet(image_set.images[::-1], anchor=2)
    first, second = embed(nano, image_set), embed(nano, turned)
    np.testing.assert_allclose(first.pooled, second.pooled, rtol=0, atol=1e-5)
    np.testing.assert_allclose(first.maps, second.maps, rtol=0, atol=1e-4)
    # The dates differ, so that dropping one does change the features.
    assert np.abs(embed(nano, ImageSet(image_set.images[:2])).pooled - first.pooled).max() > 1e-3


def test_a_resampled_set_keeps_the_ground_that_it_covers(nano):
    processor = A2MAEImageProcessor(patch_size=8, size=16)
    features = embed(Checkpoint("resampled", nano.model, processor, True), simple_set(size=24))
    assert features.maps.shape == (128, 2, 2)
    assert features.transform == (120, 0, 500_000, 0, -120, 4_690_000)


def test_a_set_too_large_for_one_pass_is_refused_before_it_is_encoded(nano):
    side = 8 * (math.isqrt(MAX_TOKENS) + 1)
    large = Image(np.full((1, side, side), 1_500, np.uint16), ["B08"], "sentinel-2-l2a", gsd=10.0)
    with pytest.raises(ValueError, match=f"more than the {MAX_TOKENS} of one pass; read a part of them with bounds"):
        embed(nano, ImageSet([large]))


# ------------------------------------------------------------------------------------------------------ reconstructions


@pytest.mark.parametrize("name", ["naip", "landsat"])
def test_what_the_model_saw_is_shown_as_it_is_and_three_quarters_are_hidden(shared, nano, name):
    image_set = real_set(shared, name)
    images, masks = reconstruct(nano, image_set, seed=4)
    for image, drawn, mask in zip(image_set, images, masks, strict=True):
        assert drawn.shape == image.pixels.shape and mask.shape == image.pixels.shape[1:]
        given = physical_pixels(image)
        # Standardising and back in float32 costs a few units in the last place.
        np.testing.assert_allclose(drawn[:, ~mask], given[:, ~mask], rtol=1e-5, atol=1e-6 * np.nanmax(np.abs(given)))
        assert np.abs(drawn[:, mask] - given[:, mask]).mean() > 1e-3
        # Exact in patches; in pixels the patches cut by the edge weigh less.
        corners = mask[::8, ::8]
        assert corners.mean() == pytest.approx(0.75, abs=1 / corners.size)


def test_one_seed_is_one_mask_and_one_reconstruction(nano):
    images = simple_set(size=48)
    first, again, other = (reconstruct(nano, images, seed=seed) for seed in (1, 1, 2))
    for one, two in zip(first[0] + first[1], again[0] + again[1], strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((one != two).any() for one, two in zip(first[1], other[1], strict=True))


def test_without_pasting_the_visible_ground_is_not_the_input(nano):
    images = simple_set()
    drawn, masks = reconstruct(nano, images, paste_visible=False)
    assert np.isnan(drawn[0][:, ~masks[0]]).all() and np.isfinite(drawn[0][:, masks[0]]).all()


# ---------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".tif", ".TIFF"])
def test_a_map_is_written_as_a_geotiff_on_its_own_grid(nano, tmp_path, suffix):
    images = simple_set(nodata=0)
    for image in images:
        image.pixels[:, :8, :8] = 0
    features = embed(nano, images)
    save_features(features, images, tmp_path / f"map{suffix}")
    with rasterio.open(tmp_path / f"map{suffix}") as dataset:
        np.testing.assert_array_equal(dataset.read(), features.maps)
        assert tuple(dataset.transform)[:6] == (80, 0, 500_000, 0, -80, 4_690_000)
        assert dataset.crs.to_epsg() == 32631 and math.isnan(dataset.nodata)
        assert dataset.descriptions[5] == "feature 5"
        assert not dataset.read_masks(1)[0, 0] and dataset.read_masks(1)[1, 1]
    assert len(list(tmp_path.iterdir())) == 1


def test_an_archive_holds_the_features_and_what_they_are_of(nano, tmp_path):
    images = simple_set()
    images[1].acquired = None
    features = embed(nano, images)
    save_features(features, images, tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as archive:
        assert sorted(archive) == ["acquired", "crs", "maps", "pooled", "sensors", "transform"]
        np.testing.assert_array_equal(archive["pooled"], features.pooled)
        np.testing.assert_array_equal(archive["maps"], features.maps)
        assert archive["crs"] == "EPSG:32631" and archive["transform"].tolist() == [80, 0, 5e5, 0, -80, 4.69e6]
        assert archive["acquired"].tolist() == ["2023-01-01", ""] and set(archive["sensors"]) == {"sentinel-2-l2a"}
    assert [path.name for path in tmp_path.iterdir()] == ["features.npz"]


def test_an_image_without_georeference_gives_features_without(nano, tmp_path):
    images = ImageSet([Image(simple_set()[0].pixels, ["B02", "B03", "B04", "B08"], "sentinel-2-l2a", gsd=10.0)])
    features = embed(nano, images)
    assert features.crs is None and features.transform is None
    save_features(features, images, tmp_path / "features.npz")
    with np.load(tmp_path / "features.npz") as archive:
        assert archive["crs"] == "" and archive["transform"].size == 0


@pytest.mark.parametrize("name", ["features.npz", "features.tif"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(nano, tmp_path, monkeypatch, name):
    images = simple_set(count=1)
    (tmp_path / name).write_text("old")

    def refuse(source: object, target: object) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        save_features(embed(nano, images), images, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "old"


def test_a_name_that_cannot_be_written_to_is_refused(nano, tmp_path):
    images = simple_set(count=1)
    features = embed(nano, images)
    with pytest.raises(ValueError, match=r"features.csv: this is written as .npz, .tif, .tiff"):
        save_features(features, images, tmp_path / "features.csv")
    with pytest.raises(FileNotFoundError, match=r"the folder .*/missing does not exist; create it first"):
        save_features(features, images, tmp_path / "missing" / "features.tif")
    assert not list(tmp_path.iterdir())
