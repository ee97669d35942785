"""What a model says of a batch of windows: features of patches, or probabilities of classes of pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from a2mae_hub.images import ImageSet
from a2mae_hub.inference import Checkpoint, feature_maps
from a2mae_hub.modeling.image_processing_a2mae import resample
from a2mae_hub.modeling.tasks_a2mae import A2MAEForChangeDetection, A2MAEForImageClassification
from a2mae_hub.prediction import NO_CLASS, TaskCheckpoint

Answer = tuple[np.ndarray, np.ndarray]
"""Values (channels, height, width) float32 of a window, and where there are any (height, width) bool."""


class Answers(Protocol):
    """What is asked of every window.

    Attributes:
        channels: Values a place.
        by_pixel: Whether places are the anchor's pixels, not its patches.
        fewest: Images that a window must have.
    """

    channels: int
    by_pixel: bool
    fewest: int

    def __call__(self, inputs: dict[str, torch.Tensor], image_sets: Sequence[ImageSet]) -> Iterator[Answer]:
        """Yield what the model says of every set of a batch."""

    def store(self, values: np.ndarray) -> np.ndarray:
        """Return blended values, NaN where there are none, as they are kept."""


class FeaturesOfPatches:
    """Features on the patches of the anchor, all images fused.

    Args:
        checkpoint: What encodes.
    """

    by_pixel = False
    fewest = 1

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.channels = checkpoint.model.config.hidden_size
        self._model = checkpoint.model.a2mae

    def __call__(self, inputs: dict[str, torch.Tensor], image_sets: Sequence[ImageSet]) -> Iterator[Answer]:
        """Yield the features of every set."""
        maps = feature_maps(self._model, inputs)[1].cpu().numpy()
        sets = torch.arange(len(maps))
        shapes = inputs["grid_shapes"].cpu()[sets, inputs["anchor_ids"].cpu()].tolist()
        for values, (rows, columns) in zip(maps, shapes, strict=True):
            values = values[:, :rows, :columns]
            yield values, ~np.isnan(values[0])

    def store(self, values: np.ndarray) -> np.ndarray:
        """Return them in half precision: of features between −10 and 10 it keeps three digits."""
        return torch.from_numpy(values).half().numpy()


class ClassesOfPixels:
    """Classes on the pixels of the anchor; windows are blended as probabilities.

    Args:
        checkpoint: Of segmentation or change detection.

    Raises:
        ValueError: If the checkpoint makes no maps.
    """

    by_pixel = True

    def __init__(self, checkpoint: TaskCheckpoint) -> None:
        if isinstance(checkpoint.model, A2MAEForImageClassification):
            raise ValueError(f"{checkpoint.name}: is a classifier of whole scenes and makes no map; write scores.csv.")
        self.channels = checkpoint.model.config.num_labels
        self.fewest = 2 if isinstance(checkpoint.model, A2MAEForChangeDetection) else 1
        self._model = checkpoint.model
        self._size = checkpoint.processor.size

    def __call__(self, inputs: dict[str, torch.Tensor], image_sets: Sequence[ImageSet]) -> Iterator[Answer]:
        """Yield the probabilities of every set."""
        logits = self._model(**inputs).logits.float()
        odds = (logits.sigmoid() if self.channels == 1 else logits.softmax(1)).cpu().numpy()
        for values, image_set in zip(odds, image_sets, strict=True):
            anchor = image_set[image_set.anchor]
            shape = anchor.pixels.shape[1:]
            rows, columns = self._size or shape
            yield resample(values[:, :rows, :columns], None, shape)[0], np.asarray(anchor.valid_values().any(0))

    def store(self, values: np.ndarray) -> np.ndarray:
        """Return the likeliest class, `NO_CLASS` where there is none; (1, height, width) uint8."""
        classes = (values[:1] > 0.5) if self.channels == 1 else values.argmax(0, keepdims=True)
        return np.where(np.isnan(values[:1]), NO_CLASS, classes).astype(np.uint8)
