"""The models: what reaches their outputs and what must not, how they learn, are saved, compiled and run."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from a2mae_hub.modeling.batch_a2mae import select_tokens
from a2mae_hub.modeling.modeling_a2mae import A2MAEBackbone, A2MAEForPreTraining, A2MAEModel

UNKNOWN_TIME = -(2**63)
DECODERS = ["self", "cross"]
close = {"atol": 1e-5, "rtol": 0.0}
# Two sensors over one footprint at two resolutions, and two dates; then a smaller set.
LARGE = [
    {"grid": (4, 4)},
    {"sensor": 1, "gsd": 20.0, "grid": (2, 2), "bands": ((480.0, 60.0), (655.0, 37.0))},
    {"day": 200, "grid": (3, 4)},
]
SMALL = [{"day": 30, "grid": (3, 3)}, {"sensor": 1, "day": None, "grid": (2, 2)}]


@pytest.fixture(scope="module")
def batch(make_batch):
    return make_batch(LARGE, SMALL, anchors=[0, 1])


@pytest.fixture(scope="module")
def noise(batch, make_noise):
    return make_noise(batch)


def pad_noise(noise, tokens):
    return torch.nn.functional.pad(noise, (0, tokens), value=-9.0)


def at_tokens(values, token_ids, num_tokens):
    """Lay predictions (B, M, …) out by the token they are for: (B, num_tokens, …), NaN where there is none."""
    laid_out = values.new_full((values.shape[0], num_tokens, *values.shape[2:]), torch.nan)
    for b in range(len(values)):
        known = token_ids[b] >= 0
        laid_out[b, token_ids[b, known]] = values[b, known]
    return laid_out


# The encoder


def test_the_encoder_encodes_every_token_in_training_too(batch, tiny_model):
    model = tiny_model(A2MAEModel, metadata_dropout=1.0, mask_ratio=0.9)
    at_rest = model(**batch)
    assert at_rest.last_hidden_state.shape == (2, 1 + 32, 32)
    torch.testing.assert_close(copy.deepcopy(model).train()(**batch).last_hidden_state, at_rest.last_hidden_state)


@settings(deadline=None, max_examples=15)
@given(tokens=st.integers(0, 9), images=st.integers(0, 2), bands=st.integers(0, 3), others=st.integers(0, 2))
def test_padding_changes_nothing_in_the_encoder(make_batch, pad_batch, tiny_model, tokens, images, bands, others):
    batch = make_batch(LARGE, *[SMALL] * others)
    alone = make_batch(LARGE)
    model = tiny_model(A2MAEModel, pooling="mean_std")
    expected, found = model(**alone), model(**pad_batch(batch, tokens, images, bands))
    torch.testing.assert_close(found.last_hidden_state[:1, : 1 + 32], expected.last_hidden_state, **close)
    torch.testing.assert_close(found.pooler_output[:1], expected.pooler_output, **close)


@pytest.mark.parametrize("without", ["pixel_mask", "attention_mask"])
def test_a_mask_of_nothing_may_be_left_out(make_batch, tiny_model, without):
    batch = make_batch([{}, {"day": 90}])
    model = tiny_model(A2MAEModel)
    left_out = {key: value for key, value in batch.items() if key != without}
    torch.testing.assert_close(model(**left_out).pooler_output, model(**batch).pooler_output, **close)


@pytest.mark.parametrize("pooling", ["class", "mean", "mean_std"])
def test_the_order_of_the_images_does_not_matter(make_batch, tiny_model, pooling):
    order = [2, 0, 1]
    batch = make_batch(LARGE)
    tokens = torch.cat([(batch["image_ids"][0] == t).nonzero().flatten() for t in order])
    shuffled = dict(batch)
    for key in ("pixel_values", "pixel_mask", "attention_mask", "patch_positions"):
        shuffled[key] = batch[key][:, tokens]
    shuffled["image_ids"] = torch.tensor(order).argsort()[batch["image_ids"][:, tokens]]
    for key in (
        "band_wavelengths",
        "band_widths",
        "ground_resolutions",
        "acquisition_times",
        "source_ids",
        "grid_shapes",
    ):
        shuffled[key] = batch[key][:, order]
    shuffled["anchor_ids"] = torch.tensor([1])
    model = tiny_model(A2MAEModel, pooling=pooling)
    found, expected = model(**shuffled), model(**batch)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, **close)
    torch.testing.assert_close(found.last_hidden_state[:, 1:], expected.last_hidden_state[:, 1:][:, tokens], **close)


def test_tokens_of_a_set_see_one_another_and_no_other_set(batch, tiny_model):
    model = tiny_model(A2MAEModel)
    changed = {**batch, "pixel_values": batch["pixel_values"].clone()}
    changed["pixel_values"][0, 0] += 1
    difference = (model(**changed).last_hidden_state - model(**batch).last_hidden_state).abs().amax(-1)
    assert (difference[0] > 1e-4).all()
    assert difference[1].max() < 1e-6


@pytest.mark.parametrize("pooling", ["class", "mean", "mean_std"])
def test_pooling_summarises_the_tokens_that_exist(batch, tiny_model, pooling):
    outputs = tiny_model(A2MAEModel, pooling=pooling)(**batch)
    for b, count in enumerate((32, 13)):
        states = outputs.last_hidden_state[b].double()
        patches = states[1 : 1 + count]
        expected = {
            "class": states[0],
            "mean": patches.mean(0),
            "mean_std": torch.cat([patches.mean(0), patches.std(0, correction=0)]),
        }[pooling]
        torch.testing.assert_close(outputs.pooler_output[b].double(), expected, atol=1e-4, rtol=0)


# Pre-training


def expected_loss(outputs, batch, normalize):
    """Mean squared error over hidden, predicted and valid values, one value at a time in float64."""
    errors = []
    for b in range(len(outputs.token_ids)):
        for m, token in enumerate(outputs.token_ids[b].tolist()):
            if token < 0 or not outputs.mask[b, token]:
                continue
            valid = batch["pixel_mask"][b, token]
            target = batch["pixel_values"][b, token].double()[valid]
            if normalize:
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            errors.append((outputs.logits[b, m].double()[valid] - target).square())
    return torch.cat(errors).mean()


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_loss_is_the_mean_squared_error_of_hidden_valid_values(batch, noise, tiny_model, decoder, normalize):
    holes = torch.rand(batch["pixel_mask"].shape, generator=torch.Generator().manual_seed(0)) < 0.8
    clouded = {**batch, "pixel_mask": batch["pixel_mask"] & holes}
    clouded["pixel_values"] = batch["pixel_values"] * clouded["pixel_mask"]
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder, normalize_targets=normalize)
    outputs = model(**clouded, noise=noise)
    torch.testing.assert_close(outputs.loss.double(), expected_loss(outputs, clouded, normalize), atol=1e-5, rtol=1e-5)
    hidden = at_tokens(outputs.logits, outputs.token_ids, 32).isfinite().all((2, 3)) & outputs.mask
    assert torch.equal(hidden, outputs.mask), "every hidden token is predicted"


@pytest.mark.parametrize("decoder", DECODERS)
def test_hidden_patches_reach_the_predictions_in_no_way(batch, noise, tiny_model, decoder):
    """The predictions must come from the visible tokens: what is hidden, and what is invalid, may hold anything."""
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder)
    outputs = model(**batch, noise=noise)
    changed = {**batch, "pixel_values": batch["pixel_values"] + 100.0 * outputs.mask[..., None, None]}
    other = model(**changed, noise=noise)
    assert torch.equal(other.logits, outputs.logits)
    assert other.loss > outputs.loss + 100
    visible = batch["attention_mask"] & ~outputs.mask
    changed = {**batch, "pixel_values": batch["pixel_values"] + 1.0 * visible[..., None, None]}
    assert not torch.allclose(model(**changed, noise=noise).logits, outputs.logits, atol=1e-3)


@pytest.mark.parametrize("decoder", DECODERS)
def test_values_of_invalid_pixels_do_not_count_in_the_loss(batch, noise, tiny_model, decoder):
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder)
    hidden = model(**batch, noise=noise).mask
    invalid = hidden[..., None, None] & (torch.arange(16) < 5)
    clouded = {**batch, "pixel_mask": batch["pixel_mask"] & ~invalid}
    expected = model(**clouded, noise=noise).loss
    found = model(**{**clouded, "pixel_values": batch["pixel_values"] + 50.0 * invalid}, noise=noise).loss
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("decoder", DECODERS)
@settings(deadline=None, max_examples=10)
@given(tokens=st.integers(0, 9), images=st.integers(0, 2), bands=st.integers(0, 3), others=st.integers(0, 2))
def test_padding_changes_nothing_in_pretraining(
    make_batch, make_noise, pad_batch, tiny_model, decoder, tokens, images, bands, others
):
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder)
    alone = make_batch(LARGE)
    noise = make_noise(alone)
    expected = model(**alone, noise=noise)
    padded = pad_batch(alone, tokens, images, bands)
    found = model(**padded, noise=pad_noise(noise, tokens))
    torch.testing.assert_close(found.loss, expected.loss, **close)

    batch = make_batch(LARGE, *[SMALL] * others)
    padded = pad_batch(batch, tokens, images, bands)
    noise_of_all = torch.cat([noise, torch.randn(others, 3, 32)])
    among_others = model(**padded, noise=pad_noise(noise_of_all, tokens))
    for outputs in (found, among_others):
        assert torch.equal(outputs.mask[0, :32], expected.mask[0])
        assert not outputs.mask[0, 32:].any()
        predicted = at_tokens(outputs.logits, outputs.token_ids, 32 + tokens)[:1, :32, : expected.logits.shape[2]]
        laid_out = at_tokens(expected.logits, expected.token_ids, 32)
        torch.testing.assert_close(predicted, laid_out, equal_nan=True, **close)


@pytest.mark.parametrize("tokens", [0, 4, 40])
def test_training_decodes_as_much_of_a_set_however_long_the_batch(make_batch, pad_batch, tiny_model, tokens):
    model = tiny_model(A2MAEForPreTraining, decode_ratio=0.5, metadata_dropout=0.0).train()
    outputs = model(**pad_batch(make_batch(LARGE, SMALL), tokens=tokens))
    hidden, decoded = outputs.mask.sum(1), (outputs.token_ids >= 0).sum(1)
    assert hidden.tolist() == [24, 10]
    assert decoded.tolist() == pytest.approx([12, 5], abs=2)


def test_training_decodes_a_share_and_evaluation_all_of_the_hidden_tokens(make_batch, make_noise, tiny_model):
    batch = make_batch([{"grid": (8, 8)}, {"grid": (8, 8), "day": 100}])
    noise = make_noise(batch)
    model = tiny_model(A2MAEForPreTraining, decode_ratio=1 / 3, mask_ratio=0.75)
    evaluated = model(**batch, noise=noise)
    assert (
        sorted(evaluated.token_ids[evaluated.token_ids >= 0].tolist()) == evaluated.mask[0].nonzero().flatten().tolist()
    )
    trained = model.train()(**batch, noise=noise)
    decoded = trained.token_ids[trained.token_ids >= 0]
    assert len(decoded) == pytest.approx(96 / 3, abs=2)
    assert len(decoded.unique()) == len(decoded)
    assert trained.mask[0, decoded].all()


def test_training_decodes_as_much_of_every_image(make_batch, make_noise, tiny_model):
    """The hidden tokens of an image that follows the anchor are no likelier to be decoded than those of another."""
    images = [{"grid": (8, 8)}, {"grid": (8, 8), "sensor": 1}, {"grid": (8, 8), "day": 200}]
    batch = make_batch(*[images] * 60)
    model = tiny_model(A2MAEForPreTraining, num_hidden_layers=1, decoder_num_hidden_layers=1).train()
    outputs = model(**batch, noise=make_noise(batch))
    decoded = outputs.token_ids[outputs.token_ids >= 0]
    shares = torch.bincount(decoded // 64, minlength=3) / (60 * 48)
    # 60 · 48 hidden tokens of each image, a third of them decoded: a standard error of 0.009.
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.045)


@pytest.mark.parametrize("key", ["patch_positions", "acquisition_times", "image_ids"])
def test_the_cross_decoder_knows_where_and_of_what_the_visible_tokens_are(batch, tiny_model, key):
    """It attends to the visible tokens by their coordinates, so those alone must change what it predicts."""
    decoder = tiny_model(A2MAEForPreTraining).decoder
    visible_ids, visible = select_tokens(batch, torch.arange(32).expand(2, 32) % 4 == 0, None)
    _, target = select_tokens(batch, torch.arange(32).expand(2, 32) % 4 == 1, None)
    latent = torch.randn(2, 1 + visible_ids.shape[1], 32, generator=torch.Generator().manual_seed(0))
    elsewhere = {**visible, key: visible[key].flip(1)}
    predicted = decoder(latent, visible, target, visible_ids)
    assert (decoder(latent, elsewhere, target, visible_ids) - predicted).abs().max() > 1e-3


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_mask_may_be_given(batch, tiny_model, decoder):
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder)
    mask = torch.zeros_like(batch["attention_mask"])
    mask[0, [3, 17]] = mask[1, [0, 5, 31]] = True  # token 31 of the second set is padding
    outputs = model(**batch, mask=mask)
    assert torch.equal(outputs.mask, mask & batch["attention_mask"])
    torch.testing.assert_close(outputs.loss.double(), expected_loss(outputs, batch, False), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_mask_that_hides_nothing_has_no_loss(batch, tiny_model, decoder):
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder)
    outputs = model(**batch, mask=torch.zeros_like(batch["attention_mask"]))
    assert outputs.loss == 0
    assert not outputs.mask.any()


@pytest.mark.parametrize("decoder", DECODERS)
def test_without_masking_the_loss_is_that_of_all_tokens(batch, tiny_model, decoder):
    outputs = tiny_model(A2MAEForPreTraining, decoder_attention=decoder, mask_ratio=0.0)(**batch)
    assert not outputs.mask.any()
    outputs.mask = batch["attention_mask"]
    torch.testing.assert_close(outputs.loss.double(), expected_loss(outputs, batch, False), atol=1e-5, rtol=1e-5)


def test_metadata_is_dropped_in_training_only_and_the_mask_does_not_depend_on_it(batch, noise, tiny_model):
    arguments = {"decoder_attention": "self", "mask_ratio": 0.5}
    kept, dropping = (
        tiny_model(A2MAEForPreTraining, metadata_dropout=probability, **arguments) for probability in (0.0, 1.0)
    )
    unknown = {
        **batch,
        "geographic_codes": torch.full_like(batch["geographic_codes"], -1),
        "acquisition_times": torch.full_like(batch["acquisition_times"], UNKNOWN_TIME),
        "ground_resolutions": torch.zeros_like(batch["ground_resolutions"]),
    }
    at_rest = dropping(**batch, noise=noise)
    torch.testing.assert_close(at_rest.logits, kept.train()(**batch, noise=noise).logits, **close)
    trained = dropping.train()(**batch, noise=noise)
    assert torch.equal(trained.mask, at_rest.mask)
    without_metadata = kept.eval()(**unknown, mask=at_rest.mask)
    torch.testing.assert_close(trained.loss, without_metadata.loss, **close)
    assert abs(trained.loss - at_rest.loss) > 1e-3


def test_place_time_and_scale_are_dropped_apart_and_as_often_as_said(make_batch, make_noise, tiny_model):
    batch = make_batch(*[[{}]] * 2000)
    noise = make_noise(batch)
    dropped = tiny_model(A2MAEForPreTraining, metadata_dropout=0.25).drop_metadata(batch, noise)
    lost = torch.stack(
        [
            (dropped["geographic_codes"] == -1).all(1),
            (dropped["acquisition_times"] == UNKNOWN_TIME).all(1),
            (dropped["ground_resolutions"] == 0).all(1),
        ]
    ).double()
    assert lost.mean(1).tolist() == pytest.approx([0.25] * 3, abs=0.05)
    # Neither do they depend on one another, nor on the numbers that the mask follows from.
    together = torch.cat([lost, noise[:, :, 0].T.double()])
    assert together.corrcoef().triu(1).abs().max() < 0.1


def test_a_set_loses_the_same_metadata_in_whatever_batch_it_comes(make_batch, make_noise, tiny_model):
    batch = make_batch(*[[{}]] * 40)
    noise, model = make_noise(batch), tiny_model(A2MAEForPreTraining, metadata_dropout=0.5)
    together = model.drop_metadata(batch, noise)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:7]
    alone = model.drop_metadata({key: value[order] for key, value in batch.items()}, noise[order])
    for key in ("geographic_codes", "acquisition_times", "ground_resolutions"):
        assert torch.equal(alone[key], together[key][order])


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("projection", ["basis", "identity"])
def test_every_parameter_learns(batch, tiny_model, decoder, projection):
    arguments = {"decoder_attention": decoder, "spectral_projection": projection, "num_channels": 4}
    model = tiny_model(A2MAEForPreTraining, metadata_dropout=0.0, **arguments).train()
    model(**batch).loss.backward()
    still = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    # The softmax of an attention takes no notice of a bias that all keys share.
    assert [name for name in still if not name.endswith("k_proj.bias")] == []


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_few_steps_learn_a_batch_by_heart(batch, noise, tiny_model, decoder):
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder, metadata_dropout=0.0, decode_ratio=1.0)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = model(**batch, noise=noise).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.75 * losses[0]


# Numerics


@pytest.mark.parametrize("decoder", DECODERS)
def test_sdpa_and_eager_agree(batch, noise, tiny_model, decoder):
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder)
    outputs = {}
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        outputs[implementation] = model(**batch, noise=noise)
    torch.testing.assert_close(outputs["eager"].logits, outputs["sdpa"].logits, **close)
    torch.testing.assert_close(outputs["eager"].loss, outputs["sdpa"].loss, **close)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast_batch", [False, True])
def test_half_precision_is_finite_and_near(batch, noise, tiny_model, decoder, dtype, cast_batch):
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder, initializer_range=0.02)
    expected = model(**batch, noise=noise)
    half_batch = {
        key: value.to(dtype) if cast_batch and value.is_floating_point() else value for key, value in batch.items()
    }
    outputs = copy.deepcopy(model).to(dtype)(**half_batch, noise=noise)
    assert outputs.logits.dtype == dtype
    assert outputs.logits.isfinite().all()
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)
    assert torch.equal(outputs.mask, expected.mask)
    outputs = copy.deepcopy(model.a2mae).to(dtype)(**half_batch)
    assert outputs.last_hidden_state.dtype == dtype
    assert outputs.pooler_output.isfinite().all()


@pytest.mark.parametrize("decoder", DECODERS)
def test_autocast_gives_the_loss_in_float32(batch, noise, tiny_model, decoder):
    model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder, initializer_range=0.02)
    expected = model(**batch, noise=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(**batch, noise=noise)
    assert outputs.loss.dtype == torch.float32
    assert torch.equal(outputs.mask, expected.mask)
    assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)


@pytest.mark.parametrize("decoder", DECODERS)
def test_gradient_checkpointing_gives_the_same_gradients(batch, noise, tiny_model, decoder):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder, metadata_dropout=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in (*model.a2mae.layers, *model.decoder.layers))
        model(**batch, noise=noise).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], **close)


# Compiling and exporting


def test_the_encoder_compiles_into_one_graph(batch, tiny_model):
    model = tiny_model(A2MAEModel, num_hidden_layers=1)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**batch)
        torch.testing.assert_close(compiled.last_hidden_state, model(**batch).last_hidden_state, **close)


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_compiled_training_step_has_the_gradients_of_the_plain_one(batch, noise, tiny_model, decoder):
    gradients = []
    for compiles in (False, True):
        sizes = {"num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
        model = tiny_model(A2MAEForPreTraining, decoder_attention=decoder, metadata_dropout=0.0, **sizes).train()
        step = torch.compile(model, fullgraph=True, backend="aot_eager") if compiles else model
        step(**batch, noise=noise).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, **close, msg=lambda text, name=name: f"{name}: {text}")


def test_pretraining_compiles_into_one_graph(batch, noise, tiny_model):
    model = tiny_model(A2MAEForPreTraining, num_hidden_layers=1, decoder_num_hidden_layers=1)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(**batch, noise=noise)
        expected = model(**batch, noise=noise)
    assert torch.equal(compiled.mask, expected.mask)
    torch.testing.assert_close(compiled.logits, expected.logits, **close)
    torch.testing.assert_close(compiled.loss, expected.loss, **close)


def test_the_encoder_is_exported_for_any_number_of_sets_and_tokens(batch, make_batch, tiny_model):
    model = tiny_model(A2MAEModel, num_hidden_layers=1)
    sets, tokens, images = (torch.export.Dim(name, min=2, max=4096) for name in ("sets", "tokens", "images"))
    per_token = ("pixel_values", "pixel_mask", "attention_mask", "image_ids", "patch_positions")
    per_set = ("geographic_codes", "anchor_ids")
    shapes = {
        key: {0: sets} if key in per_set else {0: sets, 1: tokens if key in per_token else images} for key in batch
    }
    program = torch.export.export(model, (), dict(batch), strict=False, dynamic_shapes={**shapes})
    other = make_batch(SMALL, LARGE, [*SMALL, *LARGE], seed=3)
    torch.testing.assert_close(program.module()(**other).last_hidden_state, model(**other).last_hidden_state, **close)


# Saving and loading


@pytest.mark.parametrize("model_class", [A2MAEModel, A2MAEForPreTraining, A2MAEBackbone])
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_checkpoint_comes_back_bit_for_bit(batch, tiny_model, tmp_path, model_class, shard):
    model = tiny_model(model_class)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is (shard == "20KB")
    again, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {**again.config.to_dict(), "_name_or_path": ""} == model.config.to_dict()
    state, state_again = model.state_dict(), again.state_dict()
    assert state.keys() == state_again.keys()
    assert all(torch.equal(state[key], state_again[key]) for key in state)


@pytest.mark.parametrize("model_class", [A2MAEModel, A2MAEBackbone])
def test_the_encoder_is_taken_from_a_pretraining_checkpoint(batch, tiny_model, tmp_path, model_class):
    pretrained = tiny_model(A2MAEForPreTraining)
    pretrained.save_pretrained(tmp_path)
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    assert all(key.startswith("decoder.") for key in info["unexpected_keys"])
    encoder = model.a2mae if model_class is A2MAEBackbone else model
    expected = pretrained.a2mae(**batch).last_hidden_state
    assert torch.equal(encoder(**batch).last_hidden_state, expected)


def test_what_a_checkpoint_lacks_is_initialised_as_in_a_new_model(tiny_model, tmp_path):
    """`from_pretrained` builds on the meta device, where a forgotten parameter holds whatever was in memory."""
    model = tiny_model(A2MAEForPreTraining, initializer_range=0.02)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {"a2mae.layers.0.mlp.fc1.weight": load_file(file)["a2mae.layers.0.mlp.fc1.weight"]}
    save_file(kept, file, metadata={"format": "pt"})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        again, info = A2MAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == model.state_dict().keys() - kept.keys()
    check_initial_weights(again)


def check_initial_weights(model):
    """Deviations are that of the configuration, 0.02, but what reads pixels and wavelengths keeps their scale."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.LayerNorm):
            assert (parameter == 1).all(), name
        else:
            keeps_scale = "patch_embedding" in name or "spectral_network" in name
            expected = parameter.shape[-1] ** -0.5 if keeps_scale else 0.02
            # Four standard errors of the deviation of n normal numbers.
            error = 4 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() == pytest.approx(expected, rel=error), name


