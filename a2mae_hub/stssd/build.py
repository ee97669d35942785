"""Building a data set: scenes in, shards out; resumed where it was killed, with the same bytes.

The plan (which locations, in which shard) follows from the recipe and the headers of the scenes alone, and every shard
from its part of the plan alone. Shards are written whole or not at all, and each leaves a note in the folder `.build`
once it is on the disk; a build that starts again makes the shards that have no note. Last, `.build` goes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import rasterio
from tqdm import tqdm

from a2mae_hub._version import __version__
from a2mae_hub.modeling.sensors_a2mae import SENSORS, Sensor, register_sensor
from a2mae_hub.scene_files import OpenRasters
from a2mae_hub.whole_files import alone_in, write_atomically

from .assemble import assemble, set_name
from .catalogue import CatalogueScene, open_collection
from .recipe import Collection, Recipe
from .sampling import Location, sample
from .schema import FORMAT_VERSION, StoredImage
from .shards import UNFINISHED, ShardWriter

REPORT = "build.json"
SETS_PER_SHARD = 256

# Bytes of decoded blocks that a process keeps: one of 512 × 512 × 10 uint16 takes 5 MB, and neighbouring windows share
# them, of every date. GDAL's own default is a twentieth of the machine's memory.
_RASTER_CACHE = 256 * 2**20


class _Part(NamedTuple):
    """What one shard is made of."""

    name: str
    collection: int
    locations: tuple[Location, ...]


class _Plan(NamedTuple):
    """What a build will do."""

    collections: tuple[Collection, ...]
    scenes: tuple[list[CatalogueScene], ...]  # per collection
    parts: list[_Part]
    fingerprint: str


def build(
    recipe: Recipe,
    output: str | os.PathLike[str],
    *,
    workers: int | None = None,
    address: str | None = None,
    sets_per_shard: int = SETS_PER_SHARD,
    progress: bool = False,
) -> dict[str, Any]:
    """Build the shards of a data set.

    A build that was interrupted, or killed, goes on where it stopped when it is called again with the same arguments;
    what comes out has the same bytes, whatever the number of workers.

    Args:
        recipe: What to build.
        output: Folder to write to; made if absent.
        workers: Processes; None takes one for every processor, here or of the cluster.
        address: Ray cluster whose processes make the shards: "auto", or host and port; "local" starts Ray on this
            machine. They must find the scenes and the folder under the same paths. None does without Ray.
        sets_per_shard: Locations of a shard.
        progress: Show a bar.

    Returns:
        The report, which is also written to `build.json`: per collection, the scenes, locations and sets, the images by
        sensor and provenance, and how many were refused and why.

    Raises:
        FileNotFoundError: If the recipe names what is not there.
        ValueError: If a scene cannot be used, or the folder holds something else; names the file.
        OSError: If the disk is full, the folder cannot be written to, or the cluster cannot be reached.
        ImportError: If `address` is given and Ray is not installed.
    """
    output = Path(output)
    if sets_per_shard < 1:
        raise ValueError(f"sets_per_shard={sets_per_shard} must be at least 1.")
    plan = _plan(recipe, sets_per_shard)
    finished = _begin(output, plan)
    if finished is not None:
        return finished
    notes = output / UNFINISHED
    with alone_in(notes, f"{output}: another process is building here"):
        _sweep(output)
        waiting = [part for part in plan.parts if not _is_made(part, output)]
        total = sum(len(part.locations) for part in plan.parts)
        done = total - sum(len(part.locations) for part in waiting)
        with tqdm(total=total, initial=done, unit="set", desc="building", disable=not progress) as bar:
            made = (
                _run(plan, waiting, output, workers or os.cpu_count() or 1)
                if address is None
                else _run_on_ray(plan, waiting, output, workers, address)
            )
            for part in made:
                bar.update(len(part.locations))
        _sweep(output)  # Ray goes on where a process was killed
        report = _report(plan, notes)
        if not report["sets"]:
            shutil.rmtree(notes)
            raise ValueError(_nothing_left(output, report))
        write_atomically(output / REPORT, json.dumps(report, indent=2) + "\n")
        shutil.rmtree(notes)
    return report


def _nothing_left(output: Path, report: dict[str, Any]) -> str:
    """Say why no set came of a build, and what to do about it."""
    reasons = sorted({reason for collection in report["collections"] for reason in collection["refused"]})
    ways = {"clouds": "max_cloud", "no data": "max_nodata"}
    options = [option for reason, option in ways.items() if reason in reasons]
    way_out = f"relax {' or '.join(options)}" if options else "choose a larger size"
    return f"{output}: no image set is left, because every image was refused ({', '.join(reasons)}); {way_out}."


def _plan(recipe: Recipe, sets_per_shard: int) -> _Plan:
    """Open the scenes, sample the locations, and cut them into shards."""
    scenes, parts = [], []
    for number, collection in enumerate(recipe.collections):
        found = open_collection(collection, recipe.root)
        locations = sample(collection, found, recipe.root)
        scenes.append(found)
        for start in range(0, len(locations), sets_per_shard):
            name = f"{collection.name}-{start // sets_per_shard:05d}"
            parts.append(_Part(name, number, tuple(locations[start : start + sets_per_shard])))
    names = [
        set_name(location, recipe.collections[part.collection], scenes[part.collection])
        for part in parts
        for location in part.locations
    ]
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{count} sets would have the id {name!r}; sample places that are further apart.")
    described = json.dumps(
        [
            [__version__, FORMAT_VERSION, sets_per_shard, recipe.to_dict()],
            [[scene.describe() for scene in found] for found in scenes],
            [[part.name, repr(part.locations)] for part in parts],
        ]
    )
    fingerprint = hashlib.sha256(described.encode()).hexdigest()
    return _Plan(recipe.collections, tuple(scenes), parts, fingerprint)


def _begin(output: Path, plan: _Plan) -> dict[str, Any] | None:
    """Prepare the folder; return the report if this very build is there already."""
    notes, report = output / UNFINISHED, output / REPORT
    other = (
        f"{output}: holds another build (of another recipe, other scenes or other options); choose another folder, or "
        "remove this one."
    )
    if notes.exists():
        begun = notes / "plan.json"
        # Without its plan, a build was killed in its first moment and has made nothing.
        if begun.exists() and _read_json(begun).get("fingerprint") != plan.fingerprint:
            raise ValueError(other)
    elif report.exists():
        known = _read_json(report)
        if known.get("fingerprint") != plan.fingerprint:
            raise ValueError(other)
        missing = [name for name in known.get("shards", []) if not (output / name).exists()]
        if missing:
            raise ValueError(
                f"{output}: the build was finished, but its shard {missing[0]} is missing; remove the folder and build "
                "again, or choose another."
            )
        return known
    elif output.exists() and any(output.iterdir()):
        raise ValueError(f"{output}: is not empty, and holds no build; choose a new folder.")
    notes.mkdir(parents=True, exist_ok=True)
    write_atomically(notes / "plan.json", json.dumps({"fingerprint": plan.fingerprint}))
    return None


def _read_json(path: Path) -> dict[str, Any]:
    """Read a file that a build has left."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); remove the folder and build again.") from error
    return content if isinstance(content, dict) else {}


