"""What pre-training asks for: features of patches, views of one place, and the same loss by one process or several."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining
from a2mae_hub.modeling.objectives_a2mae import (
    ORIENTATIONS,
    PATCH_FEATURES,
    contrastive_loss,
    feature_loss,
    patch_features,
)
from a2mae_hub.training.pretrain import config_fields

SIDE = 8
patches = hnp.arrays(np.float32, (3, SIDE, SIDE), elements=st.floats(-3, 3, width=32))


def features(square):
    return patch_features(torch.as_tensor(np.ascontiguousarray(square, np.float32)).flatten(-2)).numpy()


def wave(degrees, side=SIDE):
    """A steep ramp whose brightness rises in one direction, counted from east (columns) to south (rows)."""
    rows, columns = np.mgrid[:side, :side]
    angle = math.radians(degrees)
    return (columns * math.cos(angle) + rows * math.sin(angle)).astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(patches)
def test_mean_and_contrast_are_those_of_numpy(square):
    values = square.astype(np.float64).reshape(3, -1)
    found = features(square)
    np.testing.assert_allclose(found[:, 0], values.mean(1), atol=1e-5)
    np.testing.assert_allclose(np.exp(found[:, 1] - 1.5) - 0.02, values.std(1), atol=1e-4)


def test_the_histogram_is_that_of_the_gradients_one_by_one():
    square = np.random.default_rng(0).normal(size=(4, SIDE, SIDE)).astype(np.float32)
    found = features(square)[:, 2:]
    for band, own in zip(square.astype(np.float64), found, strict=True):
        histogram = np.zeros(ORIENTATIONS)
        for row in range(1, SIDE - 1):
            for column in range(1, SIDE - 1):
                down = np.float32(band[row + 1, column]) - np.float32(band[row - 1, column])
                across = np.float32(band[row, column + 1]) - np.float32(band[row, column - 1])
                angle = math.atan2(down, across) * ORIENTATIONS / math.pi
                histogram[math.floor(angle) % ORIENTATIONS] += math.hypot(down, across)
        damping = 0.02 * (SIDE - 2) ** 2
        share = (histogram + damping / ORIENTATIONS) / (histogram.sum() + damping)
        np.testing.assert_allclose(own, (share - 1 / ORIENTATIONS) * ORIENTATIONS, atol=1e-4)


@pytest.mark.parametrize("bin_index", range(ORIENTATIONS))
def test_a_ramp_falls_into_the_bin_of_its_direction(bin_index):
    middle = (bin_index + 0.5) * 180 / ORIENTATIONS
    histogram = features(wave(middle)[None])[0, 2:]
    assert histogram.argmax() == bin_index
    assert histogram[bin_index] == pytest.approx(ORIENTATIONS - 1, rel=0.05)
    # The other way up the ramp is the same orientation.
    np.testing.assert_allclose(features(wave(middle + 180)[None])[0, 2:], histogram, atol=1e-4)


def test_a_flat_patch_has_no_orientation():
    found = features(np.full((1, SIDE, SIDE), 0.7))[0]
    assert found[0] == pytest.approx(0.7, abs=1e-6)
    np.testing.assert_allclose(found[2:], 0, atol=1e-6)


def test_a_quarter_turn_moves_the_histogram_by_half():
    square = np.random.default_rng(0).normal(size=(5, SIDE, SIDE))
    histogram = features(square)[:, 2:]
    turned = features(np.rot90(square, axes=(1, 2)))[:, 2:]
    np.testing.assert_allclose(turned, np.roll(histogram, ORIENTATIONS // 2, axis=1), atol=1e-4)


def test_patches_with_a_hole_and_absent_bands_do_not_count(make_batch):
    batch = make_batch([{"grid": (2, 2)}], [{"grid": (2, 2), "bands": ((492.0, 66.0),)}])
    target = {**batch, "pixel_mask": torch.ones_like(batch["pixel_values"], dtype=torch.bool)}
    target["pixel_mask"][1] = False
    target["pixel_mask"][1, :, 0] = True
    target["pixel_mask"][0, 1, 2, 5] = False
    decoded = torch.ones(2, 4, dtype=torch.bool)
    predicted = torch.randn(
        *batch["pixel_values"].shape[:3], PATCH_FEATURES, generator=torch.Generator().manual_seed(0)
    )
    error = (predicted.double() - patch_features(batch["pixel_values"]).double()).square().mean(-1)
    counted = [
        error[s, m, c] for s in range(2) for m in range(4) for c in range(1 if s else 4) if (s, m, c) != (0, 1, 2)
    ]
    expected = torch.stack(counted).mean()
    torch.testing.assert_close(feature_loss(predicted, target, decoded).double(), expected, atol=1e-5, rtol=0)


# Views


def unit(numbers):
    return torch.nn.functional.normalize(torch.as_tensor(numbers, dtype=torch.float32), dim=-1)


def test_the_contrastive_loss_is_the_cross_entropy_of_finding_the_other_view():
    views = unit(np.random.default_rng(0).normal(size=(6, 5)))
    ids = torch.tensor([7, 7, 3, 3, 9, 9])
    exact = views.double().numpy()
    losses = []
    for i, j in [(0, 1), (1, 0), (2, 3), (3, 2), (4, 5), (5, 4)]:
        similarity = np.exp(exact @ exact[i] / 0.2)
        losses.append(-np.log(similarity[j] / (similarity.sum() - similarity[i])))
    assert contrastive_loss(views, ids, 0.2).item() == pytest.approx(np.mean(losses), abs=1e-5)


def test_equal_views_of_unlike_places_cost_nothing_and_single_views_do_not_count():
    views = torch.eye(4).repeat_interleave(2, 0)
    assert contrastive_loss(views, torch.arange(4).repeat_interleave(2), 0.01).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(views, torch.arange(8), 0.1).item() == 0
    pair = unit(np.random.default_rng(1).normal(size=(3, 4)))
    alone = contrastive_loss(pair, torch.tensor([1, 1, 2]), 0.5)
    assert alone.isfinite()
    assert alone > 0


# In the model


def test_every_objective_adds_to_the_loss_and_none_to_the_predictions(make_batch, make_noise, tiny_model):
    batch = make_batch(*[[{"grid": (4, 4)}]] * 4, seed=3)
    noise, set_ids = make_noise(batch), torch.tensor([5, 5, 8, 8])
    plain = tiny_model(A2MAEForPreTraining)
    model = tiny_model(A2MAEForPreTraining, feature_targets=True, contrastive_weight=0.5)
    outputs = model(**batch, noise=noise, set_ids=set_ids)
    assert outputs.logits.shape == plain(**batch, noise=noise).logits.shape
    without_views = model(**batch, noise=noise)
    chosen = outputs.token_ids.clamp(min=0)
    pixels = batch["pixel_values"][torch.arange(4)[:, None], chosen]
    counted = (outputs.token_ids >= 0)[:, :, None, None]
    error = ((outputs.logits - pixels).square() * counted).sum() / (counted.sum() * pixels[0, 0].numel())
    assert outputs.loss > without_views.loss > error > 0
    outputs.loss.backward()
    assert all(parameter.grad is not None for parameter in model.projector.parameters())


def test_a_negative_weight_is_refused(tiny_config):
    with pytest.raises(StrictDataclassClassValidationError, match="contrastive_weight=-1"):
        tiny_config(contrastive_weight=-1)


# Several processes


def _half(rank, path):
    """Compute loss and gradient of half a batch, as one of two processes."""
    batch, noise, set_ids, settings = torch.load(f"{path}/whole.pt")
    config = A2MAEConfig(**settings)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = A2MAEForPreTraining(config)
    part = slice(2 * rank, 2 * rank + 2)
    loss = model(**{key: value[part] for key, value in batch.items()}, noise=noise[part], set_ids=set_ids[part]).loss
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    torch.save((loss.detach(), gradient), f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path, make_batch, make_noise, tiny_config):
    # Sets of different sizes: the mean over a process is not that over the batch.
    batch = make_batch(*[[{"grid": (4, 4)}, {"day": 9, "grid": (3, 4)}]] * 2, *[[{"grid": (2, 3)}]] * 2, seed=5)
    noise, set_ids = make_noise(batch), torch.tensor([1, 1, 2, 2])
    config = tiny_config(feature_targets=True, contrastive_weight=0.5)
    settings = {name: getattr(config, name) for name in config_fields()}
    torch.save((batch, noise, set_ids, settings), tmp_path / "whole.pt")
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = A2MAEForPreTraining(config)
    loss = model(**batch, noise=noise, set_ids=set_ids).loss
    loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close((halves[0][0] + halves[1][0]) / 2, loss.detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close((halves[0][1] + halves[1][1]) / 2, gradient, atol=1e-5, rtol=1e-3)


if __name__ == "__main__":
    _half(int(sys.argv[1]), sys.argv[2])