def test_weights_start_at_the_scale_of_what_they_read(tiny_model):
    check_initial_weights(tiny_model(A2MAEForPreTraining, initializer_range=0.02))


def test_patches_and_coordinates_start_at_comparable_scales(batch, tiny_model):
    """Standardised pixels become embeddings of order one, neither drowned by the coordinates nor drowning them."""
    model = tiny_model(A2MAEModel, initializer_range=0.02)
    exists = batch["attention_mask"]
    assert 0.1 < model.patch_embedding(batch)[exists].std() < 1.5
    coordinates = model.coordinates(batch)[exists]
    assert 0.1 < coordinates.std() < 3
    # Two hundred bits of place say no more than the position within it.
    of_place, of_position = (
        (coordinates - model.coordinates({name: value for name, value in batch.items() if name != key})[exists]).std()
        for key in ("geographic_codes", "patch_positions")
    )
    assert of_place < of_position


def test_lora_trains_only_its_adapters_and_merges(batch, tiny_model):
    peft = pytest.importorskip("peft", reason="LoRA needs the extra [peft]")
    base = tiny_model(A2MAEModel)
    before = copy.deepcopy(base.state_dict())
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    trainable = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * 2 * 2
    assert all("lora_" in name for name in trainable)
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    for _ in range(2):  # The first step leaves A as it is, for B starts at zero.
        optimizer.zero_grad()
        adapted(**batch).pooler_output.square().sum().backward()
        optimizer.step()
    assert all(parameter.grad.any() for parameter in trainable.values())
    trained = adapted(**batch).last_hidden_state
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(**batch).last_hidden_state, trained, **close)
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"layers.{layer}.attention.{name}_proj.weight" for layer in (0, 1) for name in "qv"}


