"""The commands `a2mae push`, `a2mae list` and `a2mae stssd push`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .hub import Plan

RepoId = Annotated[str, typer.Option("--repo-id", help="Where to push: owner/name.", show_default=False)]
Private = Annotated[
    bool | None, typer.Option("--private/--public", help="Of a new repository; left out, as the owner's settings say.")
]
Revision = Annotated[str | None, typer.Option(help="Branch; left out, main.")]
CreatePR = Annotated[bool, typer.Option("--create-pr", help="Open a pull request.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it; left out, only the plan is shown.")]


def push(
    folder: Annotated[str, typer.Argument(help="Folder of a checkpoint, or a2mae-nano.", show_default=False)],
    repo_id: RepoId,
    private: Private = None,
    revision: Revision = None,
    create_pr: CreatePR = False,
    report: Annotated[
        Path | None, typer.Option(help="report.json of `a2mae evaluate`, for the card's results.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Id on the Hub of a data set it was trained on. Repeatable.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Of the weights, for a card that is made (SPDX); left out, Apache-2.0.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Push a checkpoint to the Hugging Face Hub: show the plan, and with --yes do it and check what arrived.

    The token is that of HF_TOKEN or `hf auth login`. Run again after an interruption, it goes on.
    """
    from .hub import plan_model
    from .hub_errors import no_endless_waiting

    no_endless_waiting()
    plan = plan_model(
        folder,
        repo_id,
        private=private,
        revision=revision,
        create_pr=create_pr,
        report=report,
        datasets=dataset or (),
        licence=licence,
    )
    _show_and_do(plan, yes, "every file came back as it was sent, and encodes images as it did here")


def push_data(
    folder: Annotated[Path, typer.Argument(help="Folder of shards.", show_default=False)],
    repo_id: RepoId,
    private: Private = None,
    revision: Revision = None,
    create_pr: CreatePR = False,
    licence: Annotated[str | None, typer.Option(help="Licence of the whole, for the card (SPDX).")] = None,
    yes: Yes = False,
) -> None:
    """Push shards to the Hugging Face Hub: show the plan, and with --yes do it and check what arrived.

    The token is that of HF_TOKEN or `hf auth login`. Run again after an interruption, it goes on. The card, README.md,
    is written into the folder, unless there is one that you wrote yourself.
    """
    from a2mae_hub.stssd.commands import with_extra

    from .hub import plan_data
    from .hub_errors import no_endless_waiting

    with_extra()
    no_endless_waiting()
    plan = plan_data(folder, repo_id, private=private, revision=revision, create_pr=create_pr, licence=licence)
    _show_and_do(plan, yes, "the Hub holds every file as it was sent")


def list_checkpoints() -> None:
    """List the checkpoints that come with the package."""
    from a2mae_hub.checkpoints import checkpoint, embedded
    from a2mae_hub.model_cards import count_parameters

    names = embedded()
    if not names:
        typer.echo("No checkpoint comes with this installation; name one on the Hub (owner/name) instead.")
    for name in names:
        encoder, rest = count_parameters(checkpoint(name))
        size = sum(path.stat().st_size for path in checkpoint(name).iterdir() if path.is_file())
        typer.echo(
            f"{name:<14} {(encoder + rest) / 1e6:.2f} M parameters, {encoder / 1e6:.2f} M of them in the encoder;"
            f" {size / 1e6:.1f} MB"
        )


def _show_and_do(plan: Plan, yes: bool, checked: str) -> None:
    """Show a plan, and do it where that is asked for."""
    from .hub import push as push_plan

    typer.echo(str(plan))
    if not yes:
        typer.echo("Nothing was sent; add --yes to do this.")
        return
    address = push_plan(plan)
    typer.echo(f"{address}: {'pushed' if plan.changes else 'nothing had changed'}; {checked}.")
