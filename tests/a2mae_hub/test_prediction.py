"""What fine-tuned checkpoints write of scenes: maps with names and colours, scores, and sentences on what is wrong."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from transformers.utils import logging

from a2mae_hub import (
    A2MAEConfig,
    A2MAEForChangeDetection,
    A2MAEForImageClassification,
    A2MAEForSemanticSegmentation,
    A2MAEImageProcessor,
    read_image_set,
    write_raster,
)
from a2mae_hub.cli import main
from a2mae_hub.prediction import NO_CLASS, class_colours, differing_inputs, load_task_checkpoint, predict_map

BANDS = ("B02", "B03", "B04", "B08")
PLACE = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 500_000.0, 0.0, -10.0, 4_600_000.0)}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "head_hidden_size": 8,
}


@pytest.fixture
def a2mae(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """A function that runs the command line in this process: exit code, output and errors."""
    verbosity = logging.get_verbosity()

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["a2mae", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    yield run
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def scene(tmp_path) -> Callable[..., Path]:
    """A function that writes an image of 20 × 28 pixels, its first three rows without data."""

    def write(name: str, size: tuple[int, int] = (20, 28), bands: tuple[str, ...] = BANDS, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(1200, 3000, (len(bands), *size)).astype(np.uint16)
        pixels[:, :3] = 0
        write_raster(path, pixels, descriptions=bands, tags={"sensor": "sentinel-2-l2a"}, nodata=0, **PLACE)
        return path

    return write


@pytest.fixture
def checkpoint(tmp_path) -> Callable[..., Path]:
    """A function from a model class and the names of classes to a checkpoint of random weights."""

    def save(model_class: type, classes: list[str], **fields) -> Path:
        config = A2MAEConfig.nano(
            **SMALL, id2label=dict(enumerate(classes)), label2id={name: n for n, name in enumerate(classes)}, **fields
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model_class(config).save_pretrained(tmp_path / "model")
        A2MAEImageProcessor(patch_size=8).save_pretrained(tmp_path / "model")
        inputs = {"inputs": {"sentinel-2-l2a": list(BANDS)}}
        (tmp_path / "model" / "finetuning.json").write_text(json.dumps(inputs))
        return tmp_path / "model"

    return save


def test_a_map_lies_on_the_anchor_with_names_and_colours(a2mae, checkpoint, scene, tmp_path):
    folder, path = checkpoint(A2MAEForSemanticSegmentation, ["land", "water", "ice"]), scene("scene.tif")
    code, out, err = a2mae("predict", folder, path, "-o", tmp_path / "map.tif")
    assert (code, err) == (0, "")
    assert "3 classes on 20 × 28 pixels" in out
    with rasterio.open(tmp_path / "map.tif") as dataset:
        classes, tags = dataset.read(1), dataset.tags()
        assert dataset.crs.to_epsg() == 32631
        assert tuple(dataset.transform)[:6] == PLACE["transform"]
        assert dataset.nodata == NO_CLASS
        colours = dataset.colormap(1)
    assert [tags[f"class_{number}"] for number in range(3)] == ["land", "water", "ice"]
    assert [colours[number][:3] for number in range(3)] == class_colours(3)
    assert (classes[:3] == NO_CLASS).all()
    # The truth: the model by hand.
    processor = A2MAEImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        batch = processor(read_image_set(path), return_tensors="pt")
        logits = A2MAEForSemanticSegmentation.from_pretrained(folder).eval()(**batch).logits
    np.testing.assert_array_equal(classes[3:], logits[0, :, 3:20, :28].argmax(0))


def test_change_is_between_the_scenes(a2mae, checkpoint, scene, tmp_path):
    folder = checkpoint(A2MAEForChangeDetection, ["unchanged", "changed"])
    scenes = [scene("before.tif"), scene("after.tif", seed=1)]
    assert a2mae("predict", folder, *scenes, "-o", tmp_path / "map.tif")[0] == 0
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert set(np.unique(dataset.read(1))) <= {0, 1, NO_CLASS}
        assert dataset.descriptions == ("change",)
    code, _, err = a2mae("predict", folder, scenes[0], "-o", tmp_path / "map.tif")
    assert code == 2
    assert "two dates or more" in err


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_scores_are_a_row_per_scene(a2mae, checkpoint, scene, tmp_path, problem):
    folder = checkpoint(A2MAEForImageClassification, ["land", "water"], problem_type=problem)
    scenes = [scene("one.tif"), scene("two.tif", seed=1)]
    code, _, err = a2mae("predict", folder, *scenes, "-o", tmp_path / "scores.csv")
    assert (code, err) == (0, "")
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == [str(path) for path in scenes]
    processor = A2MAEImageProcessor.from_pretrained(folder)
    model = A2MAEForImageClassification.from_pretrained(folder).eval()
    for row, path in zip(rows, scenes, strict=True):
        with torch.no_grad():
            logits = model(**processor(read_image_set(path), return_tensors="pt")).logits[0].double().numpy()
        sigmoid = 1 / (1 + np.exp(-logits))
        expected = {
            "single_label_classification": np.exp(logits) / np.exp(logits).sum(),
            "multi_label_classification": sigmoid,
            "regression": logits,
        }[problem]
        np.testing.assert_allclose([float(row["land"]), float(row["water"])], expected, rtol=1e-4, atol=1e-6)
        if problem == "single_label_classification":
            assert row["label"] == ("land" if logits[0] > logits[1] else "water")
        if problem == "multi_label_classification":
            assert row["label"] == ";".join(np.array(["land", "water"])[logits > 0])


def test_bands_that_are_absent_are_told(a2mae, checkpoint, scene, tmp_path):
    folder, path = checkpoint(A2MAEForSemanticSegmentation, ["a", "b"]), scene("scene.tif", bands=BANDS[:3])
    code, _, err = a2mae("predict", folder, path, "-o", tmp_path / "map.tif")
    assert code == 0
    assert err == "a2mae: sentinel-2-l2a: without B08, other bands than the checkpoint was fine-tuned on.\n"


def test_another_sensor_is_told():
    notes = differing_inputs({"naip": ["red"]}, {"landsat-8-sr": ["B4"]})
    assert notes == ["landsat-8-sr: a sensor that the checkpoint was not fine-tuned on; it saw naip (red)."]
    assert differing_inputs({}, {"landsat-8-sr": ["B4"]}) == []


def test_a_scene_beyond_one_pass_is_refused(checkpoint, scene, monkeypatch):
    from a2mae_hub import inference

    loaded = load_task_checkpoint(checkpoint(A2MAEForSemanticSegmentation, ["a", "b"]))
    monkeypatch.setattr(inference, "MAX_TOKENS", 11)
    with pytest.raises(ValueError, match=r"hold 12 patches .* read a part of them with bounds"):
        predict_map(loaded, read_image_set(scene("scene.tif")))


@pytest.mark.parametrize(
    ("model_class", "output", "message"),
    [
        (A2MAEForSemanticSegmentation, "scores.csv", "makes maps and no scores; write map.tif"),
        (A2MAEForImageClassification, "map.tif", "makes no map; write scores.csv"),
        (A2MAEForSemanticSegmentation, "map.png", "give it a name that ends"),
    ],
)
def test_what_a_checkpoint_does_not_make_is_refused(a2mae, checkpoint, scene, tmp_path, model_class, output, message):
    code, _, err = a2mae("predict", checkpoint(model_class, ["a", "b"]), scene("scene.tif"), "-o", tmp_path / output)
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "nonsense"], "--device='nonsense' cannot be used"),
        (["--window", "64"], "scores are made in one pass, without --window, --overlap and --precision"),
        (["--precision", "bfloat16"], "scores are made in one pass"),
    ],
)
def test_options_of_maps_are_refused_with_scores(a2mae, checkpoint, scene, tmp_path, options, message):
    folder, scores = checkpoint(A2MAEForImageClassification, ["a", "b"]), tmp_path / "scores.csv"
    code, _, err = a2mae("predict", folder, scene("scene.tif"), "-o", scores, *options)
    assert (code, message in err, scores.exists()) == (2, True, False), err
    assert a2mae("predict", folder, scene("scene.tif"), "-o", scores, "--device", "cpu")[0] == 0


def test_a_checkpoint_of_no_task_is_refused(a2mae, scene, tmp_path):
    code, _, err = a2mae("predict", "a2mae-nano", scene("scene.tif"), "-o", tmp_path / "map.tif")
    assert code == 2
    assert "a2mae-nano: is not fine-tuned for a task" in err


def test_a_damaged_report_of_the_training_is_named(a2mae, checkpoint, scene, tmp_path):
    folder = checkpoint(A2MAEForSemanticSegmentation, ["land", "water"])
    (folder / "finetuning.json").write_text('{"inputs": ')
    code, _, err = a2mae("predict", folder, scene("scene.tif"), "-o", tmp_path / "map.tif")
    assert code == 2
    assert "finetuning.json: is no JSON" in err and "save or download the checkpoint again" in err


def test_colours_tell_classes_apart():
    for is_change in (False, True):
        colours = class_colours(40, is_change)
        assert len(set(colours)) == 40
        assert all(0 <= part <= 255 for colour in colours for part in colour)


def test_from_folders_to_a_map_on_the_command_line(a2mae, scene, tmp_path):
    for number in range(4):
        path = scene(f"data/images/{number}.tif", seed=number)
        (tmp_path / "data" / "masks").mkdir(exist_ok=True)
        values = np.random.default_rng(number).integers(0, 2, (20, 28)).astype(np.uint8)
        write_raster(tmp_path / "data" / "masks" / path.name, values, **PLACE)
    code, out, err = a2mae(
        *("finetune", "segmentation", tmp_path / "data", "-o", tmp_path / "run", "--mode", "frozen", "--epochs", "1"),
        *("--classes", "0=land,1=water", "--head", "linear", "--validation", "0.25"),
    )
    assert code == 0
    assert err.startswith("a2mae: sentinel-2-l2a: without B01 ") and "other bands than the checkpoint knows." in err
    assert "2 classes, 3 image sets trained on; mean iou" in out
    code, out, err = a2mae("predict", tmp_path / "run", path, "-o", tmp_path / "map.tif")
    assert (code, err) == (0, "")
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.tags()["class_1"] == "water"
