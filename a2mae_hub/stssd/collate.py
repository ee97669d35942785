"""From streamed examples to the batch that a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor

from .schema import from_row


class ImageSetCollator:
    """Makes a batch of the examples of `a2mae_hub.stssd.load`; the `collate_fn` of a data loader.

    Args:
        processor: Turns image sets into batches.
        noise: Add `noise` (B, 3, L) float32, standard normal numbers that decide the masks of `A2MAEForPreTraining`.
            They are drawn from the seed of each set, so its mask is the same in whatever batch, process or order it
            comes; tokens that pad the set have 0.

    Example:
        ```python
        loader = DataLoader(stream, batch_size=16, num_workers=2, collate_fn=ImageSetCollator(processor, noise=True))
        loss = model(**next(iter(loader))).loss
        ```
    """

    def __init__(self, processor: A2MAEImageProcessor, *, noise: bool = False) -> None:
        self.processor = processor
        self.noise = noise

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of B examples.

        Raises:
            ValueError: If a set cannot be what it says it is; names the set.
        """
        sets = [from_row(example) for example in examples]
        try:
            batch = dict(self.processor(sets, return_tensors="pt"))
        except ValueError as error:
            # The processor names sets where it is given several.
            if len(sets) > 1:
                raise
            raise ValueError(f"set {sets[0].id!r}: {error}") from error
        if self.noise:
            batch["noise"] = self._noise([example["seed"] for example in examples], batch)
        return batch

    def _noise(self, seeds: Sequence[int], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the noise of a batch, that of every set drawn for its own number of tokens."""
        noise = np.zeros((len(seeds), 3, batch["attention_mask"].shape[1]), np.float32)
        counts = batch["grid_shapes"].prod(-1).sum(-1).tolist()
        for values, seed, count in zip(noise, seeds, counts, strict=True):
            # numpy's numbers are the same on every processor; torch's depend on its vector instructions.
            values[:, :count] = np.random.default_rng(seed).standard_normal((3, count), np.float32)
        return torch.from_numpy(noise)
