"""A card is valid for the Hub, tells what is in the data set, and its examples run."""

import re

import pytest
import yaml
from huggingface_hub import DatasetCard

from a2mae_hub.stssd import card
from a2mae_hub.stssd.card import dataset_card, write_card
from a2mae_hub.stssd.schema import IMAGE_TYPE, SCHEMA
from a2mae_hub.stssd.statistics import Statistics, inspect

pytest.importorskip("matplotlib", reason="cards need the extra [stssd]")


@pytest.fixture
def folder(tmp_path, make_set, write_shards):
    sets = [
        make_set(0),
        make_set(1, kind="city", split="validation", longitude=None),
        make_set(2, sensors=("naip",), days=None),
    ]
    for image_set in sets:
        for image in image_set:
            image.licence, image.source, image.cloud_share = "CC-BY-4.0", "scenes/a.tif", 0.0
    sets[0].images[1].provenance = "derived"
    return write_shards(tmp_path / "places", sets, sets_per_shard=2, columns={"label": [1, 2, 3]})


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def examples(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def table_rows(text, section):
    lines = text.split(f"## {section}\n")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]


def test_the_hub_reads_the_metadata(folder):
    written = write_card(folder, name="Places of the Earth", repo_id="me/places")
    told = DatasetCard.load(written).data
    assert (told.pretty_name, told.license, told.size_categories) == ("Places of the Earth", "cc-by-4.0", ["n<1K"])
    assert told.task_categories == ["image-feature-extraction"]
    assert {"geospatial", "remote-sensing", "satellite", "geoparquet", "stssd", "a2mae"} <= set(told.tags)
    assert told.configs == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]},
    ]


@pytest.mark.parametrize("repo_id", [None, "me/places"])
def test_every_example_runs(folder, monkeypatch, capsys, repo_id):
    text = write_card(folder, repo_id=repo_id).read_text()
    monkeypatch.chdir(folder)
    # What the Hub serves lies in the folder here.
    text = text.replace("hf://datasets/me/places/", f"{folder}/").replace('"me/places"', f'"{folder}"')
    assert len(examples(text)) == 4
    for example in examples(text):
        exec(compile(example, "the card", "exec"), {})
    printed = capsys.readouterr().out
    assert "grid-0000 [Image(sentinel-2-l2a" in printed and "torch.Size" in printed
    assert "(4, 16, 16)" in printed
    assert "[ 2.95 41.95  3.05 42.05]" in printed
    assert "grid-0002" in printed.split("heterogeneity")[1]  # found by DuckDB


def test_every_column_and_field_is_explained_as_the_layout_has_it(folder):
    rows = table_rows(write_card(folder).read_text(), "Columns")
    names = [row[0].strip("`") for row in rows[2:]]
    fields = [f"images[].{field.name}" for field in IMAGE_TYPE]
    assert names == [*SCHEMA.names, *fields, "label"]
    assert all(len(row) == 3 and len(row[2]) > 5 for row in rows[2:])
    types = {row[0].strip("`"): row[1] for row in rows[2:]}
    assert types["images"] == "list of struct" and types["images[].shape"] == "list of int32"
    assert types["heterogeneity"] == "float32" and types["label"] == "int64"
    assert set(card._COLUMNS) == set(SCHEMA.names) and set(card._IMAGE_FIELDS) == {f.name for f in IMAGE_TYPE}


def test_the_tables_count_what_is_there(folder):
    text = write_card(folder).read_text()
    rows = table_rows(text, "What is in it")
    assert rows[0] == ["kind", "sets, train", "sets, validation", "sets"]
    assert rows[2:5] == [["city", "0", "1", "1"], ["grid", "2", "0", "2"], ["all", "2", "1", "3"]]
    assert ["landsat-8-sr", "1", "1", "10", "B2, B3, B4, B5"] in rows
    assert ["naip", "1", "0", "10", "red, green, blue, nir"] in rows
    assert table_rows(text, "Where it comes from")[2:] == [["scenes", "6", "1"]]
    assert table_rows(text, "Licences")[2:] == [["CC-BY-4.0", "7"]]
    statistics = inspect(folder)
    red = next(row for row in table_rows(text, "Values") if row[:2] == ["naip", "red"])
    assert red[2:5] == ["red", "635", f"{statistics.values['naip']['red'].mean:.4g}"]
    assert "taken from 2020-01-01 to 2020-07-19" in text


def test_limits_are_those_of_this_data_set(folder, tmp_path, make_set, write_shards):
    limits = write_card(folder).read_text().split("## Limits")[1]
    assert "1 of 7 images are derived" in limits and "place of 1 of 3 sets" in limits
    assert "acquisition time of 1 of 7 images" in limits
    assert "clouds" not in limits and "terms of use" not in limits
    plain = write_card(write_shards(tmp_path / "plain", [make_set(0)])).read_text()
    assert "derived image is" not in plain and "place of" not in plain
    assert "clouds is not known of 3 of 3" in plain and "terms of use of 3 of 3" in plain


