"""From streamed examples to the batches of pre-training: what differs from one epoch, and one view, to the next.

A view of an image set is a part of its images, of its bands and of its ground, magnified up to twice, turned and
mirrored as a whole (pixels and positions alike), away from the origin of positions as if it were a part of a larger
scene, a little brighter or darker. Everything is drawn from the seed that
the stream gives each example, so a batch depends neither on workers nor on processes, and a resumed run sees what an
uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from a2mae_hub.images import Image, cut_image
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor, resample
from a2mae_hub.stssd.schema import StoredSet, from_row

# Side of the smallest part of the ground that a view shows, as a share of the largest.
_SMALLEST_PART = 0.6
# Most a view is magnified: patches then span half as many metres, and the model learns finer detail than it has pixels
# to a patch for. Drawn evenly on a logarithmic scale from 1 on.
_LARGEST_ZOOM = 2.0
# Farthest from the origin of positions that a view lies, in patches north or south and east or west: a scene of 40
# patches a side then shows no position that the model has not seen.
_FARTHEST = 16.0
# Deviations of gain and offset (in standardised units) between views: what haze and calibration do to a scene.
_GAIN, _OFFSET = 0.1, 0.1
# Share of the views that see all bands, and of those that see the visible ones only; the rest sees at least half.
_ALL_BANDS, _VISIBLE_BANDS = 0.5, 0.25
_VISIBLE = ("blue", "green", "red")


class PretrainingCollator:
    """Makes a batch for `A2MAEForPreTraining` of the examples of `a2mae_hub.stssd.load`.

    Args:
        processor: Turns image sets into batches.
        images: Images of a set that a view holds at most.
        side: Patches along a side of an image at most; of larger images a view shows a part.
        views: Views of every set; the batch then holds the views of a set one after the other, and `set_ids`.
        augment: Vary images, bands, ground, orientation and brightness. Otherwise every view is the first images of the
            set, on the ground around its centre.

    Example:
        ```python
        collate = PretrainingCollator(processor, views=2)
        loss = model(**collate(list(stream.take(16)))).loss
        ```
    """

    def __init__(
        self,
        processor: A2MAEImageProcessor,
        *,
        images: int = 3,
        side: int = 8,
        views: int = 1,
        augment: bool = True,
    ) -> None:
        if min(images, side, views) < 1:
            raise ValueError(f"images={images}, side={side} and views={views} must be at least 1.")
        self.processor = processor
        self.images = images
        self.side = side
        self.views = views
        self.augment = augment

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of B = examples × views, as the processor does, with `noise` (B, 3, L) float32.

        Raises:
            ValueError: If a set cannot be what it says it is; names the set.
        """
        seeds = [(int(example["seed"]), view) for example in examples for view in range(self.views)]
        # numpy's numbers are the same on every processor; torch's depend on its vector instructions.
        generators = [np.random.default_rng(seed) for seed in seeds]
        sets = [from_row(example) for example in examples for _ in range(self.views)]
        views = [self.view(one, generator) for one, generator in zip(sets, generators, strict=True)]
        batch = dict(self.processor(views, return_tensors="np"))
        if self.augment:
            turn_patches(batch, [int(generator.integers(8)) for generator in generators], self.processor.patch_size)
            _move(batch, generators, self.processor.patch_size)
            _brighten(batch, generators)
        batch["noise"] = _noise(batch, generators)
        if self.views > 1:
            batch["set_ids"] = np.array([seed for seed, _ in seeds], np.int64)
        return {key: torch.from_numpy(values) for key, values in batch.items()}

    def view(self, image_set: StoredSet, generator: np.random.Generator) -> StoredSet:
        """Return a view of a set: a part of its images, bands and ground, not yet turned or brightened."""
        count = min(len(image_set), self.images)
        if self.augment:
            count = int(generator.integers(1, count + 1))
        others = np.array([index for index in range(len(image_set)) if index != image_set.anchor], int)
        if self.augment:
            generator.shuffle(others)
        chosen = sorted([image_set.anchor, *others[: count - 1].tolist()])
        images = [image_set[index] for index in chosen]
        longest = max(max(image.pixels.shape[1:]) for image in images)
        share = min(1.0, self.side * self.processor.patch_size / longest)
        corner, zoom = np.array([0.5, 0.5]), 1.0
        bands = {image.sensor: list(range(len(image.bands))) for image in images}
        if self.augment:
            bands = {image.sensor: self._some_bands(image, generator) for image in images}
            share *= generator.uniform(_SMALLEST_PART, 1.0)
            zoom = _LARGEST_ZOOM ** generator.uniform()
            corner = generator.uniform(0.0, 1.0, 2)
        patch_size = self.processor.patch_size
        images = [_part(image, bands[image.sensor], share, corner, patch_size, zoom) for image in images]
        return replace(image_set, images=images, anchor=chosen.index(image_set.anchor))

    def _some_bands(self, image: Image, generator: np.random.Generator) -> list[int]:
        """Return which bands of the images of a sensor a view sees."""
        sensor = next(one for one in self.processor.sensors if one.name == image.sensor)
        draw = generator.random()
        count = len(image.bands)
        if draw < _ALL_BANDS:
            return list(range(count))
        visible = [i for i, name in enumerate(image.bands) if sensor.find(name).common_name in _VISIBLE]
        if visible and draw < _ALL_BANDS + _VISIBLE_BANDS:
            return visible
        size = int(generator.integers(math.ceil(count / 2), count + 1))
        return sorted(generator.choice(count, size, replace=False).tolist())


