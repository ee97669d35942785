"""Probes against scikit-learn's own: the vote of neighbours, logistic regression, stratified folds."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from a2mae_hub.evaluation import few_shot_accuracy, knn_accuracy, linear_accuracy
from a2mae_hub.evaluation.probes import standardise


def blobs(count: int = 120, spread: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three overlapping classes in five features of very different units."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.random.default_rng(9).normal(size=(3, 5))
    return (centres[labels] + rng.normal(0, spread, (count, 5))) * [1e-4, 1, 100, 1, 1] + [5, 0, 0, 0, -3], labels


def test_neighbours_vote_as_in_scikit_learn():
    (train, train_labels), (test, test_labels) = blobs(), blobs(seed=1)
    scaler = StandardScaler().fit(train)
    vote = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = vote.fit(scaler.transform(train), train_labels).score(scaler.transform(test), test_labels)
    assert 0.4 < expected < 0.95
    for block in (7, 1024):
        assert knn_accuracy(train, train_labels, test, test_labels, block=block) == pytest.approx(expected)


def test_with_fewer_images_than_neighbours_all_of_them_vote():
    train, labels = blobs(9, spread=0.1)
    assert knn_accuracy(train, labels, train, labels) == 1


def test_logistic_regression_on_standardised_features():
    (train, train_labels), (test, test_labels) = blobs(), blobs(seed=1)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    expected = pipeline.fit(train, train_labels).score(test, test_labels)
    assert linear_accuracy(train, train_labels, test, test_labels) == pytest.approx(expected)


def test_few_shots_are_five_stratified_folds_each_standardised_by_its_training_part():
    features, labels = blobs(60)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_score(pipeline, features, labels, cv=StratifiedKFold(5, shuffle=True, random_state=0))
    assert few_shot_accuracy(features, labels) == pytest.approx((scores.mean(), scores.std()))


def test_a_feature_that_never_varies_in_training_cannot_outweigh_the_others():
    train, labels = blobs(60, spread=0.1)
    train, test = np.c_[train, np.full(60, 0.3)], np.c_[train, np.linspace(-1, 1, 60)]
    assert np.abs(standardise(train, test)[1]).max() < 10
    assert knn_accuracy(train, labels, test, labels) > 0.9


@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [
        (np.zeros((10, 2)), np.arange(9) % 2, r"shape \(10, 2\) do not go with labels of shape \(9,\)"),
        (np.full((10, 2), np.nan), np.arange(10) % 2, "NaN or infinite"),
        (np.zeros((10, 2)), np.zeros(10, int), "one class"),
        (np.zeros((10, 2)), (np.arange(10) < 4).astype(int), "A class has 4 images, and 5 folds"),
    ],
)
def test_what_cannot_be_probed_is_said(features, labels, said):
    with pytest.raises(ValueError, match=said):
        few_shot_accuracy(features, labels)
