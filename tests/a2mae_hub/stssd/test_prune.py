"""A pruned data set keeps what differs: no repeats, the same of every cluster, and a share of the hard ones."""

import copy
import hashlib
import json
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from a2mae_hub.stssd import clusters, figures, packages, prune
from a2mae_hub.stssd.clusters import choose, comparable, find_clusters, near_duplicates, water_fill
from a2mae_hub.stssd.shards import ShardWriter, find_shards

pytest.importorskip("sklearn", reason="pruning needs the extra [stssd]")
pytest.importorskip("matplotlib", reason="pruning needs the extra [stssd]")

LEVELS = (300, 1200, 2500)


@pytest.fixture(scope="module")
def varied(make_set):
    """A function from a number to a set at its own place, of one of three kinds of ground."""

    def make(number, *, level=None, contrast=None, longitude=None, **facts):
        west = -179.0 + number if longitude is None else longitude
        image_set = make_set(number, longitude=west, sensors=("sentinel-2-l2a", "sentinel-2-l2a"), side=8, **facts)
        rng = np.random.default_rng(number)
        level = LEVELS[number % 3] if level is None else level
        contrast = 20 + 5 * number if contrast is None else contrast
        image_set.heterogeneity = contrast / 100
        for image in image_set:
            spread = rng.normal(0, contrast, image.pixels.shape)
            image.pixels = np.clip(level + spread, 1, 9999).astype(np.uint16)
        return image_set

    return make


@pytest.fixture
def folder(tmp_path, varied, write_shards):
    return write_shards(tmp_path / "all", [varied(number) for number in range(24)])


def ids(folder):
    return [row for path in find_shards(folder).paths for row in pq.read_table(path, columns=["id"])["id"].to_pylist()]


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------------------ the whole thing


@pytest.mark.parametrize(("keep", "number"), [(10, 10), (1, 1), (24, 24), (0.5, 12), (0.1, 2), (0.001, 1), (1.0, 24)])
def test_as_many_sets_are_kept_as_were_asked_for(folder, tmp_path, keep, number):
    report = prune.prune(folder, tmp_path / "out", keep=keep)
    assert report.after == len(ids(tmp_path / "out")) == number


def test_rows_keep_their_order_columns_metadata_and_every_byte(tmp_path, varied, write_shards):
    sets = [varied(number) for number in range(12)]
    source = write_shards(tmp_path / "all", sets, columns={"label": list(range(100, 112))})
    table = pq.read_table(source / "sets-00000.parquet")
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"mine": b"1"}), source / "sets-00000.parquet"
    )
    prune.prune(source, tmp_path / "out", keep=7)
    before = pa.concat_tables(pq.read_table(path) for path in find_shards(source).paths)
    after = pa.concat_tables(pq.read_table(path) for path in find_shards(tmp_path / "out").paths)
    kept = pa.array(ids(tmp_path / "out"))
    assert ids(tmp_path / "out") == [name for name in ids(source) if name in kept.to_pylist()]
    assert after.equals(before.filter(pa.compute.is_in(before["id"], kept)))
    written = pq.read_schema(tmp_path / "out" / "sets-00000.parquet").metadata
    assert written[b"mine"] == b"1" and written[b"geo"] == table.schema.metadata[b"geo"]


def test_shards_keep_their_names_and_one_of_which_nothing_is_kept_is_not_written(tmp_path, varied, write_shards):
    source = tmp_path / "all"
    write_shards(source / "grid", [varied(0), varied(1)])
    write_shards(source / "city", [varied(0, kind="city")])  # the pixels of grid-0000
    report = prune.prune(source, tmp_path / "out", keep=1.0)
    kept = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.parquet")]
    assert report.duplicates == (prune.Duplicate("grid-0000", "city-0000", "pixels"),)
    assert sorted(kept) == ["city/sets-00000.parquet", "grid/sets-00000.parquet"]
    write_shards(source / "zz", [varied(1, kind="zz")])
    prune.prune(source, tmp_path / "again", keep=1.0)
    assert not (tmp_path / "again" / "zz").exists()


def test_the_same_sets_and_seed_give_the_same_bytes(folder, tmp_path):
    prune.prune(folder, tmp_path / "one", keep=9, seed=3)
    prune.prune(folder, tmp_path / "two", keep=9, seed=3)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


def test_pixels_of_one_row_group_are_decoded_at_a_time(folder, tmp_path, monkeypatch):
    seen = []
    decode = prune.decode
    monkeypatch.setattr(prune, "decode", lambda table, *where: seen.append(len(table)) or decode(table, *where))
    prune.prune(folder, tmp_path / "out", keep=9)
    assert max(seen) == 3 and sum(seen) == 24


