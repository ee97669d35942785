"""Every task is learnt in every mode, and the folder that is left holds what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

from a2mae_hub import A2MAEForChangeDetection, A2MAEForImageClassification
from a2mae_hub.training.finetune import finetune
from a2mae_hub.training.labelled import LabelledData
from a2mae_hub.training.task_models import make_model


@pytest.mark.parametrize("mode", ["full", "frozen", "lora"])
@pytest.mark.parametrize(
    ("task", "auto_class", "score", "least"),
    [
        ("classification", AutoModelForImageClassification, "accuracy", 1.0),
        ("segmentation", AutoModelForSemanticSegmentation, "mean_iou", 0.5),
        ("change", A2MAEForChangeDetection, "f1", 0.8),
    ],
)
def test_a_task_is_learnt_and_the_folder_holds_what_was_measured(
    labelled, scores_of, config, tmp_path, task, auto_class, score, least, mode
):
    if mode == "lora":
        pytest.importorskip("peft", reason="needs the extra [peft]")
    data = labelled(task, tested=True)
    # The features of a frozen encoder are random here, and its head needs longer.
    epochs = 20 if mode == "frozen" else 14
    settings = {"epochs": epochs, "batch_size": 4, "learning_rate": 1e-2, "layer_decay": 0.9}
    report = finetune(data, tmp_path / "run", config=config, mode=mode, **settings)
    assert report["scores"][score] >= least
    model = auto_class.from_pretrained(tmp_path / "run")
    assert model.config.id2label == dict(enumerate(data.classes))
    assert scores_of(model, tmp_path / "run", data, "validation") == pytest.approx(report["scores"], abs=2e-3)
    assert scores_of(model, tmp_path / "run", data, "test") == pytest.approx(report["test_scores"], abs=2e-3)
    by_epoch = [entry[f"eval_{score}"] for entry in report["curve"] if f"eval_{score}" in entry]
    assert report["scores"][score] == pytest.approx(max(by_epoch))
    assert len(by_epoch) == epochs


@pytest.mark.parametrize(
    ("task", "score", "problem"),
    [
        ("several", "mean_average_precision", "multi_label_classification"),
        ("value", "root_mean_squared_error", "regression"),
    ],
)
@pytest.mark.parametrize("mode", ["full", "frozen"])
def test_several_labels_and_values_are_learnt(labelled, scores_of, config, tmp_path, task, score, problem, mode):
    data = labelled(task, tested=True)
    report = finetune(
        data, tmp_path / "run", config=config, mode=mode, epochs=20, batch_size=4, learning_rate=5e-3, layer_decay=0.9
    )
    model = A2MAEForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.problem_type == problem
    # Values are 0 and 3: their deviation is 1.5.
    assert report["scores"][score] < 1 if problem == "regression" else report["scores"][score] == 1
    assert scores_of(model, tmp_path / "run", data, "test") == pytest.approx(report["test_scores"], abs=2e-3)


@pytest.mark.parametrize("task", ["classification", "segmentation", "change"])
def test_a_head_that_knows_the_classes_is_kept(labelled, config, tmp_path, task):
    data = labelled(task)
    finetune(data, tmp_path / "head", config=config, mode="frozen", epochs=1, batch_size=4)
    model, _, notes = make_model(data, tmp_path / "head", None, None, None, None)
    saved = type(model).from_pretrained(tmp_path / "head").state_dict()
    assert all(torch.equal(values, saved[name]) for name, values in model.state_dict().items())
    assert notes[-1] == "The checkpoint was fine-tuned for the same classes; its head is kept."

    report = finetune(data, tmp_path / "all", checkpoint=tmp_path / "head", epochs=1, batch_size=4, learning_rate=1e-9)
    assert notes[-1] in report["notes"]
    # A step that is next to none leaves what the head has learnt.
    tuned = type(model).from_pretrained(tmp_path / "all").state_dict()
    learnt = [name for name in saved if "running" not in name and saved[name].is_floating_point()]
    assert all(torch.allclose(tuned[name], saved[name], atol=1e-6) for name in learnt)


def test_a_head_of_other_classes_or_of_values_starts_afresh(labelled, config, tmp_path):
    def kept(data: LabelledData) -> bool:
        model, _, notes = make_model(data, tmp_path / data.task, None, None, None, None)
        saved = type(model).from_pretrained(tmp_path / data.task).state_dict()
        same = torch.equal(model.state_dict()["classifier.linear.weight"], saved["classifier.linear.weight"])
        assert same == any("its head is kept" in note for note in notes)
        return same

    data = labelled("classification")
    finetune(data, tmp_path / data.task, config=config, mode="frozen", epochs=1, batch_size=4)
    assert kept(data)
    assert not kept(replace(data, classes=["bare", "wooded"]))
    assert not kept(replace(data, problem_type="multi_label_classification"))
    values = labelled("value")
    finetune(values, tmp_path / "values", config=config, mode="frozen", epochs=1, batch_size=4)
    model, _, notes = make_model(values, tmp_path / "values", None, None, None, None)
    assert not any("head" in note for note in notes) and model.config.problem_type == "regression"
