"""The options by which commands are told of images, and the image set that they describe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .images import ImageSet

if TYPE_CHECKING:
    from .grids import Box
    from .scene_files import Declarations

# Failures that are told one by one.
_MOST_FAILURES = 3

Paths = Annotated[
    list[str],
    typer.Argument(help="Rasters, or folders of rasters, of one place: anything GDAL opens.", show_default=False),
]
CheckpointName = Annotated[
    str | None,
    typer.Option("--checkpoint", "-c", help="Folder, a2mae-nano, or id on the Hugging Face Hub; left out, a2mae-nano."),
]
SensorName = Annotated[str | None, typer.Option(help="Sensor of the images, where the files do not say.")]
BandNames = Annotated[str | None, typer.Option(help="Bands in file order, comma separated, for example B02,B03,B04.")]
Acquired = Annotated[str | None, typer.Option(help="Acquisition time (ISO), where the files do not say.")]
Bounds = Annotated[str | None, typer.Option(help="Read only west,south,east,north, in degrees.")]
Scale = Annotated[float | None, typer.Option(help="Factor from stored number to physical value.")]
Offset = Annotated[float | None, typer.Option(help="Offset from stored number to physical value.")]
Nodata = Annotated[float | None, typer.Option(help="Stored number that means no data.")]
Size = Annotated[int | None, typer.Option(min=1, help="Resample every image to this many rows and columns.")]
WindowSize = Annotated[
    int | None, typer.Option(min=1, help="Pixels along a side of a window of a scene; left out, 16 patches.")
]
Overlap = Annotated[int | None, typer.Option(min=0, help="Pixels that windows share; left out, a quarter of one.")]
PrecisionName = Annotated[
    Literal["float32", "bfloat16", "int8"], typer.Option(help="Of the arithmetic of scenes; int8 on a CPU.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, …; left out, a GPU where there is one.")]
Anchor = Annotated[int, typer.Option(help="Which image is the anchor, counted from 0.")]


def read(
    paths: list[str],
    sensor: str | None,
    bands: str | None,
    acquired: str | None = None,
    bounds: str | None = None,
    scale: float | None = None,
    offset: float | None = None,
    nodata: float | None = None,
    anchor: int = 0,
) -> ImageSet:
    """Read the image set that the options of a command describe."""
    from .raster import read_image_set

    declared = declarations(sensor, bands, acquired, scale, offset, nodata)
    return read_image_set(paths, bounds=box_of(bounds), anchor=anchor, **declared)


def declarations(
    sensor: str | None,
    bands: str | None,
    acquired: str | None,
    scale: float | None,
    offset: float | None,
    nodata: float | None,
) -> Declarations:
    """Return what the options declare of images."""
    names = [name.strip() for name in bands.split(",")] if bands is not None else None
    return {
        "sensor": sensor,
        "bands": names,
        "acquired": acquired,
        "scale": scale,
        "offset": offset,
        "nodata": nodata,
    }


def box_of(bounds: str | None) -> Box | None:
    """Return the box of `--bounds`."""
    if bounds is None:
        return None
    try:
        west, south, east, north = (float(part) for part in bounds.split(","))
    except ValueError:
        raise ValueError(f"--bounds {bounds}: give west,south,east,north in degrees, four numbers.") from None
    return west, south, east, north


@contextmanager
def resumable(output: Path, is_archive: bool = False) -> Iterator[None]:
    """Say, when the user stops a command, that it can go on from there.

    Args:
        output: A file, beside which lies what is done of it; of an archive, the folder of its outputs.
        is_archive: Whether it is one.
    """
    try:
        yield
    except KeyboardInterrupt:
        from .scene.work import SUFFIX

        folder = output if is_archive else output.with_name(output.name + SUFFIX)
        kept = f"; what is done is kept in {folder}, and the same command goes on from it" if folder.exists() else ""
        typer.echo(f"a2mae: stopped{kept}.", err=True)
        raise typer.Exit(130) from None


def show_failures(failures: Sequence[str]) -> None:
    """Say which windows of a scene are missing, the first few of them in full."""
    for failure in failures[:_MOST_FAILURES]:
        typer.echo(f"a2mae: {failure}", err=True)
    if failures:
        typer.echo(f"a2mae: {len(failures)} windows could not be answered and are no data.", err=True)
