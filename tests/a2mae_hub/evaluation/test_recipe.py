"""Recipes of tasks: what they say, and mistakes that are named with file, task and key."""

from pathlib import Path

import pytest

from a2mae_hub.evaluation import read_recipe

REPOSITORY = Path(__file__).resolve().parents[3]
FEW = {"name": "few", "kind": "few-shot", "folders": "classes/*", "sensor": "sentinel-2-l2a"}
CLASSES = {**FEW, "kind": "classification", "test_every": 6}
WATER = {"name": "water", "kind": "segmentation", "images": "*.tif", "labels": ["a", "b"], "test_every": 6}
SETS = {"name": "sets", "kind": "reconstruction", "shards": "shards"}


def write(folder: Path, *tasks: dict) -> Path:
    path = folder / "recipe.yaml"
    # Python's way to write a list of dicts is YAML's as well.
    path.write_text(f"tasks: {list(tasks)!r}")
    return path


def test_the_open_recipe_splits_as_it_says():
    recipe = read_recipe(REPOSITORY / "docs/recipes/open_evaluation.yaml", "/somewhere")
    assert recipe.root == Path("/somewhere")
    tasks = {task.name: task for task in recipe.tasks}
    assert list(tasks) == ["eurosat-rgb", "eurosat-multispectral", "hls-water", "hls-worldcover"]
    # 8 bits stretch reflectance 0 to 0.275.
    assert tasks["eurosat-rgb"].scale * 255 == pytest.approx(0.275)
    assert tasks["eurosat-rgb"].bands == ("B04", "B03", "B02")
    assert tasks["eurosat-multispectral"].bands[-1] == "B8A" and len(tasks["eurosat-multispectral"].bands) == 13
    assert tasks["hls-worldcover"].label_band == 2 and tasks["hls-worldcover"].ignore == (0,)


def test_paths_are_relative_to_the_root_named_or_to_the_recipe(tmp_path):
    path = write(tmp_path, SETS)
    assert read_recipe(path).root == tmp_path
    path.write_text(f"root: ../data\n{path.read_text()}")
    assert read_recipe(path).root == tmp_path / "../data"
    assert read_recipe(path, "elsewhere").root == Path("elsewhere")


def test_numbers_with_an_exponent_are_numbers(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("tasks:\n- {name: few, kind: few-shot, folders: x, scale: 1e-4, offset: -1E-1}\n")
    (task,) = read_recipe(path).tasks
    assert (task.scale, task.offset) == (1e-4, -0.1)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({**FEW, "colour": "red"}, "task 1 has the unknown key 'colour'"),
        ({**FEW, "kind": "detection"}, "task 'few': kind is 'detection', and must be one of"),
        ({"kind": "few-shot"}, "task 1: name is missing"),
        ({**FEW, "sensor": "sentinel-9"}, "task 'few': sensor: No sensor is named 'sentinel-9'"),
        ({**FEW, "scale": "a lot"}, "scale is 'a lot', and must be a number"),
        ({**FEW, "bands": [1, 2]}, r"bands is \(1, 2\), and must be a list of texts"),
        ({**FEW, "test_every": 6}, "test_every means nothing to a task of the kind few-shot"),
        ({**FEW, "parquet": "a.parquet"}, "needs parquet or folders"),
        ({**CLASSES, "test_every": 1}, "test_every is 1, and must be a whole number from 2 on"),
        ({**CLASSES, "test_names": "x"}, "needs test_every or test_names"),
        ({**CLASSES, "label_band": 1}, "label_band means nothing to a task of the kind classification"),
        ({**WATER, "labels": ["a"]}, "must be two texts"),
        ({**WATER, "images": 7}, "images is 7, and must be a text"),
        ({key: value for key, value in WATER.items() if key != "labels"}, "task 'water': labels is missing"),
        ({**WATER, "test_every": True}, "test_every is True"),
        ({**SETS, "sensor": "naip"}, "sensor means nothing to a task of the kind reconstruction"),
        ({**SETS, "shards": ""}, "shards is '', and must be a text"),
        (
            {"name": "rgb", "kind": "few-shot", "parquet": "a.parquet", "sensor": "naip"},
            "bands is missing: encoded images",
        ),
    ],
)
def test_a_mistake_is_named_with_file_task_and_key(task, said, tmp_path):
    path = write(tmp_path, task)
    with pytest.raises(ValueError, match=said) as caught:
        read_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: []", "tasks must be a list with at least one entry"),
        ("collections: []", "the recipe has the unknown key 'collections'"),
        ("tasks: [", "not YAML"),
        (f"tasks: {[SETS, SETS]!r}", "Two tasks are named 'sets'"),
        ("tasks:\n- name: a\n  name: b\n", "the key 'name' is there twice"),
        (
            "tasks: [{name: a, kind: few-shot, folders: x, sensor: naip, test_names: '['}]",
            "test_names means|no regular",
        ),
    ],
)
def test_what_is_no_recipe_is_said(text, said, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such recipe"):
        read_recipe(tmp_path / "nothing.yaml")
