"""The checkpoints of the package: what is in them, and what they say of pixels that never change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import a2mae_hub
from a2mae_hub import A2MAEForPreTraining, A2MAEImageProcessor, A2MAEModel, Image
from a2mae_hub.checkpoints import checkpoint, embedded

# The first eight numbers of the vector of `golden_image`, as the shipped weights gave them when they were trained.
GOLDEN = {
    "a2mae-nano": [0.9155, -0.96048, -0.39348, -0.28495, 0.43561, 0.00528, -0.85541, 0.90252],
    "a2mae-tiny": [0.92223, -0.27822, -2.10236, -0.0364, 0.0452, 0.10046, -1.3134, 0.60668],
}


def golden_image() -> Image:
    """Return an image whose pixels follow from a formula: six bands of Sentinel-2, a ramp and waves."""
    rows, columns = np.mgrid[:48, :48]
    bands = [1000 + 300 * band + 8 * rows + 200 * np.sin(columns / (3 + band)) * np.cos(rows / 5) for band in range(6)]
    return Image(
        pixels=np.stack(bands).round().astype(np.uint16),
        bands=["B02", "B03", "B04", "B08", "B11", "B12"],
        sensor="sentinel-2-l2a",
        scale=1e-4,
        offset=0.0,
        gsd=10.0,
    )


@pytest.mark.parametrize("name", embedded())
def test_pixels_become_the_vector_they_always_became(name: str) -> None:
    model = A2MAEModel.from_pretrained(checkpoint(name)).eval()
    processor = A2MAEImageProcessor.from_pretrained(checkpoint(name))
    with torch.inference_mode():
        vector = model(**processor(golden_image(), return_tensors="pt")).pooler_output[0]
    assert vector.shape == (2 * model.config.hidden_size,)
    np.testing.assert_allclose(vector[:8].numpy(), GOLDEN[name], atol=2e-4)


@pytest.mark.parametrize("name", embedded())
def test_a_checkpoint_is_whole_small_and_tells_how_it_was_made(name: str) -> None:
    folder = checkpoint(name)
    model, loading = A2MAEForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert (folder / "model.safetensors").stat().st_size <= 16 * 2**20
    report = json.loads((folder / "training.json").read_text())
    assert report["parameters"] == sum(weight.numel() for weight in model.parameters())
    first = report
    while "before" in first:
        first = first["before"]
    before, after = ([entry["loss"] for entry in run["curve"]] for run in (first, report))
    assert np.mean(after[-20:]) < 0.8 * np.mean(before[:20])


def test_nano_has_the_size_that_it_is_said_to_have() -> None:
    model = A2MAEModel.from_pretrained(a2mae_hub.checkpoint("a2mae-nano"))
    assert 1.0e6 < sum(weight.numel() for weight in model.parameters()) < 1.5e6
    assert (checkpoint() / "model.safetensors").stat().st_size <= 8e6


def test_an_unknown_name_is_told_those_that_are_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"a2mae-huge: no checkpoint of the package, which holds a2mae-nano"):
        a2mae_hub.checkpoint("a2mae-huge")


def test_it_loads_where_nothing_can_be_fetched(tmp_path: Path) -> None:
    program = (
        "import socket; socket.socket.connect = None\n"
        "import a2mae_hub; from transformers import AutoImageProcessor, AutoModel\n"
        "folder = a2mae_hub.checkpoint('a2mae-nano')\n"
        "model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)\n"
        "print(model.config.model_type, processor.patch_size)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["a2mae", "8"]
