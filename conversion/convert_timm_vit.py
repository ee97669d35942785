"""Vision transformers of timm, into the encoder and back.

Into the encoder (`convert_timm_vit`). Kept exactly: the blocks, the class token (where there is none, one that is zero
is added), the last normalisation, and what the patch embedding makes of an RGB image. Not kept: the classifier or
pooling head, and the position embedding of the patches. It is a table for one grid of pixels, while coordinates here
are metres on the ground; the projections of our coordinates start at zero, so that they add nothing until they are
trained.

The patch embedding mixes the C bands of an image into K virtual bands, virtual_k = Σ_c M[c, k] · band_c / C with
weights M that follow from wavelength and width, and projects these with kernels W_k. A band is thus embedded with the
kernel Σ_k M[c, k] · W_k / C. For the bands of `rgb_sensor` these shall be the kernels of timm, which
W = C · pinv(M) · kernels solves exactly, as three bands of different wavelength have independent weights and K is
greater than three. Other bands start from the same W at their own wavelengths.

timm standardises RGB between 0 and 1 with a mean and a standard deviation for each channel. That is a fact about the
input and not about the weights, so it is kept as the sensor "rgb-8bit" of the saved processor.

Back (`to_timm`), for bands, image size and ground resolution that are fixed once and for all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.masking_a2mae import UNKNOWN_TIME
from a2mae_hub.modeling.modeling_a2mae import A2MAEModel, A2MAEPreTrainedModel
from a2mae_hub.modeling.sensors_a2mae import SENSORS, Band, Sensor

from .checkpoint_folder import check_output_folder, write_checkpoint
from .vit_names import names_of_layer

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

# The wavelengths that the sRGB primaries look like (IEC 61966-2-1), and roughly how wide a colour camera's filters are.
RGB_WAVELENGTHS = {"red": 611.0, "green": 549.0, "blue": 464.0}
RGB_WIDTH = 100.0
# Mean and standard deviation of ImageNet, where a model does not say its own.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# "map" pools by a head of its own, which is left out as the classifier is.
POOLING = {"token": "class", "": "class", "avg": "mean", "map": "mean"}

CARD = """\
# A2-MAE encoder, converted from timm

`a2mae convert timm` made this folder from `{name}` of timm. It holds an encoder that is ready for training on satellite
images, not one that was trained on them.

Kept exactly: the {layers} blocks, the class token, the last normalisation, and the embedding of the patches of RGB
images (sensor `rgb-8bit` of the processor: red, green, blue from 0 to 255). Not kept: the classifier, and the position
embedding of the patches, a table for one grid of pixels; the coordinates on the ground that take its place start at
zero and are to be trained. Bands other than red, green and blue start from the same virtual bands at their own
wavelengths.{no_class_token}

```python
from a2mae_hub import A2MAEImageProcessor, A2MAEModel

model = A2MAEModel.from_pretrained("path/to/this/folder")
processor = A2MAEImageProcessor.from_pretrained("path/to/this/folder")
batch = processor(photograph, sensor="rgb-8bit", bands=["red", "green", "blue"], return_tensors="pt")
```
"""


NO_CLASS_TOKEN = """ The model had no class token: one that starts at zero was added. The patches attend to it, so what
comes out differs from the model's until it is trained; `pooler_output` is the mean of the patches."""


