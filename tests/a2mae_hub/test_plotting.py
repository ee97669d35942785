"""Figures show the right bands, stretch input and reconstruction alike, and are written whole."""

import sys
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from a2mae_hub.images import Image, ImageSet
from a2mae_hub.modeling.sensors_a2mae import get_sensor
from a2mae_hub.plotting import (
    composite,
    display_bands,
    physical_pixels,
    plot_embedding,
    plot_reconstruction,
    principal_colours,
    stretch_limits,
)

image_files = pytest.importorskip("matplotlib.image", reason="figures need the extra [plot]")
RNG_SEED = 3


def two_images() -> ImageSet:
    rng = np.random.default_rng(RNG_SEED)
    sentinel = Image(
        rng.integers(200, 4000, (4, 24, 24), np.uint16),
        ["B02", "B03", "B04", "B08"],
        "sentinel-2-l2a",
        datetime(2023, 7, 5, 10),
        crs="EPSG:32632",
        transform=(10, 0, 5e5, 0, -10, 5.3e6),
        nodata=0,
    )
    landsat = Image(
        rng.integers(8000, 16000, (2, 8, 8), np.uint16), ["B4", "B5"], "landsat-8-sr", crs="EPSG:4326", gsd=30.0
    )
    return ImageSet([sentinel, landsat])


def reconstructions_and_masks(images: ImageSet):
    drawn = [physical_pixels(image) + 0.01 for image in images]
    masks = [np.arange(image.pixels[0].size).reshape(image.pixels.shape[1:]) % 4 > 0 for image in images]
    return drawn, masks


# ------------------------------------------------------------------------------------------------------------ composite


@pytest.mark.parametrize(
    ("sensor", "bands", "shown"),
    [
        ("sentinel-2-l2a", ["B02", "B03", "B04", "B08"], ["B04", "B03", "B02"]),
        ("sentinel-2-l2a", ["nir", "blue", "green", "red"], ["red", "green", "blue"]),
        ("landsat-8-sr", ["B3", "B4", "B5"], ["B5", "B4", "B3"]),
        ("naip", ["nir", "red", "green"], ["nir", "red", "green"]),
        ("sentinel-2-l2a", ["B11", "B12"], ["B11", "B11", "B11"]),
    ],
)
def test_true_colour_goes_before_false_colour_and_that_before_grey(sensor, bands, shown):
    assert [bands[index] for index in display_bands(bands, sensor)] == shown


def test_a_sensor_that_is_not_registered_can_be_shown():
    assert display_bands(["B04", "B03", "B02"], get_sensor("sentinel-2-l2a")) == [0, 1, 2]


def test_a_band_the_sensor_lacks_is_refused():
    with pytest.raises(ValueError, match="no band 'B99'"):
        display_bands(["B99"], "sentinel-2-l2a")


def test_a_brighter_place_is_shown_brighter_and_the_limits_are_black_and_full():
    ramp = np.linspace(0.0, 0.3, 16).reshape(1, 4, 4).repeat(3, axis=0)
    limits = np.array([[0.1, 0.2]] * 3)
    picture = composite(ramp, ["B04", "B03", "B02"], "sentinel-2-l2a", limits=limits)
    shown = picture[..., 0].ravel()
    assert picture.shape == (4, 4, 3)
    assert (shown[ramp[0].ravel() <= 0.1] == 0).all() and (shown[ramp[0].ravel() >= 0.2] == 1).all()
    inner = shown[(ramp[0].ravel() > 0.1) & (ramp[0].ravel() < 0.2)]
    assert (np.diff(inner) > 0).all()


def test_every_colour_shows_its_own_band():
    pixels = np.zeros((3, 2, 2))
    pixels[1] = 1.0  # green
    picture = composite(pixels, ["B02", "B03", "B04"], "sentinel-2-l2a", limits=np.array([[0.0, 1.0]] * 3))
    assert picture[0, 0].tolist() == [0.0, 1.0, 0.0]


def test_grey_ground_stays_grey_in_true_colour_whatever_the_range_of_each_band():
    pixels = np.random.default_rng(0).uniform(0.1, 0.2, (3, 8, 8))
    pixels[0] *= 2  # red varies most
    pixels[:, 4, 4] = 0.15
    picture = composite(pixels, ["B04", "B03", "B02"], "sentinel-2-l2a")
    assert np.ptp(picture[4, 4]) < 1e-12 and 0 < picture[4, 4, 0] < 1


