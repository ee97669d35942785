"""Streaming of shards: pixels out of rows, and ready batches out of a data loader.

    python benchmarks/stream.py [--sets 100000]

First the same images, three to a set, are stored as shards of ours (LZ4, and zstd for comparison), as Parquet whose
pixels are GeoTIFF bytes (deflate with predictor, as in Major TOM) and as a WebDataset of `.npy` files, and decoded to
numpy by one process and by two. Then two workers of a data loader turn the shards into batches, noise for the masks
included, over as many sets as asked for; the memory of all processes is printed on the way. Images are 10 × 96 × 96
uint16 crops of a real place.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from torch.utils.data import DataLoader

from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.raster import read_image
from a2mae_hub.stssd import ImageSetCollator, load
from a2mae_hub.stssd.schema import StoredImage, StoredSet
from a2mae_hub.stssd.shards import ShardWriter

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
ALL_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
SIDE, IMAGES_PER_SET, FILES = 96, 3, 4
BATCH = 16
ROUNDS = 5
EPOCHS = 5  # of a round, so that starting does not count for more than it does in training


def make_sets(count: int, shared: Path) -> Iterator[StoredSet]:
    """Yield sets of three dates of one place, at random corners."""
    folder = shared / "data" / "scenes" / "boadella_sentinel2"
    dates = [read_image(path, sensor="sentinel-2-l2a", bands=ALL_BANDS) for path in sorted(folder.glob("*.tif"))[1:]]
    chosen = [ALL_BANDS.index(band) for band in BANDS]
    generator = np.random.default_rng(0)
    for number in range(count):
        row, column = (int(generator.integers(0, size - SIDE)) for size in dates[0].pixels.shape[1:])
        images = []
        for index in generator.choice(len(dates), IMAGES_PER_SET, replace=False):
            pixels = dates[index].pixels[chosen, row : row + SIDE, column : column + SIDE].astype(np.uint16)
            images.append(StoredImage(pixels, BANDS, "sentinel-2-l2a", acquired=dates[index].acquired, gsd=10.0))
        yield StoredSet(images=list(images), id=f"set-{number:06d}", longitude=2.8 + number / 1e5, latitude=42.3)


def write_all(folder: Path, count: int, shared: Path) -> dict[str, int]:
    """Write the images in every format, in four files each; return the bytes of each and of the plain pixels."""
    sets = list(make_sets(count, shared))
    for name in FORMATS:
        (folder / name).mkdir()
    for part in range(FILES):
        some = sets[part::FILES]
        with ShardWriter(folder / "shards" / f"sets-{part}.parquet") as shard:
            for image_set in some:
                shard.write(image_set)
        rows = pq.read_table(shard.path)
        pq.write_table(
            rows, folder / "zstd" / shard.path.name, row_group_size=58, compression="zstd", compression_level=3
        )
        images = [image.pixels for image_set in some for image in image_set]
        table = pa.table({"pixels": pa.array([geotiff(pixels) for pixels in images], pa.binary())})
        pq.write_table(table, folder / "geotiff" / f"{part}.parquet", row_group_size=150, compression="none")
        with webdataset.TarWriter(str(folder / "webdataset" / f"{part}.tar")) as tar:
            for number, pixels in enumerate(images):
                tar.write({"__key__": f"{number:06d}", "npy": pixels})
    sizes = {name: sum(f.stat().st_size for f in (folder / name).iterdir()) for name in FORMATS}
    return sizes | {"plain": count * IMAGES_PER_SET * sets[0][0].pixels.nbytes}


def geotiff(pixels: np.ndarray) -> bytes:
    """Return an image as the bytes of a GeoTIFF."""
    bands, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    with MemoryFile() as memory:
        with memory.open(**profile, compress="deflate", predictor=2) as dataset:
            dataset.write(pixels)
        return bytes(memory.read())


def decode_shards(folder: Path, part: int, parts: int, name: str = "shards") -> int:
    """Decode a part of our shards in every epoch; return the number of images, each of which was touched."""
    rows = load(folder / name).shard(parts, part)
    return sum(int(image["pixels"][0, 0, 0] >= 0) for _ in range(EPOCHS) for row in rows for image in row["images"])


def decode_zstd(folder: Path, part: int, parts: int) -> int:
    """Decode a part of our shards, compressed for size."""
    return decode_shards(folder, part, parts, "zstd")


def decode_geotiff(folder: Path, part: int, parts: int) -> int:
    """Decode a part of the Parquet of GeoTIFFs."""
    count = 0
    for path in sorted((folder / "geotiff").iterdir())[part::parts] * EPOCHS:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            for stored in file.read_row_group(group, use_threads=False).column("pixels"):
                with MemoryFile(stored.as_py()) as memory, memory.open() as dataset:
                    count += int(dataset.read()[0, 0, 0] >= 0)
    return count


def decode_webdataset(folder: Path, part: int, parts: int) -> int:
    """Decode a part of the WebDataset."""
    paths = [str(path) for path in sorted((folder / "webdataset").iterdir())[part::parts]]
    samples = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
    return sum(int(np.load(io.BytesIO(one["npy"]))[0, 0, 0] >= 0) for _ in range(EPOCHS) for one in samples)


FORMATS: dict[str, Callable[[Path, int, int], int]] = {
    "shards": decode_shards,
    "zstd": decode_zstd,
    "geotiff": decode_geotiff,
    "webdataset": decode_webdataset,
}


def timed(name: str, folder: Path, part: int, parts: int, barrier: object, results: object) -> None:
    """Decode a part, after everybody is ready, and tell how many images and how long; runs in its own process."""
    barrier.wait()  # type: ignore[attr-defined]
    started = time.perf_counter()
    count = 0
    try:
        count = FORMATS[name](folder, part, parts)
    finally:  # Who waits for a result would wait forever.
        results.put((count, time.perf_counter() - started))  # type: ignore[attr-defined]


def images_per_second(name: str, folder: Path, processes: int) -> float:
    """Return the rate at which so many processes decode all images of a format."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(processes), context.Queue()
    members = [
        context.Process(target=timed, args=(name, folder, part, processes, barrier, results))
        for part in range(processes)
    ]
    for member in members:
        member.start()
    told = [results.get() for _ in members]
    for member in members:
        member.join()
        if member.exitcode:
            raise SystemExit(f"decoding {name} failed")
    return float(sum(count for count, _ in told) / max(seconds for _, seconds in told))


