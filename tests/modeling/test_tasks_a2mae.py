"""Fine-tuning models: what they answer, what they lose, and what must not change an answer."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSemanticSegmentation

from a2mae_hub import A2MAEForChangeDetection, A2MAEForImageClassification, A2MAEForSemanticSegmentation
from a2mae_hub.conversion.hub_plan import _model_classes
from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.heads_a2mae import BandStandardization, enlargements
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining
from a2mae_hub.modeling.pixels_a2mae import (
    anchor_cells,
    date_ranks,
    earlier_and_later,
    enlarge,
    fold_pixels,
    pixels_on_anchor_grid,
    virtual_bands,
)

PATCH = 4
UNKNOWN_TIME = -(2**63)
IGNORED = 255
NARROW = {"head_hidden_size": 8, "initializer_range": 0.05}

HEADS = {
    "linear": (A2MAEForSemanticSegmentation, {"segmentation_head": "linear"}),
    "fpn": (A2MAEForSemanticSegmentation, {"segmentation_head": "fpn"}),
    "difference": (A2MAEForChangeDetection, {"change_head": "difference"}),
    "attention": (A2MAEForChangeDetection, {"change_head": "attention"}),
}
every_head = pytest.mark.parametrize("head", HEADS)

# Two dates of one sensor and an older, coarser image of another, of a wider footprint and fewer bands.
COARSE = {"sensor": 1, "day": 10.0, "gsd": 20.0, "grid": (3, 3), "bands": ((655.0, 37.0), (865.0, 28.0))}
MIXED_SET = [{"day": 100.0, "grid": (4, 3)}, {"day": 465.0, "grid": (4, 3)}, COARSE]
SMALL_SET = [{"day": 3.0, "grid": (2, 3)}, {"day": 300.0, "grid": (2, 3)}]


@pytest.fixture
def build(tiny_model):
    """A function from the name of a head and overrides to its model."""

    def model(head: str, **overrides) -> nn.Module:
        model_class, of_head = HEADS[head]
        return tiny_model(model_class, **{**NARROW, **of_head, **overrides})

    return model


def permute_images(batch: dict[str, torch.Tensor], order: list[int]) -> dict[str, torch.Tensor]:
    """The batch of one set with its images in another order, tokens moved along."""
    tokens = torch.cat([(batch["image_ids"][0] == image).nonzero().flatten() for image in order])
    per_token = ("pixel_values", "pixel_mask", "attention_mask", "image_ids", "patch_positions")
    permuted = {key: value[:, tokens] if key in per_token else value for key, value in batch.items()}
    per_image = "band_wavelengths band_widths ground_resolutions acquisition_times source_ids grid_shapes"
    permuted |= {key: batch[key][:, order] for key in per_image.split()}
    new_ids = torch.tensor(order).argsort()
    return {**permuted, "image_ids": new_ids[permuted["image_ids"]], "anchor_ids": new_ids[batch["anchor_ids"]]}


# ------------------------------------------------------------------------------------------------------- classification


@pytest.mark.parametrize("pooling", ["class", "mean", "mean_std"])
def test_sets_of_any_dates_and_sensors_get_one_prediction_each(tiny_model, make_batch, pooling):
    model = tiny_model(A2MAEForImageClassification, pooling=pooling, num_labels=5)
    outputs = model(**make_batch(MIXED_SET, SMALL_SET, [{}]))
    assert outputs.logits.shape == (3, 5) and outputs.loss is None and outputs.hidden_states is None


def test_the_order_of_images_does_not_change_the_class(tiny_model, make_batch):
    model = tiny_model(A2MAEForImageClassification, pooling="mean_std")
    batch = make_batch(MIXED_SET)
    torch.testing.assert_close(model(**permute_images(batch, [2, 0, 1])).logits, model(**batch).logits)


def softmax_loss(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float:
    """Weighted cross entropy of (N, classes) in float64."""
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = weights[labels]
    return float(-(own * log_shares[np.arange(len(labels)), labels]).sum() / own.sum())


@pytest.mark.parametrize("weights", [None, [1, 2.5, 0.5]])
def test_the_loss_of_one_class_per_set_is_the_cross_entropy(tiny_model, make_batch, weights):
    model = tiny_model(A2MAEForImageClassification, num_labels=3, class_weights=weights)
    labels = np.array([2, 0, 1])
    outputs = model(**make_batch(MIXED_SET, SMALL_SET, [{}]), labels=torch.tensor(labels))
    expected = softmax_loss(outputs.logits.detach().double().numpy(), labels, np.array(weights or [1, 1, 1]))
    assert model.config.problem_type == "single_label_classification"
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weights", [None, [1, 2.5, 0.5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_the_loss_of_several_labels_is_the_binary_cross_entropy(tiny_model, make_batch, weights, dtype):
    several = "multi_label_classification"
    model = tiny_model(A2MAEForImageClassification, num_labels=3, class_weights=weights, problem_type=several)
    labels = np.array([[1, 0, 1], [0, 0, 0]])
    outputs = model(**make_batch(MIXED_SET, SMALL_SET), labels=torch.tensor(labels).to(dtype))
    chance = 1 / (1 + np.exp(-outputs.logits.detach().double().numpy()))
    expected = -(np.array(weights or [1, 1, 1]) * labels * np.log(chance) + (1 - labels) * np.log(1 - chance)).mean()
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.float64])
def test_one_label_is_a_regression(tiny_model, make_batch, dtype):
    model = tiny_model(A2MAEForImageClassification, num_labels=1)
    outputs = model(**make_batch(MIXED_SET, SMALL_SET), labels=torch.tensor([3, -1], dtype=dtype))
    outputs.loss.backward()
    expected = ((outputs.logits.detach().double().flatten() - torch.tensor([3.0, -1.0])) ** 2).mean()
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_standardises_summaries_over_the_batch(tiny_model, make_batch):
    model = tiny_model(A2MAEForImageClassification).train()
    batch = make_batch(MIXED_SET, SMALL_SET, [{}])
    summaries = model.a2mae(**batch).pooler_output.detach().double()
    standardised = (summaries - summaries.mean(0)) / (summaries.var(0, unbiased=False) + 1e-6).sqrt()
    head = model.classifier.linear
    expected = standardised @ head.weight.detach().double().T + head.bias.detach().double()
    torch.testing.assert_close(model(**batch).logits.double(), expected, rtol=1e-4, atol=1e-4, check_dtype=False)


def test_a_lone_set_trains_on_the_running_statistics(tiny_model, make_batch):
    model = tiny_model(A2MAEForImageClassification)
    batch = make_batch(MIXED_SET)
    expected = model(**batch).logits
    torch.testing.assert_close(model.train()(**batch, labels=torch.tensor([1])).logits, expected)


# ----------------------------------------------------------------------------------------------------- pixels and dates


def test_pixels_fold_into_the_image_that_they_were_cut_from():
    processor = A2MAEImageProcessor(patch_size=PATCH)
    pixels = np.random.default_rng(0).integers(200, 4000, (3, 10, 13), dtype=np.uint16)
    batch = dict(processor(pixels, sensor="sentinel-2-l2a", bands=["B02", "B03", "B04"], return_tensors="pt"))
    config = A2MAEConfig(hidden_size=8, num_attention_heads=2, patch_size=PATCH, spectral_projection="identity")
    cells = anchor_cells(batch)
    values, real = virtual_bands(A2MAEForPreTraining(config).a2mae.patch_embedding, batch, cells.flatten(1))
    image, shown = fold_pixels(values, *cells.shape[1:])[0], fold_pixels(real[:, :, None], *cells.shape[1:])[0, 0]
    assert image.shape == (3, 12, 16) and shown.sum() == 10 * 13 and shown[:10, :13].all()
    bands = [band for band in processor.sensors[batch["source_ids"][0, 0]].bands if band.name in ("B02", "B03", "B04")]
    for band, own, stored in zip(bands, image, pixels, strict=True):
        np.testing.assert_allclose(own[:10, :13], (stored / 1e4 - band.mean) / band.std, rtol=1e-3, atol=1e-4)


def test_virtual_bands_are_the_mean_over_the_bands_that_are_real(build, make_batch):
    embedding = build("fpn").a2mae.patch_embedding
    batch = make_batch([{}])
    batch["pixel_mask"][0, 3, 1:, 5] = False
    values, real = virtual_bands(embedding, batch, torch.tensor([[3, -1]]))
    weights = embedding.spectral_network(batch["band_wavelengths"], batch["band_widths"])[0, 0]
    pixels = batch["pixel_values"][0, 3]
    torch.testing.assert_close(values[0, 0, :, 6], weights.T @ pixels[:, 6] / 4)
    torch.testing.assert_close(values[0, 0, :, 5], weights[0] * pixels[0, 5])
    assert real[0, 0].all() and not real[0, 1].any() and not values[0, 1].any()


def ground_of_pixels(grid: tuple[int, int], gsd: float, centre=(0.0, 0.0)) -> torch.Tensor:
    """Metres north and east (2, rows, columns) of the pixel centres of an image."""
    rows, columns = (count * PATCH for count in grid)
    north = centre[0] + ((rows - 1) / 2 - torch.arange(rows)) * gsd
    east = centre[1] + (torch.arange(columns) - (columns - 1) / 2) * gsd
    return torch.stack(torch.meshgrid(north, east, indexing="ij"))


def test_pixels_of_other_images_are_found_on_the_ground_of_the_anchor(make_batch):
    """Bilinear interpolation is exact for what is linear in north and east, whatever the grid that it is sampled on."""
    batch = make_batch([{"grid": (2, 3)}, {"gsd": 20.0, "grid": (4, 3), "centre": (15.0, -5.0)}])
    maps, real = torch.zeros(1, 2, 2, 16, 12), torch.zeros(1, 2, 16, 12, dtype=torch.bool)
    maps[0, 0, :, :8, :12], real[0, 0, :8, :12] = ground_of_pixels((2, 3), 10.0), True
    maps[0, 1], real[0, 1] = ground_of_pixels((4, 3), 20.0, (15.0, -5.0)), True
    sampled, known = pixels_on_anchor_grid(maps, real, batch, 2, 3, PATCH)
    assert sampled.shape == (1, 2, 2, 8, 12) and known.all()
    for image in range(2):
        torch.testing.assert_close(sampled[0, image], maps[0, 0, :, :8, :12], rtol=0, atol=1e-3)


def test_pixels_beyond_an_image_or_without_data_are_not_known(make_batch):
    batch = make_batch([{"grid": (3, 3)}, {"grid": (2, 2), "centre": (20.0, -20.0)}])
    maps, real = torch.ones(1, 2, 1, 12, 12), torch.zeros(1, 2, 12, 12, dtype=torch.bool)
    real[0, 0] = True
    real[0, 1, :8, :8] = True
    real[0, 1, 2, 5] = False
    sampled, known = pixels_on_anchor_grid(maps * real[:, :, None], real, batch, 3, 3, PATCH)
    assert known[0, 0].all()
    torch.testing.assert_close(known[0, 1], real[0, 1])  # North-west of the anchor's middle: upper left in its grid.
    torch.testing.assert_close(sampled[0, 1, 0], real[0, 1].float())


@pytest.mark.parametrize(
    ("times", "ranks"),
    [
        ([30, 10, 20], [2, 0, 1]),
        ([10, 30, 10], [0.5, 2, 0.5]),
        ([30, UNKNOWN_TIME, 20], [0, 1, 2]),
        ([20, 20, 20], [0, 1, 2]),
    ],
)
def test_images_are_ranked_by_time_or_else_in_the_order_of_their_set(times, ranks):
    # A fourth image is padding.
    grids = torch.tensor([[[2, 2]] * 3 + [[0, 0]]])
    assert date_ranks(torch.tensor([[*times, UNKNOWN_TIME]]), grids)[0, :3].tolist() == ranks


def test_the_states_of_three_dates_follow_the_trend_and_leave_out_what_is_missing():
    maps = torch.tensor([5.0, 1.0, 2.0]).view(1, 3, 1, 1, 1).expand(1, 3, 1, 1, 4)
    real = torch.tensor([[True, True, True], [False, True, True], [True, False, True], [False, True, False]])
    before, after, compared = earlier_and_later(maps, real.T[None, :, None], torch.tensor([[2.0, 0.0, 1.0]]))
    assert before.flatten().tolist() == [1, 1, 2, 1] and after.flatten().tolist() == [5, 2, 5, 1]
    assert compared.flatten().tolist() == [True, True, True, False]


def test_enlarging_is_bilinear_and_blind_to_what_is_not_there():
    maps = torch.randn(1, 2, 3, 4)
    expected = nn.functional.interpolate(maps, scale_factor=8, mode="bilinear")
    padded, there = (
        nn.functional.pad(maps, (0, 2, 0, 1), value=1e3),
        nn.functional.pad(maps[:, :1] * 0 + 1, (0, 2, 0, 1)),
    )
    torch.testing.assert_close(enlarge(padded, there, 8)[..., :24, :32], expected)


@pytest.mark.parametrize("patch_size", [1, 2, 6, 7, 8, 14, 16])
def test_steps_lead_from_any_patch_to_its_pixels(patch_size):
    assert math.prod(enlargements(patch_size)) == patch_size
    assert patch_size % 2 or enlargements(patch_size)[-1] == 2


def test_bands_are_standardised_over_the_pixels_that_are_real():
    generator = np.random.default_rng(0)
    scales, means = np.array([0.01, 1.0, 30.0]), np.array([-2.0, 0.3, 5.0])
    values = generator.normal(means, scales, (2, 6, 7, 3))
    real = generator.random((2, 6, 7)) > 0.3
    bands = torch.from_numpy(np.where(real[..., None], values, 1e3)).float().permute(0, 3, 1, 2)
    module = BandStandardization(3)
    found = module(bands, torch.from_numpy(real)[:, None]).permute(0, 2, 3, 1).numpy()
    expected = (values - values[real].mean(0)) / np.sqrt(values[real].var(0) + module.eps)
    np.testing.assert_allclose(found, expected * real[..., None], atol=2e-4)
    # What a first batch showed holds for what comes after the training.
    found = module.eval()(bands, torch.from_numpy(real)[:, None]).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected * real[..., None], atol=2e-4)


def test_statistics_of_bands_are_the_mean_of_the_first_batches_and_then_follow():
    module, real = BandStandardization(1), torch.ones(1, 1, 2, 2, dtype=torch.bool)
    for value in range(10):
        module(torch.full((1, 1, 2, 2), float(value)), real)
    assert module.running_mean.item() == pytest.approx(4.5)
    for _ in range(1000):
        module(torch.full((1, 1, 2, 2), 7.0), real)
    assert module.running_mean.item() == pytest.approx(7.0, abs=1e-3)


# ----------------------------------------------------------------------------------------------------------------- maps


@every_head
def test_maps_are_on_the_pixels_of_the_anchor(build, make_batch, head):
    model = build(head, num_labels=3)
    batch = make_batch(MIXED_SET, SMALL_SET, anchors=[0, 1])
    labels = torch.randint(3, (2, 14, 11))
    assert model(**batch).logits.shape == (2, 3, 16, 12)
    assert model(**batch, labels=labels).logits.shape == (2, 3, 14, 11)
    assert model(**make_batch(MIXED_SET, anchors=[2])).logits.shape == (1, 3, 12, 12)


@pytest.mark.parametrize("patch_size", [1, 6, 7])
@pytest.mark.parametrize("head", ["fpn", "attention"])
def test_maps_are_made_from_patches_of_any_size(build, make_batch, head, patch_size):
    model = build(head, patch_size=patch_size)
    assert model(**make_batch(MIXED_SET, patch_size=patch_size)).logits.shape[-2:] == (4 * patch_size, 3 * patch_size)


@every_head
def test_what_else_is_in_the_batch_does_not_change_the_map_of_a_set(build, make_batch, pad_batch, head):
    model = build(head)
    with torch.inference_mode():
        # The first set of a batch is the same alone and among others.
        alone = model(**make_batch(SMALL_SET)).logits
        among = model(**pad_batch(make_batch(SMALL_SET, MIXED_SET), tokens=5, images=1, bands=2)).logits
    torch.testing.assert_close(among[:1, :, :8, :12], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["difference", "attention"])
def test_change_goes_by_time_and_not_by_the_order_in_the_set(build, make_batch, head):
    model = build(head)
    batch = make_batch(MIXED_SET)
    forwards = model(**batch).logits
    torch.testing.assert_close(model(**permute_images(batch, [1, 2, 0])).logits, forwards, rtol=1e-4, atol=1e-5)
    batch = make_batch(SMALL_SET)
    backwards = {**batch, "acquisition_times": batch["acquisition_times"].flip(1)}
    assert not torch.allclose(model(**backwards).logits, model(**batch).logits, atol=1e-3)


def test_the_linear_head_interpolates_a_linear_layer_on_the_tokens(build, make_batch):
    model = build("linear")
    batch = make_batch([{"grid": (3, 4)}])
    tokens = model.a2mae(**batch).last_hidden_state[0, 1:]
    expected = (tokens @ model.decode_head.classifier.weight.T + model.decode_head.classifier.bias).T.view(1, 2, 3, 4)
    expected = nn.functional.interpolate(expected, scale_factor=PATCH, mode="bilinear")
    torch.testing.assert_close(model(**batch).logits, expected)


@pytest.mark.parametrize("weights", [None, [1, 2.5, 0.5]])
def test_the_loss_of_a_map_is_the_cross_entropy_over_labelled_pixels(build, make_batch, weights):
    model = build("fpn", num_labels=3, class_weights=weights)
    labels = np.random.default_rng(0).integers(3, size=(2, 16, 12))
    labels[:, :5, 3:] = labels[1, 8:] = IGNORED
    outputs = model(**make_batch(MIXED_SET, SMALL_SET), labels=torch.tensor(labels))
    logits = outputs.logits.detach().double().permute(0, 2, 3, 1).numpy()[labels != IGNORED]
    expected = softmax_loss(logits, labels[labels != IGNORED], np.array(weights or [1, 1, 1]))
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_map_of_one_label_is_the_binary_cross_entropy(build, make_batch):
    model = build("difference", num_labels=1, class_weights=[3])
    labels = np.random.default_rng(0).choice([0, 1, IGNORED], size=(1, 8, 12))
    outputs = model(**make_batch(SMALL_SET), labels=torch.tensor(labels))
    chance = 1 / (1 + np.exp(-outputs.logits[:, 0].detach().double().numpy()[labels != IGNORED]))
    labels = labels[labels != IGNORED]
    expected = -(3 * labels * np.log(chance) + (1 - labels) * np.log(1 - chance)).mean()
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)


@every_head
def test_without_any_label_nothing_is_learnt(build, make_batch, head):
    model = build(head).train()
    loss = model(**make_batch(SMALL_SET), labels=torch.full((1, 8, 12), IGNORED)).loss
    loss.backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if name.startswith("decode_head")]
    assert loss.item() == 0 and all(not gradient.any() for gradient in gradients)


@every_head
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_of_encoder_and_head_is_trained(build, make_batch, head, dtype):
    model = build(head, num_labels=3).train()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(**make_batch(MIXED_SET, SMALL_SET), labels=torch.randint(3, (2, 16, 12))).loss.backward()
    without = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.isfinite().all()]
    assert not without


@every_head
def test_a_set_with_missing_data_has_a_finite_map(build, make_batch, head):
    model = build(head).train()
    batch = make_batch(SMALL_SET, SMALL_SET)
    batch["pixel_mask"][0, 6:] = batch["pixel_mask"][1] = batch["pixel_mask"][0, :2, :, ::3] = False
    batch["pixel_values"] = batch["pixel_values"] * batch["pixel_mask"]
    batch["attention_mask"] &= batch["pixel_mask"].flatten(2).any(-1)
    outputs = model(**batch, labels=torch.zeros(2, 8, 12, dtype=torch.int64))
    outputs.loss.backward()
    assert outputs.logits.isfinite().all()
    assert all(one.grad.isfinite().all() for one in model.parameters() if one.grad is not None)


def test_without_pixels_that_are_missing_none_need_be_marked(build, make_batch):
    model = build("difference")
    batch = make_batch(SMALL_SET)
    marked = model(**batch).logits
    del batch["pixel_mask"], batch["attention_mask"]
    torch.testing.assert_close(model(**batch).logits, marked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "fpn"])
def test_the_fixed_bands_of_the_released_network_are_segmented_too(build, make_batch, head):
    model = build(head, spectral_projection="identity", num_channels=4)
    assert model(**make_batch([{}])).logits.shape == (1, 2, 16, 16)


def test_hidden_states_come_when_asked_for_only(build, make_batch):
    model, batch = build("fpn"), make_batch([{}])
    assert model(**batch).hidden_states is None
    assert len(model(**batch, output_hidden_states=True).hidden_states) == 3
    assert isinstance(model(**batch, return_dict=False), tuple)


# ------------------------------------------------------------------------------------------------------------- learning


def learn(model: nn.Module, batch: dict[str, torch.Tensor], labels: torch.Tensor, steps: int) -> torch.Tensor:
    """Train on one batch, and return the logits for it afterwards."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return model.eval()(**batch).logits


