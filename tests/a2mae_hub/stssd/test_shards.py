"""Shards on disk: whole or not there, readable by everyone, and their faults named."""

import json
import os
import subprocess
import sys
import textwrap

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a2mae_hub.stssd import load, shards
from a2mae_hub.stssd.schema import SCHEMA, VERSION_KEY, to_row
from a2mae_hub.stssd.shards import ShardWriter, find_shards, open_shard
from a2mae_hub.whole_files import write_atomically

LOCAL = fsspec.filesystem("file")


def write_one(path, sets):
    with ShardWriter(path) as shard:
        for image_set in sets:
            shard.write(image_set)
    return path


# Writing


def test_a_shard_holds_what_was_written(tmp_path, make_set):
    sets = [make_set(number) for number in range(5)]
    examples = list(load(write_one(tmp_path / "a.parquet", sets)))
    for example, written in zip(examples, sets, strict=True):
        assert example["id"] == written.id
        for ours, theirs in zip(example["images"], written, strict=True):
            np.testing.assert_array_equal(ours["pixels"], theirs.pixels)


def test_row_groups_end_where_they_are_full(tmp_path, make_set, monkeypatch):
    row_bytes = pa.Table.from_pylist([to_row(make_set(0))], schema=SCHEMA).nbytes
    monkeypatch.setattr(shards, "ROW_GROUP_BYTES", int(2.5 * row_bytes))
    metadata = pq.read_metadata(write_one(tmp_path / "a.parquet", [make_set(number) for number in range(8)]))
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [3, 3, 2]


def test_what_goes_wrong_within_leaves_nothing_and_harms_nothing(tmp_path, make_set):
    path = tmp_path / "a.parquet"
    with pytest.raises(RuntimeError, match="halfway"), ShardWriter(path) as shard:
        shard.write(make_set(0))
        raise RuntimeError("halfway")
    assert not list(tmp_path.iterdir())

    write_one(path, [make_set(1)])
    before = path.read_bytes()
    broken = make_set(2)
    broken.images[1].pixels = broken.images[1].pixels.astype(complex)
    with pytest.raises(ValueError, match="image 1 of grid-0002"), ShardWriter(path) as shard:
        shard.write(make_set(0))
        shard.write(broken)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_a_shard_under_way_is_not_found(tmp_path, make_set):
    with ShardWriter(tmp_path / "a.parquet") as shard:
        shard.write(make_set(0))
        assert len(list(tmp_path.iterdir())) == 1
        with pytest.raises(FileNotFoundError, match="holds no shards"):
            find_shards(tmp_path)
    assert find_shards(tmp_path).paths == [str(tmp_path / "a.parquet")]


