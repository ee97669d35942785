"""The card of a fine-tuned checkpoint: that of any checkpoint, with what was trained and measured here."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub import ModelCard, ModelCardData

from a2mae_hub.inference import architectures_of
from a2mae_hub.model_cards import model_card, shown_name
from a2mae_hub.whole_files import write_atomically

_RESULTS = "results.json"
_ANSWERS = {
    "classification": "Tells of a set of images",
    "segmentation": "Tells of every pixel",
    "change": "Tells of every pixel, from images of two dates or more",
}
_PIPELINES = {"classification": "image-classification", "segmentation": "image-segmentation"}


def write_card(folder: Path, report: Mapping[str, Any]) -> None:
    """Write README.md and `results.json`, scores as `a2mae evaluate` writes them, beside the weights.

    Args:
        folder: Holds weights, configuration and processor.
        report: As `finetune` returns it.
    """
    settings = report["settings"]
    kind = "classification" if settings["task"] == "classification" else "segmentation"
    is_tested = report["test_scores"] is not None
    measured = report["test_scores"] if is_tested else report["scores"]
    scores = {name.replace("_", " "): {"model": value} for name, value in measured.items()}
    split = "test" if is_tested else "validation"
    task = {"name": settings["name"], "kind": kind, "split": split, "scores": scores}
    write_atomically(folder / _RESULTS, json.dumps({"tasks": [task]}, indent=1))
    # The name on the Hub is not known yet, and a path of this machine is nobody else's business.
    card = ModelCard(model_card(folder, folder / _RESULTS, repo_id=f"owner/{folder.absolute().name}"))
    answers = f"{_ANSWERS[settings['task']]}: {', '.join(report['classes'])}."
    title = f"# {folder.absolute().name}\n\n"
    text = card.text.replace(title, f"{title}{answers} Its encoder:\n\n", 1)
    text = _with_section(text, "What it is for", f"{answers} On images like those it was trained on, see below.")
    seen = ", ".join(f"{sensor} ({' '.join(bands)})" for sensor, bands in report["inputs"].items())
    text = _with_section(
        text,
        "Training data",
        f"{settings['train_sets']:,} labelled image sets of {settings['name']}, {seen}. Classes:"
        f" {', '.join(report['classes'])}. {_begun_with(settings)}",
    )
    told_time = "on" if report["is_resumed"] else f"in {report['seconds'] / 60:.1f} minutes on"
    text = _with_section(
        text,
        "Training",
        f"```bash\n{_command(settings)}\n```\n\nFine-tuned for {settings['task']} ({settings['mode']}),"
        f" {report['trained_parameters']:,} weights trained, {settings['epochs']} epochs at most, seed"
        f" {settings['seed']}, {told_time} {report['device']}. `finetuning.json` beside the weights holds all settings"
        " and the curve. What the images and labels do not say themselves (sensor, bands, classes, parts) goes with the"
        " command.",
    )
    judged = f"On {settings[split + '_sets']:,} image sets kept for {split}"
    if is_tested:
        judged += (
            f"; the best epoch was chosen by {settings['validation_sets']:,} others. Nothing was learnt from either."
        )
    else:
        judged += ", by which the best epoch was chosen; none of them was trained on."
    [architecture] = architectures_of(folder)
    usage = _usage(settings["task"], f"owner/{folder.absolute().name}", architecture)
    text = _with_section(text, "How to use it", usage)
    table = text[text.index("| task |", text.index("\n## Results\n")) :].split("\n## ", 1)[0].strip()
    text = _with_section(text, "Results", f"{judged}\n\n{table}")
    card.text = text
    facts = cast(ModelCardData, card.data)
    facts.pipeline_tag = _PIPELINES[kind]
    start = settings["checkpoint"] or ""
    if start.count("/") == 1 and not Path(start).exists():
        facts.base_model = start
    write_atomically(folder / "README.md", str(card).rstrip() + "\n")


def _with_section(text: str, title: str, body: str) -> str:
    """Return a card with other words under one of its headings."""
    heading = re.compile(rf"(\n## {re.escape(title)}\n).*?(?=\n## |\Z)", re.DOTALL)
    return heading.sub(lambda match: f"{match[1]}\n{body}\n", text, count=1)


def _begun_with(settings: Mapping[str, Any]) -> str:
    """Say what a run began with."""
    if settings["checkpoint"] is None:
        return "Training began with random weights."
    return f"Training began with {shown_name(settings['checkpoint'])}, whose card tells what that was trained on."


def _usage(task: str, name: str, architecture: str) -> str:
    """Say how to ask a fine-tuned checkpoint of a name."""
    what, one, scenes, output = {
        "classification": ("predict_scores", "probabilities or values", "scene.tif", "scores.csv"),
        "segmentation": ("predict_map", "classes of the pixels", "scene.tif", "map.tif"),
        "change": ("predict_map", "classes of the pixels", "before.tif after.tif", "map.tif"),
    }[task]
    paths = ", ".join(f'"{path}"' for path in scenes.split())
    return (
        "With [a2mae-hub](https://pypi.org/project/a2mae-hub/) (`pip install a2mae-hub`):\n\n```python\n"
        f"from a2mae_hub import read_image_set\nfrom a2mae_hub.prediction import load_task_checkpoint, {what}\n\n"
        f'checkpoint = load_task_checkpoint("{name}")\nprint(checkpoint.classes)\n'
        f"answer = {what}(checkpoint, read_image_set([{paths}]))  # {one}\n```\n\n"
        f"From the command line, scenes of any size: `a2mae predict {name} {scenes} -o {output}`. The model itself is"
        f" `{architecture}`, a model of transformers."
    )


def _command(settings: Mapping[str, Any]) -> str:
    """Return the command that does a run again."""
    words = ["a2mae", "finetune", settings["task"], settings["name"], "-o", "run", "--mode", settings["mode"]]
    if settings["checkpoint"] is not None:
        words += ["--from", shown_name(settings["checkpoint"])]
    rates = ("learning_rate", "head_learning_rate", "layer_decay")
    for key in ("head", "size", "epochs", "batch_size", *rates, "mixup", "patience", "seed"):
        if settings.get(key) is not None:
            words += [f"--{key.replace('_', '-')}", f"{settings[key]}"]
    if settings["side"] is not None and settings["mode"] != "frozen":
        words += ["--side", f"{settings['side']}"]
    if settings["class_weights"] is not None:
        weights = settings["class_weights"]
        words += ["--class-weights", weights if isinstance(weights, str) else ",".join(map(str, weights))]
    if not settings["augment"] and settings["mode"] != "frozen":
        words.append("--no-augment")
    return shlex.join(words)
