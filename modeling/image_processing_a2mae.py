"""From sets of satellite images to batches of patch tokens with their physical coordinates, and back.

The file tells the story top to bottom: the processor; standardising values; cutting patches; placing them in the batch;
folding predictions back. What callers hand in is gathered and checked in `image_inputs_a2mae`, and put on the ground in
`georeference_a2mae`.

Pixels are normalised here and nowhere else: (stored × scale + offset − mean) / std, with the statistics of the sensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ImagesKwargs

from .geocoding_a2mae import encode_footprint
from .georeference_a2mae import (
    UNKNOWN_TIME,
    Placement,
    corner_degrees,
    ground_resolution,
    patch_centres,
    place_images,
)
from .image_inputs_a2mae import (
    BandTable,
    InputImage,
    InputSet,
    band_table,
    gather_sets,
    image_fields,
    is_whole,
    read_image,
    to_numpy,
)
from .sensors_a2mae import SENSORS, Sensor


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
            moment. They are saved in full, so a checkpoint describes its own inputs and the statistics it was trained
            with.
        **kwargs: Passed on to `BaseImageProcessor`.

    Raises:
        ValueError: A setting cannot be: a patch or size that is no positive whole number, two sensors of one name.

    Example:
        ```python
        >>> import numpy as np
        >>> from a2mae_hub import A2MAEImageProcessor

        >>> processor = A2MAEImageProcessor(patch_size=16)
        >>> image = np.random.default_rng(0).integers(200, 4000, (4, 96, 96), dtype=np.uint16)
        >>> bands = ["blue", "green", "red", "nir"]
        >>> batch = processor(image, sensor="sentinel-2-l2a", bands=bands, return_tensors="pt")
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
        if not is_whole(patch_size) or patch_size < 1:
            raise ValueError(f"patch_size is {patch_size!r}: it must be a whole number of pixels, at least 1.")
        self.patch_size = int(patch_size)
        self.size = None if size is None else list(_rows_and_columns(size, self.patch_size))
        given = SENSORS.values() if sensors is None else sensors
        self.sensors = [Sensor.from_dict(sensor) if isinstance(sensor, Mapping) else sensor for sensor in given]
        names = [sensor.name for sensor in self.sensors]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"Two sensors are named {name!r}: give every sensor of a processor its own name.")
        self._band_tables: dict[tuple[str, tuple[str, ...]], BandTable] = {}

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

        A set is an `ImageSet`, a dict with the key "images" (and longitude, latitude, anchor, name where known), a list
        of images, or one image. An image is an `Image`, a dict with the keys of `Image`, or a bare array (bands,
        height, width) of numpy or torch; an array (images, bands, height, width) is a set of equal images.

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
            ValueError: The input is no image set, or cannot be what it says it is (unit, bands, place, time); the
                message names the image and the way out.
        """
        target = self._target_size(size)
        raw_sets = gather_sets(image_sets)
        images = [self._read_images(raw, sensor, bands, target) for raw in raw_sets]
        sets = _place_sets(raw_sets, images, target)
        batch = _allocate(sets, self.patch_size)
        masks: list[_TokenMask] = []
        for index, image_set in enumerate(sets):
            _describe(batch, index, image_set, self.patch_size)
            masks += _fill(batch, index, image_set, self.patch_size)
        batch["geographic_codes"] = encode_footprint(np.stack([one.placement.anchor_corners for one in sets]))
        _join_masks(batch, masks)
        for key in ("pixel_values", "pixel_mask"):
            if key in batch:
                batch[key] = batch[key].reshape(*batch[key].shape[:3], -1)
        return BatchFeature(batch, tensor_type=return_tensors)

    preprocess = __call__

    def post_process_reconstruction(
        self,
        outputs: Any,
        batch: Mapping[str, Any],
        image_sets: Any,
        *,
        paste_visible: bool = True,
        normalize_targets: bool = False,
        sensor: str | None = None,
        bands: Sequence[str] | None = None,
        size: int | Sequence[int] | None = None,
    ) -> list[list[np.ndarray]]:
        """Fold the predictions of `A2MAEForPreTraining` into images of physical values.

        Args:
            outputs: What the model returned: `logits` (B, M, C, P·P) in standardised units, `token_ids` (B, M) the
                token of each prediction (−1 where it is padding), `mask` (B, L) True where a token was hidden.
            batch: The batch that the model was given.
            image_sets: The sets that the batch was made from.
            paste_visible: Show the input where the model saw it.
            normalize_targets: The model predicts patches normalised by their own mean and standard deviation, as its
                configuration says; they are scaled back by those of the batch.
            sensor: As in the call that made the batch.
            bands: As in that call.
            size: As in that call. Where it is left out, images are taken to have been resampled to whole patches if the
                patch grids of the batch do not fit them, and else to be on their own grid.

        Returns:
            For every set and image, (bands, height, width) float32 on the image's own pixel grid, bands in its order,
            in the unit of its sensor (reflectance, dB, DN). NaN where a value was neither predicted nor visible.

        Raises:
            ValueError: The batch was not made from these sets.
        """
        values = _predicted_tokens(outputs, batch, normalize_targets)
        if paste_visible:
            _paste_visible(values, outputs, batch)

        def restore(index: int, image: _TokenGrid) -> np.ndarray:
            table = self._band_table(image.fields, sensor, bands, image.label)
            tokens = values[index, image.tokens, : len(table.names)]
            folded = _fold(tokens, image.patches, image.size, self.patch_size)
            physical = folded * table.stds[:, None, None] + table.means[:, None, None]
            known = np.isfinite(physical)
            shown, still_known = resample(np.where(known, physical, 0).astype(np.float32), known, image.shape)
            return np.where(known if still_known is None else still_known, shown, np.float32(np.nan))

        grids = self._token_grids(batch, image_sets, size)
        return [[restore(index, image) for image in images] for index, images in enumerate(grids)]

    def post_process_mask(
        self, mask: Any, batch: Mapping[str, Any], image_sets: Any, *, size: int | Sequence[int] | None = None
    ) -> list[list[np.ndarray]]:
        """Fold a mask over tokens into one over the pixels of each image.

        Args:
            mask: (B, L) bool, for example the `mask` that `A2MAEForPreTraining` returns.
            batch: The batch that the mask belongs to.
            image_sets: The sets that the batch was made from.
            size: As in the call that made the batch; see `post_process_reconstruction`.

        Returns:
            For every set and image, (height, width) bool.

        Raises:
            ValueError: The batch was not made from these sets.
        """
        hidden = to_numpy(mask).astype(bool)

        def spread(index: int, image: _TokenGrid) -> np.ndarray:
            of_patches = hidden[index, image.tokens].reshape(image.patches)
            row, column = (
                ((np.arange(own) + 0.5) * (seen / own)).astype(np.int64) // self.patch_size
                for own, seen in zip(image.shape, image.size, strict=True)
            )
            return of_patches[row[:, None], column]

        grids = self._token_grids(batch, image_sets, size)
        return [[spread(index, image) for image in images] for index, images in enumerate(grids)]

    def post_process_semantic_segmentation(
        self, outputs: Any, batch: Mapping[str, Any], image_sets: Any, *, size: int | Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """Turn the logits of `A2MAEForSemanticSegmentation` or `A2MAEForChangeDetection` into a map of classes per set.

        Args:
            outputs: What the model returned: `logits` (B, num_labels, rows, columns).
            batch: The batch that the model was given.
            image_sets: The sets that the batch was made from.
            size: As in the call that made the batch; see `post_process_reconstruction`.

        Returns:
            For every set, (height, width) int64 classes on the pixel grid of its anchor as it was handed in; 0 and 1
            where the model has a single label.

        Raises:
            ValueError: The batch was not made from these sets, or the logits are of another batch.
        """
        logits, anchor_ids = to_numpy(outputs.logits).astype(np.float32), to_numpy(batch["anchor_ids"])
        maps = []
        for index, images in enumerate(self._token_grids(batch, image_sets, size)):
            anchor = images[anchor_ids[index]]
            rows, columns = anchor.size
            seen = logits[index, :, :rows, :columns] if index < len(logits) else logits[:0]
            if seen.shape[-2:] != (rows, columns):
                raise ValueError(
                    f"{anchor.label} is {rows} by {columns} pixels and the logits do not cover it: pass the outputs of "
                    "the model for this batch."
                )
            shown, _ = resample(seen, None, anchor.shape)
            maps.append(shown.argmax(0) if len(shown) > 1 else (shown[0] > 0).astype(np.int64))
        return maps

    def _target_size(self, size: int | Sequence[int] | None) -> tuple[int, int] | None:
        """Return rows and columns to resample to: those of the call, else the processor's own, else None."""
        size = self.size if size is None else size
        return None if size is None else _rows_and_columns(size, self.patch_size)

    def _read_images(
        self, given: InputSet, sensor: str | None, bands: Sequence[str] | None, target: tuple[int, int] | None
    ) -> list[InputImage]:
        """Read and check the images of one set."""
        images = []
        for index, raw in enumerate(given.images):
            label = given.image_label(index, raw)
            fields = image_fields(raw, label)
            image = read_image(fields, self._band_table(fields, sensor, bands, label), label)
            height, width = image.pixels.shape[1:]
            if target is None and min(height, width) < self.patch_size:
                raise ValueError(
                    f"{label} is {height} by {width} pixels, smaller than one patch of {self.patch_size}: read a "
                    "larger window, or, where no map is to be made, pass size= to resample it."
                )
            images.append(image)
        return images

    def _band_table(
        self, fields: Mapping[str, Any], sensor: str | None, bands: Sequence[str] | None, label: str
    ) -> BandTable:
        """Return what the sensor says of an image's bands, looked up once for each combination of names."""
        name = sensor if fields.get("sensor") is None else fields["sensor"]
        named = bands if fields.get("bands") is None else fields["bands"]
        if name is None:
            known = ", ".join(sensor.name for sensor in self.sensors)
            raise ValueError(f"{label} names no sensor: pass sensor=, one of {known}.")
        if named is None:
            raise ValueError(
                f"{label} names no bands: pass bands= with one name for each band in the order of the pixels, since an "
                "assumed order would be silently wrong."
            )
        key = (str(name), (named,) if isinstance(named, str) else tuple(map(str, named)))
        if key not in self._band_tables:
            self._band_tables[key] = band_table(self.sensors, *key, label)
        return self._band_tables[key]

    def _token_grids(
        self, batch: Mapping[str, Any], image_sets: Any, size: int | Sequence[int] | None
    ) -> list[list[_TokenGrid]]:
        """Find the tokens of every image in a batch that was made from `image_sets`."""
        target = self._target_size(size)
        raw_sets, grid_shapes = gather_sets(image_sets), to_numpy(batch["grid_shapes"])
        if len(raw_sets) != len(grid_shapes):
            raise ValueError(
                f"The batch holds {len(grid_shapes)} sets and image_sets {len(raw_sets)}: pass the sets it was made "
                "from."
            )
        grids: list[list[_TokenGrid]] = []
        for raw_set, shapes in zip(raw_sets, grid_shapes, strict=True):
            if shapes[len(raw_set.images) :].any():
                raise ValueError(
                    f"{raw_set.label} has {len(raw_set.images)} images and the batch more: pass the sets that the batch"
                    " was made from."
                )
            first = 0
            grids.append([])
            for index, raw in enumerate(raw_set.images):
                label = raw_set.image_label(index, raw)
                fields = image_fields(raw, label)
                shape = tuple(np.shape(fields["pixels"])[-2:])
                patches = (int(shapes[index, 0]), int(shapes[index, 1])) if index < len(shapes) else (0, 0)
                own, asked = (_patch_grid(pixels, self.patch_size) for pixels in (shape, target or shape))
                if 0 in patches or (target is not None and asked != patches):
                    raise ValueError(
                        f"{label} does not fit the batch, which has {patches[0]} by {patches[1]} patches there: pass "
                        "the sets that the batch was made from, and size= as it was then."
                    )
                # An image off its own grid was resampled by a size that only the call knew: whole patches, most likely.
                resampled = (patches[0] * self.patch_size, patches[1] * self.patch_size)
                seen = target or (shape if own == patches else resampled)
                tokens = slice(first, first + patches[0] * patches[1])
                grids[-1].append(_TokenGrid(label, fields, tokens, patches, seen, shape))
                first = tokens.stop
        return grids


class _Set(NamedTuple):
    """One set, read and put on the ground."""

    images: list[InputImage]
    sizes: list[tuple[int, int]]  # rows and columns of each image that the model sees
    placement: Placement
    anchor: int


class _TokenGrid(NamedTuple):
    """Where the tokens of one image lie in its set, and the pixels that they cover."""

    label: str
    fields: Mapping[str, Any]
    tokens: slice
    patches: tuple[int, int]
    size: tuple[int, int]  # rows and columns that the model saw
    shape: tuple[int, int]  # rows and columns of the image itself


class _TokenMask(NamedTuple):
    """The values of one image that are real, by its place in the batch."""

    place: tuple[int, slice, slice]
    real: np.ndarray | None  # (tokens, C, P, P) bool; None where every value is


def _place_sets(
    given: Sequence[InputSet], images: Sequence[list[InputImage]], target: tuple[int, int] | None
) -> list[_Set]:
    """Put the images of sets on the ground, each set for itself; only PROJ is asked about all at once."""
    corners = iter(corner_degrees([image.grid for members in images for image in members]))
    sets = []
    for one, members in zip(given, images, strict=True):
        grids = [image.grid for image in members]
        degrees = [next(corners) for _ in members]
        placement = place_images(grids, one.anchor, one.longitude, one.latitude, one.label, degrees)
        sizes = [target or (grid.height, grid.width) for grid in grids]
        sets.append(_Set(members, sizes, placement, one.anchor))
    return sets


# Standardise


def _rows_and_columns(size: Any, patch_size: int) -> tuple[int, int]:
    """Return a size as (rows, columns) of pixels."""
    numbers = (size, size) if is_whole(size) else size
    if not isinstance(numbers, (tuple, list)) or len(numbers) != 2 or not all(map(is_whole, numbers)):
        raise ValueError(f"size is {size!r}: it must be a whole number of pixels, or (rows, columns).")
    if min(numbers) < patch_size:
        raise ValueError(f"size is {size!r}: it must be at least one patch, {patch_size} pixels.")
    return int(numbers[0]), int(numbers[1])


def _standardise(image: InputImage, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return standardised values float32 (bands, rows, columns) of the size the model sees, and where they are real."""
    gain = (image.scale / image.table.stds).astype(np.float32)[:, None, None]
    shift = ((image.offset - image.table.means) / image.table.stds).astype(np.float32)[:, None, None]
    with np.errstate(over="ignore", invalid="ignore"):  # only nodata is that large
        values = image.pixels.astype(np.float32, order="C")
        values *= gain
        values += shift
    if image.valid is not None:
        values[~image.valid] = 0.0
    return resample(values, image.valid, size)


def resample(
    values: np.ndarray, valid: np.ndarray | None, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Resample (bands, rows, columns) bilinearly, over the real values only; shrinking averages what a pixel covers.

    A resampled value is real where real values make up half of its weight or more.
    """
    if values.shape[1:] == tuple(size):
        return values, valid
    shrinks = size[0] < values.shape[1] or size[1] < values.shape[2]
    if valid is None:
        return _interpolate(values, size, shrinks), None
    weights = _interpolate(valid.astype(np.float32), size, shrinks)
    real = weights >= 0.5
    return np.where(real, _interpolate(values, size, shrinks) / np.where(real, weights, 1), np.float32(0)), real


def _interpolate(values: np.ndarray, size: tuple[int, int], shrinks: bool) -> np.ndarray:
    """Resample (bands, rows, columns) float32 bilinearly."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))[None]
    return torch.nn.functional.interpolate(tensor, size=tuple(size), mode="bilinear", antialias=shrinks)[0].numpy()


# Patchify


def _patch_grid(size: Sequence[int], patch_size: int) -> tuple[int, int]:
    """Return rows and columns of the patches that cover an image; the last ones may reach beyond it."""
    return -(-size[0] // patch_size), -(-size[1] // patch_size)


def _patches(values: np.ndarray, patch_size: int) -> np.ndarray:
    """Cut (bands, rows, columns) into (patch rows, patch columns, bands, P, P), a view; edges are padded with 0."""
    count, height, width = values.shape
    rows, columns = _patch_grid((height, width), patch_size)
    if (rows * patch_size, columns * patch_size) != (height, width):
        padded = np.zeros((count, rows * patch_size, columns * patch_size), dtype=values.dtype)
        padded[:, :height, :width] = values
        values = padded
    return values.reshape(count, rows, patch_size, columns, patch_size).transpose(1, 3, 0, 2, 4)


def _fold(tokens: np.ndarray, patches: tuple[int, int], size: tuple[int, int], patch_size: int) -> np.ndarray:
    """Put (tokens, bands, P·P) back together to (bands, rows, columns); the inverse of `_patches`."""
    rows, columns = patches
    tiles = tokens.reshape(rows, columns, -1, patch_size, patch_size).transpose(2, 0, 3, 1, 4)
    return tiles.reshape(-1, rows * patch_size, columns * patch_size)[:, : size[0], : size[1]]


# Place


def _allocate(sets: Sequence[_Set], patch_size: int) -> dict[str, np.ndarray]:
    """Return the batch with every token, image and band absent."""
    num_sets, num_images = len(sets), max(len(one.images) for one in sets)
    num_bands = max(len(image.pixels) for one in sets for image in one.images)
    num_tokens = max(sum(math.prod(_patch_grid(size, patch_size)) for size in one.sizes) for one in sets)
    return {
        "pixel_values": np.zeros((num_sets, num_tokens, num_bands, patch_size, patch_size), dtype=np.float32),
        "attention_mask": np.zeros((num_sets, num_tokens), dtype=bool),
        "image_ids": np.zeros((num_sets, num_tokens), dtype=np.int64),
        "patch_positions": np.zeros((num_sets, num_tokens, 2), dtype=np.float32),
        "band_wavelengths": np.zeros((num_sets, num_images, num_bands), dtype=np.float32),
        "band_widths": np.zeros((num_sets, num_images, num_bands), dtype=np.float32),
        "ground_resolutions": np.zeros((num_sets, num_images), dtype=np.float32),
        "acquisition_times": np.full((num_sets, num_images), UNKNOWN_TIME, dtype=np.int64),
        "source_ids": np.zeros((num_sets, num_images), dtype=np.int64),
        "anchor_ids": np.array([one.anchor for one in sets], dtype=np.int64),
        "grid_shapes": np.zeros((num_sets, num_images, 2), dtype=np.int64),
    }


def _describe(batch: Mapping[str, np.ndarray], index: int, image_set: _Set, patch_size: int) -> None:
    """Write what is known of the images of set `index` into the batch."""
    for number, (image, size) in enumerate(zip(image_set.images, image_set.sizes, strict=True)):
        table, place = image.table, (index, number)
        batch["band_wavelengths"][place][: len(table.names)] = table.wavelengths
        batch["band_widths"][place][: len(table.names)] = table.widths
        batch["ground_resolutions"][place] = ground_resolution(image_set.placement.corners[number], *size)
        batch["acquisition_times"][place] = image.acquired
        batch["source_ids"][place] = table.source_id
        batch["grid_shapes"][place] = _patch_grid(size, patch_size)


def _fill(batch: Mapping[str, np.ndarray], index: int, image_set: _Set, patch_size: int) -> list[_TokenMask]:
    """Write the tokens of set `index` into the batch; return which of their values are real."""
    masks: list[_TokenMask] = []
    first = 0
    for number, (image, size) in enumerate(zip(image_set.images, image_set.sizes, strict=True)):
        values, valid = _standardise(image, size)
        patches = _patches(values, patch_size)
        rows, columns, count = patches.shape[:3]
        tokens = slice(first, first + rows * columns)
        # Splitting its first axis keeps the slot a view, so the patches reach the batch in one copy; a row of pixels
        # moves as one thing, which is faster than number by number.
        slot = batch["pixel_values"][index, tokens, :count]
        pixels = np.dtype((np.void, patch_size * values.itemsize))
        slot.reshape(rows, columns, *slot.shape[1:]).view(pixels)[...] = patches.view(pixels)
        batch["image_ids"][index, tokens] = number
        centres = patch_centres(image_set.placement.corners[number], *size, patch_size)
        batch["patch_positions"][index, tokens] = centres.reshape(-1, 2)
        real = None
        if valid is not None or (rows * patch_size, columns * patch_size) != size:
            inside = np.ones(values.shape, dtype=bool) if valid is None else valid
            real = _patches(inside, patch_size).reshape(-1, count, patch_size, patch_size)
        batch["attention_mask"][index, tokens] = True if real is None else real.any(axis=(1, 2, 3))
        masks.append(_TokenMask((index, tokens, slice(count)), real))
        first = tokens.stop
    return masks


def _join_masks(batch: dict[str, np.ndarray], masks: Sequence[_TokenMask]) -> None:
    """Add `pixel_mask` to the batch, unless every value of every existing token and present band is real."""
    if all(real is None or real[batch["attention_mask"][place[:2]]].all() for place, real in masks):
        return
    batch["pixel_mask"] = np.zeros(batch["pixel_values"].shape, dtype=bool)
    for place, real in masks:
        batch["pixel_mask"][place] = True if real is None else real


# Fold predictions back


def _predicted_tokens(outputs: Any, batch: Mapping[str, Any], normalize_targets: bool) -> np.ndarray:
    """Return the predictions in standardised units at their tokens, (B, L, C, P·P) float32, NaN where there is none."""
    logits, token_ids = to_numpy(outputs.logits), to_numpy(outputs.token_ids)
    inputs = to_numpy(batch["pixel_values"])
    values = np.full(inputs.shape, np.nan, dtype=np.float32)
    sets, predictions = np.nonzero(token_ids >= 0)
    tokens = token_ids[sets, predictions]
    predicted = logits[sets, predictions]
    if normalize_targets:
        targets, real = inputs[sets, tokens], _real_values(batch)[sets, tokens]
        # As in MAE (He et al. 2022): mean and unbiased variance over all values of the patch, plus 1e-6.
        count = real.sum(axis=(1, 2), keepdims=True)
        mean = targets.sum(axis=(1, 2), keepdims=True, where=real) / np.maximum(count, 1)
        squares = ((targets - mean) ** 2).sum(axis=(1, 2), keepdims=True, where=real)
        predicted = predicted * np.sqrt(squares / np.maximum(count - 1, 1) + 1e-6) + mean
    values[sets, tokens] = predicted
    return values


def _paste_visible(values: np.ndarray, outputs: Any, batch: Mapping[str, Any]) -> None:
    """Put the input of every visible token in the place of its prediction, NaN where the input is not real."""
    visible = to_numpy(batch["attention_mask"]) & ~to_numpy(outputs.mask)
    inputs = to_numpy(batch["pixel_values"])[visible]
    values[visible] = np.where(_real_values(batch)[visible], inputs, np.nan)


def _real_values(batch: Mapping[str, Any]) -> np.ndarray:
    """Return where the values of a batch are real, (B, L, C, P·P) bool."""
    if "pixel_mask" in batch:
        return to_numpy(batch["pixel_mask"])
    wavelengths, image_ids = to_numpy(batch["band_wavelengths"]), to_numpy(batch["image_ids"])
    present = wavelengths[np.arange(len(image_ids))[:, None], image_ids] > 0
    present &= to_numpy(batch["attention_mask"])[..., None]
    return np.broadcast_to(present[..., None], batch["pixel_values"].shape)
