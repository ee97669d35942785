"""Building shards: whole or not at all, resumed to the same bytes, whatever kills the build and whoever makes it."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.warp import transform as transform_points

from a2mae_hub.raster import write_raster
from a2mae_hub.stssd.build import build
from a2mae_hub.stssd.recipe import Collection, Recipe, Scenes
from a2mae_hub.stssd.schema import decode, from_row
from a2mae_hub.stssd.shards import find_shards

from .scenes import BANDS, NORTH, UTM, WEST, write_archive, write_scene


def recipe_of(folder: Path, **options: object) -> Recipe:
    """Return the recipe of one collection of all scenes in a folder."""
    facts = {"name": "test", "scenes": (Scenes(paths=(str(folder),)),), "size": 480.0, "sampling": "footprints"}
    return Recipe((Collection(**{**facts, **options}),), folder)  # type: ignore[arg-type]


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file under a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of two sensors."""
    return write_archive(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def built(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of five shards, built without interruption by one process."""
    output = tmp_path_factory.mktemp("built") / "stssd"
    build(recipe_of(archive), output, workers=1, sets_per_shard=8)
    return output


def test_a_build_makes_whole_shards_and_a_report_and_leaves_nothing_else(built: Path) -> None:
    report = json.loads((built / "build.json").read_text())
    assert sorted(path.name for path in built.iterdir()) == ["build.json"] + [f"test-0000{n}.parquet" for n in range(5)]
    assert report["sets"] == 36
    (collection,) = report["collections"]
    assert collection["images"] == {"landsat-8-sr, observed": 108, "sentinel-2-l2a, observed": 108}
    rows = [row for path in find_shards(built).paths for row in decode(pq.read_table(path), path)]
    assert len({row["id"] for row in rows}) == len(rows) == 36
    assert all(len(from_row(row)) == 6 for row in rows)


def test_rows_follow_the_ground_so_that_a_row_group_covers_a_small_box(built: Path) -> None:
    for path in find_shards(built).paths:
        table = pq.read_table(path, columns=["longitude", "latitude"])
        spans = [np.ptp(table[name].to_numpy()) * 111_320 for name in ("longitude", "latitude")]
        # A shard of eight of the 36 places, on the 3 km square.
        assert spans[0] * np.cos(np.radians(42.4)) * spans[1] < 0.6 * 2_400**2


def test_two_processes_build_the_same_bytes_as_one(archive: Path, built: Path, tmp_path: Path) -> None:
    build(recipe_of(archive), tmp_path / "two", workers=2, sets_per_shard=8)
    assert digests(tmp_path / "two") == digests(built)


def test_a_build_killed_in_the_middle_resumes_to_the_same_bytes(archive: Path, built: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    program = (
        "import sys; from pathlib import Path; from a2mae_hub.stssd.build import build;"
        "from a2mae_hub.stssd.recipe import Collection, Recipe, Scenes;"
        "folder = Path(sys.argv[1]);"
        "one = Collection(name='test', scenes=(Scenes(paths=(str(folder),)),), size=480.0, sampling='footprints');"
        "build(Recipe((one,), folder), sys.argv[2], workers=1, sets_per_shard=8)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(archive), str(output)])
    deadline = time.monotonic() + 120
    while not list(output.glob("*.parquet")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(list((output / ".build").glob("test-*.json")))
    assert (output / ".build").exists()
    assert finished < 5
    with pytest.raises(ValueError, match=r"has not finished.*run the same"):
        find_shards(output)
    build(recipe_of(archive), output, workers=1, sets_per_shard=8)
    assert digests(output) == digests(built)


def test_shards_that_are_there_are_not_made_again(archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "stssd"
    build(recipe_of(archive), output, workers=1, sets_per_shard=8)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    report = build(recipe_of(archive), output, workers=1, sets_per_shard=8)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    assert report["sets"] == 36


def test_what_a_killed_process_left_half_written_is_removed(archive: Path, built: Path, tmp_path: Path) -> None:
    output = tmp_path / "stssd"
    (output / ".build").mkdir(parents=True)
    (output / ".test-00000.parquet.1.part").write_bytes(b"half")
    build(recipe_of(archive), output, workers=1, sets_per_shard=8)
    assert digests(output) == digests(built)


@pytest.mark.parametrize("options", [{"size": 960.0}, {"images": 4}, {"max_cloud": 0.1}, {"kind": "city"}])
def test_another_recipe_does_not_go_on_in_the_same_folder(
    archive: Path, built: Path, options: dict[str, object]
) -> None:
    before = digests(built)
    with pytest.raises(ValueError, match=r"holds another build.*choose another folder"):
        build(recipe_of(archive, **options), built, workers=1, sets_per_shard=8)
    assert digests(built) == before


def test_a_folder_with_other_things_in_it_is_left_alone(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("\\documentclass")
    with pytest.raises(ValueError, match="is not empty"):
        build(recipe_of(archive), tmp_path, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_scene_stops_the_build_with_its_name_and_it_resumes_when_mended(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    good = write_scene(archive / "a.tif", acquired="2020-01-01")
    bad = write_scene(archive / "b.tif", acquired="2020-07-01")
    whole = bad.read_bytes()
    with rasterio.open(bad) as dataset:
        assert dataset.profile["compress"] == "deflate"
    bad.write_bytes(whole[: len(whole) * 2 // 3] + bytes(len(whole) - len(whole) * 2 // 3))
    with pytest.raises(ValueError, match=r"b\.tif.*(damaged|GDAL)") as raised:
        build(recipe_of(archive), tmp_path / "out", workers=1, sets_per_shard=4)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "out").glob(".*.part"))
    bad.write_bytes(whole)
    report = build(recipe_of(archive), tmp_path / "out", workers=1, sets_per_shard=4)
    assert report["collections"][0]["images"] == {"sentinel-2-l2a, observed": 72}
    assert good.exists()


def test_an_error_in_a_process_of_the_pool_is_the_same_sentence(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "tenfold.tif", factor=12.0)
    with pytest.raises(ValueError, match=r"tenfold\.tif.*scale"):
        build(recipe_of(tmp_path / "in", max_cloud=1.0), tmp_path / "out", workers=2, sets_per_shard=8)


def test_a_full_disk_leaves_no_half_shard_and_the_build_goes_on_afterwards(
    archive: Path, built: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands in for a disk without room: both fail in the middle of a write."""
    output = tmp_path / "full"
    largest = min(path.stat().st_size for path in built.glob("*.parquet"))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))

    command = [
        sys.executable,
        "-m",
        "a2mae_hub.cli",
        "stssd",
        "build",
        str(archive),
        "-o",
        str(output),
        "--workers",
        "1",
    ]
    options = ["--size", "480", "--sampling", "footprints"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, preexec_fn=limit, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2
    assert "File too large" in last
    assert "Traceback" not in done.stderr
    assert not list(output.glob("*.parquet"))
    assert not list(output.glob(".*.part"))
    assert subprocess.run([*command, *options], capture_output=True, check=False).returncode == 0
    assert len(find_shards(output).paths) == 1


def test_a_recipe_whose_images_are_all_refused_says_why_and_leaves_no_build(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "cloud.tif", cloudy=slice(None))
    with pytest.raises(ValueError, match=r"no image set is left.*clouds.*max_cloud"):
        build(recipe_of(tmp_path / "in"), tmp_path / "out", workers=1)
    assert not list((tmp_path / "out").iterdir())


def test_memory_does_not_grow_with_the_size_of_the_scenes(tmp_path: Path) -> None:
    """The peak of a process that builds from a scene of 128 MB is less than a third of that above the peak at 8 MB."""
    peaks = {}
    program = (
        "import re, sys; from pathlib import Path; from a2mae_hub.stssd.build import build;"
        "from a2mae_hub.stssd.recipe import Collection, Recipe, Scenes;"
        "folder = Path(sys.argv[1]);"
        "one = Collection(name='test', scenes=(Scenes(paths=('*.tif',)),), size=640.0, spacing=6400.0);"
        "build(Recipe((one,), folder), folder / 'out', workers=1);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    for side in (1_000, 4_000):
        (tmp_path / str(side)).mkdir()
        write_raster(
            tmp_path / str(side) / "scene.tif",
            np.full((4, side, side), 1_500, np.uint16),
            crs=UTM,
            transform=(10, 0, WEST, 0, -10, NORTH),
            descriptions=BANDS["sentinel-2-l2a"],
            tags={"sensor": "sentinel-2-l2a"},
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / str(side))], capture_output=True, text=True, check=True
        )
        peaks[side] = int(done.stdout.split()[-1]) * 1024
    assert peaks[4_000] - peaks[1_000] < 40e6


