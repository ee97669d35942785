"""How much of a label frozen features tell: neighbours, a linear classifier, and a few examples a class.

Every function standardises the features by the mean and standard deviation of the training part, so that a feature
counts by what it tells, not by its unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

NEIGHBOURS = 20
TEMPERATURE = 0.07
FOLDS = 5
REGULARISATION = 0.1  # sklearn's C
_MOST_ITERATIONS = 5_000


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Return features minus the mean of the training features, over their standard deviation.

    Args:
        train: (N, D) training features.
        *others: (M, D) further features, brought to the same scale.

    Returns:
        Training features and the others, float64. A feature that never varies in training is centred only: dividing by
        next to nothing would let it outweigh all others.
    """
    values = np.asarray(train, np.float64)
    mean, std = values.mean(0), values.std(0)
    std = np.where(std > 1e-9 * np.maximum(np.abs(mean), 1e-3), std, 1.0)
    return [(np.asarray(part, np.float64) - mean) / std for part in (values, *others)]


def knn_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, *, block: int = 1024
) -> float:
    """Return the accuracy of the vote of the 20 nearest training images.

    Neighbours by cosine similarity s, each voting for its class with the weight exp(s / 0.07), as in Wu et al. 2018,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (arXiv 1805.01978), section 3.4.

    Args:
        train: (N, D) features.
        train_labels: (N,) class numbers from 0 on.
        test: (M, D) features.
        test_labels: (M,) class numbers.
        block: Test images that are compared at once.

    Raises:
        ValueError: If features and labels do not fit each other.
    """
    _check(train, train_labels, test, test_labels)
    train, test = (_unit_length(part) for part in standardise(train, test))
    neighbours = min(NEIGHBOURS, len(train))
    one_hot = np.eye(int(np.max(train_labels)) + 1)[np.asarray(train_labels)]
    correct = 0
    for start in range(0, len(test), block):
        similarity = test[start : start + block] @ train.T
        nearest = np.argpartition(-similarity, neighbours - 1, axis=1)[:, :neighbours]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / TEMPERATURE)
        votes = (weights[..., None] * one_hot[nearest]).sum(1)
        correct += int((votes.argmax(1) == np.asarray(test_labels)[start : start + block]).sum())
    return correct / len(test)


def linear_accuracy(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Return the accuracy of a logistic regression (C = 0.1) on standardised features.

    Args:
        train: (N, D) features.
        train_labels: (N,) class numbers.
        test: (M, D) features.
        test_labels: (M,) class numbers.

    Raises:
        ValueError: If features and labels do not fit each other.
    """
    _check(train, train_labels, test, test_labels)
    train, test = standardise(train, test)
    return float(logistic_regression().fit(train, train_labels).score(test, test_labels))


def few_shot_accuracy(features: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of the accuracy of a logistic regression over five stratified folds.

    Args:
        features: (N, D); standardised for every fold by its training part.
        labels: (N,) class numbers.

    Raises:
        ValueError: If features and labels do not fit each other, or a class has fewer than five images.
    """
    from sklearn.model_selection import StratifiedKFold

    _check(features, labels)
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < FOLDS:
        raise ValueError(f"A class has {fewest} images, and {FOLDS} folds need as many of each; leave the class out.")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(features, labels)
    scores = [linear_accuracy(features[a], labels[a], features[b], labels[b]) for a, b in folds]
    return float(np.mean(scores)), float(np.std(scores))


def logistic_regression() -> LogisticRegression:
    """Return the classifier of every linear probe, not yet fitted."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=REGULARISATION, max_iter=_MOST_ITERATIONS)


def _unit_length(features: np.ndarray) -> np.ndarray:
    """Return features of length 1; those of length 0 stay."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _check(*features_and_labels: np.ndarray) -> None:
    """Raise ValueError unless features are finite (N, D), and labels (N,) of two classes or more in the first pair."""
    pairs = list(zip(features_and_labels[::2], features_and_labels[1::2], strict=True))
    for features, labels in pairs:
        if features.ndim != 2 or len(features) == 0 or np.shape(labels) != features.shape[:1]:
            raise ValueError(
                f"Features of shape {features.shape} do not go with labels of shape {np.shape(labels)}; pass (N, D) and"
                " (N,), N at least 1."
            )
        if not np.isfinite(features).all():
            raise ValueError("Features hold NaN or infinite values; leave out images without valid pixels.")
    if len(np.unique(pairs[0][1])) < 2:
        raise ValueError("The training labels are of one class, so there is nothing to tell apart; pass two or more.")