def _part(image: Image, bands: Sequence[int], share: float, corner: np.ndarray, patch_size: int, zoom: float) -> Image:
    """Return some bands of a part of an image, in whole patches.

    Args:
        image: The image.
        bands: Positions of the bands.
        share: Height and width of the part, as a share of those of the image, before it is magnified.
        corner: Where the part starts, down and across: 0 at the first row or column, 1 where it ends with the last.
        patch_size: Pixels.
        zoom: How many times as large the pixels of the part become; it shows that much less, and is as large.
    """
    sizes, starts, stops = [], [], []
    for size, at in zip(image.pixels.shape[1:], corner, strict=True):
        sizes.append(min(size, max(1, round(share * size / patch_size)) * patch_size))
        span = round(sizes[-1] / zoom)
        starts.append(round(float(at) * (size - span)))
        stops.append(starts[-1] + span)
    rows, columns = (slice(start, stop) for start, stop in zip(starts, stops, strict=True))
    part = cut_image(image, rows, columns)
    valid = part.valid
    part = replace(
        part,
        pixels=part.pixels[bands],
        bands=[image.bands[band] for band in bands],
        valid=valid if valid is None or valid.ndim == 2 else valid[bands],
        scale=_of_bands(image.scale, bands),
        offset=_of_bands(image.offset, bands),
    )
    return part if zoom == 1 else _magnified(part, (sizes[0], sizes[1]))


def _magnified(image: Image, size: tuple[int, int]) -> Image:
    """Return an image of the same ground in more pixels, bilinear between those that have data."""
    pixels = image.pixels.astype(np.float32)
    real = np.isfinite(pixels)
    if image.nodata is not None:
        real &= image.pixels != image.nodata
    if image.valid is not None:
        real &= image.valid
    whole = bool(real.all())
    values, known = resample(pixels if whole else np.where(real, pixels, np.float32(0)), None if whole else real, size)
    down, across = (own / new for own, new in zip(pixels.shape[1:], size, strict=True))
    transform = image.transform
    if transform is not None:
        a, b, c, d, e, f = tuple(transform)[:6]
        transform = (a * across, b * down, c, d * across, e * down, f)
    return replace(
        image,
        pixels=values,
        valid=known,
        nodata=None,
        transform=transform,
        gsd=None if image.gsd is None else image.gsd * math.sqrt(down * across),
    )


def _of_bands(factor: float | Sequence[float] | None, bands: Sequence[int]) -> float | list[float] | None:
    """Return a scale or offset for some of the bands: one number stays one."""
    if factor is None or np.ndim(factor) == 0:
        return factor  # type: ignore[return-value]
    numbers = np.ravel(factor).tolist()
    return numbers[0] if len(numbers) == 1 else [numbers[band] for band in bands]


def turn_patches(batch: dict[str, np.ndarray], turns: Sequence[int], patch_size: int) -> None:
    """Turn and mirror every set of a batch as a whole, in place: the pixels of its patches, and where these lie.

    Args:
        batch: As the processor returns it, of images whose rows run south and columns east.
        turns: One of the eight symmetries of the square per set: bit 1 mirrors east and west, bit 2 north and south,
            bit 4 then swaps rows and columns.
        patch_size: Pixels.
    """
    for index, turn in enumerate(turns):
        for key in ("pixel_values", "pixel_mask"):
            if key in batch:
                patches = batch[key][index]
                square = patches.reshape(*patches.shape[:2], patch_size, patch_size)
                square = square[..., :: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]
                square = square.swapaxes(-1, -2) if turn & 4 else square
                batch[key][index] = square.reshape(patches.shape)
        north, east = batch["patch_positions"][index].T
        north, east = (-north if turn & 2 else north), (-east if turn & 1 else east)
        # Rows run south: where they swap with columns, what was east is south.
        north, east = (-east, -north) if turn & 4 else (north, east)
        batch["patch_positions"][index] = np.stack([north, east], axis=-1)


def _move(batch: dict[str, np.ndarray], generators: Sequence[np.random.Generator], patch_size: int) -> None:
    """Move every set of a batch as a whole away from the origin of positions, in place."""
    metres = batch["ground_resolutions"].max(axis=1) * patch_size
    counts = batch["grid_shapes"].prod(-1).sum(-1).tolist()
    for positions, count, side, generator in zip(batch["patch_positions"], counts, metres, generators, strict=True):
        positions[:count] += side * generator.uniform(-_FARTHEST, _FARTHEST, 2)


def _brighten(batch: dict[str, np.ndarray], generators: Sequence[np.random.Generator]) -> None:
    """Give every set of a batch a gain and an offset of its own, in place; what is no data stays 0."""
    gains = np.exp([generator.normal(0, _GAIN) for generator in generators]).astype(np.float32)
    offsets = np.array([generator.normal(0, _OFFSET) for generator in generators], np.float32)
    values = batch["pixel_values"]
    values *= gains[:, None, None, None]
    values += offsets[:, None, None, None]
    present = np.take_along_axis(batch["band_wavelengths"] > 0, batch["image_ids"][..., None], axis=1)
    values *= (present & batch["attention_mask"][..., None])[..., None]
    if "pixel_mask" in batch:
        values *= batch["pixel_mask"]


def _noise(batch: Mapping[str, np.ndarray], generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Return standard normal numbers (B, 3, L) float32, those of every set drawn for its own number of tokens."""
    noise = np.zeros((len(generators), 3, batch["attention_mask"].shape[1]), np.float32)
    counts = batch["grid_shapes"].prod(-1).sum(-1).tolist()
    for values, generator, count in zip(noise, generators, counts, strict=True):
        values[:, :count] = generator.standard_normal((3, count), np.float32)
    return noise
