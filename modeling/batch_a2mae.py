"""The batch that every model consumes: its keys, what is unknown where one is missing, and a selection of its tokens.

B sets, T images, L tokens, C bands at most, P patch size. Token-major, so that masking drops tokens before they are
embedded and any mix of sensors and sizes packs into one rectangle.
"""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import torch
from transformers.utils import TransformersKwargs

from .configuration_a2mae import A2MAEConfig
from .masking_a2mae import UNKNOWN_TIME
from .tokens_a2mae import grid_positions, take_tokens


class A2MAEInputs(TypedDict, total=False):
    """The batch, besides `pixel_values`: B sets, T images, L tokens, C bands at most, P patch size.

    `A2MAEImageProcessor` returns all but the last. What is left out counts as unknown: all tokens and pixels are real,
    and all images of one sensor.
    """

    pixel_mask: torch.Tensor  # (B, L, C, P·P) bool, True where a value is real
    attention_mask: torch.Tensor  # (B, L) bool, True where the token exists
    image_ids: torch.Tensor  # (B, L) int64, the image of each token
    patch_positions: torch.Tensor  # (B, L, 2) metres north and east of the footprint centre
    band_wavelengths: torch.Tensor  # (B, T, C) nanometres, 0 where the band is absent
    band_widths: torch.Tensor  # (B, T, C) nanometres
    ground_resolutions: torch.Tensor  # (B, T) metres per pixel
    acquisition_times: torch.Tensor  # (B, T) int64 minutes since 2000-01-01 UTC, the smallest int64 = unknown
    source_ids: torch.Tensor  # (B, T) int64, equal for images of one sensor
    geographic_codes: torch.Tensor  # (B, 8) int64 GeoSOT codes of the corners, −1 = unknown
    anchor_ids: torch.Tensor  # (B,) int64, the anchor image
    grid_shapes: torch.Tensor  # (B, T, 2) rows and columns of patches
    grid_positions: torch.Tensor  # (B, L, 2) int64 row and column of each token; follows from grid_shapes


class A2MAEKwargs(A2MAEInputs, TransformersKwargs, total=False):
    """The batch, besides `pixel_values`, and what every transformers model takes (`output_hidden_states` and so on)."""


# Axes of one name are of one size.
SHAPES = {
    "pixel_values": "sets tokens bands pixels",
    "pixel_mask": "sets tokens bands pixels",
    "attention_mask": "sets tokens",
    "image_ids": "sets tokens",
    "patch_positions": "sets tokens 2",
    "grid_positions": "sets tokens 2",
    "band_wavelengths": "sets images bands",
    "band_widths": "sets images bands",
    "ground_resolutions": "sets images",
    "acquisition_times": "sets images",
    "source_ids": "sets images",
    "geographic_codes": "sets 8",
    "anchor_ids": "sets",
    "grid_shapes": "sets images 2",
}
TOKEN_KEYS = ("pixel_values", "pixel_mask", "attention_mask", "image_ids", "patch_positions", "grid_positions")
BATCH_KEYS = ("pixel_values", *A2MAEInputs.__annotations__)


