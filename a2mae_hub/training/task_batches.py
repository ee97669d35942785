"""Batches of labelled image sets, cut out, turned and mirrored so that pixels, positions and labels stay together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from a2mae_hub.images import ImageSet, cut_image
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor

from .augmentation import turn_patches
from .label_files import IGNORED
from .labelled import LabelledSet

# Times that a part is drawn before a set is taken whole: half of them anywhere, half around a pixel with a label.
_DRAWS = 32
# What a batch has of every token.
_TOKEN_KEYS = ("pixel_values", "pixel_mask", "attention_mask", "image_ids", "patch_positions")


class TaskCollator:
    """Makes a batch with labels of labelled image sets.

    Args:
        processor: Turns image sets into batches.
        augment: Turn and mirror every set, and cut maps out of larger images. What is drawn is a function of seed,
            epoch and set.
        side: Patches along a side of what is cut out for maps at most; whole patches.
        seed: Of what is drawn.
    """

    def __init__(self, processor: A2MAEImageProcessor, *, augment: bool = False, side: int = 16, seed: int = 0) -> None:
        self.processor, self.augment, self.side, self.seed = processor, augment, side, seed

    def __call__(self, examples: Sequence[LabelledSet]) -> dict[str, torch.Tensor]:
        """Return the batch, as the processor does, with `labels` as the model takes them, and `indices` (B,) int64.

        The labels of maps are (B, height, width) int64 on whole patches of the largest anchor.

        Raises:
            ValueError: If a set cannot be what it says it is; names it.
        """
        sets = [example.image_set for example in examples]
        labels = [example.label for example in examples]
        generators = [np.random.default_rng((self.seed, one.epoch, one.index)) for one in examples]
        is_map = labels[0].ndim == 2
        patch = self.processor.patch_size
        if self.augment and is_map:
            sides = (self.side * patch, self.side * patch)
            cut = [cut_out(*one, sides, patch) for one in zip(sets, labels, generators, strict=True)]
            sets, labels = [one for one, _ in cut], [label for _, label in cut]
        if is_map:
            # Turned, what an image lacks to whole patches lies before its first row.
            labels = [
                np.pad(label, [(0, -side % patch) for side in label.shape], constant_values=IGNORED) for label in labels
            ]
        batch = dict(self.processor(sets, return_tensors="np"))
        if self.augment:
            turns = [int(generator.integers(8)) for generator in generators]
            turn_sets(batch, turns, patch)
            if is_map:
                labels = [turned(label, turn) for label, turn in zip(labels, turns, strict=True)]
        batch["labels"] = _stacked(labels) if is_map else np.stack(labels)
        batch["indices"] = np.array([one.index for one in examples], np.int64)
        return {key: torch.from_numpy(np.ascontiguousarray(values)) for key, values in batch.items()}


def _stacked(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return masks as one array (B, height, width) int64, `IGNORED` where they are smaller."""
    height, width = (max(label.shape[axis] for label in labels) for axis in (0, 1))
    stacked = np.full((len(labels), height, width), IGNORED, np.int64)
    for values, label in zip(stacked, labels, strict=True):
        values[: label.shape[0], : label.shape[1]] = label
    return stacked


def turned(cells: np.ndarray, turn: int) -> np.ndarray:
    """Return (rows, columns) under one of the eight symmetries of the square.

    Args:
        cells: Rows that run south, columns that run east.
        turn: Bit 1 mirrors east and west, bit 2 north and south, bit 4 then swaps rows and columns.
    """
    cells = cells[:: -1 if turn & 2 else 1, :: -1 if turn & 1 else 1]
    return cells.T if turn & 4 else cells


def turn_sets(batch: dict[str, np.ndarray], turns: Sequence[int], patch_size: int) -> None:
    """Turn and mirror every set of a batch as a whole, in place, tokens again row by row from the north west.

    Args:
        batch: As the processor returns it, of images whose rows run south and columns east.
        turns: One per set, as in `turned`.
        patch_size: Pixels.
    """
    turn_patches(batch, turns, patch_size)
    for index, turn in enumerate(turns):
        order = np.arange(batch["image_ids"].shape[1])
        first = 0
        for number, (rows, columns) in enumerate(batch["grid_shapes"][index].tolist()):
            cells = turned(np.arange(first, first + rows * columns).reshape(rows, columns), turn)
            order[first : first + cells.size] = cells.ravel()
            batch["grid_shapes"][index, number] = cells.shape
            first += cells.size
        for key in _TOKEN_KEYS:
            if key in batch:
                batch[key][index] = batch[key][index][order]


def cut_out(
    image_set: ImageSet, label: np.ndarray, generator: np.random.Generator, size: tuple[int, int], patch_size: int
) -> tuple[ImageSet, np.ndarray]:
    """Return a random part of a set and of its mask, of that many pixels of the anchor at most.

    Other images give the same share of their pixels, which is the same ground where all have one footprint. Parts where
    an image has no data, or the mask no label, are drawn again; where there is no other the set stays whole.

    Args:
        image_set: The images.
        label: (height, width) on the pixels of the anchor.
        generator: Draws where.
        size: Rows and columns.
        patch_size: No image is cut to less than a patch.
    """
    shares = [min(1.0, most / side) for most, side in zip(size, label.shape, strict=True)]
    if shares == [1.0, 1.0]:
        return image_set, label
    # On whole pixels of the anchor.
    sides = [round(share * side) for share, side in zip(shares, label.shape, strict=True)]

    def window(shape: Sequence[int], starts: Sequence[float]) -> tuple[slice, slice]:
        spans = [max(min(patch_size, side), round(share * side)) for share, side in zip(shares, shape, strict=True)]
        firsts = [min(round(start * side), side - span) for start, side, span in zip(starts, shape, spans, strict=True)]
        rows, columns = (slice(first, first + span) for first, span in zip(firsts, spans, strict=True))
        return rows, columns

    for draw in range(_DRAWS):
        firsts = [int(generator.integers(whole - side + 1)) for whole, side in zip(label.shape, sides, strict=True)]
        labelled = np.flatnonzero(label != IGNORED) if draw >= _DRAWS // 2 else ()
        if len(labelled):
            centre = np.unravel_index(generator.choice(labelled), label.shape)
            firsts = [
                int(np.clip(at - side // 2, 0, whole - side))
                for at, whole, side in zip(centre, label.shape, sides, strict=True)
            ]
        starts = [first / whole for first, whole in zip(firsts, label.shape, strict=True)]
        part = label[window(label.shape, starts)]
        if not (part != IGNORED).any() and (label != IGNORED).any():
            continue
        images = [cut_image(image, *window(image.pixels.shape[1:], starts)) for image in image_set]
        if all(image.valid_values().any() for image in images):
            return replace(image_set, images=images), part
    return image_set, label