def test_classification_learns_eight_sets_by_heart(tiny_model, make_batch):
    model = tiny_model(A2MAEForImageClassification, pooling="mean_std", num_labels=4, initializer_range=0.05)
    labels = torch.arange(8) % 4
    logits = learn(model, make_batch(*[[{"grid": (2, 2)}, {"grid": (2, 2)}]] * 8), labels, steps=30)
    assert logits.argmax(1).equal(labels)


@pytest.mark.parametrize("head", ["fpn", "difference", "attention"])
def test_a_head_that_sees_pixels_learns_borders_sharper_than_a_patch(build, make_batch, head):
    """What is to be found is the sign of one band, or which date has more of it, pixel by pixel."""
    batch = make_batch(*[[{"grid": (2, 2), "day": 0.0}, {"grid": (2, 2), "day": 365.0}]] * 8)
    red, red_later = batch["pixel_values"][:, :4, 2, None], batch["pixel_values"][:, 4:, 2, None]
    truth = fold_pixels(red if head == "fpn" else red_later - red, 2, 2)[:, 0] > 0
    logits = learn(build(head, head_hidden_size=16), batch, truth.long(), steps=60)
    assert (logits.argmax(1) == truth).float().mean() > 0.95


def test_the_linear_head_learns_patches(build, make_batch):
    batch = make_batch(*[[{"grid": (2, 2)}]] * 8)
    truth = torch.arange(8)[:, None, None] // torch.tensor([1, 2]).repeat_interleave(PATCH) % 2
    truth = truth.expand(8, 2 * PATCH, 2 * PATCH)
    logits = learn(build("linear"), batch, truth, steps=40)
    assert (logits.argmax(1) == truth).float().mean() > 0.9


