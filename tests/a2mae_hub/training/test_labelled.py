"""Labelled images as they lie in folders, tables, pairs, triples, shards and data sets; and what is wrong with them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub import Image, ImageSet, write_raster
from a2mae_hub.training.label_files import LabelledFiles, check_grid, read_mask
from a2mae_hub.training.labelled import IGNORED, assemble, from_dataset, read_labelled

BANDS = ("B02", "B03", "B04", "B08")
PLACE = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 500_000.0, 0.0, -10.0, 4_600_000.0)}


def write_image(path: Path, size: tuple[int, int] = (16, 16), value: int = 1500) -> Path:
    """Write a raster of one value that says what it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((4, *size), value, np.uint16)
    write_raster(path, pixels, descriptions=BANDS, tags={"sensor": "sentinel-2-l2a"}, nodata=0, **PLACE)
    return path


def write_mask(path: Path, values: np.ndarray, **facts) -> Path:
    """Write a mask on the pixels of `write_image`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_raster(path, values, **{**PLACE, **facts})
    return path


def names_of(part) -> list[str]:
    """The file names of a part."""
    return sorted(Path(name).name for name in part.names)


@pytest.fixture
def class_folders(tmp_path) -> Path:
    """Ten images of water and five of wood, none with the name of another."""
    for number in range(15):
        write_image(tmp_path / "data" / ("water" if number < 10 else "wood") / f"{number}.tif", value=1000 + number)
    return tmp_path / "data"


@pytest.fixture
def pairs(tmp_path) -> Path:
    """Four images with masks of the values 2, 5, and 9 for unknown."""
    for number in range(4):
        write_image(tmp_path / "data" / "images" / f"{number}.tif")
        values = np.array([[2, 5], [5, 9]], np.uint8).repeat(8, 0).repeat(8, 1)
        write_mask(tmp_path / "data" / "masks" / f"{number}.tif", values)
    return tmp_path / "data"


def test_folders_are_classes_and_each_gives_its_share_for_validation(class_folders):
    data = read_labelled("classification", class_folders, validation=0.2, seed=3)
    assert (data.problem_type, data.classes) == ("single_label_classification", ["water", "wood"])
    assert [np.bincount(part.labels).tolist() for part in (data.train, data.validation)] == [[8, 4], [2, 1]]
    for part in (data.train, data.validation):
        for index, name in enumerate(part.names):
            assert part[index].label == (Path(name).parent.name == "wood")
            assert part[index].image_set[0].pixels.max() == 1000 + int(Path(name).stem)


def test_the_split_is_a_function_of_the_seed(class_folders):
    first, again, other = (
        names_of(read_labelled("classification", class_folders, seed=seed).validation) for seed in (0, 0, 1)
    )
    assert first == again != other


def test_folders_train_and_validation_are_the_split(tmp_path):
    for split, names in (("train", "abc"), ("validation", "de")):
        for name in names:
            for label in ("x", "y"):
                write_image(tmp_path / split / label / f"{name}.tif")
    data = read_labelled("classification", tmp_path)
    assert names_of(data.validation) == ["d.tif", "d.tif", "e.tif", "e.tif"]


def test_with_a_folder_test_the_validation_part_is_drawn_from_the_folder_train(tmp_path):
    for split, names in (("train", "abcd"), ("test", "ef")):
        for name in names:
            for label in ("x", "y"):
                write_image(tmp_path / split / label / f"{name}.tif")
    data = read_labelled("classification", tmp_path, validation=0.25)
    assert sorted(names_of(data.test)) == ["e.tif", "e.tif", "f.tif", "f.tif"]
    assert sorted(names_of(data.train) + names_of(data.validation)) == sorted(f"{name}.tif" for name in "aabbccdd")
    assert sorted(int(label) for label in data.validation.labels) == [0, 1]


def test_parts_may_have_other_usual_names(tmp_path):
    for split, name in (("Training", "a"), ("val", "b"), ("testing", "c")):
        for label in ("x", "y"):
            write_image(tmp_path / split / label / f"{name}.tif")
    data = read_labelled("classification", tmp_path)
    assert [names_of(part)[0] for part in data.parts().values()] == ["a.tif", "b.tif", "c.tif"]


def test_numbers_of_a_geojson_are_values_as_in_a_csv(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"{number}.tif")
    rows = [{"file": f"{number}.tif", "label": [3, 1.5, 2, 0][number]} for number in range(4)]
    path = tmp_path / "labels.geojson"
    path.write_text(json.dumps({"features": [{"type": "Feature", "properties": row} for row in rows]}))
    assert read_labelled("classification", path, validation=0.5).problem_type == "regression"


def test_files_that_gdal_reaches_otherwise_keep_their_names(tmp_path):
    with ZipFile(tmp_path / "chips.zip", "w") as archive:
        for number in range(4):
            archive.write(write_image(tmp_path / f"{number}.tif", value=1000 + number), f"{number}.tif")
    rows = [f"/vsizip/{tmp_path}/chips.zip/{number}.tif,{'ab'[number % 2]}" for number in range(4)]
    (tmp_path / "labels.csv").write_text("file,label\n" + "\n".join(rows))
    data = read_labelled("classification", tmp_path / "labels.csv", validation=0.5)
    assert data.train.names[0].startswith("/vsizip//")
    assert data.train[0].image_set[0].pixels.max() >= 1000


def test_without_a_test_part_there_is_none(class_folders):
    data = read_labelled("classification", class_folders)
    assert data.test is None and set(data.parts()) == {"train", "validation"}


def test_a_column_tells_the_part_of_every_image(tmp_path):
    parts = ["train", "test", "validation", "train", "test", "train"]
    lines = ["file,label,split"]
    for number, part in enumerate(parts):
        write_image(tmp_path / f"{number}.tif")
        lines.append(f"{number}.tif,{'ab'[number % 2]},{part}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines))
    data = read_labelled("classification", table)
    assert {name: names_of(part) for name, part in data.parts().items()} == {
        "train": ["0.tif", "3.tif", "5.tif"],
        "validation": ["2.tif"],
        "test": ["1.tif", "4.tif"],
    }
    table.write_text("\n".join(lines).replace("validation", "dev"))
    refused("'dev' is none of train, validation and test", "classification", table)


def test_a_folder_in_a_class_is_one_set_of_several_dates(tmp_path):
    for label in ("x", "y"):
        for place in ("1", "2"):
            for day in ("20200101", "20200301"):
                write_image(tmp_path / label / place / f"{day}.tif")
    data = read_labelled("classification", tmp_path, validation=0.5)
    assert [len(data.train[index].image_set) for index in range(len(data.train))] == [2, 2]


@pytest.mark.parametrize(
    ("labels", "problem", "classes", "first"),
    [
        (["sea", "land", "sea", "land"], "single_label_classification", ["land", "sea"], 1),
        (
            ["sea;beach", "land", "land;beach", "sea;land"],
            "multi_label_classification",
            ["beach", "land", "sea"],
            [1, 0, 1],
        ),
        (["0.5", "1", "2.25", "-1"], "regression", ["value 0"], [0.5]),
        (["1;2", "3;4", "5;6", "7;8"], "regression", ["value 0", "value 1"], [1, 2]),
    ],
    ids=["one", "several", "number", "numbers"],
)
def test_a_table_tells_by_its_labels_what_the_problem_is(tmp_path, labels, problem, classes, first):
    lines = ["file,label,split"]
    for number, label in enumerate(labels):
        write_image(tmp_path / "chips" / f"{number}.tif")
        lines.append(f"chips/{number}.tif,{label},{'validation' if number == 3 else 'train'}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines))
    data = read_labelled("classification", table)
    assert (data.problem_type, data.classes, len(data.validation)) == (problem, classes, 1)
    np.testing.assert_array_equal(data.train.labels[0], first)


def test_numbers_are_classes_where_classes_are_named(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"{number}.tif")
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "\n".join(f"{number}.tif,{number % 2}" for number in range(4)))
    data = read_labelled("classification", table, classes=["dry", "wet"], validation=0.5)
    assert (data.problem_type, data.classes) == ("single_label_classification", ["dry", "wet"])
    for name, label in zip(data.train.names, data.train.labels, strict=True):
        assert label == int(Path(name).stem) % 2


def test_a_geojson_is_a_table_of_its_properties(tmp_path):
    features = []
    for number in range(4):
        write_image(tmp_path / f"{number}.tif")
        facts = {"image": f"{number}.tif", "label": "ab"[number % 2]}
        features.append({"type": "Feature", "geometry": None, "properties": facts})
    path = tmp_path / "labels.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    data = read_labelled("classification", path, validation=0.5)
    assert data.classes == ["a", "b"]


def test_masks_give_the_class_of_every_pixel(pairs):
    data = read_labelled("segmentation", pairs, ignore=[9], validation=0.5)
    assert data.classes == ["2", "5"]
    np.testing.assert_array_equal(data.train[0].label[::8, ::8], [[0, 1], [1, IGNORED]])


def test_classes_of_masks_are_named_by_the_stored_number(pairs):
    names = {2: "land", 5: "water", 9: "cloud"}
    assert read_labelled("segmentation", pairs, classes=names, validation=0.5).classes == ["land", "water", "cloud"]


def test_pixels_without_data_have_no_label(tmp_path):
    for number in range(2):
        path = write_image(tmp_path / "images" / f"{number}.tif")
        pixels = np.full((4, 16, 16), 1500, np.uint16)
        pixels[:, :3] = 0
        write_raster(path, pixels, descriptions=BANDS, tags={"sensor": "sentinel-2-l2a"}, nodata=0, **PLACE)
        write_mask(tmp_path / "masks" / f"{number}.tif", np.eye(16, dtype=np.uint8))
    label = read_labelled("segmentation", tmp_path, validation=0.5).train[0].label
    assert (label[:3] == IGNORED).all()
    assert not (label[3:] == IGNORED).any()


def test_names_that_differ_are_matched_by_what_the_star_stands_for(tmp_path):
    for number in range(4):
        write_image(tmp_path / f"image_{number}.tif")
        write_mask(tmp_path / f"label_{number}.tif", np.eye(16, dtype=np.uint8))
    data = read_labelled("segmentation", tmp_path, images="image_*.tif", masks="label_*.tif", validation=0.25)
    assert (len(data.train), len(data.validation)) == (3, 1)


def test_triples_are_sets_of_before_and_after(tmp_path):
    for number in range(4):
        write_image(tmp_path / "2019" / f"{number}.tif", value=1000)
        write_image(tmp_path / "2020" / f"{number}.tif", value=2000)
        write_mask(tmp_path / "masks" / f"{number}.tif", 255 * np.eye(16, dtype=np.uint8))
    data = read_labelled("change", tmp_path, before="2019/*.tif", after="2020/*.tif", validation=0.5)
    assert data.classes == ["unchanged", "changed"]
    example = data.train[0]
    assert [image.pixels.max() for image in example.image_set] == [1000, 2000]
    np.testing.assert_array_equal(example.label, np.eye(16))


def test_shards_with_a_label_column(tmp_path, make_set, write_shards):
    sets = [make_set(number, split="validation" if number > 5 else "train") for number in range(8)]
    write_shards(tmp_path, sets, columns={"label": ["ab"[number % 2] for number in range(8)]})
    data = read_labelled("classification", tmp_path)
    assert (data.classes, len(data.train), len(data.validation)) == (["a", "b"], 6, 2)
    by_name = dict(zip(data.train.names, range(6), strict=True))
    example = data.train[by_name["grid-0003"]]
    assert example.label == 1
    np.testing.assert_array_equal(example.image_set[0].pixels, sets[3][0].pixels)


@pytest.mark.parametrize(("task", "classes"), [("segmentation", ["0", "1"]), ("change", ["unchanged", "changed"])])
def test_shards_with_a_column_of_masks(tmp_path, make_set, write_shards, task, classes):
    sets = [make_set(number, split="validation" if number > 3 else "train") for number in range(6)]
    masks = [np.random.default_rng(number).choice([0, 1, 7, 255], (16, 16)).astype(np.uint8) for number in range(6)]
    write_shards(tmp_path, sets, columns={"mask": [mask.tobytes() for mask in masks]})
    data = read_labelled(task, tmp_path, ignore=[7])
    assert (data.classes, len(data.train), len(data.validation)) == (classes, 4, 2)
    for example, name in ((data.train[index], data.train.names[index]) for index in range(4)):
        number = int(name[-4:])
        np.testing.assert_array_equal(example.label, np.where(masks[number] > 1, 255, masks[number]))
        assert example.image_set.anchor == 0
        np.testing.assert_array_equal(example.image_set[0].pixels, sets[number][0].pixels)


def test_a_table_beside_folders_of_masks_is_no_shard(tmp_path):
    for number in range(4):
        write_image(tmp_path / "images" / f"{number}.tif")
        write_mask(tmp_path / "masks" / f"{number}.tif", np.eye(16, dtype=np.uint8))
    (tmp_path / "places.parquet").touch()
    assert len(read_labelled("segmentation", tmp_path, validation=0.5).train) == 2


def test_any_data_set_through_a_mapping():
    def mapping(example: dict, lead: int) -> tuple[ImageSet, str]:
        pixels = np.array(example["pixels"], np.uint16)
        return ImageSet([Image(pixels, ["B04"], "sentinel-2-l2a", gsd=10.0)]), example["what"][lead:]

    rows = [{"pixels": np.full((1, 8, 8), 1000 + n).tolist(), "what": "_" + "ab"[n % 2]} for n in range(6)]
    train, validation = Dataset.from_list(rows[:4]), iter(rows[4:])
    data = from_dataset("classification", train, validation, partial(mapping, lead=1))
    assert data.classes == ["a", "b"]
    assert [int(data.validation[index].image_set[0].pixels[0, 0, 0]) for index in range(2)] == [1004, 1005]
    tested = from_dataset("classification", train, rows[4:5], partial(mapping, lead=1), test=rows[5:])
    assert int(tested.test[0].image_set[0].pixels[0, 0, 0]) == 1005


def mapped(task: str, train: list, validation: list, **settings):
    """Sets of one image each, 8 × 8, with these labels."""

    def mapping(label: object) -> tuple[ImageSet, object]:
        return ImageSet([Image(np.full((1, 8, 8), 1500, np.uint16), ["B04"], "sentinel-2-l2a", gsd=10.0)]), label

    return from_dataset(task, train, validation, mapping, **settings)


def test_masks_may_be_lists_as_a_data_set_has_them():
    rows = [np.eye(8, dtype=int).tolist(), np.full((8, 8), IGNORED).tolist(), np.zeros((8, 8)).tolist()]
    rows[2][0][:2] = float("nan"), float("inf")
    data = mapped("segmentation", rows, rows[:1])
    assert data.classes == ["0", "1"]
    np.testing.assert_array_equal(data.train[0].label, np.eye(8))
    assert (data.train[1].label == IGNORED).all()
    assert data.train[2].label[0].tolist() == [IGNORED, IGNORED, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("labels", [[0.5, 1.0, 2.0], [1, 0.5, 2], [1, 2, 0.5]])
@pytest.mark.parametrize("classes", [None, ["height"]])
def test_values_that_happen_to_be_whole_are_values(labels, classes):
    data = mapped("classification", labels, [3.0], classes=classes)
    assert (data.problem_type, data.classes) == ("regression", classes or ["value 0"])
    np.testing.assert_array_equal(np.ravel(data.train.labels), labels)


@given(
    st.lists(st.frozensets(st.sampled_from("abcd"), max_size=3), min_size=3, max_size=12).filter(
        lambda labels: any(labels)
    ),
    st.integers(0, 100),
    st.sampled_from([0.2, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_what_alone_shows_a_class_is_never_drawn_for_validation(labels, seed, share):
    """The truth: of every class that there is, the training part keeps an example."""
    found = [LabelledFiles(str(place), lambda: None, sorted(label), None) for place, label in enumerate(labels)]
    spare = [label for label in labels if all(sum(key in other for other in labels) > 1 for key in label)]
    if not any(spare):
        return
    try:
        data = assemble("classification", found, None, share, seed)
    except ValueError as error:
        # Only sets of no class were drawn.
        assert "for validation" in str(error)
        return
    assert set(data.classes) == set().union(*labels)
    assert 1 <= len(data.validation) <= max(1, round(share * len(labels)))


def test_balanced_weights_are_those_of_scikit_learn(class_folders):
    from sklearn.utils.class_weight import compute_class_weight

    data = read_labelled("classification", class_folders)
    expected = compute_class_weight("balanced", classes=np.arange(2), y=np.array(data.train.labels))
    np.testing.assert_allclose(data.balanced_weights(), expected, rtol=1e-5)


def test_balanced_weights_of_masks_count_pixels(pairs):
    data = read_labelled("segmentation", pairs, ignore=[9], validation=0.5)
    np.testing.assert_allclose(data.balanced_weights(), [3 / 2, 3 / 4])  # of three quarters, one and two


def test_images_are_kept_once_read(class_folders):
    data = read_labelled("classification", class_folders)
    assert data.train[0].image_set is data.train[0].image_set


# What is wrong with labelled data


def refused(message: str, *arguments, error: type[Exception] = ValueError, **settings) -> None:
    """Expect one clear sentence."""
    with pytest.raises(error, match=message):
        read_labelled(*arguments, **settings)


def test_sets_by_size_keep_their_masks(tmp_path):
    sides = {"a": 24, "b": 8, "c": 16, "d": 8, "e": 24}
    for name, side in sides.items():
        write_image(tmp_path / "data" / "images" / f"{name}.tif", size=(side, side), value=1000 + side)
        mask = np.zeros((side, side), np.uint8)
        mask[0] = 1
        write_mask(tmp_path / "data" / "masks" / f"{name}.tif", mask)
    part = read_labelled("segmentation", tmp_path / "data", validation=0.2).train
    for ordered in (part.by_size(), part.by_size(seed=3)):
        found = [ordered[place] for place in range(len(ordered))]
        lengths = [one.label.shape[0] for one in found]
        assert lengths == sorted(lengths)
        assert sorted(ordered.names) == sorted(part.names)
        for name, one in zip(ordered.names, found, strict=True):
            assert one.label.shape[0] == sides[Path(name).stem]
            assert one.image_set[0].pixels.max() == 1000 + one.label.shape[0]


def test_a_class_without_images_is_named(class_folders):
    (class_folders / "ice").mkdir()
    refused("class 'ice' has no images", "classification", class_folders)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("0.tif,", "row 2: 0.tif has no label"),
        ("0.tif, ", "row 2: 0.tif has no label"),
        ("0.tif,;", "row 2: 0.tif has no label"),
        ("9.tif,sea", "row 2: there is no image"),
        ("0.tif,3", "another kind"),
    ],
)
def test_rows_that_say_too_little_are_named(tmp_path, row, message):
    write_image(tmp_path / "0.tif")
    table = tmp_path / "labels.csv"
    table.write_text(f"file,label\n0.tif,land\n{row}\n")
    refused(message, "classification", table, error=(ValueError, FileNotFoundError))


def test_a_table_without_the_column_is_refused(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("file,class\n0.tif,land\n")
    refused("no column 'label'; it has file, class", "classification", table)


def test_a_class_that_is_not_named_is_unknown(class_folders):
    refused("class 'wood' is none of 'water', 'ice'", "classification", class_folders, classes=["water", "ice"])


def test_a_class_of_validation_alone_is_unknown(tmp_path):
    for path in ("train/x/0.tif", "train/y/0.tif", "validation/x/1.tif", "validation/z/1.tif"):
        write_image(tmp_path / path)
    refused("class 'z' is none of 'x', 'y', those of the training part", "classification", tmp_path)


def test_a_named_class_without_an_example_is_empty(class_folders):
    refused("'ice' has no training example", "classification", class_folders, classes=["ice", "water", "wood"])


def test_an_image_without_a_mask_is_named(pairs):
    (pairs / "masks" / "2.tif").unlink()
    refused(r"2\.tif: has no masks/2", "segmentation", pairs)


def test_a_mask_without_an_image_is_named(pairs):
    (pairs / "images" / "2.tif").unlink()
    refused(r"2\.tif: is the mask of no image", "segmentation", pairs)


@pytest.mark.parametrize(
    ("size", "facts", "message"),
    [
        ((16, 15), {}, "16 × 15 pixels, and .* 16 × 16"),
        ((16, 16), {"crs": "EPSG:32632"}, "EPSG:32632, and .* EPSG:32631"),
        ((16, 16), {"transform": (10.0, 0.0, 500_030.0, 0.0, -10.0, 4_600_000.0)}, "3.0 pixels off"),
    ],
    ids=["size", "crs", "place"],
)
def test_a_mask_has_to_lie_on_its_image(pairs, size, facts, message):
    write_mask(pairs / "masks" / "1.tif", np.eye(*size, dtype=np.uint8), **facts)
    refused(message, "segmentation", pairs)


def test_a_mask_without_georeference_lies_on_its_image(tmp_path):
    path = write_mask(tmp_path / "mask.tif", np.eye(16, dtype=np.uint8), crs=None, transform=None)
    mask, grid = read_mask(path)
    check_grid("mask", grid, "image", read_mask(write_mask(tmp_path / "image.tif", np.eye(16, dtype=np.uint8)))[1])
    assert mask.known.all()


def test_classes_are_whole_numbers(pairs):
    write_mask(pairs / "masks" / "1.tif", np.full((16, 16), 0.5, np.float32))
    refused("0.5, and classes are whole numbers", "segmentation", pairs)


def test_one_class_is_too_few(pairs):
    refused("one class alone", "segmentation", pairs, ignore=[5, 9])


@pytest.mark.parametrize("parts", [["train"], ["validation"], ["test", "validation"]])
def test_parts_without_one_to_learn_from_or_to_judge_by_are_no_split(tmp_path, parts):
    for part in parts:
        write_image(tmp_path / part / "x" / "0.tif")
    refused(f"{' and '.join(map(repr, parts))} alone", "classification", tmp_path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [(("train", "val", "validation"), "two of them for one part"), (("train", "val", "holdout"), "'holdout' beside")],
)
def test_folders_beside_parts_are_named(tmp_path, folders, message):
    for folder in folders:
        write_image(tmp_path / folder / "x" / "0.tif")
    refused(message, "classification", tmp_path)


def test_masks_of_a_part_without_a_label_are_refused(tmp_path):
    for part, value in (("train", 1), ("validation", 1), ("test", 9)):
        write_image(tmp_path / part / "images" / "0.tif")
        write_mask(tmp_path / part / "masks" / "0.tif", np.full((16, 16), value, np.uint8))
    refused("masks for test has a label", "segmentation", tmp_path, ignore=[9])


def test_a_part_of_a_data_set_without_examples_is_named():
    with pytest.raises(ValueError, match="no examples for validation"):
        from_dataset("classification", [1], [], lambda number: (ImageSet([]), "a"))


def test_a_task_that_is_none(tmp_path):
    refused("must be one of classification, segmentation, change", "detection", tmp_path)


def test_a_segmentation_is_no_table(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\n")
    refused("segmentation reads folders", "segmentation", tmp_path / "labels.csv")


def test_shards_without_labels_are_refused(tmp_path, make_set, write_shards):
    write_shards(tmp_path, [make_set(0)], columns={"label": pa.array([None], pa.string())})
    refused("grid-0000 has no label", "classification", tmp_path)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (None, "the set grid-0000 has no mask; give the shards a column 'mask' without gaps"),
        ([bytes(255)], "grid-0000: its mask is 255 bytes, and its first image has 16 × 16 pixels; store"),
        ([[0] * 256], "grid-0000: its mask is a list, and its first image has 16 × 16 pixels; store"),
    ],
)
def test_shards_without_masks_of_their_first_image_are_refused(tmp_path, make_set, write_shards, masks, message):
    write_shards(tmp_path, [make_set(0)], columns=None if masks is None else {"mask": masks})
    refused(message, "segmentation", tmp_path)


@pytest.mark.parametrize(
    ("task", "train", "validation", "settings", "message"),
    [
        ("classification", [["a"], ["b"]], [[], []], {}, "No set for validation is of any class; give some that are"),
        ("classification", [[], []], [["a"]], {}, "No set for train is of any class"),
        ("classification", [[1.5, 2.5]], [[0.5, 1.0]], {"classes": ["a"]}, r"classes=\['a'\]: .* 2 values each; give"),
        ("classification", ["a", "b"], ["a"], {"classes": ["a", "b", "a"]}, "classes: 'a' is given twice; give every"),
        ("segmentation", [np.eye(8)], [np.eye(8)], {"classes": ["x", "x"]}, "classes: 'x' is given twice"),
        ("segmentation", [np.eye(8) / 2], [np.eye(8)], {}, "train 0: holds 0.5, and classes are whole numbers"),
        ("segmentation", [[[1, 2], [3]] * 500], [np.eye(8)], {}, r"train 0: its label .{,80} suits no segmentation"),
    ],
)
def test_labels_of_a_data_set_that_make_no_task_are_named(task, train, validation, settings, message):
    with pytest.raises(ValueError, match=message):
        mapped(task, train, validation, **settings)
