"""Building shards against plain loops of rasterio windows: the same scenes, the same windows, the same shards.

    python benchmarks/build.py [--side 3840]

The loops read every window of every set in one process and write it as a row. One opens the scene for each window, as
scripts do; one keeps all scenes open, which takes scenes on one grid; both store pixels and dates only. The third does
the work that `a2mae stssd build` does: it puts the same in every row (footprint, georeference, share of cloud,
heterogeneity), with scenes kept open. The build besides plans from the headers, checks units, resumes where it was
killed, and uses every processor. The scenes are those of a real place, repeated.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path

import numpy as np
import rasterio
import shapely
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from a2mae_hub.raster import read_image
from a2mae_hub.stssd.build import build
from a2mae_hub.stssd.clouds import estimate_clouds
from a2mae_hub.stssd.features import heterogeneity
from a2mae_hub.stssd.recipe import Collection, Recipe, Scenes
from a2mae_hub.stssd.schema import StoredImage, StoredSet
from a2mae_hub.stssd.shards import ShardWriter

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
ALL_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
DATES = ("2020-02-02", "2020-06-21", "2020-09-14", "2022-03-08")
SIDE_PIXELS = 96
CRS = "EPSG:32631"
WEST, NORTH = 480_000, 4_700_160
ROUNDS = 3


def write_scenes(folder: Path, side: int, shared: Path) -> list[Path]:
    """Write a tiled, compressed GeoTIFF per date: a real place repeated to `side` pixels."""
    paths = []
    for date in DATES:
        source = shared / "data" / "scenes" / "boadella_sentinel2" / f"Boadella_{date}.tif"
        image = read_image(source, sensor="sentinel-2-l2a", bands=ALL_BANDS)
        pixels = image.pixels[[list(image.bands).index(band) for band in BANDS]].astype(np.uint16)
        repeats = -(-side // min(pixels.shape[1:]))
        pixels = np.tile(pixels, (1, repeats, repeats))[:, :side, :side]
        path = folder / f"scene_{date}.tif"
        profile = {
            "driver": "GTiff",
            "count": len(BANDS),
            "height": side,
            "width": side,
            "dtype": "uint16",
            "crs": CRS,
            "transform": rasterio.Affine(10, 0, WEST, 0, -10, NORTH),
            "compress": "deflate",
            "predictor": 2,
            "tiled": True,
            "blockxsize": 512,
            "blockysize": 512,
            "interleave": "pixel",
        }
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(pixels)
        paths.append(path)
    return paths


def plain_loop(paths: list[Path], output: Path, side: int, *, keep_open: bool, same_rows: bool = False) -> int:
    """Read every window of every set in one process, set by set, and write the rows; return the number of sets."""
    held = {path: rasterio.open(path) for path in paths} if keep_open else {}

    def opened(path: Path) -> AbstractContextManager[rasterio.DatasetReader]:
        return nullcontext(held[path]) if keep_open else rasterio.open(path)

    count = 0
    with ShardWriter(output / "plain.parquet") as shard:
        for row in range(0, side - SIDE_PIXELS + 1, SIDE_PIXELS):
            for column in range(0, side - SIDE_PIXELS + 1, SIDE_PIXELS):
                images = []
                for path in paths:
                    with opened(path) as dataset:
                        pixels = dataset.read(window=Window(column, row, SIDE_PIXELS, SIDE_PIXELS))
                        transform = dataset.transform * rasterio.Affine.translation(column, row)
                    day = datetime.strptime(path.stem[-10:], "%Y-%m-%d")
                    images.append(StoredImage(pixels, BANDS, "sentinel-2-l2a", day, source=path.name))
                    if same_rows:
                        images[-1].crs, images[-1].transform = CRS, tuple(transform)[:6]
                        cloudy = estimate_clouds(images[-1])
                        images[-1].cloud_share = None if cloudy is None else float(cloudy.mean())
                image_set = StoredSet(images=list(images), id=f"{row}-{column}")
                if same_rows:
                    box = rasterio.windows.bounds(Window(0, 0, SIDE_PIXELS, SIDE_PIXELS), transform)
                    footprint = shapely.box(*transform_bounds(CRS, "EPSG:4326", *box))
                    image_set.longitude, image_set.latitude = footprint.centroid.x, footprint.centroid.y
                    image_set.geometry, image_set.heterogeneity = footprint.wkb, heterogeneity(image_set)
                shard.write(image_set)
                count += 1
    for dataset in held.values():
        dataset.close()
    return count


def ours(paths: list[Path], output: Path, workers: int) -> int:
    """Build the same windows as shards; return the number of sets."""
    entry = Scenes(paths=tuple(map(str, paths)), sensor="sentinel-2-l2a", bands=BANDS)
    collection = Collection(
        "bench",
        (entry,),
        sampling="footprints",
        size=10.0 * SIDE_PIXELS,
        max_cloud=1.0,
        max_nodata=1.0,
        images=len(DATES),
    )
    return int(build(Recipe((collection,)), output, workers=workers, sets_per_shard=128)["sets"])


def main() -> None:
    """Time the ways in turn, a few rounds, and print sets a second and the ratio to the plain loops."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=3_840, help="pixels along a side of a scene")
    side = parser.parse_args().side
    shared = Path(os.environ.get("A2MAE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    processors = os.cpu_count() or 1
    ways: dict[str, Callable[[list[Path], Path], int]] = {
        "loop, opening each time": lambda paths, folder: plain_loop(paths, folder, side, keep_open=False),
        "loop, scenes kept open": lambda paths, folder: plain_loop(paths, folder, side, keep_open=True),
        "loop, kept open, same rows": lambda paths, folder: plain_loop(
            paths, folder, side, keep_open=True, same_rows=True
        ),
        "build, one process": lambda paths, folder: ours(paths, folder / "one", 1),
        f"build, {processors} processes": lambda paths, folder: ours(paths, folder / "all", processors),
    }
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_scenes(Path(temporary), side, shared)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, run in ways.items():
                with tempfile.TemporaryDirectory() as folder:
                    started = time.perf_counter()
                    sets = run(paths, Path(folder))
                    rates[name].append(sets / (time.perf_counter() - started))
        print(f"{len(paths)} scenes of {len(BANDS)} x {side} x {side} uint16, {sets} sets of {len(paths)} images")
        for name, measured in rates.items():
            ratios = [
                statistics.median(m / b for m, b in zip(measured, rates[base], strict=True)) for base in list(ways)[:3]
            ]
            rate = statistics.median(measured)
            print(f"{name:<26} {rate:6.0f} sets/s; x the loops: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