# --------------------------------------------------------------------------------------------------- loading and saving


ALL = {**HEADS, "classification": (A2MAEForImageClassification, {"pooling": "mean_std"})}


@pytest.mark.parametrize("head", ALL)
def test_a_pretrained_checkpoint_gives_the_encoder_and_the_head_starts_afresh(tiny_config, tmp_path, head):
    pretrained = A2MAEForPreTraining(tiny_config(contrastive_weight=1.0))
    pretrained.save_pretrained(tmp_path)
    model_class, of_head = ALL[head]
    options = {**of_head, "num_labels": 3, "class_weights": [1, 2, 3], "head_hidden_size": 8}
    model, report = model_class.from_pretrained(tmp_path, output_loading_info=True, **options)
    name = "classifier." if head == "classification" else "decode_head."
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert report["missing_keys"] == {key for key in model.state_dict() if key.startswith(name)}
    for key, value in pretrained.a2mae.state_dict().items():
        assert torch.equal(model.a2mae.state_dict()[key], value)
    for key, value in model.state_dict().items():
        assert value.isfinite().all() and (not key.endswith("weight") or value.any()), key
    assert model.config.num_labels == 3 and model.config.class_weights == [1, 2, 3]


@pytest.mark.parametrize("head", ALL)
def test_what_is_saved_comes_back(tiny_model, make_batch, tmp_path, head):
    model_class, of_head = ALL[head]
    model = tiny_model(model_class, **{**NARROW, **of_head}, id2label={0: "water", 1: "land", 2: "ice"})
    model.save_pretrained(tmp_path)
    again, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert again.config.id2label == {0: "water", 1: "land", 2: "ice"}
    batch = make_batch(SMALL_SET)
    torch.testing.assert_close(again.eval()(**batch).logits, model(**batch).logits)


