"""From sets of satellite images to batches of patch tokens with their physical coordinates, and back.

The file tells the story top to bottom: the processor; gathering what the caller holds; checking it; standardising values;
cutting patches; folding predictions back onto each image's own pixel grid.

Pixels are normalised here and nowhere else: (stored × scale + offset − mean) / std, with the statistics of the sensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from .geocoding_a2mae import encode_footprint
from .georeference_a2mae import (
    UNKNOWN_TIME,
    PixelGrid,
    Placement,
    crs_text,
    ground_resolution,
    minutes_since_2000,
    patch_centres,
    place_images,
)
from .sensors_a2mae import SENSORS, Sensor

IMAGE_FIELDS = (
    "pixels",
    "bands",
    "sensor",
    "acquired",
    "crs",
    "transform",
    "gsd",
    "nodata",
    "valid",
    "scale",
    "offset",
    "source",
)
SET_FIELDS = ("images", "longitude", "latitude", "anchor", "name")

# Values per band that the unit check looks at.
_CHECKED_VALUES = 1024
# Scale and offset to propose where the unit check fails: already physical; ten thousandths; Landsat Collection 2 Level 2.
_USUAL_SCALINGS = ((1.0, 0.0), (1e-4, 0.0), (2.75e-5, -0.2))


class A2MAEImageProcessorKwargs(ImagesKwargs, total=False):
    """The settings that `from_pretrained` may override.

    Attributes:
        patch_size: Side of a patch in pixels.
        sensors: Sensors, or their dicts, that images may name.
    """

    patch_size: int
    sensors: list[Any]


class A2MAEImageProcessor(BaseImageProcessor):
    """Turns sets of images into the batch that every A2-MAE model consumes, and predictions back into images.

    Args:
        patch_size: Side P of a patch in pixels, as in the model's configuration.
        size: Rows and columns, or one number for both, to which every image is resampled; None leaves each at its own.
        sensors: The sensors that images may name, as `Sensor` or as their dicts; None takes the whole registry of this
            moment. They are saved in full, so a checkpoint describes its own inputs and the statistics it was trained with.
        **kwargs: Passed on to `BaseImageProcessor`.

    Raises:
        ValueError: A setting cannot be: a patch or size that is no positive whole number, two sensors of one name.

    Example:
        ```python
        >>> import numpy as np
        >>> from a2mae_hub import A2MAEImageProcessor

        >>> processor = A2MAEImageProcessor(patch_size=16)
        >>> image = np.random.default_rng(0).integers(200, 4000, (4, 96, 96), dtype=np.uint16)
        >>> batch = processor(image, sensor="sentinel-2-l2a", bands=["blue", "green", "red", "nir"], return_tensors="pt")
        >>> batch["pixel_values"].shape
        torch.Size([1, 36, 4, 256])
        ```
    """

    model_input_names = [  # noqa: RUF012
        "pixel_values",
        "pixel_mask",
        "attention_mask",
        "image_ids",
        "patch_positions",
        "band_wavelengths",
        "band_widths",
        "ground_resolutions",
        "acquisition_times",
        "source_ids",
        "geographic_codes",
        "anchor_ids",
        "grid_shapes",
    ]
    valid_kwargs = A2MAEImageProcessorKwargs

    def __init__(
        self,
        patch_size: int = 16,
        size: int | Sequence[int] | None = None,
        sensors: Sequence[Sensor | Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not _is_whole(patch_size) or patch_size < 1:
            raise ValueError(f"patch_size is {patch_size!r}: it must be a whole number of pixels, at least 1.")
        self.patch_size = int(patch_size)
        self.size = None if size is None else list(_rows_and_columns(size, self.patch_size))
        given = SENSORS.values() if sensors is None else sensors
        self.sensors = [Sensor.from_dict(sensor) if isinstance(sensor, Mapping) else sensor for sensor in given]
        names = [sensor.name for sensor in self.sensors]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"Two sensors are named {name!r}: give every sensor of a processor its own name.")
        self._band_tables: dict[tuple[str, tuple[str, ...]], _BandTable] = {}

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON types, every sensor in full; `from_dict` reads them."""
        settings = super().to_dict()
        del settings["_band_tables"]
        settings["sensors"] = [sensor.to_dict() for sensor in self.sensors]
        return settings

    def __eq__(self, other: object) -> bool:
        """Return whether another processor has the same settings."""
        return isinstance(other, A2MAEImageProcessor) and self.to_dict() == other.to_dict()

    __hash__ = BaseImageProcessor.__hash__

    def __call__(  # type: ignore[override]
        self,
        image_sets: Any,
        *,
        sensor: str | None = None,
        bands: Sequence[str] | None = None,
        size: int | Sequence[int] | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Turn one image set or many into a batch.

        A set is an `ImageSet`, a dict with the key "images" (and longitude, latitude, anchor, name where known), a list of
        images, or one image. An image is an `Image`, a dict with the keys of `Image`, or a bare array (bands, height,
        width) of numpy or torch; an array (images, bands, height, width) is a set of equal images.

        Args:
            image_sets: One set, or a list of sets.
            sensor: Sensor of images that do not name their own.
            bands: Band names of images that do not name their own.
            size: Rows and columns to resample every image to, in place of the processor's own `size`.
            return_tensors: "np" (and None) for numpy arrays, "pt" for torch tensors.

        Returns:
            The batch of B sets, T images and L tokens at most, C bands at most:

            - pixel_values (B, L, C, P·P) float32: standardised values, 0 where absent or invalid
            - pixel_mask (B, L, C, P·P) bool: True where a value is real; left out where all of every token and band are
            - attention_mask (B, L) bool: True where a token has a real value
            - image_ids (B, L) int64: tokens follow image by image, row by row
            - patch_positions (B, L, 2) float32: metres north and east of the footprint centre
            - band_wavelengths, band_widths (B, T, C) float32: nanometres, 0 where absent
            - ground_resolutions (B, T) float32: metres per pixel
            - acquisition_times (B, T) int64: minutes since 2000-01-01 UTC, the smallest int64 where unknown
            - source_ids (B, T) int64: index of the sensor among the processor's
            - geographic_codes (B, 8) int64: GeoSOT codes of the anchor's corners, −1 where unknown
            - anchor_ids (B,) int64
            - grid_shapes (B, T, 2) int64: rows and columns of patches

        Raises:
            ValueError: The input is no image set, or cannot be what it says it is (unit, bands, place, time); the message
                names the image and the way out.
        """
        target = self._target_size(size)
        sets = [self._read_set(raw, sensor, bands, target) for raw in _gather(image_sets)]
        batch = self._allocate(sets)
        masks: list[tuple[Any, np.ndarray | None]] = []
        for index, image_set in enumerate(sets):
            self._describe(batch, index, image_set)
            masks += self._place(batch, index, image_set, target)
        batch["geographic_codes"] = encode_footprint(np.stack([s.placement.anchor_corners for s in sets]))
        pixel_mask = _join_masks(masks, batch)
        if pixel_mask is not None:
            batch["pixel_mask"] = pixel_mask
        for key in ("pixel_values", "pixel_mask"):
            if key in batch:
                batch[key] = batch[key].reshape(*batch[key].shape[:3], -1)
        return BatchFeature(batch, tensor_type=return_tensors)

    preprocess = __call__  # type: ignore[assignment]

    def post_process_reconstruction(
        self,
        outputs: Any,
        batch: Mapping[str, Any],
        image_sets: Any,
        *,
        paste_visible: bool = True,
        normalize_targets: bool = False,
        size: int | Sequence[int] | None = None,
    ) -> list[list[np.ndarray]]:
        """Fold the predictions of `A2MAEForPreTraining` into images of physical values.

        Args:
            outputs: What the model returned: `logits` (B, M, C, P·P) in standardised units, `token_ids` (B, M) the token
                of each prediction (−1 where it is padding), `mask` (B, L) True where a token was hidden.
            batch: The batch that the model was given.
            image_sets: The sets that the batch was made from.
            paste_visible: Show the input where the model saw it.
            normalize_targets: The model predicts patches normalised by their own mean and standard deviation, as its
                configuration says; they are scaled back by those of the batch.
            size: As given in the call that made the batch.

        Returns:
            For every set and image, (bands, height, width) float32 on the image's own pixel grid, bands in its order, in the
            unit of its sensor (reflectance, dB, DN). NaN where a value was neither predicted nor visible.
        """
        values = _predicted_tokens(outputs, batch, normalize_targets)
        if paste_visible:
            _paste_visible(values, outputs, batch)
        source_ids, widths = _to_numpy(batch["source_ids"]), _to_numpy(batch["band_widths"])
        wavelengths = _to_numpy(batch["band_wavelengths"])
        images: list[list[np.ndarray]] = []
        for index, tokens, grid, (count, *shape) in self._walk(batch, image_sets, size):
            set_index, image_index = index
            folded = _unpatchify(values[set_index, tokens, :count], grid.patches, self.patch_size, grid.size)
            sensor = self.sensors[source_ids[index]]
            mean, std = _statistics(sensor, wavelengths[index][:count], widths[index][:count])
            physical = folded * std[:, None, None] + mean[:, None, None]
            known = ~np.isnan(physical)
            physical, known = _resample(np.nan_to_num(physical), known, (shape[0], shape[1]))
            if image_index == 0:
                images.append([])
            images[-1].append(np.where(known, physical, np.float32(np.nan)))
        return images
