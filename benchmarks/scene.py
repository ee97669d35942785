"""Whole scenes: how much of the model's own rate is left end to end, and whether memory grows with the scene.

    python benchmarks/scene.py --data ../shared/data [--parts speed,…] [-o out/scene.json] [--page docs/performance.md]

`--page` writes the page of the documentation from the report; parts that only an earlier run measured stay in it.

Scenes are real Sentinel-2 pixels (Boadella, ten bands) mirrored and repeated into tiled, compressed GeoTIFFs. The rate
of the model is that of the encoder and of the fusion on the anchor's grid, on the very batches that a run makes of the
scene, in the same process and with the same threads; each is measured in turn. Peak memory is that of a process of its
own. Operations are counted by torch's own counter on a batch, and compared with what its largest matrix product does
per second here. What another tiling changes is measured on real scenes, as cosine similarity of features less the mean
of the scene: between one pass over the whole and windows, and between windows that start elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.windows
import torch
from torch.utils.flop_counter import FlopCounterMode

from a2mae_hub import A2MAEConfig, A2MAEForPreTraining, read_image_set, write_raster
from a2mae_hub.inference import Checkpoint, embed, load_checkpoint
from a2mae_hub.scene import embed_scene
from a2mae_hub.scene import inference as scene_inference

SOURCE = "scenes/boadella_sentinel2/Boadella_2021-06-26.tif"
AERIAL = "scenes/naip_5m/m_4709963_se_14_1_20200831.tif"
ALL_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
BANDS = {"B02": 2, "B03": 3, "B04": 4, "B05": 5, "B06": 6, "B07": 7, "B08": 8, "B8A": 9, "B11": 11, "B12": 12}
TILE = 512
SPEED_SIDE, MEMORY_SIDES = 5120, (2745, 10_980)
SHORT_SIDE = 1024  # of what is measured on a few windows
RAY_SCENES = 6
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
    cpu = torch.device("cpu")
    answer = partial(scene_inference._answer, scene_inference.FeaturesOfPatches(checkpoint), "float32", cpu)
    steps = (scene_inference._Step((0, 0), [], sets, inputs) for inputs, sets in batches)
    started = time.perf_counter()
    for _ in scene_inference._side_by_side(answer, steps, cpu):
        pass
    return sum(len(sets) for _, sets in batches) / (time.perf_counter() - started)


def first_batches(checkpoint: Checkpoint, scene: Path, count: int) -> list[tuple[dict[str, torch.Tensor], list[Any]]]:
    """Return the first batches that a run makes of a scene."""
    job = scene_inference._Job(scene_inference.open_scenes(scene), 0, None, checkpoint, None, None)
    with scene_inference.WindowReader(job.scenes, 0, job.area, job.cell) as reader:
        plan = scene_inference.order(job.tiling, ())
        steps = scene_inference._Steps(reader, checkpoint.processor, plan, scene_inference._TOKENS["cpu"])
        return [(step.inputs, step.sets) for step in itertools.islice(steps, count + count // 4) if step.inputs]


def speed(folder: Path, source: Path, rounds: int) -> list[dict[str, Any]]:
    """Return end-to-end and model rate of every format."""
    scene = _scene(folder, source, SPEED_SIDE)
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
        scene = _scene(folder, source, side)
        command = [sys.executable, __file__, "--one", str(scene), "-o", str(folder / "memory.tif")]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[str(side)] = float(told.splitlines()[-1])
        print(json.dumps({"side": side, "peak MiB": peaks[str(side)]}), flush=True)
    return peaks


def floors(folder: Path, source: Path) -> list[dict[str, Any]]:
    """Return how far encoders of every size are from what the machine multiplies."""
    scene = _scene(folder, source, SHORT_SIDE)
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


def precisions(folder: Path, source: Path) -> list[dict[str, Any]]:
    """Return speed and smallest cosine similarity of less precise arithmetic, against float32 on the same batches."""
    scene = _scene(folder, source, SHORT_SIDE)
    checkpoint = load_checkpoint()
    batches = first_batches(checkpoint, scene, 4)

    def encode(precision: scene_inference.Precision) -> tuple[float, list[np.ndarray]]:
        prepared = scene_inference._in_precision(checkpoint, precision, "cpu")
        answers = scene_inference.FeaturesOfPatches(prepared)
        found, times = [], []
        for _ in range(3):
            started = time.perf_counter()
            steps = [scene_inference._Step((0, 0), [], sets, inputs) for inputs, sets in batches]
            answer = partial(scene_inference._answer, answers, precision, torch.device("cpu"))
            found = [values for step in steps for values, _ in answer(step)]
            times.append(time.perf_counter() - started)
        return min(times), found

    rows = []
    for precision in ("bfloat16", "int8"):
        before, exact = encode("float32")
        seconds, found = encode(precision)
        after, _ = encode("float32")
        cosines = [
            (one * other).sum(0) / np.sqrt((one**2).sum(0) * (other**2).sum(0))
            for one, other in zip(exact, found, strict=True)
        ]
        rows.append(
            {
                "precision": precision,
                "times as fast": min(before, after) / seconds,
                "smallest cosine": float(min(map(np.min, cosines))),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def tilings(folder: Path, data: Path) -> list[dict[str, Any]]:
    """Return how alike features of other tilings are, on an aerial and a Sentinel-2 scene."""
    checkpoint = load_checkpoint()
    declared = {"sensor": "sentinel-2-l2a", "bands": list(ALL_BANDS)}
    scenes: dict[str, tuple[Path, dict[str, Any]]] = {
        "NAIP, 5 m": (data / AERIAL, {}),
        "Sentinel-2, 10 m": (data / SOURCE, declared),
    }
    rows = []
    for name, (path, settings) in scenes.items():
        whole = embed(checkpoint, read_image_set(path, **settings)).maps
        centre = whole.reshape(len(whole), -1).mean(1)[:, None, None]
        for window, overlap in ((128, 32), (128, 64), (256, 64)):
            maps = {}
            # A first window of another size moves all that follow.
            for shift in (0, 32):
                output = folder / "tiling.tif"
                with _shifted(path, shift, folder) as part:
                    embed_scene(part, output, checkpoint=checkpoint, window=window, overlap=overlap, **settings)
                with rasterio.open(output) as dataset:
                    maps[shift] = dataset.read()
            cells = 32 // 8
            moved = _cosines(maps[0][:, cells:, cells:], maps[32], centre)[cells:, cells:]
            once = _cosines(maps[0], whole, centre)
            rows.append(
                {
                    "scene": name,
                    "window": window,
                    "overlap": overlap,
                    "moved": [float(np.median(moved)), float(np.percentile(moved, 5))],
                    "one pass": [float(np.median(once)), float(np.percentile(once, 5))],
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


@contextmanager
def _shifted(path: Path, pixels: int, folder: Path) -> Iterator[Path]:
    """Give a scene without its first rows and columns, under the same name."""
    with rasterio.open(path) as dataset:
        values, tags = dataset.read()[:, pixels:, pixels:], dataset.tags()
        place = dataset.transform * rasterio.Affine.translation(pixels, pixels)
        (folder / str(pixels)).mkdir(exist_ok=True)
        part = folder / str(pixels) / path.name
        write_raster(part, values, crs=dataset.crs.to_wkt(), transform=place, nodata=dataset.nodata, tags=tags)
    yield part
    part.unlink()


def _cosines(one: np.ndarray, other: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of features less the mean of the scene, by patch."""
    one, other = one - centre, other - centre
    return (one * other).sum(0) / np.sqrt((one**2).sum(0) * (other**2).sum(0))