def test_real_imagery_of_every_kind_builds_and_says_what_is_derived(shared: Path, tmp_path: Path) -> None:
    """A small part of docs/recipes/open_imagery.yaml: one or two scenes of every collection."""
    from a2mae_hub.stssd.recipe import read_recipe

    recipe = read_recipe(Path(__file__).parents[3] / "docs" / "recipes" / "open_imagery.yaml", shared / "data")
    some = {
        "boadella": ("scenes/boadella_sentinel2/*2020-0[26]*.tif",),
        "bark-beetle": ("bark_beetle/20??-??/20523*.tif",),
        "naip-cities": ("naip_two_dates/chico_1[02]_*.tif",),
        "naip-prairie": ("scenes/naip_5m/*2015*.tif", "scenes/naip_5m/*2020*.tif"),
        "brumadinho": ("scenes/landsat8_pair/*",),
        "bigearthnet": ("scenes/bigearthnet_native/S2A_MSIL2A_20170617T113321_36_85",),
        "chips": ("sentinel2_chips/test_100?.tif",),
        "water": ("hls_water/image_00*.tif",),
    }
    from dataclasses import replace

    collections = tuple(
        replace(collection, scenes=(replace(collection.scenes[0], paths=some[collection.name]),))
        for collection in recipe.collections
        if collection.name in some
    )
    assert {collection.name.removesuffix("-evaluation") for collection in recipe.collections} == set(some)
    report = build(Recipe(collections, recipe.root), tmp_path / "out", workers=1)
    images = {collection["name"]: collection["images"] for collection in report["collections"]}
    assert set(images["boadella"]) == {"sentinel-2-l2a, observed", "landsat-8-sr, derived"}
    assert images["naip-cities"] == {"naip, observed": 4, "gaofen-2, derived": 4}
    assert set(images["naip-prairie"]) == {"naip, observed", "sentinel-2-l2a, derived"}
    assert set(images["brumadinho"]) == {"landsat-8-sr, observed"}
    scenes = {collection["name"]: collection["scenes"] for collection in report["collections"]}
    assert images["chips"] == {"sentinel-2-l2a, observed": scenes["chips"]}
    for path in find_shards(tmp_path / "out").paths:
        for row in decode(pq.read_table(path), path):
            unknown = row["kind"] in ("chips", "water")
            assert (row["longitude"] is None) == unknown
            assert (row["geometry"] is None) == unknown
            assert (row["first_acquired"] is None) == unknown
            assert not any(os.fspath(shared) in image["source"] for image in row["images"])
            assert all(image["licence"] for image in row["images"])


