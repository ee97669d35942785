"""The commands of publishing, as far as they need no Hub."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from a2mae_hub import A2MAEForPreTraining
from a2mae_hub.checkpoints import checkpoint, embedded
from a2mae_hub.conversion import hub_commands
from a2mae_hub.conversion.hub import plan_data, plan_model
from a2mae_hub.conversion.hub_errors import without_tokens


def test_the_list_tells_every_embedded_checkpoint_with_its_parameters() -> None:
    app = typer.Typer()
    app.command()(hub_commands.list_checkpoints)
    lines = CliRunner().invoke(app).output.splitlines()
    assert len(lines) == max(len(embedded()), 1)
    for name, line in zip(embedded(), lines, strict=False):
        model = A2MAEForPreTraining.from_pretrained(checkpoint(name))
        parameters = sum(weight.numel() for weight in model.parameters())
        assert line.startswith(name) and f"{parameters / 1e6:.2f} M parameters" in line and line.endswith("MB")


@pytest.mark.parametrize("repo_id", ["nano", "org/name/more", "https://hub/org/nano", "org/..", "org/a--b"])
def test_an_id_that_is_none_is_refused_before_the_hub_is_asked(repo_id: str, tmp_path: Path) -> None:
    for plan in (plan_model, plan_data):
        with pytest.raises(ValueError, match="owner/name"):
            plan(tmp_path, repo_id)


def test_what_cannot_be_pushed_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        plan_model(tmp_path / "nowhere", "org/nano")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        plan_model(tmp_path, "org/nano")
    with pytest.raises(FileNotFoundError, match="no shards"):
        plan_data(tmp_path, "org/data")
    with pytest.raises(ValueError, match="goes to main"):
        plan_model(tmp_path, "org/nano", revision="next", create_pr=True)


def test_tokens_are_blotted_out_of_messages() -> None:
    token = "hf_AbcdefghijklmnopqrstuvwxyzABCDEFGH"
    assert without_tokens(f"Bearer {token} was refused") == "Bearer hf_*** was refused"
    assert "secret" not in without_tokens("proxy says secret-token", "secret-token")
    assert without_tokens("for url 'https://s3/a?X-Amz-Signature=1' (403)") == "for url 'https://s3/a' (403)"
    assert without_tokens("hf_hub_download failed") == "hf_hub_download failed"
