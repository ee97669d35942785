"""Pre-training on the image sets of shards: `transformers.Trainer`, fed in an order that is known in advance.

The order of the sets is a function of the shards, the seed, the global batch size and the number of workers. Every
batch is of one kind of sets. Batch k of all processes together comes from worker k modulo their number, and every
worker goes through a share of its own of each epoch. So the place of a step in the data follows from the number of the
step: a checkpoint keeps no state of the data, a resumed run opens the shards where the killed one would have read next,
and any number of processes sees the same sets in the same steps.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import skip_first_batches
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed

from a2mae_hub import __version__, inference
from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.modeling_a2mae import A2MAEForPreTraining
from a2mae_hub.stssd.schema import StoredSet, from_row
from a2mae_hub.stssd.shards import find_shards, open_shards
from a2mae_hub.stssd.stream import ImageSetStream, load
from a2mae_hub.whole_files import write_atomically

from .augmentation import PretrainingCollator
from .callbacks import ReconstructionFigures, SeedEveryStep, StopAtLostLoss, known_reporters
from .order import EndlessSets
from .processes import check_divisible, share_batch

# As in MAE (He et al. 2022, table 8).
_ADAM_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.05
_MAX_GRADIENT_NORM = 1.0

_CANDIDATES = 100  # for the figures of reconstructions

_SETTINGS, _REPORT = "pretraining.json", "training.json"


class _SetTrainer(Trainer):
    """`transformers.Trainer` that begins anywhere in the data and counts sets."""

    def __init__(
        self, model: A2MAEForPreTraining, arguments: TrainingArguments, sets: EndlessSets, **kwargs: Any
    ) -> None:
        super().__init__(model, arguments, train_dataset=sets, **kwargs)
        self.sets = sets
        self._last_log = (sets.first_step, time.perf_counter())

    def get_train_dataloader(self) -> DataLoader:
        """Return the data loader, its first batch that of the first step."""
        return skip_first_batches(super().get_train_dataloader(), self.sets.num_skipped)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Return the names of the matrices: biases, norms, class and mask token do not decay."""
        return [name for name, weight in model.named_parameters() if sum(side > 1 for side in weight.shape) > 1]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the speed since the last log, the seconds of training, killed runs included, and the epoch."""
        step, now = self.state.global_step, time.perf_counter()
        if "loss" in logs:
            before, then = self._last_log
            logs["sets_per_second"] = (step - before) * self.sets.batch_size / (now - then)
            logs["seconds"] = now - then + max((entry.get("seconds", 0) for entry in self.state.log_history), default=0)
            self._last_log = (step, now)
        # To the Trainer a stream without end is one epoch.
        self.state.epoch = step * self.sets.batch_size / self.sets.num_sets
        super().log(logs, start_time)


def pretrain(
    shards: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    config: A2MAEConfig | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    steps: int = 10_000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    warmup_steps: int | None = None,
    seed: int = 0,
    workers: int = 2,
    save_steps: int = 500,
    report_to: str = "none",
) -> dict[str, Any]:
    """Pre-train a masked autoencoder, or go on with a run that was stopped or killed.

    AdamW with β = (0.9, 0.95) and weight decay 0.05 on matrices, gradients clipped at norm 1, learning rate warmed up
    linearly and then lowered along a cosine to 0; bfloat16 where a CUDA device has it. The losses of a run that was
    killed and started again with the same arguments are those of one that was not.

    Under `torchrun` or `accelerate launch` every process takes its part of each batch.

    Args:
        shards: Folders or Hub ids of image sets, as `a2mae_hub.stssd.load` takes them; of each the split "train", all
            sets where there are no splits. Every batch is of one kind of one of them (see `EndlessSets`).
        output: Folder for the model (`config.json`, `model.safetensors`, `preprocessor_config.json`), the report
            (`training.json`), figures of reconstructions (`figures/`) and checkpoints (`checkpoint-N/`, the last two).
        config: Of the model; None takes that of `checkpoint`.
        checkpoint: Folder or Hub id of a model whose weights to begin with; None draws them.
        steps: Optimizer steps.
        batch_size: Image sets of a step, all processes together.
        learning_rate: The highest.
        warmup_steps: Steps of the warm-up; None takes a twentieth of all.
        seed: Decides first weights, order, masks and all else that is random.
        workers: Processes, per training process, that read and prepare batches; 0 prepares them in between.
        save_steps: Steps between checkpoints.
        report_to: Where the Trainer reports to besides ("tensorboard", "wandb"), or "none".

    Returns:
        What `training.json` holds: settings (with sizes and fingerprints of the shards and the configuration),
        parameters, encoder_parameters, steps, sets_seen, epochs, seconds, processes, device, versions and curve (step,
        loss, learning_rate and sets_per_second of every log); before, where `checkpoint` has one, is its own report.

    Raises:
        FileNotFoundError: If shards or checkpoint are not there.
        ValueError: If an argument is out of range; if the output folder holds another run, with what differs; if the
            data is damaged or the loss becomes NaN.
    """
    output = Path(output)
    _check_arguments(shards, output, config, checkpoint, steps, batch_size, learning_rate, workers, save_steps)
    warmup_steps = steps // 20 if warmup_steps is None else warmup_steps
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be at least 0 and less than steps={steps}.")
    streams = {(os.fspath(path), kind): stream for path in shards for kind, stream in streams_by_kind(path, seed)}
    set_seed(seed)
    model, processor = _model(config, checkpoint)
    collator = PretrainingCollator(processor, views=2 if model.config.contrastive_weight else 1)
    data = [
        {"path": path, "kind": kind, "sets": stream.num_sets, "fingerprint": _fingerprint(stream)}
        for (path, kind), stream in streams.items()
    ]
    settings: dict[str, Any] = {
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": warmup_steps,
        "weight_decay": _WEIGHT_DECAY,
        "seed": seed,
        "workers": workers,
        "checkpoint": None if checkpoint is None else os.fspath(checkpoint),
        "images": collator.images,
        "side": collator.side,
        "views": collator.views,
        "shards": data,
        "config": {name: getattr(model.config, name) for name in config_fields()},
    }
    _begin(output, settings)
    if (output / _REPORT).is_file():
        return json.loads((output / _REPORT).read_text(encoding="utf-8"))

    last = last_checkpoint(output)
    first_step = 0 if last is None else _step_of(last)
    sets = EndlessSets(list(streams.values()), batch_size, model.config.patch_size, workers, first_step)
    arguments = _training_arguments(output, settings, save_steps, report_to)
    figures = ReconstructionFigures(output / "figures", _example(shards[0], processor), processor)
    with known_reporters(arguments):
        trainer = _SetTrainer(
            model,
            arguments,
            sets,
            data_collator=collator,
            processing_class=processor,
            callbacks=[SeedEveryStep(seed), StopAtLostLoss(), figures],
        )
    if last is None or first_step < steps:
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except ValueError as error:
            sentence = told_by_worker(error)
            if sentence is None:
                raise
            raise ValueError(sentence) from None
        history = trainer.state.log_history
    else:
        # Killed between the last checkpoint and the report.
        model = A2MAEForPreTraining.from_pretrained(last)
        history = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    curve = [entry for entry in history if "loss" in entry]
    keys = ("step", "loss", "learning_rate", "sets_per_second")
    report = {
        "settings": settings,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "encoder_parameters": sum(weight.numel() for weight in model.a2mae.parameters()),
        "steps": steps,
        "sets_seen": steps * batch_size,
        "epochs": steps * batch_size / sets.num_sets,
        "seconds": curve[-1]["seconds"],
        "processes": arguments.world_size,
        "device": torch.cuda.get_device_name() if arguments.device.type == "cuda" else arguments.device.type,
        "versions": {"a2mae-hub": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "curve": [{key: entry[key] for key in keys} for entry in curve],
    }
    before = None if checkpoint is None else inference.read_beside(checkpoint, _REPORT)
    if before is not None:
        report["before"] = before
    if trainer.is_world_process_zero():
        model.save_pretrained(output)
        processor.save_pretrained(output)
        write_atomically(output / _REPORT, json.dumps(report, indent=1))
    return report


def config_fields() -> list[str]:
    """Return the names of what can be set of a model: the fields of `A2MAEConfig` itself, not of its parents."""
    return [name for name in A2MAEConfig.__annotations__ if not name.startswith("_") and name != "model_type"]


def last_checkpoint(output: Path) -> Path | None:
    """Return the last whole `checkpoint-N` of a folder, or None.

    The Trainer writes `trainer_state.json` last: where it is there and whole, so is all that came before it.
    """
    names = [path for path in output.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(names, key=_step_of, reverse=True):
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            continue
        files = ("model.safetensors", "config.json", "optimizer.pt", "scheduler.pt")
        if state.get("global_step") == _step_of(path) and all((path / file).is_file() for file in files):
            return path
    return None


def _step_of(checkpoint: Path) -> int:
    """Return the N of `checkpoint-N`."""
    return int(checkpoint.name.rpartition("-")[2])


def _check_arguments(
    shards: Sequence[str | os.PathLike[str]],
    output: Path,
    config: A2MAEConfig | None,
    checkpoint: str | os.PathLike[str] | None,
    steps: int,
    batch_size: int,
    learning_rate: float,
    workers: int,
    save_steps: int,
) -> None:
    """Raise ValueError where an argument is out of range."""
    if not shards or isinstance(shards, (str, os.PathLike)):
        raise ValueError(f"shards={shards!r}: give a list of at least one folder or Hub id of shards.")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; name a folder to write to.")
    if config is None and checkpoint is None:
        raise ValueError("config=None: give the configuration of the model, or a checkpoint to begin with.")
    for name, value, least in (
        ("steps", steps, 1),
        ("batch_size", batch_size, 1),
        ("workers", workers, 0),
        ("save_steps", save_steps, 1),
    ):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate={learning_rate} must be greater than 0.")
    check_divisible(batch_size)


def streams_by_kind(path: str | os.PathLike[str], seed: int) -> Iterator[tuple[str, ImageSetStream]]:
    """Open the sets to train on, kind by kind: of the split "train", or all where there are no splits of usual names.

    Raises:
        ValueError: If there are splits, and no sets to train on.
    """
    found: set[tuple[str, str]] = set()
    for _, shard in open_shards(find_shards(path)):
        columns = shard.read(["kind", "split"])
        found.update(zip(columns["kind"].to_pylist(), columns["split"].to_pylist(), strict=True))
    has_splits = any(split in ("train", "validation", "test") for _, split in found)
    kinds = sorted({kind for kind, split in found if split == "train" or not has_splits})
    if not kinds:
        raise ValueError(f"{path}: holds no sets of the split 'train'; build some, or name other shards.")
    for kind in kinds:
        yield kind, load(path, kinds=kind, split="train" if has_splits else None, shuffle=True, seed=seed)


def _fingerprint(stream: ImageSetStream) -> str:
    """Return what tells the sets and the order of a stream from others, wherever the shards lie."""
    return stream.state_dict()["examples_iterable"]["stream"]


def _example(path: str | os.PathLike[str], processor: A2MAEImageProcessor) -> StoredSet:
    """Return a view of the set to draw: the one of most images among some that are kept for validation."""
    try:
        stream = load(path, split="validation", shuffle=True)
    except ValueError:
        stream = load(path, shuffle=True)
    example = max(islice(stream, _CANDIDATES), key=lambda row: len(row["images"]))
    # The ground around the centre, four times what is trained on; a whole image may be too much for one pass.
    view = PretrainingCollator(processor, side=16, augment=False).view
    return view(from_row(example), np.random.default_rng(0))


def _model(
    config: A2MAEConfig | None, checkpoint: str | os.PathLike[str] | None
) -> tuple[A2MAEForPreTraining, A2MAEImageProcessor]:
    """Return the model to begin with, and the processor that belongs to it."""
    if checkpoint is None:
        assert config is not None
        return A2MAEForPreTraining(config), A2MAEImageProcessor(patch_size=config.patch_size)
    loaded = inference.load_checkpoint(checkpoint)
    if config is None:
        return loaded.model, loaded.processor
    model = A2MAEForPreTraining(config)
    try:
        model.load_state_dict(loaded.model.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint}: its weights do not fit the configuration; change nothing that decides their shapes."
        ) from error
    return model, loaded.processor


def _begin(output: Path, settings: dict[str, Any]) -> None:
    """Write down the settings of a new run, or see that they are those of the run that the folder holds."""
    path = output / _SETTINGS
    if not path.is_file():
        if any(output.glob("checkpoint-*")) or (output / "model.safetensors").exists():
            raise ValueError(f"{output}: holds a model that was not pre-trained here; name another folder.")
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(settings, indent=1))
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    ours = json.loads(json.dumps(settings))
    for told in (found, ours):
        told.update({f"config.{name}": value for name, value in told.pop("config").items()})
        # The same shards may lie elsewhere now.
        told["shards"] = [(entry["kind"], entry["sets"], entry["fingerprint"]) for entry in told["shards"]]
    for name in ours:
        if found.get(name) != ours[name]:
            told = "other shards" if name == "shards" else f"{name}={found.get(name)!r}, not {ours[name]!r}"
            raise ValueError(
                f"{output}: holds a run with {told}; give what it was begun with to go on with it, or another folder."
            )


def _training_arguments(output: Path, settings: dict[str, Any], save_steps: int, report_to: str) -> TrainingArguments:
    """Return what the Trainer is told."""
    steps, batch_size = settings["steps"], settings["batch_size"]
    has_cuda = torch.cuda.is_available()
    # A thousand logs or so; one of them at every checkpoint, so that no mean is cut in two by a resumption.
    logging_steps = next(n for n in range(min(max(steps // 1000, 1), save_steps), 0, -1) if save_steps % n == 0)
    arguments = TrainingArguments(
        str(output),
        max_steps=steps,
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=settings["warmup_steps"],
        weight_decay=settings["weight_decay"],
        adam_beta1=_ADAM_BETAS[0],
        adam_beta2=_ADAM_BETAS[1],
        max_grad_norm=_MAX_GRADIENT_NORM,
        # Left to itself, the Trainer takes processes without a GPU for one run each.
        use_cpu=not torch.accelerator.is_available(),
        bf16=has_cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        seed=settings["seed"],
        dataloader_num_workers=settings["workers"],
        dataloader_pin_memory=has_cuda,
        accelerator_config={"dispatch_batches": False},  # Every process prepares its own part of a batch.
        ignore_data_skip=True,  # `EndlessSets` begins where it has to.
        remove_unused_columns=False,
        label_names=[],
        logging_steps=logging_steps,
        logging_nan_inf_filter=False,
        save_steps=save_steps,
        save_total_limit=2,
        report_to=report_to,
        disable_tqdm=not sys.stderr.isatty(),
    )
    share_batch(arguments, batch_size, "pretrain")
    return arguments


def told_by_worker(error: ValueError) -> str | None:
    """Return what an error of a worker of the data loader says, without the traceback that torch puts around it."""
    text = str(error)
    return text.rstrip().rpartition("\nValueError: ")[2] if text.startswith("Caught ValueError in DataLoader") else None
