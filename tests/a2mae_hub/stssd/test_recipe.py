"""A recipe says what to build, and what is wrong with it is said in one sentence."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from a2mae_hub.products import parse_time
from a2mae_hub.stssd.recipe import Collection, Recipe, Scenes, acquired_from_path, read_recipe

SHIPPED = Path(__file__).resolve().parents[3] / "docs" / "recipes" / "open_imagery.yaml"

MINIMAL = """
collections:
  - name: one
    scenes:
      - paths: [a.tif]
"""
ENTRY = Scenes(paths=("a.tif",))


def written(folder, text):
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def with_facts(collection="", scenes=""):
    """The least recipe, with further lines in its collection and its scenes."""
    return MINIMAL + (f"        {scenes}\n" if scenes else "") + (f"    {collection}\n" if collection else "")


# -------------------------------------------------------------------------------------------------------------- reading


def test_the_least_recipe_names_a_collection_and_its_rasters(tmp_path):
    recipe = read_recipe(written(tmp_path, MINIMAL))
    assert recipe == Recipe((Collection("one", (ENTRY,)),), tmp_path)


def test_the_example_in_the_documentation_of_the_module_can_be_read(tmp_path):
    import a2mae_hub.stssd.recipe as module

    example = module.__doc__[module.__doc__.index("root:") :]
    recipe = read_recipe(written(tmp_path, example))
    assert recipe.root == tmp_path / "../data"
    (collection,) = recipe.collections
    assert (collection.size, collection.sampling, collection.derive) == (960, "grid", "landsat-8-sr")
    assert collection.scenes[0].bands == ("B02", "B03", "B04", "B08")
    assert collection.scenes[1].stac == ("items/*.json",)


def test_the_shipped_recipe_can_be_read():
    recipe = read_recipe(SHIPPED)
    assert recipe.root == SHIPPED.parent
    assert len(recipe.collections) == len({collection.name for collection in recipe.collections}) == 10
    whole = {collection.name for collection in recipe.collections if collection.size is None}
    assert whole == {"naip-cities", "bigearthnet", "chips", "water", "water-evaluation"}
    assert all(entry.licence for collection in recipe.collections for entry in collection.scenes)


def test_the_shipped_recipe_finds_the_scenes_it_is_for(shared):
    from a2mae_hub.stssd.catalogue import open_collection
    from a2mae_hub.stssd.sampling import sample

    recipe = read_recipe(SHIPPED, shared / "data")
    found = {}
    for collection in recipe.collections:
        if collection.name in ("chips", "naip-cities"):
            continue  # Hundreds of files.
        scenes = open_collection(collection, recipe.root)
        locations = sample(collection, scenes, recipe.root)
        found[collection.name] = (len(scenes), min(len(location.scenes) for location in locations))
    assert found == {
        "boadella": (8, 8),
        "bark-beetle": (160, 2),
        "bark-beetle-evaluation": (40, 2),
        "naip-prairie": (3, 3),
        "brumadinho": (2, 1),
        "bigearthnet": (11, 1),
        "water": (100, 1),
        "water-evaluation": (20, 1),
    }


def test_the_root_is_the_callers_word_then_the_recipes_then_its_folder(tmp_path):
    plain, rooted = written(tmp_path, MINIMAL), tmp_path / "rooted.yaml"
    rooted.write_text(f"root: data\n{MINIMAL}")
    assert read_recipe(plain).root == tmp_path
    assert read_recipe(rooted).root == tmp_path / "data"
    assert read_recipe(rooted, "elsewhere").root == Path("elsewhere")
    rooted.write_text(f"root: /data\n{MINIMAL}")
    assert read_recipe(rooted).root == Path("/data")
    rooted.write_text(f"root:\n{MINIMAL}")
    assert read_recipe(rooted).root == tmp_path


@pytest.mark.parametrize("key", ["paths", "stac", "bands"])
def test_one_text_stands_for_a_list_of_one(tmp_path, key):
    text = with_facts(scenes="" if key == "paths" else f"{key}: B02").replace("[a.tif]", "B02")
    (entry,) = read_recipe(written(tmp_path, text)).collections[0].scenes
    assert getattr(entry, key) == ("B02",)


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("2020-06-21", datetime(2020, 6, 21)),
        ("'2020-06-21'", datetime(2020, 6, 21)),
        ("20200621", datetime(2020, 6, 21)),
        ("2020-06-21T10:50:31Z", datetime(2020, 6, 21, 10, 50, 31)),
        ("2020-06-21 10:50:31", datetime(2020, 6, 21, 10, 50, 31)),
        ("2020-06-21T12:50:31+02:00", datetime(2020, 6, 21, 10, 50, 31)),
    ],
)
def test_a_date_means_the_same_with_and_without_quotes(tmp_path, told, meant):
    recipe = read_recipe(written(tmp_path, with_facts(scenes=f"acquired: {told}")))
    (entry,) = recipe.collections[0].scenes
    assert isinstance(entry.acquired, str)
    assert not entry.finds_time
    assert parse_time(entry.acquired) == meant.replace(tzinfo=timezone.utc)


@pytest.mark.parametrize("name", ["2020-06-21", "7e2-coast", "1e5_a"])
def test_a_name_that_begins_like_a_date_or_a_number_is_a_name(tmp_path, name):
    assert read_recipe(written(tmp_path, MINIMAL.replace("one", name))).collections[0].name == name


def test_a_recipe_of_a_windows_editor_can_be_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert read_recipe(path).collections[0].name == "one"


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "0.0001", "1.0e-4", "+1e-4"])
def test_numbers_with_an_exponent_are_numbers(tmp_path, text):
    # PyYAML, which reads YAML 1.1, takes 1e-4 for a text.
    (entry,) = read_recipe(written(tmp_path, with_facts(scenes=f"scale: {text}"))).collections[0].scenes
    assert entry.scale == 1e-4


def test_numbers_per_band_stay_numbers_per_band(tmp_path):
    text = with_facts(scenes="scale: [1e-4, 2.75e-5]\n        offset: [0, -0.2]\n        nodata: -9999")
    (entry,) = read_recipe(written(tmp_path, text)).collections[0].scenes
    assert (entry.scale, entry.offset, entry.nodata) == ((1e-4, 2.75e-5), (0, -0.2), -9999)
    assert np.isnan(Scenes(paths=("a.tif",), nodata=float("nan")).nodata)


def test_where_data_lie_does_not_decide_what_is_built():
    one, other = (Recipe((Collection("one", (ENTRY,)),), Path(root)) for root in ("/a", "/b"))
    assert json.dumps(one.to_dict()) == json.dumps(other.to_dict())
    assert "/a" not in json.dumps(one.to_dict())
    bigger = Recipe((Collection("one", (ENTRY,), size=1_000.0),))
    assert bigger.to_dict() != one.to_dict()


# ----------------------------------------------------------------------------------------------------------- refusals


def refused(tmp_path, text, match):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=match) as raised:
        read_recipe(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "the recipe must be a mapping"),
        ("- a\n- b", "the recipe must be a mapping"),
        ("just words", "the recipe must be a mapping"),
        ("a: [b", "not YAML"),
        ("a: *b", "not YAML"),
        ("? [a]\n: b", "not YAML|must be a mapping"),
        ("a: !!int b", "not YAML"),
        ("root: a", "collections must be a list"),
        ("collections: []", "collections must be a list"),
        ("collections: {name: one}", "collections must be a list"),
        ("collections: [one]", "collection 1 must be a mapping"),
        (f"{MINIMAL}colections: []", "the recipe has the unknown key 'colections'"),
        (f"root: 5\n{MINIMAL}", "root is 5"),
        ("collections:\n  - scenes: [{paths: a.tif}]", "collection 1: name is missing"),
        ("collections:\n  - name: one", "collection 'one': scenes is missing"),
        ("collections:\n  - name: one\n    scenes: a.tif", "collection 'one': scenes must be a list"),
        ("collections:\n  - name: one\n    scenes: {paths: a.tif}", "collection 'one': scenes must be a list"),
        ("collections:\n  - name: one\n    scenes: []", "collection 'one': scenes must be a list"),
        ("collections:\n  - name: one\n    scenes: [a.tif]", "collection 'one': scenes 1 must be a mapping"),
        ("collections:\n  - name: one\n    scenes: [{}]", "collection 'one': scenes 1: paths or stac is missing"),
        ("collections:\n  - name: one\n    scenes: [{sensor: naip}]", "scenes 1: paths or stac is missing"),
        (with_facts(collection="sizes: 5"), "'one'|collection 1 has the unknown key 'sizes'"),
        (with_facts(scenes="band: [B02]"), "scenes 1 has the unknown key 'band'"),
        (MINIMAL + MINIMAL.replace("collections:\n", "").replace("\n  - name", "  - name", 1), "are named 'one'"),
        (MINIMAL + "    name: two\n", "not YAML .*'name' is there twice.*line"),
        (f"{MINIMAL}{MINIMAL}", "'collections' is there twice"),
        (MINIMAL.replace("one", "../one"), "a name begins with"),
        (MINIMAL.replace("one", "''"), "a name begins with"),
        (MINIMAL.replace("one", "2020"), "collection 2020: a name begins with"),
        (MINIMAL.replace("one", "[one]"), "a name begins with"),
    ],
)
def test_what_is_no_recipe_is_refused_with_the_file_the_collection_and_the_key(tmp_path, text, match):
    refused(tmp_path, text, match)


@pytest.mark.parametrize(
    "line",
    [
        "size: abc",
        "size: 0",
        "size: -5",
        "size: .inf",
        "size: .nan",
        "size: true",
        "size: [960]",
        "size: '960'",
        "size: null",
        "spacing: abc",
        "spacing: 0",
        "images: 2.5",
        "images: 0",
        "images: true",
        "images: two",
        "images: null",
        "validation: true",
        "validation: 1.5",
        "validation: -0.1",
        "validation: .nan",
        "validation: ten",
        "max_cloud: 20",
        "max_cloud: null",
        "max_nodata: [0.1]",
        "kind: 5",
        "kind: null",
        "sampling: null",
        "sampling: 5",
        "sampling: ''",
        "derive: landsat-99",
        "derive: 8",
        "derive: true",
    ],
)
def test_a_wrong_value_of_a_collection_is_refused_by_its_key(tmp_path, line):
    refused(tmp_path, with_facts(collection=line), f"collection 'one': {line.partition(':')[0]}\\b")


@pytest.mark.parametrize(
    "line",
    [
        "stac: 5",
        "stac: [5]",
        "bands: 5",
        "bands: [1, 2]",
        "bands: []",
        "bands: {B02: blue}",
        "bands: ['']",
        "sensor: sentinel-99",
        "sensor: 2",
        "sensor: no",
        "acquired: yesterday",
        "acquired: 2020-06",
        "acquired: 2020-13-45",
        "acquired: true",
        "acquired: [2020-06-21]",
        "acquired: '(?P<year>\\d{4}'",
        "scale: abc",
        "scale: true",
        "scale: [1, abc]",
        "scale: []",
        "scale: .inf",
        "offset: {B02: 1}",
        "nodata: none",
        "nodata: [0]",
        "licence: 5",
    ],
)
def test_a_wrong_value_of_scenes_is_refused_by_its_key(tmp_path, line):
    refused(tmp_path, with_facts(scenes=line), f"collection 'one': scenes 1: {line.partition(':')[0]}\\b")


def test_numbers_that_are_no_paths_are_refused(tmp_path):
    refused(tmp_path, MINIMAL.replace("[a.tif]", "2020"), "scenes 1: paths is 2020")
    refused(tmp_path, MINIMAL.replace("a.tif", "2020"), r"scenes 1: paths is \(2020,\)")


def test_bytes_that_are_no_text_are_no_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match=r"recipe\.yaml: not YAML"):
        read_recipe(path)


def test_a_missing_recipe_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{re.escape(str(path))}: no such recipe"):
            read_recipe(path)


def test_a_scene_can_do_without_size_only_where_footprints_are_sampled():
    assert Collection("one", (ENTRY,), sampling="footprints", size=None).size is None
    for sampling in ("grid", "places.geojson"):
        with pytest.raises(ValueError, match="size in metres is missing"):
            Collection("one", (ENTRY,), sampling=sampling, size=None)


def test_names_that_are_one_file_to_some_systems_are_not_two_collections():
    with pytest.raises(ValueError, match="named 'one'"):
        Recipe((Collection("one", (ENTRY,)), Collection("One", (ENTRY,))))


def test_python_is_told_what_yaml_is_told():
    for wrong in (ENTRY, (), ("a.tif",)):
        with pytest.raises(ValueError, match="collection 'one': scenes"):
            Collection("one", wrong)
    with pytest.raises(ValueError, match=r"paths is 'a\.tif'"):
        Scenes(paths="a.tif")
    assert Collection("one", (ENTRY,), images=np.int64(3), max_cloud=np.float32(0.5)).images == 3


# ------------------------------------------------------------------------------------------------------------ patterns


@pytest.mark.parametrize(
    ("pattern", "path", "time"),
    [
        (r"_(?P<year>\d{4})\.tif$", "/cities/chico_10_2018.tif", "2018-07-02"),
        (r"/(?P<year>\d{4})-(?P<month>\d\d)/", "/bark_beetle/2019-09/205232.tif", "2019-09-15"),
        (r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)", "/a/20200621.tif", "2020-06-21"),
        (r"(?P<day>\d\d?)\.(?P<month>\d\d?)\.(?P<year>\d{4})", "/a/1.6.2020.tif", "2020-06-01"),
        (r"(?P<year>\d{4})(-(?P<month>\d\d))?", "/a/2020.tif", "2020-07-02"),
        (r"(?P<site>\w+)_(?P<year>\d{4})", "/a/chico_2018.tif", "2018-07-02"),
    ],
)
def test_a_pattern_finds_the_time_in_a_path_and_the_middle_of_what_it_does_not_tell(pattern, path, time):
    assert acquired_from_path(pattern, path) == time


@pytest.mark.parametrize(
    ("pattern", "path", "match"),
    [
        (r"(?P<year>\d{4})", "/a/b.tif", "finds no year"),
        (r"(?P<year>\d{4})?b", "/a/b.tif", "finds no year"),
        (r"(?P<year>\d{4})(?P<month>\d\d)", "/a/202013.tif", "2020-13-15 .*no date"),
        (r"(?P<year>\d{4})(?P<month>[a-z]+)", "/a/2020june.tif", "no date"),
        (r"(?P<year>\d\d)(?P<month>\d\d)", "/a/2006.tif", "20-06-15 .*no date"),
        (r"(?P<year>\d{4})_(?P<day>\d\d)", "/a/2006_12.tif", "a day but no month"),
    ],
)
def test_a_pattern_that_finds_no_date_names_the_path(pattern, path, match):
    with pytest.raises(ValueError, match=match) as raised:
        acquired_from_path(pattern, path)
    assert str(raised.value).startswith(f"{path}: ")


def test_a_pattern_that_is_no_regular_expression_is_quoted():
    with pytest.raises(ValueError, match="no regular expression"):
        acquired_from_path(r"(?P<year>\d{4}", "a.tif")


@given(st.dates(min_value=datetime(1985, 1, 1).date(), max_value=datetime(2035, 1, 1).date()))
def test_every_date_is_found_again(day):
    pattern = r"(?P<year>\d{4})/(?P<month>\d+)/(?P<day>\d+)"
    assert acquired_from_path(pattern, f"/{day.year}/{day.month}/{day.day}/x.tif") == day.isoformat()
