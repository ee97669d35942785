"""Streams of image sets: every set once, in an order that can be taken up again after any of them."""

import copy
import functools
import itertools
import os
import pickle
import threading
import time

import datasets
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.stssd import ImageSetCollator, load, stream
from a2mae_hub.stssd.schema import from_row

NUM_SETS = 47


@pytest.fixture(scope="session")
def shards(tmp_path_factory, make_set, write_shards):
    """47 sets of two or three images, in five shards of up to four row groups."""
    sensors = ("sentinel-2-l2a", "landsat-8-sr", "sentinel-2-l2a")
    sets = [make_set(number, sensors=sensors[: 2 + number % 2]) for number in range(NUM_SETS)]
    return write_shards(tmp_path_factory.mktemp("shards"), sets)


@pytest.fixture
def groups_read(monkeypatch):
    """The row groups that streams of this process have read, as (file, number)."""
    read, original = [], stream.read_group

    def record(shard, path, index, *rest):
        read.append((path, index))
        return original(shard, path, index, *rest)

    monkeypatch.setattr(stream, "read_group", record)
    return read


def ids(examples):
    return [example["id"] for example in examples]


def facts(examples):
    return [(example["id"], example["anchor"], example["seed"]) for example in examples]


ALL_IDS = [f"grid-{number:04d}" for number in range(NUM_SETS)]


# Order


def test_without_shuffle_sets_come_in_the_order_of_the_files(shards):
    dataset = load(shards)
    assert isinstance(dataset, datasets.IterableDataset)
    assert dataset.num_sets == NUM_SETS
    assert ids(dataset) == ALL_IDS
    dataset.set_epoch(1)
    assert ids(dataset) == ALL_IDS


def test_a_shuffled_epoch_holds_every_set_once_and_no_two_epochs_or_seeds_have_one_order(shards):
    dataset = load(shards, shuffle=True, seed=3)
    epochs = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        epochs.append(ids(dataset))
    other_seed = ids(load(shards, shuffle=True, seed=4))
    for order in (*epochs, other_seed):
        assert sorted(order) == ALL_IDS
    assert len({tuple(order) for order in (*epochs, other_seed, ALL_IDS)}) == 5
    assert epochs[0] == ids(load(shards, shuffle=True, seed=3)) == ids(load(shards).shuffle(seed=3))


def test_a_shuffle_separates_the_sets_of_a_row_group(tmp_path, make_set, write_shards):
    """Over many sets, few neighbours in a shuffled stream are neighbours in the files."""
    folder = write_shards(
        tmp_path / "many", [make_set(n, sensors=["naip"], side=2) for n in range(240)], rows_per_group=10
    )
    numbers = np.array([int(one[-4:]) for one in ids(load(folder, shuffle=True))])
    # Of two random sets of a window of 80, one in 40 are neighbours.
    assert np.mean(np.abs(np.diff(numbers)) == 1) < 0.1


def test_seed_and_anchor_are_functions_of_stream_seed_epoch_and_id(shards):
    def drawn(epoch=0, **options):
        dataset = load(shards, **options)
        dataset.set_epoch(epoch)
        return {one["id"]: (one["seed"], one["anchor"], len(one["images"])) for one in dataset}

    first = drawn(seed=5, shuffle=True)
    assert first == drawn(seed=5)
    assert all(0 <= seed < 2**63 and anchor == seed % count for seed, anchor, count in first.values())
    assert len({seed for seed, *_ in first.values()}) == NUM_SETS
    assert {anchor for _, anchor, count in first.values() if count == 3} == {0, 1, 2}
    for other in (drawn(seed=6), drawn(seed=5, epoch=1), drawn(seed=5, epoch=2, shuffle=True)):
        assert not {seed for seed, *_ in other.values()} & {seed for seed, *_ in first.values()}


def test_examples_hold_the_columns_and_pixels_that_were_written(shards, make_set):
    example = next(iter(load(shards).skip(8)))
    written = make_set(8, sensors=("sentinel-2-l2a", "landsat-8-sr"))
    restored = from_row(example)
    assert (restored.id, restored.kind, restored.split, restored.geometry) == (
        "grid-0008",
        "grid",
        "train",
        written.geometry,
    )
    assert restored.anchor == example["anchor"] and restored.seed == example["seed"]
    for ours, theirs in zip(restored, written, strict=True):
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert ours.pixels.dtype == theirs.pixels.dtype
        assert (ours.sensor, ours.bands, ours.acquired) == (theirs.sensor, theirs.bands, theirs.acquired)


