"""Building shards against plain loops of rasterio windows: the same scenes, the same windows, the same Parquet rows.

    python benchmarks/build.py [--side 1920]

The loops read every window of every set in one process and write it as a row; one opens the scene for each window, as
scripts do, the other keeps all scenes open. `a2mae stssd build` plans from the headers first, judges clouds and missing
data, checks units, writes atomically, and uses every processor. The scenes are those of a real place, repeated.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from a2mae_hub.raster import read_image
from a2mae_hub.stssd.build import build
from a2mae_hub.stssd.recipe import Collection, Recipe, Scenes
from a2mae_hub.stssd.schema import StoredImage, StoredSet
from a2mae_hub.stssd.shards import ShardWriter

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
ALL_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
DATES = ("2020-02-02", "2020-06-21", "2020-09-14", "2022-03-08")
SIDE_PIXELS = 96
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
            "crs": "EPSG:32631",
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


def plain_loop(paths: list[Path], output: Path, side: int, *, keep_open: bool) -> int:
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
                    images.append(StoredImage(pixels, BANDS, "sentinel-2-l2a", source=path.name))
                shard.write(StoredSet(images=list(images), id=f"{row}-{column}"))
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
    return int(build(Recipe((collection,)), output, workers=workers, sets_per_shard=64)["sets"])


def main() -> None:
    """Time the ways in turn, a few rounds, and print sets a second and the ratio to the plain loops."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=1_920, help="pixels along a side of a scene")
    side = parser.parse_args().side
    shared = Path(os.environ.get("A2MAE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    processors = os.cpu_count() or 1
    ways: dict[str, Callable[[list[Path], Path], int]] = {
        "loop, opening each time": lambda paths, folder: plain_loop(paths, folder, side, keep_open=False),
        "loop, scenes kept open": lambda paths, folder: plain_loop(paths, folder, side, keep_open=True),
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
                statistics.median(m / b for m, b in zip(measured, rates[base], strict=True)) for base in list(ways)[:2]
            ]
            rate = statistics.median(measured)
            print(f"{name:<26} {rate:6.0f} sets/s; {ratios[0]:.2f} x and {ratios[1]:.2f} x the loops")


if __name__ == "__main__":
    main()
