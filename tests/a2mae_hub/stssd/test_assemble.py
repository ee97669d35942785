"""One image set at one location: same ground, at most six images of two sensors, clouds refused, seasons spread."""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform as transform_points

from a2mae_hub import A2MAEImageProcessor
from a2mae_hub.raster import write_raster
from a2mae_hub.stssd.assemble import assemble
from a2mae_hub.stssd.catalogue import open_collection
from a2mae_hub.stssd.footprints import Footprint
from a2mae_hub.stssd.recipe import Collection, Scenes
from a2mae_hub.stssd.sampling import sample
from a2mae_hub.stssd.schema import StoredImage, StoredSet

from .scenes import NORTH, UTM, WEST, ground, write_archive, write_scene


def sets_of(folder: Path, **options: Any) -> tuple[list[StoredSet], Counter[str]]:
    """Return the image sets of the scenes in a folder, and what was refused."""
    entry = Scenes(paths=(str(folder),), **{key: options.pop(key) for key in ("sensor", "bands") if key in options})
    collection = Collection(name="test", scenes=(entry,), **{"size": 960.0, "sampling": "footprints", **options})
    scenes = open_collection(collection, folder)
    refused: Counter[str] = Counter()
    found = [
        assemble(location, collection, scenes, rasterio.open, refused)
        for location in sample(collection, scenes, folder)
    ]
    return [image_set for image_set in found if image_set is not None], refused


def ground_of(image: Any) -> np.ndarray:
    """Return the reflectance that the ground under every pixel centre has."""
    height, width = image.pixels.shape[1:]
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    a, b, c, d, e, f = image.transform
    xs, ys = a * columns + b * rows + c, d * columns + e * rows + f
    if image.crs != UTM:
        moved = transform_points(image.crs, UTM, xs.ravel(), ys.ravel())
        xs, ys = (np.asarray(values).reshape(xs.shape) for values in moved)
    return ground(xs, ys)


def physical(image: Any) -> np.ndarray:
    """Return the reflectance of the first band."""
    scale = {"sentinel-2-l2a": 1e-4, "landsat-8-sr": 2.75e-5}[image.sensor]
    offset = {"sentinel-2-l2a": 0.0, "landsat-8-sr": -0.2}[image.sensor]
    return image.pixels[0] * scale + offset


def test_every_image_of_a_set_shows_the_ground_that_its_georeference_says(tmp_path: Path) -> None:
    sets, _ = sets_of(write_archive(tmp_path))
    assert len(sets) == 9
    for image_set in sets:
        for image in image_set:
            # Half a stored number of Sentinel-2.
            np.testing.assert_allclose(physical(image), ground_of(image), atol=6e-5)


def test_images_of_one_set_cover_one_footprint_within_a_pixel(tmp_path: Path) -> None:
    sets, _ = sets_of(write_archive(tmp_path))
    for image_set in sets:
        spans = {}
        for image in image_set:
            a, _, west, _, e, north = image.transform
            height, width = image.pixels.shape[1:]
            spans[image.sensor] = np.array([west, north, west + a * width, north + e * height])
        assert np.abs(spans["sentinel-2-l2a"] - spans["landsat-8-sr"]).max() <= 30
        assert np.ptp(spans["sentinel-2-l2a"][[0, 2]]) == 960


def test_a_set_has_six_images_of_two_sensors_at_most(tmp_path: Path) -> None:
    write_archive(tmp_path)
    for date in ("03-07", "06-02"):
        write_scene(tmp_path / "l9" / f"l9_{date}.tif", sensor="landsat-8-sr", acquired=f"2020-{date}T10:20:00")
        with rasterio.open(tmp_path / "l9" / f"l9_{date}.tif", "r+") as dataset:
            dataset.update_tags(sensor="landsat-9-sr")
    sets, _ = sets_of(tmp_path)
    for image_set in sets:
        counts = Counter(image.sensor for image in image_set)
        assert counts == {"sentinel-2-l2a": 3, "landsat-8-sr": 3}