def compare_formats(folder: Path, sizes: dict[str, int]) -> None:
    """Print what every format decodes a second, and what it takes on disk."""
    print(f"{'format':<12} {'one process':>12} {'two processes':>14} {'ratio, ours over it':>20} {'size / plain':>13}")
    rates = {
        (name, processes): [images_per_second(name, folder, processes) for _ in range(ROUNDS)]
        for processes in (1, 2)
        for name in FORMATS
    }
    for name in FORMATS:
        ratios = [statistics.median(rates["shards", n][r] / rates[name, n][r] for r in range(ROUNDS)) for n in (1, 2)]
        one, two = (statistics.median(rates[name, processes]) for processes in (1, 2))
        print(
            f"{name:<12} {one:>9.0f} /s {two:>11.0f} /s {ratios[0]:>9.1f} and {ratios[1]:>5.1f} x"
            f" {sizes[name] / sizes['plain']:>13.2f}"
        )


def tree_memory() -> float:
    """Return the memory of this process and its children in MiB, pages that they share counted once."""
    process = psutil.Process()
    return sum(one.memory_full_info().pss for one in [process, *process.children(recursive=True)]) / 2**20


def stream_batches(folder: Path, total: int, patch_size: int) -> None:
    """Print the sets a second that two workers make batches of, and the memory on the way."""
    stream = load(folder / "shards", shuffle=True, seed=1)
    collate = ImageSetCollator(A2MAEImageProcessor(patch_size=patch_size), noise=True)
    loader: DataLoader = DataLoader(
        stream,
        batch_size=BATCH,
        num_workers=2,
        collate_fn=collate,
        persistent_workers=True,
        worker_init_fn=one_thread,
    )
    seen, epoch, started, rates, memory = 0, 0, 0.0, [], []
    marks = [total * tenth // 10 for tenth in range(1, 11)]
    while seen < total:
        stream.set_epoch(epoch)
        for batch in loader:
            if not started:  # The first batch waits for the workers to start.
                started, counted = time.perf_counter(), seen
            seen += len(batch["anchor_ids"])
            if marks and seen >= marks[0]:
                now = time.perf_counter()
                rates.append((seen - counted) / (now - started))
                memory.append(tree_memory())
                started, counted = time.perf_counter(), seen
                marks.pop(0)
            if seen >= total:
                break
        epoch += 1
    print(
        f"patch {patch_size:>2}: {statistics.median(rates):.0f} sets/s to batches of {BATCH} (tenths of the run: "
        f"{min(rates):.0f} to {max(rates):.0f}); memory of all processes, MiB, after each tenth: "
        + " ".join(f"{size:.0f}" for size in memory)
    )


def one_thread(_: int) -> None:
    """Keep torch in a worker to one thread: there are as many workers as cores."""
    torch.set_num_threads(1)


def main() -> None:
    """Write the images, compare the formats, and stream batches."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=20_000, help="sets to stream into batches")
    parser.add_argument("--distinct", type=int, default=1_200, help="sets in the shards")
    arguments = parser.parse_args()
    shared = Path(os.environ.get("A2MAE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with tempfile.TemporaryDirectory() as temporary:
        sizes = write_all(Path(temporary), arguments.distinct, shared)
        compare_formats(Path(temporary), sizes)
        for patch_size in (16, 8):
            stream_batches(Path(temporary), arguments.sets, patch_size)


if __name__ == "__main__":
    main()