def test_columns_of_the_users_own_pass_through(tmp_path, make_set, write_shards):
    folder = write_shards(tmp_path / "labelled", [make_set(n) for n in range(5)], columns={"label": [7, 1, 8, 2, 8]})
    assert [example["label"] for example in load(folder)] == [7, 1, 8, 2, 8]


# Shares of nodes and workers


@settings(max_examples=40, deadline=None)
@given(world=st.integers(1, 60), workers=st.integers(1, 5), epoch=st.integers(0, 2), shuffle=st.booleans())
def test_nodes_and_their_workers_share_every_set_exactly_once(shards, world, workers, epoch, shuffle):
    dataset = load(shards, shuffle=shuffle)
    dataset.set_epoch(epoch)
    sets = dataset._prepare_ex_iterable_for_iteration()
    shares = [
        sets.shard_data_sources(world, rank).shard_data_sources(workers, worker)
        for rank in range(world)
        for worker in range(workers)
    ]
    sizes = [share.stop - share.start for share in shares]
    assert sum(sizes) == NUM_SETS
    seen = [row["id"] for share, size in zip(shares, sizes, strict=True) if size for row in share._rows(share.start)]
    assert sorted(seen) == ALL_IDS


@pytest.mark.parametrize("world", [1, 2, 3, 7, 11])
def test_both_ways_to_split_by_node_give_equal_shares_that_change_with_the_epoch(shards, world):
    ours = [load(shards, shuffle=True).split_by_node(rank, world) for rank in range(world)]
    theirs = [split_dataset_by_node(load(shards, shuffle=True), rank, world) for rank in range(world)]
    assert [node.num_sets for node in ours] == [
        NUM_SETS * (r + 1) // world - NUM_SETS * r // world for r in range(world)
    ]
    shares = []
    for epoch in (0, 1):
        for node in (*ours, *theirs):
            node.set_epoch(epoch)
        shares.append([ids(node) for node in ours])
        assert sorted(itertools.chain(*shares[-1])) == ALL_IDS
        assert sorted(one for node in theirs for one in ids(node)) == ALL_IDS
        if world != 11:  # There `datasets` deals the sets out one by one.
            assert [ids(node) for node in theirs] == shares[-1]
    assert world == 1 or {*shares[0][0]} != {*shares[1][0]}


def test_a_row_group_is_read_by_two_nodes_at_most(shards, groups_read):
    for rank in range(4):
        list(load(shards, shuffle=True).split_by_node(rank, 4))
    # 19 row groups, and 3 more reads where two nodes meet.
    assert max(groups_read.count(group) for group in groups_read) == 2
    assert len(groups_read) <= 19 + 3


def test_shards_of_a_stream_are_the_same_sets_in_every_epoch(shards):
    parts = [load(shards, shuffle=True).shard(3, index) for index in range(3)]
    assert [one for index in range(3) for one in ids(load(shards).shard(3, index))] == ALL_IDS
    orders = []
    for epoch in (0, 1):
        for part in parts:
            part.set_epoch(epoch)
        orders.append([ids(part) for part in parts])
    assert sorted(itertools.chain(*orders[0])) == ALL_IDS
    assert [sorted(order) for order in orders[0]] == [sorted(order) for order in orders[1]]
    assert orders[0] != orders[1]


def test_workers_share_every_set_exactly_once_even_where_they_outnumber_the_sets(
    tmp_path, make_set, write_shards, shards
):
    few = write_shards(tmp_path / "few", [make_set(n) for n in range(2)])
    for folder, count in ((shards, NUM_SETS), (few, 2)):
        loader = DataLoader(load(folder, shuffle=True), batch_size=None, num_workers=3)
        assert sorted(ids(loader)) == ALL_IDS[:count]


def test_persistent_workers_follow_the_epoch(shards):
    dataset = load(shards, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=facts, persistent_workers=True)
    alone = load(shards, shuffle=True)
    orders = []
    for epoch in range(3):
        dataset.set_epoch(epoch)
        alone.set_epoch(epoch)
        orders.append([fact for batch in loader for fact in batch])
        assert sorted(orders[-1]) == sorted(facts(alone))
    assert orders[0] != orders[1] != orders[2]


# Resuming


