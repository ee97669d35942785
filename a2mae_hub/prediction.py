"""What a fine-tuned checkpoint says of scenes: maps of classes, or scores of classes.

What is read into memory here is answered in one pass, and what does not fit one is refused; `a2mae_hub.scene` makes
maps of scenes of any size.
"""

from __future__ import annotations

import colorsys
import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from . import inference
from .images import ImageSet
from .modeling import tasks_a2mae
from .modeling.image_processing_a2mae import A2MAEImageProcessor
from .modeling.tasks_a2mae import A2MAEForImageClassification, A2MAETaskModel
from .scene_files import Scene
from .whole_files import write_atomically

FINETUNING = "finetuning.json"
"""What a fine-tuned checkpoint says of its training."""

NO_CLASS = 255
"""Value of the pixels of a map where the anchor has no data."""

# Okabe and Ito (2008), told apart by the colour-blind; further classes take hues by the golden ratio.
_COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))
_UNCHANGED, _CHANGED = (225, 225, 225), (213, 94, 0)


@dataclass(frozen=True)
class TaskCheckpoint:
    """A fine-tuned model with its processor.

    Attributes:
        name: What it was loaded from.
        model: In evaluation mode.
        processor: Turns image sets into its input.
        inputs: Bands of each sensor that it was fine-tuned on; empty where that is not recorded.
    """

    name: str
    model: A2MAETaskModel
    processor: A2MAEImageProcessor
    inputs: dict[str, list[str]]

    @property
    def classes(self) -> list[str]:
        """Names of the classes, by number."""
        names = self.model.config.id2label
        return [names[number] for number in range(len(names))]


