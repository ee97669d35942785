"""`a2mae finetune` answers with one sentence, and hands its options on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import numpy as np
import pytest
from transformers.utils import logging

from a2mae_hub import write_raster
from a2mae_hub.cli import main
from a2mae_hub.training.finetune import finetune


@pytest.fixture
def run(labelled, observed, config, tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """A function that fine-tunes a tiny checkpoint on eight chips: from options to exit code, output and errors."""
    finetune(labelled("several"), tmp_path / "start", config=config, epochs=1, batch_size=12)
    for number in range(8):
        folder = tmp_path / "chips" / ["bare", "green"][number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = observed(np.full((16, 16), number % 2), number)
        facts = {"descriptions": image.bands, "tags": {"sensor": image.sensor}, "transform": (10, 0, 0, 0, -10, 0)}
        write_raster(folder / f"{number}.tif", image.pixels, crs="EPSG:32631", **facts)
    verbosity = logging.get_verbosity()

    def call(*options: object) -> tuple[int, str, str]:
        arguments = ("classification", tmp_path / "chips", "-o", tmp_path / "run", "--from", tmp_path / "start")
        monkeypatch.setattr(sys, "argv", ["a2mae", "finetune", *map(str, (*arguments, "--epochs", "1", *options))])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    yield call
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.mark.parametrize("mode", ["full", "frozen", "lora"])
def test_standard_output_is_the_result_alone(run, tmp_path, mode):
    if mode == "lora":
        pytest.importorskip("peft", reason="needs the extra [peft]")
    code, out, err = run("--mode", mode, "--mixup", "0.2", *([] if mode == "frozen" else ["--head-learning-rate", "1"]))
    assert (code, err) == (0, "")
    (line,) = out.splitlines()
    assert line.startswith(f"{tmp_path / 'run'}: 2 classes, 6 image sets trained on; accuracy ")
    settings = json.loads((tmp_path / "run" / "finetuning.json").read_text())["settings"]
    assert settings["mixup"] == 0.2
    assert settings["head_learning_rate"] == (None if mode == "frozen" else 1.0)


def test_scores_of_a_test_part_are_told_beside_those_of_validation(run, tmp_path):
    chips = tmp_path / "chips"
    for part, numbers in (("train", range(6)), ("Test", range(6, 8))):
        for number in numbers:
            label = ["bare", "green"][number % 2]
            (chips / part / label).mkdir(parents=True, exist_ok=True)
            (chips / label / f"{number}.tif").rename(chips / part / label / f"{number}.tif")
    for label in ("bare", "green"):
        (chips / label).rmdir()
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "4 image sets trained on; accuracy " in out
    assert " on 2 for validation; accuracy " in out and out.endswith(" on 2 for test.\n")


def test_a_mistake_is_one_sentence(run):
    code, out, err = run("--mixup", "-1")
    assert (code, out) == (2, "")
    assert err == "a2mae: mixup=-1.0 must be 0, for none, or greater.\n"


def test_a_class_of_two_names_is_a_mistake(run):
    code, out, err = run("--classes", "0=bare,1=green,1=wood")
    assert (code, out) == (2, "")
    assert err == "a2mae: --classes 0=bare,1=green,1=wood: a number is given twice; give each class one name.\n"