def test_dates_are_spread_over_the_year_before_they_are_close(tmp_path: Path) -> None:
    sets, _ = sets_of(write_archive(tmp_path), images=3, derive=None)
    for image_set in sets:
        days = sorted(image.acquired.timetuple().tm_yday for image in image_set if image.sensor == "sentinel-2-l2a")
        gaps = np.diff([*days, days[0] + 366])
        assert len(days) == 2
        assert gaps.min() > 120


def test_the_second_sensor_is_taken_at_the_dates_of_the_first(tmp_path: Path) -> None:
    sets, _ = sets_of(write_archive(tmp_path), images=4)
    for image_set in sets:
        first, second = (
            [image.acquired for image in image_set if image.sensor == sensor]
            for sensor in ("sentinel-2-l2a", "landsat-8-sr")
        )
        gaps = {
            date: min(abs((datetime.fromisoformat(f"2020-{date}T10:20+00:00") - other).days) for other in first)
            for date in ("03-06", "06-12", "10-03", "12-01")
        }
        taken = {f"{time:%m-%d}" for time in second}
        assert max(gaps[date] for date in taken) <= min(gaps[date] for date in gaps.keys() - taken)


def test_two_parts_of_one_overpass_are_not_two_dates(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.tif", acquired="2020-06-01T10:50:00")
    write_scene(tmp_path / "b.tif", acquired="2020-06-01T10:50:20")
    sets, _ = sets_of(tmp_path)
    assert {len(image_set) for image_set in sets} == {1}


def test_a_cloudy_date_is_refused_where_it_is_cloudy_and_taken_where_it_is_clear(tmp_path: Path) -> None:
    write_scene(tmp_path / "clear.tif", acquired="2020-06-01")
    write_scene(tmp_path / "cloudy.tif", acquired="2020-12-01", cloudy=slice(0, 100))
    sets, refused = sets_of(tmp_path)
    northern = [image_set for image_set in sets if physical(image_set[0])[0, 0] < 0.113]
    assert refused["clouds"] == 3
    assert Counter(len(image_set) for image_set in sets) == {1: 3, 2: 6}
    assert all(image.cloud_share <= 0.2 for image_set in sets for image in image_set if isinstance(image, StoredImage))
    assert northern


@pytest.mark.parametrize(("layer", "clear", "cloud"), [("SCL", 4, 9), ("QA_PIXEL", 21824, 22280), ("Fmask", 64, 66)])
def test_the_quality_layer_of_a_product_decides_on_clouds(tmp_path: Path, layer: str, clear: int, cloud: int) -> None:
    scene = write_scene(tmp_path / "scene.tif")
    values = np.full((150, 150), clear, np.uint16)
    values[:50] = cloud
    write_raster(tmp_path / f"scene_{layer}.tif", values, crs=UTM, transform=(20, 0, WEST, 0, -20, NORTH))
    sets, refused = sets_of(tmp_path)
    assert scene.exists()
    assert (len(sets), refused["clouds"]) == (6, 3)
    assert {image_set[0].cloud_share for image_set in sets} == {0.0}  # type: ignore[attr-defined]


@pytest.mark.parametrize("damaged", ["scene.tif", "scene_SCL.tif"])
def test_a_window_that_cannot_be_read_is_named_with_its_file(tmp_path: Path, damaged: str) -> None:
    write_scene(tmp_path / "scene.tif")
    layer = np.random.default_rng(0).integers(4, 7, (300, 300)).astype(np.uint8)
    write_raster(tmp_path / "scene_SCL.tif", layer, crs=UTM, transform=(10, 0, WEST, 0, -10, NORTH))
    path = tmp_path / damaged
    content = bytearray(path.read_bytes())
    with rasterio.open(path) as dataset:
        for row in range(-(-300 // dataset.block_shapes[0][0])):
            told = (dataset.get_tag_item(f"BLOCK_{fact}_0_{row}", "TIFF", bidx=1) for fact in ("OFFSET", "SIZE"))
            start, size = map(int, told)
            content[start : start + size] = bytes(size)
    path.write_bytes(content)
    window = r"columns \d+ to \d+, rows \d+ to \d+"
    with pytest.raises(ValueError, match=rf"{damaged}: .*cannot be read in {window}") as raised:
        sets_of(tmp_path)
    assert "Set test/" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_codes_that_no_quality_layer_holds_are_named_with_file_and_window(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene.tif")
    codes = np.full((300, 300), 77, np.uint8)
    write_raster(tmp_path / "scene_SCL.tif", codes, crs=UTM, transform=(10, 0, WEST, 0, -10, NORTH))
    with pytest.raises(ValueError, match=r"scene_SCL\.tif: holds 77.*columns \d+ to \d+, rows \d+ to \d+.*Set test/"):
        sets_of(tmp_path)


def test_an_image_without_data_is_refused(tmp_path: Path) -> None:
    write_scene(tmp_path / "scene.tif", missing=slice(0, 60))
    sets, refused = sets_of(tmp_path)
    assert (len(sets), refused["no data"]) == (6, 3)


def test_pixels_are_resampled_only_where_they_are_not_square_and_north_up(tmp_path: Path) -> None:
    (west, _), (north, _) = transform_points(UTM, "EPSG:4326", [WEST, WEST], [NORTH, NORTH])
    # Square in degrees, and so a quarter shorter than high on the ground at 42 degrees north.
    write_scene(tmp_path / "degrees.tif", crs="EPSG:4326", corner=(west, north), pixel=9e-5, shape=(300, 400))
    sets, _ = sets_of(tmp_path, size=960.0)
    assert sets
    for image_set in sets:
        (image,) = image_set
        assert image.crs == UTM
        np.testing.assert_allclose(image.transform[0], -image.transform[4])
        np.testing.assert_allclose(physical(image), ground_of(image), atol=2e-4)


def test_scenes_in_web_mercator_are_cut_without_resampling(tmp_path: Path) -> None:
    (x,), (y,) = transform_points(UTM, "EPSG:3857", [WEST], [NORTH])
    path = write_scene(tmp_path / "mercator.tif", crs="EPSG:3857", corner=(x, y), pixel=10.0)
    sets, _ = sets_of(tmp_path, size=640.0)
    with rasterio.open(path) as dataset:
        stored = dataset.read()
    for image_set in sets:
        (image,) = image_set
        assert image.crs == "EPSG:3857"
        column, row = round((image.transform[2] - x) / 10), round((y - image.transform[5]) / 10)
        height, width = image.pixels.shape[1:]
        np.testing.assert_array_equal(image.pixels, stored[:, row : row + height, column : column + width])
        # 640 m are more than 64 pixels of ten Mercator metres.
        assert width == round(640 / (10 * np.cos(np.radians(42.45)))) == height


def test_a_place_with_one_sensor_gets_a_derived_second_one(tmp_path: Path) -> None:
    for month in range(1, 9):
        write_scene(tmp_path / f"{month}.tif", acquired=f"2020-{month:02d}-01")
    sets, _ = sets_of(tmp_path, derive="landsat-8-sr")
    for image_set in sets:
        facts = [(image.sensor, image.provenance, image.source) for image in image_set]  # type: ignore[attr-defined]
        observed, derived = facts[:3], facts[3:]
        assert {fact[:2] for fact in observed} == {("sentinel-2-l2a", "observed")}
        assert {fact[:2] for fact in derived} == {("landsat-8-sr", "derived")}
        assert [fact[2] for fact in derived] == [fact[2] for fact in observed]
        for image in image_set.images[3:]:
            np.testing.assert_allclose(physical(image), ground_of(image), atol=5e-3)


def test_a_place_with_two_sensors_needs_none_derived(tmp_path: Path) -> None:
    sets, _ = sets_of(write_archive(tmp_path), derive="landsat-8-sr")
    assert {image.provenance for image_set in sets for image in image_set} == {"observed"}  # type: ignore[attr-defined]


def test_neighbours_go_to_one_split(tmp_path: Path) -> None:
    sets, _ = sets_of(write_archive(tmp_path), validation=0.5, size=480.0)
    cells: dict[tuple[float, float], set[str]] = {}
    for image_set in sets:
        assert image_set.longitude is not None
        assert image_set.latitude is not None
        cells.setdefault((image_set.longitude // 0.1, image_set.latitude // 0.1), set()).add(image_set.split)
    assert all(len(splits) == 1 for splits in cells.values())


def test_the_share_of_validation_is_that_asked_for(tmp_path: Path) -> None:
    from a2mae_hub.stssd.assemble import _split

    drawn = [_split(f"chips/{number}", None, 0.1) for number in range(4_000)]
    assert 0.08 < drawn.count("validation") / len(drawn) < 0.12


@pytest.mark.parametrize("place", [(3.05, 42.05), (3.05, -0.05), (0.0, 0.0), (179.98, 10.03), (-179.999, 60.0)])
def test_a_set_shows_ground_of_one_split_in_all_cells_that_it_touches(place: tuple[float, float]) -> None:
    from a2mae_hub.stssd.assemble import _split

    def split_at(longitude: float, latitude: float) -> str | None:
        """Return the split of the cell around a place, by a footprint of ten metres in its middle."""
        return _split("set", Footprint(longitude, latitude, 10.0, 10.0), 0.08)

    told = set()
    for east in (-7, -2, 0, 3, 8):
        for north in (-6, -1, 0, 4, 9):
            middle = (place[0] + 0.1 * east + 180) % 360 - 180, place[1] + 0.1 * north
            whole = Footprint(*middle, 33_000.0, 45_000.0)
            (west, top), _, (right, south), _ = whole.corners()
            right = west + (right - west) % 360
            columns = np.arange(math.floor(west * 10), math.ceil(right * 10)) / 10 + 0.05
            rows = np.arange(math.floor(south * 10), math.ceil(top * 10)) / 10 + 0.05
            cells = {split_at((x + 180) % 360 - 180, y) for x in columns for y in rows}
            assert _split("set", whole, 0.08) == (cells.pop() if len(cells) == 1 else None)
            told.add(_split("set", whole, 0.08))
    assert None in told


def test_numbers_in_another_unit_name_the_file_and_the_way_out(tmp_path: Path) -> None:
    write_scene(tmp_path / "good.tif", acquired="2020-01-01")
    write_scene(tmp_path / "tenfold.tif", acquired="2020-06-01", factor=18.0)
    with pytest.raises(ValueError, match=r"tenfold\.tif.*scale") as raised:
        sets_of(tmp_path, max_cloud=1.0)
    assert "\n" not in str(raised.value)


def test_the_sources_recorded_hold_no_folder_of_this_machine(tmp_path: Path) -> None:
    sets, _ = sets_of(write_archive(tmp_path))
    sources = {image.source for image_set in sets for image in image_set}
    assert "s2/s2_2020-03-05.tif" in sources
    assert not any(str(tmp_path) in str(source) for source in sources)


def test_the_processor_takes_what_was_assembled(tmp_path: Path) -> None:
    sets, _ = sets_of(write_archive(tmp_path))
    batch = A2MAEImageProcessor(patch_size=8)(list(sets), return_tensors="pt")
    assert batch["pixel_values"].shape[0] == len(sets)
    assert batch["patch_positions"].abs().max() < 960 / 2 + 8 * 30


def test_real_sentinel_2_in_degrees_is_cut_as_it_is_and_its_cloudy_day_refused(shared: Path) -> None:
    folder = shared / "data" / "scenes" / "boadella_sentinel2"
    bands = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
    sets, refused = sets_of(folder, sensor="sentinel-2-l2a", bands=bands, sampling="grid", size=1920.0)
    assert sets
    assert refused["clouds"] > 0
    for image_set in sets:
        assert {image.crs for image in image_set} == {"EPSG:4326"}
        assert "2020-01-23" not in {str(image.acquired.date()) for image in image_set if image.acquired}