def load_task_checkpoint(name: str | os.PathLike[str]) -> TaskCheckpoint:
    """Load a checkpoint that was fine-tuned for a task.

    Args:
        name: Folder, or id on the Hugging Face Hub.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or no checkpoint of a task.
    """
    loaded = inference.load_checkpoint(name)
    folder = loaded.model.name_or_path
    known = {cls: getattr(tasks_a2mae, cls) for cls in tasks_a2mae.__all__}
    architecture = next(iter(inference.architectures_of(folder)), None)
    if architecture not in known:
        raise ValueError(f"{name}: is not fine-tuned for a task ({architecture}); `a2mae finetune` does that.")
    with inference.quiet_loading():
        model, report = known[architecture].from_pretrained(folder, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(f"{name}: lacks {len(report['missing_keys'])} weights of its head; save or download it again.")
    processor = loaded.processor
    return TaskCheckpoint(os.fspath(name), model.eval(), processor, known_inputs(name))


def known_inputs(name: str | os.PathLike[str] | None) -> dict[str, list[str]]:
    """Return the bands of each sensor that a checkpoint was fine-tuned on; none where it does not say."""
    report = None if name is None else inference.read_beside(name, FINETUNING)
    return {} if report is None else report.get("inputs", {})


def inputs_of(image_sets: Iterable[ImageSet]) -> dict[str, list[str]]:
    """Return the bands of each sensor that image sets have, in their order."""
    found: dict[str, list[str]] = {}
    for image_set in image_sets:
        for image in image_set:
            bands = found.setdefault(image.sensor, [])
            bands += [band for band in image.bands if band not in bands]
    return found


def inputs_of_scenes(scenes: Iterable[Scene]) -> dict[str, list[str]]:
    """Return the bands of each sensor that scenes have, in their order."""
    found: dict[str, list[str]] = {}
    for scene in scenes:
        bands = found.setdefault(scene.sensor.name, [])
        bands += [layer.name for layer in scene.layers if layer.name not in bands]
    return found


def differing_inputs(
    known: Mapping[str, Sequence[str]], given: Mapping[str, Sequence[str]], how: str = "was fine-tuned on"
) -> list[str]:
    """Say what of its sensors and bands a checkpoint is not given, and what it is given besides.

    Args:
        known: What it was fine-tuned on, or otherwise knows; nothing is said where this is empty.
        given: What the images have.
        how: How it came to know that.

    Returns:
        One sentence per sensor that differs.
    """
    notes = []
    for sensor, bands in given.items() if known else ():
        if sensor not in known:
            told = ", ".join(f"{name} ({' '.join(names)})" for name, names in known.items())
            notes.append(f"{sensor}: a sensor that the checkpoint was not fine-tuned on; it saw {told}.")
            continue
        absent = [band for band in known[sensor] if band not in bands]
        new = [band for band in bands if band not in known[sensor]]
        if absent or new:
            parts = [f"without {' '.join(absent)}"] * bool(absent) + [f"with {' '.join(new)} besides"] * bool(new)
            notes.append(f"{sensor}: {' and '.join(parts)}, other bands than the checkpoint {how}.")
    return notes


@torch.inference_mode()
def predict_map(checkpoint: TaskCheckpoint, image_set: ImageSet) -> np.ndarray:
    """Return the class of every pixel of the anchor of an image set.

    Args:
        checkpoint: Of segmentation or change detection.
        image_set: Images of one place; of change detection two dates or more.

    Returns:
        (height, width) uint8 class numbers, `NO_CLASS` where the anchor has no data.

    Raises:
        ValueError: If the checkpoint makes no maps, or the set is too large for one pass.
    """
    if isinstance(checkpoint.model, A2MAEForImageClassification):
        raise ValueError(f"{checkpoint.name}: is a classifier of whole scenes and makes no map; write scores.csv.")
    batch = _prepare(checkpoint, image_set)
    classes = checkpoint.processor.post_process_semantic_segmentation(checkpoint.model(**batch), batch, image_set)[0]
    seen = image_set[image_set.anchor].valid_values().any(0)
    return np.where(seen, classes, NO_CLASS).astype(np.uint8)


@torch.inference_mode()
def predict_scores(checkpoint: TaskCheckpoint, image_set: ImageSet) -> np.ndarray:
    """Return what a classifier says of an image set.

    Returns:
        (num_labels,) float32: probabilities that sum to 1; of several labels a set, the probability of each; of a
        regression, values.

    Raises:
        ValueError: If the checkpoint is no classifier, or the set is too large for one pass.
    """
    if not isinstance(checkpoint.model, A2MAEForImageClassification):
        raise ValueError(f"{checkpoint.name}: makes maps and no scores; write map.tif.")
    logits = checkpoint.model(**_prepare(checkpoint, image_set)).logits[0].float()
    problem = checkpoint.model.config.problem_type
    if problem == "regression":
        return logits.cpu().numpy()
    return (logits.sigmoid() if problem == "multi_label_classification" else logits.softmax(-1)).cpu().numpy()


def _prepare(checkpoint: TaskCheckpoint, image_set: ImageSet) -> dict[str, torch.Tensor]:
    """Turn an image set into a batch of one, or refuse what one pass cannot take."""
    return inference.prepare(cast(Any, checkpoint), image_set)


def class_colours(count: int, is_change: bool = False) -> list[tuple[int, int, int]]:
    """Return red, green and blue (0 to 255) of classes; of change the first, no change, is light grey."""
    first = [_UNCHANGED, _CHANGED] if is_change else []
    colours = [*first, *(colour for colour in _COLOURS if colour not in first)]
    for number in range(len(colours), count):
        hue = number * 0.618034 % 1
        red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.35 * (number % 2), 0.9 - 0.25 * (number % 3 == 0))
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours[:count]


def save_scores(
    checkpoint: TaskCheckpoint, names: Sequence[str], scores: Sequence[np.ndarray], path: str | os.PathLike[str]
) -> None:
    """Write scores as a CSV, one row per scene: file, label (";" between several), and a column per class or value.

    Args:
        checkpoint: What gave the scores.
        names: Of the scenes.
        scores: As `predict_scores` returns them.
        path: Where to write.
    """
    problem = checkpoint.model.config.problem_type
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    is_value = problem == "regression"
    writer.writerow(["file", *([] if is_value else ["label"]), *checkpoint.classes])
    for name, numbers in zip(names, scores, strict=True):
        chosen = np.flatnonzero(numbers > 0.5) if problem == "multi_label_classification" else [int(numbers.argmax())]
        label = [] if is_value else [";".join(checkpoint.classes[number] for number in chosen)]
        writer.writerow([name, *label, *(f"{number:.6g}" for number in numbers.tolist())])
    write_atomically(Path(path), text.getvalue())
