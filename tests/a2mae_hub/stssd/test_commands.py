"""`a2mae stssd …` as people type it: scenes in, shards, report, figures and card out; mistakes in one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from a2mae_hub.cli import app
from a2mae_hub.stssd import load, packages

from .scenes import write_archive, write_scene


def run(*arguments: object) -> Result:
    """Run a command; an error of ours is left to the test."""
    return CliRunner().invoke(app, ["stssd", *map(str, arguments)], catch_exceptions=True)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set that was built by the command."""
    folder = tmp_path_factory.mktemp("commands")
    write_archive(folder / "archive")
    options = ("--sampling", "footprints", "--size", 480, "--licence", "CC0-1.0", "--workers", 1)
    result = run("build", folder / "archive", "-o", folder / "sets", *options)
    assert result.exit_code == 0, result.exception
    assert "36 image sets" in result.output
    return folder / "sets"


def test_what_the_command_built_streams(sets: Path) -> None:
    examples = list(load(sets))
    assert len(examples) == 36
    assert {image["licence"] for example in examples for image in example["images"]} == {"CC0-1.0"}


def test_a_recipe_builds_what_its_options_would(sets: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "collections:\n- name: grid\n  sampling: footprints\n  size: 480\n"
        f"  scenes:\n  - paths: '{sets.parent / 'archive'}'\n    licence: CC0-1.0\n"
    )
    assert run("build", recipe, "-o", tmp_path / "sets", "--workers", 1).exit_code == 0
    one, other = (sorted(example["id"] for example in load(folder)) for folder in (sets, tmp_path / "sets"))
    assert one == other


def test_scenes_at_points_of_a_file(sets: Path, tmp_path: Path) -> None:
    place = next(iter(load(sets)))
    point = {"type": "Point", "coordinates": [place["longitude"], place["latitude"]]}
    points = {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": point}]}
    (tmp_path / "points.geojson").write_text(json.dumps(points))
    options = ("--sampling", tmp_path / "points.geojson", "--size", 480, "--workers", 1)
    assert run("build", sets.parent / "archive", "-o", tmp_path / "sets", *options).exit_code == 0
    (only,) = load(tmp_path / "sets")
    assert only["longitude"] == pytest.approx(place["longitude"])


def test_inspect_prints_and_draws(sets: Path, tmp_path: Path) -> None:
    result = run("inspect", sets, "-o", tmp_path / "report")
    assert result.exit_code == 0, result.exception
    assert "sentinel-2-l2a" in result.output
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "histograms.png",
        "inspect.png",
        "statistics.json",
    ]


def test_prune_keeps_the_number_asked_for_of_those_that_are_no_duplicates(sets: Path, tmp_path: Path) -> None:
    # On two equal ramps, 6 × 6 places show only 11 different grounds.
    assert run("prune", sets, "-o", tmp_path / "few", "--keep", 30).exit_code == 0
    assert load(tmp_path / "few").num_sets == 11
    result = run("prune", sets, "-o", tmp_path / "pruned", "--keep", 8)
    assert result.exit_code == 0, result.exception
    assert load(tmp_path / "pruned").num_sets == 8


def test_card_lies_in_the_folder(sets: Path) -> None:
    assert run("card", sets, "--name", "A valley").exit_code == 0
    text = (sets / "README.md").read_text()
    assert text.startswith("---\n")
    assert "A valley" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build", "nowhere", "-o", "out"), "nowhere.*no such file or folder"),
        (("inspect", "nowhere/at/all"), "nowhere/at/all.*no such folder"),
        (("prune", "nowhere/at/all", "-o", "out", "--keep", "0.5"), "nowhere/at/all.*no such folder"),
        (("build", "recipe.yaml", "-o", "out"), "recipe.yaml"),
    ],
)
def test_what_is_not_there_is_named(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = run(*arguments).exception
    assert isinstance(error, (OSError, ValueError))
    assert re.search(said, str(error))
    assert not (tmp_path / "out").exists()


def test_a_scene_without_georeference_on_a_grid_is_named_with_the_way_out(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "chip.tif", crs=None)
    error = run("build", tmp_path / "in", "-o", tmp_path / "out").exception
    assert isinstance(error, ValueError)
    assert "chip.tif" in str(error)
    assert "footprints" in str(error)


def test_sensors_that_overlap_nowhere_are_named(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "here.tif")
    write_scene(tmp_path / "in" / "there.tif", sensor="landsat-8-sr", corner=(620_040.0, 4_700_040.0))
    error = run("build", tmp_path / "in", "-o", tmp_path / "out", "--sampling", "footprints").exception
    assert isinstance(error, ValueError)
    assert "here.tif" in str(error)
    assert "there.tif" in str(error)


def test_a_missing_package_of_the_extra_is_named_by_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = packages.importlib.util.find_spec
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == "sklearn" else found(name))
    for command in (("build", "in", "-o", "out"), ("prune", "in", "-o", "out", "--keep", 1), ("inspect", "in")):
        error = run(*command).exception
        assert isinstance(error, ImportError)
        assert str(error) == "a2mae stssd needs scikit-learn; install it with: pip install 'a2mae-hub[stssd]'."
