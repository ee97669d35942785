"""What an image set looks like in a few numbers, in units that do not depend on the sensor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from a2mae_hub.images import Image, ImageSet
from a2mae_hub.modeling.sensors_a2mae import Band, get_sensor

if TYPE_CHECKING:
    from a2mae_hub.inference import Checkpoint

BAND_GROUPS = {
    "blue": (450.0, 510.0),
    "green": (510.0, 590.0),
    "red": (620.0, 690.0),
    "red edge": (690.0, 790.0),
    "nir": (790.0, 900.0),
    "swir16": (1550.0, 1750.0),
    "swir22": (2080.0, 2350.0),
}
"""Bands that see the same of the ground, by centre wavelength in nanometres (lower limit included).

The limits are those of the common names in STAC's electro-optical extension 2.0 (see `sensors_a2mae`), drawn apart
where they overlap. Coastal, yellow, water vapour (nir09) and cirrus bands, which few sensors have, count in none.
"""

SPECTRAL_FEATURES = (
    *(f"{group} {number}" for group in BAND_GROUPS for number in ("mean", "std", "p10", "p90")),
    "ndvi mean",
    "ndvi std",
    "temporal change",
    "heterogeneity",
)
"""The names of the numbers that `spectral_statistics` returns, in order."""

# A band broader than this below 1000 nm is panchromatic, wherever its centre lies (Landsat-8 B8: 172 nm).
_BROADEST_VISIBLE = 150.0

# NDVI needs reflectance; standardised values of any sensor are read as if Sentinel-2 L2A had measured them.
_REFERENCE = get_sensor("sentinel-2-l2a")
_DARKEST = 0.005  # reflectance; below it the ratio says nothing but noise

# Patches, padding included, that the encoder sees at once.
_TOKENS_AT_ONCE = 8192


def standardise(image: Image) -> np.ma.MaskedArray:
    """Return the values of an image less the mean of its sensor's band, divided by the standard deviation.

    Args:
        image: The image; scale and offset are the sensor's where it gives none.

    Returns:
        (bands, height, width) float32, masked where there is no data.

    Raises:
        ValueError: If the sensor or one of its bands is unknown.
    """
    bands = _bands(image)
    means, stds = (np.array([getattr(band, fact) for band in bands])[:, None, None] for fact in ("mean", "std"))
    invalid = ~image.valid_values()
    scale, offset = (factor[:, None, None] for factor in scale_and_offset(image))
    values = (np.where(invalid, 0, image.pixels) * scale + offset - means) / stds
    return np.ma.masked_array(values.astype(np.float32), invalid)


def scale_and_offset(image: Image) -> tuple[np.ndarray, np.ndarray]:
    """Return what turns stored numbers into physical values, (bands,) float64 each: the image's, else the sensor's.

    Raises:
        ValueError: If the sensor is unknown, or there are neither one number nor one per band.
    """
    sensor, count = get_sensor(image.sensor), len(image.bands)
    factors = []
    for what, given, default in (("scale", image.scale, sensor.scale), ("offset", image.offset, sensor.offset)):
        numbers = np.atleast_1d(np.asarray(default if given is None else given, np.float64))
        if numbers.shape not in ((1,), (count,)):
            raise ValueError(
                f"An image of {image.sensor} has {len(numbers)} numbers as {what} for {count} bands: give one, or one "
                "for each band."
            )
        factors.append(np.broadcast_to(numbers, (count,)))
    return factors[0], factors[1]


def heterogeneity(image_set: ImageSet) -> float | None:
    """Return how much the ground of a set varies: the standard deviation over the pixels of an image.

    It is measured in standardised values, averaged over bands and images, so 1 is as varied as the land at large, and
    water, desert and one large field come close to 0.

    Args:
        image_set: The set.

    Returns:
        The number, or None where no image has two valid pixels.
    """
    known = [spread for spread in map(_spread, image_set) if spread is not None]
    return float(np.mean(known)) if known else None


def _spread(image: Image) -> float | None:
    """Return the standard deviation of the standardised values of an image, the mean over its bands, if it has any."""
    sensor, (scale, _) = get_sensor(image.sensor), scale_and_offset(image)
    real = image.valid_values().reshape(len(image.bands), -1)
    counted = real.any(axis=1)
    if not counted.any():
        return None
    values = image.pixels.reshape(len(image.bands), -1).astype(np.float32)[counted]
    # The mean of the land cancels out of a standard deviation, so the numbers stay as they are stored.
    spreads = values.std(axis=1) if real.all() else values.std(axis=1, where=real[counted])
    stds = np.array([sensor.find(name).std for name in image.bands])
    return float((spreads * np.abs(scale / stds)[counted]).mean())


def spectral_statistics(image_set: ImageSet) -> np.ndarray:
    """Describe what a set shows by 32 numbers, whatever sensors, bands, dates and ground resolutions it has.

    Everything is computed per image, in standardised values (see `standardise`), and averaged over the images, so that
    a fine image counts no more than a coarse one. Per group of bands (`BAND_GROUPS`; bands of one group are averaged
    pixel by pixel): mean, standard deviation, 10th and 90th percentile. Then mean (less that of the land at large) and
    standard deviation of the vegetation index (nir − red) / (nir + red) (Rouse et al. 1974); temporal change, the
    spread of the means of one sensor's images, averaged over sensors and groups; and the heterogeneity.

    Args:
        image_set: The set.

    Returns:
        (32,) float32, named by `SPECTRAL_FEATURES`. What no image shows is 0, for a mean that of the land at large.

    Raises:
        ValueError: If a sensor or a band is unknown.
    """
    standardised = [standardise(image) for image in image_set]
    per_group: dict[str, list[tuple[float, ...]]] = {group: [] for group in BAND_GROUPS}
    means_of_sensor: dict[tuple[str, str], list[float]] = {}
    vegetation: list[tuple[float, float]] = []
    for image, values in zip(image_set, standardised, strict=True):
        members = [_group(band) for band in _bands(image)]
        layers = {}
        for group in BAND_GROUPS:
            chosen = [index for index, member in enumerate(members) if member == group]
            layer = values[chosen].mean(axis=0) if chosen else None
            if layer is None or not layer.count():
                continue
            layers[group] = layer
            numbers = layer.compressed().astype(np.float64)
            per_group[group].append((numbers.mean(), numbers.std(), *np.percentile(numbers, (10, 90))))
            means_of_sensor.setdefault((image.sensor, group), []).append(numbers.mean())
        if "red" in layers and "nir" in layers:
            index = _vegetation_index(layers["red"], layers["nir"])
            if index.count():
                vegetation.append((index.mean(), index.std()))

    features = [np.mean(numbers, axis=0) if numbers else np.zeros(4) for numbers in per_group.values()]
    features.append(np.mean(vegetation, axis=0) if vegetation else np.zeros(2))
    changes = [np.std(means) for means in means_of_sensor.values() if len(means) > 1]
    features.append(np.array([np.mean(changes) if changes else 0.0, heterogeneity(image_set) or 0.0]))
    return np.concatenate(features).astype(np.float32)


def _bands(image: Image) -> list[Band]:
    """Return what the sensor says of the bands of an image."""
    sensor = get_sensor(image.sensor)
    return [sensor.find(name) for name in image.bands]


def _group(band: Band) -> str | None:
    """Return the group of a band, None where it is in none."""
    if band.wavelength < 1000 and band.width > _BROADEST_VISIBLE:
        return None
    return next((name for name, (low, high) in BAND_GROUPS.items() if low <= band.wavelength < high), None)


def _vegetation_index(red: np.ma.MaskedArray, nir: np.ma.MaskedArray) -> np.ma.MaskedArray:
    """Return the vegetation index of standardised values, less that of the land at large."""
    bands = [_REFERENCE.find("B04"), _REFERENCE.find("B08")]
    r, n = (
        np.ma.maximum(values * band.std + band.mean, _DARKEST) for values, band in zip((red, nir), bands, strict=True)
    )
    at_large = (bands[1].mean - bands[0].mean) / (bands[1].mean + bands[0].mean)
    return (n - r) / (n + r) - at_large


def checkpoint_features(sets: Sequence[ImageSet], checkpoint: Checkpoint) -> np.ndarray:
    """Describe sets by the encoder of a checkpoint, several in one pass.

    Args:
        sets: The sets.
        checkpoint: As `a2mae_hub.inference.load_checkpoint` returns it.

    Returns:
        (sets, D) float32, the `pooler_output` of each.

    Raises:
        ValueError: If a set is not what it says it is, or too large for one pass.
    """
    import torch

    from a2mae_hub import inference

    pooled = [np.zeros((0, checkpoint.model.config.hidden_size), np.float32)]
    with torch.inference_mode():
        for some in _batches(sets, checkpoint):
            # One set alone may be too large for one pass; `prepare` says so.
            if len(some) == 1:
                batch = inference.prepare(checkpoint, some[0])
            else:
                batch = checkpoint.processor(some, return_tensors="pt")
                batch = {key: value.to(checkpoint.model.device) for key, value in batch.items()}
            pooled.append(checkpoint.model.a2mae(**batch).pooler_output.float().cpu().numpy())
    return np.concatenate(pooled[1:] or pooled)


def _batches(sets: Sequence[ImageSet], checkpoint: Checkpoint) -> Iterator[list[ImageSet]]:
    """Cut a list of sets into runs that, padded to their longest, fit into one pass."""
    patch_size, size = checkpoint.processor.patch_size, checkpoint.processor.size
    run: list[ImageSet] = []
    longest = 0
    for image_set in sets:
        patches = sum(
            math.prod(-(-pixels // patch_size) for pixels in (size or image.pixels.shape[1:])) for image in image_set
        )
        if run and max(longest, patches) * (len(run) + 1) > _TOKENS_AT_ONCE:
            yield run
            run, longest = [], 0
        run.append(image_set)
        longest = max(longest, patches)
    if run:
        yield run
