"""Archives on workers of Ray: the outputs of the plain calls, each made once, whatever dies on the way."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from typer.testing import CliRunner

from a2mae_hub import (
    A2MAEConfig,
    A2MAEForChangeDetection,
    A2MAEForPreTraining,
    A2MAEImageProcessor,
    write_raster,
)
from a2mae_hub.archive_units import find_units
from a2mae_hub.distributed import embed_archive, predict_archive
from a2mae_hub.distributed_commands import app
from a2mae_hub.inference import Checkpoint, embed, load_checkpoint
from a2mae_hub.ray_pool import Result, _Worker
from a2mae_hub.scene import embed_scene, predict_scene
from a2mae_hub.stssd.build import build
from a2mae_hub.stssd.recipe import Collection, Recipe, Scenes
from a2mae_hub.stssd.schema import StoredImage, StoredSet
from a2mae_hub.stssd.shards import ShardWriter

from .stssd.scenes import write_scene

BANDS = ("B02", "B03", "B04", "B08")
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "head_hidden_size": 8,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on two processors of this machine."""
    ray = pytest.importorskip("ray")
    # Ray's sockets lie in its folder, and the path of a socket has 107 bytes at most.
    folder = tempfile.mkdtemp(prefix="a2mae-ray-")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_DATA_USAGE_DISABLED", "1")
        ray.init(
            num_cpus=2,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        A2MAEForPreTraining(A2MAEConfig.nano(**SMALL)).save_pretrained(folder)
    A2MAEImageProcessor(patch_size=8).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(saved: Path) -> Checkpoint:
    return load_checkpoint(saved)


def scene(path: Path, seed: int = 0, size: int = 40) -> Path:
    """Write a scene of four bands, its first three rows without data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(1200, 3000, (4, size, size)).astype(np.uint16)
    pixels[:, :3] = 0
    place = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 500_000.0, 0.0, -10.0, 4_600_000.0)}
    write_raster(path, pixels, descriptions=BANDS, tags={"sensor": "sentinel-2-l2a"}, nodata=0, **place)
    return path


def values(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


def files(folder: Path) -> set[str]:
    """Everything below a folder, hidden files too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are done here, by a copy of the job as workers get one; processes of Ray take seconds to start."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")

    def run(job, count: int, state: Path, **_: object) -> Iterator[Result]:
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=cloudpickle.loads))
        worker = _Worker(cloudpickle.dumps(job), state, (), torch.get_num_threads())
        for number in range(count):
            yield Result(**json.loads(worker({"number": number})["result"]))

    monkeypatch.setattr("a2mae_hub.distributed.on_ray", lambda _: nullcontext())
    monkeypatch.setattr("a2mae_hub.distributed.run_on_ray", run)


def deadly(checkpoint: Checkpoint, mark: Path) -> Checkpoint:
    """Have the first process that uses a checkpoint die in the middle of it."""

    def die_once(*_: object) -> None:
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os._exit(1)

    checkpoint.model.a2mae.register_forward_pre_hook(die_once)
    return checkpoint


# ------------------------------------------------------------------------------------------------------------ with Ray


def test_every_scene_is_done_once_though_a_worker_dies_and_a_scene_is_damaged(cluster, saved, tmp_path):
    archive, output = tmp_path / "archive", tmp_path / "features"
    paths = [scene(archive / name, seed) for seed, name in enumerate(("a.tif", "b.tif", "2020/a.tif"))]
    broken = archive / "broken.tif"
    broken.write_bytes(b"II*\0 no raster at all")
    output.mkdir()
    (output / ".4711.a.tif").write_bytes(b"half of what a run before this one was killed at")
    dying = deadly(load_checkpoint(saved), tmp_path / "died")
    report = embed_archive(archive, output, checkpoint=dying, workers=2, window=32)

    assert (tmp_path / "died").exists()
    written = {"a.tif", "b.tif", "2020/a.tif"}
    assert {str(path.relative_to(output)) for path in report.done} == written
    assert files(output) == {*written, "archive.json"}
    assert list(report.failed) == ["broken"] and str(broken) in report.failed["broken"]
    assert report.skipped == [] and report.gaps == {}
    for path in paths:
        plain = tmp_path / "plain.tif"
        embed_scene(path, plain, checkpoint=saved, window=32)
        np.testing.assert_array_equal(values(output / path.relative_to(archive)), values(plain))


