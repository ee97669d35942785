"""Fine-tuning goes on where it stopped, ends where nothing improves, leaves a whole folder, and says what is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from a2mae_hub import A2MAEForImageClassification, A2MAEForSemanticSegmentation, ImageSet
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.training.callbacks import SeedEveryStep
from a2mae_hub.training.finetune import finetune
from a2mae_hub.training.labelled import LabelledData, from_dataset
from a2mae_hub.training.task_batches import TaskCollator
from a2mae_hub.training.task_models import parameter_groups
from a2mae_hub.training.task_trainer import TaskTrainer


def test_the_encoder_of_a_checkpoint_stays_as_it_is_in_frozen_mode(labelled, config, tmp_path):
    data = labelled()
    finetune(data, tmp_path / "first", config=config, epochs=1)
    finetune(data, tmp_path / "second", checkpoint=tmp_path / "first", mode="frozen", epochs=2, learning_rate=0.1)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    for key, weight in first.items():
        if key.startswith("a2mae."):
            torch.testing.assert_close(second[key], weight, rtol=0, atol=0)
    assert not torch.equal(first["classifier.linear.weight"], second["classifier.linear.weight"])


def test_a_damaged_report_in_the_output_folder_is_named(labelled, config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "finetuning.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match=r"finetuning\.json: is no JSON .*; remove its folder, or name another one"):
        finetune(labelled(), tmp_path / "run", config=config, epochs=1)


@pytest.mark.parametrize(("layers", "decay"), [(2, 1.0), (12, 0.75)])
def test_only_a_deep_encoder_learns_slower_below_and_heads_of_maps_learn_faster(
    labelled, config, tmp_path, layers, decay
):
    config.num_hidden_layers = layers
    for task, rate in (("classification", None), ("segmentation", 4e-3)):
        report = finetune(labelled(task), tmp_path / task, config=config, epochs=1, learning_rate=2e-3)
        assert report["settings"]["layer_decay"] == decay
        assert report["settings"]["head_learning_rate"] == rate
        assert f"--layer-decay {decay}" in (tmp_path / task / "README.md").read_text()


@pytest.mark.parametrize("mode", ["full", "frozen", "lora"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(labelled, config, tmp_path, monkeypatch, mode):
    if mode == "lora":
        pytest.importorskip("peft", reason="needs the extra [peft]")
    facts = {"config": config, "mode": mode, "epochs": 2, "batch_size": 4, "learning_rate": 1e-2}
    data = labelled("segmentation" if mode == "full" else "classification", tested=True)
    finetune(data, tmp_path / "whole", **facts)
    own = SeedEveryStep.on_step_begin

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt
        own(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SeedEveryStep, "on_step_begin", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(data, tmp_path / "stopped", **facts)
    report = finetune(data, tmp_path / "stopped", **facts)
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    for key, weight in whole.items():
        torch.testing.assert_close(stopped[key], weight, rtol=0, atol=0)
    assert report["is_resumed"] and report["test_scores"] is not None
    again = finetune(data, tmp_path / "stopped", **facts)
    assert again == json.loads(json.dumps(report))
    assert "minutes" not in (tmp_path / "stopped" / "README.md").read_text()


def test_a_folder_from_before_there_was_a_test_part_is_finished(labelled, config, tmp_path):
    report = finetune(labelled(), tmp_path / "run", config=config, epochs=1)
    path = tmp_path / "run" / "finetuning.json"
    older = json.loads(path.read_text())
    del older["test_scores"], older["is_resumed"], older["settings"]["test_sets"]
    path.write_text(json.dumps(older))
    again = finetune(labelled(), tmp_path / "run", config=config, epochs=1)
    assert again["test_scores"] is None and again["scores"] == report["scores"]


def test_a_test_part_that_cannot_be_read_costs_no_training(observed, config, tmp_path, monkeypatch):
    monkeypatch.setattr("a2mae_hub.training.labelled._MOST_KEPT_BYTES", 0)
    broken = [7]

    def mapping(number: int) -> tuple[ImageSet, str]:
        if number in broken and any(tmp_path.glob("run/checkpoint-*")):
            raise ValueError(f"chip {number}: cannot be read; download it again.")
        return ImageSet([observed(np.full((16, 16), number % 2), number)], name=f"chip {number}"), "ab"[number % 2]

    data = from_dataset("classification", range(4), range(4, 6), mapping, test=range(6, 9))
    with pytest.raises(ValueError, match="chip 7: cannot be read; download it again"):
        finetune(data, tmp_path / "run", config=config, epochs=1)
    A2MAEForImageClassification.from_pretrained(tmp_path / "run")
    broken.clear()
    assert finetune(data, tmp_path / "run", config=config, epochs=1)["test_scores"] is not None


_DISTRIBUTED = """
import importlib.util, sys
import torch
from a2mae_hub.training.finetune import finetune
from a2mae_hub.training.labelled import from_dataset

torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("fields", sys.argv[1])
fields = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fields)
data = from_dataset("segmentation", range(12), range(12, 17), lambda n: fields.example("segmentation", n), test=[17])
finetune(data, sys.argv[3], checkpoint=sys.argv[2], mode="frozen", epochs=2, batch_size=4)
"""


def test_two_processes_judge_the_maps_of_a_frozen_encoder(labelled, scores_of, config, tmp_path, run_python):
    """Five maps for validation are three batches of two processes, the last of one map, and one for a test is one."""
    finetune(labelled(), tmp_path / "start", config=config, epochs=1, batch_size=12)
    (tmp_path / "both.py").write_text(_DISTRIBUTED)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    arguments = Path(__file__).parent / "conftest.py", tmp_path / "start", tmp_path / "two"
    told = run_python(tmp_path / "both.py", *arguments, launcher=launcher)
    assert told.returncode == 0, told.stderr
    report = json.loads((tmp_path / "two" / "finetuning.json").read_text())
    model = A2MAEForSemanticSegmentation.from_pretrained(tmp_path / "two")
    data = labelled("segmentation", tested=True)
    data = replace(data, validation=labelled("segmentation", judged=5).validation, test=data.test.select([1]))
    for part, key in (("validation", "scores"), ("test", "test_scores")):
        assert scores_of(model, tmp_path / "two", data, part) == pytest.approx(report[key], abs=2e-3)


def test_every_epoch_turns_the_sets_in_another_way_and_workers_in_the_same(labelled, config, tmp_path, monkeypatch):
    seen = []
    own = TaskCollator.__call__

    def collate(self, examples):
        seen.extend(one.epoch for one in examples if self.augment)
        return own(self, examples)

    data = labelled("segmentation")
    with monkeypatch.context() as patch:
        patch.setattr(TaskCollator, "__call__", collate)
        report = finetune(data, tmp_path / "none", config=config, epochs=2, batch_size=4, head="linear")
    assert seen == [0] * 12 + [1] * 12
    other = finetune(data, tmp_path / "one", config=config, epochs=2, batch_size=4, head="linear", workers=1)
    assert [entry.get("loss") for entry in other["curve"]] == [entry.get("loss") for entry in report["curve"]]


def test_training_ends_where_nothing_improves(labelled, config, tmp_path):
    report = finetune(
        labelled(), tmp_path / "run", config=config, epochs=50, patience=1, batch_size=4, learning_rate=2e-2
    )
    scores = [entry["eval_accuracy"] for entry in report["curve"] if "eval_accuracy" in entry]
    assert len(scores) < 50 and scores[-1] <= scores[-2] and all(np.diff(scores[:-1]) > 0)


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_of_epochs_that_did_equally_well_the_last_is_kept(labelled, config, tmp_path, monkeypatch, task):
    """Half of six epochs reach the same score, and the one after them less."""
    score = {"classification": "accuracy", "segmentation": "mean_iou"}[task]
    told = iter([0.2, 0.6, 0.4, 0.6, 0.6, 0.5, 0.6])
    monkeypatch.setattr(TaskTrainer, "scores", lambda self, prediction: {score: next(told)})
    kept = {}
    save = TaskTrainer._save_checkpoint

    def remember(self, model, trial):
        kept[self.state.global_step] = {name: weight.clone() for name, weight in model.state_dict().items()}
        save(self, model, trial)

    monkeypatch.setattr(TaskTrainer, "_save_checkpoint", remember)
    report = finetune(labelled(task), tmp_path / "run", config=config, epochs=6, batch_size=4)
    assert report["best_epoch"] == 5
    saved = load_file(tmp_path / "run" / "model.safetensors")
    for name, weight in kept[5 * 3].items():
        torch.testing.assert_close(saved[name], weight, rtol=0, atol=0)


def test_layers_learn_at_rates_that_fall_by_a_factor(config):
    """Embeddings, two layers and the head: scales 0.5³ … 0.5⁰ (BEiT, Bao et al. 2022)."""
    model = A2MAEForImageClassification(config)
    scales = {}
    for group in parameter_groups(model, 0.05, 0.5):
        for weight in group["params"]:
            scales[id(weight)] = (group["lr_scale"], group["weight_decay"])
    expected = {
        "a2mae.cls_token": (0.5**3, 0.0),
        "a2mae.patch_embedding.projection.weight": (0.5**3, 0.05),
        "a2mae.coordinates.position.weight": (0.5**3, 0.05),
        "a2mae.layers.0.attention.q_proj.weight": (0.5**2, 0.05),
        "a2mae.layers.1.mlp.fc1.bias": (0.5, 0.0),
        "a2mae.layernorm.weight": (0.5, 0.0),
        "classifier.linear.weight": (1.0, 0.05),
    }
    for name, scale in expected.items():
        assert scales[id(model.get_parameter(name))] == scale, name
    assert len(scales) == len(list(model.parameters()))


def test_balanced_weights_reach_the_loss(labelled, config, tmp_path):
    data = labelled("segmentation")
    finetune(data, tmp_path / "run", config=config, class_weights="balanced", head="linear", epochs=1)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["class_weights"] == data.balanced_weights()
    assert saved["segmentation_head"] == "linear"


def test_the_size_of_images_goes_with_the_checkpoint(labelled, config, tmp_path):
    finetune(labelled(), tmp_path / "run", config=config, size=24, epochs=1)
    assert A2MAEImageProcessor.from_pretrained(tmp_path / "run").size == [24, 24]


def test_the_card_tells_what_was_measured_and_no_path_of_this_machine(labelled, config, tmp_path):
    report = finetune(labelled(), tmp_path / "run", config=config, epochs=1, name="greenness")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert f"| greenness | accuracy | {report['scores']['accuracy']:.3f} |" in card
    assert "Frozen features under the fixed protocol" not in card
    assert "not recorded" not in card
    assert "a2mae finetune classification greenness" in card
    assert str(tmp_path) not in card


def test_the_card_tells_the_scores_of_the_test_part_where_there_is_one(labelled, config, tmp_path):
    report = finetune(labelled("segmentation", tested=True), tmp_path / "run", config=config, epochs=1, name="wood")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "On 3 image sets kept for test; the best epoch was chosen by 4 others." in card
    assert f"| wood | mean iou | {report['test_scores']['mean_iou']:.3f} |" in card
    [task] = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]
    assert task["split"] == "test"
    assert task["scores"]["mean iou"]["model"] == report["test_scores"]["mean_iou"]


def test_a_push_takes_the_folder_as_it_is(labelled, config, tmp_path, monkeypatch):
    from a2mae_hub.conversion import hub_plan

    finetune(labelled(), tmp_path / "run", config=config, epochs=1)
    monkeypatch.setattr(
        hub_plan, "_compare", lambda folder, repo, kind, contents, left_out, *rest: (contents, left_out)
    )
    contents, left_out = hub_plan.plan_model(tmp_path / "run", "owner/run")
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= set(contents)
    assert all(name.startswith("checkpoint-") or name.endswith(".json") for name in left_out)


def test_other_sensors_and_bands_work_and_are_told(observed, labelled, config, tmp_path):
    finetune(labelled(), tmp_path / "first", config=config, epochs=1)
    fewer = from_dataset(
        "classification",
        range(8),
        range(8, 10),
        lambda number: (
            ImageSet([observed(np.full((16, 16), number % 2), number, ["B02", "B03", "B04"])]),
            "ab"[number % 2],
        ),
    )
    report = finetune(fewer, tmp_path / "second", checkpoint=tmp_path / "first", epochs=1)
    assert report["notes"] == ["sentinel-2-l2a: without B08, other bands than the checkpoint was fine-tuned on."]


def test_bands_that_the_test_part_alone_lacks_are_told(observed, config, tmp_path):
    def mapping(number: int) -> tuple[ImageSet, str]:
        bands = ["B02", "B03", "B04", "B08"][: 4 if number < 8 else 3]
        return ImageSet([observed(np.full((16, 16), number % 2), number, bands)]), "ab"[number % 2]

    data = from_dataset("classification", range(6), range(6, 8), mapping, test=range(8, 10))
    report = finetune(data, tmp_path / "run", config=config, epochs=1)
    assert report["notes"] == [
        "In test: sentinel-2-l2a: without B08, other bands than the checkpoint was fine-tuned on."
    ]


# What is wrong


def test_a_lost_loss_names_the_sets_of_its_batch(observed, config, tmp_path, monkeypatch):
    own = A2MAEForImageClassification.classification_loss
    monkeypatch.setattr(
        A2MAEForImageClassification,
        "classification_loss",
        lambda self, logits, labels: own(self, logits, labels) / (labels == 0).float().sum(),
    )

    def mapping(number: int) -> tuple[ImageSet, str]:
        return ImageSet([observed(np.ones((16, 16)), number)], name=f"chip {number}"), "b" if number == 3 else "a"

    data = from_dataset("classification", range(4), range(4, 6), mapping)
    with pytest.raises(ValueError, match=r"loss became inf at step \d, in the batch of chip 3; check"):
        finetune(data, tmp_path / "run", config=config, batch_size=1, epochs=1)


@pytest.mark.parametrize(
    ("task", "mode"),
    [*((task, "full") for task in ("classification", "several", "regression", "segmentation")), ("change", "frozen")],
)
def test_a_loss_that_is_lost_in_the_last_step_is_no_result(labelled, config, tmp_path, task, mode):
    data = labelled(task, judged=4)
    with pytest.raises(ValueError, match=r"The loss became nan after step 1, in the batch of .+; check the values"):
        finetune(data, tmp_path / "run", config=config, mode=mode, batch_size=12, epochs=1, learning_rate=1e30, seed=1)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_run_on_other_bands_or_pixels_is_another_run(config, tmp_path, observed):
    def data(bands: list[str], seed: int, scale: float | None = None) -> LabelledData:
        def mapping(number: int) -> tuple[ImageSet, str]:
            image = observed(np.full((16, 16), number % 2), seed + number, bands)
            return ImageSet([replace(image, scale=scale)], name=f"chip {number}"), "ab"[number % 2]

        return from_dataset("classification", range(4), range(4, 6), mapping)

    bands = ["B02", "B03", "B04"]
    facts = {"config": config, "epochs": 1, "mode": "frozen"}
    first = finetune(data(bands, 0), tmp_path / "run", **facts)
    assert finetune(data(bands, 0), tmp_path / "run", **facts) == first
    for other in (data(bands[:2], 0), data(bands[::-1], 0), data(bands, 9), data(bands, 0, scale=2e-4)):
        with pytest.raises(ValueError, match="run: holds a run with other images, bands or labels; give what it was"):
            finetune(other, tmp_path / "run", **facts)


def test_images_that_are_half_without_data_are_learnt(config, tmp_path, observed, field):
    """Crops of two patches fall on nothing again and again."""

    def mapping(number: int) -> tuple[ImageSet, np.ndarray]:
        image = observed(np.tile(field(number), (4, 4)), number)
        image.pixels[:, :, 12:] = 0
        return ImageSet([replace(image, nodata=0)]), np.tile(field(number), (4, 4)).astype(np.uint8)

    data = from_dataset("segmentation", range(6), range(6, 8), mapping)
    report = finetune(data, tmp_path / "run", config=config, epochs=3, side=2)
    assert len(report["curve"]) == 6


def test_what_is_reported_to_has_to_be_installed(labelled, config, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(ImportError, match="report_to=tensorboard: is not installed; pip install tensorboard, or"):
        finetune(labelled(), tmp_path / "run", config=config, epochs=1, report_to="tensorboard")


def test_what_a_worker_finds_wrong_is_one_sentence(observed, field, config, tmp_path):
    def mapping(number: int) -> tuple[ImageSet, np.ndarray]:
        return ImageSet([observed(field(number), number)], name=f"chip {number}"), np.eye(16 + number // 3)

    data = from_dataset("segmentation", range(4), range(2), mapping)
    with pytest.raises(ValueError, match=r"^chip 3: its mask is of 17 × 17 pixels, and its first image of 16 × 16"):
        finetune(data, tmp_path / "run", config=config, workers=1, epochs=1)


def test_a_folder_of_another_run_is_refused(labelled, config, tmp_path):
    finetune(labelled(), tmp_path / "run", config=config, epochs=1)
    with pytest.raises(ValueError, match="holds a run with epochs=1; give what it was begun with"):
        finetune(labelled(), tmp_path / "run", config=config, epochs=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "probe"}, "mode='probe' must be one of full, frozen, lora"),
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"learning_rate": 0.0}, "greater than 0"),
        ({"layer_decay": 2.0}, "layer_decay=2.0"),
        ({"class_weights": "equal"}, "'balanced' or one number"),
        ({"class_weights": [1.0]}, "class_weights has 1 numbers"),
        ({"head": "fpn"}, "classification has one head"),
    ],
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else None,
)
def test_settings_that_cannot_be_are_refused(labelled, config, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        finetune(labelled(), tmp_path / "run", config=config, **settings)
    assert not (tmp_path / "run").exists()


def test_maps_are_not_resampled(labelled, config, tmp_path):
    with pytest.raises(ValueError, match="maps are made on the pixels that images have"):
        finetune(labelled("segmentation"), tmp_path / "run", config=config, size=32)
