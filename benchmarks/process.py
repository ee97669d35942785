"""Sets per second through `A2MAEImageProcessor` on one core.

Three images of 10 bands and 96 x 96 uint16 pixels a set, in batches, once placed by longitude, latitude and ground
sample distance and once by a UTM transform.

    .venv/bin/python benchmarks/process.py --seconds 3
"""

import argparse
import time

import numpy as np
import torch

from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor

BANDS = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]


def make_sets(count: int, georeference: str, generator: np.random.Generator) -> list[dict]:
    """Return `count` sets of random Sentinel-2 images, placed in the way named."""
    sets: list[dict] = []
    for number in range(count):
        images = [
            {
                "pixels": generator.integers(200, 4000, (len(BANDS), 96, 96), dtype=np.uint16),
                "sensor": "sentinel-2-l2a",
                "bands": BANDS,
                "acquired": f"20{20 + month % 4}-{month:02d}-15T10:50:31Z",
            }
            for month in (1, 6, 9)
        ]
        if georeference == "utm":
            transform = (10.0, 0.0, 400000.0 + 960 * number, 0.0, -10.0, 5000000.0)
            sets.append({"images": [image | {"crs": "EPSG:32631", "transform": transform} for image in images]})
        else:
            located = {"images": [image | {"gsd": 10.0} for image in images]}
            sets.append(located | {"longitude": 2.8 + number / 100, "latitude": 42.3})
    return sets


def sets_per_second(processor: A2MAEImageProcessor, sets: list[dict], seconds: float) -> float:
    """Return the rate of the fastest third of the calls, which other work on the machine disturbs least."""
    processor(sets, return_tensors="pt")
    durations: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(durations) < 3:
        start = time.perf_counter()
        processor(sets, return_tensors="pt")
        durations.append(time.perf_counter() - start)
    fastest = sorted(durations)[: max(1, len(durations) // 3)]
    return len(sets) / float(np.mean(fastest))


def main() -> None:
    """Print one line for each patch size and kind of georeference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16, help="sets in one call")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    print(f"{'patch':>5}  {'georeference':<12}  {'sets/s':>7}")
    for patch_size in (16, 8):
        for georeference in ("lon/lat", "utm"):
            sets = make_sets(arguments.batch_size, georeference, generator)
            rate = sets_per_second(A2MAEImageProcessor(patch_size=patch_size), sets, arguments.seconds)
            print(f"{patch_size:>5}  {georeference:<12}  {rate:>7.0f}")


if __name__ == "__main__":
    main()
