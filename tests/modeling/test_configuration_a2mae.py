"""The configuration: sizes of the presets, what is refused, and what survives a save."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining, A2MAEModel

MILLION = 1e6


def count_parameters(model_class, config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


@pytest.mark.parametrize(
    ("preset", "model_class", "at_least", "at_most"),
    [
        (A2MAEConfig.nano, A2MAEForPreTraining, 1.0, 2.0),
        (A2MAEConfig.tiny, A2MAEModel, 5.5, 6.5),  # ViT-Ti has 5.7 M (arXiv 2012.12877, table 1)
        (A2MAEConfig.base, A2MAEModel, 85, 92),  # ViT-B 86 M (arXiv 2010.11929, table 1)
        (A2MAEConfig.large, A2MAEModel, 302, 312),  # ViT-L 307 M (same)
        (A2MAEConfig.released, A2MAEModel, 302, 312),
    ],
)
def test_presets_have_the_size_that_their_name_says(preset, model_class, at_least, at_most):
    assert at_least * MILLION < count_parameters(model_class, preset()) < at_most * MILLION


def test_nano_fits_the_wheel():
    """Eight megabytes of float32 (architecture, "Checkpoints")."""
    assert 4 * count_parameters(A2MAEForPreTraining, A2MAEConfig.nano()) < 8 * MILLION


def test_the_released_network_is_that_of_its_code():
    """Facts of github.com/ZhaoYi1222/AAMAE, read from its code."""
    config = A2MAEConfig.released()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (1024, 24, 16)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (512, 8)
    assert (config.patch_size, config.num_channels, config.layer_norm_eps, config.mask_ratio) == (16, 3, 1e-6, 0.75)


@pytest.mark.parametrize("preset", ["nano", "tiny", "base", "large", "released"])
def test_presets_take_overrides(preset):
    config = getattr(A2MAEConfig, preset)(mask_ratio=0.6, num_hidden_layers=3)
    assert (config.mask_ratio, config.num_hidden_layers) == (0.6, 3)


def test_the_defaults_are_base():
    assert A2MAEConfig().to_dict() == A2MAEConfig.base().to_dict()


WRONG = {
    "hidden_size=0": ({"hidden_size": 0}, "hidden_size=0 must be greater than 0"),
    "negative layers": ({"decoder_num_hidden_layers": -1}, "decoder_num_hidden_layers=-1 must be greater than 0"),
    "no patch": ({"patch_size": 0}, "patch_size=0 must be greater than 0"),
    "no basis": ({"spectral_basis_size": 0}, "spectral_basis_size=0 must be greater than 0"),
    "no days": ({"same_sensor_days": 0}, "same_sensor_days=0 must be greater than 0"),
    "negative days": ({"other_sensor_days": -2.5}, "other_sensor_days=-2.5 must be greater than 0"),
    "heads": ({"num_attention_heads": 7}, "hidden_size=768 must be a multiple of num_attention_heads=7"),
    "decoder heads": (
        {"decoder_num_attention_heads": 7},
        "decoder_hidden_size=512 must be a multiple of decoder_num_attention_heads=7",
    ),
    "all hidden": ({"mask_ratio": 1}, "mask_ratio=1 must be at least 0 and less than 1"),
    "negative mask": ({"mask_ratio": -0.1}, "mask_ratio=-0.1 must be at least 0"),
    "nothing decoded": ({"decode_ratio": 0.0}, "decode_ratio=0.0 must be greater than 0"),
    "too much decoded": ({"decode_ratio": 1.5}, "decode_ratio=1.5 must be greater than 0 and at most 1"),
    "dropout": ({"metadata_dropout": 1.1}, "metadata_dropout=1.1 must be a probability"),
    "less than no bits": ({"geographic_level": -1}, "geographic_level=-1 must be a number of bits"),
    "too many bits": ({"geographic_level": 33}, "geographic_level=33 must be a number of bits"),
    "released width": (
        {"coordinate_layout": "released", "hidden_size": 192, "num_attention_heads": 3},
        "needs hidden_size − 256 to be a positive multiple of 4 × released_num_images=3, not hidden_size=192",
    ),
    "released images": (
        {"coordinate_layout": "released", "hidden_size": 1024, "num_attention_heads": 16, "released_num_images": 5},
        "4 × released_num_images=5, not hidden_size=1024",
    ),
    "released decoder": (
        {
            "coordinate_layout": "released",
            "hidden_size": 1024,
            "num_attention_heads": 16,
            "decoder_hidden_size": 510,
            "decoder_num_attention_heads": 2,
        },
        "needs a multiple of 4 for decoder_hidden_size=510",
    ),
}


@pytest.mark.parametrize(("arguments", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_numbers_that_do_not_fit_are_refused_by_name(arguments, sentence):
    # huggingface_hub puts our ValueError, sentence and all, into an error of its own.
    with pytest.raises(StrictDataclassClassValidationError, match=re.escape(sentence)) as refusal:
        A2MAEConfig(**arguments)
    assert isinstance(refusal.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("masking_strategy", "tubes"),
        ("spectral_projection", "linear"),
        ("coordinate_layout", "learned"),
        ("decoder_attention", "both"),
        ("pooling", "max"),
        ("feature_fusion", "date"),
        ("hidden_size", "768"),
        ("mask_ratio", "most"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        A2MAEConfig(**{field: value})


CHANGED = {
    "patch_size": 8,
    "mask_ratio": 0.6,
    "masking_strategy": "tube",
    "same_sensor_days": 5,
    "decoder_attention": "self",
    "pooling": "mean_std",
    "feature_fusion": "image",
    "out_indices": [1, 3],
}


def test_every_field_survives_a_save(tmp_path):
    config = A2MAEConfig.nano(**CHANGED)
    config.save_pretrained(tmp_path)
    again = A2MAEConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    for field, value in CHANGED.items():
        assert getattr(again, field) == value
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "a2mae"
    assert {**stored, **CHANGED} == stored


def test_out_indices_and_out_features_name_the_same_stages():
    by_index = A2MAEConfig.nano(out_indices=[0, 2])
    by_name = A2MAEConfig.nano(out_features=["stem", "stage2"])
    assert by_index.out_features == by_name.out_features == ["stem", "stage2"]
    assert list(by_index.out_indices) == list(by_name.out_indices) == [0, 2]
    assert A2MAEConfig.nano().out_features == ["stage5"]


def test_a_stage_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="stage9"):
        A2MAEConfig.nano(out_features=["stage9"])