def test_the_report_tells_what_happened(folder, tmp_path, varied, write_shards):
    write_shards(folder / "more", [varied(1, kind="copy", split="validation")])
    report = prune.prune(folder, tmp_path / "out", keep=np.int64(9), clusters=3, hard_share=1 / 3, seed=np.int64(5))
    told = json.loads((tmp_path / "out" / "prune.json").read_text())
    assert told == report.to_dict()
    assert (told["before"], told["after"], told["keep"], told["seed"]) == (25, 9, 9, 5)
    assert told["kinds"]["copy"] == [1, 1 if "copy-0001" in ids(tmp_path / "out") else 0]
    assert sum(after for _, after in told["kinds"].values()) == sum(after for _, after in told["splits"].values()) == 9
    assert told["duplicates"] == [{"id": "grid-0001", "of": "copy-0001", "rule": "pixels"}]
    assert [cluster["kept"] for cluster in told["clusters"]] == [3, 3, 3]
    assert [cluster["quota"] for cluster in told["clusters"]] == [3, 3, 3]
    assert [cluster["hard"] for cluster in told["clusters"]] == [1, 1, 1]
    assert sum(cluster["size"] for cluster in told["clusters"]) == 24
    assert "9 of 25 sets kept, in 3 clusters of 3 to 3; 3 of them for being hard." in str(report)
    assert "1 left out for equal pixels, 0 for showing one place alike." in str(report)
    assert (tmp_path / "out" / "prune.png").stat().st_size > 10_000


def test_every_kind_of_ground_keeps_the_same_however_rare_it_is(tmp_path, varied, write_shards):
    numbers = {0: 20, 1: 5, 2: 3}  # sets of each level
    sets = [
        varied(10 * n + level, level=LEVELS[level], contrast=40) for level in numbers for n in range(numbers[level])
    ]
    level_of = {s.id: next(i for i, v in enumerate(LEVELS) if abs(s[0].pixels.mean() - v) < 90) for s in sets}
    prune.prune(write_shards(tmp_path / "all", sets), tmp_path / "out", keep=11, clusters=3)
    assert Counter(level_of[name] for name in ids(tmp_path / "out")) == {0: 4, 1: 4, 2: 3}


def test_hard_sets_are_kept_by_quota(tmp_path, varied, write_shards):
    sets = [varied(n, level=1200, contrast=100 + n) for n in range(20)]
    rng = np.random.default_rng(0)
    for image_set, spread in zip(sets, rng.permutation(20), strict=True):
        image_set.heterogeneity = float(spread)
    source = write_shards(tmp_path / "all", sets)
    hardest = {s.id for s in sets if s.heterogeneity < 3}
    report = prune.prune(source, tmp_path / "out", keep=6, clusters=1, hard_share=0.5)
    assert hardest <= set(ids(tmp_path / "out")) and report.clusters[0].hard == 3
    report = prune.prune(source, tmp_path / "hard", keep=6, clusters=1, hard_share=1.0)
    assert set(ids(tmp_path / "hard")) == {s.id for s in sets if s.heterogeneity < 6}


def test_heterogeneity_that_the_shard_does_not_tell_is_measured(tmp_path, varied, write_shards):
    sets = [varied(n, level=1200, contrast=100 - 10 * n) for n in range(9)]
    for image_set in sets:
        image_set.heterogeneity = None
    prune.prune(write_shards(tmp_path / "all", sets), tmp_path / "out", keep=3, clusters=1, hard_share=1.0)
    assert ids(tmp_path / "out") == [sets[n].id for n in (6, 7, 8)]


def test_a_checkpoint_can_tell_what_is_alike(folder, tmp_path):
    from a2mae_hub import A2MAEConfig, A2MAEForPreTraining, A2MAEImageProcessor

    A2MAEForPreTraining(A2MAEConfig.nano()).save_pretrained(tmp_path / "model")
    A2MAEImageProcessor(patch_size=A2MAEConfig.nano().patch_size).save_pretrained(tmp_path / "model")
    name = str(tmp_path / "model")
    assert prune.prune(folder, tmp_path / "out", keep=5, checkpoint=name).features == name
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prune.prune(folder, tmp_path / "other", keep=5, checkpoint="./nowhere")


# ----------------------------------------------------------------------------------------------------------- duplicates