@settings(max_examples=60, deadline=None)
@given(
    done=st.integers(0, NUM_SETS),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    world=st.integers(1, 4),
    rank=st.integers(0, 3),
)
def test_a_stream_goes_on_after_any_set_as_if_it_had_not_stopped(shards, done, epoch, shuffle, world, rank):
    def fresh():
        return load(shards, shuffle=shuffle, seed=1).split_by_node(rank % world, world)

    dataset = fresh()
    dataset.set_epoch(epoch)
    whole = facts(dataset)
    iterator = iter(dataset)
    done = min(done, len(whole))
    head = facts(next(iterator) for _ in range(done))
    state = pickle.loads(pickle.dumps(dataset.state_dict() if done else fresh_state(dataset)))
    iterator.close()

    resumed = fresh()  # a new process knows nothing of the epoch
    resumed.load_state_dict(state)
    assert head + facts(resumed) == whole
    assert facts(resumed) == whole  # the state is used up
    assert resumed.epoch == epoch


def fresh_state(dataset):
    """The state before the first set."""
    dataset._prepare_ex_iterable_for_iteration()
    return dataset.state_dict()


def test_to_go_on_reads_what_is_left_of_the_window_and_the_next_and_waits_there(shards, monkeypatch, groups_read):
    monkeypatch.setattr(stream, "_WINDOW", 2)
    dataset = load(shards, shuffle=True)
    iterator = iter(dataset)
    next(iterator)
    wait_until_quiet(groups_read)
    assert len(groups_read) == 4
    for _ in range(30):
        next(iterator)
    state = dataset.state_dict()
    wait_until_quiet(groups_read)
    iterator.close()
    so_far = list(groups_read)
    groups_read.clear()
    dataset.load_state_dict(state)
    iterator = iter(dataset)
    next(iterator)
    wait_until_quiet(groups_read)
    iterator.close()
    assert 1 <= len(groups_read) <= 4
    assert groups_read == so_far[-len(groups_read) :]


def wait_until_quiet(groups_read):
    """Wait until no row group was read for a moment."""
    count = -1
    while count != len(groups_read):
        count = len(groups_read)
        time.sleep(0.2)


def test_a_stream_that_is_left_leaves_no_thread_and_no_open_file(shards):
    def open_shards():
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return [link for link in links if os.path.exists(link) and os.readlink(link).endswith(".parquet")]

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc to see open files in")
    threads = threading.active_count()
    for example in load(shards, shuffle=True):
        assert example
        assert open_shards()
        break
    assert threading.active_count() == threads
    assert not open_shards()


@pytest.mark.parametrize(
    "change",
    [
        lambda shards: load(shards, shuffle=True, seed=1),
        lambda shards: load(shards, shuffle=True, end="2020-05-01"),
        lambda shards: load(shards),
        lambda shards: load(shards, shuffle=True).take(NUM_SETS - 1),
        lambda shards: load(shards, shuffle=True).split_by_node(0, 2),
    ],
    ids=["seed", "filter", "order", "part", "nodes"],
)
def test_a_state_of_another_stream_is_refused(shards, change):
    dataset = load(shards, shuffle=True)
    next(iter(dataset))
    state = dataset.state_dict()
    other = change(shards)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="saved by a stream of other shards, filters or seed"):
        next(iter(other))


def loader_of(dataset, processor, **options):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    collate = functools.partial(collate_with_facts, ImageSetCollator(processor, noise=True))
    return stateful.StatefulDataLoader(dataset, batch_size=4, num_workers=2, collate_fn=collate, **options)


def collate_with_facts(collate, examples):
    return {"facts": facts(examples), **collate(examples)}


