"""Archives of scenes on many processors, of one machine or of a cluster; Ray Data runs the processes.

    source → units: a scene, a place of many dates, a shard (archive_units) → workers, each with the model (ray_pool)
    → one output per unit

Ray shares the units out, restarts a worker that died and gives it the unit again. An output appears whole or not at
all, under a name that follows from its unit; a call that finds it leaves it alone. So every output is made once,
however often a worker, or the whole run, is killed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm
from transformers.processing_utils import Unpack

from .archive_units import Source, Unit, find_units
from .grids import Box
from .inference import Checkpoint, load_checkpoint, weights_hash
from .prediction import TaskCheckpoint, load_task_checkpoint
from .ray_pool import Result, check_workers, on_ray, run_on_ray
from .scene.answers import ClassesOfPixels
from .scene.inference import Precision, SceneReport, embed_scene, predict_scene
from .scene.outputs import FEATURE_SUFFIXES, MAP_SUFFIXES
from .scene.work import SUFFIX as UNFINISHED
from .scene_files import Declarations
from .stssd.shards import ShardFiles, open_shard, root_of, row_groups
from .whole_files import alone_in, whole_file, write_atomically

SETTINGS = "archive.json"
"""What the outputs of a folder were made with, in that folder."""

_DEFAULTS = {"anchor": 0, "dtype": "float16", "precision": "float32"}  # given or not, they are the same
_RUNNING = ".archive"  # folder beside it, while a run is at work


class SceneSettings(Declarations, total=False):
    """Arguments of `embed_scene` and `predict_scene` that hold for every scene of an archive."""

    bounds: Box | None
    anchor: int
    window: int | None
    overlap: int | None
    precision: Precision


class EmbedSettings(SceneSettings, total=False):
    """Arguments of `embed_scene` alone."""

    dtype: Literal["float16", "int8"]


@dataclass(frozen=True)
class ArchiveReport:
    """What was done.

    Attributes:
        done: Outputs that this run wrote.
        skipped: Outputs that were there before.
        failed: One sentence for every scene or shard without an output, by its name.
        gaps: Of scenes that are done, by their names: sentences on windows that could not be read, which are no data.
        seconds: That this run took.
    """

    done: list[Path]
    skipped: list[Path]
    failed: dict[str, str]
    gaps: dict[str, list[str]]
    seconds: float


def embed_archive(
    source: Source,
    output_folder: str | os.PathLike[str],
    *,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    workers: int = 2,
    gpus_per_worker: float = 0,
    address: str | None = None,
    suffix: str = ".tif",
    place: str | None = None,
    progress: bool = False,
    **settings: Unpack[EmbedSettings],
) -> ArchiveReport:
    """Write the features of every scene of an archive, or of every image set of shards.

    A source is one of these:

    - A folder, searched to any depth: every raster is a scene, and so are all band files of a product together.
      Outputs lie in the same sub-folders as the scenes. Masks and hidden files are left out.
    - A list of such rasters, and of folders that hold the band files of one scene each.
    - A STAC item, item collection, catalogue or collection (.json or URL), or several: every item is a scene, with what
      it tells of sensor, bands, time and numbers (`a2mae_hub.stssd.stac`).
    - STSSD shards: a folder of them, a file, or a URL that fsspec opens. Every shard gives one Parquet file: id,
      longitude, latitude, and vector (D float32, the `pooler_output`) of every image set.

    Args:
        source: The archive. Workers on other machines must find its files, and the output, under the same paths.
        output_folder: Where to write; made if absent. One call at a time may write to it.
        checkpoint: As for `a2mae_hub.scene.embed_scene`; workers get it from here, none reads it again.
        workers: Processes, each with the model.
        gpus_per_worker: GPUs, or a part of one, that every worker gets; 0 computes on processors, which the workers
            share out evenly.
        address: Ray cluster: "auto", or host and port. None starts Ray on this machine, unless `RAY_ADDRESS` names a
            cluster or Ray runs in this process already.
        suffix: Of the outputs: .tif, .zarr or .parquet, as `embed_scene` writes them.
        place: Regular expression that finds the place in the name of a scene, in its first group if it has one. Scenes
            of one place are then the images of one set, in the order of their names, and give one output.
        progress: Show a bar.
        **settings: As for `embed_scene`. Of STAC items, what is declared wins over what they tell.

    Returns:
        What was done. The same call goes on where one was stopped; outputs that are there are not made again.

    Raises:
        FileNotFoundError: If the source or the checkpoint is missing.
        ValueError: If the source holds no scene, two would have one output, or the folder holds the outputs of other
            settings.
        ImportError: If Ray is not installed.
        OSError: If the cluster cannot be reached or stops, or the folder cannot be written to.
    """
    output = Path(os.path.abspath(output_folder))
    given = _given(settings, EmbedSettings)
    found = find_units(source, output, given, place)
    suffix = ".parquet" if isinstance(found, ShardFiles) else _checked_suffix(suffix, FEATURE_SUFFIXES)
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    run = _Run(output, loaded, "features", suffix, place, given, workers, gpus_per_worker, address, progress)
    if isinstance(found, ShardFiles):
        root = root_of(os.fspath(source) if isinstance(source, (str, os.PathLike)) else "", found)
        names = [os.path.relpath(path, root).removesuffix(".parquet") for path in found.paths]
        units = [Unit(name, (path,)) for name, path in zip(names, found.paths, strict=True)]
        return run(units, partial(_embed_shard, found, loaded))
    return run(found, partial(embed_scene, checkpoint=loaded))


def predict_archive(
    checkpoint: TaskCheckpoint | str | os.PathLike[str],
    source: Source,
    output_folder: str | os.PathLike[str],
    *,
    workers: int = 2,
    gpus_per_worker: float = 0,
    address: str | None = None,
    suffix: str = ".tif",
    place: str | None = None,
    progress: bool = False,
    **settings: Unpack[SceneSettings],
) -> ArchiveReport:
    """Write the map of every scene of an archive.

    Args:
        checkpoint: As for `a2mae_hub.scene.predict_scene`.
        source: As for `embed_archive`, but for shards. Change detection needs `place`, which brings dates together.
        output_folder: As for `embed_archive`.
        workers: As for `embed_archive`.
        gpus_per_worker: As for `embed_archive`.
        address: As for `embed_archive`.
        suffix: Of the outputs: .tif or .zarr.
        place: As for `embed_archive`.
        progress: Show a bar.
        **settings: As for `predict_scene`.

    Returns:
        What was done; see `embed_archive`.

    Raises:
        FileNotFoundError: As `embed_archive`.
        ValueError: As `embed_archive`, and if the checkpoint makes no maps.
        ImportError: As `embed_archive`.
        OSError: As `embed_archive`.
    """
    output = Path(os.path.abspath(output_folder))
    given = _given(settings, SceneSettings)
    found = find_units(source, output, given, place)
    if isinstance(found, ShardFiles):
        raise ValueError(f"{source}: holds shards, and maps are made of scenes; name these.")
    suffix = _checked_suffix(suffix, MAP_SUFFIXES)
    loaded = checkpoint if isinstance(checkpoint, TaskCheckpoint) else load_task_checkpoint(checkpoint)
    ClassesOfPixels(loaded)  # says that a classifier makes no maps
    run = _Run(output, loaded, "classes", suffix, place, given, workers, gpus_per_worker, address, progress)
    return run(found, partial(predict_scene, loaded))


@dataclass(frozen=True)
class _Run:
    """What a call asks for, but for its units."""

    output: Path
    checkpoint: Checkpoint | TaskCheckpoint
    what: str
    suffix: str
    place: str | None
    settings: Mapping[str, Any]
    workers: int
    gpus_per_worker: float
    address: str | None
    progress: bool

    def __call__(self, units: Sequence[Unit], answer: Callable[..., Any]) -> ArchiveReport:
        """Make the outputs that are not there."""
        started = time.perf_counter()
        check_workers(self.workers, self.gpus_per_worker)
        outputs = [self.output / f"{unit.name}{self.suffix}" for unit in units]
        inputs = {path for unit in units for path in unit.paths}
        for output, count in Counter(outputs).items():
            if count > 1:
                raise ValueError(f"{output}: {count} scenes would be written to it; rename them, or name their folder.")
            if str(output) in inputs:
                raise ValueError(f"{output}: is a scene and would be written over; choose another folder for outputs.")
        self._begin()
        state = self.output / _RUNNING
        state.mkdir(exist_ok=True)
        with alone_in(state, f"{self.output}: another run is writing here"):
            _sweep(outputs)
            there = {output for output in outputs if _is_whole(output)}
            failed = {unit.name: unit.fault for unit in units if unit.fault}
            left = [pair for pair in zip(units, outputs, strict=True) if pair[1] not in there and not pair[0].fault]
            job = _Job(left, answer, "cuda" if self.gpus_per_worker else "cpu", self.settings)
            done, gaps = [], {}
            for result in self._results(job, state) if left else ():
                unit, output = left[result.number]
                if result.error is not None:
                    failed[unit.name] = result.error
                    continue
                done.append(output)
                if result.value:
                    gaps[unit.name] = result.value
            _sweep(outputs)
            shutil.rmtree(state)
        seconds = time.perf_counter() - started
        return ArchiveReport(sorted(done), sorted(there), dict(sorted(failed.items())), gaps, seconds)

    def _results(self, job: _Job, state: Path) -> Iterator[Result]:
        """Yield what the workers say, and show the bar."""
        count = len(job.left)
        with on_ray(self.address):
            results = run_on_ray(job, count, state, workers=self.workers, gpus_per_worker=self.gpus_per_worker)
            yield from tqdm(results, total=count, disable=not self.progress, desc=self.output.name)

    def _begin(self) -> None:
        """Prepare the folder, or say that it holds outputs of other settings."""
        chosen = {"suffix": self.suffix, "place": self.place, **self.settings}
        wanted = {
            "outputs": self.what,
            "checkpoint": self.checkpoint.name,
            "weights": weights_hash(self.checkpoint.model),
            **{key: str(value) for key, value in sorted(chosen.items()) if value is not None},
        }
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / SETTINGS
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else wanted
        # A folder of weights may have been moved, and its name is no more than a name.
        differing = [key for key in {**known, **wanted} if known.get(key) != wanted.get(key) and key != "checkpoint"]
        if differing and any(path.name != SETTINGS and path.name != _RUNNING for path in self.output.iterdir()):
            key = "checkpoint" if differing[0] == "weights" else differing[0]
            raise ValueError(
                f"{self.output}: holds outputs of another {key} ({known.get(key)}, not {wanted.get(key)}); choose"
                " another folder."
            )
        write_atomically(path, json.dumps(wanted, indent=2) + "\n")


def _is_whole(output: Path) -> bool:
    """Return whether an output is there, and its worker had nothing left to do."""
    return output.exists() and not output.with_name(output.name + UNFINISHED).exists()


def _sweep(outputs: Sequence[Path]) -> None:
    """Remove what workers that were killed left of outputs under the names of `whole_file`."""
    names: dict[Path, set[str]] = {}
    for output in outputs:
        names.setdefault(output.parent, set()).add(output.name)
    for folder, known in names.items():
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            match = re.fullmatch(r"\.\d+\.(.+)", path.name)
            if match and match[1] in known:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


# What workers do


@dataclass(frozen=True)
class _Job:
    """Units, where each is to be written, and how; as it travels to the workers."""

    left: list[tuple[Unit, Path]]
    answer: Callable[..., SceneReport | None]
    device: str
    settings: Mapping[str, Any]

    def __call__(self, number: int) -> list[str]:
        """Write one output; return what could not be read."""
        unit, output = self.left[number]
        if _is_whole(output):
            return []  # a worker was killed after its work, before it could say so
        output.parent.mkdir(parents=True, exist_ok=True)
        told = {**unit.declared, **self.settings}
        report = self.answer(paths=list(unit.paths), output=output, device=self.device, **told)
        return [] if report is None else report.failures


def _given(settings: Mapping[str, Any], known: type) -> dict[str, Any]:
    """Return the settings that change what is done."""
    unknown = sorted(set(settings) - set(known.__annotations__))
    if unknown:
        raise TypeError(f"{unknown[0]}= is no argument of it; there are {', '.join(sorted(known.__annotations__))}.")
    return {key: value for key, value in settings.items() if value is not None and value != _DEFAULTS.get(key)}


def _checked_suffix(suffix: str, known: Sequence[str]) -> str:
    """Return the suffix of outputs, or say which there are."""
    if suffix not in known:
        raise ValueError(f"suffix={suffix!r} is no format of the output; choose one of {', '.join(known)}.")
    return suffix


def _embed_shard(files: ShardFiles, checkpoint: Checkpoint, paths: Sequence[str], output: Path, device: str) -> None:
    """Write the vectors of the image sets of a shard."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from .stssd.features import checkpoint_features
    from .stssd.schema import StoredSet, decode, from_row

    checkpoint.model.to(device)
    (path,) = paths
    found: dict[str, list[Any]] = {"id": [], "longitude": [], "latitude": []}
    vectors = [checkpoint_features([], checkpoint)]
    for first_row, table in row_groups(open_shard(files.filesystem, path), path):
        sets: list[StoredSet] = [from_row(row) for row in decode(table, path, first_row)]
        vectors.append(checkpoint_features(sets, checkpoint))
        for name, values in found.items():
            values += [getattr(one, name) for one in sets]
    vectors = vectors[1:] or vectors
    kinds = {"id": pa.string(), "longitude": pa.float64(), "latitude": pa.float64()}
    columns = {name: pa.array(values, kinds[name]) for name, values in found.items()}
    numbers = np.concatenate(vectors)
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])
    with whole_file(output) as temporary:
        pq.write_table(pa.table(columns, metadata={"checkpoint": checkpoint.name}), temporary, compression="zstd")