def test_places_without_data_are_light_grey_whatever_the_band_that_lacks_them():
    pixels = np.random.default_rng(0).uniform(size=(3, 5, 5))
    pixels[2, 1, 1] = np.nan
    picture = composite(pixels, ["B04", "B03", "B02"], "sentinel-2-l2a")
    assert len(set(picture[1, 1])) == 1 and picture[1, 1, 0] > 0.85
    assert np.isfinite(picture).all()


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        (3, 3, 4),
        elements=st.one_of(st.floats(-(2.0**10), 2.0**10, width=32), st.just(np.float32(np.nan))),
    )
)
def test_any_values_become_colours_between_0_and_1(pixels):
    picture = composite(pixels, ["B04", "B03", "B02"], "sentinel-2-l2a")
    assert picture.shape == (3, 4, 3)
    assert picture.min() >= 0 and picture.max() <= 1


def test_limits_are_percentiles_of_the_real_values():
    band = np.arange(101.0)
    limits = stretch_limits(np.stack([band, np.full(101, np.nan), np.where(band > 50, np.nan, band)])[:, None])
    np.testing.assert_allclose(limits, [[2, 98], [0, 1], [1, 49]])


def test_a_name_is_needed_for_every_band():
    with pytest.raises(ValueError, match="one name per band"):
        composite(np.zeros((3, 2, 2)), ["B04"], "sentinel-2-l2a")


def test_physical_values_follow_scale_offset_and_nodata():
    pixels = np.array([[[0, 10_000]], [[7_273, 20_000]]], np.uint16)
    image = Image(pixels, ["B4", "B5"], "landsat-8-sr", nodata=0, valid=np.array([[True, True]]))
    physical = physical_pixels(image)
    # USGS: reflectance = number × 0.0000275 − 0.2.
    np.testing.assert_allclose(physical, [[[np.nan, 0.075]], [[7_273 * 2.75e-5 - 0.2, 0.35]]], rtol=1e-5, atol=1e-6)
    image.scale, image.offset, image.valid = [1.0, 2.0], [0.0, 5.0], np.array([[True, False]])
    np.testing.assert_allclose(physical_pixels(image), [[[np.nan, np.nan]], [[14_551.0, np.nan]]])


# -------------------------------------------------------------------------------------------------------------- figures


def test_a_reconstruction_is_drawn_with_one_row_an_image(tmp_path):
    images = two_images()
    path = plot_reconstruction(images, *reconstructions_and_masks(images), tmp_path / "out" / "two.png", title="Two")
    both = image_files.imread(path)
    assert [file.name for file in path.parent.iterdir()] == ["two.png"]
    images.images.pop()
    one = image_files.imread(
        plot_reconstruction(images, *reconstructions_and_masks(images), tmp_path / "one.png", title="Two")
    )
    assert both.shape[1] == one.shape[1]
    assert both.shape[0] - one.shape[0] == pytest.approx(1.9 * 150, abs=1)
    assert both[..., :3].std() > 0.1


def test_one_cloudy_date_of_three_does_not_change_how_the_others_are_drawn(tmp_path):
    def top_rows(cloudy: bool) -> np.ndarray:
        image = two_images()[0]
        third = Image(np.full_like(image.pixels, 9_000) if cloudy else image.pixels, image.bands, image.sensor)
        images = ImageSet([image, two_images()[0], third])
        picture = plot_reconstruction(images, *reconstructions_and_masks(images), tmp_path / f"{cloudy}.png")
        return image_files.imread(picture)[: int(2 * 1.9 * 150), : int(5 * 1.9 * 150)]

    np.testing.assert_array_equal(top_rows(cloudy=True), top_rows(cloudy=False))


def test_rows_are_as_high_as_the_images_are(tmp_path):
    image = two_images()[0]
    image.pixels = image.pixels[:, :12]
    images = ImageSet([image])
    path = plot_reconstruction(images, *reconstructions_and_masks(images), tmp_path / "wide.png")
    square = ImageSet([two_images()[0]])
    other = plot_reconstruction(square, *reconstructions_and_masks(square), tmp_path / "square.png")
    heights = [image_files.imread(one).shape[0] for one in (path, other)]
    assert heights[1] - heights[0] == pytest.approx(0.5 * 1.9 * 150, abs=1)


