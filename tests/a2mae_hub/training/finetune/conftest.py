"""Ground with and without vegetation, which a few thousand parameters learn to tell apart within seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from a2mae_hub import A2MAEConfig, Image, ImageSet
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.training.labelled import LabelledData, from_dataset
from a2mae_hub.training.metrics import classification_scores, count_pixels, map_scores
from a2mae_hub.training.task_batches import TaskCollator

BANDS = ["B02", "B03", "B04", "B08"]


def observe(vegetation: np.ndarray, seed: int, bands: list[str] = BANDS) -> Image:
    """An image of ground where vegetation (0 to 1) is bright in the near infrared."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(1400, 1600, (4, *vegetation.shape)).astype(np.float32)
    pixels[3] += 2500 * vegetation
    return Image(pixels[: len(bands)].astype(np.uint16), bands, "sentinel-2-l2a", gsd=10.0)


def draw_field(seed: int) -> np.ndarray:
    """Squares of 4 pixels with and without vegetation, 16 × 16."""
    return np.random.default_rng(seed).integers(0, 2, (4, 4)).repeat(4, 0).repeat(4, 1)


def example(task: str, number: int) -> tuple[ImageSet, object]:
    """An image set of a task with its label."""
    share = number % 2
    if task == "segmentation":
        return ImageSet([observe(draw_field(number), number)]), draw_field(number).astype(np.uint8)
    if task == "change":
        images = [observe(np.zeros((16, 16)), number), observe(draw_field(number), 100 + number)]
        return ImageSet(images), draw_field(number).astype(np.uint8)
    image_set = ImageSet([observe(np.full((16, 16), share), number)], name=f"chip {number}")
    labels = {"classification": ["bare", "green"][share], "several": [["dry"], ["green", "wet"]][share]}
    return image_set, labels.get(task, 3.0 * share)


@pytest.fixture(scope="session")
def observed() -> Callable[..., Image]:
    """A function from vegetation (0 to 1), a seed and bands to an image of it."""
    return observe


@pytest.fixture(scope="session")
def field() -> Callable[[int], np.ndarray]:
    """A function from a seed to squares with and without vegetation."""
    return draw_field


@pytest.fixture
def labelled() -> Callable[..., LabelledData]:
    """A function from what is asked to 12 sets for training, 4 or more for validation, and 3 for a test if asked."""

    def make(task: str = "classification", *, judged: int = 4, tested: bool = False) -> LabelledData:
        name = task if task in ("segmentation", "change") else "classification"
        test = range(16, 19) if tested else None
        return from_dataset(name, range(12), range(12, 12 + judged), lambda number: example(task, number), test=test)

    return make


@pytest.fixture(scope="session")
def scores_of() -> Callable[..., dict[str, float]]:
    """A function that judges a model that was loaded from a folder on a part of the data, without a Trainer."""

    def judge(model: torch.nn.Module, folder: Path, data: LabelledData, part: str) -> dict[str, float]:
        collate = TaskCollator(A2MAEImageProcessor.from_pretrained(folder))
        sets = data.parts()[part]
        batch = collate([sets[index] for index in range(len(sets))])
        batch.pop("indices")
        with torch.no_grad():
            logits = model.eval()(**batch).logits
        if data.task == "classification":
            return classification_scores(logits.numpy(), batch["labels"].numpy(), data.problem_type)
        return map_scores(data.task, count_pixels(data.task, logits, batch["labels"]).sum(0).numpy())

    return judge


@pytest.fixture
def config(small_config) -> A2MAEConfig:
    """A configuration of a few thousand parameters."""
    return small_config(head_hidden_size=8, num_hidden_layers=2)