def ray(folder: Path, source: Path, rounds: int) -> dict[str, Any]:
    """Return how fast two local workers of Ray are, by the plain path on the same scenes and cores.

    Ray runs already, as on a cluster; that workers start and load the model counts, and is told by itself as well.
    """
    from a2mae_hub.distributed import embed_archive
    from a2mae_hub.ray_pool import on_ray

    archive, tiny = folder / "archive", folder / "tiny-archive"
    for of, side, count in ((archive, SPEED_SIDE, RAY_SCENES), (tiny, SHORT_SIDE, 1)):
        of.mkdir(exist_ok=True)
        for number in range(count):
            (of / f"{number}.tif").unlink(missing_ok=True)
            (of / f"{number}.tif").hardlink_to(_scene(folder, source, side))
    ratios, starts = [], []
    for turn in range(rounds):
        plain, spread = (folder / f"{name}-{turn}" for name in ("plain", "ray"))
        shutil.rmtree(spread, ignore_errors=True)
        plain.mkdir(exist_ok=True)
        checkpoint = load_checkpoint()
        with on_ray(None):
            scenes = sorted(archive.glob("*.tif"))
            alone = sum(embed_scene(one, plain / one.name, checkpoint=checkpoint).seconds for one in scenes)
            starts.append(embed_archive(tiny, spread / "tiny", workers=2).seconds)
            ratios.append(alone / embed_archive(archive, spread / "timed", workers=2).seconds)
        print(json.dumps({"ray / plain": ratios[-1], "seconds to start": starts[-1]}), flush=True)
    return {"ray / plain": ratios, "seconds to start": starts}


def _scene(folder: Path, source: Path, side: int) -> Path:
    """Return a scene, written if it is not there."""
    path = folder / f"scene-{side}.tif"
    if not path.exists():
        write_scene(path, source, side)
    return path


