"""Cards say what the files of a checkpoint say, and no more."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from a2mae_hub import A2MAEConfig, A2MAEForPreTraining, A2MAEImageProcessor
from a2mae_hub.checkpoints import checkpoint, embedded
from a2mae_hub.model_cards import count_parameters, hub_licence, model_card

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
OVERRIDES = {**SIZES, **{f"decoder_{name}": size for name, size in SIZES.items()}, "mask_ratio": 0.6}
REPORT = {
    "checkpoint": "run",
    "tasks": [
        {
            "name": "EuroSAT",
            "kind": "few-shot",
            "scores": {
                "accuracy": {"model": 0.71234, "untrained": 0.5},
                "spread over folds": {"model": 0.02, "untrained": 0.03},
            },
        },
        {"name": "water", "kind": "segmentation", "scores": {"IoU": {"model": 0.8, "untrained": 0.9}}},
        {
            "name": "grid",
            "kind": "reconstruction",
            "split": "validation",
            "scores": {"RMSE, reflectance": {"model": 0.031, "mean of visible": 0.05}},
        },
    ],
}


@pytest.fixture(scope="module")
def model() -> A2MAEForPreTraining:
    torch.manual_seed(0)
    return A2MAEForPreTraining(A2MAEConfig.nano(**OVERRIDES))


@pytest.fixture
def folder(model: A2MAEForPreTraining, tmp_path: Path) -> Path:
    """A checkpoint without a training report."""
    model.save_pretrained(tmp_path / "run")
    A2MAEImageProcessor(patch_size=8).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def trained(model: A2MAEForPreTraining, folder: Path) -> Path:
    """The same, with what pre-training leaves beside the weights."""
    from a2mae_hub.training.pretrain import config_fields

    settings = {
        "steps": 400,
        "batch_size": 16,
        "learning_rate": 0.001,
        "warmup_steps": 20,
        "seed": 7,
        "workers": 2,
        "checkpoint": None,
        "shards": [
            {"path": "/home/somebody/places", "kind": "grid", "sets": 1200, "fingerprint": "1"},
            {"path": "/home/somebody/places", "kind": "city", "sets": 34, "fingerprint": "2"},
        ],
        "config": {name: getattr(model.config, name) for name in config_fields()},
    }
    report = {
        "settings": settings,
        "steps": 400,
        "epochs": 5.2,
        "seconds": 7200.0,
        "processes": 1,
        "device": "cpu",
        "versions": {"torch": "2.15"},
        "curve": [{"step": step, "loss": 9 - step / 100} for step in range(1, 401)],
    }
    (folder / "training.json").write_text(json.dumps(report))
    return folder


def metadata(card: str) -> dict[str, Any]:
    """Return what the Hub reads of a card."""
    return yaml.safe_load(card.split("---\n")[1])


def test_parameters_are_those_of_the_model(model: A2MAEForPreTraining, folder: Path) -> None:
    encoder = sum(weight.numel() for weight in model.a2mae.parameters())
    everything = sum(weight.numel() for weight in model.parameters())
    assert count_parameters(folder) == (encoder, everything - encoder)


def test_measured_results_are_in_the_metadata_and_in_the_table(folder: Path) -> None:
    (folder / "report.json").write_text(json.dumps(REPORT))
    card = model_card(folder, folder / "report.json", repo_id="org/run")
    (index,) = metadata(card)["model-index"]
    measured = {
        (result["dataset"]["name"], metric["type"]): metric["value"]
        for result in index["results"]
        for metric in result["metrics"]
    }
    # A spread is no score to rank models by.
    assert measured == {("EuroSAT", "accuracy"): 0.7123, ("water", "iou"): 0.8, ("grid", "rmse"): 0.031}
    assert "| EuroSAT | accuracy | 0.712 | 0.500 |" in card
    # Where the untrained model is better, the reader sees it.
    assert "| water | IoU | 0.800 | 0.900 |" in card


def test_without_results_and_training_the_card_says_so(folder: Path) -> None:
    card = model_card(folder)
    assert "model-index" not in metadata(card)
    assert "None were measured" in card and "not recorded" in card and "may be randomly" in card


def test_training_is_told_as_it_was(trained: Path) -> None:
    card = model_card(trained, datasets=["org/places"])
    assert metadata(card)["datasets"] == ["org/places"]
    assert "400 steps of 16 image sets (5.2 epochs), seed 7, in 2.0 hours on cpu" in card
    assert "| places | 1,234 | grid (1,200), city (34) |" in card
    assert "| 1 | 8.9900 |" in card and "| 400 | 5.0000 |" in card
    # Paths of the machine are nobody's business.
    assert "somebody" not in card


def test_all_runs_that_made_the_weights_are_told_in_their_order(trained: Path) -> None:
    path = trained / "training.json"
    before = json.loads(path.read_text())
    settings = {**before["settings"], "checkpoint": "/home/somebody/first", "steps": 77}
    settings["shards"] = [{"path": "/home/somebody/others", "kind": "grid", "sets": 5, "fingerprint": "1"}]
    path.write_text(json.dumps({**before, "settings": settings, "steps": 77, "before": before}))
    card = model_card(trained)
    commands = [line for line in card.splitlines() if line.startswith("a2mae pretrain")]
    first, second = map(shlex.split, commands)
    assert first[first.index("--output") + 1] == second[second.index("--from") + 1] == "run-1"
    assert second[second.index("--steps") + 1] == "77"
    assert card.index("400 steps of 16") < card.index("77 steps of 16")
    assert "| places | 1,234 |" in card and "| others | 5 |" in card
    assert "somebody" not in card


def test_the_command_of_the_card_makes_the_same_configuration(model: A2MAEForPreTraining, trained: Path) -> None:
    from a2mae_hub.training.commands import make_config
    from a2mae_hub.training.pretrain import config_fields

    (line,) = [line for line in model_card(trained).splitlines() if line.startswith("a2mae pretrain")]
    words = shlex.split(line)
    overrides = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
    config = make_config(words[words.index("--size") + 1], None, overrides)
    assert all(getattr(config, name) == getattr(model.config, name) for name in config_fields())
    assert words[words.index("--seed") + 1] == "7"


def test_licences_of_the_images_are_told_where_the_shards_are_at_hand(trained: Path, tmp_path: Path) -> None:
    import numpy as np

    from a2mae_hub.stssd.schema import StoredImage, StoredSet
    from a2mae_hub.stssd.shards import ShardWriter

    (tmp_path / "places").mkdir()
    with ShardWriter(tmp_path / "places" / "grid-00000.parquet") as shard:
        for number, licence in enumerate(("CC-BY-4.0", "CC-BY-4.0", None)):
            pixels = np.full((1, 4, 4), 2000, np.uint16)
            image = StoredImage(pixels, ["B02"], "sentinel-2-l2a", gsd=10.0, licence=licence)
            shard.write(StoredSet([image], id=f"{number}"))
    report = json.loads((trained / "training.json").read_text())
    for entry in report["settings"]["shards"]:
        entry["path"] = str(tmp_path / "places")
    (trained / "training.json").write_text(json.dumps(report))
    assert "| CC-BY-4.0 (2), unknown (1) |" in model_card(trained)


def test_the_usage_runs_on_the_folder_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = model_card(folder).split("```python\n")[1].split("```")[0]
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.strip().endswith("torch.Size([1, 32]) torch.Size([1, 33, 32])")


def test_a_released_layout_gets_examples_that_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {**OVERRIDES, "hidden_size": 256 + 12, "num_attention_heads": 2, "patch_size": 8}
    config = A2MAEConfig.released(**sizes)
    A2MAEForPreTraining(config).save_pretrained(tmp_path)
    A2MAEImageProcessor(patch_size=8).save_pretrained(tmp_path)
    code = model_card(tmp_path).split("```python\n")[1].split("```")[0]
    exec(compile(code, "card", "exec"), {})
    assert "torch.Size([1, 49, 268])" in capsys.readouterr().out


def test_what_is_missing_or_no_report_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        model_card(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such report"):
        model_card(folder, tmp_path / "report.json")
    (tmp_path / "report.json").write_text('{"tasks": 3}')
    with pytest.raises(ValueError, match="is no report"):
        model_card(folder, tmp_path / "report.json")
    (folder / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match="cannot be read"):
        count_parameters(folder)


# ------------------------------------------------------------------------------------- the checkpoints of the package

CARDS = Path(__file__).resolve().parents[2] / "model_cards"


def sections(card: str) -> dict[str, str]:
    """Return what stands under every heading."""
    return {part.split("\n")[0]: part for part in card.split("\n## ")[1:]}


@pytest.mark.parametrize("name", embedded())
def test_the_card_of_a_checkpoint_of_the_package_tells_of_that_checkpoint(name: str) -> None:
    """Where this fails, the weights are others than those of the card: regenerate it."""
    text = (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert model_card(name) == text
    assert model_card(checkpoint(name)) == text
    fresh = sections(model_card(checkpoint(name), training_note="A note."))
    # With a note nothing is taken over: the training is told from training.json.
    training = fresh["Training"].replace("\nA note.", "")
    assert all(line in sections(text)["Training"] for line in training.split("\n\n")[-1].splitlines())


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.md")), ids=lambda path: path.stem)
def test_no_card_tells_of_the_machine_that_it_was_written_on(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|Users|mnt)/", text)
    assert "{{" not in text


@pytest.mark.parametrize("name", embedded())
def test_the_usage_of_a_checkpoint_of_the_package_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", model_card(name), re.DOTALL)
    assert f'a2mae_hub.checkpoint("{name}")' in code
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.startswith("torch.Size([1, ")


def test_pushed_it_keeps_what_was_measured_and_names_its_repository() -> None:
    ours, pushed = model_card("a2mae-nano"), model_card("a2mae-nano", repo_id="org/nano", datasets=["org/places"])
    assert metadata(pushed)["model-index"][0]["results"] == metadata(ours)["model-index"][0]["results"]
    ours, pushed = sections(ours), sections(pushed)
    assert pushed["Results"] == ours["Results"] and pushed["Training"] == ours["Training"]
    assert "datasets/org/places" in pushed["Training data"]
    assert 'from_pretrained("org/nano", trust_remote_code=True)' in pushed["How to use it"]


def test_results_of_other_weights_are_not_taken_over(monkeypatch: pytest.MonkeyPatch, trained: Path) -> None:
    from a2mae_hub import checkpoints

    (trained.parent / "a2mae-nano").symlink_to(trained)
    monkeypatch.setattr(checkpoints, "_FOLDER", trained.parent)
    card = model_card("a2mae-nano")
    assert "400 steps of 16 image sets" in card and "None were measured" in card and "model-index" not in metadata(card)


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC BY-NC 4.0", {"license": "cc-by-nc-4.0"}),
        ("ODbL-1.0", {"license": "odbl"}),
        (None, {"license": "unknown"}),
        ("Own Terms (2024)", {"license": "other", "license_name": "own-terms-2024", "license_link": "README.md"}),
    ],
)
def test_a_licence_has_the_name_that_the_hub_knows(licence: str | None, expected: dict[str, str]) -> None:
    assert hub_licence(licence) == expected
    with pytest.raises(ValueError, match="names none"):
        hub_licence("–")


def test_weights_under_other_terms_say_so(folder: Path) -> None:
    card = model_card(folder, licence="CC-BY-NC-4.0")
    assert metadata(card)["license"] == "cc-by-nc-4.0"
    assert "The weights are under CC-BY-NC-4.0, the code is under Apache-2.0." in card
