"""Fine-tuning on labelled image sets: `transformers.Trainer`, told what a task needs.

Files → image sets → processor → batch → model → scores, on one way for all tasks and modes: "full" trains all weights,
"lora" small matrices beside those of attention and the head, "frozen" the head alone, on features computed once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from transformers import EarlyStoppingCallback, TrainingArguments, set_seed

from a2mae_hub import __version__
from a2mae_hub.checkpoints import DEFAULT
from a2mae_hub.images import ImageSet
from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.tasks_a2mae import A2MAEForImageClassification, A2MAETaskModel
from a2mae_hub.prediction import FINETUNING, differing_inputs, inputs_of, known_inputs
from a2mae_hub.whole_files import write_atomically

from .callbacks import SeedEveryStep, known_reporters
from .finetuned_card import write_card
from .frozen import EncodedMaps, EncodedSets, HeadOnFeatures, encode, whole_batch
from .label_files import CLASSIFICATION, REGRESSION
from .labelled import LabelledData, LabelledSets
from .metrics import leading_score
from .pretrain import config_fields, told_by_worker
from .processes import check_divisible, num_processes, rounded_up, share_batch
from .task_batches import TaskCollator
from .task_models import check_head, make_model, rescale, with_adapters
from .task_trainer import Mixup, TaskTrainer

FULL, FROZEN, LORA = "full", "frozen", "lora"
MODES = (FULL, FROZEN, LORA)
# Learning rate, epochs and sets of a step, where they are left out. Epochs of a frozen encoder cost little. A map has
# thousands of labels, and tens of maps that learn in many steps of two learn more than in a few of sixteen.
_DEFAULTS = {FULL: (1e-3, 20, 16), LORA: (2e-3, 20, 16), FROZEN: (5e-3, 100, 64)}
_DEFAULTS_OF_MAPS = {FULL: (1e-3, 30, 2), LORA: (2e-3, 30, 2), FROZEN: (2e-3, 15, 2)}
_RATE_OF_MAP_HEADS = 2.0  # Over that of all weights: a map's head is new, and as deep as a small encoder.
_LAYER_DECAY = 0.75  # as in MAE (He et al. 2022, table 9) for its smaller models, which have 12 layers
_LAYERS_TO_SPARE = 12
_WEIGHT_DECAY = 0.05
_MAX_GRADIENT_NORM = 1.0
_EXAMPLES = 32  # that tell of which sensors and bands the images are
_SAMPLED_SIDE = 64  # pixels, about, of an image that tell it from others


def finetune(
    data: LabelledData,
    output: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    config: A2MAEConfig | None = None,
    mode: str = FULL,
    head: str | None = None,
    size: int | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    head_learning_rate: float | None = None,
    layer_decay: float | None = None,
    class_weights: str | Sequence[float] | None = None,
    mixup: float = 0.0,
    patience: int | None = None,
    augment: bool = True,
    side: int = 16,
    seed: int = 0,
    workers: int = 0,
    name: str | None = None,
    report_to: str = "none",
) -> dict[str, Any]:
    """Fine-tune a checkpoint on a task, or go on with a run that was stopped.

    AdamW with weight decay 0.05 on matrices, gradients clipped at norm 1, the learning rate warmed up over a twentieth
    of the steps and lowered along a cosine; bfloat16 where a CUDA device has it. After every epoch the validation part
    is judged, and what did best there, at last where several did, is kept: accuracy of classes, mean average precision
    of several labels a set, root mean squared error of values, mean IoU of a segmentation, F1 of change. That is saved,
    and then judged on the test part.

    Args:
        data: As `read_labelled` or `from_dataset` returns it.
        output: Folder for the model, which `from_pretrained` and `a2mae push` take as it is: weights, configuration,
            processor, card (`README.md`), `finetuning.json` and `results.json`; and for checkpoints.
        checkpoint: Folder, name or Hub id of what to begin with; None takes a2mae-nano, or random weights if `config`
            is given.
        config: Of a model to begin with random weights, or those of `checkpoint`.
        mode: "full", "frozen" or "lora".
        head: Of maps: "linear" or "fpn" of a segmentation, "difference" or "attention" of change; None leaves that to
            the configuration.
        size: Of classification: rows and columns that every image is resampled to, and will be in prediction.
        epochs: Passes over the training part; None takes 20 (30 of maps), and 100 (15) of a frozen encoder.
        batch_size: Image sets of a step, all processes together; None takes 16, 64 of a frozen encoder, and 2 of maps,
            or the next multiple of the number of processes.
        learning_rate: The highest; None takes 1e-3 (full), 2e-3 (lora, and frozen maps) or 5e-3 (frozen).
        head_learning_rate: The highest of the head, in full and lora mode; None takes `learning_rate`, and in full mode
            twice that of maps.
        layer_decay: In full mode, what the learning rate of a layer is multiplied by to have that of the layer below;
            None takes 0.75 of an encoder with 12 layers or more, and 1 of a smaller one.
        class_weights: "balanced", or one number per class.
        mixup: Of classification: α of Beta(α, α), by which what the encoder says of two sets is mixed, and the losses
            of their labels (Zhang et al. 2018, Verma et al. 2019; see `Mixup`); 0 mixes nothing.
        patience: Epochs without a better score after which the training ends; None goes through with it.
        augment: Turn and mirror image sets, and cut maps out of larger images. Of no effect on a frozen encoder.
        side: Patches along a side of what is cut out at most.
        seed: Of all that is random.
        workers: Processes that read and prepare batches; 0 prepares them in between.
        name: Of the data, for the card; None takes that of the output folder.
        report_to: Where the Trainer reports to besides ("tensorboard", "wandb"), or "none".

    Returns:
        What `finetuning.json` holds: settings, classes, inputs, scores of the validation part, test_scores of the test
        part (None without one), best_epoch, curve (loss of training and scores of validation by epoch), seconds (since
        the run was begun, or last resumed), is_resumed, trained_parameters, device, versions and notes (what of the
        images the checkpoint did not know).

    Raises:
        FileNotFoundError: If the checkpoint is not there.
        ImportError: If peft is not installed and asked for.
        ValueError: If an argument is out of range, the output folder holds another run, an image cannot be read, or the
            loss becomes NaN.
    """
    output = Path(output)
    is_map = data.task != CLASSIFICATION
    usual_rate, usual_epochs, usual_sets = (_DEFAULTS_OF_MAPS if is_map else _DEFAULTS).get(mode, _DEFAULTS[FULL])
    learning_rate = usual_rate if learning_rate is None else learning_rate
    if is_map and mode == FULL and head_learning_rate is None:
        head_learning_rate = _RATE_OF_MAP_HEADS * learning_rate
    settings: dict[str, Any] = {
        "task": data.task,
        "problem_type": data.problem_type,
        "mode": mode,
        "checkpoint": _called(checkpoint, config),
        "head": head,
        "size": size,
        "learning_rate": learning_rate,
        "epochs": usual_epochs if epochs is None else epochs,
        "batch_size": rounded_up(usual_sets) if batch_size is None else batch_size,
        "head_learning_rate": head_learning_rate,
        "layer_decay": layer_decay if mode == FULL else None,
        "weight_decay": _WEIGHT_DECAY,
        "class_weights": class_weights
        if class_weights is None or isinstance(class_weights, str)
        else list(class_weights),
        # None where it is off, as in folders of versions that had none.
        "mixup": mixup or None,
        "patience": patience,
        "augment": augment and mode != FROZEN,
        "side": side if is_map else None,
        "seed": seed,
        "workers": workers,
        "train_sets": len(data.train),
        "validation_sets": len(data.validation),
        "test_sets": len(data.test) if data.test is not None else None,
        "data": _fingerprint(data),
        "name": output.absolute().name if name is None else name,
    }
    _check(settings, output)
    check_head(data.task, head)
    set_seed(seed)
    model, processor, notes = make_model(data, checkpoint, config, head, size, settings["class_weights"])
    if mode == FULL and layer_decay is None:
        settings["layer_decay"] = _LAYER_DECAY if model.config.num_hidden_layers >= _LAYERS_TO_SPARE else 1.0
    settings["config"] = {field: getattr(model.config, field) for field in config_fields()}
    finished = _begin(output, settings)
    if finished is not None:
        return finished
    inputs = _inputs(data.train)
    tuned = known_inputs(settings["checkpoint"])
    if tuned:
        notes += differing_inputs(tuned, inputs)
    elif settings["checkpoint"] is not None:
        of_sensors = {sensor.name: [band.name for band in sensor.bands] for sensor in processor.sensors}
        notes += differing_inputs(of_sensors, inputs, "knows")
    notes += [
        f"In {name}: {note}"
        for name, part in data.parts().items()
        if name != "train"
        for note in differing_inputs(inputs, _inputs(part))
    ]
    values = None
    if data.problem_type == REGRESSION:
        # Learning rates suit values around 1, whatever their unit.
        data, *values = data.standardised()
    augmented = TaskCollator(processor, augment=settings["augment"], side=side, seed=seed)
    collators = augmented, TaskCollator(processor)
    arguments = _arguments(output, settings, data, report_to)
    trainer = _trainer(data, model, processor, collators, arguments, settings, values)
    stopped = _last_checkpoint(output)
    started = time.perf_counter()
    with _sentences_of_workers():
        trainer.train(resume_from_checkpoint=stopped)
    seconds = time.perf_counter() - started
    trained = cast(torch.nn.Module, trainer.model)
    trained_parameters = sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    history = list(trainer.state.log_history)
    leading = f"eval_{leading_score(data.task, data.problem_type)[0]}"
    best = max((entry["epoch"] for entry in history if entry.get(leading) == trainer.state.best_metric), default=None)
    test_scores = None
    try:
        with _sentences_of_workers():
            scores = _scores(trainer.evaluate(), "eval_")
            if data.test is not None:
                tested = _prepared(model, data.test, collators[1], settings)
                test_scores = _scores(trainer.evaluate(tested, metric_key_prefix="test"), "test_")
    finally:
        # Even where an image of the test part cannot be read the training was not in vain.
        if mode == LORA:
            model = trained.merge_and_unload()  # type: ignore[operator]
        if values is not None:
            rescale(model, *values)
        if trainer.is_world_process_zero():
            model.eval().save_pretrained(output)
            processor.save_pretrained(output)
    report = {
        "settings": settings,
        "classes": data.classes,
        "inputs": inputs,
        "scores": scores,
        "test_scores": test_scores,
        "best_epoch": best,
        "curve": [entry for entry in history if "loss" in entry or leading in entry],
        "seconds": seconds,
        "is_resumed": stopped is not None,
        "trained_parameters": trained_parameters,
        "device": torch.cuda.get_device_name() if trainer.args.device.type == "cuda" else trainer.args.device.type,
        "versions": {"a2mae-hub": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "notes": notes,
    }
    if trainer.is_world_process_zero():
        write_card(output, report)
        write_atomically(output / FINETUNING, json.dumps(report, indent=1))
    return report


@contextmanager
def _sentences_of_workers() -> Iterator[None]:
    """Raise what a process that reads images found wrong as the sentence it is, without the traceback in between."""
    try:
        yield
    except ValueError as error:
        sentence = told_by_worker(error)
        if sentence is None:
            raise
        raise ValueError(sentence) from None


def _scores(found: Mapping[str, float], prefix: str) -> dict[str, float]:
    """Return what a Trainer says of a part, but for loss and times."""
    others = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    scores = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    return {key: value for key, value in scores.items() if key not in others}


def _prepared(
    model: A2MAETaskModel, sets: LabelledSets, collator: TaskCollator, settings: Mapping[str, Any]
) -> torch.utils.data.Dataset:
    """Return a part as the Trainer takes it: maps by size, and of a frozen encoder what that says, computed once."""
    if settings["task"] != CLASSIFICATION:
        sets = sets.by_size()  # Maps of a batch are padded to the largest.
    if settings["mode"] != FROZEN:
        return sets
    kept = EncodedSets if settings["task"] == CLASSIFICATION else EncodedMaps
    encoded = encode(model, sets, collator, settings["batch_size"] // num_processes(), settings["workers"])
    return kept(encoded, sets.names)


def _trainer(
    data: LabelledData,
    model: A2MAETaskModel,
    processor: A2MAEImageProcessor,
    collators: tuple[Any, Any],
    args: TrainingArguments,
    settings: Mapping[str, Any],
    values: Any,
) -> TaskTrainer:
    """Return the trainer of a mode: of the model, of the model with adapters, or of its head on cached features."""
    trained: torch.nn.Module = model
    is_map, is_frozen = data.task != CLASSIFICATION, settings["mode"] == FROZEN
    if is_map and is_frozen:
        # What is in a batch is the same in every epoch: let chance mix those of a size.
        data = replace(data, train=data.train.by_size(settings["seed"]))
    if settings["mode"] == LORA:
        with warnings.catch_warnings():
            # peft asks by a name that transformers gives up.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            trained = with_adapters(model)
    elif is_frozen:
        model.to(args.device)
        if is_map:
            args.per_device_train_batch_size = args.per_device_eval_batch_size = 1
        trained = HeadOnFeatures(model)
    callbacks: list[Any] = [SeedEveryStep(settings["seed"])]
    if settings["patience"] is not None:
        callbacks.append(EarlyStoppingCallback(settings["patience"]))
    mixup = None
    if settings["mixup"] is not None:
        mixup = Mixup(cast(A2MAEForImageClassification, model), settings["mixup"], settings["seed"])
    validation = _prepared(model, data.validation, collators[1], settings)
    train: torch.utils.data.Dataset = data.train
    if is_frozen:
        train, collators = _prepared(model, data.train, collators[1], settings), (whole_batch, whole_batch)
    with known_reporters(args):
        return TaskTrainer(
            trained,
            args,
            train_dataset=train,
            eval_dataset=validation,
            callbacks=callbacks,
            processing_class=processor,
            collators=collators,
            data=data,
            layer_decay=settings["layer_decay"],
            values=values,
            head_learning_rate=settings["head_learning_rate"],
            mixup=mixup,
        )


def _check(settings: Mapping[str, Any], output: Path) -> None:
    """Raise ValueError where an argument is out of range."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; name a folder to write to.")
    if settings["mode"] not in MODES:
        raise ValueError(f"mode={settings['mode']!r} must be one of {', '.join(MODES)}.")
    for name, least in (("epochs", 1), ("batch_size", 1), ("patience", 1), ("workers", 0), ("side", 1)):
        if settings[name] is not None and settings[name] < least:
            raise ValueError(f"{name}={settings[name]} must be at least {least}.")
    for name in ("learning_rate", "head_learning_rate"):
        if settings[name] is not None and not 0 < settings[name] < float("inf"):
            raise ValueError(f"{name}={settings[name]} must be greater than 0.")
    if settings["head_learning_rate"] is not None and settings["mode"] == FROZEN:
        raise ValueError(
            f"head_learning_rate={settings['head_learning_rate']}: in frozen mode the head alone is trained; give"
            " learning_rate."
        )
    if settings["layer_decay"] is not None and not 0 < settings["layer_decay"] <= 1:
        raise ValueError(f"layer_decay={settings['layer_decay']} must be greater than 0 and at most 1.")
    if settings["size"] is not None and settings["task"] != CLASSIFICATION:
        raise ValueError(f"size={settings['size']}: maps are made on the pixels that images have; leave it out.")
    if settings["mixup"] is not None:
        told = f"mixup={settings['mixup']}"
        if settings["task"] != CLASSIFICATION:
            raise ValueError(f"{told}: pixels of two places cannot be mixed into a map; leave it out.")
        if not 0 < settings["mixup"] < float("inf"):
            raise ValueError(f"{told} must be 0, for none, or greater.")
        if settings["batch_size"] < 2 * num_processes():
            raise ValueError(
                f"{told}: a lone set has none to be mixed with; give a larger batch_size, or leave it out."
            )
    weights = settings["class_weights"]
    if isinstance(weights, str) and weights != "balanced":
        raise ValueError(f"class_weights={weights!r} must be 'balanced' or one number per class.")
    if isinstance(weights, list):
        if settings["problem_type"] == REGRESSION:
            raise ValueError(f"class_weights={weights}: a regression has no classes; leave it out.")
        if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
            raise ValueError(f"class_weights={weights} must be finite numbers of at least 0, and not all be 0.")
    check_divisible(settings["batch_size"])


