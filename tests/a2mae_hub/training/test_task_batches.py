"""Cut, turned and mirrored: pixels, positions, grids and labels stay together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub import Image, ImageSet
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.pixels_a2mae import anchor_cells, fold_pixels
from a2mae_hub.training.labelled import IGNORED, LabelledSet
from a2mae_hub.training.task_batches import TaskCollator, cut_out, turn_sets, turned

PATCH = 8


@pytest.fixture(scope="module")
def processor() -> A2MAEImageProcessor:
    """A processor of small patches."""
    return A2MAEImageProcessor(patch_size=PATCH)


def image_set(*shapes: tuple[int, int], seed: int = 0, first: np.ndarray | None = None) -> ImageSet:
    """Images of made-up reflectance around one place, of 10 m and then of 20 m."""
    generator = np.random.default_rng(seed)
    images = []
    for number, shape in enumerate(shapes):
        pixels = generator.integers(200, 4000, (3, *shape)).astype(np.uint16)
        images.append(Image(pixels, ["B02", "B03", "B04"], "sentinel-2-l2a", gsd=10.0 * (1 + number)))
    if first is not None:
        images[0].pixels[0] = first
    return ImageSet(images, longitude=3.0, latitude=42.0)


@pytest.mark.parametrize("turn", range(8))
def test_a_turned_batch_is_that_of_turned_images(processor, turn):
    """The truth: numpy turns the images, and their place is the same as it is around their centre."""
    one = image_set((24, 40), (16, 24))
    batch = dict(processor(one, return_tensors="np"))
    turn_sets(batch, [turn], PATCH)
    images = [
        Image(np.stack([turned(band, turn) for band in image.pixels]), image.bands, image.sensor, gsd=image.gsd)
        for image in one
    ]
    expected = processor(ImageSet(images, longitude=3.0, latitude=42.0), return_tensors="np")
    for key in ("pixel_values", "image_ids", "grid_shapes", "attention_mask"):
        np.testing.assert_array_equal(batch[key], expected[key], err_msg=key)
    np.testing.assert_allclose(batch["patch_positions"], expected["patch_positions"], atol=0.5)


@pytest.mark.parametrize("epoch", range(6))
def test_labels_stay_on_their_pixels(processor, epoch):
    """Labels are the parity of the first band, whatever is cut out, turned, or missing to whole patches."""
    examples = []
    for index, shape in enumerate([(44, 30), (20, 52)]):
        first = np.random.default_rng(index).integers(1000, 1200, shape)
        examples.append(
            LabelledSet(image_set(shape, seed=index, first=first), (first % 2).astype(np.uint8), index, epoch)
        )
    batch = TaskCollator(processor, augment=True, side=3, seed=5)(examples)
    cells = anchor_cells(batch)
    for index, example in enumerate(examples):
        labels = batch["labels"][index].numpy()
        rows, columns = batch["grid_shapes"][index, 0].tolist()
        tokens = cells[index, :rows, :columns].flatten()
        whole = fold_pixels(batch["pixel_values"][index, tokens], rows, columns)[0].numpy()
        sensor = next(one for one in processor.sensors if one.name == "sentinel-2-l2a")
        band, image = sensor.find("B02"), example.image_set[0]
        assert image.pixels.shape[0] == 3
        stored = (whole * band.std + band.mean - sensor.offset) / sensor.scale
        seen = labels[: whole.shape[0], : whole.shape[1]]
        assert labels.shape >= whole.shape
        known = seen != IGNORED
        np.testing.assert_array_equal(np.rint(stored).astype(int)[known] % 2, seen[known])
        assert known.sum() == min(24, image.pixels.shape[1]) * min(24, image.pixels.shape[2])


def test_without_augmentation_a_set_is_what_it_is(processor):
    one = image_set((24, 24))
    batch = TaskCollator(processor)([LabelledSet(one, np.array(1, np.int64), 7, 3)])
    expected = processor(one, return_tensors="np")
    np.testing.assert_array_equal(batch["pixel_values"], expected["pixel_values"])
    assert batch["labels"].tolist() == [1]
    assert batch["indices"].tolist() == [7]


def test_what_is_drawn_follows_from_seed_epoch_and_set(processor):
    one = image_set((64, 64))

    def pixels(seed: int, epoch: int, index: int) -> np.ndarray:
        example = LabelledSet(one, np.zeros((64, 64), np.uint8), index, epoch)
        return TaskCollator(processor, augment=True, side=2, seed=seed)([example])["pixel_values"].numpy()

    np.testing.assert_array_equal(pixels(0, 1, 2), pixels(0, 1, 2))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not np.array_equal(pixels(0, 1, 2), pixels(*other))


def test_a_cut_keeps_its_place_on_the_ground():
    transform = (10.0, 0.0, 500_000.0, 0.0, -10.0, 4_600_000.0)
    columns, rows = np.meshgrid(np.arange(40), np.arange(32))
    pixels = np.stack([500_000 + 10 * columns, 4_600_000 - 10 * rows]).astype(float)
    one = ImageSet([Image(pixels, ["B02", "B03"], "sentinel-2-l2a", crs="EPSG:32631", transform=transform)])
    cut, label = cut_out(one, rows.astype(np.uint8), np.random.default_rng(0), (16, 16), PATCH)
    image = cut[0]
    assert image.pixels.shape == (2, 16, 16)
    assert (image.transform[2], image.transform[5]) == tuple(image.pixels[:, 0, 0])
    np.testing.assert_array_equal(4_600_000 - 10.0 * label, image.pixels[1])


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(8, 60), st.integers(8, 60)),
    st.tuples(st.integers(0, 2**16), st.integers(0, 2**16)),
)
@settings(max_examples=60, deadline=None)
def test_a_cut_holds_data_of_every_image_and_a_label_where_there_are_some(seed, shape, places):
    """Of each of two dates a single pixel may be real, or, as at the edge of a swath, all on one side of a column."""
    rows, columns = np.indices(shape)
    at = [np.unravel_index(place % rows.size, shape) for place in places]
    swath = columns >= at[0][1]
    images = [
        Image(np.where(real, 1500, 0).astype(np.uint16)[None], ["B02"], "sentinel-2-l2a", gsd=10.0, nodata=0)
        for real in (swath, (rows == at[1][0]) & (columns == at[1][1]))
    ]
    label = np.where(swath, 1, IGNORED).astype(np.uint8)
    cut, part = cut_out(ImageSet(images), label, np.random.default_rng(seed), (16, 16), PATCH)
    assert all(image.valid_values().any() for image in cut)
    assert (part != IGNORED).any()
    assert part.shape == cut[0].pixels.shape[1:]


def test_where_data_is_plenty_a_cut_is_small_however_rare_labels_are():
    one = image_set((400, 400))
    label = np.full((400, 400), IGNORED, np.uint8)
    label[3, 390:393] = 1
    for seed in range(20):
        _, part = cut_out(one, label, np.random.default_rng(seed), (16, 16), PATCH)
        assert part.shape == (16, 16) and (part == 1).any()


def test_an_image_smaller_than_a_patch_is_named(processor):
    one = ImageSet([replace(image_set((5, 30))[0], source="strip.tif")])
    example = LabelledSet(one, np.zeros((5, 30), np.uint8), 0, 0)
    with pytest.raises(
        ValueError, match=r"strip\.tif.* is 5 by 30 pixels, smaller than one patch of 8: read a larger window"
    ):
        TaskCollator(processor)([example])
