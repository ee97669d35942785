"""The commands `a2mae archive embed` and `a2mae archive predict`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .image_options import Acquired, Anchor, BandNames, Nodata, Offset, Scale, SensorName, box_of, resumable

if TYPE_CHECKING:
    from .distributed import ArchiveReport

_PRECISIONS = ("float32", "bfloat16", "int8")

app = typer.Typer(help="Whole archives of scenes, on many processors or machines.", no_args_is_help=True)

Sources = Annotated[
    list[str],
    typer.Argument(
        help="A folder of scenes or of shards; STAC files (.json) or URLs; or scenes, one by one.", show_default=False
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to; named again, goes on.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes, each with the model.")]
Gpus = Annotated[float, typer.Option("--gpus", min=0, help="GPUs, or a part of one, of every worker.")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster: auto, or host:port; left out, Ray starts on this machine.")
]
Place = Annotated[
    str | None, typer.Option(help="Regular expression: scenes in whose names it finds the same are dates of one place.")
]
Area = Annotated[str | None, typer.Option("--bounds", help="Do only west,south,east,north, in degrees.")]
Window = Annotated[int | None, typer.Option(min=1, help="Pixels along the side of a window.")]
Overlap = Annotated[int | None, typer.Option(min=0, help="Pixels that neighbouring windows share.")]
Precision = Annotated[str, typer.Option(help="float32, or bfloat16 where the hardware is fast at it.")]


@app.command("embed")
def embed_all(
    sources: Sources,
    output: Output,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", "-c", help="Folder, name or id; left out, a2mae-nano.")
    ] = None,
    workers: Workers = 2,
    gpus: Gpus = 0,
    address: Address = None,
    suffix: Annotated[str, typer.Option(help="Of the outputs: .tif, .zarr or .parquet; of shards .parquet.")] = ".tif",
    place: Place = None,
    dtype: Annotated[str, typer.Option(help="float16, or int8 with a factor per feature.")] = "float16",
    bounds: Area = None,
    anchor: Anchor = 0,
    window: Window = None,
    overlap: Overlap = None,
    precision: Precision = "float32",
    sensor: SensorName = None,
    bands: BandNames = None,
    acquired: Acquired = None,
    scale: Scale = None,
    offset: Offset = None,
    nodata: Nodata = None,
) -> None:
    """Write the features of every scene of an archive, or a vector for every image set of shards."""
    from .distributed import embed_archive

    settings = _given(dtype, bounds, anchor, window, overlap, precision, sensor, bands, acquired, scale, offset, nodata)
    run = partial(embed_archive, _source(sources), output, checkpoint=checkpoint, **settings)
    _run(run, output, workers, gpus, address, suffix, place)


@app.command("predict")
def predict_all(
    checkpoint: Annotated[str, typer.Argument(help="Folder or Hub id of a fine-tuned checkpoint.", show_default=False)],
    sources: Sources,
    output: Output,
    workers: Workers = 2,
    gpus: Gpus = 0,
    address: Address = None,
    suffix: Annotated[str, typer.Option(help="Of the outputs: .tif or .zarr.")] = ".tif",
    place: Place = None,
    bounds: Area = None,
    anchor: Anchor = 0,
    window: Window = None,
    overlap: Overlap = None,
    precision: Precision = "float32",
    sensor: SensorName = None,
    bands: BandNames = None,
    acquired: Acquired = None,
    scale: Scale = None,
    offset: Offset = None,
    nodata: Nodata = None,
) -> None:
    """Write the map of every scene of an archive: classes, or with --place what changed between its dates."""
    from .distributed import predict_archive

    settings = _given(None, bounds, anchor, window, overlap, precision, sensor, bands, acquired, scale, offset, nodata)
    run = partial(predict_archive, checkpoint, _source(sources), output, **settings)
    _run(run, output, workers, gpus, address, suffix, place)


def _run(
    run: Callable[..., ArchiveReport],
    output: Path,
    workers: int,
    gpus: float,
    address: str | None,
    suffix: str,
    place: str | None,
) -> None:
    """Do an archive on Ray, and tell what was done, or where a run that its user stopped goes on."""
    with resumable(output, is_archive=True):
        report = run(workers=workers, gpus_per_worker=gpus, address=address, suffix=suffix, place=place, progress=True)
    _tell(report, output)


def _source(sources: list[str]) -> Any:
    """Return the one source, or the list of them."""
    return sources[0] if len(sources) == 1 else sources


def _given(
    dtype: str | None,
    bounds: str | None,
    anchor: int,
    window: int | None,
    overlap: int | None,
    precision: str,
    sensor: str | None,
    bands: str | None,
    acquired: str | None,
    scale: float | None,
    offset: float | None,
    nodata: float | None,
) -> Any:
    """Return what was given, in the terms of Python."""
    for name, value, known in (("dtype", dtype, ("float16", "int8")), ("precision", precision, _PRECISIONS)):
        if value is not None and value not in known:
            raise ValueError(f"--{name} {value}: choose {' or '.join(known)}.")
    chosen = {
        "dtype": dtype,
        "bounds": box_of(bounds),
        "anchor": anchor,
        "window": window,
        "overlap": overlap,
        "precision": precision,
        "sensor": sensor,
        "bands": None if bands is None else [name.strip() for name in bands.split(",")],
        "acquired": acquired,
        "scale": scale,
        "offset": offset,
        "nodata": nodata,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _tell(report: ArchiveReport, output: Path) -> None:
    """Say what was done, and end with code 1 where something was not."""
    for name, failures in report.gaps.items():
        typer.echo(f"a2mae: {name}: {len(failures)} windows could not be read; {failures[0]}", err=True)
    for name, reason in report.failed.items():
        typer.echo(f"a2mae: {name}: {reason}", err=True)
    counts = [f"{len(report.done)} done"]
    counts += [f"{len(report.skipped)} there before"] * bool(report.skipped)
    counts += [f"{len(report.failed)} failed"] * bool(report.failed)
    typer.echo(f"{output}: {', '.join(counts)}, in {report.seconds:.0f} seconds.")
    if report.failed:
        raise typer.Exit(1)
