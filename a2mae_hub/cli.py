"""The command line. What a group of commands does lies with the part of the package that does it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging

from .conversion.commands import convert_app, export_app
from .conversion.hub_commands import list_checkpoints, push, push_data
from .distributed_commands import app as archive_app
from .evaluation.commands import evaluate
from .image_options import (
    Acquired,
    Anchor,
    BandNames,
    Bounds,
    CheckpointName,
    Nodata,
    Offset,
    Paths,
    Scale,
    SensorName,
    Size,
    read,
)
from .scene.commands import embed, similar
from .stssd.commands import app as stssd_app
from .training.commands import pretrain
from .training.finetune_commands import finetune, predict

app = typer.Typer(
    help="Anchor-aware masked autoencoder for sets of satellite images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(stssd_app, name="stssd")
app.add_typer(archive_app, name="archive")
app.add_typer(convert_app, name="convert")
app.add_typer(export_app, name="export")
app.command()(pretrain)
app.command()(finetune)
app.command()(predict)
app.command()(embed)
app.command()(similar)
app.command()(evaluate)
app.command()(push)
app.command("list")(list_checkpoints)
stssd_app.command("push")(push_data)

# Arguments of the Python functions, as errors name them, that are options here.
_ARGUMENT = re.compile(
    r"(?<![\w-])(sensor|bands|acquired|bounds|scale|offset|nodata|size|anchor|window|overlap|precision|device)=(?!None)"
)


@app.command()
def reconstruct(
    paths: Paths,
    output: Annotated[Path, typer.Option("--output", "-o", help="Figure to draw: .png, .pdf or .svg.")],
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
    seed: Annotated[int, typer.Option(help="Of the mask.", min=0)] = 0,
) -> None:
    """Hide patches of an image set, predict them, and draw the result."""
    from . import inference, plotting

    inference.check_output(output, (".png", ".pdf", ".svg"))
    image_set = read(paths, sensor, bands, acquired, bounds, scale, offset, nodata, anchor)
    loaded = inference.load_checkpoint(checkpoint, size=size)
    images, masks = inference.reconstruct(loaded, image_set, seed=seed)
    plotting.plot_reconstruction(image_set, images, masks, output, title=loaded.name)
    typer.echo(f"{output}: input, visible part, reconstruction and error of {len(image_set)} images.")


@app.command()
def info(checkpoint: Annotated[str, typer.Argument(help="Folder, or id on the Hugging Face Hub.")]) -> None:
    """Say what a checkpoint is: its size, its masking, and the sensors it knows."""
    from . import inference

    loaded = inference.load_checkpoint(checkpoint)
    config = loaded.model.config
    encoder = sum(parameter.numel() for parameter in loaded.model.a2mae.parameters())
    decoder = sum(parameter.numel() for parameter in loaded.model.decoder.parameters())
    typer.echo(f"{checkpoint}")
    typer.echo(
        f"  encoder   {encoder / 1e6:.2f} M parameters: {config.num_hidden_layers} layers of width"
        f" {config.hidden_size}, patches of {config.patch_size} × {config.patch_size} pixels"
    )
    typer.echo(
        f"  decoder   {decoder / 1e6:.2f} M parameters: {config.decoder_num_hidden_layers} layers of width"
        f" {config.decoder_hidden_size}, {config.decoder_attention} attention"
    )
    typer.echo(f"  masking   {config.masking_strategy}, {config.mask_ratio:.0%} of every image hidden")
    typer.echo(f"  pooling   {config.pooling}")
    for sensor in loaded.processor.sensors:
        bands = " ".join(band.name for band in sensor.bands)
        typer.echo(f"  {sensor.name:<16} {sensor.unit}: {bands}")


@app.command()
def demo(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Real rasters of one place; left out, a place is simulated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("out"),
    checkpoint: CheckpointName = None,
    sensor: SensorName = None,
    bands: BandNames = None,
    seed: Annotated[int, typer.Option(help="Of the simulated place and of the mask.", min=0)] = 1,
) -> None:
    """Encode and reconstruct an image set of two sensors and two dates, and draw both."""
    from .demo import run_demo

    image_set = read(paths, sensor, bands) if paths else None
    run_demo(out, image_set, checkpoint, seed)


def main() -> None:
    """Run the command line; a mistake in the input is one sentence and exit code 2."""
    # Standard error is for what the user has to know, not for progress bars and load reports.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"a2mae: {in_one_line(error)}", err=True)
        sys.exit(2)


def in_one_line(error: Exception) -> str:
    """Return what an error says, in terms of the options; what the system refuses gets the sentence that it lacks."""
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return f"{what}; check the path, the room on the disk, and who may write there."
    return _ARGUMENT.sub(r"--\1=", " ".join(str(error).split()))


if __name__ == "__main__":
    main()