def convert_timm_vit(
    model: VisionTransformer | str, output: str | os.PathLike[str], *, licence: str | None = None
) -> A2MAEConfig:
    """Convert a vision transformer of timm into a folder for `A2MAEModel.from_pretrained`.

    Args:
        model: The model, or its name in timm, whose pretrained weights timm then fetches or takes from its cache
            ("vit_base_patch16_224.mae", "hf-hub:owner/name", "local-dir:/folder").
        output: Folder that is not there, or empty. It gets config.json, model.safetensors, preprocessor_config.json
            with the sensor "rgb-8bit" besides all others, and README.md, all or none.
        licence: Of the weights, for the card: an SPDX identifier, or another name. None takes what timm knows of it.

    Returns:
        The configuration.

    Raises:
        FileNotFoundError: If no weights of that name can be fetched.
        ValueError: If there is no such model, or it has parts that the encoder cannot represent; names them. If
            something stands at the output already.
    """
    output = check_output_folder(output)
    vit = _create(model) if isinstance(model, str) else model
    settings = getattr(vit, "pretrained_cfg", None) or {}
    name = model if isinstance(model, str) else settings.get("architecture", type(model).__name__)
    encoder = from_timm(vit, name)
    sensor = rgb_sensor(settings.get("mean", IMAGENET_MEAN), settings.get("std", IMAGENET_STD))
    others = [other for other in SENSORS.values() if other.name != sensor.name]
    processor = A2MAEImageProcessor(patch_size=encoder.config.patch_size, sensors=[*others, sensor])
    card = CARD.format(
        name=name,
        layers=encoder.config.num_hidden_layers,
        no_class_token=NO_CLASS_TOKEN if vit.cls_token is None else "",
    )
    write_checkpoint(output, encoder, processor, card, licence or settings.get("license"))
    return encoder.config


