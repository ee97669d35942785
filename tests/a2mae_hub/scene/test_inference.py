"""Scenes in windows: what one pass says, wherever windows lie; whole or not there; and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.vrt import WarpedVRT

from a2mae_hub import (
    A2MAEConfig,
    A2MAEForChangeDetection,
    A2MAEForSemanticSegmentation,
    A2MAEImageProcessor,
    ImageSet,
    read_image_set,
)
from a2mae_hub.inference import Checkpoint, embed
from a2mae_hub.prediction import NO_CLASS, load_task_checkpoint, predict_map
from a2mae_hub.scene import embed_scene, inference, predict_scene
from a2mae_hub.scene.answers import FeaturesOfPatches
from a2mae_hub.scene.work import SUFFIX

from .conftest import BANDS, CORNER, UTM

PATCH = 4


class MeansOfPatches(FeaturesOfPatches):
    """Says what can be worked out without a model: the mean of the stored numbers of every patch and band."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.channels = len(BANDS)

    def __call__(
        self, inputs: dict[str, torch.Tensor], image_sets: Sequence[ImageSet]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the means of the anchors."""
        for image_set in image_sets:
            pixels = image_set[image_set.anchor].pixels
            yield means(pixels), np.ones([-(-side // PATCH) for side in pixels.shape[1:]], bool)

    def store(self, values: np.ndarray) -> np.ndarray:
        """Return them as they are."""
        return values


def means(pixels: np.ndarray) -> np.ndarray:
    """Return the mean of every patch, those at the end of what they have."""
    rows, columns = (np.arange(0, side, PATCH) for side in pixels.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=1), columns, axis=2)
    counts = np.outer(*(np.diff([*starts, side]) for starts, side in zip((rows, columns), pixels.shape[1:])))  # noqa: B905
    return (sums / counts).astype(np.float32)


def features(path: Path) -> np.ndarray:
    """Return the features of a file."""
    with rasterio.open(path) as dataset:
        return dataset.read()


# ------------------------------------------------------------------------------------------------ windows and seams


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(2, 12), st.integers(0, 8), st.integers(5, 160), st.integers(5, 160))
def test_wherever_windows_lie_the_map_is_that_of_the_whole(
    small, scene, monkeypatch, window: int, overlap: int, rows: int, columns: int
) -> None:
    """Exact for what depends on a patch alone: nothing is shifted, repeated, dropped or mixed up."""
    monkeypatch.setattr(inference, "FeaturesOfPatches", MeansOfPatches)
    path = scene(rows=rows, columns=columns)
    output = path.with_name("means.tif")
    overlap = min(overlap, window - 1)
    embed_scene(path, output, checkpoint=small, window=window * PATCH, overlap=overlap * PATCH)
    with rasterio.open(path) as dataset:
        expected = means(dataset.read())
    np.testing.assert_allclose(features(output), expected, rtol=1e-3)  # kept in half precision
    with rasterio.open(output) as dataset:
        assert (dataset.crs, dataset.transform[0]) == (UTM, 10.0 * PATCH)
        assert (dataset.transform[2], dataset.transform[5]) == CORNER


def test_a_scene_that_fits_a_window_is_one_pass(small, scene, tmp_path) -> None:
    paths = [scene(rows=30, columns=41), scene("later.tif", rows=30, columns=41, seed=1, day="2024-01-01")]
    report = embed_scene(paths, tmp_path / "features.tif", checkpoint=small, window=44)
    whole = embed(small, read_image_set(paths))
    assert (report.rows, report.columns, report.windows) == (8, 11, 1)
    np.testing.assert_allclose(features(tmp_path / "features.tif"), whole.maps, atol=2e-3)


def test_to_move_the_windows_moves_the_features_of_the_nano_little(shared, tmp_path) -> None:
    """Windows half a window further see other surroundings, and say nearly the same of the ground they share."""
    paths = shared / "data" / "scenes" / "naip_5m" / "m_4709963_se_14_1_20200831.tif"
    whole = (-99.185, 47.005, -99.165, 47.020)
    embed_scene(paths, tmp_path / "one.tif", bounds=whole)
    embed_scene(paths, tmp_path / "two.tif", bounds=(whole[0] + 0.0042, *whole[1:]))
    with rasterio.open(tmp_path / "one.tif") as one, rasterio.open(tmp_path / "two.tif") as two:
        shift = (two.transform[2] - one.transform[2]) / one.transform[0]
        first, second = one.read(), two.read()
    steps = round(shift)
    assert steps >= 6
    first = first[:, :, steps : steps + second.shape[2]]
    # Where patches of the two do not coincide, features are those between.
    centre = first.reshape(len(first), -1).mean(1)[:, None, None]
    first, second = first - centre, second[:, :, : first.shape[2]] - centre
    cosines = (first * second).sum(0) / np.sqrt((first**2).sum(0) * (second**2).sum(0))
    assert np.median(cosines) > 0.85


def test_dates_and_sensors_of_other_grids_and_systems_are_one_map(small, scene, tmp_path) -> None:
    """A coarser image that covers the west, and one in degrees: counted where they lie, and nowhere else."""
    anchor = scene(rows=128, columns=128)
    coarse = scene("coarse.tif", rows=64, columns=32, metres=20.0, seed=1)
    degrees = tmp_path / "degrees.tif"
    with rasterio.open(scene("third.tif", rows=128, columns=128, seed=2)) as dataset:
        with WarpedVRT(dataset, crs="EPSG:4326") as warped:
            profile = {**warped.profile, "driver": "GTiff"}
            with rasterio.open(degrees, "w", **profile) as copy:
                copy.write(warped.read())
                copy.update_tags(sensor="sentinel-2-l2a", acquired="2023-09-09")
                for index, band in enumerate(BANDS, start=1):
                    copy.set_band_description(index, band)
    window = {"checkpoint": small, "window": 32, "overlap": 8}
    alone, both, three = (tmp_path / f"{name}.tif" for name in ("alone", "both", "three"))
    embed_scene(anchor, alone, **window)
    embed_scene([anchor, coarse], both, **window)
    embed_scene([anchor, coarse, degrees], three, **window)
    changed = np.abs(features(both) - features(alone)).max(0)
    # The image ends 64 pixels east; windows of 32 that see it end at 88 or before.
    assert changed[:, :16].min() > 0.01 and changed[:, 22:].max() < 4e-3  # half precision
    assert np.isfinite(features(three)).all() and np.abs(features(three) - features(both)).max() > 0.01


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_less_precision_keeps_the_features_of_the_nano(shared, tmp_path, precision) -> None:
    path = shared / "data" / "scenes" / "naip_5m" / "m_4709963_se_14_1_20200831.tif"
    bounds = (-99.18, 47.005, -99.17, 47.012)
    for name in ("float32", precision):
        embed_scene(path, tmp_path / f"{name}.tif", bounds=bounds, precision=name)
    exact, found = features(tmp_path / "float32.tif"), features(tmp_path / f"{precision}.tif")
    cosines = (exact * found).sum(0) / np.sqrt((exact**2).sum(0) * (found**2).sum(0))
    assert 0.999 < cosines.min() < 0.9999999


def test_bounds_are_the_part_that_is_made(small, scene, tmp_path) -> None:
    path = scene(rows=300, columns=300)
    west, south, east, north = 3.004, 42.348, 3.012, 42.352
    embed_scene(path, tmp_path / "part.tif", checkpoint=small, bounds=(west, south, east, north))
    with rasterio.open(tmp_path / "part.tif") as dataset:
        left, bottom, right, top = rasterio.warp.transform_bounds(UTM, "EPSG:4326", *dataset.bounds)
    assert left == pytest.approx(west, abs=6e-4) and right == pytest.approx(east, abs=6e-4)
    assert bottom == pytest.approx(south, abs=6e-4) and top == pytest.approx(north, abs=6e-4)


def test_windows_are_resampled_where_the_checkpoint_says_so(small, scene, tmp_path) -> None:
    """At twice their size patches span half as many pixels; also of the last windows, which the scene ends within."""
    twice = Checkpoint(small.name, small.model, A2MAEImageProcessor(patch_size=PATCH, size=32), True)
    path = scene(rows=45, columns=61)
    report = embed_scene(path, tmp_path / "twice.tif", checkpoint=twice, window=16)
    assert (report.rows, report.columns) == (23, 31)
    with rasterio.open(tmp_path / "twice.tif") as dataset:
        assert dataset.transform[0] == 20.0
        assert np.isfinite(dataset.read()).all()
    with pytest.raises(ValueError, match=r"resamples every image to 32 × 32 pixels; say by window="):
        embed_scene(path, tmp_path / "other.tif", checkpoint=twice)


# ---------------------------------------------------------------------------------------------------- what has no data


def test_what_no_image_shows_is_no_data(small, scene, tmp_path) -> None:
    empty = (slice(0, 80), slice(40, 120))
    path = scene(rows=120, columns=160, empty=empty)
    report = embed_scene(path, tmp_path / "features.tif", checkpoint=small, window=16, overlap=4)
    missing = np.isnan(features(tmp_path / "features.tif"))
    expected = np.zeros((30, 40), bool)
    expected[:20, 10:30] = True
    np.testing.assert_array_equal(missing, np.broadcast_to(expected, missing.shape))
    assert report.failures == [] and report.windows < 13 * 17


def test_a_damaged_part_is_no_data_and_told_and_the_rest_is_there(small, scene, tmp_path) -> None:
    """Bytes of one tile in the middle of a file are noise; one tile is lost, and what only windows on it saw."""
    path = scene(rows=600, columns=600)
    with rasterio.open(path) as dataset:
        assert dataset.block_shapes[0] == (256, 256)
        tile = int(
            dataset.tags(ns="TIFF", bidx=1).get("BLOCK_OFFSET_1_1")
            or dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1)
        )
    with open(path, "r+b") as file:
        file.seek(tile)
        file.write(os.urandom(4000))
    report = embed_scene(path, tmp_path / "features.tif", checkpoint=small, window=32, overlap=8)
    missing = np.isnan(features(tmp_path / "features.tif")[0])
    assert missing[70:122, 70:122].all()
    assert not missing[:58].any() and not missing[:, :58].any() and not missing[134:].any()
    assert report.failures and all("scene.tif: band B02" in failure for failure in report.failures)


def test_numbers_that_cannot_be_reflectance_are_refused_at_once(small, scene, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"Window \(0, 0, 16, 16\): .*look like stored numbers.*pass scale"):
        embed_scene(scene(), tmp_path / "features.tif", checkpoint=small, scale=1.0)


# ---------------------------------------------------------------------------------------------------------------- maps


def task_checkpoint(folder: Path, kind: type, classes: list[str]) -> Any:
    """Return a small checkpoint of a task, as it is loaded."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: at for at, name in enumerate(classes)}}
    torch.manual_seed(0)
    kind(A2MAEConfig(**sizes, **labels, patch_size=PATCH, head_hidden_size=8)).save_pretrained(folder)
    A2MAEImageProcessor(patch_size=PATCH).save_pretrained(folder)
    return load_task_checkpoint(folder)


def test_a_map_lies_on_the_pixels_of_the_anchor_with_names_and_colours(scene, tmp_path) -> None:
    loaded = task_checkpoint(tmp_path / "model", A2MAEForSemanticSegmentation, ["land", "water", "ice"])
    path = scene(rows=61, columns=70, empty=(slice(0, 20), slice(0, 70)))
    report = predict_scene(loaded, path, tmp_path / "map.tif", window=32, overlap=8)
    with rasterio.open(tmp_path / "map.tif") as dataset, rasterio.open(path) as image:
        classes = dataset.read(1)
        assert dataset.transform == image.transform and dataset.crs == image.crs
        assert dataset.tags()["class_1"] == "water" and dataset.nodata == NO_CLASS
        assert len({dataset.colormap(1)[number] for number in range(3)}) == 3
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert (report.rows, report.columns) == classes.shape == (61, 70)
    assert (classes[:20] == NO_CLASS).all() and set(np.unique(classes[20:])) <= {0, 1, 2}
    predict_scene(loaded, path, tmp_path / "whole.tif", window=72)
    whole = predict_map(loaded, read_image_set(path))
    with rasterio.open(tmp_path / "whole.tif") as dataset:
        np.testing.assert_array_equal(dataset.read(1), whole)


def test_change_is_told_where_both_dates_have_data(scene, tmp_path) -> None:
    loaded = task_checkpoint(tmp_path / "model", A2MAEForChangeDetection, ["unchanged", "changed"])
    paths = [scene("before.tif", rows=64, columns=96), scene("after.tif", rows=64, columns=48, seed=1)]
    predict_scene(loaded, paths, tmp_path / "map.tif", window=16, overlap=0)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        classes = dataset.read(1)
    assert (classes[:, 48:] == NO_CLASS).all() and set(np.unique(classes[:, :48])) <= {0, 1}
    with pytest.raises(ValueError, match=r"before\.tif: change needs two dates or more"):
        predict_scene(loaded, paths[:1], tmp_path / "one.tif")


# ------------------------------------------------------------------------------------------- stopped, killed, no room


def test_a_killed_run_goes_on_and_ends_with_the_same_file(small, scene, tmp_path, monkeypatch) -> None:
    """Killed after its second block: no output, two blocks; the same call does the rest, and it is as it would be."""
    path = scene(rows=600, columns=1100)
    settings_of_windows = {"window": 32, "overlap": 8}
    embed_scene(path, tmp_path / "whole.tif", checkpoint=small, **settings_of_windows)
    script = f"""
import os, signal
from a2mae_hub.scene import embed_scene, work
keep = work.Work.save
def save(self, block, values):
    keep(self, block, values)
    if block == (0, 1):
        os.kill(os.getpid(), signal.SIGKILL)
work.Work.save = save
paths, output, checkpoint = {[str(path), str(tmp_path / "killed.tif"), small.model.name_or_path]!r}
embed_scene(paths, output, checkpoint=checkpoint, window=32, overlap=8)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (tmp_path / "killed.tif").exists()
    assert len(list((tmp_path / f"killed.tif{SUFFIX}").glob("*.npy"))) == 2
    report = embed_scene(path, tmp_path / "killed.tif", checkpoint=small, **settings_of_windows)
    # In other batches the last digit may differ, and half precision rounds it.
    np.testing.assert_allclose(features(tmp_path / "killed.tif"), features(tmp_path / "whole.tif"), atol=4e-3)
    # Windows on the edge of a block that is done are asked for again; the others are not.
    assert 0 < report.windows < 20 * 37 * 0.8
    assert not (tmp_path / f"killed.tif{SUFFIX}").exists()


def test_an_unfinished_run_of_other_settings_is_not_gone_on_with(small, scene, tmp_path, monkeypatch) -> None:
    path = scene()
    monkeypatch.setattr(inference, "write_output", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        embed_scene(path, tmp_path / "features.tif", checkpoint=small, window=32)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"tif\.unfinished: .* another window \(32, not 48\); repeat that call"):
        embed_scene(path, tmp_path / "features.tif", checkpoint=small, window=48, overlap=8)
    embed_scene(path, tmp_path / "features.tif", checkpoint=small, window=32)
    assert np.isfinite(features(tmp_path / "features.tif")).all()


def test_a_full_disk_leaves_no_output_and_what_was_done(small, scene, tmp_path, monkeypatch) -> None:
    path, output = scene(rows=600, columns=600), tmp_path / "features.tif"
    keep, calls = np.save, []

    def save(file: Any, values: np.ndarray) -> None:
        calls.append(file)
        if len(calls) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        keep(file, values)

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match="No space left") as raised:
        embed_scene(path, output, checkpoint=small)
    assert SUFFIX in str(raised.value.filename)
    monkeypatch.undo()
    assert not output.exists()
    assert sorted(file.name for file in (tmp_path / f"features.tif{SUFFIX}").iterdir()) == [
        "00000-00000.npy",
        "lock",
        "settings.json",
    ]
    embed_scene(path, output, checkpoint=small)
    assert np.isfinite(features(output)).all()


# ------------------------------------------------------------------------------------------------------------ mistakes


def test_neither_an_image_nor_a_folder_of_the_user_is_written_over(small, scene, tmp_path) -> None:
    path = scene()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"scene\.tif: is an image of the scene and would be written over"):
        embed_scene(path, path, checkpoint=small)
    assert path.read_bytes() == before
    folder = tmp_path / "mine.zarr"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.zarr: is a folder, and what is in it would be lost"):
        embed_scene(path, folder, checkpoint=small)
    assert (folder / "notes.txt").read_text() == "mine"
    for _ in range(2):  # what was made here before is replaced
        embed_scene(path, tmp_path / "features.zarr", checkpoint=small)


def test_a_mask_beside_a_file_counts(small, scene, tmp_path) -> None:
    """GDAL keeps masks in a file of their own, which a reader must look for."""
    path = scene(rows=64, columns=64)
    valid = np.zeros((64, 64), bool)
    valid[:, :32] = True
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.nodata = None
        dataset.write_mask(valid)
    assert path.with_name("scene.tif.msk").exists()
    embed_scene(path, tmp_path / "features.tif", checkpoint=small)
    missing = np.isnan(features(tmp_path / "features.tif")[0])
    assert not missing[:, :8].any() and missing[:, 8:].all()


def test_a_scene_of_which_nothing_can_be_answered_is_an_error_and_no_output(small, scene, tmp_path) -> None:
    path = scene(rows=64, columns=64)
    with rasterio.open(path) as dataset:
        first = int(dataset.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    whole = path.read_bytes()
    path.write_bytes(whole[:first] + os.urandom(20_000) + whole[first + 20_000 :])
    with pytest.raises(ValueError, match=r"No window could be answered, the first because: .*scene\.tif"):
        embed_scene(path, tmp_path / "features.tif", checkpoint=small)
    assert not (tmp_path / "features.tif").exists()


def test_a_run_at_work_on_an_output_is_left_alone(small, scene, tmp_path, monkeypatch) -> None:
    path, output = scene(), tmp_path / "features.tif"

    def write(*_: object) -> None:
        with pytest.raises(ValueError, match=r"features\.tif\.unfinished: another run is at work on this output"):
            embed_scene(path, output, checkpoint=small)

    monkeypatch.setattr(inference, "write_output", write)
    embed_scene(path, output, checkpoint=small)


def test_a_fine_image_beside_a_coarse_anchor_is_refused_before_it_is_too_much(
    small, scene, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(inference, "MAX_TOKENS", 1000)
    anchor = scene("anchor.tif", rows=8, columns=8, metres=600.0)
    fine = scene("fine.tif", rows=480, columns=480)
    with pytest.raises(ValueError, match=r"fine\.tif: a window of 64 pixels of .*anchor\.tif holds \d+ patches of it"):
        embed_scene([anchor, fine], tmp_path / "features.tif", checkpoint=small)


def test_mistakes_are_told_before_anything_is_read(small, scene, tmp_path) -> None:
    path, output = scene(), tmp_path / "features.tif"
    far = scene("far.tif", east=1e5)
    bare = scene("bare.tif", crs=None)
    for arguments, sentence in (
        ({"paths": [path, far]}, r"far\.tif and .*scene\.tif do not overlap"),
        ({"paths": [path, bare]}, r"bare\.tif: has no georeference, but other images have"),
        ({"paths": path, "precision": "int8", "device": "cuda"}, r"precision='int8' runs on a CPU, not on cuda"),
        ({"paths": path, "device": "toaster"}, r"device='toaster' cannot be used"),
        ({"paths": path, "anchor": 1}, r"anchor=1 is no image: 1 found"),
        ({"paths": path, "window": 30}, r"window=30 and overlap=4 do not fit patches of 4 pixels"),
        ({"paths": path, "window": 32, "overlap": 32}, r"overlap=32 do not fit"),
        ({"paths": path, "bounds": (10, 10, 11, 11)}, r"scene\.tif: the bounds .* lie outside the image"),
    ):
        with pytest.raises(ValueError, match=sentence):
            embed_scene(output=output, checkpoint=small, **arguments)
    with pytest.raises(ValueError, match=r"GeoParquet needs to know where the scene lies"):
        embed_scene(bare, tmp_path / "features.parquet", checkpoint=small)
    with pytest.raises(FileNotFoundError, match=r"gone\.tif: no such file"):
        embed_scene(tmp_path / "gone.tif", output, checkpoint=small)
    assert not list(tmp_path.glob("features*"))


def test_settings_are_kept_as_json(small, scene, tmp_path, monkeypatch) -> None:
    """A folder that is left says what it is of."""
    monkeypatch.setattr(inference, "write_output", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    path = scene()
    with pytest.raises(KeyboardInterrupt):
        embed_scene(path, tmp_path / "features.tif", checkpoint=small)
    told = json.loads((tmp_path / f"features.tif{SUFFIX}" / "settings.json").read_text())
    assert told["files"][0][0] == str(path) and told["files"][0][1] == path.stat().st_size
    assert told["images"] == [["sentinel-2-l2a", *BANDS]]
