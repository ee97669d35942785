"""Views of image sets: turned as a whole, the same from the same seed, on the ground they came from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from rasterio.transform import Affine

from a2mae_hub.images import Image, ImageSet
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.stssd.schema import SCHEMA, StoredImage, StoredSet, decode, to_row
from a2mae_hub.training.augmentation import PretrainingCollator, _part, turn_patches

PATCH = 8
BANDS = ("B02", "B03", "B04", "B08", "B11", "B12")
UTM = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 500_000.0, 0.0, -10.0, 4_700_000.0)}


def image(
    seed: int = 0, *, side: int = 48, bands: tuple[str, ...] = BANDS, sensor: str = "sentinel-2-l2a"
) -> StoredImage:
    """Return an image of made-up reflectance."""
    pixels = np.random.default_rng(seed).integers(200, 4000, (len(bands), side, side)).astype(np.uint16)
    return StoredImage(pixels, list(bands), "sentinel-2-l2a", **UTM)


def examples(*sets: StoredSet) -> list[dict]:
    """Return sets as a stream gives them, with a seed each."""
    rows = list(decode(pa.Table.from_pylist([to_row(one) for one in sets], schema=SCHEMA), "sets"))
    return [{**row, "seed": 1000 + number, "anchor": 0} for number, row in enumerate(rows)]


def image_set(number: int, *images: StoredImage) -> StoredSet:
    """Return a stored set."""
    return StoredSet(images=list(images), id=f"set-{number}")


@pytest.fixture(scope="module")
def processor() -> A2MAEImageProcessor:
    """A processor of small patches."""
    return A2MAEImageProcessor(patch_size=PATCH)


def picture(batch: dict, index: int = 0) -> np.ndarray:
    """Lay the patches of a set of one image out by where they say they lie; (bands, rows, columns)."""
    values, places = batch["pixel_values"][index], batch["patch_positions"][index]
    north, east = (places[:, axis] / (10 * PATCH) for axis in (0, 1))
    rows = np.rint(north.max() - north).astype(int)
    columns = np.rint(east - east.min()).astype(int)
    whole = np.full((values.shape[1], (rows.max() + 1) * PATCH, (columns.max() + 1) * PATCH), np.nan)
    for patch, row, column in zip(values, rows, columns, strict=True):
        square = patch.reshape(-1, PATCH, PATCH)
        whole[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = square
    return whole


def test_a_view_lies_anywhere_in_a_larger_scene(processor: A2MAEImageProcessor) -> None:
    """Moved as a whole: distances between patches stay, and of many sets no two have their origin at one place."""
    batch = PretrainingCollator(processor)(examples(*[image_set(number, image(number)) for number in range(8)]))
    centres = []
    for index, shape in enumerate(batch["grid_shapes"].numpy()[:, 0]):
        positions = batch["patch_positions"][index, : shape.prod()].numpy()
        side = batch["ground_resolutions"][index, 0].item() * PATCH
        np.testing.assert_allclose(np.ptp(positions, axis=0).sum(), (shape - 1).sum() * side, rtol=1e-4)
        centres.append(positions.mean(0) / side)
    assert len(np.unique(np.round(centres, 3), axis=0)) == 8
    assert 4 < np.abs(centres).max() <= 16.5


TURNS = {
    0: lambda x: x,
    1: lambda x: x[:, :, ::-1],
    2: lambda x: x[:, ::-1],
    3: lambda x: x[:, ::-1, ::-1],
    4: lambda x: x.swapaxes(1, 2),
    5: lambda x: x[:, :, ::-1].swapaxes(1, 2),
    6: lambda x: x[:, ::-1].swapaxes(1, 2),
    7: lambda x: x[:, ::-1, ::-1].swapaxes(1, 2),
}


@pytest.mark.parametrize("turn", TURNS)
def test_pixels_and_positions_turn_together(turn: int, processor: A2MAEImageProcessor) -> None:
    oblong = replace(image(), pixels=image().pixels[:, :, :32])
    batch = dict(processor([[oblong]], return_tensors="np"))
    before = picture(batch)
    turn_patches(batch, [turn], PATCH)
    np.testing.assert_array_equal(picture(batch), TURNS[turn](before))


def test_all_images_of_a_set_turn_alike(processor: A2MAEImageProcessor) -> None:
    fine, coarse = image(1), image(2, side=24)
    coarse = replace(coarse, transform=(20.0, 0.0, 500_000.0, 0.0, -20.0, 4_700_000.0))
    batch = dict(processor([[fine, coarse]], return_tensors="np"))
    before = batch["patch_positions"][0].copy()
    turn_patches(batch, [5], PATCH)
    # East mirrored, then rows and columns swapped: north becomes mirrored east's opposite, east the opposite of north.
    np.testing.assert_allclose(batch["patch_positions"][0], np.stack([before[:, 1], -before[:, 0]], axis=-1))


def test_a_view_depends_on_its_seed_and_on_nothing_else_in_the_batch(processor: A2MAEImageProcessor) -> None:
    small, large = image_set(0, image(3, side=32)), image_set(1, image(4), image(5), image(6))
    collate = PretrainingCollator(processor, views=2)
    one, two = examples(small, large)
    alone, together = collate([two]), collate([one, two])
    length, bands = alone["pixel_values"].shape[1:3]
    for key in ("pixel_values", "patch_positions", "image_ids"):
        own = together[key][2:, :length]
        torch.testing.assert_close(own[:, :, :bands] if key == "pixel_values" else own, alone[key])
    torch.testing.assert_close(together["noise"][2:, :, :length], alone["noise"])
    assert together["set_ids"].tolist() == [1000, 1000, 1001, 1001]
    assert not torch.equal(alone["noise"][0], alone["noise"][1])
    other = collate([{**two, "seed": 77}])
    assert other["pixel_values"].shape != alone["pixel_values"].shape or not torch.equal(
        other["pixel_values"], alone["pixel_values"]
    )


def test_a_part_lies_where_it_was_cut_from() -> None:
    whole = replace(
        image(7), valid=np.random.default_rng(0).random((48, 48)) > 0.3, scale=[1e-4 * k for k in range(1, 7)]
    )
    part = _part(whole, [4, 1], 0.5, np.array([0.7, 0.2]), PATCH, 1.0)
    assert part.pixels.shape == (2, 24, 24)
    assert list(part.bands) == ["B11", "B03"]
    assert part.scale == [5e-4, 2e-4]
    column, row = ~Affine(*UTM["transform"]) @ (part.transform[2], part.transform[5])
    row, column = round(row), round(column)
    np.testing.assert_array_equal(part.pixels, whole.pixels[[4, 1], row : row + 24, column : column + 24])
    np.testing.assert_array_equal(part.valid, whole.valid[row : row + 24, column : column + 24])


@pytest.mark.parametrize("zoom", [1.3, 2.0])
def test_what_is_magnified_stays_where_it_is_on_the_ground(zoom: float) -> None:
    rows, columns = np.mgrid[:48, :48] + 0.5
    east, north = 10 * columns, -10 * rows
    ramp = (1000 + 2 * east + 3 * north)[None].astype(np.int16)
    hole = np.zeros((48, 48), bool)
    hole[:, 20:24] = True
    whole = StoredImage(np.where(hole, -1, ramp), ["B02"], "sentinel-2-l2a", nodata=-1, **UTM)
    part = _part(whole, [0], 1.0, np.array([0.4, 0.6]), PATCH, zoom)
    assert part.pixels.shape == (1, 48, 48)
    assert part.valid.mean() == pytest.approx(1 - 4 * zoom / 48, abs=0.05)
    a, b, c, d, e, f = part.transform
    assert (a, e) == pytest.approx((10 / zoom, -10 / zoom), rel=0.02)
    east, north = c + a * columns + b * rows - 500_000, f + d * columns + e * rows - 4_700_000
    # Near holes and edges a pixel takes the value of its neighbours; everywhere else a plane stays that plane.
    inner = np.zeros((48, 48), bool)
    inner[2:-2, 2:-2] = True
    for shift in range(-3, 4):
        inner &= np.roll(part.valid[0], shift, axis=1)
    assert inner.sum() > 500
    np.testing.assert_allclose(part.pixels[0][inner], (1000 + 2 * east + 3 * north)[inner], atol=1.5)


def test_views_are_parts_of_their_sets_and_keep_the_anchor(processor: A2MAEImageProcessor) -> None:
    collate = PretrainingCollator(processor, images=2, side=4)
    dates = [replace(image(number, side=80), sensor="sentinel-2-l2a") for number in range(4)]
    seen: list[tuple[int, int]] = []
    for seed in range(60):
        [example] = examples(image_set(0, *dates))
        batch = collate([{**example, "seed": seed, "anchor": 2}])
        count = int((batch["grid_shapes"][0].prod(-1) > 0).sum())
        assert batch["grid_shapes"].max() <= 4
        assert int(batch["anchor_ids"][0]) < count <= 2
        seen.append((count, int((batch["band_wavelengths"][0, 0] > 0).sum())))
    assert {count for count, _ in seen} == {1, 2}
    assert {bands for _, bands in seen} == {3, 4, 5, 6}


def test_absent_bands_and_missing_values_stay_zero(processor: A2MAEImageProcessor) -> None:
    holes = image(8)
    holes = replace(holes, valid=np.random.default_rng(1).random(holes.pixels.shape) > 0.5)
    few = image(9, bands=("B02", "B04"))
    batch = PretrainingCollator(processor)(examples(image_set(0, holes), image_set(1, few, few)))
    assert (batch["pixel_values"][~batch["pixel_mask"]] == 0).all()
    absent = (batch["band_wavelengths"] == 0).gather(
        1, batch["image_ids"][..., None].expand(-1, -1, batch["band_wavelengths"].shape[2])
    )
    assert (batch["pixel_values"][absent] == 0).all()


def test_without_augmentation_a_view_is_the_set_itself(processor: A2MAEImageProcessor) -> None:
    pair = image_set(0, image(10), image(11))
    batch = PretrainingCollator(processor, augment=False)(examples(pair))
    expected = processor([ImageSet([Image(one.pixels, BANDS, one.sensor, **UTM) for one in pair])], return_tensors="pt")
    torch.testing.assert_close(batch["pixel_values"], expected["pixel_values"])
    torch.testing.assert_close(batch["patch_positions"], expected["patch_positions"])


def test_numbers_below_one_are_refused(processor: A2MAEImageProcessor) -> None:
    with pytest.raises(ValueError, match="views=0"):
        PretrainingCollator(processor, views=0)