# Backbone


def test_feature_maps_of_a_set_lie_on_the_grid_of_its_anchor(batch, tiny_model):
    backbone = tiny_model(A2MAEBackbone, out_indices=[0, 2], feature_fusion="set")
    maps = backbone(**batch).feature_maps
    assert backbone.channels == [32, 32]
    assert [tuple(of_stage.shape) for of_stage in maps] == [(2, 32, 4, 4)] * 2
    assert not maps[1][1, :, 2:].any()  # the anchor of the second set has 2 × 2 patches


def test_feature_maps_of_images_are_the_tokens_of_the_chosen_layers(batch, tiny_model):
    backbone = tiny_model(A2MAEBackbone, out_features=["stage1", "stage2"], feature_fusion="image")
    outputs = backbone(**batch)
    encoded = backbone.a2mae(**batch, output_hidden_states=True)
    assert len(encoded.hidden_states) == 3
    assert outputs.hidden_states is None
    states = [backbone.a2mae.layernorm(encoded.hidden_states[1]), encoded.last_hidden_state]
    for of_stage, hidden_states in zip(outputs.feature_maps, states, strict=True):
        assert of_stage.shape == (2, 3, 32, 4, 4)
        third = hidden_states[0, 1 + 16 + 4 : 1 + 32].T.unflatten(1, (3, 4))
        torch.testing.assert_close(of_stage[0, 2, :, :3], third)
        assert not of_stage[0, 2, :, 3].any()
        assert not of_stage[1, 2].any()


def test_a_set_of_one_image_has_that_images_map(make_batch, tiny_model):
    batch = make_batch([{"grid": (3, 4)}])
    of_set = tiny_model(A2MAEBackbone, feature_fusion="set")(**batch).feature_maps[0]
    of_image = tiny_model(A2MAEBackbone, feature_fusion="image")(**batch).feature_maps[0]
    torch.testing.assert_close(of_set, of_image[:, 0], **close)


@pytest.mark.parametrize(
    ("fusion", "key"),
    [("set", "grid_shapes"), ("set", "patch_positions"), ("set", "ground_resolutions"), ("image", "grid_shapes")],
)
def test_a_batch_that_cannot_be_laid_out_is_refused(batch, tiny_model, fusion, key):
    backbone = tiny_model(A2MAEBackbone, feature_fusion=fusion)
    with pytest.raises(ValueError, match=f"{key} is missing from the batch"):
        backbone(**{name: value for name, value in batch.items() if name != key})


@pytest.mark.parametrize("model_class", [A2MAEModel, A2MAEForPreTraining, A2MAEBackbone])
def test_outputs_as_tuple_and_hidden_states_on_request(batch, tiny_model, model_class):
    model = tiny_model(model_class)
    outputs = model(**batch, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple)
