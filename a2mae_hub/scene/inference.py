"""Features and maps of scenes of any size, in memory that does not grow with them.

    files → windows of image sets (reading) → batches → model (answers) → blended blocks (tiling) → unfinished blocks on
    the disk (work) → one file (outputs)

A window is answered as one image set, with its own place on Earth. Threads read and prepare windows while the model is
busy with those before.
"""

from __future__ import annotations

import copy
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.processing_utils import Unpack

from a2mae_hub.grids import Box, Window, window_of_bounds, window_of_box
from a2mae_hub.images import ImageSet
from a2mae_hub.inference import MAX_TOKENS, Checkpoint, check_output, load_checkpoint, usable_device, weights_hash
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.tasks_a2mae import A2MAEForChangeDetection
from a2mae_hub.prediction import NO_CLASS, TaskCheckpoint, class_colours, load_task_checkpoint
from a2mae_hub.scene_files import Declarations, PathLike, Scene, open_scenes

from .answers import Answer, Answers, ClassesOfPixels, FeaturesOfPatches
from .outputs import FEATURE_SUFFIXES, MAP_SUFFIXES, Blocks, Layout, check_format, write_output
from .reading import WindowReader, ahead, open_options
from .tiling import Blend, Block, Tiling, order
from .work import Work

WINDOW, OVERLAP = 16, 4
"""Side of a window and what neighbours share, in patches, where nothing else is asked for."""

# Tokens of a batch: enough to keep the cores busy, few enough for the caches.
_TOKENS = {"cpu": 4096, "cuda": 65_536}
# Batches that are answered at one time on a CPU; more would take memory and gain nothing.
_MOST_BATCHES = 8
# Batches that are prepared ahead of the model.
_AHEAD = 3

Precision = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True)
class SceneReport:
    """What was done.

    Attributes:
        output: What was written.
        rows: Of the output, in patches of features or pixels of a map.
        columns: Likewise.
        channels: Features a patch, or 1.
        images: That it was made from.
        windows: That were answered in this run; those of blocks that a run before this one left are not among them.
        failures: One sentence for every window that could not be read or is not what it says it is; it is no data in
            the output, but for what its neighbours say.
        seconds: That this run took.
    """

    output: Path
    rows: int
    columns: int
    channels: int
    images: int
    windows: int
    failures: list[str]
    seconds: float


def embed_scene(
    paths: PathLike | Sequence[PathLike],
    output: str | os.PathLike[str],
    *,
    checkpoint: Checkpoint | str | os.PathLike[str] | None = None,
    dtype: Literal["float16", "int8"] = "float16",
    bounds: Box | None = None,
    anchor: int = 0,
    window: int | None = None,
    overlap: int | None = None,
    precision: Precision = "float32",
    device: str | None = None,
    progress: bool = False,
    **declared: Unpack[Declarations],
) -> SceneReport:
    """Write the features of the patches of a scene, all its images fused.

    Args:
        paths: Images of one place, as for `a2mae_hub.read_image_set`; those that cover a part of the anchor only count
            there.
        output: `.tif` (cloud-optimised GeoTIFF), `.zarr`, or `.parquet` (GeoParquet, a row for every patch).
        checkpoint: Folder, name or id, or what `load_checkpoint` returned; None takes a2mae-nano of the package. Of one
            that resamples every image to a size, windows are resampled to it.
        dtype: "float16", or "int8" with a factor per feature, half as large.
        bounds: West, south, east, north in degrees; only this part is done.
        anchor: Which image the features lie on, counted from 0.
        window: Pixels of the anchor along the side of a window; None takes 16 patches.
        overlap: Pixels that neighbouring windows share; None takes a quarter of a window.
        precision: "bfloat16" computes in half precision, "int8" multiplies whole numbers on a CPU. How near the
            features are to those in float32 is in docs/performance.md.
        device: As torch names it; None takes a GPU where there is one.
        progress: Show a bar.
        **declared: `sensor`, `bands`, `acquired`, `scale`, `offset` and `nodata`, as for `a2mae_hub.read_image_set`.

    Returns:
        What was done. A run that is stopped leaves `<output>.unfinished`, from which the same call goes on.

    Raises:
        FileNotFoundError: If a file, the checkpoint or the folder of the output is missing.
        ValueError: If the images or the output are not what they should be; names the file.
        OSError: If the disk does not take the output.
    """
    path = Path(output)
    check_output(path, FEATURE_SUFFIXES)
    scenes = open_scenes(paths, **declared)
    loaded = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
    job = _Job(scenes, anchor, bounds, loaded, window, overlap)
    answers = FeaturesOfPatches(_in_precision(loaded, precision, device))
    layout = Layout(
        channels=answers.channels,
        rows=job.tiling.rows,
        columns=job.tiling.columns,
        block=job.tiling.block,
        dtype=dtype,
        crs=job.crs,
        transform=job.transform(job.cell),
        names=[f"feature {number}" for number in range(answers.channels)],
        nodata=float("nan"),
        tags=job.tags(loaded.name),
    )
    return job.run(answers, path, layout, precision, device, progress)


