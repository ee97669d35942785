"""The commands `a2mae embed` and `a2mae similar`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from a2mae_hub.image_options import (
    Acquired,
    Anchor,
    BandNames,
    Bounds,
    CheckpointName,
    Device,
    Nodata,
    Offset,
    Overlap,
    Paths,
    PrecisionName,
    Scale,
    SensorName,
    Size,
    WindowSize,
    box_of,
    declarations,
    read,
    resumable,
    show_failures,
)

from .work import SUFFIX


def embed(
    paths: Paths,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="features.tif, .zarr or .parquet of the patches of scenes of any size, or .png to look at;"
            " features.npz of what fits one pass, with one vector for the whole.",
        ),
    ],
    checkpoint: CheckpointName = None,
    sensor: SensorName = None,
    bands: BandNames = None,
    acquired: Acquired = None,
    bounds: Bounds = None,
    scale: Scale = None,
    offset: Offset = None,
    nodata: Nodata = None,
    size: Size = None,
    anchor: Anchor = 0,
    dtype: Annotated[
        Literal["float16", "int8"], typer.Option(help="Of the features of scenes; int8 has a factor per feature.")
    ] = "float16",
    window: WindowSize = None,
    overlap: Overlap = None,
    precision: PrecisionName = "float32",
    device: Device = None,
) -> None:
    """Write the features of a scene: several dates and sensors of one place become one map."""
    from a2mae_hub import inference

    from .inference import embed_scene
    from .outputs import FEATURE_SUFFIXES

    inference.check_output(output, (".npz", ".png", *FEATURE_SUFFIXES))
    if output.suffix.lower() == ".npz":
        if window or overlap or dtype != "float16" or precision != "float32" or device:
            raise ValueError(
                f"{output}: is made in one pass, without --window, --overlap, --dtype, --precision and --device."
            )
        image_set = read(paths, sensor, bands, acquired, bounds, scale, offset, nodata, anchor)
        loaded = inference.load_checkpoint(checkpoint, size=size)
        features = inference.embed(loaded, image_set)
        inference.save_features(features, image_set, output)
        channels, rows, columns = features.maps.shape
        typer.echo(f"{output}: {channels} features on {rows} × {columns} patches, from {len(image_set)} images.")
        return
    declared = declarations(sensor, bands, acquired, scale, offset, nodata)
    loaded = inference.load_checkpoint(checkpoint, size=size)
    if output.suffix.lower() == ".png":
        from .pictures import draw_features
    with resumable(output), _made_for(output, ".png") as made:
        report = embed_scene(
            paths,
            made,
            checkpoint=loaded,
            dtype=dtype,
            bounds=box_of(bounds),
            anchor=anchor,
            window=window,
            overlap=overlap,
            precision=precision,
            device=device,
            progress=sys.stderr.isatty(),
            **declared,
        )
        if made != output:
            draw_features(made, output)
    show_failures(report.failures)
    what = "principal components" if made != output else f"{report.channels} features"
    typer.echo(f"{output}: {what} on {report.rows} × {report.columns} patches, from {report.images} images.")


def similar(
    scenes: Annotated[
        list[str],
        typer.Argument(help="Images of one place; or a feature file (.tif, .zarr).", show_default=False),
    ],
    at: Annotated[
        list[str],
        typer.Option("--at", metavar="LON,LAT", help="Place in degrees; can be repeated.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="map.tif, or map.png to look at.", show_default=False)],
    checkpoint: CheckpointName = None,
    sensor: SensorName = None,
    bands: BandNames = None,
    acquired: Acquired = None,
    bounds: Bounds = None,
    scale: Scale = None,
    offset: Offset = None,
    nodata: Nodata = None,
    size: Size = None,
    anchor: Anchor = 0,
    window: WindowSize = None,
    overlap: Overlap = None,
    precision: PrecisionName = "float32",
    device: Device = None,
) -> None:
    """Map how alike every patch of a scene is to a place."""
    from a2mae_hub.grids import window_of_bounds
    from a2mae_hub.inference import check_output, load_checkpoint
    from a2mae_hub.scene_files import open_scenes

    from .feature_files import is_feature_file
    from .inference import check_not_an_image, embed_scene
    from .pictures import scene_picture
    from .similarity import SIMILARITY_SUFFIXES, locate, similar_scene

    check_output(output, SIMILARITY_SUFFIXES)
    places = [_place(text) for text in at]
    declared = declarations(sensor, bands, acquired, scale, offset, nodata)
    made = [path for path in scenes if is_feature_file(path)]
    if made:
        further = {**declared, "checkpoint": checkpoint, "bounds": bounds, "size": size, "anchor": anchor or None}
        further |= {"window": window, "overlap": overlap, "device": device}
        further |= {"precision": None if precision == "float32" else precision}
        given = [f"--{name}" for name, value in further.items() if value is not None]
        if given:
            raise ValueError(f"{made[0]}: holds what was made of a scene already; leave out {', '.join(given)}.")
        if len(scenes) > 1:
            raise ValueError(f"{made[0]}: holds what was made of a whole scene; name it alone, or images.")
        grid = similar_scene(made[0], places, output)
    else:
        opened = open_scenes(scenes, **declared)
        if not 0 <= anchor < len(opened):
            raise ValueError(f"--anchor {anchor} is no image: {len(opened)} found, from 0 to {len(opened) - 1}.")
        scene, box = opened[anchor], box_of(bounds)
        area = scene.grid.whole if box is None else window_of_bounds(scene.grid, box)
        for place in places:  # before the long work
            locate(scene.grid.crop(area), place)
        picture = scene_picture(scene, area) if output.suffix.lower() == ".png" else None
        loaded = load_checkpoint(checkpoint, size=size)
        check_not_an_image(output, opened)
        with resumable(output), _made_for(output, *SIMILARITY_SUFFIXES) as features:
            report = embed_scene(
                scenes,
                features,
                checkpoint=loaded,
                bounds=box,
                anchor=anchor,
                window=window,
                overlap=overlap,
                precision=precision,
                device=device,
                progress=sys.stderr.isatty(),
                **declared,
            )
            grid = similar_scene(features, places, output, picture=picture)
        show_failures(report.failures)
    where = "a place" if len(places) == 1 else f"{len(places)} places"
    typer.echo(f"{output}: similarity to {where} on {grid.height} × {grid.width} patches.")


@contextmanager
def _made_for(output: Path, *suffixes: str) -> Iterator[Path]:
    """Give the features to write for an output: itself, or for one of these suffixes a file that is needed once."""
    if output.suffix.lower() not in suffixes:
        yield output
        return
    folder = output.with_name(output.name + SUFFIX)
    folder.mkdir(exist_ok=True)
    yield folder / "features.tif"
    shutil.rmtree(folder)


def _place(text: str) -> tuple[float, float]:
    """Return longitude and latitude of an option."""
    try:
        longitude, latitude = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--at {text}: give longitude,latitude in degrees, two numbers.") from None
    return longitude, latitude