@pytest.mark.skipif(sys.platform == "win32", reason="limits of processes are those of Unix")
@pytest.mark.parametrize("writer", ["shard", "text"])
def test_a_full_disk_is_an_error_and_leaves_no_file(tmp_path, writer):
    """The limit on the size of files stands for a full disk: writing beyond it fails in the same way."""
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from a2mae_hub.stssd.schema import StoredImage, StoredSet
        from a2mae_hub.stssd.shards import ShardWriter
        from a2mae_hub.whole_files import write_atomically

        path = Path(sys.argv[1])
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        noise = np.random.default_rng(0).integers(0, 2**16, (4, 128, 128), dtype=np.uint16)
        try:
            if sys.argv[2] == "text":
                write_atomically(path, "x" * 300_000)
            else:
                with ShardWriter(path) as shard:
                    for number in range(300):
                        image = StoredImage(noise, ["red", "green", "blue", "nir"], "naip")
                        shard.write(StoredSet(images=[image], id=str(number)))
        except OSError as error:
            print("OSError", error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.parquet"), writer], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("OSError")
    assert not list(tmp_path.iterdir())


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "facts.json"
    for text in ("first", "second é"):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


# Finding


def test_shards_are_found_at_any_depth_in_the_order_of_their_names(tmp_path, make_set):
    for name in ("b/2.parquet", "a.parquet", "b/1.parquet", ".hidden.parquet", ".cache/c.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_one(tmp_path / name, [make_set()])
    (tmp_path / "README.md").write_text("no shard")
    expected = [str(tmp_path / name) for name in ("a.parquet", "b/1.parquet", "b/2.parquet")]
    assert find_shards(tmp_path).paths == find_shards(f"file://{tmp_path}").paths == expected
    assert find_shards(tmp_path / "b" / "1.parquet").paths == expected[1:2]


@pytest.mark.parametrize("path", ["no/such/folder/at/all", "nowhere.parquet"])
def test_a_path_that_is_none_is_named(path):
    with pytest.raises(FileNotFoundError, match=rf"{path}: no such folder or shard"):
        load(path)


def test_a_folder_without_shards_and_an_unfinished_build_are_named(tmp_path, make_set):
    with pytest.raises(FileNotFoundError, match=r"holds no shards \(\*\.parquet\)"):
        load(tmp_path)
    write_one(tmp_path / "a.parquet", [make_set()])
    (tmp_path / ".build").mkdir()
    with pytest.raises(ValueError, match="the build of this data set has not finished"):
        load(tmp_path)


# Faults of files


def rewrite(source, target, change):
    """Write a shard again after a change to its table."""
    pq.write_table(change(pq.read_table(source)), target)
    return target


def with_metadata(version):
    return lambda table: table.replace_schema_metadata({VERSION_KEY: version})


def recast(name, kind):
    return lambda table: table.set_column(table.schema.names.index(name), name, table[name].cast(kind))


def without_scale(table):
    (images,) = table["images"].chunks
    fields = [field for field in images.type.value_type if field.name != "scale"]
    structs = pa.StructArray.from_arrays([images.values.field(field.name) for field in fields], fields=fields)
    lists = pa.ListArray.from_arrays(images.offsets, structs)
    return table.set_column(table.schema.names.index("images"), "images", lists)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_metadata('{"version": 2}'), r"version 2 of the STSSD layout, .* up to version 1; upgrade"),
        (with_metadata('{"version": "new"}'), r"does not say which version"),
        (with_metadata("[1]"), r"does not say which version"),
        (with_metadata("{"), r"does not say which version"),
        (lambda table: table.replace_schema_metadata(None), r"does not say which version"),
        (lambda table: table.drop_columns(["bbox", "kind"]), r"lacks the columns kind, bbox"),
        (lambda table: table.drop_columns("images"), r"lacks the columns images\.sensor, .*images\.pixels"),
        (without_scale, r"lacks the columns images\.scale"),
        (recast("id", pa.large_string()), r"holds large_string and not string in the column id"),
        (recast("heterogeneity", pa.string()), r"holds string and not float in the column heterogeneity"),
        (lambda table: pa.table({"image": [b""], "label": [1]}), r"lacks the columns id, kind"),
    ],
)  # fmt: skip
def test_parquet_that_is_no_shard_is_named_with_what_it_lacks(tmp_path, make_set, change, message):
    path = rewrite(write_one(tmp_path / "whole.parquet", [make_set()]), tmp_path / "other.parquet", change)
    with pytest.raises(ValueError, match=rf"other\.parquet: .*{message}"):
        load(path)


def test_a_column_more_is_no_fault(tmp_path, make_set):
    whole = write_one(tmp_path / "whole.parquet", [make_set()])
    path = rewrite(whole, tmp_path / "more.parquet", lambda table: table.append_column("label", pa.array([3])))
    assert [example["label"] for example in load(path)] == [3]