def rgb_sensor(mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Sensor:
    """Return the sensor of 8-bit RGB images that are standardised as a model of timm wants them.

    Args:
        mean: Of red, green, blue, between 0 and 1.
        std: Likewise.

    Returns:
        The sensor "rgb-8bit". Its ground resolution, of which photographs have none, stands at 1 m.
    """
    bands = tuple(
        Band(name, name, wavelength, RGB_WIDTH, 1.0, 255.0 * centre, 255.0 * spread, (0.0, 255.0))
        for (name, wavelength), centre, spread in zip(RGB_WAVELENGTHS.items(), mean, std, strict=True)
    )
    return Sensor(
        name="rgb-8bit",
        bands=bands,
        unit="DN",
        source="Wavelengths: dominant wavelengths of the sRGB primaries (IEC 61966-2-1). Width: roughly that of the"
        " filters of a colour camera. Statistics: those that the converted model of timm standardises with.",
    )


def from_timm(model: VisionTransformer, name: str = "the model") -> A2MAEModel:
    """Return the encoder with the weights of a vision transformer of timm; see the module for what is kept.

    Args:
        model: The model. Layer scale is multiplied into the projections before it, and the position of the class token
            added to it, neither of which changes what the model computes.
        name: What messages call it.

    Returns:
        The encoder, in evaluation mode, float32. Its spectral weights are the same every time.

    Raises:
        ValueError: If the model has parts that the encoder cannot represent; names them.
    """
    _check_representable(model, name)
    state = {key: value.detach().float().cpu() for key, value in model.state_dict().items()}
    layers, block = range(len(model.blocks)), cast(Any, model.blocks[0])
    qkv_bias = block.attn.qkv.bias is not None
    for layer in layers:
        for scale, projection in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            gamma = state.pop(f"blocks.{layer}.{scale}", None)
            if gamma is not None:
                for kind, factor in (("weight", gamma[:, None]), ("bias", gamma)):
                    key = f"blocks.{layer}.{projection}.{kind}"
                    state[key] = factor * state[key]
    config = A2MAEConfig(
        hidden_size=model.embed_dim,
        num_hidden_layers=len(model.blocks),
        num_attention_heads=block.attn.num_heads,
        intermediate_size=block.mlp.fc1.out_features,
        hidden_act=_activation(block.mlp.act),
        patch_size=model.patch_embed.patch_size[0],
        layer_norm_eps=model.norm.eps,
        qkv_bias=qkv_bias,
        pooling=POOLING[model.global_pool],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = A2MAEModel(config).eval()

    class_token = state.get("cls_token", torch.zeros(1, 1, config.hidden_size))
    if model.cls_token is not None and model.pos_embed is not None and not model.no_embed_class:
        class_token = class_token + state["pos_embed"][:, :1]
    kernel, width = state["patch_embed.proj.weight"], config.hidden_size
    mixing = _mixing_weights(encoder, rgb_sensor().bands)
    virtual = 3 * torch.linalg.pinv(mixing) @ kernel.double().transpose(0, 1).flatten(1)
    ours = {
        "cls_token": class_token,
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
        "patch_embedding.projection.weight": virtual.unflatten(1, (width, -1)).transpose(0, 1).flatten(1).float(),
        "patch_embedding.projection.bias": state.get("patch_embed.proj.bias", torch.zeros(width)),
    }
    for layer in layers:
        for theirs, targets in names_of_layer(f"blocks.{layer}", f"layers.{layer}", qkv_bias).items():
            ours |= dict(zip(targets, state[theirs].tensor_split(len(targets)), strict=True))
    ours |= {key: torch.zeros_like(value) for key, value in encoder.state_dict().items() if "coordinates." in key}
    spectral = {key: value for key, value in encoder.state_dict().items() if "spectral_network." in key}
    encoder.load_state_dict(ours | spectral)
    return encoder


def to_timm(
    model: A2MAEPreTrainedModel,
    bands: Sequence[Band],
    *,
    image_size: int | tuple[int, int],
    ground_resolution: float,
) -> VisionTransformer:
    """Return the encoder as a vision transformer of timm, for images of fixed bands, size and ground resolution.

    The kernels of the bands are mixed, and the coordinates of the patches, with what the bands and the resolution add
    to them, become the position embedding. Time and place count as unknown.

    Args:
        model: The encoder, or a model that has it.
        bands: The bands of the images in their order, for example `[sensor.find(name) for name in ("red", "nir")]`.
        image_size: Rows and columns of the images in pixels, or one number for both; multiples of the patch size.
        ground_resolution: Metres per pixel, north up; 0 where it is unknown, which leaves the position unknown too.

    Returns:
        The model, in evaluation mode, on the CPU in float32. It takes (B, bands, rows, columns) float32, standardised
        as by the processor, every value real. `forward_features` returns our `last_hidden_state`; the call our
        `pooler_output`, or for `pooling="mean_std"` its first half, the mean.

    Raises:
        ValueError: If the model or the images cannot be represented.
    """
    from timm.models.vision_transformer import VisionTransformer

    encoder = getattr(model, "base_model", model)
    if not isinstance(encoder, A2MAEModel):
        raise ValueError(f"{type(model).__name__} has no A2-MAE encoder; pass an A2MAEModel or a model built on one.")
    config = encoder.config
    rows, columns = (image_size, image_size) if isinstance(image_size, int) else image_size
    patch_size, width = config.patch_size, config.hidden_size
    if config.coordinate_layout == "released" or config.hidden_act not in ("gelu", "gelu_pytorch_tanh"):
        raise ValueError(
            "The encoder has no counterpart in timm: it must have coordinate_layout='summed', not"
            f" {config.coordinate_layout!r}, and hidden_act='gelu', not {config.hidden_act!r}."
        )
    if rows < 1 or columns < 1 or rows % patch_size or columns % patch_size:
        raise ValueError(f"image_size={image_size} must be multiples of the patch size, {patch_size} pixels.")
    if not 0 <= ground_resolution < float("inf"):
        raise ValueError(f"ground_resolution={ground_resolution} must be metres per pixel, 0 where unknown.")
    if not bands or (config.spectral_projection == "identity" and len(bands) != config.num_channels):
        wanted = "at least one" if config.spectral_projection == "basis" else config.num_channels
        raise ValueError(f"bands has {len(bands)} bands, the encoder takes {wanted}; name the bands of the images.")

    vit = VisionTransformer(
        img_size=(rows, columns),
        patch_size=patch_size,
        in_chans=len(bands),
        num_classes=0,
        global_pool="token" if config.pooling == "class" else "avg",
        embed_dim=width,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=(config.intermediate_size + 0.5) / width,  # timm rounds the product down
        qkv_bias=config.qkv_bias,
        fc_norm=False,
        norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
        act_layer=partial(nn.GELU, approximate="none" if config.hidden_act == "gelu" else "tanh"),
    )
    state = {key: value.detach().float().cpu() for key, value in encoder.state_dict().items()}
    kernel = state["patch_embedding.projection.weight"].unflatten(1, (-1, patch_size**2))
    if config.spectral_projection == "basis":
        mixing = _mixing_weights(encoder, bands) / len(bands)
        kernel = (mixing @ kernel.double()).float()
    theirs = {
        "cls_token": state["cls_token"],
        "pos_embed": _position_embedding(encoder, bands, rows, columns, ground_resolution),
        "patch_embed.proj.weight": kernel.unflatten(2, (patch_size, patch_size)),
        "patch_embed.proj.bias": state["patch_embedding.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for layer in range(config.num_hidden_layers):
        for name, ours in names_of_layer(f"blocks.{layer}", f"layers.{layer}", config.qkv_bias).items():
            theirs[name] = torch.cat([state[key] for key in ours])
    vit.load_state_dict(theirs)
    return vit.eval()


@torch.no_grad()
def _position_embedding(
    encoder: A2MAEModel, bands: Sequence[Band], rows: int, columns: int, ground_resolution: float
) -> torch.Tensor:
    """Return what the coordinates add to the class token (nothing) and to every patch, (1, 1 + patches, D)."""
    patch_size, device = encoder.config.patch_size, encoder.cls_token.device
    grid_rows, grid_columns = rows // patch_size, columns // patch_size
    north = ((grid_rows - 1) / 2 - torch.arange(grid_rows)) * patch_size * ground_resolution
    east = (torch.arange(grid_columns) - (grid_columns - 1) / 2) * patch_size * ground_resolution
    batch = {
        "image_ids": torch.zeros(1, grid_rows * grid_columns, dtype=torch.int64),
        "band_wavelengths": torch.tensor([[[band.wavelength for band in bands]]]),
        "band_widths": torch.tensor([[[band.width for band in bands]]]),
        "ground_resolutions": torch.tensor([[float(ground_resolution)]]),
        "acquisition_times": torch.tensor([[UNKNOWN_TIME]]),
    }
    if ground_resolution:
        batch["patch_positions"] = torch.cartesian_prod(north, east).reshape(1, -1, 2)
    coordinates = encoder.coordinates({key: value.to(device) for key, value in batch.items()})
    return nn.functional.pad(coordinates.float().cpu(), (0, 0, 1, 0))


@torch.no_grad()
def _mixing_weights(encoder: A2MAEModel, bands: Sequence[Band]) -> torch.Tensor:
    """Return the weights (bands, K) float64 with which bands are mixed into virtual bands."""
    parameter = encoder.cls_token
    wavelengths = torch.tensor([[[band.wavelength for band in bands]]], device=parameter.device)
    widths = torch.tensor([[[band.width for band in bands]]], device=parameter.device)
    return encoder.patch_embedding.spectral_network(wavelengths, widths)[0, 0].double().cpu()


def _create(name: str) -> VisionTransformer:
    """Return a pretrained model of timm.

    Raises:
        FileNotFoundError: If its weights cannot be had.
        ValueError: If there is no such model, or it has parts that the encoder cannot represent.
    """
    import timm

    plain = name.partition(".")[0]
    if ":" not in name and not (plain.startswith("vit_") and timm.is_model(plain)):
        raise ValueError(
            f"{name}: no vision transformer of timm has this name; timm.list_models('vit_*', pretrained=True) has them."
        )
    if ":" not in name:
        with torch.device("meta"):  # what cannot be used is not fetched
            _check_representable(cast("VisionTransformer", timm.create_model(plain)), name)
    try:
        return cast("VisionTransformer", timm.create_model(name, pretrained=True))
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
        raise FileNotFoundError(
            f"{name}: timm has no pretrained weights for it or could not fetch them ({reason}); check the name and the"
            " connection, or pass a model that you built to convert_timm_vit."
        ) from error


def _check_representable(model: VisionTransformer, name: str) -> None:
    """Raise ValueError where a model has parts that the encoder cannot represent; names them."""
    reasons = _unrepresentable(model)
    if reasons:
        raise ValueError(
            f"{name}: has no counterpart here, because {'; '.join(reasons)}; take a plain vit_* of timm, such as"
            " vit_base_patch16_224.mae."
        )


def _unrepresentable(model: VisionTransformer) -> list[str]:
    """Return what of a model has no counterpart in the encoder."""
    from timm.layers import Attention, Mlp, PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    if not isinstance(model, VisionTransformer):
        return [f"it is of class {type(model).__name__}, not VisionTransformer"]
    patch_embed: Any = model.patch_embed
    blocks: list[Any] = list(model.blocks)
    reasons = []
    if model.reg_token is not None:
        reasons.append(f"it has {model.num_reg_tokens} register tokens")
    if type(patch_embed) is not PatchEmbed or not isinstance(patch_embed.norm, nn.Identity):
        reasons.append("its patches are embedded by more than one convolution")
    elif patch_embed.proj.in_channels != 3 or len(set(patch_embed.patch_size)) > 1:
        channels, size = patch_embed.proj.in_channels, " × ".join(map(str, patch_embed.patch_size))
        reasons.append(f"it takes {channels} channels in patches of {size}, not 3 in square ones")
    if not isinstance(model.norm_pre, nn.Identity):
        reasons.append("it normalises before the blocks (pre_norm)")
    if not isinstance(model.norm, nn.LayerNorm) or not isinstance(model.fc_norm, nn.Identity):
        reasons.append("it does not normalise every token after the blocks (fc_norm)")
    if model.global_pool not in POOLING or (model.pool_include_prefix and model.global_pool == "avg"):
        with_class = " with the class token" * model.pool_include_prefix
        reasons.append(f"it pools by {model.global_pool!r}{with_class}")
    norms = {type(norm) for block in blocks if type(block) is Block for norm in (block.norm1, block.norm2)}
    if any(type(block) is not Block for block in blocks):
        reasons.append(f"its blocks are {type(blocks[0]).__name__}")
    elif any(type(block.attn) is not Attention for block in blocks):
        reasons.append(f"its attention is {type(blocks[0].attn).__name__}")
    elif any(type(block.mlp) is not Mlp or _activation(block.mlp.act) is None for block in blocks):
        mlp = blocks[0].mlp
        reasons.append(f"its feed-forward network is {type(mlp).__name__} with {getattr(mlp, 'act', None)}")
    elif not all(issubclass(norm, nn.LayerNorm) for norm in norms):
        reasons.append(f"it normalises by {', '.join(sorted(norm.__name__ for norm in norms))}")
    else:
        known = {"attn.qkv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2", "ls1", "ls2"}
        extra = {key.rpartition(".")[0] for key in blocks[0].state_dict()} - known
        if extra:
            reasons.append(f"its blocks hold also {', '.join(sorted(extra))}")
        epsilons = {norm.eps for block in blocks for norm in (block.norm1, block.norm2)}
        if isinstance(model.norm, nn.LayerNorm) and epsilons != {model.norm.eps}:
            reasons.append("its normalisations differ in eps")
        if blocks[0].attn.proj.bias is None:
            reasons.append("its projections have no bias (proj_bias)")
    return reasons


def _activation(activation: nn.Module) -> str | None:
    """Return the name that transformers has for an activation of timm; None for one that it does not have."""
    from timm.layers import GELUTanh

    if type(activation) is GELUTanh or (type(activation) is nn.GELU and activation.approximate == "tanh"):
        return "gelu_pytorch_tanh"
    return "gelu" if type(activation) is nn.GELU else None


__all__ = ["convert_timm_vit", "from_timm", "rgb_sensor", "to_timm"]