def _seconds(work: Any) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def page(report: dict[str, Any]) -> str:
    """Return the page of the documentation."""
    lines = [
        "# Performance on whole scenes",
        "",
        "Written by `make bench` (`benchmarks/scene.py`), on two cores of a small virtual machine without a GPU;"
        " `a2mae-nano`, windows of 128 pixels that share 32, unless said otherwise.",
    ]
    if "speed" in report:
        lines += [
            "",
            "## End to end",
            "",
            f"A Sentinel-2 scene of {SPEED_SIDE} × {SPEED_SIDE} pixels and ten bands, tiled and compressed: reading,"
            " tiling, preparing, blending and writing, as a share of the rate of the model alone on the same windows.",
            "",
            "| output | windows/s | of the model's rate (range of rounds) |",
            "|---|---|---|",
        ]
        for row in report["speed"]:
            shares, rates = row["of the model"], row["windows per second"]
            spread = f"{min(shares):.2f}-{max(shares):.2f}"
            lines.append(
                f"| {row['format']} | {statistics.median(rates):.0f} | **{statistics.median(shares):.2f}** ({spread}) |"
            )
    if "memory" in report:
        small, large = (report["memory"][str(side)] for side in MEMORY_SIDES)
        lines += [
            "",
            "## Memory",
            "",
            f"Peak of the whole process: {small:.0f} MiB for a scene of {MEMORY_SIDES[0]}² pixels, {large:.0f} MiB for"
            f" one of {MEMORY_SIDES[1]}², which is **{large / small:.2f} ×** for 16 × the pixels. Most of it is PyTorch"
            " itself.",
        ]
    if "tilings" in report:
        lines += [
            "",
            "## What another tiling changes",
            "",
            "Blending is exact: where windows agree, and for all that depends on a patch alone, the map is that of the"
            " whole to within rounding (tests). But every patch attends to all others of its window, so what it says"
            " depends a little on where windows lie. Cosine similarity of features less the mean of the scene, median"
            " and 5th percentile: of windows that start 32 pixels further down and to the right, and of windows against"
            " one pass over the whole scene.",
            "",
            "| scene | window / overlap | windows moved | one pass |",
            "|---|---|---|---|",
        ]
        for row in report["tilings"]:
            moved, once = ("{:.3f} / {:.3f}".format(*row[key]) for key in ("moved", "one pass"))
            lines.append(f"| {row['scene']} | {row['window']} / {row['overlap']} | {moved} | {once} |")
    if "precisions" in report:
        lines += [
            "",
            "## Less precise arithmetic",
            "",
            "| `--precision` | times as fast as float32 | smallest cosine similarity of a feature |",
            "|---|---|---|",
            *(
                f"| {row['precision']} | {row['times as fast']:.2f} | {row['smallest cosine']:.4f} |"
                for row in report["precisions"]
            ),
            "",
            "`torch.compile` gained nothing here (0.90 to 0.97 × as fast), so there is no option for it.",
        ]
    if "floors" in report:
        lines += [
            "",
            "## How far from the machine",
            "",
            "Operations of a window (16 × 16 patches of ten bands), and what the encoder does of the largest rate at"
            " which this machine multiplies matrices in float32.",
            "",
            "| size | GFLOP a window | windows/s | of the matrix rate |",
            "|---|---|---|---|",
            *(
                f"| {row['size']} | {row['GFLOP per window']:.2f} | {row['windows per second']:.1f} |"
                f" {row['of the matrix rate']:.0%} |"
                for row in report["floors"]
            ),
        ]
    if "ray" in report:
        ratios = report["ray"]["ray / plain"]
        lines += [
            "",
            "## Ray",
            "",
            f"{RAY_SCENES} scenes of {SPEED_SIDE}² pixels by two local workers, against one process on the same cores:"
            f" **{statistics.median(ratios):.2f} ×** ({min(ratios):.2f}-{max(ratios):.2f}) as fast. That counts the"
            f" {statistics.median(report['ray']['seconds to start']):.0f} s until workers have started and loaded the"
            " model, which a larger archive feels less.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the real scenes")
    parser.add_argument("--work", type=Path, default=Path("out/scene-benchmark"))
    parser.add_argument("--parts", default="speed,memory,tilings,precisions,floors,ray")
    parser.add_argument("--page", type=Path, help="page of the documentation to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", "-o", type=Path, default=Path("out/scene.json"))
    arguments = parser.parse_args()
    if arguments.one:
        embed_scene(arguments.one, arguments.output)
        # Not `ru_maxrss`, which a process takes over from the one that started it.
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    source = arguments.data / SOURCE
    report: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    report["threads"] = torch.get_num_threads()
    measures: dict[str, Callable[[], Any]] = {
        "speed": lambda: speed(arguments.work, source, arguments.rounds),
        "memory": lambda: memory(arguments.work, source),
        "tilings": lambda: tilings(arguments.work, arguments.data),
        "precisions": lambda: precisions(arguments.work, source),
        "floors": lambda: floors(arguments.work, source),
        "ray": lambda: ray(arguments.work, source, arguments.rounds),
    }
    for part in filter(None, arguments.parts.split(",")):
        report[part] = measures[part]()
        arguments.output.write_text(json.dumps(report, indent=1))
    if arguments.page:
        arguments.page.write_text(page(report))


if __name__ == "__main__":
    main()