def assert_same_batches(ours, theirs):
    assert [batch["facts"] for batch in ours] == [batch["facts"] for batch in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for key in one.keys() - {"facts"}:
            assert torch.equal(one[key], other[key]), key


@pytest.mark.parametrize("done", [1, 2, 5, 9, 11, 12])
def test_two_workers_go_on_after_any_batch_with_the_same_tensors(shards, done):
    processor = A2MAEImageProcessor(patch_size=8)
    dataset = load(shards, shuffle=True)
    dataset.set_epoch(2)
    loader = loader_of(dataset, processor)
    batches, state = [], None
    for number, batch in enumerate(loader, 1):
        batches.append(batch)
        if number == done:
            state = copy.deepcopy(loader.state_dict())
    assert sorted(fact[0] for batch in batches for fact in batch["facts"]) == ALL_IDS
    resumed = loader_of(load(shards, shuffle=True), processor)
    resumed.load_state_dict(state)
    assert_same_batches(list(resumed), batches[done:])


def test_nodes_of_two_workers_go_on_after_a_batch_and_then_into_a_whole_epoch(shards):
    processor = A2MAEImageProcessor(patch_size=8)

    def node(rank, **options):
        dataset = load(shards, shuffle=True).split_by_node(rank, 2)
        return dataset, loader_of(dataset, processor, **options)

    seen, seen_next = [], []
    for rank in range(2):
        dataset, loader = node(rank)
        dataset.set_epoch(1)
        iterator = iter(loader)
        head = [next(iterator) for _ in range(3)]
        state = copy.deepcopy(loader.state_dict())
        tail = list(iterator)

        dataset, resumed = node(rank, persistent_workers=True)
        resumed.load_state_dict(state)
        assert_same_batches(list(resumed), tail)
        seen += [fact for batch in head + tail for fact in batch["facts"]]
        dataset.set_epoch(2)
        seen_next += [fact for batch in resumed for fact in batch["facts"]]
    for facts_of_epoch in (seen, seen_next):
        assert sorted(fact[0] for fact in facts_of_epoch) == ALL_IDS
    assert {fact[2] for fact in seen}.isdisjoint(fact[2] for fact in seen_next)


def test_workers_that_have_not_begun_a_later_epoch_are_resumed_from_its_beginning(shards):
    processor = A2MAEImageProcessor(patch_size=8)
    dataset = load(shards, shuffle=True)
    loader = loader_of(dataset, processor, persistent_workers=True)
    assert len(list(loader)) == 12
    dataset.set_epoch(1)
    iterator = iter(loader)
    next(iterator)  # of the first worker; of the second, the loader knows the state that it began with
    state = copy.deepcopy(loader.state_dict())
    tail = list(iterator)
    resumed = loader_of(load(shards, shuffle=True), processor)
    resumed.load_state_dict(state)
    assert_same_batches(list(resumed), tail)


# What `datasets` can do with a stream


def test_take_and_skip_part_the_stream_in_every_epoch(shards):
    dataset = load(shards, shuffle=True)
    order = ids(dataset)
    head, tail = dataset.take(10), dataset.skip(10)
    assert (head.num_sets, tail.num_sets) == (10, NUM_SETS - 10)
    for epoch in (0, 1):
        head.set_epoch(epoch)
        tail.set_epoch(epoch)
        assert ids(head) == order[:10]
        assert ids(tail) == order[10:]
    assert ids(dataset.take(100)) == order
    assert ids(dataset.skip(100)) == []
    assert sorted(ids(DataLoader(dataset.take(3), batch_size=None, num_workers=2))) == sorted(order[:3])


def test_take_keeps_the_order_and_draws_new_seeds_in_a_new_epoch(shards):
    head = load(shards, shuffle=True).take(10)
    first = facts(head)
    head.set_epoch(1)
    assert {fact[2] for fact in facts(head)}.isdisjoint(fact[2] for fact in first)


def test_map_and_filter_keep_exact_resume_and_its_epoch(shards):
    def mapped():
        dataset = load(shards, shuffle=True).map(count_images).filter(has_three_images)
        assert type(dataset) is stream.ImageSetStream
        return dataset

    dataset = mapped()
    dataset.set_epoch(3)
    whole = [(one["id"], one["count"]) for one in dataset]
    assert len(whole) == NUM_SETS // 2 and {count for _, count in whole} == {3}
    iterator = iter(dataset)
    for _ in range(9):
        next(iterator)
    state = dataset.state_dict()
    resumed = mapped()
    resumed.load_state_dict(state)
    assert [(one["id"], one["count"]) for one in resumed] == whole[9:]


def count_images(example):
    return {"count": len(example["images"])}


def has_three_images(example):
    return example["count"] == 3


def test_pixels_go_through_map_as_the_arrays_they_are(shards):
    example = next(iter(load(shards).map(count_images)))
    assert isinstance(example["images"][0]["pixels"], np.ndarray)
    assert example["images"][0]["pixels"].dtype == np.uint16


def test_shuffling_what_hides_the_order_is_refused(shards):
    for dataset in (load(shards).take(5), load(shards).map(count_images)):
        with pytest.raises(ValueError, match="Shuffle a stream before take, skip, map and filter"):
            dataset.shuffle(seed=1)


def test_datasets_is_told_to_wait_for_no_threads(shards):
    dataset = load(shards, shuffle=True)
    assert not dataset._ex_iterable.sleep_on_threads_shutdown
    assert not dataset.map(count_images)._ex_iterable.sleep_on_threads_shutdown


def test_a_stream_travels_to_a_worker_as_little_more_than_its_plan(shards):
    dataset = load(shards, shuffle=True)
    assert len(pickle.dumps(dataset._ex_iterable)) < 5_000
    assert ids(pickle.loads(pickle.dumps(dataset))) == ids(dataset)


# Where shards lie


def test_shards_stream_from_any_file_system_that_fsspec_knows(shards):
    memory = fsspec.filesystem("memory")
    for path in sorted(shards.iterdir()):
        memory.pipe(f"/streamed/{path.name}", path.read_bytes())
    try:
        for url in ("memory://streamed", f"file://{shards}", os.fspath(shards), shards):
            assert ids(load(url)) == ALL_IDS
        assert sorted(ids(DataLoader(load("memory://streamed"), batch_size=None, num_workers=2))) == ALL_IDS
        assert ids(load("memory://streamed/sets-00004.parquet")) == ALL_IDS[40:]
    finally:
        memory.rm("/streamed", recursive=True)


def test_workers_open_remote_files_anew_after_the_parent_has_read_them(shards, remote):
    dataset = load(f"remote://{shards}", shuffle=True)
    order = ids(dataset)
    assert remote.requests
    loader = DataLoader(dataset, batch_size=None, num_workers=2, timeout=60)
    assert sorted(ids(loader)) == sorted(order) == ALL_IDS


def test_a_remote_row_group_is_read_in_a_few_requests_and_each_byte_once(shards, remote):
    dataset = load(f"remote://{shards}/sets-00000.parquet")
    remote.requests.clear()
    assert len(ids(dataset)) == 10
    # The end of the file twice, its length and the footer; then four row groups.
    assert len(remote.requests) <= 2 + 4 * 2
    size = (shards / "sets-00000.parquet").stat().st_size
    assert sum(end - start for _, start, end in remote.requests) <= 2 * size


# Faults


@pytest.mark.parametrize("local", [True, False])
def test_checksums_are_compared_once_where_the_bytes_stay_and_always_where_they_travel(shards, monkeypatch, local):
    opened, original = [], stream.open_shard

    def record(filesystem, path, verify=True):
        opened.append(verify)
        return original(filesystem, path, verify)

    monkeypatch.setattr(stream, "open_shard", record)
    if not local:
        monkeypatch.setattr(stream, "LocalFileSystem", ())
    sets = load(shards, shuffle=True)
    for epoch in range(3):
        sets.set_epoch(epoch)
        opened.clear()
        assert len(ids(sets)) == NUM_SETS
        assert opened and set(opened) == {epoch == 0 or not local}


def test_a_damaged_row_group_is_named_when_the_stream_comes_to_it(tmp_path, make_set, write_shards):
    folder = write_shards(tmp_path / "damaged", [make_set(n) for n in range(9)])
    path = folder / "sets-00000.parquet"
    metadata = pq.read_metadata(path)
    columns = [metadata.row_group(1).column(index) for index in range(metadata.num_columns)]
    pixels = next(column for column in columns if column.path_in_schema.endswith("pixels"))
    content = bytearray(path.read_bytes())
    start = pixels.data_page_offset
    content[start : start + pixels.total_compressed_size] = bytes(pixels.total_compressed_size)
    path.write_bytes(content)
    iterator = iter(load(folder))
    assert ids(next(iterator) for _ in range(3)) == ALL_IDS[:3]
    with pytest.raises(ValueError, match=r"sets-00000\.parquet: row group 1: damaged or cut short"):
        next(iterator)


def test_a_row_without_images_is_named(tmp_path, make_set, write_shards):
    sets = [make_set(n) for n in range(5)]
    sets[4].images = []
    folder = write_shards(tmp_path / "empty", sets)
    with pytest.raises(ValueError, match=r"sets-00000\.parquet: row 4 has no images"):
        list(load(folder))


def test_a_shard_that_shrinks_under_the_reader_is_an_error_and_not_a_crash(tmp_path, make_set, write_shards):
    folder = write_shards(tmp_path / "shrinking", [make_set(n, side=64) for n in range(30)], sets_per_shard=30)
    path = folder / "sets-00000.parquet"
    dataset = load(folder)
    iterator = iter(dataset)
    next(iterator)
    os.truncate(path, 100)
    with pytest.raises(ValueError, match=r"sets-00000\.parquet: row group \d+: damaged or cut short"):
        list(iterator)
