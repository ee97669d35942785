"""The options by which commands are told of images, and the image set that they describe."""

from __future__ import annotations

from typing import Annotated

import typer

from .images import ImageSet

Paths = Annotated[
    list[str],
    typer.Argument(help="Rasters, or folders of rasters, of one place: anything GDAL opens.", show_default=False),
]
SensorName = Annotated[str | None, typer.Option(help="Sensor of the images, where the files do not say.")]
BandNames = Annotated[str | None, typer.Option(help="Bands in file order, comma separated, for example B02,B03,B04.")]
Acquired = Annotated[str | None, typer.Option(help="Acquisition time (ISO), where the files do not say.")]
Bounds = Annotated[str | None, typer.Option(help="Read only west,south,east,north, in degrees.")]
Scale = Annotated[float | None, typer.Option(help="Factor from stored number to physical value.")]
Offset = Annotated[float | None, typer.Option(help="Offset from stored number to physical value.")]
Nodata = Annotated[float | None, typer.Option(help="Stored number that means no data.")]
Size = Annotated[int | None, typer.Option(min=1, help="Resample every image to this many rows and columns.")]
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

    box = None
    if bounds is not None:
        try:
            west, south, east, north = (float(part) for part in bounds.split(","))
        except ValueError:
            raise ValueError(f"--bounds {bounds}: give west,south,east,north in degrees, four numbers.") from None
        box = (west, south, east, north)
    names = [name.strip() for name in bands.split(",")] if bands is not None else None
    return read_image_set(
        paths,
        sensor=sensor,
        bands=names,
        acquired=acquired,
        bounds=box,
        scale=scale,
        offset=offset,
        nodata=nodata,
        anchor=anchor,
    )
