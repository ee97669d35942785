"""Model cards: what a checkpoint is, how it was trained, what was measured, filled into one template."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from a2mae_hub.checkpoints import checkpoint as embedded_checkpoint
from a2mae_hub.checkpoints import embedded
from a2mae_hub.licences import hub_licence

_CARDS = Path(__file__).parent
_TEMPLATE = _CARDS / "model.md.jinja"
_TAGS = ["a2mae", "earth-observation", "geospatial", "masked-autoencoder", "remote-sensing", "satellite", "timeseries"]
_DATES = ("2023-04-05", "2023-06-24", "2023-09-12", "2023-11-20")
_SENSOR = "sentinel-2-l2a"
_POINTS = 10  # of the loss, in the table

# The Hub's tasks (hf.co/tasks) for the kinds of `a2mae evaluate`.
_TASKS = {
    "classification": "image-classification",
    "few-shot": "image-classification",
    "segmentation": "image-segmentation",
    "reconstruction": "image-feature-extraction",
}


def model_card(
    folder: str | os.PathLike[str],
    report: str | os.PathLike[str] | None = None,
    *,
    repo_id: str | None = None,
    datasets: Sequence[str] = (),
    licence: str = "Apache-2.0",
    training_note: str = "",
) -> str:
    """Return the card of a checkpoint: metadata in YAML for the Hub, and text in Markdown.

    Args:
        folder: As `save_pretrained` of model and processor, or `a2mae pretrain`, wrote it, or the name or folder of a
            checkpoint of the package. What `training.json` tells goes into the card; where the shards are still where
            they were, so do the licences of their images.
        report: What `a2mae evaluate -o report.json` wrote. None leaves results out, and says so. But a checkpoint of
            the package takes them over from its card in the package, with all that this tells of the training, as long
            as it is the same training.
        repo_id: Id that the checkpoint will have on the Hub, for the examples. None writes them for
            `a2mae_hub.checkpoint(name)` where the package holds it, else for the folder's path.
        datasets: Ids on the Hub of the data sets that it was trained on.
        licence: Of the weights: an SPDX identifier, or another name.
        training_note: What else is to be said of the training; goes with a report.

    Returns:
        The text of README.md.

    Raises:
        FileNotFoundError: If the folder, its files or the report are not there.
        ValueError: If one of the files cannot be read, or the report says nothing of a model.
    """
    from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
    from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor

    name = _name_in_package(folder)
    folder = Path(folder) if name is None else embedded_checkpoint(name)
    settings, processor = _read(folder / "config.json"), _read(folder / "preprocessor_config.json")
    training = _read(folder / "training.json") if (folder / "training.json").is_file() else None
    tasks = _tasks(Path(report)) if report is not None else []
    sections = {
        "Training data": _training_data(training, datasets),
        "Training": _training(training, training_note),
        "Results": _results(tasks),
    }
    measured = _eval_results(tasks)
    if name is not None and training is not None and report is None and not training_note:
        published = _published(name, training)
        if published is not None:
            measured = published.data.get("eval_results") or []
            sections |= {title: _section(published, title) for title in sections}
            links = _links(datasets)
            sections["Training data"] += f"\n\nPublished as {links}." if links else ""
    encoder, decoder = count_parameters(folder)
    config, sensors = A2MAEConfig.from_dict(settings), A2MAEImageProcessor.from_dict(processor).sensors
    title = (repo_id or folder.absolute().name).split("/")[-1]
    released = config.coordinate_layout == "released"
    sensor = next((one for one in sensors if one.name == _SENSOR), sensors[0])
    usual = [band for band in sensor.bands if band.common_name in ("blue", "green", "red", "nir")]
    bands = sensor.bands[: config.num_channels] if config.spectral_projection == "identity" else usual or sensor.bands
    terms = hub_licence(licence)
    metadata = ModelCardData(
        license=terms["license"],
        license_name=terms.get("license_name"),
        license_link=terms.get("license_link"),
        library_name="transformers",
        pipeline_tag="image-feature-extraction",
        tags=_TAGS,
        datasets=list(datasets) or None,
        model_name=title,
        eval_results=measured or None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(_TEMPLATE),
        title=title,
        repo_id=repo_id,
        name=name,
        # As Python writes it, and as the command line takes it.
        source=f'a2mae_hub.checkpoint("{name}")' if name and not repo_id else json.dumps(repo_id or str(folder)),
        source_name=repo_id or name or str(folder),
        config=config,
        encoder_parameters=encoder,
        decoder_parameters=decoder,
        sensor=sensor.name,
        bands=[band.name for band in bands],
        low=f"{0.7 * min(band.mean for band in bands):.3g}",
        high=f"{1.3 * max(band.mean for band in bands):.3g}",
        gsd=f"{min(band.resolution for band in bands):g}",
        side=4 * config.patch_size,
        images=list(_DATES[: config.released_num_images if released else 2]),
        sensors=_sensors(sensors),
        training_data=sections["Training data"],
        training=sections["Training"],
        results=sections["Results"],
        licence=licence,
    )
    return str(card.content).rstrip() + "\n"


def count_parameters(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the numbers of parameters of the encoder and of decoder and projector in a folder's weights.

    The head of a task is neither.

    Raises:
        FileNotFoundError: If the folder has no weights.
        ValueError: If they cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no model.safetensors in this folder; name a folder of save_pretrained.")
    encoder = rest = 0
    for path in files:
        try:
            with safe_open(path, framework="np") as weights:
                sizes = {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot be read ({error}); save or download the checkpoint again.") from error
        heads = {name for name in sizes if name.startswith(("classifier.", "decode_head."))}
        outside = {name for name in sizes if name.startswith(("decoder.", "projector."))}
        rest += sum(sizes[name] for name in outside)
        encoder += sum(size for name, size in sizes.items() if name not in heads | outside)
    return encoder, rest


def _read(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a folder of save_pretrained, of model and processor.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error}); write it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: holds no JSON object; write it again.")
    return found


# ---------------------------------------------------------------------------------------------------------- the package


def _name_in_package(folder: str | os.PathLike[str]) -> str | None:
    """Return the name of the checkpoint of the package that a name or a folder stands for."""
    known = os.fspath(folder)
    for name in embedded():
        if (known == name and not os.path.isdir(known)) or Path(known).absolute() == embedded_checkpoint(name):
            return name
    return None


def _published(name: str, training: dict[str, Any]) -> ModelCard | None:
    """Return the card of a checkpoint in the package; None where it tells of another training than the folder."""
    path = _CARDS / f"{name}.md"
    if not path.is_file():
        return None
    card = ModelCard(path.read_text(encoding="utf-8"))
    return card if all(told in card.text for told in _course(training)) else None


def _section(card: ModelCard, title: str) -> str:
    """Return what stands under a heading of a card; results without the sentences of the template before them."""
    text = card.text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0].strip()
    return text[text.index("| task |") :] if title == "Results" and "| task |" in text else text


# -------------------------------------------------------------------------------------------------------------- results


def _tasks(path: Path) -> list[dict[str, Any]]:
    """Return the tasks of a report."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such report; `a2mae evaluate … -o {path.name}` writes one.")
    tasks = _read(path).get("tasks")
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "scores" in task for task in tasks):
        raise ValueError(f"{path}: is no report of `a2mae evaluate`; name the file that its --output wrote.")
    return tasks


