"""Whole scenes: how much of the model's own rate is left end to end, and whether memory grows with the scene.

    python benchmarks/scene.py --data ../shared/data [--work out/scene-benchmark] [-o out/scene.json]

Scenes are real Sentinel-2 pixels (Boadella, ten bands) mirrored and repeated into tiled, compressed GeoTIFFs. The rate
of the model is that of the encoder and of the fusion on the anchor's grid, on the very batches that a run makes of the
scene, in the same process and with the same threads; each is measured in turn. Peak memory is that of a process of its
own. Operations are counted by torch's own counter on a batch, and compared with what its largest matrix product does
per second here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.windows
import torch
from torch.utils.flop_counter import FlopCounterMode

from a2mae_hub import A2MAEConfig, A2MAEForPreTraining
from a2mae_hub.inference import Checkpoint, load_checkpoint
from a2mae_hub.scene import embed_scene
from a2mae_hub.scene import inference as scene_inference

SOURCE = "scenes/boadella_sentinel2/Boadella_2021-06-26.tif"
BANDS = {"B02": 2, "B03": 3, "B04": 4, "B05": 5, "B06": 6, "B07": 7, "B08": 8, "B8A": 9, "B11": 11, "B12": 12}
TILE = 512
SPEED_SIDE, MEMORY_SIDES = 5120, (2745, 10_980)
BATCHES = 24
FORMATS: tuple[tuple[str, Literal["float16", "int8"]], ...] = (
    (".tif", "float16"),
    (".tif", "int8"),
    (".zarr", "float16"),
    (".parquet", "float16"),
)
# Sides of the matrices whose product shows what the machine can do: large enough, and small enough for its memory.
MATRIX = 2048


def write_scene(path: Path, source: Path, side: int) -> None:
    """Write a scene of `side` pixels a side from a smaller one, mirrored so that no edges arise."""
    with rasterio.open(source) as dataset:
        pixels = dataset.read(list(BANDS.values())).clip(0).astype(np.uint16)
    pixels = np.concatenate([pixels, pixels[:, :, ::-1]], axis=2)
    pixels = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
    columns = np.arange(side) % pixels.shape[2]
    profile = {
        "driver": "GTiff",
        "height": side,
        "width": side,
        "count": len(BANDS),
        "dtype": "uint16",
        "crs": "EPSG:32631",
        "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 4_690_000),
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "compress": "deflate",
        "predictor": 2,
    }
    unfinished = path.with_suffix(".part")
    with rasterio.open(unfinished, "w", **profile) as dataset:
        for first in range(0, side, TILE):
            rows = np.arange(first, min(first + TILE, side)) % pixels.shape[1]
            window = rasterio.windows.Window(0, first, side, len(rows))
            dataset.write(pixels[:, rows][:, :, columns], window=window)
        dataset.update_tags(sensor="sentinel-2-l2a", acquired="2021-06-26T10:50:00")
        for number, name in enumerate(BANDS, start=1):
            dataset.set_band_description(number, name)
    unfinished.rename(path)


def model_rate(checkpoint: Checkpoint, batches: list[tuple[dict[str, torch.Tensor], list[Any]]]) -> float:
    """Return windows per second of the model alone."""
    answers = scene_inference.FeaturesOfPatches(checkpoint)
    started = time.perf_counter()
    with torch.inference_mode():
        for inputs, sets in batches:
            list(answers(inputs, sets))
    return sum(len(sets) for _, sets in batches) / (time.perf_counter() - started)


def first_batches(checkpoint: Checkpoint, scene: Path, count: int) -> list[tuple[dict[str, torch.Tensor], list[Any]]]:
    """Return the first batches that a run makes of a scene."""
    job = scene_inference._Job(scene_inference.open_scenes(scene), 0, None, checkpoint, None, None)
    with scene_inference.WindowReader(job.scenes, 0, job.area, job.cell) as reader:
        plan = list(scene_inference.order(job.tiling, ()))
        steps = scene_inference._Steps(reader, checkpoint.processor, plan, None)
        return [(step.inputs, step.sets) for step in itertools.islice(steps, count + count // 4) if step.inputs]


def speed(folder: Path, source: Path, rounds: int) -> list[dict[str, Any]]:
    """Return end-to-end and model rate of every format."""
    scene = folder / f"scene-{SPEED_SIDE}.tif"
    if not scene.exists():
        write_scene(scene, source, SPEED_SIDE)
    checkpoint = load_checkpoint()
    batches = first_batches(checkpoint, scene, BATCHES)
    model_rate(checkpoint, batches[:2])
    rows = []
    for suffix, dtype in FORMATS:
        ratios, rates = [], []
        for _ in range(rounds):
            before = model_rate(checkpoint, batches)
            report = embed_scene(scene, folder / f"features{suffix}", checkpoint=checkpoint, dtype=dtype)
            after = model_rate(checkpoint, batches)
            rates.append(report.windows / report.seconds)
            ratios.append(rates[-1] / statistics.mean((before, after)))
        rows.append({"format": f"{suffix} {dtype}", "windows per second": rates, "of the model": ratios})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def memory(folder: Path, source: Path) -> dict[str, float]:
    """Return the peak memory of a process by the side of the scene, in MiB."""
    peaks = {}
    for side in MEMORY_SIDES:
        scene = folder / f"scene-{side}.tif"
        if not scene.exists():
            write_scene(scene, source, side)
        command = [sys.executable, __file__, "--one", str(scene), "-o", str(folder / "memory.tif")]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[str(side)] = float(told.splitlines()[-1])
        print(json.dumps({"side": side, "peak MiB": peaks[str(side)]}), flush=True)
    return peaks


def floors(folder: Path, source: Path) -> list[dict[str, Any]]:
    """Return how far encoders of every size are from what the machine multiplies."""
    scene = folder / "scene-1024.tif"
    if not scene.exists():
        write_scene(scene, source, 1024)
    one, other = torch.rand(2, MATRIX, MATRIX)
    product = min(_seconds(partial(torch.matmul, one, other)) for _ in range(10))
    peak = 2 * MATRIX**3 / product
    rows = []
    for size in ("nano", "tiny", "base"):
        checkpoint = load_checkpoint()
        if size != "nano":
            config = getattr(A2MAEConfig, size)(patch_size=8)
            checkpoint = Checkpoint(size, A2MAEForPreTraining(config).eval(), checkpoint.processor, True)
        inputs, sets = first_batches(checkpoint, scene, 1)[0]
        encoder = checkpoint.model.a2mae
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            encoder(**inputs)
        with torch.inference_mode():
            seconds = min(_seconds(partial(encoder, **inputs)) for _ in range(3))
        operations = counter.get_total_flops()
        rows.append(
            {
                "size": size,
                "GFLOP per window": operations / len(sets) / 1e9,
                "windows per second": len(sets) / seconds,
                "GFLOP/s": operations / seconds / 1e9,
                "of the matrix rate": operations / seconds / peak,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    print(json.dumps({"matrix rate, GFLOP/s": peak / 1e9}), flush=True)
    return rows


def _seconds(work: Any) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the real scenes")
    parser.add_argument("--work", type=Path, default=Path("out/scene-benchmark"))
    parser.add_argument("--parts", default="speed,memory,floors")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", "-o", type=Path, default=Path("out/scene.json"))
    arguments = parser.parse_args()
    if arguments.one:
        embed_scene(arguments.one, arguments.output)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    source = arguments.data / SOURCE
    report: dict[str, Any] = {"threads": torch.get_num_threads()}
    for part in arguments.parts.split(","):
        found = {
            "speed": lambda: speed(arguments.work, source, arguments.rounds),
            "memory": lambda: memory(arguments.work, source),
            "floors": lambda: floors(arguments.work, source),
        }[part]()
        report[part] = found
        arguments.output.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
