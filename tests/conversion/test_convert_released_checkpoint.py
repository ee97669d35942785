"""A checkpoint of the released code, converted, computes what that code computes; a hostile one does nothing."""

import argparse
import json
import math
import os
import pickle
import zlib

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from a2mae_hub.cli import app
from a2mae_hub.conversion.convert_released_checkpoint import convert_released_checkpoint
from a2mae_hub.modeling import modeling_a2mae, tasks_a2mae
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining, A2MAEModel

TOLERANCE = 1e-4
FILES = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
ARGUMENTS = argparse.Namespace(model="mae_vit_large_patch16_anchoraware", norm_pix_loss=True, mask_ratio=0.6, blr=1e-3)


def fraction(values):
    return values - np.floor(values)


def weight_of_fixture(name: str, shape: list[int]) -> torch.Tensor:
    """README of the fixture, "Weights"."""
    h = np.sin(12.9898 * np.arange(1, math.prod(shape) + 1) + zlib.crc32(name.encode()) % 1000) * 43758.5453
    values = 2 * fraction(h) - 1
    values = 1 + 0.1 * values if "norm" in name and name.endswith("weight") else 0.05 * values
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def batch_of_fixture() -> dict[str, torch.Tensor]:
    """README of the fixture, "Inputs": 2 sets of 3 images of 3 bands, 14 × 14 patches of 16 × 16 pixels."""
    place = np.arange(1, 2 * 3 * 3 * 224 * 224 + 1)
    images = fraction(np.sin(78.233 * place + 7) * 12345.678).astype(np.float32).reshape(2, 3, 3, 14, 16, 14, 16)
    patches = images.transpose(0, 1, 3, 5, 2, 4, 6).reshape(2, 3 * 196, 3, 256)
    w = np.sin(3.7 * np.arange(1, 257)[None] + 7 + np.arange(2)[:, None]) * 999.9
    bits = (fraction(w) > 0.5).reshape(2, 8, 32)
    return {
        "pixel_values": torch.from_numpy(patches),
        "image_ids": torch.arange(3).repeat_interleave(196).expand(2, -1),
        "ground_resolutions": torch.tensor([[10.0, 10.0, 30.0], [2.0, 10.0, 10.0]]),
        "geographic_codes": torch.tensor(
            [[int("".join("01"[b] for b in code), 2) for code in one] for one in bits * 1]
        ),
        "grid_shapes": torch.full((2, 3, 2), 14),
    }


@pytest.fixture(scope="module")
def reference(shared, tmp_path_factory):
    """The fixture's checkpoint as the released code saves it, converted, and what its network returned."""
    folder, fixture = tmp_path_factory.mktemp("released"), shared / "fixtures" / "official_release"
    shapes = json.loads((fixture / "state_dict_shapes.json").read_text())
    state = {f"module.{name}": weight_of_fixture(name, shape) for name, shape in shapes.items()}
    content = {"model": state, "optimizer": {"state": {}}, "epoch": 99, "scaler": {}, "args": ARGUMENTS}
    torch.save(content, folder / "checkpoint-99.pth")
    del state, content
    result = CliRunner().invoke(
        app, ["convert", "released", str(folder / "checkpoint-99.pth"), "-o", str(folder / "out")]
    )
    assert result.exit_code == 0, result.output
    (folder / "checkpoint-99.pth").unlink()
    return folder / "out", np.load(fixture / "expected.npz")


