"""The commands `a2mae stssd build`, `prune`, `inspect` and `card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from a2mae_hub.products import RASTER_SUFFIXES

from .packages import check_packages

app = typer.Typer(help="Image sets from scenes: build, prune, inspect and describe shards.", no_args_is_help=True)

Shards = Annotated[str, typer.Argument(help="Folder of shards, or id of a data set on the Hub.", show_default=False)]


@app.command()
def build(
    context: typer.Context,
    scenes: Annotated[
        list[str],
        typer.Argument(help="A recipe (.yaml); or rasters, folders, patterns of them, STAC files (.json) or URLs."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")],
    root: Annotated[Path | None, typer.Option(help="Folder that the paths of a recipe are relative to.")] = None,
    sensor: Annotated[str | None, typer.Option(help="Sensor of the scenes, where they do not say.")] = None,
    bands: Annotated[str | None, typer.Option(help="Bands in file order, comma separated.")] = None,
    acquired: Annotated[
        str | None, typer.Option(help="Time (ISO), or a pattern with (?P<year>…), (?P<month>…), (?P<day>…).")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Factor from stored number to physical value.")] = None,
    offset: Annotated[float | None, typer.Option(help="Offset from stored number to physical value.")] = None,
    nodata: Annotated[float | None, typer.Option(help="Stored number that means no data.")] = None,
    licence: Annotated[str | None, typer.Option(help="Terms of use, recorded with every image.")] = None,
    kind: Annotated[str, typer.Option(help="Kind of the sets: grid, city, gf1, gf2, or your own.")] = "grid",
    sampling: Annotated[str, typer.Option(help="grid, footprints, or a file of points or polygons.")] = "grid",
    size: Annotated[float, typer.Option(help="Side of the footprint of a set, metres.")] = 960.0,
    spacing: Annotated[float | None, typer.Option(help="Metres between sets; left out, the size.")] = None,
    derive: Annotated[str | None, typer.Option(help="Sensor to derive where a place has one sensor only.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images of a set at most.")] = 6,
    max_cloud: Annotated[float, typer.Option(min=0, max=1, help="Share of an image that may be cloudy.")] = 0.2,
    max_nodata: Annotated[float, typer.Option(min=0, max=1, help="Share that may be without data.")] = 0.1,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; left out, one per processor.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Make the shards on a Ray cluster: auto, host:port, or local.")
    ] = None,
) -> None:
    """Build image sets from scenes. Run again, it goes on where it was stopped or killed.

    With a recipe, the options on scenes and sampling are in the recipe; docs/stssd.md shows one.
    """
    with_extra()
    from .build import build as build_shards
    from .recipe import Collection, Recipe, Scenes, read_recipe

    if any(path.endswith((".yaml", ".yml")) for path in scenes):
        if len(scenes) > 1:
            raise ValueError(f"{' '.join(scenes)}: give one recipe alone, or scenes.")
        given = {name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")}
        inside = sorted(given - {"scenes", "output", "root", "workers", "address"})
        if inside:
            raise ValueError(f"--{inside[0].replace('_', '-')}: belongs into the recipe {scenes[0]}, not beside it.")
        recipe = read_recipe(scenes[0], root)
    else:
        stac = tuple(path for path in scenes if _is_stac(path))
        entry = Scenes(
            paths=tuple(path for path in scenes if path not in stac),
            stac=stac,
            sensor=sensor,
            bands=tuple(name.strip() for name in bands.split(",")) if bands else None,
            acquired=acquired,
            scale=scale,
            offset=offset,
            nodata=nodata,
            licence=licence,
        )
        collection = Collection(
            name=kind,
            scenes=(entry,),
            kind=kind,
            sampling=sampling,
            size=size,
            spacing=spacing,
            derive=derive,
            images=images,
            max_cloud=max_cloud,
            max_nodata=max_nodata,
        )
        recipe = Recipe((collection,), root or Path("."))
    try:
        report = build_shards(recipe, output, workers=workers, address=address, progress=True)
    except KeyboardInterrupt:
        typer.echo(f"{output}: stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    for line in summary(report):
        typer.echo(line)
    typer.echo(f"{output}: {report['sets']} image sets.")


def _is_stac(path: str) -> bool:
    """Return whether a path or URL names a STAC document: JSON, or a URL that names no raster."""
    name = path.split("?")[0].lower()
    if name.endswith((".json", ".geojson")):
        return True
    return name.startswith(("http://", "https://")) and not name.endswith(RASTER_SUFFIXES)


def summary(report: dict[str, Any]) -> list[str]:
    """Return the lines that tell what a build made, one per collection."""
    lines = []
    for collection in report["collections"]:
        images = ", ".join(f"{count} {what}" for what, count in collection["images"].items())
        refused = ", ".join(f"{count} for {what}" for what, count in collection["refused"].items())
        lines.append(
            f"  {collection['name']:<14} {collection['sets']} sets at {collection['locations']} locations of "
            f"{collection['scenes']} scenes: {images or 'no images'}" + (f"; refused {refused}" if refused else "")
        )
    return lines


@app.command()
def prune(
    shards: Shards,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder to write to.")],
    keep: Annotated[float, typer.Option(min=0, help="Sets to keep: a share up to 1, or a number of 2 and more.")],
    clusters: Annotated[int | None, typer.Option(min=1, help="Clusters; left out, by the number of sets.")] = None,
    hard_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of every cluster's quota for its least varied places.")
    ] = 0.2,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", "-c", help="Cluster embeddings of this model, not spectral statistics."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the clustering.")] = 0,
) -> None:
    """Keep a diverse part of a data set: near-duplicates go, every cluster gets its quota."""
    with_extra()
    from .prune import prune as prune_shards

    if keep > 1 and not keep.is_integer():
        raise ValueError(f"--keep {keep:g}: give a share up to 1, or a whole number of sets.")
    report = prune_shards(
        shards,
        output,
        keep=int(keep) if keep > 1 else keep,
        clusters=clusters,
        hard_share=hard_share,
        checkpoint=checkpoint,
        seed=seed,
        progress=True,
    )
    typer.echo(str(report))
    typer.echo(f"{output}: shards, prune.json and prune.png.")


@app.command()
def inspect(
    shards: Shards,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for statistics.json and figures.")
    ] = None,
) -> None:
    """Count and measure a data set: sensors, dates, places, and the mean and spread of every band."""
    with_extra()
    from .figures import plot_histograms, plot_inspection
    from .statistics import inspect as inspect_shards

    statistics = inspect_shards(shards, progress=True)
    typer.echo(str(statistics))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        statistics.save(output / "statistics.json")
        plot_inspection(statistics, output / "inspect.png")
        plot_histograms(statistics, output / "histograms.png")
        typer.echo(f"{output}: statistics.json, inspect.png and histograms.png.")


@app.command()
def card(
    shards: Annotated[Path, typer.Argument(help="Folder of shards.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name of the data set; left out, the folder's.")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the data set as a whole, as SPDX.")] = None,
    repo_id: Annotated[str | None, typer.Option(help="Id that it will have on the Hub.")] = None,
) -> None:
    """Write the data set's card, README.md, into its folder."""
    with_extra()
    from .card import write_card

    typer.echo(f"{write_card(shards, name=name, licence=licence, repo_id=repo_id)}: written.")


def with_extra() -> None:
    """Say plainly which package of the extra is missing."""
    check_packages("geopandas", "pystac", "scikit-learn")
