"""Image sets from shards, local or on the Hub, in an order that can be taken up again after any set.

The order is a function of the seed, the epoch and the share of a worker, and of nothing else:

1. The row groups of the whole data set are put in an order drawn for the epoch. This gives every set a position.
2. Nodes, and workers within them, each take one contiguous range of positions, cut to the set.
3. A worker mixes the sets of several row groups at a time, in an order drawn for each such window.

So the state of a stream is one number, how many sets of its range were yielded; and to go on from it takes no more than
the row groups of the window it stands in.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy, deepcopy
from datetime import date
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import IterableDataset
from datasets.iterable_dataset import _BaseExamplesIterable
from fsspec.implementations.local import LocalFileSystem

from .schema import decode
from .selection import Plan, Selection, make_plan
from .shards import find_shards, open_shard, read_group

# Row groups whose sets are mixed: at 16 MiB a row group a worker holds 256 MiB, and as much again read ahead.
_WINDOW = 16

_MOST_OPEN_SHARDS = 8

# `datasets` splits by shards only where their number is a multiple of that of the nodes, and elsewhere lets every node
# read everything and skip. Our positions can be cut anywhere, whatever the files, so the number we tell has many
# divisors (2⁸ · 3² · 5 · 7) and stays the same in every part.
_NUM_SHARDS = 80_640


def load(
    path: str | os.PathLike[str],
    *,
    kinds: str | Iterable[str] | None = None,
    sensors: str | Iterable[str] | None = None,
    start: str | date | None = None,
    end: str | date | None = None,
    bounds: Sequence[float] | None = None,
    split: str | None = None,
    shuffle: bool = False,
    seed: int = 0,
) -> ImageSetStream:
    """Stream the image sets of a data set.

    `kinds`, `bounds` and `split` choose sets. `sensors`, `start` and `end` choose images: others are left out of their
    sets, and sets that keep none are skipped. Pixels are read of row groups with a match only.

    Every example is a dict of the columns of `a2mae_hub.stssd.schema` and any further ones, the pixels as read-only
    arrays that look into the memory of their row group (copy what is kept for long), and of two more:

    - seed: 63 bits, a function of the stream's seed, the epoch and the set's id, for all that is random about the set
    - anchor: index of the anchor image, seed modulo the number of images

    `a2mae_hub.stssd.schema.from_row` makes an `ImageSet` of it, `a2mae_hub.stssd.ImageSetCollator` a batch of several.

    Args:
        path: A folder or a file; a data set's id on the Hub ("org/name"); or any URL that fsspec opens.
        kinds: One kind of sets or several.
        sensors: One sensor or several.
        start: Earliest acquisition time of images: ISO 8601 text, `date` or `datetime`, UTC where no zone is given.
        end: Acquisition time from which on images are left out, so `start="2020", end="2021"`, written in full as
            "2020-01-01" and "2021-01-01", is one year. Images without a date match neither.
        bounds: West, south, east and north in degrees; west > east crosses the antimeridian. Sets whose box touches it
            match, those without a place do not.
        split: "train", "validation", or the data set's own.
        shuffle: Another order in every epoch (`set_epoch`), in place of that of the files.
        seed: Decides order, anchors and seeds.

    Returns:
        The stream.

    Raises:
        FileNotFoundError: If there is no such folder, or no shard in it.
        ValueError: If no set is left, with the filter that left none; if a filter is none; if a shard is damaged.

    Example:
        ```python
        stream = load("out/stssd", kinds="city", start="2020-01-01", shuffle=True, seed=7)
        loader = StatefulDataLoader(stream, batch_size=16, num_workers=2, collate_fn=ImageSetCollator(processor))
        ```
    """
    selection = Selection.parse(kinds, sensors, start, end, bounds, split)
    files = find_shards(path)
    plan = make_plan(files, selection)
    return ImageSetStream(_StoredSets(plan, files.filesystem, selection, shuffle, seed))


def _keeping_the_class(name: str) -> Callable[..., ImageSetStream]:
    """Return a method of `IterableDataset` that returns our class in place of the parent's."""
    method = getattr(IterableDataset, name)

    @functools.wraps(method)
    def kept(self: ImageSetStream, *args: Any, **kwargs: Any) -> ImageSetStream:
        return self._kept(method(self, *args, **kwargs))

    return kept


