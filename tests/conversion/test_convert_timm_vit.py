"""A vision transformer of timm and its conversion compute the same, in the same run; back from ours to timm as well."""

import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
import yaml
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from a2mae_hub.conversion.commands import convert_app
from a2mae_hub.conversion.convert_timm_vit import convert_timm_vit, from_timm, rgb_sensor, to_timm
from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining, A2MAEModel
from a2mae_hub.modeling.sensors_a2mae import get_sensor

RGB = ["red", "green", "blue"]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


def random_timm(**overrides) -> VisionTransformer:
    """A small model of timm in which no weight is zero or one, as initial biases, scales and class tokens are."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = VisionTransformer(**{**SMALL, **overrides}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def without_position(model: VisionTransformer) -> VisionTransformer:
    """The model with the position of its patches taken away; that of the class token stays."""
    with torch.no_grad():
        model.pos_embed[:, 0 if model.no_embed_class else 1 :] = 0
    return model


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)


def standardised(photograph: np.ndarray, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)) -> torch.Tensor:
    """The photograph as torchvision's `ToTensor` and `Normalize` make it, in float64 up to the last step."""
    values = photograph / 255.0
    return torch.from_numpy((values - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))).float()[None]


def batch_of(photograph: np.ndarray, patch_size: int = 8) -> dict[str, torch.Tensor]:
    processor = A2MAEImageProcessor(patch_size=patch_size, sensors=[rgb_sensor()])
    return dict(processor(photograph, sensor="rgb-8bit", bands=RGB, return_tensors="pt"))


# Plain, 8 × 8 patches, MAE, DINOv2 (layer scale, 14 × 14), mean without a class token, pooling by a map.
ARCHITECTURES = {
    "vit_tiny_patch16_224": 16,
    "vit_small_patch8_224.dino": 8,
    "vit_base_patch16_224.mae": 16,
    "vit_small_patch14_dinov2.lvd142m": 14,
    "vit_base_patch16_siglip_gap_224": 16,
    "vit_base_patch16_siglip_224": 16,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_real_architecture_embeds_an_rgb_image_and_works_as_in_timm(name):
    patch_size = ARCHITECTURES[name]
    side = 3 * patch_size
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, depth=1, img_size=side).eval()
    image = np.random.default_rng(1).integers(0, 256, (3, side, side), dtype=np.uint8)
    encoder = from_timm(model)
    with torch.inference_mode():
        embedded, expected = (
            encoder.patch_embedding(batch_of(image, patch_size)),
            model.patch_embed(standardised(image)),
        )
        torch.testing.assert_close(embedded, expected, atol=1e-5, rtol=0)
        after = encoder.layers[0](expected)
        torch.testing.assert_close(after, model.blocks[0](expected), atol=1e-5, rtol=0)
        torch.testing.assert_close(encoder.layernorm(after), model.norm(model.blocks[0](expected)), atol=1e-4, rtol=0)


def test_a_class_token_that_was_not_there_starts_at_zero():
    model = random_timm(class_token=False, global_pool="avg", fc_norm=False)
    encoder = from_timm(model)
    assert not encoder.cls_token.any() and encoder.config.pooling == "mean"


def test_the_order_of_the_bands_does_not_matter(photograph):
    model = random_timm()
    processor = A2MAEImageProcessor(patch_size=8, sensors=[rgb_sensor()])
    batch = processor(photograph[::-1].copy(), sensor="rgb-8bit", bands=RGB[::-1], return_tensors="pt")
    with torch.inference_mode():
        expected = model.patch_embed(standardised(photograph))
        torch.testing.assert_close(from_timm(model).patch_embedding(dict(batch)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{}, {"init_values": 0.1}, {"qkv_bias": False}, {"act_layer": partial(torch.nn.GELU, approximate="tanh")}],
    ids=["plain", "scaled", "no bias", "tanh"],
)
def test_blocks_return_what_those_of_timm_return(settings):
    model = random_timm(**settings)
    encoder = from_timm(model)
    tokens = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = ours = tokens
        for theirs, layer in zip(model.blocks, encoder.layers, strict=True):
            expected, ours = theirs(expected), layer(ours)
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings", [{}, {"no_embed_class": True}, {"global_pool": "avg", "fc_norm": False}], ids=["token", "deit3", "mean"]
)
def test_the_encoder_is_that_of_timm_without_the_position_of_patches(photograph, settings):
    """Also where nothing but an RGB image is known: the coordinates that take the place of positions start at zero."""
    model = random_timm(**settings)
    encoder = from_timm(model)
    without_position(model)
    with torch.inference_mode():
        outputs, image = encoder(**batch_of(photograph)), standardised(photograph)
        torch.testing.assert_close(outputs.last_hidden_state, model.forward_features(image), atol=2e-5, rtol=0)
        pooled = model.forward_head(model.forward_features(image), pre_logits=True)
        torch.testing.assert_close(outputs.pooler_output, pooled, atol=2e-5, rtol=0)