def test_stac_items_build_the_same_pixels_as_their_files(tmp_path: Path) -> None:
    pystac = pytest.importorskip("pystac")
    from datetime import datetime, timezone

    scene = write_scene(tmp_path / "in" / "scene.tif", acquired="2020-06-01T10:50:00")
    footprint = {"type": "Polygon", "coordinates": [[[3, 42], [3.1, 42], [3.1, 42.1], [3, 42.1], [3, 42]]]}
    item = pystac.Item("a-scene", footprint, [3, 42, 3.1, 42.1], datetime(2020, 6, 1, 10, 50, tzinfo=timezone.utc), {})
    bands = [
        {"name": name, "eo:common_name": common}
        for name, common in zip(("B02", "B03", "B04", "B08"), ("blue", "green", "red", "nir"), strict=True)
    ]
    asset = pystac.Asset(str(scene), media_type=pystac.MediaType.COG, roles=["data"], extra_fields={"bands": bands})
    item.add_asset("image", asset)
    item.save_object(include_self_link=False, dest_href=str(tmp_path / "item.json"))
    entry = Scenes(stac=("item.json",), sensor="sentinel-2-l2a")
    one = Collection(name="test", scenes=(entry,), size=480.0, sampling="footprints")
    build(Recipe((one,), tmp_path), tmp_path / "stac", workers=1)
    build(recipe_of(tmp_path / "in"), tmp_path / "files", workers=1)
    rows = [list(decode(pq.read_table(tmp_path / kind / "test-00000.parquet"), kind)) for kind in ("stac", "files")]
    assert len(rows[0]) == len(rows[1]) == 36
    for one_row, other_row in zip(*rows, strict=True):
        np.testing.assert_array_equal(one_row["images"][0]["pixels"], other_row["images"][0]["pixels"])
        assert one_row["images"][0]["source"] == "a-scene"