class ImageSetStream(IterableDataset):
    """A `datasets.IterableDataset` of image sets whose state is exact; see `load`.

    It differs from its parent in this:

    - A loaded state brings its epoch along. The parent ignores a state of another epoch than its own, in silence, and
      starts from the beginning.
    - A loaded state is used up by the iteration that it resumes; the next one is whole again.
    - `shuffle` is the exact one of `load`, without a buffer whose content a state would lose.
    - `take` and `skip` cut positions: nothing is read to be skipped, and workers share exactly the sets asked for.
    - `split_by_node` gives every node its share, whatever their number, as a stream of this class.
      `datasets.distributed.split_dataset_by_node` does the same for up to ten nodes and many larger numbers of them,
      but returns a plain `IterableDataset`: call its `set_epoch` before its `load_state_dict`.
    """

    map = _keeping_the_class("map")
    filter = _keeping_the_class("filter")
    repeat = _keeping_the_class("repeat")
    batch = _keeping_the_class("batch")
    with_format = _keeping_the_class("with_format")
    select_columns = _keeping_the_class("select_columns")
    remove_columns = _keeping_the_class("remove_columns")
    rename_columns = _keeping_the_class("rename_columns")

    @property
    def num_sets(self) -> int:
        """Number of sets in this stream's share, before any `map` or `filter` that came after `load`."""
        iterable = self._ex_iterable
        if self._distributed:
            iterable = iterable.shard_data_sources(self._distributed.world_size, self._distributed.rank)
        while not isinstance(iterable, _StoredSets):
            iterable = iterable.ex_iterable
        return iterable.stop - iterable.start

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the sets of the epoch, from the loaded state on if there is one."""
        # Until its first set, an iteration of the parent leaves the state at the end of the one before, which a data
        # loader would save for workers that it has not heard of yet.
        self._prepare_ex_iterable_for_iteration()
        return self._iterate()

    def _iterate(self) -> Iterator[dict[str, Any]]:
        yield from super().__iter__()
        self._starting_state_dict = None

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch: another order if the stream is shuffled, other seeds and anchors in any case."""
        super().set_epoch(epoch)
        self._prepare_ex_iterable_for_iteration()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state, and to the epoch that it was saved in.

        Args:
            state_dict: What `state_dict` returned, of a stream loaded with the same arguments and shared among the same
                number of nodes and workers; iterating raises ValueError if it was not.
        """
        super().load_state_dict(state_dict)
        self.set_epoch(state_dict["epoch"])

    def shuffle(self, seed: int | None = None, *_: Any, **__: Any) -> ImageSetStream:
        """Return the stream in the shuffled order of `load(..., shuffle=True)`.

        Args:
            seed: As in `load`; None keeps the stream's. Further arguments, which tell `datasets` how large a buffer to
                mix in, are accepted and not needed.

        Raises:
            ValueError: If the order is fixed already by `take` or `skip`, or hidden below `map` or `filter`.
        """
        stored = self._ex_iterable
        if not isinstance(stored, _StoredSets) or stored.frozen:
            raise ValueError("Shuffle a stream before take, skip, map and filter: load(..., shuffle=True).")
        return self._same(stored.shuffled(stored.seed if seed is None else seed))

    def take(self, n: int) -> ImageSetStream:
        """Return the first `n` sets. Their order is that of the first epoch from then on."""
        stored = self._ex_iterable
        return self._same(stored.part(0, n)) if isinstance(stored, _StoredSets) else self._kept(super().take(n))

    def skip(self, n: int) -> ImageSetStream:
        """Return all but the first `n` sets. Their order is that of the first epoch from then on."""
        stored = self._ex_iterable
        if isinstance(stored, _StoredSets):
            return self._same(stored.part(n, stored.stop - stored.start))
        return self._kept(super().skip(n))

    def shard(self, num_shards: int, index: int, contiguous: bool = True) -> ImageSetStream:
        """Return part `index` of `num_shards`: the same sets in every epoch, in an order of their own."""
        stored = self._ex_iterable
        if isinstance(stored, _StoredSets):
            return self._same(stored.fixed_shard(num_shards, index))
        return self._kept(super().shard(num_shards, index, contiguous))

    def split_by_node(self, rank: int, world_size: int) -> ImageSetStream:
        """Return the share of one node of `world_size`: other sets in every epoch, of all those shuffled together."""
        return self._same(self._ex_iterable.shard_data_sources(world_size, rank))

    def _same(self, iterable: _BaseExamplesIterable) -> ImageSetStream:
        """Return a stream of other examples that is like this one in everything else."""
        return self._kept(self, iterable)

    @classmethod
    def _kept(cls, plain: IterableDataset, iterable: _BaseExamplesIterable | None = None) -> ImageSetStream:
        """Return a plain `IterableDataset`, which is what methods of the parent make, as a stream of this class."""
        return cls(
            plain._ex_iterable if iterable is None else iterable,
            info=plain._info,
            split=plain._split,
            formatting=plain._formatting,
            distributed=plain._distributed,
            token_per_repo_id=plain._token_per_repo_id,
        )


# Order


def _draw(*key: int | str) -> int:
    """Return 63 bits that are a function of a key."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _permutation(count: int, *key: int | str) -> np.ndarray:
    """Return an order of `count` things that is a function of a key.

    The raw output of a bit generator is the one thing that numpy promises never to change (NEP 19), and a state may be
    resumed under another version.
    """
    return np.argsort(np.random.PCG64(_draw(*key)).random_raw(count), kind="stable")


