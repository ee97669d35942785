"""Real labels: fine-tuned in every mode, from scratch, and boosted trees on plain numbers, on the same splits.

    python benchmarks/labelled.py --data ../shared/data [--runs 3] [--tasks eurosat-rgb,…] [-o out/labelled.jsonl]

Every run has a seed of its own and, but for EuroSAT-RGB, a test part of its own: its number, in turn, of the parts of a
task. The first of EuroSAT-RGB, water and WorldCover is that of `docs/recipes/open_evaluation.yaml`, which pre-training
has not seen; of the others of water and WorldCover it has seen the pixels, without labels, and of bark beetle nothing.
Twenty images or sites decide little: a method is better where it is so in most runs. Every method learns from all that
is not in the test part, and what it learnt is judged once. Nothing is held back to choose an epoch: networks keep the
one that is best on a fifth of what they learn from, which is one of the last. Boosted trees take the best of three
settings, judged on that fifth after learning from the rest. They see means, deviations and percentiles of every band of
an image, or of a pixel its bands and their mean and deviation over 3 × 3 and 9 × 9 pixels (of change: of both dates,
and the difference). Of images, "full" and "lora" go on from a head that was trained on the frozen encoder. What is not
as by default was chosen on parts of what the first run learns from; of WorldCover two, which are the test parts of the
runs 1 and 2. Runs that the output holds already are not repeated, and one that was stopped goes on. `labelled.jsonl`
beside this file is the output behind the table of the README: copied to the output, it is gone on with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import KFold, StratifiedKFold

from a2mae_hub import A2MAEConfig, ImageSet
from a2mae_hub.evaluation import read_recipe
from a2mae_hub.evaluation.features import filled_pixels
from a2mae_hub.evaluation.sources import read_classified_images, read_segmented_images
from a2mae_hub.training.finetune import finetune
from a2mae_hub.training.label_files import IGNORED
from a2mae_hub.training.labelled import LabelledData, LabelledSets, from_dataset, read_labelled
from a2mae_hub.training.metrics import classification_scores, count_pixels, map_scores

RECIPE = Path(__file__).resolve().parents[1] / "docs" / "recipes" / "open_evaluation.yaml"
BARK_BEETLE: dict[str, Any] = {
    "sensor": "sentinel-2-l2a",
    "bands": ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"],
    "scale": 1e-4,
    "offset": 0.0,
}
PERCENTILES = (5, 25, 50, 75, 95)
MOST_PIXELS = 200_000

# What tells of each task: a score of `a2mae_hub.training.metrics`.
SCORES = {
    "eurosat-rgb": "accuracy",
    "eurosat-multispectral": "accuracy",
    "hls-water": "iou",
    "hls-worldcover": "pixel_accuracy",
    "bark-beetle": "f1",
}
TITLES = {
    "eurosat-rgb": "EuroSAT-RGB, 5 000 / 1 000, accuracy",
    "eurosat-multispectral": "EuroSAT, 13 bands, 80 / 20, accuracy",
    "hls-water": "water in HLS, 100 / 20, IoU",
    "hls-worldcover": "WorldCover classes in HLS, 100 / 20, pixel accuracy",
    "bark-beetle": "bark beetle, 80 / 20 sites, F1 of change",
}
# Settings of `finetune` by task, and by method within it, where they are not its defaults. From scratch, maps are
# learnt exactly as from the checkpoint, and images in twice as many epochs.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "eurosat-rgb": {
        "full": {"epochs": 8},
        "lora": {"epochs": 8},
        "frozen": {"size": 128},
        "scratch": {"epochs": 16, "learning_rate": 5e-4},
    },
    "eurosat-multispectral": {
        **{method: {"size": 128} for method in ("full", "lora", "frozen")},
        "scratch": {"size": 128, "epochs": 40, "learning_rate": 5e-4},
    },
    # Of what is covered by what, networks learn less by heart where no two epochs show the same surroundings: on two
    # parts held out that is worth 0.02. Of water it costs as much.
    "hls-worldcover": {method: {"side": 8, "epochs": 90} for method in ("full", "lora", "scratch")},
    # Half of the sites are narrower than eight patches.
    "bark-beetle": {method: {"side": 8} for method in ("full", "lora", "scratch")},
}
# Of which boosted trees take what is best in validation, beside 200 trees that learn at a rate of 0.1.
TREES: tuple[dict[str, Any], ...] = ({}, {"class_weight": "balanced"}, {"learning_rate": 0.03})
# Three runs on one test part, each of the six or five parts once, and each of five thrice.
RUNS = {"eurosat-rgb": 3, "eurosat-multispectral": 15, "hls-water": 6, "hls-worldcover": 6, "bark-beetle": 5}
METHODS = ("full", "lora", "frozen", "scratch", "boosted trees")


def eurosat_rgb(data: Path) -> list[LabelledData]:
    """Return the images in colour, 5 000 and 1 000."""
    labelled = read_classified_images(_task("eurosat-rgb", data), data)
    return [_classified(labelled.images, labelled.labels, labelled.classes, ~labelled.is_test)]


def eurosat_multispectral(data: Path) -> list[LabelledData]:
    """Return the images of thirteen bands in five folds, but for the cirrus band, which sees no ground."""
    labelled = read_classified_images(_task("eurosat-multispectral", data), data)
    images = []
    for image in labelled.images:
        kept = [place for place, name in enumerate(image.bands) if name != "B10"]
        images.append(replace(image, pixels=image.pixels[kept], bands=[image.bands[place] for place in kept]))
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(images, labelled.labels)
    every = np.arange(len(images))
    return [_classified(images, labelled.labels, labelled.classes, np.isin(every, train)) for train, _ in folds]


def hls(name: str) -> Callable[[Path], list[LabelledData]]:
    """Return what reads the images of a segmentation in six folds, 100 and 20."""

    def read(data: Path) -> list[LabelledData]:
        labelled = read_segmented_images(_task(name, data), data)
        first, others = np.flatnonzero(labelled.is_test), np.flatnonzero(~labelled.is_test)
        parts = [first, *(others[part] for _, part in KFold(5, shuffle=True, random_state=0).split(others))]
        return [
            _segmented(labelled.images, labelled.labels, np.isin(range(len(labelled.images)), part)) for part in parts
        ]

    return read


def bark_beetle(data: Path) -> list[LabelledData]:
    """Return the sites before and after in five folds, 80 and 20: pre-training has seen none of them."""
    folder = data / "bark_beetle"
    patterns: dict[str, Any] = {"before": "2019-09/*.tif", "after": "2020-09/*.tif", "masks": "mask/*.tif"}
    both = read_labelled("change", folder, **patterns, **BARK_BEETLE)
    sets = [
        (part.names[at], part.readers[at], part.labels[at])
        for part in (both.train, both.validation)
        for at in range(len(part))
    ]
    every = LabelledSets(*map(list, zip(*sorted(sets, key=lambda one: one[0]), strict=True)))
    folds = KFold(5, shuffle=True, random_state=0).split(range(len(every)))
    return [replace(both, train=every.select(train), test=every.select(test)) for train, test in folds]


TASKS = {
    "eurosat-rgb": eurosat_rgb,
    "eurosat-multispectral": eurosat_multispectral,
    "hls-water": hls("hls-water"),
    "hls-worldcover": hls("hls-worldcover"),
    "bark-beetle": bark_beetle,
}


def _task(name: str, data: Path) -> Any:
    """Return a task of the recipe."""
    return next(task for task in read_recipe(RECIPE, data).tasks if task.name == name)


def _classified(images: Sequence[Any], labels: np.ndarray, classes: list[str], is_train: np.ndarray) -> LabelledData:
    """Return images with one label each."""
    pairs = [(image, classes[label]) for image, label in zip(images, labels, strict=True)]
    return _of_pairs("classification", pairs, is_train, classes)


def _segmented(images: Sequence[Any], masks: Sequence[np.ndarray], is_test: np.ndarray) -> LabelledData:
    """Return images with a mask each, in which what only the test part shows is unlabelled: it cannot be learnt."""
    known = np.unique(np.stack([masks[at] for at in np.flatnonzero(~is_test).tolist()]))
    masks = [np.where(np.isin(mask, known) & (mask >= 0), mask, IGNORED) for mask in masks]
    return _of_pairs("segmentation", list(zip(images, masks, strict=True)), ~is_test)


def _of_pairs(
    task: str, pairs: Sequence[tuple[Any, Any]], is_train: np.ndarray, classes: list[str] | None = None
) -> LabelledData:
    """Return images, a set each, with their labels."""
    train, test = ([pairs[at] for at in np.flatnonzero(is_train == chosen).tolist()] for chosen in (True, False))
    # What is for validation is drawn later; until then the test part stands in, which nothing is done with.
    return from_dataset(task, train, test, lambda pair: (ImageSet([pair[0]]), pair[1]), classes=classes, test=test)


def a_fifth(data: LabelledData, seed: int) -> np.ndarray:
    """Return which sets to learn from are in a random fifth of them, of every class where sets have one, as bool."""
    generator = np.random.default_rng(seed)
    labels = np.array([int(label) if label.ndim == 0 else 0 for label in data.train.labels])
    drawn = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        drawn[members[: max(1, round(len(members) / 5))]] = True
    return drawn


def finetuned(data: LabelledData, name: str, method: str, checkpoint: str, seed: int, runs: Path) -> dict[str, float]:
    """Return the scores of a fine-tuned model, its run kept in a folder of that name."""
    data = replace(data, validation=data.train.select(np.flatnonzero(a_fifth(data, seed))))
    settings = SETTINGS.get(name, {})
    mode, own = "full" if method == "scratch" else method, settings.get(method, {})
    start: dict[str, Any] = {"checkpoint": checkpoint}
    if method == "scratch":
        start = {"config": A2MAEConfig.nano(pooling="mean_std")}
    elif mode != "frozen" and data.task == "classification":
        # The head sees what the whole model will see: images of the same size.
        of_frozen = settings.get("frozen", {})
        is_same = own.get("size") == of_frozen.get("size")
        start = {"checkpoint": runs / ("frozen" if is_same else "head")}
        head = {**of_frozen, "size": own.get("size")}
        finetune(data, start["checkpoint"], checkpoint=checkpoint, mode="frozen", seed=seed, **head)
    return finetune(data, runs / method, mode=mode, seed=seed, **start, **own)["test_scores"]


def boosted(data: LabelledData, name: str, seed: int) -> dict[str, float]:
    """Return the scores of boosted trees on plain numbers, with the settings that are best on a fifth held back.

    Boosting can come apart where a class is rare and weighs much. What then knows less of the fifth after learning from
    it than before is passed over for the next best settings, unless there are none.
    """
    numbers_of, judge = (
        (images_to_learn, judge_images) if data.task == "classification" else (pixels_to_learn, judge_pixels)
    )

    def fit(numbers: tuple[np.ndarray, np.ndarray], settings: dict[str, Any]) -> HistGradientBoostingClassifier:
        all_settings = {"max_iter": 200, "learning_rate": 0.1, **settings}
        return HistGradientBoostingClassifier(random_state=seed, early_stopping=False, **all_settings).fit(*numbers)

    held_back = a_fifth(data, seed)
    learnt, judged = (data.train.select(np.flatnonzero(which)) for which in (~held_back, held_back))
    numbers, score = numbers_of(learnt, seed), SCORES[name]
    before = [judge(fit(numbers, settings), data, judged)[score] for settings in TREES]
    numbers = numbers_of(data.train, seed)
    for place in np.argsort(before)[::-1].tolist():
        trees = fit(numbers, TREES[place])
        if judge(trees, data, judged)[score] >= before[place]:
            break
    assert data.test is not None
    return judge(trees, data, data.test)


def images_to_learn(sets: LabelledSets, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers and classes of images."""
    return _numbers_of(sets), np.array([int(label) for label in sets.labels])