def test_the_same_call_makes_what_is_missing_and_no_more(in_this_process, saved, tmp_path):
    archive, output = tmp_path / "archive", tmp_path / "features"
    for seed, name in enumerate(("a.tif", "b.tif", "c.tif")):
        scene(archive / name, seed)
    (archive / "c.tif").write_bytes(b"II*\0 no raster at all")
    first = embed_archive(archive, output, checkpoint=saved, window=32)
    assert [path.name for path in first.done] == ["a.tif", "b.tif"] and list(first.failed) == ["c"]
    (output / "b.tif").unlink()
    before = (output / "a.tif").stat().st_mtime_ns
    scene(archive / "c.tif")
    again = embed_archive(archive, output, checkpoint=saved, window=32)
    assert [path.name for path in again.done] == ["b.tif", "c.tif"] and again.failed == {}
    assert again.skipped == [output / "a.tif"] and again.skipped[0].stat().st_mtime_ns == before


def test_what_changed_between_the_dates_of_a_place_is_mapped_from_the_command_line(in_this_process, tmp_path):
    model = tmp_path / "model"
    config = A2MAEConfig.nano(**SMALL, id2label={0: "same", 1: "changed"}, label2id={"same": 0, "changed": 1})
    A2MAEForChangeDetection(config).save_pretrained(model)
    A2MAEImageProcessor(patch_size=8).save_pretrained(model)
    dates = [scene(tmp_path / "archive" / f"valley_{year}.tif", year) for year in (2020, 2021)]
    scene(tmp_path / "archive" / "coast_2020.tif")
    command = ["predict", model, tmp_path / "archive", "-o", tmp_path / "maps", "--place", "^[a-z]+", "--workers", 1]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 1
    assert f"{tmp_path / 'maps'}: 1 done, 1 failed" in done.output
    assert "coast: " in done.output and "change needs two dates or more" in done.output
    predict_scene(model, dates, tmp_path / "plain.tif")
    np.testing.assert_array_equal(values(tmp_path / "maps" / "valley.tif"), values(tmp_path / "plain.tif"))


def test_stopped_by_its_user_it_says_where_it_goes_on(saved, tmp_path, monkeypatch):
    archive = scene(tmp_path / "archive" / "a.tif").parent

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("a2mae_hub.distributed.on_ray", stopped)
    command = ["embed", archive, "-o", tmp_path / "out", "--checkpoint", saved]
    done = CliRunner().invoke(app, list(map(str, command)))
    assert done.exit_code == 130
    assert f"stopped; what is done is kept in {tmp_path / 'out'}, and the same command goes on from it." in done.output


def test_image_sets_of_shards_become_rows_of_vectors(in_this_process, saved, tiny, tmp_path):
    rng = np.random.default_rng(0)
    sets = []
    for number in range(5):
        pixels = [rng.integers(1200, 3000, (4, 16, 16 + 8 * number)).astype(np.uint16) for _ in range(2)]
        times = [datetime(2020, month, 1, tzinfo=timezone.utc) for month in (1, 7)]
        images = [
            StoredImage(one, list(BANDS), "sentinel-2-l2a", time, gsd=10.0)
            for one, time in zip(pixels, times, strict=True)
        ]
        place = {"longitude": 3.0 + number, "latitude": 42.0} if number else {}
        sets.append(StoredSet(list(images), id=f"set-{number}", **place))
    shards = tmp_path / "shards"
    shards.mkdir()
    for name, some in (("sets-00000", sets[:3]), ("sets-00001", sets[3:])):
        with ShardWriter(shards / f"{name}.parquet") as shard:
            for image_set in some:
                shard.write(image_set)
    (shards / "sets-00002.parquet").write_bytes((shards / "sets-00001.parquet").read_bytes()[:-100])
    report = embed_archive(shards, tmp_path / "vectors", checkpoint=saved, workers=1)
    assert list(report.failed) == ["sets-00002"] and "damaged or cut short" in report.failed["sets-00002"]
    rows = [row for path in report.done for row in pq.read_table(path).to_pylist()]
    assert [row["id"] for row in rows] == [image_set.id for image_set in sets]
    assert [row["longitude"] for row in rows] == [None, 4.0, 5.0, 6.0, 7.0]
    for row, image_set in zip(rows, sets, strict=True):
        np.testing.assert_allclose(row["vector"], embed(tiny, image_set).pooled, atol=1e-5)