def predict_scene(
    checkpoint: TaskCheckpoint | str | os.PathLike[str],
    paths: PathLike | Sequence[PathLike],
    output: str | os.PathLike[str],
    *,
    bounds: Box | None = None,
    anchor: int = 0,
    window: int | None = None,
    overlap: int | None = None,
    precision: Precision = "float32",
    device: str | None = None,
    progress: bool = False,
    **declared: Unpack[Declarations],
) -> SceneReport:
    """Write the class of every pixel of the anchor of a scene, or where it changed.

    Args:
        checkpoint: Fine-tuned for segmentation or change detection: folder, id, or what `load_task_checkpoint`
            returned.
        paths: As for `embed_scene`.
        output: `.tif` (cloud-optimised GeoTIFF with names and colours of the classes) or `.zarr`.
        bounds: As for `embed_scene`.
        anchor: Which image the map lies on, counted from 0.
        window: As for `embed_scene`.
        overlap: As for `embed_scene`.
        precision: As for `embed_scene`.
        device: As for `embed_scene`.
        progress: Show a bar.
        **declared: As for `embed_scene`.

    Returns:
        What was done; see `embed_scene`.

    Raises:
        FileNotFoundError: As `embed_scene`.
        ValueError: As `embed_scene`, and if the checkpoint makes no maps.
        OSError: As `embed_scene`.
    """
    path = Path(output)
    check_output(path, MAP_SUFFIXES)
    loaded = checkpoint if isinstance(checkpoint, TaskCheckpoint) else load_task_checkpoint(checkpoint)
    answers = ClassesOfPixels(_in_precision(loaded, precision, device))
    scenes = open_scenes(paths, **declared)
    job = _Job(scenes, anchor, bounds, loaded, window, overlap)
    is_change = isinstance(loaded.model, A2MAEForChangeDetection)
    if len(scenes) < answers.fewest:
        raise ValueError(f"{scenes[0].source}: change needs two dates or more; name a second image.")
    _, _, width, height = job.area
    layout = Layout(
        channels=1,
        rows=height,
        columns=width,
        block=job.tiling.block * job.cell,
        dtype="uint8",
        crs=job.crs,
        transform=job.transform(1),
        names=["change" if is_change else "class"],
        nodata=NO_CLASS,
        tags=job.tags(loaded.name) | {f"class_{number}": name for number, name in enumerate(loaded.classes)},
        colours=dict(enumerate(class_colours(len(loaded.classes), is_change))),
    )
    return job.run(answers, path, layout, precision, device, progress)


def check_not_an_image(path: Path, scenes: Sequence[Scene]) -> None:
    """Raise ValueError where an output is one of the files that it is made from."""
    for file in {layer.file.path for scene in scenes for layer in scene.layers}:
        if path.exists() and os.path.exists(file) and path.samefile(file):
            raise ValueError(f"{path}: is an image of the scene and would be written over; choose another output.")