def _eval_results(tasks: Iterable[dict[str, Any]]) -> list[EvalResult]:
    """Return the scores of the model as the Hub's metadata have them."""
    return [
        EvalResult(
            task_type=_TASKS.get(task["kind"], "image-feature-extraction"),
            task_name=task["kind"],
            dataset_type=re.sub(r"[^a-z0-9]+", "-", task["name"].lower()).strip("-"),
            dataset_name=task["name"],
            dataset_split=task.get("split"),
            metric_type=_metric(score),
            metric_name=score,
            metric_value=round(columns["model"], 4),
            verified=False,
        )
        for task in tasks
        for score, columns in task["scores"].items()
        if "model" in columns and not score.startswith("spread") and math.isfinite(columns["model"])
    ]


def _metric(score: str) -> str:
    """Return the Hub's id of a score."""
    name = score.split(",")[0].lower()
    return "accuracy" if "accuracy" in name else re.sub(r"[^a-z0-9]+", "_", name).strip("_")


def _results(tasks: Iterable[dict[str, Any]]) -> str:
    """Return the scores as tables: a row per task and score, a column per way to describe images."""
    rows = [(task["name"], score, columns) for task in tasks for score, columns in task["scores"].items()]
    tables = []
    for methods, group in groupby(rows, key=lambda row: tuple(row[2])):
        cells = [[name, score, *(f"{columns[each]:.3f}" for each in methods)] for name, score, columns in group]
        tables.append(_table(["task", "score", *methods], cells))
    return "\n\n".join(tables)


# ------------------------------------------------------------------------------------------------------------- training


def _training_data(training: dict[str, Any] | None, datasets: Sequence[str]) -> str:
    """Say which image sets the model has seen, and under which terms their images are."""
    links = _links(datasets)
    if training is None:
        return f"{links}." if links else "Not recorded with the weights."
    shards = {(entry["path"], entry["kind"]): entry for run in _runs(training) for entry in run["settings"]["shards"]}
    rows = []
    for path, group in groupby(shards.values(), key=lambda entry: entry["path"]):
        entries, licences = list(group), _licences(path)
        told = ", ".join(f"{name} ({count:,})" for name, count in licences.most_common()) or "see the data set"
        kinds = ", ".join(f"{entry['kind']} ({entry['sets']:,})" for entry in entries)
        rows.append([shown_name(path), f"{sum(entry['sets'] for entry in entries):,}", kinds, told])
    text = _table(["data set", "image sets", "kinds of places", "licences of the images"], rows)
    return text + (f"\n\nPublished as {links}." if links else "")