class _Window(NamedTuple):
    """The sets that are mixed with each other, in the order in which they are yielded."""

    groups: np.ndarray  # for every set, the number of its row group in the plan
    places: np.ndarray  # which of the row group's selected rows it is


class _StoredSets(_BaseExamplesIterable):
    """The sets of a plan at positions `start` to `stop` of the epoch's order, as `datasets` iterates over them.

    The positions that are mixed with each other are the same, except where `take` or `skip` has cut a stream after it
    was mixed.

    Args:
        plan: All sets that are selected.
        filesystem: Opens the files of the plan.
        selection: Chooses among the images of a set.
        shuffle: Whether the order is drawn.
        seed: What it is drawn from.
    """

    # Seconds that `datasets` would sleep at the end of an iteration, for threads that we join.
    _sleep_on_threads_shutdown = False

    def __init__(
        self, plan: Plan, filesystem: fsspec.AbstractFileSystem, selection: Selection, shuffle: bool, seed: int
    ) -> None:
        super().__init__()
        self.plan, self.filesystem, self.selection = plan, filesystem, selection
        self.shuffle, self.seed = shuffle, seed
        self.start, self.stop = self.mixed = 0, plan.num_sets
        self.frozen = False
        self._order_key = self._draw_key = _draw(seed)
        # Row groups, by file and number, that this process has compared with their checksums. Every part of the stream
        # and every epoch adds to the same ones.
        self._verified: set[tuple[str, int]] = set()

    # What `datasets` asks for

    @property
    def num_shards(self) -> int:
        """See `_NUM_SHARDS`."""
        return _NUM_SHARDS

    def shuffle_data_sources(self, generator: np.random.Generator) -> _StoredSets:
        """Return the sets of another epoch: `datasets` hands it down as a generator that is seeded with it."""
        epoch = int(deepcopy(generator.bit_generator).random_raw())
        other = copy(self)
        other._draw_key = _draw(self._draw_key, epoch)
        if not self.frozen:
            other._order_key = other._draw_key
        return other

    def shard_data_sources(self, num_shards: int, index: int, contiguous: bool = True) -> _StoredSets:
        """Return one of `num_shards` equal ranges of positions; always contiguous, so that row groups are read once."""
        count = self.stop - self.start
        return self._range(count * index // num_shards, count * (index + 1) // num_shards)

    def reshard_data_sources(self) -> _StoredSets:
        """Return the same: no shard is larger than a set."""
        return self

    def _init_state_dict(self) -> dict[str, Any]:
        self._state_dict: dict[str, Any] = {"position": 0, "stream": self._fingerprint()}
        return self._state_dict

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Iterate over positions and examples, from the state's position on."""
        state = self._state_dict
        # A loader saves, for a worker that has not begun, the state from before the sets were shared out.
        if state and state["position"] and state["stream"] != self._fingerprint():
            raise ValueError(
                "The state was saved by a stream of other shards, filters or seed, or shared among another number of "
                "nodes or workers; load the stream as it was then, or begin the epoch anew."
            )
        position = self.start + (state["position"] if state else 0)
        for row in self._rows(position):
            position += 1
            if state:
                state["position"] = position - self.start
            yield position, row

    # Parts

    def shuffled(self, seed: int) -> _StoredSets:
        """Return the sets in an order drawn from a seed."""
        return _StoredSets(self.plan, self.filesystem, self.selection, True, seed)._range(self.start, self.stop)

    def part(self, first: int, last: int) -> _StoredSets:
        """Return the sets from one place of the order to another, as they are in it, whatever the epoch."""
        count = self.stop - self.start
        part = copy(self)
        part.frozen = True
        return part._range(min(max(first, 0), count), min(max(last, 0), count))

    def fixed_shard(self, num_shards: int, index: int) -> _StoredSets:
        """Return one of equal parts that is the same in every epoch."""
        if self.frozen:
            return self.shard_data_sources(num_shards, index)
        ends = [self.start + (self.stop - self.start) * number // num_shards for number in (index, index + 1)]
        part = copy(self)
        part.plan = self.plan.cut(*ends)
        part.start, part.stop = part.mixed = 0, part.plan.num_sets
        return part

    def _range(self, first: int, last: int) -> _StoredSets:
        """Return the sets from one place of the order to another, mixed anew unless the order is fixed."""
        part = copy(self)
        part.start, part.stop = self.start + first, self.start + last
        if not self.frozen:
            part.mixed = part.start, part.stop
        return part

    def _fingerprint(self) -> str:
        """Return what a state must fit."""
        order = _draw(self.plan.fingerprint, repr(self.selection), self._order_key, self._draw_key, int(self.shuffle))
        return f"{order}:{self.mixed[0]}:{self.mixed[1]}:{self.start}:{self.stop}"

    # Sets in order

    def _windows(self, position: int) -> Iterator[_Window]:
        """Iterate over what is left of the windows from a position on."""
        count = len(self.plan.counts)
        order = _permutation(count, self._order_key, "groups") if self.shuffle else np.arange(count)
        ends = np.cumsum(self.plan.counts[order])
        starts = ends - self.plan.counts[order]
        size = _WINDOW if self.shuffle else 1
        begin = int(np.searchsorted(ends, self.mixed[0], side="right"))
        for number in range(begin, count, size):
            window = order[number : number + size]
            origin = int(starts[number])
            first, last = max(self.mixed[0], origin), min(self.mixed[1], origin + int(self.plan.counts[window].sum()))
            if first >= self.stop:
                return
            if position >= last:
                continue
            groups = np.repeat(window, self.plan.counts[window])
            places = np.concatenate([np.arange(size) for size in self.plan.counts[window]])
            mixed = np.arange(first - origin, last - origin)
            if self.shuffle:
                mixed = mixed[_permutation(last - first, self._order_key, "window", first)]
            mixed = mixed[max(position - first, 0) : self.stop - first]
            yield _Window(groups[mixed], places[mixed])

    def _rows(self, position: int) -> Iterator[dict[str, Any]]:
        """Iterate over the examples from a position on; while one window is used up, a thread reads the next."""
        windows = self._windows(position)
        with _Reader(self.plan, self.filesystem, self._verified) as reader:
            window = next(windows, None)
            tables = reader.fetch(window)
            while window is not None:
                following = next(windows, None)
                next_tables = reader.fetch(following)
                decoded: dict[int, list[dict[str, Any] | None]] = {}
                left = Counter(window.groups.tolist())
                for group, place in zip(window.groups.tolist(), window.places.tolist(), strict=True):
                    if group not in decoded:
                        decoded[group] = reader.decode(group, tables.pop(group).result())
                    row = decoded[group][place]
                    left[group] -= 1
                    decoded[group][place] = None  # Nothing may keep the row group's memory when its sets are gone.
                    if not left[group]:
                        decoded[group] = []
                    yield self._example(row)
                window, tables = following, next_tables

    def _example(self, row: dict[str, Any]) -> dict[str, Any]:
        """Complete a row: leave out images that are not asked for, and draw its seed."""
        if self.selection.of_images:
            row["images"] = [image for image in row["images"] if self.selection.keeps(image)]
            times = [image["acquired"] for image in row["images"] if image["acquired"] is not None]
            row["sensors"] = list(dict.fromkeys(image["sensor"] for image in row["images"]))
            row["first_acquired"], row["last_acquired"] = min(times, default=None), max(times, default=None)
        row["seed"] = _draw(self._draw_key, row["id"])
        row["anchor"] = row["seed"] % len(row["images"])
        return row


class _Reader:
    """Reads row groups in a thread of its own, one at a time and in the order asked for.

    Args:
        plan: Where the row groups are.
        filesystem: Opens their files.
        verified: Row groups of local files that were compared with their checksums, which is a quarter of what reading
            costs; what is read is added. What comes from elsewhere comes anew in every epoch, and is compared anew.
    """

    def __init__(self, plan: Plan, filesystem: fsspec.AbstractFileSystem, verified: set[tuple[str, int]]) -> None:
        self._plan = plan
        self._verified = verified
        # A file system from before a fork waits for a thread that the fork has left behind. The same arguments give the
        # same instance again in one process, and a new one in another.
        self._filesystem = type(filesystem)(*filesystem.storage_args, **filesystem.storage_options)
        self._shards: OrderedDict[tuple[int, bool], pq.ParquetFile] = OrderedDict()

    def __enter__(self) -> _Reader:
        """Start the thread."""
        self._thread = ThreadPoolExecutor(1)
        return self

    def __exit__(self, *_: object) -> None:
        """Drop what was not read yet, and close the files."""
        self._thread.shutdown(cancel_futures=True)
        for shard in self._shards.values():
            shard.close(force=True)

    def fetch(self, window: _Window | None) -> dict[int, Future[pa.Table]]:
        """Have the row groups of a window read, in the order in which they are needed."""
        groups = [] if window is None else list(dict.fromkeys(window.groups.tolist()))
        return {group: self._thread.submit(self._read, group) for group in groups}

    def decode(self, group: int, table: pa.Table) -> list[dict[str, Any] | None]:
        """Return the selected rows of a row group.

        Raises:
            ValueError: If one is damaged, or holds nothing; names the file and the row.
        """
        plan = self._plan
        path, first = plan.paths[plan.files[group]], int(plan.first_rows[group])
        chosen = plan.rows[group]
        if chosen is None:
            chosen = np.arange(len(table))
        rows: list[dict[str, Any] | None] = []
        for run in np.split(chosen, np.flatnonzero(np.diff(chosen) != 1) + 1):
            number = first + int(run[0])
            rows += decode(table.slice(len(rows), len(run)), path, number)
        return rows

    def _read(self, group: int) -> pa.Table:
        """Return the selected rows of a row group."""
        plan, file, number = self._plan, int(self._plan.files[group]), int(self._plan.groups[group])
        path = plan.paths[file]
        verify = (path, number) not in self._verified
        if (file, verify) not in self._shards:
            self._shards[file, verify] = open_shard(self._filesystem, path, verify)
            if len(self._shards) > _MOST_OPEN_SHARDS:
                self._shards.popitem(last=False)[1].close(force=True)
        self._shards.move_to_end((file, verify))
        table = read_group(self._shards[file, verify], path, number)
        if isinstance(self._filesystem, LocalFileSystem):
            self._verified.add((path, number))
        rows = plan.rows[group]
        return table if rows is None else table.take(rows)
