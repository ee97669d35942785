"""Images and labels from the three sources, and what is said of files that do not fit."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from a2mae_hub import write_raster
from a2mae_hub.evaluation import Task, read_recipe
from a2mae_hub.evaluation.sources import read_classified_images, read_segmented_images


@pytest.fixture
def tasks(collection) -> dict[str, Task]:
    return {task.name: task for task in read_recipe(collection / "recipe.yaml").tasks}


def changed(task: Task, **fields) -> Task:
    return dataclasses.replace(task, **fields)


def test_every_fourth_image_of_a_class_in_file_order_is_tested(tasks, collection):
    data = read_classified_images(tasks["pictures"], collection)
    assert data.classes == ["field", "forest", "town"]
    names = [image.source.rpartition(": ")[2] for image in data.images_of(test=True)]
    assert names == ["forest_3", "field_3", "town_3", "forest_7", "field_7", "town_7"]
    assert data.labels_of(test=True).tolist() == [1, 0, 2, 1, 0, 2]
    assert len(data.images_of(test=False)) == len(data.labels_of(test=False)) == 18
    image = data.images[0]
    assert image.pixels.shape == (3, 16, 16) and (image.sensor, image.scale) == ("sentinel-2-l1c", 1e-3)
    assert image.bands == ["B04", "B03", "B02"]


def test_names_may_decide_the_test_part(tasks, collection):
    task = changed(tasks["pictures"], test_every=None, test_names="_[01]$")
    assert read_classified_images(task, collection).is_test.sum() == 6
    with pytest.raises(ValueError, match=r"pictures\.parquet: 0 of 24 images are the test part.*correct test_names"):
        read_classified_images(changed(task, test_names="nothing"), collection)


def test_folders_are_classes(tasks, collection):
    data = read_classified_images(tasks["few"], collection)
    assert data.classes == ["field", "forest", "town"] and np.bincount(data.labels).tolist() == [5, 5, 5]
    assert list(data.images[0].bands) == ["B04", "B03", "B02"] and data.images[0].source.endswith("field/0.tif")


def test_images_find_their_labels_by_name(tasks, collection):
    # The pattern fits the label files as well, which are no images.
    data = read_segmented_images(tasks["water"], collection)
    assert len(data.images) == 6 and data.is_test.tolist() == [False] * 4 + [True] * 2
    for image, labels in zip(data.images, data.labels, strict=True):
        with rasterio.open(image.source.replace("image_", "label_")) as dataset:
            np.testing.assert_array_equal(labels, dataset.read(1))


def test_ignored_values_and_pixels_without_data_have_no_label(tasks, collection):
    data = read_segmented_images(tasks["cover"], collection)
    assert data.classes == ["10", "20"] and data.is_test.tolist() == [False, False, True] * 2
    assert (data.labels[0][0] == -1).all() and set(np.unique(data.labels[0][1:])) == {0, 1}
    path = collection / "water" / "image_0.tif"
    with rasterio.open(path, "r+") as dataset:
        pixels = dataset.read()
        pixels[:, 5, 5], pixels[0, 6, 6] = -9_999, -9_999
        dataset.write(pixels)
        dataset.nodata = -9_999
    labels = read_segmented_images(tasks["cover"], collection).labels[0]
    # One band of two still has data at (6, 6).
    assert labels[5, 5] == -1 and labels[6, 6] == data.labels[0][6, 6]


def test_a_class_that_only_the_test_part_has_is_never_right(tasks, collection):
    path = collection / "water" / "label_5.tif"
    labels = np.full((2, 32, 32), 15, np.uint8)
    write_raster(path, labels)
    data = read_segmented_images(tasks["cover"], collection)
    assert data.classes == ["10", "20"] and (data.labels[5] == 2).all()
    # As the values are 10, 15 and 20, order alone would have given 1.
    assert set(np.unique(data.labels[0])) == {-1, 0, 1}


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("pictures", {"parquet": "none.parquet"}, r"none\.parquet: no such file"),
        ("few", {"folders": "nothing/*"}, "nothing fits; check folders"),
        ("few", {"folders": "water/*"}, "no folder that this fits holds a raster"),
        ("water", {"images": "*.tif"}, "nothing fits; check images"),
        ("water", {"labels": ("picture_", "label_")}, "has 'picture_' in its name"),
        ("water", {"labels": ("image_", "mask_")}, r"mask_0\.tif: no such labels of .*image_0\.tif"),
    ],
)
def test_what_is_not_there_is_named(name, fields, said, tasks, collection):
    read = read_segmented_images if name == "water" else read_classified_images
    with pytest.raises(FileNotFoundError, match=said):
        read(changed(tasks[name], **fields), collection)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"label_band": 3}, "has 2 bands, so label_band 3 is none"),
        ({"ignore": (0, 10, 20)}, "the training labels hold 0 classes"),
    ],
)
def test_labels_that_cannot_be_used_are_named(fields, said, tasks, collection):
    with pytest.raises(ValueError, match=said):
        read_segmented_images(changed(tasks["cover"], **fields), collection)


def test_labels_of_another_size_are_named(tasks, collection):
    write_raster(collection / "water" / "label_3.tif", np.zeros((2, 16, 16), np.uint8))
    with pytest.raises(ValueError, match=r"label_3\.tif: 16 × 16 labels do not lie on the 32 × 32 pixels"):
        read_segmented_images(tasks["water"], collection)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [b"x"], "label": ["a"]}, "no column 'name'"),
        ({"image": [b"x"], "label": ["a"], "name": ["a1"]}, "a1: cannot be decoded"),
        ({"image": ["x"], "label": ["a"], "name": ["a1"]}, "a1: the column image holds str"),
    ],
)
def test_a_parquet_file_of_something_else_is_named(columns, said, tasks, collection):
    pq.write_table(pa.table(columns), collection / "pictures.parquet")
    with pytest.raises(ValueError, match=rf"pictures\.parquet: .*{said}|pictures\.parquet: {said}"):
        read_classified_images(tasks["pictures"], collection)


def test_a_picture_of_other_bands_is_named(tasks, collection):
    with pytest.raises(ValueError, match="forest_0: holds 3 bands, and the recipe names 2"):
        read_classified_images(changed(tasks["pictures"], bands=("B04", "B03")), collection)


def test_the_open_data_split_as_the_recipe_promises(shared):
    from pathlib import Path

    repository = Path(__file__).resolve().parents[3]
    recipe = read_recipe(repository / "docs/recipes/open_evaluation.yaml", shared / "data")
    water = next(task for task in recipe.tasks if task.name == "hls-worldcover")
    data = read_segmented_images(water, recipe.root)
    assert (len(data.images), data.is_test.sum()) == (120, 20)
    assert data.classes == ["10", "20", "30", "40", "50", "60", "70", "80", "90", "100"]
    assert all((labels >= 0).all() for labels in data.labels)
