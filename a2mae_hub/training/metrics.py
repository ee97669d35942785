"""Scores of fine-tuned models, by scikit-learn; those of maps from counts that add up over batches and processes."""

from __future__ import annotations

import numpy as np
import torch

from .label_files import CHANGE, CLASSIFICATION, IGNORED, MULTI, REGRESSION

# Scores of change, in steps of 0.02 of the log-odds from −20 to 20.
_BINS, _LARGEST_ODDS = 2000, 20.0


def leading_score(task: str, problem_type: str) -> tuple[str, bool]:
    """Return the score that decides which checkpoint is best, and whether more of it is better."""
    if task == CLASSIFICATION:
        scores = {REGRESSION: ("root_mean_squared_error", False), MULTI: ("mean_average_precision", True)}
        return scores.get(problem_type, ("accuracy", True))
    return ("f1", True) if task == CHANGE else ("mean_iou", True)


def classification_scores(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> dict[str, float]:
    """Return the scores of sets.

    Args:
        logits: (N, num_labels).
        labels: (N,) class numbers, or (N, num_labels) of 0 and 1 or of values.
        problem_type: As in `LabelledData`.

    Returns:
        accuracy and macro_f1 of one class a set; mean_average_precision (over the classes that occur), macro_f1 and
        micro_f1 at a probability of one half of several; mean_absolute_error, root_mean_squared_error and, of two sets
        or more, r2 of values.
    """
    from sklearn import metrics

    if problem_type == REGRESSION:
        errors = {
            "root_mean_squared_error": float(metrics.root_mean_squared_error(labels, logits)),
            "mean_absolute_error": float(metrics.mean_absolute_error(labels, logits)),
        }
        return {**errors, "r2": float(metrics.r2_score(labels, logits))} if len(labels) > 1 else errors
    if problem_type == MULTI:
        occurs = labels.any(0)
        return {
            "mean_average_precision": float(metrics.average_precision_score(labels[:, occurs], logits[:, occurs])),
            "macro_f1": float(
                metrics.f1_score(labels[:, occurs], logits[:, occurs] > 0, average="macro", zero_division=0)
            ),
            "micro_f1": float(metrics.f1_score(labels, logits > 0, average="micro", zero_division=0)),
        }
    predicted = logits.argmax(1)
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "macro_f1": float(metrics.f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def count_pixels(task: str, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return what the scores of maps are made of, as counts of pixels that have a label.

    Args:
        task: "segmentation" or "change".
        logits: (B, num_labels, height, width).
        labels: (B, height, width) int64, `IGNORED` where there is none.

    Returns:
        (B, num_labels, num_labels) int64, pixels by their class and the predicted one. Of change (B, 2, 2000) int64,
        pixels without and with a change by the log-odds of the likeliest change against none.
    """
    known = labels != IGNORED
    if task == CHANGE:
        odds = (logits[:, 1:].amax(1) - logits[:, 0]).float().clamp(-_LARGEST_ODDS, _LARGEST_ODDS)
        columns = ((odds + _LARGEST_ODDS) * (_BINS / (2 * _LARGEST_ODDS))).long().clamp(max=_BINS - 1)
        rows, shape = (labels > 0).long(), (2, _BINS)
    else:
        columns, rows, shape = logits.argmax(1), labels, (logits.shape[1], logits.shape[1])
    cells = rows * shape[1] + columns
    counts = [
        torch.bincount(one[shown], minlength=shape[0] * shape[1]) for one, shown in zip(cells, known, strict=True)
    ]
    return torch.stack(counts).unflatten(1, shape)


def map_scores(task: str, counts: np.ndarray) -> dict[str, float]:
    """Return the scores of maps, over all pixels at once.

    Args:
        task: "segmentation" or "change".
        counts: The sum of what `count_pixels` returns for each map.

    Returns:
        mean_iou (over the classes that occur in labels or predictions), pixel_accuracy and macro_f1; where there are
        two classes also iou, that of the second. Of change f1, iou and average_precision (0 where nothing changed) of
        what did, and pixel_accuracy.

    Raises:
        ValueError: If no pixel was counted.
    """
    from sklearn import metrics

    rows, columns = counts.nonzero()
    if not len(rows):
        raise ValueError("No pixel to be judged has both a label and data; check the masks, and nodata of the images.")
    weights = counts[rows, columns]
    if task == CHANGE:
        predicted = columns >= _BINS // 2
        facts = {"y_true": rows, "sample_weight": weights}
        return {
            "f1": float(metrics.f1_score(y_pred=predicted, zero_division=0, **facts)),
            "iou": float(metrics.jaccard_score(y_pred=predicted, zero_division=0, **facts)),
            "average_precision": float(metrics.average_precision_score(y_score=columns, **facts))
            if rows.any()
            else 0.0,
            "pixel_accuracy": float(metrics.accuracy_score(y_pred=predicted, **facts)),
        }
    facts = {"y_true": rows, "y_pred": columns, "sample_weight": weights}
    of_second = {"iou": float(metrics.jaccard_score(zero_division=0, **facts))} if len(counts) == 2 else {}
    return {
        "mean_iou": float(metrics.jaccard_score(average="macro", zero_division=0, **facts)),
        **of_second,
        "pixel_accuracy": float(metrics.accuracy_score(**facts)),
        "macro_f1": float(metrics.f1_score(average="macro", zero_division=0, **facts)),
    }