def test_the_auto_classes_know_the_models(tiny_config):
    config = tiny_config(**NARROW)
    assert type(AutoModelForImageClassification.from_config(config)) is A2MAEForImageClassification
    assert type(AutoModelForSemanticSegmentation.from_config(config)) is A2MAEForSemanticSegmentation


def test_a_push_names_the_models_for_remote_code():
    named = _model_classes()
    assert named["AutoModelForImageClassification"] == "tasks_a2mae.A2MAEForImageClassification"
    assert named["AutoModelForSemanticSegmentation"] == "tasks_a2mae.A2MAEForSemanticSegmentation"
    assert named["AutoModelForPreTraining"] == "modeling_a2mae.A2MAEForPreTraining"
    of_change = _model_classes(["A2MAEForChangeDetection"])
    assert of_change == {**named, "AutoModelForSemanticSegmentation": "tasks_a2mae.A2MAEForChangeDetection"}


def test_remote_code_carries_the_heads(tiny_model, tmp_path, monkeypatch):
    # What `register_for_auto_class` sets, without leaving it set for the tests that follow.
    monkeypatch.setattr(A2MAEConfig, "_auto_class", "AutoConfig")
    monkeypatch.setattr(A2MAEForSemanticSegmentation, "_auto_class", "AutoModelForSemanticSegmentation")
    tiny_model(A2MAEForSemanticSegmentation, **NARROW).save_pretrained(tmp_path)
    assert {"tasks_a2mae.py", "heads_a2mae.py", "pixels_a2mae.py"} <= {path.name for path in tmp_path.glob("*.py")}


