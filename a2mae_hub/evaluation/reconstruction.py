"""How far off reconstructed values are, in physical units, beside two guesses that need no model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from a2mae_hub.images import Image, ImageSet
from a2mae_hub.inference import Checkpoint, reconstruct
from a2mae_hub.modeling.georeference_a2mae import PixelGrid, crs_text, patch_centres, place_images
from a2mae_hub.modeling.sensors_a2mae import get_sensor
from a2mae_hub.plotting import physical_pixels
from a2mae_hub.stssd.schema import StoredSet

MODEL, MEAN_OF_VISIBLE, NEAREST_DATE = "model", "mean of visible", "nearest date"


def reconstruction_errors(
    checkpoint: Checkpoint, image_sets: Iterable[StoredSet]
) -> dict[str, dict[str, dict[str, float]]]:
    """Hide patches of image sets by the rule of the checkpoint, and measure how well hidden values are told.

    The mask of a set is drawn from its `seed`, so it is the same for every checkpoint of one patch size and rule.

    Args:
        checkpoint: As `a2mae_hub.inference.load_checkpoint` returns it; with a decoder.
        image_sets: Sets with their `seed`, as `a2mae_hub.stssd.load` and `from_row` make them.

    Returns:
        For every unit of the sensors ("reflectance", "DN"), and for each of "model", "mean of visible" (of the same
        image and band) and "nearest date" (`copy_from_nearest_date`): "mean absolute error" and "RMS error" over all
        hidden, valid values of all bands of all sets.

    Raises:
        ValueError: If the checkpoint has no decoder, or predicts patches without their own mean and spread (these would
            have to be taken from the truth); if there is no set, or nothing of any is hidden.
    """
    check_reconstructs(checkpoint)
    sums: defaultdict[tuple[str, str], np.ndarray] = defaultdict(lambda: np.zeros(3))
    for image_set in image_sets:
        predicted, hidden = reconstruct(checkpoint, image_set, seed=image_set.seed, paste_visible=False)
        truth = [physical_pixels(image) for image in image_set]
        visible = [np.where(mask, np.nan, values) for mask, values in zip(hidden, truth, strict=True)]
        guesses = {
            MODEL: predicted,
            MEAN_OF_VISIBLE: [_filled_with_mean(values, values) for values in visible],
            NEAREST_DATE: copy_from_nearest_date(image_set, visible),
        }
        for index, image in enumerate(image_set):
            # What one method cannot tell is left out for all, so that every method answers for the same values.
            asked = hidden[index] & np.isfinite(truth[index])
            asked &= np.all([np.isfinite(guess[index]) for guess in guesses.values()], axis=0)
            unit = get_sensor(image.sensor).unit
            for method, guess in guesses.items():
                error = (guess[index][asked] - truth[index][asked]).astype(np.float64)
                sums[unit, method] += len(error), np.abs(error).sum(), np.square(error).sum()
    if not any(count for count, _, _ in sums.values()):
        raise ValueError(f"{checkpoint.name}: nothing is hidden in any image set, so there is nothing to measure.")
    report: dict[str, dict[str, dict[str, float]]] = {}
    for (unit, method), (count, absolute, squared) in sums.items():
        if count:
            errors = {"mean absolute error": absolute / count, "RMS error": float(np.sqrt(squared / count))}
            report.setdefault(unit, {})[method] = errors
    return report


def check_reconstructs(checkpoint: Checkpoint) -> None:
    """Say before any work is done that the reconstructions of a checkpoint cannot be measured.

    Raises:
        ValueError: If it has no decoder, or predicts patches without their own mean and spread.
    """
    if not checkpoint.has_decoder:
        raise ValueError(f"{checkpoint.name}: has no decoder, so it reconstructs nothing; leave the task out.")
    if checkpoint.model.config.normalize_targets:
        raise ValueError(
            f"{checkpoint.name}: predicts patches normalised by their own mean and spread (normalize_targets), which"
            " only the truth tells, so its errors in physical units would flatter it; leave the task out."
        )


def copy_from_nearest_date(image_set: ImageSet, visible: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Guess what is hidden from the same sensor's image nearest in time in which that ground is visible.

    Args:
        image_set: T images of one place. Images of unknown date come after all others.
        visible: T arrays (bands, height, width) of physical values, NaN where they are hidden or no data.

    Returns:
        T arrays like them: every NaN replaced by the pixel that lies there in the nearest image that shows it in this
        band; where none does, by the mean of the visible values of the image and band.
    """
    corners = _corners(image_set)
    guesses = []
    for index, image in enumerate(image_set):
        guess = visible[index].copy()
        for other in sorted(_others(image_set, index), key=lambda other: (_gap(image, image_set[other]), other)):
            if not np.isnan(guess).any():
                break
            rows, columns, inside = _pixels_there(image, corners[index], image_set[other], corners[other])
            for band, name in enumerate(image.bands):
                if name in image_set[other].bands:
                    there = visible[other][list(image_set[other].bands).index(name)][rows, columns]
                    guess[band] = np.where(np.isnan(guess[band]) & inside, there, guess[band])
        guesses.append(_filled_with_mean(guess, visible[index]))
    return guesses


def _filled_with_mean(values: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Return (bands, height, width) with NaN replaced by the mean of the visible values of the band, if it has any."""
    known = np.isfinite(visible)
    sums = np.where(known, visible, 0).sum((1, 2), keepdims=True, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.where(np.isnan(values), sums / known.sum((1, 2), keepdims=True), values)


def _others(image_set: ImageSet, index: int) -> list[int]:
    """Return the other images of the sensor of an image."""
    sensor = image_set[index].sensor
    return [other for other, image in enumerate(image_set) if other != index and image.sensor == sensor]


def _gap(one: Image, other: Image) -> float:
    """Return the seconds between two acquisitions, infinite where one is unknown."""
    if one.acquired is None or other.acquired is None:
        return float("inf")
    return abs((one.acquired - other.acquired).total_seconds())


def _corners(image_set: ImageSet) -> np.ndarray:
    """Return the corners (T, 4, 2) of images in metres, as `place_images` does."""
    grids = []
    for image in image_set:
        height, width = image.pixels.shape[1:]
        sensor = get_sensor(image.sensor)
        gsd = image.gsd or min(sensor.find(band).resolution for band in image.bands)
        placed = image.crs is not None and image.transform is not None
        transform = tuple(image.transform)[:6] if placed and image.transform is not None else None
        grids.append(PixelGrid(image.sensor, height, width, gsd, crs_text(image.crs) if placed else None, transform))
    return place_images(grids, image_set.anchor, image_set.longitude, image_set.latitude).corners


def _pixels_there(
    image: Image, corners: np.ndarray, other: Image, other_corners: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for the pixel centres of an image, row and column (height, width) in another, and whether they lie in it.

    Rows and columns outside are brought to its edge.
    """
    centres = patch_centres(corners, *image.pixels.shape[1:], 1)
    upper_left, upper_right, _, lower_left = other_corners
    axes = np.stack([lower_left - upper_left, upper_right - upper_left])
    # A thousandth of a pixel is rounding, not another pixel.
    shares = (centres - upper_left) @ np.linalg.inv(axes)
    size = np.array(other.pixels.shape[1:])
    places = np.floor(shares * size + 1e-3).astype(np.int64)
    inside = ((places >= 0) & (places < size)).all(-1)
    rows, columns = np.moveaxis(np.clip(places, 0, size - 1), -1, 0)
    return rows, columns, inside