def test_equal_pixels_are_kept_once_under_the_first_id_whatever_the_order_of_the_images(tmp_path, varied, write_shards):
    twin = varied(0)
    twin.id, twin.images = "grid-9999", twin.images[::-1]
    sets = [twin, *(varied(number) for number in range(4))]
    report = prune.prune(write_shards(tmp_path / "all", sets), tmp_path / "out", keep=1.0)
    assert report.duplicates == (prune.Duplicate("grid-9999", "grid-0000", "pixels"),)
    assert "grid-9999" not in ids(tmp_path / "out") and report.after == 4


def seen_again(image_set, name, noise=2):
    """The same ground again, with other noise of the sensor, a little less varied."""
    again = copy.copy(image_set)
    again.id, again.heterogeneity = name, image_set.heterogeneity - 0.01
    again.images = [copy.copy(image) for image in image_set]
    rng = np.random.default_rng(99)
    for image in again:
        image.pixels = (image.pixels + rng.integers(0, noise, image.pixels.shape)).astype(np.uint16)
    return again


def moved(image_set, east):
    """The set with its footprint elsewhere; None: at an unknown place."""
    if east is None:
        image_set.longitude = image_set.latitude = image_set.geometry = None
        return image_set
    image_set.longitude += east
    image_set.geometry = shapely.to_wkb(shapely.affinity.translate(shapely.from_wkb(image_set.geometry), east))
    return image_set


@pytest.mark.parametrize(
    ("east", "is_repeat"),
    [(0.0, True), (0.04, True), (0.06, False), (40.0, False), (None, True)],
    ids=["one place", "overlap of 60 %", "overlap of 40 %", "elsewhere", "unknown place"],
)
def test_one_place_seen_alike_is_kept_once_and_two_places_that_look_alike_both(
    tmp_path, varied, write_shards, east, is_repeat
):
    sets = [varied(number) for number in range(9)]
    # It comes first in the shard and by its id, and goes all the same: it is less heterogeneous.
    sets.insert(0, moved(seen_again(sets[4], "again"), east))
    report = prune.prune(write_shards(tmp_path / "all", sets), tmp_path / "out", keep=1.0, clusters=2)
    assert report.duplicates == ((prune.Duplicate("again", "grid-0004", "features"),) if is_repeat else ())
    assert ("again" in ids(tmp_path / "out")) != is_repeat


def test_one_place_at_another_season_is_no_repeat(tmp_path, varied, write_shards):
    sets = [varied(number) for number in range(9)]
    again = seen_again(sets[4], "again")
    for image in again:
        image.pixels = image.pixels + np.uint16(100)  # a hundredth of reflectance
    report = prune.prune(write_shards(tmp_path / "all", [*sets, again]), tmp_path / "out", keep=1.0, clusters=2)
    assert report.duplicates == ()


def test_a_repeat_of_a_repeat_is_told_as_one_of_what_stays(tmp_path, varied, write_shards):
    sets = [varied(number) for number in range(9)]
    again = seen_again(sets[4], "again")
    copied = copy.copy(again)
    copied.id = "copied"
    report = prune.prune(write_shards(tmp_path / "all", [*sets, again, copied]), tmp_path / "out", keep=1.0, clusters=2)
    assert {(d.id, d.of) for d in report.duplicates} == {("again", "grid-0004"), ("copied", "grid-0004")}


def test_of_several_alike_the_preferred_one_stays_and_no_set_leaves_for_one_that_left():
    features = np.array([[0.0], [0.05], [0.1], [5.0], [6.0], [7.0], [8.0]])
    footprints = [shapely.to_wkb(shapely.box(0, 0, 1, 1))] * 3
    footprints += [shapely.to_wkb(shapely.box(x, 0, x + 1, 1)) for x in (10, 20, 30, 40)]
    labels = np.zeros(7, int)
    # The typical distance is 1 (one of 5, the rest 1 apart), the limit 0.1 of it.
    assert near_duplicates(features, labels, footprints, np.arange(7)) == {1: 0, 2: 0}
    assert near_duplicates(features, labels, footprints, np.array([1, 0, 2, 3, 4, 5, 6])) == {0: 1, 2: 1}
    features[2] = 0.14
    assert near_duplicates(features, labels, footprints, np.arange(7)) == {1: 0}


def test_in_a_cluster_that_is_wider_than_most_repeats_are_no_wider():
    features = np.array([[0.0], [1], [2], [3], [100], [101], [102], [103], [500], [505], [600], [700]])
    footprints = [shapely.to_wkb(shapely.box(2 * n, 0, 2 * n + 1, 1)) for n in (*range(8), 20, 20, 21, 22)]
    labels = np.repeat(np.arange(3), 4)
    assert near_duplicates(features, labels, footprints, np.arange(12)) == {}
    features[9] = 500.05
    assert near_duplicates(features, labels, footprints, np.arange(12)) == {9: 8}


