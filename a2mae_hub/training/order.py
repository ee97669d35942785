"""The order in which image sets are learned from: without end, and known in advance for every step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from a2mae_hub.stssd.stream import ImageSetStream


class EndlessSets(IterableDataset):
    """The examples of several streams without end, from the batches of any step on; every batch is of one stream.

    Sets of one kind resemble each other in bands and size, so a batch of one kind is hardly padded. A stream has its
    turn in proportion to the square root of its size: collections of a hundred sets are neither drowned by those of
    thousands nor learned by heart.

    It is a plain dataset of torch on purpose: accelerate gives every process its slice of each batch of such a one, but
    cuts a `datasets.IterableDataset` into shards, of which the batches are others than those of a single process.

    Args:
        streams: As `a2mae_hub.stssd.load` returns them.
        batch_size: Sets of a step, all processes together.
        patch_size: Side of a patch in pixels; smaller images are refused.
        num_workers: Of the data loader.
        first_step: The step to begin with. The first `num_skipped` batches of the data loader are to be thrown away:
            what worker 0 yields first belongs to a step that is a multiple of the number of workers.

    Raises:
        ValueError: If there are fewer sets than workers.
    """

    def __init__(
        self,
        streams: Sequence[ImageSetStream],
        batch_size: int,
        patch_size: int,
        num_workers: int = 0,
        first_step: int = 0,
    ) -> None:
        self.streams, self.batch_size, self.patch_size = list(streams), batch_size, patch_size
        self.num_sets = sum(stream.num_sets for stream in streams)
        self.first_step = first_step
        shares = max(num_workers, 1)
        self.num_skipped = first_step % shares
        if not all(sum(self._counts(share, shares)) for share in range(shares)):
            raise ValueError(
                f"{self.num_sets} image sets are too few to share among {num_workers} workers; use fewer (--workers)."
            )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the share of this worker without end.

        Raises:
            ValueError: If an image is smaller than a patch; names the set.
        """
        worker = get_worker_info()
        share, shares = (worker.id, worker.num_workers) if worker else (0, 1)
        counts = self._counts(share, shares)
        turns = _turns([math.sqrt(count) for count in counts])
        done = Counter(islice(turns, self.first_step // shares))
        sources = [
            _endless(stream, done[number] * self.batch_size, count, share, shares)
            for number, (stream, count) in enumerate(zip(self.streams, counts, strict=True))
        ]
        for number in turns:
            for example in islice(sources[number], self.batch_size):
                self._check(example)
                yield example

    def _counts(self, share: int, shares: int) -> list[int]:
        """Return how many sets of every stream are in a share."""
        return [stream.split_by_node(share, shares).num_sets for stream in self.streams]

    def _check(self, example: dict[str, Any]) -> None:
        """Refuse images of which a patch would be padding for the most part."""
        for image in example["images"]:
            height, width = image["pixels"].shape[1:]
            if min(height, width) < self.patch_size:
                raise ValueError(
                    f"set {example['id']!r}: an image of {height} × {width} pixels is smaller than a patch of"
                    f" {self.patch_size} × {self.patch_size}; leave such images out, or set a smaller patch_size."
                )


def _turns(weights: Sequence[float]) -> Iterator[int]:
    """Iterate over numbers without end, each as often as its weight says and as evenly as can be."""
    had = [0] * len(weights)
    while True:
        # The one that is due first: its next turn lies earliest on a line where its turns are evenly spaced.
        number = min((n for n, weight in enumerate(weights) if weight), key=lambda n: (had[n] + 0.5) / weights[n])
        had[number] += 1
        yield number


def _endless(stream: ImageSetStream, done: int, count: int, share: int, shares: int) -> Iterator[dict[str, Any]]:
    """Iterate over a worker's share of a stream, `count` sets, epoch after epoch, after so many sets that are done."""
    while True:
        epoch, place = divmod(done, count)
        for example in _resumed(stream, epoch, place, share, shares):
            yield example
            done += 1


def _resumed(stream: ImageSetStream, epoch: int, number: int, share: int, shares: int) -> Iterator[dict[str, Any]]:
    """Iterate over a worker's share of one epoch of a stream from its set `number` on."""
    # Another object than that of other workers: `datasets` keeps the epoch in memory that they share.
    stream = stream.split_by_node(0, 1)
    part = stream.split_by_node(share, shares)
    part.set_epoch(epoch)
    state = part.state_dict()
    state["examples_iterable"]["position"] = number
    # In a worker the stream takes its share of itself.
    stream.load_state_dict(state)
    return iter(stream)
