"""The commands `a2mae finetune` and `a2mae predict`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from a2mae_hub.image_options import (
    Acquired,
    BandNames,
    Bounds,
    Device,
    Nodata,
    Offset,
    Overlap,
    PrecisionName,
    Scale,
    SensorName,
    WindowSize,
    box_of,
    declarations,
    read,
    resumable,
    show_failures,
)


def finetune(
    task: Annotated[str, typer.Argument(help="classification, segmentation or change.", show_default=False)],
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder (docs/finetuning.md), CSV, GeoJSON or shards; with train, validation and test or not.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model; named again, goes on.", show_default=False)
    ],
    start: Annotated[
        str | None,
        typer.Option("--from", help="Checkpoint to begin with: folder, name or Hub id; left out, a2mae-nano."),
    ] = None,
    mode: Annotated[str, typer.Option(help="full, frozen (the head alone) or lora.")] = "full",
    head: Annotated[
        str | None, typer.Option(help="Of maps: linear or fpn; difference or attention. Left out, as configured.")
    ] = None,
    images: Annotated[str | None, typer.Option(help="Pattern of images; left out, 'images/*'.")] = None,
    before: Annotated[str | None, typer.Option(help="Pattern of images before; left out, 'before/*'.")] = None,
    after: Annotated[str | None, typer.Option(help="Pattern of images after; left out, 'after/*'.")] = None,
    masks: Annotated[str | None, typer.Option(help="Pattern of masks; left out, 'masks/*'.")] = None,
    label_band: Annotated[int, typer.Option(help="Band of the masks, counted from 1.")] = 1,
    ignore: Annotated[str | None, typer.Option(help="Numbers of masks that mean no label, comma separated.")] = None,
    classes: Annotated[str | None, typer.Option(help="All classes: a,b,c; of masks also 0=land,1=water.")] = None,
    validation: Annotated[
        float, typer.Option(help="Share kept for validation, where the data has no such part.")
    ] = 0.2,
    sensor: SensorName = None,
    bands: BandNames = None,
    scale: Scale = None,
    offset: Offset = None,
    nodata: Nodata = None,
    size: Annotated[int | None, typer.Option(help="Of classification: resample images to it.", min=1)] = None,
    epochs: Annotated[int | None, typer.Option(help="Left out, 20 (maps 30); of a frozen encoder 100 (15).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Image sets of a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Highest; left out, what suits the mode.")] = None,
    head_learning_rate: Annotated[
        float | None,
        typer.Option(help="Of the head; left out, the learning rate; for maps in mode full, twice that."),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(
            help="Mode full: learning rate of a layer over that of the next; left out, 0.75 from 12 layers on, else 1."
        ),
    ] = None,
    class_weights: Annotated[str | None, typer.Option(help="balanced, or numbers, comma separated.")] = None,
    mixup: Annotated[
        float, typer.Option(help="Of classification: mix sets by Beta(ALPHA, ALPHA); 0 mixes none.", metavar="ALPHA")
    ] = 0.0,
    patience: Annotated[int | None, typer.Option(help="Epochs without a better score before the end.")] = None,
    augment: Annotated[bool, typer.Option(help="Turn, mirror and cut image sets.")] = True,
    side: Annotated[int, typer.Option(help="Patches along a side of what is cut out of images for maps.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random, the split included.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that read and prepare batches.")] = 0,
    report_to: Annotated[str, typer.Option(help="tensorboard, wandb, … or none.")] = "none",
) -> None:
    """Fine-tune a checkpoint on labelled images. Run again, it goes on where it was stopped."""
    from .labelled import read_labelled

    weights: Any = class_weights
    if class_weights not in (None, "balanced"):
        weights = _numbers("class-weights", class_weights)
    labelled = read_labelled(
        task,
        data,
        images=images,
        before=before,
        after=after,
        masks=masks,
        label_band=label_band,
        ignore=_numbers("ignore", ignore) or (),
        classes=_classes(classes),
        validation=validation,
        seed=seed,
        sensor=sensor,
        bands=_texts(bands),
        scale=scale,
        offset=offset,
        nodata=nodata,
    )
    # transformers takes seconds to import its Trainer.
    from .finetune import finetune as run

    try:
        report = run(
            labelled,
            output,
            checkpoint=start,
            mode=mode,
            head=head,
            size=size,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            head_learning_rate=head_learning_rate,
            layer_decay=layer_decay,
            class_weights=weights,
            mixup=mixup,
            patience=patience,
            augment=augment,
            side=side,
            seed=seed,
            workers=workers,
            name=data.absolute().stem,
            report_to=report_to,
        )
    except KeyboardInterrupt:
        typer.echo(f"{output}: stopped; the same command goes on from the last epoch.", err=True)
        raise typer.Exit(130) from None
    for note in report["notes"]:
        typer.echo(f"a2mae: {note}", err=True)
    one, several = ("value", "values") if labelled.problem_type == "regression" else ("class", "classes")
    count = len(report["classes"])
    told = f"{output}: {count} {one if count == 1 else several}, {len(labelled.train)} image sets trained on"
    for part, scores in (("validation", report["scores"]), ("test", report["test_scores"])):
        if scores is not None:
            named = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())
            told += f"; {named} on {len(labelled.parts()[part])} for {part}"
    typer.echo(f"{told}.")


def predict(
    checkpoint: Annotated[str, typer.Argument(help="Folder or Hub id of a fine-tuned checkpoint.", show_default=False)],
    scenes: Annotated[
        list[str],
        typer.Argument(
            help="Of a map: rasters of one place. Of classification: rasters, or folders of rasters of one place each.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="map.tif; scores.csv of classification.")],
    sensor: SensorName = None,
    bands: BandNames = None,
    acquired: Acquired = None,
    bounds: Bounds = None,
    scale: Scale = None,
    offset: Offset = None,
    nodata: Nodata = None,
    anchor: Annotated[int, typer.Option(help="Which image the map lies on, counted from 0.")] = 0,
    window: WindowSize = None,
    overlap: Overlap = None,
    precision: PrecisionName = "float32",
    device: Device = None,
) -> None:
    """Write the map of a segmentation or of change of a scene of any size, or the scores of a classification."""
    from a2mae_hub import inference, prediction
    from a2mae_hub.scene import outputs, predict_scene
    from a2mae_hub.scene_files import open_scenes

    inference.check_output(output, (*outputs.MAP_SUFFIXES, ".csv"))
    loaded = prediction.load_task_checkpoint(checkpoint)
    if output.suffix.lower() != ".csv":
        declared = declarations(sensor, bands, acquired, scale, offset, nodata)
        images = open_scenes(scenes, **declared)
        _tell(prediction.differing_inputs(loaded.inputs, prediction.inputs_of_scenes(images)))
        with resumable(output):
            report = predict_scene(
                loaded,
                scenes,
                output,
                bounds=box_of(bounds),
                anchor=anchor,
                window=window,
                overlap=overlap,
                precision=precision,
                device=device,
                progress=sys.stderr.isatty(),
                **declared,
            )
        show_failures(report.failures)
        typer.echo(
            f"{output}: {len(loaded.classes)} classes on {report.rows} × {report.columns} pixels, from {report.images}"
            " images."
        )
        return
    if window or overlap or precision != "float32":
        raise ValueError(f"{output}: scores are made in one pass, without --window, --overlap and --precision.")
    loaded.model.to(inference.usable_device(device))
    answers, notes = [], []
    for scene in scenes:
        image_set = read([scene], sensor, bands, acquired, bounds, scale, offset, nodata, anchor)
        notes += prediction.differing_inputs(loaded.inputs, prediction.inputs_of([image_set]))
        answers.append(prediction.predict_scores(loaded, image_set))
    _tell(notes)
    prediction.save_scores(loaded, scenes, answers, output)
    typer.echo(f"{output}: {len(scenes)} scenes, {len(loaded.classes)} columns of scores.")


def _tell(notes: Sequence[str]) -> None:
    """Print notes on the inputs, each once."""
    for note in dict.fromkeys(notes):
        typer.echo(f"a2mae: {note}", err=True)


def _texts(option: str | None) -> list[str] | None:
    """Return the parts of an option that commas separate."""
    return None if option is None else [part.strip() for part in option.split(",")]


def _numbers(name: str, option: str | None) -> list[float] | None:
    """Return the numbers of an option that commas separate."""
    try:
        return None if option is None else [float(part) for part in option.split(",")]
    except ValueError:
        raise ValueError(f"--{name} {option}: give numbers, separated by commas.") from None


def _classes(option: str | None) -> list[str] | dict[int, str] | None:
    """Return the classes of an option: a list, or names by number where it has them."""
    parts = _texts(option)
    if parts is None or not any("=" in part for part in parts):
        return parts
    pairs = [part.partition("=") for part in parts]
    try:
        names = {int(number): name.strip() for number, _, name in pairs}
    except ValueError:
        raise ValueError(f"--classes {option}: give names, a,b,c, or numbers and names, 0=land,1=water.") from None
    if len(names) < len(pairs):
        raise ValueError(f"--classes {option}: a number is given twice; give each class one name.")
    return names