# ----------------------------------------------------------------------------------------------------------- processing


@pytest.mark.parametrize("size", [None, 16])
def test_maps_come_back_on_the_pixels_of_the_anchor_as_it_was_handed_in(build, size):
    processor = A2MAEImageProcessor(patch_size=PATCH, size=size)
    options = {"sensor": "sentinel-2-l2a", "bands": ["B03", "B08"]}
    sets = [np.full((2, 2, 9, 14), 1000, np.uint16), np.full((2, 2, 11, 6), 2000, np.uint16)]
    image_sets = [{"images": [{"pixels": image, "gsd": 10.0, **options} for image in images]} for images in sets]
    batch = processor(image_sets, return_tensors="pt")
    with torch.inference_mode():
        outputs = build("difference", num_labels=3)(**batch)
    maps = processor.post_process_semantic_segmentation(outputs, batch, image_sets)
    assert [one.shape for one in maps] == [(9, 14), (11, 6)] and maps[0].dtype == np.int64
    if size is None:
        for number, (height, width) in enumerate([(9, 14), (11, 6)]):
            expected = outputs.logits[number, :, :height, :width].argmax(0)
            np.testing.assert_array_equal(maps[number], expected)
    outputs.logits = outputs.logits[:1, :, :2]
    with pytest.raises(ValueError, match="logits do not cover it"):
        processor.post_process_semantic_segmentation(outputs, batch, image_sets)


