"""What is said of an image before any label is seen: by a checkpoint, and by numbers that need no model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from a2mae_hub.images import Image, ImageSet
from a2mae_hub.inference import MAX_TOKENS, Checkpoint
from a2mae_hub.modeling.sensors_a2mae import get_sensor
from a2mae_hub.plotting import physical_pixels

MAGNIFICATION = 2
"""How many times as large images become before a checkpoint encodes them: its patches then tell finer detail."""

HAND_MADE_PATCH = 8  # pixels
_COLOURS = 3
_ORIENTATIONS = 8
_PERCENTILES = (10, 50, 90)
_LEAST_CONTRAST = 0.01  # of the standard deviation of a band


@dataclass(frozen=True)
class FeatureMap:
    """Features on the patch grid of an image.

    Attributes:
        values: (D, rows, columns) float32; NaN where a patch has no data.
        patch: Rows and columns of the image's own pixels that a patch spans; the first patch begins at the upper left.
    """

    values: np.ndarray
    patch: tuple[float, float]


def embed_images(checkpoint: Checkpoint, images: Sequence[Image], batch_size: int = 64) -> np.ndarray:
    """Return the features of images: mean and standard deviation of their patch tokens, one after the other.

    Images are magnified by `MAGNIFICATION` first, unless the processor has a size of its own. The pooling is the same
    for every checkpoint, whatever its configuration pools for its own use.

    Args:
        checkpoint: As `a2mae_hub.inference.load_checkpoint` returns it.
        images: N images, each a set of its own.
        batch_size: Images that are encoded at once; fewer where they are large.

    Returns:
        (N, 2 · hidden_size) float32.

    Raises:
        ValueError: If an image is not what it says it is, or too large for one pass; names it.
    """
    pooled = []
    for states, exists, _ in _encode(checkpoint, images, batch_size):
        tokens = states[-1]
        weights = exists[..., None].float()
        count = weights.sum(1).clamp(min=1)
        mean = (tokens * weights).sum(1) / count
        variance = ((tokens - mean[:, None]).square() * weights).sum(1) / count
        pooled.append(torch.cat([mean, variance.sqrt()], dim=1).cpu().numpy())
    return np.concatenate(pooled)


def embed_maps(checkpoint: Checkpoint, images: Sequence[Image], batch_size: int = 16) -> list[FeatureMap]:
    """Return the patch tokens of images on their patch grids, magnified as in `embed_images`.

    Those of the first, the middle and the last layer, one after the other: early layers still know where a border is,
    which later ones trade for what lies on either side of it.

    Args:
        checkpoint: As `a2mae_hub.inference.load_checkpoint` returns it.
        images: N images, each a set of its own.
        batch_size: Images that are encoded at once; fewer where they are large.

    Returns:
        N maps of 3 · hidden_size features.

    Raises:
        ValueError: If an image is not what it says it is, or too large for one pass; names it.
    """
    maps: list[FeatureMap] = []
    patch_size = checkpoint.model.config.patch_size
    last = checkpoint.model.config.num_hidden_layers
    layers = (1, (1 + last) // 2, last)
    for states, exists, grids in _encode(checkpoint, images, batch_size):
        tokens = torch.cat([states[layer] for layer in layers], dim=-1)
        values = tokens.masked_fill(~exists[..., None], float("nan")).cpu().numpy()
        for one, (rows, columns) in zip(values, grids, strict=True):
            image = images[len(maps)]
            height, width = image.pixels.shape[1:]
            seen = _seen_size(checkpoint, image)
            grid = np.ascontiguousarray(one[: rows * columns].T).reshape(-1, rows, columns)
            maps.append(FeatureMap(grid, (patch_size * height / seen[0], patch_size * width / seen[1])))
    return maps


def _encode(
    checkpoint: Checkpoint, images: Sequence[Image], batch_size: int
) -> Iterator[tuple[list[torch.Tensor], torch.Tensor, list[list[int]]]]:
    """Yield patch tokens (B, L, D) float32 before and after every layer, where they exist (B, L), and grid shapes."""
    if not images:
        raise ValueError("There are no images to encode; pass at least one.")
    model, patch_size = checkpoint.model, checkpoint.model.config.patch_size
    for size, group in groupby(images, key=lambda image: _seen_size(checkpoint, image)):
        alike = list(group)
        count = math.prod(-(-pixels // patch_size) for pixels in size)
        if count > MAX_TOKENS:
            source = alike[0].source or f"an image of {alike[0].pixels.shape[1]} × {alike[0].pixels.shape[2]} pixels"
            raise ValueError(f"{source}: holds {count} patches, more than the {MAX_TOKENS} of one pass; cut it up.")
        step = max(1, min(batch_size, MAX_TOKENS // count))
        for start in range(0, len(alike), step):
            sets = [ImageSet([image]) for image in alike[start : start + step]]
            batch = checkpoint.processor(sets, size=size, return_tensors="pt")
            inputs = {key: value.to(model.device) for key, value in batch.items()}
            with torch.inference_mode():
                encoded = model.a2mae(**inputs, output_hidden_states=True)
            # The last one with the norm of the encoder.
            states = [*encoded.hidden_states[:-1], encoded.last_hidden_state]
            yield (
                [state[:, 1:].float() for state in states],
                inputs["attention_mask"],
                batch["grid_shapes"][:, 0].tolist(),
            )


def _seen_size(checkpoint: Checkpoint, image: Image) -> tuple[int, int]:
    """Return the rows and columns that a checkpoint sees an image in: its own size if it has one, or magnified."""
    rows, columns = checkpoint.processor.size or (MAGNIFICATION * pixels for pixels in image.pixels.shape[1:])
    return rows, columns


def raw_statistics(images: Sequence[Image]) -> np.ndarray:
    """Return the mean of every band, then its standard deviation: (N, 2 · bands) float32, physical values.

    Args:
        images: N images of the same number of bands; pixels without data do not count.
    """
    values = [filled_pixels(image).reshape(len(image.pixels), -1) for image in images]
    return np.stack([np.concatenate([one.mean(1), one.std(1)]) for one in values])


def hand_made_numbers(images: Sequence[Image]) -> np.ndarray:
    """Return colour, contrast and orientation of the patches of images, pooled over the patches of each.

    Args:
        images: N images of the same number of bands; pixels without data take the mean of their band.

    Returns:
        (N, 62) float32, over the patches of an image: mean, standard deviation and the percentiles 10, 50 and 90 of
        colour and contrast, mean and standard deviation of the orientations, as in `hand_made_map`. Fewer where there
        are fewer than three bands.
    """
    pooled = []
    for image in images:
        patches = hand_made_map(image).values
        patches = patches.reshape(len(patches), -1).astype(np.float64)
        percentiles = np.percentile(patches[: -2 * _ORIENTATIONS], _PERCENTILES, axis=1)
        pooled.append(np.concatenate([patches.mean(1), patches.std(1), *percentiles]))
    return np.array(pooled, np.float32)


def hand_made_map(image: Image) -> FeatureMap:
    """Return what a person would measure on every patch of 8 × 8 pixels.

    Values count in standard deviations of their band, as the sensor registry has them, so that units do not matter.

    Returns:
        22 numbers a patch: colour, the means of three groups of bands, neighbours by wavelength; contrast, the
        logarithm of their standard deviations; the gradient of the mean over bands shared out over eight orientations
        of 22.5°, 0° to 180°, as shares; and these shares in ascending order, which a turn of the image leaves alone.
        Patches that reach beyond the image see its edge go on.
    """
    sensor = get_sensor(image.sensor)
    bands = [sensor.find(band) for band in image.bands]
    values = filled_pixels(image) / np.array([band.std for band in bands], np.float32)[:, None, None]
    order = np.argsort([band.wavelength for band in bands], kind="stable")
    groups = np.stack([values[group].mean(0) for group in np.array_split(order, min(_COLOURS, len(order)))])
    grey = values.mean(0)
    # A gradient takes two pixels; a single row or column has none across.
    down, right = (np.gradient(grey, axis=axis) if grey.shape[axis] > 1 else np.zeros_like(grey) for axis in (0, 1))
    # Opposite gradients are the two sides of one line: orientations are told apart modulo 180°.
    bins = (np.mod(np.arctan2(down, right), np.pi) * (_ORIENTATIONS / np.pi)).astype(int) % _ORIENTATIONS
    magnitude = np.hypot(down, right)
    by_orientation = np.where(bins == np.arange(_ORIENTATIONS)[:, None, None], magnitude, 0)
    patches = _cut(groups, HAND_MADE_PATCH)
    contrast = np.log(patches.std((-1, -2)) + _LEAST_CONTRAST)
    strength = _cut(by_orientation, HAND_MADE_PATCH).mean((-1, -2))
    shares = strength / (strength.sum(0) + 1e-6)
    numbers = np.concatenate([patches.mean((-1, -2)), contrast, shares, np.sort(shares, axis=0)])
    return FeatureMap(numbers.astype(np.float32), (HAND_MADE_PATCH, HAND_MADE_PATCH))


def filled_pixels(image: Image) -> np.ndarray:
    """Return physical values (bands, height, width) float32; those without data take the mean of their band.

    A band without any data takes 0.
    """
    values = physical_pixels(image)
    real = np.isfinite(values)
    if real.all():
        return values
    count = np.maximum(real.sum((1, 2), keepdims=True), 1)
    return np.where(real, values, np.where(real, values, 0).sum((1, 2), keepdims=True) / count).astype(np.float32)


def _cut(values: np.ndarray, patch: int) -> np.ndarray:
    """Cut (D, height, width) into (D, rows, columns, patch, patch); the last ones repeat the edge of the image."""
    height, width = values.shape[1:]
    padded = np.pad(values, ((0, 0), (0, -height % patch), (0, -width % patch)), mode="edge")
    rows, columns = padded.shape[1] // patch, padded.shape[2] // patch
    return padded.reshape(-1, rows, patch, columns, patch).transpose(0, 1, 3, 2, 4)
