"""The command `a2mae evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Folder, or id on the Hugging Face Hub.", show_default=False)],
    recipe: Annotated[Path, typer.Argument(help="Tasks to evaluate on (.yaml).", show_default=False)],
    root: Annotated[Path | None, typer.Option(help="Folder that the paths of the recipe are relative to.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Report to write: .json.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given several times.")] = None,
) -> None:
    """Compare the frozen features of a checkpoint with what needs no training, by one fixed protocol."""
    _with_extra()
    from a2mae_hub.inference import check_output, load_checkpoint
    from a2mae_hub.whole_files import whole_file

    from .protocol import evaluate as evaluate_checkpoint
    from .protocol import format_report
    from .recipe import read_recipe

    if output is not None:
        check_output(output, (".json",))
    tasks = read_recipe(recipe, root)
    report = evaluate_checkpoint(load_checkpoint(checkpoint), tasks, tasks=task, progress=True)
    typer.echo(format_report(report))
    if output is not None:
        with whole_file(output) as temporary:
            temporary.write_text(json.dumps({**report, "recipe": str(recipe)}, indent=2) + "\n", encoding="utf-8")
        typer.echo(f"{output}: written.")


def _with_extra() -> None:
    """Say plainly which extra is missing."""
    try:
        import PIL  # noqa: F401
        import sklearn  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"a2mae evaluate needs {error.name}; install it with: pip install 'a2mae-hub[stssd]'."
        ) from error