# --------------------------------------------------------------------------------------------------------------- errors


WRONG_LABELS = {
    "another size": (
        torch.zeros(1, 12, 12, dtype=torch.int64),
        "ask for whole numbers of shape (1, 13 to 16, 13 to 16)",
    ),
    "too large": (torch.zeros(1, 16, 17, dtype=torch.int64), "resample masks to the pixels of their anchor"),
    "another batch": (torch.zeros(2, 16, 16, dtype=torch.int64), "labels has shape (2, 16, 16)"),
    "fractions": (torch.zeros(1, 16, 16), "torch.float32"),
    "no such class": (torch.full((1, 16, 16), 2), "labels holds class 2, but this model has num_labels=2"),
    "another ignore index": (torch.full((1, 16, 16), -100), "semantic_loss_ignore_index=255"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_labels_that_do_not_fit_are_refused(build, make_batch, name):
    labels, message = WRONG_LABELS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        build("linear")(**make_batch([{}]), labels=labels)


def test_a_change_needs_two_dates(build, make_batch):
    with pytest.raises(ValueError, match="Set 1 of the batch has fewer than two images"):
        build("difference")(**make_batch(SMALL_SET, [{}]))


@pytest.mark.parametrize("key", ["grid_shapes", "patch_positions", "ground_resolutions"])
def test_a_map_needs_to_know_where_patches_lie(build, make_batch, key):
    batch = make_batch([{}])
    del batch[key]
    with pytest.raises(ValueError, match=f"{key} is missing from the batch"):
        build("linear")(**batch)


def test_class_weights_are_one_for_each_class(tiny_config):
    with pytest.raises(ValueError, match="class_weights has 2 numbers for num_labels=3"):
        A2MAEForImageClassification(tiny_config(num_labels=3, class_weights=[1, 2]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"head_hidden_size": 0}, "head_hidden_size=0 must be greater than 0"),
        ({"head_hidden_size": 7}, "head_hidden_size=7 must be even"),
        ({"class_weights": [1, -2]}, "must be finite numbers, at least 0"),
        ({"segmentation_head": "upernet"}, "segmentation_head"),
        ({"change_head": "siamese"}, "change_head"),
    ],
)
def test_settings_of_heads_that_cannot_be_are_refused(tiny_config, setting, message):
    with pytest.raises(Exception, match=re.escape(message)):
        tiny_config(**setting)