def test_blocks_of_distances_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    features = np.repeat(rng.normal(size=(20, 4)), 2, axis=0) + rng.normal(size=(40, 4)) * 1e-3
    footprints = [shapely.to_wkb(shapely.box(n // 2, 0, n // 2 + 0.9, 1)) for n in range(40)]
    labels, preference = np.repeat(np.arange(2), 20), rng.permutation(40)
    whole = near_duplicates(features, labels, footprints, preference)
    assert {frozenset(pair) for pair in whole.items()} == {frozenset((2 * n, 2 * n + 1)) for n in range(20)}
    monkeypatch.setattr(clusters, "_DISTANCES_AT_ONCE", 50)
    assert near_duplicates(features, labels, footprints, preference) == whole


# --------------------------------------------------------------------------------------------------------------- choice


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 400))
def test_quotas_fill_up_like_water(sizes, total):
    quotas = water_fill(sizes, total)
    assert quotas.sum() == min(total, sum(sizes)) and (quotas >= 0).all() and (quotas <= sizes).all()
    cut = [int(quota) for quota, size in zip(quotas, sizes, strict=True) if quota < size]
    if cut:
        assert max(cut) - min(cut) <= 1
        assert quotas.max() <= min(cut) + 1


@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=40),
    st.integers(1, 40),
    st.floats(0, 1),
)
def test_the_share_of_hard_sets_is_exact_and_they_are_the_least_varied_of_their_cluster(sets, wanted, hard_share):
    _, labels = np.unique([label for label, _, _ in sets], return_inverse=True)
    spread, to_centre = np.array([numbers[1:] for numbers in sets], float).T
    chosen, hard = choose(labels, to_centre, spread, np.arange(len(sets)), wanted, hard_share)
    kept = min(wanted, len(sets))
    assert chosen.sum() == kept and not (hard & ~chosen).any()
    assert hard.sum() == np.floor(kept * hard_share + 0.5)
    for label in range(labels.max() + 1):
        mine = labels == label
        if (mine & hard).any() and (mine & ~hard).any():
            assert spread[mine & hard].max() <= spread[mine & ~hard].min()


def test_the_rest_is_spread_evenly_from_the_centre_to_the_rim():
    to_centre = np.arange(12.0)[::-1]
    chosen, _ = choose(np.zeros(12, int), to_centre, np.ones(12), np.arange(12), 3, 0.0)
    assert sorted(to_centre[chosen]) == [2, 6, 10]


def test_a_set_of_unknown_heterogeneity_is_not_taken_for_hard():
    chosen, hard = choose(np.zeros(4, int), np.arange(4.0), np.array([np.nan, 2, 1, 3]), np.arange(4), 2, 1.0)
    assert np.flatnonzero(hard).tolist() == [1, 2] and (chosen == hard).all()


# ------------------------------------------------------------------------------------------------------------- clusters


def test_clusters_are_those_of_the_ground_and_numbered_from_the_largest():
    rng = np.random.default_rng(0)
    truth = np.array([0] * 4 + [1] * 30 + [2] * 11)
    features = np.array([[0, 0], [9, 0], [0, 9]])[truth] + rng.normal(0, 0.1, (45, 2))
    labels, to_centre = find_clusters(features, 3, seed=0)
    assert labels.tolist() == np.array([2, 0, 1])[truth].tolist()
    centres = np.stack([features[truth == t].mean(axis=0) for t in range(3)])
    assert to_centre == pytest.approx(np.linalg.norm(features - centres[truth], axis=1))


@pytest.mark.parametrize(("count", "clusters"), [(1, 1), (8, 2), (50, 5), (200, 10)])
def test_by_default_there_are_as_many_clusters_as_the_root_of_half_the_sets(count, clusters):
    labels, _ = find_clusters(np.random.default_rng(0).normal(size=(count, 3)), None, seed=0)
    assert len(set(labels.tolist())) == clusters


def test_sets_that_do_not_differ_are_one_cluster():
    labels, to_centre = find_clusters(np.zeros((50, 3)), None, seed=0)
    assert not labels.any() and not to_centre.any()


def test_many_sets_are_clustered_in_batches_and_the_same_way_again(monkeypatch):
    monkeypatch.setattr(clusters, "_MANY_SETS", 100)
    truth = np.arange(300) % 3
    features = np.array([[0, 0], [9, 0], [0, 9]])[truth] + np.random.default_rng(0).normal(0, 0.1, (300, 2))
    labels, _ = find_clusters(features, 3, seed=1)
    assert len({(int(a), int(b)) for a, b in zip(labels, truth, strict=True)}) == 3
    assert (find_clusters(features, 3, seed=1)[0] == labels).all()


