"""What the commands write, and the one sentence that every mistake in their input becomes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from transformers.utils import logging

from a2mae_hub import A2MAEConfig, A2MAEForPreTraining, A2MAEImageProcessor, Image, ImageSet, write_raster
from a2mae_hub.cli import main

image_files = pytest.importorskip("matplotlib.image", reason="figures need the extra [plot]")
SENTINEL_2 = "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B11,B12"
BANDS = ["B02", "B03", "B04", "B08"]
TAGS = {"sensor": "sentinel-2-l2a", "acquired": "2023-07-05T10:30:00Z"}


class Told:
    """What a command said, and the exit code it ended with."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def a2mae(monkeypatch, capsys) -> Callable[..., Told]:
    """A function that runs the command line with its arguments, in this process."""
    verbosity = logging.get_verbosity()

    def run(*arguments: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["a2mae", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Told(ended.value.code, *capsys.readouterr())

    yield run
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


@pytest.fixture
def scene(tmp_path) -> Callable[..., Path]:
    """A function that writes a small Sentinel-2 scene near 3° east, 42.36° north, and returns its path."""

    def write(name: str = "scene.tif", pixels: np.ndarray | None = None, *, west: float = 500_000.0, **fields) -> Path:
        if pixels is None:
            pixels = np.random.default_rng(0).integers(300, 3_000, (4, 24, 24), dtype=np.uint16)
        told = {"descriptions": BANDS, "tags": TAGS, **fields}
        write_raster(tmp_path / name, pixels, crs="EPSG:32631", transform=(10, 0, west, 0, -10, 4_690_000), **told)
        return tmp_path / name

    return write


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    A2MAEForPreTraining(A2MAEConfig.nano(**sizes, mask_ratio=0.5)).save_pretrained(folder)
    A2MAEImageProcessor(patch_size=8).save_pretrained(folder)
    return folder


def refused(told: Told, pattern: str) -> None:
    """Check that a command ended with one sentence of an error, and the sentence says what is expected."""
    assert told.code == 2 and told.out == ""
    assert re.fullmatch(r"a2mae: [^\n]+[.?]\n", told.err), told.err
    assert "Traceback" not in told.err and re.search(pattern, told.err), told.err


# ------------------------------------------------------------------------------------------------------ what is written


def test_embed_writes_a_map_on_the_ground_or_all_features(a2mae, scene, tmp_path, checkpoint):
    first, second = scene(), scene("second.tif", tags={**TAGS, "acquired": "2023-10-01"})
    for name in ("features.tif", "features.npz"):
        told = a2mae("embed", first, second, "-o", tmp_path / name, "-c", checkpoint)
        assert told.code == 0 and told.err == ""
        assert told.out == f"{tmp_path / name}: 32 features on 3 × 3 patches, from 2 images.\n"
    with rasterio.open(tmp_path / "features.tif") as dataset, np.load(tmp_path / "features.npz") as archive:
        np.testing.assert_array_equal(dataset.read(), archive["maps"].astype(np.float16))
        assert dataset.bounds == (500_000, 4_690_000 - 240, 500_240, 4_690_000)
        assert archive["acquired"].tolist() == ["2023-07-05T10:30:00+00:00", "2023-10-01T00:00:00+00:00"]


def test_reconstruct_draws_a_row_for_every_image(a2mae, scene, tmp_path, checkpoint):
    first, second = scene(), scene("second.tif")
    heights = []
    for paths in ([first], [first, second]):
        told = a2mae("reconstruct", *paths, "-o", tmp_path / "figure.png", "-c", checkpoint)
        assert told.code == 0 and told.err == "" and f"error of {len(paths)} images" in told.out
        heights.append(image_files.imread(tmp_path / "figure.png").shape[0])
    assert heights[1] - heights[0] > 200


def test_info_says_what_a_checkpoint_is(a2mae, checkpoint):
    told = a2mae("info", checkpoint)
    assert told.code == 0 and told.err == ""
    parameters = sum(value.numel() for value in A2MAEForPreTraining.from_pretrained(checkpoint).a2mae.parameters())
    assert f"encoder   {parameters / 1e6:.2f} M parameters: 2 layers of width 32, patches of 8 × 8" in told.out
    assert "anchor, 50% of every image hidden" in told.out
    assert "naip             DN: red green blue nir" in told.out


def test_the_demo_writes_scenes_features_and_figures_and_says_where(a2mae, tmp_path):
    told = a2mae("demo", "--out", tmp_path)
    assert told.code == 0 and told.err == ""
    assert told.out.count("sentinel-2-l2a") == told.out.count("landsat-8-sr") == 2
    assert "Hid 75% of the pixels (masking 'anchor')" in told.out
    for name in ("embeddings.npz", "embeddings.tif", "embeddings.png", "reconstruction.png"):
        assert str(tmp_path / name) in told.out and (tmp_path / name).stat().st_size > 1_000
    assert len(list((tmp_path / "scenes").glob("place*.tif"))) == 4


def test_the_demo_takes_real_files_when_they_are_named(a2mae, scene, tmp_path, checkpoint):
    told = a2mae("demo", scene(), "--out", tmp_path / "out", "-c", checkpoint)
    assert told.code == 0 and told.err == ""
    assert "Simulated" not in told.out and "Hid 56% of the pixels" in told.out  # 5 of 9 patches
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "embeddings.npz", "embeddings.png", "embeddings.tif", "reconstruction.png",
    ]  # fmt: skip


def test_eight_real_dates_without_band_names_are_embedded_as_declared(a2mae, shared, tmp_path, checkpoint):
    folder = shared / "data" / "scenes" / "boadella_sentinel2"
    told = a2mae(
        *("embed", folder, "-o", tmp_path / "map.tif", "-c", checkpoint, "--anchor", 2),
        *("--sensor", "sentinel-2-l2a", "--bands", SENTINEL_2, "--bounds=2.800,42.340,2.810,42.348"),
    )
    assert told.code == 0 and told.out.endswith("from 8 images.\n"), told.err
    with rasterio.open(tmp_path / "map.tif") as dataset:
        west, south, east, north = dataset.bounds
        # Snapped outward to whole pixels and whole patches of 80 m, about a thousandth of a degree.
        assert 2.7985 < west <= 2.800 and 2.810 <= east < 2.812
        assert 42.3385 < south <= 42.340 and 42.348 <= north < 42.3485


def test_nan_pixels_are_left_out_and_the_rest_is_embedded(a2mae, scene, tmp_path, checkpoint):
    pixels = np.full((4, 24, 24), 0.2, np.float32)
    pixels[:, :8] = np.nan
    path = scene(pixels=pixels)
    told = a2mae("embed", path, "--scale", 1, "--offset", 0, "-o", tmp_path / "map.tif", "-c", checkpoint)
    assert told.code == 0, told.err
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert np.isnan(dataset.read()[:, 0]).all() and np.isfinite(dataset.read()[:, 1:]).all()


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--bands", "B02,B99"], r"scene\.tif: .*no band 'B99': it has B01 \(coastal\), B02"),
        (["--bands", ""], r"scene\.tif: .*no band ''"),
        (["--bands", "B02,B02"], r"scene\.tif: --bands=.* each only once"),
        (["--sensor", "landsat-8-sr"], r"scene\.tif: Sensor 'landsat-8-sr' has no band 'B08': it has B1"),
        (["--sensor", "sentinel-9"], r"scene\.tif: No sensor is named 'sentinel-9': did you mean sentinel-2"),
        (["--scale", "1"], r"band B02 of image 0 \(.*scene\.tif\).* stored numbers: pass --scale=0\.0001"),
        (["--scale", "1e-8"], r"scene\.tif\) has next to nothing .* pass --scale=1 and --offset=0"),
        (["--scale", "0"], r"scene\.tif\) has scale 0"),
        (["--acquired", "2150-01-01"], r"scene\.tif\) was acquired at 2150.* from 1970 to 2100 .*correct the date"),
        (["--acquired", "1969-12-31"], r"scene\.tif\) was acquired at 1969.* from 1970 to 2100 .*correct the date"),
        (["--acquired", "yesterday"], r"scene\.tif: 'yesterday' is no moment in time; write it as 2020-06-21"),
        (["--bounds", "1,2,3"], r"--bounds 1,2,3: give west,south,east,north in degrees, four numbers"),
        (["--bounds", "1,2,3,x"], r"--bounds 1,2,3,x: give west,south,east,north"),
        (["--bounds", "10,94,11,95"], r"scene\.tif: --bounds=.* no box on Earth; pass west, south, east, north"),
        (["--bounds", "10,40,11,41"], r"scene\.tif: the bounds .* lie outside the image, which covers west 3\.0"),
        (["--bounds", "3.0,42.362,3.0003,42.3622"], r"scene\.tif\) is \d by \d pixels, smaller than one patch of 8"),
        (["--anchor", "1"], r"--anchor=1 is no image of the set: 1 found"),
        (["--checkpoint", "nowhere"], r"nowhere: no such folder; name a checkpoint folder"),
    ],
)
def test_a_wrong_option_is_one_sentence_with_the_way_out(a2mae, scene, tmp_path, options, sentence):
    refused(a2mae("embed", scene(), "-o", tmp_path / "features.npz", *options), sentence)
    assert not (tmp_path / "features.npz").exists()