def _links(datasets: Sequence[str]) -> str:
    """Return data sets on the Hub as links."""
    return ", ".join(f"[{name}](https://huggingface.co/datasets/{name})" for name in datasets)


def shown_name(path: str) -> str:
    """Return what to call a data set or checkpoint in public: its id on the Hub, or the name of its folder."""
    is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not os.path.exists(path)
    return path if is_id or "://" in path else Path(path).absolute().name


def _licences(path: str) -> Counter[str]:
    """Count the licences of the images of a data set; none where its shards are not on this machine."""
    from a2mae_hub.stssd.shards import find_shards, open_shards

    licences: Counter[str] = Counter()
    if os.path.isdir(path):
        for _, shard in open_shards(find_shards(path)):
            images = shard.read(["images.list.element.licence"])["images"].to_pylist()
            licences.update(image["licence"] or "unknown" for of_set in images for image in of_set)
    return licences


def _training(training: dict[str, Any] | None, note: str) -> str:
    """Tell how the model was trained: what was run, how long it took, and how the loss went."""
    if training is None:
        return (
            "How these weights came about is not recorded with them (there is no `training.json`). They may be randomly"
            " initialised."
        )
    runs = _runs(training)
    parts = []
    for number, run in enumerate(runs, start=1):
        took, losses = _course(run)
        if run is training:
            took += (
                " Energy was not metered. `training.json` beside the weights holds all settings and the whole curve."
            )
            took += f"\n{note}" if note else ""
        start, output = (f"run-{number - 1}", f"run-{number}") if len(runs) > 1 else (None, "run")
        parts += [f"```bash\n{_command(run['settings'], output, start)}\n```", took, losses]
    return "\n\n".join(parts)


def _runs(training: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the runs that made the weights one after the other: a report holds that of the run it went on from."""
    return [*(_runs(training["before"]) if "before" in training else []), training]


def _course(training: dict[str, Any]) -> tuple[str, str]:
    """Return how long a training took and on what, as a sentence, and how the loss went, as a table."""
    settings, versions = training["settings"], training["versions"]
    hours = training["seconds"] / 3600
    took = f"{hours:.1f} hours" if hours >= 1 else f"{training['seconds'] / 60:.1f} minutes"
    processes = training["processes"]
    on = f"{processes} processes, {training['device']}" if processes > 1 else training["device"]
    with_what = ", ".join(f"{name} {version}" for name, version in versions.items())
    curve = training["curve"]
    chosen = sorted({round(index * (len(curve) - 1) / (_POINTS - 1)) for index in range(_POINTS)})
    points = [[f"{curve[at]['step']:,}", f"{curve[at]['loss']:.4f}"] for at in chosen]
    sentence = (
        f"{training['steps']:,} steps of {settings['batch_size']} image sets ({training['epochs']:.1f} epochs), seed"
        f" {settings['seed']}, in {took} on {on}, with {with_what}."
    )
    return sentence, _table(["step", "loss"], points)


def _command(settings: dict[str, Any], output: str, start: str | None) -> str:
    """Return the command that does a run again, and goes on from that of the folder `start` if there was one before."""
    from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
    from a2mae_hub.training.commands import SIZES

    words = ["a2mae", "pretrain", *dict.fromkeys(shown_name(entry["path"]) for entry in settings["shards"])]
    words += ["--output", output]
    differing: dict[str, dict[str, Any]] = {}
    for size in SIZES:
        preset = getattr(A2MAEConfig, size)()
        differing[size] = {
            name: value for name, value in settings["config"].items() if getattr(preset, name, None) != value
        }
    size = min(SIZES, key=lambda name: len(differing[name]))
    words += (
        ["--size", size] if settings["checkpoint"] is None else ["--from", start or shown_name(settings["checkpoint"])]
    )
    if settings["checkpoint"] is None:
        for name, value in differing[size].items():
            words += ["--set", f"{name}={json.dumps(value)}"]
    for name in ("steps", "batch_size", "learning_rate", "warmup_steps", "seed", "workers"):
        words += [f"--{name.replace('_', '-')}", f"{settings[name]}"]
    return shlex.join(words)


# ---------------------------------------------------------------------------------------------------------------- parts


def _sensors(sensors: Sequence[Any]) -> str:
    """Return the table of sensors."""
    return _table(
        ["sensor", "unit", "bands"],
        [[sensor.name, sensor.unit, " ".join(band.name for band in sensor.bands)] for sensor in sensors],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [list(head), ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


__all__ = ["count_parameters", "hub_licence", "model_card", "shown_name"]