def _begin(output: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Write down the settings of a new run; or see that they are those of the run in the folder, and return its end."""
    path = output / FINETUNING
    if not path.is_file():
        if (output / "model.safetensors").exists() or any(output.glob("checkpoint-*")):
            raise ValueError(f"{output}: holds a model that was not fine-tuned here; name another folder.")
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"settings": settings}, indent=1))
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: is no JSON ({error}); remove its folder, or name another one.") from error
    found.setdefault("test_scores", None)  # of folders from before there was a test part
    ours = json.loads(json.dumps(settings))
    for key, value in ours.items():
        before = found["settings"].get(key)
        if before != value:
            in_words = {"data": "other images, bands or labels", "config": "another configuration"}
            told = in_words.get(key, f"{key}={before!r}")
            raise ValueError(
                f"{output}: holds a run with {told}; give what it was begun with to go on with it, or another folder."
            )
    return found if "scores" in found else None


def _last_checkpoint(output: Path) -> str | None:
    """Return the last whole checkpoint of a folder; what the Trainer writes last to each is its state."""
    found = {}
    for path in output.glob("checkpoint-*/trainer_state.json"):
        try:
            found[int(json.loads(path.read_text(encoding="utf-8"))["global_step"])] = os.fspath(path.parent)
        except ValueError:
            continue
    return found[max(found)] if found else None


def _arguments(output: Path, settings: Mapping[str, Any], data: LabelledData, report_to: str) -> TrainingArguments:
    """Return what the Trainer is told."""
    has_cuda = torch.cuda.is_available()
    score, greater = leading_score(data.task, data.problem_type)
    steps = -(-len(data.train) // settings["batch_size"]) * settings["epochs"]
    arguments = TrainingArguments(
        str(output),
        num_train_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        weight_decay=settings["weight_decay"],
        max_grad_norm=_MAX_GRADIENT_NORM,
        use_cpu=not torch.accelerator.is_available(),
        bf16=has_cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        seed=settings["seed"],
        dataloader_num_workers=0 if settings["mode"] == FROZEN else settings["workers"],
        dataloader_pin_memory=has_cuda,
        remove_unused_columns=False,
        label_names=["labels"],
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{score}",
        greater_is_better=greater,
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,
        report_to=report_to,
        disable_tqdm=not sys.stderr.isatty(),
    )
    share_batch(arguments, settings["batch_size"], "finetune")
    return arguments


def _called(checkpoint: str | os.PathLike[str] | None, config: A2MAEConfig | None) -> str | None:
    """Return what to call the weights to begin with, None where they are random."""
    return os.fspath(checkpoint) if checkpoint is not None else DEFAULT if config is None else None


def _fingerprint(data: LabelledData) -> str:
    """Return what tells sets and labels from others, wherever the files lie: names, labels, and some of the pixels."""
    digest = hashlib.sha256(json.dumps(data.classes).encode())
    for part in data.parts().values():
        for name, label in zip(part.names, part.labels, strict=True):
            digest.update(os.path.basename(name).encode() + label.tobytes())
    for image_set in _examples(data.train):
        for image in image_set:
            told = (image.sensor, *image.bands, image.nodata, image.scale, image.offset)
            down, right = (max(1, side // _SAMPLED_SIDE) for side in image.pixels.shape[1:])
            digest.update(repr(told).encode() + image.pixels[:, ::down, ::right].tobytes())
    return digest.hexdigest()[:16]


def _inputs(sets: LabelledSets) -> dict[str, list[str]]:
    """Return the bands of each sensor that some of the sets have."""
    return inputs_of(_examples(sets))


def _examples(sets: LabelledSets) -> Iterator[ImageSet]:
    """Yield some of the sets, evenly spread."""
    count = len(sets)
    for place in sorted({round(at) for at in np.linspace(0, count - 1, min(count, _EXAMPLES))}):
        yield sets[place].image_set
