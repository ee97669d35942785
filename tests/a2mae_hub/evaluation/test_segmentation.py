"""The linear head against torch's interpolation and scikit-learn's regression, and the scores of its maps."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, jaccard_score

from a2mae_hub.evaluation import fit_segmentation_head, predict_segmentation, segmentation_scores
from a2mae_hub.evaluation.features import FeatureMap
from a2mae_hub.evaluation.segmentation import WEIGHT_DECAY, _pixel_logits, predict_pixels_alone, standardise_maps


def random_map(rows: int, columns: int, patch: float = 4, width: int = 3, seed: int = 0) -> FeatureMap:
    values = np.random.default_rng(seed).normal(size=(width, rows, columns)).astype(np.float32)
    return FeatureMap(values, (patch, patch))


@pytest.mark.parametrize(("shape", "patch"), [((12, 20), 4), ((10, 17), 4), ((18, 30), 6)])
def test_logits_come_to_pixels_as_torch_interpolates(shape, patch):
    head, features = torch.nn.Conv2d(3, 2, 1), random_map(3, 5, patch)
    logits = head(torch.from_numpy(features.values[None]))
    whole = torch.nn.functional.interpolate(logits, scale_factor=patch, mode="bilinear", align_corners=False)
    found = _pixel_logits(head, [features], shape)
    # The last patches may reach beyond the image.
    torch.testing.assert_close(found, whole[..., : shape[0], : shape[1]], atol=1e-5, rtol=1e-5)


def test_with_patches_of_one_pixel_the_head_is_a_logistic_regression():
    maps = [random_map(16, 16, patch=1, seed=seed) for seed in range(4)]
    rng = np.random.default_rng(7)
    labels = [(one.values[0] + one.values[1] * 0.5 + rng.normal(size=(16, 16)) > 0).astype(int) for one in maps]
    labels += [np.full((16, 16), -1)]
    maps.append(random_map(16, 16, patch=1, seed=9))
    head = fit_segmentation_head(maps, labels, 2)
    pixels = np.concatenate([one.values.reshape(3, -1) for one in maps[:4]], 1).T
    wanted = np.concatenate([one.ravel() for one in labels[:4]])
    # Two weight vectors of opposite sign are one of twice the length, at half the penalty.
    C = 2 / (WEIGHT_DECAY * len(wanted))
    expected = LogisticRegression(C=C, tol=1e-8).fit(pixels, wanted)
    weights = head.weight[1] - head.weight[0]
    np.testing.assert_allclose(weights.flatten(), expected.coef_[0], atol=2e-3)
    assert float(head.bias[1] - head.bias[0]) == pytest.approx(expected.intercept_[0], abs=2e-3)


def test_images_of_different_sizes_are_learned_and_told_in_their_order():
    grids = [(4, 4), (2, 6), (4, 4)]
    maps = [random_map(*grid, seed=seed) for seed, grid in enumerate(grids)]
    wanted = [np.kron((one.values[0] > 0).astype(int), np.ones((4, 4), int)) for one in maps]
    head = fit_segmentation_head(maps, wanted, 2)
    predictions = predict_segmentation(head, maps, [one.shape for one in wanted])
    assert [one.shape for one in predictions] == [(16, 16), (8, 24), (16, 16)]
    assert segmentation_scores(predictions, wanted, 2)["pixel accuracy"] > 0.75
    again = fit_segmentation_head(maps, wanted, 2)
    assert torch.equal(again.weight, head.weight)


def test_maps_are_standardised_over_the_training_patches_with_data():
    train = [random_map(3, 3, seed=seed) for seed in range(3)]
    train[0].values[:, 0, 0] = np.nan
    test = [FeatureMap(train[1].values.copy(), (4, 4))]
    scaled, also = standardise_maps(train, test)
    patches = np.concatenate([one.values.reshape(3, -1) for one in scaled], 1)
    assert not patches[:, 0].any()
    np.testing.assert_allclose(patches[:, 1:].mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(patches[:, 1:].std(1), 1, atol=1e-6)
    np.testing.assert_array_equal(also[0].values, scaled[1].values)


def test_pixels_alone_are_told_by_their_values():
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 3, (8, 8)) for _ in range(3)]
    values = [np.stack([one == 0, one == 1]) + rng.normal(0, 0.05, (2, 8, 8)) for one in labels]
    labels[0][:2] = -1
    predictions = predict_pixels_alone(values[:2], labels[:2], values[2:])
    assert segmentation_scores(predictions, labels[2:], 3) == {"pixel accuracy": 1}


def test_scores_are_over_all_labelled_pixels_together():
    rng = np.random.default_rng(0)
    labels = [rng.integers(-1, 2, (5, 7)), rng.integers(-1, 2, (9, 3))]
    predictions = [rng.integers(0, 2, one.shape) for one in labels]
    true, said = (np.concatenate([one.ravel() for one in part]) for part in (labels, predictions))
    known = true >= 0
    scores = segmentation_scores(predictions, labels, 2)
    assert scores["IoU"] == pytest.approx(jaccard_score(true[known], said[known]))
    assert scores["pixel accuracy"] == pytest.approx(accuracy_score(true[known], said[known]))


def test_a_class_that_is_neither_there_nor_predicted_is_not_missed():
    nothing = [np.zeros((4, 4), int)]
    assert segmentation_scores(nothing, nothing, 2) == {"IoU": 1, "pixel accuracy": 1}


def test_without_any_label_there_is_nothing_to_fit_or_score():
    nothing = [np.full((4, 4), -1)]
    with pytest.raises(ValueError, match="0 labelled pixels"):
        fit_segmentation_head([random_map(1, 1)], nothing, 2)
    with pytest.raises(ValueError, match="none of these is known"):
        segmentation_scores([np.zeros((4, 4), int)], nothing, 2)
