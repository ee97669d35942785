"""One protocol for every checkpoint: the tasks of a recipe, the model beside what needs none, and the table of both."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from a2mae_hub.images import Image
from a2mae_hub.inference import Checkpoint, load_checkpoint
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining

from .features import (
    FeatureMap,
    embed_images,
    embed_maps,
    filled_pixels,
    hand_made_map,
    hand_made_numbers,
    raw_statistics,
)
from .probes import few_shot_accuracy, knn_accuracy, linear_accuracy
from .recipe import FEW_SHOT, RECONSTRUCTION, SEGMENTATION, Recipe, Task, read_recipe

MODEL, UNTRAINED, RAW, HAND_MADE = "model", "untrained", "raw statistics", "hand-made numbers"
MOST_SETS = 1_000
"""Image sets of a reconstruction task; of more, as many are drawn with a fixed seed."""

_Scores = dict[str, dict[str, float]]


def evaluate(
    checkpoint: Checkpoint | str | os.PathLike[str],
    recipe: Recipe | str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    tasks: Sequence[str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Evaluate the frozen features of a checkpoint by the fixed protocol.

    Beside the checkpoint ("model") stand a randomly initialised model of its configuration ("untrained", seed 0), the
    mean and standard deviation of every band ("raw statistics"; in segmentation the band values of every pixel), and
    "hand-made numbers" of colour, contrast and orientation. All go through the same probes:

    - classification: "kNN accuracy" (`knn_accuracy`) and "linear accuracy" (`linear_accuracy`)
    - few-shot: "accuracy" and "spread over folds" (`few_shot_accuracy`)
    - segmentation: "IoU" of the second of two classes, and "pixel accuracy" (`fit_segmentation_head`)
    - reconstruction: errors in each unit of the sensors, where the other columns are "mean of visible" and "nearest
      date" (`reconstruction_errors`); on the split "validation" where there is one, on 1 000 sets at most

    Args:
        checkpoint: As `load_checkpoint` returns it, or a name for it.
        recipe: As `read_recipe` returns it, or its file.
        root: Folder that the recipe's paths are relative to; None takes the recipe's own.
        tasks: Names of the tasks to do; None does all.
        progress: Show on standard error which task is at work.

    Returns:
        The report, of plain JSON types: "checkpoint", and "tasks", each with "name", "kind", how many images went into
        what part, "classes", and "scores": by score, then by column.

    Raises:
        FileNotFoundError: If a checkpoint, recipe or file is missing.
        ValueError: If one of them is not what it should be, or a task of `tasks` is not in the recipe.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe, root)
    elif root is not None:
        recipe = Recipe(recipe.tasks, Path(root))
    names = [task.name for task in recipe.tasks]
    for name in tasks or ():
        if name not in names:
            raise ValueError(f"The recipe has no task {name!r}; it has {', '.join(names)}.")
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_checkpoint(checkpoint)
    chosen = [task for task in recipe.tasks if not tasks or task.name in tasks]
    if any(task.kind == RECONSTRUCTION for task in chosen):
        from .reconstruction import check_reconstructs

        check_reconstructs(checkpoint)
    models = {MODEL: checkpoint, UNTRAINED: untrained(checkpoint)}
    results = []
    bar = tqdm(chosen, disable=not progress, unit="task")
    for task in bar:
        bar.set_postfix_str(task.name)
        results.append({"name": task.name, "kind": task.kind, **_TASKS[task.kind](models, task, recipe.root)})
    return {"checkpoint": checkpoint.name, "tasks": results}


def untrained(checkpoint: Checkpoint) -> Checkpoint:
    """Return a randomly initialised model (seed 0) of the configuration of a checkpoint, with its processor."""
    given = checkpoint.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = A2MAEForPreTraining(copy.deepcopy(given.config)).eval()
    model.to(device=given.device, dtype=given.dtype)
    return Checkpoint(f"{checkpoint.name} (untrained)", model, checkpoint.processor, checkpoint.has_decoder)


def _classify(models: dict[str, Checkpoint], task: Task, root: Path) -> dict[str, Any]:
    """Do a task of classification."""
    from .sources import read_classified_images

    data = read_classified_images(task, root)
    parts = data.images_of(test=False), data.images_of(test=True)
    labels = data.labels_of(test=False), data.labels_of(test=True)
    scores: _Scores = {"kNN accuracy": {}, "linear accuracy": {}}
    for method, describe in _describers(models).items():
        train, test = (describe(images) for images in parts)
        scores["kNN accuracy"][method] = knn_accuracy(train, labels[0], test, labels[1])
        scores["linear accuracy"][method] = linear_accuracy(train, labels[0], test, labels[1])
    return {"train": len(parts[0]), "test": len(parts[1]), "classes": data.classes, "scores": scores}


def _classify_from_few(models: dict[str, Checkpoint], task: Task, root: Path) -> dict[str, Any]:
    """Do a task of few-shot classification."""
    from .sources import read_classified_images

    data = read_classified_images(task, root)
    scores: _Scores = {"accuracy": {}, "spread over folds": {}}
    for method, describe in _describers(models).items():
        mean, spread = few_shot_accuracy(describe(data.images), data.labels)
        scores["accuracy"][method], scores["spread over folds"][method] = mean, spread
    return {"images": len(data.images), "classes": data.classes, "scores": scores}


def _describers(models: dict[str, Checkpoint]) -> dict[str, Callable[[list[Image]], np.ndarray]]:
    """Return, for every column, the function from images to features (N, D)."""
    embedders = {name: _embedder(checkpoint) for name, checkpoint in models.items()}
    return {**embedders, RAW: raw_statistics, HAND_MADE: hand_made_numbers}


def _embedder(checkpoint: Checkpoint) -> Callable[[list[Image]], np.ndarray]:
    """Return the function from images to the features of a checkpoint."""
    return lambda images: embed_images(checkpoint, images)


def _segment(models: dict[str, Checkpoint], task: Task, root: Path) -> dict[str, Any]:
    """Do a task of segmentation."""
    from .segmentation import (
        fit_segmentation_head,
        predict_pixels_alone,
        predict_segmentation,
        segmentation_scores,
        standardise_maps,
    )
    from .sources import read_segmented_images

    data = read_segmented_images(task, root)
    parts = data.images_of(test=False), data.images_of(test=True)
    labels = data.labels_of(test=False), data.labels_of(test=True)
    count = len(data.classes)

    def through_head(train: list[FeatureMap], test: list[FeatureMap]) -> list[np.ndarray]:
        train, test = standardise_maps(train, test)
        head = fit_segmentation_head(train, labels[0], count)
        return predict_segmentation(head, test, [one.shape for one in labels[1]])

    def in_column(method: str) -> list[np.ndarray]:
        if method == RAW:
            train, test = ([filled_pixels(image) for image in images] for images in parts)
            return predict_pixels_alone(train, labels[0], test)
        if method == HAND_MADE:
            return through_head(*([hand_made_map(image) for image in images] for images in parts))
        return through_head(*(embed_maps(models[method], images) for images in parts))

    scores: _Scores = {}
    for method in (*models, RAW, HAND_MADE):
        for score, value in segmentation_scores(in_column(method), labels[1], count).items():
            scores.setdefault(score, {})[method] = value
    return {"train": len(parts[0]), "test": len(parts[1]), "classes": data.classes, "scores": scores}


def _reconstruct(models: dict[str, Checkpoint], task: Task, root: Path) -> dict[str, Any]:
    """Do a task of reconstruction."""
    from .reconstruction import MEAN_OF_VISIBLE, NEAREST_DATE, reconstruction_errors

    shards = str(task.shards)
    sets = _StoredSets(str(root / shards) if (root / shards).exists() else shards)
    errors = {name: reconstruction_errors(checkpoint, sets) for name, checkpoint in models.items()}
    scores: _Scores = {}
    for unit, of_unit in errors[MODEL].items():
        columns = {
            MODEL: of_unit[MODEL],
            UNTRAINED: errors[UNTRAINED][unit][MODEL],
            MEAN_OF_VISIBLE: of_unit[MEAN_OF_VISIBLE],
            NEAREST_DATE: of_unit[NEAREST_DATE],
        }
        for method, of_method in columns.items():
            for kind, value in of_method.items():
                scores.setdefault(f"{kind}, {unit}", {})[method] = value
    return {"sets": len(sets), "split": sets.split, "scores": scores}


class _StoredSets:
    """The image sets of a reconstruction task, the same in every iteration."""

    def __init__(self, shards: str) -> None:
        from a2mae_hub.stssd import load

        try:
            self.stream, self.split = load(shards, split="validation", shuffle=True, seed=0), "validation"
        except ValueError:
            # No set of this split; what is wrong with the shards themselves is said again.
            self.stream, self.split = load(shards, shuffle=True, seed=0), "all"

    def __len__(self) -> int:
        return min(self.stream.num_sets, MOST_SETS)

    def __iter__(self) -> Iterator[Any]:
        from a2mae_hub.stssd.schema import from_row

        return (from_row(row) for row in self.stream.take(MOST_SETS))


_TASKS: dict[str, Callable[[dict[str, Checkpoint], Task, Path], dict[str, Any]]] = {
    "classification": _classify,
    FEW_SHOT: _classify_from_few,
    SEGMENTATION: _segment,
    RECONSTRUCTION: _reconstruct,
}


def format_report(report: dict[str, Any]) -> str:
    """Return a report as a table in plain text: a row per task and score, a column per way to describe images."""
    rows = [(task["name"], score, columns) for task in report["tasks"] for score, columns in task["scores"].items()]
    blocks = []
    for methods, group in groupby(rows, key=lambda row: tuple(row[2])):
        cells = [("task", "score", *methods)]
        cells += [(name, score, *(f"{columns[method]:.3f}" for method in methods)) for name, score, columns in group]
        blocks.append(_aligned(cells))
    return "\n\n".join(blocks)


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as lines: two columns of text to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