def test_the_converted_encoder_returns_what_the_release_returns(reference):
    folder, expected = reference
    model, report = A2MAEModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    with torch.inference_mode():
        latent = model(**batch_of_fixture()).last_hidden_state.numpy()
    np.testing.assert_allclose(latent[:, 0], expected["latent_cls"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(latent[:, 1::97], expected["latent_tokens"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(latent.mean(1), expected["latent_mean"], atol=TOLERANCE, rtol=0)


def test_the_converted_decoder_returns_what_the_release_returns(reference):
    folder, expected = reference
    model, report = A2MAEForPreTraining.from_pretrained(folder, mask_ratio=0.0, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.inference_mode():
        outputs = model(**batch_of_fixture())
    logits = outputs.logits[:, ::97].transpose(2, 3).flatten(2).numpy()
    np.testing.assert_allclose(logits, expected["prediction_tokens"], atol=TOLERANCE, rtol=0)
    assert outputs.loss.item() == pytest.approx(expected["loss"].item(), abs=TOLERANCE)


def test_every_dimension_follows_from_the_weights(reference):
    config = json.loads((reference[0] / "config.json").read_text())
    wanted = {
        "architectures": ["A2MAEForPreTraining"],
        "hidden_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "patch_size": 16,
        "num_channels": 3,
        "decoder_hidden_size": 512,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 2048,
        "coordinate_layout": "released",
        "normalize_targets": True,
        "mask_ratio": 0.6,
    }
    assert {key: config[key] for key in wanted} == wanted


# Smaller than any released network, of the same form: width 448 = 256 + 3 · 64, two and one layers, patches of 2 × 2
# pixels of 5 bands.
WIDTH, DECODER_WIDTH, PATCH, BANDS = 448, 32, 2, 5


def small_state() -> dict[str, torch.Tensor]:
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 10, WIDTH - 256),
        "patch_embed.proj.weight": (WIDTH, BANDS, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "mask_token": (1, 1, DECODER_WIDTH),
        "decoder_pos_embed": (1, 10, DECODER_WIDTH),
        "decoder_embed.weight": (DECODER_WIDTH, WIDTH),
        "decoder_embed.bias": (DECODER_WIDTH,),
        "decoder_pred.weight": (PATCH**2 * BANDS, DECODER_WIDTH),
        "decoder_pred.bias": (PATCH**2 * BANDS,),
    }
    for stack, layers, width, norm in (
        ("blocks", 2, WIDTH, "norm"),
        ("decoder_blocks", 1, DECODER_WIDTH, "decoder_norm"),
    ):
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linears |= {"mlp.fc1": (48, width), "mlp.fc2": (width, 48)}
        for layer in range(layers):
            for name, shape in linears.items():
                shapes[f"{stack}.{layer}.{name}.weight"] = shape
                shapes[f"{stack}.{layer}.{name}.bias"] = shape[:1]
            for name in ("norm1", "norm2"):
                shapes |= {f"{stack}.{layer}.{name}.{kind}": (width,) for kind in ("weight", "bias")}
        shapes |= {f"{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def state():
    return small_state()


@pytest.fixture(scope="module")
def bare(state, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare")
    torch.save(state, folder / "bare.pth")
    convert_released_checkpoint(folder / "bare.pth", folder / "out")
    return folder / "out"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_and_formats_change_nothing(state, bare, prefix, zipped, tmp_path):
    content = {"model": {prefix + name: value for name, value in state.items()}, "epoch": 3}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    config = convert_released_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    assert (config.num_channels, config.patch_size, config.num_attention_heads) == (BANDS, PATCH, 7)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
    assert (tmp_path / "out/model.safetensors").read_bytes() == (bare / "model.safetensors").read_bytes()


def test_half_precision_is_converted_to_float32(state, bare, tmp_path):
    torch.save({name: value.bfloat16() for name, value in state.items()}, tmp_path / "a.pth")
    convert_released_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    ours, exact = load_file(tmp_path / "out/model.safetensors"), load_file(bare / "model.safetensors")
    for name, value in ours.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, exact[name], rtol=2**-8, atol=0)


def test_the_processor_standardises_as_the_released_code(bare):
    processor = A2MAEImageProcessor.from_pretrained(bare)
    assert processor.patch_size == PATCH
    sensors = {sensor.name: sensor for sensor in processor.sensors}
    red = sensors["sentinel-2-l2a"].find("red")
    assert (red.mean, red.std) == (0.0751, 0.0236)
    nir = sensors["landsat-8-sr"].find("nir08")
    assert (nir.mean, nir.std) == (0.2104, 0.0612)
    assert sensors["gaofen-2"].find("blue").mean == 78.68


def test_what_the_training_was_told_is_taken_over(state, tmp_path):
    content = {"model": state, "optimizer": {}, "epoch": 1, "scaler": {}, "args": ARGUMENTS}
    torch.save(content, tmp_path / "a.pth")
    config = convert_released_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    assert (config.mask_ratio, config.normalize_targets) == (0.6, True)


MODELS = [
    getattr(module, name)
    for module in (modeling_a2mae, tasks_a2mae)
    for name in module.__all__
    if name != "A2MAEPreTrainedModel"
]


@pytest.mark.parametrize("one_class", MODELS, ids=lambda one_class: one_class.__name__)
def test_the_encoder_serves_every_model(state, bare, one_class):
    """Heads start anew; every weight below them is that of the file."""
    model, report = one_class.from_pretrained(bare, output_loading_info=True)
    assert not report["mismatched_keys"]
    encoder = model.base_model if one_class is not A2MAEModel else model
    prefix = "" if encoder is model else f"{model.base_model_prefix}."
    own = {prefix + key for key in encoder.state_dict()}
    assert not own & set(report["missing_keys"])
    blocks = dict(encoder.named_parameters())
    key = next(key for key in blocks if key.endswith("layers.1.mlp.fc1.weight"))
    assert torch.equal(blocks[key], state["blocks.1.mlp.fc1.weight"])


def test_the_card_names_a_licence_only_where_one_was_told(state, bare, tmp_path):
    text = (bare / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "unknown"
    assert "licence of the weights is not known" in text and "{" not in text
    torch.save(state, tmp_path / "a.pth")
    arguments = [
        "convert",
        "released",
        str(tmp_path / "a.pth"),
        "-o",
        str(tmp_path / "out"),
        "--licence",
        "CC-BY-NC-4.0",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "cc-by-nc-4.0"
    assert "The weights are under CC-BY-NC-4.0." in text


def test_missing_and_unexpected_weights_are_all_listed(state, tmp_path):
    broken = {name: value for name, value in state.items() if not name.startswith("decoder_blocks.0.attn")}
    del broken["blocks.1.mlp.fc2.bias"]
    torch.save({**broken, "head.weight": torch.zeros(2), "rope": torch.zeros(2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: is not the network of the released code") as error:
        convert_released_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    missing = ["blocks.1.mlp.fc2.bias"]
    missing += [f"decoder_blocks.0.attn.{name}.{kind}" for name in ("proj", "qkv") for kind in ("bias", "weight")]
    assert f"it lacks {', '.join(missing)} and has also head.weight, rope;" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_weights_of_two_networks_are_named_with_their_shapes(state, tmp_path):
    torch.save({**state, "norm.bias": torch.zeros(449), "decoder_pred.bias": torch.zeros(7)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"the shapes of norm\.bias \(449,\), decoder_pred\.bias \(7,\) do not go"):
        convert_released_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    torch.save({**state, "cls_token": "none"}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match="cls_token has not the form of a weight"):
        convert_released_checkpoint(tmp_path / "b.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Hostile:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("place", ["model", "args", "optimizer"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_a_hostile_pickle_is_refused_and_executes_nothing(place, form, tmp_path):
    attack, marker = Hostile(f"touch {tmp_path}/owned"), tmp_path / "owned"
    content = {"model": {"cls_token": torch.zeros(1)}, "args": argparse.Namespace(), place: {"state": attack}}
    if place == "args":
        content["args"] = argparse.Namespace(callback=attack)
    source = tmp_path / "hostile.pth"
    if form.startswith("pickle"):
        source.write_bytes(pickle.dumps(content, protocol=int(form[-1])))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"hostile\.pth: refused, because .*, and nothing was executed") as error:
        convert_released_checkpoint(source, tmp_path / "out")
    if form in ("zip", "legacy"):
        assert "it asks for posix.system" in str(error.value)
    assert "\n" not in str(error.value)
    assert not marker.exists() and not (tmp_path / "out").exists()
    with open(source, "rb") as file:  # the attack is one: what loads it without a check is hit
        torch.load(file, weights_only=False) if form in ("zip", "legacy") else pickle.load(file)
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read"),
        (b"no checkpoint at all", "refused"),
        (b"hello", r"cannot be read as a PyTorch checkpoint \(it is no pickle\)"),
        ([1, 2], "holds a list, not weights"),
        ({}, "holds a dict, not weights"),
        ({"a": torch.zeros(1), "module.a": torch.zeros(1)}, "holds a twice"),
    ],
)
def test_what_is_no_checkpoint_is_one_sentence(content, reason, tmp_path):
    source = tmp_path / "a.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        torch.save(content, source)
    with pytest.raises(ValueError, match=rf"a\.pth: {reason}") as error:
        convert_released_checkpoint(source, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_checkpoint_cut_short_is_one_sentence(state, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.pth: cannot be read as a PyTorch checkpoint"):
        convert_released_checkpoint(tmp_path / "a.pth", tmp_path / "out")


def test_nothing_is_overwritten_and_nothing_is_left_half_written(state, tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert_released_checkpoint(tmp_path / "none.pth", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="is a folder; name the"):
        convert_released_checkpoint(tmp_path, tmp_path / "out")
    torch.save(state, tmp_path / "a.pth")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="full: is already there"):
        convert_released_checkpoint(tmp_path / "a.pth", tmp_path / "full")

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(A2MAEImageProcessor, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        convert_released_checkpoint(tmp_path / "a.pth", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth", "full"]
    assert (tmp_path / "full/notes.txt").read_text() == "mine"


def test_the_command_says_what_it_wrote(state, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    (tmp_path / "out").mkdir()
    result = CliRunner().invoke(app, ["convert", "released", str(tmp_path / "a.pth"), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "encoder of 2 layers of width 448, decoder of 1 of 32, 3 images of 5 bands" in result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES
