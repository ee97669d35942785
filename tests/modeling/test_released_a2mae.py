"""The released configuration computes what the authors' release computes (reference outputs in the shared fixtures)."""

import json
import math
import zlib

import numpy as np
import pytest
import torch

from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining, A2MAEModel

NUM_SETS, NUM_IMAGES, SIDE, PATCH, BANDS = 2, 3, 224, 16, 3
GRID = SIDE // PATCH
TOLERANCE = 1e-4
NAMES = {
    "cls_token": "a2mae.cls_token",
    "patch_embed.proj": "a2mae.patch_embedding.projection",
    "norm": "a2mae.layernorm",
    "mask_token": "decoder.mask_token",
    "decoder_embed": "decoder.embed",
    "decoder_norm": "decoder.layernorm",
    "decoder_pred": "decoder.patch_prediction.projection",
}
STACKS = {"blocks": "a2mae.layers", "decoder_blocks": "decoder.layers"}
NAMES_IN_LAYER = {
    "attn.proj": "attention.o_proj",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def fraction(values):
    return values - np.floor(values)


def weight(name: str, shape: list[int]) -> torch.Tensor:
    """The weights that the reference was computed with (README of the fixture)."""
    place = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    values = 2 * fraction(np.sin(12.9898 * place + zlib.crc32(name.encode()) % 1000) * 43758.5453) - 1
    values = 1 + 0.1 * values if "norm" in name and name.endswith("weight") else 0.05 * values
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def our_state_dict(released: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename and reorder the weights of the release, as reference/released_code.md describes them."""
    ours = {}
    for name, value in released.items():
        stem, _, kind = name.rpartition(".")
        stack = name.split(".")[0]
        if name in ("pos_embed", "decoder_pos_embed"):
            continue
        if name in NAMES:
            ours[NAMES[name]] = value
        elif stack in STACKS:
            _, layer, part = stem.split(".", 2)
            prefix = f"{STACKS[stack]}.{layer}"
            if part == "attn.qkv":
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    ours[f"{prefix}.attention.{letter}_proj.{kind}"] = third
            else:
                ours[f"{prefix}.{NAMES_IN_LAYER[part]}.{kind}"] = value
        elif stem == "patch_embed.proj":
            ours[f"{NAMES[stem]}.{kind}"] = value.flatten(1) if kind == "weight" else value
        elif stem == "decoder_pred":  # (row, column, band) there, (band, row, column) here
            ours[f"{NAMES[stem]}.{kind}"] = value.unflatten(0, (PATCH**2, BANDS)).transpose(0, 1).flatten(0, 1)
        else:
            ours[f"{NAMES[stem]}.{kind}"] = value
    return ours


def reference_batch() -> dict[str, torch.Tensor]:
    """The inputs that the reference was computed for (README of the fixture), as a batch of ours."""
    shape = (NUM_SETS, NUM_IMAGES, BANDS, SIDE, SIDE)
    place = np.arange(1, math.prod(shape) + 1, dtype=np.float64)
    images = torch.from_numpy(fraction(np.sin(78.233 * place + 7) * 12345.678).astype(np.float32).reshape(shape))
    patches = images.unflatten(-1, (GRID, PATCH)).unflatten(-3, (GRID, PATCH)).permute(0, 1, 3, 5, 2, 4, 6)
    bit = np.arange(1, 257)
    bits = np.stack([fraction(np.sin(3.7 * bit + 7 + b) * 999.9) > 0.5 for b in range(NUM_SETS)])
    codes = bits.reshape(NUM_SETS, 8, 32) @ (1 << np.arange(31, -1, -1, dtype=np.int64))
    return {
        "pixel_values": patches.reshape(NUM_SETS, NUM_IMAGES * GRID**2, BANDS, PATCH**2),
        "image_ids": torch.arange(NUM_IMAGES).repeat_interleave(GRID**2).expand(NUM_SETS, -1),
        "ground_resolutions": torch.tensor([[10.0, 10.0, 30.0], [2.0, 10.0, 10.0]]),
        "geographic_codes": torch.from_numpy(codes),
        "grid_shapes": torch.full((NUM_SETS, NUM_IMAGES, 2), GRID),
    }


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "fixtures" / "official_release"
    return json.loads((folder / "state_dict_shapes.json").read_text()), np.load(folder / "expected.npz")


@pytest.fixture(scope="module")
def model(reference):
    config = A2MAEConfig.released(num_hidden_layers=2, decoder_num_hidden_layers=1, mask_ratio=0.0)
    with torch.device("meta"):  # no time for initial weights
        model = A2MAEForPreTraining(config)
    model.load_state_dict(
        our_state_dict({name: weight(name, shape) for name, shape in reference[0].items()}), assign=True
    )
    return model.eval()


@pytest.fixture(scope="module")
def batch():
    return reference_batch()


@pytest.fixture(scope="module")
def outputs(model, batch):
    with torch.inference_mode():
        return model(**batch, output_hidden_states=True), model.a2mae(**batch).last_hidden_state


def test_encoder_tokens_are_those_of_the_release(outputs, reference):
    latent, expected = outputs[1].numpy(), reference[1]
    np.testing.assert_allclose(latent[:, 0], expected["latent_cls"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(latent[:, 1::97], expected["latent_tokens"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(latent.mean(1), expected["latent_mean"], atol=TOLERANCE, rtol=0)


def test_predictions_are_those_of_the_release(outputs, reference):
    expected = reference[1]["prediction_tokens"]
    logits = outputs[0].logits[:, ::97].transpose(2, 3).flatten(2).numpy()
    assert outputs[0].token_ids[0].tolist() == list(range(NUM_IMAGES * GRID**2))
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)


def test_the_loss_is_that_of_the_release(outputs, reference):
    assert outputs[0].loss.item() == pytest.approx(reference[1]["loss"].item(), abs=TOLERANCE)


def test_the_released_network_takes_exactly_three_images(model, batch):
    two = {key: value[:, :2] if key in ("ground_resolutions", "grid_shapes") else value for key, value in batch.items()}
    for key in ("pixel_values", "image_ids"):
        two[key] = batch[key][:, : 2 * GRID**2]
    with pytest.raises(ValueError, match="The batch has 2 images per set, but this checkpoint takes exactly 3"):
        model.a2mae(**two)


def test_the_released_network_needs_the_patch_grid(model, batch):
    with pytest.raises(ValueError, match="grid_shapes is missing from the batch"):
        model.a2mae(**{key: value for key, value in batch.items() if key != "grid_shapes"})


def test_the_released_layout_is_masked_on_its_grid(tiny_config, make_batch, make_noise):
    """Tokens that stay visible keep the coordinates of their own place."""
    config = tiny_config(
        hidden_size=256 + 32,
        coordinate_layout="released",
        spectral_projection="identity",
        num_channels=4,
        released_num_images=2,
    )
    batch = make_batch([{}, {"sensor": 1}])
    model = A2MAEModel(config).eval()
    kept = torch.tensor([1, 6, 15, 16 + 2, 16 + 7])
    few = {key: batch[key][:, kept] for key in ("pixel_values", "pixel_mask", "attention_mask", "image_ids")}
    places = torch.tensor([[[0, 1], [1, 2], [3, 3], [0, 2], [1, 3]]])
    coordinates = model.coordinates({**batch, **few, "grid_positions": places})
    every_place = torch.cartesian_prod(torch.arange(4), torch.arange(4)).repeat(2, 1)[None]
    expected = model.coordinates({**batch, "grid_positions": every_place})[:, kept]
    torch.testing.assert_close(coordinates, expected)
    pretrained = A2MAEForPreTraining(config).eval()
    encoded = pretrained(**batch, noise=make_noise(batch), output_hidden_states=True)
    visible = (~encoded.mask[0]).nonzero().flatten()
    first = pretrained.a2mae(**batch, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(encoded.hidden_states[0][:, 1:], first[:, 1 + visible], atol=1e-5, rtol=0)
