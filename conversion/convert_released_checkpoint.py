"""Checkpoints of the authors' release (github.com/ZhaoYi1222/AAMAE, July 2024), from a pickle to safetensors.

Their network is `A2MAEConfig.released()`: three images of three bands, coordinates that are computed, not learned. The
file is a pickle, which can run any code where it is loaded: only tensors, plain containers and the `argparse.Namespace`
of the training arguments are let in, whatever else it asks for is refused before it is called.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining
from a2mae_hub.modeling.sensors_a2mae import SENSORS, Sensor

from .checkpoint_folder import check_output_folder, write_checkpoint
from .vit_names import names_of_layer

# Learned positions that the released code stores and, with geography and scale on, never reads.
UNUSED = frozenset({"pos_embed", "decoder_pos_embed"})
NAMES = {
    "cls_token": "a2mae.cls_token",
    "patch_embed.proj.weight": "a2mae.patch_embedding.projection.weight",
    "patch_embed.proj.bias": "a2mae.patch_embedding.projection.bias",
    "norm.weight": "a2mae.layernorm.weight",
    "norm.bias": "a2mae.layernorm.bias",
    "mask_token": "decoder.mask_token",
    "decoder_embed.weight": "decoder.embed.weight",
    "decoder_embed.bias": "decoder.embed.bias",
    "decoder_norm.weight": "decoder.layernorm.weight",
    "decoder_norm.bias": "decoder.layernorm.bias",
    "decoder_pred.weight": "decoder.patch_prediction.projection.weight",
    "decoder_pred.bias": "decoder.patch_prediction.projection.bias",
}
STACKS = {"blocks": "a2mae.layers", "decoder_blocks": "decoder.layers"}

# The number of heads leaves no trace in the weights. As in MAE (He et al. 2022), from which the release grew: 64 wide
# in the encoder but for ViT-H, 16 of them in the decoder.
HEAD_WIDTH = 64
HEADS_OF_WIDTH = {1280: 16}
DECODER_HEADS = 16

# Mean and standard deviation that the released code standardises its "grid" image sets with, in reflectance.
RELEASED_STATISTICS = {
    "sentinel-2-l2a": {
        "B02": (0.0782, 0.0214),
        "B03": (0.0852, 0.0217),
        "B04": (0.0751, 0.0236),
        "B08": (0.2092, 0.0348),
        "B11": (0.1516, 0.0294),
        "B12": (0.0982, 0.0251),
    },
    "landsat-8-sr": {
        "B1": (0.0229, 0.0263),
        "B2": (0.0277, 0.0267),
        "B3": (0.0488, 0.0277),
        "B4": (0.0411, 0.0305),
        "B5": (0.2104, 0.0612),
        "B6": (0.1276, 0.0452),
        "B7": (0.0701, 0.0326),
    },
}

CARD = """\
# A2-MAE, converted from the released code

`a2mae convert released` made this folder from `{name}`, a checkpoint of the released A2-MAE code
(github.com/ZhaoYi1222/AAMAE). The weights are those of that file, under other names; on equal input the network returns
what the released one returns, to within 1e-4.

It takes image sets of exactly {config.released_num_images} images of {config.num_channels} bands each, in patches of
{config.patch_size} × {config.patch_size} pixels, and standardises grid image sets of Sentinel-2 and Landsat-8 and
Gaofen images with the statistics of the released code. The number of attention heads, of which the file holds no trace,
is that of MAE: {config.num_attention_heads} in the encoder and {config.decoder_num_attention_heads} in the decoder.
What the network was trained on says whoever trained it.