def nodata_only(scene) -> list[Path]:
    return [scene(), scene("bad.tif", np.zeros((4, 24, 24), np.uint16), nodata=0)]


def nan_only(scene) -> list[Path]:
    return [scene("bad.tif", np.full((4, 24, 24), np.nan, np.float32))]


def elsewhere(scene) -> list[Path]:
    return [scene(), scene("bad.tif", west=600_000.0)]


def smaller_than_a_patch(scene) -> list[Path]:
    return [scene("bad.tif", np.full((4, 5, 7), 1_500, np.uint16))]


def text(scene) -> list[Path]:
    path = scene("bad.tif")
    path.write_text("This is no raster.")
    return [path]


def cut_short(scene) -> list[Path]:
    path = scene("bad.tif", np.random.default_rng(0).integers(300, 3_000, (4, 200, 200), dtype=np.uint16))
    path.write_bytes(path.read_bytes()[:100_000])
    return [path]


def missing(scene) -> list[Path]:
    return [scene().with_name("bad.tif")]


def empty_folder(scene) -> list[Path]:
    folder = scene().with_name("bad")
    folder.mkdir()
    return [folder]


def without_sensor(scene) -> list[Path]:
    return [scene("bad.tif", tags={})]


def without_bands(scene) -> list[Path]:
    return [scene("bad.tif", descriptions=None)]


