"""The whole protocol on a small collection, the table, and the command as people type it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from a2mae_hub.evaluation import evaluate, read_recipe
from a2mae_hub.evaluation.commands import evaluate as command
from a2mae_hub.evaluation.protocol import format_report, untrained
from a2mae_hub.inference import Checkpoint, load_checkpoint

REPOSITORY = Path(__file__).resolve().parents[3]
FEATURES = ["model", "untrained", "raw statistics", "hand-made numbers"]


def run(*arguments: object):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def saved(tiny, tmp_path) -> Path:
    tiny.model.save_pretrained(tmp_path / "checkpoint")
    tiny.processor.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_all_tasks_in_one_report(tiny, collection):
    state = torch.get_rng_state()
    report = evaluate(tiny, collection / "recipe.yaml")
    assert torch.equal(torch.get_rng_state(), state)
    assert json.loads(json.dumps(report)) == report
    tasks = {task["name"]: task for task in report["tasks"]}
    assert list(tasks) == ["pictures", "few", "water", "cover", "sets"]
    assert (tasks["pictures"]["train"], tasks["pictures"]["test"], tasks["few"]["images"]) == (18, 6, 15)
    assert list(tasks["pictures"]["scores"]) == ["kNN accuracy", "linear accuracy"]
    assert list(tasks["few"]["scores"]) == ["accuracy", "spread over folds"]
    assert list(tasks["water"]["scores"]) == ["IoU", "pixel accuracy"]
    for name in ("pictures", "few", "water", "cover"):
        for columns in tasks[name]["scores"].values():
            assert list(columns) == FEATURES and all(0 <= value <= 1 for value in columns.values())
    # Brightness alone tells the classes apart, and water pixel by pixel.
    for name, score in (("pictures", "kNN accuracy"), ("water", "IoU"), ("cover", "pixel accuracy")):
        assert tasks[name]["scores"][score]["raw statistics"] == 1
    errors = tasks["sets"]["scores"]["mean absolute error, reflectance"]
    assert list(errors) == ["model", "untrained", "mean of visible", "nearest date"]
    assert tasks["sets"]["sets"] == 3 and errors["model"] != errors["untrained"]
    assert evaluate(tiny, collection / "recipe.yaml", tasks=["few", "water"])["tasks"] == report["tasks"][1:3]


def test_the_untrained_model_is_seeded_and_of_the_same_configuration(tiny):
    first, second = untrained(tiny), untrained(tiny)
    assert first.model.config.to_dict() == tiny.model.config.to_dict() and first.processor is tiny.processor
    given = tiny.model.state_dict()
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]) and value.shape == given[name].shape
    assert not torch.equal(first.model.a2mae.layers[0].mlp.fc1.weight, tiny.model.a2mae.layers[0].mlp.fc1.weight)


def test_the_table_has_a_row_for_every_score_and_a_column_for_every_method():
    scores = {"kNN accuracy": {"model": 0.5, "untrained": 1.0}, "linear accuracy": {"model": 0.25, "untrained": 0.125}}
    errors = {"RMS error, DN": {"model": 12.3456, "nearest date": 7.0}}
    report = {"tasks": [{"name": "towns", "scores": scores}, {"name": "sets", "scores": errors}]}
    assert format_report(report).splitlines() == [
        "task   score            model  untrained",
        "towns  kNN accuracy     0.500      1.000",
        "towns  linear accuracy  0.250      0.125",
        "",
        "task  score           model  nearest date",
        "sets  RMS error, DN  12.346         7.000",
    ]


def test_the_command_prints_the_table_and_writes_the_report(saved, collection, tmp_path):
    options = ("--root", collection, "--task", "few", "--task", "cover", "-o", tmp_path / "report.json")
    result = run(saved, collection / "recipe.yaml", *options)
    assert result.exit_code == 0, result.exception
    assert "hand-made numbers" in result.output and "pixel accuracy" in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["checkpoint"] == str(saved) and [task["name"] for task in report["tasks"]] == ["few", "cover"]
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_that_cannot_reconstruct_is_refused_before_any_work(tiny, collection):
    encoder = Checkpoint("encoder", tiny.model, tiny.processor, False)
    (collection / "pictures.parquet").unlink()
    with pytest.raises(ValueError, match="encoder: has no decoder"):
        evaluate(encoder, collection / "recipe.yaml")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--task", "nothing"), "no task 'nothing'; it has pictures, few, water, cover, sets"),
        (("-o", "report.txt"), r"report\.txt: this is written as \.json"),
        (("-o", "nowhere/report.json"), "the folder nowhere does not exist"),
        (("--root", "nowhere", "--task", "few"), "nowhere/classes.*nothing fits"),
    ],
)
def test_mistakes_are_named(arguments, said, saved, collection, monkeypatch):
    monkeypatch.chdir(collection)
    error = run(saved, collection / "recipe.yaml", *arguments).exception
    assert isinstance(error, (OSError, ValueError))
    with pytest.raises(type(error), match=said):
        raise error


def test_the_open_recipe_on_real_images(shared):
    recipe = read_recipe(REPOSITORY / "docs/recipes/open_evaluation.yaml", shared / "data")
    (task,) = evaluate(load_checkpoint(), recipe, tasks=["eurosat-multispectral"])["tasks"]
    assert task["images"] == 100 and len(task["classes"]) == 10
    accuracy = task["scores"]["accuracy"]
    # Thirteen bands tell two thirds of the scenes by their statistics, and texture tells more.
    assert accuracy["raw statistics"] == pytest.approx(0.67, abs=0.03)
    assert accuracy["hand-made numbers"] == pytest.approx(0.75, abs=0.03)
    assert accuracy["model"] > accuracy["untrained"]
    assert np.isfinite(list(accuracy.values())).all()