class _Job:
    """A scene, the part of it that is asked for, and the windows over it."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        anchor: int,
        bounds: Box | None,
        checkpoint: Checkpoint | TaskCheckpoint,
        window: int | None,
        overlap: int | None,
    ) -> None:
        if not 0 <= anchor < len(scenes):
            raise ValueError(f"anchor={anchor} is no image: {len(scenes)} found, so it is from 0 to {len(scenes) - 1}.")
        self.scenes, self.anchor, self.checkpoint = scenes, anchor, checkpoint
        grid, self.source = scenes[anchor].grid, scenes[anchor].source
        placed = [scene.grid.crs is not None for scene in scenes]
        if any(placed) and not all(placed):
            stray = scenes[placed.index(False)].source
            raise ValueError(
                f"{stray}: has no georeference, but other images have; give it one (gdal_edit), or leave it out."
            )
        for scene in scenes:
            if window_of_box(scene.grid, grid.footprint, grid.crs) is None:
                raise ValueError(f"{scene.source} and {self.source} do not overlap; name images of one place.")
        try:
            self.area: Window = grid.whole if bounds is None else window_of_bounds(grid, bounds)
        except ValueError as error:
            raise ValueError(f"{self.source}: {error}") from error
        self.crs, self._grid = grid.crs_text, grid.crop(self.area)
        patch, size = checkpoint.processor.patch_size, checkpoint.processor.size
        # Of a size that windows are resampled to, a patch spans as many pixels as it leaves.
        self.pads = size is not None
        if size is not None and window is None:
            raise ValueError(
                f"{checkpoint.name}: resamples every image to {size[0]} × {size[1]} pixels; say by window= how many"
                " pixels of the scene that is to be."
            )
        side = WINDOW * patch if window is None else window
        self.cell = patch if size is None else side * patch // size[0]
        shared = side // 4 // self.cell * self.cell if overlap is None else overlap
        sizes = [] if size is None else [size[0] != size[1], side * patch % size[0] != 0]
        if self.cell < 1 or any(sizes) or side % self.cell or shared % self.cell or not 0 <= shared < side:
            raise ValueError(
                f"window={side} and overlap={shared} do not fit patches of {patch} pixels"
                f"{'' if size is None else f' of {size[0]} × {size[1]}'}; both must be multiples of {max(self.cell, 1)}"
                f" pixels, and the overlap the smaller."
            )
        _, _, width, height = self.area
        if self.pads and min(width, height) < side:
            raise ValueError(f"{self.source}: {height} × {width} pixels, less than a window of {side}; make that less.")
        rows, columns = -(-height // self.cell), -(-width // self.cell)
        first = (self.area[0], self.area[1], min(side, width), min(side, height))
        for scene in scenes if size is None else ():
            seen = window_of_box(scene.grid, grid.crop(first).footprint, grid.crs)
            patches = 0 if seen is None else -(-seen[2] // patch) * -(-seen[3] // patch)
            if patches > MAX_TOKENS:
                raise ValueError(
                    f"{scene.source}: a window of {side} pixels of {self.source} holds {patches} patches of it, more"
                    f" than the {MAX_TOKENS} of one pass; take the finest image as anchor, or smaller windows."
                )
        self.tiling = Tiling(rows, columns, side // self.cell, shared // self.cell)

    def transform(self, step: int) -> tuple[float, ...] | None:
        """Return the map from places every `step` pixels to the CRS."""
        if self.crs is None:
            return None
        a, b, c, d, e, f = self._grid.transform
        return a * step, b * step, c, d * step, e * step, f

    def tags(self, name: str) -> dict[str, str]:
        """Return what the output says of itself."""
        times = [scene.acquired.isoformat() if scene.acquired else "unknown" for scene in self.scenes]
        return {
            "checkpoint": name,
            "sensors": ", ".join(scene.sensor.name for scene in self.scenes),
            "acquired": ", ".join(times),
        }

    def run(
        self, answers: Answers, path: Path, layout: Layout, precision: Precision, device: str | None, progress: bool
    ) -> SceneReport:
        """Answer what is not done yet, and write the output."""
        started = time.perf_counter()
        check_format(path, layout.crs)
        check_not_an_image(path, self.scenes)
        place = usable_device(device or ("cpu" if precision == "int8" else None))
        self.checkpoint.model.to(place)
        work = Work(path, self._settings(type(answers).__name__, precision))
        with work.alone():
            return self._run(answers, path, layout, precision, place, progress, work, started)

    def _run(
        self,
        answers: Answers,
        path: Path,
        layout: Layout,
        precision: Precision,
        place: torch.device,
        progress: bool,
        work: Work,
        started: float,
    ) -> SceneReport:
        """Do the run whose blocks are kept in a folder."""
        blocks = self.tiling.blocks()
        done = work.done(blocks)
        scale = self.cell if answers.by_pixel else 1
        blend = Blend(self.tiling, scale, done)

        def write() -> None:
            with open_options():  # which every thread has of its own
                write_output(path, self._blocks(work, layout, scale), layout, work.folder)

        with (
            open_options(),
            WindowReader(
                self.scenes, self.anchor, self.area, self.cell, pad=self.pads, fewest=answers.fewest
            ) as reader,
            work.written_meanwhile(write) as check,
        ):
            earlier = work.failures()
            plan = order(self.tiling, done)
            steps = _Steps(reader, self.checkpoint.processor, plan, _TOKENS.get(place.type, _TOKENS["cpu"]))
            left = sum(len(windows) for _, windows in order(self.tiling, done))
            with tqdm(total=left, unit=" windows", disable=not progress, desc=path.name) as bar:
                answer = partial(_answer, answers, precision, place)
                for step, found in _side_by_side(answer, ahead(iter(steps), _AHEAD), place):
                    if found is None:
                        if steps.refused and not steps.prepared:
                            raise ValueError(steps.refused[0])
                        values = blend.finish(step.block, answers.channels)
                        work.report([*earlier, *reader.failures, *steps.refused])
                        work.save(step.block, answers.store(values[:, : layout.rows, : layout.columns]))
                        check()
                        bar.update(step.passed)
                        continue
                    for window, (numbers, covered) in zip(step.windows, found, strict=True):
                        blend.add(window, numbers, covered)
                    bar.update(len(step.windows))
            failures = work.failures()
            if failures and not steps.prepared and not done:
                raise ValueError(f"No window could be answered, the first because: {failures[0]}")
        work.finish()
        return SceneReport(
            path,
            layout.rows,
            layout.columns,
            layout.channels,
            len(self.scenes),
            steps.prepared,
            failures,
            time.perf_counter() - started,
        )

    def _blocks(self, work: Work, layout: Layout, scale: int) -> Blocks:
        """Return what gives the blocks as they are finished, cut where the scene ends."""

        def blocks() -> Iterator[tuple[int, int, np.ndarray]]:
            for block, values in work.each(self.tiling.blocks()):
                column, row = (side * scale for side in self.tiling.extent(block)[:2])
                yield column, row, values[:, : layout.rows - row, : layout.columns - column]

        return blocks

    def _settings(self, what: str, precision: str) -> dict[str, Any]:
        """Return what the blocks depend on."""
        files = sorted({layer.file.path for scene in self.scenes for layer in scene.layers})
        return {
            "answer": what,
            "precision": precision,
            "checkpoint": weights_hash(self.checkpoint.model),
            "size": self.checkpoint.processor.size,
            "images": [[scene.sensor.name, *(layer.name for layer in scene.layers)] for scene in self.scenes],
            "acquired": [str(scene.acquired) for scene in self.scenes],
            "factors": [[scene.scale, scene.offset, scene.layers[0].nodata] for scene in self.scenes],
            "files": [[file, *_state(file)] for file in files],
            "anchor": self.anchor,
            "area": list(self.area),
            "window": self.tiling.window * self.cell,
            "overlap": self.tiling.overlap * self.cell,
        }


@dataclass
class _Step:
    """A batch of windows of a block; or, without inputs, the end of the block."""

    block: Block
    windows: list[Window]
    sets: list[ImageSet]
    inputs: dict[str, torch.Tensor] | None
    passed: int = 0  # windows of the block without data, or that failed


class _Steps:
    """Batches of windows in the order in which blocks need them; iterated over by a thread of its own.

    Attributes:
        prepared: Windows that went into batches.
        refused: Why others did not.
    """

    def __init__(
        self,
        reader: WindowReader,
        processor: A2MAEImageProcessor,
        plan: Iterator[tuple[Block, list[Window]]],
        tokens: int,
    ) -> None:
        self.prepared = 0
        self.refused: list[str] = []
        self._reader, self._processor = reader, processor
        self._plan, self._tokens = plan, tokens

    def __iter__(self) -> Iterator[_Step]:
        """Yield the batches of every block, and its end."""
        for block, windows in self._plan:
            before = self.prepared
            batch: list[tuple[Window, ImageSet]] = []
            for window, image_set in self._reader.read(windows):
                batch.append((window, image_set))
                if len(batch) * self._count(image_set) >= self._tokens:
                    yield from self._prepare(block, batch)
                    batch = []
            if batch:
                yield from self._prepare(block, batch)
            yield _Step(block, [], [], None, passed=len(windows) - (self.prepared - before))

    def _count(self, image_set: ImageSet) -> int:
        """Return the tokens of a set."""
        patch, size = self._processor.patch_size, self._processor.size
        shapes = [size or image.pixels.shape[1:] for image in image_set]
        return sum(-(-rows // patch) * -(-columns // patch) for rows, columns in shapes)

    def _prepare(self, block: Block, batch: list[tuple[Window, ImageSet]]) -> Iterator[_Step]:
        """Yield a batch; where it holds a set that is not what it says it is, a batch of each of the others."""
        windows, sets = [window for window, _ in batch], [image_set for _, image_set in batch]
        try:
            inputs = dict(self._processor(sets, return_tensors="pt"))
        except ValueError as error:
            if len(batch) == 1:
                self.refused.append(f"Window {windows[0]}: {error}")
                return
            for one in batch:
                yield from self._prepare(block, [one])
            return
        self.prepared += len(batch)
        yield _Step(block, windows, sets, inputs)


AnyCheckpoint = TypeVar("AnyCheckpoint", Checkpoint, TaskCheckpoint)


def _in_precision(checkpoint: AnyCheckpoint, precision: Precision, device: str | None) -> AnyCheckpoint:
    """Return a checkpoint whose encoder multiplies int8 where that is asked for, with factors per batch; or itself."""
    if precision != "int8":
        return checkpoint
    if torch.device(device or "cpu").type != "cpu":
        raise ValueError(f"precision='int8' runs on a CPU, not on {device}; take bfloat16 there.")
    model = copy.deepcopy(checkpoint.model).cpu()
    with warnings.catch_warnings():
        # torch asks to move to torchao, which would be one more package for the same arithmetic.
        warnings.simplefilter("ignore")
        # The first layer is left as it is: sums of embeddings spread the most, and it would make up half of the error.
        for layer in model.a2mae.layers[1:]:
            torch.ao.quantization.quantize_dynamic(layer, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    return replace(checkpoint, model=model)


@torch.inference_mode()
def _answer(answers: Answers, precision: Precision, device: torch.device, step: _Step) -> list[Answer]:
    """Return what the model says of a batch."""
    inputs = {key: value.to(device) for key, value in (step.inputs or {}).items()}
    half = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    with half:
        return list(answers(inputs, step.sets))


def _side_by_side(
    answer: Callable[[_Step], list[Answer]], steps: Iterator[_Step], device: torch.device
) -> Iterator[tuple[_Step, list[Answer] | None]]:
    """Yield steps in their order with what the model says, None at the end of a block.

    On a CPU every thread has a batch of its own. All on one batch, they would wait for each other after every product,
    and the whole model for the thread that reads: a quarter of the rate, measured.
    """
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    count = min(cores, _MOST_BATCHES)
    waiting: deque[tuple[_Step, Future[list[Answer]] | None]] = deque()

    def first() -> tuple[_Step, list[Answer] | None]:
        step, found = waiting.popleft()
        return step, None if found is None else found.result()

    alone = partial(torch.set_num_threads, cores // count) if device.type == "cpu" else None
    with ThreadPoolExecutor(count, "model", initializer=alone) as threads:
        try:
            for step in steps:
                waiting.append((step, None if step.inputs is None else threads.submit(answer, step)))
                while len(waiting) > count + 1:
                    yield first()
            while waiting:
                yield first()
        finally:
            threads.shutdown(cancel_futures=True)
            if device.type == "cpu":
                torch.set_num_threads(cores)  # some libraries under torch keep one number for all threads


def _state(path: str) -> list[int]:
    """Return size and time of a file, by which a run knows it again; nothing of one that is not on a local disk."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