def test_a_row_group_larger_than_memory_should_hold_is_refused(tmp_path, make_set, monkeypatch):
    path = write_one(tmp_path / "a.parquet", [make_set()])
    monkeypatch.setattr(shards, "_MOST_BYTES_IN_ROW_GROUP", 1000)
    with pytest.raises(ValueError, match=r"a\.parquet: row group 0 takes .* GiB of memory"):
        open_shard(LOCAL, str(path))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_set):
    """A shard of three sets as bytes, and its examples."""
    path = write_one(tmp_path_factory.mktemp("whole") / "a.parquet", [make_set(number) for number in range(3)])
    return path.read_bytes(), list(load(path))


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_short_anywhere_is_named(tmp_path_factory, whole, share):
    content, _ = whole
    path = tmp_path_factory.mktemp("cut") / "cut.parquet"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.parquet: damaged or cut short .* fetch it again"):
        load(path)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_data_is_found_and_named(tmp_path_factory, whole, place, bit):
    content, examples = whole
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    flipped = bytearray(content)
    flipped[4 + int(place * (footer - 4))] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "flipped.parquet"
    path.write_bytes(flipped)
    try:
        rows = list(load(path))
    except ValueError as error:
        assert "flipped.parquet" in str(error)
        return
    # A page's header is not under its checksum: what in it may change unnoticed changes no value.
    for ours, theirs in zip(rows, examples, strict=True):
        for one, other in zip(ours.pop("images"), theirs["images"], strict=True):
            assert {**one, "pixels": one["pixels"].tolist()} == {**other, "pixels": other["pixels"].tolist()}
        assert ours == {name: value for name, value in theirs.items() if name != "images"}


# Readers that know nothing of us


@pytest.fixture(scope="module")
def places(tmp_path_factory, make_set):
    """A shard of four sets along the equator, one of them without a place."""
    sets = [
        make_set(number, longitude=longitude, latitude=0.0) for number, longitude in enumerate((1.0, 2.0, None, 4.0))
    ]
    return write_one(tmp_path_factory.mktemp("places") / "places.parquet", sets)


def test_geopandas_opens_a_shard_as_the_map_of_its_footprints(places):
    geopandas = pytest.importorskip("geopandas")
    frame = geopandas.read_parquet(places)
    assert frame.crs == "OGC:CRS84"
    assert frame["id"].tolist() == [f"grid-000{number}" for number in range(4)]
    assert frame.geometry.isna().tolist() == [False, False, True, False]
    np.testing.assert_allclose(frame.geometry.iloc[1].bounds, (1.95, -0.05, 2.05, 0.05))
    within = geopandas.read_parquet(places, bbox=(1.5, -1, 2.5, 1))
    assert within["id"].tolist() == ["grid-0001"]


def test_the_metadata_of_a_shard_is_geoparquet(places):
    geo = json.loads(pq.read_metadata(places).metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    assert column["encoding"] == "WKB"
    assert "crs" not in column  # which means OGC:CRS84, longitude before latitude
    names = {side: path for side, path in column["covering"]["bbox"].items()}
    box = pq.read_table(places)["bbox"][0].as_py()
    assert names == {side: ["bbox", side] for side in box}


def test_duckdb_answers_where_the_sets_are(places):
    duckdb = pytest.importorskip("duckdb")
    query = f"select id, len(images), octet_length(images[1].pixels) from '{places}' where bbox.xmin > 1.5 order by id"
    assert duckdb.sql(query).fetchall() == [("grid-0001", 3, 2048), ("grid-0003", 3, 2048)]


def test_datasets_alone_streams_rows_that_numpy_decodes(places, make_set, tmp_path):
    import datasets

    rows = datasets.load_dataset(
        "parquet", data_files=os.fspath(places), streaming=True, split="train", cache_dir=os.fspath(tmp_path)
    )
    (image, *_) = next(iter(rows))["images"]
    pixels = np.frombuffer(image["pixels"], image["dtype"]).reshape(image["shape"])
    np.testing.assert_array_equal(pixels, make_set(0).images[0].pixels)