def test_hidden_patches_are_grey_in_the_second_panel_only(tmp_path):
    images = two_images()
    images.images.pop()
    drawn, _ = reconstructions_and_masks(images)
    pictures = [
        image_files.imread(plot_reconstruction(images, drawn, [np.full((24, 24), hidden)], tmp_path / "a.png"))
        for hidden in (False, True)
    ]
    columns = np.flatnonzero((pictures[0] != pictures[1]).any(axis=(0, 2)))
    # The panel is 1.84 inches of 150 dots wide.
    assert np.ptp(columns) < 1.9 * 150
    assert columns.min() > (1.25 + 1.9) * 150 - 2 and columns.max() < (1.25 + 2 * 1.9) * 150
    inside = pictures[1][150:200, columns.min() + 5 : columns.max() - 5, :3]
    assert inside.std() < 1e-6


def test_images_of_different_units_are_drawn_together(tmp_path):
    images = two_images()
    aerial = Image(np.full((4, 6, 9), 120, np.uint8), ["red", "green", "blue", "nir"], "naip", gsd=1.0)
    images.images.insert(1, aerial)
    path = plot_reconstruction(images, *reconstructions_and_masks(images), tmp_path / "units.png")
    assert image_files.imread(path).shape[0] > 3 * 1.9 * 150


def test_a_set_with_a_mask_or_reconstruction_too_few_is_refused(tmp_path):
    images = two_images()
    drawn, masks = reconstructions_and_masks(images)
    with pytest.raises(ValueError, match="2 images, 2 reconstructions and 1 masks"):
        plot_reconstruction(images, drawn, masks[:1], tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"Image 1 .*mask of shape \(24, 24\)"):
        plot_reconstruction(images, drawn, masks[:1] * 2, tmp_path / "x.png")
    with pytest.raises(ValueError, match="0 images"):
        plot_reconstruction(ImageSet(), [], [], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_figure_in_an_unknown_format_leaves_no_file_behind(tmp_path):
    with pytest.raises(ValueError, match="not supported"):
        plot_embedding(np.random.default_rng(0).normal(size=(4, 5, 5)), tmp_path / "figure.xyz")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install a2mae-hub\[plot\]"):
        plot_embedding(np.ones((3, 4, 4)), tmp_path / "figure.png")


# ----------------------------------------------------------------------------------------------------------- embeddings


def test_principal_colours_separate_what_the_features_separate():
    rng = np.random.default_rng(RNG_SEED)
    classes = rng.integers(0, 3, (12, 12))
    centres = rng.normal(size=(3, 20))
    colours = principal_colours(np.moveaxis(centres[classes] + 0.01 * rng.normal(size=(12, 12, 20)), -1, 0))
    means = np.stack([colours[classes == k].mean(axis=0) for k in range(3)])
    # The first two components hold three classes.
    for k in range(3):
        assert colours[classes == k][:, :2].std(axis=0).max() < 0.1
        assert np.abs(means[k] - means[k - 1])[:2].max() > 0.5


def test_principal_colours_do_not_depend_on_the_basis_of_the_features():
    rng = np.random.default_rng(RNG_SEED)
    features = rng.normal(size=(6, 8, 8)) * np.array([9, 5, 3, 1, 1, 1])[:, None, None]
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    plain, turned = principal_colours(features), principal_colours(np.tensordot(rotation, features, axes=1))
    # Up to the direction of each component, which has no meaning.
    for band in range(3):
        flipped = 1 - turned[..., band]
        assert min(np.abs(plain[..., band] - x).max() for x in (turned[..., band], flipped)) < 1e-6


@pytest.mark.parametrize("features", [1, 2, 5])
def test_few_features_and_gaps_are_drawn(features, tmp_path):
    maps = np.random.default_rng(RNG_SEED).normal(size=(features, 4, 6))
    maps[0, 0, 0] = np.nan
    colours = principal_colours(maps)
    assert np.isfinite(colours).all() and colours[0, 0, 0] == colours[0, 0, 2] > 0.85
    path = plot_embedding(maps, tmp_path / "map.png", background=np.full((40, 60, 3), 0.5), title="Map")
    alone = plot_embedding(maps, tmp_path / "alone.png")
    assert image_files.imread(path).shape[1] == 2 * image_files.imread(alone).shape[1]


def test_feature_maps_without_a_finite_place_or_of_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        principal_colours(np.full((3, 2, 2), np.nan))
    with pytest.raises(ValueError, match="features, height, width"):
        principal_colours(np.zeros((4, 4)))