def test_features_are_compared_in_their_own_spread_and_far_ones_do_not_rule():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(100, 3)) * [1, 100, 0] + [0, 5, 7]
    values = comparable(features)
    assert values.mean(axis=0) == pytest.approx([0, 0, 0], abs=1e-9)
    assert values.std(axis=0) == pytest.approx([1, 1, 0], abs=1e-9)
    features[0, 0] = 1e6
    assert abs(comparable(features)[0, 0]) < 10 and comparable(features)[1:, 0].std() > 0.4


# -------------------------------------------------------------------------------------------------- mistakes and safety


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 25}, "keep is 25: .* 1 to 24 for 24 sets"),
        ({"keep": 0}, "keep is 0"),
        ({"keep": 1.5}, "keep is 1.5"),
        ({"keep": 0.0}, "keep is 0.0"),
        ({"keep": True}, "keep is True"),
        ({"keep": float("nan")}, "keep is nan"),
        ({"keep": 5, "clusters": 0}, "clusters is 0: .* 1 to 24"),
        ({"keep": 5, "clusters": 25}, "clusters is 25"),
        ({"keep": 5, "clusters": 2.5}, "clusters is 2.5"),
        ({"keep": 5, "seed": -1}, "seed is -1"),
        ({"keep": 5, "hard_share": 1.2}, "hard_share is 1.2"),
        ({"keep": 5, "hard_share": float("nan")}, "hard_share is nan"),
    ],
)
def test_arguments_that_cannot_be_are_refused_before_anything_is_written(folder, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        prune.prune(folder, tmp_path / "out", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


def test_what_is_there_is_not_overwritten(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="out: is there already and not empty"):
        prune.prune(folder, tmp_path / "out", keep=5)
    with pytest.raises(ValueError, match="lies in the data set to prune"):
        prune.prune(folder, folder / "pruned", keep=5)
    (tmp_path / "empty").mkdir()
    assert prune.prune(folder, tmp_path / "empty", keep=5).after == 5


def test_an_interrupted_pruning_leaves_nothing_and_the_next_one_succeeds(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(figures, "plot_prune", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prune.prune(folder, tmp_path / "out", keep=5)
    assert [path.name for path in tmp_path.iterdir()] == ["all"]
    # Killed, it could not clean up.
    shutil.copytree(folder, tmp_path / ".out.part")
    prune.prune(folder, tmp_path / "out", keep=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "out"]
    assert len(ids(tmp_path / "out")) == 5


def test_while_it_is_written_a_data_set_is_not_there(folder, tmp_path, monkeypatch):
    target = tmp_path / "new" / "out"
    seen = []
    write = ShardWriter.write_table

    def look(self, rows):
        seen.append(target.exists())
        with pytest.raises(FileNotFoundError):
            find_shards(target.parent)
        write(self, rows)

    monkeypatch.setattr(ShardWriter, "write_table", look)
    prune.prune(folder, target, keep=5)
    assert seen and not any(seen) and len(ids(target)) == 5


def test_a_source_that_changes_meanwhile_is_refused(folder, tmp_path, monkeypatch, varied, write_shards):
    find = prune.find_clusters

    def change(*arguments):
        write_shards(folder, [varied(number) for number in range(23)])
        return find(*arguments)

    monkeypatch.setattr(prune, "find_clusters", change)
    with pytest.raises(ValueError, match=r"sets-00002.parquet: has changed"):
        prune.prune(folder, tmp_path / "out", keep=5)
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_and_an_unknown_sensor_are_named(folder, tmp_path, varied, write_shards):
    bad = varied(30)
    bad.images[0].sensor = "sentinel-9"
    write_shards(tmp_path / "odd", [bad])
    with pytest.raises(ValueError, match=r"sets-00000.parquet: set 'grid-0030': No sensor is named 'sentinel-9'"):
        prune.prune(tmp_path / "odd", tmp_path / "out", keep=1)
    path = folder / "sets-00001.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"sets-00001.parquet: damaged"):
        prune.prune(folder, tmp_path / "out", keep=5)


def test_no_sets_and_no_shards_are_told(tmp_path, write_shards):
    with pytest.raises(ValueError, match="holds no image sets"):
        prune.prune(write_shards(tmp_path / "none", []), tmp_path / "out", keep=1)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        prune.prune(tmp_path / "nowhere", tmp_path / "out", keep=1)


def test_a_missing_package_is_named_before_the_work_begins(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"scikit-learn; install it with: pip install 'a2mae-hub\[stssd\]'"):
        prune.prune(folder, tmp_path / "out", keep=5)
