"""The command `a2mae pretrain`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

SIZES = ("nano", "tiny", "base", "large")


def pretrain(
    shards: Annotated[
        list[str], typer.Argument(help="Folders of shards, or ids of data sets on the Hub.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for checkpoints, model and figures; named again, goes on.")
    ],
    size: Annotated[str | None, typer.Option(help="nano, tiny, base or large; left out, nano.")] = None,
    start: Annotated[
        str | None, typer.Option("--from", help="Checkpoint to begin with: a folder, or an id on the Hub.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Field of the configuration: mask_ratio=0.6. Repeatable.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 10_000,
    batch_size: Annotated[int, typer.Option(help="Image sets of a step, all processes together.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    warmup_steps: Annotated[int | None, typer.Option(help="Steps of the warm-up; left out, a twentieth.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read and prepare batches.")] = 2,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    report_to: Annotated[str, typer.Option(help="tensorboard, wandb, … or none.")] = "none",
) -> None:
    """Pre-train on image sets. Run again, it goes on where it was stopped or killed."""
    # transformers takes seconds to import its Trainer.
    from .pretrain import pretrain as run

    config = make_config(size, start, overrides or [])
    try:
        report = run(
            shards,
            output,
            config=config,
            checkpoint=start,
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            seed=seed,
            workers=workers,
            save_steps=save_steps,
            report_to=report_to,
        )
    except KeyboardInterrupt:
        typer.echo(f"{output}: stopped; the same command goes on from the last checkpoint.", err=True)
        raise typer.Exit(130) from None
    typer.echo(
        f"{output}: {report['parameters'] / 1e6:.2f} M parameters after {report['steps']} steps and"
        f" {report['sets_seen']} image sets ({report['epochs']:.1f} epochs), loss {report['curve'][-1]['loss']:.4f}."
    )


def make_config(size: str | None, checkpoint: str | None, overrides: list[str]) -> Any:
    """Return the configuration that the options describe; None for that of the checkpoint as it is.

    Args:
        size: Name of a preset.
        checkpoint: Folder or Hub id whose configuration to begin with instead.
        overrides: `key=value`, the value as JSON or as plain text.

    Raises:
        ValueError: If size or key is unknown, size and checkpoint are both given, or a value does not fit.
    """
    from huggingface_hub.errors import StrictDataclassError

    from a2mae_hub.inference import load_checkpoint
    from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig

    from .pretrain import config_fields

    if size is not None and checkpoint is not None:
        raise ValueError(f"--size {size}: the checkpoint {checkpoint} has its own size; leave one of the two out.")
    if size is not None and size not in SIZES:
        raise ValueError(f"--size {size}: no such size; choose one of {', '.join(SIZES)}.")
    values: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or name not in config_fields():
            raise ValueError(f"--set {override}: give key=value, the key one of {', '.join(config_fields())}.")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = text
    if checkpoint is not None:
        if not values:
            return None
        own = load_checkpoint(checkpoint).model.config
        make, values = A2MAEConfig, {name: getattr(own, name) for name in config_fields()} | values
    else:
        make = getattr(A2MAEConfig, size or "nano")
    try:
        return make(**values)
    except StrictDataclassError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"--set {' --set '.join(overrides)}: {reason}") from error