def test_other_bands_start_at_the_scale_of_rgb():
    """The mixing of three bands must not be so nearly singular that a fourth blows up."""
    encoder = from_timm(random_timm(patch_size=8, embed_dim=192))
    kernels = {}
    sensor = get_sensor("sentinel-2-l2a")
    for name in ("B02", "B03", "B04", "B08", "B11", "B12"):
        band = sensor.find(name)
        kernels[name] = to_timm(encoder, [band], image_size=8, ground_resolution=10).patch_embed.proj.weight.norm()
    rgb = to_timm(encoder, rgb_sensor().bands[:1], image_size=8, ground_resolution=10).patch_embed.proj.weight.norm()
    assert max(kernels.values()) < 10 * rgb


def test_conversion_is_the_same_every_time():
    model = random_timm()
    torch.manual_seed(1)
    first = from_timm(model).state_dict()
    torch.manual_seed(2)
    assert all(torch.equal(first[key], value) for key, value in from_timm(model).state_dict().items())


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    """A model of timm as timm itself saves it, standardising with 0.5 as many of its models do."""
    folder = tmp_path_factory.mktemp("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, num_classes=0).eval()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    settings = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 0}
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": {"depth": 1, "img_size": 32},
        "pretrained_cfg": settings,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model


def test_a_converted_folder_describes_its_own_input(timm_folder, tmp_path, photograph):
    folder, model = timm_folder
    result = CliRunner().invoke(convert_app, ["timm", f"local-dir:{folder}", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "1 layers of width 192" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    loaded, report = A2MAEModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = A2MAEImageProcessor.from_pretrained(tmp_path / "out")
    batch = processor(photograph, sensor="rgb-8bit", bands=RGB, return_tensors="pt")
    with torch.inference_mode():
        expected = without_position(model).forward_features(standardised(photograph, [0.5] * 3, [0.5] * 3))
        torch.testing.assert_close(loaded(**batch).last_hidden_state, expected, atol=2e-5, rtol=0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "local-dir" in card and "{" not in card
    assert "license: unknown" in card and "licence of the weights is not known" in card


@pytest.mark.parametrize(
    ("known", "told", "metadata"),
    [
        ("cc-by-nc-4.0", None, {"license": "cc-by-nc-4.0"}),
        ("cc-by-nc-4.0", "Apache-2.0", {"license": "apache-2.0"}),
        ("dinov3-license", None, {"license": "other", "license_name": "dinov3-license"}),
    ],
    ids=["as timm knows", "as told", "one of its own"],
)
def test_the_card_names_the_licence_of_the_weights(known, told, metadata, tmp_path):
    model = random_timm(class_token=False, global_pool="avg", fc_norm=False)
    model.pretrained_cfg = {"architecture": "vit_own", "license": known}
    convert_timm_vit(model, tmp_path / "out", licence=told)
    card = (tmp_path / "out" / "README.md").read_text()
    found = yaml.safe_load(card.split("---\n")[1])
    assert {key: found[key] for key in metadata} == metadata
    assert f"The weights are under {told or known}." in card
    assert "had no class token" in card


REFUSED = {
    "2 register tokens": {"reg_tokens": 2},
    "before the blocks": {"pre_norm": True},
    "fc_norm": {"global_pool": "avg"},
    "hold also attn.k_norm, attn.q_norm": {"qk_norm": True},
    "4 channels": {"in_chans": 4},
    "8 × 4": {"patch_size": (8, 4)},
    "GluMlp": {"mlp_layer": SwiGLUPacked},
    "Mlp with ReLU": {"act_layer": torch.nn.ReLU},
    "with the class token": {"global_pool": "avg", "fc_norm": False, "pool_include_prefix": True},
    "its projections have no bias": {"proj_bias": False},
    "pools by 'max'": {"global_pool": "max", "fc_norm": False},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(reason, tmp_path):
    model = VisionTransformer(**{**SMALL, **REFUSED[reason]})
    with pytest.raises(ValueError, match=reason):
        convert_timm_vit(model, tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["resnet18", "vit_no_such", "vit_enormous.mae"])
def test_a_name_that_is_no_vision_transformer_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=rf"{name}: no vision transformer of timm"):
        convert_timm_vit(name, tmp_path / "out")


def test_what_has_no_counterpart_is_not_fetched(tmp_path):
    with pytest.raises(ValueError, match=r"vit_base_patch16_clip_224: has no counterpart here, .* before the blocks"):
        convert_timm_vit("vit_base_patch16_clip_224", tmp_path / "out")


def test_a_name_without_weights_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights.*check the name and the connection"):
        convert_timm_vit(f"local-dir:{tmp_path}/nowhere", tmp_path / "out")


def random_encoder(**overrides) -> A2MAEModel:
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 61}
    settings |= {"patch_size": 4, "initializer_range": 0.2, "layer_norm_eps": 1e-5}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = A2MAEModel(A2MAEConfig(**{**settings, **overrides})).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


@pytest.mark.parametrize("pooling", ["class", "mean", "mean_std"])
def test_back_in_timm_the_encoder_returns_the_same(pooling):
    """For images whose ground resolution and bands are those it was told."""
    model, names = random_encoder(pooling=pooling), ["B8A", "B03", "B12", "B02"]
    sensor = get_sensor("sentinel-2-l2a")
    stored = np.random.default_rng(2).integers(300, 4000, (2, 4, 12, 20), dtype=np.uint16)
    images = [[{"pixels": pixels, "sensor": sensor.name, "bands": names, "gsd": 20.0}] for pixels in stored]
    batch = A2MAEImageProcessor(patch_size=4)(images, return_tensors="pt")
    bands = [sensor.find(name) for name in names]
    pixels = np.stack([(stored[:, c] * sensor.scale - band.mean) / band.std for c, band in enumerate(bands)], axis=1)
    vit = to_timm(model, bands, image_size=(12, 20), ground_resolution=20.0)
    with torch.inference_mode():
        expected, image = model(**batch), torch.from_numpy(pixels).float()
        torch.testing.assert_close(vit.forward_features(image), expected.last_hidden_state, atol=1e-4, rtol=0)
        torch.testing.assert_close(vit(image), expected.pooler_output[:, :32], atol=1e-4, rtol=0)


def test_back_in_timm_positions_matter():
    model, bands = random_encoder(), rgb_sensor().bands
    near, far = (to_timm(model, bands, image_size=16, ground_resolution=metres).pos_embed for metres in (1.0, 10.0))
    assert not torch.allclose(near, far)
    assert not near[:, 0].any()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_timm_to_ours_to_timm_is_the_model_without_its_position(photograph, approximate):
    model = random_timm(num_classes=0, act_layer=partial(torch.nn.GELU, approximate=approximate))
    back = to_timm(from_timm(model), rgb_sensor().bands, image_size=32, ground_resolution=0)
    without_position(model)
    with torch.inference_mode():
        image = standardised(photograph)
        torch.testing.assert_close(back(image), model(image), atol=2e-5, rtol=0)


@pytest.mark.parametrize("model_class", [A2MAEModel, A2MAEForPreTraining])
def test_any_model_with_the_encoder_and_bands_as_they_are(model_class):
    model = random_encoder(spectral_projection="identity", num_channels=2)
    if model_class is A2MAEForPreTraining:
        whole = A2MAEForPreTraining(model.config).eval()
        whole.a2mae.load_state_dict(model.state_dict())
    else:
        whole = model
    bands = get_sensor("naip").bands[:2]
    pixels = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    patches = pixels.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5).reshape(1, 4, 2, 16)
    wavelengths = torch.tensor([[[band.wavelength for band in bands]]])
    widths = torch.tensor([[[band.width for band in bands]]])
    with torch.inference_mode():
        expected = model(patches, band_wavelengths=wavelengths, band_widths=widths).last_hidden_state
        vit = to_timm(whole, bands, image_size=8, ground_resolution=0)
        torch.testing.assert_close(vit.forward_features(pixels), expected, atol=1e-4, rtol=0)


def test_what_timm_cannot_hold_is_refused():
    model, bands = random_encoder(), rgb_sensor().bands
    with pytest.raises(ValueError, match="multiples of the patch size, 4"):
        to_timm(model, bands, image_size=(16, 18), ground_resolution=1.0)
    with pytest.raises(ValueError, match="metres per pixel"):
        to_timm(model, bands, image_size=16, ground_resolution=-1.0)
    with pytest.raises(ValueError, match="bands has 0 bands, the encoder takes at least one"):
        to_timm(model, [], image_size=16, ground_resolution=1.0)
    identity = random_encoder(spectral_projection="identity", num_channels=2)
    with pytest.raises(ValueError, match="bands has 3 bands, the encoder takes 2"):
        to_timm(identity, bands, image_size=16, ground_resolution=1.0)
    with pytest.raises(ValueError, match="hidden_act='gelu', not 'relu'"):
        to_timm(random_encoder(hidden_act="relu"), bands, image_size=16, ground_resolution=1.0)
    with pytest.raises(ValueError, match="no A2-MAE encoder"):
        to_timm(torch.nn.Linear(1, 1), bands, image_size=16, ground_resolution=1.0)
