"""The models that are fine-tuned: from a checkpoint and the classes of a task, and what of them is trained how."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_layer_decay

from a2mae_hub.checkpoints import DEFAULT
from a2mae_hub.inference import MAX_TOKENS, Checkpoint, architectures_of, load_checkpoint, quiet_loading
from a2mae_hub.modeling.configuration_a2mae import A2MAEConfig
from a2mae_hub.modeling.image_processing_a2mae import A2MAEImageProcessor
from a2mae_hub.modeling.sensors_a2mae import SENSORS
from a2mae_hub.modeling.tasks_a2mae import (
    A2MAEForChangeDetection,
    A2MAEForImageClassification,
    A2MAEForSemanticSegmentation,
    A2MAETaskModel,
)

from .label_files import CHANGE, CLASSIFICATION, REGRESSION, SEGMENTATION
from .labelled import LabelledData
from .pretrain import config_fields

_MODELS: dict[str, type[A2MAETaskModel]] = {
    CLASSIFICATION: A2MAEForImageClassification,
    SEGMENTATION: A2MAEForSemanticSegmentation,
    CHANGE: A2MAEForChangeDetection,
}
_HEADS = {
    SEGMENTATION: ("segmentation_head", ("linear", "fpn")),
    CHANGE: ("change_head", ("difference", "attention")),
}
_LORA_RANK = 8


def check_head(task: str, head: str | None) -> None:
    """Raise ValueError where a task has no such head."""
    if head is None:
        return
    choices = _HEADS[task][1] if task in _HEADS else ()
    if head not in choices:
        raise ValueError(
            f"head={head!r} must be one of {', '.join(choices)}."
            if choices
            else f"head={head!r}: {task} has one head; leave it out."
        )


def make_model(
    data: LabelledData,
    checkpoint: str | os.PathLike[str] | None,
    config: A2MAEConfig | None,
    head: str | None,
    size: int | None,
    class_weights: str | Sequence[float] | None,
) -> tuple[A2MAETaskModel, A2MAEImageProcessor, list[str]]:
    """Return the model of a task, the processor, and notes on what of the checkpoint is new or kept.

    The head is random, unless the checkpoint was fine-tuned for the same task and classes with the same head: then it
    is kept. A head that was trained alone before spares the encoder the steps away from what it knows that a random
    one asks for (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features").

    Args:
        data: Gives the classes.
        checkpoint: Whose encoder to take; None is a2mae-nano, or random weights if `config` is given.
        config: Of the model; None takes that of the checkpoint.
        head: Of maps.
        size: Of classification.
        class_weights: As in `finetune`.

    Raises:
        FileNotFoundError: If the checkpoint is not there.
        ValueError: If its weights do not fit the configuration.
    """
    loaded = None
    if checkpoint is not None or config is None:
        loaded = load_checkpoint(DEFAULT if checkpoint is None else checkpoint)
    base = config if config is not None else loaded.model.config  # type: ignore[union-attr]
    fields = {name: getattr(base, name) for name in config_fields()}
    if head is not None:
        fields[_HEADS[data.task][0]] = head
    weights = data.balanced_weights() if class_weights == "balanced" else class_weights
    fields["class_weights"] = None if weights is None else [float(weight) for weight in weights]
    own = A2MAEConfig(
        **fields,
        id2label=dict(enumerate(data.classes)),
        label2id={name: number for number, name in enumerate(data.classes)},
        problem_type=data.problem_type if data.task == CLASSIFICATION else None,
    )
    model = _MODELS[data.task](own)
    if loaded is None:
        processor = A2MAEImageProcessor(patch_size=own.patch_size)
    else:
        processor = loaded.processor
        try:
            model.a2mae.load_state_dict(loaded.model.a2mae.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"{loaded.name}: its weights do not fit the configuration; change nothing that decides their shapes."
            ) from error
    is_kept = loaded is not None and _keep_head(model, loaded, data)
    known = [sensor.name for sensor in processor.sensors]
    added = [sensor for sensor in SENSORS.values() if sensor.name not in known]
    processor.sensors = [*processor.sensors, *added]
    if data.task != CLASSIFICATION:
        processor.size = None  # Maps are made on the pixels that images have.
    elif size is not None:
        count = (-(-size // own.patch_size)) ** 2
        if count > MAX_TOKENS:
            raise ValueError(
                f"size={size}: makes {count} patches of {own.patch_size} × {own.patch_size} pixels of every image, more"
                f" than the {MAX_TOKENS} of one pass; give a smaller one."
            )
        processor = A2MAEImageProcessor(own.patch_size, size, processor.sensors)
    notes = [
        f"{sensor.name}: a sensor that the checkpoint does not name; known by its wavelengths." for sensor in added
    ]
    if is_kept:
        notes.append("The checkpoint was fine-tuned for the same classes; its head is kept.")
    return model, processor, notes


def _keep_head(model: A2MAETaskModel, loaded: Checkpoint, data: LabelledData) -> bool:
    """Give a model the head of the checkpoint, if it is one for the same; return whether it was."""
    folder = loaded.model.name_or_path
    is_same = all(
        getattr(loaded.model.config, name) == getattr(model.config, name) for name in ("id2label", "problem_type")
    )
    # Values are standardised anew by those of the data.
    if type(model).__name__ not in architectures_of(folder) or not is_same or data.problem_type == REGRESSION:
        return False
    with quiet_loading():
        tuned, report = type(model).from_pretrained(folder, output_loading_info=True)
    weights = tuned.state_dict()
    if report["missing_keys"] or {name: values.shape for name, values in weights.items()} != {
        name: values.shape for name, values in model.state_dict().items()
    }:
        return False
    model.load_state_dict(weights)
    return True


def with_adapters(model: A2MAETaskModel) -> torch.nn.Module:
    """Return the model with low-rank matrices (Hu et al. 2022) beside queries and values; head and these are trained.

    Raises:
        ImportError: If peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("mode='lora' needs peft: pip install 'a2mae-hub[peft]'.") from error
    head = "classifier" if isinstance(model, A2MAEForImageClassification) else "decode_head"
    settings = LoraConfig(
        r=_LORA_RANK, lora_alpha=2 * _LORA_RANK, target_modules=["q_proj", "v_proj"], modules_to_save=[head]
    )
    return get_peft_model(model, settings)


@torch.no_grad()
def rescale(model: A2MAETaskModel, mean: np.ndarray, deviation: np.ndarray) -> None:
    """Make a model that predicts standardised values predict the values themselves, through its last layer."""
    linear = model.get_submodule("classifier.linear")
    scale, shift = (torch.from_numpy(numbers).to(linear.weight) for numbers in (deviation, mean))
    linear.weight.mul_(scale[:, None])
    linear.bias.mul_(scale).add_(shift)


def parameter_groups(model: torch.nn.Module, weight_decay: float, layer_decay: float | None) -> list[dict[str, Any]]:
    """Return the weights that are trained in groups, with `weight_decay` and `lr_scale`, by timm.

    Args:
        model: The model, or what stands in for it.
        weight_decay: Of matrices; biases, norms and the class token have none.
        layer_decay: Scale of the learning rate from a layer to the one below it (Bao et al. 2022, BEiT); the head
            has 1. None gives 1 to all.
    """
    if layer_decay is None:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        matrices, others = ([one for one in weights if (one.ndim > 1) == is_matrix] for is_matrix in (True, False))
        return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    # What timm asks its own models for: embeddings, the layers, the last norm with the last layer (99999); all else is
    # the head.
    blocks = [(r"^a2mae\.layers\.(\d+)", None), (r"^a2mae\.layernorm", (99999,))]
    matcher = {"stem": r"^a2mae\.(?!layers\.|layernorm)", "blocks": blocks}
    model.group_matcher = lambda coarse=False: matcher  # type: ignore[assignment]
    try:
        return param_groups_layer_decay(model, weight_decay, ["a2mae.cls_token"], layer_decay=layer_decay)
    finally:
        del model.group_matcher