```python
from a2mae_hub import A2MAEForPreTraining, A2MAEImageProcessor

model = A2MAEForPreTraining.from_pretrained("path/to/this/folder")
processor = A2MAEImageProcessor.from_pretrained("path/to/this/folder")
```
"""


def convert_released_checkpoint(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, licence: str | None = None
) -> A2MAEConfig:
    """Convert a checkpoint of the released code into a folder for `from_pretrained`.

    Args:
        source: The `.pth`: `{"model", "optimizer", "epoch", "scaler", "args"}`, or the state dict alone; names may
            carry the prefixes of data-parallel (`module.`) and compiled (`_orig_mod.`) models.
        output: Folder that is not there, or empty. It gets config.json, model.safetensors (float32),
            preprocessor_config.json and README.md, all or none.
        licence: Of the weights, for the card: an SPDX identifier, or another name. None says that it is not known: the
            code of the release is under MIT, but the authors published no weights and the file names no terms.

    Returns:
        The configuration, every dimension read off the weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no such checkpoint: damaged, asking for code, or with weights missing, left over or
            of a shape that does not fit, all of which are listed. If something stands at the output already.
    """
    source, output = Path(source), check_output_folder(output)
    state, arguments = read_released_checkpoint(source)
    config = released_config(state, arguments, str(source))
    with torch.device("meta"):  # no time for initial weights
        model = A2MAEForPreTraining(config)
    weights = our_state_dict(state, config)
    wanted = model.state_dict()
    misfits = [
        f"{theirs} {tuple(state[theirs].shape)}"
        for theirs, ours in released_names(state).items()
        if any(weights[key].shape != wanted[key].shape for key in ours)
    ]
    if misfits:
        raise ValueError(
            f"{source}: the shapes of {', '.join(misfits)} do not go with those of the other weights; the file mixes"
            " two networks: save the checkpoint again."
        )
    model.load_state_dict(weights, assign=True)
    card = CARD.format(name=source.name, config=config)
    processor = A2MAEImageProcessor(patch_size=config.patch_size, sensors=released_sensors())
    write_checkpoint(output, model.eval(), processor, card, licence)
    return config


def read_released_checkpoint(source: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the weights of a checkpoint of the released code; no code of the file is run.

    Args:
        source: The `.pth`.

    Returns:
        The state dict without the prefixes of wrappers, and the training arguments, empty where the file has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as tensors and plain data, or holds no state dict.
    """
    if not os.path.isfile(source):
        what = "is a folder" if os.path.isdir(source) else "no such file"
        raise FileNotFoundError(f"{source}: {what}; name the .pth of the released code.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # The optimizer's state is twice the weights: mapped, it is never read from the disk.
            content = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        # What torch says is long, and ends in advice to load the file without a check.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it asks for {asked[1]}, which is no plain data" if asked else "it is no pickle of tensors and plain data"
        )
        raise ValueError(
            f"{source}: refused, because {reason}, and nothing was executed; if you trust the file, load it elsewhere,"
            " save its state dict alone with torch.save, and convert that."
        ) from None
    except (RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        # Of text, the unpickler knows no more than the number of a letter.
        told = "" if isinstance(error, LookupError) else str(error).strip()
        first_line = (told or "it is no pickle").splitlines()[0].rstrip(".")
        raise ValueError(
            f"{source}: cannot be read as a PyTorch checkpoint ({first_line}); save or download the file again."
        ) from error
    arguments: dict[str, Any] = {}
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        if isinstance(content.get("args"), argparse.Namespace):
            arguments = dict(vars(content["args"]))
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"{source}: holds a {type(content).__name__}, not weights; the file must hold a state dict, alone or under"
            ' the key "model".'
        )
    state: dict[str, torch.Tensor] = {}
    for key, value in content.items():
        name = re.sub(r"^((module|_orig_mod)\.)+", "", str(key))
        if name in state:
            raise ValueError(f"{source}: holds {name} twice, with and without a prefix; save one of the two alone.")
        state[name] = value
    return state, arguments


def released_config(
    state: Mapping[str, torch.Tensor], arguments: Mapping[str, Any] | None = None, name: str = "checkpoint"
) -> A2MAEConfig:
    """Infer the configuration of a released network from its weights.

    Args:
        state: The state dict in the names of the release.
        arguments: The training arguments, of which `mask_ratio` and `norm_pix_loss` are taken.
        name: What messages call the checkpoint.

    Returns:
        The configuration.

    Raises:
        ValueError: If weights are missing or left over, all of which are listed, or give no network.
    """
    expected = released_names(state).keys()
    missing, unexpected = sorted(expected - state.keys()), sorted(state.keys() - expected - UNUSED)
    if missing or unexpected:
        faults = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has also {', '.join(unexpected)}"] * bool(
            unexpected
        )
        raise ValueError(
            f"{name}: is not the network of the released code, because it {' and '.join(faults)}; name a checkpoint of"
            " mae_vit_*_anchoraware."
        )
    no_weights = sorted(key for key in expected if not isinstance(state[key], torch.Tensor) or not state[key].dim())
    if no_weights or state["patch_embed.proj.weight"].dim() != 4:
        named = ", ".join(no_weights or ["patch_embed.proj.weight"])
        raise ValueError(f"{name}: {named} has not the form of a weight; the file is damaged: save it again.")
    width, num_channels, patch_size, _ = state["patch_embed.proj.weight"].shape
    heads, remainder = divmod(width, HEAD_WIDTH)
    if width not in HEADS_OF_WIDTH and remainder:
        raise ValueError(
            f"{name}: has a width of {width}, for which the number of attention heads is not known; widths of the"
            f" released code are multiples of {HEAD_WIDTH}."
        )
    settings = {key: arguments[key] for key in ("mask_ratio", "norm_pix_loss") if arguments and key in arguments}
    if "norm_pix_loss" in settings:
        settings["normalize_targets"] = bool(settings.pop("norm_pix_loss"))
    try:
        return A2MAEConfig.released(
            hidden_size=width,
            num_hidden_layers=_count_layers(state, "blocks"),
            num_attention_heads=HEADS_OF_WIDTH.get(width, heads),
            intermediate_size=len(state["blocks.0.mlp.fc1.weight"]),
            patch_size=patch_size,
            num_channels=num_channels,
            decoder_hidden_size=len(state["decoder_embed.weight"]),
            decoder_num_hidden_layers=_count_layers(state, "decoder_blocks"),
            decoder_num_attention_heads=DECODER_HEADS,
            decoder_intermediate_size=len(state["decoder_blocks.0.mlp.fc1.weight"]),
            **settings,
        )
    except StrictDataclassError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{name}: its weights or arguments give no network of the released code: {reason}") from error


def released_names(state: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return which of our weights each weight of a released network becomes, for as many layers as the state dict has.

    A network has one layer of each stack at least, so that what is missing has a name.
    """
    names: dict[str, tuple[str, ...]] = {theirs: (ours,) for theirs, ours in NAMES.items()}
    for theirs, ours in STACKS.items():
        for layer in range(max(1, _count_layers(state, theirs))):
            names |= names_of_layer(f"{theirs}.{layer}", f"{ours}.{layer}")
    return names


def our_state_dict(state: Mapping[str, torch.Tensor], config: A2MAEConfig) -> dict[str, torch.Tensor]:
    """Rename and reorder the weights of a released network for `A2MAEForPreTraining`.

    Args:
        state: The state dict in the names of the release, complete.
        config: Its configuration.

    Returns:
        Our state dict, float32, sharing no memory with theirs.
    """
    ours: dict[str, torch.Tensor] = {}
    for name, targets in released_names(state).items():
        value = state[name].detach()
        if name == "patch_embed.proj.weight":
            value = value.flatten(1)
        elif name.startswith("decoder_pred.") and len(value) == config.patch_size**2 * config.num_channels:
            # (row, column, band) there, (band, row, column) here
            value = value.unflatten(0, (-1, config.num_channels)).transpose(0, 1).flatten(0, 1)
        for target, part in zip(targets, value.tensor_split(len(targets)), strict=True):
            ours[target] = part.to(torch.float32).clone(memory_format=torch.contiguous_format)
    return ours


def released_sensors() -> list[Sensor]:
    """Return the registered sensors with the statistics that the released code standardises with, where it has them.

    Those of Gaofen-1 and Gaofen-2 are in the registry already.
    """
    sensors = []
    for sensor in SENSORS.values():
        if sensor.name in RELEASED_STATISTICS:
            statistics = RELEASED_STATISTICS[sensor.name]
            bands = [
                replace(band, mean=statistics[band.name][0], std=statistics[band.name][1])
                if band.name in statistics
                else band
                for band in sensor.bands
            ]
            told = f"{sensor.source} Here those of {', '.join(statistics)}: grid sets of the released A2-MAE code."
            sensor = replace(sensor, bands=tuple(bands), source=told)
        sensors.append(sensor)
    return sensors


def _count_layers(state: Mapping[str, Any], stack: str) -> int:
    """Return how many layers of a stack the state dict holds weights of."""
    return len({name.split(".")[1] for name in state if re.match(rf"{stack}\.\d+\.", name)})


__all__ = ["convert_released_checkpoint", "our_state_dict", "released_config"]