def split_batch(kwargs: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Split keyword arguments of a model into the keys of the batch and the rest."""
    batch = {key: value for key, value in kwargs.items() if key in BATCH_KEYS}
    return batch, {key: value for key, value in kwargs.items() if key not in BATCH_KEYS}


def complete_batch(config: A2MAEConfig, **inputs: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Check a batch, and fill in what the modules need to be there: unknown where nothing is known.

    Raises:
        ValueError: The batch does not fit the configuration; the message names the key.
    """
    batch = {key: value for key, value in inputs.items() if value is not None}
    pixel_values = batch["pixel_values"]
    if not isinstance(pixel_values, torch.Tensor):
        raise ValueError(
            f"pixel_values is a {type(pixel_values).__name__}, not a torch tensor; call the processor with"
            ' return_tensors="pt".'
        )
    for key in ("pixel_mask", "attention_mask"):
        if key in batch:
            batch[key] = batch[key].bool()
    if pixel_values.dim() != 4 or pixel_values.shape[-1] != config.patch_size**2:
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}, but this checkpoint takes (sets, tokens, bands,"
            f" {config.patch_size}·{config.patch_size}); use A2MAEImageProcessor with patch_size={config.patch_size}."
        )
    if config.spectral_projection == "basis" and not {"band_wavelengths", "band_widths"} <= batch.keys():
        raise ValueError(
            "band_wavelengths or band_widths is missing from the batch, without which the bands cannot be told apart;"
            " pass both in nanometres, as A2MAEImageProcessor does."
        )
    check_shapes(batch)
    per_image = ("band_wavelengths", "ground_resolutions", "acquisition_times", "source_ids", "grid_shapes")
    num_images = next((batch[key].shape[1] for key in per_image if key in batch), 1)
    num_sets, num_tokens = pixel_values.shape[:2]
    integers = pixel_values.new_empty(0, dtype=torch.int64)
    batch.setdefault("image_ids", integers.new_zeros(num_sets, num_tokens))
    # No band at all: nothing is known of the spectrum, and none is absent.
    batch.setdefault("band_wavelengths", pixel_values.new_zeros(num_sets, num_images, 0))
    batch.setdefault("band_widths", torch.zeros_like(batch["band_wavelengths"]))
    batch.setdefault("ground_resolutions", pixel_values.new_zeros(num_sets, num_images))
    batch.setdefault("acquisition_times", integers.new_full((num_sets, num_images), UNKNOWN_TIME))
    batch.setdefault("source_ids", integers.new_zeros(num_sets, num_images))
    batch.setdefault("anchor_ids", integers.new_zeros(num_sets))
    if config.coordinate_layout == "released" and "grid_shapes" in batch:
        batch.setdefault("grid_positions", grid_positions(batch["image_ids"], batch["grid_shapes"]))
    return batch


def check_shapes(batch: dict[str, torch.Tensor]) -> None:
    """Compare the sizes of a batch with one another.

    Raises:
        ValueError: A key does not fit the others; the message names it.
    """
    sizes: dict[str, int] = {}
    for key, names in SHAPES.items():
        shape, axes = tuple(batch[key].shape) if key in batch else (), names.split()
        if not shape or (key.startswith("band_") and shape[-1] == 0):
            continue
        expected = [int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes]
        if len(shape) != len(axes) or any(size not in (None, own) for own, size in zip(shape, expected, strict=True)):
            wanted = ", ".join(axis if size is None else str(size) for axis, size in zip(axes, expected, strict=True))
            raise ValueError(
                f"{key} has shape {shape}, but with the rest of the batch goes ({wanted}); pass the whole batch as the"
                " processor returns it."
            )
        sizes.update({axis: size for axis, size in zip(axes, shape, strict=True) if not axis.isdigit()})
    # Values are looked at only where that costs no wait for a device.
    if torch.compiler.is_compiling() or batch["pixel_values"].device.type != "cpu":
        return
    num_images = sizes.get("images", 1)
    for key in ("image_ids", "anchor_ids"):
        ids = batch.get(key, torch.zeros(0))
        wrong = ids[(ids < 0) | (ids >= num_images)].tolist()
        if wrong:
            raise ValueError(f"{key} names image {wrong[0]}, but sets of the batch have images 0 to {num_images - 1}.")


def select_tokens(
    batch: dict[str, torch.Tensor],
    chosen: torch.Tensor,
    at_most: int | None,
    priority: torch.Tensor | None = None,
    quota: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Keep the chosen tokens of a batch.

    Args:
        batch: The batch of L tokens.
        chosen: (B, L) bool.
        at_most: Length K of the result; None takes the most chosen in any set.
        priority: (B, L), where more are chosen than fit the lowest stay; None keeps the order of the tokens.
        quota: (B,) int64, tokens of each set at most; None sets no other limit than the length.

    Returns:
        (B, K) int64 indices of the tokens, and their batch, whose `attention_mask` is False where a set has fewer than
        K.
    """
    if at_most is None:
        at_most = max(1, int(chosen.sum(1).max()))
    if priority is None:
        order = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)
    else:
        order = priority.masked_fill(~chosen, math.inf).argsort(dim=1)
    token_ids = order[:, :at_most]
    taken = {key: take_tokens(batch[key], token_ids) for key in TOKEN_KEYS if key in batch}
    kept = take_tokens(chosen, token_ids)
    if quota is not None:
        kept = kept & (torch.arange(at_most, device=kept.device) < quota[:, None])
    return token_ids, {**batch, **taken, "attention_mask": kept}