def _sweep(output: Path) -> None:
    """Remove what processes that were killed left half written."""
    for left in [*output.glob(".*.part"), *(output / UNFINISHED).glob(".*.part")]:
        left.unlink()


def _is_made(part: _Part, output: Path) -> bool:
    """Return whether a shard is on the disk, or was found to hold nothing."""
    note = output / UNFINISHED / f"{part.name}.json"
    return note.exists() and (not _read_json(note).get("sets") or (output / f"{part.name}.parquet").exists())


def _run(plan: _Plan, waiting: list[_Part], output: Path, workers: int) -> Iterator[_Part]:
    """Make shards, in as many processes as there is work for; give each part when it is on the disk."""
    workers = min(workers, len(waiting))
    if workers <= 1:
        with OpenRasters() as rasters:
            for part in waiting:
                _make(part, plan, output, rasters)
                yield part
        return
    setting = (plan, output, tuple(SENSORS.values()))
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=setting) as pool:
        try:
            # One for each process, so that neither an error nor an interrupt waits for more.
            queue = iter(waiting)
            running: dict[Future[None], _Part] = {}
            while True:
                for part in queue:
                    running[pool.submit(_make_here, part)] = part
                    if len(running) >= workers:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    yield running.pop(future)
        except BrokenProcessPool as error:
            raise OSError(
                "A process of the build was killed, perhaps for want of memory; run the same command again, which goes "
                "on where it stopped, with fewer --workers if that was it."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_here: tuple[_Plan, Path, OpenRasters] | None = None  # of a process of the pool


def _start_worker(plan: _Plan, output: Path, sensors: tuple[Sensor, ...]) -> None:
    """Set up a process of the pool, in which an interrupt is left to the one that started it."""
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One that was killed tells its children nothing, and they would go on and then wait for ever.
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    for sensor in sensors:  # the user's own are not there where processes start afresh
        register_sensor(sensor, overwrite=True)
    _here = (plan, output, OpenRasters())


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _make_here(part: _Part) -> None:
    """Make one shard in a process of the pool."""
    assert _here is not None
    _make(part, *_here)


def _run_on_ray(plan: _Plan, waiting: list[_Part], output: Path, workers: int | None, address: str) -> Iterator[_Part]:
    """Make shards in processes of Ray; give each part when it is on the disk."""
    from a2mae_hub.ray_pool import on_ray, run_on_ray

    if not waiting:
        return
    job = _MakeThere(plan, waiting, Path(os.path.abspath(output)))
    with on_ray(address):
        for result in run_on_ray(job, len(waiting), job.output / UNFINISHED, workers=workers):
            if result.error is not None:
                kinds: dict[str | None, type[Exception]] = {"ValueError": ValueError, "ImportError": ImportError}
                raise kinds.get(result.kind, OSError)(result.error)
            yield waiting[result.number]


class _MakeThere:
    """Makes the shard of a number, in a process that keeps its scenes open."""

    def __init__(self, plan: _Plan, parts: list[_Part], output: Path) -> None:
        self.plan, self.parts, self.output = plan, parts, output
        self._rasters = OpenRasters()

    def __call__(self, number: int) -> None:
        part = self.parts[number]
        if not _is_made(part, self.output):  # or else its process was killed before it could say so
            _make(part, self.plan, self.output, self._rasters)


def _make(part: _Part, plan: _Plan, output: Path, rasters: OpenRasters) -> None:
    """Make one shard and its note."""
    collection, scenes = plan.collections[part.collection], plan.scenes[part.collection]
    refused: Counter[str] = Counter()
    images: Counter[str] = Counter()
    path = output / f"{part.name}.parquet"
    with rasterio.Env(GDAL_CACHEMAX=_RASTER_CACHE), ShardWriter(path) as shard:
        for location in part.locations:
            image_set = assemble(location, collection, scenes, rasters, refused)
            if image_set is not None:
                shard.write(image_set)
                for image in image_set:
                    assert isinstance(image, StoredImage)  # as all that are assembled
                    images[f"{image.sensor}, {image.provenance}"] += 1
    if not shard.count:
        path.unlink()
    note = {"sets": shard.count, "images": dict(sorted(images.items())), "refused": dict(sorted(refused.items()))}
    write_atomically(output / UNFINISHED / f"{part.name}.json", json.dumps(note))


def _report(plan: _Plan, notes: Path) -> dict[str, Any]:
    """Gather the notes of all shards."""
    collections = []
    for number, (collection, scenes) in enumerate(zip(plan.collections, plan.scenes, strict=True)):
        parts = [part for part in plan.parts if part.collection == number]
        told = [_read_json(notes / f"{part.name}.json") for part in parts]
        sums: dict[str, Counter[str]] = {"images": Counter(), "refused": Counter()}
        for note in told:
            for what, counter in sums.items():
                counter.update(note[what])
        collections.append(
            {
                "name": collection.name,
                "kind": collection.kind,
                "scenes": len(scenes),
                "locations": sum(len(part.locations) for part in parts),
                "sets": sum(note["sets"] for note in told),
                **{what: dict(sorted(counter.items())) for what, counter in sums.items()},
            }
        )
    return {
        "format": FORMAT_VERSION,
        "fingerprint": plan.fingerprint,
        "shards": [part.name + ".parquet" for part in plan.parts if _read_json(notes / f"{part.name}.json")["sets"]],
        "sets": sum(collection["sets"] for collection in collections),
        "collections": collections,
    }