def judge_images(trees: HistGradientBoostingClassifier, data: LabelledData, part: LabelledSets) -> dict[str, float]:
    """Return the scores of trees on images."""
    odds = np.log(trees.predict_proba(_numbers_of(part)) + 1e-9)
    return classification_scores(odds, np.array([int(label) for label in part.labels]), data.problem_type)


def _numbers_of(part: LabelledSets) -> np.ndarray:
    """Return (images, numbers)."""
    return np.stack([image_numbers(part[at].image_set) for at in range(len(part))])


def pixels_to_learn(sets: LabelledSets, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers and classes of some pixels of every map."""
    generator = np.random.default_rng(seed)
    pixels, classes = [], []
    each = MOST_PIXELS // len(sets)
    for at in range(len(sets)):
        example = sets[at]
        known = np.flatnonzero(example.label.ravel() != IGNORED)
        known = generator.choice(known, min(each, len(known)), replace=False)
        pixels.append(pixel_numbers(example.image_set)[known])
        classes.append(example.label.ravel()[known])
    return np.concatenate(pixels), np.concatenate(classes)


def judge_pixels(trees: HistGradientBoostingClassifier, data: LabelledData, part: LabelledSets) -> dict[str, float]:
    """Return the scores of trees on the pixels of maps."""
    counts: Any = 0
    for at in range(len(part)):
        example = part[at]
        odds = np.log(trees.predict_proba(pixel_numbers(example.image_set)) + 1e-9)
        logits = np.full((len(odds), len(data.classes)), -30.0)
        logits[:, trees.classes_] = odds
        maps = torch.from_numpy(logits.T.reshape(1, -1, *example.label.shape))
        counts = (
            counts + count_pixels(data.task, maps, torch.from_numpy(example.label[None].astype(np.int64))).numpy()[0]
        )
    return map_scores(data.task, np.asarray(counts))


def image_numbers(image_set: ImageSet) -> np.ndarray:
    """Return mean, deviation and percentiles of every band."""
    [image] = image_set
    values = filled_pixels(image).reshape(len(image.bands), -1)
    return np.concatenate([values.mean(1), values.std(1), *np.percentile(values, PERCENTILES, axis=1)])


def pixel_numbers(image_set: ImageSet) -> np.ndarray:
    """Return (pixels, numbers) of every pixel: bands, and mean and deviation around it."""
    layers = []
    for image in image_set:
        values = filled_pixels(image)
        layers.append(values)
        for side in (3, 9):
            mean = uniform_filter(values, (0, side, side))
            square = uniform_filter(values**2, (0, side, side))
            layers += [mean, np.sqrt(np.maximum(square - mean**2, 0))]
    if len(image_set) == 2:
        layers += [later - before for before, later in zip(layers[:5], layers[5:10], strict=True)]
    numbers = np.concatenate(layers)
    return numbers.reshape(len(numbers), -1).T


def print_tables(runs: list[dict[str, Any]]) -> None:
    """Print in Markdown the means over the runs, the best one bold, and by how much full fine-tuning is ahead.

    The first with the standard deviation of the runs, the second with the standard error of the mean difference between
    runs of one number, which have seed and test part in common.
    """
    found = {(run["task"], run["method"], run["seed"]): run["scores"][SCORES[run["task"]]] for run in runs}
    means, ahead = [], []
    for name, title in TITLES.items():
        of = {
            method: {seed: found[name, method, seed] for seed in range(RUNS[name]) if (name, method, seed) in found}
            for method in METHODS
        }
        best = max((statistics.mean(one.values()) for one in of.values() if one), default=None)
        counts = sorted({len(one) for one in of.values() if one})
        cells = [_mean(list(one.values()), 1.0, best) for one in of.values()]
        means.append(f"| {title} | {' | '.join(cells)} | {' to '.join(map(str, counts))} |")
        less = [[of["full"][run] - other for run, other in one.items() if run in of["full"]] for one in of.values()]
        ahead.append(f"| {title} | {' | '.join(_mean(one, len(one) ** -0.5) if one else '' for one in less[1:])} |")
    print(f"| | {' | '.join(METHODS)} | runs |\n" + "|---" * (len(METHODS) + 2) + "|", *means, sep="\n")
    print(f"\n| full is ahead of | {' | '.join(METHODS[1:])} |\n" + "|---" * len(METHODS) + "|", *ahead, sep="\n")


def _mean(values: Sequence[float], share: float, best: float | None = None) -> str:
    """Return a mean, bold where it is the best, and a share of the standard deviation; or nothing of no values."""
    if not values:
        return ""
    mean = statistics.mean(values)
    spread = f" ± {share * statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"**{mean:.3f}**{spread}" if mean == best else f"{mean:.3f}{spread}"


def main() -> None:
    """Train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the open evaluation recipe")
    parser.add_argument("--checkpoint", default="a2mae-nano")
    parser.add_argument("--runs", help="how many of each task, or which, as in 3-6, which is 3, 4 and 5 (default all)")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--output", "-o", type=Path, default=Path("out/labelled.jsonl"))
    arguments = parser.parse_args()
    runs_of = arguments.output.with_suffix("")
    runs_of.mkdir(parents=True, exist_ok=True)
    text = arguments.output.read_text() if arguments.output.exists() else ""
    runs = [json.loads(line) for line in text.splitlines()]
    done = {(run["task"], run["method"], run["seed"]) for run in runs}
    first, _, end = (arguments.runs or f"{max(RUNS.values())}").rpartition("-")
    for seed in range(int(first or 0), int(end)):
        for name in arguments.tasks.split(","):
            wanted = [method for method in arguments.methods.split(",") if (name, method, seed) not in done]
            if not wanted or seed >= RUNS[name]:
                continue
            parts = TASKS[name](arguments.data)
            data = parts[seed % len(parts)]
            for method in wanted:
                started = time.perf_counter()
                if method == "boosted trees":
                    scores = boosted(data, name, seed)
                else:
                    scores = finetuned(data, name, method, arguments.checkpoint, seed, runs_of / f"{name}-{seed}")
                seconds = time.perf_counter() - started
                run = {"task": name, "method": method, "seed": seed, "seconds": seconds, "scores": scores}
                with arguments.output.open("a") as file:
                    file.write(json.dumps(run) + "\n")
                runs.append(run)
                print(json.dumps(run), flush=True)
    print_tables(runs)


if __name__ == "__main__":
    main()