def test_other_points_in_the_same_file_are_another_build(tmp_path: Path) -> None:
    write_scene(tmp_path / "in" / "scene.tif")
    (x,), (y,) = transform_points(UTM, "EPSG:4326", [WEST + 1_500], [NORTH - 1_500])

    def write_point(longitude: float) -> None:
        point = {"type": "Point", "coordinates": [longitude, y]}
        feature = {"type": "Feature", "properties": {}, "geometry": point}
        (tmp_path / "points.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))

    recipe = recipe_of(tmp_path / "in", sampling="../points.geojson")
    write_point(x)
    assert build(recipe, tmp_path / "out", workers=1)["sets"] == 1
    write_point(x + 0.002)
    with pytest.raises(ValueError, match="holds another build"):
        build(recipe, tmp_path / "out", workers=1)


def test_a_second_build_in_the_same_folder_is_refused_while_the_first_is_at_work(archive: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    program = (
        "import fcntl, sys, time; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('locked', flush=True); time.sleep(60)"
    )
    (output / ".build").mkdir(parents=True)
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(output / ".build" / "lock")], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match="another process is building here"):
        build(recipe_of(archive), output, workers=1)
    other.kill()
    other.wait()
    assert build(recipe_of(archive), output, workers=1)["sets"] == 36


def test_a_finished_build_that_lost_a_shard_says_so(archive: Path, tmp_path: Path) -> None:
    build(recipe_of(archive), tmp_path / "out", workers=1, sets_per_shard=8)
    (tmp_path / "out" / "test-00002.parquet").unlink()
    with pytest.raises(ValueError, match=r"test-00002\.parquet is missing"):
        build(recipe_of(archive), tmp_path / "out", workers=1, sets_per_shard=8)


def test_processes_of_a_killed_build_leave_with_it(archive: Path, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    command = [sys.executable, "-m", "a2mae_hub.cli", "stssd", "build", str(archive), "-o", str(tmp_path / "out")]
    options = ["--size", "96", "--sampling", "footprints", "--workers", "2"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    children: list = []
    deadline = time.monotonic() + 120
    while len(children) < 2 and process.poll() is None and time.monotonic() < deadline:
        children = psutil.Process(process.pid).children()
        time.sleep(0.02)
    assert len(children) == 2
    time.sleep(0.2)  # A process notes whose child it is when it starts.
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(children, timeout=30)
    assert not left


def test_no_ground_of_validation_is_in_training(tmp_path: Path) -> None:
    """Footprints of twice the spacing overlap their neighbours, also across the border of a cell of 0.1 degrees."""
    write_scene(tmp_path / "in" / "scene.tif", pixel=30.0, shape=(1_000, 1_000), sensor="landsat-8-sr")
    recipe = recipe_of(tmp_path / "in", sampling="grid", size=960.0, spacing=480.0, validation=0.4)
    build(recipe, tmp_path / "out", workers=1)
    shards = sorted((tmp_path / "out").glob("*.parquet"))
    frame = pd.concat([geopandas.read_parquet(path, columns=["split", "geometry"]) for path in shards])
    train, validation = (frame[frame.split == split] for split in ("train", "validation"))
    assert len(train) > 100
    assert len(validation) > 100
    assert train.sjoin(validation, predicate="overlaps").empty