def of_the_future(scene) -> list[Path]:
    return [scene("bad.tif", tags={**TAGS, "acquired": "2101-01-01"})]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (nodata_only, r"image 1 \(.*bad\.tif\) holds no valid pixel.*: leave it out of the set"),
        (nan_only, r"image 0 \(.*bad\.tif\) holds no valid pixel, only nodata, NaN"),
        (elsewhere, r"scene\.tif and .*bad\.tif do not overlap; put images of one place into a set"),
        (smaller_than_a_patch, r"bad\.tif\) is 5 by 7 pixels, smaller than one patch of 8: .*read a larger window"),
        (text, r"bad\.tif: not a raster that GDAL can open, or a damaged one .*; check the file"),
        (cut_short, r"bad\.tif: .*(damaged|cut short).*"),
        (missing, r"bad\.tif: no such file or folder; check the path"),
        (empty_folder, r"/bad: the folder holds no raster .*; name the files"),
        (without_sensor, r"bad\.tif: neither name nor tags tell the sensor; pass --sensor=, one of .*sentinel-2-l2a"),
        (without_bands, r"bad\.tif: 4 bands without names; pass --bands= in file order, for example B01, B02"),
        (of_the_future, r"bad\.tif\) was acquired at 2101.* from 1970 to 2100"),
    ],
)
@pytest.mark.parametrize("command", ["embed", "reconstruct"])
def test_a_bad_file_is_one_sentence_with_its_name(a2mae, scene, tmp_path, command, make, sentence):
    output = tmp_path / ("features.npz" if command == "embed" else "figure.png")
    refused(a2mae(command, *make(scene), "-o", output), sentence)
    assert not output.exists()