def test_shards_built_by_workers_of_ray_have_the_bytes_of_those_built_without(cluster, tmp_path):
    for month in (1, 7):
        write_scene(tmp_path / "archive" / f"{month}.tif", acquired=f"2020-{month:02d}-01")
    entry = Scenes(paths=(str(tmp_path / "archive"),))
    recipe = Recipe((Collection("test", (entry,), size=960.0, sampling="footprints"),), tmp_path)
    here = build(recipe, tmp_path / "here", workers=1, sets_per_shard=4)
    there = build(recipe, tmp_path / "there", workers=2, sets_per_shard=4, address="auto")
    assert here == there and len(here["shards"]) > 1
    digests = [
        {name: hashlib.sha256((tmp_path / folder / name).read_bytes()).digest() for name in files(tmp_path / folder)}
        for folder in ("here", "there")
    ]
    assert digests[0] == digests[1] and set(digests[0]) == {*here["shards"], "build.json"}


def test_a_unit_of_which_every_worker_dies_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))
    worker = _Worker(lambda number: number + 1, tmp_path, (), torch.get_num_threads())
    assert Result(**json.loads(worker({"number": 1})["result"])) == Result(1, 2)
    (tmp_path / "0.tries").write_bytes(b"...")
    result = Result(**json.loads(worker({"number": 0})["result"]))
    assert result.error == "3 workers died of it, perhaps for want of memory; try fewer workers."
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- without any worker


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is decided before the work begins starts no Ray."""
    monkeypatch.setattr("a2mae_hub.distributed.on_ray", lambda _: pytest.fail("Ray was started"))


def test_band_files_of_a_product_are_one_scene_and_masks_are_none(tmp_path):
    folder = tmp_path / "archive"
    landsat = "LC08_L2SP_218074_20190114_20200829_02_T1"
    safe = "S2A.SAFE/IMG_DATA"
    listed = [
        *(f"landsat/{landsat}_SR_B{number}.TIF" for number in (2, 3)),
        f"landsat/{landsat}_QA_PIXEL.TIF",
        *(f"dates/{landsat.replace('0114', day)}_SR_B{number}.TIF" for day in ("0130", "0215") for number in (2, 3)),
        f"{safe}/R10m/T31TCJ_20200601T105031_B02_10m.jp2",
        f"{safe}/R20m/T31TCJ_20200601T105031_B05_20m.jp2",
        "one.tif",
        ".hidden.tif",
        "notes.txt",
        "out/one.tif",
    ]
    for name in listed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    units = {unit.name: unit.paths for unit in find_units(folder, folder / "out", {})}
    assert {name: [os.path.relpath(path, folder) for path in paths] for name, paths in units.items()} == {
        "landsat": ["landsat"],
        f"dates/{landsat.replace('0114', '0130')}": listed[3:5],
        f"dates/{landsat.replace('0114', '0215')}": listed[5:7],
        f"{safe}/T31TCJ_20200601T105031": [f"{safe}/R10m", f"{safe}/R20m"],
        "one": ["one.tif"],
    }


def test_a_place_gathers_its_dates_and_keeps_to_its_folder(tmp_path):
    for name in ("north_2021", "south_2020", "north_2020"):
        (tmp_path / f"{name}.tif").touch()
    units = find_units(tmp_path, tmp_path / "out", {}, r"(north|south)_\d+")
    assert [(unit.name, [Path(path).stem for path in unit.paths]) for unit in units] == [
        ("north", ["north_2020", "north_2021"]),
        ("south", ["south_2020"]),
    ]
    with pytest.raises(ValueError, match=r"south_2020: place='north' finds no place in this name"):
        find_units(tmp_path, tmp_path / "out", {}, "north")


def item(id: str, href: str, **properties: object) -> dict:
    asset = {"href": href, "type": "image/tiff; application=geotiff", "roles": ["data"]}
    bands = [{"name": name} for name in BANDS]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": id,
        "collection": "../s2",
        "geometry": None,
        "properties": {"datetime": "2020-07-05T10:50:31Z", **properties},
        "links": [],
        "assets": {"image": {**asset, "eo:bands": bands}},
    }


def test_items_of_a_saved_search_are_scenes_with_what_they_tell(in_this_process, saved, tmp_path):
    path = scene(tmp_path / "image.tif")
    level = {"platform": "sentinel-2a", "constellation": "sentinel-2", "processing:level": "L2A"}
    features = [item("first", "image.tif", **level), item("unknown", "image.tif")]
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    first, unknown = find_units(tmp_path / "items.json", tmp_path / "out", {})
    assert (first.name, unknown.name) == ("_/s2/first", "_/s2/unknown")  # which no catalogue leads out of the folder
    assert first.paths == (str(path),) and first.fault is None
    assert first.declared["sensor"] == ["sentinel-2-l2a"] and first.declared["bands"] == [BANDS]
    assert first.declared["acquired"] == [datetime(2020, 7, 5, 10, 50, 31, tzinfo=timezone.utc)]
    assert unknown.fault is not None and "tells no sensor known here" in unknown.fault
    report = embed_archive(tmp_path / "items.json", tmp_path / "out", checkpoint=saved)
    assert list(report.failed) == ["_/s2/unknown"]
    embed_scene(path, tmp_path / "plain.tif", checkpoint=saved, acquired="2020-07-05T10:50:31")
    np.testing.assert_array_equal(values(tmp_path / "out/_/s2/first.tif"), values(tmp_path / "plain.tif"))


def test_a_folder_of_other_outputs_is_left_alone(no_ray, tiny, tmp_path):
    archive, output = scene(tmp_path / "archive" / "a.tif").parent, tmp_path / "out"
    output.mkdir()
    (output / "a.tif").touch()
    report = embed_archive(archive, output, checkpoint=tiny, window=32)
    assert report.skipped == [output / "a.tif"] and report.done == []
    with pytest.raises(ValueError, match=r"holds outputs of another window \(32, not 64\); choose another folder"):
        embed_archive(archive, output, checkpoint=tiny, window=64)
    with torch.no_grad():
        next(tiny.model.parameters()).add_(1)
    with pytest.raises(ValueError, match="holds outputs of another checkpoint"):
        embed_archive(archive, output, checkpoint=tiny, window=32)


def test_two_runs_do_not_write_to_one_folder(no_ray, tiny, tmp_path, monkeypatch):
    archive = scene(tmp_path / "archive" / "a.tif").parent

    def second(*_: object) -> None:
        with pytest.raises(ValueError, match="out: another run is writing here; wait for it, or stop it"):
            embed_archive(archive, tmp_path / "out", checkpoint=tiny)
        raise KeyboardInterrupt

    monkeypatch.setattr("a2mae_hub.distributed.on_ray", second)
    with pytest.raises(KeyboardInterrupt):
        embed_archive(archive, tmp_path / "out", checkpoint=tiny)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"suffix": ".png"}, r"suffix='.png' is no format of the output; choose one of .tif"),
        ({"place": "("}, "is no regular expression"),
        ({"source": "nowhere"}, "nowhere: no such file or folder"),
        ({"source": "empty"}, "empty: holds no raster .* no shard and no STAC document"),
        ({"source": ["archive/a.tif", "archive/b/a.tif"]}, r"a\.tif: 2 scenes would be written to it"),
        ({"output_folder": "archive"}, r"archive/a\.tif: is a scene and would be written over"),
        ({"source": "shards.parquet", "place": "x"}, r"place= is on scenes, and shards\.parquet holds shards"),
    ],
)
def test_what_cannot_be_is_said_before_the_work(no_ray, tiny, tmp_path, monkeypatch, options, fault):
    monkeypatch.chdir(tmp_path)
    scene(tmp_path / "archive" / "a.tif")
    scene(tmp_path / "archive" / "b" / "a.tif")
    (tmp_path / "empty").mkdir()
    (tmp_path / "shards.parquet").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=fault):
        embed_archive(**{"source": "archive", "output_folder": "out", "checkpoint": tiny, **options})
    assert not (tmp_path / "out" / ".archive").exists()


def test_an_argument_of_another_name_is_refused(no_ray, tiny, tmp_path):
    with pytest.raises(TypeError, match="dtype= is no argument of it"):
        predict_archive(tiny, tmp_path, tmp_path / "out", dtype="int8")


def test_without_ray_the_way_to_install_it_is_told(tiny, tmp_path, monkeypatch):
    archive = scene(tmp_path / "archive" / "a.tif").parent
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'a2mae-hub\[ray\]'"):
        embed_archive(archive, tmp_path / "out", checkpoint=tiny)
