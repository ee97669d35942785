"""The commands `a2mae convert …` and `a2mae export …`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig

convert_app = typer.Typer(help="Convert the weights of other codes.", no_args_is_help=True)
export_app = typer.Typer(help="Write the encoder for other software.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--output", "-o", help="New folder for the checkpoint.", show_default=False)]

Licence = Annotated[
    str | None,
    typer.Option(help="Of the weights, for the card (SPDX); left out, as far as known.", show_default=False),
]


@convert_app.command()
def released(
    source: Annotated[Path, typer.Argument(help="Checkpoint of the released A2-MAE code (.pth).", show_default=False)],
    output: Folder,
    licence: Licence = None,
) -> None:
    """Convert a checkpoint of the authors' code; nothing of the file is executed."""
    from .convert_released_checkpoint import convert_released_checkpoint

    config = convert_released_checkpoint(source, output, licence=licence)
    _tell(
        output,
        config,
        f"decoder of {config.decoder_num_hidden_layers} of {config.decoder_hidden_size},"
        f" {config.released_num_images} images of {config.num_channels} bands",
    )


@convert_app.command()
def timm(
    name: Annotated[str, typer.Argument(help="Pretrained vit_* of timm, by its name there.", show_default=False)],
    output: Folder,
    licence: Licence = None,
) -> None:
    """Start an encoder from a vision transformer of timm."""
    from .convert_timm_vit import convert_timm_vit

    config = convert_timm_vit(name, output, licence=licence)
    size = config.patch_size
    _tell(output, config, f"patches of {size} × {size} pixels; coordinates and spectral bands are to be trained")


def _tell(output: Path, config: A2MAEConfig, more: str) -> None:
    """Say what was written where."""
    typer.echo(f"{output}: encoder of {config.num_hidden_layers} layers of width {config.hidden_size}, {more}.")


# With its only command named, `a2mae export` still takes the name of the format.
@export_app.callback()
def export() -> None:
    """Write the encoder for other software."""


@export_app.command()
def onnx(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder, a2mae-nano, or id on the Hugging Face Hub.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Graph to write: .onnx.", show_default=False)],
) -> None:
    """Write the encoder as an ONNX graph for any number of sets, tokens, images and bands."""
    from .export_onnx import export_onnx

    difference = export_onnx(checkpoint, output)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, within {difference:.1e} of the checkpoint.")