@pytest.mark.parametrize(
    ("command", "output", "sentence"),
    [
        ("embed", "features.csv", r"features\.csv: this is written as \.npz, \.png, .*; give it a name"),
        ("reconstruct", "figure.gif", r"figure\.gif: this is written as \.png, \.pdf, \.svg; give it a name"),
        ("embed", "missing/features.npz", r"features\.npz: the folder .*/missing does not exist; create it first"),
        ("reconstruct", "missing/figure.png", r"figure\.png: the folder .*/missing does not exist; create it first"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(
    a2mae, tmp_path, command, output, sentence
):
    refused(a2mae(command, tmp_path / "never-looked-at.tif", "-o", tmp_path / output), sentence)


@pytest.mark.parametrize("command", ["embed", "reconstruct"])
def test_what_the_system_refuses_to_write_is_a_sentence_too(a2mae, scene, tmp_path, monkeypatch, command):
    def refuse(source: object, target: object) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    path, output = scene(), tmp_path / ("features.npz" if command == "embed" else "figure.png")
    monkeypatch.setattr(os, "replace", refuse)
    told = a2mae(command, path, "-o", output)
    assert told.code == 2 and not list(tmp_path.glob(".*"))
    assert told.err.endswith(
        f"a2mae: {output}: Permission denied; check the path, the room on the disk, and who may write there.\n"
    )


def test_a_file_in_the_place_of_the_demo_folder_is_named(a2mae, scene):
    path = scene()
    refused(a2mae("demo", "--out", path), rf"{path}: File exists; check the path")


@pytest.mark.parametrize("command", ["info", "embed"])
def test_a_checkpoint_folder_without_weights_is_named(a2mae, scene, tmp_path, checkpoint, command):
    folder = tmp_path / "no-weights"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    arguments = [folder] if command == "info" else [scene(), "-o", tmp_path / "features.npz", "-c", folder]
    refused(a2mae(command, *arguments), rf"{folder}: no model\.safetensors in this folder; name a folder written by")


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("config.json", "{", r"config\.json' is not a valid JSON file; save the checkpoint again"),
        ("config.json", None, r"config\.json describes no model \(.*'num_hidden_layers' expected int"),
        ("model.safetensors", "", r"the weights cannot be read .*damaged or cut short"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(a2mae, tmp_path, checkpoint, file, content, sentence):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if content is None:
        content = json.dumps({**json.loads((folder / file).read_text()), "num_hidden_layers": "two"})
    (folder / file).write_text(content)
    refused(a2mae("info", folder), sentence)


@pytest.mark.parametrize("arguments", [["embed", "-o", "x.npz"], ["embed", "x.tif"], ["embed", "--depth"], ["paint"]])
def test_a_command_line_that_makes_no_sense_ends_with_code_2_and_the_usage(a2mae, arguments):
    told = a2mae(*arguments)
    assert told.code == 2 and re.search("Usage: .*a2mae", told.err) and "Traceback" not in told.err


def test_a_place_beyond_the_poles_is_refused():
    image = Image(np.full((4, 16, 16), 1_500, np.uint16), BANDS, "sentinel-2-l2a")
    with pytest.raises(ValueError, match=r"longitude 2\.8 and latitude 95, which is no place on Earth: give degrees"):
        A2MAEImageProcessor(patch_size=8)(ImageSet([image], longitude=2.8, latitude=95))


def test_the_installed_command_ends_with_code_2_one_sentence_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "a2mae_hub.cli", "embed", tmp_path / "none.tif", "-o", tmp_path / "features.npz"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"a2mae: {tmp_path / 'none.tif'}: no such file or folder; check the path.\n"
