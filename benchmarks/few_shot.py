"""How many labels a few-shot figure needs: the probe of `a2mae evaluate` on fewer images a class than there are.

    python benchmarks/few_shot.py --data ../shared/data [--checkpoints a2mae-nano,a2mae-tiny]

The folds are those of `a2mae evaluate`. Of the training part of a fold, some images of every class are drawn twenty
times and the accuracies averaged; all of them are the figure of the report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedKFold

from a2mae_hub.evaluation import embed_images, linear_accuracy, read_recipe
from a2mae_hub.evaluation.features import raw_statistics
from a2mae_hub.evaluation.sources import read_classified_images
from a2mae_hub.inference import load_checkpoint

RECIPE = Path(__file__).resolve().parents[1] / "docs" / "recipes" / "open_evaluation.yaml"
TASK = "eurosat-multispectral"
PER_CLASS = (2, 4, 6, 8)
DRAWS = 20


def accuracy(features: np.ndarray, labels: np.ndarray, per_class: int) -> float:
    """Return the mean accuracy over folds and draws."""
    found = []
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    for train, test in folds.split(features, labels):
        for draw in range(DRAWS):
            generator = np.random.default_rng(draw)
            classes = (train[labels[train] == label] for label in np.unique(labels))
            kept = np.concatenate([generator.permutation(one)[:per_class] for one in classes])
            found.append(linear_accuracy(features[kept], labels[kept], features[test], labels[test]))
    return float(np.mean(found))


def main() -> None:
    """Print a row for every kind of features."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the open evaluation recipe")
    parser.add_argument("--checkpoints", default="a2mae-nano,a2mae-tiny")
    arguments = parser.parse_args()
    task = next(one for one in read_recipe(RECIPE, arguments.data).tasks if one.name == TASK)
    labelled = read_classified_images(task, arguments.data)
    labels = np.asarray(labelled.labels)
    print(f"{'images a class':<18}" + "".join(f"{count:>8}" for count in PER_CLASS))
    features = {"raw statistics": raw_statistics(labelled.images)}
    for name in arguments.checkpoints.split(","):
        features[name] = embed_images(load_checkpoint(name), labelled.images)
    for name, numbers in features.items():
        print(f"{name:<18}" + "".join(f"{accuracy(numbers, labels, count):>8.3f}" for count in PER_CLASS), flush=True)


if __name__ == "__main__":
    main()