def test_the_figures_lie_beside_the_card(folder):
    text = write_card(folder).read_text()
    for figure in re.findall(r"\]\((\w+\.png)\)", text):
        assert (folder / figure).stat().st_size > 10_000
    assert len(re.findall(r"\.png\)", text)) == 2
    assert ".png)" not in dataset_card(inspect(folder))


def test_where_no_place_is_known_nothing_is_asked_by_place(tmp_path, make_set, write_shards):
    source = write_shards(tmp_path / "all", [make_set(0, longitude=None)])
    assert [example.split()[1] for example in examples(write_card(source).read_text())] == ["a2mae_hub", "datasets"]


def test_shards_in_folders_are_found_by_the_hub_and_by_the_examples(tmp_path, make_set, write_shards, monkeypatch):
    write_shards(tmp_path / "all" / "grid", [make_set(0)])
    write_shards(tmp_path / "all" / "city", [make_set(1, kind="city")])
    text = write_card(tmp_path / "all").read_text()
    assert metadata(text)["configs"][0]["data_files"][0]["path"] == "**/*.parquet"
    monkeypatch.chdir(tmp_path / "all")
    for example in examples(text):
        exec(compile(example, "the card", "exec"), {})


def test_a_data_set_without_a_training_split_shows_the_split_it_has(tmp_path, make_set, write_shards, monkeypatch):
    source = write_shards(tmp_path / "all", [make_set(0, split='te"st')])
    text = write_card(source).read_text()
    assert r'split="te\"st"' in text
    monkeypatch.chdir(source)
    exec(compile(examples(text)[0], "the card", "exec"), {})


@pytest.mark.parametrize(
    ("licences", "given", "expected"),
    [
        ({"CC-BY-4.0": 3}, None, {"license": "cc-by-4.0"}),
        ({"CC0-1.0": 3}, None, {"license": "cc0-1.0"}),
        ({"ODbL-1.0": 3}, None, {"license": "odbl"}),
        ({"unknown": 3}, None, {"license": "unknown"}),
        ({"unknown": 3}, "MIT", {"license": "mit"}),
        ({"CC-BY-4.0": 3, "unknown": 1}, None, {"license": "other", "license_name": "several"}),
        ({"CC-BY-4.0": 3, "CC0-1.0": 1}, None, {"license": "other", "license_name": "several"}),
        ({"CC-BY-4.0": 3, "CC0-1.0": 1}, "CC-BY-4.0", {"license": "cc-by-4.0"}),
        ({"CC-BY-SA-3.0-IGO": 3}, None, {"license": "other", "license_name": "cc-by-sa-3.0-igo"}),
        ({"Copernicus: free & open": 3}, None, {"license": "other", "license_name": "copernicus-free-open"}),
    ],
)
def test_one_licence_that_the_hub_knows_is_named_and_others_are_other(licences, given, expected):
    statistics = Statistics("x")
    statistics.licences.update(licences)
    found = card._hub_licence(statistics, given)
    if expected["license"] == "other":
        assert found.pop("license_link") == "README.md"
    assert found == expected


@pytest.mark.parametrize(
    ("count", "category"),
    [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (9999, "1K<n<10K"), (510_000, "100K<n<1M"), (10**9, "1B<n<10B")],
)
def test_sizes_are_the_categories_of_the_hub(count, category):
    assert card._size_category(count) == category


def test_many_sources_are_summed_up(folder):
    statistics = inspect(folder)
    statistics.sources.clear()
    for number in range(25):
        statistics.sources[f"source-{number:02d}", "observed"] = 100 - number
    rows = table_rows(dataset_card(statistics), "Where it comes from")[2:]
    assert len(rows) == 21 and rows[0] == ["source-00", "100", "0"]
    assert rows[-1] == ["5 more", str(sum(100 - number for number in range(20, 25))), "0"]


def test_what_data_says_does_not_break_a_table(folder):
    statistics = inspect(folder)
    statistics.licences["a | b\nc"] = 1
    assert ["a \\| b c", "1"] in table_rows(dataset_card(statistics), "Licences")


def test_a_card_is_written_again_and_a_readme_of_others_is_not_touched(folder):
    first = write_card(folder).read_text()
    assert write_card(folder).read_text() == first
    (folder / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match=r"README.md: is there already and was not written by a2mae-hub"):
        write_card(folder)
    assert (folder / "README.md").read_text() == "# Mine\n"


def test_the_name_is_that_of_the_repository_else_of_the_folder(folder):
    statistics = inspect(folder)
    assert "\n# places\n" in dataset_card(statistics)
    assert "\n# world\n" in dataset_card(statistics, repo_id="me/world")
    assert metadata(dataset_card(statistics, name="W: 1", repo_id="me/world"))["pretty_name"] == "W: 1"


def test_mistakes_are_told(folder, tmp_path):
    with pytest.raises(ValueError, match="repo_id is 'places': an id on the Hub is written owner/name"):
        write_card(folder, repo_id="places")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        write_card(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="holds no shards"):
        write_card(empty)
    assert list(empty.iterdir()) == []
    assert not (folder / "README.md").exists()
