"""Scores from counts are those of scikit-learn over all pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from a2mae_hub.training.labelled import IGNORED
from a2mae_hub.training.metrics import classification_scores, count_pixels, leading_score, map_scores


def made_up(num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that tell something of the labels, a tenth of which is unknown."""
    generator = torch.Generator().manual_seed(num_labels)
    labels = torch.randint(num_labels, (3, 20, 30), generator=generator)
    truth = torch.nn.functional.one_hot(labels, num_labels).permute(0, 3, 1, 2)
    logits = torch.randn(3, num_labels, 20, 30, generator=generator) + truth
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORED
    return logits, labels


def test_scores_of_a_segmentation():
    logits, labels = made_up(4)
    scores = map_scores("segmentation", count_pixels("segmentation", logits, labels).sum(0).numpy())
    known = labels != IGNORED
    truth, predicted = labels[known].numpy(), logits.argmax(1)[known].numpy()
    assert scores["mean_iou"] == pytest.approx(metrics.jaccard_score(truth, predicted, average="macro"))
    assert scores["pixel_accuracy"] == pytest.approx((truth == predicted).mean())
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))


@pytest.mark.parametrize("num_labels", [2, 3])
def test_scores_of_change_are_those_of_any_change(num_labels):
    logits, labels = made_up(num_labels)
    scores = map_scores("change", count_pixels("change", logits, labels).sum(0).numpy())
    known = labels != IGNORED
    truth, predicted = labels[known].numpy() > 0, logits.argmax(1)[known].numpy() > 0
    odds = (logits[:, 1:].amax(1) - logits[:, 0])[known].numpy()
    assert scores["f1"] == pytest.approx(metrics.f1_score(truth, predicted))
    assert scores["iou"] == pytest.approx(metrics.jaccard_score(truth, predicted))
    assert scores["average_precision"] == pytest.approx(metrics.average_precision_score(truth, odds), abs=2e-3)


def test_where_nothing_changed_there_is_no_precision():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    logits = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 4, 4)
    scores = map_scores("change", count_pixels("change", logits, labels).sum(0).numpy())
    assert (scores["f1"], scores["average_precision"], scores["pixel_accuracy"]) == (0.0, 0.0, 1.0)


def test_scores_of_one_class_a_set():
    logits = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [0.0, 2.0, 1.0]])
    scores = classification_scores(logits, np.array([0, 1, 2, 2]), "single_label_classification")
    assert scores["accuracy"] == 0.75
    assert scores["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_scores_of_several_labels_a_set_leave_out_what_never_occurs():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)
    logits = np.array([[2.0, -1.0, 9.0], [1.0, -2.0, 1.0], [-1.0, 3.0, 1.0]])
    scores = classification_scores(logits, labels, "multi_label_classification")
    # The first label is ranked without fault; of the second one comes first, and one after the one without.
    assert scores["mean_average_precision"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2)


def test_scores_of_values():
    scores = classification_scores(np.array([[1.0], [3.0]]), np.array([[1.0], [1.0]]), "regression")
    assert scores["root_mean_squared_error"] == pytest.approx(2**0.5)
    assert scores["mean_absolute_error"] == 1.0
    # Of one value there is no variance to explain, and no number for it that JSON has.
    assert "r2" not in classification_scores(np.array([[1.0]]), np.array([[2.0]]), "regression")


def test_maps_without_a_label_have_no_scores():
    for task, shape in (("segmentation", (2, 2)), ("change", (2, 2000))):
        with pytest.raises(ValueError, match="No pixel to be judged has both a label and data"):
            map_scores(task, np.zeros(shape, np.int64))


def test_of_errors_less_is_better():
    assert leading_score("classification", "regression") == ("root_mean_squared_error", False)
    assert leading_score("change", "single_label_classification") == ("f1", True)
